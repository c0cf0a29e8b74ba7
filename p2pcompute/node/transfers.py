"""Data on its way here for jobs: each transfer ends with the work that needs it.

Who waits at the same time for the same data elsewhere in this peer goes on waiting (`net/blobs.py`). Refuses to know what is fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from typing import Any

from p2pcompute.node.supervise import Supervisor


class Transfers:
    """Tasks under `supervisor` by what needs them: `work`, such as a job, and `part`, such as one of its rows."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        #: Those that run, by part, by work; no work is without any.
        self._running: dict[Hashable, dict[Hashable, asyncio.Task[None]]] = {}

    def start(self, work: Hashable, part: Hashable, name: str, fetching: Coroutine[Any, Any, None]) -> None:
        """Run `fetching` for `part` of `work`, in place of what ran for it before; it is closed unrun when the peer is stopping."""
        self.stop(work, part)
        task = self._supervisor.task(name, fetching)
        if task is not None:
            self._running.setdefault(work, {})[part] = task
            task.add_done_callback(lambda done: self._ended(work, part, done))

    def stop(self, work: Hashable, part: Hashable) -> None:
        """`part` of `work` needs nothing any more."""
        task = self._running.get(work, {}).get(part)
        if task is not None:
            self._ended(work, part, task)
            _cancel(task)

    def stop_all(self, work: Hashable) -> None:
        """`work` needs nothing any more; a transfer that says so itself goes on to its own end."""
        for task in self._running.pop(work, {}).values():
            _cancel(task)

    def runs(self, work: Hashable) -> bool:
        """Whether anything is on its way for `work`."""
        return work in self._running

    def _ended(self, work: Hashable, part: Hashable, task: asyncio.Task[None]) -> None:
        parts = self._running.get(work, {})
        if parts.get(part) is task:
            del parts[part]
            if not parts:
                del self._running[work]


def _cancel(task: asyncio.Task[None]) -> None:
    if task is not asyncio.current_task():
        task.cancel()
