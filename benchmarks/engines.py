"""What each engine costs beside a plain process in the same run: start, round trip, no-ops a second, speed of a loop, memory.

    python -m benchmarks engines [--rounds 3] [--image IMAGE] [ROW …]

A row is a `Row`: how its worker is started, what its no-op and its loop are. An engine that does not work here is named with what it lacks. Machines
drift by a factor of two: only ratios from one run mean anything; each figure is the median of the rounds, which take turns.

Executables, clusters and containers have tasks of another kind, so rows of their own come after the table: `/bin/true`, a no-op in an executor and at Dask, and with
`--image` a container of that image, which a container engine of this machine has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks._engine_tasks import loop, same
from benchmarks.workers import Clock, Counter
from p2pcompute.execution import values
from p2pcompute.execution.bundle import make_program
from p2pcompute.execution.engines.document import ProgramHead, head_of
from p2pcompute.execution.pool import PoolSettings, ProgramKey, TaskRun, WorkerPool
from p2pcompute.execution.pool_types import Pool
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.peer import Isolation
from p2pcompute.node.folders import Folders
from p2pcompute.node.wasm_engines import WasmEngines

ROUND_TRIPS = 300
NO_OPS = 5_000
BATCH = 250
#: Turns of the loop.
LOOP = 1_000_000
_MODULE = """
(module
  (func (export "same") (param i32) (result i32) local.get 0)
  (func (export "loop") (param i32) (result i64) (local $sum i64) (local $i i64)
    (loop
      (local.set $sum (i64.add (local.get $sum) (i64.rem_u (i64.mul (local.get $i) (local.get $i)) (i64.const 7))))
      (local.set $i (i64.add (local.get $i) (i64.const 1)))
      (br_if 0 (i64.lt_u (local.get $i) (i64.extend_i32_u (local.get 0)))))
    local.get $sum))
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One engine. `pool`: what runs it, to be started; `programs`: the no-op's and the loop's, each with one entry that takes a number."""

    name: str
    pool: Callable[[Counter], Pool]
    programs: Callable[[], tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one round. `memory_bytes`: resident, of the processes that a worker added, what they share with others counted in full."""

    first_s: float
    next_s: float
    trip_s: float
    per_second: float
    loop_s: float
    memory_bytes: float


def _source(engine: Engine) -> tuple[bytes, bytes]:
    return make_program({"same": same}, engine).data, make_program({"loop": loop}, engine).data


def _modules() -> tuple[bytes, bytes]:
    from p2pcompute.execution.engines.wasm_program import Convention, make_wasm_program

    made = [make_wasm_program(_MODULE, {name: Convention.NUMBERS})[0].data for name in ("same", "loop")]
    return made[0], made[1]


def rows(wasm_python: Path | None) -> list[Row]:
    """Every engine that a worker pool runs; other pools are rows with a pool of their own."""

    def processes(most: Isolation) -> Callable[[Counter], Pool]:
        settings = PoolSettings(isolation_most=most, isolation=most, wasm_python=wasm_python)
        return lambda events: WorkerPool(events, Clock(), settings)

    plain, held = processes(Isolation.PROCESS), processes(Isolation.SANDBOX)
    return [
        Row("process", plain, lambda: _source(Engine.PYTHON)),
        Row("sandboxed process", held, lambda: _source(Engine.PYTHON)),
        Row("wasm", plain, _modules),
        Row("wasm, sandboxed", held, _modules),
        Row("wasm-python", plain, lambda: _source(Engine.WASM_PYTHON)),
        Row("wasm-python, sandboxed", held, lambda: _source(Engine.WASM_PYTHON)),
    ]


async def measured(row: Row) -> Figures:
    """One round of one row. Raises P2PComputeError, RuntimeError where the engine does not work here."""
    no_op, looped = row.programs()
    counter = Counter()
    pool = row.pool(counter)
    await pool.start()
    try:
        numbers = itertools.count(1)
        first_s, worker = await _started(pool, counter, no_op, next(numbers))
        before = _resident()
        next_s, _ = await _started(pool, counter, no_op, next(numbers))
        memory_bytes = _resident() - before
        argument = values.encode([[1], {}])
        trips = []
        for _ in range(ROUND_TRIPS):
            async with _timed(trips):
                pool.run(worker, [TaskRun(0, 0, 0, argument)])
                await counter.reach(counter.count + 1)
        took: list[float] = []
        wanted = counter.count + NO_OPS
        async with _timed(took):
            for _ in range(NO_OPS // BATCH):
                pool.run(worker, [TaskRun(number, 0, 0, argument) for number in range(BATCH)])
            await counter.reach(wanted)
        _, worker = await _started(pool, counter, looped, next(numbers))
        turned: list[float] = []
        async with _timed(turned):
            pool.run(worker, [TaskRun(0, 0, 0, values.encode([[LOOP], {}]))])
            await counter.reach(counter.count + 1)
        return Figures(first_s, next_s, statistics.median(trips), NO_OPS / took[0], turned[0], memory_bytes)
    finally:
        await pool.stop()


async def _started(pool: Pool, counter: Counter, program: bytes, number: int) -> tuple[float, int]:
    """Seconds until a new worker has run its first task, and its number. Every program is another submitter's."""
    key = ProgramKey(PeerId(number.to_bytes(32, "big")), ProgramId(bytes(32)))
    head: ProgramHead = head_of(program)
    took: list[float] = []
    async with _timed(took):
        worker = pool.spawn(key, program, head=head)
        pool.run(worker, [TaskRun(0, 0, 0, values.encode([[1], {}]))])
        await counter.reach(counter.count + 1)
    return took[0], worker


@contextlib.asynccontextmanager
async def _timed(into: list[float]) -> AsyncIterator[None]:
    began = time.perf_counter()
    yield
    into.append(time.perf_counter() - began)


def _resident() -> float:
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


async def _others(image: str | None) -> AsyncIterator[str]:
    """Rows of engines whose tasks are of another kind."""
    from benchmarks import _engine_cluster, _engine_command, _engine_container

    yield str(await _engine_command.measure())
    for row in await _engine_cluster.measure():
        yield str(row)
    if image is not None:
        yield _engine_container.shown(await _engine_container.figures(image))


async def _print_others(image: str | None) -> None:
    async for line in _others(image):
        print(line, flush=True)


def main(options: list[str] | None = None) -> None:
    """Measure, and print a table and ratios to the plain process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks engines")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", help="measure containers of this image, too")
    parser.add_argument("rows", nargs="*", help="names of rows (all)")
    given = parser.parse_args(options or [])
    engines = WasmEngines.look(Folders.locate(os.environ))
    if engines.place is not None and not engines.python_is_ready:
        asyncio.run(engines.prepare(print))
    wanted = [row for row in rows(engines.place) if not given.rows or row.name in given.rows]
    found: dict[str, list[Figures]] = {}
    for _ in range(given.rounds):
        for row in wanted:
            try:
                found.setdefault(row.name, []).append(asyncio.run(measured(row)))
            except (P2PComputeError, RuntimeError, AssertionError) as error:
                print(f"{row.name}: does not work here: {error}")
    columns = ("first task", "next worker", "round trip", "no-ops/s", "loop", "memory")
    print(f"{'':24}" + "".join(f"{name:>13}" for name in columns))
    base = _median(found["process"]) if found.get("process") else None
    for name, figures in found.items():
        if not figures:
            continue
        each = _median(figures)
        shown = (
            f"{each.first_s * 1e3:.0f} ms", f"{each.next_s * 1e3:.0f} ms", f"{each.trip_s * 1e6:.0f} µs", f"{each.per_second:,.0f}",
            f"{each.loop_s * 1e3:.1f} ms", f"{each.memory_bytes / 1e6:.0f} MB",
        )  # fmt: skip
        print(f"{name:24}" + "".join(f"{text:>13}" for text in shown))
        if base is not None and name != "process":
            ratios = (
                each.first_s / base.first_s, each.next_s / base.next_s, each.trip_s / base.trip_s, each.per_second / base.per_second,
                each.loop_s / base.loop_s, each.memory_bytes / max(base.memory_bytes, 1),
            )  # fmt: skip
            print(f"{'  as a part of process':24}" + "".join(f"{ratio:>13.2f}" for ratio in ratios))
    if not given.rows:
        print()
        asyncio.run(_print_others(given.image))


def _median(figures: list[Figures]) -> Figures:
    return Figures(
        *(statistics.median(getattr(each, name) for each in figures) for name in Figures.__slots__)  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    main()
