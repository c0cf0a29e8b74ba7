"""Jobs that span communities: which of them give other communities their share as a whole, who gets it, and how much at a time.

A community's *seat* is a lender to the dispatch machine: its slots are those of the whole community, and behind it the coordinator,
the community's key node, runs the same machine on what it is given (`node/coordinator.py`). Rules:

- A job is given to seats where any peer may run it and every slot of the network has a task of it. Whoever asks for particular peers, by
  requirements, money, preferences or a strategy, places each task itself.
- It is offered to them once more waits than others take up. What all tasks share a seat fetches before it accepts, few seats at a time.
- A peer that a seat stands for gets nothing of the job directly. Seats that go or refuse are replaced by their stand-ins; where
  none is left, the peers of the community are lenders like others.
- A seat that has reported nothing yet gets two tasks a slot, or fewer where their arguments are large: how long its tasks take there is not known, nor when the data that they
  need has come. Then it gets three tenths of what would be fair of all that waits, in one message, and again when that runs low: few large shares
  first, and small ones at the end, so that a community which is slower than it was thought to be holds up little (factoring: Hummel,
  Schonberg and Flynn, 1992).
- What a task came to may stay with the coordinator, merged with others (`Outcome.MERGED`): it is settled when a partial aggregate that
  names it has come. A seat that goes takes nothing with it but time.

Refuses to know: how communities are found, what a coordinator sends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import Aggregation, JobSpec
from p2pcompute.model.placement import STRATEGY_DEFAULT, Coordination

if TYPE_CHECKING:
    from p2pcompute.jobs.leases import JobBook
    from p2pcompute.jobs.roster import Lender, Roster
    from p2pcompute.jobs.shares import Share

#: Results of these can be merged by a coordinator; of CONCAT and CUSTOM every single one is needed, and NONE has no merging.
MERGEABLE = frozenset({Aggregation.SUM, Aggregation.AVERAGE, Aggregation.MAX, Aggregation.MIN, Aggregation.REDUCE})
#: What weights change: a coordinator, which does not know them, merges none of these where there are any.
WEIGHTED = frozenset({Aggregation.SUM, Aggregation.AVERAGE})
#: A seat that has not answered an offer for so long is replaced; a large program over a slow link takes seconds.
SEAT_PATIENCE_S = 30.0
#: And so many times what it takes to bring the data that tasks share to all seats.
SEAT_FETCH_FACTOR = 2.0
#: Seats that fetch the data which tasks share at the same time: the way out of a site is narrower than what it leads to.
SEATS_FETCHING_MAX = 2
#: Tasks a slot that a seat is given before it has reported anything.
FIRST_ROUNDS = 2
#: But all seats together no more than so many bytes of arguments: how fast those get there is not known either, and what is on its
#: way somewhere cannot be run elsewhere.
FIRST_BYTES = 6 << 20
#: A seat may turn out to do so many times what it did: what it was given may have been too little.
RATE_GROWTH = 2.0
#: A seat that has work, or owes a partial aggregate, and has said nothing for so long, is replaced; one that lives says so five times.
SILENCE_PATIENCE_S = 10.0
#: A seat without any slots is replaced after so long: its community is gone, or was never there.
EMPTY_PATIENCE_S = 30.0
#: A seat that lives and reports nothing is replaced after so many times what its tasks should take, and not before so long. What it has
#: merged it hands over sooner than that, so one very long task costs no more than itself.
STUCK_FACTOR, STUCK_MIN_S = 16.0, 120.0
#: Part of the fair share that a seat is given at once.
AT_ONCE = 0.3


@dataclass(frozen=True, slots=True)
class Region:
    """A community that is not this peer's own. `members`: its lenders, `limits.SHARE_MEMBERS_MAX` at most; `seats`: of the peers that may
    coordinate it, best first; `slots`: of its members together."""

    members: frozenset[PeerId]
    seats: tuple[PeerId, ...]
    slots: int


class Seating:
    """Which seats stand for which peers in one job. With no regions it is empty and costs nothing."""

    __slots__ = ("_region_of", "_tried", "covered")

    def __init__(self) -> None:
        #: Region by the seat that stands for it now.
        self._region_of: dict[PeerId, Region] = {}
        #: Seats that were given up in this job.
        self._tried: set[PeerId] = set()
        #: Peers that a seat stands for.
        self.covered: frozenset[PeerId] = frozenset()

    @property
    def seats(self) -> tuple[PeerId, ...]:
        """The seats that stand for a region now."""
        return tuple(self._region_of)

    def holds(self, seat: PeerId) -> bool:
        """Whether `seat` stands for a region in this job."""
        return seat in self._region_of

    def take(self, regions: Iterable[Region], usable: Iterable[PeerId]) -> None:
        """Give each region the best of its seats that are among `usable`; those without one stay as they are."""
        known = frozenset(usable)
        for region in regions:
            seat = next((seat for seat in region.seats if seat in known and seat not in self._tried), None)
            if seat is not None:
                self._region_of[seat] = region
        self._count()

    def give_up(self, seat: PeerId, usable: Iterable[PeerId]) -> bool:
        """`seat` is gone or does not want: its stand-in follows, else its peers are free. Whether it stood for a region."""
        region = self._region_of.pop(seat, None)
        if region is None:
            return False
        self._tried.add(seat)
        self.take((region,), usable)
        self._count()
        return True

    def clear(self) -> None:
        """The job has ended."""
        self._region_of.clear()
        self._count()

    def _count(self) -> None:
        self.covered = frozenset(peer for region in self._region_of.values() for peer in region.members)


def is_coordinated(spec: JobSpec, is_gated: bool, roster: Roster) -> bool:
    """Whether a job of this kind is given to seats at all. `is_gated`: single peers may be barred from it."""
    options = spec.options
    if options.coordination is Coordination.OFF or not roster.regions or is_gated:
        return False
    if options.strategy != STRATEGY_DEFAULT or options.balancer is not None or not options.preferences.is_empty:
        return False
    return spec.expected_tasks is None or spec.expected_tasks >= slots_of_network(roster)


def slots_of_network(roster: Roster) -> int:
    """Slots of all lenders that are known, and of those that only their coordinator reaches."""
    covered: set[PeerId] = set()
    total = 0
    for region in roster.regions:
        total += region.slots
        covered |= region.members
    return total + sum(
        lender.facts.slots for peer, lender in roster.lenders.items() if not lender.is_seat and peer not in covered
    )


def merges(spec: JobSpec) -> bool:
    """Whether coordinators may merge results of the job."""
    if spec.is_weighted and spec.aggregation in WEIGHTED:
        return False
    return spec.aggregation in MERGEABLE and spec.options.coordination is not Coordination.RELAY


def share_size(waiting: int, capacity: float, capacity_of_all: float) -> int:
    """Tasks for a seat at once, of `waiting` ones. Capacities in tasks a second, or any other unit that both have."""
    if capacity_of_all <= 0.0:
        return 0
    return math.ceil(waiting * AT_ONCE * min(capacity / capacity_of_all, 1.0))


def is_unknown(share: Share, slots: int, now: float) -> bool:
    """Whether little is known of what a seat does: how long a task takes there, or how fast large arguments get there."""
    if share.speed.task_s is None:
        return True
    return share.rate(now) is None and _has_large_arguments(share.job, slots)


def is_narrow(share: Share, slots: int, capacity: float) -> bool:
    """Whether a seat with so many slots does fewer tasks a second, `capacity`, than those could."""
    return share.speed.task_s is not None and capacity < slots / share.speed.task_s


def _has_large_arguments(book: JobBook, slots: int) -> bool:
    """Whether the link to a seat with so many slots may be what its tasks wait for."""
    return first_tasks(book, slots) < FIRST_ROUNDS * slots


def first_tasks(book: JobBook, slots: int) -> int:
    """Tasks that a seat with so many slots may hold before it has reported: what they need may still be on its way there."""
    task_bytes = book.argument_bytes / max(len(book.known), 1)
    seats = sum(share.is_seat for share in book.shares.values())
    fitting = FIRST_BYTES / max(seats, 1) / task_bytes if task_bytes > 0.0 else float("inf")
    return max(1, int(min(FIRST_ROUNDS * slots, fitting)))


def why_replaced(share: Share, lender: Lender, now: float) -> str:
    """Why a seat that was heard of too little is replaced, in words; empty: it goes on. `share.owes_since` is up to date."""
    if not share.out and share.owes_since is None:
        empty_s = now - max(share.opened_at, lender.empty_since)
        return (
            f"its community had no slots for {empty_s:.0f} s"
            if not lender.slots and empty_s >= EMPTY_PATIENCE_S
            else ""
        )
    silent_s = now - max(lender.heard_at, share.began_at)
    if silent_s >= SILENCE_PATIENCE_S:
        return f"it has work, and nothing was heard of it for {silent_s:.0f} s"
    if not lender.slots and now - max(share.opened_at, lender.empty_since) >= EMPTY_PATIENCE_S:
        return f"its community has lost its slots for {EMPTY_PATIENCE_S:g} s"
    if share.owes_since is not None:
        # To merge takes less than to compute what is merged.
        owed_s = now - share.owes_since
        late = owed_s >= max(STUCK_MIN_S, share.owes_since - share.opened_at)
        return f"it has owed what it merged for {owed_s:.0f} s" if late else ""
    task_s = share.speed.task_s if share.speed.task_s is not None else share.job.speed.task_s
    if task_s is None:
        return ""
    quiet_s = now - max(share.reported_at, share.began_at)
    due_s = share.rtt_s + task_s * math.ceil(share.out / max(lender.slots, 1))
    return f"it reported nothing for {quiet_s:.0f} s" if quiet_s >= max(STUCK_MIN_S, STUCK_FACTOR * due_s) else ""


def capacities(book: JobBook, roster: Roster, now: float) -> dict[PeerId, float]:
    """Tasks a second at each peer where the job is open, by what was learned; slots where nothing was.

    A seat does not do more than it has shown: arguments and results may pass the link to it more slowly than its slots take them up.
    """
    typical_s = book.speed.task_s
    found: dict[PeerId, float] = {}
    for peer, share in book.shares.items():
        if not roster.is_open_at(share):
            continue
        task_s = share.speed.task_s if share.speed.task_s is not None else typical_s
        found[peer] = roster.lenders[peer].slots / (task_s or 1.0)
        # What is merged there, and comes for the most part from there, is bound by slots alone, which say sooner what a seat can do.
        may_bind = share.is_seat and (not book.merges or _has_large_arguments(book, roster.lenders[peer].slots))
        rate = share.rate(now) if may_bind else None
        if rate is not None:
            found[peer] = min(found[peer], RATE_GROWTH * rate)
    return found
