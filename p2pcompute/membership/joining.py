"""The joining machine: which addresses to dial, and when. A duty that never ends and never fails.

Addresses come from many sources and are kept as candidates. A candidate is an address together with the peer that is
expected there, or None where a person named an address and whoever answers will do. Rules:

- Peers that are linked are not dialled. While fewer than `links_wanted` links are up, every known peer is; beyond that,
  only what a person named and nobody has answered at yet, and what `LinkWanted` asks for, up to `links_max`.
- A failure waits for 1 s to 5 min (60 s where somebody is waiting: LAN hints and `--bootstrap`), see `backoff.py`. A
  refusal that trying again cannot mend waits for about 10 min. An address that turned out to be this peer itself is
  never dialled again.
- The addresses of one peer are tried nearest first, the next one 300 ms later or as soon as the one before failed
  (RFC 8305's idea), until one links.
- What a person or an earlier run named is never given up. A LAN hint lasts as long as beacons repeat it, a record's
  address as long as the record.
- Of two peers that learn of each other at the same time the one with the higher id waits up to 300 ms: fewer
  simultaneous dials. Which of two links stays is the business of `net/`.

Refuses to know: sockets, names and their resolution, TLS, why a refusal is permanent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pcompute.membership.backoff import backoff_s
from p2pcompute.membership.joining_events import (
    HURRIED,
    LASTING,
    NAMED,
    SOURCES,
    CandidateHeard,
    Dial,
    DialEnded,
    Effect,
    Event,
    JoiningSettings,
    LinkDown,
    LinkUp,
    LinkWanted,
    NetworksChanged,
    PeerForgotten,
    Source,
)
from p2pcompute.membership.locality import Network, locality, parse_networks
from p2pcompute.membership.machine import Tick, earliest
from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionReason
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Rng

__all__ = [
    "SOURCES",
    "CandidateHeard",
    "Dial",
    "DialEnded",
    "Effect",
    "Event",
    "JoiningMachine",
    "JoiningSettings",
    "LinkDown",
    "LinkUp",
    "LinkWanted",
    "NetworksChanged",
    "PeerForgotten",
    "Source",
    "Tick",
]

_Key = tuple[Address, PeerId | None]


@dataclass(slots=True)
class _Candidate:
    """One address, and what came of trying it."""

    address: Address
    #: The only peer that will do there, None where anybody will.
    expected: PeerId | None
    #: Who answered there last; equals `expected` where that is set.
    peer: PeerId | None
    #: Who said so; never empty.
    sources: set[Source] = field(default_factory=set)
    #: When it was last said, monotonic seconds.
    heard_at: float = 0.0
    #: Failures in a row.
    failures: int = 0
    #: Not dialled before this.
    next_at: float = 0.0
    #: When the dial under way began, None where none is.
    dialled_at: float | None = None
    #: It is this peer itself that listens there.
    is_self: bool = False

    @property
    def rank(self) -> int:
        """Place of the best source in `SOURCES`."""
        return min(SOURCES.index(source) for source in self.sources)


class JoiningMachine:
    """See the module."""

    def __init__(self, own: PeerId, rng: Rng, settings: JoiningSettings | None = None) -> None:
        #: Who dials.
        self._own = own
        #: The machine's dice.
        self._rng = rng
        #: Times and limits.
        self._settings = settings or JoiningSettings()
        #: What may be dialled, at most `candidates_max`.
        self._candidates: dict[_Key, _Candidate] = {}
        #: The candidates that are being dialled: exactly those with `dialled_at`.
        self._under_way: dict[_Key, _Candidate] = {}
        #: Linked peers, and since when.
        self._linked: dict[PeerId, float] = {}
        #: Before this no further address of a peer is tried; only peers with a dial under way.
        self._next_address_at: dict[PeerId, float] = {}
        #: Peers that somebody needs, and until when.
        self._wanted: dict[PeerId, float] = {}
        #: This machine's own networks.
        self._networks: tuple[Network, ...] = ()

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What `event` leads to: the dials that are due and allowed at `now`."""
        match event:
            case CandidateHeard():
                self._hear(event, now)
            case DialEnded():
                self._end_dial(event, now)
            case LinkUp():
                self._link_up(event, now)
            case LinkDown(peer):
                self._link_down(peer, now)
            case LinkWanted(peer):
                self._want(peer, now)
            case PeerForgotten(peer):
                self._forget_peer(peer)
            case NetworksChanged(networks):
                self._networks = parse_networks(networks)
            case Tick():
                pass
        self._expire(now)
        return self._dials(now)

    def deadline(self) -> float | None:
        """When a dial, or the end of one that was never told, is due; None where only an event can change anything."""
        lost = [(candidate.dialled_at or 0.0) + self._settings.dial_lost_s for candidate in self._under_way.values()]
        due: list[float] = []
        if len(lost) < self._settings.dials_at_once_max:
            due = [
                max(candidate.next_at, self._next_address_at.get(candidate.peer, 0.0) if candidate.peer else 0.0)
                for candidate in self._candidates.values()
                if self._is_useful(candidate)
            ]
        return earliest(min(lost, default=None), min(due, default=None), min(self._wanted.values(), default=None))

    @property
    def candidates(self) -> tuple[tuple[Address, PeerId | None, int], ...]:
        """Address, peer as far as known, and failures in a row of every candidate: for `doctor`."""
        return tuple(
            (candidate.address, candidate.peer, 0 if candidate.peer in self._linked else candidate.failures)
            for candidate in sorted(self._candidates.values(), key=lambda each: (each.address, each.expected or b""))
        )

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert len(self._candidates) <= self._settings.candidates_max
        assert len(self._under_way) <= self._settings.dials_at_once_max
        dialled = {key for key, candidate in self._candidates.items() if candidate.dialled_at is not None}
        assert dialled == set(self._under_way)
        assert self._own not in self._linked
        for (address, expected), candidate in self._candidates.items():
            assert (candidate.address, candidate.expected) == (address, expected)
            assert candidate.sources
            assert expected is None or candidate.peer == expected
            assert not (candidate.is_self and candidate.dialled_at is not None)

    # --- events -------------------------------------------------------------------------------------------------------

    def _hear(self, event: CandidateHeard, now: float) -> None:
        if event.peer == self._own:
            return
        key = (event.address, event.peer)
        candidate = self._candidates.get(key)
        if candidate is None:
            candidate = _Candidate(event.address, event.peer, event.peer, {event.source}, now, next_at=now)
            if event.peer is not None and event.source in ("lan", "record") and self._own > event.peer:
                candidate.next_at = self._yield_until(event.peer, now)
            if not self._make_room(candidate):
                return
            self._candidates[key] = candidate
        candidate.heard_at = now
        if event.source not in candidate.sources:
            candidate.sources.add(event.source)
            # A better source shortens the wait: somebody has just named it.
            candidate.next_at = min(candidate.next_at, now + self._cap_s(candidate))

    def _yield_until(self, peer: PeerId, now: float) -> float:
        # One wait for all addresses of the peer, or the nearest would not be the first.
        fresh = [candidate.next_at for candidate in self._of_peer(peer) if not candidate.failures]
        yield_s = self._rng.uniform(self._settings.yield_max_s / 2, self._settings.yield_max_s)
        return min(fresh, default=now + yield_s)

    def _end_dial(self, event: DialEnded, now: float) -> None:
        candidate = self._under_way.pop((event.address, event.peer), None) or self._under_way.pop(
            (event.address, None), None
        )
        if candidate is None:
            return
        candidate.dialled_at = None
        if candidate.peer is not None:
            self._next_address_at.pop(candidate.peer, None)
        if event.error_kind is None:
            # Failures are forgotten when the link has proved good (`_link_down`): one that breaks at once is none.
            candidate.peer = candidate.expected or event.peer
            # LinkUp usually comes before or at once after; where it never does, this is a try like any other.
            candidate.next_at = now + self._settings.backoff_base_s
        elif event.error_kind == AdmissionReason.SELF.value and candidate.expected is None:
            candidate.is_self = True
        elif event.permanent:
            candidate.failures += 1
            candidate.next_at = now + self._settings.refused_retry_s * self._rng.uniform(0.75, 1.25)
        else:
            self._fail(candidate, now)

    def _link_up(self, event: LinkUp, now: float) -> None:
        if event.peer == self._own:
            return
        self._linked.setdefault(event.peer, now)
        self._wanted.pop(event.peer, None)
        self._next_address_at.pop(event.peer, None)
        anybody = self._candidates.get((event.address, None)) if event.address is not None else None
        if anybody is not None:
            anybody.peer = event.peer

    def _link_down(self, peer: PeerId, now: float) -> None:
        since = self._linked.pop(peer, None)
        if since is None:
            return
        was_good = now - since >= self._settings.stable_s
        for candidate in self._of_peer(peer):
            if candidate.dialled_at is not None:
                continue
            if was_good:
                candidate.failures = 0
                candidate.next_at = now + self._rng.uniform(0.0, self._settings.redial_max_s)
            else:
                self._fail(candidate, now)

    def _want(self, peer: PeerId, now: float) -> None:
        if peer in self._linked or peer == self._own:
            return
        self._wanted[peer] = now + self._settings.wanted_s
        for candidate in self._of_peer(peer):
            candidate.next_at = min(candidate.next_at, now)

    def _forget_peer(self, peer: PeerId) -> None:
        for candidate in self._of_peer(peer):
            candidate.sources -= {"record", "lan"}
            if not candidate.sources and candidate.dialled_at is None:
                self._drop(candidate)
            elif not candidate.sources:
                # Its end is still to be told; after that it expires like any unrepeated hint.
                candidate.sources, candidate.heard_at = {"lan"}, -self._settings.lan_forget_s
        self._wanted.pop(peer, None)

    # --- dialling -----------------------------------------------------------------------------------------------------

    def _dials(self, now: float) -> list[Dial]:
        due = [
            candidate
            for candidate in self._candidates.values()
            if candidate.next_at <= now and self._is_useful(candidate)
        ]
        due.sort(key=self._urgency)
        dials: list[Dial] = []
        for candidate in due:
            if len(self._under_way) >= self._settings.dials_at_once_max:
                break
            # Asked again for each: the dial before may have been the last that was wanted.
            if not self._is_useful(candidate):
                continue
            if candidate.peer is not None:
                if self._next_address_at.get(candidate.peer, now) > now:
                    continue
                self._next_address_at[candidate.peer] = now + self._settings.next_address_s
            candidate.dialled_at = now
            self._under_way[candidate.address, candidate.expected] = candidate
            dials.append(Dial(candidate.address, candidate.expected))
        return dials

    def _is_useful(self, candidate: _Candidate) -> bool:
        """Whether a link over this candidate is missing, apart from when it may be tried."""
        if candidate.is_self or candidate.dialled_at is not None:
            return False
        peer = candidate.peer
        if peer is not None and peer in self._linked:
            return False
        links = len(self._linked) + len(self._peers_under_way() - ({peer} if peer is not None else set()))
        if links >= self._settings.links_max:
            return False
        is_needed = peer in self._wanted if peer is not None else bool(candidate.sources & NAMED)
        return is_needed or links < self._settings.links_wanted

    def _urgency(self, candidate: _Candidate) -> tuple[int, int, float, Address, bytes]:
        near = locality(candidate.address.host, self._networks)
        return (candidate.rank, near, candidate.next_at, candidate.address, candidate.expected or b"")

    def _fail(self, candidate: _Candidate, now: float) -> None:
        candidate.failures += 1
        wait_s = backoff_s(candidate.failures, self._settings.backoff_base_s, self._cap_s(candidate), self._rng)
        candidate.next_at = now + wait_s

    def _cap_s(self, candidate: _Candidate) -> float:
        hurried = bool(candidate.sources & HURRIED)
        return self._settings.backoff_hurried_cap_s if hurried else self._settings.backoff_cap_s

    def _peers_under_way(self) -> set[PeerId | _Key]:
        """Whom the dials under way may link: the peer, or the candidate itself where nobody knows."""
        return {candidate.peer or key for key, candidate in self._under_way.items()}

    # --- the table ----------------------------------------------------------------------------------------------------

    def _of_peer(self, peer: PeerId) -> list[_Candidate]:
        return [candidate for candidate in self._candidates.values() if candidate.peer == peer]

    def _make_room(self, new: _Candidate) -> bool:
        """Whether `new` may be kept; the least worthy of its peer, then of all, goes for it."""
        if new.expected is not None:
            same = [candidate for candidate in self._of_peer(new.expected) if candidate.expected is not None]
            if len(same) >= limits.ADDRESSES_MAX and not self._drop_worst(same, new):
                return False
        return len(self._candidates) < self._settings.candidates_max or self._drop_worst(self._candidates.values(), new)

    def _drop_worst(self, among: Iterable[_Candidate], new: _Candidate) -> bool:
        idle = [candidate for candidate in among if candidate.dialled_at is None and candidate.rank >= new.rank]
        # What has failed makes room first, then what was said longest ago; never a better source for a worse.
        worst = max(idle, key=lambda each: (each.rank, each.failures, -each.heard_at, each.address), default=None)
        if worst is not None:
            self._drop(worst)
        return worst is not None

    def _drop(self, candidate: _Candidate) -> None:
        del self._candidates[candidate.address, candidate.expected]

    def _expire(self, now: float) -> None:
        for candidate in list(self._candidates.values()):
            if candidate.dialled_at is not None:
                if candidate.dialled_at + self._settings.dial_lost_s <= now:
                    candidate.dialled_at = None
                    self._under_way.pop((candidate.address, candidate.expected))
                    self._fail(candidate, now)
                continue
            if candidate.sources & LASTING or candidate.peer in self._linked:
                continue
            is_record = "record" in candidate.sources
            keep_s = self._settings.record_forget_s if is_record else self._settings.lan_forget_s
            if candidate.heard_at + keep_s <= now:
                self._drop(candidate)
        for peer in [peer for peer, until in self._wanted.items() if until <= now]:
            del self._wanted[peer]
        for peer in [peer for peer, at in self._next_address_at.items() if at <= now]:
            del self._next_address_at[peer]
