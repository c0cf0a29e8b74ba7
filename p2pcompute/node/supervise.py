"""Every task of a peer runs under one supervisor, in one TaskGroup.

A *service* runs for the life of the peer: when it dies it is logged and started again, with a growing pause, without killing
the peer; a service that keeps dying is a bug that stays visible in the log and in `doctor`. A *job task* runs once; what it raises is
logged as a bug, since errors that may happen are its caller's to handle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from structlog.typing import FilteringBoundLogger

PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 30.0
#: How long the clean-up of all tasks may take when the peer stops.
STOP_TIMEOUT_S = 5.0


class Supervisor:
    """Owns the tasks of one peer. `stop` cancels all of them and waits, bounded; both ends may be called from any task."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        #: None before `start`.
        self._group: asyncio.TaskGroup | None = None
        #: Tasks that still run, by sequence, so that they are cancelled in the order in which they were started.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._next = 0
        self._closing = False
        self._root: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        #: Times that each service died, by name.
        self.restarts: dict[str, int] = {}

    async def start(self) -> None:
        """Open the group. A TaskGroup is bound to the task that opens it, so it gets a task of its own: the only bare one."""
        opened = asyncio.Event()
        self._root = asyncio.get_running_loop().create_task(self._hold(opened), name="supervisor")
        await opened.wait()

    async def _hold(self, opened: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            opened.set()
            try:
                await self._stop.wait()
            finally:
                for task in list(self._tasks.values()):
                    task.cancel()

    async def stop(self) -> None:
        """Cancel everything that runs and wait for it."""
        if self._closing or self._root is None:
            return
        self._closing = True
        self._stop.set()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.shield(self._root)
        except TimeoutError:
            self._log.error("tasks did not end in time", tasks=[task.get_name() for task in self._tasks.values()])
            self._root.cancel()

    def service(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run `run()` for the life of the peer; restart it when it raises. A service that returns has done its work."""
        self._start(self._serve(name, run), name)

    def task(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run `work` once; None, and `work` is closed unrun, when the peer is stopping."""
        if self._closing:
            work.close()
            return None
        task = self._start(self._once(name, work), name)
        # One that is cancelled before its first step would leave `work` behind, never awaited.
        task.add_done_callback(lambda _: work.close())
        return task

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self._group is not None, "the supervisor has not been started"
        number = self._next
        self._next += 1
        task = self._group.create_task(work, name=name)
        self._tasks[number] = task
        task.add_done_callback(lambda _: self._tasks.pop(number, None))
        return task

    async def _serve(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                await run()
                return
            except Exception:
                self.restarts[name] = self.restarts.get(name, 0) + 1
                self._log.exception("service died and is started again", service=name, pause_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def _once(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            self._log.exception("task failed: this is a bug", task=name)
