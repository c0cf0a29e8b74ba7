"""The machines of a simulated network: their addresses, ports, and whether their processes run.

A host's code runs in the host's context: what it starts (timers, tasks) carries its name, so a stopped process can be held as a whole, timers and all.
Whoever starts a peer does it inside `with host.here():`; deliveries come in that context by themselves.

Refuses to know how datagrams and bytes travel (`network.py`, `links.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from p2pcompute.model.errors import PortTakenError
from p2pcompute.model.peer import Address
from p2pcompute.net.datagrams import DatagramPort, Received
from p2pcompute.net.transport import Accept
from p2pcompute.sim.conditions import Line

if TYPE_CHECKING:
    from p2pcompute.net.memory import MemoryTransport
    from p2pcompute.sim.nat import NatBox
    from p2pcompute.sim.network import SimNetwork
    from p2pcompute.wire.messages import Hello

T = TypeVar("T")

#: The host on which the code runs that asks.
HERE: ContextVar[SimHost | None] = ContextVar("p2pcompute_sim_host", default=None)

#: What a kernel keeps for a process that does not read its socket (Linux: net.core.rmem_default).
SOCKET_BUFFER_BYTES: Final = 212_992
#: The largest payload of a UDP datagram.
UDP_BYTES_MAX: Final = 65_507
_EPHEMERAL_FIRST, _EPHEMERAL_COUNT = 49_152, 16_384


class Arrival(Protocol):
    """Where a datagram can arrive: a port, or a NAT's mapping to one."""

    @property
    def host(self) -> SimHost:
        """The host at which it ends."""

    def arrive(self, data: bytes, source: Address) -> object:
        """Take one datagram, now."""


class Node(Protocol):
    """What has an address: a host, or the outside of a NAT."""

    ports: dict[int, Arrival]

    def listener(self, port: int) -> tuple[Accept, MemoryTransport] | None:
        """Who takes connections there."""

    def behind(self, port: int) -> SimHost | None:
        """The host at which connections there end; None: nothing answers."""


class Realm:
    """One address space: the internet, or what lies behind a NAT."""

    def __init__(self, nat: NatBox | None) -> None:
        #: By numeric address.
        self.nodes: dict[str, Node] = {}
        #: The way out; None: this is the internet.
        self.nat = nat


class SimHost:
    """One machine. Made by `SimNetwork.add_host`."""

    def __init__(self, network: SimNetwork, name: str, realm: Realm, site: str, lan: str | None) -> None:
        self.network = network
        #: Unique in the network.
        self.name = name
        self.realm = realm
        #: Numeric, in the order in which they are preferred; those of one family are all the same to a sender.
        self.addresses: tuple[str, ...] = ()
        #: Where it stands, for latencies.
        self.site = site
        #: Whose broadcasts it hears; None: nobody's.
        self.lan = lan
        #: How it is connected; set through the network.
        self.line = Line()
        #: Hosts of one kind have the same site, line and partitions; kept by the network.
        self.kind = 0
        #: Whether it is switched on and connected.
        self.is_up = True
        #: Ports that are open, by number.
        self.ports: dict[int, Arrival] = {}
        #: Who takes connections, by port.
        self.listeners: dict[int, tuple[Accept, MemoryTransport]] = {}
        #: Called with a LAN's broadcasts.
        self.broadcast_listeners: list[Callable[[bytes, Address], None]] = []
        #: Called when it has got other addresses.
        self.on_moved: list[Callable[[], None]] = []
        #: Why its processes do not run now, in order; empty: they run.
        self.stops: dict[str, None] = {}
        #: The fault that takes its CPU now and then; None: it has it for itself.
        self.starving: object | None = None
        #: Timers that fell due while they did not run, oldest first.
        self.held: list[asyncio.Handle] = []
        #: Datagrams that came meanwhile, with their ports, and their bytes together; at most `SOCKET_BUFFER_BYTES`.
        self.queue: list[tuple[SimPort, bytes, Address]] = []
        self.queue_bytes = 0
        #: When its line is free again, out and in, seconds of the loop.
        self.up_free_at = 0.0
        self.down_free_at = 0.0
        #: Nothing that it sends, and nothing for it, moves before this; seconds of the loop.
        self.clogged_until = 0.0
        #: Datagrams and their bytes, as its programs sent and received them.
        self.datagrams_out = self.datagrams_in = 0
        self.bytes_out = self.bytes_in = 0
        #: Bytes on links, as written and as delivered.
        self.link_bytes_out = self.link_bytes_in = 0
        self._next_ephemeral = 0
        #: The context in which its code is called.
        self.context: Context = copy_context()
        self.context.run(HERE.set, self)

    def __repr__(self) -> str:
        return f"<host {self.name}>"

    @property
    def is_stopped(self) -> bool:
        """Whether its processes do not run now."""
        return bool(self.stops)

    @property
    def address(self) -> str:
        """Its first address."""
        return self.addresses[0]

    def address_for(self, destination: str) -> str | None:
        """The address that it sends from to `destination`; None where it has none of that family."""
        is_ipv6 = ":" in destination
        return next((each for each in self.addresses if (":" in each) == is_ipv6), None)

    # --- its code -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def here(self) -> Iterator[SimHost]:
        """What is started inside the block runs on this host: `with host.here(): group.create_task(…)`."""
        token = HERE.set(self)
        try:
            yield self
        finally:
            HERE.reset(token)

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` on this host."""
        return function(*args) if HERE.get() is self else self.context.run(function, *args)

    # --- ports ----------------------------------------------------------------------------------------------------------

    async def open_datagrams(self, host: str | None, port: int, received: Received) -> DatagramPort:
        """An `OpenDatagrams`: a UDP port of this host, of a free number for 0. Raises PortTakenError."""
        if host is not None and host not in self.addresses and host not in ("0.0.0.0", "::"):
            raise PortTakenError(f"{host} is no address of {self.name}: bind one of {', '.join(self.addresses)}")
        return self.bind(port, received)

    def bind(self, number: int, received: Received) -> SimPort:
        """A UDP port of this host. Raises PortTakenError."""
        if not self.is_up:
            raise PortTakenError(f"{self.name} is down: revive it first")
        number = number or self.free_port(self.ports)
        if number in self.ports:
            raise PortTakenError(f"UDP port {number} is in use at {self.name}: choose another")
        opened = SimPort(self, number, received)
        self.ports[number] = opened
        return opened

    def free_port(self, taken: dict[int, Any]) -> int:
        """An ephemeral port that is not in `taken`. Raises PortTakenError."""
        for _ in range(_EPHEMERAL_COUNT):
            number = _EPHEMERAL_FIRST + self._next_ephemeral % _EPHEMERAL_COUNT
            self._next_ephemeral += 1
            if number not in taken:
                return number
        raise PortTakenError(f"all ephemeral ports of {self.name} are in use: close some")

    def listener(self, port: int) -> tuple[Accept, MemoryTransport] | None:
        """Who takes connections there."""
        return self.listeners.get(port)

    def behind(self, port: int) -> SimHost | None:
        """This host, whatever the port."""
        return self

    def transport(self, leaf: bytes, hello: Callable[[], Hello]) -> MemoryTransport:
        """How a hub on this host listens and dials; the other side is shown `leaf` as its certificate."""
        return self.network.links.transport_of(self, leaf, hello)

    def use_addresses(self, addresses: tuple[str, ...]) -> None:
        """Have other addresses; the network keeps its books."""
        self.addresses = addresses
        for port in self.ports.values():
            if isinstance(port, SimPort):
                port.use_addresses()


class SimPort:
    """A UDP port of a host; a `DatagramPort`."""

    __slots__ = ("_is_closed", "_network", "_number", "_received", "host", "source4", "source6")

    def __init__(self, host: SimHost, number: int, received: Received) -> None:
        self._network = host.network
        self.host = host
        self._number = number
        self._received = received
        self._is_closed = False
        #: What a receiver sees as the sender, by family; None where the host has no such address.
        self.source4: Address | None = None
        self.source6: Address | None = None
        self.use_addresses()

    @property
    def port(self) -> int:
        """Its number."""
        return self._number

    def use_addresses(self) -> None:
        """The host has other addresses than before."""
        four, six = self.host.address_for("0.0.0.0"), self.host.address_for("::")
        self.source4 = Address(four, self._number) if four else None
        self.source6 = Address(six, self._number) if six else None

    def send(self, data: bytes, to: Address) -> None:
        """Send one datagram; lost where nobody is there."""
        if self._is_closed:
            return
        if type(data) is not bytes:
            data = bytes(data)
        host = self.host
        host.datagrams_out += 1
        host.bytes_out += len(data)
        source = self.source6 if ":" in to.host else self.source4
        self._network.send(host, data, source, to)

    def arrive(self, data: bytes, source: Address) -> None:
        """A datagram is here; where the process does not run, it waits as long as there is room."""
        host, network = self.host, self._network
        if self._is_closed or not host.is_up:
            network.lose("nobody", data, source, host)
            return
        if host.stops:
            if "asleep" in host.stops or host.queue_bytes + len(data) > SOCKET_BUFFER_BYTES:
                network.lose("stopped", data, source, host)
            else:
                host.queue.append((self, data, source))
                host.queue_bytes += len(data)
            return
        host.datagrams_in += 1
        host.bytes_in += len(data)
        network.delivered += 1
        if network.detail:
            what = data if network.detail == 2 else len(data)
            network.trace.event(
                (network.loop.time(), "datagram", source.host, source.port, host.name, self._number, what)
            )
        host.context.run(self._received, data, source)

    def close(self) -> None:
        """Receive nothing any more; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            if self.host.ports.get(self._number) is self:
                del self.host.ports[self._number]
