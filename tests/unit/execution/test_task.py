"""`p2pcompute.execution.task` outside a worker, and with a reporter in place of one."""

from __future__ import annotations

import math

import pytest

from p2pcompute.execution import task


def test_outside_a_worker_a_report_is_checked_and_goes_nowhere() -> None:
    task.progress(0.5, "half")
    with pytest.raises(TypeError):
        task.progress(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "reported"), [(0, 0.0), (0.5, 0.5), (1, 1.0), (7, 1.0), (-0.1, -1.0), (math.nan, -1.0), (math.inf, 1.0)]
)
def test_fractions_are_cut_to_what_can_be_shown(given: float, reported: float) -> None:
    reports: list[tuple[float, str]] = []
    task.install_reporter(lambda fraction, message: reports.append((fraction, message)))
    try:
        task.progress(given, "m" * 5000)
    finally:
        task.install_reporter(None)
    assert reports == [(reported, "m" * task.MESSAGE_CHARS_MAX)]
