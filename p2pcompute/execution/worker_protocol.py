"""What a peer and its worker processes say to each other: frames over a socket pair, and one shared page.

A frame is a header (length of the head, length of the tail), a head in msgpack, [kind, fields…], and a raw tail. Small values
travel in the head, many in one frame; a value above `TAIL_BYTES_MIN` travels alone as a tail, so that neither side copies it
into a larger buffer or stalls for it.

Tasks are known by their serial here: the pool numbers what it gives to one worker 1, 2, 3…, so a worker that lies can only
spoil its own tasks. The page is shared memory and survives the worker's death. It says which serial runs and since when, so a crash
is one task's failure and nobody else's; and it mirrors the ends that the worker has gathered and not yet sent, so they are
neither lost with it nor held back by a task that holds the interpreter lock. An end that comes both ways counts once.

Refuses to know: sockets and processes (`pool_channel.py`, `worker_main.py`), and what a payload means.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Sequence
from typing import Any

import msgpack

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError

#: Length of the head and length of the tail, little endian.
HEADER = struct.Struct("<IQ")
#: Values above this travel as a tail: below it a copy costs less than another frame.
TAIL_BYTES_MIN = 64 * 1024
#: A head: rows of one batch, each below `TAIL_BYTES_MIN`, cut at `ROWS_BYTES_MAX`, and some room.
HEAD_BYTES_MAX = 1 << 20
#: Row bytes after which a frame is closed and the next begun; what a socket takes at one go.
ROWS_BYTES_MAX = 128 * 1024
#: Tail of a frame: the largest value and the room that its encoding may take.
TAIL_BYTES_MAX = max(limits.VALUE_BYTES_MAX, limits.PROGRAM_BYTES_MAX) + (1 << 20)

# Peer to worker.
#: [LOAD, settings map]; tail: the program.
LOAD = 1
#: [RUN, serial of the first row, [[entry, arguments], …]]
RUN = 2
#: [RUN_LARGE, serial, entry]; tail: the arguments.
RUN_LARGE = 3
#: [CANCEL, [serial, …]]: skip these, silently.
CANCEL = 4
#: [BLOB, blob, bytes of the tail, or -1 where nobody holds it]; tail: the blob. Answers WANT_BLOB.
BLOB = 5

# Worker to peer.
#: [READY]: the program is loaded.
READY = 11
#: [FAILED, reason, module, text]: the program does not load; the worker ends.
FAILED = 12
#: [ENDS, rows, one after the other, each packed as [serial, outcome, wall_us, payload], or with a list of the first fields of
#: `model.job.Usage` as a fifth place.]
ENDS = 13
#: [END_LARGE, serial, outcome, wall_us, usage]; tail: the payload.
END_LARGE = 14
#: [NEWS, [[serial, fraction, message], …], [[serial, 1 or 2, bytes], …]]
NEWS = 15
#: [WANT_BLOB, blob, size]: the worker waits for the data behind a handle; it asks for one at a time.
WANT_BLOB = 16

# Peer to template, and back.
#: [FORK, number, folder to empty after it, or nothing]; the descriptors travel beside it.
FORK = 21
#: [KILL, number]: kill the process group of this worker if it still is ours.
KILL = 22
#: [FORKED, number, pid]
FORKED = 23
#: [EXITED, number, status as `subprocess` counts it]
EXITED = 24


#: Fields of `model.job.Usage`; a row of ENDS has fewer places.
USAGE_NUMBERS_MAX = 6


class MalformedFrameError(ProtocolError):
    """Bytes that no worker of ours sends; its process is killed for it."""


def pack_frame(head: Sequence[Any], tail_bytes: int = 0) -> bytes:
    """Header and head of a frame; a tail of `tail_bytes` follows it on the wire."""
    body: bytes = msgpack.packb(head)
    return HEADER.pack(len(body), tail_bytes) + body


def parse_head(body: memoryview | bytes) -> list[Any]:
    """The head of a frame. Raises MalformedFrameError."""
    try:
        head = msgpack.unpackb(body)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedFrameError(f"a head that is no msgpack: {error}") from error
    if type(head) is not list or not head or type(head[0]) is not int:
        raise MalformedFrameError("a head that is no [kind, …]")
    return head


def parse_header(buffer: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int]:
    """(bytes of head, bytes of tail). Raises MalformedFrameError for lengths that no frame of ours has."""
    if len(buffer) - offset < HEADER.size:
        raise MalformedFrameError("a header that is cut off")
    head_bytes, tail_bytes = HEADER.unpack_from(buffer, offset)
    if head_bytes > HEAD_BYTES_MAX or tail_bytes > TAIL_BYTES_MAX:
        raise MalformedFrameError(f"a frame of {head_bytes} + {tail_bytes} bytes")
    return head_bytes, tail_bytes


def pack_end(serial: int, outcome: int, wall_us: int, payload: bytes, usage: Sequence[int] = ()) -> bytes:
    """One row of ENDS."""
    row: bytes = msgpack.packb(
        (serial, outcome, wall_us, payload, usage) if usage else (serial, outcome, wall_us, payload)
    )
    return row


def parse_ends(rows: bytes) -> list[Any]:
    """The rows of ENDS. Raises MalformedFrameError."""
    size = max(len(rows), 1)
    unpacker = msgpack.Unpacker(
        max_buffer_size=size,
        max_bin_len=size,
        max_str_len=0,
        max_array_len=USAGE_NUMBERS_MAX,
        max_map_len=0,
        max_ext_len=0,
    )
    try:
        unpacker.feed(rows)
        return list(unpacker)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedFrameError(f"ends that are no msgpack: {error}") from error


class StatePage:
    """A few 64-bit numbers, then the mirror, in memory that a worker and its peer share; each is written by one side only.

    Stores of one aligned number are whole on every machine Python runs on. Nothing relies on the order in which two of
    them are seen: readers check again later, and read the mirror only of a worker that is dead or long in one task.
    """

    _NUMBERS_BYTES = 4096
    _MIRROR_BYTES = ROWS_BYTES_MAX + TAIL_BYTES_MIN + 16 * 1024
    BYTES = -(-(_NUMBERS_BYTES + _MIRROR_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
    _RUNNING, _SINCE, _CANCELS, _MIRRORED, _DRAINS = 0, 1, 2, 3, 4

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, self.BYTES)
        self._numbers = memoryview(self._map)[: self._NUMBERS_BYTES].cast("Q")

    @classmethod
    def make(cls) -> tuple[StatePage, int]:
        """A zeroed page and the descriptor to hand to the worker, which the caller closes."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("p2pcompute-worker", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, cls.BYTES)
        return cls(descriptor), descriptor

    # worker's side

    def began(self, serial: int, now_ns: int) -> None:
        """`serial` runs since `now_ns` of the monotonic clock; 0: nothing runs."""
        self._numbers[self._SINCE] = now_ns
        self._numbers[self._RUNNING] = serial

    def ended(self) -> None:
        """Nothing runs."""
        self._numbers[self._RUNNING] = 0

    @property
    def cancels(self) -> int:
        """How many cancel frames were sent; a change tells a worker with tasks in hand to look at its socket."""
        return self._numbers[self._CANCELS]

    def note_drain(self) -> None:
        """The worker has read its own output once more."""
        self._numbers[self._DRAINS] += 1

    def mirror(self, row: bytes) -> None:
        """Keep a row of ENDS for the peer until `clear_mirror`; one that does not fit is not kept."""
        start = self._numbers[self._MIRRORED]
        end = start + len(row)
        if end <= self._MIRROR_BYTES:
            self._map[self._NUMBERS_BYTES + start : self._NUMBERS_BYTES + end] = row
            self._numbers[self._MIRRORED] = end

    def clear_mirror(self) -> None:
        """The rows were sent."""
        self._numbers[self._MIRRORED] = 0

    # peer's side

    @property
    def drains(self) -> int:
        """How often the worker has read its own output."""
        return self._numbers[self._DRAINS]

    def mirrored(self) -> bytes:
        """The rows in the mirror."""
        count = min(self._numbers[self._MIRRORED], self._MIRROR_BYTES)
        return self._map[self._NUMBERS_BYTES : self._NUMBERS_BYTES + count]

    def note_cancel(self) -> None:
        """A cancel frame is on its way."""
        self._numbers[self._CANCELS] += 1

    def running(self) -> tuple[int, float]:
        """(serial that runs, or 0; monotonic seconds when it began)."""
        serial = self._numbers[self._RUNNING]
        return serial, self._numbers[self._SINCE] / 1e9

    def close(self) -> None:
        """Unmap."""
        self._numbers.release()
        self._map.close()
