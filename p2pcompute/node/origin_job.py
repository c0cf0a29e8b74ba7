"""One job at its origin: payloads, partial results, answer. The dispatch machine knows only numbers of tasks."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from p2pcompute.execution.values import Encoded, decode, encode
from p2pcompute.jobs.accounting import Accounts
from p2pcompute.jobs.aggregate import Aggregator
from p2pcompute.jobs.recording import Recording
from p2pcompute.jobs.reduce import ReducePlan
from p2pcompute.jobs.request_cache import RequestKey
from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, JobError, UsageError
from p2pcompute.model.ids import REDUCE_BASE, BlobId, PeerId, TaskIndex, coordinator_of, is_seat
from p2pcompute.model.job import FINAL_OUTCOMES, Aggregation, Attempt, Outcome, Payload, TaskReport, Usage
from p2pcompute.node.dispatching import Staged
from p2pcompute.node.job_stream import FailureInfo, JobEnd, JobRequest, JobStream, OutputRow, ResultRow
from p2pcompute.node.partials import PartialValue
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.wire.messages import Results

#: Places of the entries in a program's list of entries.
MAP_ENTRY, REDUCE_ENTRY = 0, 1
#: Output rows and attempts kept of one job for `job logs` and `job show`.
OUTPUT_ROWS_KEPT = 2_000
ATTEMPTS_KEPT = 10_000
#: Bytes of single results kept of one ended job.
RESULT_BYTES_KEPT = 64 << 20
#: What a kept result costs beside its payload.
_ROW_BYTES = 256

_STREAMED = frozenset({Aggregation.SUM, Aggregation.AVERAGE, Aggregation.MAX, Aggregation.MIN, Aggregation.CONCAT})


#: See `OriginJob.trail`.
Trace = tuple[int, int, Outcome, PeerId, int, Usage]


class OriginJob:
    """The payloads of one job and what becomes of its results.

    `add_input` and `completed` return the reduction tasks that have become possible.
    """

    def __init__(
        self, request: JobRequest, stream: JobStream, store: BlobStore, started_at: float, recording: Recording
    ) -> None:
        self.request = request
        self.spec = request.spec
        self.stream = stream
        self.started_at = started_at
        #: Set when the job has ended.
        self.end: JobEnd | None = None
        self._store = store
        #: Arguments of tasks that have not completed.
        self._arguments: dict[TaskIndex, Payload] = {}
        #: Data behind handles that its program and first arguments name: sizes by digest.
        self.shared: dict[BlobId, int] = {}
        #: Those of them that its program or all of the first arguments name.
        self.common: set[BlobId] = set()
        #: What its attempts came to, for the records.
        self.recording = recording
        #: Keys of tasks whose answers are to be kept for equal calls; empty without a cache.
        self.keys: dict[TaskIndex, RequestKey] = {}
        #: Tasks that were answered out of the cache.
        self.cached = 0
        #: Bytes of the arguments of all leaves.
        self.input_bytes = 0
        #: Inputs so far: the number of the next leaf task.
        self.inputs = 0
        self.inputs_ended = False
        aggregation = request.spec.aggregation
        self._aggregator = Aggregator(aggregation) if aggregation in _STREAMED else None
        self._plan = ReducePlan() if aggregation is Aggregation.REDUCE else None
        #: Encoded results that wait to be merged (REDUCE), or for the end (CUSTOM).
        self._partials: dict[TaskIndex, bytes | bytearray | memoryview] = {}
        self._custom_started = False
        #: The encoded answer of an aggregation.
        self.answer: bytes | bytearray | memoryview | None = None
        #: Single results kept for later readers, and their size.
        self.kept: dict[int, ResultRow] = {}
        self._kept_bytes = 0
        self.kept_all = True
        #: The last output of its tasks.
        self.output: deque[OutputRow] = deque(maxlen=OUTPUT_ROWS_KEPT)
        #: (task, attempt) that did not return, for `job show`.
        self.attempts: deque[tuple[TaskIndex, Attempt]] = deque(maxlen=ATTEMPTS_KEPT)
        #: What it used, by who ran it: their own word.
        self.spent: Accounts[PeerId] = Accounts(limits.PEERS_MAX)
        #: The last tasks that ended: (task, attempt, outcome, peer, wall microseconds, what it used).
        self.trail: deque[Trace] = deque(maxlen=ATTEMPTS_KEPT)
        #: Tasks that failed for good and were left out.
        self.skipped: list[int] = []
        self.failure: FailureInfo | None = None
        #: Whether this side cannot go on with the job, whatever its tasks return.
        self.broken = False
        #: Tasks that nobody wants any more although their inputs were not read yet.
        self.dropped: set[int] = set()
        #: Ends the reading of inputs, once it has begun.
        self.stop_reading: Callable[[], object] | None = None
        self.message = ""
        #: Results that arrived and wait for the machine's word on whether they count.
        self.staged: Staged = {}
        #: How many tasks of coordinators ran where, by their word.
        self._computed: dict[PeerId, int] = {}
        #: Where results of coordinators were computed, by (task, attempt), by their word.
        self.workers: dict[tuple[TaskIndex, int], PeerId] = {}

    @property
    def is_open(self) -> bool:
        """Whether results still matter."""
        return self.end is None

    # --- inputs ---------------------------------------------------------------------------------------------------------

    def add_inputs(self, batch: Sequence[bytes | bytearray | memoryview]) -> tuple[TaskIndex, ...]:
        """Keep the arguments of further leaf tasks; their numbers."""
        first = self.inputs
        weights = self.request.weights
        if weights is not None and first + len(batch) > len(weights):
            raise UsageError(f"{len(weights)} weights for more inputs than that: give one weight an input")
        for arguments in batch:
            self._arguments[TaskIndex(self.inputs)] = self._payload(arguments)
            self.inputs += 1
        self.input_bytes += sum(map(len, batch))
        return tuple(TaskIndex(number) for number in range(first, self.inputs))

    def argument_bytes(self, tasks: Sequence[TaskIndex]) -> tuple[int, int]:
        """What of the arguments of `tasks` travels as blobs, and what inside messages, bytes."""
        blob = inline = 0
        for task in tasks:
            payload = self._arguments.get(task)
            if payload is None:
                continue
            if payload.blob is None:
                inline += payload.size_bytes
            else:
                blob += payload.size_bytes
        return blob, inline

    def input_bytes_each(self) -> int:
        """Mean bytes of a leaf's arguments."""
        return self.input_bytes // max(self.inputs, 1)

    def arguments(self, task: TaskIndex) -> Payload:
        """What travels with a lease of `task`."""
        return self._arguments[task]

    def to_fetch(self, task: TaskIndex) -> Payload:
        """`arguments` as a blob where there is room for one, so that the peer fetches them at its own pace."""
        payload = self._arguments[task]
        with contextlib.suppress(BusyError):
            blob = self._store.put(payload.inline, self.spec.job)
            payload = self._arguments[task] = Payload(blob=blob, size_bytes=len(payload.inline))
        return payload

    def entry(self, task: TaskIndex) -> int:
        """Which entry of the program `task` runs."""
        return REDUCE_ENTRY if task >= REDUCE_BASE else MAP_ENTRY

    def end_inputs(self) -> tuple[TaskIndex, ...]:
        """No more leaves will come; reductions that this makes possible."""
        self.inputs_ended = True
        weights = self.request.weights
        if weights is not None and self.inputs != len(weights):
            raise UsageError(f"{len(weights)} weights for {self.inputs} inputs: give one weight an input")
        if self._plan is not None:
            return self._reductions(self._plan.leaves_ended(self.inputs))
        return self._custom()

    @property
    def no_more_tasks(self) -> bool:
        """Whether every task that this job will ever have has been added."""
        if not self.inputs_ended:
            return False
        if self._plan is not None:
            return self._plan.all_planned
        if self.spec.aggregation is Aggregation.CUSTOM:
            return self._custom_started
        return True

    # --- results --------------------------------------------------------------------------------------------------------

    def completed(self, row: ResultRow) -> tuple[TaskIndex, ...]:
        """A task returned and is counted; reductions that this makes possible. Raises JobError from aggregation."""
        task = TaskIndex(row.index)
        self._forget(task)
        if self._plan is not None:
            self._partials[task] = row.payload
            return self._reductions(self._plan.ready(task))
        if self.spec.aggregation is Aggregation.CUSTOM:
            if task >= REDUCE_BASE:
                self.answer = row.payload
                return ()
            self._partials[task] = row.payload
            self.stream.taken(1)
            return self._custom()
        if self._aggregator is not None:
            weight = self.request.weights[row.index] if self.request.weights is not None else 1.0
            self._aggregator.add(row.index, decode(row.payload), weight)
            self.stream.taken(1)
            return ()
        self._keep(row)
        self.stream.put([row])
        return ()

    def merged(self, value: PartialValue) -> tuple[TaskIndex, ...]:
        """A partial aggregate is counted, with all tasks that it names; reductions that this makes possible. Raises JobError."""
        for task, _ in value.rows:
            self._forget(task)
        added: list[TaskIndex] = []
        if self._plan is not None:
            for node, encoded in value.nodes:
                self._partials[node] = encoded
                added.extend(self._reductions(self._plan.placed(node)))
            # Leaves under a merged value were taken with it, not one by one as in `_reductions`.
            self.stream.taken(len(value.rows) - sum(node < REDUCE_BASE for node, _ in value.nodes))
        else:
            assert self._aggregator is not None
            self._aggregator.merge(value.state)
            self.stream.taken(len(value.rows))
        return tuple(added)

    def account(self, row: ResultRow, attempt: int, usage: Usage) -> None:
        """A task is counted that used so much."""
        self.spent.add(row.peer, row.outcome, row.wall_us, usage)
        self.trail.append((row.index, attempt, row.outcome, row.peer, row.wall_us, usage))

    def note_workers(self, message: Results) -> None:
        """Where the coordinator that sends this says that its rows were computed."""
        if len(message.by) != len(message.rows) or any(place >= len(message.peers) for place in message.by):
            return
        for row, place in zip(message.rows, message.by, strict=True):
            if row[2] in FINAL_OUTCOMES:
                self.workers[TaskIndex(row[0]), row[1]] = PeerId(message.peers[place])

    def computed_at(self, seat: PeerId, workers: Sequence[tuple[bytes, int]], count: int) -> None:
        """`count` tasks of a partial aggregate ran at `workers`, by its coordinator's word."""
        if sum(number for _, number in workers) != count:
            workers = ((coordinator_of(seat), count),)
        for peer, number in workers:
            self._computed[PeerId(peer)] = self._computed.get(PeerId(peer), 0) + number

    def done_by_peer(self, rows: Sequence[tuple[PeerId, int]]) -> tuple[tuple[PeerId, int], ...]:
        """The machine's counts, with those of seats as what their coordinators said of them."""
        counts = dict(self._computed)
        for peer, count in rows:
            if not is_seat(peer):
                counts[peer] = counts.get(peer, 0) + count
        return tuple(sorted(counts.items()))

    def worker_of(self, report: TaskReport, peer: PeerId) -> PeerId:
        """Where an attempt ran: for a seat, what its coordinator said of it, once."""
        if not is_seat(peer):
            return peer
        worker = self.workers.pop((report.task, report.attempt), coordinator_of(peer))
        self._computed[worker] = self._computed.get(worker, 0) + 1
        return worker

    def left_out(self, row: ResultRow) -> tuple[TaskIndex, ...]:
        """A task failed for good and is left out of the answer."""
        task = TaskIndex(row.index)
        self._forget(task)
        self.skipped.append(row.index)
        if self._plan is not None:
            self.stream.taken(1)
            return self._reductions(self._plan.left_out(task))
        if self.spec.aggregation is Aggregation.NONE:
            self._keep(row)
            self.stream.put([row])
            return ()
        self.stream.taken(1)
        return self._custom()

    def drop(self, index: int) -> bool:
        """Nobody wants this task any more; whether it was on its way."""
        task = TaskIndex(index)
        if index >= self.inputs:
            self.dropped.add(index)
        if task not in self._arguments:
            return False
        self._forget(task)
        self.stream.taken(1)
        return True

    def finish(self) -> bytes | bytearray | memoryview | None:
        """The encoded answer of an aggregation, None where results stand alone. Raises JobError."""
        if self._aggregator is not None:
            return encode(self._aggregator.result())
        if self._plan is not None and self._plan.is_empty:
            raise JobError("there is nothing to reduce: every input was left out because its task failed")
        return self.answer

    def release(self) -> None:
        """The job has ended: let go of everything but what later readers may ask for."""
        self._arguments.clear()
        self._partials.clear()
        self.keys.clear()
        self.staged.clear()
        self.workers.clear()
        self._store.release_all(self.spec.job)

    # --- inner --------------------------------------------------------------------------------------------------------

    def _payload(self, data: bytes | bytearray | memoryview) -> Payload:
        if len(data) <= limits.INLINE_BYTES_MAX:
            return Payload(inline=bytes(data), size_bytes=len(data))
        return Payload(blob=self._store.put(data, self.spec.job), size_bytes=len(data))

    def _forget(self, task: TaskIndex) -> None:
        payload = self._arguments.pop(task, None)
        if payload is not None and payload.blob is not None:
            self._store.release(BlobId(payload.blob), self.spec.job)

    def _keep(self, row: ResultRow) -> None:
        if not self.request.keep_results or not self.kept_all:
            return
        self._kept_bytes += len(row.payload) + _ROW_BYTES
        if self._kept_bytes > RESULT_BYTES_KEPT:
            self.kept_all = False
            self.kept.clear()
            return
        self.kept[row.index] = row

    def _reductions(self, groups: Sequence[tuple[TaskIndex, tuple[TaskIndex, ...]]]) -> tuple[TaskIndex, ...]:
        assert self._plan is not None
        added = []
        for task, members in groups:
            values = [Encoded(self._partials.pop(member)) for member in members]
            leaves = sum(1 for member in members if member < REDUCE_BASE)
            self.stream.taken(leaves)
            self._arguments[task] = self._payload(encode([[values], {}]))
            added.append(task)
        final = self._plan.result
        if final is not None and final in self._partials:
            self.answer = self._partials.pop(final)
        return tuple(added)

    def _custom(self) -> tuple[TaskIndex, ...]:
        if (
            self.spec.aggregation is not Aggregation.CUSTOM
            or not self.inputs_ended
            or self._custom_started
            or len(self._partials) + len(self.skipped) < self.inputs
        ):
            return ()
        self._custom_started = True
        order = sorted(self._partials)
        weights = [self.request.weights[index] if self.request.weights is not None else 1.0 for index in order]
        values = [Encoded(self._partials[index]) for index in order]
        self._partials.clear()
        task = TaskIndex(REDUCE_BASE)
        self._arguments[task] = self._payload(encode([[values, weights], {}]))
        return (task,)
