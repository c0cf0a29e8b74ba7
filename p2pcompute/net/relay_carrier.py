"""The third carrier: a link inside a circuit. Everything above it is as on a direct connection, everything below is ciphertext.

What the link writes goes through the pipe (`relay_pipe.py`) and leaves when the relay's grant and the room on the link to the relay allow; what
waits is counted, so that the link holds its bulk back. This end grants as much as it has taken. Refuses to know: frames, who may link,
whom to reach by which relay (`relay_ends.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, BusyError, LinkClosedError, P2PComputeError, ProtocolError
from p2pcompute.model.ids import short_peer_id
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link
from p2pcompute.net.relay_legs import Circuits
from p2pcompute.net.relay_pipe import Pipe, PipeBroken
from p2pcompute.wire.messages import Hello
from p2pcompute.wire.reaching import CircuitClosed, CircuitCredit, CircuitData

#: How long what waits may take to leave after the link has closed.
SHUTDOWN_TIMEOUT_S = 2.0
#: Grants go back in quarters of the window, as for streams.
_GRANT_STEP_BYTES = limits.CIRCUIT_WINDOW_BYTES // 4


class RelayCarrier:
    """One end of a circuit, under one link. `opened` is told when it carries the link, `failed` why it never does."""

    name = "relay"

    def __init__(
        self,
        link: Link,
        hello: Callable[[], Hello],
        pipe: Pipe,
        circuits: Circuits,
        outer: Link,
        opened: Callable[[], None],
        failed: Callable[[P2PComputeError], None],
        *,
        handshake_timeout_s: float,
    ) -> None:
        #: What it carries.
        self._link = link
        #: This peer's first message.
        self._hello = hello
        #: Makes plain bytes of ciphertext and back.
        self._pipe = pipe
        #: Where this end stands under its number.
        self._circuits = circuits
        #: The link to the relay.
        self._outer = outer
        #: Exactly one of the two is called, once.
        self._opened = opened
        self._failed = failed
        #: Set by `begin`.
        self.number = 0
        #: Whether the link was attached: only a pipe that is ready carries one.
        self._attached = False
        #: Ciphertext that waits to be sent, and how much it is.
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        #: What the relay still takes; 0 before the circuit is open.
        self._credit_bytes = 0
        #: What the relay may still send.
        self._window_bytes = limits.CIRCUIT_WINDOW_BYTES
        #: What was taken and not granted again yet.
        self._owed_bytes = 0
        #: The link has been held back and is to be told of room.
        self._is_full = False
        #: The link sends nothing more.
        self._is_closing = False
        #: Nothing is sent or taken any more.
        self._is_over = False
        #: Whether the link to the relay is to say when it has room.
        self._waits_for_room = False
        #: Ends a handshake, later a close, that takes too long.
        self._timer = asyncio.get_running_loop().call_later(handshake_timeout_s, self._too_slow)
        #: Not where the other end is, which nobody knows; only a text for people.
        self.remote = Address(f"relay {short_peer_id(outer.peer)}", outer.remote.port)

    # --- the circuit's side ---------------------------------------------------------------------------------------------

    def granted(self, grant_bytes: int) -> None:
        """The relay takes more; the first time: the circuit is open."""
        self._credit_bytes += grant_bytes
        if self._credit_bytes > limits.CIRCUIT_GRANT_BYTES_MAX:
            raise ProtocolError(f"grants more than anybody takes on circuit {self.number}", self._outer.named())
        if self._link.dialled and not self._pipe.ready:
            self._pipe.start()
        self._push()

    def received(self, data: bytes) -> None:
        """Ciphertext has come."""
        if len(data) > self._window_bytes:
            raise ProtocolError(f"sends beyond its window on circuit {self.number}", self._outer.named())
        self._window_bytes -= len(data)
        if self._is_over:
            return
        try:
            pieces = self._pipe.feed(data)
        except PipeBroken as broken:
            self._broke(broken.error)
            return
        self._push()
        if self._pipe.ready and not self._attached:
            self._attached = True
            self._timer.cancel()
            self._link.bulk_buffer_bytes = limits.RELAYED_BULK_BUFFER_BYTES
            self._link.attach(self, self._hello())
            self._opened()
        for piece in pieces:
            if not self._is_over:
                self._link.feed(piece)
        if self._pipe.ended:
            self._end(None, "closed", "")
        self._grant(len(data))

    def closed(self, reason: str, text: str) -> None:
        """The other end, or the relay, has ended the circuit."""
        relay = short_peer_id(self._outer.peer)
        error: P2PComputeError | None
        if reason == "closed":
            error = None
        elif reason == "busy":
            error = BusyError(f"no circuit through relay {relay}: {text}")
        else:
            error = LinkClosedError(f"the circuit through relay {relay} ended: {text or reason}")
        self._end(error, "", "")

    def lost(self, error: P2PComputeError) -> None:
        """The link to the relay is gone."""
        self._end(LinkClosedError(f"the relay {short_peer_id(self._outer.peer)} between is gone: {error}"), "", "")

    # --- the link's side ------------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep until it can be sent."""
        if not self._is_closing:
            self._pipe.write(data)
            self._push()

    def buffered_bytes(self) -> int:
        """What could not be sent yet."""
        return self._waiting_bytes

    def leaf(self) -> bytes:
        """The other end's certificate, as proven inside the circuit."""
        return self._pipe.leaf()

    def loss(self) -> float | None:
        """What the links on both sides of the relay send again is not known here."""
        return None

    def close(self) -> None:
        """Send what is kept, then hang up; bounded."""
        if not self._is_closing:
            self._is_closing = True
            self._pipe.end()
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(SHUTDOWN_TIMEOUT_S, self.abort)
            self._push()

    def abort(self) -> None:
        """Hang up now."""
        self._end(
            None if self._attached else LinkClosedError("the circuit was given up"), "aborted", "the other end hung up"
        )

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _push(self) -> None:
        data = self._pipe.take()
        if data and not self._is_over:
            self._waiting.append(memoryview(data))
            self._waiting_bytes += len(data)
            self._is_full = self._is_full or self._waiting_bytes >= limits.RELAYED_BULK_BUFFER_BYTES
        self._pump()

    def _pump(self) -> None:
        while self._waiting and self._credit_bytes > 0 and not self._is_over:
            if not self._outer.has_room():
                if not self._waits_for_room:
                    self._waits_for_room = True
                    self._outer.when_room(self._room)
                break
            first = self._waiting[0]
            size_bytes = min(len(first), self._credit_bytes, limits.CIRCUIT_DATA_BYTES_MAX)
            if size_bytes == len(first):
                self._waiting.popleft()
            else:
                self._waiting[0] = first[size_bytes:]
            self._waiting_bytes -= size_bytes
            self._credit_bytes -= size_bytes
            self._outer.send_bulk(CircuitData(self.number, bytes(first[:size_bytes])))
        if self._is_full and self._waiting_bytes <= limits.RELAYED_BULK_BUFFER_BYTES // 2:
            self._is_full = False
            # In a turn of its own: the link may be in the middle of writing.
            asyncio.get_running_loop().call_soon(self._tell_room)
        if self._is_closing and not self._waiting:
            self._end(None, "closed", "")

    def _tell_room(self) -> None:
        if not self._is_closing and not self._is_over:
            self._link.writable()

    def _room(self) -> None:
        self._waits_for_room = False
        self._pump()

    def _grant(self, size_bytes: int) -> None:
        self._owed_bytes += size_bytes
        if self._owed_bytes >= _GRANT_STEP_BYTES and not self._is_over:
            self._window_bytes += self._owed_bytes
            self._circuits.say(self._outer, CircuitCredit(self.number, self._owed_bytes))
            self._owed_bytes = 0

    def _too_slow(self) -> None:
        self._end(
            LinkClosedError(
                "nobody answered in time through the relay: it, or the other peer, may be overloaded or gone"
            ),
            "timeout",
            "the other end did not wait any longer",
        )

    def _broke(self, error: P2PComputeError) -> None:
        # The alert that TLS has made goes first, as far as it may.
        self._push()
        reason = error.reason.value if isinstance(error, AdmissionError) else "broken"
        self._end(error, reason, "the handshake inside the circuit failed, or what came was changed on its way")

    def _end(self, error: P2PComputeError | None, reason: str, text: str) -> None:
        """It is over. `reason` where the other end has to be told."""
        if self._is_over:
            return
        self._is_over = self._is_closing = True
        self._timer.cancel()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._circuits.drop(self._outer, self.number)
        if reason and self.number:
            self._circuits.say(self._outer, CircuitClosed(self.number, reason, text))
        loop = asyncio.get_running_loop()
        if self._attached:
            # In a turn of its own, as with a socket: whoever hung up is not called back while it does.
            loop.call_soon(self._link.carrier_lost, error)
        else:
            loop.call_soon(self._failed, error or LinkClosedError("the circuit was closed"))
