"""Sums of what work used."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.jobs.accounting import Accounts, Spent
from p2pcompute.model.job import NO_USAGE, SHORT_TASK_US, Outcome, Usage

USAGES = st.builds(Usage, *(st.integers(0, 1 << 40) for _ in dataclasses.fields(Usage)))
ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([Outcome.RETURNED, Outcome.RAISED]), st.integers(0, 5_000), USAGES)
)


def test_a_short_task_kept_one_core_busy() -> None:
    spent = Spent()
    spent.add(Outcome.RETURNED, SHORT_TASK_US - 1, NO_USAGE)
    assert spent.cpu_us == SHORT_TASK_US - 1
    spent.add(Outcome.RETURNED, SHORT_TASK_US, NO_USAGE)
    assert spent.cpu_us == SHORT_TASK_US - 1, "of a long one that was not measured nothing is known"
    spent.add(Outcome.RAISED, 10, Usage(fuel=3))
    assert (spent.attempts, spent.ended, spent.fuel, spent.cpu_us) == (3, 2, 3, SHORT_TASK_US + 9)


@given(ROWS, st.integers(1, 6))
def test_nothing_is_lost_whatever_has_to_go(rows: list[tuple[int, Outcome, int, Usage]], keys_max: int) -> None:
    few: Accounts[int] = Accounts(keys_max)
    whole = Spent()
    for key, outcome, wall_us, usage in rows:
        few.add(key, outcome, wall_us, usage)
        whole.add(outcome, wall_us, usage)
    assert len(few.of) <= keys_max
    assert few.total() == whole
    assert whole.peak_memory_bytes == max((usage.peak_memory_bytes for *_, usage in rows), default=0)
