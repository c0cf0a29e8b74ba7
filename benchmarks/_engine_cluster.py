"""The rows of clusters for the table of engines: an executor's processes, and Dask with two worker processes on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

from benchmarks._engine_row import EngineRow, Waiter, clock, family_mib
from p2pcompute.execution import values
from p2pcompute.execution.bundle import make_program
from p2pcompute.execution.cluster.clusters import ExecutorCluster, Opener, opener_of
from p2pcompute.execution.cluster.pool import ClusterPool, ClusterState
from p2pcompute.execution.pool_types import ProgramKey, TaskRun
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.node.seams import SystemEntropy


async def measure_executor(tasks: int = 4_000) -> EngineRow:
    """Two processes of a ProcessPoolExecutor."""
    made: list[ProcessPoolExecutor] = []

    def opener() -> ExecutorCluster:
        made.append(ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")))
        executor: Executor = made[0]
        return ExecutorCluster(executor)

    return await _measure(opener, "ProcessPoolExecutor, 2 processes", tasks, lambda: [*made[0]._processes])


async def measure_dask(tasks: int = 4_000) -> EngineRow | None:
    """Dask's scheduler and two workers of one thread; None where Dask is not installed."""
    with contextlib.ExitStack() as stack:
        try:
            import distributed
        except ImportError:
            return None
        address, pids = stack.enter_context(_dask())
        what = f"Dask {distributed.__version__}, 2 workers"
        return await _measure(opener_of(f"dask://{address}"), what, tasks, lambda: pids)


async def _measure(opener: Opener, what: str, tasks: int, pids: object) -> EngineRow:
    heard = Waiter()
    grown = asyncio.Event()

    def on_state(state: ClusterState) -> None:
        if state.slots >= 2:
            grown.set()

    pool = ClusterPool(heard, clock(), SystemEntropy(), opener, on_state)
    await pool.start()
    try:
        await asyncio.wait_for(grown.wait(), 60)
        program = make_program({"run": abs})
        key = ProgramKey(PeerId(bytes(32)), ProgramId(program.id))
        began = time.perf_counter()
        worker = pool.spawn(key, program.data)
        await heard.ready(worker)
        start_s = time.perf_counter() - began
        arguments = values.encode([[-7], {}])

        def run(numbers: object) -> None:
            given = list(numbers)  # type: ignore[call-overload]
            for start in range(0, len(given), limits.BATCH_TASKS_MAX):
                batch = given[start : start + limits.BATCH_TASKS_MAX]
                pool.run(worker, [TaskRun(number, 0, 0, arguments) for number in batch])

        await heard.round_trip(lambda number: run([number]), range(5))  # both processes have the program after this
        round_trip_s = await heard.round_trip(lambda number: run([number]), range(10, 60))
        per_second = await heard.rate(run, range(1000, 1000 + tasks))
        memory_mib = max(family_mib(pid) for pid in pids())  # type: ignore[operator]
    finally:
        await pool.stop()
    return EngineRow("cluster", what, start_s, round_trip_s, per_second, memory_mib)


@contextlib.contextmanager
def _dask() -> Iterator[tuple[str, list[int]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error",
    }
    programs = [
        ["dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"],
        *[["dask_worker", f"tcp://127.0.0.1:{port}", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]] * 2,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{program}", *arguments],
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for program, *arguments in programs
        ]
        try:
            yield f"127.0.0.1:{port}", [process.pid for process in processes[1:]]
        finally:
            for process in processes:
                process.kill()
                process.wait()


async def measure() -> list[EngineRow]:
    """Both rows, as far as what they need is installed."""
    rows = [await measure_executor(), await measure_dask()]
    return [row for row in rows if row is not None]


if __name__ == "__main__":
    for found in asyncio.run(measure()):
        print(found)
