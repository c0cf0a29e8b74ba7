"""Both machines of a job together, on a virtual clock: an origin, several lenders, workers that take their time.

Shows what single rules cannot: that nothing waits for ever, that the work is spread well, and what a death costs.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.jobs import dispatch as d
from p2pcompute.jobs import lend as m
from p2pcompute.jobs.balancing import USUAL, BalancingSettings
from p2pcompute.jobs.plan import Facts
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, JobState, Outcome, TaskReport

ORIGIN = PeerId(b"o" * 32)
PROGRAM = ProgramId(b"p" * 32)
START_S = 0.05


class Laboratory:
    """One origin and its lenders. `task_s(peer, task)`: how long a task takes there."""

    def __init__(
        self,
        task_s: Callable[[PeerId, int], float],
        latency_s: float = 0.0005,
        balancing: BalancingSettings | None = USUAL,
    ) -> None:
        self.now = 0.0
        self.task_s = task_s
        self.latency_s = latency_s
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.dispatch = d.Dispatch(balancing=balancing)
        self.recalls: Counter[PeerId] = Counter()
        self.moved: Counter[PeerId] = Counter()
        #: Where each task was run, attempts that came to nothing included.
        self.ran: list[tuple[PeerId, int]] = []
        self.lenders: dict[PeerId, m.Lend] = {}
        self.workers: dict[tuple[PeerId, int], list[tuple[int, int]]] = {}
        self.jobs: dict[tuple[PeerId, int], JobId] = {}
        self.next_worker = itertools.count(1)
        self.done: Counter[tuple[JobId, int]] = Counter()
        self.ended: dict[JobId, tuple[float, JobState]] = {}
        self.batches = 0
        self.busy_s: Counter[PeerId] = Counter()
        self.inputs: dict[JobId, int] = {}
        self.added: dict[JobId, int] = {}

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.now + delay_s, next(self.serial), action))

    def run(self, until_s: float = 1e6) -> None:
        while self.queue and self.queue[0][0] <= until_s and not self.finished:
            when, _, action = heapq.heappop(self.queue)
            self.now = max(self.now, when)
            action()
            for machine, tick in (
                (self.dispatch, self.tick),
                *((lend, self.tick_lender) for lend in self.lenders.values()),
            ):
                deadline = machine.deadline()
                if deadline is not None and deadline <= self.now:
                    tick()
            deadline = self.dispatch.deadline()
            if deadline is not None and (not self.queue or deadline < self.queue[0][0]):
                self.after(max(0.0, deadline - self.now), self.tick)

    @property
    def finished(self) -> bool:
        return bool(self.inputs) and set(self.ended) == set(self.inputs)

    def tick(self) -> None:
        self.to_dispatch(d.Tick())

    def tick_lender(self) -> None:
        for peer in list(self.lenders):
            self.to_lender(peer, m.Tick())

    # --- the origin ---------------------------------------------------------------------------------------------------

    def lender(self, peer: PeerId, slots: int, gives_back: bool = True) -> None:
        self.lenders[peer] = m.Lend(slots)
        facts = Facts(gives_back=gives_back)
        self.to_dispatch(d.PeerUsable(peer, 2 * self.latency_s, False, 50.0, facts))

    def kill(self, peer: PeerId) -> None:
        del self.lenders[peer]
        for key in [key for key in self.workers if key[0] == peer]:
            del self.workers[key]
        self.to_dispatch(d.PeerGone(peer, "killed"))

    def submit(self, job: JobId, tasks: int, known: bool = True, **options: bool) -> None:
        self.inputs[job] = tasks
        self.added[job] = 0
        spec = JobSpec(
            job, "lab", PROGRAM, "m", Aggregation.NONE, None, JobOptions(**options), tasks if known else None
        )  # type: ignore[arg-type]
        self.to_dispatch(d.JobOpened(spec))

    def to_dispatch(self, event: d.Event) -> None:
        effects = self.dispatch.handle(event, self.now)
        self.dispatch.check_invariants()
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: d.Effect) -> None:
        match effect:
            case d.OpenAt(peer, job):
                self.mail(peer, m.OriginOpened(ORIGIN, job, PROGRAM, 5, None, None))
                self.after(2 * self.latency_s, lambda: self.from_lender(peer, d.PeerAccepted(peer, job)))
            case d.Send(peer, job, leases):
                self.batches += 1
                self.mail(peer, m.TasksArrived(ORIGIN, job, tuple((lease.task, lease.attempt) for lease in leases)))
            case d.CancelAt(peer, job, leases):
                self.mail(peer, m.CancelAsked(ORIGIN, job, tuple((lease.task, lease.attempt) for lease in leases)))
            case d.RecallAt(peer, job, leases):
                self.recalls[peer] += len(leases)
                self.mail(peer, m.RecallAsked(ORIGIN, job, tuple((lease.task, lease.attempt) for lease in leases)))
            case d.Moved(_, peer, tasks):
                self.moved[peer] += len(tasks)
            case d.CloseAt(peer, job):
                self.mail(peer, m.JobClosed(ORIGIN, job))
            case d.Completed(job, reports):
                for report, _peer in reports:
                    self.done[job, report.task] += 1
            case d.WantInputs(job, count):
                self.after(0.0, lambda: self.read(job, count))
            case d.JobEnded(job, state):
                self.ended[job] = (self.now, state)

    def read(self, job: JobId, count: int) -> None:
        first = self.added[job]
        self.added[job] = min(first + count, self.inputs[job])
        if self.added[job] > first:
            self.to_dispatch(d.TasksAdded(job, tuple(map(TaskIndex, range(first, self.added[job])))))
        if self.added[job] == self.inputs[job]:
            self.to_dispatch(d.InputsEnded(job))

    def mail(self, peer: PeerId, event: m.Event) -> None:
        self.after(self.latency_s, lambda: self.to_lender(peer, event))

    def from_lender(self, peer: PeerId, event: d.Event) -> None:
        if peer in self.lenders:
            self.to_dispatch(event)

    # --- lenders ------------------------------------------------------------------------------------------------------

    def to_lender(self, peer: PeerId, event: m.Event) -> None:
        lend = self.lenders.get(peer)
        if lend is None:
            return
        effects = lend.handle(event, self.now)
        lend.check_invariants()
        for effect in effects:
            self.perform_at(peer, effect)

    def perform_at(self, peer: PeerId, effect: m.Effect) -> None:
        match effect:
            case m.Grant(_, slots):
                self.after(self.latency_s, lambda: self.from_lender(peer, d.Granted(peer, slots)))
            case m.SpawnWorker(token):
                worker = next(self.next_worker)
                self.workers[peer, worker] = []
                self.after(0.0, lambda: self.to_lender(peer, m.WorkerSpawned(token, worker)))
                self.after(START_S, lambda: self.to_lender(peer, m.WorkerReady(worker)))
            case m.RunBatch(worker, _, job, rows):
                self.workers[peer, worker] = list(rows)
                self.jobs[peer, worker] = job
                self.work(peer, worker)
            case m.CancelOnWorker(worker, rows) if (peer, worker) in self.workers:
                left = self.workers.pop((peer, worker))
                cancelled = tuple((*row, Outcome.CANCELLED, 0.0) for row in rows)
                others = tuple(row for row in left if row not in rows)
                self.after(0.0, lambda: self.to_lender(peer, m.TasksEnded(worker, cancelled)))
                self.after(0.0, lambda: self.to_lender(peer, m.WorkerGone(worker, others)))
            case m.RetireWorker(worker):
                left = self.workers.pop((peer, worker), [])
                self.after(0.0, lambda: self.to_lender(peer, m.WorkerGone(worker, tuple(left))))
            case m.ReturnUnrun(_, job, rows):
                reports = tuple(TaskReport(TaskIndex(t), a, Outcome.RETURNED_UNRUN) for t, a in rows)
                self.after(self.latency_s, lambda: self.from_lender(peer, d.Reported(peer, job, reports)))

    def work(self, peer: PeerId, worker: int) -> None:
        rows = self.workers.get((peer, worker))
        if rows:
            row = rows[0]
            self.ran.append((peer, row[0]))
            wall_s = self.task_s(peer, row[0])
            self.after(wall_s, lambda: self.finish(peer, worker, row, wall_s))

    def finish(self, peer: PeerId, worker: int, row: tuple[int, int], wall_s: float) -> None:
        rows = self.workers.get((peer, worker))
        if not rows or rows[0] != row:
            return
        job = self.jobs[peer, worker]
        del rows[0]
        self.busy_s[peer] += wall_s
        report = TaskReport(TaskIndex(row[0]), row[1], Outcome.RETURNED, wall_s)
        self.after(self.latency_s, lambda: self.from_lender(peer, d.Reported(peer, job, (report,))))
        self.to_lender(peer, m.TasksEnded(worker, ((*row, Outcome.RETURNED, wall_s),)))
        if rows and self.workers.get((peer, worker)) is rows:
            self.work(peer, worker)

    def check(self, job: JobId) -> float:
        """Everything was counted once; when the job ended."""
        assert [self.done[job, task] for task in range(self.inputs[job])] == [1] * self.inputs[job]
        when, state = self.ended[job]
        assert state is JobState.SUCCEEDED
        return when


PEERS = [PeerId(bytes([number]) * 32) for number in range(1, 5)]
JOB, OTHER = JobId(b"j" * 12), JobId(b"k" * 12)


@pytest.mark.parametrize(
    ("tasks", "task_s", "latency_s", "share_of_ideal"),
    [
        (64, 0.05, 0.0005, 0.85),
        (400, 0.05, 0.0005, 0.95),
        (1_500, 0.001, 0.0005, 0.7),
        (1_500, 0.001, 0.02, 0.45),
        (200, 0.05, 0.05, 0.85),
    ],
)
def test_even_work_is_near_the_ideal(tasks: int, task_s: float, latency_s: float, share_of_ideal: float) -> None:
    lab = Laboratory(lambda peer, task: task_s, latency_s)
    for peer in PEERS[:3]:
        lab.lender(peer, 2)
    lab.submit(JOB, tasks)
    lab.run()
    ideal_s = tasks * task_s / 6 + START_S + 4 * latency_s
    assert ideal_s / lab.check(JOB) >= share_of_ideal


def test_peers_of_unlike_speed_end_together() -> None:
    speeds = dict(zip(PEERS, (0.01, 0.02, 0.04, 0.08), strict=True))
    lab = Laboratory(lambda peer, task: speeds[peer])
    for peer in PEERS:
        lab.lender(peer, 1)
    lab.submit(JOB, 750)
    lab.run()
    ideal_s = 750 / sum(1 / speed for speed in speeds.values())
    assert ideal_s / lab.check(JOB) >= 0.93


def test_one_long_task_holds_up_no_other() -> None:
    lab = Laboratory(lambda peer, task: 3.0 if task == 5 else 0.01)
    for peer in PEERS[:2]:
        lab.lender(peer, 2)
    lab.submit(JOB, 600)
    lab.run()
    assert lab.check(JOB) <= 3.4


def test_a_peer_that_hangs_costs_little() -> None:
    lab = Laboratory(lambda peer, task: 1000.0 if peer == PEERS[0] and task > 20 else 0.02)
    for peer in PEERS[:3]:
        lab.lender(peer, 2)
    lab.submit(JOB, 300)
    lab.run()
    assert lab.check(JOB) <= 300 * 0.02 / 4 + 1.0


@pytest.mark.parametrize("task_s", [0.0005, 0.05])
def test_a_killed_peer_costs_what_it_held(task_s: float) -> None:
    lab = Laboratory(lambda peer, task: task_s)
    for peer in PEERS[:3]:
        lab.lender(peer, 2)
    lab.submit(JOB, 600)
    lab.after(START_S + 100 * task_s, lambda: lab.kill(PEERS[1]))
    lab.run()
    assert lab.check(JOB) <= 600 * task_s / 4 + 0.5


def test_everybody_dies_and_somebody_comes() -> None:
    lab = Laboratory(lambda peer, task: 0.01)
    for peer in PEERS[:2]:
        lab.lender(peer, 2)
    lab.submit(JOB, 200)
    lab.after(0.2, lambda: lab.kill(PEERS[0]))
    lab.after(0.3, lambda: lab.kill(PEERS[1]))
    lab.after(5.0, lambda: lab.lender(PEERS[2], 4))
    lab.run()
    assert 5.0 < lab.check(JOB) < 6.0


def test_two_jobs_share_and_unknown_lengths_work() -> None:
    lab = Laboratory(lambda peer, task: 0.01)
    for peer in PEERS[:2]:
        lab.lender(peer, 2)
    lab.submit(JOB, 1_600, known=False)
    lab.after(1.0, lambda: lab.submit(OTHER, 40))
    lab.after(0.9, lambda: lab.inputs.__setitem__(OTHER, 40))
    lab.run()
    assert lab.check(OTHER) - 1.0 < 0.6, "a small job does not wait for a large one"
    assert 1_640 * 0.01 / 4 / lab.check(JOB) >= 0.9


def test_hundreds_of_single_task_jobs() -> None:
    lab = Laboratory(lambda peer, task: 0.01)
    for peer in PEERS[:3]:
        lab.lender(peer, 2)
    jobs = [JobId(number.to_bytes(12, "big")) for number in range(120)]
    for job in jobs:
        lab.submit(job, 1)
    lab.run()
    assert max(lab.check(job) for job in jobs) <= 120 * 0.01 / 6 / 0.5


# --- flow balance -----------------------------------------------------------------------------------------------------


def slowing(
    at_s: float, *, tasks: int = 900, factor: float = 200.0, speculate: bool = True, **more: bool
) -> Laboratory:
    """Three peers, tasks of 2 ms, of which the first peer's take `factor` times as long from `at_s` on."""
    lab = Laboratory(
        lambda peer, task: 0.002 * (factor if peer == PEERS[0] and lab.now >= at_s else 1.0),
        balancing=USUAL if more.get("balanced", True) else None,
    )
    for peer in PEERS[:3]:
        lab.lender(peer, 1, gives_back=more.get("gives_back", True) or peer != PEERS[0])
    lab.submit(JOB, tasks, speculate=speculate)
    lab.run()
    return lab


def test_a_peer_that_becomes_slow_loses_its_queue_to_others() -> None:
    lab = slowing(0.3, speculate=False)
    assert lab.moved[PEERS[0]] >= 5, "its queue was given back"
    assert set(lab.moved) == {PEERS[0]}, "and nobody else's"
    slow = slowing(0.3, speculate=False, balanced=False)
    assert not slow.recalls
    assert lab.check(JOB) < 0.5 * slow.check(JOB)


def test_what_is_moved_runs_once() -> None:
    lab = slowing(0.3, speculate=False)
    lab.check(JOB)
    assert len(lab.ran) == len({task for _, task in lab.ran}) == 900


def test_the_silence_of_a_peer_is_enough() -> None:
    # Its first slow task takes longer than the rest of the job: it never says that it has become slow.
    lab = slowing(0.3, factor=5_000.0)
    assert lab.moved[PEERS[0]] >= 5
    assert lab.check(JOB) < 2.0


def test_nothing_is_recalled_from_a_peer_that_does_not_know_how() -> None:
    lab = slowing(0.3, gives_back=False)
    assert not lab.recalls[PEERS[0]]
    lab.check(JOB)


def test_even_work_is_left_where_it_is() -> None:
    for task_s in (0.0002, 0.002, 0.02, 0.2):
        lab = Laboratory(lambda peer, task, task_s=task_s: task_s)
        for peer in PEERS:
            lab.lender(peer, 2)
        lab.submit(JOB, 1_000)
        lab.run()
        lab.check(JOB)
        assert not lab.recalls, f"tasks of {task_s} s"


def test_peers_of_unlike_speed_are_left_alone_once_that_is_known() -> None:
    speeds = dict(zip(PEERS, (0.001, 0.004, 0.016, 0.064), strict=True))
    lab = Laboratory(lambda peer, task: speeds[peer])
    for peer in PEERS:
        lab.lender(peer, 2)
    lab.submit(JOB, 4_000)
    lab.run()
    lab.check(JOB)
    assert sum(lab.recalls.values()) <= 10


def lent_at(lab: Laboratory, peer: PeerId, when_s: float, event: m.Event) -> None:
    lab.after(when_s, lambda: lab.to_lender(peer, event))


@settings(max_examples=40, deadline=None)
@given(
    task_s=st.sampled_from([0.002, 0.05]),
    changes=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5]),
            st.sampled_from(
                [
                    m.SlotsChanged(0),
                    m.SlotsChanged(1),
                    m.SlotsChanged(3),
                    m.LentChanged(0, 0.01),
                    m.LentChanged(0, 10.0),
                    m.LentChanged(1, 0.02),
                    m.LentChanged(None, 1.0),
                ]
            ),
        ),
        max_size=12,
    ),
)
def test_answers_are_exact_whatever_owners_lend(
    task_s: float, changes: list[tuple[int, float, m.SlotsChanged | m.LentChanged]]
) -> None:
    lab = Laboratory(lambda peer, task: task_s)
    for peer in PEERS[:3]:
        lab.lender(peer, 2)
        lent_at(lab, peer, 2.0, m.SlotsChanged(2))
        lent_at(lab, peer, 2.0, m.LentChanged(None, 1.0))
    for number, when_s, event in changes:
        lent_at(lab, PEERS[number], when_s, event)
    lab.submit(JOB, 120)
    lab.run()
    lab.check(JOB)


def test_a_paused_peers_work_moves_to_the_others() -> None:
    lab = Laboratory(lambda peer, task: 0.05 if peer != PEERS[0] else 5.0)
    for peer in PEERS[:3]:
        lab.lender(peer, 2)
    lab.submit(JOB, 60, speculate=False)
    lent_at(lab, PEERS[0], 0.3, m.LentChanged(0, 0.5))
    lab.run()
    assert lab.check(JOB) <= 2.0, "nothing waits for what ran at the paused peer"
    assert not lab.busy_s[PEERS[0]]
