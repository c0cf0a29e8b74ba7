"""What is known of a peer when work is placed, and the order that needs nothing more than speed and distance.

`Candidate` is what every strategy sees (`strategies/`); `fastest_first` prefers the peer where one more task would be finished
first. Ordering is all that happens here: credit, retries and late copies are the dispatch machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from p2pcompute.model.capability import Capability
from p2pcompute.model.ids import PeerId
from p2pcompute.model.requirement import TIER_DEFAULT

#: Taken for the time of a task while no peer has run one.
TASK_UNKNOWN_S = 0.01
#: Rank of a peer that says nothing about itself; ranks are capability scores, 0 to 100.
RANK_MIN = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a peer says about itself, and what is believed about it; as new as its last record.

    `load`: tasks there per slot, everybody's; `is_suspect`: the network doubts that it lives; `fiedler_score`: 0 to 1, how much of the
    connectivity between communities runs through it; `community`: None where no topology is known; `gives_back`: it
    understands that tasks which have not begun are recalled; `leads`: it is the key node of its community, by its own word.
    """

    name: str = ""
    capability: Capability | None = None
    slots: int = 0
    load: float = 0.0
    labels: tuple[str, ...] = ()
    python: str = ""
    platform: str = ""
    isolation: str = ""
    cost_per_hour: float = 0.0
    performance_tier: str = TIER_DEFAULT
    is_suspect: bool = False
    bandwidth_mbps: float | None = None
    fiedler_score: float = 0.0
    community: int | None = None
    gives_back: bool = False
    engines: tuple[str, ...] = ()
    grants: tuple[str, ...] = ()
    leads: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is in the topology; by default: nowhere that is known."""

    fiedler_score: float = 0.0
    community: int | None = None


NOTHING_KNOWN = Facts()
NOWHERE = Place()


class Candidate(NamedTuple):
    """A peer that may compute for a job, now. (A tuple: one is made for each peer whenever slots are free.)

    `rank`: its capability score. `task_s`: learned for this job there. `load`: our slots in use there over slots granted. `queue`: tasks
    of ours that it holds. `turn`: grows with each batch of the job, 0 before the first one there. `success`: share of
    attempts there that did not die, 0 to 1. `fetch_s`: seconds until the blobs of a task are there, as far as known.
    """

    peer: PeerId
    rtt_s: float
    local: bool
    rank: float
    task_s: float | None = None
    load: float = 0.0
    facts: Facts = NOTHING_KNOWN
    queue: int = 0
    turn: int = 0
    success: float = 1.0
    fetch_s: float = 0.0


#: Orders peers by what is known of them alone.
Plan = Callable[[Sequence[Candidate]], list[PeerId]]


def expected_finish_s(candidate: Candidate, typical_s: float, typical_rank: float) -> float:
    """Round trip + fetching of blobs + task·(1 + load). Where the peer's own time is unknown: typical time · typical rank / its rank."""
    task_s = candidate.task_s
    if task_s is None:
        task_s = typical_s * typical_rank / max(candidate.rank, RANK_MIN)
    return max(candidate.rtt_s, 0.0) + candidate.fetch_s + task_s * (1 + max(candidate.load, 0.0))


def typical(candidates: Sequence[Candidate], expected_s: float | None = None) -> tuple[float, float]:
    """(seconds of a task, rank) in the mean over the peers that have run one; `expected_s` while none has."""
    known = [candidate for candidate in candidates if candidate.task_s is not None]
    sample = known or candidates
    rank = sum(max(candidate.rank, RANK_MIN) for candidate in sample) / len(sample)
    if known:
        return sum(candidate.task_s or 0.0 for candidate in known) / len(known), rank
    return expected_s if expected_s is not None else TASK_UNKNOWN_S, rank


def fastest_first(candidates: Sequence[Candidate], expected_s: float | None = None) -> list[PeerId]:
    """By `expected_finish_s`, then this peer itself, higher rank, lower id. `expected_s`: of a task, while none was run."""
    if not candidates:
        return []
    typical_s, typical_rank = typical(candidates, expected_s)

    def key(candidate: Candidate) -> tuple[float, bool, float, PeerId]:
        finish_s = expected_finish_s(candidate, typical_s, typical_rank)
        return (finish_s, not candidate.local, -candidate.rank, candidate.peer)

    return [candidate.peer for candidate in sorted(candidates, key=key)]
