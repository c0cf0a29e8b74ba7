"""How long a task takes, learned from reports, and what follows from it: the size of a batch and of the prefetch.

One estimate a (job, peer) at the origin, one a job at the lender. An estimate is an exponentially weighted mean over
tasks, so a batch of n tasks counts like n reports of one. The mean of the batch stands for its tasks: reports say how
long each took, but their order within a batch says nothing.
"""

from __future__ import annotations

import math

from p2pcompute.model import limits

#: Weight of one new task in the mean: ten tasks make up 97 % of it, so a slow first one (imports) is soon forgotten.
NEWEST_WEIGHT = 0.3
#: A batch grows at most so many times from one report to the next: one lucky fast task must not pile up slow ones.
GROWTH_MAX = 4
#: Tasks that take less are taken for this long: below it the clock of the worker says nothing.
TASK_MIN_S = 1e-6
#: Share of a task's time that a slot may idle for the round trip before work is sent ahead for it.
IDLE_SHARE = 0.1


class Speed:
    """Seconds a task takes, as learned so far."""

    __slots__ = ("samples", "task_s")

    def __init__(self) -> None:
        #: Mean seconds a task, above 0; None before the first report.
        self.task_s: float | None = None
        #: Tasks that the mean was learned from.
        self.samples = 0

    def observe(self, total_s: float, count: int) -> None:
        """Learn from `count` (at least 1) tasks that took `total_s` together."""
        self.task_s = blend(self.task_s, total_s / count, count)
        self.samples += count


def blend(old_s: float | None, new_s: float, count: int) -> float:
    """The mean after `count` more tasks of `new_s` each: old·(1-w)ⁿ + new·(1-(1-w)ⁿ), w = NEWEST_WEIGHT."""
    new_s = max(new_s, TASK_MIN_S)
    if old_s is None:
        return new_s
    keep = math.pow(1 - NEWEST_WEIGHT, count)
    return old_s * keep + new_s * (1 - keep)


def batch_tasks(task_s: float | None, current: int, target_s: float = limits.BATCH_TARGET_S) -> int:
    """Tasks a slot in one batch: `target_s` of work, from 1 up to GROWTH_MAX times the `current` size.

    One while nothing is known, at most `limits.BATCH_TASKS_MAX`.
    """
    if task_s is None:
        return 1
    ideal = int(target_s / max(task_s, TASK_MIN_S) + 1e-6)
    return max(1, min(ideal, current * GROWTH_MAX, limits.BATCH_TASKS_MAX))


def prefetch_tasks(task_s: float | None, rtt_s: float) -> int:
    """Further tasks a slot that keep it busy for a round trip: ⌈rtt/task - IDLE_SHARE⌉, at most BATCH_TASKS_MAX.

    None for tasks that take far longer than the round trip: what is not sent ahead can still go to another peer.
    """
    if task_s is None:
        return 0
    wanted = math.ceil(max(rtt_s, 0.0) / max(task_s, TASK_MIN_S) - IDLE_SHARE)
    return max(0, min(wanted, limits.BATCH_TASKS_MAX))
