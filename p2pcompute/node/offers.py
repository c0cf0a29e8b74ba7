"""What a peer offers to those whose tasks it runs: engines, isolation, grants; and what runs them.

Its record says the same, so submitters rarely come in vain; what a program demands is looked at here again, since a record is only words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.execution.engines.document import ProgramHead
from p2pcompute.execution.loader import missing_requirements
from p2pcompute.execution.pool import PoolEvents, PoolSettings, WorkerPool
from p2pcompute.execution.probes import sandbox_report
from p2pcompute.execution.program import Requirement
from p2pcompute.execution.sandbox.grants import ONE_ADDRESS, GrantedFolder
from p2pcompute.execution.workshop import Workshop
from p2pcompute.model.engine import Engine, grants_of, is_granted
from p2pcompute.model.errors import UsageError
from p2pcompute.model.peer import Isolation
from p2pcompute.model.seams import Clock
from p2pcompute.node.config import PeerConfig

#: Engines whose programs run as processes of this system.
_PROCESSES = frozenset({Engine.PYTHON, Engine.COMMAND})


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
            if grant.startswith("network:") and program.engine in _PROCESSES and "network" not in self.grants:
                return Lacking("grant", f"the program needs {grant!r}: {ONE_ADDRESS}")
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


def offers_of(config: PeerConfig, further: Sequence[Engine] = ()) -> Offers:
    """What the peer offers, by its configuration and by what works on this machine, which is tried: blocks for a while.

    `further`: engines beside Python that work. Raises UsageError where workers cannot be held as well as the owner wants.
    """
    works = (Engine.PYTHON, *further)
    chosen = tuple(engine for engine in works if not config.engines or engine in config.engines)
    grants = grants_of((*config.grants, *(folder.grant for folder in config.folders)))
    report = sandbox_report()
    wanted = wanted_isolation(config)
    lacking = "" if wanted is None else report.lacking(wanted)
    if lacking:
        raise UsageError(f'{lacking}; repair what is named, or ask for less with isolation = "auto"')
    return Offers(min(report.level, isolation_most(config), key=lambda level: level.rank), chosen, grants)


def wanted_isolation(config: PeerConfig) -> Isolation | None:
    """What the owner wants at least; None for whatever can be had."""
    return None if config.isolation == "auto" else Isolation(config.isolation)


def isolation_most(config: PeerConfig) -> Isolation:
    """Layers above this are left out: only the owner's own word, "process", switches the sandbox off."""
    return Isolation.PROCESS if config.isolation == Isolation.PROCESS else Isolation.SANDBOX


def workshop_of(events: PoolEvents, clock: Clock, config: PeerConfig) -> Workshop:
    """What runs the tasks of this peer, not started yet."""
    workshop = Workshop()
    settings = PoolSettings(
        memory_bytes=config.memory_bytes,
        isolation=wanted_isolation(config),
        isolation_most=isolation_most(config),
        folders=tuple(GrantedFolder(each.name, each.path, each.writable) for each in config.folders),
        whole_network="network" in config.grants,
    )
    processes = WorkerPool(events, clock, settings, workshop.numbers)
    workshop.add(processes, (Engine.PYTHON,))
    return workshop


def missing_in(head: ProgramHead, program: bytes) -> Sequence[Requirement]:
    """What a program needs installed and this machine lacks. Raises ProtocolError."""
    return missing_requirements(program) if head.engine is Engine.PYTHON else ()
