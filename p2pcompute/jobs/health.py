"""Whether a peer may be given new work, and how it is, in figures.

Healthy: alive, not suspected by the network, and less than 0.9 tasks a slot by its own record, or with slots that are ours: what it
grants, it has room for. All figures are the peer's own measurements in its signed record, and round trips measured from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.strategies.base import Situation, Strategy
from p2pcompute.model.errors import NoAvailableNodesError, NoHealthyNodesError
from p2pcompute.model.ids import PeerId

#: Tasks per slot from which a peer is overloaded.
LOAD_MAX = 0.9


@dataclass(frozen=True, slots=True)
class Health:
    """One peer's state. `cpu`, `memory`, `gpu`: usage, 0 to 1, None where unknown; `load`: tasks per slot; `response_time_s`: round trip.

    `timestamp`: monotonic seconds of this snapshot. `error`: why it is not available, empty where it is.
    """

    peer: PeerId
    cpu: float | None
    memory: float | None
    gpu: float | None
    load: float
    response_time_s: float
    error: str
    timestamp: float

    @property
    def is_available(self) -> bool:
        """Whether new work may go there."""
        return not self.error


def is_healthy(candidate: Candidate, own_slots: int = 0) -> bool:
    """Whether new work may go to a linked peer that grants us `own_slots`."""
    return not candidate.facts.is_suspect and (candidate.facts.load < LOAD_MAX or own_slots > 0 or candidate.local)


def health_of(candidate: Candidate, now: float, own_slots: int = 0) -> Health:
    """The snapshot of one peer."""
    capability = candidate.facts.capability
    error = ""
    if candidate.facts.is_suspect:
        error = "it is suspected to be down"
    elif not is_healthy(candidate, own_slots):
        error = f"it is overloaded: {candidate.facts.load:.2f} tasks a slot"
    cpu = memory = gpu = None
    if capability is not None:
        cpu = 1 - capability.idle
        if capability.memory_gb > 0:
            memory = 1 - capability.memory_available_gb / capability.memory_gb
        if capability.gpus:
            gpu = sum(each.utilisation for each in capability.gpus) / len(capability.gpus)
    return Health(candidate.peer, cpu, memory, gpu, candidate.facts.load, candidate.rtt_s, error, now)


def choose(strategy: Strategy, candidates: Sequence[Candidate], job: Situation) -> PeerId:
    """The one peer that `strategy` would use now, among the healthy ones unless the job wants no health check.

    Raises NoAvailableNodesError where there is none at all or the strategy leaves out all, NoHealthyNodesError where none is healthy.
    """
    if not candidates:
        raise NoAvailableNodesError("no peer may compute: start one, or wait for one")
    healthy = [each for each in candidates if is_healthy(each)] if job.options.health_check else list(candidates)
    if not healthy:
        raise NoHealthyNodesError(
            f"none of {len(candidates)} peers is healthy: {health_of(candidates[0], job.now).error}"
        )
    order = strategy.order(healthy, job)
    if not order:
        raise NoAvailableNodesError(f"{strategy.name} leaves out all of {len(healthy)} peers: ask for less")
    return order[0]
