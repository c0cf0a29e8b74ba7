"""Key nodes: one peer of each community that coordinates its share of wide jobs, and who stands in for it.

    score_i = s_i / max s of the community · capability_i / 100 · stability_i, rounded to 1e-6

s_i are gateway shares. Scores are rounded since linear algebra differs in the last digits between builds; equal scores
are ranked by capability and stability, then by id. Who leads already, as its own record claims, stays until somebody is
better by a fifth: a lead changes hands with consequences (queues, shared data), noise must not cause it. Of several who
claim the same community the best is the one.

Everything comes from the view, so peers with the same view elect the same. Two that disagree for a moment lose speed,
never correctness.

Refuses to know: graphs, what a key node does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.topology.graph import Floats, Ints

#: Who has been up for so many hours is not more stable than that; a night.
HOURS_STABLE = 16.0
#: Of the stability of such a peer, what one has that has just started.
STABILITY_NEW = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """`capability`: 0 to 100; `stability`: 0 to 1; `leads`: whether its own record claims that it is a key node."""

    peer: PeerId
    capability: float
    stability: float
    leads: bool = False


@dataclass(frozen=True, slots=True)
class KeyNode:
    """`peer` coordinates `community`; `stand_ins`, best first, would if it died. `score`: 0 to 1, comparable within the
    community only."""

    community: int
    peer: PeerId
    score: float
    stand_ins: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class ElectionSettings:
    """The defaults are the product's."""

    #: How many times the incumbent's score a challenger must exceed.
    challenge_factor: float = 1.2
    #: Stand-ins named for each community.
    stand_ins: int = limits.STAND_INS


def elect(
    candidates: Sequence[Candidate], labels: Ints, shares: Floats, settings: ElectionSettings | None = None
) -> tuple[KeyNode, ...]:
    """The key node of each community, by its label. `candidates`, `labels` and `shares` (n,) are in one order. Raises
    UsageError."""
    chosen = settings or ElectionSettings()
    if not len(candidates) == labels.size == shares.size:
        raise UsageError(
            f"{len(candidates)} candidates, {labels.size} labels and {shares.size} shares: give one of each for every peer, in one order"
        )
    scores = election_scores(candidates, labels, shares)
    groups: dict[int, list[int]] = {}
    for number, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(number)
    return tuple(_winner(label, groups[label], candidates, scores, chosen) for label in sorted(groups))


def election_scores(candidates: Sequence[Candidate], labels: Ints, shares: Floats) -> Floats:
    """(n,) score of each candidate within its community, 0 to 1; see the module. Equal shares where nobody of a
    community has one."""
    count = int(labels.max()) + 1 if labels.size else 0
    most = np.zeros(count)
    np.maximum.at(most, labels, shares)
    best = most[labels]
    relative = np.where(best > 0, shares / np.where(best > 0, best, 1.0), 1.0)
    merit = np.array([_merit(candidate) for candidate in candidates], dtype=np.float64)
    return np.round(relative * merit, 6)


def fiedler_scores(shares: Floats) -> Floats:
    """(n,) shares as people see them: of the largest, 0 to 1."""
    most = float(shares.max(initial=0.0))
    return shares / most if most > 0 else np.zeros_like(shares)


def stability(up_s: float, failures: int = 0) -> float:
    """Of a peer that has been up for `up_s` seconds and failed so many times before; 0 to 1.

    (1/2 + 1/2 · log2(1 + h) / log2(1 + 16)) / (1 + failures), h the hours up, at most 16, rounded down to a power of
    two less one: peers whose clocks differ a little agree but for a few moments a day.
    """
    hours = min(max(up_s, 0.0) / 3600.0, HOURS_STABLE)
    steps = math.floor(math.log2(1.0 + hours))
    aged = steps / math.floor(math.log2(1.0 + HOURS_STABLE))
    return (STABILITY_NEW + (1.0 - STABILITY_NEW) * aged) / (1.0 + max(failures, 0))


def _merit(candidate: Candidate) -> float:
    return min(max(candidate.capability, 0.0), 100.0) / 100.0 * min(max(candidate.stability, 0.0), 1.0)


def _winner(
    label: int, group: Sequence[int], candidates: Sequence[Candidate], scores: Floats, settings: ElectionSettings
) -> KeyNode:
    def rank(number: int) -> tuple[float, float, PeerId]:
        return (-float(scores[number]), -round(_merit(candidates[number]), 6), candidates[number].peer)

    ranked = sorted(group, key=rank)
    first = ranked[0]
    incumbent = next((number for number in ranked if candidates[number].leads), first)
    if scores[first] > settings.challenge_factor * scores[incumbent]:
        incumbent = first
    others = [candidates[number].peer for number in ranked if number != incumbent]
    return KeyNode(label, candidates[incumbent].peer, float(scores[incumbent]), tuple(others[: settings.stand_ins]))
