"""least_loaded: the least busy machine first.

Formula: load = max(CPU usage, memory usage), each 0 to 1 by the peer's record, or our own slots in use there over those granted where that
is more: what we have just sent is not in the record yet. Lowest first. A machine that says nothing of itself counts as half busy.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.strategies.base import Situation, Strategy, by
from p2pcompute.model.ids import PeerId

#: Taken for a machine that says nothing of itself.
USAGE_UNKNOWN = 0.5


def machine_load(candidate: Candidate) -> float:
    """max(1 - idle, 1 - available/total memory, our load), 0 and up."""
    capability = candidate.facts.capability
    if capability is None:
        return max(USAGE_UNKNOWN, candidate.load)
    memory = 1 - capability.memory_available_gb / capability.memory_gb if capability.memory_gb > 0 else 0.0
    return max(1 - capability.idle, memory, candidate.load)


class LeastLoaded(Strategy):
    """Lowest `machine_load` first."""

    name = "least_loaded"
    spreads = True

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """By load in hundredths: smaller differences are noise."""
        return by(candidates, lambda each: round(machine_load(each), 2))
