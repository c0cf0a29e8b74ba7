"""Options by name: every valid form, every wrong one with its error."""

from __future__ import annotations

from dataclasses import fields

import pytest

from p2pcompute.jobs.submit import OPTION_NAMES, aggregation_of, options_of, spec_of
from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.ids import JobId, ProgramId
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, OnError


def test_every_option_is_taken() -> None:
    assert list(OPTION_NAMES) == [field.name for field in fields(JobOptions)]
    defaults = JobOptions()
    assert options_of({name: getattr(defaults, name) for name in OPTION_NAMES}) == defaults


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ({}, JobOptions()),
        ({"timeout_s": "2.5"}, JobOptions(timeout_s=2.5)),
        ({"timeout_s": "none", "job_timeout_s": None}, JobOptions()),
        ({"retries": "0", "priority": 9}, JobOptions(retries=0, priority=9)),
        ({"memory_bytes": 1 << 30}, JobOptions(memory_bytes=1 << 30)),
        ({"on_error": "SKIP", "speculate": "no"}, JobOptions(on_error=OnError.SKIP, speculate=False)),
        ({"on_error": OnError.SKIP, "speculate": True}, JobOptions(on_error=OnError.SKIP)),
    ],
)
def test_values(named: dict[str, object], wanted: JobOptions) -> None:
    assert options_of(named) == wanted


@pytest.mark.parametrize(
    ("name", "nearest"), [("retry", "retries"), ("timeout", "timeout_s"), ("onerror", "on_error"), ("xyzzy", None)]
)
def test_unknown_options_name_the_nearest(name: str, nearest: str | None) -> None:
    with pytest.raises(UnknownNameError) as caught:
        options_of({name: 1})
    assert caught.value.nearest == nearest


@pytest.mark.parametrize(
    "named",
    [
        {"timeout_s": "soon"},
        {"timeout_s": True},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"timeout_s": "inf"},
        {"retries": 1.5},
        {"retries": None},
        {"retries": True},
        {"retries": -1},
        {"priority": "high"},
        {"priority": 10},
        {"memory_bytes": 1},
        {"speculate": 1},
        {"on_error": 3},
        {"on_error": "ignore"},
    ],
)
def test_wrong_values_are_named(named: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(named))):
        options_of(named)


def spec(aggregation: Aggregation | str, reduce_entry: str | None) -> JobSpec:
    return spec_of(
        job=JobId(b"j" * 12),
        name="n",
        program=ProgramId(b"p" * 32),
        map_entry="m",
        aggregation=aggregation,
        reduce_entry=reduce_entry,
        options=JobOptions(),
    )


def test_jobs_are_checked_as_a_whole() -> None:
    assert spec("Sum", None).aggregation is Aggregation.SUM
    assert spec(Aggregation.REDUCE, "r").reduce_entry == "r"
    with pytest.raises(UsageError, match="needs a reduce"):
        spec("custom", None)
    with pytest.raises(UsageError, match="uses no reduce"):
        spec("max", "r")
    with pytest.raises(UnknownNameError) as caught:
        aggregation_of("averge")
    assert caught.value.nearest == "average"
    with pytest.raises(UsageError, match="named by a text"):
        aggregation_of(3)  # type: ignore[arg-type]
