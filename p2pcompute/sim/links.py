"""Links over the simulated network: `net/memory.py` with ways that are slow, lossy, parted or gone.

What a link feels is what TCP lets through: bytes in order, late where something was lost, and nothing at all where the way is blocked, until it
opens and TCP tries again. A connection to a host that has fallen is not over for the other end before it is told, by a reset or by its own
heartbeat.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from p2pcompute.model import limits
from p2pcompute.model.errors import LinkClosedError, UnknownNameError
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link
from p2pcompute.net.memory import MemoryCarrier, MemoryNetwork, MemoryTransport
from p2pcompute.net.transport import Accept
from p2pcompute.sim.hosts import Realm, SimHost
from p2pcompute.sim.nat import may_hairpin
from p2pcompute.sim.trace import Detail
from p2pcompute.wire.messages import Hello

if TYPE_CHECKING:
    from p2pcompute.sim.network import SimNetwork

T = TypeVar("T")

#: The shortest time after which TCP sends again (Linux).
_RETRANSMIT_S: Final = 0.2
#: Retransmissions of one piece in a row that a lossy way can cost; TCP gives up far later.
_RETRANSMISSIONS_MAX: Final = 6
#: Between two attempts of TCP after a long silence, at most; it doubles from `_RETRANSMIT_S`.
_RETRY_MAX_S: Final = 30.0
#: First pause between two attempts to connect (RFC 6298); doubles.
_CONNECT_RETRY_S: Final = 1.0


class SimLinks(MemoryNetwork):
    """All connections of a simulated network. Hosts are known by their names."""

    def __init__(self, network: SimNetwork, rng: random.Random) -> None:
        super().__init__()
        self._network = network
        #: Dice of the links alone.
        self._rng = rng

    def transport_of(self, host: SimHost, leaf: bytes, hello: Callable[[], Hello]) -> MemoryTransport:
        """How the hub on `host` listens and dials; it shows `leaf` as its certificate."""
        return SimTransport(self, host, leaf, hello)

    # --- listening and dialling -----------------------------------------------------------------------------------------

    def bind(self, host: str, ports: Iterator[int], accept: Accept, transport: MemoryTransport) -> int | None:
        """Listen at the first of `ports` that is free; None where none is."""
        machine = self._network.hosts[host]
        for port in ports:
            if port not in machine.listeners:
                machine.listeners[port] = (accept, transport)
                return port
        return None

    def unbind(self, transport: MemoryTransport) -> None:
        """Stop listening."""
        listeners = self._network.hosts[transport.host].listeners
        for port in [port for port, (_, each) in listeners.items() if each is transport]:
            del listeners[port]

    async def reach(self, dialler: MemoryTransport, address: Address, link: Link) -> None:
        """Connect as TCP does: a lost or blocked greeting is repeated, a refusal comes at once. Raises LinkClosedError."""
        near = self._network.hosts[dialler.host]
        pause_s, waited_s = _CONNECT_RETRY_S, 0.0
        while True:
            far, seen = self._find(near, address)
            if far is not None and not self._is_silent(near, far) and not self._is_greeting_lost(near, far):
                # The greeting, its answer and the first bytes: one round trip.
                await asyncio.sleep(self._once_s(near, far) + self._once_s(far, near))
                if not self._is_silent(near, far):
                    break
            pause_s = min(pause_s, limits.DIAL_TIMEOUT_S - waited_s)
            if pause_s <= 0:
                raise LinkClosedError(f"{address} does not answer within {limits.DIAL_TIMEOUT_S:.0f} s")
            await asyncio.sleep(pause_s)
            waited_s += pause_s
            pause_s *= 2
        found = self._listener(near, address)
        if found is None or far is None:
            raise LinkClosedError(f"cannot reach {address}: nobody listens there")
        self._network.note("connect", near.name, str(address), far.name)
        self.connect(dialler, address, link, *found, seen)

    def _find(self, near: SimHost, address: Address) -> tuple[SimHost | None, Address]:
        """The host that `address` leads to from `near`, and the address under which it sees `near`."""
        source = near.address_for(address.host)
        port = self.ephemeral_port()
        if address.host in ("127.0.0.1", "::1"):
            return near, Address(address.host, port)
        realm: Realm = near.realm
        while source is not None:
            node = realm.nodes.get(address.host)
            if node is not None:
                return (node.behind(address.port) if may_hairpin(node, near.realm) else None), Address(source, port)
            if realm.nat is None:
                break
            source, realm = realm.nat.outside, realm.nat.outer
        return None, Address(source or address.host, port)

    def _listener(self, near: SimHost, address: Address) -> tuple[Accept, MemoryTransport] | None:
        if address.host in ("127.0.0.1", "::1"):
            return near.listener(address.port)
        realm: Realm | None = near.realm
        while realm is not None:
            node = realm.nodes.get(address.host)
            if node is not None:
                return node.listener(address.port)
            realm = realm.nat.outer if realm.nat is not None else None
        return None

    def _is_silent(self, near: SimHost, far: SimHost) -> bool:
        """Whether an attempt to connect gets no answer at all."""
        if not near.is_up or not far.is_up or far.is_stopped:
            return True
        network = self._network
        there, back = network.path(near, far), network.path(far, near)
        return there.is_blocked or back.is_blocked or network.clogged_until(near, far) > network.loop.time()

    def _is_greeting_lost(self, near: SimHost, far: SimHost) -> bool:
        """Whether one attempt to connect, or its answer, is lost."""
        there, back = self._network.path(near, far), self._network.path(far, near)
        return self._rng.random() < 1.0 - (1.0 - there.loss) * (1.0 - back.loss)

    def _once_s(self, near: SimHost, far: SimHost) -> float:
        path = self._network.path(near, far)
        return path.base_s + path.jitter_s * self._rng.random()

    def now(self) -> float:
        """Seconds of the loop."""
        return self._network.loop.time()

    def post(self, when: float, function: Callable[[object, object], None]) -> None:
        """Call `function` with two arguments that mean nothing, at `when`."""
        self._network.loop.post(when, function, None, None)

    # --- what carriers ask ----------------------------------------------------------------------------------------------

    def carrier(self, host: str, far_host: str, remote: Address, link: Link, leaf: bytes) -> MemoryCarrier:
        """One end of a new connection."""
        return SimCarrier(self, self._network.hosts[host], self._network.hosts[far_host], remote, link, leaf)

    def at(self, host: str, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` on that host."""
        return self._network.hosts[host].run(function, *args)

    def due(self, near: SimHost, far: SimHost, size_bytes: int) -> float:
        """When so many bytes that are written now arrive."""
        network, draw = self._network, self._rng.random
        path = network.path(near, far)
        now = due = network.loop.time()
        if near.line.up_bytes_per_s is not None:
            due = near.up_free_at = max(near.up_free_at, now) + size_bytes / near.line.up_bytes_per_s
        due += path.base_s + path.jitter_s * draw()
        if path.loss:
            again_s = max(_RETRANSMIT_S, 3 * path.base_s)
            for _ in range(_RETRANSMISSIONS_MAX):
                if draw() >= path.loss:
                    break
                due += again_s
                again_s *= 2
        if far.line.down_bytes_per_s is not None:
            due = far.down_free_at = max(far.down_free_at, due) + size_bytes / far.line.down_bytes_per_s
        return max(due, network.clogged_until(near, far))

    def is_held(self, one: str, other: str) -> bool:
        """Whether bytes are kept."""
        return super().is_held(one, other) or self.is_stalled(self._network.hosts[one], self._network.hosts[other])

    def is_dropped(self, one: str, other: str) -> bool:
        """Whether bytes are swallowed."""
        hosts = self._network.hosts
        return super().is_dropped(one, other) or not (hosts[one].is_up and hosts[other].is_up)

    def is_stalled(self, near: SimHost, far: SimHost) -> bool:
        """Whether bytes wait on the way, or for a program that does not run."""
        return far.is_stopped or self._network.path(near, far).is_blocked

    def retry_at(self, stalled_since: float) -> float:
        """When TCP tries again on a way that has just opened: the longer it was blocked, the rarer the attempts."""
        now = self._network.loop.time()
        return now + self._rng.random() * min(max(now - stalled_since, 0.0), _RETRY_MAX_S)

    def answers_with_reset(self, near: SimHost, far: SimHost, remote: Address) -> bool:
        """Whether `far`, which knows nothing of the connection any more, is there to say so."""
        if not far.is_up or self._network.path(near, far).is_blocked:
            return False
        node = far.realm.nodes.get(remote.host)
        return node is far or far.realm.nat is not None

    def arrived(self, near: SimHost, far: SimHost, data: bytes) -> None:
        """Bytes are about to be handed over."""
        far.link_bytes_in += len(data)
        network = self._network
        if network.detail:
            what = data if network.detail == Detail.FULL else len(data)
            network.trace.event((network.loop.time(), "bytes", near.name, far.name, what))

    # --- faults ---------------------------------------------------------------------------------------------------------

    def go_on(self, host: SimHost | None = None) -> None:
        """Ways have opened, or the programs of `host` run again."""
        for carrier in list(self._carriers):
            if isinstance(carrier, SimCarrier) and host in (None, carrier.far):
                carrier.go_on()

    def fall(self, host: SimHost, *, silent: bool) -> None:
        """The programs of `host` are gone, and all connections with them; `silent`: the other ends have to find out."""
        for carrier in list(self._carriers):
            if not isinstance(carrier, SimCarrier):
                continue
            if carrier.near is host:
                carrier.fate = Fate.MUTE
                self.forget(carrier)
            elif carrier.far is host:
                if silent or self._network.path(host, carrier.near).is_blocked:
                    carrier.fate = Fate.FORGOTTEN
                else:
                    carrier.lose(ConnectionResetError("the other side is gone"))

    def leave(self, host: SimHost) -> None:
        """`host` is elsewhere: nothing gets through on its connections any more, in either direction, and nobody says so."""
        for carrier in list(self._carriers):
            if isinstance(carrier, SimCarrier) and host in (carrier.near, carrier.far):
                carrier.fate = Fate.MUTE


class Fate(enum.Enum):
    """What becomes of the bytes that one end sends."""

    #: They arrive, if the way is open.
    ALIVE = "alive"
    #: They vanish.
    MUTE = "mute"
    #: The other machine does not know the connection any more; as soon as it hears of it, it says so.
    FORGOTTEN = "forgotten"


class SimTransport(MemoryTransport):
    """How one hub listens and dials in a simulated network."""

    def __init__(self, links: SimLinks, host: SimHost, leaf: bytes, hello: Callable[[], Hello]) -> None:
        super().__init__(links, host.name, leaf, hello)
        self._links = links

    async def connect(self, address: Address, link: Link, carrier: str) -> None:
        """Connect `link` to `address`. Raises LinkClosedError, UnknownNameError."""
        if carrier not in ("stream", "memory"):
            raise UnknownNameError("carrier", carrier, ["stream", "memory"])
        await self._links.reach(self, address, link)


class SimCarrier(MemoryCarrier):
    """One end of a connection between simulated hosts."""

    def __init__(self, links: SimLinks, near: SimHost, far: SimHost, remote: Address, link: Link, leaf: bytes) -> None:
        super().__init__(links, near.name, remote, link, leaf, far.name)
        self._links = links
        self.near = near
        self.far = far
        #: What becomes of what this end sends.
        self.fate = Fate.ALIVE
        #: Since when bytes wait for the way to open, seconds of the loop; None: they do not.
        self._stalled_since: float | None = None

    def go_on(self) -> None:
        """The way may be open."""
        if self._timer is not None or not self._sent or self._is_stalled():
            return
        since, self._stalled_since = self._stalled_since, None
        self._timer = self._ring_at(self._sent[0][0] if since is None else self._links.retry_at(since))

    def is_cut_off(self) -> bool:
        """Whether nothing that this end sends arrives any more."""
        return self.fate is not Fate.ALIVE or super().is_cut_off()

    def deliver_soon(self) -> None:
        """See to it that what is due arrives; noted where it cannot."""
        if not self._is_stalled():
            super().deliver_soon()

    def _is_stalled(self) -> bool:
        if self.fate is not Fate.ALIVE or not self._links.is_stalled(self.near, self.far):
            return False
        # A program that was starved of its CPU has a kernel that took the bytes: nothing has to be sent again.
        if self._stalled_since is None and "starved" not in self.far.stops:
            self._stalled_since = self._links.now()
        return True

    def _ring_at(self, due: float) -> object:
        self._links.post(due, self._rung)
        return self

    def _rung(self, _: object, __: object) -> None:
        self._deliver()

    def _due(self, size_bytes: int) -> float:
        self.near.link_bytes_out += size_bytes
        return self._links.due(self.near, self.far, size_bytes)

    def _deliver(self) -> None:
        self._timer = None
        if not self._sent or self._is_stalled():
            return
        data = self._sent[0][1]
        if self.fate is Fate.FORGOTTEN and self._links.answers_with_reset(self.near, self.far, self.remote):
            self.lose(ConnectionResetError("the other side does not know this connection any more"))
            return
        if data is not None and not self.is_cut_off():
            self._links.arrived(self.near, self.far, data)
        super()._deliver()
