"""Streams: bulk data in chunks beside the messages of a link, each under its own window of credit.

The side that wants data chooses a stream's number and names it in its request; numbers of the side that dialled are even, the other
side's are odd, so both may ask at once. The holder sends chunks, never more than `STREAM_WINDOW_BYTES` beyond
what was credited, and the end. Either side may reset. A number is used once in the life of a link, and each is higher than those before.

Pure book-keeping of both halves: frames' contents in, what to send out. Refuses to know sockets, messages, tasks and clocks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, ProtocolError

_NUMBER_MAX = (1 << 32) - 1


@dataclass(slots=True)
class _Outgoing:
    """One stream that this side sends."""

    #: What is left to send.
    rest: memoryview
    #: Bytes that may be sent before more credit comes.
    credit_bytes: int
    #: Whether the stream stands in the round of those that can send.
    queued: bool = False


class StreamSender:
    """The streams that this side sends, in turns of one chunk each."""

    def __init__(
        self,
        *,
        chunk_bytes: int = limits.CHUNK_BYTES,
        window_bytes: int = limits.STREAM_WINDOW_BYTES,
        open_max: int = limits.STREAMS_OPEN_MAX,
    ) -> None:
        self._chunk_bytes = chunk_bytes
        self._window_bytes = window_bytes
        self._open_max = open_max
        #: Open streams by number.
        self._streams: dict[int, _Outgoing] = {}
        #: Numbers of the open streams that can send now, each once.
        self._round: deque[int] = deque()
        #: Streams that were asked for and whose data is not here yet.
        self._promised: set[int] = set()
        #: The highest number that was asked for.
        self._newest = 0

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, stream: int, data: bytes | bytearray | memoryview) -> None:
        """Send `data` on `stream`. Raises BusyError beyond the limit, ProtocolError for a number that is none above all before."""
        self._begin(stream)
        self._send(stream, data)

    def promise(self, stream: int) -> None:
        """`stream` was asked for and its data comes later: then say `fulfil`. Raises as `open`."""
        self._begin(stream)
        self._promised.add(stream)

    def fulfil(self, stream: int, data: bytes | bytearray | memoryview | None) -> bool:
        """Send the data of a stream that was promised; None: there is none. Whether the other side still waits for it."""
        if stream not in self._promised:
            return False
        self._promised.discard(stream)
        if data is not None:
            self._send(stream, data)
        return True

    def _begin(self, stream: int) -> None:
        if stream <= self._newest:
            raise ProtocolError(f"stream {stream} is asked for twice, or after a later one")
        self._newest = stream
        if len(self._streams) + len(self._promised) >= self._open_max:
            raise BusyError(f"{self._open_max} streams are open on this link already")

    def _send(self, stream: int, data: bytes | bytearray | memoryview) -> None:
        outgoing = _Outgoing(memoryview(data).cast("B"), self._window_bytes)
        self._streams[stream] = outgoing
        self._enqueue(stream, outgoing)

    def credit(self, stream: int, credit_bytes: int) -> None:
        """The receiver took so much. Unknown streams are ignored: their end may have crossed the credit.

        Raises ProtocolError for more credit than was used up.
        """
        outgoing = self._streams.get(stream)
        if outgoing is None:
            return
        outgoing.credit_bytes += credit_bytes
        if outgoing.credit_bytes > self._window_bytes:
            raise ProtocolError(f"credit of {credit_bytes} bytes on stream {stream} was never used")
        self._enqueue(stream, outgoing)

    def reset(self, stream: int) -> None:
        """Send no more on `stream`."""
        self._promised.discard(stream)
        outgoing = self._streams.pop(stream, None)
        if outgoing is not None and outgoing.queued:
            self._round.remove(stream)

    def clear(self) -> None:
        """Forget every stream: the link is gone."""
        self._streams.clear()
        self._promised.clear()
        self._round.clear()

    @property
    def ready(self) -> bool:
        """Whether `next_chunk` would give something."""
        return bool(self._round)

    def next_chunk(self) -> tuple[int, memoryview, bool] | None:
        """(stream, bytes, whether they are its last), or None where nothing can be sent.

        The bytes are empty only for a stream that is empty altogether.
        """
        if not self._round:
            return None
        stream = self._round.popleft()
        outgoing = self._streams[stream]
        outgoing.queued = False
        size_bytes = min(len(outgoing.rest), self._chunk_bytes, outgoing.credit_bytes)
        chunk = outgoing.rest[:size_bytes]
        outgoing.rest = outgoing.rest[size_bytes:]
        outgoing.credit_bytes -= size_bytes
        last = not len(outgoing.rest)
        if last:
            del self._streams[stream]
        else:
            self._enqueue(stream, outgoing)
        return stream, chunk, last

    def _enqueue(self, stream: int, outgoing: _Outgoing) -> None:
        if not outgoing.queued and (outgoing.credit_bytes > 0 or not len(outgoing.rest)):
            outgoing.queued = True
            self._round.append(stream)


@dataclass(slots=True)
class _Incoming:
    """One stream that this side receives."""

    bytes_max: int
    data: bytearray
    #: Bytes that the sender may still send.
    window_bytes: int
    #: Bytes taken and not credited yet.
    owed_bytes: int = 0


class StreamReceiver:
    """The streams that this side asked for."""

    def __init__(self, *, dialled: bool, window_bytes: int = limits.STREAM_WINDOW_BYTES) -> None:
        self._window_bytes = window_bytes
        #: Credit goes back in quarters of the window: often enough that the sender never waits, seldom enough to cost nothing.
        self._credit_step_bytes = max(1, window_bytes // 4)
        self._parity = 0 if dialled else 1
        self._next = 2 if dialled else 1
        #: Open streams by number.
        self._streams: dict[int, _Incoming] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, bytes_max: int) -> int:
        """A new stream's number, for at most `bytes_max` bytes. Raises BusyError when a link has used them all up."""
        if self._next > _NUMBER_MAX:
            raise BusyError("all stream numbers of this link are used: a new link to the peer helps")
        number = self._next
        self._next += 2
        self._streams[number] = _Incoming(bytes_max, bytearray(), self._window_bytes)
        return number

    def is_open(self, stream: int) -> bool:
        """Whether more is awaited on `stream`."""
        return stream in self._streams

    def check_known(self, stream: int) -> None:
        """Raises ProtocolError for a number that this side never gave out."""
        if stream % 2 != self._parity or stream >= self._next:
            raise ProtocolError(f"bytes on stream {stream}, which nobody asked for")

    def chunk(self, stream: int, payload: memoryview) -> int:
        """Take a chunk; returns the credit to give back, mostly 0.

        Raises ProtocolError for more than the window or than `bytes_max`. The stream must be open.
        """
        incoming = self._streams[stream]
        size_bytes = len(payload)
        if size_bytes > incoming.window_bytes:
            raise ProtocolError(f"stream {stream} sends beyond its window")
        if len(incoming.data) + size_bytes > incoming.bytes_max:
            raise ProtocolError(f"stream {stream} sends more than the {incoming.bytes_max} bytes that were asked for")
        incoming.data += payload
        incoming.window_bytes -= size_bytes
        incoming.owed_bytes += size_bytes
        if incoming.owed_bytes < self._credit_step_bytes:
            return 0
        owed_bytes, incoming.owed_bytes = incoming.owed_bytes, 0
        incoming.window_bytes += owed_bytes
        return owed_bytes

    def close(self, stream: int) -> bytearray | None:
        """The stream is over: what it brought, or None where it was not open."""
        incoming = self._streams.pop(stream, None)
        return None if incoming is None else incoming.data

    def received_bytes(self, stream: int) -> int:
        """How much `stream` has brought so far; 0 for one that is not open."""
        incoming = self._streams.get(stream)
        return 0 if incoming is None else len(incoming.data)
