"""What a task of a command is made of, and what its answer may be: a peer's word, so every name in it is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pcompute.execution.task_files import check_path
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import ResourceError, ResultRefusedError, UsageError
from p2pcompute.model.job import JobOptions


@dataclass(frozen=True, slots=True)
class CommandTask:
    """One run of a command: `words` behind those that all runs share, `files` by path, each bytes, a text or a handle, and `stdin`."""

    words: Sequence[str] = ()
    files: Mapping[str, Any] = field(default_factory=dict)
    stdin: Any = b""


def command_arguments(words: Sequence[str], task: object) -> list[Any]:
    """The arguments of one task: `words` of all tasks, and what `task` is. Raises UsageError."""
    if isinstance(task, Mapping):
        task = CommandTask(files=task)
    elif isinstance(task, (list, tuple)):
        task = CommandTask(words=task)
    if not isinstance(task, CommandTask) or not all(isinstance(word, str) for word in task.words):
        raise UsageError(f"a task of a command is {task!r}: give a mapping of files, a list of words, or a CommandTask")
    return [[[*words, *task.words], dict(task.files), task.stdin], {}]


def command_options(options: JobOptions) -> JobOptions:
    """`options` for peers that run commands. Raises UsageError where another engine was asked for."""
    if options.engine not in (None, Engine.COMMAND):
        raise UsageError(f"a command cannot run in the engine {options.engine}: leave the engine out")
    return dataclasses.replace(options, engine=Engine.COMMAND)


def checked_answer(value: Any) -> dict[str, Any]:
    """What a peer says that a command did. Raises ResultRefusedError for what no worker of ours says."""
    kinds = {"status": int, "stdout": bytes, "stderr": bytes, "files": dict, "dropped_bytes": int}
    if not isinstance(value, dict) or any(type(value.get(name)) is not kind for name, kind in kinds.items()):
        raise ResultRefusedError("the answer to a command has not the form of one: the peer that gave it is at fault")
    for name, content in value["files"].items():
        try:
            check_path(name)
        except UsageError as error:
            raise ResultRefusedError(f"the answer to a command holds a file that was refused: {error}") from error
        if not isinstance(content, bytes):
            raise ResultRefusedError(f"the file {name!r} in the answer to a command is none")
    return value


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of an answer below `folder`, in the place of older ones, never behind a link. Raises UsageError, ResourceError."""
    root = folder.resolve()
    for name, content in files.items():
        path = root.joinpath(*check_path(name).split("/"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.resolve() != path.parent or path.is_symlink():
                raise ResourceError(f"{path} is, or lies behind, a link: it was not written, nor was what follows it")
            path.write_bytes(content)
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error


def read_files(names: Sequence[str]) -> dict[str, bytes]:
    """Content by path, from `PATH` (its last name is taken), `NAME=PATH`, and folders, with all that is in them. Raises UsageError, ResourceError."""
    found: dict[str, bytes] = {}
    for text in names:
        name, equals, place = text.partition("=")
        path = Path(place if equals and not Path(text).exists() else text)
        name = name if equals and path != Path(text) else path.resolve().name
        inner = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for each in inner:
            below = each.relative_to(path).as_posix()
            key = check_path(name if below == "." else f"{name}/{below}")
            if key in found:
                raise UsageError(f"two files would be {key!r}: give one of them another name, NAME={each}")
            try:
                found[key] = each.read_bytes()
            except OSError as error:
                raise ResourceError(f"cannot read {each}: {error.strerror}; nothing was run") from error
    return found
