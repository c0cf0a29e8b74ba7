"""What every program says of itself, whichever engine it is for: that engine, and what it demands of whoever runs it.

A program is a msgpack map. These two fields stand in it beside those of its engine; a program without them is Python source that demands
nothing. Strict like every decoder: a peer's bytes can cause only ProtocolError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from p2pcompute.model import limits
from p2pcompute.model.engine import NOTHING_DEMANDED, Demands, Engine
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.model.peer import Isolation
from p2pcompute.wire.codec import Converted, Inner, Many, Maybe, Schema, Text, unpack


@dataclass(frozen=True, slots=True)
class _Demands:
    isolation: Annotated[Isolation | None, Maybe(Converted(Text(32), Isolation, str))] = None
    grants: Annotated[tuple[str, ...], Many(Text(limits.GRANT_CHARS_MAX), limits.GRANTS_MAX)] = ()


def _demands(plain: _Demands) -> Demands:
    try:
        return Demands(plain.isolation, plain.grants)
    except UsageError as error:
        raise ValueError(str(error)) from error


#: For the fields `engine` and `demands` of a program's schema.
ENGINE = Converted(Text(limits.ENGINE_CHARS_MAX), Engine, str)
DEMANDS = Converted(Inner(Schema(_Demands)), _demands, lambda demands: _Demands(demands.isolation, demands.grants))


@dataclass(frozen=True, slots=True)
class ProgramHead:
    """What is common to all programs."""

    engine: Engine = Engine.PYTHON
    demands: Demands = NOTHING_DEMANDED

    @property
    def allowed(self) -> tuple[str, ...]:
        """What holds inside the sandbox of its workers: the grants that it asks for, and what its engine cannot do without.

        A command is a process that a worker starts, so it may start more: inside its own sandbox, up to `limits.WORKER_THREADS_MAX`. Nobody
        grants that one by one: who lets an engine run commands has allowed it.
        """
        implied = ("processes",) if self.engine is Engine.COMMAND else ()
        return tuple(sorted({*self.demands.grants, *implied}))


#: Of Python source that demands nothing.
PLAIN = ProgramHead()


def head_of(program: bytes | bytearray | memoryview) -> ProgramHead:
    """The engine and the demands of a program; nothing else of it is checked. Raises ProtocolError."""
    fields: Any = unpack(program, bytes_max=limits.PROGRAM_BYTES_MAX)
    if type(fields) is not dict:
        raise ProtocolError("a program is a map")
    engine = ENGINE.load(fields["engine"]) if "engine" in fields else Engine.PYTHON
    demands = DEMANDS.load(fields["demands"]) if "demands" in fields else NOTHING_DEMANDED
    return ProgramHead(engine, demands)
