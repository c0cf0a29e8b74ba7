"""Requirements, budgets, health and scaling: their formulas in tables, and what the dispatch machine does with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from p2pcompute.jobs import dispatch as d
from p2pcompute.jobs.budget import Purse, task_cost, tasks_affordable
from p2pcompute.jobs.health import health_of, is_healthy
from p2pcompute.jobs.judging import SEEK_AGAIN_S, SETTLING_S
from p2pcompute.jobs.placing import disfavours
from p2pcompute.jobs.plan import Candidate, Facts
from p2pcompute.jobs.requirements import lacks, unmet_text
from p2pcompute.jobs.scaling import ScalingSettings, advise
from p2pcompute.jobs.strategies import FACTORIES, Registry, Report, Situation, Strategy
from p2pcompute.jobs.submit import options_of
from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex, short_peer_id
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, JobState, Lease, Outcome, TaskReport
from p2pcompute.model.placement import Preferences
from p2pcompute.model.requirement import requirements_of

A, B, C = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))
JOB = JobId(b"j" * 12)
MACHINE = Capability(8, 3200.0, 0.75, 32.0, 20.0, (Gpu("NVIDIA T4", 15.0), Gpu("NVIDIA H100", 80.0, 0.5)))
FACTS = Facts(
    name="bert",
    capability=MACHINE,
    slots=8,
    load=0.25,
    labels=("zone=lab", "ssd"),
    python="3.12.4",
    platform="linux x86_64",
    isolation="sandbox",
    cost_per_hour=2.5,
    performance_tier="premium",
    bandwidth_mbps=940.0,
)
BERT = Candidate(B, 0.02, False, 61.0, facts=FACTS)


# --- requirements ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "met"),
    [
        ("cores>=8", True), ("cores>8", False), ("cpu_frequency>=3.2GHz", True), ("memory>=32GB", True),
        ("memory>32GB", False), ("available_memory>=21GB", False), ("gpu_count>=2", True), ("gpu_count>=3", False),
        ("gpu_memory>=80GB", True), ("gpu_memory>=81GB", False), ("gpu_name h100", True), ("gpu_name A100", False),
        ("gpu_name != A100", True), ("score>=61", True), ("cpu_score>=100", False), ("gpu_score>50", True),
        ("memory_score>=90", False), ("slots>=8", True), ("load<0.5", True), ("load<0.2", False),
        ("latency<=20ms", True), ("latency<=19ms", False), ("bandwidth>=900Mbps", True), ("bandwidth>=1Gbps", False),
        ("cost_per_hour<=2.5", True), ("cost_per_hour<2.5", False), ("tier>=standard", True), ("tier==standard", False),
        ("python>=3.12", True), ("python==3.12", True), ("python>3.12", False), ("python>=3.12.5", False),
        ("python<3.13", True), ("platform linux", True), ("platform win", False), ("isolation>=sandbox", True),
        ("isolation>=wasm", False), ("name BERT", True), ("name ber", False), ("name!=bert", False),
        ("label zone=lab", True), ("label zone", True), ("label zone=office", False), ("label ssd", True),
        ("label zon", False), ("label != slow", True), ("label != ssd", False),
    ],
)  # fmt: skip
def test_requirements_in_a_table(expression: str, met: bool) -> None:
    found = requirements_of(expression)
    assert (not lacks(found, BERT)) is met


def test_what_a_peer_does_not_say_it_does_not_have() -> None:
    nothing = Candidate(A, 0.0, False, 0.0)
    for expression in (
        "cores>=0",
        "score>=0",
        "gpu_name x",
        "python>=3",
        "platform linux",
        "bandwidth>=0",
        "isolation process",
    ):
        (lack,) = lacks(requirements_of(expression), nothing)
        assert "that it tells of" in lack.has


def test_the_nearest_peer_and_what_it_lacks() -> None:
    small = Candidate(A, 0.0, True, 10.0, facts=Facts(name="anna", capability=Capability(2, 2000.0, 1.0, 8.0, 4.0)))
    wanted = requirements_of("gpu_memory>=96GB")
    assert unmet_text(wanted, [small, BERT]) == (
        f"no peer has gpu_memory >= 96GB: the nearest is bert ({short_peer_id(B)}) with 80 GB"
    )
    assert unmet_text(wanted, [small]).endswith("the nearest is this peer with 0 GB")
    both = requirements_of(["gpu_memory>=96GB", "label zone=lab"])
    assert "bert" in unmet_text(both, [small, BERT])
    assert "which lacks gpu_memory >= 96GB and has 80 GB" in unmet_text(both, [small, BERT])
    assert "labels zone=lab, ssd" in unmet_text(requirements_of("label gpu"), [BERT])
    assert unmet_text(wanted, []) == "no peer has gpu_memory >= 96GB: none that may compute for this one is linked"


# --- money ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_over", "price", "cheapest", "left", "wanted"),
    [
        (1.0, 0.0, 0.0, 7, 7),
        (1.0, 0.1, 0.1, 7, 7),
        (0.5, 0.1, 0.1, 7, 5),
        (-0.1, 0.1, 0.1, 7, 0),
        (-0.1, 0.0, 0.0, 7, 7),
        (0.0, 0.1, 0.1, 7, 0),
        (1.0, 0.3, 0.1, 7, 1),
        (0.7, 0.3, 0.1, 7, 0),
        (0.6, 0.3, 0.1, 7, 0),
        (1.0, 0.5, 0.0, 7, 2),
        (99.0, 0.5, 0.1, 7, 7),
    ],
)
def test_tasks_affordable(left_over: float, price: float, cheapest: float, left: int, wanted: int) -> None:
    assert tasks_affordable(left_over=left_over, price=price, cheapest=cheapest, left=left) == wanted


def test_purse() -> None:
    assert task_cost(36.0, 100.0) == pytest.approx(1.0)
    purse = Purse(2.0)
    purse.pay(36.0, 100.0)
    purse.committed = 0.5
    assert purse.left_over == pytest.approx(0.5)
    purse.pay(36.0, -5.0)
    assert purse.spent == pytest.approx(1.0)


# --- health, preferences, scaling -----------------------------------------------------------------------------------------


def test_health() -> None:
    health = health_of(BERT, 7.0)
    assert (health.cpu, health.memory, health.gpu, health.load) == (0.25, 0.375, 0.25, 0.25)
    assert (health.response_time_s, health.error, health.timestamp, health.is_available) == (0.02, "", 7.0, True)
    bare = health_of(Candidate(A, 0.1, False, 0.0, facts=Facts(is_suspect=True)), 7.0)
    assert (bare.cpu, bare.memory, bare.gpu, bare.is_available) == (None, None, None, False)


@pytest.mark.parametrize(
    ("facts", "slots", "local", "wanted"),
    [
        (Facts(load=0.89), 0, False, True),
        (Facts(load=0.9), 0, False, False),
        (Facts(load=5.0), 1, False, True),
        (Facts(load=5.0), 0, True, True),
        (Facts(is_suspect=True), 4, False, False),
    ],
)
def test_is_healthy(facts: Facts, slots: int, local: bool, wanted: bool) -> None:
    assert is_healthy(Candidate(A, 0.0, local, 0.0, facts=facts), slots) is wanted


@pytest.mark.parametrize(
    ("preferences", "wanted"),
    [
        (Preferences(), 0),
        (Preferences(prefer_local=True), 1),
        (Preferences(key_nodes=True), 1),
        (Preferences(max_latency_s=0.02, cost_limit=2.5), 0),
        (Preferences(prefer_local=True, max_latency_s=0.01, cost_limit=2.0), 3),
    ],
)
def test_disfavours(preferences: Preferences, wanted: int) -> None:
    assert disfavours(preferences, BERT) == wanted


@pytest.mark.parametrize(
    ("loads", "nodes", "wanted"),
    [
        ([0.5] * 10, 4, 0),
        ([0.8] * 10, 4, 0),
        ([0.9] * 10, 4, 3),
        ([0.1] * 10, 8, -6),
        ([0.29] * 10, 8, -3),
        ([2.0] * 10, 4, 6),
        ([0.0] * 10, 4, -2),
        ([0.9] * 3, 4, 0),
        ([], 4, 0),
        ([], 1, 1),
        ([], 12, -2),
    ],
)
def test_scaling_advice(loads: Sequence[float], nodes: int, wanted: int) -> None:
    history = [(number * 10.0, load) for number, load in enumerate(loads)]
    now = history[-1][0] + 5.0 if history else 0.0
    advice = advise(history, nodes, now, ScalingSettings())
    assert advice.change == wanted
    assert advice.reason
    for bad in ({"nodes_min": 5, "nodes_max": 4}, {"up": 0.2, "down": 0.3}):
        with pytest.raises(UsageError):
            ScalingSettings(**bad)  # type: ignore[arg-type]


# --- in the dispatch machine ----------------------------------------------------------------------------------------------


class World:
    """The machine, its clock, and all it said since last asked."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.machine = d.Dispatch(registry)
        self.now = 0.0
        self.said: list[d.Effect] = []
        self.everything: list[d.Effect] = []

    def feed(self, *events: d.Event) -> None:
        self.said = []
        for event in events:
            self.said += self.machine.handle(event, self.now)
            self.machine.check_invariants()
        self.everything += self.said

    def of(self, kind: type) -> list[Any]:
        return [effect for effect in self.said if isinstance(effect, kind)]

    def usable(self, peer: PeerId, facts: Facts = FACTS, rtt_s: float = 0.01) -> None:
        self.feed(d.PeerUsable(peer, rtt_s, False, 50.0, facts))

    def accept(self, *peers: PeerId, slots: int = 1) -> None:
        for peer in peers:
            self.feed(d.Granted(peer, slots), d.PeerAccepted(peer, JOB))

    def job(self, count: int, strategy: str = "hlig", **options: Any) -> None:
        chosen = dataclasses.replace(options_of(options), strategy=strategy)
        spec = JobSpec(JOB, "j", ProgramId(b"p" * 32), "m", Aggregation.NONE, None, chosen, count)
        tasks = tuple(TaskIndex(number) for number in range(count))
        self.feed(d.JobOpened(spec), d.TasksAdded(JOB, tasks), d.InputsEnded(JOB))

    def report(self, peer: PeerId, *tasks: int, wall_s: float = 1.0, outcome: Outcome = Outcome.RETURNED) -> None:
        self.feed(d.Reported(peer, JOB, tuple(TaskReport(TaskIndex(task), 1, outcome, wall_s) for task in tasks)))

    def sent(self) -> dict[PeerId, list[Lease]]:
        found: dict[PeerId, list[Lease]] = {}
        for effect in self.of(d.Send):
            found.setdefault(effect.peer, []).extend(effect.leases)
        return found

    def tick(self, now: float) -> None:
        self.now = now
        self.feed(d.Tick())

    @property
    def message(self) -> str:
        return self.machine.progress(JOB, self.now).message


OTHER = Facts(name="anna", capability=Capability(2, 2000.0, 1.0, 8.0, 4.0))


def test_a_job_is_offered_only_where_its_requirements_are_met() -> None:
    world = World()
    world.usable(A, OTHER)
    world.usable(B)
    world.job(3, requirements={"gpu_memory": ">=16GB"})
    assert world.of(d.OpenAt) == [d.OpenAt(B, JOB)]
    world.usable(C, OTHER)
    assert not world.of(d.OpenAt)
    world.usable(C, FACTS)
    assert world.of(d.OpenAt) == [d.OpenAt(C, JOB)], "its record changed"


def test_a_requirement_that_nobody_meets_ends_the_job_once_links_are_up() -> None:
    world = World()
    world.usable(A, OTHER)
    world.job(3, requirements={"gpu_memory": ">=16GB"})
    text = f"no peer has gpu_memory >= 16GB: the nearest is anna ({short_peer_id(A)}) with 0 GB"
    assert world.of(d.Stalled) == [d.Stalled(JOB, text)]
    assert world.of(d.SeekPeers) == [d.SeekPeers(JOB)]
    assert world.message == text
    assert world.machine.deadline() == SETTLING_S
    world.tick(SETTLING_S - 1)
    assert not world.said
    world.tick(SETTLING_S)
    (ended,) = world.of(d.JobEnded)
    assert (ended.state, ended.cause, ended.reason) == (JobState.FAILED, d.EndCause.UNMET, text)


def test_where_links_have_long_been_up_it_ends_at_once() -> None:
    world = World()
    world.usable(A, OTHER)
    world.now = SETTLING_S + 100
    world.job(3, requirements={"gpu_memory": ">=16GB"})
    assert world.of(d.JobEnded)[0].cause is d.EndCause.UNMET


def test_a_job_that_may_wait_goes_on_when_a_peer_comes() -> None:
    world = World()
    world.usable(A, OTHER)
    world.job(1, requirements={"gpu_memory": ">=16GB"}, on_unmet="wait")
    for number in range(1, 20):
        world.tick(number * SEEK_AGAIN_S)
        assert world.of(d.SeekPeers) == [d.SeekPeers(JOB)]
        assert not world.of(d.Stalled), "said once"
    world.usable(B)
    assert world.of(d.OpenAt) == [d.OpenAt(B, JOB)]
    assert "no peer has" not in world.message
    world.accept(B)
    world.report(B, 0)
    assert world.of(d.JobEnded)[0].state is JobState.SUCCEEDED


def test_a_peer_that_does_not_meet_them_any_more_gets_nothing_more_and_the_job_waits() -> None:
    world = World()
    world.usable(B)
    world.job(3, requirements={"available_memory": ">=10GB"})
    world.accept(B)
    world.tick(SETTLING_S + 1)
    full = Facts(name="bert", capability=Capability(8, 3200.0, 0.75, 32.0, 2.0))
    world.usable(B, full)
    world.report(B, 0)
    assert not world.sent()
    assert not world.of(d.JobEnded), "it has begun, so it waits"
    assert world.message.endswith("with 2 GB")
    world.usable(B)
    assert len(world.sent()[B]) == 1


def test_a_lost_peer_that_met_them_is_waited_for() -> None:
    world = World()
    world.usable(A, OTHER)
    world.usable(B)
    world.job(2, requirements={"label": "zone=lab"})
    world.accept(B)
    world.tick(100.0)
    world.feed(d.PeerGone(B, "killed"))
    assert not world.of(d.JobEnded)
    assert "no peer has label zone=lab: the nearest is anna" in world.message


def test_few_tasks_are_spread_by_turns() -> None:
    world = World()
    for peer in (A, B, C):
        world.usable(peer)
    world.job(6, strategy="round_robin")
    given: dict[PeerId, int] = {}
    for peer in (A, B, C):
        world.accept(peer, slots=4)
        for who, leases in world.sent().items():
            given[who] = given.get(who, 0) + len(leases)
    assert given == {A: 2, B: 2, C: 2}


@pytest.mark.parametrize("peers", [[(A, 1), (B, 16)], [(B, 16), (A, 1)]])
def test_spreading_leaves_no_slot_idle(peers: list[tuple[PeerId, int]]) -> None:
    world = World()
    for peer in (A, B):
        world.usable(peer)
    world.job(10, strategy="round_robin")
    for peer, slots in peers:
        world.accept(peer, slots=slots)
    assert world.machine.progress(JOB, 0.0).tasks_running == 10


def test_single_calls_take_turns() -> None:
    world = World()
    for peer in (A, B, C):
        world.usable(peer)
    options = options_of({"strategy": "round_robin"})
    world.feed(d.JobOpened(JobSpec(JOB, "j", ProgramId(b"p" * 32), "m", Aggregation.NONE, None, options)))
    world.accept(A, B, C, slots=4)
    said: list[PeerId] = []
    for number in range(7):
        world.feed(d.TasksAdded(JOB, (TaskIndex(number),)))
        said += world.sent()
        world.report(said[-1], number)
    assert said == [A, B, C, A, B, C, A]


def test_late_copies_are_made_only_where_they_can_be_paid() -> None:
    for budget in (None, 10.5):
        world = World()
        world.usable(A, Facts(name="anna", cost_per_hour=36.0))
        world.usable(B, Facts(name="bert", cost_per_hour=36.0))
        world.job(10, budget=budget, expected_task_s=100.0)
        world.accept(A, B, slots=5)
        world.now = 100.0
        world.report(A, 0, 1, 2, 3, 4, wall_s=100.0)
        world.report(B, 5, 6, 7, 8, wall_s=100.0)
        world.tick(10_000.0)
        assert bool(world.sent()) is (budget is None), "the last one is late, and a second attempt costs as much again"


def test_a_suspect_is_not_asked_while_another_can_be() -> None:
    suspect = Facts(name="carl", is_suspect=True)
    world = World()
    world.usable(A, suspect)
    world.usable(B)
    world.job(9)
    world.accept(A, slots=2)
    assert A in world.sent(), "nobody else can run it yet"
    world.accept(B, slots=2)
    world.report(A, 0, 1)
    assert not world.sent()
    world.usable(A)
    assert len(world.sent()[A]) == 2, "it lives"
    for options in ({"health_check": False}, {}):
        world = World()
        world.usable(B)
        world.usable(A)
        world.job(9, **options)
        world.accept(B, A)
        world.usable(A, suspect)
        world.report(A, 1)
        assert (A in world.sent()) is (options != {})


def test_requirements_that_only_suspects_meet() -> None:
    world = World()
    world.usable(A, OTHER)
    world.usable(B, Facts(name="bert", labels=("lab",), is_suspect=True))
    world.now = 100.0
    world.job(1, requirements={"label": "lab"})
    (ended,) = world.of(d.JobEnded)
    assert ended.cause is d.EndCause.UNHEALTHY
    assert "bert" in ended.reason


def test_a_budget_that_cannot_do_is_said_before_anything_runs() -> None:
    world = World()
    world.usable(A, Facts(name="anna", cost_per_hour=36.0))
    world.usable(B, Facts(name="bert", cost_per_hour=72.0))
    world.accept(A, B)
    world.now = 100.0
    world.job(10, budget=9.9, expected_task_s=100.0)
    (ended,) = world.of(d.JobEnded)
    assert ended.cause is d.EndCause.BUDGET
    assert ended.reason == (
        "the job would cost 10 and its budget is 9.9 USD: the cheapest peer, anna, costs 36 an hour; nothing was run"
    )
    assert not world.sent()


def test_a_budget_keeps_dear_peers_for_money_that_is_over() -> None:
    world = World()
    world.usable(A, Facts(name="anna", cost_per_hour=36.0))
    world.usable(B, Facts(name="bert", cost_per_hour=72.0))
    world.job(10, budget=12.0, expected_task_s=100.0)
    world.accept(B, slots=8)
    assert len(world.sent()[B]) == 2, "10 at 1 each, and 2 of them at 2"
    world.accept(A, slots=8)
    assert len(world.sent()[A]) == 8


def test_a_budget_that_turns_out_too_small_ends_the_job() -> None:
    world = World()
    world.usable(A, Facts(name="anna", cost_per_hour=36.0))
    world.job(10, budget=5.0, expected_task_s=1.0)
    world.accept(A)
    world.tick(SETTLING_S + 1)
    world.report(A, 0, wall_s=300.0)
    assert world.sent() == {}
    (ended,) = world.of(d.JobEnded)
    assert ended.cause is d.EndCause.BUDGET
    assert "used up after 1 of 10 tasks (3 spent)" in ended.reason


def test_the_fallback_orders_where_the_strategy_leaves_nobody() -> None:
    far = {"strategy": "latency_based", "preferences": Preferences(max_latency_s=0.001)}
    world = World()
    world.usable(A)
    world.now = 100.0
    world.job(1, **far)
    (ended,) = world.of(d.JobEnded)
    assert ended.cause is d.EndCause.UNMET
    assert "latency_based leaves out all of 1 peers; the nearest is bert at 10 ms" in ended.reason
    world = World()
    world.usable(A)
    world.job(1, fallback_strategy="round_robin", **far)
    world.accept(A)
    assert world.sent()


def test_that_the_fallback_is_used_is_said_once() -> None:
    world = World()
    world.usable(A)
    world.job(2, strategy="latency_based", preferences=Preferences(max_latency_s=0.001), fallback_strategy="hlig")
    world.accept(A)
    world.report(A, 0)
    world.report(A, 1)
    told = [effect for effect in world.everything if isinstance(effect, d.FellBack)]
    assert told == [d.FellBack(JOB, "strategy latency_based leaves out every peer")]


def test_where_this_peer_is_decides_what_is_near() -> None:
    world = World()
    world.feed(d.Located(1))
    world.usable(A, Facts(fiedler_score=1.0, community=2))
    world.usable(B, Facts(fiedler_score=0.0, community=1))
    world.job(1, task_type="network")
    assert world.of(d.OpenAt) == [d.OpenAt(B, JOB)]
    world = World()
    world.usable(A, Facts(community=2))
    world.usable(B, Facts(fiedler_score=1.0, community=1))
    world.job(1, task_type="network")
    assert world.of(d.OpenAt) == [d.OpenAt(B, JOB)]


def test_a_strategy_that_raises_ends_its_job_and_no_other() -> None:
    def broken(candidates: object, job: object) -> object:
        raise RuntimeError("tilt")

    world = World()
    world.usable(A)
    world.job(1, balancer=broken)
    (ended,) = world.of(d.JobEnded)
    assert (ended.cause, "RuntimeError: tilt" in ended.reason) == (d.EndCause.STRATEGY, True)
    world = World()
    world.usable(A)
    world.job(1, balancer=broken, fallback_strategy="hlig")
    world.accept(A)
    assert world.sent()


def test_a_strategy_that_learns_is_told_of_every_batch() -> None:
    told: list[tuple[PeerId, Report, float | None, float]] = []

    class Learner(Strategy):
        name = "learner"
        learns = True

        def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
            return [each.peer for each in candidates]

        def learn(self, candidate: Candidate, job: Situation, report: Report) -> None:
            told.append((candidate.peer, report, candidate.task_s, candidate.success))

    world = World(Registry({**FACTORIES, "learner": lambda options, registry: Learner()}))
    world.usable(A)
    world.job(4, strategy="learner")
    world.accept(A, slots=2)
    world.report(A, 0, wall_s=2.0)
    world.report(A, 1, outcome=Outcome.WORKER_DIED)
    assert told == [(A, Report(1, 0, 0, 2.0), 2.0, 1.0), (A, Report(0, 0, 1, 1.0), 2.0, 0.5)]


def test_preferences_only_order() -> None:
    world = World()
    world.usable(A, Facts(cost_per_hour=9.0))
    world.usable(B, Facts(cost_per_hour=1.0))
    world.job(1, preferences=Preferences(cost_limit=5.0))
    assert world.of(d.OpenAt) == [d.OpenAt(B, JOB)]
    world = World()
    world.usable(A, Facts(cost_per_hour=9.0))
    world.job(1, preferences=Preferences(cost_limit=5.0))
    assert world.of(d.OpenAt) == [d.OpenAt(A, JOB)]


def test_peers_that_have_what_tasks_share_come_first() -> None:
    world = World()
    for peer in (A, B):
        world.feed(d.PeerUsable(peer, 0.0, False, 90.0 if peer == A else 40.0, Facts(bandwidth_mbps=100.0)))
    world.job(1, expected_task_s=0.05)
    assert world.of(d.OpenAt) == [d.OpenAt(A, JOB)]
    options = options_of({"expected_task_s": 0.05})
    other = JobId(b"k" * 12)
    world.feed(d.JobOpened(JobSpec(other, "k", ProgramId(b"p" * 32), "m", Aggregation.NONE, None, options)))
    world.feed(d.DataHeld(other, 10_000_000, ((B, 10_000_000),)))
    world.feed(*(d.Granted(peer, 2) for peer in (A, B)), *(d.PeerAccepted(peer, other) for peer in (A, B)))
    world.feed(d.TasksAdded(other, (TaskIndex(0),)))
    assert list(world.sent()) == [B]


def test_arguments_that_travel_as_blobs_stay_where_they_are() -> None:
    for size, first in ((0, A), (10_000_000, B)):
        world = World()
        world.feed(d.PeerUsable(A, 0.0, False, 90.0, Facts(bandwidth_mbps=800.0)), d.PeerUsable(B, 0.0, True, 40.0))
        spec = JobSpec(JOB, "j", ProgramId(b"p" * 32), "m", Aggregation.NONE, None, JobOptions(expected_task_s=0.05))
        world.feed(d.JobOpened(spec))
        world.accept(A, B, slots=2)
        world.feed(d.TasksAdded(JOB, (TaskIndex(0),), size))
        assert list(world.sent()) == [first]
