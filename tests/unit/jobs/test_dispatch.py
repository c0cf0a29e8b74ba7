"""The dispatch machine, rule by rule. `tests/property/test_dispatch.py` runs it through random worlds."""

from __future__ import annotations

from typing import TypeVar

import pytest

from p2pcompute.jobs import dispatch as d
from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import (
    Aggregation,
    JobOptions,
    JobSpec,
    JobState,
    Lease,
    OnError,
    Outcome,
    TaskReport,
)

A, B, C, D = (PeerId(bytes([number]) * 32) for number in (1, 2, 3, 4))
JOB, OTHER = JobId(b"j" * 12), JobId(b"k" * 12)
E = TypeVar("E", bound=d.Effect)


class World:
    """A machine, its clock, and what it has said since last asked."""

    def __init__(self) -> None:
        self.machine = d.Dispatch()
        self.now = 100.0
        self.said: list[d.Effect] = []

    def feed(self, *events: d.Event) -> list[d.Effect]:
        self.said = []
        for event in events:
            self.said += self.machine.handle(event, self.now)
            self.machine.check_invariants()
        return self.said

    def only(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.said if isinstance(effect, kind)]

    def sent(self, peer: PeerId, job: JobId = JOB) -> list[Lease]:
        """Leases sent to `peer` by the last events."""
        return [
            lease for effect in self.only(d.Send) if (effect.peer, effect.job) == (peer, job) for lease in effect.leases
        ]

    def peer(self, peer: PeerId, slots: int = 1, rank: float = 50.0, rtt_s: float = 0.0, job: JobId = JOB) -> None:
        """A usable peer that grants slots and accepts the job if it is offered."""
        self.feed(d.PeerUsable(peer, rtt_s, False, rank), d.Granted(peer, slots))
        self.feed(d.PeerAccepted(peer, job))

    def job(self, count: int | None = None, *, job: JobId = JOB, end: bool = True, **options: object) -> None:
        """An open job with `count` tasks."""
        spec = JobSpec(
            job,
            "test",
            ProgramId(b"p" * 32),
            "map",
            Aggregation.NONE,
            None,
            JobOptions(**options),  # type: ignore[arg-type]
            count,
        )
        events: list[d.Event] = [d.JobOpened(spec)]
        if count:
            events.append(d.TasksAdded(job, tuple(map(TaskIndex, range(count)))))
            if end:
                events.append(d.InputsEnded(job))
        self.feed(*events)

    def report(
        self,
        peer: PeerId,
        leases: list[Lease],
        outcome: Outcome = Outcome.RETURNED,
        wall_s: float = 1.0,
        job: JobId = JOB,
    ) -> list[d.Effect]:
        reports = tuple(TaskReport(lease.task, lease.attempt, outcome, wall_s, "words") for lease in leases)
        return self.feed(d.Reported(peer, job, reports))

    def tick(self) -> list[d.Effect]:
        """Go to the deadline."""
        deadline = self.machine.deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        return self.feed(d.Tick())


def test_from_open_to_end() -> None:
    world = World()
    world.feed(d.PeerUsable(A, 0.001, True, 50.0))
    world.job(3)
    assert world.only(d.OpenAt) == [d.OpenAt(A, JOB)]
    assert not world.only(d.Send)
    world.feed(d.PeerAccepted(A, JOB), d.Granted(A, 2))
    assert world.said == [d.Send(A, JOB, (Lease(TaskIndex(0), 1), Lease(TaskIndex(1), 1)))]
    world.report(A, [Lease(TaskIndex(1), 1)])
    report = TaskReport(TaskIndex(1), 1, Outcome.RETURNED, 1.0, "words")
    assert world.said == [d.Completed(JOB, ((report, A),)), d.Send(A, JOB, (Lease(TaskIndex(2), 1),))]
    world.report(A, [Lease(TaskIndex(0), 1), Lease(TaskIndex(2), 1)])
    assert world.said[1:] == [d.CloseAt(A, JOB), d.JobEnded(JOB, JobState.SUCCEEDED, d.EndCause.DONE, "")]
    progress = world.machine.progress(JOB, world.now)
    assert (progress.tasks_done, progress.tasks_total, progress.done_by_peer) == (3, 3, ((A, 3),))
    world.feed(d.JobForgotten(JOB))
    with pytest.raises(KeyError):
        world.machine.progress(JOB, world.now)


def test_a_job_without_tasks_succeeds() -> None:
    world = World()
    world.job(0)
    world.feed(d.InputsEnded(JOB))
    assert world.only(d.JobEnded)[0].state is JobState.SUCCEEDED


def test_long_tasks_never_wait_behind_others() -> None:
    world = World()
    world.job(20)
    world.peer(A, slots=2)
    for _ in range(5):
        world.report(A, world.sent(A)[:1] or world.sent(A))
        assert len(world.sent(A)) == 1, "one result, one task: nothing is sent ahead"


def test_batches_grow_with_short_tasks_and_hide_the_round_trip() -> None:
    world = World()
    world.job(10_000)
    world.peer(A, slots=2, rtt_s=0.0)
    sizes = []
    for _ in range(6):
        sizes.append(len(world.sent(A)))
        world.report(A, world.sent(A), wall_s=0.001)
    assert sizes == [2, 8, 32, 60, 60, 60], "from one a slot to 30 ms of work a slot"
    far = World()
    far.job(10_000)
    far.peer(A, slots=2, rtt_s=0.1)
    for _ in range(6):
        far.report(A, far.sent(A), wall_s=0.001)
    assert len(far.sent(A)) == 2 * (30 + 100), "and a round trip of work ahead"


def test_batches_shrink_towards_the_end() -> None:
    world = World()
    world.job(100)
    world.peer(A, slots=1)
    for _ in range(3):
        world.report(A, world.sent(A), wall_s=0.0001)
    world.peer(B, slots=1)
    waiting = 100 - 1 - 4 - 16 - len(world.sent(A))
    assert len(world.sent(B)) <= waiting
    world = World()
    world.job(10)
    world.feed(*(d.PeerUsable(peer, 0.0, False, 50.0) for peer in (A, B)), d.Granted(A, 1), d.Granted(B, 1))
    world.feed(d.PeerAccepted(A, JOB))
    world.feed(d.PeerAccepted(B, JOB))
    sizes = []
    for _ in range(6):
        leases = world.sent(B)
        sizes.append(len(leases))
        world.report(B, leases, wall_s=0.0001)
    # 8 tasks are left for two slots after the first: never more than half of what waits.
    assert sizes == [1, 4, 2, 1, 1, 0]


def test_the_best_peer_first() -> None:
    world = World()
    for peer, rank in ((A, 10.0), (B, 90.0), (C, 50.0)):
        world.peer(peer, rank=rank)
    world.job(1, end=False)
    assert world.only(d.OpenAt) == [d.OpenAt(B, JOB)], "one task needs one peer"
    world.feed(d.PeerAccepted(B, JOB))
    assert world.sent(B) == [Lease(TaskIndex(0), 1)]


def test_a_lost_peer_gives_everything_back_at_once() -> None:
    world = World()
    world.job(4)
    world.peer(A, slots=2)
    world.peer(B, slots=1)
    assert world.sent(B) == [Lease(TaskIndex(2), 1)]
    world.feed(d.PeerGone(A, "the link broke"))
    assert [(effect.task, effect.outcome) for effect in world.only(d.TaskRetried)] == [
        (0, Outcome.PEER_LOST),
        (1, Outcome.PEER_LOST),
    ]
    assert not world.only(d.CloseAt), "nobody is there to be told"
    world.report(B, [Lease(TaskIndex(2), 1)])
    assert world.sent(B) == [Lease(TaskIndex(0), 2)], "lost tasks go first"
    world.feed(d.Reported(A, JOB, (TaskReport(TaskIndex(0), 1, Outcome.RETURNED),)))
    assert world.said == [d.Discarded(JOB, 1)]


def test_a_task_that_kills_workers_is_not_sent_to_a_fourth() -> None:
    world = World()
    for peer in (A, B, C, D):
        world.feed(d.PeerUsable(peer, 0.0, False, 50.0), d.Granted(peer, 1))
    world.job(1, retries=50)
    died: list[PeerId] = []
    while not world.only(d.JobEnded):
        for effect in world.only(d.OpenAt):
            world.feed(d.PeerAccepted(effect.peer, JOB))
        (send,) = world.only(d.Send)
        died.append(send.peer)
        assert len(died) <= limits.CULPRIT_PEERS
        world.report(send.peer, list(send.leases), Outcome.OUT_OF_MEMORY)
    assert len(set(died)) == limits.CULPRIT_PEERS
    (given_up,) = world.only(d.GivenUp)
    assert [attempt.peer for attempt in given_up.history] == died
    (ended,) = world.only(d.JobEnded)
    assert (ended.state, ended.cause, ended.outcome) == (JobState.FAILED, d.EndCause.TASK, Outcome.OUT_OF_MEMORY)


def test_retries_are_counted_and_the_history_tells() -> None:
    world = World()
    world.job(2, retries=2, on_error=OnError.SKIP)
    world.peer(A)
    leases = world.sent(A)
    for _ in range(2):
        world.report(A, leases, Outcome.WORKER_DIED)
        assert len(world.only(d.TaskRetried)) == 1
        leases = world.sent(A)
        assert leases[0].task == 0
    world.report(A, leases, Outcome.WORKER_DIED, wall_s=2.0)
    (given_up,) = world.only(d.GivenUp)
    assert given_up.outcome is Outcome.WORKER_DIED
    assert [(attempt.peer, attempt.outcome, attempt.detail) for attempt in given_up.history] == [
        (A, Outcome.WORKER_DIED, "words")
    ] * 3
    assert world.sent(A) == [Lease(TaskIndex(1), 1)], "the job goes on without it"
    world.report(A, world.sent(A))
    assert world.only(d.JobEnded)[0].state is JobState.SUCCEEDED
    progress = world.machine.progress(JOB, world.now)
    assert (progress.tasks_done, progress.tasks_failed, progress.retries) == (1, 1, 2)


def test_lost_links_are_no_proof_against_a_task() -> None:
    world = World()
    world.job(1, retries=9)
    for peer in (A, B, C, D):
        world.peer(peer)
        world.feed(d.PeerGone(peer, "the link broke"))
    assert world.machine.progress(JOB, world.now).state is JobState.RUNNING
    assert world.machine.progress(JOB, world.now).retries == 4


def test_a_failed_task_goes_to_another_peer_if_there_is_one() -> None:
    world = World()
    world.job(3)
    world.peer(A)
    world.peer(B)
    world.report(A, [Lease(TaskIndex(0), 1)], Outcome.WORKER_DIED)
    assert [lease.task for lease in world.sent(A)] == [2], "task 0 waits for B, whose slot is taken"
    world.report(B, [Lease(TaskIndex(1), 1)])
    assert world.sent(B) == [Lease(TaskIndex(0), 2)]
    alone = World()
    alone.job(1)
    alone.peer(A)
    alone.report(A, alone.sent(A), Outcome.WORKER_DIED)
    assert alone.sent(A) == [Lease(TaskIndex(0), 2)]


def test_a_task_that_waits_for_a_peer_does_not_wait_for_one_that_goes() -> None:
    for leave in (d.PeerGone(B, "gone"), d.PeerRefused(B, JOB, "module", "no numpy"), d.Granted(B, 0)):
        world = World()
        world.job(3)
        world.peer(A)
        world.peer(B)
        world.report(A, [Lease(TaskIndex(0), 1)], Outcome.WORKER_DIED)
        world.report(A, world.sent(A))
        assert not world.sent(A)
        world.feed(leave)
        ran = []
        while not world.only(d.JobEnded) and world.sent(A):
            ran += world.sent(A)
            world.report(A, world.sent(A))
        assert Lease(TaskIndex(0), 2) in ran
    for leave in (d.PeerGone(B, "gone"), d.PeerRefused(B, JOB, "module", "no numpy")):
        world = World()
        world.feed(d.PeerUsable(B, 0.0, False, 50.0))
        world.job(2)
        world.peer(A)
        world.report(A, [Lease(TaskIndex(0), 1)], Outcome.WORKER_DIED)
        world.report(A, world.sent(A))
        assert not world.sent(A), "B has been offered the job and may accept"
        world.feed(leave)
        assert world.sent(A) == [Lease(TaskIndex(0), 2)]


@pytest.mark.parametrize("outcome", [Outcome.RAISED, Outcome.TIMED_OUT, Outcome.UNSHIPPABLE])
def test_what_the_function_did_itself_is_final(outcome: Outcome) -> None:
    world = World()
    world.job(5)
    world.peer(A, slots=1)
    world.peer(B, slots=1)
    world.report(A, [Lease(TaskIndex(0), 1)], outcome)
    assert [effect.reports[0][0].outcome for effect in world.only(d.Completed)] == [outcome]
    assert world.only(d.CloseAt) == [d.CloseAt(A, JOB), d.CloseAt(B, JOB)]
    (ended,) = world.only(d.JobEnded)
    assert (ended.state, ended.cause, ended.task, ended.outcome) == (JobState.FAILED, d.EndCause.TASK, 0, outcome)
    assert "words" in ended.reason
    skipping = World()
    skipping.job(2, on_error=OnError.SKIP)
    skipping.peer(A, slots=2)
    skipping.report(A, [Lease(TaskIndex(0), 1)], outcome)
    skipping.report(A, [Lease(TaskIndex(1), 1)])
    assert skipping.only(d.JobEnded)[0].state is JobState.SUCCEEDED
    assert skipping.machine.progress(JOB, 0).tasks_failed == 1


def test_a_peer_that_cannot_run_the_program_is_left_alone() -> None:
    world = World()
    world.job(4)
    world.peer(A, slots=2)
    world.peer(B, slots=1)
    world.report(A, [Lease(TaskIndex(0), 1)], Outcome.CANNOT_RUN)
    assert d.CloseAt(A, JOB) in world.said
    assert not world.sent(A)
    world.report(B, [Lease(TaskIndex(2), 1)])
    assert world.sent(B) == [Lease(TaskIndex(1), 2)]
    assert world.machine.progress(JOB, 0).retries == 0, "it says nothing against the task"
    world.feed(d.PeerRefused(B, JOB, "module", "numpy is missing"))
    (ended,) = world.only(d.JobEnded)
    assert ended.cause is d.EndCause.REFUSED
    assert [(row.peer, row.reason) for row in ended.refusals] == [(A, "cannot-run"), (B, "module")]
    assert "numpy is missing" in ended.reason


def test_refusals_that_pass_do_not_end_a_job() -> None:
    world = World()
    world.feed(d.PeerUsable(A, 0, False, 1))
    world.job(1)
    world.feed(d.PeerRefused(A, JOB, "busy", "64 jobs are open"))
    assert len(world.only(d.Stalled)) == 1
    assert "64 jobs" in world.only(d.Stalled)[0].text
    world.tick()
    assert world.only(d.OpenAt) == [d.OpenAt(A, JOB)]
    world.feed(d.Granted(A, 1), d.PeerAccepted(A, JOB))
    assert world.sent(A)


def test_a_job_without_peers_stalls_and_goes_on() -> None:
    world = World()
    world.job(1)
    assert len(world.only(d.Stalled)) == 1
    world.feed(d.Tick())
    assert not world.said
    assert world.machine.progress(JOB, world.now).message
    world.peer(A)
    assert world.sent(A)
    assert not world.machine.progress(JOB, world.now).message


def test_a_silent_peer_is_not_waited_for() -> None:
    world = World()
    world.feed(d.PeerUsable(A, 0, False, 90), d.PeerUsable(B, 0, False, 10))
    world.job(1)
    assert world.only(d.OpenAt) == [d.OpenAt(A, JOB)]
    world.tick()
    assert world.only(d.OpenAt) == [d.OpenAt(B, JOB)]


def test_untouched_tasks_pause_the_peer_and_cost_nothing() -> None:
    world = World()
    world.job(3)
    world.peer(A)
    pauses = []
    for attempt in range(1, 5):
        world.report(A, [Lease(TaskIndex(0), attempt)], Outcome.RETURNED_UNRUN)
        assert not world.sent(A)
        before = world.now
        while not world.sent(A):
            world.tick()
        pauses.append(round(world.now - before, 3))
        assert world.sent(A) == [Lease(TaskIndex(0), attempt + 1)]
    assert pauses == [0.05, 0.1, 0.2, 0.4]
    world.report(A, [Lease(TaskIndex(0), 5)], Outcome.RETURNED_UNRUN)
    world.feed(d.Granted(A, 1))
    assert world.sent(A), "a new grant ends the pause"
    assert world.machine.progress(JOB, world.now).retries == 0


def test_the_slowest_tasks_get_one_copy_and_the_first_result_wins() -> None:
    world = World()
    world.job(3)
    world.peer(A, slots=1)
    world.peer(B, slots=1)
    world.now += 1.0
    world.report(B, [Lease(TaskIndex(1), 1)], wall_s=1.0)
    assert world.sent(B) == [Lease(TaskIndex(2), 1)]
    world.now += 0.5
    world.report(B, [Lease(TaskIndex(2), 1)], wall_s=0.5)
    while not world.sent(B):
        world.tick()
    assert world.sent(B) == [Lease(TaskIndex(0), 2)]
    assert 102.0 <= world.now < 104.5, "twice what a task takes"
    for _ in range(3):
        world.tick()
        assert not world.only(d.Send), "at most one copy"
    world.report(B, [Lease(TaskIndex(0), 2)])
    assert world.said[0] == d.Completed(JOB, ((TaskReport(TaskIndex(0), 2, Outcome.RETURNED, 1.0, "words"), B),))
    assert world.said[1] == d.CancelAt(A, JOB, (Lease(TaskIndex(0), 1),))
    assert world.only(d.JobEnded)
    world.report(A, [Lease(TaskIndex(0), 1)])
    assert world.said == [d.Discarded(JOB, 1)]


def test_a_lost_race_frees_its_slot() -> None:
    world = World()
    world.job(3)
    world.peer(A)
    world.peer(B)
    world.peer(C)
    world.report(B, [Lease(TaskIndex(1), 1)], wall_s=0.1)
    while not world.sent(B):
        world.tick()
    (copied,) = world.sent(B)
    world.feed(d.TasksAdded(JOB, (TaskIndex(7), TaskIndex(8))))
    loser = A if copied.task == 0 else C
    world.report(B, [copied], wall_s=0.1)
    assert world.only(d.CancelAt) == [d.CancelAt(loser, JOB, (Lease(copied.task, 1),))]
    assert len(world.sent(loser)) == len(world.sent(B)) == 1


@pytest.mark.parametrize("survivor", [A, B])
def test_one_of_two_attempts_may_die(survivor: PeerId) -> None:
    world = World()
    world.job(2)
    world.peer(A)
    world.peer(B)
    world.now += 1.0
    world.report(B, [Lease(TaskIndex(1), 1)], wall_s=1.0)
    while not world.sent(B):
        world.tick()
    attempts = {A: Lease(TaskIndex(0), 1), B: Lease(TaskIndex(0), 2)}
    loser = B if survivor is A else A
    world.report(loser, [attempts[loser]], Outcome.WORKER_DIED)
    assert not world.only(d.TaskRetried)
    assert not world.only(d.Send), "the other one still runs"
    world.report(survivor, [attempts[survivor]])
    assert world.only(d.JobEnded)[0].state is JobState.SUCCEEDED


def test_no_copies_where_they_are_not_wanted() -> None:
    world = World()
    world.job(2, speculate=False)
    world.peer(A)
    world.peer(B)
    world.report(B, [Lease(TaskIndex(1), 1)], wall_s=0.1)
    for _ in range(5):
        if world.machine.deadline() is None:
            break
        world.tick()
        assert not world.only(d.Send)


def test_time_out_and_cancel_and_failure_of_the_shell() -> None:
    world = World()
    world.job(2, job_timeout_s=5.0)
    world.peer(A)
    while not world.only(d.JobEnded):
        world.tick()
    assert world.now == 105.0
    assert world.said == [d.CloseAt(A, JOB), *world.only(d.JobEnded)]
    assert world.only(d.JobEnded)[0].cause is d.EndCause.JOB_TIMEOUT
    for event, state in (
        (d.JobCancelled(JOB), JobState.CANCELLED),
        (d.JobFailed(JOB, "inputs vanished"), JobState.FAILED),
    ):
        world = World()
        world.job(2)
        world.peer(A)
        world.feed(event)
        assert world.only(d.JobEnded)[0].state is state
        assert world.only(d.CloseAt) == [d.CloseAt(A, JOB)]
        world.feed(event, d.InputsEnded(JOB), d.TasksAdded(JOB, (TaskIndex(9),)))
        assert not world.said


def test_inputs_are_asked_for_bit_by_bit() -> None:
    world = World()
    world.job(None)
    wanted = sum(effect.count for effect in world.only(d.WantInputs))
    assert wanted == limits.INPUTS_AHEAD
    world.peer(A, slots=2)
    added = most = 0
    sent: list[Lease] = []
    while added < 50_000:
        assert wanted or sent, "nothing would ever happen again"
        if wanted:
            world.feed(d.TasksAdded(JOB, tuple(map(TaskIndex, range(added, added + wanted)))))
            added += wanted
            wanted = 0
        else:
            world.report(A, sent, wall_s=1e-5)
            sent = []
        wanted += sum(effect.count for effect in world.only(d.WantInputs))
        sent += world.sent(A)
        most = max(most, added - world.machine.progress(JOB, 0).tasks_done)
    assert most <= 2 * limits.INPUTS_AHEAD


def test_jobs_of_one_origin_share_a_peer() -> None:
    world = World()
    world.feed(d.PeerUsable(A, 0, False, 50), d.Granted(A, 4))
    world.job(20)
    world.feed(d.PeerAccepted(A, JOB))
    running = world.sent(A)
    assert len(running) == 4
    world.job(20, job=OTHER)
    world.feed(d.PeerAccepted(A, OTHER))
    held = {JOB: 4, OTHER: 0}
    for lease in running:
        world.report(A, [lease])
        held[JOB] -= 1
        for job in held:
            held[job] += len(world.sent(A, job))
    assert held == {JOB: 2, OTHER: 2}
    urgent = JobId(b"u" * 12)
    world.job(3, job=urgent, priority=9)
    world.feed(d.PeerAccepted(A, urgent))
    world.report(A, [Lease(TaskIndex(0), 1)], job=OTHER)
    assert len(world.sent(A, urgent)) == 1
    assert not world.sent(A, JOB)


def test_many_small_jobs_spread_over_peers() -> None:
    world = World()
    for peer in (A, B):
        world.feed(d.PeerUsable(peer, 0.001, peer is A, 50), d.Granted(peer, 2))
    offered: list[PeerId] = []
    for number in range(8):
        world.job(1, job=JobId(bytes([number]) * 12))
        offered += [effect.peer for effect in world.only(d.OpenAt)]
    assert offered.count(A) == offered.count(B) == 4


def test_a_small_job_does_not_wait_for_the_best_peer_when_another_is_free() -> None:
    world = World()
    for peer, rank in ((A, 90.0), (B, 10.0)):
        world.feed(d.PeerUsable(peer, 0.0, False, rank), d.Granted(peer, 1))
    world.job(1)
    world.feed(d.PeerAccepted(A, JOB))
    assert world.sent(A)
    world.machine.handle(d.PeerGone(B, "gone"), world.now)
    world.job(1, job=OTHER)
    assert world.only(d.OpenAt) == [d.OpenAt(A, OTHER)]
    world.feed(d.PeerUsable(B, 0.0, False, 10.0), d.Granted(B, 1))
    world.feed(d.PeerAccepted(A, OTHER))
    assert world.only(d.OpenAt) == [d.OpenAt(B, OTHER)], "A is busy"
    world.feed(d.PeerAccepted(B, OTHER))
    assert world.sent(B, OTHER)


def test_seats_at_a_peer_are_limited_and_passed_on() -> None:
    world = World()
    world.feed(d.PeerUsable(A, 0, True, 50), d.Granted(A, 2))
    jobs = [JobId(number.to_bytes(12, "big")) for number in range(limits.JOBS_PER_ORIGIN_MAX + 1)]
    for job in jobs:
        world.job(1, job=job)
    assert not world.only(d.OpenAt)
    world.feed(d.JobCancelled(jobs[0]))
    assert world.only(d.OpenAt) == [d.OpenAt(A, jobs[-1])]


def test_running_tasks_say_how_far_they_are() -> None:
    world = World()
    world.job(2)
    world.peer(A, slots=2)
    news = d.Progressed(A, JOB, ((TaskIndex(0), 0.5), (TaskIndex(1), 7.0), (TaskIndex(9), 0.5)))
    world.feed(news)
    assert world.machine.progress(JOB, world.now).fraction_running == 0.5
    world.report(A, [Lease(TaskIndex(0), 1)])
    assert world.machine.progress(JOB, world.now).fraction_running == 0


def test_ended_jobs_are_forgotten_in_time() -> None:
    world = World()
    for number in range(limits.ENDED_JOBS_KEPT + 3):
        world.job(0, job=JobId(number.to_bytes(12, "big")))
        world.feed(d.InputsEnded(JobId(number.to_bytes(12, "big"))))
    with pytest.raises(KeyError):
        world.machine.progress(JobId((2).to_bytes(12, "big")), 0)
    assert world.machine.progress(JobId((3).to_bytes(12, "big")), 0).state is JobState.SUCCEEDED
