"""What a lending peer takes back from guests when its owner lends less: at once what waits, after a grace what runs.

What has begun last goes first: least work is lost. Refuses to know why less is lent (`yielding.py`).
"""

from __future__ import annotations

from p2pcompute.jobs.assigning import Assigning
from p2pcompute.jobs.borrowers import Account, Books
from p2pcompute.jobs.lend_events import Effect, LentChanged, ReturnUnrun


class Evicting:
    """Over the workers and queues of `books`."""

    def __init__(self, books: Books, assigning: Assigning) -> None:
        #: Shared with the rest of the machine.
        self._books = books
        self._assigning = assigning
        #: (when, slots): from then on guests run on no more workers than that; falling slots, rising times.
        self._due: list[tuple[float, int]] = []

    def deadline(self) -> float | None:
        """When the next grace is over."""
        return min((at for at, _ in self._due), default=None)

    def lent_changed(self, event: LentChanged, now: float, out: list[Effect]) -> None:
        """Lend more, or less."""
        before = self._books.guest_slots
        self._books.lent = None if event.slots is None else max(0, event.slots)
        lent = self._books.guest_slots
        # A grace that runs for a bound that has been raised since ends in that.
        self._due = [(at, max(slots, lent)) for at, slots in self._due]
        if lent < before:
            # Grants first: what goes back is not to come again.
            self._assigning.grant(now, out)
            for account in self._guests():
                give_back_waiting(account, out)
            self._due.append((now + max(event.grace_s, 0.0), lent))
        self._forget_needless()

    def go_on(self, now: float, out: list[Effect]) -> None:
        """End what has had its grace, and give back what would wait for slots that nobody lends."""
        while self._due and self._due[0][0] <= now:
            _, slots = self._due.pop(0)
            running = [w for w in self._books.workers.values() if w.rows and not w.leaving and self._books.is_guests(w)]
            running.sort(key=lambda worker: (worker.began_at, worker.worker))
            for worker in running[slots:]:
                worker.is_evicted = True
                self._assigning.retire(worker, out)
        self._forget_needless()
        if not self._books.slots:
            for account in self._books.accounts.values():
                give_back_waiting(account, out)
        elif not self._books.guest_slots:
            for account in self._guests():
                give_back_waiting(account, out)

    def _guests(self) -> list[Account]:
        return [account for account in self._books.accounts.values() if account.is_guest]

    def _forget_needless(self) -> None:
        if self._due:
            busy = self._books.guests_busy()
            self._due = sorted((at, slots) for at, slots in self._due if slots < busy)


def give_back_waiting(account: Account, out: list[Effect]) -> None:
    """Return everything that waits of an account."""
    for borrower in account.borrowers.values():
        for job in borrower.jobs.values():
            if job.queue:
                out.append(ReturnUnrun(borrower.origin, job.job, tuple(job.queue)))
                job.live.difference_update(job.queue)
                job.queue.clear()
