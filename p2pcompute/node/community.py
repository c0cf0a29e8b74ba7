"""The peers around this one, as its jobs see them: who lends, who coordinates which community, and what both have to say.

Tells the origin and the coordinator of this peer of every linked peer, makes regions out of the network's shape, and says which
messages are the coordinator's. Refuses to decide: who coordinates elects `topology/`, which jobs are shared says
`jobs/coordinating.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pcompute.jobs.plan import Place
from p2pcompute.model.ids import PeerId, coordinator_of
from p2pcompute.model.job import JobOptions
from p2pcompute.model.peer import Role
from p2pcompute.net.blobs import BlobExchange
from p2pcompute.net.link import Link
from p2pcompute.node.channels import Channel, LinkChannel, connect_in_community, connect_locally
from p2pcompute.node.coordinator import Coordinator
from p2pcompute.node.facts import facts_of, own_facts, peers_to_seek, regions_of
from p2pcompute.node.lender import Lender
from p2pcompute.node.origin import Origin
from p2pcompute.node.overlay import Overlay
from p2pcompute.node.own_record import OwnRecord
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.wire.messages import Message

if TYPE_CHECKING:
    from p2pcompute.topology.shape import NetworkShape

#: Between two looks at all peers: round trips and scores change.
OFFER_INTERVAL_S = 2.0


class Community:
    """See the module. `place_of`: where a peer is in the topology."""

    def __init__(
        self,
        own: OwnRecord,
        store: BlobStore,
        exchange: BlobExchange,
        origin: Origin,
        coordinator: Coordinator,
        lender: Lender,
        place_of: Callable[[PeerId], Place],
    ) -> None:
        self._own = own
        self._exchange = exchange
        self._origin = origin
        self._coordinator = coordinator
        self._place_of = place_of
        #: Set by `attach`.
        self._overlay: Overlay | None = None
        peer = own.record.peer
        #: To this peer's own lender: for its own jobs, and as a member of its community.
        self._own_lender, to_origin = connect_locally(peer, store)
        self._own_member, to_coordinator = connect_in_community(peer, store, coordinator.bring)
        self._own_lender.deliver = self._own_member.deliver = lender.message
        to_origin.deliver = origin.message
        to_coordinator.deliver = self._said_by_own_member
        exchange.bring = coordinator.bring
        origin.seek = self._seek

    def attach(self, overlay: Overlay) -> None:
        """Use `overlay`, which has been started."""
        self._overlay = overlay

    # --- messages -----------------------------------------------------------------------------------------------------

    def message(self, channel: Channel, message: Message) -> bool:
        """Take `message` where it is the coordinator's business; whether it was."""
        if not self._coordinator.takes(channel.peer, message):
            return False
        self._coordinator.message(channel, message)
        return True

    def _said_by_own_member(self, channel: Channel, message: Message) -> None:
        self.message(channel, message)

    # --- peers --------------------------------------------------------------------------------------------------------

    def offer(self, link: Link) -> None:
        """The peer at the end of `link` may compute for jobs here, or coordinate for them; or what is known of it has changed."""
        entry = self._overlay.view.entry(link.peer) if self._overlay is not None else None
        if entry is None:
            return
        channel = LinkChannel(link, self._exchange)
        facts = facts_of(entry, link.bandwidth_mbps, self._place_of(link.peer))
        if Role.COMPUTE in link.admission.roles and entry.record.slots:
            self._origin.peer_usable(channel, facts)
            self._coordinator.peer_usable(channel, facts)
        self._origin.seat_usable(channel, facts)

    def offer_self(self) -> None:
        """This peer may compute for its own jobs, and for shares that it coordinates."""
        if self._own.record.slots:
            facts = own_facts(self._own.record, self._place_of(self._own.record.peer))
            self._origin.peer_usable(self._own_lender, facts)
            self._coordinator.peer_usable(self._own_member, facts)

    def gone(self, peer: PeerId, reason: str) -> None:
        """The link to `peer` is down."""
        self._origin.peer_gone(peer, reason)
        self._coordinator.peer_gone(peer, reason)

    def mapped(self, shape: NetworkShape) -> None:
        """The network has this shape now."""
        self._origin.mapped(shape.adjacency)
        if self._overlay is None:
            return
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
        assert self._overlay is not None, "the community has not been attached"
        while True:
            await asyncio.sleep(OFFER_INTERVAL_S)
            self._origin.located(self._place_of(self._own.record.peer).community)
            self.offer_self()
            for link in self._overlay.hub.links.values():
                self.offer(link)

    def _seek(self, options: JobOptions) -> None:
        """Link peers that a job could use, of those that are known."""
        if self._overlay is not None:
            for peer in peers_to_seek(self._overlay.view, self._overlay.hub.links, options.requirements):
                self._overlay.want_link(peer)
