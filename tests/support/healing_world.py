"""A small model of a network that heals: peers with views and addresses, a wire that can be cut, gossip within what is linked."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from p2pcompute.membership import healing
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address

#: Seconds after which two peers that talked know what the other knew, and after which news has gone round a view.
_TALK_S = 0.2
_GOSSIP_S = 2.0
#: Seconds after which a peer that cannot be reached is given up.
_GIVE_UP_S = 15.0


class HealingWorld:
    """Peers by number; the first half of them is on the one side of the wire, the others are on the other."""

    def __init__(self, count: int, seed: int) -> None:
        self.now = 0.0
        self._rng = random.Random(seed)
        self._count = count
        self._machines = [healing.HealingMachine(self.peer(n), random.Random(seed * 1_000 + n)) for n in range(count)]
        #: Whom each lists as alive, itself among them.
        self._views: list[set[int]] = [{number} for number in range(count)]
        self._is_up = [True] * count
        self._is_cut = False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @staticmethod
    def peer(number: int) -> PeerId:
        return PeerId(b"w" + number.to_bytes(31, "big"))

    @staticmethod
    def address(number: int) -> Address:
        return Address(f"10.{number % 7}.0.{number}", 9876)

    # --- beginnings ---------------------------------------------------------------------------------------------------

    def know_halves(self, remembered_each: int, gone_each: int) -> None:
        """Each half lists itself and remembers some of the other half, and some peers that are gone for good."""
        self._is_cut = True
        middle = self._count // 2
        for number in range(self._count):
            far = range(middle, self._count) if number < middle else range(middle)
            known = self._rng.sample(far, remembered_each)
            known += [self._count + self._rng.randrange(0, 1_000) for _ in range(gone_each)]
            self._start(number, known)
        for side in (range(middle), range(middle, self._count)):
            for number in side:
                self._learn(number, set(side))

    def know_all(self) -> None:
        """One network that has never been split."""
        for number in range(self._count):
            self._start(number, [])
        for number in range(self._count):
            self._learn(number, set(range(self._count)))

    def start_remembering(self, count: int, within_s: float) -> None:
        """Nobody lists anybody: each remembers `count` others and starts at some time within `within_s`."""
        self._is_up = [False] * self._count
        for number in range(self._count):
            others = [other for other in range(self._count) if other != number]
            known = self._rng.sample(others, count)

            def begin(number: int = number, known: list[int] = known) -> None:
                self._is_up[number] = True
                self._start(number, known)

            self._at(self._rng.uniform(0.0, within_s), begin)

    def cut(self) -> None:
        """The wire breaks; each side gives the other up one by one."""
        self._is_cut = True
        for number in range(self._count):
            for other in sorted(self._views[number]):
                if not self._is_reachable(number, other):
                    self._at(self.now + _GIVE_UP_S * self._rng.random(), lambda n=number, o=other: self._lose(n, o))

    def mend(self) -> None:
        """The wire is whole again; nobody is told."""
        self._is_cut = False

    # --- time ---------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Pass time."""
        self._run(self.now + seconds, lambda: False)

    def run_until_one(self, seconds: float) -> float | None:
        """Seconds until all list all, None where that takes longer than `seconds`."""
        began = self.now
        self._run(self.now + seconds, lambda: self.groups() == 1 and all(self._is_up))
        return self.now - began if self.groups() == 1 and all(self._is_up) else None

    def groups(self) -> int:
        """How many different views there are."""
        return len({frozenset(view) for view in self._views})

    def _run(self, end: float, is_over: Callable[[], bool]) -> None:
        while not is_over():
            ticks = [
                (at, number)
                for number, machine in enumerate(self._machines)
                if self._is_up[number] and (at := machine.deadline()) is not None
            ]
            first = min(ticks, default=(end + 1.0, -1))
            if self._queue and self._queue[0][0] <= first[0]:
                if self._queue[0][0] > end:
                    break
                at, _, action = heapq.heappop(self._queue)
                self.now = max(self.now, at)
                action()
            elif first[0] <= end:
                self.now = max(self.now, first[0])
                self._feed(first[1], healing.Tick())
            else:
                break
        else:
            return
        self.now = end

    # --- the network --------------------------------------------------------------------------------------------------

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), action))

    def _start(self, number: int, known: list[int]) -> None:
        rows = tuple(
            healing.Remembered(self.peer(other), (self.address(other % 256),), 1e9 - other % 3 * 86_400.0)
            for other in known
        )
        self._feed(number, healing.RememberedKnown(rows))
        self._feed(number, healing.ViewSize(len(self._views[number]) - 1, len(self._views[number]) - 1))

    def _is_reachable(self, one: int, other: int) -> bool:
        middle = self._count // 2
        if other >= self._count or not self._is_up[other]:
            return False
        return not self._is_cut or (one < middle) == (other < middle)

    def _feed(self, number: int, event: healing.Event) -> None:
        effects = self._machines[number].handle(event, self.now)
        self._machines[number].check_invariants()
        for effect in effects:
            if isinstance(effect, healing.TryAddress | healing.ExchangeViews):
                other = int.from_bytes(effect.peer[1:], "big")
                self._at(self.now + _TALK_S, lambda other=other: self._talk(number, other))

    def _talk(self, one: int, other: int) -> None:
        """The two exchange views, and gossip tells everybody whom either lists."""
        if not self._is_reachable(one, other):
            return
        both = self._views[one] | self._views[other]
        for number in sorted(both):
            if number in (one, other):
                self._learn(number, both)
            elif self._is_reachable(one, number) or self._is_reachable(other, number):
                self._at(self.now + _GOSSIP_S * self._rng.random(), lambda n=number: self._learn(n, both))

    def _learn(self, number: int, listed: set[int]) -> None:
        new = sorted(other for other in listed - self._views[number] if self._is_reachable(number, other))
        if not new:
            return
        self._views[number] |= set(new)
        for other in new:
            self._feed(number, healing.PeerSeen(self.peer(other), (self.address(other),)))
        self._tell_size(number)

    def _lose(self, number: int, other: int) -> None:
        if other in self._views[number] and not self._is_reachable(number, other):
            self._views[number].discard(other)
            self._feed(number, healing.PeerLost(self.peer(other)))
            self._tell_size(number)

    def _tell_size(self, number: int) -> None:
        self._feed(number, healing.ViewSize(len(self._views[number]) - 1, self._count - 1))
