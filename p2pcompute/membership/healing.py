"""The healing machine: finds again what a split, a sleep or a restart has lost. A duty that never ends.

Two parts of a network that forgot each other would stay apart for ever if nobody asked beyond what he lists (hivemind's
issue 624: one list of bootstrap peers, two networks). Rules:

- Every 60 s, with jitter, one address of a peer that is remembered but not listed as living is tried, and the DHT is asked for
  the neighbours of one random id. Every peer does so, so the more peers were cut off, the sooner one of them comes through.
- A look-up asks dozens of peers, and one that comes through is enough for all: beyond 16 living peers each leaves some out, by
  lot, so that about 16 are made in an interval by however many peers.
- While a split is likely this happens every 5 s: after a start, a sleep or a change of networks, and when half of the living
  peers have gone within a minute. While few peers are alive it happens every 15 s.
- Everybody who is missing has one turn in a round, whoever was seen on a later day before others and else by lot, so that
  peers with the same memory try different addresses. Whoever was lost just now goes first. Every second try is an anchor's,
  where one is missing.
- Of whom all remembered addresses were tried in vain the address book is asked where it is now.
- Anchors are at least 4 peers that were seen for longest, of different networks as far as there are such.
- No remembered address is ever given up for failing: beyond the limit whoever was seen longest ago goes, never an anchor.
- A beacon that tells of another view leads to an exchange with its peer at once, but not with the same one again for 20 s.

Trying every peer costs memory in proportion to the peers that are known, and each event O(log n).

Refuses to know: how an address is tried, links, what a view consists of, wall clocks.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from p2pcompute.membership.healing_events import (
    AnchorsChosen,
    Effect,
    Event,
    ExchangeViews,
    Found,
    HealingSettings,
    LookFor,
    LookUp,
    NetworksChanged,
    PeerBanned,
    PeerLost,
    PeerSeen,
    Remembered,
    RememberedKnown,
    TryAddress,
    ViewsDiffer,
    ViewSize,
    Woke,
)
from p2pcompute.membership.machine import Tick
from p2pcompute.membership.reach_networks import network_of
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Rng

__all__ = [
    "AnchorsChosen",
    "Effect",
    "Event",
    "ExchangeViews",
    "Found",
    "HealingMachine",
    "HealingSettings",
    "LookFor",
    "LookUp",
    "NetworksChanged",
    "PeerBanned",
    "PeerLost",
    "PeerSeen",
    "Remembered",
    "RememberedKnown",
    "Tick",
    "TryAddress",
    "ViewSize",
    "ViewsDiffer",
    "Woke",
]

#: Width of a random id of the DHT.
_DHT_ID_BITS = 160
_DAY_S = 86_400.0
#: Day of a peer that was seen in this run, after every day of an earlier one.
_THIS_RUN = 1 << 40
#: The queue is built anew when so many entries more than twice the living are in it.
_SLACK = 64


@dataclass(slots=True, eq=False)
class _Known:
    """One peer that was met at some time."""

    peer: PeerId
    #: Where it was reached; never empty, at most `limits.ADDRESSES_MAX`.
    addresses: tuple[Address, ...]
    #: The day on which it was last seen, `_THIS_RUN` for a peer of this run.
    day: int
    #: Sightings, but for those since `listed_at`.
    times_seen: int
    #: Drawn anew for every try: the order among equals.
    lot: float
    #: Since when it is listed as living, None where it is not.
    listed_at: float | None = None
    #: Tries since it was last seen.
    tries: int = 0
    #: The round in which it is tried next.
    round: int = 0

    @property
    def turn(self) -> tuple[int, int, float, PeerId]:
        """The smallest is tried next."""
        return (self.round, -self.day, self.lot, self.peer)


class HealingMachine:
    """See the module."""

    def __init__(self, own: PeerId, rng: Rng, settings: HealingSettings | None = None) -> None:
        #: Never tried.
        self._own = own
        #: The machine's dice.
        self._rng = rng
        #: Times and limits.
        self._settings = settings or HealingSettings()
        #: Peers that were met, at most `remembered_max`, anchors never going; the one heard of longest ago first.
        self._known: dict[PeerId, _Known] = {}
        #: Turns of peers that are not listed: exactly one living entry each.
        self._queue: list[tuple[tuple[int, int, float, PeerId], _Known]] = []
        #: The round of tries under way: everybody who is missing has one turn in each.
        self._round = 0
        #: How many known peers are not listed.
        self._missing = 0
        #: Peers kept before all others, all of them known.
        self._anchors: tuple[PeerId, ...] = ()
        #: Known peers that are still to be compared with the anchors.
        self._uncompared: deque[PeerId] = deque()
        #: Whether the next try is an anchor's, where one is missing.
        self._is_anchors_turn = True
        #: When the next try is due, None before `RememberedKnown`.
        self._next_at: float | None = None
        #: A split is likely until then.
        self._hurried_until = 0.0
        #: Peers alive, as last told.
        self._alive = 0
        #: (until when, alive) of the last `shrink_window_s`, falling in `alive`: the first is the most there were.
        self._sizes: deque[tuple[float, int]] = deque()
        #: When views were exchanged out of turn, the longest ago first; at most `EXCHANGES_REMEMBERED_MAX`.
        self._exchanged_at: dict[PeerId, float] = {}
        #: When the latest exchanges and tries of found peers were begun, within `interval_s`.
        self._exchanges: deque[float] = deque()
        self._founds: deque[float] = deque()
        #: When the address book was asked for missing peers, within `interval_s`.
        self._searches: deque[float] = deque()

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What `event` leads to, and whatever is due at `now`."""
        effects: list[Effect] = []
        match event:
            case RememberedKnown(peers):
                effects += self._begin(peers, now)
            case ViewSize(alive):
                self._measure(alive, now)
            case PeerSeen(peer, addresses):
                self._see(peer, addresses, now)
            case PeerLost(peer):
                self._lose(peer, now)
            case PeerBanned(peer):
                effects += self._ban(peer, now)
            case ViewsDiffer(peer, addresses):
                effects += self._differ(peer, addresses, now)
            case Found(peer, addresses):
                effects += self._find(peer, addresses, now)
            case Woke() | NetworksChanged():
                self._hurry(now)
            case Tick():
                pass
        return effects + self._due(now)

    def deadline(self) -> float | None:
        """When the next try is due; None before `RememberedKnown`."""
        return self._next_at

    @property
    def anchors(self) -> tuple[PeerId, ...]:
        """The anchors, in the order of their ids."""
        return self._anchors

    @property
    def missing(self) -> int:
        """How many remembered peers are not listed as living."""
        return self._missing

    def is_hurried(self, now: float) -> bool:
        """Whether a split is likely."""
        return now < self._hurried_until

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        settings = self._settings
        assert len(self._known) <= settings.remembered_max
        assert self._own not in self._known
        assert list(self._anchors) == sorted(self._anchors)
        assert len(self._anchors) <= settings.anchors
        assert all(anchor in self._known for anchor in self._anchors)
        missing = [known for known in self._known.values() if known.listed_at is None]
        assert len(missing) == self._missing
        living = [entry for entry in self._queue if self._is_living(*entry)]
        assert sorted(known.peer for _, known in living) == sorted(known.peer for known in missing)
        assert len(self._queue) <= 2 * self._missing + _SLACK
        assert all(0 < len(known.addresses) <= limits.ADDRESSES_MAX for known in self._known.values())
        assert [alive for _, alive in self._sizes] == sorted((alive for _, alive in self._sizes), reverse=True)
        assert len(self._exchanged_at) <= limits.EXCHANGES_REMEMBERED_MAX
        assert len(self._exchanges) <= settings.exchanges_max
        assert len(self._founds) <= settings.found_max
        assert len(self._searches) <= settings.searches_max

    # --- events -------------------------------------------------------------------------------------------------------

    def _begin(self, peers: tuple[Remembered, ...], now: float) -> list[Effect]:
        newest = heapq.nlargest(
            self._settings.remembered_max, peers, key=lambda each: (each.is_anchor, each.last_seen_s, each.peer)
        )
        for each in reversed(newest):
            if each.peer == self._own or not each.addresses or each.peer in self._known or not self._make_room():
                continue
            day = int(max(0.0, each.last_seen_s) // _DAY_S)
            self._add(each.peer, each.addresses, min(day, _THIS_RUN - 1), max(0, each.times_seen))
        kept = [each.peer for each in newest if each.is_anchor and each.peer in self._known]
        self._anchors = tuple(sorted(kept[: self._settings.anchors]))
        if self._next_at is None:
            # By lot, so that a network that lost its power does not come back in one moment.
            self._next_at = now + self._rng.uniform(0.0, self._settings.hurried_interval_s / 2)
        self._hurry(now)
        return self._compare(now, tuple(self._known))

    def _measure(self, alive: int, now: float) -> None:
        settings = self._settings
        # The size so far held until now, however long ago it was told.
        while self._sizes and self._sizes[-1][1] <= self._alive:
            self._sizes.pop()
        self._sizes.append((now, self._alive))
        self._alive = alive
        while self._sizes and self._sizes[0][0] + settings.shrink_window_s <= now:
            self._sizes.popleft()
        most = self._sizes[0][1]
        if most >= settings.shrink_from and alive <= most * settings.shrink_share:
            # Measured from here on: one split is noticed once, the next half going is a further one.
            self._sizes.clear()
            self._hurry(now)

    def _see(self, peer: PeerId, addresses: tuple[Address, ...], now: float) -> None:
        if peer == self._own:
            return
        known = self._known.get(peer)
        if known is None:
            if not addresses or not self._make_room():
                return
            known = self._add(peer, addresses, _THIS_RUN, 1)
        elif addresses:
            known.addresses = _merged(addresses, known.addresses)
        known.day, known.tries = _THIS_RUN, 0
        if known.listed_at is None:
            known.listed_at = now
            self._missing -= 1
            self._compact()
        del self._known[peer]
        self._known[peer] = known

    def _lose(self, peer: PeerId, now: float) -> None:
        known = self._known.get(peer)
        if known is None or known.listed_at is None:
            return
        known.times_seen = self._sightings(known, now)
        known.listed_at = None
        known.round = self._round - 1  # before all others, but once
        known.lot = self._rng.random()  # or an entry of the time before would come to life again
        self._missing += 1
        self._enqueue(known)

    def _ban(self, peer: PeerId, now: float) -> list[Effect]:
        known = self._known.get(peer)
        if known is None:
            return []
        self._forget(known)
        if peer not in self._anchors:
            return []
        self._anchors = tuple(anchor for anchor in self._anchors if anchor != peer)
        return self._compare(now, tuple(self._known)) or [AnchorsChosen(self._anchors)]

    def _differ(self, peer: PeerId, addresses: tuple[Address, ...], now: float) -> list[Effect]:
        settings = self._settings
        last = self._exchanged_at.get(peer)
        if peer == self._own or (last is not None and now < last + settings.exchange_again_s):
            return []
        if not self._allows(self._exchanges, settings.exchanges_max, now):
            return []
        self._exchanged_at.pop(peer, None)
        if len(self._exchanged_at) >= limits.EXCHANGES_REMEMBERED_MAX:
            del self._exchanged_at[next(iter(self._exchanged_at))]
        self._exchanged_at[peer] = now
        return [ExchangeViews(peer, addresses)]

    def _find(self, peer: PeerId, addresses: tuple[Address, ...], now: float) -> list[Effect]:
        if peer == self._own or not addresses:
            return []
        known = self._known.get(peer)
        if known is not None and known.listed_at is not None:
            return []
        if not self._allows(self._founds, self._settings.found_max, now):
            return []
        if known is not None:
            known.addresses = _merged(addresses, known.addresses)
            return [self._try(known)]
        # Not remembered before it answers: whoever floods the DHT with names must not wash out those that were met.
        return [TryAddress(addresses[self._rng.randrange(0, len(addresses))], peer)]

    def _hurry(self, now: float) -> None:
        self._hurried_until = now + self._settings.hurried_s
        if self._next_at is not None:
            soon = now + self._settings.hurried_interval_s * self._rng.random()
            self._next_at = min(self._next_at, soon)

    # --- tries --------------------------------------------------------------------------------------------------------

    def _due(self, now: float) -> list[Effect]:
        if self._next_at is None or now < self._next_at:
            return []
        self._next_at = now + self._interval_s(now) * self._rng.uniform(
            1 - self._settings.jitter, 1 + self._settings.jitter
        )
        effects: list[Effect] = []
        known = self._next_anchor() if self._is_anchors_turn else None
        known = known or self._next()
        self._is_anchors_turn = not self._is_anchors_turn
        if known is not None:
            effects.append(self._try(known))
            if known.tries > len(known.addresses) and self._allows(self._searches, self._settings.searches_max, now):
                effects.append(LookFor(known.peer))
        if self._rng.random() * self._alive < self._settings.lookups:
            effects.append(self._look_up())
        return effects + self._compare(now, self._some())

    def _look_up(self) -> LookUp:
        # `randrange` of 160 bits at once is not in the contract of every dice.
        target = bytes(self._rng.randrange(0, 256) for _ in range(_DHT_ID_BITS // 8))
        return LookUp(target)

    def _interval_s(self, now: float) -> float:
        settings = self._settings
        if self.is_hurried(now):
            return settings.hurried_interval_s
        if self._alive < settings.small_view and self._missing:
            return settings.small_interval_s
        return settings.interval_s

    def _next_anchor(self) -> _Known | None:
        missing = [known for known in map(self._known.__getitem__, self._anchors) if known.listed_at is None]
        return min(missing, key=lambda known: known.turn, default=None)

    def _next(self) -> _Known | None:
        while self._queue and not self._is_living(*self._queue[0]):
            heapq.heappop(self._queue)
        if not self._queue:
            return None
        known = self._queue[0][1]
        self._round = max(self._round, known.round)
        return known

    def _try(self, known: _Known) -> TryAddress:
        address = known.addresses[known.tries % len(known.addresses)]
        known.tries += 1
        known.round = max(known.round, self._round - 1) + 1
        known.lot = self._rng.random()
        self._enqueue(known)
        return TryAddress(address, known.peer)

    def _enqueue(self, known: _Known) -> None:
        heapq.heappush(self._queue, (known.turn, known))
        self._compact()

    def _compact(self) -> None:
        if len(self._queue) > 2 * self._missing + _SLACK:
            self._queue = [entry for entry in self._queue if self._is_living(*entry)]
            heapq.heapify(self._queue)

    def _is_living(self, turn: tuple[int, int, float, PeerId], known: _Known) -> bool:
        return known.listed_at is None and self._known.get(known.peer) is known and turn == known.turn

    def _allows(self, begun: deque[float], count_max: int, now: float) -> bool:
        """Whether one more may begin now: at most `count_max` within `interval_s`; notes it if so."""
        while begun and begun[0] + self._settings.interval_s <= now:
            begun.popleft()
        if len(begun) >= count_max:
            return False
        begun.append(now)
        return True

    # --- memory -------------------------------------------------------------------------------------------------------

    def _add(self, peer: PeerId, addresses: tuple[Address, ...], day: int, times_seen: int) -> _Known:
        lot = self._rng.random()
        known = _Known(peer, addresses[: limits.ADDRESSES_MAX], day, times_seen, lot, round=self._round)
        self._known[peer] = known
        self._missing += 1
        self._enqueue(known)
        return known

    def _forget(self, known: _Known) -> None:
        del self._known[known.peer]
        if known.listed_at is None:
            self._missing -= 1
            self._compact()

    def _make_room(self) -> bool:
        """Whether one more peer may be remembered: whoever was heard of longest ago goes for it, never an anchor."""
        if len(self._known) < self._settings.remembered_max:
            return True
        for known in self._known.values():
            if known.peer not in self._anchors:
                self._forget(known)
                return True
        return False

    # --- anchors ------------------------------------------------------------------------------------------------------

    def _sightings(self, known: _Known, now: float) -> int:
        since = 0.0 if known.listed_at is None else now - known.listed_at
        return known.times_seen + int(since / self._settings.sighting_s)

    def _some(self) -> list[PeerId]:
        """The next few known peers, all of them in turn."""
        if not self._uncompared:
            self._uncompared.extend(self._known)
        count = min(len(self._uncompared), self._settings.anchors_compared)
        return [self._uncompared.popleft() for _ in range(count)]

    def _compare(self, now: float, peers: Iterable[PeerId]) -> list[Effect]:
        """Choose among the anchors and `peers`: the longest seen of each network, then the longest seen of all."""
        named = dict.fromkeys((*self._anchors, *peers))
        among = [self._known[peer] for peer in named if peer in self._known and self._known[peer].times_seen > 0]
        # Of all that are known at the start only the longest seen: who is of which network takes time to find out.
        longest = self._settings.anchors_compared + self._settings.anchors
        among = heapq.nsmallest(longest, among, key=lambda known: (-self._sightings(known, now), known.peer))
        first: dict[str, _Known] = {}
        for known in among:
            first.setdefault(_network_of(known.addresses[0]), known)
        chosen = list(first.values())[: self._settings.anchors]
        taken = {known.peer for known in chosen}
        chosen += [known for known in among if known.peer not in taken][: self._settings.anchors - len(chosen)]
        anchors = tuple(sorted(known.peer for known in chosen))
        if anchors == self._anchors:
            return []
        self._anchors = anchors
        return [AnchorsChosen(anchors)]


def _network_of(address: Address) -> str:
    try:
        return network_of(address.host.partition("%")[0])
    except ValueError:
        return address.host  # a name: nobody knows what is behind it


def _merged(newer: tuple[Address, ...], older: tuple[Address, ...]) -> tuple[Address, ...]:
    """Both, each address once, the newer ones first."""
    return tuple(dict.fromkeys((*newer, *older)))[: limits.ADDRESSES_MAX]
