"""Sums of attempts: nothing is lost or told twice, what is due when, and what a record says."""

from __future__ import annotations

import pytest

from p2pcompute.jobs.recording import PROMPT_S, USUAL_S, Recording
from p2pcompute.model.ids import REDUCE_BASE, JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Outcome, TaskReport
from p2pcompute.model.performance import TIME_MAX_S, FunctionKey

A, B = (PeerId(bytes([number]) * 32) for number in (1, 2))
PROGRAM = ProgramId(b"p" * 32)


def recording(*, is_prompt: bool = False, **options: object) -> Recording:
    chosen = JobOptions(**options)  # type: ignore[arg-type]
    spec = JobSpec(JobId(b"j" * 12), "j", PROGRAM, "square", Aggregation.REDUCE, "merge", chosen)
    return Recording(spec, 100.0, is_prompt=is_prompt)


def reports(*rows: tuple[int, Outcome, float], peer: PeerId = A) -> tuple[tuple[TaskReport, PeerId], ...]:
    return tuple((TaskReport(TaskIndex(task), 1, outcome, wall_s), peer) for task, outcome, wall_s in rows)


def test_records_by_peer_outcome_and_function() -> None:
    asked: list[PeerId] = []

    def row_of(peer: PeerId) -> tuple[float, ...]:
        asked.append(peer)
        return (peer[0] / 1.0,)

    sums = recording(strategy="round_robin")
    assert sums.is_empty
    sums.batch(reports((0, Outcome.RETURNED, 1.0), (1, Outcome.RAISED, 0.5), (2, Outcome.RETURNED, 3.0)))
    sums.batch(reports((3, Outcome.RETURNED, 5.0), (REDUCE_BASE, Outcome.RETURNED, 7.0)))
    sums.batch(reports((4, Outcome.RETURNED, 2.0), peer=B))
    sums.attempt(TaskIndex(5), B, Outcome.PEER_LOST)
    found = sums.take(101.0, 640, row_of)
    assert [(r.function.name, r.peer, r.outcome, r.tasks, r.wall_s, r.input_bytes, r.features) for r in found] == [
        ("square", A, Outcome.RETURNED, 3, 3.0, 640, (1.0,)),
        ("merge", A, Outcome.RETURNED, 1, 7.0, 0, ()),
        ("square", A, Outcome.RAISED, 1, 0.5, 640, (1.0,)),
        ("square", B, Outcome.RETURNED, 1, 2.0, 640, (2.0,)),
        ("square", B, Outcome.PEER_LOST, 1, 0.0, 640, (2.0,)),
    ]
    assert asked == [A, B], "once each"
    assert {r.strategy for r in found} == {"round_robin"}
    assert found[0].function == FunctionKey("square", PROGRAM) == sums.functions[0]
    assert sums.is_empty
    assert sums.take(102.0, 640, row_of) == []


def test_the_strategy_of_a_balancer_is_the_custom_one() -> None:
    sums = recording(balancer=lambda candidates, job: candidates)
    sums.batch(reports((0, Outcome.RETURNED, 1.0)))
    assert [record.strategy for record in sums.take(101.0, 0, lambda peer: ())] == ["custom"]


@pytest.mark.parametrize("told_s", [-1.0, float("nan"), float("inf"), 1e300])
def test_times_that_cannot_be_are_made_plausible(told_s: float) -> None:
    sums = recording()
    sums.batch(reports((0, Outcome.RETURNED, told_s)))
    (record,) = sums.take(101.0, 0, lambda peer: ())
    assert 0 <= record.wall_s <= TIME_MAX_S


def test_what_is_due_grows_with_the_job() -> None:
    for is_prompt, (least_s, most_s) in ((False, USUAL_S), (True, PROMPT_S)):
        sums = recording(is_prompt=is_prompt)
        assert not sums.is_due(1e6), "there is nothing"
        sums.batch(reports((0, Outcome.RETURNED, 1.0)))
        assert sums.is_due(100.0) == is_prompt, "the first at once where the placing rests on it"
        sums.take(100.0, 0, lambda peer: ())
        sums.batch(reports((1, Outcome.RETURNED, 1.0)))
        assert not sums.is_due(100.0 + 0.9 * least_s)
        assert sums.is_due(100.0 + 1.1 * least_s)
        sums.take(100.0 + 10 * most_s, 0, lambda peer: ())
        sums.batch(reports((2, Outcome.RETURNED, 1.0)))
        # A job ten times as old as the bound waits for half of it, one that is older never longer than it.
        assert not sums.is_due(100.0 + 10.4 * most_s)
        assert sums.is_due(100.0 + 10.6 * most_s)
        sums.take(1e6, 0, lambda peer: ())
        sums.batch(reports((3, Outcome.RETURNED, 1.0)))
        assert not sums.is_due(1e6 + 0.9 * most_s)
        assert sums.is_due(1e6 + 1.1 * most_s)
