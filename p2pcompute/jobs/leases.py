"""The book of one job at its origin: which tasks wait, which are leased to whom, which are settled.

Every task that was added is in exactly one of four places: a queue, the leases, what coordinators hold merged, or the count of settled ones; a
task with a late copy is leased twice. A result counts only if it comes from the holder of a lease, with the attempt number of that lease,
and settling a task removes both its leases: so each task is settled exactly once whatever arrives how often.

Leases of one batch share one `Held` object, so the hot path costs one dictionary entry a task. The book knows no
peers beyond its shares, no credit and no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from p2pcompute.jobs.coordinating import Seating, merges
from p2pcompute.jobs.grouping import take_waiting
from p2pcompute.jobs.placing import Placing
from p2pcompute.jobs.retries import HARMLESS, failed_at, is_given_up
from p2pcompute.jobs.shares import Held, Share, ShareState
from p2pcompute.jobs.speed import Speed
from p2pcompute.jobs.taskset import TaskSet
from p2pcompute.model.ids import REDUCE_BASE, PeerId, TaskIndex, is_seat
from p2pcompute.model.job import FINAL_OUTCOMES, Aggregation, Attempt, JobSpec, JobState, Lease, Outcome, TaskReport


@dataclass(slots=True)
class Settling:
    """What a batch of reports came to."""

    #: Final outcomes, each counted for the first time.
    completed: list[tuple[TaskReport, PeerId]] = field(default_factory=list)
    #: How many of them say how long a task takes, those that a coordinator merged included.
    learned: int = 0
    #: Copies that lost the race.
    cancelled: list[tuple[Share, Lease]] = field(default_factory=list)
    #: Attempts that died and will be repeated.
    retried: list[tuple[TaskIndex, PeerId, Outcome]] = field(default_factory=list)
    #: Tasks without further attempts, with the last outcome and the history.
    given_up: list[tuple[TaskIndex, Outcome, tuple[Attempt, ...]]] = field(default_factory=list)
    #: Late and double results.
    discarded: int = 0
    #: Tasks that wait again, in the order in which they were lost.
    requeued: list[TaskIndex] = field(default_factory=list)
    #: Tasks that the peer gave back because it was asked to.
    recalled: list[TaskIndex] = field(default_factory=list)
    #: Tasks that the peer gave back untouched, unasked.
    returned: int = 0
    #: The peer cannot run the program: what it said, else None.
    cannot_run: str | None = None

    def cancelled_at(self) -> dict[PeerId, list[Lease]]:
        """The copies that lost the race, by peer."""
        by_peer: dict[PeerId, list[Lease]] = {}
        for share, lease in self.cancelled:
            by_peer.setdefault(share.peer, []).append(lease)
        return by_peer

    def first_failure(self) -> tuple[TaskIndex, Outcome, str] | None:
        """The first task that failed for good, how, and in words."""
        for report, _ in self.completed:
            if report.outcome is not Outcome.RETURNED:
                return report.task, report.outcome, report.detail
        for task, outcome, history in self.given_up:
            return task, outcome, history[-1].detail if history else ""
        return None


class JobBook:
    """One job of this origin."""

    def __init__(self, spec: JobSpec, serial: int, now: float, placing: Placing) -> None:
        #: What the submitter asked for.
        self.spec = spec
        #: Chooses among peers.
        self.placing = placing
        #: Whether it may leave out peers that could run it (`Placing.is_gated`).
        self.is_choosy = placing.is_gated
        #: Number of the job at this origin; orders jobs by age.
        self.serial = serial
        #: When it was opened.
        self.opened_at = now
        #: RUNNING until it ends, and never again after.
        self.state = JobState.RUNNING
        #: When it ended; None while RUNNING.
        self.ended_at: float | None = None
        #: Tasks to be repeated; they go before the fresh ones.
        self.again: deque[TaskIndex] = deque()
        #: Tasks that were never leased, in the order in which they were added.
        self.fresh: deque[TaskIndex] = deque()
        #: Leased tasks; none of them waits in a queue.
        self.leases: dict[TaskIndex, Held] = {}
        #: Late copies: a part of the leased tasks, each at another peer than its lease.
        self.copies: dict[TaskIndex, Held] = {}
        #: Leased tasks that were recalled, by the lease that was; each waits for the peer's answer, or runs there.
        self.recalled: dict[TaskIndex, Held] = {}
        #: Tasks whose results coordinators hold merged with others, by the lease that was; settled by a partial aggregate that names them.
        self.merged: dict[TaskIndex, Held] = {}
        #: Which seats stand for which peers.
        self.seating = Seating()
        #: Whether coordinators may merge results.
        self.merges = merges(spec)
        #: Whether they merge neighbours: of a group that is not whole every single value travels.
        self.merges_groups = self.merges and spec.aggregation is Aggregation.REDUCE
        #: Batches with open leases, by serial; oldest first.
        self.batches: dict[int, Held] = {}
        #: Serial of the next batch.
        self.next_batch = 1
        #: Attempts that died, of tasks that are not settled.
        self.history: dict[TaskIndex, list[Attempt]] = {}
        #: Newest attempt number of unsettled tasks that had more than one.
        self.attempts: dict[TaskIndex, int] = {}
        #: Every task that was added.
        self.known = TaskSet()
        #: Every task that is settled: a part of `known`.
        self.settled = TaskSet()
        #: How many of the settled ones failed.
        self.failed = 0
        #: Attempts that were repeated.
        self.retries = 0
        #: Late and double results that were dropped.
        self.duplicates = 0
        #: Results that counted, by the peer they came from; survives the peer.
        self.done_by_peer: dict[PeerId, int] = {}
        #: What leased tasks said about themselves, 0 to 1.
        self.fractions: dict[TaskIndex, float] = {}
        #: One for each usable peer that the job was offered to.
        self.shares: dict[PeerId, Share] = {}
        #: No task will be added any more.
        self.inputs_ended = False
        #: Inputs asked for and not yet added.
        self.asked = 0
        #: `Stalled` was said and is still true.
        self.stalled = False
        #: Bytes of the arguments of all known tasks.
        self.argument_bytes = 0
        #: Whether leases were moved when loads were last looked at (`balancing.py`).
        self.is_balancing = False
        #: Seconds a task takes, over all peers.
        self.speed = Speed()

    @property
    def waiting(self) -> int:
        """Tasks in the queues."""
        return len(self.again) + len(self.fresh)

    @property
    def is_complete(self) -> bool:
        """Whether every task is settled and none will come."""
        return self.inputs_ended and not self.leases and not self.again and not self.fresh and not self.merged

    @property
    def has_begun(self) -> bool:
        """Whether anything of it was ever sent."""
        return self.next_batch > 1

    @property
    def left(self) -> int | None:
        """Tasks that are not settled; None while nobody knows how many there will be."""
        if self.inputs_ended:
            return len(self.known) - len(self.settled)
        total = self.spec.expected_tasks
        held = self.waiting + len(self.leases) + len(self.merged)
        return None if total is None else max(total - len(self.settled), held)

    def admits(self, peer: PeerId) -> bool:
        """Whether the job may be open at `peer`: a seat that stands for a region of it, or a peer that no seat stands for."""
        return self.seating.holds(peer) if is_seat(peer) else peer not in self.seating.covered

    def order(self) -> tuple[int, int]:
        """Jobs that are served first compare less: by priority, then by age."""
        return (-self.spec.options.priority, self.serial)

    def add(self, tasks: Iterable[TaskIndex]) -> int:
        """Queue the tasks that are new; how many were."""
        before = len(self.known)
        add, append = self.known.add, self.fresh.append
        for task in tasks:
            if add(task):
                append(task)
        return len(self.known) - before

    # --- leasing ------------------------------------------------------------------------------------------------------

    def lease(self, share: Share, count: int, now: float, elsewhere: Callable[[TaskIndex], bool]) -> tuple[Lease, ...]:
        """Lease up to `count` waiting tasks to `share`, repeated ones first.

        `elsewhere` says of a task that failed at this peer whether it should rather wait for another one.
        """
        rows: list[Lease] = []
        if self.again:
            kept: list[TaskIndex] = []
            while self.again and len(rows) < count:
                task = self.again.popleft()
                if failed_at(self.history.get(task, ()), share.peer) and elsewhere(task):
                    kept.append(task)
                else:
                    rows.append(self._lease_again(task, share, now, self.leases))
            self.again.extendleft(reversed(kept))
        fresh = min(count - len(rows), len(self.fresh))
        if fresh > 0:
            held = self._batch(share, 1, now, fresh)
            popleft, leases = self.fresh.popleft, self.leases
            for _ in range(fresh):
                task = popleft()
                leases[task] = held
                rows.append(Lease(task, 1))
        return tuple(rows)

    def lease_to_seat(
        self, share: Share, count: int, now: float, *, align: int, breaks: bool, reductions: bool
    ) -> tuple[Lease, ...]:
        """Lease up to `count` waiting tasks to a seat, repeated ones first. `reductions`: these too.

        `align` above 1: whole groups of so many neighbours where there are as many, from the end of the queue, whose front is other
        peers'; so the coordinator can merge what belongs together. `breaks`: else single tasks too.
        """
        rows: list[Lease] = []
        kept: list[TaskIndex] = []
        while self.again and len(rows) < count:
            task = self.again.popleft()
            if task >= REDUCE_BASE and not reductions:
                kept.append(task)
            else:
                rows.append(self._lease_again(task, share, now, self.leases))
        self.again.extendleft(reversed(kept))
        tasks = (
            take_waiting(
                self.fresh,
                count - len(rows),
                align,
                is_whole=self.inputs_ended,
                breaks=breaks,
                reductions=reductions,
            )
            if count > len(rows)
            else []
        )
        if tasks:
            held = self._batch(share, 1, now, len(tasks))
            for task in tasks:
                self.leases[task] = held
                rows.append(Lease(task, 1))
        return tuple(rows)

    def withdraw(self, tasks: Iterable[TaskIndex]) -> tuple[TaskIndex, ...]:
        """Forget those of `tasks` that wait, as if they had never been added; which they were."""
        wanted = set(tasks)
        gone = [task for queue in (self.again, self.fresh) for task in queue if task in wanted]
        if gone:
            self.again = deque(task for task in self.again if task not in wanted)
            self.fresh = deque(task for task in self.fresh if task not in wanted)
            for task in gone:
                self.known.discard(task)
                self._forget(task)
        return tuple(gone)

    def copy(self, task: TaskIndex, share: Share, now: float) -> Lease:
        """Lease a second attempt of a leased task to another peer."""
        assert task not in self.copies
        assert self.leases[task].share is not share
        return self._lease_again(task, share, now, self.copies)

    def _lease_again(self, task: TaskIndex, share: Share, now: float, leases: dict[TaskIndex, Held]) -> Lease:
        # Even a harmless loss makes a new number: a stray report of the old attempt must not count for the new.
        attempt = self.attempts.get(task, 1) + 1
        self.attempts[task] = attempt
        leases[task] = self._batch(share, attempt, now, 1)
        return Lease(task, attempt)

    def recall(self, wanted: Mapping[Share, tuple[int, int]]) -> dict[Share, tuple[Lease, ...]]:
        """Note leases as recalled, for each share (how many, kept): those that were sent last; the `kept` oldest stay, and those with copies.

        They are leased until the peer gives them back.
        """
        rows: dict[Share, list[tuple[int, TaskIndex, Held]]] = {share: [] for share in wanted}
        for task, held in self.leases.items() if rows else ():
            if held.share in rows:
                rows[held.share].append((held.serial, task, held))
        found: dict[Share, tuple[Lease, ...]] = {}
        for share, (count, kept) in wanted.items():
            oldest = sorted(rows[share], key=lambda row: row[0])
            free = [row for row in oldest[kept:] if row[1] not in self.copies and row[1] not in self.recalled]
            taken = free[max(len(free) - count, 0) :]
            self.recalled.update((task, held) for _, task, held in taken)
            found[share] = tuple(Lease(task, held.attempt) for _, task, held in taken)
        return found

    def _batch(self, share: Share, attempt: int, now: float, count: int) -> Held:
        if not share.out:
            share.began_at = now
        share.out += count
        held = Held(self.next_batch, share, attempt, now, share.out)
        held.open = count
        self.batches[held.serial] = held
        self.next_batch += 1
        return held

    def _release(self, held: Held) -> None:
        held.share.out -= 1
        held.open -= 1
        if not held.open:
            del self.batches[held.serial]

    # --- settling -----------------------------------------------------------------------------------------------------

    def take_reports(self, share: Share, reports: Sequence[TaskReport]) -> Settling:
        """Settle what `reports` from `share` settle, and queue again what they lost."""
        done = Settling()
        leases, settle, peer = self.leases, self._settle, share.peer
        learned = 0
        learned_s = 0.0
        for report in reports:
            task = report.task
            held = leases.get(task)
            if held is None or held.share is not share or held.attempt != report.attempt:
                held = self.copies.get(task)
                if held is None or held.share is not share or held.attempt != report.attempt:
                    done.discarded += report.outcome not in HARMLESS
                    continue
            outcome = report.outcome
            if outcome in FINAL_OUTCOMES:
                settle(task, held, done)
                done.completed.append((report, peer))
                if outcome is Outcome.RETURNED or outcome is Outcome.RAISED:
                    learned += 1
                    learned_s += report.wall_s
                self.failed += outcome is not Outcome.RETURNED
            elif outcome is not Outcome.MERGED:
                self._lose(task, held, Attempt(peer, outcome, report.wall_s, report.detail), done)
            elif share.is_seat and self.merges and task < REDUCE_BASE:
                self._merge(task, held)
                learned += 1
                learned_s += report.wall_s
            else:
                # No partial aggregate could ever name it: whoever says so has nothing to show for it.
                unrun = Attempt(peer, Outcome.RETURNED_UNRUN, report.wall_s, "merged by nobody's leave")
                self._lose(task, held, unrun, done)
        self.done_by_peer[peer] = self.done_by_peer.get(peer, 0) + len(done.completed)
        self.duplicates += done.discarded
        self.again.extendleft(reversed(done.requeued))
        if self.recalled:
            for report in reports:
                if report.task in self.settled or report.task in self.merged:
                    self.recalled.pop(report.task, None)
        if learned:
            share.learn(learned_s, learned)
            done.learned = learned
        return done

    def discard(self, reports: Iterable[TaskReport]) -> int:
        """Count results that come too late to matter; how many there were."""
        late = sum(report.outcome not in HARMLESS for report in reports)
        self.duplicates += late
        return late

    def lose_share(self, share: Share, outcome: Outcome, detail: str, now: float) -> Settling:
        """Take back every lease that `share` holds, as attempts that ended with `outcome`."""
        done = Settling()
        for leases in (self.copies, self.leases):
            for task, held in [row for row in leases.items() if row[1].share is share]:
                self._lose(task, held, Attempt(share.peer, outcome, now - held.since, detail), done)
        for task in [task for task, held in self.merged.items() if held.share is share]:
            # Nothing is known against it: only the value is lost.
            self.attempts[task] = max(self.attempts.get(task, 1), self.merged.pop(task).attempt)
            done.requeued.append(task)
        self.again.extendleft(reversed(done.requeued))
        return done

    def take_partial(self, share: Share, rows: Iterable[tuple[TaskIndex, int]]) -> bool:
        """Settle the (task, attempt) of a partial aggregate: all of them, or none where any is not held merged at `share`."""
        named = list(rows)
        if len({task for task, _ in named}) != len(named):
            return False
        for task, attempt in named:
            held = self.merged.get(task)
            if held is None or held.share is not share or held.attempt != attempt:
                return False
        for task, _ in named:
            del self.merged[task]
            added = self.settled.add(task)
            assert added, f"task {task} was settled twice"
            self._forget(task)
        return True

    def drop(self, tasks: Iterable[TaskIndex]) -> Settling:
        """Settle tasks that nobody wants any more; what they had out is to be cancelled."""
        done = Settling()
        for task in tasks:
            if task not in self.known or task in self.settled or self._is_merging(task):
                continue
            self.settled.add(task)
            self.recalled.pop(task, None)
            for leases in (self.leases, self.copies):
                held = leases.pop(task, None)
                if held is not None:
                    self._release(held)
                    done.cancelled.append((held.share, Lease(task, held.attempt)))
            for queue in (self.again, self.fresh):
                if task in queue:
                    queue.remove(task)
            self._forget(task)
        return done

    def _is_merging(self, task: TaskIndex) -> bool:
        """Whether its value may be part of what a coordinator holds: nobody can take it out again."""
        held = self.leases.get(task)
        return task in self.merged or (self.merges and held is not None and held.share.is_seat)

    def end(self, state: JobState, now: float) -> None:
        """The job has ended: forget everything that only a running one needs."""
        self.state = state
        self.ended_at = now
        self.stalled = False
        for kept in (self.again, self.fresh, self.leases, self.copies, self.batches, self.history, self.attempts):
            kept.clear()
        self.recalled.clear()
        self.merged.clear()
        self.seating.clear()
        self.fractions.clear()
        self.shares.clear()

    def _settle(self, task: TaskIndex, winner: Held, done: Settling) -> None:
        """Take a task out of the leases for good; its other lease, where it has one, lost the race."""
        added = self.settled.add(task)
        assert added, f"task {task} was settled twice"
        held = self.leases.pop(task)
        self._release(held)
        if self.copies:
            copy = self.copies.pop(task, None)
            if copy is not None:
                self._release(copy)
                loser = copy if winner is held else held
                done.cancelled.append((loser.share, Lease(task, loser.attempt)))
        self._forget(task)

    def _merge(self, task: TaskIndex, held: Held) -> None:
        """The coordinator has the value of a leased task: it holds no slot any more."""
        assert task not in self.copies, "a task at a seat has a copy"
        del self.leases[task]
        self._release(held)
        self.merged[task] = held
        self.fractions.pop(task, None)

    def _forget(self, task: TaskIndex) -> None:
        # The tests spare the hot path three look-ups a task.
        if self.attempts:
            self.attempts.pop(task, None)
        if self.history:
            self.history.pop(task, None)
        if self.fractions:
            self.fractions.pop(task, None)

    def _lose(self, task: TaskIndex, held: Held, attempt: Attempt, done: Settling) -> None:
        """One of the leases of `task` ended without a final outcome."""
        outcome = attempt.outcome
        self._release(held)
        self.fractions.pop(task, None)
        was_recalled = self.recalled.get(task) is held
        if was_recalled:
            del self.recalled[task]
        if outcome is Outcome.CANNOT_RUN:
            done.cannot_run = attempt.detail
        elif was_recalled and outcome is Outcome.RETURNED_UNRUN:
            done.recalled.append(task)
        elif outcome in HARMLESS:
            done.returned += 1
        else:
            self.history.setdefault(task, []).append(attempt)
        copy = self.copies.pop(task, None)
        if copy is not None:
            # The other attempt still runs and becomes the only one.
            if copy is not held:
                self.leases[task] = copy
            return
        del self.leases[task]
        history = tuple(self.history.get(task, ()))
        if outcome not in HARMLESS and is_given_up(history, self.spec.options.retries):
            self.settled.add(task)
            self.failed += 1
            self._forget(task)
            done.given_up.append((task, outcome, history))
            return
        if outcome not in HARMLESS:
            self.retries += 1
            done.retried.append((task, attempt.peer, outcome))
        done.requeued.append(task)

    def check_invariants(self) -> None:
        """Raise AssertionError where the book contradicts itself."""
        if self.state is not JobState.RUNNING:
            forgotten = (
                self.leases,
                self.copies,
                self.again,
                self.fresh,
                self.shares,
                self.batches,
                self.recalled,
                self.merged,
            )
            assert not any(forgotten)
            return
        queued = [*self.again, *self.fresh]
        assert len(set(queued)) == len(queued)
        assert not any(task in self.leases or task in self.settled for task in queued)
        assert not any(task in self.settled for task in self.leases)
        assert not any(task in self.leases or task in self.settled or task in queued for task in self.merged)
        assert all(self.shares.get(held.share.peer) is held.share for held in self.merged.values())
        assert len(self.known) == len(queued) + len(self.leases) + len(self.merged) + len(self.settled)
        out: dict[int, int] = {}
        open_: dict[int, int] = {}
        for leases in (self.leases, self.copies):
            for task, held in leases.items():
                assert task in self.known
                assert self.shares.get(held.share.peer) is held.share
                assert held.share.state is ShareState.READY
                out[id(held.share)] = out.get(id(held.share), 0) + 1
                open_[held.serial] = open_.get(held.serial, 0) + 1
        for task, held in self.copies.items():
            assert self.leases[task].share is not held.share
            assert not held.share.is_seat
        for share in self.shares.values():
            assert share.out == out.get(id(share), 0)
            assert (share.refusal is None) == (share.state is not ShareState.REFUSED)
        assert {serial: held.open for serial, held in self.batches.items()} == open_
        assert not any(task in self.settled for task in (*self.history, *self.attempts, *self.fractions))
        assert all(self.leases.get(task) is held for task, held in self.recalled.items())
