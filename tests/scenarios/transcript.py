"""Transcripts: a file of commands, each with the output that it must give (the manner of etcd's raft and of CockroachDB's datadriven).

    # comment
    command positional key=value
    ----
    what it says,
    line by line

    next command …

`pytest --rewrite` writes the outputs as they are now, so that a change of behaviour is read as a diff.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

RULE = "----"


@dataclass(frozen=True)
class Command:
    """One command of a transcript."""

    line_number: int
    text: str
    name: str
    arguments: tuple[str, ...]
    options: dict[str, str]

    def number(self, key: str, default: float) -> float:
        """An option as a number."""
        return float(self.options.get(key, default))


@dataclass(frozen=True)
class Step:
    """A command, what stands before it, and what it said when the file was written."""

    before: tuple[str, ...]
    command: Command
    expected: str


class TranscriptError(Exception):
    """The file cannot be read."""


def parse(text: str) -> tuple[list[Step], tuple[str, ...]]:
    """The steps of a transcript, and the lines after the last one."""
    steps: list[Step] = []
    before: list[str] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip() or line.startswith("#"):
            before.append(line)
            at += 1
            continue
        command = _command(at + 1, line)
        if at + 1 >= len(lines) or lines[at + 1] != RULE:
            raise TranscriptError(f"line {at + 2}: {RULE} must stand below the command {line!r}")
        at += 2
        said: list[str] = []
        while at < len(lines) and lines[at].strip():
            said.append(lines[at])
            at += 1
        steps.append(Step(tuple(before), command, "\n".join(said)))
        before = []
    return steps, tuple(before)


def _command(number: int, line: str) -> Command:
    words = shlex.split(line)
    options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    return Command(number, line, words[0], tuple(word for word in words[1:] if "=" not in word), options)


async def play(name: str, text: str, perform: Callable[[Command], Awaitable[str]], *, rewrite: bool) -> str:
    """Perform every command of the transcript `text`; the transcript as it is said now.

    Without `rewrite` it fails at the first command that says something else.
    """
    steps, after = parse(text)
    written: list[str] = []
    for step in steps:
        said = "\n".join(line.rstrip() or "." for line in (await perform(step.command)).splitlines())
        written += [*step.before, step.command.text, RULE, *([said] if said else [])]
        if not rewrite:
            assert said == step.expected, (
                f"{name}:{step.command.line_number}: {step.command.text}\n--- now:\n{said}\n--- written down:\n"
                f"{step.expected}\n(if this is right: pytest --rewrite {name})"
            )
    return "\n".join([*written, *after]).rstrip() + "\n"
