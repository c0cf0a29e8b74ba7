"""When a lease is so late that a free slot elsewhere should run a copy of its task.

A lease is overdue after FACTOR times what it should have taken: the round trip, and the work that its peer held when
it was sent, spread over the slots; where the peer is slow for all its tasks, what others would take counts. Nothing is overdue while the time of a task is unknown. After Dean and Ghemawat,
"MapReduce", OSDI 2004, section 3.6 (backup tasks).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pcompute.model.ids import PeerId, TaskIndex

if TYPE_CHECKING:
    from p2pcompute.jobs.leases import JobBook

#: How many times the expected duration may pass.
FACTOR = 2.0
#: Nothing is copied before it has been out for this long: copies of short tasks cost more than they save.
OVERDUE_MIN_S = 0.1
#: How soon to look again when leases are overdue but no slot is free.
LOOK_AGAIN_S = 0.1


def overdue_at(*, since: float, ahead: int, slots: int, task_s: float | None, rtt_s: float) -> float | None:
    """When a batch sent at `since` is overdue; None while `task_s` is unknown.

    `ahead`: tasks that the peer held for this job when the batch was on its way, the batch included.
    """
    if task_s is None:
        return None
    rounds = max(1, math.ceil(ahead / max(slots, 1)))
    return since + max(OVERDUE_MIN_S, FACTOR * (rtt_s + task_s * rounds))


def overdue(book: JobBook, now: float, slots_at: Callable[[PeerId], int]) -> tuple[list[TaskIndex], float | None]:
    """Leased tasks of a job that are overdue and have no copy, oldest batch first; and when the next batch becomes overdue."""
    late: dict[int, list[TaskIndex]] = {}
    next_at: float | None = None
    for held in book.batches.values():
        share = held.share
        if share.is_seat:
            # Its coordinator sees to late ones: a copy elsewhere could be merged here too.
            continue
        # Others have free slots when this matters: what a slow peer takes for any task is no excuse.
        task_s = min((each.task_s for each in (share.speed, book.speed) if each.task_s is not None), default=None)
        at = overdue_at(
            since=held.since, ahead=held.ahead, slots=slots_at(share.peer), task_s=task_s, rtt_s=share.rtt_s
        )
        if at is None:
            continue
        if at <= now:
            late[held.serial] = []
        elif next_at is None or at < next_at:
            next_at = at
    if not late:
        return [], next_at
    for task, held in book.leases.items():
        if held.serial in late and task not in book.copies:
            late[held.serial].append(task)
    return [task for serial in sorted(late) for task in late[serial]], next_at
