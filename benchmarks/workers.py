"""What the worker pool costs: start, round trip, no-ops a second, beside `concurrent.futures.ProcessPoolExecutor` in the same run.

    python -m benchmarks workers

Machines drift by a factor of two: only ratios from one run mean anything.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import psutil

from p2pcompute.execution import values
from p2pcompute.execution.bundle import make_program
from p2pcompute.execution.pool import PoolSettings, ProgramKey, TaskEnd, TaskRun, WorkerPool
from p2pcompute.execution.probes import sandbox_report
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.peer import Isolation

ROUND_TRIPS = 2_000
NO_OPS = 50_000
BATCH = 250
LARGE_BYTES = 64 << 20
#: Until what the pool keeps ready is ready again.
SETTLE_S = 1.0


def same(value: int) -> int:
    """A no-op."""
    return value


def size(data: bytes) -> int:
    """Takes much, gives little."""
    return len(data)


def sized(count: int) -> bytes:
    """Takes little, gives much."""
    return bytes(count)


class Counter:
    """Counts ends and wakes who waits for the last."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted = 0
        self._done: asyncio.Future[None] | None = None

    def tasks_ended(self, worker: int, ends: Sequence[TaskEnd]) -> None:
        assert all(end.outcome is Outcome.RETURNED for end in ends)
        self.count += len(ends)
        if self._done is not None and self.count >= self._wanted and not self._done.done():
            self._done.set_result(None)

    def task_news(self, *_: object) -> None:
        """Nothing is printed."""

    def worker_ready(self, worker: int) -> None:
        """Seen by its first result."""

    def worker_gone(self, worker: int, unfinished: object, cause: str, outcome: Outcome) -> None:
        if cause != "the peer stops":
            raise RuntimeError(cause)

    def program_failed(self, worker: int, reason: str, module: str, text: str) -> None:
        raise RuntimeError(text)

    async def reach(self, wanted: int) -> None:
        if self.count < wanted:
            self._wanted, self._done = wanted, asyncio.get_running_loop().create_future()
            await self._done


class Clock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


async def ours(use_template: bool, level: Isolation = Isolation.SANDBOX) -> dict[str, float]:
    """Figures of the pool, seconds and counts a second; workers are held at `level` at most."""
    program = make_program({"same": same, "size": size, "sized": sized})
    data, entries = program.data, program.entries
    arguments = values.encode([[1], {}])
    key = ProgramKey(PeerId(bytes(32)), ProgramId(bytes(32)))
    counter = Counter()
    figures = {}
    pool = WorkerPool(counter, Clock(), PoolSettings(use_template=use_template, isolation_most=level))
    began = time.perf_counter()
    sandbox_report()  # once for a process, a third of a second: not a worker's cost
    began = time.perf_counter()
    await pool.start()
    if pool.isolation is not level:
        print(f"workers are held at the level {pool.isolation} here, not {level}")
    try:
        workers = [pool.spawn(key, data)]
        pool.run(workers[0], [TaskRun(0, 0, entries.index("same"), arguments)])
        await counter.reach(1)
        figures["start to first result, s"] = time.perf_counter() - began
        began = time.perf_counter()
        workers.append(pool.spawn(key, data))
        pool.run(workers[1], [TaskRun(0, 0, entries.index("same"), arguments)])
        await counter.reach(2)
        figures["one more worker, s"] = time.perf_counter() - began
        await asyncio.sleep(SETTLE_S)
        began = time.perf_counter()
        other = pool.spawn(ProgramKey(PeerId(bytes([1]) * 32), ProgramId(bytes(32))), data)
        pool.run(other, [TaskRun(0, 0, entries.index("same"), arguments)])
        await counter.reach(3)
        figures["of another submitter, s"] = time.perf_counter() - began
        figures["memory of a worker, MiB"] = _own_memory_mib(pool.workers[workers[1]].pid)
        trips = []
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            pool.run(workers[0], [TaskRun(0, 0, entries.index("same"), arguments)])
            await counter.reach(counter.count + 1)
            trips.append(time.perf_counter() - began)
        figures.update(_percentiles(trips))
        batch = [TaskRun(number, 0, entries.index("same"), arguments) for number in range(BATCH)]
        before, began = counter.count, time.perf_counter()
        for number in range(NO_OPS // BATCH):
            pool.run(workers[number % 2], batch)
            await asyncio.sleep(0)
        await counter.reach(before + NO_OPS)
        figures["no-ops a second"] = NO_OPS / (time.perf_counter() - began)
        for name, entry, value in (("out", "size", bytes(LARGE_BYTES)), ("back", "sized", LARGE_BYTES)):
            large = values.encode([[value], {}])
            began = time.perf_counter()
            pool.run(workers[0], [TaskRun(0, 0, entries.index(entry), large)])
            await counter.reach(counter.count + 1)
            figures[f"64 MiB {name}, MB/s"] = LARGE_BYTES / 1e6 / (time.perf_counter() - began)
    finally:
        await pool.stop()
    return figures


def _own_memory_mib(pid: int | None) -> float:
    """Memory that is the process's alone, with its part of what it shares, and of its children."""
    assert pid is not None
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(getattr(each.memory_full_info(), "pss", 0) for each in family) / 2**20


def theirs() -> dict[str, float]:
    """The same of the standard library's pool."""
    figures = {}
    began = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        pool.submit(same, 1).result()
        figures["start to first result, s"] = time.perf_counter() - began
        trips = []
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            pool.submit(same, 1).result()
            trips.append(time.perf_counter() - began)
        figures.update(_percentiles(trips))
        began = time.perf_counter()
        for future in [pool.submit(same, number) for number in range(NO_OPS // 10)]:
            future.result()
        figures["no-ops a second"] = NO_OPS / 10 / (time.perf_counter() - began)
        for name, function, value in (("out", size, bytes(LARGE_BYTES)), ("back", sized, LARGE_BYTES)):
            began = time.perf_counter()
            pool.submit(function, value).result()
            figures[f"64 MiB {name}, MB/s"] = LARGE_BYTES / 1e6 / (time.perf_counter() - began)
    return figures


async def floor() -> dict[str, float]:
    """An echo over a bare socket pair from an event loop: what no pool can go below."""
    near, far = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        near.close()
        while data := far.recv(4096):
            far.sendall(data)
        os._exit(0)
    far.close()
    loop = asyncio.get_running_loop()
    near.setblocking(False)
    trips = []
    with near:
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            answer = loop.create_future()
            loop.add_reader(near, lambda answer=answer: answer.set_result(near.recv(4096)))
            near.send(bytes(60))
            await answer
            trips.append(time.perf_counter() - began)
        loop.remove_reader(near)
    os.waitpid(pid, 0)  # noqa: ASYNC222 - it has ended with its socket
    return _percentiles(trips)


def _percentiles(trips: list[float]) -> dict[str, float]:
    trips = sorted(trips)
    return {
        "round trip p50, µs": statistics.median(trips) * 1e6,
        "round trip p99, µs": trips[len(trips) * 99 // 100] * 1e6,
    }


def main() -> None:
    columns = {
        "sandbox": asyncio.run(ours(True)),
        "sandbox, direct": asyncio.run(ours(False)),
        "restricted": asyncio.run(ours(True, Isolation.RESTRICTED)),
        "process": asyncio.run(ours(True, Isolation.PROCESS)),
        "process, direct": asyncio.run(ours(False, Isolation.PROCESS)),
        "ProcessPoolExecutor": theirs(),
        "bare echo": asyncio.run(floor()),
    }
    print(f"{'':28}" + "".join(f"{name:>22}" for name in columns))
    for row in columns["sandbox"]:
        cells = (column.get(row) for column in columns.values())
        print(
            f"{row:28}"
            + "".join(
                f"{'-' if cell is None else format(cell, ',.3g' if cell < 100 else ',.0f'):>22}" for cell in cells
            )
        )


if __name__ == "__main__":
    main()
