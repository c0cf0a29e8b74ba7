"""The files of one task: checked names, a fresh folder for them, and what is taken out of it again.

A name is a path within the task's folder, with slashes: never absolute, never upwards. What comes back are regular files alone: links are
not followed and neither are folders behind them, pipes and devices are passed over. Bounded in number and size.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pcompute.execution.task_files import check_path
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError

#: Content that begins so may be executed.
_EXECUTABLE = (b"#!", b"\x7fELF")
#: What wildcards are as regular expressions.
_WILDCARDS = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def checked_pattern(text: object) -> str:
    """`text` as a pattern of files of a task: a path in which `*`, `?` and `**` may stand, or a folder's with a slash behind. Raises UsageError."""
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is no pattern of files: write a text such as 'out.png' or '*.csv'")
    check_path(text.removesuffix("/"))
    return text


class TaskFolder:
    """A fresh folder with the files of one task in it."""

    def __init__(self, root: Path) -> None:
        """`root`: is there, empty, and nobody else's."""
        self.root = root
        #: What was written here, by path.
        self._given: dict[str, bytes] = {}

    def write(self, files: Mapping[str, Any], executable: str = "") -> None:
        """Write `files`, bytes or texts by path; scripts, programs and `executable` may be executed. Raises UsageError, TypeError, OSError."""
        if len(files) > limits.TASK_FILES_MAX:
            raise UsageError(f"{len(files)} files: {limits.TASK_FILES_MAX} at most, so pack them into one")
        for name, content in files.items():
            path = self.root.joinpath(*check_path(name).split("/"))
            if not isinstance(content, (bytes, bytearray, memoryview, str)):
                raise TypeError(f"the content of {name!r} is of type {type(content).__name__}: give bytes or a text")
            data = content.encode() if isinstance(content, str) else bytes(content)
            path.parent.mkdir(parents=True, exist_ok=True)
            # With its rights from the start: a confined worker may not change them.
            mode = 0o700 if name == executable or data.startswith(_EXECUTABLE) else 0o600
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
                file.write(data)
            self._given[name] = data

    def collect(self, patterns: Sequence[str] | None, *, insists: bool = True) -> dict[str, bytes]:
        """The files that match one of `patterns`, by path, sorted; None: all that are new or changed since `write`.

        Raises FileNotFoundError where one `insists` and a pattern without wildcards is not there, ValueError for more than a task may give back.
        """
        wanted = None if patterns is None else [_regex(pattern) for pattern in patterns]
        found: dict[str, bytes] = {}
        seen: list[str] = []
        size = 0
        for path, folder, name, size_bytes in self._regular():
            seen.append(path)
            if wanted is None:
                if path in self._given and self._is_as_given(path, folder, name, size_bytes):
                    continue
            elif not any(regex.fullmatch(path) for regex in wanted):
                continue
            size += size_bytes
            if len(found) >= limits.TASK_FILES_MAX or size > limits.TASK_FILES_BYTES_MAX:
                raise ValueError(
                    f"the task made more than {limits.TASK_FILES_MAX} files or {limits.TASK_FILES_BYTES_MAX >> 20} MiB "
                    "that were asked for: ask for fewer, or pack them"
                )
            found[path] = _read(folder, name, size_bytes)
        for pattern in patterns or ():
            if insists and not _has_wildcards(pattern) and pattern not in found:
                made = ", ".join(sorted(set(seen) - set(self._given))[:10]) or "no file"
                raise FileNotFoundError(f"there is no file {pattern!r} after the task, which made {made}")
        return dict(sorted(found.items()))

    def _is_as_given(self, path: str, folder: int, name: str, size_bytes: int) -> bool:
        # By content: times are too coarse for what is written at once, and a command may set them.
        given = self._given[path]
        return size_bytes == len(given) and _read(folder, name, size_bytes) == given

    def _regular(self) -> Iterator[tuple[str, int, str, int]]:
        """(path, its folder's descriptor, name, bytes) of every regular file."""
        for place, folders, names, descriptor in os.fwalk(self.root, follow_symlinks=False):
            folders.sort()
            for name in sorted(names):
                path = os.path.relpath(os.path.join(place, name), self.root)
                seen = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                try:
                    path.encode()
                except UnicodeEncodeError:
                    continue  # a name that is no text cannot be told to anybody
                if stat.S_ISREG(seen.st_mode) and len(path) <= limits.TASK_PATH_CHARS_MAX:
                    yield path, descriptor, name, seen.st_size


def _read(folder: int, name: str, size_bytes: int) -> bytes:
    # Neither behind a link nor waiting at a pipe, should it have become one since.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(descriptor, "rb") as file:
        return file.read(size_bytes)


def _has_wildcards(pattern: str) -> bool:
    return pattern.endswith("/") or any(each in pattern for each in "*?")


def _regex(pattern: str) -> re.Pattern[str]:
    """As shells do: `*` and `?` within one name, `**` over any number of folders; a pattern with a slash at its end means all that is below."""
    if pattern.endswith("/"):
        pattern += "**"
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(_WILDCARDS.get(piece, re.escape(piece)) for piece in pieces), re.DOTALL)
