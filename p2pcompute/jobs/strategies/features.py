"""What a prediction looks at: the state of a peer, the request, and the row of numbers made of them.

A row has two parts: `SHARED`, the same for all peers at one moment (the request, the hour), and `OWN`, of one peer.
Each number is near 0 where it is usual and of the order of 1 where it is not, since learners assume that; what is
unknown is 0. What peers say of themselves is clipped: nobody gets out of the range in which honest peers are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.performance import FunctionKey

#: Names of the numbers that all candidates share, in their order.
SHARED = ("one", "request size", "complexity", "hour sine", "hour cosine")
#: Names of the numbers of one peer, in their order; the first is also what the estimate without learning rests on.
OWN = ("rank", "cpu", "memory", "gpu", "no gpu", "queue", "historical time")
#: Length of a row.
ROW_LENGTH = len(SHARED) + len(OWN)
#: Ranks are capability scores, 0 to 100; this one is in the middle, and the rank of a peer that says nothing of itself.
RANK_TYPICAL = 50.0
RANK_MIN = 1.0
RANK_MAX = 100.0
#: A request of so many bytes is "usual": what fits into a message beside others.
BYTES_TYPICAL = 4_096.0
#: log2 of sizes relative to the typical one stays within this: 2 bytes to 8 MiB and a bit beyond each.
LOG_SIZE_MAX = 12.0
#: A queue is counted up to so many tasks a slot.
QUEUE_MAX = 20.0
#: The constant is so large that it is learned at once, whatever the unit of time of a function.
ONE = 3.0


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """A peer as a strategy sees it at one moment.

    `rank`: capability score, 0 to 100. `cpu`, `memory`, `gpu`: share in use, 0 to 1; None where unknown, for `gpu` also
    where it has none. `queued`: tasks that run or wait there, on `slots` slots. `cost_per_hour` in the network's
    currency.
    """

    peer: PeerId
    rank: float
    rtt_s: float = 0.0
    slots: int = 1
    queued: float = 0.0
    cpu: float | None = None
    memory: float | None = None
    gpu: float | None = None
    local: bool = False
    cost_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """A call, or a job's tasks, for which peers are ordered.

    `input_bytes`: of one task's arguments. `complexity`: how much work the submitter expects, relative to the
    function's usual, 1 where nothing was said. `hour`: of the day at the submitter, 0 up to 24, as the caller's clock
    says.
    """

    function: FunctionKey
    input_bytes: int = 0
    complexity: float = 1.0
    hour: float = 0.0

    def __post_init__(self) -> None:
        if not (self.input_bytes >= 0 and 0 < self.complexity < math.inf and 0 <= self.hour < 24):
            raise UsageError(
                f"a request of {self.input_bytes} bytes, complexity {self.complexity}, at hour {self.hour}: "
                "give a size from 0 up, a complexity above 0 and an hour from 0 up to 24"
            )


def shared_row(request: Request) -> tuple[float, ...]:
    """The part of the row that all peers share, in the order of `SHARED`."""
    angle = request.hour * (math.pi / 12)
    size = math.log2((request.input_bytes + 1) / BYTES_TYPICAL)
    complexity = math.log2(request.complexity)
    return (
        ONE,
        max(-LOG_SIZE_MAX, min(size, LOG_SIZE_MAX)) / 4,
        max(-LOG_SIZE_MAX, min(complexity, LOG_SIZE_MAX)) / 4,
        math.sin(angle),
        math.cos(angle),
    )


def own_row(facts: PeerFacts, relative_mean_s: float | None) -> tuple[float, ...]:
    """The part of one peer, in the order of `OWN`.

    `relative_mean_s`: mean time of the function there lately, over that at all peers; None where unknown.
    """
    gpu = facts.gpu
    queue = facts.queued / facts.slots if facts.slots > 1 else facts.queued
    return (
        log_rank(facts.rank),
        _centred(facts.cpu),
        _centred(facts.memory),
        _centred(gpu),
        1.0 if gpu is None else 0.0,
        (queue if 0 <= queue <= QUEUE_MAX else _within(queue, 0.0, QUEUE_MAX)) / 4,
        math.log(_within(relative_mean_s, 0.02, 50.0)) if relative_mean_s else 0.0,
    )


def log_rank(rank: float) -> float:
    """Natural logarithm of the rank over the typical one; a rank that is no number is typical."""
    if not RANK_MIN <= rank <= RANK_MAX:
        rank = _within(rank, RANK_MIN, RANK_MAX) if rank == rank else RANK_TYPICAL
    return math.log(rank / RANK_TYPICAL)


def is_row(features: Sequence[float]) -> bool:
    """Whether `features` is a row of this release: one of another is not learned from."""
    return len(features) == ROW_LENGTH and all(math.isfinite(value) for value in features)


def _centred(share: float | None) -> float:
    """A share in use around its middle, -1 to 1."""
    if share is None:
        return 0.0
    # The usual case first: an ordering asks this 150 times.
    return 2.0 * share - 1.0 if 0.0 <= share <= 1.0 else 2.0 * _within(share, 0.0, 1.0) - 1.0


def _within(value: float, least: float, most: float) -> float:
    # In this order: what is no number becomes the least.
    return min(most, max(least, value))
