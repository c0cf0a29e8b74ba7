"""The machine at a peer that lends: whose tasks run next, on which worker, and who may send how much.

Rules:

- Slots are shared by `fairness.py`, among accounts and then among the origins of each; an origin is told its part by a grant, and again only when it changes.
- A worker serves one origin and one program for life. There are never more workers than slots; where one is needed, an idle
  worker of another program goes.
- Batches to workers are small and never larger than what keeps the other idle workers busy.
- What an origin sends beyond the limits goes back untouched, at once.
- The owner comes first: others than the own user, the guests, have the slots that are lent; fewer take effect as `evicting.py` says.

The task that a worker died of has ended before the worker is gone; what it had not begun waits here again, at the front.
It refuses to know payloads, processes and links.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from p2pcompute.jobs.assigning import Assigning
from p2pcompute.jobs.borrowers import Binding, Books, BorrowedJob, Worker
from p2pcompute.jobs.evicting import Evicting, give_back_waiting
from p2pcompute.jobs.lend_events import (
    CancelAsked,
    CancelOnWorker,
    Draining,
    Effect,
    Event,
    Forget,
    Grant,
    JobClosed,
    LentChanged,
    OriginGone,
    OriginOpened,
    ProgramFailed,
    RecallAsked,
    RefuseJob,
    RetireWorker,
    ReturnUnrun,
    Row,
    RunBatch,
    SlotsChanged,
    SpawnWorker,
    TasksArrived,
    TasksEnded,
    Tick,
    WorkerGone,
    WorkerReady,
    WorkerSpawned,
    WorkerUseless,
)
from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, PeerId
from p2pcompute.model.job import Outcome

__all__ = (
    "CancelAsked", "CancelOnWorker", "Draining", "Effect", "Event", "Forget", "Grant", "JobClosed", "Lend", "LentChanged", "OriginGone",
    "OriginOpened", "ProgramFailed", "RecallAsked", "RefuseJob", "RetireWorker", "ReturnUnrun", "RunBatch", "SlotsChanged",
    "SpawnWorker", "TasksArrived", "TasksEnded", "Tick", "WorkerGone", "WorkerReady", "WorkerSpawned", "WorkerUseless",
)  # fmt: skip

#: Workers of one program that may go in a row before they were ready; after that its jobs are refused.
STARTS_MAX = 3

_RAN = frozenset({Outcome.RETURNED, Outcome.RAISED, Outcome.UNSHIPPABLE})


class Lend:
    """All that runs at this peer. `slots`: how many tasks at a time; `own`: the account of the own user, who is no guest; `reserved`:
    slots that only urgent jobs of guests may have.
    """

    def __init__(self, slots: int, own: PeerId | None = None, reserved: int = 0) -> None:
        #: Origins, workers, slots.
        self._books = Books(slots, own, reserved)
        #: Decides who works on what, and who is told to have how many slots.
        self._assigning = Assigning(self._books)
        #: Takes back what is not lent any more.
        self._evicting = Evicting(self._books, self._assigning)
        #: Whether this peer shuts down.
        self._draining = False
        #: Serial of the next job.
        self._next_serial = 1
        #: Workers in a row that went before they were ready.
        self._failed_starts: dict[Binding, int] = {}
        #: What is done about each event.
        self._handlers: dict[type, Callable[[Any, float, list[Effect]], None]] = {
            OriginOpened: self._origin_opened,
            TasksArrived: self._tasks_arrived,
            CancelAsked: self._cancel_asked,
            RecallAsked: self._recall_asked,
            JobClosed: self._job_closed,
            OriginGone: self._origin_gone,
            WorkerSpawned: self._worker_spawned,
            WorkerReady: self._worker_ready,
            WorkerGone: self._worker_gone,
            ProgramFailed: self._program_failed,
            TasksEnded: self._tasks_ended,
            WorkerUseless: self._worker_useless,
            SlotsChanged: self._slots_changed,
            LentChanged: self._evicting.lent_changed,
            Draining: self._drain,
            Tick: lambda event, now, out: None,
        }

    # --- the machine --------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event in and say what is to be done, in this order."""
        out: list[Effect] = []
        self._handlers[type(event)](event, now, out)
        self._evicting.go_on(now, out)
        self._assigning.go_on(now, out)
        return out

    def deadline(self) -> float | None:
        """When the machine wants a Tick at the latest."""
        times = [at for at in (self._assigning.deadline(), self._evicting.deadline()) if at is not None]
        return min(times, default=None)

    def check_invariants(self) -> None:
        """Raise AssertionError where the machine contradicts itself."""
        busy: dict[PeerId, int] = {}
        for worker in self._books.workers.values():
            assert bool(worker.rows) == (worker.job is not None)
            if worker.rows:
                busy[worker.binding.origin] = busy.get(worker.binding.origin, 0) + 1
        for name, account in self._books.accounts.items():
            assert account.borrowers
            assert account.account == name
            assert account.queued <= limits.TASKS_QUEUED_PER_ORIGIN_MAX
            assert account.jobs <= limits.JOBS_PER_ORIGIN_MAX
            assert account.is_guest == (name != self._books.own)
        assert sum(len(account.borrowers) for account in self._books.accounts.values()) == len(self._books.origins)
        for origin, borrower in self._books.origins.items():
            assert self._books.accounts[borrower.account.account].borrowers[origin] is borrower
            assert borrower.busy == busy.get(origin, 0)
            own = [worker for worker in self._books.workers.values() if worker.binding.origin == origin]
            for job in borrower.jobs.values():
                assert len(set(job.queue)) == len(job.queue)
                assert job.live.issuperset(job.queue)
                assert job.busy == sum(worker.job is job for worker in own)
                held = [row for worker in own if worker.job is job for row in worker.rows]
                assert not set(held) & set(job.queue)
                assert job.live <= {*held, *job.queue}

    # --- origins ------------------------------------------------------------------------------------------------------

    def _origin_opened(self, event: OriginOpened, now: float, out: list[Effect]) -> None:
        borrower = self._books.origins.get(event.origin)
        if borrower is not None and event.job in borrower.jobs:
            return
        if self._draining:
            out.append(RefuseJob(event.origin, event.job, "busy", "this peer shuts down"))
            return
        name = event.origin if event.account is None else event.account
        account = self._books.accounts.get(name)
        if account is not None and account.jobs >= limits.JOBS_PER_ORIGIN_MAX:
            text = f"{limits.JOBS_PER_ORIGIN_MAX} jobs of this origin are open here already"
            out.append(RefuseJob(event.origin, event.job, "busy", text))
            return
        borrower = self._books.open(event.origin, name, now)
        borrower.account.part_max = event.part_max
        binding = Binding(event.origin, event.program, event.memory_bytes)
        served_s = borrower.least_served_s(event.priority)
        job = BorrowedJob(event.job, binding, event.priority, self._next_serial, served_s=served_s)
        borrower.jobs[event.job] = job
        self._next_serial += 1
        borrower.active_at = now
        # A worker that starts while the first tasks are on their way saves its start-up time.
        if not self._books.workers_of(binding) and self._books.crowded(borrower.account, job) is None:
            self._assigning.spawn(binding, out)

    def _tasks_arrived(self, event: TasksArrived, now: float, out: list[Effect]) -> None:
        borrower = self._books.origins.get(event.origin)
        job = borrower.jobs.get(event.job) if borrower is not None else None
        if borrower is None or job is None or self._draining:
            out.append(ReturnUnrun(event.origin, event.job, event.rows))
            return
        room = limits.TASKS_QUEUED_PER_ORIGIN_MAX - borrower.account.queued
        new = [row for row in dict.fromkeys(event.rows) if row not in job.live]
        job.queue.extend(new[:room])
        job.live.update(new[:room])
        borrower.active_at = now
        if new[room:]:
            out.append(ReturnUnrun(event.origin, event.job, tuple(new[room:])))

    def _cancel_asked(self, event: CancelAsked, now: float, out: list[Effect]) -> None:
        job = self._books.job(event.origin, event.job)
        if job is None:
            return
        asked = [row for row in dict.fromkeys(event.rows) if row in job.live]
        for worker in self._books.workers.values():
            if worker.job is job:
                running = tuple(row for row in asked if row in worker.rows)
                if running:
                    out.append(CancelOnWorker(worker.worker, running))
                    job.live.difference_update(running)
                    asked = [row for row in asked if row not in worker.rows]
        # What has not begun goes back as untouched, so that the shell lets go of its arguments.
        self._give_back(event.origin, job, asked, out)

    def _recall_asked(self, event: RecallAsked, now: float, out: list[Effect]) -> None:
        job = self._books.job(event.origin, event.job)
        if job is not None:
            wanted = set(event.rows)
            self._give_back(event.origin, job, [row for row in job.queue if row in wanted], out)

    @staticmethod
    def _give_back(origin: PeerId, job: BorrowedJob, rows: Sequence[Row], out: list[Effect]) -> None:
        """Take `rows`, which wait here, out of the queue."""
        if rows:
            gone = set(rows)
            job.queue = type(job.queue)(row for row in job.queue if row not in gone)
            job.live -= gone
            out.append(ReturnUnrun(origin, job.job, tuple(rows)))

    def _job_closed(self, event: JobClosed, now: float, out: list[Effect]) -> None:
        self._drop_job(event.origin, event.job, now, out)

    def _origin_gone(self, event: OriginGone, now: float, out: list[Effect]) -> None:
        self._books.forget(event.origin)
        for worker in self._books.workers.values():
            if worker.binding.origin == event.origin:
                # Should the origin come back, what this worker still says is about another life.
                worker.rows.clear()
                worker.job = None
                self._assigning.retire(worker, out)

    def _drop_job(self, origin: PeerId, name: JobId, now: float, out: list[Effect]) -> None:
        borrower = self._books.origins.get(origin)
        job = borrower.jobs.pop(name, None) if borrower is not None else None
        if borrower is None or job is None:
            return
        job.closed = True
        borrower.active_at = now
        out.extend(
            CancelOnWorker(worker.worker, tuple(worker.rows))
            for worker in self._books.workers.values()
            if worker.job is job and not worker.leaving
        )

    # --- workers ------------------------------------------------------------------------------------------------------

    def _worker_spawned(self, event: WorkerSpawned, now: float, out: list[Effect]) -> None:
        binding = self._books.spawning.pop(event.token)
        worker = self._books.workers[event.worker] = Worker(event.worker, binding, now)
        if binding.origin not in self._books.origins:
            self._assigning.retire(worker, out)

    def _worker_ready(self, event: WorkerReady, now: float, out: list[Effect]) -> None:
        worker = self._books.workers.get(event.worker)
        if worker is not None:
            worker.ready = True
            worker.idle_since = now
            self._failed_starts.pop(worker.binding, None)

    def _worker_gone(self, event: WorkerGone, now: float, out: list[Effect]) -> None:
        worker = self._books.workers.pop(event.worker, None)
        if worker is None:
            return
        if worker.job is not None:
            if worker.is_evicted:
                # What it had in hand goes back, to run elsewhere.
                worker.job.live.difference_update(worker.rows)
            self._put_back(worker, now, out)
        if worker.ready or worker.leaving:
            return
        failed = self._failed_starts[worker.binding] = self._failed_starts.get(worker.binding, 0) + 1
        if failed >= STARTS_MAX:
            del self._failed_starts[worker.binding]
            text = f"{failed} workers in a row ended before they were ready"
            self._refuse_binding(worker.binding, "busy", "", text, now, out)

    def _put_back(self, worker: Worker, now: float, out: list[Effect]) -> None:
        """What a worker had in hand and did not begin waits again, at the front; what was cancelled meanwhile goes back as untouched."""
        borrower = self._books.origins.get(worker.binding.origin)
        job = worker.job
        assert job is not None
        job.busy -= 1
        if not job.closed:
            job.queue.extendleft(row for row in reversed(worker.rows) if row in job.live)
            cancelled = tuple(row for row in worker.rows if row not in job.live)
            if cancelled:
                # Its shell was told to cancel them where there was no process any more, and says nothing of them; or it was evicted.
                out.append(ReturnUnrun(worker.binding.origin, job.job, cancelled))
        if borrower is not None:
            borrower.busy -= 1
            borrower.active_at = now
        worker.rows.clear()
        worker.job = None

    def _worker_useless(self, event: WorkerUseless, now: float, out: list[Effect]) -> None:
        worker = self._books.workers.get(event.worker)
        if worker is not None and not worker.ready:
            self._assigning.retire(worker, out)

    def _program_failed(self, event: ProgramFailed, now: float, out: list[Effect]) -> None:
        worker = self._books.workers.get(event.worker)
        if worker is not None:
            worker.leaving = True
            self._refuse_binding(worker.binding, event.reason, event.module, event.text, now, out)

    def _refuse_binding(
        self, binding: Binding, reason: str, module: str, text: str, now: float, out: list[Effect]
    ) -> None:
        borrower = self._books.origins.get(binding.origin)
        for job in list(borrower.jobs.values()) if borrower is not None else ():
            if job.binding.program == binding.program:
                self._drop_job(binding.origin, job.job, now, out)
                out.append(RefuseJob(binding.origin, job.job, reason, text, module))

    def _tasks_ended(self, event: TasksEnded, now: float, out: list[Effect]) -> None:
        worker = self._books.workers.get(event.worker)
        if worker is None or worker.job is None:
            return
        borrower = self._books.origins.get(worker.binding.origin)
        job = worker.job
        ran = 0
        ran_s = used_s = 0.0
        for task, attempt, outcome, wall_s in event.rows:
            row = (task, attempt)
            if row not in worker.rows:
                continue
            del worker.rows[row]
            used_s += wall_s
            if outcome in _RAN:
                ran += 1
                ran_s += wall_s
            job.live.discard(row)
        worker.tenure_s += used_s
        job.served_s += used_s
        if ran:
            job.speed.observe(ran_s, ran)
        if borrower is not None:
            borrower.charge(used_s)
            borrower.active_at = now
        if not worker.rows:
            job.busy -= 1
            worker.job = None
            worker.idle_since = now
            if borrower is not None:
                borrower.busy -= 1

    def _slots_changed(self, event: SlotsChanged, now: float, out: list[Effect]) -> None:
        if not self._draining:
            self._books.slots = max(0, event.slots)

    def _drain(self, event: Draining, now: float, out: list[Effect]) -> None:
        self._draining = True
        self._books.slots = 0
        for account in self._books.accounts.values():
            give_back_waiting(account, out)
