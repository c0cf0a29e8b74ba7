"""Rumours that are passed on: each a limited number of times, the least told first.

A rumour is sent `retransmit_mult` * ceil(log10(n + 1)) times by each peer that hears it, which reaches every one of n peers with
high probability (Das, Gupta, Motivala: "SWIM", DSN 2002, section 4.1; the multiplier is memberlist's). Rumours ride on
messages that are sent anyway and take what room is left in their datagram. One about a subject replaces the older one
about it. Hearing an announcement again counts as having told it once: what everybody knows dies out sooner ("feedback" and
"counter" of Demers et al., "Epidemic algorithms for replicated database maintenance", PODC 1987).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.wire.gossip import RUMOUR_OVERHEAD_BYTES


def transmissions_max(mult: int, peers: int) -> int:
    """How often one rumour is sent in a network of `peers`: mult * ceil(log10(peers + 1)), at least once."""
    return max(mult * math.ceil(math.log10(max(peers, 0) + 1)), 1)


@dataclass(slots=True)
class _Rumour:
    """One rumour on its way."""

    #: What is sent.
    wire: bytes
    #: How often it was sent or heard again; the key of the shelf that it stands on.
    told: int
    #: By what the limit of transmissions is multiplied.
    mult: int


class RumourQueue:
    """See the module. `rumours_max`: beyond it what was told most is dropped."""

    def __init__(self, rumours_max: int = limits.RUMOURS_QUEUED_MAX) -> None:
        #: Bound of `_by_subject`.
        self._rumours_max = rumours_max
        #: Every rumour in the queue.
        self._by_subject: dict[Hashable, _Rumour] = {}
        #: The same by how often they were told; oldest first, no shelf is empty.
        self._shelves: dict[int, dict[Hashable, _Rumour]] = {}

    def put(self, subject: Hashable, wire: bytes, mult: int) -> None:
        """Pass on `wire`, in place of whatever was passed on about `subject`."""
        known = self._by_subject.get(subject)
        if known is not None and known.wire == wire:
            return
        self.remove(subject)
        if len(self._by_subject) >= self._rumours_max:
            worst = self._shelves[max(self._shelves)]
            self.remove(next(iter(worst)))
        rumour = self._by_subject[subject] = _Rumour(wire, 0, mult)
        self._shelves.setdefault(0, {})[subject] = rumour

    def remove(self, subject: Hashable) -> None:
        """Say nothing about `subject` any more."""
        rumour = self._by_subject.pop(subject, None)
        if rumour is not None:
            self._take_down(subject, rumour.told)

    def heard(self, subject: Hashable, wire: bytes) -> None:
        """Somebody else told the same."""
        rumour = self._by_subject.get(subject)
        if rumour is not None and rumour.wire == wire:
            self._move(subject, rumour)

    def take(self, room_bytes: int, peers: int, rumours_max: int = limits.RUMOURS_PER_MESSAGE_MAX) -> tuple[bytes, ...]:
        """Rumours for one message with `room_bytes` left, in a network of `peers`: least told first, newest of those first."""
        taken: list[tuple[Hashable, _Rumour]] = []
        for told in sorted(self._shelves):
            for subject, rumour in reversed(self._shelves[told].items()):
                size = len(rumour.wire) + RUMOUR_OVERHEAD_BYTES
                if size <= room_bytes:
                    room_bytes -= size
                    taken.append((subject, rumour))
                if len(taken) >= rumours_max:
                    break
            if len(taken) >= rumours_max or room_bytes < limits.RUMOUR_BYTES_MIN + RUMOUR_OVERHEAD_BYTES:
                break
        told_max: dict[int, int] = {}
        for subject, rumour in taken:
            self._move(subject, rumour)
            limit = told_max.get(rumour.mult)
            if limit is None:
                limit = told_max[rumour.mult] = transmissions_max(rumour.mult, peers)
            if rumour.told >= limit:
                self.remove(subject)
        return tuple(rumour.wire for _, rumour in taken)

    def told(self, subject: Hashable) -> int | None:
        """How often `subject` was told; None where nothing is passed on about it."""
        rumour = self._by_subject.get(subject)
        return None if rumour is None else rumour.told

    def __len__(self) -> int:
        return len(self._by_subject)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert len(self._by_subject) <= self._rumours_max
        on_shelves = {subject: told for told, shelf in self._shelves.items() for subject in shelf}
        assert all(
            self._by_subject[each] is rumour for shelf in self._shelves.values() for each, rumour in shelf.items()
        )
        assert on_shelves == {subject: rumour.told for subject, rumour in self._by_subject.items()}
        assert all(self._shelves.values())

    def _move(self, subject: Hashable, rumour: _Rumour) -> None:
        self._take_down(subject, rumour.told)
        rumour.told += 1
        shelf = self._shelves.get(rumour.told)
        if shelf is None:
            shelf = self._shelves[rumour.told] = {}
        shelf[subject] = rumour

    def _take_down(self, subject: Hashable, told: int) -> None:
        shelf = self._shelves[told]
        del shelf[subject]
        if not shelf:
            del self._shelves[told]
