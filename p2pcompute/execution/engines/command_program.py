"""The wire form of a command: an executable, what it finds around it, and what is taken back.

Of the command line only the executable is part of the program, so that one worker runs all its command lines: further words, files and
stdin are a task's arguments, `[[words, files, stdin], {}]`. The executable is a name that the peer's machine knows, an absolute path there, or
`./PATH` of a file that comes along, here or with the task.

Rule for whoever shuts workers in: a command is a process of its own, so this engine implies the grant "processes" within its own
sandbox and nowhere else (`ProgramHead.allowed`), and only peers whose owner names the engine offer it. Reading one runs nothing. Strict like
every decoder: a peer's bytes can cause only ProtocolError.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from p2pcompute.execution.engines.command_files import checked_pattern
from p2pcompute.execution.engines.document import DEMANDS, ENGINE
from p2pcompute.execution.task_files import check_path
from p2pcompute.model import limits
from p2pcompute.model.engine import NOTHING_DEMANDED, Demands, Engine
from p2pcompute.model.errors import CannotShipError, ProtocolError, UsageError
from p2pcompute.wire.codec import Converted, Many, Maybe, Raw, Row, Schema, Text, Truth, Whole, pack, unpack
from p2pcompute.wire.versions import PROGRAM

#: The one entry of such a program.
ENTRY = "run"
_WORD = Text(limits.COMMAND_WORD_CHARS_MAX)
_PATH = Text(limits.TASK_PATH_CHARS_MAX)


def _path(text: str) -> str:
    try:
        return check_path(text)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _pattern(text: str) -> str:
    try:
        return checked_pattern(text)
    except UsageError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class CommandBody:
    """Everything in the program. `out`: patterns of the files that come back, None: all new ones; `check`: a status other than 0 is a failure."""

    version: Annotated[int, Whole(1, 255)]
    #: Without a default, since what says nothing else is left out, and a program without an engine is Python source.
    engine: Annotated[Engine, ENGINE]
    executable: Annotated[str, _WORD]
    #: Files that every task finds, by path.
    files: Annotated[
        tuple[tuple[str, bytes], ...],
        Many(Row((Converted(_PATH, _path, str), Raw(limits.PROGRAM_BYTES_MAX))), limits.TASK_FILES_MAX),
    ] = ()
    #: Variables of the environment beside the worker's own.
    environment: Annotated[
        tuple[tuple[str, str], ...], Many(Row((Text(limits.TEXT_CHARS_MAX), _WORD)), limits.COMMAND_VARIABLES_MAX)
    ] = ()
    out: Annotated[tuple[str, ...] | None, Maybe(Many(Converted(_PATH, _pattern, str), limits.TASK_FILES_MAX))] = None
    check: Annotated[bool, Truth()] = True
    demands: Annotated[Demands, DEMANDS] = NOTHING_DEMANDED
    unknown: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.executable or "\0" in self.executable:
            raise ValueError("the executable has no name")
        for name, value in self.environment:
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(f"{name[:40]!r} is no name of a variable")

    @property
    def is_shipped(self) -> bool:
        """Whether the executable comes along rather than being the machine's."""
        return "/" in self.executable and not self.executable.startswith("/")


_BODY = Schema(CommandBody)


def pack_command(
    executable: str,
    *,
    files: Mapping[str, bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    out: str | Sequence[str] | None = None,
    check: bool = True,
    demands: Demands = NOTHING_DEMANDED,
) -> bytes:
    """The bytes of a program that runs `executable`. Raises UsageError, CannotShipError."""
    patterns = (out,) if isinstance(out, str) else None if out is None else tuple(out)
    try:
        body = CommandBody(
            PROGRAM,
            Engine.COMMAND,
            executable,
            tuple(sorted((check_path(name), bytes(data)) for name, data in (files or {}).items())),
            tuple(sorted((environment or {}).items())),
            None if patterns is None else tuple(checked_pattern(pattern) for pattern in patterns),
            check,
            demands=demands,
        )
        data = pack(_BODY.to_fields(body))
        if len(data) > limits.PROGRAM_BYTES_MAX:
            raise CannotShipError(
                f"the command and its files have {len(data)} bytes, at most {limits.PROGRAM_BYTES_MAX} can travel as a program: "
                "pass large files with each task, or as handles from put()"
            )
        open_command(data)
    except (ValueError, ProtocolError) as error:
        raise UsageError(f"a command of a shape that peers do not take: {error}") from error
    return data


def open_command(data: bytes | bytearray | memoryview) -> CommandBody:
    """The document in `data`. Raises ProtocolError."""
    body = _BODY.from_fields(unpack(data, bytes_max=limits.PROGRAM_BYTES_MAX))
    if body.version != PROGRAM:
        raise ProtocolError(
            f"a program of version {body.version}, this peer reads version {PROGRAM}: upgrade the older one"
        )
    if body.engine is not Engine.COMMAND:
        raise ProtocolError(f"a command for the engine {body.engine}")
    return body


def missing_executable(data: bytes | bytearray | memoryview) -> str | None:
    """What to tell people where this machine lacks the executable, else None. Runs nothing. Raises ProtocolError."""
    body = open_command(data)
    if body.is_shipped or shutil.which(body.executable) is not None:
        return None
    return f"the executable {body.executable!r} is not installed here, or may not be run"
