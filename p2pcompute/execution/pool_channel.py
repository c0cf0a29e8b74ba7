"""The peer's end of a socket pair: frames in and out, never blocking the event loop.

Readiness callbacks on the bare socket: a transport would cost a buffer and a hop more for each frame. Large tails are received
in pieces and put together in a thread. Closing is reported once, by `on_closed`. Refuses to know: what frames mean.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from p2pcompute.execution import worker_protocol as protocol

_BUFFER_BYTES = 64 * 1024
#: One read of a tail: small enough to keep the loop free for others.
_TAIL_READ_BYTES = 256 * 1024
#: Sends of one callback: a worker that reads as fast as we write must not keep the loop from others.
_SENDS_AT_ONCE = 8
#: Putting together more than this (a few milliseconds) happens in a thread.
_JOIN_HERE_BYTES = 4 << 20

OnFrame = Callable[[list[Any], bytes], None]
Offload = Callable[[Callable[[], bytes]], "asyncio.Future[bytes]"]


class FrameChannel:
    """One connected, non-blocking socket, owned from now on.

    `on_frame(head, tail)`; `on_closed(lie)`: the other side is gone, or, if `lie` is a text, sent what it must not. Neither is called
    after `close`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        on_frame: OnFrame,
        on_closed: Callable[[str | None], None],
        offload: Offload,
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._offload = offload
        #: False once nothing is read any more.
        self._open = True
        #: Received bytes not yet understood: `_buffer[:_filled]`.
        self._buffer = bytearray(_BUFFER_BYTES)
        self._filled = 0
        #: The frame whose tail is being received: its head, the pieces, what is missing.
        self._tail_head: list[Any] | None = None
        self._tail_pieces: list[bytes] = []
        self._tail_missing = 0
        #: The tail that a thread puts together; nothing is read meanwhile.
        self._joining: asyncio.Future[bytes] | None = None
        #: True inside `drain`: nothing may be left for later then.
        self._draining = False
        #: What the socket did not take: pieces, each with descriptors that travel with its first byte.
        self._outbox: deque[tuple[memoryview, list[int]]] = deque()
        #: Nothing is sent while it is True; see `hold`.
        self._held = False
        connection.setblocking(False)
        loop.add_reader(connection, self._on_readable)

    def send(
        self, head: Sequence[Any], tail: bytes | bytearray | memoryview = b"", descriptors: Sequence[int] = ()
    ) -> None:
        """Send a frame, now or when the socket takes it. `descriptors` are closed here once they are sent."""
        frame = protocol.pack_frame(head, len(tail))
        if not self._outbox and not self._held and not len(tail) and not descriptors:
            # The common case, without a detour: the socket takes a small frame whole.
            try:
                sent = self._connection.send(frame)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                return  # nobody reads any more: the reading side notices and tells
            if sent == len(frame):
                return
            self._outbox.append((memoryview(frame)[sent:], []))
            self._loop.add_writer(self._connection, self._on_writable)
            return
        idle = not self._outbox
        self._outbox.append((memoryview(frame), list(descriptors)))
        if len(tail):
            self._outbox.append((memoryview(tail).cast("B"), []))
        if idle and not self._held:
            self._on_writable()

    def hold(self) -> None:
        """Keep all that is sent until `release`."""
        self._held = True

    def release(self) -> None:
        """Send what was held."""
        if self._held and self._connection.fileno() >= 0:
            self._held = False
            if self._outbox:
                self._on_writable()

    def drain(self) -> None:
        """Take in all that has arrived: what a process sent before it died."""
        self._draining = True
        if self._joining is not None:
            self._joining = None
            self._deliver_tail(b"".join(self._tail_pieces))
        while self._open and self._on_readable():
            pass
        self._draining = False

    def close(self) -> None:
        """Drop everything and close the socket."""
        if self._connection.fileno() < 0:
            return
        self._stop_reading()
        self._loop.remove_writer(self._connection)
        for _, descriptors in self._outbox:
            for descriptor in descriptors:
                os.close(descriptor)
        self._outbox.clear()
        self._joining = None
        self._connection.close()

    # outgoing

    def _on_writable(self) -> None:
        for _ in range(_SENDS_AT_ONCE):
            if not self._outbox:
                self._loop.remove_writer(self._connection)
                return
            piece, descriptors = self._outbox[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                count = self._connection.sendmsg([piece], rights)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                count = len(piece)  # nobody reads any more: the reading side notices and tells
            for descriptor in descriptors:
                os.close(descriptor)
            if count == len(piece):
                self._outbox.popleft()
            else:
                self._outbox[0] = (piece[count:], [])
        self._loop.add_writer(self._connection, self._on_writable)

    # incoming

    def _stop_reading(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._connection)

    def _end(self, lie: str | None) -> None:
        self._stop_reading()
        self._on_closed(lie)

    def _on_readable(self) -> bool:
        """One read; False where nothing was there."""
        try:
            if self._tail_head is not None:
                piece = self._connection.recv(min(self._tail_missing, _TAIL_READ_BYTES))
                count = len(piece)
            else:
                count = self._connection.recv_into(memoryview(self._buffer)[self._filled :])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            count = 0
        if count == 0:
            self._end(None)
            return False
        if self._tail_head is not None:
            self._take_piece(piece)
        else:
            self._filled += count
            try:
                self._parse()
            except protocol.MalformedFrameError as error:
                self._end(str(error))
        return True

    def _parse(self) -> None:
        start = 0
        while self._open and self._tail_head is None and self._filled - start >= protocol.HEADER.size:
            head_bytes, tail_bytes = protocol.parse_header(self._buffer, start)
            body = start + protocol.HEADER.size
            if self._filled < body + head_bytes:
                self._make_room(protocol.HEADER.size + head_bytes)
                break
            with memoryview(self._buffer) as view, view[body : body + head_bytes] as head_view:
                head = protocol.parse_head(head_view)
            start = body + head_bytes
            if not tail_bytes:
                self._on_frame(head, b"")
                continue
            here = min(tail_bytes, self._filled - start)
            piece = bytes(memoryview(self._buffer)[start : start + here])
            start += here
            self._tail_head, self._tail_pieces, self._tail_missing = head, [], tail_bytes
            self._take_piece(piece)
        if start:
            self._buffer[: self._filled - start] = self._buffer[start : self._filled]
            self._filled -= start

    def _make_room(self, frame_bytes: int) -> None:
        if frame_bytes > len(self._buffer):
            self._buffer.extend(bytes(frame_bytes - len(self._buffer)))

    def _take_piece(self, piece: bytes) -> None:
        if piece:
            self._tail_pieces.append(piece)
            self._tail_missing -= len(piece)
        if self._tail_missing:
            return
        pieces = self._tail_pieces
        if self._draining or len(pieces) == 1 or sum(map(len, pieces)) <= _JOIN_HERE_BYTES:
            self._deliver_tail(b"".join(pieces))
            return
        self._loop.remove_reader(self._connection)
        self._joining = self._offload(lambda: b"".join(pieces))
        self._joining.add_done_callback(self._on_joined)

    def _on_joined(self, joined: asyncio.Future[bytes]) -> None:
        if self._joining is not joined:
            return  # closed, or drained, meanwhile
        self._joining = None
        self._deliver_tail(joined.result())
        if self._open:
            self._loop.add_reader(self._connection, self._on_readable)

    def _deliver_tail(self, tail: bytes) -> None:
        head = self._tail_head
        assert head is not None
        self._tail_head, self._tail_pieces = None, []
        try:
            self._on_frame(head, tail)
        except protocol.MalformedFrameError as error:
            self._end(str(error))
