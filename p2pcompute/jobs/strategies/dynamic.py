"""dynamic: changes with the situation.

Formula, the first that holds: mean CPU usage of the candidates above 0.8: resource_aware; mean round trip above 200 ms: latency_based; more than
0.8 of the budget spent: cost_aware; else the adaptive strategy where there is one, or the default one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.strategies.base import Report, Situation, Strategy
from p2pcompute.model.ids import PeerId

CPU_BUSY = 0.8
LATENCY_HIGH_S = 0.2
BUDGET_USED = 0.8


def chosen(candidates: Sequence[Candidate], job: Situation, otherwise: str) -> str:
    """The name of the strategy for this situation."""
    used = [1 - each.facts.capability.idle for each in candidates if each.facts.capability is not None]
    if used and sum(used) / len(used) > CPU_BUSY:
        return "resource_aware"
    if candidates and sum(each.rtt_s for each in candidates) / len(candidates) > LATENCY_HIGH_S:
        return "latency_based"
    budget = job.options.budget
    if budget is not None and job.spent > BUDGET_USED * budget.max_cost:
        return "cost_aware"
    return otherwise


class Dynamic(Strategy):
    """Asks another strategy, which one depends. `make`: gives the strategy of a name; `otherwise`: the one for quiet times."""

    name = "dynamic"
    holds_back = True

    def __init__(self, make: Callable[[str], Strategy], otherwise: str) -> None:
        self._make = make
        self._otherwise = otherwise
        #: Those asked so far, by name.
        self._made: dict[str, Strategy] = {}
        self.learns = self._of(otherwise).learns

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """As the strategy for this situation orders."""
        found = self._of(chosen(candidates, job, self._otherwise)).order(candidates, job)
        # Where everybody is too far, or too dear, for the strategy of the moment, the quiet one still knows an order.
        return found or self._of(self._otherwise).order(candidates, job)

    def learn(self, candidate: Candidate, job: Situation, report: Report) -> None:
        """Told on to the adaptive strategy, whoever gave the order: it learns from everything."""
        self._of(self._otherwise).learn(candidate, job, report)

    def _of(self, name: str) -> Strategy:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]
