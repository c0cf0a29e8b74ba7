"""Sites, their wide links and the links between peers of `benchmarks/coordination.py`, in virtual time; every byte is counted where it passes.

A message is encoded by the product's codec to know its size, bulk leaves in chunks in turns of the product's `StreamSender`, both with the
headers of frames, TLS and TCP. One link is one ordered flow: a message waits for what its own link has written before, never for all
of a blob. A pipe (a site's way out or in, a peer's network card) is shared evenly by the flows that have something in it, which is
what TCP comes to; what leaves a site goes through that site's way out, then the distance, then the other's way in. Not modelled: slow
start, loss, and the cards of peers on wide links, which are ten times faster than those.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from p2pcompute.model import limits
from p2pcompute.model.errors import BlobMissingError, LinkClosedError, P2PComputeError, ProtocolError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Role
from p2pcompute.net.streams import StreamSender
from p2pcompute.sim.loop import SimLoop, SimulationError
from p2pcompute.wire.families import LINK_CODEC
from p2pcompute.wire.framing import HEADER_BYTES
from p2pcompute.wire.messages import BlobMissing, Message

Bytes = bytes | bytearray | memoryview

#: A card of 1 Gbit/s and half a switched round trip.
CARD_MBPS = 1_000.0
LAN_RTT_S = 0.0003
#: TLS adds a header and a tag to each record of 16 KiB, TCP and IP a header with timestamps to each packet.
_TLS_BYTES, _RECORD_BYTES = 22, 16_384
_PACKET_HEADERS_BYTES, _SEGMENT_BYTES = 52, 1_448
#: Rounding of the shared clock of a pipe, bytes.
_EPSILON_BYTES = 1e-3
_NO_WINDOW = 1 << 62


def wire_bytes(frame_bytes: int) -> int:
    """What a frame of so many bytes has on the wire."""
    inside = frame_bytes + _TLS_BYTES * (1 + frame_bytes // _RECORD_BYTES)
    return inside + _PACKET_HEADERS_BYTES * (1 + inside // _SEGMENT_BYTES)


@dataclass(slots=True)
class _Flow:
    """What one flow has in a pipe."""

    mark: float
    items: int = 0


class Pipe:
    """So many Mbit/s, shared evenly by the flows that have something in it; in each flow first come, first served.

    Fluid and exact: `_done` counts the bytes that a flow which never paused would have got, so an item is through when that count
    passes the item's mark, however many flows come and go meanwhile.
    """

    __slots__ = ("_at", "_awaited", "_done", "_flows", "_heap", "_loop", "_rate", "_serial")

    def __init__(self, loop: SimLoop, mbps: float) -> None:
        self._loop = loop
        #: Bytes a second.
        self._rate = mbps * 1e6 / 8
        #: Bytes that each flow has got so far, and when that was reckoned.
        self._done = 0.0
        self._at = 0.0
        #: (mark, serial, flow, call, argument) of what is under way; a heap.
        self._heap: list[tuple[float, int, object, Callable[[Any], object], Any]] = []
        #: Mark of the last item, and items under way, of each flow that has any.
        self._flows: dict[object, _Flow] = {}
        self._serial = 0
        #: When the loop calls next for what is through; None: nothing is under way.
        self._awaited: float | None = None

    def push(self, flow: object, size_bytes: int, call: Callable[[Any], object], argument: Any) -> None:
        """Send `size_bytes` of `flow`; `call(argument)` when the last of them is through."""
        self._reckon()
        state = self._flows.get(flow)
        if state is None:
            state = self._flows[flow] = _Flow(self._done)
        state.mark += size_bytes
        state.items += 1
        self._serial += 1
        heapq.heappush(self._heap, (state.mark, self._serial, flow, call, argument))
        self._wait()

    def _reckon(self) -> None:
        now = self._loop.time()
        if self._flows:
            self._done += (now - self._at) * self._rate / len(self._flows)
        self._at = now

    def _wait(self) -> None:
        if not self._heap:
            return
        left_bytes = max(self._heap[0][0] - self._done, 0.0)
        due = self._at + left_bytes * len(self._flows) / self._rate
        # One that comes too early, since flows have come, asks again: posts cannot be taken back.
        if self._awaited is None or due < self._awaited:
            self._awaited = due
            self._loop.post(due, self._look, due, None)

    def _look(self, due: float, nothing: None) -> None:
        if due != self._awaited:
            return
        self._awaited = None
        self._reckon()
        heap, flows = self._heap, self._flows
        through: list[tuple[Callable[[Any], object], Any]] = []
        while heap and heap[0][0] <= self._done + _EPSILON_BYTES:
            _, _, flow, call, argument = heapq.heappop(heap)
            state = flows[flow]
            state.items -= 1
            if not state.items:
                del flows[flow]
            through.append((call, argument))
        self._wait()
        for call, argument in through:
            call(argument)


@dataclass(slots=True)
class Site:
    """Where peers are. `bytes_out`, `bytes_in`: what has crossed its border so far."""

    number: int
    up: Pipe
    down: Pipe
    up_mbps: float
    down_mbps: float
    bytes_out: int = 0
    bytes_in: int = 0


@dataclass(slots=True)
class Seat:
    """A peer's place in the network: its site and its card."""

    peer: PeerId
    site: Site
    card_out: Pipe
    card_in: Pipe


class Owner(Protocol):
    """The peer at an end of a link."""

    def received(self, link: BenchLink, message: Message) -> None:
        """A message has come."""

    def unlinked(self, link: BenchLink, reason: str) -> None:
        """The link is gone."""


@dataclass(frozen=True, slots=True)
class _Reset:
    """Whoever asked for the stream does not want it any more."""

    stream: int


class _Admission:
    """What the other end may do: everything."""

    roles = frozenset(Role)
    invitation = None


class BenchLink:
    """One end of a link between two peers: what `LinkChannel` and `BlobExchange` use of `net.link.Link`."""

    admission = _Admission()

    def __init__(self, loop: SimLoop, owner: Owner, seat: Seat, other: Seat, rtt_s: float) -> None:
        self._loop = loop
        self._owner = owner
        self._seat, self._far = seat, other
        self.peer = other.peer
        self.rtt_s = rtt_s
        self.is_wide = seat.site is not other.site
        #: Throughput from there as a measurement alone on the link would show it.
        self.bandwidth_mbps = min(seat.site.down_mbps, other.site.up_mbps) if self.is_wide else CARD_MBPS
        self._first = seat.site.up if self.is_wide else seat.card_out
        self._second = other.site.down if self.is_wide else other.card_in
        #: Bytes under way below which bulk may be written: what fills the way, and what the product leaves in its carrier.
        mbps = min(seat.site.up_mbps, other.site.down_mbps) if self.is_wide else CARD_MBPS
        filled_bytes = mbps * 1e6 / 8 * rtt_s + 2 * limits.CHUNK_BYTES
        self._room_bytes = filled_bytes + limits.BULK_BUFFER_BYTES
        #: The end at the other peer; set by `connect`.
        self.other: BenchLink = self
        self.closed = False
        #: Bytes that were written and have not arrived.
        self._underway_bytes = 0
        self._sender = StreamSender(window_bytes=_NO_WINDOW)
        #: What is being served, by stream: handed over whole with the last chunk.
        self._serving: dict[int, Bytes] = {}
        #: Told when the other end does not wait any more for what was promised, by stream.
        self._given_up: dict[int, Callable[[], object]] = {}
        self._turns = asyncio.Semaphore(limits.STREAMS_OPEN_MAX)
        self._awaited: dict[int, tuple[asyncio.Future[Bytes], int]] = {}
        self._next_stream = 1
        self._pump_due = False

    # --- what LinkChannel and BlobExchange use ----------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Write a message. Raises LinkClosedError."""
        if self.closed:
            raise LinkClosedError(f"the link to {short_peer_id(self.peer)} is closed")
        self._write(HEADER_BYTES + len(LINK_CODEC.encode(message)), message)
        if self._underway_bytes > limits.CONTROL_QUEUE_BYTES_MAX:
            raise SimulationError(
                f"{self._underway_bytes} bytes of messages wait on one link: the product would close it, which is not modelled"
            )

    def has_room(self) -> bool:
        """Whether bulk may be written."""
        return not self.closed and self._underway_bytes < self._room_bytes

    async def request_stream(self, want: Callable[[int], Message], bytes_max: int) -> Bytes:
        """As `Link.request_stream`."""
        async with self._turns:
            stream, self._next_stream = self._next_stream, self._next_stream + 1
            future: asyncio.Future[Bytes] = self._loop.create_future()
            self._awaited[stream] = (future, bytes_max)
            try:
                self.send(want(stream))
                return await future
            finally:
                del self._awaited[stream]
                if not future.done() or future.cancelled():
                    self._write(HEADER_BYTES, _Reset(stream))

    def serve_stream(self, stream: int, data: Bytes) -> None:
        """As `Link.serve_stream`."""
        if not self.closed:
            self._serving[stream] = data
            self._sender.open(stream, data)
            self._pump_soon()

    def promise_stream(self, stream: int) -> bool:
        """As `Link.promise_stream`."""
        if self.closed:
            return False
        self._sender.promise(stream)
        return True

    def when_given_up(self, stream: int, call: Callable[[], object]) -> None:
        """As `Link.when_given_up`."""
        self._given_up[stream] = call

    def fulfil_stream(self, stream: int, data: Bytes | None) -> bool:
        """As `Link.fulfil_stream`."""
        self._given_up.pop(stream, None)
        if self.closed or not self._sender.fulfil(stream, data):
            return False
        if data is not None:
            self._serving[stream] = data
            self._pump_soon()
        return True

    # --- under way --------------------------------------------------------------------------------------------------------

    def _write(self, frame_bytes: int, content: object) -> None:
        size_bytes = wire_bytes(frame_bytes)
        self._underway_bytes += size_bytes
        self._first.push(self, size_bytes, self._has_left, (size_bytes, content))

    def _has_left(self, item: tuple[int, object]) -> None:
        if self.is_wide:
            self._seat.site.bytes_out += item[0]
        self._loop.post(self._loop.time() + self.rtt_s / 2, self._comes, item, None)

    def _comes(self, item: tuple[int, object], _: None) -> None:
        self._second.push(self, item[0], self._has_come, item)

    def _has_come(self, item: tuple[int, object]) -> None:
        size_bytes, content = item
        if self.is_wide:
            self._far.site.bytes_in += size_bytes
        self._underway_bytes -= size_bytes
        if self._sender.ready:
            self._pump_soon()
        if not self.other.closed:
            self.other._take(content)

    def _take(self, content: object) -> None:
        if isinstance(content, _Reset):
            self._sender.reset(content.stream)
            self._serving.pop(content.stream, None)
            self._give_up(content.stream)
        elif isinstance(content, BlobMissing):
            error = BlobMissingError(f"{short_peer_id(self.peer)} does not hold it any more: ask another peer")
            self._settle(content.stream, error)
        elif isinstance(content, Message):
            self._owner.received(self, content)
        elif isinstance(content, tuple):
            self._settle(*content)

    def _settle(self, stream: int, result: Bytes | P2PComputeError) -> None:
        awaited = self._awaited.get(stream)
        if awaited is None or awaited[0].done():
            return
        future, bytes_max = awaited
        if isinstance(result, P2PComputeError):
            future.set_exception(result)
        elif len(result) > bytes_max:
            future.set_exception(ProtocolError("sent more than was asked for", short_peer_id(self.peer)))
        else:
            future.set_result(result)

    def _give_up(self, stream: int) -> None:
        call = self._given_up.pop(stream, None)
        if call is not None:
            call()

    def _pump_soon(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        while self.has_room():
            chosen = self._sender.next_chunk()
            if chosen is None:
                return
            stream, chunk, is_last = chosen
            frame_bytes = HEADER_BYTES + len(chunk) + (HEADER_BYTES if is_last else 0)
            self._write(frame_bytes, (stream, self._serving.pop(stream)) if is_last else None)

    # --- the end ----------------------------------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """This end notices that the link is gone."""
        if self.closed:
            return
        self.closed = True
        self._sender.clear()
        self._serving.clear()
        for stream in list(self._given_up):
            self._give_up(stream)
        for stream in list(self._awaited):
            self._settle(stream, LinkClosedError(f"the link to {short_peer_id(self.peer)} is gone"))
        self._owner.unlinked(self, reason)


def connect(
    loop: SimLoop, one: tuple[Owner, Seat], other: tuple[Owner, Seat], rtt_s: float
) -> tuple[BenchLink, BenchLink]:
    """Both ends of a new link that is up."""
    near = BenchLink(loop, one[0], one[1], other[1], rtt_s)
    far = BenchLink(loop, other[0], other[1], one[1], rtt_s)
    near.other, far.other = far, near
    return near, far
