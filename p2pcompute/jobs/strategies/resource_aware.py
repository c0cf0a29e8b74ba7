"""resource_aware: the machine with the most free resources first.

Formula: score = (cpu + memory + gpu + requirements) / 4, highest first. cpu, memory and gpu are the free shares, (100 - usage %)/100, by the
peer's record; gpu is 0.5 where there is none. requirements is how much more than asked for the peer has
(`requirements.headroom`), 1 where nothing is asked. A machine that says nothing of itself counts as half free.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.requirements import headroom
from p2pcompute.jobs.strategies.base import Situation, Strategy, by
from p2pcompute.model.ids import PeerId
from p2pcompute.model.requirement import Requirement

#: The GPU part of a machine without one, and each part of a machine that says nothing.
NEUTRAL = 0.5


def resource_score(candidate: Candidate, requirements: Sequence[Requirement]) -> float:
    """0 to 1, see the module."""
    capability = candidate.facts.capability
    if capability is None:
        cpu = memory = gpu = NEUTRAL
    else:
        cpu = capability.idle
        memory = capability.memory_available_gb / capability.memory_gb if capability.memory_gb > 0 else 0.0
        used = [each.utilisation for each in capability.gpus]
        gpu = 1 - sum(used) / len(used) if used else NEUTRAL
    return (cpu + memory + gpu + headroom(requirements, candidate)) / 4


class ResourceAware(Strategy):
    """Highest `resource_score` first."""

    name = "resource_aware"

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """By score in thousandths, then fewer of our own tasks: records are seconds old, our queue is not."""
        requirements = job.options.requirements
        return by(candidates, lambda each: (-round(resource_score(each, requirements), 3), each.load))
