"""One link between two peers: messages at once, bulk on streams beside them, a heartbeat.

A link runs on a carrier that moves bytes and nothing more. Control never waits behind bulk: messages are written in the turn of the loop
in which they are sent, chunks only while the carrier holds little. The way up (`link_life.py`) is short: the accepter greets; the dialler
checks that, decides to use this connection, greets and pings; the accepter checks and decides, and its pong says yes. So a
dialler learns every refusal, and two connections between two peers never both survive or both die.

Refuses to know: who may link and which link to keep (`links.py`), what messages mean beyond those that serve the link itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from p2pcompute.model import limits
from p2pcompute.model.errors import (
    AdmissionError,
    BlobMissingError,
    BusyError,
    FrameTooLargeError,
    LinkClosedError,
    P2PComputeError,
    PeerError,
    ProtocolError,
)
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Clock
from p2pcompute.net.bulk import Bulk
from p2pcompute.net.carrier import Carrier
from p2pcompute.net.link_life import NEXT_STATES, RELAYED, Admission, Route
from p2pcompute.net.link_life import LinkSettings as LinkSettings
from p2pcompute.net.link_life import LinkState as LinkState
from p2pcompute.wire.families import LINK_CODEC
from p2pcompute.wire.framing import Frame, FrameReader, message_frame
from p2pcompute.wire.messages import BlobMissing, EchoWant, Goodbye, Hello, Message, Ping, Pong

#: A Hello with two invitations and a record; nobody else may send more before being admitted.
GREETING_BYTES_MAX = 64 * 1024
#: How long the other side may take to hang up after a goodbye.
CLOSE_TIMEOUT_S = 2.0
#: Messages of one turn are written together, but at the latest when they are so many bytes.
_FLUSH_BYTES = 256 * 1024
#: Pings whose answers are awaited: the answer of an older one tells nothing.
_PINGS_MAX = 8
_NO_BYTES = memoryview(b"")
#: Answers whose shortest time is the round trip. Busy peers and full queues only ever add to it, and a link comes up when its ends are
#: busiest, with all their handshakes: a smoothed one (RFC 6298) held that against the link for minutes, at a ping every 20 s.
RTT_SAMPLES = 5


class LinkOwner(Protocol):
    """The hub, as a link sees it."""

    def greeted(self, link: Link, hello: Hello) -> None:
        """The other side's first message has come. Raises PeerError to refuse it."""

    def proposed(self, link: Link) -> None:
        """The dialler, already admitted, wants to use this connection."""

    def agreed(self, link: Link) -> None:
        """The accepter takes what this side proposed."""

    def received(self, link: Link, message: Message) -> None:
        """A message that does not serve the link itself. Raises PeerError for one that no honest peer sends."""

    def lost(self, link: Link, error: Exception | None) -> None:
        """The carrier is gone."""


class Link:
    """One link. Made by the hub; `admission` and `hello` are set once it is up."""

    def __init__(
        self,
        owner: LinkOwner,
        clock: Clock,
        *,
        dialled: bool,
        expected: PeerId | None = None,
        route: Route | None = None,
    ) -> None:
        self._owner = owner
        self._clock = clock
        self.dialled = dialled
        #: Whom the dialler wants to reach; None: whoever answers.
        self.expected = expected
        #: How it came about, where it was not simply dialled; does not change once the link is up.
        self.route = route
        #: Bulk is handed to the carrier only while it holds less than this; a slow carrier lowers it.
        self.bulk_buffer_bytes = limits.BULK_BUFFER_BYTES
        #: Who wants to be told once when bulk may be written.
        self._room_wanted: list[Callable[[], None]] = []
        self.state = LinkState.GREETING
        #: When one of the sides said goodbye, `monotonic` seconds; None before.
        self.left_at: float | None = None
        self._carrier: Carrier | None = None
        self._admission: Admission | None = None
        self._hello: Hello | None = None
        #: When the other side's membership ends, seconds since 1970, as its certificate and renewals that were heard of since say.
        self.expires_wall = math.inf
        self.version = 0
        self.opened_at = clock.monotonic()
        #: When anything last arrived, `monotonic` seconds.
        self.heard_at = self.opened_at
        #: The last round trips, `RTT_SAMPLES` at most, seconds.
        self._round_trips: deque[float] = deque(maxlen=RTT_SAMPLES)
        #: The shortest of them; None before the first.
        self.rtt_s: float | None = None
        self.bandwidth_mbps: float | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self._reader = FrameReader(GREETING_BYTES_MAX)
        self._bulk = Bulk(self, dialled=dialled)
        #: Frames that leave at the end of this turn of the loop.
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._flush_due = False
        #: Pings without an answer: number and time sent.
        self._pings: dict[int, float] = {}
        self._next_ping = 1
        #: When the last ping left, `monotonic` seconds.
        self.pinged_at = self.opened_at
        #: The answer to the dialler's proposal, kept until the hub has decided.
        self._pending_pong: Pong | None = None
        #: What the dialler says when it has seen with whom it speaks.
        self._own_hello: Hello | None = None
        self._used = False
        self._aborted = False
        #: Hangs up what has no carrier yet.
        self._hang_up: Callable[[], None] | None = None
        #: Why the link ends, once that is known.
        self.failure: P2PComputeError | None = None
        #: Set when the carrier is gone.
        self.gone = asyncio.Event()
        #: Set when the link is up, or the carrier is gone.
        self.settled = asyncio.Event()
        #: What `state` was when the carrier went.
        self.state_before_loss: LinkState | None = None
        #: The other side's goodbye, if it said one.
        self.farewell: Goodbye | None = None

    # --- what it is -----------------------------------------------------------------------------------------------------

    @property
    def admission(self) -> Admission:
        """Whom the other side proved to be; only once the link is up."""
        assert self._admission is not None, "the link is not up"
        return self._admission

    @property
    def hello(self) -> Hello:
        """The other side's first message; only once the link is up."""
        assert self._hello is not None, "the link is not up"
        return self._hello

    @property
    def peer(self) -> PeerId:
        """The other side's id; only once the link is up."""
        return self.admission.peer

    @property
    def admitted(self) -> bool:
        """Whether the other side was ever admitted."""
        return self._admission is not None

    @property
    def used(self) -> bool:
        """Whether this link is or was up."""
        return self._used

    @property
    def remote(self) -> Address:
        """The other end of the connection."""
        assert self._carrier is not None, "the link has no carrier"
        return self._carrier.remote

    @property
    def carrier(self) -> str:
        """What moves the bytes: "stream", "websocket", "relay" or "memory"."""
        return self._carrier.name if self._carrier is not None else ""

    @property
    def path(self) -> str:
        """How the other side is reached: "memory", "local", "lan" or "direct"; or "relayed" or "reversed", through `route.via`."""
        if self.route is not None:
            return self.route.path
        if self.carrier == "memory":
            return "memory"
        try:
            address = ipaddress.ip_address(self.remote.host.partition("%")[0])
        except ValueError:
            return "direct"
        if address.is_loopback:
            return "local"
        return "lan" if address.is_private or address.is_link_local else "direct"

    @property
    def relayed(self) -> bool:
        """Whether it runs through a relay; any other link is better."""
        return self.route is not None and self.route.path == RELAYED

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.state in (LinkState.LEAVING, LinkState.CLOSED)

    def leaf(self) -> bytes:
        """The other side's certificate, DER."""
        return self._carrier.leaf() if self._carrier is not None else b""

    @property
    def loss(self) -> float | None:
        """Share of what was sent that had to be sent again, 0 to 1; None where the carrier cannot tell."""
        return self._carrier.loss() if self._carrier is not None else None

    def named(self) -> str:
        """The other side, for logs and errors."""
        if self._admission is not None:
            return short_peer_id(self._admission.peer)
        return str(self._carrier.remote) if self._carrier is not None else "a peer"

    def _enter(self, state: LinkState) -> None:
        assert state in NEXT_STATES[self.state], f"a link that is {self.state.value} cannot become {state.value}"
        self.state = state
        if state is LinkState.LEAVING:
            self.left_at = self._clock.monotonic()

    # --- sending --------------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Hand over `message`; it leaves in this turn of the loop, before any bulk. Raises LinkClosedError."""
        self.send_encoded(LINK_CODEC.encode(message))

    def send_encoded(self, payload: bytes) -> None:
        """`send` for a message that was encoded already, for one that goes to many. Raises LinkClosedError."""
        if self.state is LinkState.LEAVING or self.state is LinkState.CLOSED:
            raise LinkClosedError(f"the link to {self.named()} is closed")
        self.write_frame(message_frame(payload))

    def write_frame(self, frame: bytes) -> None:
        """Send a frame with the messages of this turn; ignored once the link is closed."""
        self._outgoing.append(frame)
        self._outgoing_bytes += len(frame)
        if self._outgoing_bytes >= _FLUSH_BYTES:
            self._flush()
        elif not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush_turn)

    def write_chunk(self, header: bytes, chunk: memoryview) -> None:
        """Send a piece of bulk; what was said before it goes first."""
        self._flush()
        carrier = self._carrier
        if carrier is not None and not self.closed:
            carrier.write(header)
            if len(chunk):
                carrier.write(chunk)
            self.bytes_out += len(header) + len(chunk)

    def send_bulk(self, message: Message) -> None:
        """Send a message that is bulk itself, at once: ask `has_room` before. Ignored once the link is closed."""
        self.write_chunk(message_frame(LINK_CODEC.encode(message)), _NO_BYTES)

    def has_room(self) -> bool:
        """Whether bulk may be written."""
        carrier = self._carrier
        return carrier is not None and not self.closed and carrier.buffered_bytes() < self.bulk_buffer_bytes

    def when_room(self, call: Callable[[], None]) -> None:
        """Call `call` once when bulk may be written again; never, where the link ends before. Only while `has_room` says no."""
        self._room_wanted.append(call)

    def _flush_turn(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        if not self._outgoing:
            return
        data = self._outgoing[0] if len(self._outgoing) == 1 else b"".join(self._outgoing)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        carrier = self._carrier
        if carrier is None or self.state is LinkState.CLOSED:
            return
        self.bytes_out += len(data)
        carrier.write(data)
        if not self.closed and carrier.buffered_bytes() > limits.CONTROL_QUEUE_BYTES_MAX:
            self.fail(BusyError(f"{self.named()} does not take what it is sent: the link is closed, dial it again"))

    # --- streams --------------------------------------------------------------------------------------------------------

    async def request_stream(self, want: Callable[[int], Message], bytes_max: int) -> bytearray:
        """Ask for bulk with the message `want(stream)` and wait for all of it.

        Raises BlobMissingError when the other side does not have it, LinkClosedError, ProtocolError.
        """
        return await self._bulk.request(lambda stream: self.send(want(stream)), bytes_max)

    def serve_stream(self, stream: int, data: bytes | bytearray | memoryview) -> None:
        """Send `data` on a stream that the other side named. Raises ProtocolError; beyond the limit the stream is reset."""
        if not self.closed:
            self._bulk.serve(stream, data)

    def promise_stream(self, stream: int) -> bool:
        """The other side named a stream whose data comes later, with `fulfil_stream`: later ones need not wait for it.

        Whether it may; raises ProtocolError, beyond the limit the stream is reset.
        """
        return not self.closed and self._bulk.promise(stream)

    def when_given_up(self, stream: int, call: Callable[[], object]) -> None:
        """Call `call` when nobody waits any more for a stream that was promised; not once it is fulfilled."""
        self._bulk.when_given_up(stream, call)

    def fulfil_stream(self, stream: int, data: bytes | bytearray | memoryview | None) -> bool:
        """Send what was promised, None: there is nothing; whether the other side still waits for it."""
        return not self.closed and self._bulk.fulfil(stream, data)

    async def measure_bandwidth(self, size_bytes: int) -> float:
        """Megabits a second that arrive from the other side, measured with `size_bytes` of noise."""
        started = self._clock.monotonic()
        await self.request_stream(lambda stream: EchoWant(stream, size_bytes), size_bytes)
        whole_s = self._clock.monotonic() - started
        # The round trip was measured at another moment, and may be longer than all of this took.
        taken_s = max(whole_s - (self.rtt_s or 0.0), whole_s / 4, 1e-6)
        self.bandwidth_mbps = size_bytes * 8 / taken_s / 1e6
        return self.bandwidth_mbps

    # --- heartbeat ------------------------------------------------------------------------------------------------------

    def is_ping_due(self, now: float, interval_s: float) -> bool:
        """Whether it is time for a ping: `interval_s` after the last one, and at every look until there are enough round trips."""
        return len(self._round_trips) < RTT_SAMPLES or now - self.pinged_at >= interval_s

    def ping(self) -> None:
        """Ask for a sign of life; the answer gives the round trip."""
        if self.state is not LinkState.UP and self.state is not LinkState.PROPOSED:
            return
        now = self._clock.monotonic()
        while len(self._pings) >= _PINGS_MAX:
            del self._pings[next(iter(self._pings))]
        self._pings[self._next_ping] = self.pinged_at = now
        self.send(Ping(self._next_ping))
        self._next_ping += 1

    def _ponged(self, pong: Pong) -> None:
        sent = self._pings.pop(pong.nonce, None)
        if sent is None:
            return
        sample_s = max(self._clock.monotonic() - sent - pong.held_us / 1e6, 0.0)
        self._round_trips.append(sample_s)
        self.rtt_s = min(self._round_trips)

    # --- the carrier's side ---------------------------------------------------------------------------------------------

    def connecting(self, hang_up: Callable[[], None]) -> None:
        """What is to carry this link is not through yet: until it is attached `abort` calls `hang_up`."""
        self._hang_up = hang_up
        if self._aborted:
            hang_up()

    def attach(self, carrier: Carrier, hello: Hello) -> None:
        """The carrier is connected. The accepter greets at once, the dialler (with `hello`) when it has seen with whom it speaks."""
        self._carrier = carrier
        self._hang_up = None
        self._own_hello = hello
        if self._aborted:
            carrier.abort()
            return
        if not self.dialled:
            self.send(hello)

    def admit(self, admission: Admission, hello: Hello, version: int) -> None:
        """The hub has admitted the other side."""
        self._enter(LinkState.ADMITTED)
        self._admission, self._hello, self.version = admission, hello, version
        self.expires_wall = admission.expires_wall
        # Now, for what follows may lie in the buffer already when the link comes up.
        self._reader.payload_bytes_max = limits.FRAME_BYTES_MAX

    def propose(self) -> None:
        """The dialler's word that it wants to use this connection."""
        assert self._own_hello is not None, "only a dialler that is connected proposes"
        self._enter(LinkState.PROPOSED)
        self.send(self._own_hello)
        self.ping()

    def raise_up(self) -> None:
        """The hub uses this link from here on."""
        self._enter(LinkState.UP)
        self._used = True
        self.opened_at = self._clock.monotonic()

    def get_buffer(self) -> memoryview:
        """Room for what arrives."""
        return self._reader.get_buffer()

    def buffer_updated(self, count: int) -> None:
        """So many bytes were put into the room."""
        self._arrived(count, self._reader.buffer_updated(count))

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes from a carrier that hands them over."""
        self._arrived(len(data), self._reader.feed(data))

    def writable(self) -> None:
        """The carrier has room again."""
        # Before the streams: what others pass on here is held to a rate of its own, and leaves room.
        waiting, self._room_wanted = self._room_wanted, []
        for call in waiting:
            call()
        self._bulk.pump()

    def carrier_lost(self, error: Exception | None) -> None:
        """The carrier is gone; a second call does nothing."""
        if self.state_before_loss is not None:
            return
        self.state_before_loss = self.state
        self.state = LinkState.CLOSED
        self.gone.set()
        self.settled.set()
        self._outgoing.clear()
        self._room_wanted.clear()
        self._bulk.fail_all(LinkClosedError(f"the link to {self.named()} is gone" + (f": {error}" if error else "")))
        self._owner.lost(self, error)

    def _arrived(self, count: int, frames: list[Frame]) -> None:
        self.bytes_in += count
        self.heard_at = self._clock.monotonic()
        if self.failure is not None:
            return  # nothing that this peer says is believed any more
        decode = LINK_CODEC.decode
        try:
            for kind, stream, payload in frames:
                if kind == 0:
                    message = decode(payload)
                    if message is not None:  # None: of a later version
                        self._message(message)
                elif self.state in (LinkState.UP, LinkState.LEAVING):
                    self._bulk.frame(kind, stream, payload)
                else:
                    raise ProtocolError("sent bulk before the link was up", self.named())
                if self.state is LinkState.CLOSED:
                    return
            if self._reader.failure is not None:
                raise self._reader.failure
        except PeerError as error:
            self.fail(error)
        # What was answered leaves now: the next turn of the loop would cost it a look at every socket first.
        self._flush()

    def _message(self, message: Message) -> None:
        if self.state is LinkState.UP or self.state is LinkState.LEAVING:
            serve = _SERVES.get(type(message))
            if serve is None:
                self._owner.received(self, message)
            else:
                serve(self, message)
        elif isinstance(message, Goodbye):
            self._farewell(message)
        elif self.state is LinkState.GREETING and isinstance(message, Hello):
            self._owner.greeted(self, message)
        elif self.state is LinkState.ADMITTED and not self.dialled and isinstance(message, Ping):
            self._pending_pong = Pong(message.nonce)
            self._owner.proposed(self)
        elif self.state is LinkState.PROPOSED and isinstance(message, Pong):
            self._ponged(message)
            self._owner.agreed(self)
        elif self.state is not LinkState.CLOSED:
            raise ProtocolError(f"sent {type(message).__name__} while {self.state.value}", self.named())

    def agree(self) -> None:
        """The accepter's word that it takes what the dialler proposed; nothing may be sent before it."""
        assert self._pending_pong is not None, "nothing was proposed"
        self.send(self._pending_pong)
        self._pending_pong = None

    def _pinged(self, message: Ping) -> None:
        if not self.closed:
            self.send(Pong(message.nonce))

    def _missing(self, message: BlobMissing) -> None:
        self._bulk.fail(message.stream, BlobMissingError(f"{self.named()} does not hold it any more: ask another peer"))

    def _echo(self, message: EchoWant) -> None:
        self.serve_stream(message.stream, bytes(message.size_bytes))

    def _greeted_twice(self, message: Hello) -> None:
        raise ProtocolError("greeted twice", self.named())

    # --- the end --------------------------------------------------------------------------------------------------------

    def _farewell(self, message: Goodbye) -> None:
        if self.state is not LinkState.LEAVING:
            self.farewell = message
            self._flush()
            self._enter(LinkState.LEAVING)
        # Where both have said it at the same time neither waits for the other to hang up: nothing comes after it.
        if self._carrier is not None:
            self._carrier.close()

    def fail(self, error: P2PComputeError) -> None:
        """End the link because of `error`, and tell the other side why."""
        if self.closed or self._carrier is None:
            return
        if self.failure is None:
            self.failure = error
        if isinstance(error, AdmissionError):
            reason = error.reason.value
        else:
            reason = "frame-too-large" if isinstance(error, FrameTooLargeError) else type(error).__name__
        self.say_goodbye(reason, error.reason_text if isinstance(error, PeerError) else str(error))
        self._bulk.fail_all(error)
        self._carrier.close()

    async def close(self, reason: str, text: str = "") -> None:
        """Say goodbye, hear what is on its way until the other side hangs up; bounded."""
        if self._carrier is None or self.state is LinkState.CLOSED:
            return
        self.say_goodbye(reason, text)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.gone.wait()
        except TimeoutError:
            self._carrier.abort()

    def say_goodbye(self, reason: str, text: str = "") -> None:
        """Say it now, and nothing more after it; `close` waits for what follows. A second call does nothing."""
        if not self.closed:
            self.send(Goodbye(reason[:64], text[:1024]))
            self._enter(LinkState.LEAVING)
            self._flush()

    def abort(self) -> None:
        """Hang up now, without a word; a link that is not connected yet will be as soon as it is."""
        self._aborted = True
        if self._carrier is not None:
            self._carrier.abort()
        elif self._hang_up is not None:
            self._hang_up()


#: Messages that serve the link itself, once it is up.
_SERVES: Mapping[type[Message], Callable[[Link, Any], None]] = MappingProxyType(
    {
        Goodbye: Link._farewell,
        Ping: Link._pinged,
        Pong: Link._ponged,
        BlobMissing: Link._missing,
        EchoWant: Link._echo,
        Hello: Link._greeted_twice,
    }
)
