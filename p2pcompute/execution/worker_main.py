"""The program in a worker process: loads one program of one submitter, then runs its tasks in the order they come.

The main thread reads tasks from the socket, runs them and gathers their ends (`worker_reports.py`). Everything that user code can do to
this process, by raising, exiting, crashing, printing or filling memory, is that task's doing; what the process cannot survive the
pool sees from outside. Refuses to know: other workers, jobs, links.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import random
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NoReturn

from p2pcompute.execution import resources, task
from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.engines.worker_programs import RESERVING, RunsTasks, load_for
from p2pcompute.execution.loader import ProgramLoadError
from p2pcompute.execution.sandbox import confine
from p2pcompute.execution.values import Handle
from p2pcompute.execution.worker_handles import KEPT_BYTES_MAX
from p2pcompute.execution.worker_output import STDERR, STDOUT, OutputCapture
from p2pcompute.execution.worker_reports import Helper, Reports, end_process_group
from p2pcompute.execution.worker_usage import Meter
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import BlobMissingError
from p2pcompute.model.job import Outcome

if sys.platform != "win32":
    import fcntl

_RECEIVE_BYTES = 64 * 1024
#: Of the memory that a worker may use, the values behind handles that it keeps take at most one part in so many.
_MEMORY_PER_KEPT = 8


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What a worker is given, by number, in the order in which they travel.

    `lifeline`: a pipe whose other end only the peer holds. `*_read`, `*_write`: the pipes of its output.
    """

    connection: int
    page: int
    lifeline: int
    out_read: int
    out_write: int
    err_read: int
    err_write: int

    def all(self) -> tuple[int, ...]:
        """In the order of the fields."""
        return tuple(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the peer tells a worker in its first frame, as a msgpack map."""

    folder: str
    memory_bytes: int | None
    open_files_max: int
    nice: int
    engine: str = Engine.PYTHON
    #: `Confinement`, as a map; empty: nothing is given up.
    confinement: dict[str, Any] = field(default_factory=dict)
    #: Of the environment, beside what every worker has.
    variables: dict[str, str] = field(default_factory=dict)


class Worker:
    """One worker process, after its descriptors are in place."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._pid = os.getpid()
        self._connection = socket.socket(fileno=descriptors.connection)
        self._page = protocol.StatePage(descriptors.page)
        os.close(descriptors.page)
        self._output = OutputCapture(descriptors.out_read, descriptors.err_read, self._page.note_drain)
        self._reports = Reports(self._connection, self._output, self._page)
        self._helper = Helper(self._reports, self._output, descriptors.lifeline)
        self._program: RunsTasks | None = None
        #: Measures what tasks use.
        self._meter = Meter()
        #: What came to be loaded and is not yet: loading may itself receive.
        self._to_load: tuple[WorkerSettings, bytearray] | None = None
        #: (serial, entry, arguments or None where memory does not hold them), in the order they came.
        self._queue: deque[tuple[int, int, bytes | bytearray | None]] = deque()
        #: The last blob that came: its id, its size or -1 where nobody holds it, and its bytes if memory holds them.
        self._answer: tuple[bytes, int, bytearray | None] | None = None
        #: Serials to pass over.
        self._cancelled: set[int] = set()
        self._cancels_seen = 0
        #: Where the socket writes, and the bytes received and not yet understood.
        self._arriving = memoryview(bytearray(_RECEIVE_BYTES))
        self._received = bytearray()

    def run(self) -> None:
        """Load, then work until the peer is gone."""
        while self._to_load is None:
            self._receive(blocking=True)
        settings, _ = self._to_load
        os.chdir(settings.folder)
        # Before there is a second thread, which it would not reach.
        confine.apply(confine.Confinement.from_map(settings.confinement))
        self._helper.start()
        os.register_at_fork(after_in_child=self._connection.close)
        while True:
            if self._to_load is not None:
                (settings, program), self._to_load = self._to_load, None
                self._load(settings, program)
            while self._queue:
                if self._page.cancels != self._cancels_seen:
                    self._look_for_cancels()
                    continue
                self._run_task(*self._queue.popleft())
            self._reports.flush()
            self._receive(blocking=True)
            self._helper.tasks_run()

    def _run_task(self, serial: int, entry: int, arguments: bytes | bytearray | None) -> None:
        if serial in self._cancelled:
            self._cancelled.discard(serial)
            return
        if arguments is None:
            text = b"the arguments do not fit into the memory of the worker"
            self._reports.end(serial, Outcome.OUT_OF_MEMORY, 0, text)
            return
        assert self._program is not None
        self._reports.begin(serial)
        began_ns = time.monotonic_ns()
        self._meter.begin(began_ns)
        self._page.began(serial, began_ns)
        outcome, payload = self._program.run(entry, arguments)
        if os.getpid() != self._pid:
            end_child(outcome)
        wall_us = (time.monotonic_ns() - began_ns) // 1000
        self._page.ended()
        self._reports.end(serial, outcome, wall_us, payload, self._meter.end(wall_us))

    # incoming

    def _look_for_cancels(self) -> None:
        self._cancels_seen = self._page.cancels
        while self._receive(blocking=False):
            pass

    def _receive(self, *, blocking: bool) -> bool:
        """Take in what one read brings; False where nothing was there. Ends the process when the peer is gone."""
        try:
            count = self._connection.recv_into(self._arriving, 0, 0 if blocking else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            count = 0
        if count == 0:
            end_process_group()
        received = self._received
        received += self._arriving[:count]
        start = 0
        while len(received) - start >= protocol.HEADER.size:
            head_bytes, tail_bytes = protocol.parse_header(received, start)
            body = start + protocol.HEADER.size
            if len(received) < body + head_bytes:
                break
            head = protocol.parse_head(bytes(received[body : body + head_bytes]))
            start = body + head_bytes
            tail: bytearray | None = None
            if tail_bytes:
                tail = self._receive_tail(received[start : start + tail_bytes], tail_bytes)
                start = min(start + tail_bytes, len(received))
            self._on_frame(head, tail)
        del received[:start]
        return True

    def _receive_tail(self, beginning: bytearray, tail_bytes: int) -> bytearray | None:
        """The whole tail, or None where memory does not hold it (it is read nevertheless)."""
        try:
            tail = bytearray(tail_bytes)
        except MemoryError:
            missing = tail_bytes - len(beginning)
            while missing:
                missing -= self._received_or_end(len(self._connection.recv(min(missing, _RECEIVE_BYTES))))
            return None
        tail[: len(beginning)] = beginning
        view = memoryview(tail)[len(beginning) :]
        while view:
            view = view[self._received_or_end(self._connection.recv_into(view)) :]
        return tail

    @staticmethod
    def _received_or_end(count: int) -> int:
        if count == 0:
            end_process_group()
        return count

    def _on_frame(self, head: list[Any], tail: bytearray | None) -> None:
        match head:
            case [protocol.RUN, serial, rows]:
                self._queue.extend((serial + number, row[0], row[1]) for number, row in enumerate(rows))
            case [protocol.RUN_LARGE, serial, entry]:
                self._queue.append((serial, entry, tail))
            case [protocol.CANCEL, serials]:
                self._cancelled.update(serials)
            case [protocol.BLOB, blob, size]:
                self._answer = (blob, size, tail)
            case [protocol.LOAD, settings]:
                self._to_load = (WorkerSettings(**settings), tail or bytearray())
            case _:
                raise protocol.MalformedFrameError(f"a frame of kind {head[0]} from the peer")

    # data behind handles

    def _fetch(self, handle: Handle) -> bytearray:
        """Ask the peer for the bytes behind `handle` and wait for them; tasks that come meanwhile queue as always."""
        if os.getpid() != self._pid:
            raise BlobMissingError("a process that a task has started cannot ask for data behind a handle")
        self._reports.send(protocol.WANT_BLOB, handle.blob, handle.size_bytes)
        while self._answer is None or self._answer[0] != handle.blob:
            self._receive(blocking=True)
        (_, size, data), self._answer = self._answer, None
        if size < 0:
            raise BlobMissingError(
                f"the data behind a handle ({handle.size_bytes} bytes, blob {handle.blob.hex()[:12]}) is not held by the submitting "
                "peer any more: drop a handle, or close the peer or connection that put it, only when the job has ended; "
                "put the data again and submit again"
            )
        if data is None:
            raise MemoryError(f"the {size} bytes behind a handle do not fit into the memory of the worker")
        return data

    def _load(self, settings: WorkerSettings, program: bytearray) -> None:
        self._helper.tasks_run()
        os.environ["HOME"] = os.environ["TMPDIR"] = settings.folder
        os.environ.update(settings.variables)
        engine = Engine(settings.engine)
        resources.apply_limits(
            memory_bytes=settings.memory_bytes,
            open_files_max=settings.open_files_max,
            nice=settings.nice,
            reserves=engine in RESERVING,
        )
        task.install_reporter(self._reports.report_progress)
        try:
            share = KEPT_BYTES_MAX if settings.memory_bytes is None else settings.memory_bytes // _MEMORY_PER_KEPT
            self._program = load_for(engine, program, self._fetch, min(share, KEPT_BYTES_MAX))
        except ProgramLoadError as error:
            self._output.end()
            self._reports.send(protocol.FAILED, error.reason, error.module, error.text)
            end_process_group()
        self._output.end()
        counts = self._program
        if hasattr(counts, "last_fuel"):
            # Engines that count their work say so by an attribute of that name.
            self._meter.fuel = lambda: int(counts.last_fuel)
        self._reports.send(protocol.READY)


def prepare(descriptors: Descriptors) -> None:
    """Make this process a worker: own session, default signals, output into the pipes, fresh dice, tied to the peer's life."""
    with contextlib.suppress(PermissionError):  # already leads its session
        os.setsid()
    _reset_signals()
    _tie_to(descriptors.lifeline)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (descriptors.out_write, STDOUT), (descriptors.err_write, STDERR)):
        os.dup2(source, target)
        os.close(source)
    for descriptor in (descriptors.connection, descriptors.lifeline, descriptors.out_read, descriptors.err_read):
        os.set_inheritable(descriptor, False)
    faulthandler.enable(STDERR)
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _reset_signals() -> None:
    keep_ignored = {signal.SIGPIPE, signal.SIGXFSZ}  # ignored by Python itself: they become exceptions
    for number in signal.valid_signals() - keep_ignored - {signal.SIGKILL, signal.SIGSTOP}:
        # The C library keeps two numbers for itself.
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _tie_to(lifeline: int) -> None:
    """Have the kernel kill this process group when the peer's end of the lifeline closes, whatever user code is doing.

    Linux sends the signal of F_SETSIG when a pipe's last writer goes. Unlike PR_SET_PDEATHSIG this follows the peer rather than
    the template, needs no interpreter lock, and takes children of user code along. Elsewhere the helper thread watches.
    """
    if sys.platform != "linux":
        return
    try:
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgid(0))
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise


def end_child(outcome: Outcome) -> NoReturn:
    """End a process that a task forked and that came back from the task's function: it is not the worker."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(0 if outcome is Outcome.RETURNED else 1)


def work(descriptors: Descriptors) -> NoReturn:
    """Be a worker until the peer is gone; never returns."""
    try:
        prepare(descriptors)
        Worker(descriptors).run()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(70)


def main(arguments: list[str]) -> None:
    """Entry of a worker that was started directly: the numbers of its descriptors."""
    work(Descriptors(*map(int, arguments)))
