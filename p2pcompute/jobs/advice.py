"""Advice to people: which strategy fits a kind of work, what last week says about it, and what is wrong right now.

Three tables of rules and their thresholds, as pure functions; each finding carries a text that names its figures.
Advice changes nothing by itself.

**Variance of loads** here is relative: the variance of the loads over the square of their mean, 0 where all carry the
same, 1 where they scatter like waiting times. The variance of shares in use as such never exceeds 0.25, so thresholds
of 0.3 and 0.5 would never be reached. A load is what a peer carries over what it should: seconds of work over slots.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2pcompute.model.errors import UnknownNameError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.performance import DaySummary, Summary

#: The report advises above these: relative variance of loads, milliseconds of mean response.
REPORT_VARIANCE = 0.3
REPORT_LATENCY_MS = 500.0
#: Days that a report looks at.
REPORT_DAYS = 7
#: A figure whose second half of days is so much above or below its first half has a trend.
TREND_CHANGE = 0.2
#: Tasks of a strategy below which its mean is not compared with others.
COMPARED_TASKS_MIN = 30
#: Alerts beyond these.
ALERT_UNHEALTHY = 0
ALERT_VARIANCE = 0.5
ALERT_LATENCY_MS = 1_000.0
_PEERS_NAMED = 5

#: Strategy for each kind of work.
STRATEGY_FOR: Mapping[str, tuple[str, str]] = {
    "hpc": ("resource_aware", "long computations belong where resources are free"),
    "real_time": ("latency_based", "an answer in time matters more than an even load"),
    "batch": ("cost_aware", "nobody waits for a single task, so the cheapest fitting peers will do"),
    "interactive": ("smart_adaptive", "short calls of changing sizes are what can be learned best"),
    "simple": ("round_robin", "equal small tasks need no more than turns"),
}
#: Strategies that a constraint asks for whatever the work is; the first that holds wins: money that is not there cannot
#: be spent.
STRATEGY_OVERRIDES: Mapping[str, tuple[str, str]] = {
    "budget_limited": ("cost_aware", "the budget is limited"),
    "latency_critical": ("latency_based", "latency is critical"),
    "high_availability": ("smart_adaptive", "peers that fail are put last, by their success rates"),
}


@dataclass(frozen=True, slots=True)
class StrategyChoice:
    """A strategy by name, and why, for people."""

    strategy: str
    reason: str


def choose_load_balancing_strategy(
    workload: str,
    *,
    budget_limited: bool = False,
    latency_critical: bool = False,
    high_availability: bool = False,
) -> StrategyChoice:
    """The strategy for a kind of work: hpc, real_time, batch, interactive or simple; constraints come first.

    Raises UnknownNameError with the nearest valid kind.
    """
    kind = workload.lower().replace("-", "_")
    if kind not in STRATEGY_FOR:
        raise UnknownNameError("workload", workload, STRATEGY_FOR)
    usual, why = STRATEGY_FOR[kind]
    held = {
        "budget_limited": budget_limited,
        "latency_critical": latency_critical,
        "high_availability": high_availability,
    }
    for name, (strategy, reason) in STRATEGY_OVERRIDES.items():
        if held[name]:
            instead = "" if strategy == usual else f", which comes before {usual} for {kind} work"
            return StrategyChoice(strategy, f"{reason}{instead}")
    return StrategyChoice(usual, why)


def relative_variance(loads: Sequence[float]) -> float:
    """Variance of `loads` (each from 0 up) over the square of their mean.

    0 for fewer than two, and where nobody carries anything.
    """
    mean = sum(loads) / len(loads) if loads else 0.0
    if len(loads) < 2 or mean <= 0:
        return 0.0
    return sum((load / mean - 1) ** 2 for load in loads) / len(loads)


# --- report -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trend:
    """How a figure moved.

    Mean of the first half of the days, of the second half, and the change relative to the first.
    """

    figure: str
    before: float
    after: float
    change: float
    text: str


@dataclass(frozen=True, slots=True)
class OptimizationReport:
    """What a week says.

    `advice`: strategies that would fit better than `current`, the most urgent first; empty where all is well.
    `load_variance` as in the module; `response_ms` and `success_rate` are None where nothing ran.
    """

    current: str
    tasks: int
    load_variance: float
    response_ms: float | None
    success_rate: float | None
    advice: tuple[StrategyChoice, ...]
    trends: tuple[Trend, ...]
    text: str


def optimization_report(
    *,
    current: str,
    peers: Sequence[tuple[PeerId, Summary]],
    days: Sequence[DaySummary],
    strategies: Sequence[tuple[str, Summary]] = (),
    slots: Mapping[PeerId, int] | None = None,
) -> OptimizationReport:
    """The report over what `peers` did, day by day `days` (oldest first), under `strategies`; all over the same time.

    `current`: the strategy in use. `slots`: of each peer, 1 where not given: how much of the work a peer should carry.
    """
    tasks = sum(summary.counted for _, summary in peers)
    served = sum(summary.served for _, summary in peers)
    responses_s = [(summary.response_s or 0.0) * summary.served for _, summary in peers]
    response_ms = sum(responses_s) / served * 1e3 if served else None
    variance = relative_variance(
        [(summary.mean_s or 0.0) * summary.served / max((slots or {}).get(peer, 1), 1) for peer, summary in peers]
    )
    advice = []
    if variance > REPORT_VARIANCE:
        advice.append(
            _advised(
                "resource_aware",
                current,
                f"work lies unevenly on the peers (relative variance {variance:.2f}, above {REPORT_VARIANCE})",
            )
        )
    if response_ms is not None and response_ms > REPORT_LATENCY_MS:
        advice.append(
            _advised(
                "latency_based",
                current,
                f"a task takes {response_ms:,.0f} ms in the mean from sending to end, above {REPORT_LATENCY_MS:,.0f}",
            )
        )
    trends = _trends(days)
    succeeded = sum(summary.succeeded for _, summary in peers)
    success_rate = succeeded / tasks if tasks else None
    lines = (
        [_headline(tasks, len(peers), response_ms, success_rate)]
        if tasks
        else ["nothing ran: there is nothing to advise"]
    )
    lines += [f"{each.strategy}: {each.reason}" for each in advice]
    if tasks and not advice:
        lines.append(f"nothing speaks against {current}")
    lines += _compared(strategies)
    lines += [trend.text for trend in trends]
    return OptimizationReport(
        current, tasks, variance, response_ms, success_rate, tuple(advice), trends, "\n".join(lines)
    )


def _advised(strategy: str, current: str, reason: str) -> StrategyChoice:
    if strategy == current:
        reason += "; it is in use already, so more or other peers would help, not another strategy"
    return StrategyChoice(strategy, reason)


def _headline(tasks: int, peers: int, response_ms: float | None, success_rate: float | None) -> str:
    time = f", {response_ms:,.0f} ms each in the mean" if response_ms is not None else ""
    rate = f", {success_rate:.1%} returned a value" if success_rate is not None else ""
    return f"{tasks:,} tasks at {peers} peers{time}{rate}"


def _compared(strategies: Sequence[tuple[str, Summary]]) -> list[str]:
    known = sorted(
        (summary.response_s, name)
        for name, summary in strategies
        if summary.response_s is not None and summary.served >= COMPARED_TASKS_MIN
    )
    if len(known) < 2:
        return []
    told = ", ".join(f"{name} {response_s * 1e3:,.0f} ms" for response_s, name in known)
    return [f"by strategy, though each may have had other work: {told}"]


def _trends(days: Sequence[DaySummary]) -> tuple[Trend, ...]:
    half = len(days) // 2
    if half == 0:
        return ()
    # With an odd number of days the one in the middle belongs to neither half.
    early, late = [day.summary for day in days[:half]], [day.summary for day in days[-half:]]
    figures = (
        ("tasks a day", _mean([each.counted for each in early]), _mean([each.counted for each in late])),
        ("mean response, ms", _response_ms(early), _response_ms(late)),
        ("share that failed", _failed(early), _failed(late)),
    )
    trends = []
    for name, before, after in figures:
        if before is None or after is None or before <= 0:
            continue
        change = after / before - 1
        if abs(change) > TREND_CHANGE:
            way = "rose" if change > 0 else "fell"
            text = f"{name} {way} by {abs(change):.0%}, from {before:,.3g} to {after:,.3g}"
            trends.append(Trend(name, before, after, change, text))
    return tuple(trends)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _response_ms(summaries: Sequence[Summary]) -> float | None:
    served = sum(each.served for each in summaries)
    return sum((each.response_s or 0.0) * each.served for each in summaries) / served * 1e3 if served else None


def _failed(summaries: Sequence[Summary]) -> float | None:
    counted = sum(each.counted for each in summaries)
    return 1 - sum(each.succeeded for each in summaries) / counted if counted else None


# --- alerts -----------------------------------------------------------------------------------------------------------


class AlertKind(enum.StrEnum):
    """What is wrong."""

    UNHEALTHY = "unhealthy"
    IMBALANCE = "imbalance"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a person may want to look at: `value` is above `threshold`."""

    kind: AlertKind
    value: float
    threshold: float
    text: str


def alerts(*, unhealthy: Sequence[PeerId], loads: Sequence[float], response_ms: float | None) -> tuple[Alert, ...]:
    """What is wrong now, in the order of `AlertKind`.

    `unhealthy`: peers that are suspected or dead. `loads`: of the healthy ones, each from 0 up. `response_ms`: mean
    time of a task lately, None where none ran.
    """
    found = []
    if len(unhealthy) > ALERT_UNHEALTHY:
        named = ", ".join(short_peer_id(peer) for peer in sorted(unhealthy)[:_PEERS_NAMED])
        more = f" and {len(unhealthy) - _PEERS_NAMED} more" if len(unhealthy) > _PEERS_NAMED else ""
        what = "1 peer does" if len(unhealthy) == 1 else f"{len(unhealthy)} peers do"
        found.append(
            Alert(
                AlertKind.UNHEALTHY,
                len(unhealthy),
                ALERT_UNHEALTHY,
                f"{what} not answer: {named}{more}; their work moves on",
            )
        )
    variance = relative_variance(loads)
    if variance > ALERT_VARIANCE:
        found.append(
            Alert(
                AlertKind.IMBALANCE,
                variance,
                ALERT_VARIANCE,
                f"load lies unevenly on {len(loads)} peers (relative variance {variance:.2f}, above {ALERT_VARIANCE}): "
                "resource_aware would spread it",
            )
        )
    if response_ms is not None and response_ms > ALERT_LATENCY_MS:
        found.append(
            Alert(
                AlertKind.LATENCY,
                response_ms,
                ALERT_LATENCY_MS,
                f"tasks take {response_ms:,.0f} ms in the mean, above {ALERT_LATENCY_MS:,.0f}: "
                "more peers, or latency_based, would help",
            )
        )
    return tuple(found)
