"""Many named alarms behind the one `deadline()` of a machine.

An alarm is set, moved or cleared by its key. Moved and cleared ones stay in the heap until their time and are then
passed over, so a deadline may come early but never late: a Tick too many does nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")


class Timers(Generic[K]):
    """Alarms by key, at most one a key."""

    __slots__ = ("_at", "_heap", "_serial")

    def __init__(self) -> None:
        #: When each alarm rings; the heap's other rows are stale.
        self._at: dict[K, float] = {}
        #: (when, serial, key), smallest first; the serial breaks ties so that keys are never compared.
        self._heap: list[tuple[float, int, K]] = []
        #: Grows with each alarm that is set.
        self._serial = 0

    def __contains__(self, key: K) -> bool:
        return key in self._at

    def __iter__(self) -> Iterator[K]:
        return iter(self._at)

    def set(self, key: K, when: float) -> None:
        """Ring at `when`; replaces the alarm of that key."""
        if self._at.get(key) == when:
            return
        self._at[key] = when
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, key))
        if len(self._heap) > 64 + 4 * len(self._at):
            self._heap = [row for row in self._heap if self._at.get(row[2]) == row[0]]
            heapq.heapify(self._heap)

    def clear(self, key: K) -> None:
        """Do not ring; nothing where no such alarm is set."""
        self._at.pop(key, None)

    def deadline(self) -> float | None:
        """When the next alarm rings, or None."""
        while self._heap and self._at.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[K]:
        """Remove and return the keys whose time has come, earliest first."""
        ringing: list[K] = []
        while self._heap and self._heap[0][0] <= now:
            when, _, key = heapq.heappop(self._heap)
            if self._at.get(key) == when:
                del self._at[key]
                ringing.append(key)
        return ringing
