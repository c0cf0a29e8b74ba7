"""Who works on what at a lending peer: batches to idle workers, workers started and replaced, slots granted.

The part of the lending machine that runs after every event; formulas are in `fairness.py` and `speed.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from p2pcompute.jobs import fairness
from p2pcompute.jobs.borrowers import Account, Binding, Books, BorrowedJob, Borrower, Worker
from p2pcompute.jobs.lend_events import Effect, Forget, Grant, RetireWorker, RunBatch, SpawnWorker
from p2pcompute.model.ids import PeerId

#: Work handed to a worker at a time: fifty times what the hop to it costs.
WORKER_BATCH_S = 0.004
#: A worker that has been idle for so long goes: its memory is of more use to the owner.
IDLE_WORKER_S = 60.0


class Assigning:
    """Decides over the workers and slots of `books`."""

    def __init__(self, books: Books) -> None:
        #: Origins, workers, slots; shared with the rest of the machine.
        self._books = books
        #: Token of the next worker asked for.
        self._next_token = 1
        #: Inputs and outcome of the last division within bounds.
        self._allotted: tuple[object, dict[PeerId, int]] = ((), {})

    def go_on(self, now: float, out: list[Effect]) -> None:
        """Do everything that has become possible."""
        self._put_to_work(now, out)
        self._retire_idle(now, out)
        self.grant(now, out)

    def deadline(self) -> float | None:
        """When something becomes possible by itself: an origin's activity or a worker's idleness runs out."""
        times = [
            borrower.active_at + fairness.ACTIVE_S
            for borrower in self._books.origins.values()
            if not borrower.has_work and (not borrower.jobs or borrower.granted not in (0, 1))
        ]
        times += [worker.idle_since + IDLE_WORKER_S for worker in self._books.workers.values() if worker.is_idle]
        return min(times, default=None)

    def _put_to_work(self, now: float, out: list[Effect]) -> None:
        """Give idle workers rows, and start or replace workers where rows wait for one; the least served origin first."""
        stuck: list[PeerId] = []
        while True:
            hungry = [
                borrower
                for borrower in self._books.origins.values()
                if borrower.origin not in stuck and any(job.queue for job in borrower.jobs.values())
            ]
            if not hungry:
                return
            borrower = min(hungry, key=lambda b: b.turn) if len(hungry) > 1 else hungry[0]
            if not self._run_one(borrower, now, out):
                stuck.append(borrower.origin)

    def _run_one(self, borrower: Borrower, now: float, out: list[Effect]) -> bool:
        """One batch of this origin to one idle worker; False where it has none, after asking for one."""
        room = self._books.room(borrower.account)
        if room <= 0:
            return False
        for job in borrower.next_jobs():
            if not self._books.may_run(borrower.account, job):
                continue
            idle = [worker for worker in self._books.workers_of(job.binding) if worker.is_idle]
            if not idle:
                self._ask_for_worker(job, borrower.account, now, out)
                continue
            size = fairness.worker_batch(
                job.speed.task_s, job.batch, len(job.queue), min(len(idle), room), WORKER_BATCH_S
            )
            job.batch = size
            worker = idle[0]
            rows = tuple(job.queue.popleft() for _ in range(min(size, len(job.queue))))
            worker.rows = dict.fromkeys(rows)
            worker.job = job
            worker.began_at = now
            borrower.busy += 1
            job.busy += 1
            out.append(RunBatch(worker.worker, borrower.origin, job.job, rows))
            return True
        return False

    def _ask_for_worker(self, job: BorrowedJob, account: Account, now: float, out: list[Effect]) -> None:
        """Start a worker for waiting rows: in a free slot, or in place of an idle worker, where bounds demand it of the same account."""
        starting = sum(binding == job.binding for binding in self._books.spawning.values())
        starting += sum(not worker.ready and not worker.leaving for worker in self._books.workers_of(job.binding))
        while starting < len(job.queue):
            crowding = self._books.crowded(account, job)
            if crowding is not None:
                victim = self._replaceable(job.binding, crowding)
                if victim is None:
                    return
                self.retire(victim, out)
            self.spawn(job.binding, out)
            starting += 1

    def _replaceable(self, binding: Binding, crowding: Callable[[Worker], bool]) -> Worker | None:
        """The worker that has been idle longest, of another binding, whose own queue is empty or whose tenure is over."""
        others = [worker for worker in self._books.workers.values() if worker.is_idle and worker.binding != binding]
        idle = [worker for worker in others if crowding(worker)]
        free = [
            worker
            for worker in idle
            if worker.tenure_s >= fairness.TENURE_S or not self._books.waiting_for(worker.binding)
        ]
        return min(free, key=lambda worker: (worker.idle_since, worker.worker), default=None)

    def spawn(self, binding: Binding, out: list[Effect]) -> None:
        """Ask for a worker that serves `binding`."""
        token = self._next_token
        self._next_token += 1
        self._books.spawning[token] = binding
        out.append(SpawnWorker(token, binding.origin, binding.program, binding.memory_bytes))

    def retire(self, worker: Worker, out: list[Effect]) -> None:
        """Let a worker go, once."""
        if not worker.leaving:
            worker.leaving = True
            out.append(RetireWorker(worker.worker))

    def _retire_idle(self, now: float, out: list[Effect]) -> None:
        """Let workers go that have long been idle, or for which there is no slot any more."""
        idle = sorted(
            (worker for worker in self._books.workers.values() if worker.is_idle),
            key=lambda worker: (worker.idle_since, worker.worker),
        )
        for worker in idle:
            if now >= worker.idle_since + IDLE_WORKER_S or self._books.is_surplus(worker):
                self.retire(worker, out)

    def grant(self, now: float, out: list[Effect]) -> None:
        """Tell origins their part of the slots where it has changed; forget those that are long done."""
        for origin in [o for o, b in self._books.origins.items() if not b.jobs and not b.is_active(now)]:
            # Its last grant may stand at the other end: what comes of it is only queued, or given back.
            self._books.forget(origin)
            out.append(Forget(origin))
        for origin, slots in self._parts(now).items():
            borrower = self._books.origins[origin]
            if borrower.granted != slots:
                borrower.granted = slots
                out.append(Grant(origin, slots))

    def _parts(self, now: float) -> dict[PeerId, int]:
        """Slots by borrower."""
        accounts = sorted(self._books.accounts.items())
        if self._books.is_bounded:
            return self._parts_within_bounds(accounts, now)
        if len(accounts) == len(self._books.origins):
            # One borrower an account: runs after every event, so the second division is spared where it decides nothing.
            alone = [(name, borrower) for name, account in accounts for borrower in account.borrowers.values()]
            parts = fairness.divide(self._books.slots, [(name, b.weight, b.is_active(now)) for name, b in alone])
            return {borrower.origin: parts[name] for name, borrower in alone}
        rows = [
            (name, [(origin, b.weight, b.is_active(now)) for origin, b in sorted(account.borrowers.items())])
            for name, account in accounts
        ]
        return fairness.divide_by_account(self._books.slots, rows)

    def _parts_within_bounds(self, accounts: list[tuple[PeerId, Account]], now: float) -> dict[PeerId, int]:
        books = self._books
        rows = [
            (name, [(origin, b.weight, b.is_active(now)) for origin, b in sorted(account.borrowers.items())])
            for name, account in accounts
        ]
        claims = [
            fairness.Claim(
                name,
                account.weight,
                any(is_active for _, _, is_active in borrowers),
                books.limit_of(account),
                account.is_guest,
                account.weight >= fairness.weight_of(fairness.URGENT_PRIORITY),
            )
            for (name, account), (_, borrowers) in zip(accounts, rows, strict=True)
        ]
        asked = (books.slots, books.guest_slots, books.patient_slots, claims)
        if self._allotted[0] != asked:
            # After most events nothing of it has changed.
            reserved = books.slots - books.patient_slots
            self._allotted = (asked, fairness.allot(books.slots, books.guest_slots, reserved, claims))
        return fairness.among_borrowers(self._allotted[1], rows)
