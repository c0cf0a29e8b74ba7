"""This peer among communities: it coordinates others' shares in its own, and gives coordinators of others shares of its jobs.

Between the peer's parts: says which messages are the coordinator's, tells coordinator and origin of the peers around, and makes
regions out of the network's shape. Refuses to decide: who coordinates elects `topology/`, which jobs are shared says
`jobs/coordinating.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pcompute.jobs.plan import Facts
from p2pcompute.model.ids import PeerId, coordinator_of
from p2pcompute.model.peer import PeerView
from p2pcompute.node.channels import Channel, connect_in_community
from p2pcompute.node.coordinator import Coordinator
from p2pcompute.node.facts import regions_of
from p2pcompute.node.lender import Lender
from p2pcompute.node.origin import Origin
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.wire.messages import Message

if TYPE_CHECKING:
    from p2pcompute.topology.shape import NetworkShape


class Community:
    """See the module."""

    def __init__(
        self, peer: PeerId, store: BlobStore, coordinator: Coordinator, origin: Origin, lender: Lender
    ) -> None:
        self.coordinator = coordinator
        self._origin = origin
        #: To this peer's own lender, as a member.
        self._own, to_coordinator = connect_in_community(peer, store, coordinator.bring)
        self._own.deliver = lender.message
        to_coordinator.deliver = self._said

    def message(self, channel: Channel, message: Message) -> bool:
        """Take `message` where it is the coordinator's business; whether it was."""
        if not self.coordinator.takes(channel.peer, message):
            return False
        self.coordinator.message(channel, message)
        return True

    def _said(self, channel: Channel, message: Message) -> None:
        self.message(channel, message)

    def own_facts(self, facts: Facts) -> None:
        """What this peer's own lender has to give."""
        self.coordinator.peer_usable(self._own, facts)

    def peer_usable(self, channel: Channel, facts: Facts, *, lends: bool) -> None:
        """A linked peer, of which `facts` are known. `lends`: whether it may compute for us."""
        if lends:
            self.coordinator.peer_usable(channel, facts)
        self._origin.seat_usable(channel, facts)

    def mapped(self, shape: NetworkShape, view: PeerView, need: Callable[[PeerId], None]) -> None:
        """The network has this shape; `need` is called for each peer that may coordinate a community."""
        regions = regions_of(shape, view)
        self._origin.regions(regions)
        for region in regions:
            for seat in region.seats:
                need(coordinator_of(seat))
