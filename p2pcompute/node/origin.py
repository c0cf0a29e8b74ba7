"""The submitting side of a peer: performs what the dispatch machine says, for all jobs that were submitted here.

Payloads live in `OriginJob`, decisions in `jobs.dispatch`; between them this shell carries messages to channels and
back. A result in a blob is fetched before it is reported: a task is done only when this peer holds its result.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from p2pcompute.execution.values import decode
from p2pcompute.jobs import dispatch
from p2pcompute.jobs.plan import Facts
from p2pcompute.jobs.submit import check_options
from p2pcompute.model import limits
from p2pcompute.model.errors import (
    BlobMissingError,
    BusyError,
    LinkClosedError,
    P2PComputeError,
    ProtocolError,
    ResultRefusedError,
    UsageError,
)
from p2pcompute.model.ids import REDUCE_BASE, BlobId, JobId, PeerId, TaskIndex, format_job_id, short_peer_id
from p2pcompute.model.job import (
    Aggregation,
    Attempt,
    JobOptions,
    JobProgress,
    JobState,
    OnError,
    Outcome,
    Payload,
    TaskReport,
)
from p2pcompute.model.seams import Clock
from p2pcompute.node.answers import Answers, check_cached
from p2pcompute.node.channels import SMALL_BYTES, Channel
from p2pcompute.node.driver import Pump
from p2pcompute.node.holders import ARGUMENT_BYTES_SCANNED, ARGUMENTS_SCANNED, PROGRAM_BYTES_SCANNED, Holders
from p2pcompute.node.job_stream import FailureInfo, JobEnd, JobRequest, JobStream, OutputRow, ResultRow
from p2pcompute.node.origin_job import OriginJob
from p2pcompute.node.records import Records
from p2pcompute.node.supervise import Supervisor
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.wire.messages import (
    Grant,
    JobAccept,
    JobClose,
    JobOpen,
    JobRefuse,
    Message,
    Results,
    TaskNews,
    Tasks,
    TasksCancel,
    TasksRecall,
)

if TYPE_CHECKING:
    from p2pcompute.topology.affinity import Adjacency

#: Outcomes whose payload is an encoded failure rather than a sentence.
_ENCODED_FAILURES = frozenset({Outcome.RAISED, Outcome.UNSHIPPABLE})

#: The error that each cause of a job's end means to its submitter, where no single task is to blame.
_KINDS = {
    dispatch.EndCause.JOB_TIMEOUT: "TaskTimeoutError",
    dispatch.EndCause.REFUSED: "NoWorkersError",
    dispatch.EndCause.BUSY: "BusyError",
    dispatch.EndCause.UNMET: "NoAvailableNodesError",
    dispatch.EndCause.UNHEALTHY: "NoHealthyNodesError",
    dispatch.EndCause.BUDGET: "BudgetExceededError",
    dispatch.EndCause.STRATEGY: "StrategyError",
}

Inputs = AsyncIterator[Sequence[bytes]]


class Origin:
    """All jobs submitted at this peer. `peer_name(peer)`: how people call a peer."""

    def __init__(
        self,
        store: BlobStore,
        supervisor: Supervisor,
        clock: Clock,
        log: FilteringBoundLogger,
        peer_name: Callable[[PeerId], str],
        records: Records,
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._clock = clock
        self._log = log
        self._peer_name = peer_name
        #: What attempts come to.
        self._records = records
        #: Answers for equal calls.
        self.answers = Answers(clock)
        self._machine = dispatch.Dispatch(records.registry)
        records.seen = lambda job, peer: self._machine.seen(job, peer, clock.monotonic())
        #: Open channels to peers that compute for us, by peer.
        self._channels: dict[PeerId, Channel] = {}
        #: Peers that sent what is no result, the longest barred first; they get no tasks from this process any more.
        self._barred: dict[PeerId, None] = {}
        #: Told of them; the composition root sets it.
        self.misdeed: Callable[[PeerId, str], None] = lambda peer, what: None
        #: Knows who has what was put here; the composition root sets it.
        self.holders = Holders(dict)
        #: Asked to link peers that such a job could use; the composition root sets it.
        self.seek: Callable[[JobOptions], None] = lambda options: None
        #: Every job that is open or was kept, oldest first.
        self.jobs: dict[JobId, OriginJob] = {}
        self._pump: Pump[dispatch.Event, dispatch.Effect] = Pump(
            self._machine,
            {
                dispatch.OpenAt: self._open_at,
                dispatch.Send: self._send,
                dispatch.CancelAt: self._cancel_at,
                dispatch.RecallAt: self._recall_at,
                dispatch.Moved: self._moved,
                dispatch.CloseAt: self._close_at,
                dispatch.Completed: self._completed,
                dispatch.Discarded: lambda effect: None,
                dispatch.GivenUp: self._given_up,
                # The stream's own room bounds what is read: it also counts results that wait to be taken.
                dispatch.WantInputs: lambda effect: None,
                dispatch.JobEnded: self._job_ended,
                dispatch.Stalled: self._stalled,
                dispatch.FellBack: self._fell_back,
                dispatch.SeekPeers: lambda effect: self.seek(self.jobs[effect.job].spec.options),
                dispatch.TaskRetried: self._retried,
            },
            dispatch.Tick(),
            clock,
        )

    # --- submitting ---------------------------------------------------------------------------------------------------

    def open(self, request: JobRequest, inputs: Inputs) -> JobStream:
        """Start a job whose encoded arguments come from `inputs`, batch by batch. Raises BusyError."""
        job = request.spec.job
        options = request.spec.options
        check_options(options)
        check_cached(options, request.spec.aggregation)
        if job in self.jobs:
            raise UsageError(f"job {format_job_id(job)} is known at this peer already: give a new one a new id")
        open_jobs = sum(1 for known in self.jobs.values() if known.end is None)
        if open_jobs >= limits.JOBS_OPEN_MAX:
            raise BusyError(f"{open_jobs} jobs are open at this peer: wait for some of them or cancel them")
        stream = JobStream(job, lambda: self.cancel(job))
        stream.on_drop = lambda index: self.drop(job, index)
        self._store.put(request.program, job, request.spec.program)  # type: ignore[arg-type]
        recording = self._records.begin(request.spec)
        self.jobs[job] = OriginJob(request, stream, self._store, self._clock.monotonic(), recording)
        self._forget_old()
        if self._records.wants_learner(options):
            self._supervisor.task("load the learner", self._records.load())
        # With a cache nobody knows how many inputs will be tasks.
        spec = request.spec if options.cache_ttl_s is None else dataclasses.replace(request.spec, expected_tasks=None)
        self._pump.feed(dispatch.JobOpened(spec))
        self._shares_data(self.jobs[job], [request.program], PROGRAM_BYTES_SCANNED)
        stream.on_listen = lambda: self._tell(self.jobs[job])
        reader = self._supervisor.task(f"inputs of {format_job_id(job)}", self._read_inputs(self.jobs[job], inputs))
        if reader is not None:
            self.jobs[job].stop_reading = lambda: None if reader is asyncio.current_task() else reader.cancel()
        return stream

    def drop(self, job: JobId, index: int) -> None:
        """Stop one task of a job whose others go on; also one whose input was not read yet."""
        known = self.jobs.get(job)
        if known is None or known.end is not None:
            return
        self._pump.feed(dispatch.TasksDropped(job, (TaskIndex(index),)))
        known.drop(index)

    def cancel(self, job: JobId) -> None:
        """Stop a job: running code at peers too."""
        self._pump.feed(dispatch.JobCancelled(job))

    def progress(self, job: JobId) -> JobProgress:
        """How far a job is. Raises KeyError for one that is not known."""
        known = self.jobs[job]
        if known.end is not None:
            return known.end.progress
        machine = self._machine.progress(job, self._clock.monotonic())
        return dataclasses.replace(
            machine,
            tasks_total=self._total(known, machine),
            tasks_done=machine.tasks_done + known.cached,
            tasks_cached=known.cached,
            message=machine.message or known.message,
        )

    def stop(self) -> None:
        """Cancel every open job."""
        for job in [job for job, known in self.jobs.items() if known.end is None]:
            self._pump.feed(dispatch.JobCancelled(job))
        self._pump.stop()

    async def _read_inputs(self, job: OriginJob, inputs: Inputs) -> None:
        name = job.spec.job
        try:
            while (room := await job.stream.wait_for_room()) > 0:
                batch = await anext(inputs, None)
                if batch is None:
                    break
                if not batch:
                    continue
                assert room > 0
                job.stream.inputs_read += len(batch)
                if job.inputs < ARGUMENTS_SCANNED:
                    self._shares_data(job, batch[: ARGUMENTS_SCANNED - job.inputs], ARGUMENT_BYTES_SCANNED)
                added = job.add_inputs(batch)
                if job.spec.options.cache_ttl_s is not None:
                    added = self._settle(job, added)
                if added:
                    self._pump.feed(dispatch.TasksAdded(name, added, *job.argument_bytes(added)))
                for index in sorted(job.dropped.intersection(added)):
                    job.dropped.discard(index)
                    self.drop(name, index)
            if job.end is None:
                self._add(job, job.end_inputs())
                self._maybe_no_more(job)
        except asyncio.CancelledError:
            # Not always this peer's word: an iterator that awaits something cancelled raises it too.
            self.cancel(name)
            raise
        except P2PComputeError as error:
            self._fail(job, FailureInfo(None, None, b"", "", str(error), kind=type(error).__name__))
        except Exception as error:
            # The submitter's own iterator raised: its error ends the job, with its own words.
            text = f"reading the inputs failed: {type(error).__name__}: {error}"
            self._fail(job, FailureInfo(None, None, b"", "", text, kind="inputs"))

    def _settle(self, job: OriginJob, added: tuple[TaskIndex, ...]) -> tuple[TaskIndex, ...]:
        """Answer what is known already; what is to be computed."""
        unknown = self.answers.settle(job, added)
        if len(unknown) < len(added):
            self._tell(job)
        return unknown

    def _add(self, job: OriginJob, tasks: tuple[TaskIndex, ...]) -> None:
        if tasks:
            self._pump.feed(dispatch.TasksAdded(job.spec.job, tasks))

    def _maybe_no_more(self, job: OriginJob) -> None:
        if job.end is None and job.no_more_tasks:
            self._pump.feed(dispatch.InputsEnded(job.spec.job))

    # --- peers --------------------------------------------------------------------------------------------------------

    def uses(self, peer: PeerId) -> bool:
        """Whether work may be at `peer`."""
        return peer in self._channels and any(known.end is None for known in self.jobs.values())

    def peer_usable(self, channel: Channel, facts: Facts) -> None:
        """`channel` leads to a peer that may compute for us, of which `facts` are known."""
        if channel.peer in self._barred:
            return
        self._channels[channel.peer] = channel
        rank = facts.capability.score if facts.capability is not None else 0.0
        self._pump.feed(dispatch.PeerUsable(channel.peer, channel.rtt_s, channel.is_local, rank, facts))

    def sent_blob(self, peer: PeerId, blob: BlobId) -> None:
        """`peer` is being sent a blob that it asked for."""
        if self.holders.sent(peer, blob):
            for job in self.jobs.values():
                if job.end is None and blob in job.shared:
                    self._tell_holders(job)

    def _shares_data(self, job: OriginJob, encoded: Sequence[bytes], bytes_max: int) -> None:
        """Note which data behind handles `encoded` parts of the job name."""
        before = len(job.shared)
        job.shared.update(self.holders.found_in(encoded, bytes_max))
        if len(job.shared) > before:
            self._tell_holders(job)

    def _tell_holders(self, job: OriginJob) -> None:
        shared_bytes = sum(job.shared.values())
        self._pump.feed(dispatch.DataHeld(job.spec.job, shared_bytes, self.holders.held(job.shared)))

    def located(self, community: int | None) -> None:
        """This peer's community, by the newest topology."""
        self._pump.feed(dispatch.Located(community))

    def mapped(self, adjacency: Adjacency) -> None:
        """The network's links, by the newest topology."""
        self._pump.feed(dispatch.Mapped(adjacency))

    def _bar(self, peer: PeerId) -> None:
        """`peer` sent as a result what no encoder writes: what it has is given to others, and it gets nothing any more."""
        while len(self._barred) >= limits.TROUBLES_MAX:
            del self._barred[next(iter(self._barred))]
        self._barred[peer] = None
        self.misdeed(peer, "sent a result that cannot be read; it is given no more tasks")
        self.peer_gone(peer, "it sent a result that cannot be read")

    def peer_gone(self, peer: PeerId, reason: str) -> None:
        """A peer that computed for us is not reachable any more."""
        self.holders.gone(peer)
        if self._channels.pop(peer, None) is not None:
            self._pump.feed(dispatch.PeerGone(peer, reason))

    def message(self, channel: Channel, message: Message) -> None:
        """What a lender says."""
        peer = channel.peer
        match message:
            case Results():
                self._results(channel, message)
            case Grant():
                self._pump.feed(dispatch.Granted(peer, message.slots))
            case JobAccept():
                self._pump.feed(dispatch.PeerAccepted(peer, JobId(message.job)))
            case JobRefuse():
                text = f"{self._peer_name(peer)}: {message.text}"
                known = self.jobs.get(JobId(message.job))
                if known is not None and known.failure is None and message.reason == "module":
                    known.failure = FailureInfo(
                        None, None, b"", self._peer_name(peer), text, kind="module", module=message.module
                    )
                self._pump.feed(dispatch.PeerRefused(peer, JobId(message.job), message.reason, text))
            case TaskNews():
                self._news(peer, message)

    def _results(self, channel: Channel, message: Results) -> None:
        known = self.jobs.get(JobId(message.job))
        if known is None or known.end is not None:
            return
        reports: list[TaskReport] = []
        for task, attempt, outcome, wall_us, payload in message.rows:
            if channel.peer in self._barred:
                return
            if payload.blob is not None:
                self._supervisor.task(
                    f"result {task} of {format_job_id(known.spec.job)}",
                    self._fetch_result(
                        channel, known, (task, attempt, outcome, wall_us), payload.blob, payload.size_bytes
                    ),
                )
                continue
            if outcome is Outcome.RETURNED and not channel.is_local and not _is_readable(payload.inline):
                self._bar(channel.peer)
                return
            reports.append(self._stage(known, channel.peer, (task, attempt, outcome, wall_us), payload.inline))
        if reports:
            self._report(known, channel.peer, tuple(reports))

    async def _fetch_result(
        self, channel: Channel, job: OriginJob, row: tuple[int, int, Outcome, int], blob: bytes, size: int
    ) -> None:
        task, attempt, _, _ = row
        try:
            data = await channel.fetch(blob, size)  # type: ignore[arg-type]
        except (P2PComputeError, OSError) as error:
            report = TaskReport(TaskIndex(task), attempt, Outcome.RETURNED_UNRUN, 0.0, f"result not fetched: {error}")
        else:
            # It is here: the lender need not keep it any longer.
            self._to(channel.peer, TasksCancel(job.spec.job, ((task, attempt),)))
            if job.end is not None:
                return
            report = self._stage(job, channel.peer, row, data)
        self._report(job, channel.peer, (report,))

    def _stage(
        self,
        job: OriginJob,
        peer: PeerId,
        row: tuple[int, int, Outcome, int],
        payload: bytes | bytearray | memoryview,
    ) -> TaskReport:
        task, attempt, outcome, wall_us = row
        job.staged[(TaskIndex(task), attempt, peer)] = (payload, wall_us)
        detail = "" if outcome in _ENCODED_FAILURES or outcome is Outcome.RETURNED else _text(payload)
        return TaskReport(TaskIndex(task), attempt, outcome, wall_us / 1e6, detail)

    def _report(self, job: OriginJob, peer: PeerId, reports: tuple[TaskReport, ...]) -> None:
        self._pump.feed(dispatch.Reported(peer, job.spec.job, reports))
        # Whatever the machine did not count was late or a duplicate.
        for report in reports:
            job.staged.pop((report.task, report.attempt, peer), None)

    def _news(self, peer: PeerId, message: TaskNews) -> None:
        job = self.jobs.get(JobId(message.job))
        if job is None or job.end is not None:
            return
        for _, _, text in message.progress:
            if text:
                job.message = text
        fractions = tuple((TaskIndex(task), fraction) for task, fraction, _ in message.progress if fraction >= 0)
        if fractions:
            self._pump.feed(dispatch.Progressed(peer, job.spec.job, fractions))
        if message.output:
            rows = [
                OutputRow(task, stream, data.decode("utf-8", "replace"), peer) for task, stream, data in message.output
            ]
            job.output.extend(rows)
            if job.stream.on_output is not None:
                job.stream.on_output(rows)
        if message.progress:
            self._tell(job)

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
        request = self.jobs[effect.job].request
        options = request.spec.options
        self._to(
            effect.peer,
            JobOpen(
                job=effect.job,
                program=request.spec.program,
                program_bytes=len(request.program),
                name=request.spec.name[: limits.TEXT_CHARS_MAX],
                priority=options.priority,
                timeout_s=options.timeout_s,
                memory_bytes=options.memory_bytes,
            ),
        )

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

    def _moved(self, effect: dispatch.Moved) -> None:
        job = self.jobs[effect.job]
        unrun = Attempt(effect.peer, Outcome.RETURNED_UNRUN, 0.0, "moved to another peer before it had begun")
        job.attempts.extend((task, unrun) for task in effect.tasks)
        self._log.info(
            "tasks moved", job=format_job_id(effect.job), peer=short_peer_id(effect.peer), tasks=len(effect.tasks)
        )

    def _close_at(self, effect: dispatch.CloseAt) -> None:
        self._to(effect.peer, JobClose(effect.job))

    def _completed(self, effect: dispatch.Completed) -> None:
        job = self.jobs[effect.job]
        added: list[TaskIndex] = []
        job.recording.batch(effect.reports)
        for report, peer in effect.reports:
            payload, wall_us = job.staged.pop((report.task, report.attempt, peer))
            row = ResultRow(report.task, report.outcome, payload, peer, wall_us)
            if job.keys:
                self.answers.keep(job, row)
            try:
                added.extend(job.completed(row) if report.outcome is Outcome.RETURNED else self._not_returned(job, row))
            except Exception as error:
                self._unusable(job, int(report.task), error)
                return
        self._add(job, tuple(added))
        self._maybe_no_more(job)
        self._records.told(effect.job, job.recording, job.input_bytes_each)
        self._tell(job)

    def _not_returned(self, job: OriginJob, row: ResultRow) -> tuple[TaskIndex, ...]:
        """A task ended for good without a value: it ends the job, or is left out."""
        detail = "" if row.outcome in _ENCODED_FAILURES else _text(row.payload)
        self._note_failure(job, row.index, row.outcome, detail, row.peer, bytes(row.payload), ())
        if job.spec.options.on_error is OnError.SKIP:
            if row.index >= REDUCE_BASE:
                # What it should merge are results: leaving it out would lose them without a word.
                assert job.failure is not None
                self._fail(job, job.failure)
                return ()
            job.failure = None
            return job.left_out(row)
        return ()

    def _note_failure(
        self,
        job: OriginJob,
        task: int,
        outcome: Outcome,
        detail: str,
        peer: PeerId,
        payload: bytes,
        history: tuple[str, ...],
    ) -> None:
        job.attempts.append((TaskIndex(task), Attempt(peer, outcome, 0.0, detail)))
        encoded = payload if outcome in _ENCODED_FAILURES else b""
        job.failure = FailureInfo(task, outcome, encoded, self._peer_name(peer), detail, history)

    def _given_up(self, effect: dispatch.GivenUp) -> None:
        job = self.jobs[effect.job]
        history = tuple(
            f"attempt {number} at {self._peer_name(attempt.peer)}: {attempt.outcome.name.lower().replace('_', ' ')}"
            + (f" ({attempt.detail})" if attempt.detail else "")
            for number, attempt in enumerate(effect.history, 1)
        )
        last = effect.history[-1] if effect.history else None
        peer = last.peer if last is not None else PeerId(b"")
        detail = last.detail if last is not None else ""
        if last is not None:
            job.recording.attempt(effect.task, last.peer, last.outcome, last.wall_s)
            self._records.told(effect.job, job.recording, job.input_bytes_each)
        self._note_failure(job, effect.task, effect.outcome, detail, peer, b"", history)
        if job.spec.options.on_error is OnError.SKIP and effect.task >= REDUCE_BASE:
            assert job.failure is not None
            self._fail(job, job.failure)
        elif job.spec.options.on_error is OnError.SKIP:
            job.failure = None
            text = "; ".join(history).encode()
            try:
                self._add(job, job.left_out(ResultRow(effect.task, effect.outcome, text, peer, 0)))
            except Exception as error:
                self._unusable(job, int(effect.task), error)
            self._maybe_no_more(job)
        self._tell(job)

    def _retried(self, effect: dispatch.TaskRetried) -> None:
        job = self.jobs[effect.job]
        job.attempts.append((effect.task, Attempt(effect.peer, effect.outcome, 0.0, "tried again")))
        job.recording.attempt(effect.task, effect.peer, effect.outcome)
        self._records.told(effect.job, job.recording, job.input_bytes_each)
        self._log.info(
            "task is tried again",
            job=format_job_id(effect.job),
            task=int(effect.task),
            peer=short_peer_id(effect.peer),
            cause=effect.outcome.name,
        )

    def _stalled(self, effect: dispatch.Stalled) -> None:
        # The machine says why in its own progress, for as long as it is so.
        self._tell(self.jobs[effect.job])

    def _fell_back(self, effect: dispatch.FellBack) -> None:
        job = self.jobs[effect.job]
        job.message = f"{effect.text}; {job.spec.options.fallback_strategy} is used instead"
        self._log.warning("strategy replaced", job=format_job_id(effect.job), cause=job.message)
        self._tell(job)

    def _job_ended(self, effect: dispatch.JobEnded) -> None:
        job = self.jobs[effect.job]
        state = effect.state
        result = None
        if state is JobState.SUCCEEDED and job.broken:
            # The machine counts tasks; that the last ones were of no use it hears too late.
            state = JobState.FAILED
        elif state is JobState.SUCCEEDED:
            try:
                result = job.finish()
            except Exception as error:
                state = JobState.FAILED
                self._unusable(job, None, error)
        elif job.failure is not None and job.failure.kind == "module" and effect.cause is dispatch.EndCause.REFUSED:
            # Every peer refused, not the first one alone: say which lack what.
            text = f"{effect.reason}: install the module there, or write the function without it"
            job.failure = dataclasses.replace(job.failure, text=text)
        elif job.failure is None or job.failure.kind == "module":  # where others ran it, its end has another cause
            kind = "JobCancelledError" if state is JobState.CANCELLED else _KINDS.get(effect.cause, "JobError")
            job.failure = FailureInfo(None, None, b"", "", effect.reason, kind=kind)
        job.answer = result
        try:
            machine = self._machine.progress(effect.job, self._clock.monotonic())
        except KeyError:
            # One event ended more jobs than the machine remembers, such as a time-out of many.
            elapsed_s = self._clock.monotonic() - job.started_at
            machine = JobProgress(effect.job, state, None, 0, 0, 0, 0.0, 0, 0, (), elapsed_s)
        progress = dataclasses.replace(
            machine,
            state=state,
            tasks_total=self._total(job, machine),
            tasks_running=0,
            tasks_done=machine.tasks_done + job.cached,
            tasks_cached=job.cached,
        )
        failure = job.failure if state is not JobState.SUCCEEDED else None
        job.end = JobEnd(state, result, failure, progress, tuple(sorted(job.skipped)))
        job.release()
        self._records.ended(effect.job, job.recording, job.input_bytes_each)
        if job.stop_reading is not None:
            job.stop_reading()
        self._log.info("job ended", job=format_job_id(effect.job), state=state.value, elapsed_s=progress.elapsed_s)
        self._tell(job)
        job.stream.finish(job.end)

    # --- inner --------------------------------------------------------------------------------------------------------

    def _fail(self, job: OriginJob, failure: FailureInfo) -> None:
        if job.end is None and not job.broken:
            job.failure, job.broken = failure, True
            self._pump.feed(dispatch.JobFailed(job.spec.job, failure.text))

    def _unusable(self, job: OriginJob, task: int | None, error: Exception) -> None:
        """What tasks returned cannot be put together: that ends their job, never the link that brought it."""
        if isinstance(error, P2PComputeError):
            failure = FailureInfo(task, None, b"", "", str(error), kind=type(error).__name__)
        else:
            text = f"the results cannot be put together: {type(error).__name__}: {error}"
            failure = FailureInfo(task, None, b"", "", text, kind="JobError")
            self._log.warning("results of no use", job=format_job_id(job.spec.job), task=task, cause=repr(error))
        self._fail(job, failure)

    def _tell(self, job: OriginJob) -> None:
        if job.stream.on_progress is not None:
            job.stream.on_progress(self.progress(job.spec.job))

    @staticmethod
    def _total(job: OriginJob, machine: JobProgress) -> int | None:
        if job.spec.expected_tasks is not None and job.spec.aggregation not in (Aggregation.REDUCE, Aggregation.CUSTOM):
            return job.spec.expected_tasks
        if job.inputs_ended and job.no_more_tasks:
            return None if machine.tasks_total is None else machine.tasks_total + job.cached
        return job.spec.expected_tasks

    def _forget_old(self) -> None:
        ended = [name for name, job in self.jobs.items() if job.end is not None]
        for name in ended[: max(0, len(ended) - limits.ENDED_JOBS_KEPT)]:
            del self.jobs[name]
            self._pump.feed(dispatch.JobForgotten(name))


def _text(payload: bytes | bytearray | memoryview) -> str:
    return bytes(payload[: limits.TRACEBACK_CHARS_MAX]).decode("utf-8", "replace")


def _is_readable(payload: bytes | bytearray | memoryview) -> bool:
    """Whether `payload` is an encoded value, or might be one for its submitter; nothing in it is believed or run."""
    try:
        decode(payload)
    except ProtocolError:
        return False
    except (ResultRefusedError, BlobMissingError):
        return True
    return True
