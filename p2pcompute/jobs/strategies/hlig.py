"""hlig, the default: capability per queued second, and the network's own spectrum where the task lives on the network.

finish = round trip + fetching of blobs + task·(1 + load), seconds until one more task would be done there (`plan.expected_finish_s`).

- compute: lowest finish first: the most capability per queued second.
- network: peers in the community of the data (this peer's, which holds the arguments) first, then the highest `fiedler_score`, the gateways
  between communities, then finish.
- mixed: both: lowest finish / (1 + fiedler_score), so that a full gateway counts as twice as fast.
- memory: lowest finish / (1 + min(free memory / 256 GB, 1)).

Where no topology is known all scores are 0 and network and mixed are compute. Scores count in millionths, as linear algebra differs
between builds.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.jobs.plan import Candidate, expected_finish_s, fastest_first, typical
from p2pcompute.jobs.strategies.base import Situation, Strategy
from p2pcompute.model.capability import MEMORY_FULL_GB
from p2pcompute.model.ids import PeerId
from p2pcompute.model.placement import TaskType


class Hlig(Strategy):
    """See the module."""

    name = "hlig"

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """By what the job's task type needs."""
        kind = job.options.task_type
        if kind is TaskType.COMPUTE or not candidates:
            return fastest_first(candidates, job.task_s)
        typical_s, typical_rank = typical(candidates, job.task_s)

        def key(each: Candidate) -> tuple[float, float, float, bool, float, PeerId]:
            finish_s = expected_finish_s(each, typical_s, typical_rank)
            score = round(each.facts.fiedler_score, 6)
            far, first = 0.0, 0.0
            if kind is TaskType.NETWORK:
                far = float(job.home is not None and each.facts.community != job.home)
                first = -score
            elif kind is TaskType.MIXED:
                finish_s /= 1 + score
            else:
                finish_s /= 1 + free_memory_share(each)
            return (far, first, finish_s, not each.local, -each.rank, each.peer)

        return [each.peer for each in sorted(candidates, key=key)]


def free_memory_share(candidate: Candidate) -> float:
    """Free memory over 256 GB, 0 to 1; 0 where it is not known."""
    capability = candidate.facts.capability
    return 0.0 if capability is None else min(capability.memory_available_gb / MEMORY_FULL_GB, 1.0)
