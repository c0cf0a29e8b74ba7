"""Containers at a peer: whether an engine answers, whether it is offered, and the pool that uses it.

It is asked once, at the start, bounded; a peer without one starts as well. Where it answers but cannot hold containers as they must be held, it is
not offered, and the log says what it lacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psutil
from structlog.typing import FilteringBoundLogger

from p2pcompute.execution.container.engine import GPU_ADVICE, ContainerEngine, EngineInfo, engine_sockets
from p2pcompute.execution.container.holding import Allowance
from p2pcompute.execution.container.pool import ContainerPool, ContainerSettings
from p2pcompute.execution.pool_types import PoolEvents
from p2pcompute.execution.sandbox.grants import GrantedFolder
from p2pcompute.execution.workshop import Workshop
from p2pcompute.model import limits
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import ResourceError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.seams import Clock
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.supervise import Supervisor

__all__ = ["GPU_ADVICE", "Containers", "find_engine", "instance_label"]


class Containers:
    """See the file's docstring. `look` makes one; `close` it."""

    def __init__(self, config: PeerConfig, engine: ContainerEngine | None, problem: str) -> None:
        self._config = config
        self._engine = engine
        #: Why containers are not offered, in words; empty where they are.
        self.problem = problem

    @classmethod
    async def look(cls, config: PeerConfig, environ: Mapping[str, str], log: FilteringBoundLogger) -> Self:
        """Ask for an engine, where the owner wants containers at all."""
        if config.slots == 0 or (config.engines and Engine.CONTAINER not in config.engines):
            return cls(config, None, "the owner does not offer containers")
        engine, problem = await find_engine(config, environ)
        if problem and Engine.CONTAINER in config.engines:
            log.warning("containers are not offered", cause=problem)
        return cls(config, engine, problem)

    @property
    def info(self) -> EngineInfo | None:
        """The engine that is used."""
        return None if self._engine is None else self._engine.info

    def engines(self, *, is_open: bool) -> tuple[Engine, ...]:
        """What works here. `is_open`: in a network where anybody may submit, only where the owner names it."""
        if self._engine is None or (is_open and Engine.CONTAINER not in self._config.engines):
            return ()
        return (Engine.CONTAINER,)

    def add_to(
        self,
        workshop: Workshop,
        events: PoolEvents,
        clock: Clock,
        folder: Path,
        peer: PeerId,
        supervisor: Supervisor,
    ) -> None:
        """Give `workshop` a pool of containers. `folder`: of the instance, by which what a killed peer left is known again."""
        if self._engine is None:
            return
        memory_bytes = self._config.memory_bytes or int(psutil.virtual_memory().total * limits.WORKER_MEMORY_SHARE)
        settings = ContainerSettings(
            instance=instance_label(peer, folder),
            allowance=Allowance(memory_bytes),
            folder=folder / "containers",
            pull=self._config.pull_images,
            folders=tuple(GrantedFolder(each.name, each.path, each.writable) for each in self._config.folders),
        )
        pool = ContainerPool(events, clock, self._engine, settings, supervisor.task, workshop.numbers)
        workshop.add(pool, (Engine.CONTAINER,))

    async def close(self) -> None:
        """Hang up."""
        if self._engine is not None:
            await self._engine.close()


def instance_label(peer: PeerId, folder: Path) -> str:
    """Whose containers they are: the same at every start of this instance, and no other's on any machine that the engine serves."""
    return hashlib.sha256(bytes(peer) + str(folder).encode()).hexdigest()[:32]


async def find_engine(config: PeerConfig, environ: Mapping[str, str]) -> tuple[ContainerEngine | None, str]:
    """(the engine, "") where one answers that can hold containers, else (None, why not and what to do)."""
    try:
        engine = await ContainerEngine.connect(engine_sockets(environ, config.container_socket))
    except ResourceError as error:
        return None, str(error)
    if engine.info.lacks:
        await engine.close()
        return None, f"{engine.info.text} answers at {engine.socket}, but {'; '.join(engine.info.lacks)}"
    return engine, ""
