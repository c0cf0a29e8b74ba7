"""The beacon machine: when this peer calls on its LAN, what it believes of others' calls, and whom it answers.

Rules: a burst at 0, 1 and 3 s after a start or a change of interfaces, then one call every 30 s with jitter. A datagram is
dropped by the first check that it fails, cheapest first: magic, network tag, time, duplicate, rate, signature. A peer that is
not heard for 90 s is forgotten.

A new instance of a peer is answered (0 to 500 ms later, at random), so that it knows somebody before the next calls of the
others. Not by everybody: fifty peers that start together would send 2,450 answers. Who calls in a moment anyway does not answer.
Of the others those do whose key ranks among the first `answers_per_call` by a hash of theirs and the caller's, as far as this
peer knows who is there; at the caller's second and third call as many more, should the first ones be gone. So a caller has at most
three times `answers_per_call` answers from who knows the same peers, whatever their number; who is new itself knows few and
answers too often (measured: 10.8 answers a caller where 25 peers start one after the other, 14.9 with 100). An answer is never
answered.

One beacon reaches a host over several interfaces. The same bytes from a further address are not a duplicate but one more
way to its peer; they need no second signature check.

A beacon carries a hash of the view of its peer. Where that differs from this peer's own although nothing has changed here for a
while, the network is split, and the two sit on one LAN: `ViewsDiffer` says so, seldom.

Idle, a peer costs its LAN `quiet_bytes_per_s`: 22 bytes a second with the four ways of a machine with one cable, 1.1 kB/s for fifty.

Refuses to know: sockets, the own beacon's content (the driver signs it when `Broadcast` or `Answer` is performed), and
what becomes of a hint (`membership/joining.py`).
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
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
    "Nonsense",
    "PeerHinted",
    "Start",
    "Tick",
    "ViewsDiffer",
    "quiet_bytes_per_s",
]

#: A beacon of this version with nothing added, bytes.
BEACON_WIRE_BYTES = 138


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
    #: Answers that one call of a new instance gets, from all who hear it together.
    answers_per_call: int = 3
    #: Calls of a new instance that are answered.
    calls_answered: int = 3
    #: Who calls within so many seconds does not answer.
    call_soon_s: float = 2.0
    #: A burst begins at most every so many seconds: an interface that flaps is no flood.
    burst_interval_s: float = 1.0
    #: The own view has not changed for so many seconds: another's that differs is not just late.
    view_settled_s: float = 5.0
    #: `ViewsDiffer` at most every so many seconds for one peer, and for all of them.
    views_interval_peer_s: float = 60.0
    views_interval_s: float = 5.0
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
    """`data` came from `source` (host and UDP port); `wall`: this machine's wall clock then, seconds; `view_hash`: of this
    peer's own view then, empty where nobody cares about differences."""

    data: bytes
    source: Address
    wall: float
    view_hash: bytes = b""


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


@dataclass(frozen=True, slots=True)
class ViewsDiffer:
    """`peer`, at `addresses`, knows other peers than this one although it sits on the same LAN: compare notes with it."""

    peer: PeerId
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Nonsense:
    """`host` sent what no peer sends: no beacon, a forged one, or one of too many. It costs the same whether it is one or a flood."""

    host: str


Effect = Broadcast | Answer | PeerHinted | ViewsDiffer | Nonsense


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
    #: Calls heard of this instance that were no answers.
    calls: int = 0
    #: Whether this instance has been answered, or is about to be.
    is_answered: bool = False
    #: When its view was last said to differ, monotonic seconds.
    differed_at: float = -math.inf


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
        #: When the last burst began, or will.
        self._burst_at = -math.inf
        #: The own view's hash as last told, and since when.
        self._view: tuple[bytes, float] = (b"", -math.inf)
        #: When any view was last said to differ.
        self._differed_at = -math.inf
        #: Signature checks, over all hosts.
        per_second = self._settings.signatures_per_second
        self._signatures = TokenBucket(per_second, per_second, 0.0)
        #: How many datagrams were dropped, by the check that they failed: for `doctor`.
        self.dropped: Counter[str] = Counter()

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What `event` leads to, and whatever else is due at `now`."""
        effects: list[Effect] = []
        if isinstance(event, (Start, InterfacesChanged)):
            if self._burst_at < now:
                self._burst_at = max(now, self._burst_at + self._settings.burst_interval_s)
            self._broadcasts_at = [self._burst_at + delay_s for delay_s in self._settings.burst_s]
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
            return self._drop("malformed", event.source)
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
            return self._drop("rate", event.source)
        if not signed.is_genuine(self._verify):
            return self._drop("signature", event.source)
        if known is None and len(self._heard) >= self._settings.peers_max:
            return self._drop("full")
        heard = self._heard[beacon.public_key] = _Heard(event.data, beacon, now, [host])
        if known is not None:
            heard.differed_at = known.differed_at
            if known.beacon.instance == beacon.instance:
                heard.calls, heard.is_answered = known.calls, known.is_answered
        if not beacon.is_answer:
            heard.calls += 1
            self._answer(heard, host, now)
        return [self._hint(beacon, host), *self._compare(heard, event, now)]

    def _answer(self, heard: _Heard, host: str, now: float) -> None:
        """Answer the call in `heard` some time soon, where that falls to this peer."""
        settings = self._settings
        calls_soon = bool(self._broadcasts_at) and self._broadcasts_at[0] - now <= settings.call_soon_s
        if (
            heard.is_answered
            or heard.calls > settings.calls_answered
            or calls_soon
            or len(self._answers_at) >= settings.peers_max
            or not self._is_among(heard.beacon.public_key, settings.answers_per_call * heard.calls)
        ):
            return
        heard.is_answered = True
        to = Address(host, heard.beacon.answer_port)
        self._answers_at.setdefault(to, now + self._rng.uniform(0.0, settings.answer_delay_max_s))

    def _is_among(self, caller: bytes, count: int) -> bool:
        """Whether this peer is among the first `count` of those heard here whose turn it is to answer `caller`."""
        own, before = _turn(self._own.public_key, caller), 0
        for key in self._heard:
            if key != caller and _turn(key, caller) < own:
                before += 1
                # Asked no further: thousands of invented peers must not cost a hash each for every call.
                if before >= count:
                    return False
        return True

    def _compare(self, heard: _Heard, event: BeaconHeard, now: float) -> list[Effect]:
        """Whether the views of two peers on one LAN differ for longer than news takes to get around."""
        settings = self._settings
        if not event.view_hash:
            return []
        if event.view_hash != self._view[0]:
            self._view = (event.view_hash, now)
        if (
            heard.beacon.view_hash == event.view_hash
            or now - self._view[1] < settings.view_settled_s
            or now - heard.differed_at < settings.views_interval_peer_s
            or now - self._differed_at < settings.views_interval_s
        ):
            return []
        heard.differed_at = self._differed_at = now
        hint = self._hint(heard.beacon, event.source.host)
        return [ViewsDiffer(hint.peer, hint.addresses)]

    def _hint(self, beacon: Beacon, host: str) -> PeerHinted:
        return PeerHinted(beacon.peer, (Address(host, beacon.peer_port),), self._own.network, beacon.view_hash)

    def _per_second(self, host: str) -> float:
        try:
            is_loopback = ipaddress.ip_address(host.partition("%")[0]).is_loopback
        except ValueError:
            is_loopback = False
        return self._settings.per_second_loopback if is_loopback else self._settings.per_second_per_address

    def _drop(self, reason: str, culprit: Address | None = None) -> list[Effect]:
        self.dropped[reason] += 1
        return [Nonsense(culprit.host)] if culprit is not None else []


def _turn(key: bytes, caller: bytes) -> bytes:
    """The lower, the sooner the holder of `key` is to answer `caller`: another order for each caller."""
    return hashlib.blake2b(caller + key, digest_size=8, person=b"p2pc-answer").digest()


def quiet_bytes_per_s(ways: int, settings: BeaconSettings | None = None) -> float:
    """Bytes a second that an idle peer sends, headers of UDP and IPv4 included.

    `ways`: datagrams a call takes: on each interface one for each broadcast address, one for each family's multicast, and
    255.255.255.255. What stays on the host (127.255.255.255) does not count.
    """
    interval_s = (settings or BeaconSettings()).interval_s
    return ways * (BEACON_WIRE_BYTES + 28) / interval_s
