"""What every row of the table of engines is made of, and how it is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from p2pcompute.execution.pool_types import TaskEnd
from p2pcompute.execution.process_tree import weigh_families
from p2pcompute.model.ids import BlobId
from p2pcompute.model.job import Outcome
from p2pcompute.model.seams import Clock
from p2pcompute.node.seams import SystemClock

_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class EngineRow:
    """`start_s`: until a worker is ready; `round_trip_s`: median of one task at a time; `tasks_per_second`: many at once;
    `memory_mib`: of one idle worker with what it has started."""

    engine: str
    what: str
    start_s: float
    round_trip_s: float
    tasks_per_second: float
    memory_mib: float

    def __str__(self) -> str:
        return (
            f"{self.engine:<12} {self.what:<44} start {self.start_s * 1e3:8.1f} ms   round trip {self.round_trip_s * 1e3:7.2f} ms   "
            f"{self.tasks_per_second:8.0f} tasks/s   {self.memory_mib:6.1f} MiB"
        )


def clock() -> Clock:
    """This machine's."""
    return SystemClock()


def family_mib(pid: int) -> float:
    """Resident memory of a process and all that it has started."""
    return weigh_families([pid], [None])[0].memory_bytes / (1 << 20)


class Waiter:
    """Events of a pool, for somebody who waits for them. Implements PoolEvents; a task that does not return ends the measurement."""

    def __init__(self) -> None:
        self._ready: set[int] = set()
        self._ended: set[int] = set()
        self._failure = ""
        self._changed = asyncio.Event()

    async def ready(self, worker: int) -> None:
        """Until the worker is ready."""
        await self._until(lambda: worker in self._ready)

    async def round_trip(self, run: Callable[[int], None], numbers: Sequence[int]) -> float:
        """Median seconds of one task at a time."""
        took = []
        for number in numbers:
            began = time.perf_counter()
            run(number)
            await self._until(lambda number=number: number in self._ended)
            took.append(time.perf_counter() - began)
        return median(took)

    async def rate(self, run: Callable[[Sequence[int]], None], numbers: Sequence[int]) -> float:
        """Tasks a second, all given at once."""
        began = time.perf_counter()
        run(numbers)
        await self._until(lambda: self._ended.issuperset(numbers))
        return len(numbers) / (time.perf_counter() - began)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_WAIT_S):
            while not condition():
                if self._failure:
                    raise RuntimeError(self._failure)
                self._changed.clear()
                await self._changed.wait()

    def tasks_ended(self, worker: int, ends: Sequence[TaskEnd]) -> None:
        for end in ends:
            if end.outcome is not Outcome.RETURNED:
                self._failure = f"task {end.task} ended as {end.outcome.name}: {end.payload[:300]!r}"
            self._ended.add(end.task)
        self._changed.set()

    def task_news(
        self, worker: int, progress: Sequence[tuple[int, float, str]], output: Sequence[tuple[int, int, bytes]]
    ) -> None:
        pass

    def worker_ready(self, worker: int) -> None:
        self._ready.add(worker)
        self._changed.set()

    def worker_gone(self, worker: int, unfinished: Sequence[tuple[int, int]], cause: str, outcome: Outcome) -> None:
        if unfinished:
            self._failure = f"a worker is gone: {cause}"
            self._changed.set()

    def blob_wanted(self, worker: int, blob: BlobId, size_bytes: int) -> None:
        self._failure = "a task asked for data"

    def program_failed(self, worker: int, reason: str, module: str, text: str) -> None:
        self._failure = f"the program does not load: {text}"
        self._changed.set()
