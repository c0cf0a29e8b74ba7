"""A pool of containers over a real engine, with recording events."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.execution.container.engine import ContainerEngine
from p2pcompute.execution.container.holding import Allowance
from p2pcompute.execution.container.pool import ContainerPool, ContainerSettings
from p2pcompute.execution.container.program import ContainerProgram, ContainerTask, pack_container_program
from p2pcompute.execution.pool_types import ProgramKey, TaskEnd, TaskRun
from p2pcompute.execution.task_result import TaskResult
from p2pcompute.execution.values import ClassResolver, Failure, decode, decode_failure, encode
from p2pcompute.model.engine import Engine
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.node.logs import get_log
from p2pcompute.node.supervise import Supervisor
from tests.support.dockerd import BUSYBOX
from tests.unit.execution.pool_help import Recorder, SystemClock


class Bench:
    """A running pool, its recorder, and short words for what the tests do with it."""

    def __init__(self, pool: ContainerPool, engine: ContainerEngine, seen: Recorder, folder: Path) -> None:
        self.pool = pool
        self.engine = engine
        self.seen = seen
        self.folder = folder
        self._next = 0

    def spawn(self, image: str = BUSYBOX, *command: str, memory_bytes: int | None = None, **fields: Any) -> int:
        program = ContainerProgram(1, Engine.CONTAINER, image, command, **fields)
        return self.spawn_packed(pack_container_program(program), memory_bytes)

    def spawn_packed(self, data: bytes, memory_bytes: int | None = None) -> int:
        return self.pool.spawn(ProgramKey(PeerId(bytes(32)), ProgramId(bytes(32))), data, memory_bytes)

    def give(self, worker: int, *arguments: str, timeout_s: float | None = None, **named: Any) -> int:
        number, self._next = self._next, self._next + 1
        given = {name: tuple(value.items()) if isinstance(value, dict) else value for name, value in named.items()}
        task = ContainerTask(arguments, **given)
        self.pool.run(worker, [TaskRun(number, 0, 0, encode(task.plain()), timeout_s)])
        return number

    async def end(self, number: int) -> TaskEnd:
        await self.seen.until(lambda: (number, 0) in self.seen.ends)
        return self.seen.ends[number, 0]

    async def result(self, worker: int, *arguments: str, timeout_s: float | None = None, **named: Any) -> TaskResult:
        end = await self.end(self.give(worker, *arguments, timeout_s=timeout_s, **named))
        assert end.outcome is Outcome.RETURNED, (end.outcome, end.payload)
        return TaskResult.from_plain(decode(end.payload))

    async def failure(self, worker: int, *arguments: str, **named: Any) -> Failure:
        end = await self.end(self.give(worker, *arguments, **named))
        assert end.outcome is Outcome.RAISED, (end.outcome, end.payload)
        return decode_failure(end.payload, classes=ClassResolver({}))

    async def shell(self, script: str, **fields: Any) -> TaskResult:
        """What a script of busybox's shell answers, in a worker of its own."""
        return await self.result(self.spawn(BUSYBOX, "/bin/sh", "-c", script, **fields))


MakeBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def containers(engine_socket: Path, tmp_path: Path) -> MakeBench:
    """`async with containers(**settings) as bench`."""

    @asynccontextmanager
    async def made(*, instance: str = "", socket: Path | None = None, **changes: Any) -> AsyncIterator[Bench]:
        engine = await ContainerEngine.connect([socket or engine_socket])
        settings = ContainerSettings(
            instance=instance or tmp_path.name,
            allowance=Allowance(256 << 20),
            folder=tmp_path / "containers",
            cleanup_delay_s=0.0,
        )
        seen = Recorder()
        supervisor = Supervisor(get_log("test"))
        await supervisor.start()
        pool = ContainerPool(seen, SystemClock(), engine, replace(settings, **changes), supervisor.task)
        try:
            await pool.start()
            yield Bench(pool, engine, seen, tmp_path / "containers")
        finally:
            await pool.stop()
            await engine.close()
            await supervisor.stop()

    return made


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests of this folder are coroutines, each in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
