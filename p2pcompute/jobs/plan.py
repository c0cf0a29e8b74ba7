"""In which order peers are asked and filled.

A plan is a pure function from candidates to their order; strategies are further plans of the same shape. The default
prefers the peer where one more task would be finished first. A plan only orders: credit, retries and late copies are
the dispatch machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pcompute.model.ids import PeerId

#: Taken for the time of a task while no peer has run one.
TASK_UNKNOWN_S = 0.01
#: Rank of a peer that says nothing about itself; ranks are capability scores, 0 to 100.
RANK_MIN = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that may compute for a job. `task_s`: learned for this job there; `load`: slots in use over slots granted."""

    peer: PeerId
    rtt_s: float
    local: bool
    rank: float
    task_s: float | None = None
    load: float = 0.0


Plan = Callable[[Sequence[Candidate]], list[PeerId]]


def expected_finish_s(candidate: Candidate, typical_s: float, typical_rank: float) -> float:
    """Round trip + task·(1 + load). Where the peer's own time is unknown: typical time · typical rank / its rank."""
    task_s = candidate.task_s
    if task_s is None:
        task_s = typical_s * typical_rank / max(candidate.rank, RANK_MIN)
    return max(candidate.rtt_s, 0.0) + task_s * (1 + max(candidate.load, 0.0))


def fastest_first(candidates: Sequence[Candidate]) -> list[PeerId]:
    """The default plan: by `expected_finish_s`, then this peer itself, higher rank, lower id."""
    if not candidates:
        return []
    known = [candidate for candidate in candidates if candidate.task_s is not None]
    sample = known or candidates
    typical_rank = sum(max(candidate.rank, RANK_MIN) for candidate in sample) / len(sample)
    typical_s = sum(candidate.task_s or 0.0 for candidate in known) / len(known) if known else TASK_UNKNOWN_S

    def key(candidate: Candidate) -> tuple[float, bool, float, PeerId]:
        finish_s = expected_finish_s(candidate, typical_s, typical_rank)
        return (finish_s, not candidate.local, -candidate.rank, candidate.peer)

    return [candidate.peer for candidate in sorted(candidates, key=key)]
