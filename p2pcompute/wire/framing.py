"""Frames: how messages and bulk share one ordered stream of bytes.

A frame is u32 length of what follows | u8 type | u32 stream | payload, all big-endian:

    type       stream     payload
    0 message  0          msgpack of one message (`wire/messages.py`)
    1 chunk    a number   the next bytes of that stream, at least one
    2 credit   a number   u32: so many more bytes of that stream may be sent
    3 end      a number   none: the stream is complete
    4 reset    a number   none: the stream is given up, by either side

Pure: bytes in, frames out, whatever the pieces in which the bytes arrive. Refuses to know what a message means, which streams
are open, and where bytes come from. Anybody's bytes can cause only ProtocolError here (fuzzed in tests/fuzz).
"""

from __future__ import annotations

import enum
import struct

from p2pcompute.model import limits
from p2pcompute.model.errors import FrameTooLargeError, ProtocolError

#: (type, stream, payload). A plain tuple: one is made for every frame, and a class with names costs eight times as much.
#: The payload is a view into the reader's buffer, valid until the reader is given more bytes.
Frame = tuple[int, int, memoryview]

#: Before the payload: length, type, stream.
HEADER_BYTES = 9
#: What the length counts besides the payload.
_COUNTED_BYTES = 5
_LENGTH_BYTES = 4
_HEADER = struct.Struct("!IBI")
_CREDIT = struct.Struct("!I")

#: Room of an idle reader: TLS hands over at most 256 KiB at a time, and a chunk with its neighbours fits.
_ROOM_BYTES = 512 * 1024
#: Less free room than this at the end of the buffer, and what is left moves to its front.
_ROOM_BYTES_MIN = 128 * 1024
#: Taken at a time, unless a larger frame is under way: 900 of the smallest messages, 7 ms of the loop. The rest comes in its next turn.
_READ_BYTES = 16 * 1024


class FrameType(enum.IntEnum):
    """What a frame carries."""

    MESSAGE = 0
    CHUNK = 1
    CREDIT = 2
    END = 3
    RESET = 4


_MESSAGE = int(FrameType.MESSAGE)
_CHUNK = int(FrameType.CHUNK)
_CREDIT_TYPE = int(FrameType.CREDIT)
_LAST_TYPE = int(FrameType.RESET)


def frame_header(kind: FrameType, stream: int, payload_bytes: int) -> bytes:
    """What stands before a payload of `payload_bytes` bytes; for payloads too large to be copied behind it."""
    return _HEADER.pack(payload_bytes + _COUNTED_BYTES, kind, stream)


def message_frame(payload: bytes) -> bytes:
    """The frame that carries one encoded message. Raises FrameTooLargeError."""
    size_bytes = len(payload)
    if size_bytes > limits.FRAME_BYTES_MAX:
        raise FrameTooLargeError(
            f"a message of {size_bytes} bytes, a frame carries at most {limits.FRAME_BYTES_MAX}: send it as a blob"
        )
    return _HEADER.pack(size_bytes + _COUNTED_BYTES, _MESSAGE, 0) + payload


def credit_frame(stream: int, credit_bytes: int) -> bytes:
    """The frame that allows `credit_bytes` more bytes on `stream`."""
    return frame_header(FrameType.CREDIT, stream, _CREDIT.size) + _CREDIT.pack(credit_bytes)


def end_frame(stream: int) -> bytes:
    """The frame that says that `stream` is complete."""
    return frame_header(FrameType.END, stream, 0)


def reset_frame(stream: int) -> bytes:
    """The frame that gives `stream` up."""
    return frame_header(FrameType.RESET, stream, 0)


def credit_of(payload: memoryview) -> int:
    """How many bytes a credit frame allows."""
    allowed: int = _CREDIT.unpack(payload)[0]
    return allowed


class FrameReader:
    """Finds the frames in a stream of bytes.

    Two ways in: `get_buffer` and `buffer_updated` for a transport that reads straight into our memory, `feed` for one that hands over
    bytes. Both return the frames that are complete. Once bytes arrive that are no frame, `failure` says so for good
    and nothing more is read; the frames before them are still returned.
    """

    def __init__(self, payload_bytes_max: int = limits.FRAME_BYTES_MAX) -> None:
        #: The largest payload that is taken; small before a peer is admitted, raised afterwards.
        self.payload_bytes_max = payload_bytes_max
        #: Why nothing more can be read, or None.
        self.failure: ProtocolError | None = None
        self._buffer = bytearray(0)
        self._view = memoryview(self._buffer)
        #: Unread bytes are `_buffer[_start:_end]`.
        self._start = 0
        self._end = 0
        #: Bytes of the first frame in the buffer, header included; 0 before its header is complete.
        self._wanted = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return self._end - self._start

    def get_buffer(self) -> memoryview:
        """Writable room, never empty, for what arrives next. Frames returned earlier are void from here on."""
        if self._start == self._end:
            self._start = self._end = 0
        room = len(self._buffer) - self._end
        if room < _ROOM_BYTES_MIN or len(self._buffer) - self._start < self._wanted:
            self._make_room(self._wanted)
        return self._view[self._end : self._end + max(_READ_BYTES, self._wanted - self.pending_bytes)]

    def buffer_updated(self, count: int) -> list[Frame]:
        """The frames that `count` more bytes in the buffer complete."""
        self._end += count
        if self.failure is not None:
            self._start = self._end
            return []
        frames, self._start = self._parse(self._view, self._start, self._end)
        return frames

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that `data` completes. Frames returned earlier are void from here on."""
        if self.failure is not None:
            return []
        if self._start == self._end:
            # The common case, without a copy: whole frames, parsed where they lie.
            view = memoryview(data)
            frames, used = self._parse(view, 0, len(view))
            self._start = self._end = 0
            if used < len(view):
                self._append(view[used:])
            return frames
        self._append(memoryview(data))
        frames, self._start = self._parse(self._view, self._start, self._end)
        return frames

    def _append(self, data: memoryview) -> None:
        if len(self._buffer) - self._end < len(data):
            self._make_room(max(self._wanted, self.pending_bytes + len(data)))
        self._view[self._end : self._end + len(data)] = data
        self._end += len(data)

    def _make_room(self, total_bytes: int) -> None:
        """Let `total_bytes` from `_start` on fit, what is there moved to the front of the old memory or of new."""
        pending = self._end - self._start
        if total_bytes <= len(self._buffer) and len(self._buffer) - pending >= _ROOM_BYTES_MIN:
            self._view[:pending] = self._view[self._start : self._end]
        else:
            buffer = bytearray(max(_ROOM_BYTES, total_bytes, pending + _ROOM_BYTES_MIN))
            buffer[:pending] = self._view[self._start : self._end]
            self._buffer, self._view = buffer, memoryview(buffer)
        self._start, self._end = 0, pending

    def _parse(self, view: memoryview, start: int, end: int) -> tuple[list[Frame], int]:
        """The complete frames in `view[start:end]`, and where the rest starts."""
        frames: list[Frame] = []
        unpack = _HEADER.unpack_from
        length_max = self.payload_bytes_max + _COUNTED_BYTES
        self._wanted = 0
        while end - start >= HEADER_BYTES:
            length, kind, stream = unpack(view, start)
            if kind or stream or length > length_max or length < _COUNTED_BYTES:
                failure = _fault(length, kind, stream, length_max)
                if failure is not None:
                    self.failure = failure
                    return frames, end
            stop = start + _LENGTH_BYTES + length
            if stop > end:
                self._wanted = _LENGTH_BYTES + length
                break
            frames.append((kind, stream, view[start + HEADER_BYTES : stop]))
            start = stop
        return frames, start


def parse_frames(data: bytes) -> list[Frame]:
    """The complete frames in `data`; an incomplete one at its end is left out. Raises ProtocolError."""
    reader = FrameReader()
    frames = reader.feed(data)
    if reader.failure is not None:
        raise reader.failure
    return frames


def _fault(length: int, kind: int, stream: int, length_max: int) -> ProtocolError | None:
    """What is wrong with a header, or None."""
    if length > length_max:
        payload_max = length_max - _COUNTED_BYTES
        return FrameTooLargeError(f"a frame of {length - _COUNTED_BYTES} bytes where at most {payload_max} may stand")
    if length < _COUNTED_BYTES:
        return ProtocolError(f"a frame of length {length}, the shortest has {_COUNTED_BYTES}")
    if kind > _LAST_TYPE:
        return ProtocolError(f"frame type {kind}, known are 0 to {_LAST_TYPE}")
    if (kind == _MESSAGE) != (stream == 0):
        return ProtocolError(f"frame type {kind} on stream {stream}: messages go on stream 0, all else does not")
    payload_bytes = length - _COUNTED_BYTES
    free = kind in (_MESSAGE, _CHUNK)
    fits = free or payload_bytes == (_CREDIT.size if kind == _CREDIT_TYPE else 0)
    if not fits or (kind == _CHUNK and payload_bytes == 0):
        return ProtocolError(f"frame type {kind} with {payload_bytes} bytes of payload")
    return None
