"""Frames of the control socket: how messages and credits become bytes and back.

Owns the layout, u32 length | u8 type | u32 call | payload, all big-endian, which is that of a link's frames: type 0 carries a message of
`wire.families.CONTROL_CODEC` (call 0), type 1 a credit: the sender has taken so many values of that call (u32), and the
receiver may send as many more. Values of a call are feeds in one direction and notices in the other; neither side
sends more of them than it was granted, so reading never has to stop: a hang-up or a lost connection is seen at once,
however much waits, and one slow call does not hold up another.

Refuses to know what a call does.
"""

from __future__ import annotations

import asyncio
import hmac
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from p2pcompute.model import limits
from p2pcompute.model.errors import (
    FrameTooLargeError,
    LinkClosedError,
    NotSerializableError,
    P2PComputeError,
    ProtocolError,
)
from p2pcompute.wire.families import CONTROL_CODEC
from p2pcompute.wire.messages import Goodbye, Message

HEADER = struct.Struct("!IBI")
_COUNT = struct.Struct("!I")
TYPE_MESSAGE = 0
TYPE_CREDIT = 1
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Credit:
    """The other end has taken `count` more values of `call`."""

    call: int
    count: int


class FrameParser:
    """Bytes in, messages and credits out. Raises ProtocolError for bytes that no client of ours sends."""

    def __init__(self, *, bytes_max: int = limits.CONTROL_MESSAGE_BYTES_MAX) -> None:
        #: What arrived and makes no whole frame yet.
        self._buffer = bytearray()
        self._bytes_max = bytes_max

    def feed(self, data: bytes) -> list[Message | Credit]:
        """Everything that is complete with `data`. Messages of a kind that is not known are dropped."""
        self._buffer += data
        items: list[Message | Credit] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            length, kind, call = HEADER.unpack_from(self._buffer, start)
            if kind not in (TYPE_MESSAGE, TYPE_CREDIT):
                raise ProtocolError(f"no frame of a control socket has type {kind}")
            if length > self._bytes_max:
                raise FrameTooLargeError(f"a frame of {length} bytes, at most {self._bytes_max} may come")
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            item = self._item(kind, call, bytes(memoryview(self._buffer)[start + HEADER.size : end]))
            if item is not None:
                items.append(item)
            start = end
        if start:
            del self._buffer[:start]
        return items

    def _item(self, kind: int, call: int, payload: bytes) -> Message | Credit | None:
        if kind == TYPE_MESSAGE:
            return CONTROL_CODEC.decode(payload, bytes_max=self._bytes_max)
        if len(payload) != _COUNT.size:
            raise ProtocolError(f"a credit has {_COUNT.size} bytes, this has {len(payload)}")
        return Credit(call, _COUNT.unpack(payload)[0])


def encode_message(message: Message) -> bytes:
    """The frame that carries `message`. Raises NotSerializableError, FrameTooLargeError."""
    try:
        payload = CONTROL_CODEC.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NotSerializableError(f"a value that cannot cross the control socket: {error}") from error
    if len(payload) > limits.CONTROL_MESSAGE_BYTES_MAX:
        raise FrameTooLargeError(
            f"{len(payload)} bytes in one message, at most {limits.CONTROL_MESSAGE_BYTES_MAX} may go: send less at once"
        )
    return HEADER.pack(len(payload), TYPE_MESSAGE, 0) + payload


def encode_credit(credit: Credit) -> bytes:
    """The frame that carries `credit`."""
    return HEADER.pack(_COUNT.size, TYPE_CREDIT, credit.call) + _COUNT.pack(credit.count)


class Window:
    """How many values of one call this side may still send."""

    def __init__(self) -> None:
        self._room = limits.CONTROL_WINDOW
        self._changed = asyncio.Event()
        #: Set once the call has ended or the connection is gone; sending is then pointless.
        self._closed = False

    def take_now(self) -> bool:
        """Use up one if there is room; whether there was."""
        if self._closed or self._room <= 0:
            return False
        self._room -= 1
        return True

    async def take(self) -> None:
        """Wait for room and use up one. Raises LinkClosedError once the other side is gone."""
        while not self.take_now():
            if self._closed:
                raise LinkClosedError("the other end of the control socket does not listen any more")
            self._changed.clear()
            await self._changed.wait()

    def add(self, count: int) -> None:
        """The other side took `count`. Raises ProtocolError when that is more than was sent."""
        self._room += count
        if self._room > limits.CONTROL_WINDOW:
            raise ProtocolError("a credit for values that were never sent")
        self._changed.set()

    def close(self) -> None:
        """No room will ever come; wakes whoever waits."""
        self._closed = True
        self._changed.set()


class Intake:
    """Values of one call that arrived and were not taken yet; gives credit as they are taken."""

    def __init__(self, give_credit: Callable[[int], None]) -> None:
        self._values: deque[Any] = deque()
        self._taken = 0
        self._ended = False
        self._error: P2PComputeError | None = None
        self._changed = asyncio.Event()
        self._give_credit = give_credit

    def put(self, value: Any) -> None:
        """A value arrived. Raises ProtocolError when the sender had no credit for it."""
        if self._ended:
            raise ProtocolError("a value after the last one of its call")
        if len(self._values) + self._taken >= limits.CONTROL_WINDOW:
            raise ProtocolError("more values of a call than were granted")
        self._values.append(value)
        self._changed.set()

    def end(self, error: P2PComputeError | None = None) -> None:
        """No more values come; `error`, if any, is raised once those that are here have been taken."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._changed.set()

    async def values(self) -> AsyncIterator[Any]:
        """Each value as it comes, until the end."""
        while True:
            while self._values:
                value = self._values.popleft()
                yield value
                # Credit is given after the consumer came back for more: what it still works on counts as waiting.
                self._taken += 1
                if self._taken >= limits.CONTROL_WINDOW // 2:
                    self._give_credit(self._taken)
                    self._taken = 0
            if self._ended:
                if self._error is not None:
                    raise self._error
                return
            self._changed.clear()
            await self._changed.wait()


class FrameProtocol(asyncio.Protocol):
    """One end of a connection: hands every message and credit to `on_item`, and the end of it all to `on_closed`.

    `secret` stands before the first frame where the connection itself does not prove who is calling.
    """

    def __init__(
        self,
        on_item: Callable[[Message | Credit], None],
        on_closed: Callable[[], None],
        *,
        secret_expected: bytes = b"",
        admit: Callable[[asyncio.Transport], bool] = lambda transport: True,
    ) -> None:
        self._on_item = on_item
        self._on_closed = on_closed
        self._admit = admit
        self._parser = FrameParser()
        self._secret_expected = secret_expected
        self._secret_heard = b""
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        #: Why this end closed the connection, for whoever waits at it.
        self.closing_error: P2PComputeError | None = None
        #: Set once the connection is gone for good.
        self.closed = asyncio.Event()

    # --- what asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._admit(transport):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._secret_expected:
            data = self._after_secret(data)
        if not data:
            return
        try:
            for item in self._parser.feed(data):
                self._on_item(item)
        except ProtocolError as error:
            self.closing_error = error
            self.write_now(Goodbye("protocol", str(error)[:1024]))
            self.close()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self.closed.set()
        self._on_closed()

    # --- what its owner calls -----------------------------------------------------------------------------------------

    def write_now(self, message: Message | Credit) -> None:
        """Hand `message` to the transport without waiting; does nothing once the connection is gone."""
        frame = encode_credit(message) if isinstance(message, Credit) else encode_message(message)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def write_raw(self, data: bytes) -> None:
        """Hand over bytes that are no frame (the secret)."""
        if self._transport is not None:
            self._transport.write(data)

    async def send(self, message: Message) -> None:
        """Write `message` and wait while the other end is slow to read. Raises LinkClosedError."""
        if self._transport is None or self._transport.is_closing():
            raise LinkClosedError("the control connection is closed")
        self.write_now(message)
        await self._writable.wait()

    def close(self) -> None:
        """Send what was written, then close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def finish(self, timeout_s: float) -> None:
        """Close, and wait until the connection is gone; what the other end has not read by then is lost."""
        self.close()
        if self._transport is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self.closed.wait()
        except TimeoutError:
            self.abort()
            await self.closed.wait()

    def _after_secret(self, data: bytes) -> bytes:
        missing = SECRET_BYTES - len(self._secret_heard)
        self._secret_heard += data[:missing]
        if len(self._secret_heard) < SECRET_BYTES:
            return b""
        if not hmac.compare_digest(self._secret_heard, self._secret_expected):
            self.abort()
            return b""
        self._secret_expected = b""
        return data[missing:]
