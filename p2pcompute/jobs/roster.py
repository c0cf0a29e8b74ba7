"""What the parts of the dispatch machine share: the usable peers, the running jobs, and the alarms.

A table with look-ups and invariants; what to do with it is decided in `offering.py`, `filling.py` and `dispatch.py`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import TYPE_CHECKING

from p2pcompute.jobs.budget import task_cost
from p2pcompute.jobs.coordinating import Region
from p2pcompute.jobs.dispatch_events import Effect, Located, Mapped, PeerUsable, Refusal, Regioned
from p2pcompute.jobs.leases import JobBook
from p2pcompute.jobs.openings import counts_as_open
from p2pcompute.jobs.plan import TASK_UNKNOWN_S, Candidate
from p2pcompute.jobs.shares import Share, ShareState
from p2pcompute.jobs.strategies import Situation
from p2pcompute.jobs.timers import Timers
from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, PeerId, is_seat

if TYPE_CHECKING:
    from p2pcompute.topology.affinity import Adjacency

#: What an alarm is for: its kind ("job", "late", "share", "unmet", "balance", "seat"), the job, and the peer where it is about one.
Alarm = tuple[str, JobId, PeerId | None]

#: Seconds between two looks at the loads of a job's peers: of what can be moved, hardly anything is done sooner.
LOADS_INTERVAL_S = 0.1
#: Taken for the throughput to a peer while none was measured.
BANDWIDTH_UNKNOWN_MBPS = 100.0


class Lender:
    """A peer that may compute for this origin."""

    __slots__ = (
        "died",
        "done",
        "empty_since",
        "facts",
        "granted",
        "heard_at",
        "is_seat",
        "local",
        "peer",
        "rank",
        "rtt_s",
        "shares",
    )

    def __init__(self, event: PeerUsable) -> None:
        #: Its id.
        self.peer = event.peer
        #: Round trip in seconds.
        self.rtt_s = event.rtt_s
        #: Whether it is the seat of a community.
        self.is_seat = is_seat(event.peer)
        #: Whether it is this peer itself.
        self.local = event.local
        #: Its capability, 0 to 100.
        self.rank = event.rank
        #: What it says about itself, and what is believed about it.
        self.facts = event.facts
        #: Attempts there that ended by themselves, and that died; since it became usable.
        self.done = 0
        self.died = 0
        #: When it last reported anything to us; below every time before that.
        self.heard_at = float("-inf")
        #: Slots that it granted us, over all jobs, from 0 up; None before the first grant.
        self.granted: int | None = None
        #: When it last went from some slots to none; below every time before that.
        self.empty_since = float("-inf")
        #: What running jobs have to do with it; the same objects as in `JobBook.shares`.
        self.shares: dict[JobId, Share] = {}

    @property
    def success(self) -> float:
        """Share of attempts that did not die there, 1 before the first."""
        return self.done / (self.done + self.died) if self.died else 1.0

    @property
    def slots(self) -> int:
        """Slots that are ours now."""
        return self.granted or 0

    @property
    def free_slots(self) -> float:
        """Slots that no lease takes; below 0 after a grant shrank."""
        return self.slots - sum(share.load for share in self.shares.values() if share.out)

    @property
    def held(self) -> int:
        """Tasks of ours that it holds."""
        return sum(share.out for share in self.shares.values())

    @property
    def seats_taken(self) -> int:
        """Jobs of ours that are open there, or offered."""
        return sum(share.state is not ShareState.REFUSED for share in self.shares.values())

    @property
    def has_seat(self) -> bool:
        """Whether one more job may be opened there."""
        return self.seats_taken < limits.JOBS_PER_ORIGIN_MAX


class Roster:
    """Usable peers, running jobs, alarms."""

    def __init__(self) -> None:
        #: Usable peers.
        self.lenders: dict[PeerId, Lender] = {}
        #: Running jobs in the order in which they are served (`JobBook.order`).
        self.running: list[JobBook] = []
        #: Jobs with tasks in their queues: a part of the running ones.
        self.waiting: dict[JobId, JobBook] = {}
        #: Alarms: job time-outs, late leases, pauses.
        self.timers: Timers[Alarm] = Timers()
        #: The community of this peer; None where no topology is known.
        self.home: int | None = None
        #: Communities other than this peer's own that have a coordinator.
        self.regions: tuple[Region, ...] = ()
        #: The network's links; None where no topology is known.
        self.map: Adjacency | None = None

    def enter(self, book: JobBook) -> None:
        """A job runs."""
        bisect.insort(self.running, book, key=JobBook.order)

    def leave(self, book: JobBook) -> list[Lender]:
        """A job does not run any more: drop its alarms and shares. The peers that it was open at, by id."""
        job = book.spec.job
        freed: list[Lender] = []
        for peer in sorted(book.shares):
            lender = self.lenders.get(peer)
            if lender is not None:
                del lender.shares[job]
                freed.append(lender)
            self.timers.clear(("share", job, peer))
        self.timers.clear(("job", job, None))
        self.timers.clear(("late", job, None))
        self.timers.clear(("unmet", job, None))
        self.timers.clear(("balance", job, None))
        for peer in book.shares:
            self.timers.clear(("seat", job, peer))
        self.running.remove(book)
        self.waiting.pop(job, None)
        return freed

    def regioned(self, event: Regioned, now: float, out: list[Effect]) -> None:
        """Which communities there are; running jobs keep those that they began with."""
        self.regions = event.regions

    def seats_usable(self) -> list[PeerId]:
        """Seats that can be reached."""
        return [peer for peer, lender in self.lenders.items() if lender.is_seat]

    def is_open_at(self, share: Share) -> bool:
        """Whether tasks of the job could run at the peer of `share` now."""
        return share.state is ShareState.READY and not share.paused and self.slots_at(share.peer) > 0

    def located(self, event: Located, now: float, out: list[Effect]) -> None:
        """Where this peer is."""
        self.home = event.community

    def mapped(self, event: Mapped, now: float, out: list[Effect]) -> None:
        """What links there are."""
        self.map = event.adjacency

    def share(self, peer: PeerId, job: JobId) -> Share | None:
        """What a running job and a usable peer have to do with each other."""
        lender = self.lenders.get(peer)
        return lender.shares.get(job) if lender is not None else None

    def watch_loads(self, share: Share, now: float) -> None:
        """Look at the loads of the job before long where the peer of `share` holds more than it can run."""
        alarm: Alarm = ("balance", share.job.spec.job, None)
        if share.out > self.slots_at(share.peer) and alarm not in self.timers:
            self.timers.set(alarm, now + LOADS_INTERVAL_S)

    def may_run(self, share: Share, now: float) -> bool:
        """Whether a task of the job runs at the peer of `share` now, or soon may (`openings.counts_as_open`)."""
        lender = self.lenders[share.peer]
        if not counts_as_open(share, None if lender.granted is None else lender.free_slots, now):
            return False
        return share.out > 0 or not self.is_barred(share, now)

    def takes_more(self, share: Share, now: float) -> bool:
        """Whether a task that waits for the peer of `share` will get its turn there, as far as can be known."""
        if share.state is ShareState.READY and self.lenders[share.peer].granted is not None:
            return self.slots_at(share.peer) > 0 and not self.is_barred(share, now)
        return self.may_run(share, now)

    def is_hungry(self, share: Share) -> bool:
        """Whether a task could be sent there now, or once the peer has answered."""
        return share.state is ShareState.OPENING or (not share.paused and self.lenders[share.peer].free_slots > 0)

    def slots_at(self, peer: PeerId) -> int:
        """Slots that are ours at `peer` now."""
        return self.lenders[peer].slots

    def slots_of(self, book: JobBook) -> int:
        """Slots of all peers that have the job."""
        return sum(self.slots_at(share.peer) for share in book.shares.values() if share.state is ShareState.READY)

    def planned(self, book: JobBook, shares: Iterable[Share], now: float) -> list[Lender]:
        """The peers of `shares`, all of `book`, that have free slots, as the job's strategy orders them."""
        free = [share for share in shares if self.lenders[share.peer].free_slots > 0]
        if len(free) < 2:
            return [self.lenders[share.peer] for share in free]
        rows = [candidate(self.lenders[share.peer], share, book) for share in free]
        return [self.lenders[peer] for peer in book.placing.order(rows, self.situation(book, now))]

    def situation(self, book: JobBook, now: float) -> Situation:
        """The job as strategies see it."""
        options, placing = book.spec.options, book.placing
        task_s = book.speed.task_s if book.speed.task_s is not None else options.expected_task_s
        spent = placing.purse.spent if placing.purse is not None else 0.0
        return Situation(
            now,
            options,
            task_s,
            book.waiting,
            book.left,
            spent,
            self.home,
            task_bytes(book),
            book.argument_bytes / max(len(book.known), 1),
            placing.function,
        )

    # --- who may not ------------------------------------------------------------------------------------------------------

    def is_barred(self, share: Share, now: float) -> bool:
        """Whether the job sends nothing to the peer of `share` at present, though it is open there."""
        lender = self.lenders[share.peer]
        if not share.is_gated and not lender.facts.is_suspect:
            return False
        return (
            share.peer in share.job.placing.unfit
            or self._is_suspect_among_others(lender, share.job)
            or self.tasks_payable(lender, share, share.job, now) < 1
            or self._is_held_back(share, now)
        )

    def fit_lenders(self, book: JobBook) -> list[Lender]:
        """Usable peers that meet what the job requires and have not refused it."""
        return [
            lender
            for peer, lender in self.lenders.items()
            if peer not in book.placing.unfit
            and book.admits(peer)
            and ((share := book.shares.get(peer)) is None or share.state is not ShareState.REFUSED)
        ]

    def tasks_payable(self, lender: Lender, share: Share | None, book: JobBook, now: float) -> int:
        """How many more tasks of the job its budget lets go to a peer; any number where it has none."""
        purse = book.placing.purse
        if purse is None:
            return limits.TASKS_QUEUED_PER_ORIGIN_MAX
        job = self.situation(book, now)
        cheapest = min((each.facts.cost_per_hour for each in self.fit_lenders(book)), default=0.0)
        if not purse.spent and not book.leases:
            whole = book.placing.whole_cost(cheapest, job)
            if whole is not None and whole > purse.max_cost:
                return 0  # nothing has begun, and nothing will that cannot be paid to its end
        purse.committed = 0.0
        for each in book.shares.values():
            if each.out:
                task_s = each.speed.task_s if each.speed.task_s is not None else job.task_s
                price = self.lenders[each.peer].facts.cost_per_hour
                purse.committed += each.out * task_cost(price, TASK_UNKNOWN_S if task_s is None else task_s)
        return book.placing.tasks_payable(candidate(lender, share, book), cheapest, job)

    def left_out_by_strategy(self, book: JobBook, now: float) -> bool:
        """Whether the strategy lets nobody have work of those that could."""
        fit = self.fit_lenders(book)
        rows = [candidate(each, book.shares.get(each.peer), book) for each in fit]
        return bool(rows) and not book.placing.order(rows, self.situation(book, now))

    def _is_suspect_among_others(self, lender: Lender, book: JobBook) -> bool:
        if not lender.facts.is_suspect or not book.spec.options.health_check:
            return False
        return any(
            share.state is ShareState.READY
            and share.peer not in book.placing.unfit
            and self.slots_at(share.peer) > 0
            and not self.lenders[share.peer].facts.is_suspect
            for share in book.shares.values()
        )

    def _is_held_back(self, share: Share, now: float) -> bool:
        book = share.job
        if not book.placing.strategy.holds_back:
            return False
        rows = [
            candidate(self.lenders[each.peer], each, book)
            for each in book.shares.values()
            if each.state is not ShareState.REFUSED and each.peer not in book.placing.unfit
        ]
        return share.peer not in book.placing.order(rows, self.situation(book, now))

    def message(self, book: JobBook) -> str:
        """Why nobody runs the job at present, in words; empty where somebody may."""
        if book.placing.unmet:
            return book.placing.unmet
        if any(self.slots_at(share.peer) for share in book.shares.values() if share.state is not ShareState.REFUSED):
            return ""
        if not self.lenders:
            return "no peer that may compute for this one is linked: start one, or wait"
        refused = refusals(book)
        if refused and len(refused) == len(book.shares):
            return "refused by every peer so far: " + "; ".join(f"{row.reason}: {row.text}" for row in refused[:3])
        return f"waiting for slots at {len(book.shares) - len(refused)} peers"

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself."""
        assert sorted(self.running, key=JobBook.order) == self.running
        assert set(self.waiting) == {book.spec.job for book in self.running if book.waiting}
        assert not any(book.is_complete for book in self.running), "a finished job runs on"
        for book in self.running:
            for peer, share in book.shares.items():
                assert self.lenders[peer].shares[book.spec.job] is share
        for lender in self.lenders.values():
            assert lender.held <= limits.TASKS_QUEUED_PER_ORIGIN_MAX
            for share in lender.shares.values():
                assert share.job in self.running
                assert share.job.shares[lender.peer] is share


def task_bytes(book: JobBook) -> float:
    """Mean bytes of a task's arguments that travel as blobs."""
    return book.placing.blob_bytes / max(len(book.known), 1) if book.placing.blob_bytes else 0.0


def candidate(lender: Lender, share: Share | None, book: JobBook) -> Candidate:
    """What a strategy sees of a peer."""
    task_s = share.speed.task_s if share is not None else None
    # A job that is open but was sent nothing yet will take a slot: else a hundred small jobs all went to the best peer.
    taken = max(lender.slots - lender.free_slots, lender.seats_taken if share is None else 0.0)
    load = taken / max(lender.slots, 1)
    fetch_s = 0.0
    if (book.placing.blob_bytes or book.placing.shared_bytes) and not lender.local:
        # This peer holds all of it: to others it must travel, what tasks share once.
        missing = task_bytes(book) + max(0, book.placing.shared_bytes - book.placing.held_bytes.get(lender.peer, 0))
        fetch_s = missing * 8e-6 / (lender.facts.bandwidth_mbps or BANDWIDTH_UNKNOWN_MBPS)
    return Candidate(
        lender.peer,
        lender.rtt_s,
        lender.local,
        lender.rank,
        task_s,
        load,
        lender.facts,
        share.out if share is not None and len(lender.shares) == 1 else lender.held,
        share.turn if share is not None else 0,
        lender.success,
        fetch_s,
    )


def refusals(book: JobBook) -> tuple[Refusal, ...]:
    """Who refused the job and does not run it now, by peer id; seats do not count, behind each of which are peers."""
    shares = [share for _, share in sorted(book.shares.items()) if not share.is_seat]
    return tuple(share.refusal for share in shares if share.refusal is not None)
