"""The row of the engine `command` for the table of engines: worker processes that start an executable for each task."""

from __future__ import annotations

import asyncio
import os
import time

from benchmarks._engine_row import EngineRow, Waiter, clock, family_mib
from p2pcompute.execution import values
from p2pcompute.execution.engines.command_program import pack_command
from p2pcompute.execution.engines.document import head_of
from p2pcompute.execution.pool import PoolSettings, ProgramKey, TaskRun, WorkerPool
from p2pcompute.model.ids import PeerId, ProgramId


async def measure(tasks: int = 300) -> EngineRow:
    """`/bin/true` through one worker: its start, one task at a time, and `tasks` of them in one go."""
    heard = Waiter()
    pool = WorkerPool(heard, clock(), PoolSettings())
    await pool.start()
    try:
        program = pack_command("true", out=())
        key = ProgramKey(PeerId(bytes(32)), ProgramId(bytes(32)))
        head = head_of(program)
        await heard.ready(pool.spawn(key, program, None, head))  # the template is warm after this
        began = time.perf_counter()
        worker = pool.spawn(key, program, None, head)
        await heard.ready(worker)
        start_s = time.perf_counter() - began
        arguments = values.encode([[[], {}, b""], {}])
        round_trip_s = await heard.round_trip(
            lambda number: pool.run(worker, [TaskRun(number, 0, 0, arguments)]), range(50)
        )
        per_second = await heard.rate(
            lambda numbers: pool.run(worker, [TaskRun(number, 0, 0, arguments) for number in numbers]),
            range(1000, 1000 + tasks),
        )
        memory_mib = family_mib(pool.workers[worker].pid or os.getpid())
    finally:
        await pool.stop()
    return EngineRow("command", "/bin/true, one worker", start_s, round_trip_s, per_second, memory_mib)


if __name__ == "__main__":
    print(asyncio.run(measure()))
