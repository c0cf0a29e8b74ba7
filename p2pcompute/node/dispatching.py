"""The shell of one dispatch machine: carries its leases to the peers that compute, and what comes back to it.

`Origin` runs one for the jobs submitted here, `Delegate` one for the shares of jobs that another peer gave to this one: the same
machine, the same messages, other payloads behind. A result in a blob is fetched before it is reported. Refuses to know: what
becomes of results.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from structlog.typing import FilteringBoundLogger

from p2pcompute.execution.values import decode
from p2pcompute.jobs import dispatch
from p2pcompute.jobs.plan import Facts
from p2pcompute.jobs.strategies import Registry
from p2pcompute.model import limits
from p2pcompute.model.errors import (
    BlobMissingError,
    LinkClosedError,
    P2PComputeError,
    ProtocolError,
    ResultRefusedError,
)
from p2pcompute.model.ids import JobId, PeerId, TaskIndex, format_job_id, short_peer_id
from p2pcompute.model.job import NO_USAGE, JobSpec, Outcome, Payload, TaskReport, Usage
from p2pcompute.model.seams import Clock
from p2pcompute.node.channels import SMALL_BYTES, Channel
from p2pcompute.node.driver import Pump
from p2pcompute.node.supervise import Supervisor
from p2pcompute.node.transfers import Transfers
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.wire.messages import JobClose, Message, Results, Tasks, TasksCancel, TasksRecall

Bytes = bytes | bytearray | memoryview
#: (task, attempt, peer) of a result that waits for the machine's word on whether it counts.
Staged = dict[tuple[TaskIndex, int, PeerId], tuple[Bytes, int]]

#: Outcomes whose payload is an encoded failure rather than a sentence.
ENCODED_FAILURES = frozenset({Outcome.RAISED, Outcome.UNSHIPPABLE})


class Work(Protocol):
    """The payloads of one job of a machine."""

    @property
    def spec(self) -> JobSpec:
        """What the machine was told of it."""

    @property
    def staged(self) -> Staged:
        """Results that arrived and wait for the machine's word: (payload, wall microseconds)."""

    @property
    def is_open(self) -> bool:
        """Whether results still matter."""

    def arguments(self, task: TaskIndex) -> Payload:
        """What travels with a lease of `task`."""

    def to_fetch(self, task: TaskIndex) -> Payload:
        """`arguments` as a blob where there is room for one, so that the peer fetches them at its own pace."""

    def entry(self, task: TaskIndex) -> int:
        """Which entry of the program `task` runs."""


W = TypeVar("W", bound=Work)


class Dispatching(abc.ABC, Generic[W]):
    """See the module. Subclasses say what opens a job at a peer, and add the handlers of what concerns payloads."""

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
        #: What is fetched for open jobs.
        self._transfers = Transfers(supervisor)
        self._clock = clock
        self._log = log
        self._machine = dispatch.Dispatch(registry)
        #: What results that came have used, the oldest first.
        self._usages: dict[tuple[JobId, TaskIndex, int, PeerId], Usage] = {}
        #: Every job that is open or was kept, oldest first.
        self.jobs: dict[JobId, W] = {}
        #: Open channels to peers that compute for us, by peer.
        self._channels: dict[PeerId, Channel] = {}
        #: Peers that sent what is no result, the longest barred first; they get no tasks from this process any more.
        self._barred: dict[PeerId, None] = {}
        self._pump: Pump[dispatch.Event, dispatch.Effect] = Pump(
            self._machine,
            {
                dispatch.OpenAt: self._open_at,
                dispatch.Send: self._send,
                dispatch.CancelAt: self._cancel_at,
                dispatch.RecallAt: self._recall_at,
                dispatch.CloseAt: self._close_at,
                dispatch.Discarded: lambda effect: None,
                # The shell's own room bounds what is read.
                dispatch.WantInputs: lambda effect: None,
                **self._handlers(),
            },
            dispatch.Tick(),
            clock,
        )

    @abc.abstractmethod
    def _handlers(self) -> dict[type, Callable[[Any], None]]:
        """What is done about the effects that concern payloads."""

    @abc.abstractmethod
    def _offer(self, job: W, peer: PeerId) -> Message | None:
        """What offers `job` to `peer`; None where it cannot be offered."""

    @abc.abstractmethod
    def _misdeed(self, peer: PeerId, what: str) -> None:
        """`peer` did what no honest one does."""

    # --- peers --------------------------------------------------------------------------------------------------------

    def _usable(self, peer: PeerId, channel: Channel, facts: Facts) -> None:
        """`channel` leads to `peer`, which may compute for us, and of which `facts` are known."""
        if peer in self._barred:
            return
        self._channels[peer] = channel
        rank = facts.capability.score if facts.capability is not None else 0.0
        self._pump.feed(dispatch.PeerUsable(peer, channel.rtt_s, channel.is_local, rank, facts))

    def _gone(self, peer: PeerId, reason: str) -> None:
        """`peer` is not reachable any more."""
        if self._channels.pop(peer, None) is not None:
            self._pump.feed(dispatch.PeerGone(peer, reason))

    def _bar(self, peer: PeerId, what: str) -> None:
        """`peer` sent what no honest one sends: what it has is given to others, and it gets nothing any more."""
        while len(self._barred) >= limits.TROUBLES_MAX:
            del self._barred[next(iter(self._barred))]
        self._barred[peer] = None
        self._misdeed(peer, f"{what}; it is given no more tasks")
        self._gone(peer, f"it {what}")

    # --- results ------------------------------------------------------------------------------------------------------

    def _results(self, peer: PeerId, channel: Channel, message: Results) -> None:
        """Results of `peer`, whose channel this is."""
        known = self.jobs.get(JobId(message.job))
        if known is None or not known.is_open:
            return
        reports: list[TaskReport] = []
        self._note_usage(peer, message)
        for task, attempt, outcome, wall_us, payload in message.rows:
            if peer in self._barred:
                return
            if payload.blob is not None:
                self._transfers.start(
                    known.spec.job,
                    (peer, task, attempt),
                    f"result {task} of {format_job_id(known.spec.job)}",
                    self._fetch_result(
                        peer, channel, known, (task, attempt, outcome, wall_us), payload.blob, payload.size_bytes
                    ),
                )
                continue
            if outcome is Outcome.RETURNED and not channel.is_local and not is_readable(payload.inline):
                self._bar(peer, "sent a result that cannot be read")
                return
            reports.append(self._stage(known, peer, (task, attempt, outcome, wall_us), payload.inline))
        if reports:
            self._report(known, peer, tuple(reports))

    def _note_usage(self, peer: PeerId, message: Results) -> None:
        """Keep what rows used until the machine says that they count, or newer ones need the room."""
        if len(message.usage) != len(message.rows):
            return
        for place, row in enumerate(message.rows):
            if message.usage[place]:
                self._usages[JobId(message.job), TaskIndex(row[0]), row[1], peer] = message.usage_of(place)
        while len(self._usages) > limits.USAGES_HELD_MAX:
            del self._usages[next(iter(self._usages))]

    def _usage_of(self, job: JobId, task: TaskIndex, attempt: int, peer: PeerId) -> Usage:
        """What was said that an attempt used; once."""
        return self._usages.pop((job, task, attempt, peer), NO_USAGE)

    async def _fetch_result(
        self, peer: PeerId, channel: Channel, job: W, row: tuple[int, int, Outcome, int], blob: bytes, size: int
    ) -> None:
        task, attempt, _, _ = row
        try:
            data = await channel.fetch(blob, size)  # type: ignore[arg-type]
        except (P2PComputeError, OSError) as error:
            report = TaskReport(TaskIndex(task), attempt, Outcome.RETURNED_UNRUN, 0.0, f"result not fetched: {error}")
        else:
            # It is here: the lender need not keep it any longer.
            self._to(peer, TasksCancel(job.spec.job, ((task, attempt),)))
            report = self._stage(job, peer, row, data)
        self._report(job, peer, (report,))

    @staticmethod
    def _stage(job: W, peer: PeerId, row: tuple[int, int, Outcome, int], payload: Bytes) -> TaskReport:
        task, attempt, outcome, wall_us = row
        job.staged[(TaskIndex(task), attempt, peer)] = (payload, wall_us)
        detail = "" if outcome in ENCODED_FAILURES or outcome is Outcome.RETURNED else text_of(payload)
        return TaskReport(TaskIndex(task), attempt, outcome, wall_us / 1e6, detail)

    def _report(self, job: W, peer: PeerId, reports: tuple[TaskReport, ...]) -> None:
        self._pump.feed(dispatch.Reported(peer, job.spec.job, reports))
        # Whatever the machine did not count was late or a duplicate.
        for report in reports:
            job.staged.pop((report.task, report.attempt, peer), None)

    # --- effects ------------------------------------------------------------------------------------------------------

    def _to(self, peer: PeerId, message: Message) -> None:
        channel = self._channels.get(peer)
        if channel is None:
            return
        try:
            channel.send(message)
        except LinkClosedError:
            # The hub tells link_down in its own turn, which returns the leases.
            self._log.debug("not sent: the link is gone", peer=short_peer_id(peer))

    def _open_at(self, effect: dispatch.OpenAt) -> None:
        message = self._offer(self.jobs[effect.job], effect.peer)
        if message is not None:
            self._to(effect.peer, message)

    def _send(self, effect: dispatch.Send) -> None:
        job = self.jobs[effect.job]
        rows: list[tuple[int, int, int, Payload]] = []
        size = 0
        channel = self._channels.get(effect.peer)
        behind = channel is not None and channel.is_behind
        for lease in effect.leases:
            payload = job.arguments(lease.task)
            if behind and len(payload.inline) > SMALL_BYTES:
                payload = job.to_fetch(lease.task)
            if rows and size + len(payload.inline) > limits.BATCH_BYTES_MAX:
                self._to(effect.peer, Tasks(effect.job, tuple(rows)))
                rows, size = [], 0
                behind = channel is not None and channel.is_behind
            rows.append((lease.task, lease.attempt, job.entry(lease.task), payload))
            size += len(payload.inline)
        self._to(effect.peer, Tasks(effect.job, tuple(rows)))

    def _cancel_at(self, effect: dispatch.CancelAt) -> None:
        rows = tuple((lease.task, lease.attempt) for lease in effect.leases)
        for row in rows:
            # Its result may be on its way, while another attempt's has come.
            self._transfers.stop(effect.job, (effect.peer, *row))
        self._to(effect.peer, TasksCancel(effect.job, rows))

    def _recall_at(self, effect: dispatch.RecallAt) -> None:
        rows = tuple((lease.task, lease.attempt) for lease in effect.leases)
        self._log.info(
            "tasks recalled",
            job=format_job_id(effect.job),
            peer=short_peer_id(effect.peer),
            tasks=len(rows),
            cause=effect.text,
        )
        self._to(effect.peer, TasksRecall(effect.job, rows))

    def _close_at(self, effect: dispatch.CloseAt) -> None:
        self._to(effect.peer, JobClose(effect.job))


def text_of(payload: Bytes) -> str:
    """A payload that is a sentence, at a length that people read."""
    return bytes(payload[: limits.TRACEBACK_CHARS_MAX]).decode("utf-8", "replace")


def is_readable(payload: Bytes) -> bool:
    """Whether `payload` is an encoded value, or might be one for its submitter; nothing in it is believed or run."""
    try:
        decode(payload)
    except ProtocolError:
        return False
    except (ResultRefusedError, BlobMissingError):
        return True
    return True
