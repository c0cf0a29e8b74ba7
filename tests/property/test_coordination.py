"""Shares of jobs at seats of communities, under random reports, partial aggregates true and forged, losses, recalls and time.

The rules are the world: ordinary peers, and two communities whose coordinators hold tasks, merge them, hand over what they merged,
give back what waits, fall silent or lie. After each event the machine checks itself; the test checks that each task counts once, that
nobody whom a seat stands for gets a task, that nothing is copied to or from a seat, and that every job ends once honest peers answer.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2pcompute.jobs import dispatch as d
from p2pcompute.jobs.coordinating import Region
from p2pcompute.jobs.plan import Facts
from p2pcompute.model import limits
from p2pcompute.model.ids import REDUCE_BASE, JobId, PeerId, ProgramId, TaskIndex, is_seat, seat_of
from p2pcompute.model.job import (
    FINAL_OUTCOMES,
    Aggregation,
    JobOptions,
    JobSpec,
    JobState,
    OnError,
    Outcome,
    TaskReport,
)
from p2pcompute.model.placement import Coordination

Row = tuple[TaskIndex, int]
Place = tuple[PeerId, JobId]

HOME = [PeerId(bytes([number]) * 32) for number in (1, 2)]
FAR = [[PeerId(bytes([number]) * 32) for number in numbers] for numbers in ((11, 12, 13), (21, 22, 23))]
SEATS = [seat_of(peer) for members in FAR for peer in members[:2]]
REGIONS = tuple(Region(frozenset(members), tuple(map(seat_of, members[:2])), 2) for members in FAR)
PEERS = [*HOME, *FAR[0], *FAR[1], *SEATS]
JOBS = [JobId(bytes([number]) * 12) for number in (1, 2)]
FACTS = Facts(gives_back=True)
LOST = [Outcome.RETURNED_UNRUN, Outcome.WORKER_DIED, Outcome.CANNOT_RUN, Outcome.CANCELLED]
OUTCOMES = [Outcome.RETURNED, Outcome.RETURNED, Outcome.MERGED, Outcome.MERGED, Outcome.MERGED, Outcome.RAISED, *LOST]


class CoordinationWorld(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = d.Dispatch()
        self.now = 0.0
        self.specs: dict[JobId, JobSpec] = {}
        self.state: dict[JobId, JobState] = {}
        self.added: dict[JobId, list[TaskIndex]] = {}
        self.inputs_ended: set[JobId] = set()
        self.settled: dict[JobId, Counter[TaskIndex]] = {}
        self.usable: set[PeerId] = set()
        self.slots: dict[PeerId, int] = {}
        self.offered: set[Place] = set()
        self.accepted: set[Place] = set()
        #: Leases, and tasks that a seat said to have merged, as (task, attempt).
        self.held: dict[Place, list[Row]] = {}
        self.merged: dict[Place, list[Row]] = {}
        self.recalled: dict[Place, list[Row]] = {}
        self.attempts: dict[tuple[JobId, TaskIndex], list[int]] = {}
        self.old: list[tuple[PeerId, JobId, TaskReport]] = []
        self.number = 0
        #: What the last partial aggregate came to.
        self.answers: list[d.Effect] = []

    def feed(self, event: d.Event) -> None:
        for effect in self.machine.handle(event, self.now):
            self.perform(effect)
        self.machine.check_invariants()

    def covered(self, job: JobId) -> frozenset[PeerId]:
        """Whom the seats where the job is offered or open stand for."""
        standing = [peer for peer, other in self.offered | self.accepted if other == job and is_seat(peer)]
        return frozenset(m for region in REGIONS for seat in standing if seat in region.seats for m in region.members)

    def perform(self, effect: d.Effect) -> None:
        job = effect.job
        assert self.state[job] is JobState.RUNNING or isinstance(effect, d.Discarded), "an effect after JobEnded"
        match effect:
            case d.OpenAt(peer):
                assert (peer, job) not in self.offered | self.accepted
                if is_seat(peer):
                    assert self.specs[job].options.coordination is not Coordination.OFF
                assert peer not in self.covered(job), "offered to a peer for which a seat stands"
                self.offered.add((peer, job))
            case d.Send(peer, _, leases):
                self.sent(peer, job, [(lease.task, lease.attempt) for lease in leases])
            case d.CancelAt(peer, _, leases):
                for lease in leases:
                    row = (lease.task, lease.attempt)
                    self.held[peer, job].remove(row)
                    self.old.append((peer, job, TaskReport(*row, Outcome.RETURNED)))
            case d.RecallAt(peer, _, leases):
                rows = [(lease.task, lease.attempt) for lease in leases]
                assert set(rows) <= set(self.held[peer, job])
                self.recalled.setdefault((peer, job), []).extend(rows)
            case d.CloseAt(peer):
                assert (peer, job) in self.offered | self.accepted
                self.leave(peer, job)
            case d.Completed(_, reports):
                for report, _ in reports:
                    assert report.outcome in FINAL_OUTCOMES
                    self.settled[job][report.task] += 1
            case d.GivenUp(_, task):
                self.settled[job][task] += 1
            case d.PartialTaken() | d.PartialRefused():
                self.answers.append(effect)
            case d.JobEnded(_, state):
                self.state[job] = state
                assert not any(job == other for _, other in self.offered | self.accepted)
        assert max(self.settled[job].values(), default=1) == 1, "a task was counted twice"

    def sent(self, peer: PeerId, job: JobId, rows: list[Row]) -> None:
        assert (peer, job) in self.accepted
        assert 0 < len(rows) <= limits.BATCH_TASKS_MAX
        assert peer not in self.covered(job), "sent to a peer for which a seat stands"
        elsewhere = {row[0]: place[0] for place, held in self.held.items() if place[1] == job for row in held}
        merged = {row[0] for place, held in self.merged.items() if place[1] == job for row in held}
        for task, attempt in rows:
            assert not self.settled[job][task]
            assert task not in merged, "it is part of what a coordinator holds"
            if task in elsewhere:
                assert not any(map(is_seat, (peer, elsewhere[task]))), "copied to or from a seat"
            numbers = self.attempts.setdefault((job, task), [])
            assert attempt not in numbers
            numbers.append(attempt)
        self.held.setdefault((peer, job), []).extend(rows)

    def leave(self, peer: PeerId, job: JobId) -> None:
        place = (peer, job)
        self.offered.discard(place)
        self.accepted.discard(place)
        self.recalled.pop(place, None)
        for row in [*self.held.pop(place, []), *self.merged.pop(place, [])]:
            self.old.append((peer, job, TaskReport(*row, Outcome.MERGED if is_seat(peer) else Outcome.RETURNED)))

    # --- jobs ---------------------------------------------------------------------------------------------------------

    @initialize(usable=st.sets(st.sampled_from(PEERS)), tasks=st.integers(40, 120), reduce=st.booleans())
    def start(self, usable: set[PeerId], tasks: int, reduce: bool) -> None:
        self.feed(d.Regioned(REGIONS))
        for peer in sorted({*usable, SEATS[0], SEATS[2]}):
            self.peer_usable(peer)
        self.open_job(JOBS[0], Aggregation.REDUCE if reduce else Aggregation.SUM, Coordination.AUTO, True, 3, False)
        self.add_tasks(JOBS[0], tasks)
        self.answer_offers(2)
        # From the start both seats hold something merged, and most have more to do.
        for place in sorted(place for place in self.accepted if is_seat(place[0])):
            rows = self.held.get(place, [])
            part, self.held[place] = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            self.merged[place] = part
            self.feed(d.Reported(*place, tuple(TaskReport(*row, Outcome.MERGED, 0.004) for row in part)))

    @rule(
        job=st.sampled_from(JOBS),
        aggregation=st.sampled_from([Aggregation.NONE, Aggregation.SUM, Aggregation.REDUCE]),
        coordination=st.sampled_from(Coordination),
        skip=st.booleans(),
        retries=st.integers(0, 3),
        weighted=st.booleans(),
    )
    def open_job(
        self, job: JobId, aggregation: Aggregation, coordination: Coordination, skip: bool, retries: int, weighted: bool
    ) -> None:
        if job in self.specs:
            return
        on_error = OnError.SKIP if skip else OnError.RAISE
        options = JobOptions(on_error=on_error, coordination=coordination, retries=retries)
        entry = "reduce" if aggregation is Aggregation.REDUCE else None
        program = ProgramId(b"p" * 32)
        self.specs[job] = JobSpec(job, "job", program, "map", aggregation, entry, options, None, weighted)
        self.state[job] = JobState.RUNNING
        self.added[job] = []
        self.settled[job] = Counter()
        self.feed(d.JobOpened(self.specs[job]))

    @rule(job=st.sampled_from(JOBS), count=st.integers(1, 80))
    def add_tasks(self, job: JobId, count: int) -> None:
        if job in self.specs and job not in self.inputs_ended and self.state[job] is JobState.RUNNING:
            first = sum(task < REDUCE_BASE for task in self.added[job])
            self.add(job, tuple(TaskIndex(task) for task in range(first, first + count)))

    @rule(job=st.sampled_from(JOBS), number=st.integers(0, 9))
    def add_reduction(self, job: JobId, number: int) -> None:
        task = TaskIndex(REDUCE_BASE + number)
        if self.state.get(job) is not JobState.RUNNING or job in self.inputs_ended or task in self.added[job]:
            return
        self.add(job, (task,))

    def add(self, job: JobId, tasks: tuple[TaskIndex, ...]) -> None:
        self.added[job].extend(tasks)
        self.feed(d.TasksAdded(job, tasks))

    @rule(job=st.sampled_from(JOBS))
    def end_inputs(self, job: JobId) -> None:
        if job in self.specs:
            self.inputs_ended.add(job)
        self.feed(d.InputsEnded(job))

    @rule(job=st.sampled_from(JOBS), really=st.integers(0, 9))
    def cancel(self, job: JobId, really: int) -> None:
        if really == 0:
            self.feed(d.JobCancelled(job))

    @rule(job=st.sampled_from(JOBS), data=st.data())
    def drop(self, job: JobId, data: st.DataObject) -> None:
        """Nobody wants a task any more; one whose value may be merged stays what it is."""
        left = [task for task in self.added.get(job, ()) if not self.settled[job][task]]
        if not left or self.state[job] is not JobState.RUNNING:
            return
        task = data.draw(st.sampled_from(left))
        before = self.machine._jobs[job]
        merging = before._is_merging(task)
        if not merging:
            self.settled[job][task] += 1
        self.feed(d.TasksDropped(job, (task,)))

    @rule(job=st.sampled_from(JOBS), data=st.data())
    def withdraw(self, job: JobId, data: st.DataObject) -> None:
        """As a coordinator's origin takes back what waits there: only what waits is forgotten, and may come again."""
        left = [task for task in self.added.get(job, ()) if not self.settled[job][task]]
        if not left or self.state[job] is not JobState.RUNNING or job in self.inputs_ended:
            return
        wanted = data.draw(st.lists(st.sampled_from(left), min_size=1, max_size=8, unique=True))
        effects = self.machine.handle(d.TasksWithdrawn(job, tuple(wanted)), self.now)
        self.machine.check_invariants()
        gone = next(effect.tasks for effect in effects if isinstance(effect, d.Withdrawn))
        assert set(gone) <= set(wanted)
        assert not set(gone) & {row[0] for place, rows in self.held.items() if place[1] == job for row in rows}
        for effect in effects:
            self.perform(effect)
        for task in gone:
            self.attempts.pop((job, task), None)
        self.old = [row for row in self.old if row[1] != job or row[2].task not in gone]
        self.feed(d.TasksAdded(job, gone))

    # --- peers --------------------------------------------------------------------------------------------------------

    @rule(peer=st.sampled_from(PEERS))
    def peer_usable(self, peer: PeerId) -> None:
        self.usable.add(peer)
        self.feed(d.PeerUsable(peer, 0.02 if is_seat(peer) else 0.001, False, 50.0, FACTS))

    @rule(peer=st.sampled_from(PEERS), really=st.integers(0, 2))
    def peer_gone(self, peer: PeerId, really: int) -> None:
        if peer in self.usable and really == 0:
            self.usable.discard(peer)
            self.slots.pop(peer, None)
            for job in JOBS:
                self.leave(peer, job)
            self.feed(d.PeerGone(peer, "the link broke"))

    @rule(slots=st.integers(1, 4))
    def answer_offers(self, slots: int) -> None:
        for peer, job in sorted(self.offered):
            if (peer, job) in self.offered:
                self.offered.remove((peer, job))
                self.accepted.add((peer, job))
                self.feed(d.PeerAccepted(peer, job))
                self.grant(peer, slots)

    @rule(peer=st.sampled_from(PEERS), job=st.sampled_from(JOBS), reason=st.sampled_from(["busy", "share", "module"]))
    def refuse(self, peer: PeerId, job: JobId, reason: str) -> None:
        if (peer, job) in self.offered | self.accepted and (is_seat(peer) or reason == "busy"):
            self.leave(peer, job)
            self.feed(d.PeerRefused(peer, job, reason, "no"))

    @rule(peer=st.sampled_from(PEERS), slots=st.integers(0, 4))
    def grant(self, peer: PeerId, slots: int) -> None:
        if peer in self.usable:
            self.slots[peer] = slots
        self.feed(d.Granted(peer, slots))

    @rule(peer=st.sampled_from(SEATS), job=st.sampled_from(JOBS), really=st.integers(0, 3))
    def seat_fails(self, peer: PeerId, job: JobId, really: int) -> None:
        if really == 0:
            self.feed(d.SeatFailed(peer, job, "its partial aggregate was not fetched"))
            assert (peer, job) not in self.offered | self.accepted

    # --- reports ------------------------------------------------------------------------------------------------------

    @rule(data=st.data(), count=st.integers(1, 40), outcome=st.sampled_from(OUTCOMES), mixed=st.booleans())
    def report(self, data: st.DataObject, count: int, outcome: Outcome, mixed: bool) -> None:
        busy = sorted(place for place, rows in self.held.items() if rows)
        if not busy:
            return
        peer, job = data.draw(st.sampled_from(busy))
        rows = self.held[peer, job]
        taken = [rows.pop(0) for _ in range(min(count, len(rows)))]
        reports = [TaskReport(*row, outcome, 0.004, "said so") for row in taken]
        if mixed:
            reports[-1] = TaskReport(*taken[-1], data.draw(st.sampled_from(OUTCOMES)), 0.004, "said so")
        merges = is_seat(peer) and self.machine._jobs[job].merges
        for report in reports:
            if report.outcome is Outcome.MERGED and merges and report.task < REDUCE_BASE:
                self.merged.setdefault((peer, job), []).append((report.task, report.attempt))
            else:
                self.old.append((peer, job, report))
        self.feed(d.Reported(peer, job, tuple(reports)))

    @rule(data=st.data())
    def report_again_or_of_others(self, data: st.DataObject) -> None:
        """What was said before, or by another: nothing is settled by it."""
        if not self.old:
            return
        peer, job, report = data.draw(st.sampled_from(self.old[-80:]))
        sender = data.draw(st.sampled_from([peer, *PEERS]))
        if (report.task, report.attempt) in self.held.get((sender, job), ()):
            return
        outcome = data.draw(st.sampled_from([Outcome.MERGED, Outcome.RETURNED]))
        before = (sum(self.settled[job].values()), len(self.machine._jobs[job].merged))
        self.feed(d.Reported(sender, job, (TaskReport(report.task, report.attempt, outcome),)))
        assert (sum(self.settled[job].values()), len(self.machine._jobs[job].merged)) == before

    @rule(data=st.data())
    def answer_recall(self, data: st.DataObject) -> None:
        places = sorted(place for place, rows in self.recalled.items() if set(rows) & set(self.held.get(place, ())))
        if places:
            peer, job = data.draw(st.sampled_from(places))
            rows = [row for row in self.recalled.pop((peer, job)) if row in self.held[peer, job]]
            for row in rows:
                self.held[peer, job].remove(row)
                self.old.append((peer, job, TaskReport(*row, Outcome.RETURNED)))
            self.feed(d.Reported(peer, job, tuple(TaskReport(*row, Outcome.RETURNED_UNRUN) for row in rows)))

    # --- partial aggregates -------------------------------------------------------------------------------------------

    @rule(data=st.data(), whole=st.booleans())
    def hand_over(self, data: st.DataObject, whole: bool) -> None:
        owing = sorted(place for place, rows in self.merged.items() if rows)
        if owing:
            place = data.draw(st.sampled_from(owing))
            rows = self.merged[place]
            count = len(rows) if whole else data.draw(st.integers(1, len(rows)))
            self.merged[place] = rows[count:]
            self.take(place, rows[:count])

    def take(self, place: Place, rows: list[Row]) -> None:
        peer, job = place
        self.number += 1
        for task, _ in rows:
            self.settled[job][task] += 1
        before = len(self.answers)
        self.feed(d.PartialArrived(peer, job, self.number, tuple(rows)))
        assert self.answers[before:] == [d.PartialTaken(job, peer, self.number)]

    @rule(data=st.data(), how=st.sampled_from(["other", "twice", "attempt", "settled", "stolen", "leased"]))
    def forge(self, data: st.DataObject, how: str) -> None:
        """A partial aggregate that names a task which its seat does not hold merged, beside others that it does."""
        seats = sorted(place for place in self.accepted if is_seat(place[0]))
        if not seats:
            return
        place = data.draw(st.sampled_from(seats))
        peer, job = place
        mine = self.merged.get(place, [])
        forged: list[Row] = list(mine)
        wrong: list[Row] = []
        if how == "other":
            wrong = [(TaskIndex(10**6), 1)]
        elif how == "twice":
            wrong = mine[:1]
        elif how == "attempt" and mine:
            wrong, forged = [(mine[0][0], mine[0][1] + 1)], mine[1:]
        elif how == "settled":
            wrong = [(task, 1) for task, count in sorted(self.settled[job].items()) if count][:1]
        elif how == "stolen":
            wrong = [
                row for other, rows in sorted(self.merged.items()) if other[1] == job and other != place for row in rows
            ][:1]
        elif how == "leased":
            wrong = self.held.get(place, [])[:1]
        if not wrong:
            return
        before, settled = len(self.answers), sum(self.settled[job].values())
        self.number += 1
        self.feed(d.PartialArrived(peer, job, self.number, (*forged, *wrong)))
        (refused,) = self.answers[before:]
        assert isinstance(refused, d.PartialRefused)
        assert sum(self.settled[job].values()) == settled, "taken whole or not at all"
        assert place not in self.accepted, "it has no share any more"

    @rule(peer=st.sampled_from(PEERS), job=st.sampled_from(JOBS), data=st.data())
    def partial_from_elsewhere(self, peer: PeerId, job: JobId, data: st.DataObject) -> None:
        """Of a peer that has no share, or of one that is over: passed over."""
        if (peer, job) in self.accepted or job not in self.specs:
            return
        rows = [row for rows in self.merged.values() for row in rows][:3] or [(TaskIndex(0), 1)]
        before = len(self.answers)
        self.feed(d.PartialArrived(peer, job, 1, tuple(rows)))
        assert len(self.answers) == before

    # --- time ---------------------------------------------------------------------------------------------------------

    @rule(step_s=st.sampled_from([0.01, 0.3, 2.0, 11.0, 31.0, 130.0]))
    def time_passes(self, step_s: float) -> None:
        self.now += step_s
        deadline = self.machine.deadline()
        if deadline is not None and deadline <= self.now:
            self.feed(d.Tick())
            after = self.machine.deadline()
            assert after is None or after > self.now, "a Tick must move the deadline on"

    @invariant()
    def progress_adds_up(self) -> None:
        for job in self.specs:
            progress = self.machine.progress(job, self.now)
            assert progress.state is self.state[job]
            assert len(self.machine._jobs[job].settled) == sum(self.settled[job].values())

    def teardown(self) -> None:
        """Honest members of two communities, and one peer of this: every job comes to its end, though one seat never says a word."""
        for job in self.specs:
            self.end_inputs(job)
        self.peer_usable(HOME[0])
        mute = next((peer for peer, _ in sorted(self.accepted) if is_seat(peer)), None)
        for _ in range(3000):
            if all(state is not JobState.RUNNING for state in self.state.values()):
                return
            self.answer_offers(2)
            for place in sorted(self.accepted):
                if place[0] == mute or place not in self.accepted:
                    continue
                peer, job = place
                self.recalled.pop(place, None)
                rows = self.held.pop(place, [])
                merging = is_seat(peer) and self.machine._jobs[job].merges
                outcomes = [Outcome.MERGED if merging and row[0] < REDUCE_BASE else Outcome.RETURNED for row in rows]
                reports = tuple(TaskReport(*row, how, 0.004) for row, how in zip(rows, outcomes, strict=True))
                if reports:
                    self.merged.setdefault(place, []).extend(
                        row for row, how in zip(rows, outcomes, strict=True) if how is Outcome.MERGED
                    )
                    self.feed(d.Reported(peer, job, reports))
                if place in self.accepted and self.merged.get(place):
                    self.take(place, self.merged.pop(place))
                if place in self.accepted and not self.slots.get(peer):
                    self.grant(peer, 2)
            self.now = max(self.now, self.machine.deadline() or self.now)
            self.feed(d.Tick())
        raise AssertionError(f"jobs never ended: {self.state}")


CoordinationWorld.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_coordination_world = CoordinationWorld.TestCase
