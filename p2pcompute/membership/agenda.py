"""A list of appointments: at most one for each key, the earliest found at once.

A heap with forgotten entries left in it: moving or cancelling an appointment costs no search, what is out of date is
dropped when it comes to the top, and the heap is built anew once most of it is out of date. So an event among thousands of
peers costs O(log n), where a scan of all of them would cost O(n).
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: Outdated entries that are not worth cleaning up.
_SLACK = 64


class Agenda(Generic[K]):
    """See the module. Equal moments come in the order in which they were set."""

    def __init__(self) -> None:
        #: The moment of each key, monotonic seconds.
        self._at: dict[K, float] = {}
        #: (moment, number, key); holds at least every pair of `_at`.
        self._heap: list[tuple[float, int, K]] = []
        #: Grows with every entry, so that keys are never compared.
        self._number = 0

    def set(self, key: K, at: float | None) -> None:
        """The appointment of `key` is at `at`, whatever it was before; None: there is none."""
        if at is None:
            self._at.pop(key, None)
            return
        if self._at.get(key) == at:
            return
        self._at[key] = at
        self._number += 1
        heapq.heappush(self._heap, (at, self._number, key))
        if len(self._heap) > 2 * len(self._at) + _SLACK:
            self._heap = [entry for entry in self._heap if self._at.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def at(self, key: K) -> float | None:
        """When `key` is due, None where it is not."""
        return self._at.get(key)

    def earliest(self) -> float | None:
        """The earliest appointment."""
        while self._heap and self._at.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> K | None:
        """The key of the earliest appointment where that is not after `now`; the appointment is over then."""
        at = self.earliest()
        if at is None or at > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._at[key]
        return key

    def postpone(self, by_s: float) -> None:
        """Every appointment is so much later."""
        self._at = {key: at + by_s for key, at in self._at.items()}
        # A key may stand twice for one moment after it was moved there and back: once is enough.
        entries = {key: (at, number) for at, number, key in self._heap if self._at.get(key) == at + by_s}
        self._heap = [(at + by_s, number, key) for key, (at, number) in entries.items()]
        heapq.heapify(self._heap)

    @property
    def keys(self) -> tuple[K, ...]:
        """Whoever has an appointment, in the order in which they first got one."""
        return tuple(self._at)

    def __len__(self) -> int:
        return len(self._at)
