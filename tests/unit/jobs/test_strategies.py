"""Every strategy's formula in a table, and what all strategies have in common."""

from __future__ import annotations

import pytest

from p2pcompute.jobs.health import choose
from p2pcompute.jobs.plan import Candidate, Facts, fastest_first
from p2pcompute.jobs.strategies import FACTORIES, Registry, Report, Situation, Strategy
from p2pcompute.jobs.strategies.cost_aware import performance
from p2pcompute.jobs.strategies.dynamic import chosen
from p2pcompute.jobs.strategies.hlig import free_memory_share
from p2pcompute.jobs.strategies.latency_based import latency_score_s
from p2pcompute.jobs.strategies.least_loaded import machine_load
from p2pcompute.jobs.strategies.resource_aware import resource_score
from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.errors import NoAvailableNodesError, NoHealthyNodesError, UnknownNameError, UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import JobOptions
from p2pcompute.model.placement import Budget, Preferences, TaskType
from p2pcompute.model.requirement import requirements_of

A, B, C, D = (PeerId(bytes([number]) * 32) for number in (1, 2, 3, 4))


def machine(idle: float = 1.0, free_gb: float = 32.0, *gpu_use: float) -> Capability:
    gpus = tuple(Gpu("H100", 80.0, use) for use in gpu_use)
    return Capability(8, 3000.0, idle, 32.0, free_gb, gpus)


def peer(who: PeerId, facts: Facts | None = None, **values: object) -> Candidate:
    return Candidate(who, **{"rtt_s": 0.0, "local": False, "rank": 50.0, "facts": facts or Facts(), **values})  # type: ignore[arg-type]


def order(
    name: str, candidates: list[Candidate], spent: float = 0.0, home: int | None = None, **options: object
) -> list[PeerId]:
    chosen_options = JobOptions(strategy=name, **options)  # type: ignore[arg-type]
    job = Situation(0.0, chosen_options, chosen_options.expected_task_s, 1, None, spent, home)
    found = Registry().make(name, chosen_options).order(candidates, job)
    again = Registry().make(name, chosen_options).order(candidates[::-1], job)
    assert found == again, "the order of candidates must not matter"
    return found


@pytest.mark.parametrize("name", Registry().names)
def test_what_all_have_in_common(name: str) -> None:
    assert order(name, []) == []
    alike = [peer(each) for each in (C, A, B)]
    assert order(name, alike) == [A, B, C], "ties go to the lower id"
    strategy = Registry().make(name, JobOptions(strategy=name))
    assert strategy.name == name
    strategy.learn(alike[0], Situation(0.0, JobOptions()), Report(1, 0, 0, 1.0))


@pytest.mark.parametrize(
    ("turns", "wanted"),
    [({A: 0, B: 0, C: 0}, [A, B, C]), ({A: 3, B: 1, C: 2}, [B, C, A]), ({A: 1, B: 0, C: 0}, [B, C, A])],
)
def test_round_robin(turns: dict[PeerId, int], wanted: list[PeerId]) -> None:
    assert order("round_robin", [peer(who, turn=turn, local=who == C) for who, turn in turns.items()]) == wanted


def test_round_robin_is_index_modulo_n() -> None:
    turns = dict.fromkeys((A, B, C), 0)
    said = []
    for number in range(1, 8):
        first = order("round_robin", [peer(who, turn=turn) for who, turn in turns.items()])[0]
        turns[first] = number
        said.append(first)
    assert said == [A, B, C, A, B, C, A]


@pytest.mark.parametrize(
    ("facts", "load", "wanted"),
    [
        (Facts(), 0.0, 0.5),
        (Facts(), 0.8, 0.8),
        (Facts(capability=machine(0.9, 32.0)), 0.0, 0.1),
        (Facts(capability=machine(0.9, 8.0)), 0.0, 0.75),
        (Facts(capability=machine(0.2, 32.0)), 0.0, 0.8),
        (Facts(capability=machine(1.0, 32.0)), 0.25, 0.25),
    ],
)
def test_machine_load(facts: Facts, load: float, wanted: float) -> None:
    assert machine_load(peer(A, facts, load=load)) == pytest.approx(wanted)


def test_least_loaded() -> None:
    busy, idle = Facts(capability=machine(0.1)), Facts(capability=machine(0.9))
    assert order("least_loaded", [peer(A, busy), peer(B, idle), peer(C)]) == [B, C, A]
    assert order("least_loaded", [peer(A, idle, load=0.5), peer(B, idle, load=0.25)]) == [B, A]


@pytest.mark.parametrize(
    ("capability", "requirements", "wanted"),
    [
        (None, {}, (0.5 + 0.5 + 0.5 + 1) / 4),
        (machine(0.8, 16.0), {}, (0.8 + 0.5 + 0.5 + 1) / 4),
        (machine(0.8, 16.0, 0.25, 0.75), {}, (0.8 + 0.5 + 0.5 + 1) / 4),
        (machine(0.8, 16.0, 0.0), {}, (0.8 + 0.5 + 1.0 + 1) / 4),
        (machine(1.0, 32.0), {"cpu_cores": ">=8"}, (1 + 1 + 0.5 + 0) / 4),
        (machine(1.0, 32.0), {"cpu_cores": ">=2", "memory": ">=16GB"}, (1 + 1 + 0.5 + (0.75 + 0.5) / 2) / 4),
        (machine(1.0, 32.0), {"python": ">=3.11"}, (1 + 1 + 0.5 + 1) / 4),
    ],
)
def test_resource_score(capability: Capability | None, requirements: dict[str, str], wanted: float) -> None:
    score = resource_score(peer(A, Facts(capability=capability)), requirements_of(requirements))
    assert score == pytest.approx(wanted)


def test_resource_aware() -> None:
    rows = [peer(A, Facts(capability=machine(0.2))), peer(B, Facts(capability=machine(0.9))), peer(C)]
    assert order("resource_aware", rows) == [B, A, C]
    same = Facts(capability=machine(0.5))
    assert order("resource_aware", [peer(A, same, load=0.5), peer(B, same)]) == [B, A]


@pytest.mark.parametrize(
    ("rtt_s", "load", "wanted"), [(0.1, 0.0, 0.1), (0.1, 1.0, 0.15), (0.02, 0.5, 0.025), (-1, 1, 0)]
)
def test_latency_score(rtt_s: float, load: float, wanted: float) -> None:
    assert latency_score_s(rtt_s, load) == pytest.approx(wanted)


def test_latency_based() -> None:
    rows = [peer(A, rtt_s=0.05), peer(B, rtt_s=0.04, load=1.0), peer(C, rtt_s=0.101), peer(D, rtt_s=0.1)]
    assert order("latency_based", rows) == [A, B, D], "beyond 100 ms nobody"
    assert order("latency_based", rows, preferences=Preferences(max_latency_s=0.5)) == [A, B, D, C]
    assert order("latency_based", [peer(A, Facts(load=2.0), rtt_s=0.04), peer(B, rtt_s=0.05)]) == [B, A]
    near = [peer(A, Facts(community=2)), peer(B, Facts(community=1), rtt_s=0.01), peer(C, rtt_s=0.05, local=True)]
    assert order("latency_based", near, home=1, preferences=Preferences(prefer_local=True)) == [C, B, A]


@pytest.mark.parametrize(
    ("rank", "task_s", "wanted"), [(80.0, None, 80.0), (0.0, None, 1.0), (80.0, 2.0, 25.0), (80.0, 0.5, 100.0)]
)
def test_performance(rank: float, task_s: float | None, wanted: float) -> None:
    assert performance(peer(A, rank=rank, task_s=task_s), 1.0, 50.0) == wanted


def test_cost_aware() -> None:
    rows = [
        peer(A, Facts(cost_per_hour=2.0), rank=50.0),
        peer(B, Facts(cost_per_hour=1.0), rank=40.0),
        peer(C, Facts(cost_per_hour=0.0), rank=10.0),
        peer(D, Facts(cost_per_hour=36.0), rank=90.0),
    ]
    assert order("cost_aware", rows) == [C, B, A, D]
    assert order("cost_aware", rows, preferences=Preferences(cost_limit=1.5)) == [C, B]
    # 100 s cost 0.056, 0.028, 0 and 1.0.
    assert order("cost_aware", rows, budget=Budget(0.05), expected_task_s=100.0) == [C, B]
    assert order("cost_aware", rows, spent=0.95, budget=Budget(1.0), expected_task_s=100.0) == [C, B]
    assert order("cost_aware", rows, budget=Budget(0.0)) == [C]


def test_hlig_is_fastest_first_where_no_topology_is_known() -> None:
    rows = [
        peer(A, rtt_s=0.2), peer(B, rank=20.0), peer(C, rank=90.0, load=2.0), peer(D, task_s=0.5, local=True)
    ]  # fmt: skip
    for kind in (TaskType.COMPUTE, TaskType.NETWORK, TaskType.MIXED, TaskType.MEMORY):
        assert order("hlig", rows, task_type=kind) == fastest_first(rows)


def test_hlig_by_task_type() -> None:
    gateway, inner, far = (
        Facts(fiedler_score=1.0, community=1),
        Facts(fiedler_score=0.1, community=1),
        Facts(fiedler_score=0.9, community=2),
    )
    rows = [peer(A, inner, rank=90.0), peer(B, gateway, rank=50.0), peer(C, far, rank=60.0)]
    assert order("hlig", rows, home=1) == [A, C, B]
    assert order("hlig", rows, home=1, task_type=TaskType.NETWORK) == [B, A, C], "near the data, then gateways"
    assert order("hlig", rows, task_type=TaskType.NETWORK) == [B, C, A]
    # Finish times 1/90, 1/50, 1/60 over 1.1, 2 and 1.9.
    assert order("hlig", rows, task_type=TaskType.MIXED) == [C, B, A]
    roomy, tight = Facts(capability=Capability(8, 3000.0, 1.0, 512.0, 256.0)), Facts(capability=machine(1.0, 0.0))
    assert free_memory_share(peer(A, roomy)) == 1.0
    assert order("hlig", [peer(A, tight, rank=60.0), peer(B, roomy)], task_type=TaskType.MEMORY) == [B, A]


def test_hlig_counts_the_way_of_the_data() -> None:
    assert order("hlig", [peer(A, rank=60.0, fetch_s=0.1), peer(B, local=True)]) == [B, A]


@pytest.mark.parametrize(
    ("idle", "rtt_s", "spent", "wanted"),
    [
        (0.1, 0.0, 0.0, "resource_aware"),
        (0.2, 0.0, 0.0, "quiet"),
        (0.1, 0.3, 0.9, "resource_aware"),
        (0.5, 0.3, 0.9, "latency_based"),
        (0.5, 0.2, 0.9, "cost_aware"),
        (0.5, 0.0, 0.8, "quiet"),
    ],
)
def test_dynamic_chooses(idle: float, rtt_s: float, spent: float, wanted: str) -> None:
    rows = [peer(A, Facts(capability=machine(idle)), rtt_s=rtt_s)]
    assert chosen(rows, Situation(0.0, JobOptions(budget=Budget(1.0)), spent=spent), "quiet") == wanted


def test_dynamic_uses_the_adaptive_strategy_where_there_is_one() -> None:
    told = []

    class Learned(Strategy):
        name = "smart_adaptive"
        learns = True

        def order(self, candidates, job):  # type: ignore[no-untyped-def]
            return [C]

        def learn(self, candidate, job, report):  # type: ignore[no-untyped-def]
            told.append(report)

    registry = Registry({**FACTORIES, "smart_adaptive": lambda options, registry: Learned()})
    dynamic = registry.make("dynamic", JobOptions())
    job = Situation(0.0, JobOptions())
    assert dynamic.learns
    assert dynamic.order([peer(A), peer(C)], job) == [C]
    dynamic.learn(peer(A), job, Report(1, 0, 0, 1.0))
    assert told == [Report(1, 0, 0, 1.0)]
    assert not Registry().make("dynamic", JobOptions()).learns


def test_a_balancer_of_ones_own() -> None:
    rows, job = [peer(A), peer(B)], Situation(0.0, JobOptions())

    def make(balancer: object) -> Strategy:
        return Registry().make_for(JobOptions(balancer=balancer))

    assert make(lambda candidates, job: [B, B, A]).order(rows, job) == [B, A]
    assert make(lambda candidates, job: list(candidates)[:1]).order(rows, job) == [A]
    assert make(Registry().make("round_robin", JobOptions())).order(rows, job) == [A, B]
    assert make(Registry().make("round_robin", JobOptions())).spreads
    for bad in (lambda candidates, job: None, lambda candidates, job: "ab", lambda candidates, job: [C]):
        with pytest.raises(UsageError):
            make(bad).order(rows, job)
    with pytest.raises(UsageError, match="give one of them"):
        Registry().check(JobOptions(strategy="round_robin", balancer=make))
    with pytest.raises(UsageError, match="give a function"):
        JobOptions(balancer="round_robin")


def test_names() -> None:
    with pytest.raises(UnknownNameError) as caught:
        Registry().make("round_robbin", JobOptions())
    assert caught.value.nearest == "round_robin"
    with pytest.raises(UnknownNameError):
        Registry().check(JobOptions(fallback_strategy="nobody"))


def test_choosing_one() -> None:
    job, first = Situation(0.0, JobOptions()), Registry().make("round_robin", JobOptions())
    assert choose(first, [peer(B), peer(A)], job) == A
    assert choose(first, [peer(A, Facts(is_suspect=True)), peer(B, Facts(load=0.95)), peer(C)], job) == C
    with pytest.raises(NoAvailableNodesError):
        choose(first, [], job)
    with pytest.raises(NoHealthyNodesError, match="suspected"):
        choose(first, [peer(A, Facts(is_suspect=True))], job)
    with pytest.raises(NoHealthyNodesError, match=r"overloaded: 0\.90"):
        choose(first, [peer(A, Facts(load=0.9))], job)
    assert choose(first, [peer(A, Facts(load=0.9))], Situation(0.0, JobOptions(health_check=False))) == A
    with pytest.raises(NoAvailableNodesError, match="leaves out all"):
        choose(Registry().make("latency_based", JobOptions()), [peer(A, rtt_s=1.0)], job)
