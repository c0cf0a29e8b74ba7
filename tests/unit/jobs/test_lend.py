"""The lending machine: rule by rule, then through random worlds."""

from __future__ import annotations

from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pcompute.jobs import lend as m
from p2pcompute.jobs.assigning import IDLE_WORKER_S
from p2pcompute.jobs.fairness import ACTIVE_S, TENURE_S
from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, PeerId, ProgramId, borrower_id_of
from p2pcompute.model.job import Outcome

A, B = PeerId(b"a" * 32), PeerId(b"b" * 32)
#: What coordinators borrow for A.
A1, A2, A3 = (borrower_id_of(A, PeerId(bytes([number]) * 32)) for number in (1, 2, 3))
JOB, OTHER = JobId(b"j" * 12), JobId(b"k" * 12)
P, Q = ProgramId(b"p" * 32), ProgramId(b"q" * 32)
E = TypeVar("E", bound=m.Effect)
Row = tuple[int, int]


def account_of(origin: PeerId) -> PeerId | None:
    return A if origin in (A1, A2, A3) else None


class World:
    """A machine with a pool that spawns workers at once; `ready` says whether they become ready by themselves."""

    def __init__(self, slots: int = 2, ready: bool = True, own: PeerId | None = None, reserved: int = 0) -> None:
        self.machine = m.Lend(slots, own, reserved)
        self.now = 50.0
        self.ready = ready
        self.next_worker = 1
        #: Rows in the hands of each living worker.
        self.hands: dict[int, list[Row]] = {}
        #: Whom each worker served last.
        self.owner: dict[int, PeerId] = {}
        self.said: list[m.Effect] = []

    def feed(self, *events: m.Event) -> list[m.Effect]:
        self.said = []
        todo = list(events)
        while todo:
            for effect in self.machine.handle(todo.pop(0), self.now):
                self.said.append(effect)
                todo += self.perform(effect)
            self.machine.check_invariants()
        return self.said

    def perform(self, effect: m.Effect) -> list[m.Event]:
        match effect:
            case m.SpawnWorker(token):
                worker = self.next_worker
                self.next_worker += 1
                self.hands[worker] = []
                spawned: list[m.Event] = [m.WorkerSpawned(token, worker)]
                return [*spawned, m.WorkerReady(worker)] if self.ready else spawned
            case m.RunBatch(worker, origin, _, rows):
                self.owner[worker] = origin
                assert not self.hands[worker], "a worker has the rows of one batch at a time"
                self.hands[worker] = list(rows)
            case m.RetireWorker(worker):
                rows = tuple(self.hands.pop(worker))
                return [m.WorkerGone(worker, rows)]
        return []

    def only(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.said if isinstance(effect, kind)]

    def open(
        self,
        origin: PeerId = A,
        job: JobId = JOB,
        program: ProgramId = P,
        priority: int = 5,
        part_max: float = 1.0,
    ) -> None:
        self.feed(m.OriginOpened(origin, job, program, priority, None, None, account_of(origin), part_max))

    def tasks(self, count: int, origin: PeerId = A, job: JobId = JOB, first: int = 0) -> None:
        self.feed(m.TasksArrived(origin, job, tuple((number, 1) for number in range(first, first + count))))

    def end(
        self, worker: int, count: int | None = None, wall_s: float = 1.0, outcome: Outcome = Outcome.RETURNED
    ) -> None:
        rows = self.hands[worker][:count]
        del self.hands[worker][: len(rows)]
        self.feed(m.TasksEnded(worker, tuple((task, attempt, outcome, wall_s) for task, attempt in rows)))

    def tick(self) -> None:
        deadline = self.machine.deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        self.feed(m.Tick())


def test_from_open_to_result() -> None:
    world = World(slots=2, ready=False)
    world.open()
    assert world.said == [m.SpawnWorker(1, A, P, None), m.Grant(A, 2)], "the first worker starts before the first task"
    world.tasks(3)
    assert world.said == [m.SpawnWorker(2, A, P, None)]
    world.feed(m.WorkerReady(1))
    assert world.said == [m.RunBatch(1, A, JOB, ((0, 1),))]
    world.feed(m.WorkerReady(2))
    assert world.said == [m.RunBatch(2, A, JOB, ((1, 1),))]
    world.end(2)
    assert world.said == [m.RunBatch(2, A, JOB, ((2, 1),))]
    world.end(1)
    world.end(2)
    assert world.said == []
    world.feed(m.JobClosed(A, JOB))
    assert world.said == [], "workers stay warm for the next job of the program"
    world.open(job=OTHER)
    assert world.said == []
    world.tasks(1, job=OTHER)
    assert len(world.only(m.RunBatch)) == 1


def test_batches_grow_but_leave_work_to_the_others() -> None:
    world = World(slots=2)
    world.open()
    world.tasks(100)
    sizes = []
    for _ in range(6):
        sizes.append(len(world.hands[1]))
        world.end(1, wall_s=0.0001)
    assert sizes[:4] == [1, 4, 16, 40], "4 ms of work at most"
    world = World(slots=4)
    world.open()
    world.tasks(4)
    assert [len(rows) for rows in world.hands.values()] == [1, 1, 1, 1]


def test_grants_are_fair_and_said_on_change_only() -> None:
    world = World(slots=4)
    world.open(A)
    assert world.only(m.Grant) == [m.Grant(A, 4)]
    world.tasks(9)
    assert not world.only(m.Grant)
    world.open(B)
    assert world.only(m.Grant) == [m.Grant(A, 2), m.Grant(B, 2)]
    world.now += ACTIVE_S
    world.feed(m.Tick())
    assert world.only(m.Grant) == [m.Grant(A, 4), m.Grant(B, 1)], "who sends nothing keeps one"
    world.tasks(1, B)
    assert world.only(m.Grant) == [m.Grant(A, 2), m.Grant(B, 2)]
    world.feed(m.SlotsChanged(6))
    assert world.only(m.Grant) == [m.Grant(A, 3), m.Grant(B, 3)]
    world.feed(m.OriginGone(A))
    assert world.only(m.Grant) == [m.Grant(B, 6)]
    urgent = World(slots=4)
    urgent.open(A, priority=8)
    urgent.open(B, priority=2)
    assert urgent.only(m.Grant) == [m.Grant(A, 3), m.Grant(B, 1)]


def test_origins_take_turns() -> None:
    world = World(slots=2)
    world.open(A)
    world.tasks(50, A)
    world.open(B)
    world.tasks(50, B)
    done = {A: 0, B: 0}
    for _ in range(30):
        for worker in sorted(world.hands):
            if world.hands.get(worker):
                done[world.owner[worker]] += len(world.hands[worker])
                world.now += 0.5
                world.end(worker, wall_s=0.5)
    assert sum(done.values()) >= 50
    assert abs(done[A] - done[B]) <= 4, done


def test_slots_are_divided_among_accounts_first() -> None:
    world = World(slots=6)
    world.open(B)
    world.open(A1)
    assert world.only(m.Grant) == [m.Grant(B, 3), m.Grant(A1, 3)] or world.only(m.Grant) == [
        m.Grant(A1, 3),
        m.Grant(B, 3),
    ]
    for coordinated in (A2, A3):
        world.open(coordinated)
        assert B not in [effect.origin for effect in world.only(m.Grant)], (
            "another coordinator takes nothing from others"
        )
    world.open(A)
    granted = {effect.origin: effect.slots for effect in world.only(m.Grant)}
    assert granted == {A: 1}
    world.feed(m.OriginGone(A), m.OriginGone(A2), m.OriginGone(A3))
    assert {effect.origin: effect.slots for effect in world.only(m.Grant)}[A1] == 3
    world.feed(m.OriginGone(A1))
    assert world.only(m.Grant)[-1] == m.Grant(B, 6)


def test_limits_are_of_the_account_whoever_coordinates() -> None:
    world = World(slots=1)
    for number in range(limits.JOBS_PER_ORIGIN_MAX):
        world.open((A, A1, A2, A3)[number % 4], JobId(number.to_bytes(12, "big")))
        assert not world.only(m.RefuseJob)
    world.open(A1)
    (refused,) = world.only(m.RefuseJob)
    assert (refused.origin, refused.reason) == (A1, "busy")
    full = World(slots=1)
    full.open(A1)
    full.open(A2)
    full.tasks(limits.TASKS_QUEUED_PER_ORIGIN_MAX, A1)
    full.tasks(2, A2)
    assert [(effect.origin, len(effect.rows)) for effect in full.only(m.ReturnUnrun)] == [(A2, 1)], "one of A1 runs"


def test_a_worker_serves_one_coordinator_of_one_origin() -> None:
    world = World(slots=2)
    for borrower in (A, A1, B):
        world.open(borrower)
        world.tasks(4, borrower)
    served: dict[int, set[PeerId]] = {}
    for _ in range(12):
        for worker in sorted(world.hands):
            if world.hands.get(worker):
                served.setdefault(worker, set()).add(world.owner[worker])
                world.end(worker, wall_s=1.0)
    assert {frozenset(each) for each in served.values()} == {frozenset({each}) for each in (A, A1, B)}


def seconds_of_work(slots: int, shares: dict[PeerId, float], until_s: float) -> dict[PeerId, float]:
    """Seconds of work that each borrower got, tasks taking `shares` seconds each, while all of them always have more."""
    world = World(slots)
    for borrower in shares:
        world.open(borrower)
        world.tasks(int(slots * until_s / shares[borrower]), borrower)
    got = dict.fromkeys(shares, 0.0)
    #: When each busy worker ends what it has in hand.
    ends: dict[int, float] = {}
    begun = world.now
    while world.now < begun + until_s:
        for worker, rows in world.hands.items():
            if rows and worker not in ends:
                ends[worker] = world.now + len(rows) * shares[world.owner[worker]]
        worker = min(ends, key=lambda each: (ends[each], each))
        world.now = ends.pop(worker)
        got[world.owner[worker]] += len(world.hands[worker]) * shares[world.owner[worker]]
        world.end(worker, wall_s=shares[world.owner[worker]])
    return got


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.sampled_from([A, A1, A2, A3]), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from([0.1, 0.2, 0.4]), min_size=5, max_size=5),
)
def test_nobody_gains_by_using_several_coordinators(slots: int, borrowers: list[PeerId], task_s: list[float]) -> None:
    until_s = 12.0
    got = seconds_of_work(slots, dict(zip([*borrowers, B], task_s, strict=False)), until_s)
    theirs = sum(got[borrower] for borrower in borrowers)
    # What a worker may finish before its slot goes to others: its tenure, and a task on each side.
    slack_s = slots * (TENURE_S + 2 * max(task_s))
    assert abs(theirs - got[B]) <= slack_s, (got, slack_s)
    if len(borrowers) > 1:
        own = sorted(got[borrower] for borrower in borrowers)
        assert own[-1] - own[0] <= slack_s + theirs / len(borrowers) / 4, "and they share among themselves"


def test_an_idle_worker_of_another_program_makes_room() -> None:
    world = World(slots=1)
    world.open(A)
    world.tasks(1)
    world.end(1)
    world.open(B, OTHER, Q)
    world.tasks(1, B, OTHER)
    assert world.only(m.RetireWorker) == [m.RetireWorker(1)]
    assert world.only(m.RunBatch) == [m.RunBatch(2, B, OTHER, ((0, 1),))]


def test_a_worker_with_waiting_tasks_keeps_its_slot_for_a_while() -> None:
    world = World(slots=1)
    world.open(A)
    world.tasks(100, A)
    world.open(B, OTHER, Q)
    world.tasks(100, B, OTHER)
    world.end(1, wall_s=TENURE_S / 4)
    assert not world.only(m.RetireWorker), "B is less served, but a new worker costs more than it gains"
    world.end(1, wall_s=TENURE_S)
    assert world.only(m.RetireWorker) == [m.RetireWorker(1)]
    assert world.only(m.RunBatch)[0].origin == B


def test_what_is_beyond_the_limits_goes_back() -> None:
    world = World(slots=1)
    world.tasks(2)
    assert world.said == [m.ReturnUnrun(A, JOB, ((0, 1), (1, 1)))], "no such job"
    world.open()
    world.tasks(limits.TASKS_QUEUED_PER_ORIGIN_MAX + 1)
    assert sum(len(effect.rows) for effect in world.only(m.ReturnUnrun)) == 1
    world.tasks(1)
    assert not world.said, "a row that is here already is passed over"
    for number in range(limits.JOBS_PER_ORIGIN_MAX):
        world.open(job=JobId(number.to_bytes(12, "big")))
    (refused,) = world.only(m.RefuseJob)
    assert refused.reason == "busy"


def test_what_a_dead_worker_had_not_begun_runs_elsewhere() -> None:
    world = World(slots=1)
    world.open()
    world.tasks(50)
    for _ in range(3):
        world.end(1, wall_s=0.0001)
    rows = world.hands[1]
    assert len(rows) > 2
    world.end(1, 1, outcome=Outcome.WORKER_DIED)
    left = tuple(world.hands.pop(1))
    world.feed(m.WorkerGone(1, left))
    assert world.only(m.SpawnWorker)
    (batch,) = world.only(m.RunBatch)
    assert batch.rows == left[: len(batch.rows)]


def test_cancel_takes_back_what_waits_and_stops_what_runs() -> None:
    world = World(slots=1)
    world.open()
    world.tasks(3)
    world.feed(m.CancelAsked(A, JOB, ((0, 1), (2, 1), (9, 9))))
    assert world.said == [m.CancelOnWorker(1, ((0, 1),)), m.ReturnUnrun(A, JOB, ((2, 1),))]
    world.hands.pop(1)
    world.feed(m.WorkerGone(1, ((0, 1),)))
    assert [effect.rows for effect in world.only(m.RunBatch)] == [((1, 1),)], "what was cancelled does not come back"
    assert world.only(m.ReturnUnrun) == [m.ReturnUnrun(A, JOB, ((0, 1),))], "and the shell lets go of it"


def test_a_recall_takes_back_what_waits_and_leaves_what_runs() -> None:
    world = World(slots=1)
    world.open()
    world.tasks(4)
    world.feed(m.RecallAsked(A, JOB, ((0, 1), (2, 1), (3, 1), (3, 2), (9, 9))))
    assert world.said == [m.ReturnUnrun(A, JOB, ((2, 1), (3, 1)))]
    world.feed(m.RecallAsked(A, JOB, ((2, 1),)), m.RecallAsked(B, JOB, ((1, 1),)), m.RecallAsked(A, OTHER, ((1, 1),)))
    assert not world.said, "what is not here is passed over"
    world.end(1)
    assert [effect.rows for effect in world.only(m.RunBatch)] == [((1, 1),)]
    world.end(1)
    assert not world.only(m.RunBatch), "what was given back does not run"


def test_a_closed_job_is_stopped() -> None:
    world = World(slots=1)
    world.open()
    world.tasks(3)
    world.feed(m.JobClosed(A, JOB))
    assert world.said == [m.CancelOnWorker(1, ((0, 1),))]
    world.end(1, outcome=Outcome.CANCELLED)
    assert not world.said
    gone = World(slots=1)
    gone.open()
    gone.tasks(3)
    gone.feed(m.OriginGone(A))
    assert gone.said == [m.RetireWorker(1)]
    gone.open()
    assert m.SpawnWorker(2, A, P, None) in gone.said


def test_a_worker_that_waits_for_what_nobody_brings_goes_and_counts_as_no_failed_start() -> None:
    world = World(slots=1, ready=False)
    for worker in (1, 2, 3, 4):
        world.open()
        world.feed(m.JobClosed(A, JOB), m.WorkerUseless(worker), m.WorkerUseless(worker))
        assert world.only(m.RetireWorker) == [m.RetireWorker(worker)]
    world.open()
    assert not world.only(m.RefuseJob)
    world.feed(m.WorkerReady(5), m.WorkerUseless(5), m.WorkerUseless(77))
    assert not world.said, "it has what it needs"


def test_a_program_that_does_not_load_is_refused() -> None:
    world = World(slots=1, ready=False)
    world.open()
    world.open(job=OTHER)
    world.open(job=JobId(b"q" * 12), program=Q)
    world.tasks(2)
    world.feed(m.ProgramFailed(1, "module", "numpy", "numpy is missing"))
    assert world.only(m.RefuseJob) == [
        m.RefuseJob(A, JOB, "module", "numpy is missing", "numpy"),
        m.RefuseJob(A, OTHER, "module", "numpy is missing", "numpy"),
    ]
    world.feed(m.WorkerGone(1, ()))
    assert not world.only(m.SpawnWorker)


def test_workers_that_never_get_ready_are_given_up() -> None:
    world = World(slots=1, ready=False)
    world.open()
    world.tasks(2)
    for worker in (1, 2, 3):
        assert not world.only(m.RefuseJob)
        world.feed(m.WorkerGone(worker, ()))
    assert [effect.reason for effect in world.only(m.RefuseJob)] == ["busy"]
    assert not world.only(m.SpawnWorker)


def test_idle_workers_and_origins_are_forgotten() -> None:
    world = World(slots=2)
    world.open()
    world.tasks(2)
    for worker in (1, 2):
        world.end(worker)
    world.feed(m.JobClosed(A, JOB))
    start = world.now
    told: list[m.Forget] = []
    while world.machine.deadline() is not None:
        world.tick()
        told += world.only(m.Forget)
    assert told == [m.Forget(A)]
    assert world.now == start + IDLE_WORKER_S
    assert not world.hands
    world.open()
    assert world.only(m.Grant) == [m.Grant(A, 2)], "a new life begins with a grant"


def test_fewer_slots_and_shutting_down() -> None:
    world = World(slots=2)
    world.open()
    world.tasks(9)
    world.feed(m.SlotsChanged(1))
    world.end(1)
    assert world.only(m.RetireWorker) == [m.RetireWorker(1)]
    world.end(2)
    assert len(world.only(m.RunBatch)) == 1
    world.feed(m.Draining())
    assert world.only(m.Grant) == [m.Grant(A, 0)]
    assert sum(len(effect.rows) for effect in world.only(m.ReturnUnrun)) == 6
    world.tasks(1, first=100)
    assert world.only(m.ReturnUnrun) == [m.ReturnUnrun(A, JOB, ((100, 1),))]
    world.open(job=OTHER)
    assert world.only(m.RefuseJob)[0].reason == "busy"


def running(world: World) -> dict[PeerId, int]:
    """Workers that run something, by whom they serve."""
    found: dict[PeerId, int] = {}
    for worker, rows in world.hands.items():
        if rows:
            found[world.owner[worker]] = found.get(world.owner[worker], 0) + 1
    return found


def test_no_slots_leave_nothing_waiting() -> None:
    world = World(slots=1)
    world.open()
    world.tasks(3)
    world.feed(m.SlotsChanged(0))
    assert world.only(m.ReturnUnrun) == [m.ReturnUnrun(A, JOB, ((1, 1), (2, 1)))]
    assert world.only(m.Grant) == [m.Grant(A, 0)]
    world.tasks(1, first=9)
    assert world.only(m.ReturnUnrun) == [m.ReturnUnrun(A, JOB, ((9, 1),))]
    world.end(1)
    world.feed(m.SlotsChanged(2))
    assert world.only(m.Grant) == [m.Grant(A, 2)]
    world.tasks(1, first=20)
    assert len(world.only(m.RunBatch)) == 1


def test_the_owner_takes_the_slots_back() -> None:
    world = World(slots=3, own=B)
    world.open(A)
    world.open(B)
    world.tasks(9, A)
    world.tasks(1, B)
    assert running(world) == {A: 2, B: 1} or running(world) == {A: 3}
    busy = [worker for worker, rows in world.hands.items() if rows and world.owner[worker] == A]
    held = [row for worker in busy for row in world.hands[worker]]
    world.feed(m.LentChanged(0, 60.0))
    assert m.Grant(A, 0) in world.said
    assert m.Grant(B, 3) in world.said
    told = [type(effect) for effect in world.said]
    assert told.index(m.Grant) < told.index(m.ReturnUnrun), "what goes back must not come again"
    (returned,) = world.only(m.ReturnUnrun)
    assert set(returned.rows) == {(number, 1) for number in range(9)} - set(held), "what waits goes at once"
    assert not world.only(m.RetireWorker), "what runs has its grace"
    world.end(busy[0])
    assert not [effect for effect in world.only(m.RunBatch) if effect.origin == A]
    world.now += 59.0
    world.feed(m.Tick())
    assert not world.only(m.ReturnUnrun)
    world.tick()
    assert world.only(m.ReturnUnrun) == [m.ReturnUnrun(A, JOB, (row,)) for row in held[1:]]
    world.tasks(1, A, first=50)
    assert world.only(m.ReturnUnrun) == [m.ReturnUnrun(A, JOB, ((50, 1),))]
    world.tasks(9, B, first=100)
    assert running(world) == {B: 3}, "the own user's work goes on"
    world.feed(m.LentChanged(None, 60.0))
    assert m.Grant(A, 1) in world.said or m.Grant(A, 2) in world.said


def test_fewer_lent_slots_cost_the_youngest_work() -> None:
    world = World(slots=3)
    world.open()
    for number in range(3):
        world.tasks(1, first=number)
        world.now += 1.0
    world.feed(m.LentChanged(2, 10.0))
    world.now += 5.0
    world.feed(m.LentChanged(1, 10.0))
    world.now += 5.0
    world.feed(m.Tick())
    assert world.only(m.ReturnUnrun) == [m.ReturnUnrun(A, JOB, ((2, 1),))]
    world.feed(m.LentChanged(2, 10.0))
    world.now += 60.0
    world.feed(m.Tick())
    assert world.only(m.ReturnUnrun) == [], "there is room again for both"
    assert running(world) == {A: 2}


@pytest.mark.parametrize(("part_max", "expected"), [(1.0, 10), (0.8, 8), (0.5, 5), (0.3, 3), (0.01, 1)])
def test_a_cap_is_a_cap_even_where_slots_idle(part_max: float, expected: int) -> None:
    world = World(slots=10)
    world.open(part_max=part_max)
    assert world.only(m.Grant) == [m.Grant(A, expected)]
    world.tasks(30)
    assert running(world) == {A: expected}
    assert len(world.hands) == expected
    world.open(A1, part_max=part_max)
    world.tasks(30, A1)
    for worker in list(world.hands):
        if world.hands.get(worker):
            world.end(worker)
    assert sum(running(world).values()) == expected, "the cap is of the account, whoever coordinates"
    world.open(B)
    world.tasks(30, B)
    assert running(world).get(B, 0) == 10 - expected, "what a cap leaves goes to others"


def test_a_cap_is_of_what_is_lent() -> None:
    world = World(slots=10)
    world.open(part_max=0.5)
    world.feed(m.LentChanged(4, 0.0))
    assert world.only(m.Grant) == [m.Grant(A, 2)]
    world.tasks(9)
    assert running(world) == {A: 2}


def test_slots_are_kept_for_urgent_jobs() -> None:
    world = World(slots=4, reserved=1)
    world.open(A)
    assert world.only(m.Grant) == [m.Grant(A, 3)]
    world.tasks(9, A)
    assert running(world) == {A: 3}
    world.open(B, OTHER, Q, priority=8)
    world.tasks(9, B, OTHER)
    assert running(world) == {A: 3, B: 1}
    for _ in range(3):
        worker = next(each for each, rows in world.hands.items() if rows and world.owner[each] == A)
        world.end(worker)
    assert running(world)[B] >= 2, "and they have their weight in the rest"


class LendWorld(RuleBasedStateMachine):
    """Random origins, jobs, workers that live and die; nothing is lost, nothing runs twice at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(slots=3, ready=False, own=B)
        #: Slots, those of guests, and the part of these that account A may have.
        self.slots, self.lent, self.part_max = 3, 3, 1.0
        self.next_row = 0
        #: Rows that are here and wanted, by origin and job.
        self.wanted: dict[tuple[PeerId, JobId], set[Row]] = {}

    def feed(self, *events: m.Event) -> None:
        before = {worker for worker, rows in self.world.hands.items() if rows}
        for effect in self.world.feed(*events):
            match effect:
                case m.ReturnUnrun(origin, job, rows):
                    self.wanted.get((origin, job), set()).difference_update(rows)
                case m.RefuseJob(origin, job):
                    self.wanted.pop((origin, job), None)
                case m.RunBatch(_, origin, job, rows):
                    assert set(rows) <= self.wanted[origin, job]
                    busy = running(self.world)
                    mine = sum(count for whose, count in busy.items() if (account_of(whose) or whose) == A)
                    if origin != B:
                        assert mine <= min(self.slots, self.lent), "guests have what is lent"
                        assert mine <= max(1, int(self.part_max * min(self.slots, self.lent))), (
                            "and never more than a cap"
                        )
                    assert sum(busy.values()) <= max(self.slots, len(before))
                case m.Grant(_, slots):
                    assert 0 <= slots <= 3
        guests_wait = any(rows for (origin, _), rows in self.waiting().items() if origin != B)
        assert min(self.slots, self.lent) or not guests_wait, "nothing waits for slots that nobody lends"

    def waiting(self) -> dict[tuple[PeerId, JobId], set[Row]]:
        """Wanted rows that no worker has in hand."""
        held = {row for rows in self.world.hands.values() for row in rows}
        return {key: rows - held for key, rows in self.wanted.items()}

    @rule(slots=st.integers(0, 3))
    def slots_change(self, slots: int) -> None:
        self.slots = slots
        self.feed(m.SlotsChanged(slots))

    @rule(lent=st.sampled_from([None, 0, 1, 2]), grace_s=st.sampled_from([0.0, 1.0, 60.0]))
    def lent_changes(self, lent: int | None, grace_s: float) -> None:
        self.lent = 3 if lent is None else lent
        self.feed(m.LentChanged(lent, grace_s))

    @rule(origin=st.sampled_from([A, B, A1]), job=st.sampled_from([JOB, OTHER]), program=st.sampled_from([P, Q]))
    def open(self, origin: PeerId, job: JobId, program: ProgramId) -> None:
        self.wanted.setdefault((origin, job), set())
        self.feed(m.OriginOpened(origin, job, program, 5, None, None, account_of(origin), self.part_of(origin)))

    def part_of(self, origin: PeerId) -> float:
        return 1.0 if origin == B else self.part_max

    @rule(part_max=st.sampled_from([0.3, 0.5, 0.8, 1.0]))
    def trust_changes(self, part_max: float) -> None:
        """Known to the machine with the next job."""
        self.part_max = max(self.part_max, part_max)
        jobs = [key for key in self.wanted if key[0] != B]
        if not jobs:
            self.part_max = part_max

    @rule(origin=st.sampled_from([A, B, A1]), job=st.sampled_from([JOB, OTHER]), count=st.integers(1, 30))
    def arrive(self, origin: PeerId, job: JobId, count: int) -> None:
        rows = tuple((number, 1) for number in range(self.next_row, self.next_row + count))
        self.next_row += count
        if (origin, job) in self.wanted:
            self.wanted[origin, job].update(rows)
        self.feed(m.TasksArrived(origin, job, rows))

    @rule(data=st.data(), count=st.integers(1, 9), wall_s=st.sampled_from([1e-5, 0.01, 1.0]))
    def end(self, data: st.DataObject, count: int, wall_s: float) -> None:
        busy = [worker for worker, rows in self.world.hands.items() if rows]
        if busy:
            worker = data.draw(st.sampled_from(busy))
            for rows in self.wanted.values():
                rows.difference_update(self.world.hands[worker][:count])
            taken = self.world.hands[worker][:count]
            del self.world.hands[worker][:count]
            self.feed(m.TasksEnded(worker, tuple((*row, Outcome.RETURNED, wall_s) for row in taken)))

    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        if self.world.hands:
            self.feed(m.WorkerReady(data.draw(st.sampled_from(sorted(self.world.hands)))))

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        if self.world.hands:
            worker = data.draw(st.sampled_from(sorted(self.world.hands)))
            self.feed(m.WorkerGone(worker, tuple(self.world.hands.pop(worker))))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        jobs = sorted(key for key, rows in self.wanted.items() if rows)
        if jobs:
            origin, job = data.draw(st.sampled_from(jobs))
            rows = data.draw(st.lists(st.sampled_from(sorted(self.wanted[origin, job])), min_size=1, max_size=5))
            self.wanted[origin, job].difference_update(rows)
            self.feed(m.CancelAsked(origin, job, tuple(rows)))

    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        jobs = sorted(key for key, rows in self.wanted.items() if rows)
        if jobs:
            origin, job = data.draw(st.sampled_from(jobs))
            rows = data.draw(st.lists(st.sampled_from(sorted(self.wanted[origin, job])), min_size=1, max_size=5))
            self.feed(m.RecallAsked(origin, job, tuple(rows)))

    @rule(origin=st.sampled_from([A, B, A1]), job=st.sampled_from([JOB, OTHER]))
    def close(self, origin: PeerId, job: JobId) -> None:
        self.wanted.pop((origin, job), None)
        self.feed(m.JobClosed(origin, job))

    @rule(origin=st.sampled_from([A, B, A1]), really=st.integers(0, 3))
    def gone(self, origin: PeerId, really: int) -> None:
        if really == 0:
            for job in (JOB, OTHER):
                self.wanted.pop((origin, job), None)
            self.feed(m.OriginGone(origin))

    @rule(step_s=st.sampled_from([0.0, 0.5, 2.0, 70.0]))
    def time_passes(self, step_s: float) -> None:
        self.world.now += step_s
        self.feed(m.Tick())
        deadline = self.world.machine.deadline()
        assert deadline is None or deadline > self.world.now, "a Tick must move the deadline on"

    @invariant()
    def nothing_runs_twice(self) -> None:
        running = [row for rows in self.world.hands.values() for row in rows]
        assert len(set(running)) == len(running)
        assert len(self.world.hands) <= 3

    def teardown(self) -> None:
        """Workers that are ready and end what they have: everything wanted runs."""
        self.slots_change(3)
        self.lent_changes(None, 0.0)
        for _ in range(500):
            if not any(self.wanted.values()):
                return
            for worker in sorted(self.world.hands):
                if worker in self.world.hands:
                    self.feed(m.WorkerReady(worker))
            for worker in sorted(self.world.hands):
                taken = self.world.hands.get(worker, [])
                if taken:
                    self.world.hands[worker] = []
                    for rows in self.wanted.values():
                        rows.difference_update(taken)
                    self.feed(m.TasksEnded(worker, tuple((*row, Outcome.RETURNED, 0.1) for row in taken)))
        raise AssertionError(f"these never ran: {self.wanted}")


LendWorld.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_lend_world = LendWorld.TestCase


@pytest.mark.parametrize("slots", [1, 4])
def test_the_same_events_have_the_same_effects(slots: int) -> None:
    def run() -> list[m.Effect]:
        world = World(slots)
        said: list[m.Effect] = []
        for origin in (A, B):
            world.open(origin)
            said += world.said
            world.tasks(20, origin)
            said += world.said
        for _ in range(30):
            for worker in sorted(world.hands):
                if world.hands.get(worker):
                    world.end(worker, wall_s=0.1)
                    said += world.said
        return said

    assert run() == run()
