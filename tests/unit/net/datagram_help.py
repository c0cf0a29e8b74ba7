"""Peers that talk by datagrams, for tests: a network of one list, with a clock that tests turn."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Role
from p2pcompute.net.datagrams import DatagramPort, Received
from p2pcompute.net.session_events import (
    Delivered,
    Effect,
    Refused,
    SessionSettings,
    SessionUp,
    Transmit,
)
from p2pcompute.net.sessions import Sessions
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.datagram import Kind
from p2pcompute.wire.invitation import Invitation
from p2pcompute.wire.membership import Admitted, Membership, Trust
from tests.support.networks import DAY_S, Member, SeededEntropy, make_member, make_network

#: Machines without sockets live at any time.
NOW_WALL = 1_800_000_000.0
CHANNEL = 1
DELAY_S = 0.01


class Identity:
    """What a peer shows and how it judges; `wall` is its clock."""

    def __init__(self, member: Member, *, wall: float = NOW_WALL) -> None:
        self.key = member.key
        self.peer = member.key.peer_id
        self.membership: Membership = member.membership
        self.trust: Trust = member.trust()
        self.wall = wall
        self.judged = 0

    def admit(self, leaf_der: bytes, chain: Sequence[bytes], expected: PeerId | None) -> Admitted:
        """As the composition root does it."""
        self.judged += 1
        return self.trust.admit(leaf_der, chain, self.wall, expected=expected)


@cache
def home() -> Authority:
    """The network of most tests."""
    return make_network(now=NOW_WALL)


@cache
def member(seed: str, *, under_admin: bool = False, valid_s: float = 365 * DAY_S) -> Member:
    """A member of `home`."""
    inviter: Authority | Invitation = home()
    if under_admin:
        entropy = SeededEntropy("admin of " + seed)
        roles = frozenset({Role.ADMIN, Role.SUBMIT, Role.COMPUTE})
        inviter = home().invite(
            roles=roles,
            valid_s=365 * DAY_S,
            now_wall=NOW_WALL,
            entropy=entropy,
            may_invite=True,
            label="an admin's label",
        )
    return make_member(inviter, seed, now=NOW_WALL, valid_s=valid_s)


def pair() -> tuple[Member, Member]:
    """Two members, the lower id first."""
    low, high = sorted((member("anna"), member("bert")), key=lambda each: each.key.peer_id)
    return low, high


@dataclass
class Station:
    """One peer at its address, and everything that it was told."""

    sessions: Sessions
    identity: Identity
    address: Address
    delivered: list[Delivered] = field(default_factory=list)
    ups: list[SessionUp] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def peer(self) -> PeerId:
        """Its id."""
        return self.identity.peer

    @property
    def payloads(self) -> list[bytes]:
        """What it got, in order."""
        return [each.payload for each in self.delivered]


@dataclass(frozen=True)
class Flying:
    """A datagram on its way."""

    data: bytes
    source: Address
    to: Address

    @property
    def kind(self) -> Kind:
        """By its first byte."""
        return Kind(self.data[0])


#: What becomes of a datagram: the delays (seconds) of its copies; none: it is lost.
Fate = Callable[[Flying], Iterable[float]]


def straight(flying: Flying) -> Iterable[float]:
    """It arrives once, after a while."""
    return (DELAY_S,)


class Net:
    """A network on a clock of its own. `fate` decides about each datagram; `log` has all that were sent."""

    def __init__(self, fate: Fate = straight) -> None:
        self.now = 1_000.0
        self.fate = fate
        self.stations: dict[Address, Station] = {}
        self.log: list[Flying] = []
        self._air: list[tuple[float, int, Flying]] = []
        self._numbers = itertools.count()
        #: How often the tables of a machine are checked: each time, but where there are thousands of peers.
        self.check_every = 1
        self._performed = itertools.count()

    def station(
        self,
        who: Member,
        number: int,
        *,
        settings: SessionSettings | None = None,
        wall: float = NOW_WALL,
        seed: str = "",
    ) -> Station:
        """A peer at 10.0.0.`number`; one that was there is gone, and has forgotten everything."""
        identity = Identity(who, wall=wall)
        entropy = SeededEntropy(f"{seed}/{number}/{next(self._numbers)}")
        made = Station(Sessions(identity, entropy, settings), identity, Address(f"10.0.0.{number}", 9876))
        self.stations[made.address] = made
        return made

    def perform(self, station: Station, effects: Sequence[Effect]) -> None:
        """Do what a machine wants."""
        if next(self._performed) % self.check_every == 0:
            station.sessions.check_invariants()
        for effect in effects:
            match effect:
                case Transmit(data, to):
                    self.send(Flying(data, station.address, to))
                case Delivered():
                    station.delivered.append(effect)
                case SessionUp():
                    station.ups.append(effect)
                case Refused():
                    station.refused.append(effect)

    def send(self, flying: Flying) -> None:
        """Put a datagram on its way."""
        self.log.append(flying)
        for delay_s in self.fate(flying):
            heapq.heappush(self._air, (self.now + delay_s, next(self._numbers), flying))

    def inject(self, data: bytes, source: Address, to: Station) -> Sequence[Effect]:
        """Hand a datagram in at once, past every fate; what the machine wants is done and returned."""
        effects = to.sessions.receive(data, source, self.now)
        self.perform(to, effects)
        return effects

    def say(self, source: Station, to: Station, payload: bytes, channel: int = CHANNEL) -> None:
        """`source` sends a payload to `to`."""
        self.perform(source, source.sessions.send(to.peer, (to.address,), channel, payload, self.now))

    def greet(self, source: Station, address: Address) -> None:
        """`source` begins a handshake with whoever is at `address`."""
        self.perform(source, source.sessions.greet(address, self.now))

    def run(self, seconds: float) -> None:
        """Let `seconds` pass."""
        end = self.now + seconds
        for _ in range(1_000_000):
            dues = [
                (due, address)
                for address, each in self.stations.items()
                if (due := each.sessions.deadline()) is not None
            ]
            due, address = min(dues, default=(float("inf"), None))
            arrival = self._air[0][0] if self._air else float("inf")
            if min(due, arrival) > end:
                self.now = end
                return
            self.now = max(self.now, min(due, arrival))
            if arrival <= due:
                flying = heapq.heappop(self._air)[2]
                receiver = self.stations.get(flying.to)
                if receiver is not None:
                    self.perform(receiver, receiver.sessions.receive(flying.data, flying.source, self.now))
            elif address is not None:
                station = self.stations[address]
                self.perform(station, station.sessions.tick(self.now, station.identity.wall))
        raise AssertionError("a million steps: something asks to be called again and again")

    def kinds(self, source: Station | None = None) -> list[Kind]:
        """The kinds of what was sent, by `source` alone where given."""
        return [each.kind for each in self.log if source is None or each.source == source.address]

    def last(self, kind: Kind, source: Station | None = None) -> Flying:
        """The last datagram of a kind."""
        return next(
            each
            for each in reversed(self.log)
            if each.kind is kind and (source is None or each.source == source.address)
        )


def joined(net: Net, one: Station, two: Station) -> None:
    """Make a session between them, begun by `one`, confirmed on both sides."""
    net.say(one, two, b"first")
    net.run(1.0)
    assert two.payloads[-1:] == [b"first"]
    assert session_of(one, two).is_confirmed
    assert session_of(two, one).is_confirmed


def session_of(station: Station, other: Station):  # type: ignore[no-untyped-def]
    """The session that `station` sends on."""
    return station.sessions.table.peers[other.peer].best


def is_payload(flying: Flying) -> bool:
    """Whether it is sealed."""
    return flying.kind is Kind.SEALED


class MemoryPorts:
    """Datagram ports of one process: what is sent arrives in the next round of the loop, or is lost where nobody is."""

    def __init__(self) -> None:
        self.open: dict[Address, Received] = {}

    def opener(self, host: str):  # type: ignore[no-untyped-def]
        """`OpenDatagrams` for a machine at `host`."""

        async def open_datagrams(_: str | None, port: int, received: Received) -> DatagramPort:
            return MemoryPort(self, Address(host, port), received)

        return open_datagrams


class MemoryPort:
    """One of them."""

    def __init__(self, ports: MemoryPorts, address: Address, received: Received) -> None:
        self._ports = ports
        self._address = address
        ports.open[address] = received

    @property
    def port(self) -> int:
        return self._address.port

    def send(self, data: bytes, to: Address) -> None:
        import asyncio

        asyncio.get_running_loop().call_soon(self._arrive, data, to)

    def _arrive(self, data: bytes, to: Address) -> None:
        received = self._ports.open.get(to)
        if received is not None:
            received(data, self._address)

    def close(self) -> None:
        self._ports.open.pop(self._address, None)


@dataclass
class Told:
    """`UdpEvents` that remembers."""

    datagrams: list[tuple[PeerId, int, bytes, Address]] = field(default_factory=list)
    ups: list[tuple[PeerId, Address, Admitted]] = field(default_factory=list)
    refusals: list[tuple[Address, P2PComputeError]] = field(default_factory=list)

    def datagram(self, peer: PeerId, channel: int, payload: bytes, source: Address) -> None:
        self.datagrams.append((peer, channel, payload, source))

    def session_up(self, peer: PeerId, address: Address, admission: Admitted) -> None:
        self.ups.append((peer, address, admission))

    def refused(self, address: Address, error: P2PComputeError, times: int) -> None:
        self.refusals.append((address, error))
