"""A network in memory: hubs listen and dial in it as they do with TLS, and everything above the carrier is the same code.

For tests and simulation. What is delivered when depends on the loop and on the settings alone, so a run on a virtual clock repeats exactly. Faults:
`cut` breaks connections, `hold` and `release` keep what is sent (a partition that heals), `drop` swallows it, `delay_s` makes it late.
Order within one direction of one connection is always kept, as TCP does. A side shows `leaf` instead of a certificate.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from p2pcompute.model import limits
from p2pcompute.model.errors import LinkClosedError, PortTakenError, UnknownNameError
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link
from p2pcompute.net.transport import Accept, Refused
from p2pcompute.wire.messages import Hello

T = TypeVar("T")

#: Where an ephemeral port is looked for.
_EPHEMERAL = range(49_152, 65_536)


class MemoryNetwork:
    """Joins the transports that it makes. One for a test or a simulation."""

    def __init__(self, delay_s: float | Callable[[str, str], float] = 0.0) -> None:
        #: Seconds that bytes take, one way; or a function of the two hosts.
        self.delay_s = delay_s
        self._listening: dict[Address, tuple[Accept, MemoryTransport]] = {}
        #: Both ends of every connection, in the order in which they were made.
        self._carriers: dict[MemoryCarrier, None] = {}
        #: Pairs of hosts, both ways, whose bytes are kept or swallowed.
        self._held: dict[tuple[str, str], None] = {}
        self._dropped: dict[tuple[str, str], None] = {}
        self._next_port = 0

    def transport(self, host: str, leaf: bytes, hello: Callable[[], Hello]) -> MemoryTransport:
        """How the hub at `host` (a numeric address) listens and dials."""
        return MemoryTransport(self, host, leaf, hello)

    # --- faults ---------------------------------------------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Break all connections between two hosts, as when a router resets them."""
        for carrier in self._between(one, other):
            carrier.lose(ConnectionResetError("cut"))

    def hold(self, one: str, other: str) -> None:
        """Keep what is sent between two hosts, both ways, until `release`."""
        self._held[one, other] = self._held[other, one] = None

    def release(self, one: str, other: str) -> None:
        """Deliver what was held, and what comes, in order."""
        self._held.pop((one, other), None)
        self._held.pop((other, one), None)
        for carrier in self._between(one, other):
            carrier.deliver_soon()

    def drop(self, one: str, other: str) -> None:
        """Swallow what is sent between two hosts from now on: both fall silent to each other."""
        self._dropped[one, other] = self._dropped[other, one] = None

    def _between(self, one: str, other: str) -> list[MemoryCarrier]:
        hosts = {(one, other), (other, one)}
        return [carrier for carrier in self._carriers if (carrier.host, carrier.far_host) in hosts]

    # --- what transports and carriers ask -------------------------------------------------------------------------------

    def latency_s(self, one: str, other: str) -> float:
        """How long bytes take between two hosts."""
        return self.delay_s if isinstance(self.delay_s, (int, float)) else self.delay_s(one, other)

    def is_held(self, one: str, other: str) -> bool:
        """Whether bytes are kept."""
        return (one, other) in self._held

    def is_dropped(self, one: str, other: str) -> bool:
        """Whether bytes are swallowed."""
        return (one, other) in self._dropped

    def bind(self, host: str, ports: Iterator[int], accept: Accept, transport: MemoryTransport) -> int | None:
        """Listen at the first of `ports` that is free; None where none is."""
        for port in ports:
            address = Address(host, port)
            if address not in self._listening:
                self._listening[address] = (accept, transport)
                return port
        return None

    def unbind(self, transport: MemoryTransport) -> None:
        """Stop listening."""
        for address, (_, listener) in list(self._listening.items()):
            if listener is transport:
                del self._listening[address]

    def join(self, dialler: MemoryTransport, address: Address, link: Link) -> None:
        """Make a connection. Raises LinkClosedError where nobody listens, or what listens does not want it."""
        found = self._listening.get(address)
        if found is None or self.is_dropped(dialler.host, address.host):
            raise LinkClosedError(f"cannot reach {address}: nobody listens there")
        accept, listener = found
        self.connect(dialler, address, link, accept, listener, Address(dialler.host, self.ephemeral_port()))

    def ephemeral_port(self) -> int:
        """The port that a dialling side has for one connection."""
        self._next_port += 1
        return _EPHEMERAL[self._next_port % len(_EPHEMERAL)]

    def connect(
        self,
        dialler: MemoryTransport,
        address: Address,
        link: Link,
        accept: Accept,
        listener: MemoryTransport,
        remote: Address,
    ) -> None:
        """Connect `link` to `listener`, whom it knows as `address` and who sees `remote`. Raises LinkClosedError where `accept` does not want it."""
        accepted = self.at(listener.host, accept, remote)
        if accepted is None:
            raise LinkClosedError(f"{address} takes no connections now")
        near = self.carrier(dialler.host, listener.host, address, link, listener.leaf)
        far = self.carrier(listener.host, dialler.host, remote, accepted, dialler.leaf)
        near.partner, far.partner = far, near
        self._carriers[near] = self._carriers[far] = None
        self.at(listener.host, accepted.attach, far, listener.hello())
        link.attach(near, dialler.hello())

    # --- what the laboratory changes ------------------------------------------------------------------------------------

    def carrier(self, host: str, far_host: str, remote: Address, link: Link, leaf: bytes) -> MemoryCarrier:
        """One end of a new connection."""
        return MemoryCarrier(self, host, remote, link, leaf, far_host)

    def at(self, host: str, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)`, on behalf of whoever lives at `host`."""
        return function(*args)

    def forget(self, carrier: MemoryCarrier) -> None:
        """One end is gone."""
        self._carriers.pop(carrier, None)


class MemoryTransport:
    """How one hub listens and dials in a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork, host: str, leaf: bytes, hello: Callable[[], Hello]) -> None:
        self._network = network
        self.host = host
        self.leaf = leaf
        self.hello = hello

    async def listen(self, accept: Accept, refused: Refused, host: str | None, port: int, ports_tried: int) -> int:
        """Take connections at `port` or the next free one. Raises PortTakenError."""
        ports = iter(_EPHEMERAL) if port == 0 else iter(range(port, port + ports_tried))
        bound = self._network.bind(self.host, ports, accept, self)
        if bound is None:
            raise PortTakenError(f"ports {port} to {port + ports_tried - 1} are all in use at {self.host}")
        return bound

    async def connect(self, address: Address, link: Link, carrier: str) -> None:
        """Connect `link` to `address`. Raises LinkClosedError."""
        if carrier not in ("stream", "memory"):
            raise UnknownNameError("carrier", carrier, ["stream", "memory"])
        await asyncio.sleep(self._network.latency_s(self.host, address.host))
        self._network.join(self, address, link)

    async def stop(self) -> None:
        """Take no more connections."""
        self._network.unbind(self)


class MemoryCarrier:
    """One end of a connection. What it sends is on its way in `_sent`, in order."""

    name = "memory"

    def __init__(
        self, network: MemoryNetwork, host: str, remote: Address, link: Link, leaf: bytes, far_host: str
    ) -> None:
        self._network = network
        self.host = host
        #: Where the other end is, which need not be the address that this end sees.
        self.far_host = far_host
        self.remote = remote
        self._link = link
        self._leaf = leaf
        #: The other end; set before anything is sent.
        self.partner: MemoryCarrier | None = None
        #: Time due and bytes, None for the end of the connection.
        self._sent: deque[tuple[float, bytes | None]] = deque()
        self._sent_bytes = 0
        #: What calls `_deliver`; None: nothing does.
        self._timer: object | None = None
        self._is_full = False
        self._is_closing = False
        self._is_lost = False

    # --- the link's side ------------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Send: due after the latency between the hosts."""
        if not self._is_closing:
            # A copy: a view may be of a buffer that changes.
            self._push(bytes(data))
            self._is_full = self._is_full or self._sent_bytes >= limits.BULK_BUFFER_BYTES

    def buffered_bytes(self) -> int:
        """What has not arrived yet."""
        return self._sent_bytes

    def leaf(self) -> bytes:
        """What the other side shows."""
        return self._leaf

    def loss(self) -> float | None:
        """Nothing is sent again here."""
        return 0.0

    def close(self) -> None:
        """Deliver what is on its way, then end both sides."""
        if not self._is_closing:
            self._is_closing = True
            self._push(None)

    def abort(self) -> None:
        """End this side now, the other when it hears of it."""
        self._is_closing = True
        if not self._is_lost:
            self._sent.clear()
            self._sent_bytes = 0
            self._push(None)
            asyncio.get_running_loop().call_soon(self.lose, None)

    # --- the network's side ---------------------------------------------------------------------------------------------

    def lose(self, error: Exception | None) -> None:
        """This end is gone."""
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        if error is not None:
            self._sent.clear()
        self._network.forget(self)
        self._network.at(self.host, self._link.carrier_lost, error)

    def deliver_soon(self) -> None:
        """See to it that what is due arrives."""
        if self._timer is None and self._sent and not self._network.is_held(self.host, self.far_host):
            self._timer = self._ring_at(self._sent[0][0])

    def _ring_at(self, due: float) -> object:
        """See to it that `_deliver` is called at `due`, seconds of the loop."""
        loop = asyncio.get_running_loop()
        return loop.call_soon(self._deliver) if due <= loop.time() else loop.call_at(due, self._deliver)

    def _due(self, size_bytes: int) -> float:
        """When so many bytes that are sent now arrive, seconds of the loop."""
        return asyncio.get_running_loop().time() + self._network.latency_s(self.host, self.far_host)

    def _push(self, data: bytes | None) -> None:
        due = self._due(len(data or b""))
        if self._sent:
            due = max(due, self._sent[-1][0])
        self._sent.append((due, data))
        self._sent_bytes += len(data or b"")
        self.deliver_soon()

    def _deliver(self) -> None:
        """Hand the first piece to the other end; one in a turn of the loop, so that connections alternate."""
        self._timer = None
        if not self._sent or self._network.is_held(self.host, self.far_host):
            return
        _, data = self._sent.popleft()
        self._sent_bytes -= len(data or b"")
        partner = self.partner
        assert partner is not None, "an end without its other end"
        if self.is_cut_off():
            # The other end never hears of it; this one closes all the same.
            if data is None:
                self.lose(None)
        elif data is None:
            partner.lose(None)
            self.lose(None)
        elif not partner._is_lost:
            self._network.at(partner.host, partner._link.feed, data)
        if self._is_full and self._sent_bytes <= limits.BULK_BUFFER_BYTES // 2 and not self._is_closing:
            self._is_full = False
            self._network.at(self.host, self._link.writable)
        self.deliver_soon()

    def is_cut_off(self) -> bool:
        """Whether nothing that this end sends arrives any more."""
        return self._network.is_dropped(self.host, self.far_host)
