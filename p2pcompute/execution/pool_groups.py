"""A control group for each worker of a pool, where the system lets us make them: memory, threads and cores held by the kernel itself.

Groups are made and left in threads, for the kernel may take milliseconds. A worker whose group cannot be made is watched like all others
(`pool.py`), and held by its own limits. Refuses to know: tasks.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from p2pcompute.execution import process_tree
from p2pcompute.execution.sandbox.cgroups import Cgroups, Group, GroupLimits
from p2pcompute.model import limits

#: A group can be removed when its last process is reaped: how often to look, and how often at most.
REMOVE_PAUSE_S = 0.05
REMOVE_TRIES = 40
#: Beyond the threads of its libraries a worker has one that reports, and the collector of what libraries leave behind.
_CORES_EXTRA = 0.5


class WorkerGroups:
    """See the file's docstring. `chore`: runs a function in a thread."""

    def __init__(
        self,
        cgroups: Cgroups | None,
        threads_per_worker: int,
        loop: asyncio.AbstractEventLoop,
        chore: Callable[[Callable[[], Any]], asyncio.Future[Any]],
    ) -> None:
        self._cgroups = cgroups if cgroups is not None and cgroups.kind else None
        self._cores = threads_per_worker + _CORES_EXTRA
        self._loop = loop
        self._chore = chore
        self._name = f"p2pcompute-{os.getpid()}-{secrets.token_hex(3)}"
        self._groups: dict[int, Group] = {}
        #: Workers whose groups are being made, and those of them that are gone already.
        self._entering: set[int] = set()
        self._left: set[int] = set()
        self._removing: list[Group] = []

    @property
    def active(self) -> bool:
        """Whether groups can be made here."""
        return self._cgroups is not None

    def enter(self, number: int, pid: int, memory_bytes: int | None, entered: Callable[[], None]) -> None:
        """Put the process of worker `number`, and all that it has started, into a group of its own; then call `entered`."""
        cgroups = self._cgroups
        if cgroups is None:
            entered()
            return
        held = GroupLimits(memory_bytes, limits.WORKER_THREADS_MAX, self._cores)

        def make() -> Group | None:
            group = cgroups.make(f"{self._name}-{number}", held)
            if group is not None:
                for member in process_tree.family_of(pid):
                    group.add(member)
            return group

        def keep(done: asyncio.Future[Group | None]) -> None:
            group, gone = done.result(), number in self._left
            self._entering.discard(number)
            self._left.discard(number)
            if group is not None and gone:
                self._remove(group, REMOVE_TRIES)
            elif group is not None:
                self._groups[number] = group
            entered()

        self._entering.add(number)
        self._chore(make).add_done_callback(keep)

    def of(self, numbers: Sequence[int]) -> dict[int, Group]:
        """The groups of these workers, where they have one."""
        return {number: self._groups[number] for number in numbers if number in self._groups}

    def leave(self, number: int) -> bool:
        """Worker `number` is gone; whether the kernel has killed in its group for want of memory."""
        group = self._groups.pop(number, None)
        if group is None:
            if number in self._entering:
                self._left.add(number)
            return False
        starved = group.was_out_of_memory()
        self._remove(group, REMOVE_TRIES)
        return starved

    async def stop(self) -> None:
        """Remove what is left; every worker has ended."""
        for group in [*self._groups.values(), *self._removing]:
            for _ in range(REMOVE_TRIES):
                if group.remove():
                    break
                await asyncio.sleep(REMOVE_PAUSE_S)
        self._groups.clear()
        self._removing.clear()

    def _remove(self, group: Group, tries: int) -> None:
        if group in self._removing:
            self._removing.remove(group)
        if group.remove() or tries == 0:
            return
        self._removing.append(group)
        self._loop.call_later(REMOVE_PAUSE_S, self._remove_again, group, tries - 1)

    def _remove_again(self, group: Group, tries: int) -> None:
        if group in self._removing:
            self._remove(group, tries)
