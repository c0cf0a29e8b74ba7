"""The bulk of one link: runs its streams (`streams.py`) beside its messages.

Chunks are written only while the carrier holds little, and a few in one turn of the loop, so that a message never waits behind more than
that. Refuses to know what the bytes are, and who may ask for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from p2pcompute.model import limits
from p2pcompute.model.errors import BlobMissingError, BusyError, P2PComputeError
from p2pcompute.net.streams import StreamReceiver, StreamSender
from p2pcompute.wire.framing import FrameType, credit_frame, credit_of, end_frame, frame_header, reset_frame

#: Chunks written in one turn of the loop: half a millisecond of TLS, which is what a message may have to wait.
_CHUNKS_PER_TURN = 2


class BulkDoor(Protocol):
    """The link, as its bulk sees it."""

    def write_frame(self, frame: bytes) -> None:
        """Send with the messages of this turn."""

    def write_chunk(self, header: bytes, chunk: memoryview) -> None:
        """Send after the messages of this turn."""

    def has_room(self) -> bool:
        """Whether the carrier holds so little that a chunk may follow."""

    def named(self) -> str:
        """The other side, for errors."""


class Bulk:
    """All streams of one link, both ways."""

    def __init__(self, door: BulkDoor, *, dialled: bool) -> None:
        self._door = door
        self._sender = StreamSender()
        self._receiver = StreamReceiver(dialled=dialled)
        #: Streams that were asked for and are awaited.
        self._awaited: dict[int, asyncio.Future[bytearray]] = {}
        #: Requests beyond what the other side serves at a time wait here rather than be refused there.
        self._turns = asyncio.Semaphore(limits.STREAMS_OPEN_MAX)
        #: Told when the other side does not wait any more for what was promised, by stream.
        self._given_up: dict[int, Callable[[], object]] = {}
        self._pump_due = False

    async def request(self, ask: Callable[[int], None], bytes_max: int) -> bytearray:
        """Everything that comes on a new stream, whose number is handed to `ask`. Raises what `fail_all` was given,
        BlobMissingError where the other side gives up, ProtocolError for more than `bytes_max`.
        """
        async with self._turns:
            stream = self._receiver.open(bytes_max)
            future: asyncio.Future[bytearray] = asyncio.get_running_loop().create_future()
            self._awaited[stream] = future
            try:
                ask(stream)
                return await future
            finally:
                self._awaited.pop(stream, None)
                if self._receiver.close(stream) is not None:
                    self._door.write_frame(reset_frame(stream))

    def serve(self, stream: int, data: bytes | bytearray | memoryview) -> None:
        """Send `data` on a stream that the other side named. Raises ProtocolError; beyond the limit the stream is reset."""
        try:
            self._sender.open(stream, data)
        except BusyError:
            self._door.write_frame(reset_frame(stream))
            return
        self._pump_soon()

    def promise(self, stream: int) -> bool:
        """A stream was asked for whose data comes later, with `fulfil`; whether it may. Raises ProtocolError; beyond the limit it is reset."""
        try:
            self._sender.promise(stream)
        except BusyError:
            self._door.write_frame(reset_frame(stream))
            return False
        return True

    def when_given_up(self, stream: int, call: Callable[[], object]) -> None:
        """Call `call` should the other side not wait any more for what was promised on `stream`, or be gone."""
        self._given_up[stream] = call

    def fulfil(self, stream: int, data: bytes | bytearray | memoryview | None) -> bool:
        """Send what was promised, None: there is nothing; whether the other side still waits for it."""
        self._given_up.pop(stream, None)
        is_awaited = self._sender.fulfil(stream, data)
        if is_awaited:
            self._pump_soon()
        return is_awaited

    def frame(self, kind: int, stream: int, payload: memoryview) -> None:
        """A frame of a stream has come. Raises ProtocolError."""
        if kind == FrameType.CREDIT:
            self._sender.credit(stream, credit_of(payload))
            self._pump_soon()
        elif self._receiver.is_open(stream):
            self._received(kind, stream, payload)
        elif kind == FrameType.RESET:
            self._sender.reset(stream)
            self._give_up(stream)
        else:
            self._receiver.check_known(stream)
            if kind == FrameType.CHUNK:
                # Given up here while it was on its way, or asked for so late there: without this the sender keeps it open.
                self._door.write_frame(reset_frame(stream))

    def _received(self, kind: int, stream: int, payload: memoryview) -> None:
        if kind == FrameType.CHUNK:
            owed_bytes = self._receiver.chunk(stream, payload)
            if owed_bytes:
                self._door.write_frame(credit_frame(stream, owed_bytes))
        elif kind == FrameType.END:
            data = self._receiver.close(stream)
            future = self._awaited.get(stream)
            if future is not None and not future.done() and data is not None:
                future.set_result(data)
        else:
            self.fail(stream, BlobMissingError(f"{self._door.named()} gave the transfer up: ask another peer"))

    def fail(self, stream: int, error: P2PComputeError) -> None:
        """What was asked for on `stream` will not come."""
        self._receiver.close(stream)
        future = self._awaited.get(stream)
        if future is not None and not future.done():
            future.set_exception(error)

    def fail_all(self, error: P2PComputeError) -> None:
        """The link is gone."""
        self._sender.clear()
        for stream in list(self._given_up):
            self._give_up(stream)
        for stream in list(self._awaited):
            self.fail(stream, error)

    def _give_up(self, stream: int) -> None:
        call = self._given_up.pop(stream, None)
        if call is not None:
            call()

    def pump(self) -> None:
        """Write chunks while there is room, and go on in the next turn of the loop where there still is."""
        for _ in range(_CHUNKS_PER_TURN):
            if not self._door.has_room():
                return  # the carrier says when to go on
            chosen = self._sender.next_chunk()
            if chosen is None:
                return
            stream, chunk, last = chosen
            if len(chunk):
                self._door.write_chunk(frame_header(FrameType.CHUNK, stream, len(chunk)), chunk)
            if last:
                self._door.write_chunk(end_frame(stream), chunk[:0])
        self._pump_soon()

    def _pump_soon(self) -> None:
        if self._sender.ready and not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump_turn)

    def _pump_turn(self) -> None:
        self._pump_due = False
        self.pump()
