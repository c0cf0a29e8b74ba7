"""What a peer offers to those whose tasks it runs: engines, isolation, grants; and what runs them.

Its record says the same, so submitters rarely come in vain; what a program demands is looked at here again, since a record is only words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pcompute.execution.engines.command_program import missing_executable
from p2pcompute.execution.engines.document import ProgramHead
from p2pcompute.execution.loader import missing_requirements
from p2pcompute.execution.pool import PoolEvents, PoolSettings, WorkerPool
from p2pcompute.execution.probes import sandbox_report
from p2pcompute.execution.sandbox.grants import ONE_ADDRESS, GrantedFolder
from p2pcompute.execution.workshop import Workshop
from p2pcompute.model.engine import Engine, grants_of, is_granted
from p2pcompute.model.errors import UsageError
from p2pcompute.model.peer import Isolation
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.node.clusters import ClusterSide
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.wasm_engines import offered_engines

#: Engines whose programs run as processes of this system.
_PROCESSES = frozenset({Engine.PYTHON, Engine.COMMAND})
#: Engines that are offered only where the owner names them: commands run the machine's own programs.
_BY_NAME = (Engine.COMMAND,)


@dataclass(frozen=True, slots=True)
class Lacking:
    """What a program demands and this peer has not. `reason`, `module`: as in JobRefuse."""

    reason: str
    text: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class Offers:
    """What a peer offers. `isolation`: of Python tasks, at least; `is_elsewhere`: tasks run on other machines than this."""

    isolation: Isolation = Isolation.PROCESS
    engines: tuple[Engine, ...] = (Engine.PYTHON,)
    grants: tuple[str, ...] = ()
    is_elsewhere: bool = False

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


def offers_of(config: PeerConfig, further: Sequence[Engine] = (), *, is_open: bool = False) -> Offers:
    """What the peer offers, by its configuration and by what works on this machine, which is tried: blocks for a while.

    `further`: engines beside Python that work here; `is_open`: whether anybody may submit in its network. Raises UsageError where workers
    cannot be held as well as the owner wants.
    """
    if config.cluster is not None:
        # Its workers run Python, and have none of this machine's folders. How well they are held nobody can see from here: the owner says.
        return Offers(wanted_isolation(config) or Isolation.PROCESS, (Engine.PYTHON,), is_elsewhere=True)
    works = (Engine.PYTHON, *further, *(engine for engine in _BY_NAME if engine in config.engines))
    chosen = offered_engines(works, config.engines, is_open=is_open)
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


def workshop_of(
    events: PoolEvents,
    clock: Clock,
    config: PeerConfig,
    entropy: Entropy,
    wasm_python: Path | None = None,
    cluster: ClusterSide | None = None,
) -> Workshop:
    """What runs the tasks of this peer, not started yet. `wasm_python`: where the WebAssembly Python is or will be; `cluster`: the one behind it."""
    workshop = Workshop()
    if cluster is not None:
        workshop.add(cluster.pool(events, clock, entropy, workshop.numbers), (Engine.PYTHON,))
        return workshop
    settings = PoolSettings(
        memory_bytes=config.memory_bytes,
        isolation=wanted_isolation(config),
        isolation_most=isolation_most(config),
        folders=tuple(GrantedFolder(each.name, each.path, each.writable) for each in config.folders),
        whole_network="network" in config.grants,
        wasm_python=wasm_python,
    )
    processes = WorkerPool(events, clock, settings, workshop.numbers)
    workshop.add(processes, (Engine.PYTHON, Engine.WASM, Engine.WASM_PYTHON, Engine.COMMAND))
    return workshop


def missing_in(head: ProgramHead, program: bytes, *, is_elsewhere: bool = False) -> Lacking | None:
    """The first thing that a program needs installed and this machine lacks. `is_elsewhere`: other machines run it, and say so themselves.

    Raises ProtocolError.
    """
    if is_elsewhere:
        return None
    match head.engine:
        case Engine.PYTHON:
            for need in missing_requirements(program):
                return Lacking("module", need.text, need.module)
        case Engine.COMMAND:
            text = missing_executable(program)
            return None if text is None else Lacking("executable", text)
    return None
