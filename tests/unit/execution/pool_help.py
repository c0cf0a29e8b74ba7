"""A pool with recording events, for the tests of workers: real processes, waits with a bound, nothing sleeps."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from p2pcompute.execution.engines.document import ProgramHead
from p2pcompute.execution.pool import PoolSettings, ProgramKey, TaskEnd, TaskRun, WorkerPool
from p2pcompute.model.engine import Demands
from p2pcompute.model.ids import BlobId, PeerId, ProgramId
from p2pcompute.model.job import Outcome
from tests.unit.execution.program_help import encode_arguments, make_program

WAIT_S = 30.0


class SystemClock:
    """This machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class Recorder:
    """Keeps every event, and says in words which order was wrong."""

    def __init__(self) -> None:
        self.ends: dict[tuple[int, int], TaskEnd] = {}
        self.end_count = 0
        self.order: list[int] = []
        self.progress: list[tuple[int, float, str]] = []
        self.output: list[tuple[int, int, bytes]] = []
        self.ready: list[int] = []
        self.gone: dict[int, tuple[list[tuple[int, int]], str, Outcome]] = {}
        self.failed: dict[int, tuple[str, str, str]] = {}
        self.wanted: list[tuple[int, bytes]] = []
        self._changed = asyncio.Event()

    def tasks_ended(self, worker: int, ends: Sequence[TaskEnd]) -> None:
        assert worker not in self.gone, "an end after the end of its worker"
        for end in ends:
            assert (end.task, end.attempt) not in self.ends, f"task {end.task} ended twice"
            self.ends[end.task, end.attempt] = end
            self.order.append(end.task)
        self._changed.set()

    def task_news(
        self, worker: int, progress: Sequence[tuple[int, float, str]], output: Sequence[tuple[int, int, bytes]]
    ) -> None:
        assert worker not in self.gone, "news after the end of its worker"
        for row in (*progress, *output):
            assert row[0] not in self.order, f"news of task {row[0]} after its end"
        self.progress.extend(progress)
        self.output.extend(output)
        self._changed.set()

    def worker_ready(self, worker: int) -> None:
        self.ready.append(worker)
        self._changed.set()

    def worker_gone(self, worker: int, unfinished: Sequence[tuple[int, int]], cause: str, outcome: Outcome) -> None:
        assert worker not in self.gone
        self.gone[worker] = (list(unfinished), cause, outcome)
        self._changed.set()

    def program_failed(self, worker: int, reason: str, module: str, text: str) -> None:
        self.failed[worker] = (reason, module, text)
        self._changed.set()

    def blob_wanted(self, worker: int, blob: BlobId, size_bytes: int) -> None:
        assert worker not in self.gone
        self.wanted.append((worker, blob))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def outcome(self, task: int) -> Outcome:
        return self.ends[task, 0].outcome

    def printed(self, task: int, stream: int) -> bytes:
        return b"".join(data for number, channel, data in self.output if number == task and channel == stream)


class Bench:
    """A running pool, its recorder, and short words for what the tests do with it."""

    def __init__(self, pool: WorkerPool, recorder: Recorder) -> None:
        self.pool = pool
        self.seen = recorder
        self._entries: dict[int, list[str]] = {}

    def spawn(
        self, source: str, memory_bytes: int | None = None, *, grants: tuple[str, ...] = (), submitter: int = 0
    ) -> int:
        data, entries = make_program(source)
        key = ProgramKey(PeerId(bytes([submitter]) * 32), ProgramId(bytes(32)))
        worker = self.pool.spawn(key, data, memory_bytes, ProgramHead(demands=Demands(grants=grants)))
        self._entries[worker] = entries
        return worker

    def task(self, worker: int, number: int, entry: str, *args: Any, timeout_s: float | None = None) -> TaskRun:
        return TaskRun(number, 0, self._entries[worker].index(entry), encode_arguments(args), timeout_s)

    async def call(self, worker: int, number: int, entry: str, *args: Any, timeout_s: float | None = None) -> TaskEnd:
        self.pool.run(worker, [self.task(worker, number, entry, *args, timeout_s=timeout_s)])
        await self.ended(number)
        return self.seen.ends[number, 0]

    async def ended(self, *numbers: int) -> None:
        await self.seen.until(lambda: all((number, 0) in self.seen.ends for number in numbers))

    async def gone(self, worker: int) -> tuple[list[tuple[int, int]], str, Outcome]:
        await self.seen.until(lambda: worker in self.seen.gone)
        return self.seen.gone[worker]

    async def running(self, worker: int, number: int) -> None:
        await eventually(lambda: self.pool.workers[worker].running == (number, 0))

    def pid(self, worker: int) -> int:
        pid = self.pool.workers[worker].pid
        assert pid is not None
        return pid


@asynccontextmanager
async def bench(**settings: Any) -> AsyncIterator[Bench]:
    recorder = Recorder()
    pool = WorkerPool(recorder, SystemClock(), PoolSettings(**settings))
    await pool.start()
    try:
        yield Bench(pool, recorder)
    finally:
        await pool.stop()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.002)


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    return Path(path).exists()


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
