"""Loads that somebody states: how uneven they are, who has least, and a plan."""

from __future__ import annotations

import numpy as np
import pytest

from p2pcompute.jobs.balance_view import Balance, LoadView
from p2pcompute.model.errors import UsageError


def view(threshold: float = 0.3, **loads: float) -> LoadView:
    seen = LoadView(threshold)
    for peer, load in loads.items():
        seen.update(peer, load)
    return seen


def test_imbalance_is_compared_with_the_threshold() -> None:
    assert LoadView().check() == Balance(True, False, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert view(a=0.0, b=0.0).check().balanced
    uneven = view(a=0.9, b=0.1, c=0.5).check()
    assert (uneven.balanced, uneven.needs_rebalance) == (False, True)
    assert (uneven.max_load, uneven.min_load, uneven.avg_load) == (0.9, 0.1, pytest.approx(0.5))
    assert uneven.imbalance == pytest.approx(1.6)
    assert uneven.load_variance == pytest.approx((0.16 + 0.16) / 3)
    assert view(a=0.55, b=0.45).check().balanced
    assert view(0.1, a=0.55, b=0.45).check().needs_rebalance


def test_loads_are_set_and_forgotten() -> None:
    seen = view(a=0.9, b=0.1)
    seen.update("a", 0.2)
    assert dict(seen.loads) == {"a": 0.2, "b": 0.1}
    seen.forget("a")
    seen.forget("nobody")
    assert dict(seen.loads) == {"b": 0.1}
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="from 0"):
            seen.update("a", wrong)
    with pytest.raises(UsageError, match="negative"):
        LoadView(-1.0)


def test_the_least_loaded_and_a_prediction() -> None:
    assert LoadView().least_loaded() is None
    seen = view(c=0.1, a=0.1, b=0.8)
    assert seen.least_loaded() == "a"
    assert seen.predict("b") == pytest.approx(0.85)
    assert seen.predict("b", 3) == pytest.approx(0.95)
    assert seen.predict("b", 9) == 1.0
    with pytest.raises(UsageError, match="no load of 'd'"):
        seen.predict("d")
    with pytest.raises(UsageError, match="0 or more"):
        seen.predict("b", -1)


def test_a_plan_makes_loads_even() -> None:
    seen = view(a=0.9, b=0.1, c=0.2)
    after = dict(seen.loads)
    plan = seen.plan()
    for shift in plan:
        after[shift.source] -= shift.load
        after[shift.target] += shift.load
    assert list(after.values()) == pytest.approx([0.4] * 3)
    assert {shift.source for shift in plan} == {"a"}
    assert view(a=0.5, b=0.5).plan() == ()


def test_a_plan_follows_the_links() -> None:
    # a - b, c - d: nothing crosses where there is no link.
    weights = np.zeros((4, 4))
    weights[0, 1] = weights[1, 0] = weights[2, 3] = weights[3, 2] = 1.0
    plan = view(a=0.8, b=0.0, c=0.2, d=0.2).plan(weights)
    assert [(shift.source, shift.target, shift.load) for shift in plan] == [("a", "b", pytest.approx(0.4))]
    with pytest.raises(UsageError):
        view(a=0.9, b=0.1).plan(weights)
