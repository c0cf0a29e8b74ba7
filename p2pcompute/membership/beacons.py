"""The beacon machine: when this peer calls on its LAN, what it believes of others' calls, and whom it answers.

Rules: a burst at 0, 1 and 3 s after a start or a change of interfaces, then one call every 30 s with jitter. A datagram is
dropped by the first check that it fails, cheapest first: magic, network tag, time, duplicate, rate, signature. A new
instance of a peer is answered at once (0 to 500 ms, at random, so that a hundred answers do not collide), once, and never
if its beacon was an answer. A peer that is not heard for 90 s is forgotten.

One beacon reaches a host over several interfaces. The same bytes from a further address are not a duplicate but one more
way to its peer; they need no second signature check.

Refuses to know: sockets, the own beacon's content (the driver signs it when `Broadcast` or `Answer` is performed), and
what becomes of a hint (`membership/joining.py`).
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass, field

from p2pcompute.membership.machine import Tick, earliest
from p2pcompute.membership.rate import RateTable, TokenBucket
from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Rng
from p2pcompute.wire.beacon import Beacon, decode_beacon, network_tag
from p2pcompute.wire.record import Verifier

__all__ = [
    "Answer",
    "Effect",
    "Event",
    "BeaconHeard",
    "BeaconMachine",
    "BeaconOwn",
    "BeaconSettings",
    "Broadcast",
    "InterfacesChanged",
    "PeerHinted",
    "Start",
    "Tick",
]


@dataclass(frozen=True, slots=True)
class BeaconSettings:
    """When to call and what to take; the defaults are the product's, see `model/limits.py`."""

    #: Calls after a start or a change of interfaces, seconds from then.
    burst_s: tuple[float, ...] = (0.0, 1.0, 3.0)
    #: Seconds between calls afterwards.
    interval_s: float = limits.BEACON_INTERVAL_S
    #: Share of the interval by which it varies up and down.
    jitter: float = 0.2
    #: An answer waits between 0 and so many seconds.
    answer_delay_max_s: float = 0.5
    #: A peer not heard for so many seconds is forgotten.
    forget_s: float = limits.BEACON_FORGET_S
    #: Seconds by which a beacon's time may differ from this machine's.
    skew_max_s: float = limits.BEACON_SKEW_MAX_S
    #: Beacons a second taken from one address.
    per_second_per_address: float = limits.BEACONS_PER_SECOND_PER_ADDRESS
    #: The same for loopback, where all peers of this machine share one address.
    per_second_loopback: float = 20.0 * limits.BEACONS_PER_SECOND_PER_ADDRESS
    #: Signature checks a second over all addresses.
    signatures_per_second: float = limits.BEACON_SIGNATURES_PER_SECOND
    #: Peers remembered.
    peers_max: int = limits.BEACON_PEERS_MAX


@dataclass(frozen=True, slots=True)
class BeaconOwn:
    """Who calls: `public_key` (32 bytes) and the network it belongs to."""

    public_key: bytes
    network: NetworkId


@dataclass(frozen=True, slots=True)
class Start:
    """The sockets are open: call."""


@dataclass(frozen=True, slots=True)
class InterfacesChanged:
    """This machine sits on other networks than before: call there too."""


@dataclass(frozen=True, slots=True)
class BeaconHeard:
    """`data` came from `source` (host and UDP port); `wall`: this machine's wall clock then, seconds."""

    data: bytes
    source: Address
    wall: float


Event = Start | InterfacesChanged | BeaconHeard | Tick


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Sign a beacon now and send it on every interface."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Sign a beacon that is marked as an answer and send it to `to` alone."""

    to: Address


@dataclass(frozen=True, slots=True)
class PeerHinted:
    """A peer of the own network may listen at `addresses`; `view_hash`: of the peers that it knows."""

    peer: PeerId
    addresses: tuple[Address, ...]
    network: NetworkId
    view_hash: bytes


Effect = Broadcast | Answer | PeerHinted


@dataclass(slots=True)
class _Heard:
    """The newest beacon of one peer."""

    #: The datagram itself: equal bytes need no second check.
    data: bytes
    #: Decoded from `data`, signature checked.
    beacon: Beacon
    #: When `data` arrived first, monotonic seconds.
    at: float
    #: Addresses that `data` came from, at most `limits.ADDRESSES_MAX`.
    hosts: list[str] = field(default_factory=list)


class BeaconMachine:
    """See the module. `verify` is a pure function of its arguments."""

    def __init__(self, own: BeaconOwn, verify: Verifier, rng: Rng, settings: BeaconSettings | None = None) -> None:
        #: Who calls.
        self._own = own
        #: Tag of the own network.
        self._tag = network_tag(own.network)
        #: Checks a signature.
        self._verify = verify
        #: The machine's dice.
        self._rng = rng
        #: Times and limits.
        self._settings = settings or BeaconSettings()
        #: Calls to come, ascending; empty only before Start.
        self._broadcasts_at: list[float] = []
        #: Answers to come, by where they go; at most `peers_max`.
        self._answers_at: dict[Address, float] = {}
        #: Peers heard, by public key, at most `peers_max`; the signature of each was checked.
        self._heard: dict[bytes, _Heard] = {}
        #: Beacons taken, by host.
        self._rates: RateTable[str] = RateTable(self._settings.peers_max)
        #: Signature checks, over all hosts.
        per_second = self._settings.signatures_per_second
        self._signatures = TokenBucket(per_second, per_second, 0.0)
        #: How many datagrams were dropped, by the check that they failed: for `doctor`.
        self.dropped: Counter[str] = Counter()

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What `event` leads to, and whatever else is due at `now`."""
        effects: list[Effect] = []
        if isinstance(event, (Start, InterfacesChanged)):
            self._broadcasts_at = [now + delay_s for delay_s in self._settings.burst_s]
        elif isinstance(event, BeaconHeard):
            effects += self._hear(event, now)
        return effects + self._due(now)

    def deadline(self) -> float | None:
        """When the next call, answer or forgetting is due."""
        return earliest(
            self._broadcasts_at[0] if self._broadcasts_at else None,
            min(self._answers_at.values(), default=None),
            min((heard.at + self._settings.forget_s for heard in self._heard.values()), default=None),
        )

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Peers heard on the LAN within `forget_s`, in the order of their ids."""
        return tuple(sorted(heard.beacon.peer for heard in self._heard.values()))

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert self._broadcasts_at == sorted(self._broadcasts_at)
        assert len(self._heard) <= self._settings.peers_max
        assert len(self._answers_at) <= self._settings.peers_max
        assert self._own.public_key not in self._heard
        for key, heard in self._heard.items():
            assert heard.beacon.public_key == key
            assert 0 < len(heard.hosts) <= limits.ADDRESSES_MAX
            assert len(set(heard.hosts)) == len(heard.hosts)

    def _due(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._broadcasts_at and self._broadcasts_at[0] <= now:
            effects.append(Broadcast())
            # Calls missed while the machine slept are one call.
            self._broadcasts_at = [at for at in self._broadcasts_at if at > now]
        if effects and not self._broadcasts_at:
            jitter = self._settings.jitter
            self._broadcasts_at = [now + self._settings.interval_s * self._rng.uniform(1 - jitter, 1 + jitter)]
        for to in sorted(to for to, at in self._answers_at.items() if at <= now):
            del self._answers_at[to]
            effects.append(Answer(to))
        for key in [key for key, heard in self._heard.items() if heard.at + self._settings.forget_s <= now]:
            del self._heard[key]
        return effects

    def _hear(self, event: BeaconHeard, now: float) -> list[Effect]:
        try:
            signed = decode_beacon(event.data)
        except ProtocolError:
            return self._drop("malformed")
        beacon, host = signed.beacon, event.source.host
        if beacon.tag != self._tag:
            return self._drop("other-network")
        if beacon.public_key == self._own.public_key:
            return self._drop("own")
        if abs(event.wall - beacon.time_ms / 1000) > self._settings.skew_max_s:
            return self._drop("time")
        known = self._heard.get(beacon.public_key)
        if known is not None and known.data == event.data:
            if host in known.hosts or len(known.hosts) >= limits.ADDRESSES_MAX:
                return self._drop("duplicate")
            known.hosts.append(host)
            return [self._hint(beacon, host)]
        if known is not None and beacon.time_ms <= known.beacon.time_ms:
            return self._drop("duplicate")
        if not self._rates.take(host, self._per_second(host), now) or not self._signatures.take(now):
            return self._drop("rate")
        if not signed.is_genuine(self._verify):
            return self._drop("signature")
        if known is None and len(self._heard) >= self._settings.peers_max:
            return self._drop("full")
        self._heard[beacon.public_key] = _Heard(event.data, beacon, now, [host])
        is_new = known is None or known.beacon.instance != beacon.instance
        if is_new and not beacon.is_answer and len(self._answers_at) < self._settings.peers_max:
            to = Address(host, beacon.answer_port)
            self._answers_at.setdefault(to, now + self._rng.uniform(0.0, self._settings.answer_delay_max_s))
        return [self._hint(beacon, host)]

    def _hint(self, beacon: Beacon, host: str) -> PeerHinted:
        return PeerHinted(beacon.peer, (Address(host, beacon.peer_port),), self._own.network, beacon.view_hash)

    def _per_second(self, host: str) -> float:
        try:
            is_loopback = ipaddress.ip_address(host.partition("%")[0]).is_loopback
        except ValueError:
            is_loopback = False
        return self._settings.per_second_loopback if is_loopback else self._settings.per_second_per_address

    def _drop(self, reason: str) -> list[Effect]:
        self.dropped[reason] += 1
        return []
