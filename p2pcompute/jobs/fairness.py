"""How a lending peer divides its slots among origins, and who comes next.

What counts is the account, the origin in whose name tasks run: one that works through several coordinators borrows under as many
ids, which share the slots and the time of their one account by the same rules by which accounts share those of the peer.

Origins that have work share all slots in proportion to their weights (the priority of their foremost job, plus one), at least one
each, so that everybody gets on; an origin that has had no work for a while keeps one slot, so that its next task needs no round
trip of credit. Bounds come before fairness (`allot`): an account never has more slots than its limit, the guests together never more than
are lent, and what is kept for urgent work is not given to other guests, even where slots are idle then. Which tasks run next is decided by slots in use and by time used, both over the weight: so
it does not help an origin to have more tasks, more jobs or longer tasks than others.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.jobs.speed import batch_tasks
from p2pcompute.model.ids import PeerId

#: An origin without work keeps its full part for so long: results travel, and the next tasks come back.
ACTIVE_S = 1.0
#: A worker bound to a program with waiting tasks serves it for so long before its slot may go to another program: starting a
#: worker costs about 50 ms.
TENURE_S = 0.25


#: Slots that an owner keeps for urgent work take jobs from this priority on.
URGENT_PRIORITY = 8


def weight_of(priority: int) -> int:
    """1 to 10, for priorities 0 to 9."""
    return 1 + min(max(priority, 0), 9)


def divide(slots: int, wanted: Sequence[tuple[PeerId, int, bool]]) -> dict[PeerId, int]:
    """Slots by origin, from rows of (origin, weight, has work).

    Largest remainders, ties to the lower id. Every origin gets at least 1 where `slots` is above 0, so that with more
    origins than slots the sum is larger than `slots`: the tasks then take turns.
    """
    if slots <= 0:
        return {origin: 0 for origin, _, _ in wanted}
    active = [(origin, weight) for origin, weight, has_work in wanted if has_work]
    total = sum(weight for _, weight in active)
    parts = {origin: slots * weight // total for origin, weight in active}
    left = slots - sum(parts.values())
    by_remainder = sorted(active, key=lambda row: (-(slots * row[1] % total), row[0]))
    for origin, _ in by_remainder[:left]:
        parts[origin] += 1
    return {origin: max(1, parts.get(origin, 0)) for origin, _, _ in wanted}


@dataclass(frozen=True, slots=True)
class Claim:
    """What one account may get. `limit`: slots at most; `is_guest`: not the own user; `is_urgent`: has a job of `URGENT_PRIORITY` or above."""

    account: PeerId
    weight: int
    has_work: bool
    limit: int
    is_guest: bool
    is_urgent: bool


def allot(slots: int, lent: int, reserved: int, claims: Sequence[Claim]) -> dict[PeerId, int]:
    """Slots by account within bounds: each at most its limit, guests together `lent`, those not urgent `slots - reserved`.

    Slot by slot to whoever has least for its weight (Sainte-Laguë), ties to the lower id. Every account whose limit is above 0 gets at
    least 1, as in `divide`, so that with many accounts the sum may be larger than a bound: the tasks then take turns.
    """
    parts = {claim.account: 0 for claim in claims}
    guests, patient = max(0, min(lent, slots)), max(0, slots - reserved)
    heap = [(1.0 / claim.weight, claim.account, claim) for claim in claims if claim.has_work and claim.limit > 0]
    heapq.heapify(heap)
    left = slots
    while heap and left > 0:
        _, account, claim = heapq.heappop(heap)
        waits = claim.is_guest and not claim.is_urgent
        if parts[account] >= claim.limit or (claim.is_guest and guests <= 0) or (waits and patient <= 0):
            continue
        parts[account] += 1
        left -= 1
        guests -= claim.is_guest
        patient -= waits
        heapq.heappush(heap, ((2 * parts[account] + 1) / claim.weight, account, claim))
    return {claim.account: max(min(1, claim.limit), parts[claim.account]) for claim in claims}


def limit_of(slots: int, part_max: float) -> int:
    """Slots that an account may have at once: `part_max` of `slots`, rounded down, but 1 at least where there are any."""
    # A part such as 0.3 of 10 slots is 3, whatever floats make of it.
    return min(slots, max(1, int(slots * part_max + 1e-9)))


def divide_by_account(
    slots: int, accounts: Sequence[tuple[PeerId, Sequence[tuple[PeerId, int, bool]]]]
) -> dict[PeerId, int]:
    """Slots by borrower, from rows of (account, its borrowers as for `divide`).

    What an account gets does not depend on how many borrowers it has; with more of them than its part they take turns.
    """
    rows = [
        (account, max(weight for _, weight, _ in borrowers), any(has_work for _, _, has_work in borrowers))
        for account, borrowers in accounts
    ]
    return among_borrowers(divide(slots, rows), accounts)


def among_borrowers(
    parts: dict[PeerId, int], accounts: Sequence[tuple[PeerId, Sequence[tuple[PeerId, int, bool]]]]
) -> dict[PeerId, int]:
    """Slots by borrower, from those of each account; rows as for `divide_by_account`."""
    divided: dict[PeerId, int] = {}
    for account, borrowers in accounts:
        if len(borrowers) == 1:
            divided[borrowers[0][0]] = parts[account]
        else:
            divided.update(divide(parts[account], borrowers))
    return divided


def worker_batch(task_s: float | None, current: int, waiting: int, workers: int, target_s: float) -> int:
    """Tasks for one idle worker: `target_s` of work by what was learned (`speed.batch_tasks`), but not more than its part.

    `waiting` tasks over `workers` workers that are idle: each gets at most ⌈waiting / workers⌉, so that nobody idles beside a
    worker with a queue.
    """
    return max(1, min(batch_tasks(task_s, current, target_s), -(-waiting // max(workers, 1))))
