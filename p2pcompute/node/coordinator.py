"""This peer as the coordinator of its community: one `Delegate` for each origin that has given it shares.

Says which messages are a coordinator's business, keeps the delegates told of the peers around, and brings data that members ask for
from the origins. Refuses to decide who coordinates: whoever may submit may ask any peer to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from structlog.typing import FilteringBoundLogger

from p2pcompute.jobs.plan import Facts
from p2pcompute.jobs.strategies import Registry
from p2pcompute.model import limits
from p2pcompute.model.errors import LinkClosedError
from p2pcompute.model.ids import BlobId, JobId, PeerId, short_peer_id
from p2pcompute.model.seams import Clock
from p2pcompute.node.channels import Channel
from p2pcompute.node.delegate import Delegate
from p2pcompute.node.supervise import Supervisor
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.trust.tiers import MAY_SUBMIT
from p2pcompute.wire.messages import (
    Grant,
    JobAccept,
    JobClose,
    JobRefuse,
    Message,
    Results,
    ShareOpen,
    TaskNews,
    Tasks,
    TasksCancel,
    TasksRecall,
)

#: What an origin says of a share.
_OF_ORIGINS = (Tasks, TasksCancel, TasksRecall, JobClose)
#: What members say of it.
_OF_MEMBERS = (JobAccept, JobRefuse, Results, TaskNews)


class Coordinator:
    """See the module. `registry`: makes strategies."""

    def __init__(
        self,
        store: BlobStore,
        supervisor: Supervisor,
        clock: Clock,
        log: FilteringBoundLogger,
        registry: Registry,
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._clock = clock
        self._log = log
        self._registry = registry
        #: Told of peers that do what no honest one does; the composition root sets it.
        self.misdeed: Callable[[PeerId, str], None] = lambda peer, what: None
        #: Whether a job was submitted at this peer: results of that are no share's; the composition root sets it.
        self.is_own: Callable[[JobId], bool] = lambda job: False
        #: Who runs each open share: what job messages are looked up in, so nothing where none is open.
        self._shares: dict[JobId, Delegate] = {}
        #: Shares of each origin that is linked.
        self._delegates: dict[PeerId, Delegate] = {}
        #: Peers that may compute here: their channels, and what is known of them.
        self._peers: dict[PeerId, tuple[Channel, Facts]] = {}

    # --- messages -----------------------------------------------------------------------------------------------------

    def takes(self, peer: PeerId, message: Message) -> bool:
        """Whether what `peer` says is this coordinator's business rather than the origin's or the lender's."""
        if isinstance(message, ShareOpen):
            return True
        if isinstance(message, Grant):
            return bool(message.origin)
        if not self._shares:
            return False
        of_job: Any = message
        delegate = self._shares.get(JobId(getattr(of_job, "job", b"")))
        if delegate is None:
            return False
        return delegate.origin == peer if isinstance(message, _OF_ORIGINS) else isinstance(message, _OF_MEMBERS)

    def message(self, channel: Channel, message: Message) -> None:
        """What `takes` said yes to."""
        if isinstance(message, ShareOpen):
            self._open(channel, message)
        elif isinstance(message, Grant):
            delegate = self._delegates.get(PeerId(message.origin))
            if delegate is not None:
                delegate.message_of_member(channel, message)
        elif isinstance(message, _OF_ORIGINS):
            self._shares[JobId(message.job)].message_of_origin(message)
        else:
            of_job: Any = message
            self._shares[JobId(of_job.job)].message_of_member(channel, message)

    def _open(self, channel: Channel, message: ShareOpen) -> None:
        name = JobId(message.share)
        if not MAY_SUBMIT & channel.roles:
            text = "the invitation of the submitting peer does not allow it to submit"
            self._refuse(channel, name, "role", text)
            return
        if name in self._shares or self.is_own(name):
            self._refuse(channel, name, "share", "a job with this id is open here")
            return
        delegate = self._delegates.get(channel.peer)
        if delegate is None:
            if len(self._delegates) >= limits.LINKS_MAX:
                self._refuse(channel, name, "busy", "this peer coordinates for as many others as it can")
                return
            delegate = self._delegates[channel.peer] = Delegate(
                channel.peer,
                self._store,
                self._supervisor,
                self._clock,
                self._log,
                self._registry,
                self._peers.get,
                lambda peer, what: self.misdeed(peer, what),
                self._shares,
            )
        delegate.open(channel, message)

    def _refuse(self, channel: Channel, share: JobId, reason: str, text: str) -> None:
        try:
            channel.send(JobRefuse(share, reason, text))
        except LinkClosedError:
            self._log.debug("not sent: the link is gone", peer=short_peer_id(channel.peer))

    # --- peers --------------------------------------------------------------------------------------------------------

    def peer_usable(self, channel: Channel, facts: Facts) -> None:
        """`channel` leads to a peer that may compute, of which `facts` are known."""
        self._peers[channel.peer] = (channel, facts)
        for delegate in self._delegates.values():
            delegate.look_at(channel.peer)

    def linked(self, channel: Channel) -> None:
        """There is a new link to a peer, perhaps in place of one over which it has shares here."""
        delegate = self._delegates.get(channel.peer)
        if delegate is not None:
            delegate.linked(channel)

    def peer_gone(self, peer: PeerId, reason: str) -> None:
        """`peer` is not reachable any more, as a member or as an origin."""
        self._peers.pop(peer, None)
        delegate = self._delegates.pop(peer, None)
        if delegate is not None:
            delegate.stop()
        for other in self._delegates.values():
            other.peer_gone(peer, reason)

    def uses(self, peer: PeerId) -> bool:
        """Whether work runs over the link to `peer`."""
        return any(
            delegate.jobs and (peer == origin or peer in delegate.members)
            for origin, delegate in self._delegates.items()
        )

    def stop(self) -> None:
        """End all shares."""
        for delegate in self._delegates.values():
            delegate.stop()
        self._delegates.clear()

    # --- data ---------------------------------------------------------------------------------------------------------

    async def bring(self, asker: PeerId, blob: BlobId) -> bytes | bytearray | memoryview | None:
        """Data that a member asks for, from an origin whose tasks it runs; None where none has it."""
        for delegate in list(self._delegates.values()):
            if asker in delegate.members:
                data = await delegate.bring(blob)
                if data is not None:
                    return data
        return None
