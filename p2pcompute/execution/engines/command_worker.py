"""A command in a worker process: a fresh folder a task, files in, the executable with its words, files out.

No shell is involved. What the command prints is the task's output as it comes, and a bounded copy of it is part of the answer. When the
executable has ended, what it left running is killed, so that no task reaches into the next; that the whole group dies at a
time-out is the pool's doing.

A task's arguments are `[[words, files, stdin], {}]`: a list of texts, a mapping of bytes by path, bytes. The answer is a mapping `status`,
`stdout`, `stderr`, `files`, and `dropped_bytes`, which is above 0 where a copy is not whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import posixpath
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from p2pcompute.execution import values
from p2pcompute.execution.engines.command_files import TaskFolder
from p2pcompute.execution.engines.command_program import CommandBody, open_command
from p2pcompute.execution.loader import ProgramLoadError
from p2pcompute.execution.worker_handles import HandleValues
from p2pcompute.execution.worker_output import STDERR, STDOUT
from p2pcompute.model import limits
from p2pcompute.model.errors import CommandFailedError, ProtocolError, UsageError
from p2pcompute.model.job import Outcome

_READ_BYTES = 64 * 1024
#: How long a look for the end of the executable may wait where the system gives no descriptor of it.
_LOOK_S = 0.05
#: Of the command line, in the words of a failure.
_LINE_CHARS = 200
#: What of stderr an exception carries as its note: the lines that say what was wrong.
_NOTE_CHARS = 2_000
#: What of both copies an exception carries; the submitter has seen all of it as output.
_FAILURE_BYTES = 64 * 1024
#: Variables of the worker that are about the worker.
_OURS = frozenset({"PYTHONPATH", "PYTHONUSERBASE", "MALLOC_ARENA_MAX", "VIRTUAL_ENV"})
_PR_SET_CHILD_SUBREAPER = 36


class CommandProgram:
    """See the file's docstring and `worker_programs.RunsTasks`."""

    def __init__(
        self, data: bytes | bytearray, fetch: Callable[[values.Handle], bytes | bytearray], kept_bytes_max: int
    ) -> None:
        try:
            self._body = open_command(data)
        except ProtocolError as error:
            raise ProgramLoadError("bundle", "", str(error)) from error
        if not self._body.is_shipped and shutil.which(self._body.executable) is None:
            # The peer has looked outside; a sandbox shows less than that.
            text = f"the executable {self._body.executable!r} is not there in the sandbox of this peer's workers"
            raise ProgramLoadError("executable", "", text)
        self._handles = HandleValues(fetch, values.ClassResolver({}), kept_bytes_max).value
        self._root = Path.cwd()
        _adopt_orphans()

    def run(self, entry: int, arguments: bytes | bytearray | memoryview) -> tuple[Outcome, bytes]:
        """See RunsTasks."""
        try:
            place = Path(tempfile.mkdtemp(prefix="task-", dir=self._root))
        except OSError as error:
            return Outcome.RAISED, values.encode_failure(error)
        try:
            answer = self._answer(arguments, place)
            return Outcome.RETURNED, values.encode(answer)
        except MemoryError:
            return Outcome.OUT_OF_MEMORY, b"memory ran out while a command was served (MemoryError)"
        except Exception as error:
            return Outcome.RAISED, values.encode_failure(error.with_traceback(None))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _answer(self, arguments: bytes | bytearray | memoryview, place: Path) -> dict[str, Any]:
        words, files, stdin = _arguments_of(values.decode(arguments, handles=self._handles))
        for name in ("files", "tmp"):
            (place / name).mkdir(mode=0o700)
        folder = TaskFolder(place / "files")
        shipped = posixpath.normpath(self._body.executable) if self._body.is_shipped else ""
        folder.write({**dict(self._body.files), **files}, shipped)
        line = [self._executable(folder.root), *words]
        try:
            process = subprocess.Popen(
                line,
                cwd=folder.root,
                env=_environment(self._body, place / "tmp"),
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise type(error)(error.errno, f"{error.strerror}: the command {line[0]!r} could not be started") from None
        streams = _Streams(process, stdin)
        try:
            status = streams.watch()
        finally:
            process.kill()  # only where watching failed: the dead do not mind
            _kill_children()
        if status and self._body.check:
            raise _failure(line, status, streams)
        return {
            "status": status,
            "stdout": bytes(streams.kept[STDOUT]),
            "stderr": bytes(streams.kept[STDERR]),
            "files": folder.collect(self._body.out, insists=not status),
            "dropped_bytes": streams.dropped_bytes,
        }

    def _executable(self, folder: Path) -> str:
        named = self._body.executable
        if not self._body.is_shipped:
            return named
        path = folder / named
        if not path.is_file():
            raise FileNotFoundError(f"the executable {named!r} is not among the files of the command or of this task")
        return str(path)


def _arguments_of(decoded: Any) -> tuple[list[str], Mapping[str, Any], bytes]:
    """Words, files, stdin. Raises UsageError."""
    try:
        (words, files, stdin), named = decoded
    except (TypeError, ValueError):
        words, files, stdin, named = None, None, None, None
    if (
        named != {}
        or not isinstance(words, (list, tuple))
        or not all(isinstance(word, str) and "\0" not in word for word in words)
        or not isinstance(files, Mapping)
        or not isinstance(stdin, (bytes, bytearray, str))
    ):
        raise UsageError("a command takes a list of words, a mapping of files and bytes for stdin: use command()")
    if len(words) > limits.COMMAND_WORDS_MAX:
        raise UsageError(f"{len(words)} words: {limits.COMMAND_WORDS_MAX} at most, so put them into a file")
    return list(words), files, stdin.encode() if isinstance(stdin, str) else bytes(stdin)


def _environment(body: CommandBody, home: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    environment["HOME"] = environment["TMPDIR"] = str(home)
    return environment | dict(body.environment)


def _failure(line: list[str], status: int, streams: _Streams) -> CommandFailedError:
    out, err = (streams.kept[stream][-_FAILURE_BYTES:].decode("utf-8", "replace") for stream in (STDOUT, STDERR))
    shown = " ".join(line)[:_LINE_CHARS]
    failure = CommandFailedError(
        f"the command {shown!r} ended with status {status}", status=status, stdout=out, stderr=err
    )
    note = err[-_NOTE_CHARS:].strip()
    if note:
        failure.add_note(f"stderr: {note}")
    return failure


class _Streams:
    """The pipes of a running command: stdin is fed, both outputs are passed on and kept up to a limit."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._waiting = memoryview(stdin)
        self.kept = {STDOUT: bytearray(), STDERR: bytearray()}
        #: Bytes that the copies lack.
        self.dropped_bytes = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(process.stdout, selectors.EVENT_READ, STDOUT)
        self._selector.register(process.stderr, selectors.EVENT_READ, STDERR)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(process.stdin, selectors.EVENT_WRITE)

    def watch(self) -> int:
        """Until the executable has ended and all that was printed is read; its status, below 0 for a signal's number."""
        with self._selector:
            while self._process.poll() is None:
                # Once nothing can come any more the end alone is waited for.
                if not self._selector.get_map():
                    self._process.wait()
                    break
                self._turn(_LOOK_S)
            # What it left running may hold the pipes open for ever.
            _kill_children()
            while self._selector.get_map() and self._turn(0.0):
                pass
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        return self._process.returncode

    def _turn(self, wait_s: float) -> bool:
        """Move what can be moved; whether anything could."""
        ready = self._selector.select(wait_s)
        for key, _ in ready:
            file: Any = key.fileobj
            if key.data is None:
                self._feed(file)
                continue
            data = os.read(file.fileno(), _READ_BYTES)
            if not data:
                self._selector.unregister(file)
                continue
            self._keep(key.data, data)
        return bool(ready)

    def _feed(self, file: Any) -> None:
        try:
            written = os.write(file.fileno(), self._waiting[:_READ_BYTES])
        except BlockingIOError:
            return
        except BrokenPipeError:
            written = len(self._waiting)  # it does not want the rest
        self._waiting = self._waiting[written:]
        if not self._waiting:
            self._selector.unregister(file)
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _keep(self, stream: int, data: bytes) -> None:
        kept = self.kept[stream]
        room = max(limits.COMMAND_OUTPUT_BYTES_MAX - len(kept), 0)
        kept += data[:room]
        self.dropped_bytes += max(len(data) - room, 0)
        view = memoryview(data)
        while view:
            view = view[os.write(stream, view) :]


# --- what a command leaves running ------------------------------------------------------------------------------------


def _adopt_orphans() -> None:
    """Become the parent of what outlives its own parent here, so that it can be found. Linux alone knows that."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_children() -> None:
    """Kill and reap every child of this process; orphans of theirs become children here and are next."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            if os.waitpid(-1, 0) == (0, 0):
                return
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    own = os.getpid()
    if sys.platform != "linux" or not _has_children():
        return
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                if int(words[1]) == own:
                    yield int(name)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
