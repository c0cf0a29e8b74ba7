"""What a container costs beside a plain process: start, round trip, no-ops a second, memory. For the table of engines, and alone:

    DOCKER_HOST=unix:///run/docker.sock python -m benchmarks._engine_container IMAGE

IMAGE is one that the engine has, with `/bin/true` and `/bin/cat`. Every task is a fresh container, so a round trip is one, and parallel workers pay only as
far as the engine starts containers side by side.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workers import Counter
from p2pcompute.execution.container.engine import ContainerEngine, engine_sockets
from p2pcompute.execution.container.holding import Allowance
from p2pcompute.execution.container.pool import ContainerPool, ContainerSettings
from p2pcompute.execution.container.program import ContainerProgram, ContainerTask, pack_container_program
from p2pcompute.execution.engines.document import head_of
from p2pcompute.execution.pool_types import ProgramKey, TaskRun
from p2pcompute.execution.values import encode
from p2pcompute.model.engine import Engine
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.node.logs import get_log
from p2pcompute.node.supervise import Supervisor

ROUND_TRIPS = 10
NO_OPS = 24
FILE_BYTES = 16 << 20


class _Clock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


@dataclass(frozen=True, slots=True)
class ContainerFigures:
    """Of one run. `per_second`: no-ops with as many workers at a time; `file_s`: a task with `FILE_BYTES` in and out; `memory_bytes`: of the
    engine's shim and the container's process, resident."""

    engine: str
    first_s: float
    next_s: float
    trip_s: float
    per_second: dict[int, float]
    file_s: float
    memory_bytes: float


async def figures(image: str, sockets: Sequence[Path] | None = None) -> ContainerFigures:
    """Measure. Raises ResourceError where no engine answers."""
    engine = await ContainerEngine.connect(engine_sockets(os.environ) if sockets is None else sockets)
    counter, supervisor = Counter(), Supervisor(get_log("benchmark"))
    await supervisor.start()
    with tempfile.TemporaryDirectory() as folder:
        settings = ContainerSettings("benchmark", Allowance(256 << 20), Path(folder) / "tasks", cleanup_delay_s=0.0)
        pool = ContainerPool(counter, _Clock(), engine, settings, supervisor.task)
        try:
            await pool.start()
            return await _measured(pool, counter, image, engine.info.text)
        finally:
            await pool.stop()
            await supervisor.stop()
            await engine.close()


async def _measured(pool: ContainerPool, counter: Counter, image: str, engine: str) -> ContainerFigures:
    numbers = itertools.count(1)

    def spawn(*command: str) -> int:
        program = pack_container_program(ContainerProgram(1, Engine.CONTAINER, image, command))
        key = ProgramKey(PeerId(next(numbers).to_bytes(32, "big")), ProgramId(bytes(32)))
        return pool.spawn(key, program, head=head_of(program))

    async def run(worker: int, task: ContainerTask = _NO_OP, count: int = 1) -> float:
        began = time.perf_counter()
        pool.run(worker, [TaskRun(number, 0, 0, encode(task.plain())) for number in range(count)])
        await counter.reach(counter.count + count)
        return time.perf_counter() - began

    began = time.perf_counter()
    worker = spawn("/bin/true")
    await run(worker)
    first_s = time.perf_counter() - began
    began = time.perf_counter()
    await run(spawn("/bin/true"))
    next_s = time.perf_counter() - began
    trips = [await run(worker) for _ in range(ROUND_TRIPS)]
    per_second = {}
    for count in (1, 2, 4):
        workers = [spawn("/bin/true") for _ in range(count)]
        wanted, began = counter.count + NO_OPS, time.perf_counter()
        for each in workers:
            pool.run(each, [TaskRun(number, 0, 0, encode(_NO_OP.plain())) for number in range(NO_OPS // count)])
        await counter.reach(wanted)
        per_second[count] = NO_OPS / (time.perf_counter() - began)
    copier = spawn("/bin/sh", "-c", "cat in > out/copy")
    file_s = await run(copier, ContainerTask(files=(("in", bytes(FILE_BYTES)),)))
    before = _resident()
    sleeper = spawn("/bin/sh", "-c", "echo up; exec sleep 60")
    pool.run(sleeper, [TaskRun(0, 0, 0, encode(_NO_OP.plain()))])
    await asyncio.sleep(3.0)
    memory_bytes = _resident() - before
    pool.cancel(sleeper, [(0, 0)])
    return ContainerFigures(engine, first_s, next_s, statistics.median(trips), per_second, file_s, memory_bytes)


_NO_OP = ContainerTask()


def _resident() -> float:
    """Of what the engine adds for a container: its shim, and what runs in it."""
    import psutil

    total = 0.0
    for process in psutil.process_iter(["name", "memory_info"]):
        if process.info["memory_info"] and any(word in process.info["name"] for word in ("shim", "conmon", "sleep")):
            total += process.info["memory_info"].rss
    return total


def main(options: list[str] | None = None) -> None:
    """Measure and print."""
    given = sys.argv[1:] if options is None else options
    if len(given) != 1:
        sys.exit("name an image that the engine has")
    print(shown(asyncio.run(figures(given[0]))))


def shown(found: ContainerFigures) -> str:
    """Figures in words."""
    rates = ", ".join(f"{rate:.1f}/s with {count}" for count, rate in found.per_second.items())
    return (
        f"{found.engine}: first task {found.first_s * 1e3:.0f} ms, next worker {found.next_s * 1e3:.0f} ms, round trip {found.trip_s * 1e3:.0f} ms; "
        f"no-ops {rates} workers; {FILE_BYTES >> 20} MiB in and out {found.file_s * 1e3:.0f} ms; memory {found.memory_bytes / 2**20:.1f} MiB a container"
    )


if __name__ == "__main__":
    main()
