"""latency_based: the nearest peer first, and none that is too far.

Formula: score = round trip · (1 + 0.5 · load), lowest first; load is our slots in use there over those granted, or
the record's tasks per slot where that is more. The round trip is the link's, the shortest of its last few, measured from this very
place: every submitting peer has a history of its own. Peers beyond `max_latency_s` (100 ms where the job says nothing) are left out;
with `prefer_local` this machine comes first, then its own community.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.strategies.base import Situation, Strategy, by
from p2pcompute.model.ids import PeerId

#: Further away nobody is used, unless the job says otherwise.
MAX_LATENCY_S = 0.1
#: How much a fully loaded peer seems further away.
LOAD_WEIGHT = 0.5


def latency_score_s(rtt_s: float, load: float) -> float:
    """rtt · (1 + 0.5 · load), seconds."""
    return max(rtt_s, 0.0) * (1 + LOAD_WEIGHT * max(load, 0.0))


class LatencyBased(Strategy):
    """Lowest `latency_score_s` first; beyond the greatest latency nobody."""

    name = "latency_based"
    holds_back = True

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """Those within reach; equal scores by our load, as round trips on one machine are all the same."""
        preferences = job.options.preferences
        limit_s = MAX_LATENCY_S if preferences.max_latency_s is None else preferences.max_latency_s

        def key(each: Candidate) -> tuple[float, ...]:
            place = 0.0
            if preferences.prefer_local and not each.local:
                place = 1.0 if job.home is not None and each.facts.community == job.home else 2.0
            load = max(each.load, each.facts.load)
            return (place, latency_score_s(each.rtt_s, load), load)

        return by([each for each in candidates if each.rtt_s <= limit_s], key)
