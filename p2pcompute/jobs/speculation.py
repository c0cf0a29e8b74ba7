"""When a lease is so late that a free slot elsewhere should run a copy of its task.

A lease is overdue after FACTOR times what it should have taken: the round trip, and the work that its peer held when
it was sent, spread over the slots. Nothing is overdue while the time of a task is unknown. After Dean and Ghemawat,
"MapReduce", OSDI 2004, section 3.6 (backup tasks).
"""

from __future__ import annotations

import math

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
