"""The wire form of a program that runs in a container, and of the arguments of one of its tasks.

Only plain documents here. Strict like every decoder: a peer's bytes can cause only ProtocolError, and paths that lead out of a task's folder
are refused as they are read. In a container a task's folder is `FOLDER`, its working folder too where the program names no other; what
lies beneath `outputs` in it when the task has ended comes back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from p2pcompute.execution.engines.document import DEMANDS, ENGINE
from p2pcompute.execution.task_files import check_files, check_path
from p2pcompute.execution.values import Handle, decode
from p2pcompute.model import limits
from p2pcompute.model.engine import NOTHING_DEMANDED, Demands, Engine
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.wire.codec import Many, Maybe, Raw, Real, Row, Schema, Text, Truth, Whole, pack, unpack

#: Where a task's files lie in its container.
FOLDER = "/work"
#: What ZIP programs run in where they name nothing else; docs/containers has its recipe.
PYTHON_IMAGE = "p2pcompute-python"
#: The only entry that such a program has.
ENTRIES = ("main",)
#: Of this document.
VERSION = 1

#: As Docker's reference grammar has it, without what it forbids anyway: no leading dash, no white space.
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@\-]{0,511}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,255}")
_WORD = Text(limits.COMMAND_WORD_CHARS_MAX)
_WORDS = Many(_WORD, limits.COMMAND_WORDS_MAX)
_FILE = Row((Text(limits.TASK_PATH_CHARS_MAX), Raw(limits.PROGRAM_BYTES_MAX), Truth()))


def check_image(name: str) -> str:
    """`name` where it can be the name of an image. Raises UsageError."""
    if not isinstance(name, str) or _IMAGE.fullmatch(name) is None:
        raise UsageError(f"{str(name)[:80]!r} is no name of an image: write one such as 'python:3.12-slim'")
    return name


@dataclass(frozen=True, slots=True)
class ContainerProgram:
    """What is the same for all tasks.

    `command` stands before a task's own words; None for `entrypoint` leaves the image's. `files`: (path in the task's folder, content, may be
    executed). `archive`: a ZIP program, unpacked there as well; then `start` names the file of it to run, empty for the first of
    `program_zip.ENTRY_FILES`. `outputs`: path in the task's folder. Of limits the smaller of these and the peer's hold; None: the
    peer's. `checks`: whether a status other than 0 is a failure.
    """

    version: Annotated[int, Whole(1, 255)]
    # Without a default: what means its default is left out, and a program without an engine is Python.
    engine: Annotated[Engine, ENGINE]
    image: Annotated[str, Text(limits.IMAGE_CHARS_MAX)]
    command: Annotated[tuple[str, ...], _WORDS] = ()
    entrypoint: Annotated[tuple[str, ...] | None, Maybe(_WORDS)] = None
    environment: Annotated[tuple[tuple[str, str], ...], Many(Row((Text(256), _WORD)), limits.COMMAND_WORDS_MAX)] = ()
    folder: Annotated[str, Text(limits.TASK_PATH_CHARS_MAX)] = FOLDER
    files: Annotated[tuple[tuple[str, bytes, bool], ...], Many(_FILE, limits.TASK_FILES_MAX)] = ()
    archive: Annotated[bytes, Raw(limits.PROGRAM_BYTES_MAX)] = b""
    start: Annotated[str, Text(limits.TASK_PATH_CHARS_MAX)] = ""
    outputs: Annotated[str, Text(limits.TASK_PATH_CHARS_MAX)] = "out"
    memory_bytes: Annotated[int | None, Maybe(Whole(4 << 20))] = None
    cpus: Annotated[float | None, Maybe(Real(0.01, 4_096.0))] = None
    processes: Annotated[int | None, Maybe(Whole(1, 1 << 20))] = None
    scratch_bytes: Annotated[int | None, Maybe(Whole(0))] = None
    checks: Annotated[bool, Truth()] = True
    demands: Annotated[Demands, DEMANDS] = NOTHING_DEMANDED
    unknown: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Whether it is one that can run. Raises UsageError naming what is not."""
        check_image(self.image)
        check_environment(dict(self.environment))
        check_path(self.outputs)
        check_files({path: len(data) for path, data, _ in self.files})
        if self.start:
            check_path(self.start)
        if not self.folder.startswith("/") or ".." in self.folder.split("/") or "\0" in self.folder:
            raise UsageError(f"{self.folder[:80]!r} is no folder to work in: write an absolute path of the container")
        for word in (*self.command, *(self.entrypoint or ())):
            check_word(word)
        for grant in self.demands.grants:
            if grant.startswith("network:"):
                raise UsageError(
                    f"{grant!r} cannot be had in a container, whose network is all or nothing: demand 'network', or use another engine"
                )


_PROGRAM = Schema(ContainerProgram)


def pack_container_program(program: ContainerProgram) -> bytes:
    """The bytes of a program. Raises UsageError for one that nobody would run."""
    program.check()
    data = pack(_PROGRAM.to_fields(program))
    if len(data) > limits.PROGRAM_BYTES_MAX:
        raise UsageError(
            f"the program has {len(data)} bytes with its files, one may have {limits.PROGRAM_BYTES_MAX}: give large files as "
            "arguments of tasks, through put()"
        )
    return data


def open_container_program(data: bytes | bytearray | memoryview) -> ContainerProgram:
    """The document in `data`. Raises ProtocolError."""
    program = _PROGRAM.from_fields(unpack(data, bytes_max=limits.PROGRAM_BYTES_MAX))
    if program.version != VERSION:
        raise ProtocolError(
            f"a container program of version {program.version}, this peer reads version {VERSION}: upgrade the older one"
        )
    if program.engine is not Engine.CONTAINER:
        raise ProtocolError(f"a container program for the engine {program.engine}")
    try:
        program.check()
    except UsageError as error:
        raise ProtocolError(str(error)) from error
    return program


def check_word(word: object) -> str:
    """One word of a command. Raises UsageError."""
    if not isinstance(word, str) or "\0" in word or len(word) > limits.COMMAND_WORD_CHARS_MAX:
        raise UsageError(
            f"{str(word)[:80]!r} cannot be a word of a command: give text without NUL of up to {limits.COMMAND_WORD_CHARS_MAX} characters"
        )
    return word


def check_environment(environment: Mapping[str, str]) -> None:
    """Names and values of variables. Raises UsageError."""
    if len(environment) > limits.COMMAND_WORDS_MAX:
        raise UsageError(f"{len(environment)} variables: {limits.COMMAND_WORDS_MAX} at most")
    for name, value in environment.items():
        if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None:
            raise UsageError(f"{str(name)[:80]!r} cannot be the name of a variable: write letters, digits and '_'")
        check_word(value)


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContainerTask:
    """The arguments of one task. `arguments`: words after the program's command; `files`: content by path, or what stands for it.

    `limit_s`: after so long it is stopped, and what it has left by then is its result.
    """

    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, bytes | Handle], ...] = ()
    limit_s: float | None = None

    def plain(self) -> list[Any]:
        """What `values.encode` makes the payload of: `[list of positional arguments, named ones]`."""
        named = {
            "arguments": list(self.arguments),
            "environment": dict(self.environment),
            "files": dict(self.files),
            "limit_s": self.limit_s,
        }
        return [[], {name: value for name, value in named.items() if value}]

    def check(self) -> None:
        """Raises UsageError for what cannot be run."""
        if len(self.arguments) > limits.COMMAND_WORDS_MAX:
            raise UsageError(f"{len(self.arguments)} arguments: a task takes {limits.COMMAND_WORDS_MAX} at most")
        for word in self.arguments:
            check_word(word)
        check_environment(dict(self.environment))
        for path, content in self.files:
            if not isinstance(content, (bytes, Handle)):
                raise UsageError(
                    f"the content of {path!r} is {type(content).__name__}: give bytes, or what put() gave for bytes"
                )
        check_files({path: _size_of(content) for path, content in self.files})
        if self.limit_s is not None and not 0 < self.limit_s < 1e9:
            raise UsageError(f"limit_s is {self.limit_s!r}: give seconds above 0")


def _size_of(content: bytes | Handle) -> int:
    """Bytes of one file; of a handle, those of its encoded form, which is a few bytes longer."""
    return content.size_bytes if isinstance(content, Handle) else len(content)


def open_container_task(data: bytes | bytearray | memoryview) -> ContainerTask:
    """The task in encoded arguments; handles stay handles. Raises ProtocolError, ResultRefusedError."""
    content = decode(data)
    match content:
        case [[], dict(named)] | [(), dict(named)]:
            pass
        case _:
            raise ProtocolError("a container's task has named arguments only")
    for name in named:
        if name not in ("arguments", "environment", "files", "limit_s"):
            raise ProtocolError(f"a container's task has no argument {str(name)[:80]!r}")
    arguments, environment, files = (
        named.get("arguments", []),
        named.get("environment", {}),
        named.get("files", {}),
    )
    if type(arguments) is not list or type(environment) is not dict or type(files) is not dict:
        raise ProtocolError("a container's task has a list of arguments and maps of variables and files")
    limit_s = named.get("limit_s")
    if limit_s is not None and type(limit_s) not in (int, float):
        raise ProtocolError("the time limit of a container's task is a number of seconds")
    held = {path: bytes(each) if isinstance(each, bytearray) else each for path, each in files.items()}
    task = ContainerTask(tuple(arguments), tuple(environment.items()), tuple(held.items()), limit_s)
    try:
        task.check()
    except UsageError as error:
        raise ProtocolError(str(error)) from error
    return task
