"""Origin, coordinator and lender of one peer, and how what others say and do reaches the right one of them.

This peer's own lender computes for its own jobs, and as a member of its community for shares that it coordinates: two channels, as
over two links. Refuses to know: the overlay (`surroundings.py`), and who coordinates what.
"""

from __future__ import annotations

from p2pcompute.jobs.plan import Facts
from p2pcompute.model.ids import PeerId
from p2pcompute.net.blobs import BlobExchange
from p2pcompute.node.channels import Channel, connect_in_community, connect_locally
from p2pcompute.node.coordinator import Coordinator
from p2pcompute.node.lender import Lender
from p2pcompute.node.origin import Origin
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.wire.messages import (
    CommunityGrant,
    Grant,
    JobAccept,
    JobClose,
    JobOpen,
    JobRefuse,
    Message,
    Partial,
    Results,
    TaskNews,
    Tasks,
    TasksCancel,
    TasksRecall,
)

_FOR_ORIGIN = (JobAccept, JobRefuse, Grant, Results, TaskNews, CommunityGrant, Partial)
_FOR_LENDER = (JobOpen, Tasks, TasksCancel, TasksRecall, JobClose)


class Community:
    """See the module."""

    def __init__(
        self,
        peer: PeerId,
        store: BlobStore,
        exchange: BlobExchange,
        origin: Origin,
        coordinator: Coordinator,
        lender: Lender,
    ) -> None:
        self._origin = origin
        self._coordinator = coordinator
        self._lender = lender
        self._own_lender, to_origin = connect_locally(peer, store)
        self._own_member, to_coordinator = connect_in_community(peer, store, coordinator.bring)
        self._own_lender.deliver = self._own_member.deliver = lender.message
        to_origin.deliver = origin.message
        to_coordinator.deliver = self._said_by_own_member
        exchange.bring = coordinator.bring
        exchange.on_served = origin.sent_blob
        coordinator.is_own = origin.jobs.__contains__

    def message(self, channel: Channel, message: Message) -> bool:
        """Take what another peer says of jobs, to whom it is for; whether it was of jobs."""
        if self._of_a_share(channel, message):
            return True
        if isinstance(message, _FOR_ORIGIN):
            self._origin.message(channel, message)
        elif isinstance(message, _FOR_LENDER):
            self._lender.message(channel, message)
        else:
            return False
        return True

    def _of_a_share(self, channel: Channel, message: Message) -> bool:
        """Take `message` where it is the coordinator's business; whether it was."""
        if not self._coordinator.takes(channel.peer, message):
            return False
        self._coordinator.message(channel, message)
        return True

    def _said_by_own_member(self, channel: Channel, message: Message) -> None:
        self._of_a_share(channel, message)

    def linked(self, channel: Channel) -> None:
        """There is a new link to a peer, perhaps in place of one over which it has jobs here."""
        self._lender.linked(channel)
        self._coordinator.linked(channel)

    def usable(self, channel: Channel, facts: Facts, *, lends: bool) -> None:
        """`channel` leads to a peer of which `facts` are known; or they have changed. `lends`: whether it may compute for us."""
        if lends:
            self._origin.peer_usable(channel, facts)
            self._coordinator.peer_usable(channel, facts)
        self._origin.seat_usable(channel, facts)

    @property
    def own_slots(self) -> int:
        """Slots of this peer for jobs of its own user."""
        return self._lender.slots

    def own_usable(self, facts: Facts) -> None:
        """This peer itself lends, and `facts` are known of it."""
        self._origin.peer_usable(self._own_lender, facts)
        self._coordinator.peer_usable(self._own_member, facts)

    def gone(self, peer: PeerId, reason: str) -> None:
        """The link to `peer` is down."""
        self._origin.peer_gone(peer, reason)
        self._coordinator.peer_gone(peer, reason)
        self._lender.origin_gone(peer)
