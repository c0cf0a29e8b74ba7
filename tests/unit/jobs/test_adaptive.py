"""smart_adaptive as a strategy of jobs: what a candidate becomes, what is shared, and its names."""

from __future__ import annotations

import random

import pytest

from p2pcompute.jobs import dispatch as d
from p2pcompute.jobs.plan import Candidate, Facts, fastest_first
from p2pcompute.jobs.strategies import ADAPTIVE, FACTORIES, NAMES, Registry, Situation
from p2pcompute.jobs.strategies.adaptive import Shared, facts_of
from p2pcompute.jobs.strategies.features import SHARED, is_row
from p2pcompute.jobs.strategies.smart_adaptive import AdaptiveSettings, SmartAdaptive
from p2pcompute.jobs.submit import check_options, options_document, options_of
from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Outcome
from p2pcompute.model.performance import FunctionKey, PerformanceRecord
from p2pcompute.model.placement import Target
from tests.purity.world import world_switched_off

A, B, C = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))
SQUARE = FunctionKey("square", ProgramId(b"p" * 32))
MACHINE = Capability(8, 3000.0, 0.25, 32.0, 8.0, (Gpu("H100", 80.0, 0.5), Gpu("H100", 80.0, 0.0)))


def peer(who: PeerId, facts: Facts | None = None, **values: object) -> Candidate:
    return Candidate(who, **{"rtt_s": 0.0, "local": False, "rank": 50.0, "facts": facts or Facts(), **values})  # type: ignore[arg-type]


def shared(explore_share: float = 0.0) -> Shared:
    return Shared(SmartAdaptive(random.Random(1), AdaptiveSettings(explore_share=explore_share)), lambda: 12.0)


def situation(**values: object) -> Situation:
    return Situation(0.0, JobOptions(), function=SQUARE, **values)  # type: ignore[arg-type]


def saw(core: SmartAdaptive, who: PeerId, wall_s: float, function: FunctionKey = SQUARE) -> None:
    record = PerformanceRecord(function, who, ADAPTIVE, Outcome.RETURNED, wall_s)
    core.book.observe(record, 0.0)
    core.observe(record)


def test_a_candidate_as_the_strategy_sees_it() -> None:
    facts = facts_of(peer(A, Facts(capability=MACHINE, slots=4, load=0.5, cost_per_hour=2.0), rtt_s=0.1, fetch_s=0.2))
    assert (facts.peer, facts.rank, facts.slots, facts.cost_per_hour) == (A, 50.0, 4, 2.0)
    assert facts.rtt_s == pytest.approx(0.3), "what must be fetched is waited for as the way is"
    assert (facts.cpu, facts.memory, facts.gpu) == (0.75, 0.75, 0.25)
    assert facts.queued == 2.0, "what it says of all its tasks"
    assert facts_of(peer(A, queue=7)).queued == 7, "or what we know, where that is more"
    unknown = facts_of(peer(A))
    assert (unknown.slots, unknown.cpu, unknown.memory, unknown.gpu) == (1, None, None, None)


def test_it_begins_as_the_default_plan_and_learns_by_function() -> None:
    one = shared()
    strategy = one.strategy_of(JobOptions(strategy=ADAPTIVE), None)
    rows = [peer(A, rank=20.0), peer(B, rank=40.0), peer(C, rank=80.0)]
    with world_switched_off():
        assert strategy.order(rows, situation()) == fastest_first(rows) == [C, B, A]
        for _ in range(20):
            for who, wall_s in ((A, 0.1), (B, 1.0), (C, 9.0)):
                saw(one.core, who, wall_s)
        assert strategy.order(rows, situation()) == [A, B, C]
        another = one.strategy_of(JobOptions(strategy=ADAPTIVE), None)
        assert another.order(rows, situation()) == [A, B, C], "jobs share what is learned"
    other = FunctionKey("cube", SQUARE.program)
    assert strategy.order(rows, Situation(0.0, JobOptions(), function=other)) == [C, B, A]
    # Where the core is replaced, the strategies of running jobs ask the new one.
    one.core = SmartAdaptive(random.Random(1), AdaptiveSettings(explore_share=0.0))
    assert strategy.order(rows, situation()) == [C, B, A]


@pytest.mark.parametrize(("target", "wanted"), [(Target.LATENCY, [B, A]), (Target.COST, [A, B])])
def test_the_job_says_what_is_to_be_small(target: Target, wanted: list[PeerId]) -> None:
    rows = [peer(A, Facts(cost_per_hour=1.0), rank=20.0), peer(B, Facts(cost_per_hour=9.0), rank=40.0)]
    strategy = shared().strategy_of(JobOptions(), None)
    job = Situation(0.0, JobOptions(optimization_target=target), function=SQUARE)
    assert strategy.order(rows, job) == wanted


def test_a_row_for_a_record() -> None:
    one = shared()
    row = one.row(peer(A), situation(input_bytes=1 << 20))
    assert is_row(row)
    assert row != one.row(peer(A), situation(input_bytes=16)), "the size of a request is in it"
    saw(one.core, A, 2.0)
    as_usual, hard, absurd = (
        one.row(peer(A), Situation(0.0, JobOptions(expected_task_s=expected_s), function=SQUARE))
        for expected_s in (2.0, 8.0, float("inf"))
    )
    place = SHARED.index("complexity")
    assert (as_usual[place], hard[place]) == (0.0, 0.5), "what is expected, over what the function took lately"
    assert is_row(absurd)
    assert is_row(one.row(peer(A), Situation(0.0, JobOptions()))), "also of a situation that names no function"


def test_dynamic_falls_to_it_where_there_is_one() -> None:
    one = shared()
    for _ in range(20):
        for who, wall_s in ((A, 0.1), (B, 9.0)):
            saw(one.core, who, wall_s)
    registry = Registry({**FACTORIES, ADAPTIVE: one.strategy_of})
    rows = [peer(A, rank=20.0), peer(B, rank=80.0)]
    assert registry.make("dynamic", JobOptions()).order(rows, situation()) == [A, B]
    assert Registry().make("dynamic", JobOptions()).order(rows, situation()) == [B, A]


def test_names_and_values_are_checked() -> None:
    assert ADAPTIVE in NAMES
    check_options(JobOptions(strategy=ADAPTIVE, fallback_strategy="dynamic"))
    with pytest.raises(UnknownNameError, match="did you mean 'smart_adaptive'"):
        check_options(JobOptions(strategy="smart_adaptiv"))
    with pytest.raises(UsageError, match="give one of them"):
        check_options(JobOptions(strategy=ADAPTIVE, balancer=lambda candidates, job: candidates))
    chosen = options_of({"optimization_target": "Minimize_Cost", "cache_ttl_s": "60"})
    assert (chosen.optimization_target, chosen.cache_ttl_s) == (Target.COST, 60.0)
    assert options_of(options_document(chosen)) == chosen
    assert options_of({"cache_ttl_s": "none"}).cache_ttl_s is None
    with pytest.raises(UnknownNameError, match="did you mean 'minimize_cost'"):
        JobOptions(optimization_target="minimise_cost")  # type: ignore[arg-type]
    for wrong in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(UsageError, match="cache_ttl_s"):
            JobOptions(cache_ttl_s=wrong)


def test_the_machine_says_what_a_strategy_sees() -> None:
    machine, job = d.Dispatch(), JobId(b"j" * 12)
    spec = JobSpec(job, "j", SQUARE.program, SQUARE.name, Aggregation.NONE, None, JobOptions())
    machine.handle(d.JobOpened(spec), 0.0)
    machine.handle(d.TasksAdded(job, (TaskIndex(0), TaskIndex(1)), 0, 300), 0.0)
    assert machine.seen(job, A, 1.0) is None
    machine.handle(d.PeerUsable(A, 0.5, False, 70.0), 1.0)
    seen = machine.seen(job, A, 2.0)
    assert seen is not None
    assert (seen[0].peer, seen[0].rtt_s, seen[0].rank) == (A, 0.5, 70.0)
    assert (seen[1].now, seen[1].function, seen[1].input_bytes) == (2.0, SQUARE, 150.0)
    machine.handle(d.JobCancelled(job), 3.0)
    assert machine.seen(job, A, 4.0) is not None, "what ended is told after its end"
    machine.handle(d.JobForgotten(job), 5.0)
    assert machine.seen(job, A, 6.0) is None
