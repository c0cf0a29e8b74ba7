"""round_robin: one after the other.

Formula: the peer whose turn was longest ago comes first, those that never had one before all others, by id. For calls
that come one at a time this is the classic "index modulo n"; peers that come or go do not disturb the others' turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.strategies.base import Situation, Strategy
from p2pcompute.model.ids import PeerId


class RoundRobin(Strategy):
    """The longest without a turn first."""

    name = "round_robin"
    spreads = True

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """By `Candidate.turn`, then id: who is local does not matter."""
        return [each.peer for each in sorted(candidates, key=lambda each: (each.turn, each.peer))]
