"""Doors for executables with files: `command` and `map_command`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from p2pcompute.execution.bundle import Program, program_of
from p2pcompute.execution.engines.command_program import ENTRY, pack_command
from p2pcompute.execution.values import encode
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.job import JobOptions, JobProgress
from p2pcompute.node.commands import checked_answer, command_arguments, command_options
from p2pcompute.node.door import Door, Inputs, options_given
from p2pcompute.node.job_stream import OutputRow


class CommandDoors(Door):
    """See the file's docstring."""

    async def command(
        self,
        line: Sequence[str],
        *,
        files: Mapping[str, Any] | None = None,
        stdin: Any = b"",
        out: str | Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        check: bool = True,
        options: JobOptions | None = None,
        **named_options: Any,
    ) -> dict[str, Any]:
        """Run an executable at a peer whose owner offers that: `line` is it and its words, no shell reads them.

        It runs in a fresh folder with `files` in it, content (bytes, a text or a handle) by path. `./PATH` as the executable is one of them;
        else it is the peer's own. `out`: patterns of the files to bring back, such as "*.png" or "results/"; None: all that are new. The answer is a
        mapping: status, stdout, stderr, files by path, and dropped_bytes, where more was printed than comes back. A status other
        than 0 raises CommandFailedError unless `check` is False. Raises also what `submit` does.
        """
        await self._ready()
        chosen = command_options(options_given(options, named_options))
        executable, words = _split(line)
        program = self._command(executable, {}, out, environment, check, chosen)
        payload = encode([[words, dict(files or {}), stdin], {}], classes=program.names)
        return checked_answer(await self._call(program, executable, payload, chosen))

    async def map_command(
        self,
        line: Sequence[str],
        tasks: Inputs,
        *,
        files: Mapping[str, bytes] | None = None,
        out: str | Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        check: bool = True,
        ordered: bool = True,
        options: JobOptions | None = None,
        on_progress: Callable[[JobProgress], None] | None = None,
        on_output: Callable[[Sequence[OutputRow]], None] | None = None,
        **named_options: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        """`command` for each of `tasks`: a mapping is its files, a list further words, a `CommandTask` both and stdin.

        `files`: what all of them find; it travels once to each peer.
        """
        await self._ready()
        chosen = command_options(options_given(options, named_options))
        executable, words = _split(line)
        program = self._command(executable, files or {}, out, environment, check, chosen)

        results = self._map(
            program,
            executable[: limits.TEXT_CHARS_MAX],
            tasks,
            chosen,
            lambda task: encode(command_arguments(words, task), classes=program.names),
            ordered=ordered,
            on_progress=on_progress,
            on_output=on_output,
        )
        async with contextlib.aclosing(results):
            async for value in results:
                yield checked_answer(value)

    def _command(
        self,
        executable: str,
        files: Mapping[str, bytes],
        out: str | Sequence[str] | None,
        environment: Mapping[str, str] | None,
        check: bool,
        options: JobOptions,
    ) -> Program:
        data = pack_command(
            executable, files=files, environment=environment, out=out, check=check, demands=options.demands
        )
        return program_of(data, (ENTRY,))


def _split(line: Sequence[str]) -> tuple[str, list[str]]:
    if isinstance(line, str) or not line or not all(isinstance(word, str) for word in line):
        raise UsageError(f"the command is {line!r}: give a list of words, such as ['convert', 'in.png', 'out.jpg']")
    return line[0], list(line[1:])
