"""Small files of one folder, replaced in one step.

Owns how a file of ours reaches the disk: written beside its place under another name, synced, renamed over the old one,
and the folder synced after. A crash at any moment leaves the old content or the new. Files are readable by their owner
alone unless the caller asks for another mode; folders of ours are 0700 and belong to this user, or are refused.

Refuses to know what stands in any file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from p2pcompute.model.errors import ResourceError, UsageError

#: A file of ours that is read whole; the largest, a list of revocations, has well under 1 MiB.
FILE_BYTES_MAX = 16 << 20
PRIVATE_FILE_MODE = 0o600
PRIVATE_FOLDER_MODE = 0o700


class InstanceDisk:
    """`seams.Disk` over a real folder. Blocking; call it through `Offload`, or at start."""

    def __init__(self, folder: Path) -> None:
        #: Absolute; made with mode 0700 where it is missing.
        self.folder = folder.absolute()
        make_private_folder(self.folder)

    def path(self, name: str) -> Path:
        """Where the file called `name` is. Raises UsageError for a name that leads out of the folder."""
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise UsageError(f"not the name of a file inside {self.folder}: {name!r}")
        return self.folder.joinpath(*parts)

    def read(self, name: str) -> bytes | None:
        """The content, or None where no such file is. Raises ResourceError."""
        return read_if_there(self.path(name))

    def write(self, name: str, content: bytes, *, mode: int = PRIVATE_FILE_MODE) -> None:
        """Replace the file in one step; folders on the way are made. Raises ResourceError."""
        path = self.path(name)
        if path.parent != self.folder:
            make_private_folder(path.parent)
        write_atomically(path, content, mode=mode)

    def remove(self, name: str) -> None:
        """Remove the file if it is there. Raises ResourceError."""
        path = self.path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(f"cannot remove {path}: {_why(error)}") from error


def read_if_there(path: Path, *, bytes_max: int = FILE_BYTES_MAX) -> bytes | None:
    """The content of `path`, or None where nothing is. Raises ResourceError when it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {_why(error)}") from error
    if len(content) > bytes_max:
        raise ResourceError(f"{path} has more than {bytes_max} bytes: it is no file of this program; move it away")
    return content


def write_atomically(path: Path, content: bytes, *, mode: int = PRIVATE_FILE_MODE) -> None:
    """Put `content` at `path` so that a crash leaves the old file or the new one. Raises ResourceError."""
    _place(path, content, mode, replace=True)


def write_new(path: Path, content: bytes, *, mode: int = PRIVATE_FILE_MODE) -> bool:
    """Put `content` at `path` unless something is there already; whether it was put. Raises ResourceError."""
    return _place(path, content, mode, replace=False)


def _place(path: Path, content: bytes, mode: int, *, replace: bool) -> bool:
    # The temporary name is random, not derived from the process: two threads may write the same file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), mode)  # a umask may have narrowed what os.open was given
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)
                temporary.unlink()
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except FileExistsError:
        if replace:
            raise
        return False
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {_why(error)}") from error
    return True


def make_private_folder(path: Path) -> Path:
    """Make `path` (and its parents) a folder that only this user can enter; `path` itself.

    Raises ResourceError where it is a link, belongs to somebody else, or cannot be made: in a shared temporary folder
    another user may have been quicker, and would then read keys or answer in our name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=PRIVATE_FOLDER_MODE)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise ResourceError(f"{path} is not a folder: move it away")
        if hasattr(os, "getuid"):
            if status.st_uid != os.getuid():
                raise ResourceError(
                    f"{path} belongs to user number {status.st_uid}, not to you ({os.getuid()}): remove it, or set "
                    "P2PCOMPUTE_HOME to a folder of your own"
                )
            if status.st_mode & 0o077:
                path.chmod(PRIVATE_FOLDER_MODE)
    except OSError as error:
        raise ResourceError(f"cannot make the folder {path}: {_why(error)}") from error
    return path


def _sync_folder(folder: Path) -> None:
    # Makes the new name itself survive a power cut; some file systems and Windows refuse to sync a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
