"""Programs that are ZIP archives: what may stand in one, where it starts, and how it is unpacked.

An archive is a stranger's: everything is looked at before anything is written. Names that lead out, links, encrypted members, the same name
twice, and archives that unpack to far more than they hold are refused, each by name; while unpacking no member may
become longer than it said. What comes back of a task is an archive as well (`result_zip`).

Refuses to know: what runs the program.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2pcompute.execution.task_files import check_files, check_path
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError

#: Where a program starts that names nothing else: the first of these that is there.
ENTRY_FILES = ("run.py", "main.py", "app.py", "index.py", "start.py")
#: What a result archive holds beside the files of the task, which are beneath `OUTPUT`.
EXECUTION_LOG, TASK_LOGS, TASK_STOPPED, OUTPUT = "execution_log.txt", "task_logs.txt", "task_stopped.txt", "output"
#: Small members repeat themselves; below this no ratio says anything.
_RATIO_COUNTS_FROM_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16
_ENCRYPTED = 0x1
#: Others are rare, and one of them takes as much memory as the archive says.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: The date of all members that are written here: equal results are equal archives.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ZipProgram:
    """A checked archive. `files`: path to size; `root`: the one folder that everything is in, or ""; `start`: path."""

    files: Mapping[str, int]
    root: str
    start: str


def open_program_zip(data: bytes | bytearray | memoryview, start: str = "") -> ZipProgram:
    """Look at an archive; nothing is unpacked. `start`: the file to run, relative to the program. Raises UsageError naming what is wrong."""
    with _opened(data) as archive:
        files = {member.filename: member.file_size for member in _members(archive, len(data))}
    if not files:
        raise UsageError("the ZIP program is empty: put its files into it")
    # What packing on a Mac adds is no part of the program.
    own = [path for path in files if not path.startswith("__MACOSX/")]
    tops = {path.split("/")[0] for path in own}
    root = ""
    if len(tops) == 1 and all("/" in path for path in own):
        root = f"{next(iter(tops))}/"
    if start:
        named = check_path(start)
        found = next((path for path in (named, root + named) if path in files), None)
        if found is None:
            raise UsageError(f"the ZIP program has no file {named!r}: name one of {_some(files)}")
    else:
        found = next((root + name for name in ENTRY_FILES if root + name in files), None)
        if found is None:
            raise UsageError(
                f"the ZIP program has none of {', '.join(ENTRY_FILES)} at its top: name the file to run; it has {_some(files)}"
            )
    return ZipProgram(files, root, found)


def unpack_program_zip(data: bytes | bytearray | memoryview) -> dict[str, bytes]:
    """The content of every file of an archive, by path. Raises UsageError, for one that lies about its sizes as well."""
    unpacked: dict[str, bytes] = {}
    with _opened(data) as archive:
        for member in _members(archive, len(data)):
            pieces: list[bytes] = []
            left = member.file_size
            try:
                with archive.open(member) as stream:
                    while piece := stream.read(min(_PIECE_BYTES, left + 1)):
                        left -= len(piece)
                        if left < 0:
                            raise UsageError(
                                f"{member.filename!r} in the ZIP program is longer than the archive says: make it anew"
                            )
                        pieces.append(piece)
            except (
                zipfile.BadZipFile,
                zlib.error,
                EOFError,
                OSError,
                NotImplementedError,
                ValueError,
                RuntimeError,
            ) as error:
                raise UsageError(f"{member.filename!r} in the ZIP program cannot be unpacked: {error}") from error
            unpacked[member.filename] = b"".join(pieces)
    return unpacked


def _opened(data: bytes | bytearray | memoryview) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    # The reader of the standard library meets damaged archives with whatever its parts raise.
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        NotImplementedError,
        ValueError,
        IndexError,
        OverflowError,
    ) as error:
        raise UsageError(f"the program is no ZIP archive that can be read: {error}") from error


def _members(archive: zipfile.ZipFile, packed_bytes: int) -> Iterator[zipfile.ZipInfo]:
    """Its files, once all of them are checked."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        # `ZipInfo` cuts names at NUL and turns backslashes of Windows; what the archive really says is judged.
        name = member.orig_filename
        if member.is_dir() and name.endswith("/"):
            check_path(name.rstrip("/"))
            continue
        check_path(name)
        mode = member.external_attr >> 16
        if stat.S_ISLNK(mode):
            raise UsageError(f"{name!r} in the ZIP program is a link: put the file itself into it")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise UsageError(f"{name!r} in the ZIP program is no ordinary file: leave it out")
        if member.flag_bits & _ENCRYPTED:
            raise UsageError(f"{name!r} in the ZIP program is encrypted: pack it without a password")
        if member.compress_type not in _METHODS:
            raise UsageError(f"{name!r} in the ZIP program is packed by method {member.compress_type}: use 'deflate'")
        if name in members:
            raise UsageError(f"{name!r} stands twice in the ZIP program: make it anew")
        if member.file_size > _RATIO_COUNTS_FROM_BYTES and member.file_size > limits.ZIP_RATIO_MAX * max(
            member.compress_size, 1
        ):
            raise UsageError(
                f"{name!r} in the ZIP program unpacks to {member.file_size} bytes from {member.compress_size}: more than "
                f"{limits.ZIP_RATIO_MAX} times as much is taken for a bomb; give such data as an argument"
            )
        members[name] = member
    check_files({name: member.file_size for name, member in members.items()})
    total = sum(member.file_size for member in members.values())
    # Members may share the same packed bytes, each with a modest ratio of its own.
    if total > _RATIO_COUNTS_FROM_BYTES and total > limits.ZIP_RATIO_MAX * packed_bytes:
        raise UsageError(
            f"the ZIP program unpacks to {total} bytes from {packed_bytes}: more than {limits.ZIP_RATIO_MAX} times as much is taken for a bomb"
        )
    yield from members.values()


def _some(files: Mapping[str, int]) -> str:
    names = sorted(files)
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def result_zip(files: Mapping[str, bytes], log: str, printed: str, stopped: str) -> bytes:
    """An archive with a task's files beneath `OUTPUT`, what was done (`log`), what it printed, and, where it was stopped, why."""
    buffer = io.BytesIO()
    texts: Sequence[tuple[str, bytes]] = [(EXECUTION_LOG, log.encode()), (TASK_LOGS, printed.encode())]
    if stopped:
        texts = [*texts, (TASK_STOPPED, stopped.encode())]
    check_files({path: len(data) for path, data in files.items()})
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (*texts, *((f"{OUTPUT}/{path}", files[path]) for path in sorted(files))):
            member = zipfile.ZipInfo(name, _DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(member, data)
    return buffer.getvalue()
