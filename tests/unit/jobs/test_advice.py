"""Advice to people: the tables of rules, at their thresholds and beside them."""

from __future__ import annotations

import pytest

from p2pcompute.jobs import advice
from p2pcompute.jobs.advice import (
    AlertKind,
    OptimizationReport,
    alerts,
    choose_load_balancing_strategy,
    optimization_report,
    relative_variance,
)
from p2pcompute.model.errors import UnknownNameError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.performance import DaySummary, Summary

DAY_S = 86_400.0


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def did(tasks: int, response_s: float, *, failed: int = 0) -> Summary:
    served = tasks - failed
    return Summary(tasks, served, served, response_s if served else None, response_s if served else None)


@pytest.mark.parametrize(
    ("workload", "strategy"),
    [
        ("hpc", "resource_aware"),
        ("real_time", "latency_based"),
        ("batch", "cost_aware"),
        ("interactive", "smart_adaptive"),
        ("simple", "round_robin"),
        ("Real-Time", "latency_based"),
    ],
)
def test_each_kind_of_work_has_its_strategy(workload: str, strategy: str) -> None:
    choice = choose_load_balancing_strategy(workload)
    assert choice.strategy == strategy
    assert choice.reason


@pytest.mark.parametrize("workload", ["hpc", "real_time", "batch", "interactive", "simple"])
@pytest.mark.parametrize(
    ("constraints", "strategy"),
    [
        (("budget_limited",), "cost_aware"),
        (("latency_critical",), "latency_based"),
        (("high_availability",), "smart_adaptive"),
        (("latency_critical", "high_availability"), "latency_based"),
        (("budget_limited", "latency_critical", "high_availability"), "cost_aware"),
    ],
)
def test_constraints_come_first_and_among_them_money(
    workload: str, constraints: tuple[str, ...], strategy: str
) -> None:
    choice = choose_load_balancing_strategy(workload, **dict.fromkeys(constraints, True))
    assert choice.strategy == strategy
    usual = choose_load_balancing_strategy(workload).strategy
    assert (usual in choice.reason) == (usual != strategy)


def test_an_unknown_kind_of_work_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        choose_load_balancing_strategy("real_tyme")
    assert caught.value.nearest == "real_time"


@pytest.mark.parametrize(
    ("loads", "variance"),
    [
        ([], 0.0),
        ([5.0], 0.0),
        ([0.0, 0.0], 0.0),
        ([0.5, 0.5, 0.5], 0.0),
        ([0.0, 1.0], 1.0),
        ([0.0, 10.0], 1.0),
        ([1.0, 3.0], 0.25),
        ([0.0, 0.0, 0.0, 1.0], 3.0),
    ],
)
def test_variance_is_relative(loads: list[float], variance: float) -> None:
    assert relative_variance(loads) == pytest.approx(variance)


def report(*summaries: Summary, current: str = "fastest_first", **more: object) -> OptimizationReport:
    peers = [(peer(number), summary) for number, summary in enumerate(summaries)]
    return optimization_report(current=current, peers=peers, **{"days": [], **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("summaries", "strategies"),
    [
        ((did(100, 0.1), did(100, 0.1)), []),
        ((did(100, 0.1), did(400, 0.1)), ["resource_aware"]),
        ((did(100, 0.6), did(100, 0.6)), ["latency_based"]),
        ((did(100, 0.5), did(100, 0.5)), []),
        ((did(100, 0.6), did(400, 0.9)), ["resource_aware", "latency_based"]),
        ((), []),
        ((did(5, 1.0, failed=5),), []),
    ],
)
def test_what_the_report_advises(summaries: tuple[Summary, ...], strategies: list[str]) -> None:
    found = report(*summaries)
    assert [each.strategy for each in found.advice] == strategies
    assert all(each.strategy in found.text for each in found.advice)


def test_the_thresholds_are_those_of_the_table() -> None:
    # Loads 1 and 1 + x: relative variance (x/(2 + x))², which is 0.3 at x = 2.42.
    assert not report(did(100, 0.1), did(340, 0.1)).advice
    assert report(did(100, 0.1), did(345, 0.1)).advice[0].strategy == "resource_aware"
    assert not report(did(10, 0.5)).advice
    assert report(did(10, 0.5001)).advice[0].strategy == "latency_based"


def test_a_peer_with_more_slots_should_carry_more() -> None:
    uneven = (did(100, 0.1), did(400, 0.1))
    assert not report(*uneven, slots={peer(0): 1, peer(1): 4}).advice
    assert report(*uneven, slots={peer(0): 4, peer(1): 1}).advice


def test_advice_to_use_what_is_used_says_so() -> None:
    found = report(did(100, 0.1), did(400, 0.1), current="resource_aware")
    assert "in use already" in found.advice[0].reason
    assert "nothing ran" in report().text
    assert "nothing speaks against fastest_first" in report(did(100, 0.1)).text


def test_the_report_counts_failures_and_compares_strategies() -> None:
    found = report(
        did(100, 0.1, failed=10),
        strategies=[("round_robin", did(50, 0.3)), ("resource_aware", did(50, 0.2)), ("cost_aware", did(5, 0.1))],
    )
    assert found.tasks == 100
    assert found.success_rate == 0.9
    assert found.response_ms == pytest.approx(100)
    assert "resource_aware 200 ms, round_robin 300 ms" in found.text
    assert "cost_aware" not in found.text, "five tasks prove nothing"


@pytest.mark.parametrize(
    ("days", "figures"),
    [
        ([], []),
        ([did(100, 0.1)], []),
        ([did(100, 0.1), did(119, 0.119)], []),
        ([did(100, 0.1), did(130, 0.1)], [("tasks a day", 0.3)]),
        ([did(100, 0.1), did(100, 0.1), did(100, 9.0), did(100, 0.2), did(100, 0.2)], [("mean response, ms", 1.0)]),
        ([did(100, 0.1, failed=10), did(100, 0.1, failed=5)], [("share that failed", -0.5)]),
        ([did(100, 0.1, failed=100), did(100, 0.1)], [("share that failed", -1.0)]),
    ],
)
def test_trends_compare_the_halves_of_the_week(days: list[Summary], figures: list[tuple[str, float]]) -> None:
    dated = [DaySummary(number * DAY_S, summary) for number, summary in enumerate(days)]
    found = report(did(100, 0.1), days=dated).trends
    assert [(each.figure, pytest.approx(each.change)) for each in found] == figures
    assert all(each.figure in each.text for each in found)


@pytest.mark.parametrize(
    ("unhealthy", "loads", "response_ms", "kinds"),
    [
        ((), [0.5, 0.5], 100.0, []),
        ((), [], None, []),
        ((1,), [0.5], 100.0, [AlertKind.UNHEALTHY]),
        ((), [0.1, 0.58], 100.0, []),
        ((), [0.1, 0.6], 100.0, [AlertKind.IMBALANCE]),
        ((), [0.5], 1_000.0, []),
        ((), [0.5], 1_000.1, [AlertKind.LATENCY]),
        ((3, 1), [0.0, 1.0], 2_000.0, [AlertKind.UNHEALTHY, AlertKind.IMBALANCE, AlertKind.LATENCY]),
    ],
)
def test_alerts_at_their_thresholds(
    unhealthy: tuple[int, ...], loads: list[float], response_ms: float | None, kinds: list[AlertKind]
) -> None:
    found = alerts(unhealthy=[peer(number) for number in unhealthy], loads=loads, response_ms=response_ms)
    assert [each.kind for each in found] == kinds
    assert all(each.value > each.threshold for each in found)


def test_an_alert_names_who_does_not_answer_and_not_hundreds_of_them() -> None:
    (one,) = alerts(unhealthy=[peer(7)], loads=[], response_ms=None)
    assert short_peer_id(peer(7)) in one.text
    assert "1 peer does" in one.text
    (many,) = alerts(unhealthy=[peer(number) for number in range(300)], loads=[], response_ms=None)
    assert "300 peers do" in many.text
    assert "and 295 more" in many.text
    assert len(many.text) < 200


def test_every_strategy_that_is_advised_is_one_of_the_table() -> None:
    named = {name for name, _ in (*advice.STRATEGY_FOR.values(), *advice.STRATEGY_OVERRIDES.values())}
    assert named == {"resource_aware", "latency_based", "cost_aware", "smart_adaptive", "round_robin"}
