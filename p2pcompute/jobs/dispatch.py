"""The machine that gets the jobs of this origin computed: who is offered them, who is sent what, and what counts.

One machine for all jobs of an origin. Rules:

- A job is offered where it may have work (`openings.py`); refusals end it only when nobody is left.
- A peer holds at most what its granted slots are worth (`credit.py`); jobs share it by priority, then evenly, then by age.
- Late binding: a task waits here until a slot is free for it, and whoever is free first gets it; near the end batches
  shrink (`credit.tail_depth`) and late tasks run a second time elsewhere (`speculation.py`).
- Each task is settled exactly once (`leases.py`), whatever arrives late, double or from the dead.
- Who may be given work, and who first, is each job's own choice (`placing.py`, `strategies/`); a job that nobody may run ends with the
  reason, or waits (`judging.py`).
- What died with its worker, peer or link is tried elsewhere first, then given up (`retries.py`).

It refuses to know payloads, links, addresses and clocks: it deals in numbers of tasks, and time is what it is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from p2pcompute.jobs import coordinating, openings
from p2pcompute.jobs.balancing import USUAL, Balancing, BalancingSettings
from p2pcompute.jobs.dispatch_events import (
    CancelAt,
    CloseAt,
    Completed,
    DataHeld,
    Discarded,
    Effect,
    EndCause,
    Event,
    FellBack,
    GivenUp,
    Granted,
    InputsEnded,
    JobCancelled,
    JobEnded,
    JobFailed,
    JobForgotten,
    JobOpened,
    Located,
    Mapped,
    Moved,
    OpenAt,
    PartialArrived,
    PartialRefused,
    PartialTaken,
    PeerAccepted,
    PeerGone,
    PeerRefused,
    PeerUsable,
    Progressed,
    RecallAt,
    Refusal,
    Regioned,
    Reported,
    SeatFailed,
    SeekPeers,
    Send,
    Stalled,
    TaskRetried,
    TasksAdded,
    TasksDropped,
    TasksWithdrawn,
    Tick,
    WantInputs,
    Withdrawn,
)
from p2pcompute.jobs.filling import Filling
from p2pcompute.jobs.judging import Judging
from p2pcompute.jobs.leases import JobBook, Settling
from p2pcompute.jobs.offering import Offering
from p2pcompute.jobs.placing import Placing
from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.roster import Lender, Roster, candidate, refusals
from p2pcompute.jobs.shares import Share, ShareState
from p2pcompute.jobs.strategies import Registry, Situation
from p2pcompute.jobs.tally import progress_of
from p2pcompute.jobs.teaching import teach
from p2pcompute.model import limits
from p2pcompute.model.ids import REDUCE_BASE, JobId, PeerId, TaskIndex
from p2pcompute.model.job import JobProgress, JobState, OnError, Outcome
from p2pcompute.model.performance import FunctionKey

__all__ = (
    "CancelAt", "CloseAt", "Completed", "DataHeld", "Discarded", "Dispatch", "Effect", "EndCause", "Event", "FellBack", "GivenUp", "Granted",
    "InputsEnded", "JobCancelled", "JobEnded", "JobFailed", "JobForgotten", "JobOpened", "Located", "Mapped", "Moved", "OpenAt",
    "PartialArrived", "PartialRefused", "PartialTaken", "PeerAccepted", "PeerGone", "PeerRefused", "PeerUsable", "Progressed", "RecallAt",
    "Refusal", "Regioned", "Reported", "SeatFailed", "SeekPeers", "Send", "Stalled", "TaskRetried", "TasksAdded", "TasksDropped",
    "TasksWithdrawn", "Tick", "WantInputs", "Withdrawn",
)  # fmt: skip


class Dispatch:
    """All jobs of this origin. `registry` makes their strategies; `balancing`: None where no lease is ever recalled."""

    def __init__(self, registry: Registry | None = None, balancing: BalancingSettings | None = USUAL) -> None:
        #: Makes the strategy of each job.
        self._registry = registry or Registry()
        #: Running jobs, and the newest of those that ended.
        self._jobs: dict[JobId, JobBook] = {}
        #: Ended jobs that are kept for `progress`, oldest first; at most `limits.ENDED_JOBS_KEPT`.
        self._ended: deque[JobId] = deque()
        #: Serial of the next job.
        self._next_serial = 1
        #: Usable peers, running jobs, alarms.
        self._roster = Roster()
        #: Decides where jobs are open.
        self._offering = Offering(self._roster)
        #: Decides who is sent what.
        self._filling = Filling(self._roster)
        #: Moves leases from peers that are late to others.
        self._balancing = Balancing(self._roster, balancing)
        #: Says when a job cannot go on for want of a peer.
        self._judging = Judging(self._roster)
        #: What is done about each event.
        self._handlers: dict[type, Callable[[Any, float, list[Effect]], None]] = {
            JobOpened: self._job_opened,
            TasksAdded: self._tasks_added,
            InputsEnded: self._inputs_ended,
            PeerUsable: self._peer_usable,
            PeerGone: self._peer_gone,
            PeerAccepted: self._peer_accepted,
            PeerRefused: self._peer_refused,
            Granted: self._granted,
            Reported: self._reported,
            Progressed: self._progressed,
            JobCancelled: self._job_cancelled,
            TasksDropped: self._tasks_dropped,
            JobFailed: self._job_failed,
            JobForgotten: self._job_forgotten,
            DataHeld: self._data_held,
            Located: self._roster.located,
            Mapped: self._roster.mapped,
            Regioned: self._roster.regioned,
            PartialArrived: self._partial_arrived,
            SeatFailed: self._seat_failed,
            TasksWithdrawn: self._tasks_withdrawn,
            Tick: self._tick,
        }

    # --- the machine --------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event in and say what is to be done, in this order. Unknown jobs and peers are passed over."""
        out: list[Effect] = []
        self._handlers[type(event)](event, now, out)
        return out

    def deadline(self) -> float | None:
        """When the machine wants a Tick at the latest."""
        return self._roster.timers.deadline()

    def progress(self, job: JobId, now: float) -> JobProgress:
        """How far a job is. Raises KeyError for one that is unknown or forgotten."""
        book = self._jobs[job]
        return progress_of(book, now, self._roster.message(book) if book.state is JobState.RUNNING else "")

    def slots(self) -> int:
        """Slots that all usable peers have granted."""
        return sum(lender.slots for lender in self._roster.lenders.values())

    def is_idle(self, job: JobId) -> bool:
        """Whether nothing of a job waits or is leased, though more may come; also of one that is not known."""
        book = self._jobs.get(job)
        return book is None or not (book.waiting or book.leases)

    def seen(self, job: JobId, peer: PeerId, now: float) -> tuple[Candidate, Situation] | None:
        """What a strategy sees of a usable peer and a job that is not forgotten; None where one of them is neither."""
        lender, book = self._roster.lenders.get(peer), self._jobs.get(job)
        if lender is None or book is None:
            return None
        return candidate(lender, book.shares.get(peer), book), self._roster.situation(book, now)

    def check_invariants(self) -> None:
        """Raise AssertionError where the machine contradicts itself."""
        for book in self._jobs.values():
            book.check_invariants()
        running = [book for book in self._jobs.values() if book.state is JobState.RUNNING]
        assert sorted(running, key=JobBook.order) == self._roster.running
        assert len(self._ended) == len(self._jobs) - len(running) <= limits.ENDED_JOBS_KEPT
        self._roster.check_invariants()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _job_opened(self, event: JobOpened, now: float, out: list[Effect]) -> None:
        spec = event.spec
        self._judging.begin(now)
        if spec.job in self._jobs:
            return
        placing = Placing(spec.options, self._registry, FunctionKey(spec.map_entry, spec.program))
        book = self._jobs[spec.job] = JobBook(spec, self._next_serial, now, placing)
        self._next_serial += 1
        self._roster.enter(book)
        if len(self._roster.running) > limits.JOBS_OPEN_MAX:
            reason = f"{limits.JOBS_OPEN_MAX} jobs are open at this peer: wait for some of them or cancel them"
            self._end(book, now, out, JobState.FAILED, EndCause.BUSY, reason)
            return
        if spec.options.job_timeout_s is not None:
            self._roster.timers.set(("job", spec.job, None), now + spec.options.job_timeout_s)
        if spec.options.requirements:
            for lender in self._roster.lenders.values():
                book.placing.look_at(candidate(lender, None, book))
        if coordinating.is_coordinated(spec, placing.is_gated, self._roster):
            book.seating.take(self._roster.regions, self._roster.seats_usable())
        self._offering.to_more_peers(book, now, out)
        self._filling.want_inputs(book, out)
        self._look_for_peers(book, now, out)

    def _tasks_added(self, event: TasksAdded, now: float, out: list[Effect]) -> None:
        book = self._running(event.job)
        if book is None:
            return
        book.add(event.tasks)
        book.placing.blob_bytes += event.blob_bytes
        book.argument_bytes += event.blob_bytes + event.inline_bytes
        book.asked = max(0, book.asked - sum(task < REDUCE_BASE for task in event.tasks))
        self._go_on(book, now, out, queued=True)

    def _inputs_ended(self, event: InputsEnded, now: float, out: list[Effect]) -> None:
        book = self._running(event.job)
        if book is None:
            return
        book.inputs_ended = True
        book.asked = 0
        self._go_on(book, now, out, queued=False)

    def _job_cancelled(self, event: JobCancelled, now: float, out: list[Effect]) -> None:
        book = self._running(event.job)
        if book is not None:
            self._end(book, now, out, JobState.CANCELLED, EndCause.CANCELLED, "the job was cancelled")

    def _tasks_dropped(self, event: TasksDropped, now: float, out: list[Effect]) -> None:
        book = self._running(event.job)
        if book is None:
            return
        cancelled = book.drop(event.tasks).cancelled_at()
        out.extend([CancelAt(peer, event.job, tuple(leases)) for peer, leases in cancelled.items()])
        if not book.waiting:
            self._roster.waiting.pop(event.job, None)
        self._go_on(book, now, out, queued=False)
        self._filling.fill([self._roster.lenders[peer] for peer in cancelled], now, out)

    def _tasks_withdrawn(self, event: TasksWithdrawn, now: float, out: list[Effect]) -> None:
        book = self._running(event.job)
        if book is None:
            return
        out.append(Withdrawn(event.job, book.withdraw(event.tasks)))
        if not book.waiting:
            self._roster.waiting.pop(event.job, None)
        self._go_on(book, now, out, queued=False)

    def _job_failed(self, event: JobFailed, now: float, out: list[Effect]) -> None:
        book = self._running(event.job)
        if book is not None:
            self._end(book, now, out, JobState.FAILED, EndCause.SHELL, event.text)

    def _job_forgotten(self, event: JobForgotten, now: float, out: list[Effect]) -> None:
        if event.job in self._ended:
            self._ended.remove(event.job)
            del self._jobs[event.job]

    # --- peers --------------------------------------------------------------------------------------------------------

    def _peer_usable(self, event: PeerUsable, now: float, out: list[Effect]) -> None:
        self._judging.begin(now)
        lender = self._roster.lenders.get(event.peer)
        if lender is not None:
            is_news = lender.facts.is_suspect != event.facts.is_suspect
            lender.rtt_s, lender.local, lender.rank, lender.facts = event.rtt_s, event.local, event.rank, event.facts
            for share in lender.shares.values():
                share.rtt_s = event.rtt_s
            # Other jobs only wonder whether it lives; figures they read when they next order peers.
            if not is_news and not any(book.placing.is_gated for book in self._roster.running):
                return
        else:
            lender = self._roster.lenders[event.peer] = Lender(event)
        for book in self._roster.running:
            if book.spec.options.requirements:
                book.placing.look_at(candidate(lender, book.shares.get(event.peer), book))
        self._offering.to_peer(lender, now, out)
        self._filling.fill((lender,), now, out)
        self._look_again(now, out)

    def _data_held(self, event: DataHeld, now: float, out: list[Effect]) -> None:
        book = self._running(event.job)
        if book is not None:
            book.placing.shared_bytes, book.placing.held_bytes = event.shared_bytes, dict(event.held)

    def _peer_gone(self, event: PeerGone, now: float, out: list[Effect]) -> None:
        lender = self._roster.lenders.pop(event.peer, None)
        if lender is None:
            return
        lost: list[tuple[JobBook, Settling]] = []
        for book in self._roster.running:
            book.placing.forget(event.peer)
        for share in lender.shares.values():
            book = share.job
            # Nothing runs at a seat itself: no task had a part in its end.
            outcome = Outcome.RETURNED_UNRUN if lender.is_seat else Outcome.PEER_LOST
            lost.append((book, book.lose_share(share, outcome, event.reason, now)))
            del book.shares[lender.peer]
            self._roster.timers.clear(("share", book.spec.job, lender.peer))
            self._roster.timers.clear(("seat", book.spec.job, lender.peer))
            book.seating.give_up(lender.peer, self._roster.seats_usable())
            if book.waiting:
                self._roster.waiting[book.spec.job] = book
        for book, settling in lost:
            self._settled(book, settling, now, out, refill=True)
            if book.state is JobState.RUNNING:
                self._offering.to_more_peers(book, now, out)
            self._look_for_peers(book, now, out)
        self._look_again(now, out)

    def _peer_accepted(self, event: PeerAccepted, now: float, out: list[Effect]) -> None:
        share = self._roster.share(event.peer, event.job)
        if share is None or share.state is not ShareState.OPENING:
            return
        share.state = ShareState.READY
        share.refusals = 0
        if share.is_seat:
            self._roster.timers.set(("seat", event.job, event.peer), now + coordinating.SILENCE_PATIENCE_S)
        self._filling.fill((self._roster.lenders[event.peer],), now, out)
        if share.job.placing.strategy.spreads:
            self._filling.fill_job(share.job, now, out)
        self._offering.for_waiting(share.job, now, out)
        self._look_for_peers(share.job, now, out)

    def _peer_refused(self, event: PeerRefused, now: float, out: list[Effect]) -> None:
        share = self._roster.share(event.peer, event.job)
        if share is not None and share.state is not ShareState.REFUSED:
            self._refused(share, event.reason, event.text, now, out)

    def _granted(self, event: Granted, now: float, out: list[Effect]) -> None:
        lender = self._roster.lenders.get(event.peer)
        if lender is None:
            return
        if lender.slots and event.slots <= 0:
            lender.empty_since = now
        lender.granted = max(0, event.slots)
        lender.heard_at = now
        shares = list(lender.shares.values())
        for share in shares:
            share.paused = False
            self._roster.watch_loads(share, now)
        if not lender.granted:
            for share in shares:
                self._offering.to_more_peers(share.job, now, out)
                self._filling.fill_job(share.job, now, out)
        self._filling.fill((lender,), now, out)
        self._look_again(now, out)

    def _refused(self, share: Share, reason: str, text: str, now: float, out: list[Effect]) -> None:
        """A job does not run at this peer: take its tasks back and look further."""
        book = share.job
        settling = book.lose_share(share, Outcome.RETURNED_UNRUN, text, now)
        self._offering.note_refusal(share, reason, text, now)
        if share.is_seat:
            self._roster.timers.clear(("share", book.spec.job, share.peer))
            self._roster.timers.clear(("seat", book.spec.job, share.peer))
            book.seating.give_up(share.peer, self._roster.seats_usable())
        self._offering.to_more_peers(book, now, out)
        self._settled(book, settling, now, out, refill=True)
        self._look_for_peers(book, now, out)
        self._offering.to_peer(self._roster.lenders[share.peer], now, out)

    def _look_again(self, now: float, out: list[Effect]) -> None:
        """What is known of peers has changed: jobs that are choosy may use others than before, or none any more."""
        for book in [book for book in self._roster.running if book.placing.is_gated]:
            self._go_further(book, now, out)

    def _go_further(self, book: JobBook, now: float, out: list[Effect]) -> None:
        self._offering.to_more_peers(book, now, out)
        if book.waiting:
            self._filling.fill_job(book, now, out)
        self._look_for_peers(book, now, out)

    def _look_for_peers(self, book: JobBook, now: float, out: list[Effect]) -> None:
        """End a job that everybody refused for good; say so once when nobody can run it at present."""
        if book.state is not JobState.RUNNING:
            return
        verdict = self._judging.judge(book, now, out)
        if verdict is not None:
            self._end(book, now, out, JobState.FAILED, *verdict)
            return
        if not self._offering.nobody_left(book):
            return
        refused = refusals(book)
        if openings.is_hopeless(refused):
            self._end(book, now, out, JobState.FAILED, EndCause.REFUSED, openings.hopeless_text(refused))
        elif not book.stalled:
            book.stalled = True
            out.append(Stalled(book.spec.job, self._roster.message(book)))

    # --- reports ------------------------------------------------------------------------------------------------------

    def _reported(self, event: Reported, now: float, out: list[Effect]) -> None:
        book = self._jobs.get(event.job)
        if book is None:
            return
        share = book.shares.get(event.peer)
        if share is None:
            late = book.discard(event.reports)
            if late:
                out.append(Discarded(event.job, late))
            return
        settling = book.take_reports(share, event.reports)
        lender = self._roster.lenders[event.peer]
        lender.done += len(settling.completed)
        lender.heard_at = share.reported_at = now
        if share.is_seat and settling.learned:
            share.note(settling.learned, now)
        if share.is_watched or settling.retried or settling.given_up:
            teach(self._roster, share, event, settling, now)
        if settling.returned:
            share.paused = True
            share.pause_s = openings.returned_pause_s(share.pause_s)
            self._roster.timers.set(("share", event.job, event.peer), now + share.pause_s)
        if settling.cannot_run is not None:
            # Whatever else it holds of the job would come back the same way.
            share.paused = True
            self._settled(book, settling, now, out)
            if book.state is JobState.RUNNING:
                out.append(CloseAt(event.peer, event.job))
                self._refused(share, "cannot-run", settling.cannot_run, now, out)
            return
        if settling.recalled:
            out.append(Moved(event.job, event.peer, tuple(settling.recalled)))
            self._filling.fill_others(share, now, out)
        self._settled(book, settling, now, out)
        self._filling.fill((lender,), now, out)

    # --- coordinators -------------------------------------------------------------------------------------------------

    def _look_at_seat(self, share: Share, now: float, out: list[Effect]) -> None:
        """From its acceptance on a seat is looked at once in a while: nobody else runs what it holds."""
        if share.state is not ShareState.READY:
            return
        book, lender = share.job, self._roster.lenders[share.peer]
        owes = not share.out and any(held.share is share for held in book.merged.values())
        share.owes_since = None if not owes else share.owes_since if share.owes_since is not None else now
        text = coordinating.why_replaced(share, lender, now)
        if not text:
            self._roster.timers.set(("seat", book.spec.job, share.peer), now + coordinating.SILENCE_PATIENCE_S)
            return
        out.append(CloseAt(share.peer, book.spec.job))
        self._refused(share, "seat", text, now, out)

    def _partial_arrived(self, event: PartialArrived, now: float, out: list[Effect]) -> None:
        share = self._roster.share(event.peer, event.job)
        if share is None or share.state is not ShareState.READY:
            return
        book = share.job
        self._roster.lenders[event.peer].heard_at = now
        if not book.take_partial(share, event.rows):
            text = "sent a partial aggregate of tasks that it does not hold"
            out.append(PartialRefused(event.job, event.peer, event.number, text))
            out.append(CloseAt(event.peer, event.job))
            self._refused(share, "seat", text, now, out)
            return
        share.owes_since = None
        book.done_by_peer[event.peer] = book.done_by_peer.get(event.peer, 0) + len(event.rows)
        out.append(PartialTaken(event.job, event.peer, event.number))
        self._go_on(book, now, out, queued=False)

    def _seat_failed(self, event: SeatFailed, now: float, out: list[Effect]) -> None:
        share = self._roster.share(event.peer, event.job)
        if share is not None and share.state is not ShareState.REFUSED:
            out.append(CloseAt(event.peer, event.job))
            self._refused(share, "seat", event.text, now, out)

    def _progressed(self, event: Progressed, now: float, out: list[Effect]) -> None:
        share = self._roster.share(event.peer, event.job)
        if share is None:
            return
        leases = share.job.leases
        for task, fraction in event.fractions:
            held = leases.get(task)
            if held is not None and held.share is share and 0.0 <= fraction <= 1.0:
                share.job.fractions[task] = fraction

    def _settled(
        self, book: JobBook, settling: Settling, now: float, out: list[Effect], *, refill: bool = False
    ) -> None:
        """Say what became of a batch of attempts, and go on with the job or end it.

        `refill`: a peer is out, so tasks that waited for it may go where they failed before.
        """
        if book.state is not JobState.RUNNING:
            return
        job = book.spec.job
        if settling.completed:
            out.append(Completed(job, tuple(settling.completed)))
        if settling.discarded:
            out.append(Discarded(job, settling.discarded))
        cancelled = settling.cancelled_at()
        out.extend([CancelAt(peer, job, tuple(leases)) for peer, leases in cancelled.items()])
        out.extend([TaskRetried(job, task, peer, outcome) for task, peer, outcome in settling.retried])
        out.extend([GivenUp(job, task, outcome, history) for task, outcome, history in settling.given_up])
        failure = settling.first_failure() if book.failed else None
        if failure is not None and book.spec.options.on_error is OnError.RAISE:
            task, outcome, detail = failure
            reason = f"task {task} failed ({outcome.name.lower().replace('_', ' ')})" + (
                f": {detail}" if detail else ""
            )
            self._end(book, now, out, JobState.FAILED, EndCause.TASK, reason, task, outcome)
            return
        if settling.retried:
            self._offering.to_more_peers(book, now, out)
        self._go_on(book, now, out, queued=refill or bool(settling.requeued))
        if cancelled:
            # The losers of a race free slots at peers that did not report.
            self._filling.fill([self._roster.lenders[peer] for peer in cancelled], now, out)

    # --- going on -----------------------------------------------------------------------------------------------------

    def _go_on(self, book: JobBook, now: float, out: list[Effect], *, queued: bool) -> None:
        """End the job if it is complete; else fill peers where tasks were `queued`, and read on."""
        if book.is_complete:
            self._end(book, now, out, JobState.SUCCEEDED, EndCause.DONE, "")
            return
        if book.waiting:
            self._roster.waiting[book.spec.job] = book
            if queued:
                self._filling.fill_job(book, now, out)
                self._offering.for_waiting(book, now, out)
        self._filling.want_inputs(book, out)
        self._filling.watch(book, now)
        if book.is_choosy or book.placing.has_failed:
            self._look_for_peers(book, now, out)

    def _end(
        self,
        book: JobBook,
        now: float,
        out: list[Effect],
        state: JobState,
        cause: EndCause,
        reason: str,
        task: TaskIndex | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        """End a job and give what it had to the others."""
        job = book.spec.job
        open_at = sorted(peer for peer, share in book.shares.items() if share.state is not ShareState.REFUSED)
        out.extend(CloseAt(peer, job) for peer in open_at)
        out.append(JobEnded(job, state, cause, reason, task, outcome, refusals(book)))
        freed = self._roster.leave(book)
        book.end(state, now)
        self._ended.append(job)
        if len(self._ended) > limits.ENDED_JOBS_KEPT:
            del self._jobs[self._ended.popleft()]
        for lender in freed:
            self._offering.to_peer(lender, now, out)
        self._filling.fill(freed, now, out)

    def _tick(self, event: Tick, now: float, out: list[Effect]) -> None:
        for kind, job, peer in self._roster.timers.due(now):
            book = self._running(job)
            if book is None:
                continue
            if kind == "job":
                reason = f"the job took longer than its time-out of {book.spec.options.job_timeout_s:g} s and was ended"
                self._end(book, now, out, JobState.FAILED, EndCause.JOB_TIMEOUT, reason)
            elif kind == "late":
                self._filling.copy_late(book, now, out)
            elif kind == "balance":
                self._balancing.look(book, now, out)
            elif kind == "seat" and peer is not None:
                if peer in book.shares:
                    self._look_at_seat(book.shares[peer], now, out)
            elif kind == "unmet":
                self._go_further(book, now, out)
            elif peer is not None and peer in book.shares:
                self._share_alarm(book.shares[peer], now, out)

    def _share_alarm(self, share: Share, now: float, out: list[Effect]) -> None:
        if share.state is ShareState.REFUSED:
            if not share.is_seat:
                self._offering.offer_again(share, now, out)
            return
        if share.is_seat and share.state is ShareState.OPENING:
            text = f"no answer to the offer of a share for {coordinating.SEAT_PATIENCE_S:g} s"
            out.append(CloseAt(share.peer, share.job.spec.job))
            self._refused(share, "silent", text, now, out)
            return
        share.paused = False
        # The peer was silent for too long, or granted nothing: others may be needed, and tasks that waited for this one
        # may run where they failed before.
        self._go_further(share.job, now, out)

    def _running(self, job: JobId) -> JobBook | None:
        book = self._jobs.get(job)
        return book if book is not None and book.state is JobState.RUNNING else None
