"""One share of another peer's job, at its coordinator: payloads, results on their way up, and what is merged here.

The dispatch machine of the coordinator knows the share's tasks by *inner* numbers: that of the task in its job the first time, with a
generation above it when the origin sends a task again that was settled here, and a mark for merges of its own. A number that would be
taken for another one is refused, as is one task too many: whatever an origin sends, it takes no more than its room. Refuses to know:
links, peers, the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.execution.values import Encoded, decode, encode
from p2pcompute.jobs.aggregate import Aggregator
from p2pcompute.jobs.reduce import ReducePlan, Step
from p2pcompute.jobs.submit import aggregation_of, options_of
from p2pcompute.jobs.taskset import TaskSet
from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, P2PComputeError, UsageError
from p2pcompute.model.ids import REDUCE_BASE, BlobId, JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import FINAL_OUTCOMES, Aggregation, JobOptions, JobSpec, OnError, Outcome, Payload
from p2pcompute.model.placement import Coordination
from p2pcompute.node.channels import SMALL_BYTES, Channel
from p2pcompute.node.dispatching import Staged
from p2pcompute.node.origin_job import REDUCE_ENTRY
from p2pcompute.node.partials import Range, ranges_of, write_nodes
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.wire.messages import ShareOpen, TaskNews

Bytes = bytes | bytearray | memoryview

#: Numbers of tasks and of reductions of any job are below this.
_MERGE = 1 << 49
_GENERATION = 1 << 50
_GENERATIONS_MAX = 1 << 12
#: Options that the coordinator's own machine needs; the rest is the origin's business.
SHARE_OPTIONS = ("timeout_s", "priority", "memory_bytes", "speculate", "task_type", "expected_task_s", "health_check")
#: A result up to this goes up as it is: naming it among merged ones would hardly be shorter, and the origin need not believe the merging.
MERGED_FROM_BYTES = 64


@dataclass(slots=True)
class _Row:
    """A task as the origin leased it."""

    task: TaskIndex
    attempt: int
    entry: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A partial aggregate that is ready to go: its tasks, its encoded value, and how many of them ran where."""

    rows: tuple[Range, ...]
    payload: bytes
    workers: tuple[tuple[PeerId, int], ...]


class Share:
    """`opened`: what its origin, at the end of `channel`, asked for."""

    def __init__(self, opened: ShareOpen, channel: Channel, spec: JobSpec, store: BlobStore, now: float) -> None:
        self.opened = opened
        #: The origin.
        self.channel = channel
        self.spec = spec
        self.staged: Staged = {}
        #: Whether it goes on.
        self.is_open = True
        #: Whether the program is here and members may be asked.
        self.is_accepted = False
        self._store = store
        #: When it was opened, and when it last handed over what it had merged.
        self.cut_at = self.opened_at = now
        #: Partial aggregates so far.
        self.partials = 0
        #: Tasks that were not settled here, by inner number.
        self._rows: dict[TaskIndex, _Row] = {}
        #: Inner number of each task that is not settled here.
        self._inner: dict[TaskIndex, TaskIndex] = {}
        #: Inner numbers that were settled here: no task gets one of them again.
        self._settled = TaskSet()
        #: How often each task was settled here that came again after that; the others not at all, or as `_settled` says.
        self._generations: dict[TaskIndex, int] = {}
        self._arguments: dict[TaskIndex, Payload] = {}
        #: Bytes of arguments that lie here, not in the store.
        self.argument_bytes = 0
        #: Rows whose arguments are being fetched.
        self.fetching: set[tuple[int, int]] = set()
        #: Large results that the origin has not fetched yet, by (task, attempt).
        self.result_blobs: dict[tuple[int, int], BlobId] = {}
        aggregation = spec.aggregation
        self._plan = ReducePlan() if aggregation is Aggregation.REDUCE else None
        self._aggregator = self._new_aggregator()
        #: Merged tasks since the last cut, with the attempts of their leases, and how many ranges they make.
        self._merged: dict[TaskIndex, int] = {}
        self._ranges = 0
        #: How many of them ran where.
        self._workers: dict[PeerId, int] = {}
        #: REDUCE: encoded values that no merge has in hand, by number in the tree.
        self._values: dict[TaskIndex, Bytes] = {}
        #: Whether no merge is begun any more, until the next cut.
        self.merges_no_more = False
        #: Merges that run, by inner number: what they merge.
        self._merging: dict[TaskIndex, list[tuple[TaskIndex, Bytes]]] = {}

    @property
    def size(self) -> int:
        """Tasks that are not settled here."""
        return len(self._rows)

    @property
    def hold(self) -> tuple[str, bytes]:
        """Label of what it holds in the store."""
        return ("share", self.opened.share)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def take(self, task: int, attempt: int, entry: int, payload: Payload) -> TaskIndex | None:
        """A task that the origin leased to this share; its inner number, None where it is here already or cannot be taken."""
        outer = TaskIndex(task)
        if outer in self._inner or task >= _MERGE:
            return None
        generation = self._generations.get(outer, 0)
        inner = TaskIndex(task + generation * _GENERATION)
        if inner in self._settled:
            generation += 1
            inner = TaskIndex(task + generation * _GENERATION)
            if generation >= _GENERATIONS_MAX:
                return None
        if self._settled.pages >= limits.SHARE_TASK_PAGES_MAX and not self._settled.has_page(inner):
            return None
        if generation:
            self._generations[outer] = generation
        self._inner[outer] = inner
        self._rows[inner] = _Row(outer, attempt, entry)
        self._arguments[inner] = payload
        self.argument_bytes += len(payload.inline)
        return inner

    def inner_of(self, task: int, attempt: int) -> TaskIndex | None:
        """The inner number of an attempt that is not settled here."""
        inner = self._inner.get(TaskIndex(task))
        return inner if inner is not None and self._rows[inner].attempt == attempt else None

    def row_of(self, inner: TaskIndex) -> tuple[int, int] | None:
        """(task, attempt) of a task that is not settled here; None for a merge of its own."""
        row = self._rows.get(inner)
        return None if row is None else (row.task, row.attempt)

    def let_go(self, inner: TaskIndex) -> tuple[int, int]:
        """The origin takes a task back that has not run; its (task, attempt)."""
        row = self._rows.pop(inner)
        del self._inner[row.task]
        key = (row.task, row.attempt)
        # What is being fetched is not held yet.
        self._forget_arguments(inner, is_held=key not in self.fetching)
        self.fetching.discard(key)
        return key

    def settle(self, inner: TaskIndex) -> tuple[int, int]:
        """The machine has settled a task: should the origin send it again, it gets another inner number."""
        self._settled.add(inner)
        return self.let_go(inner)

    def arguments(self, task: TaskIndex) -> Payload:
        """What travels with a lease of inner `task`."""
        return self._arguments[task]

    def to_fetch(self, task: TaskIndex) -> Payload:
        """`arguments` as a blob where there is room for one."""
        payload = self._arguments[task]
        with contextlib.suppress(BusyError):
            blob = self._store.put(payload.inline, self.hold)
            self.argument_bytes -= len(payload.inline)
            payload = self._arguments[task] = Payload(blob=blob, size_bytes=len(payload.inline))
        return payload

    def hold_blob(self, blob: BlobId, data: Bytes | None) -> str:
        """Hold a blob of arguments that is here, or has just come as `data`; empty, or why not."""
        try:
            if data is not None:
                self._store.put(data, self.hold, blob)
            elif not self._store.hold(blob, self.hold):
                return "its arguments are not here any more"
        except BusyError as error:
            return str(error)
        return ""

    def is_fetched(self, size_bytes: int) -> bool:
        """Whether a result of this size is left to be fetched by the origin."""
        return size_bytes > limits.INLINE_BYTES_MAX or (size_bytes > SMALL_BYTES and self.channel.is_behind)

    def news(self, message: TaskNews) -> TaskNews | None:
        """What a member says of running tasks, in the origin's numbers; of merges nobody asked."""
        progress, output = [], []
        for inner, fraction, text in message.progress:
            row = self.row_of(TaskIndex(inner))
            if row is not None:
                progress.append((row[0], fraction, text))
        for inner, stream, data in message.output:
            row = self.row_of(TaskIndex(inner))
            if row is not None:
                output.append((row[0], stream, data))
        return TaskNews(message.job, tuple(progress), tuple(output)) if progress or output else None

    def entry(self, task: TaskIndex) -> int:
        """Which entry of the program inner `task` runs."""
        row = self._rows.get(task)
        return REDUCE_ENTRY if row is None else row.entry

    # --- merging ------------------------------------------------------------------------------------------------------

    def merge(
        self, task: int, attempt: int, outcome: Outcome, payload: Bytes, worker: PeerId
    ) -> tuple[bool, tuple[TaskIndex, ...]]:
        """A leaf has ended: whether its value stays here, and merges that this makes possible (inner numbers).

        What failed must be on its way to the origin before a partial aggregate that leaves it out; so not where it has to be fetched.
        """
        leaf = TaskIndex(task)
        if task >= REDUCE_BASE or leaf in self._merged:
            return False, ()
        if outcome is Outcome.RETURNED and not self._has_room(leaf, attempt):
            return False, ()
        if self._plan is not None and outcome is Outcome.RETURNED:
            self._values[leaf] = payload
            self._count(leaf, attempt, worker)
            return True, self._merges(self._plan.ready(leaf))
        if self._plan is not None and outcome in FINAL_OUTCOMES:
            return False, self._merges(self._plan.left_out(leaf))
        if self._aggregator is None or outcome is not Outcome.RETURNED or len(payload) <= MERGED_FROM_BYTES:
            return False, ()
        try:
            self._aggregator.add(task, decode(payload))
        except P2PComputeError:
            # Whatever it is, the origin says it better.
            return False, ()
        self._count(leaf, attempt, worker)
        return True, ()

    def merge_ended(self, inner: TaskIndex, payload: Bytes | None) -> tuple[TaskIndex, ...]:
        """A merge returned, or failed (None): then the origin gets what it should have merged, and hears why from its own."""
        members = self._merging.pop(inner, [])
        self._forget_arguments(inner)
        if payload is None or self._plan is None:
            self._values.update(members)
            return ()
        node = TaskIndex(inner & (_MERGE - 1))
        self._values[node] = payload
        return self._merges(self._plan.ready(node))

    @property
    def has_merged(self) -> bool:
        """Whether tasks wait for a cut."""
        return bool(self._merged)

    @property
    def is_full(self) -> bool:
        """Whether so much is merged that it must be handed over: a partial aggregate is nearly full, or the submitter waits for it to read on."""
        return len(self._merged) >= limits.MERGED_TASKS_MAX or self._ranges >= limits.BATCH_TASKS_MAX // 2

    @property
    def is_merging(self) -> bool:
        """Whether merges of its own run."""
        return bool(self._merging)

    def cut(self) -> Cut | None:
        """Hand over what is merged, as one value; None where nothing is. Only while no merge runs."""
        assert not self._merging, "a merge runs"
        if not self._merged:
            return None
        if self._plan is not None:
            payload = write_nodes(sorted(self._values.items()))
            self._plan = ReducePlan()
            self._values.clear()
        else:
            assert self._aggregator is not None
            payload = encode(self._aggregator.partial())
            self._aggregator = self._new_aggregator()
        cut = Cut(ranges_of(self._merged.items()), payload, tuple(sorted(self._workers.items())))
        self._merged.clear()
        self._ranges = 0
        self._workers.clear()
        self.merges_no_more = False
        self.partials += 1
        return cut

    def close(self) -> None:
        """It is over: let go of everything."""
        self.is_open = False
        for kept in (self._rows, self._inner, self._arguments, self._values, self._merging, self.staged):
            kept.clear()
        self._merged.clear()
        self.argument_bytes = 0
        self.fetching.clear()
        self.result_blobs.clear()
        self._store.release_all(self.hold)

    # --- inner --------------------------------------------------------------------------------------------------------

    def _new_aggregator(self) -> Aggregator | None:
        kind = self.spec.aggregation
        return None if kind in (Aggregation.NONE, Aggregation.REDUCE) else Aggregator(kind)

    def _has_room(self, leaf: TaskIndex, attempt: int) -> bool:
        """Whether one partial aggregate can name `leaf` beside what is merged."""
        return (
            len(self._merged) < limits.PARTIAL_TASKS_MAX
            and self._ranges + self._more_ranges(leaf, attempt) <= limits.BATCH_TASKS_MAX
        )

    def _more_ranges(self, leaf: TaskIndex, attempt: int) -> int:
        """How many ranges more `leaf` makes; -1 where it joins two."""
        return 1 - sum(self._merged.get(TaskIndex(leaf + step)) == attempt for step in (-1, 1))

    def _count(self, leaf: TaskIndex, attempt: int, worker: PeerId) -> None:
        self._ranges += self._more_ranges(leaf, attempt)
        self._merged[leaf] = attempt
        self._workers[worker] = self._workers.get(worker, 0) + 1

    def _merges(self, steps: Sequence[Step]) -> tuple[TaskIndex, ...]:
        added = []
        for node, members in steps:
            if self.merges_no_more:
                break
            inner = TaskIndex(node + _MERGE)
            rows = [(member, self._values.pop(member)) for member in members]
            try:
                payload = self._payload(encode([[[Encoded(value) for _, value in rows]], {}]))
            except BusyError:
                self._values.update(rows)
                continue
            self._arguments[inner] = payload
            self.argument_bytes += len(payload.inline)
            self._merging[inner] = rows
            added.append(inner)
        return tuple(added)

    def _payload(self, data: bytes) -> Payload:
        if len(data) <= limits.INLINE_BYTES_MAX:
            return Payload(inline=data, size_bytes=len(data))
        return Payload(blob=self._store.put(data, self.hold), size_bytes=len(data))

    def _forget_arguments(self, inner: TaskIndex, *, is_held: bool = True) -> None:
        payload = self._arguments.pop(inner, None)
        if payload is None:
            return
        self.argument_bytes -= len(payload.inline)
        if payload.blob is not None and is_held:
            self._store.release(BlobId(payload.blob), self.hold)


def spec_of(message: ShareOpen) -> JobSpec:
    """The share as a job of this peer's machine. Raises UsageError, UnknownNameError for what no origin writes."""
    if not isinstance(message.options, dict):
        raise UsageError("the options of a share are a map")
    options: JobOptions = options_of({name: message.options[name] for name in SHARE_OPTIONS if name in message.options})
    aggregation = aggregation_of(message.aggregation)
    if aggregation in (Aggregation.CUSTOM, Aggregation.CONCAT):
        raise UsageError(f"results of aggregation {aggregation.value!r} are not merged in communities")
    own = dataclasses.replace(
        options,
        # Further attempts are the origin's to give, and failures its to judge.
        retries=0,
        on_error=OnError.SKIP,
        job_timeout_s=None,
        coordination=Coordination.OFF,
    )
    return JobSpec(
        JobId(message.share), message.name, ProgramId(message.program), "map", aggregation, "reduce", own, None
    )
