"""One seat: what a slot of a cluster has in hand, and what its next call is made of.

Pure bookkeeping: no clock, no futures are looked at. Every attempt that is given to a seat leaves it exactly once, by `cancel`, `end`,
`blame` or `unfinished`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future

from p2pcompute.execution.cluster.calls import Answer, Call, data_of, rows_of
from p2pcompute.execution.pool_types import ProgramKey, TaskEnd, TaskRun, WorkerInfo
from p2pcompute.model import limits
from p2pcompute.model.job import Outcome

Row = tuple[int, int]


class Seat:
    """See the file's docstring."""

    def __init__(
        self, number: int, key: ProgramKey, program: bytes, memory_bytes: int | None, started_at: float
    ) -> None:
        self.number = number
        self.key = key
        self.program = program
        self.memory_bytes = memory_bytes
        self.started_at = started_at
        #: Whether its program has been loaded once.
        self.ready = False
        #: Name of the call at the cluster, and its future once it is handed over.
        self.call: bytes | None = None
        self.future: Future[bytes] | None = None
        #: Given and in no call.
        self.waiting: deque[TaskRun] = deque()
        #: In the call and not cancelled, in order.
        self.running: dict[Row, TaskRun] = {}
        #: Digests that tasks have asked for, in order; of these: not here yet, not at the cluster as far as is known, held by nobody.
        self.names: dict[bytes, None] = {}
        self.wanted: set[bytes] = set()
        self.lacking: set[bytes] = set()
        self.absent: set[bytes] = set()
        #: Whether its program or a task has ever waited for data.
        self.was_asked = False
        #: Misses of the present batch.
        self.misses = 0
        self.tasks_done = 0

    def info(self) -> WorkerInfo:
        """As the pool's user sees it."""
        running = next(iter(self.running), None)
        queued = len(self.waiting) + max(len(self.running) - 1, 0)
        return WorkerInfo(self.key, None, self.ready, running, queued, self.tasks_done, self.started_at)

    def begin(self, name: bytes, blobs: Mapping[bytes, bytes]) -> Call:
        """The next call: all that waits where the program is loaded, nothing before. `blobs`: by digest."""
        self.call = name
        if self.ready:
            while self.waiting and len(self.running) < limits.BATCH_TASKS_MAX:
                run = self.waiting.popleft()
                self.running[run.task, run.attempt] = run
        program = bytes(self.key.program)
        known = [digest for digest in self.names if digest in blobs]
        everything = self.misses >= limits.CLUSTER_MISSES_MAX
        along = {digest: blobs[digest] for digest in known if everything or digest in self.lacking}
        if everything or program in self.lacking or len(self.program) <= limits.CLUSTER_INLINE_BYTES_MAX:
            along[program] = self.program
        self.lacking.clear()
        return Call(
            call=name,
            origin=bytes(self.key.origin),
            program=program,
            rows=rows_of(list(self.running.values())),
            memory_bytes=self.memory_bytes,
            names=tuple(known),
            data=data_of(along),
            absent=tuple(sorted(self.absent)),
        )

    def miss(self, digests: Iterable[bytes]) -> None:
        """The process that got the call lacks these: the next one brings them, with the same tasks."""
        self.call = self.future = None
        self.lacking.update(digests)
        self.misses += 1
        self._put_back()

    def cancel(self, tasks: Collection[Row]) -> tuple[list[TaskEnd], bool]:
        """Ends of what is taken back, and whether any of it is at the cluster."""
        asked = set(tasks)
        ends = [_end(row, Outcome.CANCELLED, "cancelled before it ran") for row in _rows(self.waiting) if row in asked]
        self.waiting = deque(run for run in self.waiting if (run.task, run.attempt) not in asked)
        at_cluster = [row for row in self.running if row in asked]
        for row in at_cluster:
            del self.running[row]
            ends.append(_end(row, Outcome.CANCELLED, "cancelled while it ran"))
        return ends, bool(at_cluster)

    def end(
        self, answer: Answer, ends: Iterable[TaskEnd], now: float
    ) -> tuple[list[tuple[int, float, str]], list[tuple[int, int, bytes]], list[TaskEnd]]:
        """Take in an answer: news and ends of what is still wanted; what did not run waits again, at the front."""
        self.call = self.future = None
        self.misses = 0
        current = {row[0] for row in self.running}
        progress = [row for row in answer.progress if row[0] in current]
        output = [row for row in answer.output if row[0] in current]
        ended = [end for end in ends if self.running.pop((end.task, end.attempt), None) is not None]
        self.tasks_done += len(ended)
        self._put_back()
        return progress, output, ended

    def blame(self, cause: str) -> list[TaskEnd]:
        """The process of its call died: nobody knows which task it was."""
        ended = [_end(row, Outcome.WORKER_DIED, cause) for row in self.running]
        self.running.clear()
        return ended

    def unfinished(self) -> list[Row]:
        """What is left in its hands when it goes."""
        self._put_back()
        rows = _rows(self.waiting)
        self.waiting.clear()
        return rows

    def _put_back(self) -> None:
        self.waiting.extendleft(reversed(list(self.running.values())))
        self.running.clear()


def _rows(runs: Iterable[TaskRun]) -> list[Row]:
    return [(run.task, run.attempt) for run in runs]


def _end(row: Row, outcome: Outcome, text: str) -> TaskEnd:
    return TaskEnd(row[0], row[1], outcome, 0, text.encode())
