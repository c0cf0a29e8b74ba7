"""Doors for programs that are not Python functions: images, and ZIP archives that run in one.

What comes back is a `TaskResult`, checked: status, what was written, files.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pcompute.execution.bundle import Program, program_of
from p2pcompute.execution.container.program import (
    ENTRIES,
    FOLDER,
    PYTHON_IMAGE,
    VERSION,
    ContainerProgram,
    ContainerTask,
    pack_container_program,
)
from p2pcompute.execution.program_zip import open_program_zip
from p2pcompute.execution.task_result import TaskResult
from p2pcompute.execution.values import Handle, encode
from p2pcompute.model import limits
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import UsageError
from p2pcompute.model.job import JobOptions, JobProgress
from p2pcompute.node.command_doors import CommandDoors
from p2pcompute.node.door import Inputs, options_given
from p2pcompute.node.job_stream import OutputRow

__all__ = ["ProgramDoors", "TaskResult"]

#: The content of a file: bytes, a file of this machine, or what `put` gave for bytes.
Content = bytes | Path | Handle
#: What a task is given: words after the command, or a mapping with some of "arguments", "environment", "files" and "limit_s".
Task = Sequence[str] | Mapping[str, Any]


class ProgramDoors(CommandDoors):
    """`container` and `container_map`, `run_zip` and `zip_map`.

    All of them take the options of `map` by name (`timeout_s`, `requirements`, `grants` …). Those of the container:
    `environment`, `entrypoint`, `folder` (where the command starts, /work), `files` (that every task finds in /work), `outputs` (the folder in
    /work whose files come back, "out"), `memory`, `cpus`, `processes`, `scratch` (bytes on disk), and `check`: whether a status other than 0
    raises CommandFailedError. `limit_s`: after so long a task is stopped, and what it has by then is its result.
    """

    async def container(
        self,
        image: str,
        command: Sequence[str] = (),
        *,
        files: Mapping[str, Content] | None = None,
        limit_s: float | None = None,
        on_progress: Callable[[JobProgress], None] | None = None,
        on_output: Callable[[Sequence[OutputRow]], None] | None = None,
        **named: Any,
    ) -> TaskResult:
        """`command` in a container of `image` at whichever peer is best. `files`: content by path in /work.

        Raises UsageError before anything is sent; CommandFailedError, TaskTimeoutError, WorkerDiedError, NoWorkersError
        for what happens there. Cancelling the call kills the container.
        """
        task = {"files": dict(files or {}), "limit_s": limit_s}
        program, options = await asyncio.to_thread(_container_program, image, command, named)
        return await self._single(program, image, task, options, on_progress, on_output)

    async def container_map(
        self,
        image: str,
        command: Sequence[str],
        tasks: Inputs,
        *,
        ordered: bool = True,
        on_progress: Callable[[JobProgress], None] | None = None,
        on_output: Callable[[Sequence[OutputRow]], None] | None = None,
        **named: Any,
    ) -> AsyncIterator[TaskResult]:
        """`command` in a container for each of `tasks`: words that follow it, or a mapping with some of "arguments", "environment",
        "files" and "limit_s"."""
        program, options = await asyncio.to_thread(_container_program, image, command, named)
        results = self._results(program, image, tasks, options, ordered, on_progress, on_output)
        async with contextlib.aclosing(results):  # type: ignore[type-var]
            async for result in results:
                yield result

    async def run_zip(
        self,
        archive: Path | bytes,
        arguments: Sequence[str] = (),
        *,
        image: str = PYTHON_IMAGE,
        start: str = "",
        files: Mapping[str, Content] | None = None,
        limit_s: float | None = None,
        on_progress: Callable[[JobProgress], None] | None = None,
        on_output: Callable[[Sequence[OutputRow]], None] | None = None,
        **named: Any,
    ) -> TaskResult:
        """A ZIP program with `arguments`, in a container of an image with Python. `start`: its file to run; empty: run.py, main.py, app.py, index.py
        or start.py, the first that is there. Raises UsageError for an archive that is unsafe, naming what."""
        task = {"arguments": list(arguments), "files": dict(files or {}), "limit_s": limit_s}
        program, options = await asyncio.to_thread(_zip_program, archive, start, image, named)
        return await self._single(program, _name_of(archive), task, options, on_progress, on_output)

    async def zip_map(
        self,
        archive: Path | bytes,
        tasks: Inputs,
        *,
        image: str = PYTHON_IMAGE,
        start: str = "",
        ordered: bool = True,
        on_progress: Callable[[JobProgress], None] | None = None,
        on_output: Callable[[Sequence[OutputRow]], None] | None = None,
        **named: Any,
    ) -> AsyncIterator[TaskResult]:
        """A ZIP program for each of `tasks`, as in `container_map`."""
        program, options = await asyncio.to_thread(_zip_program, archive, start, image, named)
        results = self._results(program, _name_of(archive), tasks, options, ordered, on_progress, on_output)
        async with contextlib.aclosing(results):  # type: ignore[type-var]
            async for result in results:
                yield result

    async def _single(
        self,
        program: Program,
        name: str,
        task: Task,
        options: JobOptions,
        on_progress: Callable[[JobProgress], None] | None,
        on_output: Callable[[Sequence[OutputRow]], None] | None,
    ) -> TaskResult:
        if on_progress is None and on_output is None:
            await self._ready()
            payload = await asyncio.to_thread(_payload, task)
            return TaskResult.from_plain(await self._call(program, name, payload, options))
        results = self._results(program, name, [task], options, True, on_progress, on_output)
        async with contextlib.aclosing(results):  # type: ignore[type-var]
            async for result in results:
                return result
        raise AssertionError("a job of one task without a result has failed, and said so")

    async def _results(
        self,
        program: Program,
        name: str,
        tasks: Inputs,
        options: JobOptions,
        ordered: bool,
        on_progress: Callable[[JobProgress], None] | None,
        on_output: Callable[[Sequence[OutputRow]], None] | None,
    ) -> AsyncIterator[TaskResult]:
        await self._ready()
        values = self._map(
            program,
            name,
            tasks,
            options,
            _payload,
            ordered=ordered,
            on_progress=on_progress,
            on_output=on_output,
        )
        async with contextlib.aclosing(values):
            async for value in values:
                yield TaskResult.from_plain(value)


def _container_program(
    image: str, command: Sequence[str], named: dict[str, Any], **fields: Any
) -> tuple[Program, JobOptions]:
    """The program and the options of its job. `named`: as users give them, both together. Reads files: in a thread."""
    if isinstance(command, str):
        raise UsageError(
            f"the command is the text {command!r}: give a list of words, such as ['sh', '-c', {command!r}]"
        )
    rest = dict(named)
    environment = rest.pop("environment", None) or {}
    entrypoint = rest.pop("entrypoint", None)
    files = rest.pop("program_files", None) or {}
    wishes = {
        "folder": rest.pop("folder", FOLDER),
        "outputs": rest.pop("outputs", "out"),
        "memory_bytes": _size("memory", rest.pop("memory", None)),
        "cpus": rest.pop("cpus", None),
        "processes": rest.pop("processes", None),
        "scratch_bytes": _size("scratch", rest.pop("scratch", None)),
        "checks": bool(rest.pop("check", True)),
    }
    options = options_given(rest.pop("options", None), rest)
    if options.engine not in (None, Engine.CONTAINER):
        raise UsageError(f"a container cannot be run by the engine {options.engine}: leave the engine out")
    options = dataclasses.replace(options, engine=Engine.CONTAINER)
    document = ContainerProgram(
        version=VERSION,
        engine=Engine.CONTAINER,
        image=image,
        command=tuple(command),
        entrypoint=None if entrypoint is None else tuple(entrypoint),
        environment=tuple(sorted(dict(environment).items())),
        files=tuple((path, *_file_of(path, content)) for path, content in sorted(files.items())),
        demands=options.demands,
        **wishes,
        **fields,
    )
    return program_of(pack_container_program(document), ENTRIES), options


def _zip_program(archive: Path | bytes, start: str, image: str, named: dict[str, Any]) -> tuple[Program, JobOptions]:
    try:
        if isinstance(archive, Path) and archive.stat().st_size > limits.PROGRAM_BYTES_MAX:
            raise UsageError(
                f"{archive} has more than {limits.PROGRAM_BYTES_MAX} bytes: give its large files as arguments"
            )
        data = archive.read_bytes() if isinstance(archive, Path) else archive
    except OSError as error:
        raise UsageError(f"cannot read the program {_name_of(archive)}: {error.strerror}") from error
    # Said here and at once, not by every peer that is asked.
    open_program_zip(data, start)
    return _container_program(image, (), named, archive=data, start=start)


def _payload(task: Task) -> bytes:
    if isinstance(task, str):
        raise UsageError(f"a task is the text {task!r}: give a list of words, or a mapping")
    if not isinstance(task, Mapping):
        made = ContainerTask(tuple(task))
    else:
        unknown = sorted(set(task) - {"arguments", "environment", "files", "limit_s"})
        if unknown:
            raise UsageError(f"a task has no {unknown[0]!r}: it may have arguments, environment, files and limit_s")
        files = {path: _content_of(path, content) for path, content in (task.get("files") or {}).items()}
        made = ContainerTask(
            tuple(task.get("arguments") or ()),
            tuple((task.get("environment") or {}).items()),
            tuple(files.items()),
            task.get("limit_s"),
        )
    made.check()
    return encode(made.plain())


def _file_of(path: str, content: Content) -> tuple[bytes, bool]:
    """(bytes, whether it may be executed)"""
    found = _content_of(path, content)
    if isinstance(found, Handle):
        raise UsageError(f"the program's file {path!r} is a handle: give it to the tasks, or give bytes")
    return found, isinstance(content, Path) and bool(content.stat().st_mode & 0o100)


def _content_of(path: str, content: Content) -> bytes | Handle:
    if isinstance(content, Path):
        try:
            if content.stat().st_size > limits.TASK_FILES_BYTES_MAX:
                raise UsageError(
                    f"{content} has more than {limits.TASK_FILES_BYTES_MAX} bytes: split it, or grant a folder"
                )
            return content.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {content}, which is to be {path!r}: {error.strerror}") from error
    return content


def _size(name: str, value: object) -> int | None:
    from p2pcompute.node.config import parse_size

    if value is None or type(value) is int:
        return value
    try:
        return parse_size(str(value))
    except ValueError as error:
        raise UsageError(f"{name} is {value!r}: {error}") from error


def _name_of(archive: Path | bytes) -> str:
    return archive.name if isinstance(archive, Path) else "a ZIP program"
