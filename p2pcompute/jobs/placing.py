"""How one job chooses among peers: its requirements, its strategy with the fallback, its preferences, its money.

Filter first, then order: a peer that lacks what the job requires is never a candidate; the strategy orders the others, or leaves some out; preferences
move peers that are not preferred to the end. What a strategy raises is caught here and becomes the word of the fallback, or the end of
the job. Refuses to know leases, slots and shares.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.jobs.budget import Purse, task_cost, tasks_affordable
from p2pcompute.jobs.plan import TASK_UNKNOWN_S, Candidate
from p2pcompute.jobs.requirements import lacks
from p2pcompute.jobs.strategies import Registry, Report, Situation
from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import JobOptions
from p2pcompute.model.performance import FunctionKey
from p2pcompute.model.placement import Preferences


class Placing:
    """The choices of one job."""

    def __init__(self, options: JobOptions, registry: Registry, function: FunctionKey | None = None) -> None:
        #: As validated by the submitter.
        self.options = options
        #: What its tasks run; None where nobody said.
        self.function = function
        #: Orders the peers.
        self.strategy = registry.make_for(options)
        #: Orders them where the strategy fails or leaves nobody; None: the job ends, or waits.
        self._fallback = (
            None if options.fallback_strategy is None else registry.make(options.fallback_strategy, options)
        )
        #: Peers that lack what is required, by the last look at them; a subset of the usable ones.
        self.unfit: set[PeerId] = set()
        #: The money, where there is a budget.
        self.purse = None if options.budget is None else Purse(options.budget.max_cost)
        #: Whether single peers may be barred from it for a time; spares all other jobs the question.
        self.is_gated = bool(options.requirements) or self.purse is not None or self.strategy.holds_back
        #: Why no peer may run the job at present though some are usable, in words; empty where one may.
        self.unmet = ""
        #: Bytes of arguments of known tasks that travel as blobs.
        self.blob_bytes = 0
        #: Bytes that all tasks share, and how many of them peers have already.
        self.shared_bytes = 0
        self.held_bytes: dict[PeerId, int] = {}
        #: Why the fallback orders peers, or nobody can, in words; empty while the strategy does.
        self.trouble = ""
        #: What of that was told.
        self.told = ""
        #: Whether it failed and there was no fallback.
        self.has_failed = False

    def look_at(self, candidate: Candidate) -> bool:
        """Whether the peer meets what is required; remembered until it is looked at again."""
        if not self.options.requirements:
            return True
        if lacks(self.options.requirements, candidate):
            self.unfit.add(candidate.peer)
            return False
        self.unfit.discard(candidate.peer)
        return True

    def forget(self, peer: PeerId) -> None:
        """The peer is not usable any more."""
        self.unfit.discard(peer)

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """Those of `candidates` that may be given work, the best first; all of them are fit."""
        order = self._ordered(candidates, job)
        preferences = self.options.preferences
        if len(order) < 2 or preferences.is_empty:
            return order
        known = {each.peer: each for each in candidates}
        return sorted(order, key=lambda peer: disfavours(preferences, known[peer]))

    def _ordered(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        try:
            order = self.strategy.order(candidates, job)
        except Exception as error:
            # It may be anybody's code; whatever it raises must not harm other jobs.
            self._note(error)
            if self._fallback is None:
                return []
        else:
            if order or not candidates or self._fallback is None:
                return order
            self.trouble = f"strategy {self.strategy.name} leaves out every peer"
        return self._fallback.order(candidates, job)

    def learn(self, candidate: Candidate, job: Situation, report: Report) -> None:
        """Tell the strategy how a batch ended."""
        try:
            self.strategy.learn(candidate, job, report)
        except Exception as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        self.trouble = f"strategy {self.strategy.name} failed: {type(error).__name__}: {error}"
        self.has_failed = self._fallback is None

    # --- money ------------------------------------------------------------------------------------------------------------

    def tasks_payable(self, candidate: Candidate, cheapest: float, job: Situation) -> int:
        """How many more tasks the budget lets go to `candidate`. `cheapest`: the lowest price per hour of a fit peer."""
        left = job.left if job.left is not None else max(job.waiting, 1)
        if self.purse is None:
            return left
        task_s = candidate.task_s if candidate.task_s is not None else job.task_s
        task_s = TASK_UNKNOWN_S if task_s is None else task_s
        price, least = task_cost(candidate.facts.cost_per_hour, task_s), task_cost(cheapest, task_s)
        return tasks_affordable(left_over=self.purse.left_over, price=price, cheapest=least, left=left)

    def whole_cost(self, cheapest: float, job: Situation) -> float | None:
        """What all tasks that are left cost at the price `cheapest` per hour; None where that is not known."""
        if job.left is None or job.task_s is None:
            return None
        return job.left * task_cost(cheapest, job.task_s)


def disfavours(preferences: Preferences, candidate: Candidate) -> int:
    """How many of the preferences a peer does not keep to."""
    count = int(preferences.prefer_local and not candidate.local)
    count += int(preferences.key_nodes and not candidate.facts.leads)
    if preferences.max_latency_s is not None:
        count += candidate.rtt_s > preferences.max_latency_s
    if preferences.cost_limit is not None:
        count += candidate.facts.cost_per_hour > preferences.cost_limit
    return count
