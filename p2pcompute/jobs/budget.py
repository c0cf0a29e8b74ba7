"""What a job may cost, has cost, and what of it may still be sent where.

Cost of a task: the peer's price per hour · seconds / 3600. A peer may take k more tasks while what is spent, what is out, these k there and
all others at the cheapest peer stay within the budget: so an expensive peer is used only with money that the rest does not
need. Seconds are learned, else what the submitter expects, else `plan.TASK_UNKNOWN_S`. Refuses to know who is cheapest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Differences below this share of the budget are rounding.
_EPSILON = 1e-9


def task_cost(cost_per_hour: float, task_s: float) -> float:
    """Price per hour · seconds / 3600."""
    return cost_per_hour * task_s / 3600.0


def tasks_affordable(*, left_over: float, price: float, cheapest: float, left: int) -> int:
    """How many of `left` tasks may go to a peer where one costs `price`, the others going where one costs `cheapest`.

    `left_over`: budget minus what is spent and what is out. Where not even the cheapest can do all: as many as can be paid at the
    cheapest, and none at a dearer one.
    """
    slack = left_over * (1 + _EPSILON)
    if price <= 0:
        return left
    if left_over < 0:
        return 0
    if price <= cheapest:
        return min(left, math.floor(slack / price))
    spare = slack - left * cheapest
    return max(0, min(left, math.floor(spare / (price - cheapest))))


@dataclass(slots=True)
class Purse:
    """The money of one job."""

    #: What it may cost.
    max_cost: float
    #: What its attempts have cost so far; grows only.
    spent: float = 0.0
    #: What the tasks that are out will cost by the last count, from 0 up.
    committed: float = 0.0

    @property
    def left_over(self) -> float:
        """What is neither spent nor promised; below 0 where tasks took longer than was thought."""
        return self.max_cost - self.spent - self.committed

    def pay(self, cost_per_hour: float, wall_s: float) -> None:
        """Attempts of `wall_s` seconds together ended at a peer of that price."""
        self.spent += task_cost(cost_per_hour, max(wall_s, 0.0))
