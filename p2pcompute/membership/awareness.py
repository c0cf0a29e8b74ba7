"""Local health: how far this peer doubts itself before it doubts others.

A score from 0 (well) to 8. It rises with each probe that fails although the third peers that were asked did not even say that
they tried, with each accusation of this peer itself, and when the event loop comes late; it falls with each probe that is answered.
Every wait for others is multiplied by one more than the score, so that a peer without CPU time becomes slow to
accuse rather than wrong (Dadgar, Phillips, Currey: "Lifeguard", DSN-W 2018, "local health aware probe"; there
without the event loop, which tells the same earlier).
"""

from __future__ import annotations

#: A timer that comes later than this says that this peer lacks CPU time, seconds.
LAG_MAX_S = 0.1
#: A lag of so many seconds counts twice.
LAG_LONG_S = 1.0
#: Who comes later than this was not short of CPU time but asleep, stopped or suspended, seconds.
SLEPT_S = 10.0
#: Points for having slept: what happened meanwhile takes a few probes to be known.
WOKE_POINTS = 4


def failed_probe_points(nacks_expected: int, nacks: int) -> int:
    """Points for a probe that failed: one for each third peer that did not answer at all; one where none could be asked."""
    return max(nacks_expected - nacks, 0) if nacks_expected else 1


def lag_points(lag_s: float) -> int:
    """Points for an event loop that came `lag_s` late."""
    if lag_s <= LAG_MAX_S:
        return 0
    return 1 if lag_s < LAG_LONG_S else 2


class Awareness:
    """The score."""

    def __init__(self, score_max: int) -> None:
        #: Upper end of the score.
        self._score_max = score_max
        #: Between 0 and `score_max`.
        self.score = 0

    @property
    def factor(self) -> int:
        """By what waits are multiplied: 1 for a peer that is well."""
        return self.score + 1

    def add(self, points: int) -> None:
        """Raise the score, or lower it with negative points; it stays within its bounds."""
        self.score = min(max(self.score + points, 0), self._score_max)
