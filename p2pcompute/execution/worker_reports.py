"""What a worker sends to its peer, gathered and timed: results, progress, output.

Results of short tasks are gathered for `GATHER_S` of work, then sent in one frame. A helper thread looks every `LOOK_S` while
tasks run: it sends what a long task would otherwise hold back, and reads what is printed. It sleeps entirely while
the worker is idle, and never blocks on the peer: it only sends what the socket takes at once.

News of a task goes out before its end. Refuses to know: what a payload means.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from typing import NoReturn

from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.worker_output import OutputCapture
from p2pcompute.model import limits
from p2pcompute.model.job import Outcome

#: Work whose results travel together: long against the 5 µs of a send, short against any network.
GATHER_S = 0.001
#: How long a result or a printed line may wait behind a running task.
LOOK_S = 0.02
#: The helper keeps looking for so long after the last task, so that a busy worker need not wake it for every batch.
LINGER_S = 1.0
#: After reading output, wait so long before reading on: a task that prints without end costs a few per cent.
OUTPUT_PAUSE_S = 0.002


class Reports:
    """The outgoing side of one worker. `begin`, `end`, `flush` belong to the main thread, `report_progress` to any."""

    def __init__(self, connection: socket.socket, output: OutputCapture, page: protocol.StatePage) -> None:
        self._connection = connection
        self._page = page
        self._output = output
        #: Held by whoever sends, so that frames stay whole and in order.
        self._sending = threading.Lock()
        self._serial = 0
        #: Packed rows that wait; the page mirrors them.
        self._ends: list[bytes] = []
        self._ends_bytes = 0
        #: Rows of ended tasks, and the newest report of the running one.
        self._progress: list[tuple[int, float, str]] = []
        self._newest: tuple[int, float, str] | None = None
        self._progress_sent_at = 0.0
        self._flushed_at = 0.0
        self._room = select.poll()
        self._room.register(connection, select.POLLOUT)

    @property
    def running(self) -> bool:
        """Whether a task runs now."""
        return self._serial != 0

    # main thread

    def begin(self, serial: int) -> None:
        """`serial` starts now."""
        self._serial = serial
        self._output.begin(serial)

    def end(self, serial: int, outcome: Outcome, wall_us: int, payload: bytes, usage: tuple[int, ...] = ()) -> None:
        """`serial` has ended; sent at once where it is large or enough has gathered."""
        self._output.end()
        self._serial = 0
        newest, self._newest = self._newest, None
        if newest is not None and newest[0] == serial:
            with self._sending:
                self._progress.append(newest)
        if len(payload) > protocol.TAIL_BYTES_MIN:
            self._output.look()
            self.flush()
            with self._sending:
                self._connection.sendall(
                    protocol.pack_frame((protocol.END_LARGE, serial, int(outcome), wall_us, usage), len(payload))
                )
                self._connection.sendall(payload)
            return
        row = protocol.pack_end(serial, int(outcome), wall_us, payload, usage)
        with self._sending:
            self._page.mirror(row)
            self._ends.append(row)
            self._ends_bytes += len(row)
        if (
            self._ends_bytes + self._output.waiting_bytes > protocol.ROWS_BYTES_MAX
            or len(self._ends) >= limits.BATCH_TASKS_MAX
            or time.monotonic() - self._flushed_at > GATHER_S
        ):
            self.flush()

    def flush(self) -> None:
        """Send all that waits; blocks while the peer is slow."""
        if self._ends:
            self._output.look()
        with self._sending:
            self._send_news(take_newest=False)
            self._send_ends()
            self._flushed_at = time.monotonic()

    def send(self, *head: object) -> None:
        """One frame of any kind, after what waits."""
        self.flush()
        with self._sending:
            self._connection.sendall(protocol.pack_frame(head))

    # any thread

    def report_progress(self, fraction: float, message: str) -> None:
        """Note the newest progress of the running task; the helper sends it when it may."""
        serial = self._serial
        if serial:
            self._newest = (serial, fraction, message.encode("utf-8", "replace").decode())

    # helper thread

    def send_waiting(self) -> None:
        """Send what waits and the socket takes at once; never blocks."""
        if not (self._ends or self._progress or self._newest or self._output.waiting_bytes):
            return
        if not self._sending.acquire(blocking=False):
            return
        try:
            if self._has_room():
                self._send_news(take_newest=True)
            if self._has_room():
                self._send_ends()
        finally:
            self._sending.release()

    def _has_room(self) -> bool:
        # A stream socket is writable for poll when at least a good part of its buffer is free, which one frame of ours fits.
        return bool(self._room.poll(0))

    def _send_news(self, *, take_newest: bool) -> None:
        progress, self._progress = self._progress, []
        if take_newest and self._newest is not None:
            now = time.monotonic()
            if now - self._progress_sent_at >= 1 / limits.PROGRESS_PER_SECOND:
                newest, self._newest = self._newest, None
                if newest is not None:
                    progress.append(newest)
                self._progress_sent_at = now
        output = self._output.take()
        if progress or output:
            self._connection.sendall(protocol.pack_frame((protocol.NEWS, progress, output)))

    def _send_ends(self) -> None:
        if self._ends:
            ends, self._ends, self._ends_bytes = self._ends, [], 0
            self._connection.sendall(protocol.pack_frame((protocol.ENDS, b"".join(ends))))
            self._page.clear_mirror()


class Helper:
    """The worker's second thread: reads output, sends what waits, and ends the process group when the peer is gone."""

    def __init__(self, reports: Reports, output: OutputCapture, lifeline: int) -> None:
        self._reports = reports
        self._output = output
        self._lifeline = lifeline
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        #: Monotonic seconds when tasks were last known to run.
        self._busy_at = 0.0
        #: True while the thread waits without end.
        self._asleep = False

    def start(self) -> None:
        """Start the thread; before memory is limited, for a small stack costs little address space."""
        previous = threading.stack_size(512 * 1024)
        threading.Thread(target=self._run, name="p2pcompute-helper", daemon=True).start()
        threading.stack_size(previous)

    def tasks_run(self) -> None:
        """Tasks are about to run: look regularly from now on."""
        self._busy_at = time.monotonic()
        if self._asleep:
            try:
                os.write(self._wake_write, b"w")
            except BlockingIOError:
                return  # it was woken and has not looked yet

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except MemoryError:
                # The task holds all the memory there is; it will fail or be killed, and then this goes on.
                time.sleep(LOOK_S)
            except OSError:
                return  # the socket is gone: the main thread sees that too, and ends the process

    def _look(self) -> None:
        poll = select.poll()
        descriptors = self._output.descriptors()
        for descriptor in (*descriptors, self._lifeline, self._wake_read):
            poll.register(descriptor, select.POLLIN)
        while descriptors == self._output.descriptors():
            # First say so, then look whether it is right: the main thread does it the other way round, so no task is missed.
            self._asleep = True
            self._asleep = time.monotonic() - self._busy_at > LINGER_S and not self._reports.running
            ready = {descriptor for descriptor, _ in poll.poll(None if self._asleep else LOOK_S * 1000)}
            self._asleep = False
            if self._lifeline in ready:
                end_process_group()
            if self._wake_read in ready:
                os.read(self._wake_read, 64)
            if not ready.isdisjoint(descriptors):
                self._output.drain()
                time.sleep(OUTPUT_PAUSE_S)
            self._reports.send_waiting()


def end_process_group() -> NoReturn:
    """Kill this worker and all that it has started: nobody is left to work for."""
    if os.getpgid(0) == os.getpid():
        with contextlib.suppress(PermissionError):  # a worker that may not start processes may signal none but itself
            os.killpg(0, signal.SIGKILL)
    os._exit(0)
