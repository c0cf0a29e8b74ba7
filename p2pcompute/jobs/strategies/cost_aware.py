"""cost_aware: the most computing for the money, within the budget.

Formula: ratio = performance / cost per hour, highest first; performance is capability (score 0 to 100), or, once the peer has run tasks of
the job, what that comes to by its own speed: typical rank · typical time / its time. Peers that cost nothing come before all
others, the more capable first. Left out are peers above `cost_limit` per hour, and those where one task alone,
cost/h · seconds / 3600, costs more than the budget has left. (How the budget of the whole job is kept: `jobs/budget.py`, for any strategy.)
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.jobs.budget import task_cost
from p2pcompute.jobs.plan import RANK_MIN, Candidate, typical
from p2pcompute.jobs.strategies.base import Situation, Strategy, by
from p2pcompute.model.ids import PeerId


def performance(candidate: Candidate, typical_s: float, typical_rank: float) -> float:
    """What a peer does for its time: its rank, or what its learned speed comes to."""
    if candidate.task_s is None or candidate.task_s <= 0:
        return max(candidate.rank, RANK_MIN)
    return typical_rank * typical_s / candidate.task_s


class CostAware(Strategy):
    """Highest performance per cost first, free peers before; beyond the budget nobody."""

    name = "cost_aware"
    holds_back = True

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """Those that can be paid."""
        if not candidates:
            return []
        typical_s, typical_rank = typical(candidates, job.task_s)
        budget, limit = job.options.budget, job.options.preferences.cost_limit
        left = None if budget is None else budget.max_cost - job.spent

        def may(each: Candidate) -> bool:
            cost = each.facts.cost_per_hour
            if limit is not None and cost > limit:
                return False
            task_s = each.task_s if each.task_s is not None else typical_s
            return left is None or cost <= 0 or task_cost(cost, task_s) <= left

        def key(each: Candidate) -> tuple[float, ...]:
            cost, does = each.facts.cost_per_hour, performance(each, typical_s, typical_rank)
            return (0.0, -does) if cost <= 0 else (1.0, -does / cost)

        return by([each for each in candidates if may(each)], key)
