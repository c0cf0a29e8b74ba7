"""The dispatch machine under random jobs, peers, results, losses, duplicates, refusals, cancels and time.

The rules of the test are the world: peers that hold tasks and report them in any order, twice, or never. After each event the
machine checks itself, and the test checks what the world can see: nothing is counted twice, nothing is sent to peers that
did not accept, credit is kept, every open peer is closed, and at the end, with one honest peer, everything is settled.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2pcompute.jobs import dispatch as d
from p2pcompute.jobs.plan import Facts
from p2pcompute.jobs.strategies import ADAPTIVE, FACTORIES, NAMES, Registry
from p2pcompute.jobs.strategies.adaptive import Shared
from p2pcompute.jobs.strategies.smart_adaptive import SmartAdaptive
from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex
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
from p2pcompute.model.placement import Budget, OnUnmet, Preferences

PEERS = [PeerId(bytes([number]) * 32) for number in range(1, 6)]
JOBS = [JobId(bytes([number]) * 12) for number in range(1, 5)]
#: How jobs choose their peers: options beside the others.
CHOICES: list[dict[str, Any]] = [
    {},
    {},
    *({"strategy": name} for name in NAMES),
    {"strategy": "latency_based", "fallback_strategy": "round_robin"},
    {"strategy": "latency_based", "on_unmet": OnUnmet.WAIT},
    {"strategy": "round_robin", "requirements": {"labels": "good"}, "on_unmet": OnUnmet.WAIT},
    {"requirements": {"labels": "good"}},
    {"requirements": {"labels": "good", "load": "<0.5"}, "on_unmet": OnUnmet.WAIT},
    {"budget": Budget(0.0)},
    {"budget": Budget(1.0), "strategy": "cost_aware", "expected_task_s": 0.01},
    {"preferences": Preferences(prefer_local=True, max_latency_s=0.01, cost_limit=1.0)},
    {"balancer": lambda candidates, job: [each for each in candidates if each.peer[0] % 2]},
    {"balancer": lambda candidates, job: 1 / 0, "fallback_strategy": "hlig"},
    {"balancer": lambda candidates, job: 1 / 0},
]
FACTS = [
    Facts(name="good", labels=("good",), gives_back=True),
    Facts(name="bad", gives_back=True),
    Facts(name="old", labels=("good",)),
    Facts(name="suspect", labels=("good",), is_suspect=True, gives_back=True),
    Facts(name="dear", labels=("good",), cost_per_hour=1e5, gives_back=True),
    Facts(name="busy", labels=("good",), load=0.95, gives_back=True),
]
SENT_OUTCOMES = [outcome for outcome in Outcome if outcome is not Outcome.PEER_LOST]


def spec_of(job: JobId, options: JobOptions, expected: int | None) -> JobSpec:
    return JobSpec(job, "job", ProgramId(b"p" * 32), "map", Aggregation.NONE, None, options, expected)


class DispatchWorld(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        shared = Shared(SmartAdaptive(random.Random(1)), lambda: 12.0)
        self.machine = d.Dispatch(Registry({**FACTORIES, ADAPTIVE: shared.strategy_of}))
        self.now = 0.0
        self.specs: dict[JobId, JobSpec] = {}
        self.state: dict[JobId, JobState] = {}
        self.added: dict[JobId, int] = {}
        self.inputs_ended: set[JobId] = set()
        self.settled: dict[JobId, Counter[TaskIndex]] = {}
        self.offered: dict[PeerId, set[JobId]] = {}
        self.accepted: dict[PeerId, set[JobId]] = {}
        self.slots: dict[PeerId, int] = {}
        self.facts: dict[PeerId, Facts] = {}
        #: (task, attempt) that a peer holds, by peer and job.
        self.held: dict[tuple[PeerId, JobId], list[tuple[TaskIndex, int]]] = {}
        self.attempts: dict[tuple[JobId, TaskIndex], list[int]] = {}
        self.old: list[tuple[PeerId, JobId, TaskReport]] = []
        #: Rows that were asked for again and that nobody has answered for.
        self.recalled: list[tuple[PeerId, JobId, TaskIndex, int]] = []

    def feed(self, event: d.Event) -> None:
        for effect in self.machine.handle(event, self.now):
            self.perform(effect)
        self.machine.check_invariants()

    def perform(self, effect: d.Effect) -> None:
        job = effect.job
        assert self.state[job] is JobState.RUNNING or isinstance(effect, d.Discarded), "an effect after JobEnded"
        match effect:
            case d.OpenAt(peer):
                assert job not in self.offered[peer] | self.accepted[peer]
                self.offered[peer].add(job)
            case d.Send(peer, _, leases):
                assert job in self.accepted[peer]
                assert 0 < len(leases) <= limits.BATCH_TASKS_MAX
                assert self.slots.get(peer, 0) > 0
                if self.specs[job].options.requirements:
                    assert "good" in self.facts[peer].labels, "sent to a peer that does not meet what is required"
                if self.specs[job].options.budget == Budget(0.0):
                    assert not self.facts[peer].cost_per_hour, "there is no money for that"
                for lease in leases:
                    assert lease.task not in self.settled[job]
                    numbers = self.attempts.setdefault((job, lease.task), [])
                    assert lease.attempt not in numbers
                    numbers.append(lease.attempt)
                    self.held.setdefault((peer, job), []).append((lease.task, lease.attempt))
            case d.CancelAt(peer, _, leases):
                for lease in leases:
                    row = (lease.task, lease.attempt)
                    self.held[peer, job].remove(row)
                    self.old.append((peer, job, TaskReport(lease.task, lease.attempt, Outcome.RETURNED)))
            case d.RecallAt(peer, _, leases, text):
                assert text
                assert self.facts[peer].gives_back, "an old peer does not know what is asked of it"
                assert 0 < len(leases) <= limits.BATCH_TASKS_MAX
                rows = [(peer, job, lease.task, lease.attempt) for lease in leases]
                assert not set(rows) & set(self.recalled), "asked for twice"
                for lease in leases:
                    assert (lease.task, lease.attempt) in self.held[peer, job]
                self.recalled += rows
            case d.Moved(_, peer, tasks):
                assert tasks
            case d.CloseAt(peer):
                assert job in self.offered[peer] | self.accepted[peer]
                self.leave(peer, job)
            case d.Completed(_, reports):
                for report, _peer in reports:
                    assert report.outcome in FINAL_OUTCOMES
                    self.settled[job][report.task] += 1
            case d.GivenUp(_, task, _, history):
                assert history
                self.settled[job][task] += 1
            case d.JobEnded(_, state):
                self.state[job] = state
                assert not any(job in jobs for jobs in (*self.offered.values(), *self.accepted.values()))
                if state is JobState.SUCCEEDED:
                    assert len(self.settled[job]) == self.added[job]
            case d.WantInputs(_, count):
                assert count <= limits.INPUTS_AHEAD
        assert max(self.settled[job].values(), default=1) == 1, "a task was counted twice"

    def leave(self, peer: PeerId, job: JobId) -> None:
        self.offered[peer].discard(job)
        self.accepted[peer].discard(job)
        for task, attempt in self.held.pop((peer, job), []):
            self.old.append((peer, job, TaskReport(task, attempt, Outcome.RETURNED)))

    @initialize(peers=st.integers(0, 5), tasks=st.integers(1, 60), expected=st.booleans(), retries=st.integers(0, 3))
    def start(self, peers: int, tasks: int, expected: bool, retries: int) -> None:
        self.feed(d.Tick())
        for peer in PEERS[:peers]:
            self.peer_usable(peer, 0.001, 50.0, FACTS[0])
        self.open_job(JOBS[0], tasks if expected else None, retries, 5, True, None, {})
        self.add_tasks(JOBS[0], tasks)

    @rule(
        job=st.sampled_from(JOBS),
        expected=st.sampled_from([None, 1, 5]),
        retries=st.integers(0, 3),
        priority=st.sampled_from([1, 5]),
        skip=st.booleans(),
        timeout_s=st.sampled_from([None, None, 30.0]),
        choice=st.sampled_from(CHOICES),
    )
    def open_job(
        self,
        job: JobId,
        expected: int | None,
        retries: int,
        priority: int,
        skip: bool,
        timeout_s: float | None,
        choice: dict[str, Any],
    ) -> None:
        if job in self.specs:
            return
        on_error = OnError.SKIP if skip else OnError.RAISE
        options = JobOptions(retries=retries, priority=priority, on_error=on_error, job_timeout_s=timeout_s, **choice)
        self.specs[job] = spec_of(job, options, expected)
        self.state[job] = JobState.RUNNING
        self.added[job] = 0
        self.settled[job] = Counter()
        self.feed(d.JobOpened(self.specs[job]))

    @rule(job=st.sampled_from(JOBS), count=st.integers(1, 40))
    def add_tasks(self, job: JobId, count: int) -> None:
        if job not in self.specs or job in self.inputs_ended or self.state[job] is not JobState.RUNNING:
            return
        first = self.added[job]
        self.added[job] += count
        self.feed(d.TasksAdded(job, tuple(TaskIndex(n) for n in range(first, first + count))))

    @rule(job=st.sampled_from(JOBS))
    def end_inputs(self, job: JobId) -> None:
        if job in self.specs:
            self.inputs_ended.add(job)
        self.feed(d.InputsEnded(job))

    @rule(
        peer=st.sampled_from(PEERS),
        rtt_s=st.sampled_from([0.0, 0.001, 0.2]),
        rank=st.floats(0, 100),
        facts=st.sampled_from(FACTS),
    )
    def peer_usable(self, peer: PeerId, rtt_s: float, rank: float, facts: Facts) -> None:
        self.facts[peer] = facts
        self.offered.setdefault(peer, set())
        self.accepted.setdefault(peer, set())
        self.feed(d.PeerUsable(peer, rtt_s, rtt_s == 0.0, rank, facts))

    @rule(peer=st.sampled_from(PEERS))
    def peer_gone(self, peer: PeerId) -> None:
        if peer not in self.offered:
            return
        for job in JOBS:
            self.leave(peer, job)
        del self.offered[peer], self.accepted[peer]
        self.slots.pop(peer, None)
        self.feed(d.PeerGone(peer, "the link broke"))

    @rule(data=st.data(), slots=st.integers(0, 3), all_=st.booleans())
    def accept_some(self, data: st.DataObject, slots: int, all_: bool) -> None:
        open_ = sorted((peer, job) for peer, jobs in self.offered.items() for job in jobs)
        if open_ and not all_:
            open_ = [data.draw(st.sampled_from(open_))]
        for peer, job in open_:
            self.accept(peer, job, slots)

    def accept(self, peer: PeerId, job: JobId, slots: int) -> None:
        if job not in self.offered.get(peer, ()):
            return
        self.offered[peer].remove(job)
        self.accepted[peer].add(job)
        self.feed(d.PeerAccepted(peer, job))
        self.grant(peer, slots)

    @rule(
        peer=st.sampled_from(PEERS),
        job=st.sampled_from(JOBS[:2]),
        reason=st.sampled_from(["busy", "module", "none-lent"]),
    )
    def refuse(self, peer: PeerId, job: JobId, reason: str) -> None:
        if job in self.offered.get(peer, ()) or job in self.accepted.get(peer, ()):
            self.leave(peer, job)
        self.feed(d.PeerRefused(peer, job, reason, "no"))

    @rule(peer=st.sampled_from(PEERS), slots=st.integers(0, 4))
    def grant(self, peer: PeerId, slots: int) -> None:
        if peer in self.offered:
            self.slots[peer] = slots
        self.feed(d.Granted(peer, slots))

    @rule(data=st.data(), count=st.integers(1, 12), outcomes=st.lists(st.sampled_from(SENT_OUTCOMES), max_size=3))
    def report(self, data: st.DataObject, count: int, outcomes: list[Outcome]) -> None:
        busy = sorted(key for key, rows in self.held.items() if rows)
        if not busy:
            return
        peer, job = data.draw(st.sampled_from(busy))
        wall_s = data.draw(st.sampled_from([0.0, 1e-5, 0.004, 0.5]))
        rows = self.held[peer, job]
        taken = [rows.pop(data.draw(st.integers(0, len(rows) - 1))) for _ in range(min(count, len(rows)))]
        reports = []
        for number, (task, attempt) in enumerate(taken):
            outcome = outcomes[number] if number < len(outcomes) else Outcome.RETURNED
            reports.append(TaskReport(task, attempt, outcome, wall_s, "said so"))
        self.old.extend((peer, job, report) for report in reports)
        self.feed(d.Reported(peer, job, tuple(reports)))

    @rule(data=st.data(), count=st.integers(1, 30), outcome=st.sampled_from(SENT_OUTCOMES))
    def answer_recall(self, data: st.DataObject, count: int, outcome: Outcome) -> None:
        """Some of what was recalled had not begun; the rest runs on, or ends now in whatever way."""
        asked = [row for row in self.recalled if row[2:] in self.held.get(row[:2], ())]
        if not asked:
            return
        peer, job, _, _ = data.draw(st.sampled_from(asked))
        rows = [row[2:] for row in asked if row[:2] == (peer, job)][:count]
        reports = [TaskReport(task, attempt, Outcome.RETURNED_UNRUN) for task, attempt in rows]
        reports[0] = TaskReport(*rows[0], outcome, 0.01, "said so")
        for row in rows:
            self.held[peer, job].remove(row)
        self.old.extend((peer, job, report) for report in reports)
        self.feed(d.Reported(peer, job, tuple(reports)))

    @rule(fast=st.sampled_from(PEERS), slow=st.sampled_from(PEERS))
    def one_becomes_slow(self, fast: PeerId, slow: PeerId) -> None:
        """Short tasks made for long queues; then one peer says nothing any more, and another one ends all it has."""
        for peer, left in ((slow, 3), (fast, 0)):
            for job in JOBS:
                rows = self.held.get((peer, job), [])
                reports = [TaskReport(*rows.pop(0), Outcome.RETURNED, 1e-4) for _ in range(max(len(rows) - left, 0))]
                if reports:
                    self.old.extend((peer, job, report) for report in reports)
                    self.feed(d.Reported(peer, job, tuple(reports)))
        self.time_passes(2.0)

    @rule(data=st.data())
    def report_again(self, data: st.DataObject) -> None:
        if self.old:
            peer, job, report = data.draw(st.sampled_from(self.old[-50:]))
            before = sum(self.settled[job].values())
            self.feed(d.Reported(peer, job, (report,)))
            assert sum(self.settled[job].values()) == before, "an old report was counted"

    @rule(peer=st.sampled_from(PEERS), job=st.sampled_from(JOBS), task=st.integers(0, 50), attempt=st.integers(0, 9))
    def report_nonsense(self, peer: PeerId, job: JobId, task: int, attempt: int) -> None:
        if (task, attempt) in self.held.get((peer, job), ()):
            return
        before = sum(sum(settled.values()) for settled in self.settled.values())
        self.feed(d.Reported(peer, job, (TaskReport(TaskIndex(task), attempt, Outcome.RETURNED),)))
        assert sum(sum(settled.values()) for settled in self.settled.values()) == before, "nonsense was counted"

    @rule(data=st.data())
    def report_wrong_attempt(self, data: st.DataObject) -> None:
        busy = sorted(key for key, rows in self.held.items() if rows)
        if busy:
            peer, job = data.draw(st.sampled_from(busy))
            task, attempt = data.draw(st.sampled_from(self.held[peer, job]))
            self.report_nonsense_at(peer, job, task, attempt + 1)
            self.report_nonsense_at(peer, job, task, attempt - 1)

    def report_nonsense_at(self, peer: PeerId, job: JobId, task: TaskIndex, attempt: int) -> None:
        before = sum(self.settled[job].values())
        self.feed(d.Reported(peer, job, (TaskReport(task, attempt, Outcome.RETURNED),)))
        assert sum(self.settled[job].values()) == before, "an attempt that is not leased was counted"

    @rule(peer=st.sampled_from(PEERS))
    def finish_one_and_wait(self, peer: PeerId) -> None:
        """One peer is fast, the others become late: copies."""
        for job in JOBS:
            rows = self.held.get((peer, job))
            if rows:
                task, attempt = rows.pop()
                self.feed(d.Reported(peer, job, (TaskReport(task, attempt, Outcome.RETURNED, 0.01),)))
        self.now += 0.5
        self.feed(d.Tick())

    @rule(job=st.sampled_from(JOBS), really=st.integers(0, 5))
    def cancel(self, job: JobId, really: int) -> None:
        if really == 0:
            self.feed(d.JobCancelled(job))

    @rule(step_s=st.sampled_from([0.0, 0.01, 0.3, 2.0, 7.0]))
    def time_passes(self, step_s: float) -> None:
        self.now += step_s
        deadline = self.machine.deadline()
        if deadline is not None and deadline <= self.now:
            self.feed(d.Tick())
            after = self.machine.deadline()
            assert after is None or after > self.now, "a Tick must move the deadline on"

    @invariant()
    def no_task_waits_beside_free_credit(self) -> None:
        for peer, jobs in self.accepted.items():
            if self.facts[peer].is_suspect:
                continue
            waiting = [
                job
                for job in jobs
                if self.state[job] is JobState.RUNNING
                and not self.is_choosy(job)
                and self.added[job] > len(self.settled[job]) + self.machine.progress(job, self.now).tasks_running
            ]
            idle = self.slots.get(peer, 0) > 0 and not any(self.held.get((peer, job)) for job in JOBS)
            if waiting and idle:
                # Only a pause, or tasks that rather wait for a peer where they have not failed, excuse an idle peer.
                assert self.waits_for_something() or any(
                    self.machine.progress(job, self.now).retries for job in waiting
                )

    def waits_for_something(self) -> bool:
        """Whether an alarm is set that may end a pause; looks at loads send nothing by themselves."""
        return any(kind != "balance" for kind, _, _ in self.machine._roster.timers)

    def is_choosy(self, job: JobId) -> bool:
        """Whether the job may leave a peer out for reasons that the world does not see."""
        options = self.specs[job].options
        named = options.strategy in ("cost_aware", "dynamic", "latency_based")
        return bool(options.requirements or options.budget or options.balancer or named)

    @invariant()
    def progress_adds_up(self) -> None:
        for job in self.specs:
            progress = self.machine.progress(job, self.now)
            assert progress.state is self.state[job]
            assert progress.tasks_done + progress.tasks_failed == len(self.settled[job])
            assert math.isfinite(progress.elapsed_s)

    def teardown(self) -> None:
        """With an honest peer that everything is given back to, every job comes to its end."""
        honest = PeerId(b"\xff" * 32)
        for peer in PEERS:
            self.peer_gone(peer)
        self.offered[honest] = set()
        self.accepted[honest] = set()
        self.facts[honest] = FACTS[0]
        self.feed(d.PeerUsable(honest, 0.0, True, 50.0, FACTS[0]))
        for job in self.specs:
            self.end_inputs(job)
        for _ in range(2000):
            for job in sorted(self.offered[honest]):
                self.accept(honest, job, 2)
            for job in JOBS:
                rows = self.held.pop((honest, job), [])
                if rows:
                    reports = tuple(TaskReport(task, attempt, Outcome.RETURNED, 0.01) for task, attempt in rows)
                    self.feed(d.Reported(honest, job, reports))
            if all(state is not JobState.RUNNING for state in self.state.values()):
                return
            self.now = max(self.now, self.machine.deadline() or self.now)
            self.feed(d.Tick())
        raise AssertionError(f"jobs never ended: {self.state}")


class MovingWorld(DispatchWorld):
    """The same world, in which peers have long queues of short tasks from the start, so that much is moved."""

    @initialize(slots=st.lists(st.integers(1, 2), min_size=3, max_size=4), retries=st.integers(0, 3))
    def warm_up(self, slots: list[int], retries: int) -> None:
        for peer in PEERS[: len(slots)]:
            self.peer_usable(peer, 0.001, 50.0, FACTS[0])
        self.open_job(JOBS[1], None, retries, 5, True, None, {})
        self.add_tasks(JOBS[1], 400)
        for peer, count in zip(PEERS, slots, strict=False):
            self.accept(peer, JOBS[1], count)
        for _ in range(3):
            for peer in PEERS[: len(slots)]:
                rows, self.held[peer, JOBS[1]] = self.held.get((peer, JOBS[1]), []), []
                reports = tuple(TaskReport(*row, Outcome.RETURNED, 1e-3) for row in rows)
                self.feed(d.Reported(peer, JOBS[1], reports))


DispatchWorld.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
test_dispatch_world = DispatchWorld.TestCase
MovingWorld.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_moving_world = MovingWorld.TestCase
