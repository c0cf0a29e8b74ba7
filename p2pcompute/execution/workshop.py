"""All that can run tasks at this peer: one pool for every kind of worker, each engine's programs to its own.

To its user it is one pool. Numbers of workers are drawn from one counter, so that pools never give the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

from p2pcompute.execution.engines.document import PLAIN, ProgramHead
from p2pcompute.execution.pool_types import Pool, ProgramKey, TaskRun, WorkerInfo
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import ResourceError, UsageError
from p2pcompute.model.ids import BlobId


class Workshop:
    """See the file's docstring; it implements `Pool`."""

    def __init__(self) -> None:
        #: For the pools that are added: what workers are called.
        self.numbers: Iterator[int] = itertools.count(1)
        #: Each pool once, in the order in which they are started.
        self._pools: list[Pool] = []
        self._of_engine: dict[Engine, Pool] = {}
        #: Whose worker each number is; those that are gone are dropped at the next spawn.
        self._of_worker: dict[int, Pool] = {}

    def add(self, pool: Pool, engines: Collection[Engine]) -> None:
        """`pool` runs the programs of `engines` from now on; before `start`."""
        self._pools.append(pool)
        self._of_engine.update(dict.fromkeys(engines, pool))

    @property
    def engines(self) -> tuple[Engine, ...]:
        """What can be run here, in the order of the enumeration."""
        return tuple(engine for engine in Engine if engine in self._of_engine)

    @property
    def workers(self) -> Mapping[int, WorkerInfo]:
        """See Pool."""
        return {number: info for pool in self._pools for number, info in pool.workers.items()}

    async def start(self) -> None:
        """See Pool."""
        for pool in self._pools:
            await pool.start()

    async def stop(self) -> None:
        """See Pool."""
        for pool in reversed(self._pools):
            await pool.stop()

    def spawn(self, key: ProgramKey, program: bytes, memory_bytes: int | None = None, head: ProgramHead = PLAIN) -> int:
        """See Pool."""
        pool = self._of_engine.get(head.engine)
        if pool is None:
            raise ResourceError(f"this peer has no engine {head.engine}")
        number = pool.spawn(key, program, memory_bytes, head)
        alive = self.workers
        self._of_worker = {each: of for each, of in self._of_worker.items() if each in alive}
        self._of_worker[number] = pool
        return number

    def run(self, worker: int, batch: Sequence[TaskRun]) -> None:
        """See Pool."""
        pool = self._of_worker.get(worker)
        if pool is None:
            raise UsageError(f"worker {worker} is gone")
        pool.run(worker, batch)

    def cancel(self, worker: int, tasks: Collection[tuple[int, int]]) -> None:
        """See Pool."""
        if worker in self._of_worker:
            self._of_worker[worker].cancel(worker, tasks)

    def retire(self, worker: int) -> None:
        """See Pool."""
        if worker in self._of_worker:
            self._of_worker[worker].retire(worker)

    def supply(self, worker: int, blob: BlobId, data: bytes | bytearray | memoryview | None) -> None:
        """See Pool."""
        if worker in self._of_worker:
            self._of_worker[worker].supply(worker, blob, data)
