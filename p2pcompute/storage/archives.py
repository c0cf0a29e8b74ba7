"""Archives of tasks and results, kept for a while in one folder, each under the id of its job.

Names are ids and nothing else, so no name leads anywhere; one archive has a largest size, and all of them together have one, too: the oldest go
first. What is older than a day is removed whenever somebody sweeps.

Refuses to know: what is in an archive.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from p2pcompute.model import limits
from p2pcompute.model.errors import ResourceError, UsageError
from p2pcompute.storage.files import make_private_folder

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
_SUFFIX = ".zip"


@dataclass(frozen=True, slots=True)
class Archives:
    """The archives in `folder`, which is made when the first one comes."""

    folder: Path

    def keep(self, name: str, data: bytes, now_wall: float) -> Path:
        """Write an archive, whole or not at all, in the place of an older one of that name. Raises UsageError, ResourceError."""
        if len(data) > limits.TASK_FILES_BYTES_MAX:
            raise UsageError(f"the archive has {len(data)} bytes: {limits.TASK_FILES_BYTES_MAX} at most are kept")
        place = self._place(name)
        part = self.folder / f".{name}.{os.getpid()}.part"
        try:
            make_private_folder(self.folder)
            self.sweep(now_wall, room_bytes=len(data))
            part.write_bytes(data)
            os.utime(part, (now_wall, now_wall))
            part.replace(place)
        except OSError as error:
            raise ResourceError(f"cannot keep {place}: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return place

    def get(self, name: str) -> bytes | None:
        """The archive of that name, None where none is kept. Raises UsageError for what is no name, ResourceError."""
        place = self._place(name)
        try:
            return None if place.is_symlink() else place.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ResourceError(f"cannot read {place}: {error.strerror}") from error

    def sweep(self, now_wall: float, room_bytes: int = 0) -> int:
        """Remove what is older than `limits.ARCHIVE_KEPT_S`, then the oldest until `room_bytes` more have room; how many went."""
        found: list[tuple[float, int, Path]] = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    # A clock that went back makes nothing immortal.
                    found.append((min(status.st_mtime, now_wall), status.st_size, path))
        found.sort(key=lambda row: (row[0], row[2].name))
        total = sum(size for _, size, _ in found) + room_bytes
        gone = 0
        for written_wall, size, path in found:
            if now_wall - written_wall <= limits.ARCHIVE_KEPT_S and total <= limits.ARCHIVES_BYTES_MAX:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                gone += 1
                total -= size
        return gone

    def _place(self, name: str) -> Path:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise UsageError(f"{str(name)[:80]!r} is no name of an archive: it has letters, digits, '-' and '_'")
        return self.folder / f"{name}{_SUFFIX}"
