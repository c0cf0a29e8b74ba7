"""What running code prints, caught inside the worker: two pipes in place of descriptors 1 and 2, read by the worker itself.

Descriptors rather than `sys.stdout`, so that C code and child processes are caught too. What is read is attributed to the task that
runs; `limits.TASK_OUTPUT_BYTES_MAX` a task is kept, the rest is read and dropped, so that printing without end
neither stops the task nor fills memory. The peer holds the read ends as well: it takes what a crashed worker left
behind, and rescues a task whose C code fills a pipe while it holds the interpreter lock.

Rule: `drain` never blocks. Refuses to know: how rows travel.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from p2pcompute.model import limits

#: Room in a pipe (where the system grants it): what may be printed between two looks of the helper thread.
PIPE_BYTES = 256 * 1024
#: Reads of one look: a child process that floods must not keep the worker from its work.
_READS_PER_DRAIN = 8
#: What Python code prints is known at once. What C code or a child printed is looked for at the end of a task when the last look
#: is so long ago: a look costs as much as a whole short task, and nothing that starts a child is shorter.
_LOOK_S = 0.0002
STDOUT, STDERR = 1, 2

OutputRow = tuple[int, int, bytes]


def dropped_note(dropped_bytes: int) -> bytes:
    """What the submitter sees in place of output beyond the limit."""
    kept_kib = limits.TASK_OUTPUT_BYTES_MAX // 1024
    return f"\n[{dropped_bytes} more bytes of output were dropped: {kept_kib} KiB of one task are kept]\n".encode()


class _NotingFile(io.FileIO):
    """A descriptor for writing that says when something is written."""

    def __init__(self, descriptor: int, on_write: Callable[[], None]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._on_write = on_write

    def write(self, data: Any) -> int:
        self._on_write()
        return super().write(data)


class OutputCapture:
    """Reads both pipes and keeps rows of (serial, stream, bytes) until they are taken. Safe from any thread."""

    def __init__(self, out_read: int, err_read: int, on_drain: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._on_drain = on_drain
        self._buffer = bytearray(PIPE_BYTES)
        #: Read end by stream; one that reached its end (user code closed the descriptor) is gone.
        self._pipes = {STDOUT: out_read, STDERR: err_read}
        self._poll = select.poll()
        #: Bytes of the running task kept and dropped.
        self._kept_bytes = 0
        self._dropped_bytes = 0
        self._serial = 0
        #: Whether Python code has printed since the last look, and when that was.
        self._printed = False
        self._looked_at = 0.0
        self._rows: list[OutputRow] = []
        #: Bytes in `_rows`.
        self.waiting_bytes = 0
        self._streams: list[io.TextIOWrapper] = []
        for descriptor in self._pipes.values():
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        self._install_streams()

    def descriptors(self) -> list[int]:
        """What a helper thread should poll."""
        return list(self._pipes.values())

    def begin(self, serial: int) -> None:
        """What is printed from now on is `serial`'s."""
        self._serial = serial
        self._kept_bytes = 0

    def end(self) -> None:
        """Take in all that the running task has printed, and note what was dropped."""
        for stream in self._streams:
            try:
                stream.flush()
            except OSError:
                continue  # its descriptor was closed by user code
            except ValueError:  # the stream itself was
                self._install_streams()
                break
        now = time.monotonic()
        if self._printed or now - self._looked_at > _LOOK_S:
            self._look(now)
        if self._dropped_bytes:
            with self._lock:
                self._keep(STDERR, dropped_note(self._dropped_bytes))
                self._dropped_bytes = 0

    def look(self) -> None:
        """Take in what is in the pipes, however it came there."""
        self._look(time.monotonic())

    def _look(self, now: float) -> None:
        self._looked_at = now
        self._printed = False
        if self._pipes and self._poll.poll(0):
            self.drain()
        else:
            # The helper may have emptied a pipe and not yet kept what it read: wait until it has.
            with self._lock:
                pass

    def note_print(self) -> None:
        """Something was printed by Python code."""
        self._printed = True

    def drain(self) -> None:
        """Read what is in the pipes now; never blocks."""
        self._on_drain()
        with self._lock:
            for stream, descriptor in list(self._pipes.items()):
                for _ in range(_READS_PER_DRAIN):
                    try:
                        count = os.readv(descriptor, [self._buffer])
                    except BlockingIOError:
                        break
                    if count == 0:
                        self._poll.unregister(descriptor)
                        del self._pipes[stream]
                        break
                    taken = min(count, limits.TASK_OUTPUT_BYTES_MAX - self._kept_bytes)
                    self._kept_bytes += taken
                    self._dropped_bytes += count - taken
                    if taken:
                        self._keep(stream, bytes(memoryview(self._buffer)[:taken]))

    def take(self) -> list[OutputRow]:
        """The rows since the last call."""
        if not self._rows:
            return []
        with self._lock:
            rows, self._rows, self.waiting_bytes = self._rows, [], 0
        return rows

    def _keep(self, stream: int, data: bytes) -> None:
        self._rows.append((self._serial, stream, data))
        self.waiting_bytes += len(data)

    def _install_streams(self) -> None:
        """Fresh `sys.stdout` and `sys.stderr` over descriptors 1 and 2, flushed by line."""
        self._streams = []
        for name, descriptor in (("stdout", STDOUT), ("stderr", STDERR)):
            try:
                raw = _NotingFile(descriptor, self.note_print)
            except OSError:
                continue  # the descriptor itself is closed: what is written to it is its closer's affair
            stream = io.TextIOWrapper(
                io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
            )
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
            self._streams.append(stream)
