"""The books of a lending peer: origins with their jobs and queues, their accounts, and workers with what they have in hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pcompute.jobs.fairness import ACTIVE_S, URGENT_PRIORITY, limit_of, weight_of
from p2pcompute.jobs.lend_events import Row
from p2pcompute.jobs.speed import Speed
from p2pcompute.model.ids import JobId, PeerId, ProgramId


@dataclass(frozen=True, slots=True)
class Binding:
    """Whom a worker serves, for its whole life: one origin, one program, one limit of memory."""

    origin: PeerId
    program: ProgramId
    memory_bytes: int | None


@dataclass(slots=True)
class BorrowedJob:
    """One job of one origin. Attributes as in `lend_events.OriginOpened`."""

    job: JobId
    binding: Binding
    priority: int
    #: Number of the job at this peer; orders by age.
    serial: int
    #: Rows that wait for a worker, oldest first.
    queue: deque[Row] = field(default_factory=deque)
    #: Every row that waits or runs and is still wanted: a row that comes twice is passed over.
    live: set[Row] = field(default_factory=set)
    #: Seconds a task takes.
    speed: Speed = field(default_factory=Speed)
    #: Size of the last batch to a worker.
    batch: int = 1
    #: Workers that run rows of it now.
    busy: int = 0
    #: Whether it was closed or refused; another job of the same id may be open then.
    closed: bool = False
    #: Seconds of work, since it was opened; begins where the least served of its equals is.
    served_s: float = 0.0


class Account:
    """In whose name work is done: an origin with all that is borrowed for it, by itself and by coordinators."""

    def __init__(self, account: PeerId, served: float, *, is_guest: bool = True) -> None:
        #: Id of the origin.
        self.account = account
        #: Whether it is somebody else than the own user.
        self.is_guest = is_guest
        #: The part of the lent slots that it may have at once, above 0 to 1.
        self.part_max = 1.0
        #: Who borrows for it; never empty once it is in the books.
        self.borrowers: dict[PeerId, Borrower] = {}
        #: Seconds of work over weight, since the start; new accounts begin where the least served one is.
        self.served = served

    @property
    def weight(self) -> int:
        """What its foremost job makes it worth, whoever borrows for it."""
        return max(borrower.weight for borrower in self.borrowers.values())

    @property
    def busy(self) -> int:
        """Workers that run something for it now."""
        return sum(borrower.busy for borrower in self.borrowers.values())

    @property
    def queued(self) -> int:
        """Rows that wait, over all its borrowers."""
        return sum(borrower.queued for borrower in self.borrowers.values())

    @property
    def jobs(self) -> int:
        """Open jobs, over all its borrowers."""
        return sum(len(borrower.jobs) for borrower in self.borrowers.values())


class Borrower:
    """One origin that has jobs open here, or what one coordinator borrows for an origin."""

    def __init__(self, origin: PeerId, account: Account, now: float, served: float) -> None:
        #: Its id.
        self.origin = origin
        #: In whose name it borrows.
        self.account = account
        #: Its open jobs.
        self.jobs: dict[JobId, BorrowedJob] = {}
        #: Slots that it was told it has; None before the first grant.
        self.granted: int | None = None
        #: Workers of its own that run something now.
        self.busy = 0
        #: Seconds of work over weight, since the start; begins where the least served one of its account is.
        self.served = served
        #: When it last had something waiting or running, or opened a job.
        self.active_at = now

    @property
    def weight(self) -> int:
        """What its foremost job makes it worth; 1 without jobs."""
        return max((weight_of(job.priority) for job in self.jobs.values()), default=1)

    @property
    def queued(self) -> int:
        """Rows that wait, over all its jobs."""
        return sum(len(job.queue) for job in self.jobs.values())

    @property
    def turn(self) -> tuple[float, float, float, float, PeerId]:
        """Orders borrowers by who is next: by slots in use and time used of the account, then by its own."""
        account = self.account
        if len(account.borrowers) == 1:
            # One sum and one maximum less where nobody shares the account.
            return (self.busy / self.weight, account.served, 0.0, 0.0, self.origin)
        return (account.busy / account.weight, account.served, self.busy / self.weight, self.served, self.origin)

    def charge(self, used_s: float) -> None:
        """Note so many seconds of work, also on its account."""
        charged = used_s / self.weight
        self.served += charged
        account = self.account
        account.served += charged if len(account.borrowers) == 1 else used_s / account.weight

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return self.busy > 0 or any(job.queue for job in self.jobs.values())

    def is_active(self, now: float) -> bool:
        """Whether it keeps its full part of the slots."""
        return self.has_work or now < self.active_at + ACTIVE_S

    def next_jobs(self) -> list[BorrowedJob]:
        """Its jobs with waiting rows, in the order in which they are served: by priority, the least served, then the oldest."""
        waiting = [job for job in self.jobs.values() if job.queue]
        if len(waiting) > 1:
            waiting.sort(key=lambda job: (-job.priority, job.busy, job.served_s, job.serial))
        return waiting

    def least_served_s(self, priority: int) -> float:
        """Where a new job of this priority begins."""
        return min((job.served_s for job in self.jobs.values() if job.priority == priority), default=0.0)


class Worker:
    """One worker process."""

    def __init__(self, worker: int, binding: Binding, now: float) -> None:
        #: Its number, from the shell.
        self.worker = worker
        #: Whom it serves.
        self.binding = binding
        #: Whether its program is loaded.
        self.ready = False
        #: Whether it was told to go, or its program failed; it gets nothing more.
        self.leaving = False
        #: Job of the rows in its hands, which may have been closed since; None while idle.
        self.job: BorrowedJob | None = None
        #: Rows in its hands.
        self.rows: dict[Row, None] = {}
        #: Seconds of work that it has done.
        self.tenure_s = 0.0
        #: When it was given what it has in hand.
        self.began_at = now
        #: Whether it was ended to make room for the owner: what it had in hand goes back.
        self.is_evicted = False
        #: Since when it is idle.
        self.idle_since = now

    @property
    def is_idle(self) -> bool:
        """Whether it may be given rows, or be replaced."""
        return self.ready and not self.leaving and not self.rows


class Books:
    """Everything that a lending peer knows about its origins and workers."""

    def __init__(self, slots: int, own: PeerId | None = None, reserved: int = 0) -> None:
        #: Tasks that run here at a time, from 0 up.
        self.slots = slots
        #: The own user's account, which has all slots whatever is lent; None: everybody is a guest.
        self.own = own
        #: Slots that guests have at most, from 0 up; None: all of them.
        self.lent: int | None = None
        #: Slots that only urgent jobs of guests may have.
        self.reserved = reserved
        #: Origins with open jobs, or that had some until a moment ago.
        self.origins: dict[PeerId, Borrower] = {}
        #: In whose names they borrow: the accounts of `origins`, and no others.
        self.accounts: dict[PeerId, Account] = {}
        #: Living workers.
        self.workers: dict[int, Worker] = {}
        #: Workers asked for that have no number yet, by token.
        self.spawning: dict[int, Binding] = {}

    def job(self, origin: PeerId, job: JobId) -> BorrowedJob | None:
        """An open job, or None."""
        borrower = self.origins.get(origin)
        return borrower.jobs.get(job) if borrower is not None else None

    def open(self, origin: PeerId, account_id: PeerId, now: float) -> Borrower:
        """The borrower of this id, known or new."""
        known = self.origins.get(origin)
        if known is not None:
            assert known.account.account == account_id, "a borrower borrows in one name"
            return known
        account = self.accounts.get(account_id)
        if account is None:
            served = min((other.served for other in self.accounts.values()), default=0.0)
            account = self.accounts[account_id] = Account(account_id, served, is_guest=account_id != self.own)
        served = min((other.served for other in account.borrowers.values()), default=0.0)
        borrower = self.origins[origin] = account.borrowers[origin] = Borrower(origin, account, now, served)
        return borrower

    def forget(self, origin: PeerId) -> None:
        """Strike out a borrower, and its account where it was the last one."""
        borrower = self.origins.pop(origin, None)
        if borrower is not None:
            del borrower.account.borrowers[origin]
            if not borrower.account.borrowers:
                del self.accounts[borrower.account.account]

    def workers_of(self, binding: Binding) -> list[Worker]:
        """Workers that serve `binding`, also those that are starting or leaving."""
        return [worker for worker in self.workers.values() if worker.binding == binding]

    def waiting_for(self, binding: Binding) -> bool:
        """Whether rows wait for a worker of `binding`."""
        borrower = self.origins.get(binding.origin)
        return borrower is not None and any(job.queue and job.binding == binding for job in borrower.jobs.values())

    # --- bounds -------------------------------------------------------------------------------------------------------

    @property
    def guest_slots(self) -> int:
        """Slots that guests have at most, together."""
        return self.slots if self.lent is None else min(self.slots, self.lent)

    @property
    def patient_slots(self) -> int:
        """Slots that guests without urgent jobs have at most, together: 1 at least where there are any."""
        return max(self.slots - self.reserved, min(1, self.slots))

    @property
    def is_bounded(self) -> bool:
        """Whether anybody may have less than everything."""
        return self.lent is not None or self.reserved > 0 or any(each.part_max < 1.0 for each in self.accounts.values())

    def limit_of(self, account: Account) -> int:
        """Slots that an account has at most."""
        return limit_of(self.guest_slots, account.part_max) if account.is_guest else self.slots

    def busy(self) -> int:
        """Workers that run something now."""
        return sum(bool(worker.rows) for worker in self.workers.values())

    def guests_busy(self) -> int:
        """Workers that run something for guests now."""
        return sum(account.busy for account in self.accounts.values() if account.is_guest)

    def room(self, account: Account) -> int:
        """How many more workers may run something for `account` now, urgent or not; below 0 where it has too many."""
        room = self.slots - self.busy()
        if account.is_guest and self.is_bounded:
            room = min(room, self.guest_slots - self.guests_busy(), self.limit_of(account) - account.busy)
        return room

    def may_run(self, account: Account, job: BorrowedJob) -> bool:
        """Whether this job may have one of the slots that are free: some are kept for urgent ones."""
        if not self._is_patient(account, job):
            return True
        patient = sum(
            worker.job is not None and worker.job.priority < URGENT_PRIORITY and self.is_guests(worker)
            for worker in self.workers.values()
        )
        return patient < self.patient_slots

    def _is_patient(self, account: Account, job: BorrowedJob) -> bool:
        return self.reserved > 0 and account.is_guest and job.priority < URGENT_PRIORITY

    def _serves_patient(self, binding: Binding) -> bool:
        """Whether a worker of `binding` has nothing urgent to do for a guest."""
        borrower = self.origins.get(binding.origin)
        jobs = [] if borrower is None else [job for job in borrower.jobs.values() if job.binding == binding]
        return self._is_guest(binding) and all(job.priority < URGENT_PRIORITY for job in jobs)

    def is_guests(self, worker: Worker) -> bool:
        """Whether a worker serves a guest."""
        return self._is_guest(worker.binding)

    def is_of(self, worker: Worker, account: Account) -> bool:
        """Whether a worker serves a borrower of `account`."""
        return worker.binding.origin in account.borrowers

    def _is_guest(self, binding: Binding) -> bool:
        borrower = self.origins.get(binding.origin)
        # Of one that is forgotten its id is all there is.
        return borrower.account.is_guest if borrower is not None else binding.origin != self.own

    def crowded(self, account: Account, job: BorrowedJob) -> Callable[[Worker], bool] | None:
        """Whose workers must go before another may be started for a job of `account`; None where there is room."""
        if account.is_guest and self.is_bounded:
            if self.processes(lambda binding: binding.origin in account.borrowers) >= self.limit_of(account):
                return lambda worker: self.is_of(worker, account)
            if self.processes(self._is_guest) >= self.guest_slots:
                return self.is_guests
            if self._is_patient(account, job) and self.processes(self._serves_patient) >= self.patient_slots:
                return lambda worker: self._serves_patient(worker.binding)
        return (lambda worker: True) if self.processes() >= self.slots else None

    def is_surplus(self, worker: Worker) -> bool:
        """Whether a worker that is idle has no slot any more."""
        if self.processes() > self.slots:
            return True
        if not self.is_bounded or not self.is_guests(worker):
            return False
        if self.processes(self._is_guest) > self.guest_slots:
            return True
        borrower = self.origins.get(worker.binding.origin)
        if borrower is None:
            return False
        borrowers = borrower.account.borrowers
        return self.processes(lambda binding: binding.origin in borrowers) > self.limit_of(borrower.account)

    def processes(self, whose: Callable[[Binding], bool] | None = None) -> int:
        """Workers that have a slot, or are about to: those told to go are as good as gone."""
        if whose is None:
            return len(self.spawning) + sum(not worker.leaving for worker in self.workers.values())
        staying = [worker.binding for worker in self.workers.values() if not worker.leaving]
        return sum(whose(binding) for binding in (*self.spawning.values(), *staying))
