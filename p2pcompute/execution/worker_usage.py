"""What each task of a worker process uses: CPU, memory, bytes read and written; fuel where its engine counts any.

A task that takes less than `SHORT_US` is not measured: reading the clocks of a process costs more than such tasks may lose, and whoever adds
up takes them to have kept one core busy. Before a task the CPU clock is read only where its last reading is older than `READ_EVERY_NS`, which
bounds the error. The high-water mark of memory is that of the process; after a task that raised it much it is set back, where the system lets.

Processes that a task starts count with what it waited for. Refuses to know: other workers, and accelerators, whose driver counts by process and not
by task.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from p2pcompute.model.job import SHORT_TASK_US

if sys.platform != "win32":
    import resource

#: A reading of the CPU clock that is younger is taken for the beginning of the next task.
READ_EVERY_NS = 500_000
#: A rise of the high-water mark after which it is set back.
RISE_BYTES = 8 << 20
#: `ru_maxrss` is in KiB, but in bytes on macOS.
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class Meter:
    """Of one worker, in its main thread."""

    def __init__(self) -> None:
        #: What the engine says that the last task used, None where it counts nothing.
        self.fuel: Callable[[], int] | None = None
        #: The last reading of the process's CPU clock, and when, monotonic.
        self._cpu_ns = time.process_time_ns()
        self._read_at_ns = time.monotonic_ns()
        #: The same of children that were waited for; a task of less than a millisecond has none.
        self._children_us = _children_us()
        #: /proc/self/io, None where there is none.
        self._io = _open("/proc/self/io", os.O_RDONLY)
        self._read_bytes, self._written_bytes = self._moved()
        self._peak_bytes = _peak_bytes()
        self._clear = _open("/proc/self/clear_refs", os.O_WRONLY)

    def begin(self, now_ns: int) -> None:
        """A task begins; `now_ns`: the monotonic clock."""
        if now_ns - self._read_at_ns > READ_EVERY_NS:
            self._cpu_ns, self._read_at_ns = time.process_time_ns(), now_ns

    def end(self, wall_us: int) -> tuple[int, ...]:
        """The task has ended after `wall_us`: fields of `model.job.Usage` in their order, without zeros at the end."""
        fuel = self.fuel() if self.fuel is not None else 0
        if wall_us < SHORT_TASK_US:
            return (0, 0, 0, 0, fuel) if fuel else ()
        cpu_ns, children_us = time.process_time_ns(), _children_us()
        cpu_us = (cpu_ns - self._cpu_ns) // 1000 + children_us - self._children_us
        self._cpu_ns, self._read_at_ns, self._children_us = cpu_ns, time.monotonic_ns(), children_us
        read_bytes, written_bytes = self._moved()
        read_here, written_here = read_bytes - self._read_bytes, written_bytes - self._written_bytes
        self._read_bytes, self._written_bytes = read_bytes, written_bytes
        peak_bytes = _peak_bytes()
        if peak_bytes - self._peak_bytes > RISE_BYTES:
            self._set_back()
        self._peak_bytes = _peak_bytes()
        return trimmed((max(cpu_us, 0), peak_bytes, max(read_here, 0), max(written_here, 0), fuel))

    def _moved(self) -> tuple[int, int]:
        """Bytes that this process and the children it waited for have asked for by reading and writing."""
        if self._io is None:
            return 0, 0
        try:
            words = os.pread(self._io, 512, 0).split()
            return int(words[1]), int(words[3])
        except (OSError, ValueError, IndexError):
            return 0, 0

    def _set_back(self) -> None:
        if self._clear is not None:
            try:
                os.write(self._clear, b"5")
            except OSError:
                self._clear = None  # a sandbox does not let: the mark only rises then


def trimmed(values: tuple[int, ...]) -> tuple[int, ...]:
    """`values` without zeros at the end."""
    count = len(values)
    while count and not values[count - 1]:
        count -= 1
    return values[:count]


def _children_us() -> int:
    if sys.platform == "win32":
        return 0
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((spent.ru_utime + spent.ru_stime) * 1e6)


def _peak_bytes() -> int:
    if sys.platform == "win32":
        return 0
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(own) * _MAXRSS_BYTES


def _open(path: str, flags: int) -> int | None:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError:
        return None
