"""Offering jobs to peers: the part of the dispatch machine that decides where a job is open (`openings.py` has the rules)."""

from __future__ import annotations

from p2pcompute.jobs import openings
from p2pcompute.jobs.coordinating import SEAT_FETCH_FACTOR, SEAT_PATIENCE_S, SEATS_FETCHING_MAX
from p2pcompute.jobs.dispatch_events import Effect, OpenAt, Refusal
from p2pcompute.jobs.leases import JobBook
from p2pcompute.jobs.roster import Lender, Roster, candidate
from p2pcompute.jobs.shares import Share, ShareState


class Offering:
    """Opens jobs at peers of `roster`."""

    def __init__(self, roster: Roster) -> None:
        #: Peers, jobs and alarms, shared with the rest of the machine.
        self._roster = roster

    def to_more_peers(self, book: JobBook, now: float, out: list[Effect]) -> None:
        """Offer the job to further peers, as many as it can use."""
        room = self._room(book, now)
        if room == 0:
            return
        placing = book.placing
        free = [
            lender
            for lender in self._roster.lenders.values()
            if lender.peer not in book.shares
            and lender.peer not in placing.unfit
            and lender.has_seat
            and self._may_offer(book, lender)
        ]
        if book.spec.options.health_check:
            free = [lender for lender in free if not lender.facts.is_suspect] or free
        if free:
            rows = [candidate(lender, None, book) for lender in free]
            for peer in placing.order(rows, self._roster.situation(book, now))[:room]:
                lender = self._roster.lenders[peer]
                if self._may_offer(book, lender):
                    self.offer(book, lender, now, out)

    def for_waiting(self, book: JobBook, now: float, out: list[Effect]) -> None:
        """Tasks wait although peers have just been filled: a job that is open at some peers only may need more."""
        if book.waiting and len(book.shares) < len(self._roster.lenders):
            self.to_more_peers(book, now, out)

    def to_peer(self, lender: Lender, now: float, out: list[Effect]) -> None:
        """Offer a peer the jobs that could use it, as far as it has seats."""
        for book in self._roster.running:
            if not lender.has_seat:
                return
            if lender.peer in book.shares or lender.peer in book.placing.unfit or not self._may_offer(book, lender):
                continue
            if self._room(book, now) == 0:
                continue
            if book.placing.strategy.holds_back:
                rows = [candidate(lender, None, book)]
                if not book.placing.order(rows, self._roster.situation(book, now)):
                    continue
            self.offer(book, lender, now, out)

    def offer(self, book: JobBook, lender: Lender, now: float, out: list[Effect]) -> None:
        """Offer a job to a peer, for the first time or again."""
        job, peer = book.spec.job, lender.peer
        share = book.shares.get(peer)
        if share is None:
            share = book.shares[peer] = lender.shares[job] = Share(book, peer, lender.rtt_s, now)
        share.state = ShareState.OPENING
        share.refusal = None
        share.opened_at = now
        book.stalled = False
        patience_s = self._seat_patience_s(book, lender) if share.is_seat else openings.PATIENCE_S
        self._roster.timers.set(("share", job, peer), now + patience_s)
        out.append(OpenAt(peer, job))

    def note_refusal(self, share: Share, reason: str, text: str, now: float) -> None:
        """A peer refused; where the refusal passes with time, the job is offered again later."""
        assert not share.out
        share.state = ShareState.REFUSED
        share.refusal = Refusal(share.peer, reason, text)
        share.refusals += 1
        pause_s = openings.refusal_pause_s(reason, share.refusals)
        alarm = ("share", share.job.spec.job, share.peer)
        self._roster.timers.clear(alarm)
        if pause_s is not None:
            self._roster.timers.set(alarm, now + pause_s)

    def offer_again(self, share: Share, now: float, out: list[Effect]) -> None:
        """The pause after a refusal is over."""
        lender = self._roster.lenders[share.peer]
        if lender.has_seat:
            self.offer(share.job, lender, now, out)
        else:
            self._roster.timers.set(("share", share.job.spec.job, share.peer), now + openings.PATIENCE_S)

    def nobody_left(self, book: JobBook) -> bool:
        """Whether no usable peer has the job, has been offered it, or could be."""
        if any(share.state is not ShareState.REFUSED for share in book.shares.values()):
            return False
        return all(
            peer in book.shares or peer in book.placing.unfit or not book.admits(peer) for peer in self._roster.lenders
        )

    @staticmethod
    def _may_offer(book: JobBook, lender: Lender) -> bool:
        """Whether the job may be opened at a peer now: a seat is told what all tasks need, which is known once there are some.

        Where they need much, few seats fetch it at a time: the first have it sooner, and the last no later.
        """
        if not book.admits(lender.peer):
            return False
        if not lender.is_seat:
            return True
        opening = sum(share.is_seat and share.state is ShareState.OPENING for share in book.shares.values())
        return book.waiting > 0 and (not book.placing.shared_bytes or opening < SEATS_FETCHING_MAX)

    def _seat_patience_s(self, book: JobBook, lender: Lender) -> float:
        """What the tasks share travels to all seats at a time, over links that may be slower than they were when they were measured."""
        fetch_s = candidate(lender, None, book).fetch_s
        return SEAT_PATIENCE_S + SEAT_FETCH_FACTOR * len(self._roster.regions) * fetch_s

    def _room(self, book: JobBook, now: float) -> int | None:
        """Further peers that the job can use; None for any number."""
        wanted = openings.openings_wanted(book)
        if wanted is None:
            return None
        open_ = sum(self._roster.may_run(share, now) for share in book.shares.values())
        return max(0, wanted - open_)
