"""What the parts of the dispatch machine share: the usable peers, the running jobs, and the alarms.

A table with look-ups and invariants; what to do with it is decided in `offering.py`, `filling.py` and `dispatch.py`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from p2pcompute.jobs.dispatch_events import PeerUsable, Refusal
from p2pcompute.jobs.leases import JobBook
from p2pcompute.jobs.openings import counts_as_open
from p2pcompute.jobs.plan import Candidate, Plan
from p2pcompute.jobs.shares import Share, ShareState
from p2pcompute.jobs.timers import Timers
from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, PeerId

#: What an alarm is for: its kind ("job", "late", "share"), the job, and the peer where it is about one.
Alarm = tuple[str, JobId, PeerId | None]


class Lender:
    """A peer that may compute for this origin."""

    __slots__ = ("granted", "local", "peer", "rank", "rtt_s", "shares")

    def __init__(self, event: PeerUsable) -> None:
        #: Its id.
        self.peer = event.peer
        #: Round trip in seconds.
        self.rtt_s = event.rtt_s
        #: Whether it is this peer itself.
        self.local = event.local
        #: Its capability, 0 to 100.
        self.rank = event.rank
        #: Slots that it granted us, over all jobs, from 0 up; None before the first grant.
        self.granted: int | None = None
        #: What running jobs have to do with it; the same objects as in `JobBook.shares`.
        self.shares: dict[JobId, Share] = {}

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

    def __init__(self, plan: Plan) -> None:
        #: Orders the peers of a job.
        self.plan = plan
        #: Usable peers.
        self.lenders: dict[PeerId, Lender] = {}
        #: Running jobs in the order in which they are served (`JobBook.order`).
        self.running: list[JobBook] = []
        #: Jobs with tasks in their queues: a part of the running ones.
        self.waiting: dict[JobId, JobBook] = {}
        #: Alarms: job time-outs, late leases, pauses.
        self.timers: Timers[Alarm] = Timers()

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
        self.running.remove(book)
        self.waiting.pop(job, None)
        return freed

    def share(self, peer: PeerId, job: JobId) -> Share | None:
        """What a running job and a usable peer have to do with each other."""
        lender = self.lenders.get(peer)
        return lender.shares.get(job) if lender is not None else None

    def may_run(self, share: Share, now: float) -> bool:
        """Whether a task of the job runs at the peer of `share` now, or soon may (`openings.counts_as_open`)."""
        lender = self.lenders[share.peer]
        return counts_as_open(share, None if lender.granted is None else lender.free_slots, now)

    def takes_more(self, share: Share, now: float) -> bool:
        """Whether a task that waits for the peer of `share` will get its turn there, as far as can be known."""
        if share.state is ShareState.READY and self.lenders[share.peer].granted is not None:
            return self.slots_at(share.peer) > 0
        return self.may_run(share, now)

    def slots_at(self, peer: PeerId) -> int:
        """Slots that are ours at `peer` now."""
        return self.lenders[peer].slots

    def slots_of(self, book: JobBook) -> int:
        """Slots of all peers that have the job."""
        return sum(self.slots_at(share.peer) for share in book.shares.values() if share.state is ShareState.READY)

    def planned(self, shares: Iterable[Share]) -> list[Lender]:
        """The peers of `shares` that have free slots, as the plan orders them."""
        free = [share for share in shares if self.lenders[share.peer].free_slots > 0]
        if len(free) < 2:
            return [self.lenders[share.peer] for share in free]
        order = self.plan([candidate(self.lenders[share.peer], share) for share in free])
        return [self.lenders[peer] for peer in order]

    def message(self, book: JobBook) -> str:
        """Why nobody runs the job at present, in words; empty where somebody may."""
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


def candidate(lender: Lender, share: Share | None) -> Candidate:
    """What a plan sees of a peer."""
    task_s = share.speed.task_s if share is not None else None
    # A job that is open but was sent nothing yet will take a slot: else a hundred small jobs all went to the best peer.
    taken = max(lender.slots - lender.free_slots, lender.seats_taken if share is None else 0.0)
    load = taken / max(lender.slots, 1)
    return Candidate(lender.peer, lender.rtt_s, lender.local, lender.rank, task_s, load)


def refusals(book: JobBook) -> tuple[Refusal, ...]:
    """Who refused the job and does not run it now, by peer id."""
    return tuple(share.refusal for _, share in sorted(book.shares.items()) if share.refusal is not None)
