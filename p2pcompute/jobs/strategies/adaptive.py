"""smart_adaptive as the strategy of a job: what the jobs of one origin share of it, and how a candidate becomes a row.

Owns the translation between `base.Strategy` and `smart_adaptive.SmartAdaptive`. What is learned comes from the records of all jobs,
whatever their strategy (`recording.py`), so nothing is learned here. Refuses to know how predictions are made, and the clock: the
hour of the day is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.strategies.base import Situation, Strategy
from p2pcompute.jobs.strategies.features import PeerFacts, Request
from p2pcompute.jobs.strategies.smart_adaptive import SmartAdaptive
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import JobOptions
from p2pcompute.model.performance import FunctionKey

#: What a situation is about that names no function: it is of no job.
UNNAMED = FunctionKey("", ProgramId(bytes(32)))
#: What a submitter expects counts as at most so many times the usual, or so small a part of it: more is a slip of the pen.
COMPLEXITY_MAX = 4096.0


class Shared:
    """One `SmartAdaptive` for all jobs of an origin. `hour`: of the day at the submitter, 0 up to 24."""

    def __init__(self, core: SmartAdaptive, hour: Callable[[], float]) -> None:
        #: What is learned; another takes its place when the learner is there.
        self.core = core
        #: Asked for each ordering.
        self.hour = hour

    def strategy_of(self, options: JobOptions, registry: object) -> Strategy:
        """The strategy of one job: a factory for a `Registry`."""
        return Adaptive(self)

    def row(self, candidate: Candidate, job: Situation) -> tuple[float, ...]:
        """What the strategy sees of `candidate`, to be put into a record about it."""
        return self.core.features(self.request(job), facts_of(candidate), job.now)

    def request(self, job: Situation) -> Request:
        """A task of the job. Its complexity is the time that the submitter expects over what the function lately took anywhere."""
        function, expected_s = job.function or UNNAMED, job.options.expected_task_s
        usual_s = None if expected_s is None else self.core.book.mean_function_s(function, job.now)
        complexity = 1.0
        if expected_s is not None and usual_s:
            complexity = min(max(expected_s / usual_s, 1 / COMPLEXITY_MAX), COMPLEXITY_MAX)
        return Request(function, int(job.input_bytes), complexity, self.hour())


class Adaptive(Strategy):
    """Asks the shared core."""

    name = "smart_adaptive"

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """As the core orders, for what the job wants."""
        peers = [facts_of(each) for each in candidates]
        return self._shared.core.order(self._shared.request(job), peers, job.now, job.options.optimization_target)


def facts_of(candidate: Candidate) -> PeerFacts:
    """What the strategy looks at: shares in use from the peer's newest record, its queue as it says or as we know."""
    facts = candidate.facts
    capability = facts.capability
    cpu = memory = gpu = None
    if capability is not None:
        cpu = 1 - capability.idle
        if capability.memory_gb > 0:
            memory = 1 - capability.memory_available_gb / capability.memory_gb
        if capability.gpus:
            gpu = sum(each.utilisation for each in capability.gpus) / len(capability.gpus)
    slots = max(facts.slots, 1)
    queued = max(candidate.queue, facts.load * slots)
    wait_s = candidate.rtt_s + candidate.fetch_s
    return PeerFacts(
        candidate.peer, candidate.rank, wait_s, slots, queued, cpu, memory, gpu, candidate.local, facts.cost_per_hour
    )
