"""Who says to have records and does not send them.

Everybody may announce records, and what is announced takes a place among `limits.WANTS_MAX` until it comes. So each peer may hold only
a share of the places, and one whose announcements come to nothing again and again is not believed for a while: it could
otherwise keep all places taken with records that do not exist, and no newcomer would be heard of any more. Honest peers break a promise
when they go, or where datagrams are lost; both pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId


@dataclass(slots=True)
class _Standing:
    """What is held against one peer."""

    #: Promises that are open: records it said it has, first of all, and that have not come.
    open: int = 0
    #: Broken ones at `at` that are not forgiven yet, and whether that was reported.
    broken: float = 0.0
    at: float = 0.0
    is_reported: bool = False


class Promises:
    """See the module. `now`: monotonic seconds."""

    def __init__(self) -> None:
        #: By who promised; one against whom nothing is held is forgotten.
        self._standings: dict[PeerId, _Standing] = {}

    def made(self, by: PeerId, now: float) -> bool:
        """`by` has a record that nobody else is known to have; whether it is believed, and then one more is open."""
        standing = self._standings.get(by)
        if standing is None:
            if len(self._standings) >= limits.PEERS_MAX:
                self._forget_idle(now)
            standing = self._standings[by] = _Standing(at=now)
        if standing.open >= limits.WANTS_PER_SOURCE_MAX or self._broken(standing, now) >= limits.BROKEN_PROMISES_MAX:
            return False
        standing.open += 1
        return True

    def ended(self, by: PeerId) -> None:
        """It came, from whomever, or is not wanted any more."""
        standing = self._standings[by]
        standing.open -= 1
        if not standing.open and not standing.broken:
            del self._standings[by]

    def broken(self, by: PeerId, now: float) -> bool:
        """It was asked for again and again, and did not come; whether `by` is to be reported for it, once."""
        standing = self._standings[by]
        standing.open -= 1
        standing.broken, standing.at = self._broken(standing, now) + 1.0, now
        if standing.broken < limits.BROKEN_PROMISES_MAX or standing.is_reported:
            return False
        standing.is_reported = True
        return True

    def open_of(self, by: PeerId) -> int:
        """How many are open."""
        standing = self._standings.get(by)
        return 0 if standing is None else standing.open

    def _forget_idle(self, now: float) -> None:
        idle = [by for by, each in self._standings.items() if not each.open and self._broken(each, now) <= 0.0]
        for by in idle:
            del self._standings[by]

    def __len__(self) -> int:
        return len(self._standings)

    def _broken(self, standing: _Standing, now: float) -> float:
        left = max(0.0, standing.broken - (now - standing.at) * limits.BROKEN_PROMISES_FORGIVEN_PER_SECOND)
        if not left:
            standing.is_reported = False
        return left
