"""What this peer dispatches in the name of one other peer: the shares of its jobs, among the peers of this community.

The same machine and the same shell as an origin's; in place of a submitter's payloads there are `Share`s, and what they come to goes
up to their origin: results in batches, and where the aggregation allows it one partial aggregate when nothing is left to run.
Refuses to know: who is asked to coordinate, and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from structlog.typing import FilteringBoundLogger

from p2pcompute.jobs import dispatch
from p2pcompute.jobs.plan import Facts
from p2pcompute.jobs.strategies import Registry
from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, P2PComputeError
from p2pcompute.model.ids import BlobId, JobId, PeerId, TaskIndex, format_job_id
from p2pcompute.model.job import Outcome, Payload, Usage
from p2pcompute.model.seams import Clock
from p2pcompute.node.bringing import Bringing
from p2pcompute.node.channels import Channel
from p2pcompute.node.dispatching import Dispatching
from p2pcompute.node.share import Share, spec_of
from p2pcompute.node.supervise import Supervisor
from p2pcompute.node.upward import GATHER_S, UpRow, Upward, said
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
    ShareOpen,
    TaskNews,
    Tasks,
    TasksCancel,
    TasksRecall,
)

Bytes = bytes | bytearray | memoryview
#: Nothing to run for this share of its life, or so long, and a share hands over what it has merged.
IDLE_SHARE, IDLE_MAX_S = 0.02, 0.05
#: What is merged is handed over after so long at the latest: more than that a coordinator's death must not cost.
CUT_EVERY_S = 60.0
#: How often the origin hears that its shares are alive, which have nothing else to say.
ALIVE_EVERY_S = 2.0


class Delegate(Dispatching[Share]):
    """The shares of `origin`. `known(peer)`: channel to a peer and facts of it, None where it cannot be used; `open_shares`: those of
    all delegates here, in which it writes its own."""

    def __init__(
        self,
        origin: PeerId,
        store: BlobStore,
        supervisor: Supervisor,
        clock: Clock,
        log: FilteringBoundLogger,
        registry: Registry,
        known: Callable[[PeerId], tuple[Channel, Facts] | None],
        misdeed: Callable[[PeerId, str], None],
        open_shares: dict[JobId, Delegate],
    ) -> None:
        super().__init__(store, supervisor, clock, log, registry)
        self.origin = origin
        self._known = known
        self._tell_misdeed = misdeed
        self._open_shares = open_shares
        #: Peers that it dispatches to.
        self.members: set[PeerId] = set()
        #: What goes to the origin.
        self._up = Upward(log)
        #: What is brought from there.
        self._bringing = Bringing(origin, store, log)
        #: Slots that the origin was last told it has.
        self._granted = 0
        self._alive_timer: asyncio.TimerHandle | None = None
        #: When the origin is told of slots that have changed.
        self._slots_timer: asyncio.TimerHandle | None = None
        #: When shares that seemed idle are looked at again.
        self._idle: dict[JobId, asyncio.TimerHandle] = {}

    def _handlers(self) -> dict[type, Callable[[Any], None]]:
        def nothing(effect: object) -> None:
            """What only a submitter wants to know."""

        told = (dispatch.Moved, dispatch.Stalled, dispatch.FellBack, dispatch.SeekPeers, dispatch.TaskRetried)
        return {
            **dict.fromkeys((*told, dispatch.PartialTaken, dispatch.PartialRefused), nothing),
            dispatch.Completed: self._completed,
            dispatch.GivenUp: self._given_up,
            dispatch.JobEnded: self._job_ended,
            dispatch.Withdrawn: self._withdrawn,
        }

    def _misdeed(self, peer: PeerId, what: str) -> None:
        self._tell_misdeed(peer, what)

    def linked(self, channel: Channel) -> None:
        """There is a new link to the origin, perhaps in place of one over which it has shares here."""
        self._up.channel = channel
        for share in self.jobs.values():
            share.channel = channel
        self._tell_slots(anew=True)

    # --- what the origin says -----------------------------------------------------------------------------------------

    def open(self, channel: Channel, message: ShareOpen) -> None:
        """A share for this peer to dispatch."""
        self._up.channel = channel
        name = JobId(message.share)
        if sum(1 for job in self.jobs.values() if job.is_open) >= limits.JOBS_PER_ORIGIN_MAX:
            self._up.send(
                JobRefuse(name, "busy", f"{limits.JOBS_PER_ORIGIN_MAX} shares of this submitter are open here")
            )
            return
        try:
            spec = spec_of(message)
        except P2PComputeError as error:
            self._up.send(JobRefuse(name, "share", f"the share cannot be dispatched here: {error}"[:4096]))
            return
        share = self.jobs[name] = Share(message, channel, spec, self._store, self._clock.monotonic())
        self._open_shares[name] = self
        self._find_members()
        self._transfers.start(name, "program", f"open share {format_job_id(name)}", self._prepare(share))

    def _find_members(self) -> None:
        self.members = {PeerId(peer) for job in self.jobs.values() for peer in job.opened.members}

    async def _prepare(self, share: Share) -> None:
        """Fetch the program and what all tasks need, accept, look for members."""
        name = share.spec.job
        try:
            await self._bringing.gather(share)
        except (P2PComputeError, OSError) as error:
            self._close(share)
            self._up.send(JobRefuse(name, "busy", str(error)[:4096]))
            return
        share.is_accepted = True
        self._up.send(JobAccept(name))
        self._pump.feed(dispatch.JobOpened(share.spec))
        for peer in sorted(self.members):
            self.look_at(peer)
        self._tell_slots_soon()
        self._keep_alive()

    def look_at(self, peer: PeerId) -> None:
        """`peer` may be usable, or what is known of it has changed."""
        known = self._known(peer) if peer in self.members else None
        if known is not None:
            self._usable(peer, *known)

    def peer_gone(self, peer: PeerId, reason: str) -> None:
        """A member is not reachable any more."""
        self._gone(peer, reason)
        self._tell_slots_soon()

    def close(self, name: JobId) -> None:
        """The origin does not want the share any more."""
        share = self.jobs.get(name)
        if share is not None:
            self._close(share)

    def _close(self, share: Share) -> None:
        name = share.spec.job
        if self.jobs.get(name) is not share:
            return
        if share.is_accepted:
            self._pump.feed(dispatch.JobCancelled(name))
        else:
            # The machine does not know it.
            self._ended(share)

    def stop(self) -> None:
        """The origin is gone, or this peer stops: everything of it ends."""
        for name in list(self.jobs):
            self.close(name)
        self._pump.stop()
        self._up.stop()
        for timer in (self._alive_timer, self._slots_timer):
            if timer is not None:
                timer.cancel()

    async def bring(self, blob: BlobId) -> Bytes | None:
        """Data of the origin for a task of its shares; None where it has none, or no share is open."""
        if not self.jobs or self._up.channel is None:
            return None
        return await self._bringing.bring(blob, self._up.channel, lambda: bool(self.jobs))

    def message_of_origin(self, message: Message) -> None:
        """What the origin says of a share that is known."""
        match message:
            case Tasks():
                self._tasks(message)
            case TasksCancel():
                self._cancel(message)
            case TasksRecall():
                self._recall(message)
            case JobClose():
                self.close(JobId(message.job))

    def _tasks(self, message: Tasks) -> None:
        share = self.jobs[JobId(message.job)]
        room = limits.TASKS_QUEUED_PER_ORIGIN_MAX - sum(job.size for job in self.jobs.values())
        room_bytes = limits.SHARE_ARGUMENT_BYTES_MAX - sum(job.argument_bytes for job in self.jobs.values())
        here: list[TaskIndex] = []
        for task, attempt, entry, payload in message.rows:
            fits = share.is_accepted and room > 0 and len(payload.inline) <= room_bytes
            inner = share.take(task, attempt, entry, payload) if fits else None
            if inner is None:
                self._up.row(
                    share.spec.job, (task, attempt, Outcome.RETURNED_UNRUN, 0, said("no room for it here"), PeerId(b""))
                )
                continue
            room -= 1
            room_bytes -= len(payload.inline)
            if payload.blob is None:
                here.append(inner)
            else:
                share.fetching.add((task, attempt))
                fetching = self._fetch_arguments(share, inner, (task, attempt), payload)
                self._transfers.start(share.spec.job, (task, attempt), f"arguments of {task}", fetching)
        if here:
            self._pump.feed(dispatch.TasksAdded(share.spec.job, tuple(here)))

    async def _fetch_arguments(self, share: Share, inner: TaskIndex, row: tuple[int, int], payload: Payload) -> None:
        """Bring large arguments over the wide link once, before anybody waits for them."""
        assert payload.blob is not None
        why = ""
        data: Bytes | None = None
        try:
            if not self._store.has(payload.blob):
                data = await share.channel.fetch(payload.blob, payload.size_bytes)
        except (P2PComputeError, OSError) as error:
            why = str(error)
        if not why:
            why = share.hold_blob(payload.blob, data)
        if not why:
            share.fetching.discard(row)
            self._pump.feed(dispatch.TasksAdded(share.spec.job, (inner,)))
            return
        share.let_go(inner)
        self._up.row(share.spec.job, (*row, Outcome.RETURNED_UNRUN, 0, said(why), PeerId(b"")))

    def _cancel(self, message: TasksCancel) -> None:
        share = self.jobs[JobId(message.job)]
        dropped: list[TaskIndex] = []
        for task, attempt in message.rows:
            blob = share.result_blobs.pop((task, attempt), None)
            if blob is not None:
                self._store.release(blob, share.hold)
                continue
            inner = share.inner_of(task, attempt)
            if inner is not None:
                self._transfers.stop(share.spec.job, (task, attempt))
                share.settle(inner)
                dropped.append(inner)
        if dropped:
            self._pump.feed(dispatch.TasksDropped(share.spec.job, tuple(dropped)))
            self._look_whether_idle(share)

    def _recall(self, message: TasksRecall) -> None:
        """Give back what waits here; what members have goes on."""
        share = self.jobs[JobId(message.job)]
        waiting: list[TaskIndex] = []
        for task, attempt in dict.fromkeys(message.rows):
            inner = share.inner_of(task, attempt)
            if inner is None:
                continue
            if (task, attempt) in share.fetching:
                self._transfers.stop(share.spec.job, (task, attempt))
                share.let_go(inner)
                self._up.row(share.spec.job, (task, attempt, Outcome.RETURNED_UNRUN, 0, said(_RECALLED), PeerId(b"")))
            else:
                waiting.append(inner)
        if waiting:
            self._pump.feed(dispatch.TasksWithdrawn(share.spec.job, tuple(waiting)))

    def _withdrawn(self, effect: dispatch.Withdrawn) -> None:
        share = self.jobs[effect.job]
        for inner in effect.tasks:
            self._up.row(
                share.spec.job, (*share.let_go(inner), Outcome.RETURNED_UNRUN, 0, said(_RECALLED), PeerId(b""))
            )
        self._look_whether_idle(share)

    # --- what members say ---------------------------------------------------------------------------------------------

    def message_of_member(self, channel: Channel, message: Message) -> None:
        """What a member says of a share that is known, or of its slots."""
        peer = channel.peer
        if peer not in self._channels:
            return
        match message:
            case Results():
                self._results(peer, channel, message)
            case Grant():
                self._pump.feed(dispatch.Granted(peer, message.slots))
                self._tell_slots_soon()
            case JobAccept():
                self._pump.feed(dispatch.PeerAccepted(peer, JobId(message.job)))
            case JobRefuse():
                self._pump.feed(dispatch.PeerRefused(peer, JobId(message.job), message.reason, message.text))
            case TaskNews():
                self._news(message)

    def _news(self, message: TaskNews) -> None:
        """Progress and output, in the origin's numbers; of merges nobody asked."""
        news = self.jobs[JobId(message.job)].news(message)
        if news is not None:
            self._up.send(news)

    # --- effects ------------------------------------------------------------------------------------------------------

    def _offer(self, job: Share, peer: PeerId) -> Message | None:
        opened, options = job.opened, job.spec.options
        return JobOpen(
            job=opened.share,
            program=opened.program,
            program_bytes=opened.program_bytes,
            name=opened.name,
            priority=options.priority,
            timeout_s=options.timeout_s,
            memory_bytes=options.memory_bytes,
            delegation=opened.delegation,
        )

    def _completed(self, effect: dispatch.Completed) -> None:
        share = self.jobs[effect.job]
        added: list[TaskIndex] = []
        for report, peer in effect.reports:
            payload, wall_us = share.staged.pop((report.task, report.attempt, peer))
            if share.row_of(report.task) is None:
                added.extend(share.merge_ended(report.task, payload if report.outcome is Outcome.RETURNED else None))
                continue
            used = self._usage_of(effect.job, report.task, report.attempt, peer)
            task, attempt = share.settle(report.task)
            stays = False
            if report.outcome is Outcome.RETURNED or not share.is_fetched(len(payload)):
                stays, merges = share.merge(task, attempt, report.outcome, payload, peer)
                added.extend(merges)
            if stays:
                self._up.row(share.spec.job, (task, attempt, Outcome.MERGED, wall_us, Payload(), peer), used)
            else:
                self._up_result(share, (task, attempt, report.outcome, wall_us, Payload(), peer), payload, used)
        if added:
            self._pump.feed(dispatch.TasksAdded(effect.job, tuple(added)))
        self._look_whether_idle(share)

    def _given_up(self, effect: dispatch.GivenUp) -> None:
        """Attempts died here: whether there is another one, and where, is the origin's question."""
        share = self.jobs[effect.job]
        if share.row_of(effect.task) is None:
            share.merge_ended(effect.task, None)
        else:
            last = effect.history[-1]
            # A member that went away says nothing against the task.
            outcome = Outcome.RETURNED_UNRUN if effect.outcome is Outcome.PEER_LOST else effect.outcome
            row = share.settle(effect.task)
            self._up.row(share.spec.job, (*row, outcome, int(last.wall_s * 1e6), said(last.detail), last.peer))
        self._look_whether_idle(share)

    def _job_ended(self, effect: dispatch.JobEnded) -> None:
        share = self.jobs[effect.job]
        if effect.cause is not dispatch.EndCause.CANCELLED:
            self._up.send(JobRefuse(effect.job, "community", effect.reason[:4096]))
        self._ended(share)

    def _ended(self, share: Share) -> None:
        name = share.spec.job
        timer = self._idle.pop(name, None)
        if timer is not None:
            timer.cancel()
        self._up.forget(name)
        if self.jobs.pop(name, None) is not None:
            del self._open_shares[name]
            self._transfers.stop_all(name)
            share.close()
            self._pump.feed(dispatch.JobForgotten(name))
        self._find_members()
        if not self.jobs:
            self._bringing.forget()

    # --- handing over -------------------------------------------------------------------------------------------------

    def _look_whether_idle(self, share: Share) -> None:
        """Hand over what is merged where nothing is left to run, or it has been held for long."""
        name = share.spec.job
        now = self._clock.monotonic()
        if not share.is_open or not share.has_merged:
            return
        if now - share.cut_at >= CUT_EVERY_S or share.is_full:
            share.merges_no_more = True
            if not share.is_merging:
                self._cut(share)
        elif share.is_merging or name in self._idle:
            return
        elif self._machine.is_idle(name) and not share.fetching:
            wait_s = min(IDLE_SHARE * (now - share.opened_at), IDLE_MAX_S)
            self._idle[name] = asyncio.get_running_loop().call_later(wait_s, self._cut_if_idle, share)

    def _cut_if_idle(self, share: Share) -> None:
        name = share.spec.job
        self._idle.pop(name, None)
        if share.is_open and self._machine.is_idle(name) and not share.fetching and not share.is_merging:
            self._cut(share)

    def _cut(self, share: Share) -> None:
        share.cut_at = self._clock.monotonic()
        cut = share.cut()
        if cut is None:
            return
        # What it names must have been told before.
        self._up.flush()
        if len(cut.payload) > limits.INLINE_BYTES_MAX:
            try:
                blob = self._store.put(cut.payload, share.hold)
            except BusyError as error:
                # It cannot be handed over: the origin has these tasks run again.
                self._up.send(JobRefuse(share.spec.job, "busy", str(error)[:4096]))
                self._close(share)
                return
            payload = Payload(blob=blob, size_bytes=len(cut.payload))
        else:
            payload = Payload(inline=cut.payload, size_bytes=len(cut.payload))
        workers = cut.workers[: limits.SHARE_MEMBERS_MAX]
        self._up.send(Partial(share.spec.job, share.partials, cut.rows, payload, workers))

    def _up_result(self, share: Share, row: UpRow, result: Bytes, usage: Usage) -> None:
        """`result` goes up as the payload of `row`, which has none yet."""
        size = len(result)
        if share.is_fetched(size):
            try:
                blob = self._store.put(result, share.hold)
            except BusyError as error:
                self._up.row(share.spec.job, (*row[:2], Outcome.RETURNED_UNRUN, 0, said(str(error)), row[5]))
                return
            share.result_blobs[row[:2]] = blob
            sent = Payload(blob=blob, size_bytes=size)
        else:
            sent = Payload(inline=bytes(result), size_bytes=size)
        self._up.row(share.spec.job, (*row[:4], sent, row[5]), usage)

    def _tell_slots_soon(self) -> None:
        """In a moment: members answer one after the other, and an origin that hears of one slot sends for one."""
        if self._slots_timer is None:
            self._slots_timer = asyncio.get_running_loop().call_later(GATHER_S, self._tell_slots)

    def _tell_slots(self, *, anew: bool = False) -> None:
        if self._slots_timer is not None:
            self._slots_timer.cancel()
            self._slots_timer = None
        slots = self._machine.slots()
        if slots != self._granted or anew:
            self._granted = slots
            self._up.send(CommunityGrant(slots))

    def _keep_alive(self) -> None:
        """Say that shares which have work are alive, as long as there are any."""
        if self._alive_timer is not None:
            self._alive_timer.cancel()
            self._alive_timer = None
        if not self.jobs:
            return
        self._alive_timer = asyncio.get_running_loop().call_later(ALIVE_EVERY_S, self._say_alive)

    def _say_alive(self) -> None:
        for share in list(self.jobs.values()):
            self._look_whether_idle(share)
        if any(share.has_merged or share.size for share in self.jobs.values()):
            self._tell_slots(anew=True)
        self._alive_timer = None
        self._keep_alive()


_RECALLED = "it was recalled before it had begun"
