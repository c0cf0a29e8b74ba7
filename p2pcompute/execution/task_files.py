"""Files that go into a task and come out of it: which paths are paths, and how they are written and collected.

A path is relative, with slashes, and leads nowhere else: not by its own words, and not by links that stand where it leads through. Files
are opened from folder to folder, each by the descriptor of the one before, so that nobody can swap one for a link meanwhile. What is
refused is refused by name.

Refuses to know: who runs what.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from p2pcompute.model import limits
from p2pcompute.model.errors import ResourceError, UsageError

_DRIVE = re.compile(r"[A-Za-z]:")
#: Absent on Windows, where folders of tasks are written by the peer alone.
_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_FOLDER: int = getattr(os, "O_DIRECTORY", 0)
_NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)
_BINARY: int = getattr(os, "O_BINARY", 0)
_USES_DESCRIPTORS = os.open in os.supports_dir_fd and os.scandir in os.supports_fd


def check_path(path: object) -> str:
    """`path`, in its one spelling. Raises UsageError for whatever leads, or might lead on some system, out of the folder it is relative to."""
    if not isinstance(path, str) or not path:
        raise UsageError(f"{path!r} is no path of a file: write a relative one such as 'data/in.txt'")
    shown = repr(path[:80])
    if len(path) > limits.TASK_PATH_CHARS_MAX:
        raise UsageError(f"the path {shown}… has {len(path)} characters: {limits.TASK_PATH_CHARS_MAX} at most")
    if path.startswith("/") or _DRIVE.match(path):
        raise UsageError(f"{shown} is an absolute path: files of a task lie in its own folder, write a relative one")
    if "\\" in path or any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise UsageError(f"{shown} holds a backslash or a control character: write folders with '/'")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{shown} is no text that can be sent: rename the file") from error
    parts = path.split("/")
    if any(part == ".." for part in parts):
        raise UsageError(f"{shown} leads out of the task's folder ('..'): write a path inside it")
    if any(part in ("", ".") or len(part.encode()) > 255 for part in parts):
        raise UsageError(f"{shown} has an empty part, a part '.' or one of more than 255 bytes: write 'folder/name'")
    return path


def check_files(files: Mapping[str, int]) -> None:
    """Check paths and sizes in bytes, together. Raises UsageError; a path that is another's folder is refused, too."""
    if len(files) > limits.TASK_FILES_MAX:
        raise UsageError(f"{len(files)} files: one task has up to {limits.TASK_FILES_MAX}; put them into one archive")
    total = 0
    folders: set[str] = set()
    for path, size in files.items():
        parts = check_path(path).split("/")
        folders.update("/".join(parts[:end]) for end in range(1, len(parts)))
        total += size
    both = sorted(folders & files.keys())
    if both:
        raise UsageError(f"{both[0]!r} is a file and a folder of other files: rename one")
    if total > limits.TASK_FILES_BYTES_MAX:
        raise UsageError(
            f"the files have {total} bytes together: a task takes up to {limits.TASK_FILES_BYTES_MAX}; split the work, or grant a folder"
        )


def write_files(folder: Path, files: Mapping[str, bytes | bytearray | memoryview], *, mode: int = 0o644) -> None:
    """Write `files` beneath `folder`, which exists; folders between are made. Never through a link, never over a file.

    `mode`: rights of the files; folders can be entered by whoever may read them. Raises UsageError, ResourceError.
    """
    check_files({path: len(data) for path, data in files.items()})
    for path, data in files.items():
        try:
            _write(folder, path, data, mode)
        except OSError as error:
            raise ResourceError(f"cannot write {path!r} in {folder}: {error.strerror or error}") from error


def _write(folder: Path, path: str, data: bytes | bytearray | memoryview, mode: int) -> None:
    *parents, name = path.split("/")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY
    if not _USES_DESCRIPTORS:
        place = folder.joinpath(*parents)
        place.mkdir(parents=True, exist_ok=True)
        _fill(os.open(place / name, flags, mode), data, mode)
        return
    with contextlib.ExitStack() as stack:
        at = _opened(stack, os.open(folder, os.O_RDONLY | _FOLDER))
        for parent in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, 0o755, dir_fd=at)
            at = _opened(stack, os.open(parent, os.O_RDONLY | _FOLDER | _NO_FOLLOW, dir_fd=at))
        _fill(os.open(name, flags, mode, dir_fd=at), data, mode)


def _opened(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _fill(descriptor: int, data: bytes | bytearray | memoryview, mode: int) -> None:
    with open(descriptor, "wb") as file:
        file.write(data)
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), mode)


@dataclass(slots=True)
class Collected:
    """What was found in a folder. `left_out`: what was not taken, each with the reason, in words."""

    files: dict[str, bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    bytes_total: int = 0


#: Reasons that are kept; a task that makes a million sockets needs no million lines.
_REASONS_MAX = 32


def collect_files(folder: Path, inside: str = "", bytes_max: int = limits.TASK_FILES_BYTES_MAX) -> Collected:
    """Every regular file beneath `inside` in `folder`, by path from there, in order of names; what else is there is left out, and named.

    `folder` is the peer's own; `inside` is a path that whoever filled the folder may have made a link: none of its parts is followed. A
    folder that is missing holds nothing. Raises ResourceError.
    """
    found = Collected()
    parts = inside.split("/") if inside else []
    try:
        if _USES_DESCRIPTORS:
            with contextlib.ExitStack() as stack:
                at = _opened(stack, os.open(folder, os.O_RDONLY | _FOLDER | _NO_FOLLOW))
                for part in parts:
                    at = _opened(stack, os.open(part, os.O_RDONLY | _FOLDER | _NO_FOLLOW, dir_fd=at))
                _collect(at, "", found, bytes_max, 0)
        elif not any(folder.joinpath(*parts[:end]).is_symlink() for end in range(len(parts) + 1)):
            _collect_by_path(folder.joinpath(*parts), found, bytes_max)
    except FileNotFoundError:
        return found
    except OSError as error:
        # A link where a folder should be is told as the one or the other.
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise ResourceError(f"cannot read what the task left in {folder}: {error.strerror or error}") from error
        found.left_out.append(f"{inside or folder.name}: it is no folder")
    return found


#: Nesting of folders that is looked into: each level holds a descriptor.
_DEPTH_MAX = 64


def _collect(at: int, before: str, found: Collected, bytes_max: int, depth: int) -> None:
    for name in _names(at):
        path = before + name
        try:
            check_path(path)
        except UsageError as error:
            _leave_out(found, str(error))
            continue
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if depth == _DEPTH_MAX:
                _leave_out(found, f"{path}: nested deeper than {_DEPTH_MAX} folders")
                continue
            try:
                inner = os.open(name, os.O_RDONLY | _FOLDER | _NO_FOLLOW, dir_fd=at)
            except OSError as error:
                _leave_out(found, f"{path}: {error.strerror}")
                continue
            with contextlib.ExitStack() as stack:
                _opened(stack, inner)
                _collect(inner, f"{path}/", found, bytes_max, depth + 1)
        elif stat.S_ISREG(status.st_mode):
            _take(found, path, status.st_size, bytes_max, functools.partial(os.open, name, _READ, dir_fd=at))
        else:
            kind = "a link" if stat.S_ISLNK(status.st_mode) else "no ordinary file"
            _leave_out(found, f"{path}: it is {kind}")


_READ = os.O_RDONLY | _NO_FOLLOW | _NO_WAIT | _BINARY


def _names(at: int) -> Iterator[str]:
    with os.scandir(at) as entries:
        names = []
        for entry in entries:
            names.append(entry.name)
            if len(names) > limits.TASK_FILES_MAX:
                break
    return iter(sorted(names))


def _take(found: Collected, path: str, size: int, bytes_max: int, open_: Callable[[], int]) -> None:
    if len(found.files) >= limits.TASK_FILES_MAX:
        _leave_out(found, f"{path}: a task gives back up to {limits.TASK_FILES_MAX} files")
        return
    if found.bytes_total + size > bytes_max:
        _leave_out(found, f"{path}: with its {size} bytes there would be more than {bytes_max}")
        return
    try:
        with open(open_(), "rb") as file:
            # A file with holes, or one that grew: never more than was counted.
            data = file.read(size)
    except OSError as error:
        _leave_out(found, f"{path}: {error.strerror}")
        return
    found.files[path] = data
    found.bytes_total += len(data)


def _collect_by_path(folder: Path, found: Collected, bytes_max: int) -> None:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(place) / name
            path = file.relative_to(folder).as_posix()
            if file.is_symlink() or not file.is_file():
                _leave_out(found, f"{path}: it is no ordinary file")
                continue
            _take(found, path, file.stat().st_size, bytes_max, functools.partial(os.open, file, _READ))


def _leave_out(found: Collected, reason: str) -> None:
    if len(found.left_out) < _REASONS_MAX:
        found.left_out.append(reason)
    elif len(found.left_out) == _REASONS_MAX:
        found.left_out.append("…")


def folder_bytes(folder: Path, entries_max: int) -> tuple[int, int]:
    """(bytes on disk, entries) beneath `folder`; counting ends soon after `entries_max`. Links are not followed; what vanishes is passed over."""
    total = entries = 0
    waiting = [os.fspath(folder)]
    while waiting and entries <= entries_max:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                entries += 1
                if entries > entries_max:
                    break
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    # Blocks, not lengths: a file with holes takes no room.
                    total += getattr(status, "st_blocks", (status.st_size + 511) // 512) * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return total, entries
