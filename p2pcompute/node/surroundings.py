"""The peers around this one, as its jobs see them: who lends, who coordinates which community, and what is known of each.

Looks at the overlay's links and view, and at the network's shape, and tells the jobs. Refuses to decide: who coordinates elects
`topology/`, which jobs are shared says `jobs/coordinating.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pcompute.jobs.plan import Place
from p2pcompute.model.ids import PeerId, coordinator_of
from p2pcompute.model.job import JobOptions
from p2pcompute.model.peer import Role
from p2pcompute.net.blobs import BlobExchange
from p2pcompute.net.link import Link
from p2pcompute.node.channels import LinkChannel
from p2pcompute.node.community import Community
from p2pcompute.node.facts import facts_of, own_facts, peers_to_seek, regions_of
from p2pcompute.node.origin import Origin
from p2pcompute.node.overlay import Overlay
from p2pcompute.node.own_record import OwnRecord

if TYPE_CHECKING:
    from p2pcompute.topology.shape import NetworkShape

#: Between two looks at all peers: round trips and scores change.
OFFER_INTERVAL_S = 2.0


class Surroundings:
    """See the module. `place_of`: where a peer is in the topology."""

    def __init__(
        self,
        own: OwnRecord,
        overlay: Overlay,
        exchange: BlobExchange,
        community: Community,
        origin: Origin,
        place_of: Callable[[PeerId], Place],
    ) -> None:
        #: Whether the network is open; the composition root sets it.
        self.is_open = False
        self._own = own
        self._overlay = overlay
        self._exchange = exchange
        self._community = community
        self._origin = origin
        self._place_of = place_of
        origin.seek = self._seek

    def offer(self, link: Link) -> None:
        """The peer at the end of `link` may compute for jobs here, or coordinate for them; or what is known of it has changed."""
        entry = self._overlay.view.entry(link.peer)
        if entry is None:
            return
        facts = facts_of(entry, link.bandwidth_mbps, self._place_of(link.peer))
        # In an open network no role counts: a lender says itself what anybody may have run.
        lends = (self.is_open or Role.COMPUTE in link.admission.roles) and entry.record.slots > 0
        self._community.usable(LinkChannel(link, self._exchange), facts, lends=lends)

    def offer_self(self) -> None:
        """This peer may compute for its own jobs, and for shares that it coordinates."""
        slots = self._community.own_slots
        if slots:
            # What others are lent at present says nothing about the own user.
            facts = own_facts(self._own.now, self._place_of(self._own.record.peer))
            self._community.own_usable(dataclasses.replace(facts, slots=slots))

    def mapped(self, shape: NetworkShape) -> None:
        """The network has this shape now."""
        self._origin.mapped(shape.adjacency)
        regions = regions_of(shape, self._overlay.view)
        self._origin.regions(regions)
        for region in regions:
            for peer in map(coordinator_of, region.seats):
                link = self._overlay.hub.links.get(peer)
                if link is None:
                    self._overlay.want_link(peer)
                else:
                    self.offer(link)

    async def keep_offering(self) -> None:
        """Look at all peers again and again."""
        while True:
            await asyncio.sleep(OFFER_INTERVAL_S)
            self._origin.located(self._place_of(self._own.record.peer).community)
            self.offer_self()
            for link in self._overlay.hub.links.values():
                self.offer(link)

    def _seek(self, options: JobOptions) -> None:
        """Link peers that a job could use, of those that are known."""
        for peer in peers_to_seek(self._overlay.view, self._overlay.hub.links, options.requirements):
            self._overlay.want_link(peer)
