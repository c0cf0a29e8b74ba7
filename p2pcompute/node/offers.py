"""What a peer offers to those whose tasks it runs: engines, isolation, grants; and what runs them.

Its record says the same, so submitters rarely come in vain; what a program demands is looked at here again, since a record is only words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.execution.engines.document import ProgramHead
from p2pcompute.execution.loader import missing_requirements
from p2pcompute.execution.pool import PoolEvents, PoolSettings, WorkerPool
from p2pcompute.execution.probes import isolation
from p2pcompute.execution.program import Requirement
from p2pcompute.execution.workshop import Workshop
from p2pcompute.model.engine import Engine, grants_of, is_granted
from p2pcompute.model.peer import Isolation
from p2pcompute.model.seams import Clock
from p2pcompute.node.config import PeerConfig


@dataclass(frozen=True, slots=True)
class Lacking:
    """What a program demands and this peer has not. `reason`: as in JobRefuse."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Offers:
    """What a peer offers. `isolation`: of Python tasks, at least."""

    isolation: Isolation = Isolation.PROCESS
    engines: tuple[Engine, ...] = (Engine.PYTHON,)
    grants: tuple[str, ...] = ()

    def lack(self, program: ProgramHead) -> Lacking | None:
        """The first thing that `program` demands and this peer does not offer; None where it may run."""
        if program.engine not in self.engines:
            has = ", ".join(self.engines) or "none"
            return Lacking("engine", f"the program is for the engine {program.engine}, this peer has {has}")
        wanted = program.demands.isolation
        if wanted is not None and self.isolation_of(program.engine).rank < wanted.rank:
            has = self.isolation_of(program.engine)
            return Lacking("isolation", f"the program demands isolation {wanted} or better, this peer gives {has}")
        for grant in program.demands.grants:
            if not is_granted(grant, self.grants):
                return Lacking("grant", f"the program needs {grant!r}, which the owner of this peer does not grant")
        return None

    def isolation_of(self, engine: Engine) -> Isolation:
        """How well the tasks of an engine are held."""
        match engine:
            case Engine.WASM | Engine.WASM_PYTHON:
                return Isolation.WASM
            case Engine.CONTAINER:
                return max(self.isolation, Isolation.SANDBOX, key=lambda level: level.rank)
            case _:
                return self.isolation


def offers_of(config: PeerConfig) -> Offers:
    """What the peer offers, by its configuration and by what works on this machine."""
    works = (Engine.PYTHON,)
    chosen = tuple(engine for engine in works if not config.engines or engine in config.engines)
    grants = grants_of((*config.grants, *(folder.grant for folder in config.folders)))
    return Offers(isolation(), chosen, grants)


def workshop_of(events: PoolEvents, clock: Clock, config: PeerConfig) -> Workshop:
    """What runs the tasks of this peer, not started yet."""
    workshop = Workshop()
    processes = WorkerPool(events, clock, PoolSettings(memory_bytes=config.memory_bytes), workshop.numbers)
    workshop.add(processes, (Engine.PYTHON,))
    return workshop


def missing_in(head: ProgramHead, program: bytes) -> Sequence[Requirement]:
    """What a program needs installed and this machine lacks. Raises ProtocolError."""
    return missing_requirements(program) if head.engine is Engine.PYTHON else ()
