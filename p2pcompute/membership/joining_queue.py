"""Which target of the joining machine is dialled next: a queue in two parts, O(log n) for each change.

A target waits in the order of its moment; once that has passed it is ready, in the order of its urgency. Both parts are
heaps whose entries are never searched for: an entry whose ticket is no longer its target's is passed over when it comes
up, and where most are such the heap is built anew.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from p2pcompute.membership.joining_table import Target, Urgency
from p2pcompute.membership.machine import earliest

#: Heaps are built anew when so many entries more than twice the living are in them.
_SLACK = 64


class DueQueue:
    """The targets of one class."""

    def __init__(self, place: int, urgency_of: Callable[[Target, float], Urgency]) -> None:
        #: Its number: `Target.place` of those in it.
        self.place = place
        #: How urgent a target is whose moment has passed.
        self._urgency_of = urgency_of
        #: (due at, ticket, target).
        self._waiting: list[tuple[float, int, Target]] = []
        #: (urgency, ticket, target).
        self._ready: list[tuple[Urgency, int, Target]] = []
        #: Targets in it.
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, target: Target, due_at: float, ticket: int) -> None:
        """`target`, which is in no queue, waits here until `due_at`; `ticket`: a number never used before."""
        assert target.place is None, "a target waits in one queue"
        target.place, target.due_at, target.ticket = self.place, due_at, ticket
        self._count += 1
        heapq.heappush(self._waiting, (due_at, ticket, target))

    def remove(self, target: Target) -> None:
        """`target`, which waits here, does so no more."""
        assert target.place == self.place
        target.place = None
        self._count -= 1
        self._compact()

    def first(self, now: float) -> tuple[Urgency, Target] | None:
        """The most urgent target whose moment has passed, None where none has."""
        while self._waiting and (self._waiting[0][0] <= now or not self._is_living(*self._waiting[0][1:])):
            _, ticket, target = heapq.heappop(self._waiting)
            if self._is_living(ticket, target):
                heapq.heappush(self._ready, (self._urgency_of(target, now), ticket, target))
        while self._ready and not self._is_living(*self._ready[0][1:]):
            heapq.heappop(self._ready)
        return (self._ready[0][0], self._ready[0][2]) if self._ready else None

    def next_at(self) -> float | None:
        """The earliest moment for which a target waits, perhaps past; None where none does."""
        while self._waiting and not self._is_living(*self._waiting[0][1:]):
            heapq.heappop(self._waiting)
        while self._ready and not self._is_living(*self._ready[0][1:]):
            heapq.heappop(self._ready)
        return earliest(
            self._ready[0][2].due_at if self._ready else None, self._waiting[0][0] if self._waiting else None
        )

    def check_invariants(self) -> None:
        """Raises AssertionError where the queue contradicts its own rules."""
        assert len(self._waiting) + len(self._ready) <= 2 * self._count + _SLACK
        entries = [*self._waiting, *self._ready]
        assert sum(self._is_living(ticket, target) for _, ticket, target in entries) == self._count

    def _compact(self) -> None:
        if len(self._waiting) + len(self._ready) > 2 * self._count + _SLACK:
            self._waiting = [entry for entry in self._waiting if self._is_living(entry[1], entry[2])]
            self._ready = [entry for entry in self._ready if self._is_living(entry[1], entry[2])]
            heapq.heapify(self._waiting)
            heapq.heapify(self._ready)

    def _is_living(self, ticket: int, target: Target) -> bool:
        return target.place == self.place and target.ticket == ticket
