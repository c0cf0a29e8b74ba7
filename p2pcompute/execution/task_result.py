"""What a task with files answers with: status, what it wrote, files, and why it was stopped where it was.

It comes from a peer, so its form and every path in it are checked before anybody uses them.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from p2pcompute.execution.program_zip import result_zip
from p2pcompute.execution.task_files import check_files, write_files
from p2pcompute.model.errors import ProtocolError, ResourceError, UsageError


@dataclass(frozen=True, slots=True)
class TaskResult:
    """`stopped`: why it was ended from outside, empty where it ended by itself; then everything else is what it had done by then.

    `log`: what was done for it, line by line; `left_out`: files that did not come, each with the reason.
    """

    status: int
    stdout: bytes = b""
    stderr: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    stopped: str = ""
    log: str = ""
    left_out: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As it travels."""
        return {
            "status": self.status,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "files": self.files,
            "stopped": self.stopped,
            "log": self.log,
            "left_out": list(self.left_out),
        }

    @classmethod
    def from_plain(cls, value: object) -> Self:
        """What `plain` made. Raises ProtocolError for anything else, and for paths that lead anywhere."""
        if not isinstance(value, dict):
            raise ProtocolError("the result of a task with files is a map")
        status, files = value.get("status"), value.get("files", {})
        stdout, stderr = value.get("stdout", b""), value.get("stderr", b"")
        stopped, log, left_out = value.get("stopped", ""), value.get("log", ""), value.get("left_out", [])
        if (
            type(status) is not int
            or type(files) is not dict
            or not all(type(data) is bytes for data in (stdout, stderr, *files.values()))
            or not all(type(text) is str for text in (stopped, log))
            or type(left_out) is not list
            or not all(type(text) is str for text in left_out)
        ):
            raise ProtocolError("the result of a task with files has members of other types than it should")
        try:
            check_files({path: len(data) for path, data in files.items()})
        except UsageError as error:
            raise ProtocolError(f"a peer answered with a file that must not be written: {error}") from error
        return cls(status, stdout, stderr, files, stopped, log, tuple(left_out))

    @property
    def printed(self) -> str:
        """Both streams as text, one after the other."""
        parts = (("stdout", self.stdout), ("stderr", self.stderr))
        return "".join(f"--- {name}\n{data.decode('utf-8', 'replace')}\n" for name, data in parts if data)

    def archive(self) -> bytes:
        """A ZIP archive of everything: see `program_zip.result_zip`."""
        left_out = "".join(f"not taken: {reason}\n" for reason in self.left_out)
        return result_zip(self.files, self.log + left_out, self.printed, self.stopped)

    def write_to(self, folder: Path) -> None:
        """Write the files into `folder`, which must be empty or not there; it is complete or as it was. Raises UsageError, ResourceError."""
        try:
            if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
                raise UsageError(
                    f"{folder} is there already and not an empty folder: name another one, nothing was written"
                )
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
                inner = Path(temporary) / "files"
                inner.mkdir()
                write_files(inner, self.files)
                if folder.exists():
                    folder.rmdir()
                os.rename(inner, folder)
        except OSError as error:
            raise ResourceError(f"cannot write the results to {folder}: {error.strerror or error}") from error
