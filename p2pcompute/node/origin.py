"""The submitting side of a peer: performs what the dispatch machine says, for all jobs that were submitted here.

Payloads live in `OriginJob`, decisions in `jobs.dispatch`; between them this shell carries messages to channels and
back. A result in a blob is fetched before it is reported: a task is done only when this peer holds its result.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from structlog.typing import FilteringBoundLogger

from p2pcompute.jobs import dispatch
from p2pcompute.jobs.coordinating import Region, merges
from p2pcompute.jobs.plan import Facts
from p2pcompute.jobs.submit import check_options
from p2pcompute.model import limits
from p2pcompute.model.errors import (
    BusyError,
    P2PComputeError,
    UsageError,
)
from p2pcompute.model.ids import (
    REDUCE_BASE,
    BlobId,
    JobId,
    PeerId,
    TaskIndex,
    coordinator_of,
    format_job_id,
    is_seat,
    seat_of,
    short_peer_id,
)
from p2pcompute.model.job import (
    Aggregation,
    Attempt,
    JobOptions,
    JobProgress,
    JobState,
    OnError,
    Outcome,
    TaskReport,
)
from p2pcompute.model.seams import Clock
from p2pcompute.node.answers import Answers, check_cached
from p2pcompute.node.channels import Channel
from p2pcompute.node.dispatching import ENCODED_FAILURES, Bytes, Dispatching, text_of
from p2pcompute.node.holders import ARGUMENT_BYTES_SCANNED, ARGUMENTS_SCANNED, PROGRAM_BYTES_SCANNED, Holders
from p2pcompute.node.job_stream import FailureInfo, JobEnd, JobRequest, JobStream, OutputRow, ResultRow
from p2pcompute.node.origin_job import OriginJob
from p2pcompute.node.partials import PartialValue, read_partial
from p2pcompute.node.records import Records
from p2pcompute.node.seats import Seats
from p2pcompute.node.supervise import Supervisor
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
)

if TYPE_CHECKING:
    from p2pcompute.topology.affinity import Adjacency

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


class Origin(Dispatching[OriginJob]):
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
        #: What attempts come to.
        self._records = records
        #: How people call a peer.
        self._peer_name = peer_name
        super().__init__(store, supervisor, clock, log, records.registry)
        #: Answers for equal calls.
        self.answers = Answers(clock)
        #: The shares that coordinators of other communities have.
        self.seats = Seats()
        #: Partial aggregates that wait for the machine's word on whether they count, by (job, seat, number).
        self._partials: dict[tuple[JobId, PeerId, int], tuple[PartialValue, Partial]] = {}
        records.seen = lambda job, peer: self._machine.seen(job, peer, clock.monotonic())
        #: Told of peers that do what no honest one does; the composition root sets it.
        self.misdeed: Callable[[PeerId, str], None] = lambda peer, what: None
        #: Knows who has what was put here; the composition root sets it.
        self.holders = Holders(dict)
        #: Asked to link peers that such a job could use; the composition root sets it.
        self.seek: Callable[[JobOptions], None] = lambda options: None

    def _handlers(self) -> dict[type, Callable[[Any], None]]:
        return {
            dispatch.Moved: self._moved,
            dispatch.Completed: self._completed,
            dispatch.GivenUp: self._given_up,
            dispatch.JobEnded: self._job_ended,
            dispatch.Stalled: self._stalled,
            dispatch.FellBack: self._fell_back,
            dispatch.SeekPeers: lambda effect: self.seek(self.jobs[effect.job].spec.options),
            dispatch.TaskRetried: self._retried,
            dispatch.PartialTaken: self._partial_taken,
            dispatch.PartialRefused: self._partial_refused,
            dispatch.Withdrawn: lambda effect: None,
        }

    def _misdeed(self, peer: PeerId, what: str) -> None:
        self.misdeed(coordinator_of(peer), what)

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
        if request.weights is not None:
            request = dataclasses.replace(request, spec=dataclasses.replace(request.spec, is_weighted=True))
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
        self.jobs[job].common.update(self.holders.common_to([request.program], PROGRAM_BYTES_SCANNED))
        stream.on_listen = lambda: self._tell(self.jobs[job])
        reader = self._supervisor.task(f"inputs of {format_job_id(job)}", self._read_inputs(self.jobs[job], inputs))
        if reader is not None:
            self.jobs[job].stop_reading = lambda: None if reader is asyncio.current_task() else reader.cancel()
        return stream

    def drop(self, job: JobId, index: int) -> None:
        """Stop one task of a job whose others go on; also one whose input was not read yet.

        Nothing where results are merged: its own may be part of what a coordinator holds.
        """
        known = self.jobs.get(job)
        if known is None or known.end is not None or merges(known.spec):
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
            done_by_peer=known.done_by_peer(machine.done_by_peer),
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
                    scanned = batch[: ARGUMENTS_SCANNED - job.inputs]
                    self._shares_data(job, scanned, ARGUMENT_BYTES_SCANNED)
                    if not job.inputs:
                        job.common.update(self.holders.common_to(scanned, ARGUMENT_BYTES_SCANNED))
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
        self._usable(channel.peer, channel, facts)

    def seat_usable(self, channel: Channel, facts: Facts) -> None:
        """`channel` leads to a peer that may coordinate its community; suspected ones do not."""
        seat = seat_of(channel.peer)
        if facts.is_suspect:
            self.seat_gone(channel.peer, "its coordinator is suspected to be down")
        elif self.seats.is_candidate(channel.peer):
            self._usable(seat, self.seats.channel(channel), dataclasses.replace(facts, gives_back=True))

    def seat_gone(self, coordinator: PeerId, reason: str) -> None:
        """`coordinator` stands for its community no longer."""
        self._gone(seat_of(coordinator), reason)

    def _gone(self, peer: PeerId, reason: str) -> None:
        if is_seat(peer):
            for job in self.seats.jobs_at(peer):
                # Its link may well stand, and its community work on for nobody.
                self._to(peer, JobClose(job))
        super()._gone(peer, reason)
        if is_seat(peer):
            self.seats.gone(peer)

    def regions(self, regions: tuple[Region, ...]) -> None:
        """Communities other than this peer's own, with who may coordinate each."""
        self.seats.regions(regions)
        self._pump.feed(dispatch.Regioned(regions))

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

    def peer_gone(self, peer: PeerId, reason: str) -> None:
        """A peer that computed for us is not reachable any more."""
        self.holders.gone(peer)
        self._gone(peer, reason)
        self.seat_gone(peer, reason)

    def message(self, channel: Channel, message: Message) -> None:
        """What a lender says."""
        if isinstance(message, Grant):
            self._pump.feed(dispatch.Granted(channel.peer, message.slots))
            return
        if isinstance(message, CommunityGrant):
            self._pump.feed(dispatch.Granted(seat_of(channel.peer), message.slots))
            return
        peer, message = self.seats.translated(channel.peer, message)
        match message:
            case Results():
                known = self.jobs.get(JobId(message.job))
                if known is not None and is_seat(peer):
                    known.note_workers(message)
                self._results(peer, self._channels.get(peer, channel), message)
            case Partial():
                self._partial(peer, message)
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
                OutputRow(task, stream, data.decode("utf-8", "replace"), coordinator_of(peer))
                for task, stream, data in message.output
            ]
            job.output.extend(rows)
            if job.stream.on_output is not None:
                job.stream.on_output(rows)
        if message.progress:
            self._tell(job)

    def _report(self, job: OriginJob, peer: PeerId, reports: tuple[TaskReport, ...]) -> None:
        super()._report(job, peer, reports)
        for report in reports if job.workers else ():
            job.workers.pop((report.task, report.attempt), None)

    # --- partial aggregates -------------------------------------------------------------------------------------------

    def _partial(self, seat: PeerId, message: Partial) -> None:
        job = self.jobs.get(JobId(message.job))
        if job is None or not job.is_open or not is_seat(seat):
            return
        if message.payload.blob is None:
            self._partial_here(seat, job, message, message.payload.inline)
        else:
            name = f"partial {message.number} of {format_job_id(job.spec.job)}"
            self._transfers.start(
                job.spec.job, ("partial", seat, message.number), name, self._fetch_partial(seat, job, message)
            )

    async def _fetch_partial(self, seat: PeerId, job: OriginJob, message: Partial) -> None:
        channel, blob = self._channels.get(seat), message.payload.blob
        if channel is None or blob is None:
            return
        try:
            data = await channel.fetch(BlobId(blob), message.payload.size_bytes)
        except (P2PComputeError, OSError) as error:
            self._pump.feed(dispatch.SeatFailed(seat, job.spec.job, f"a partial aggregate was not fetched: {error}"))
            return
        self._partial_here(seat, job, message, data)

    def _partial_here(self, seat: PeerId, job: OriginJob, message: Partial, data: Bytes) -> None:
        if not job.is_open:
            return
        name = job.spec.job
        try:
            value = read_partial(job.spec.aggregation, message.rows, data, job.inputs, job.skipped)
        except (P2PComputeError, ValueError) as error:
            self._bar(seat, f"sent a partial aggregate that is none: {error}")
            return
        key = (name, seat, message.number)
        self._partials[key] = (value, message)
        self._pump.feed(dispatch.PartialArrived(seat, name, message.number, value.rows))
        # What the machine passed over came from a share that is over.
        self._partials.pop(key, None)

    def _partial_taken(self, effect: dispatch.PartialTaken) -> None:
        job = self.jobs[effect.job]
        value, message = self._partials.pop((effect.job, effect.peer, effect.number))
        job.computed_at(effect.peer, message.workers, len(value.rows))
        for task, attempt in value.rows:
            # Who ran it only its coordinator knows, and how long it took it has said before.
            used = self._usage_of(effect.job, task, attempt, effect.peer)
            job.account(ResultRow(task, Outcome.MERGED, b"", coordinator_of(effect.peer), 0), attempt, used)
        try:
            added = job.merged(value)
        except Exception as error:
            self._unusable(job, None, error)
            return
        self._add(job, added)
        self._maybe_no_more(job)
        self._tell(job)

    def _partial_refused(self, effect: dispatch.PartialRefused) -> None:
        self._bar(effect.peer, effect.text)

    # --- effects ------------------------------------------------------------------------------------------------------

    def _offer(self, job: OriginJob, peer: PeerId) -> Message | None:
        request = job.request
        options = request.spec.options
        if is_seat(peer):
            opened = self.seats.open(request.spec, len(request.program), peer, tuple(sorted(job.common)))
            if opened is None:
                # The network has changed since the machine was told of this seat.
                gone = dispatch.SeatFailed(peer, request.spec.job, "its community is not known any more")
                asyncio.get_running_loop().call_soon(self._pump.feed, gone)
            else:
                self._log.info(
                    "share given",
                    job=format_job_id(request.spec.job),
                    coordinator=short_peer_id(peer),
                    members=len(opened.members),
                )
            return opened
        return JobOpen(
            job=request.spec.job,
            program=request.spec.program,
            program_bytes=len(request.program),
            name=request.spec.name[: limits.TEXT_CHARS_MAX],
            priority=options.priority,
            timeout_s=options.timeout_s,
            memory_bytes=options.memory_bytes,
        )

    def _moved(self, effect: dispatch.Moved) -> None:
        job = self.jobs[effect.job]
        unrun = Attempt(
            coordinator_of(effect.peer), Outcome.RETURNED_UNRUN, 0.0, "moved to another peer before it had begun"
        )
        job.attempts.extend((task, unrun) for task in effect.tasks)
        self._log.info(
            "tasks moved", job=format_job_id(effect.job), peer=short_peer_id(effect.peer), tasks=len(effect.tasks)
        )

    def _close_at(self, effect: dispatch.CloseAt) -> None:
        super()._close_at(effect)
        if is_seat(effect.peer):
            self.seats.close(effect.job, effect.peer)

    def _completed(self, effect: dispatch.Completed) -> None:
        job = self.jobs[effect.job]
        added: list[TaskIndex] = []
        if not is_seat(effect.reports[0][1]):
            # What a whole community did says nothing of one peer.
            job.recording.batch(effect.reports)
        for report, peer in effect.reports:
            payload, wall_us = job.staged.pop((report.task, report.attempt, peer))
            row = ResultRow(report.task, report.outcome, payload, job.worker_of(report, peer), wall_us)
            job.account(row, report.attempt, self._usage_of(effect.job, report.task, report.attempt, peer))
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
        detail = "" if row.outcome in ENCODED_FAILURES else text_of(row.payload)
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
        encoded = payload if outcome in ENCODED_FAILURES else b""
        job.failure = FailureInfo(task, outcome, encoded, self._peer_name(peer), detail, history)

    def _given_up(self, effect: dispatch.GivenUp) -> None:
        job = self.jobs[effect.job]
        history = tuple(
            f"attempt {number} at {self._peer_name(attempt.peer)}: {attempt.outcome.name.lower().replace('_', ' ')}"
            + (f" ({attempt.detail})" if attempt.detail else "")
            for number, attempt in enumerate(effect.history, 1)
        )
        last = effect.history[-1] if effect.history else None
        peer = coordinator_of(last.peer) if last is not None else PeerId(b"")
        detail = last.detail if last is not None else ""
        if last is not None and not is_seat(last.peer):
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
        job.attempts.append((effect.task, Attempt(coordinator_of(effect.peer), effect.outcome, 0.0, "tried again")))
        if not is_seat(effect.peer):
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
            done_by_peer=job.done_by_peer(machine.done_by_peer),
            tasks_cached=job.cached,
        )
        failure = job.failure if state is not JobState.SUCCEEDED else None
        job.end = JobEnd(state, result, failure, progress, tuple(sorted(job.skipped)))
        job.release()
        self._transfers.stop_all(effect.job)
        self.seats.ended(effect.job)
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
