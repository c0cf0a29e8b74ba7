"""How many tasks of a job one peer may be sent now.

A peer grants slots over all jobs of this origin. A lease takes the part 1/depth of a slot, where depth (batch and
prefetch) is how many tasks of that job a slot is worth; so jobs with long and short tasks share the slots of one peer.
Towards the end of a job the depth shrinks to the waiting tasks over all slots, but not below what hides the round trip.
"""

from __future__ import annotations

import math

#: Differences below this are rounding.
_EPSILON = 1e-9
#: Part of a batch that must be free before a peer that still has work is sent more: frames stay well filled.
REFILL_SHARE = 4


def tail_depth(depth: int, prefetch: int, waiting: int, slots_total: int) -> int:
    """`depth`, but at most ⌈waiting / slots of all peers⌉, and never below 1 + `prefetch` (or `depth`, where less)."""
    even = math.ceil(waiting / slots_total) if slots_total > 0 else 1
    return min(depth, max(1 + prefetch, even))


def worth_a_look(*, free_slots: float, depth: int, out: int, waiting: int) -> bool:
    """Whether `tasks_to_send` could be above 0, whatever the tail: spares most reports the count of all slots."""
    room = int(free_slots * depth + _EPSILON)
    return room > 0 and (out == 0 or room >= waiting or room >= depth // REFILL_SHARE)


def tasks_to_send(*, free_slots: float, slots: int, depth: int, tail: int, out: int, waiting: int) -> int:
    """Tasks that may be sent to a peer now; 0 when it is better to wait for its next report.

    `free_slots`: what this job may use of the peer, in slots. `out`: tasks of the job that the peer holds. `tail`: depth
    near the end of the job (`tail_depth`).
    """
    room = min(int(free_slots * depth + _EPSILON), tail * slots - out)
    count = min(room, waiting)
    if count <= 0:
        return 0
    if out > 0 and count < waiting and count < depth // REFILL_SHARE:
        return 0
    return count
