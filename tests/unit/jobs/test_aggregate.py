"""Aggregations: the right answer, the same in every order and however results are split into partials."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.jobs.aggregate import Aggregator
from p2pcompute.model.errors import JobError, UsageError
from p2pcompute.model.job import Aggregation

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def aggregated(kind: Aggregation, values: list[Any], weights: list[float] | None = None) -> Any:
    """The answer; that order and partials change nothing is checked on the way."""
    rows = [(index, value, weights[index] if weights else 1.0) for index, value in enumerate(values)]
    whole = Aggregator(kind)
    for row in rows:
        whole.add(*row)
    dice = random.Random(7)
    for _ in range(3):
        dice.shuffle(rows)
        parts = [Aggregator(kind) for _ in range(3)]
        for number, row in enumerate(rows):
            parts[number % 3].add(*row)
        merged = Aggregator(kind)
        for part in parts:
            merged.merge(part.partial())
        assert merged.count == len(values)
        assert same(merged.result(), whole.result())
    return whole.result()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            type(other) is type(one)
            and one.dtype == other.dtype
            and np.array_equal(one, other, equal_nan=one.dtype != object)
        )
    return type(one) is type(other) and (one == other or (one != one and other != other))


@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        (Aggregation.SUM, [1, 2, 3], 6),
        (Aggregation.SUM, [True, 1 << 200, -1], 1 << 200),
        (Aggregation.SUM, [0.1] * 10, 1.0),
        (Aggregation.SUM, [1e308, 1e308, -1e308], 1e308),
        (Aggregation.SUM, [1e16, 1, -1e16], 1.0),
        (Aggregation.SUM, [1e308, 1e308], math.inf),
        (Aggregation.SUM, [5e-324, 5e-324], 1e-323),
        (Aggregation.SUM, [math.inf, 1.0], math.inf),
        (Aggregation.SUM, [1j, 2, 0.5 - 1j], 2.5 + 0j),
        (Aggregation.AVERAGE, [1, 2, 4], 7 / 3),
        (Aggregation.AVERAGE, [1e308, 1e308], 1e308),
        (Aggregation.MAX, [3, 7.5, -1], 7.5),
        (Aggregation.MIN, ["b", "a", "c"], "a"),
        (Aggregation.MAX, [(1, 2), (1, 3)], (1, 3)),
        (Aggregation.CONCAT, [[1], [], [2, 3]], [1, 2, 3]),
        (Aggregation.CONCAT, ["ab", "", "c"], "abc"),
        (Aggregation.CONCAT, [b"a", bytearray(b"b")], b"ab"),
        (Aggregation.CONCAT, [(1,), (2,)], (1, 2)),
        (Aggregation.CONCAT, [1, None, {"a": 1}], [1, None, {"a": 1}]),
        (Aggregation.NONE, [3, "x", None], [3, "x", None]),
        (Aggregation.SUM, [], 0),
        (Aggregation.CONCAT, [], []),
        (Aggregation.NONE, [], []),
    ],
)
def test_answers(kind: Aggregation, values: list[Any], wanted: Any) -> None:
    answer = aggregated(kind, values)
    assert answer == wanted
    assert type(answer) is type(wanted)


def test_undefined_numbers_stay_undefined() -> None:
    assert math.isnan(aggregated(Aggregation.SUM, [math.inf, -math.inf, 1.0]))
    assert math.isnan(aggregated(Aggregation.MAX, [1.0, math.nan, 2.0]))
    assert math.isnan(aggregated(Aggregation.MIN, [math.nan, 1.0]))
    assert math.isnan(aggregated(Aggregation.AVERAGE, [math.nan, 1.0]))


def test_among_equals_the_lowest_index_wins() -> None:
    assert type(aggregated(Aggregation.MAX, [1, 1.0, True])) is int
    assert type(aggregated(Aggregation.MIN, [1.0, 1, 2])) is float


@given(st.lists(FINITE))
def test_a_float_sum_is_that_of_fsum(values: list[float]) -> None:
    try:
        wanted = math.fsum(values)
    except OverflowError:  # fsum gives up on the way where the sum itself may be finite
        wanted = None
    answer = aggregated(Aggregation.SUM, values)
    if wanted is not None:
        assert answer == wanted


@given(st.lists(st.tuples(FINITE, st.integers(1, 5)), min_size=1))
def test_a_weighted_average_is_rounded_once(rows: list[tuple[float, int]]) -> None:
    values = [value for value, _ in rows]
    if any(math.isinf(value * weight) for value, weight in rows):
        return
    exact = sum((Fraction(value * weight) for value, weight in rows), Fraction()) / sum(weight for _, weight in rows)
    assert aggregated(Aggregation.AVERAGE, values, [float(weight) for _, weight in rows]) == float(exact)


def test_weights() -> None:
    assert aggregated(Aggregation.SUM, [10, 20], [1.0, 0.5]) == 20.0
    assert aggregated(Aggregation.SUM, [10, 20], [2.0, 3.0]) == 80
    assert type(aggregated(Aggregation.SUM, [10, 20], [2.0, 3.0])) is int
    assert aggregated(Aggregation.AVERAGE, [10, 20], [1.0, 3.0]) == 17.5
    assert aggregated(Aggregation.MAX, [10, 20], [9.0, 1.0]) == 20
    with pytest.raises(JobError, match="add up to 0"):
        aggregated(Aggregation.AVERAGE, [1, 2], [1.0, -1.0])
    with pytest.raises(JobError, match="weight of task 0"):
        Aggregator(Aggregation.SUM).add(0, 1, math.nan)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "float32", "float64", "complex64", "bool"])
def test_array_sums(dtype: str) -> None:
    dice = np.random.default_rng(3)
    arrays = [(dice.random((3, 4)) * 100).astype(dtype) for _ in range(9)]
    answer = aggregated(Aggregation.SUM, arrays)
    wanted = np.sum(np.stack(arrays), axis=0)
    if wanted.dtype.kind in "fc":
        assert answer.dtype == arrays[0].dtype
        assert np.allclose(answer, wanted)
    else:
        assert answer.dtype == wanted.dtype
        assert np.array_equal(answer, wanted)


def test_array_sums_are_rounded_once() -> None:
    arrays = [np.array([1e16, 0.1]), np.array([1.0, 0.2]), np.array([-1e16, 0.3])] + [np.array([0.0, 0.1])] * 7
    answer = aggregated(Aggregation.SUM, arrays)
    assert answer.tolist() == [1.0, math.fsum([0.1, 0.2, 0.3] + [0.1] * 7)]


def test_array_sums_do_not_wrap_around() -> None:
    big = np.array([2**62, 1], np.int64)
    assert aggregated(Aggregation.SUM, [big] * 4).tolist() == [2**64, 4]
    assert aggregated(Aggregation.SUM, [big, big, -big]).dtype == np.int64


def test_arrays_with_undefined_elements() -> None:
    answer = aggregated(Aggregation.SUM, [np.array([math.inf, 1.0, math.nan]), np.array([1.0, 2.0, 3.0])])
    assert same(answer, np.array([math.inf, 3.0, math.nan]))


def test_other_array_aggregations() -> None:
    one, other = np.array([1.0, 5.0]), np.array([2.0, math.nan])
    assert same(aggregated(Aggregation.MAX, [one, other]), np.array([2.0, math.nan]))
    assert aggregated(Aggregation.AVERAGE, [np.array([1, 2]), np.array([2, 2])]).tolist() == [1.5, 2.0]
    assert aggregated(Aggregation.AVERAGE, [np.array([1.0]), np.array([4.0])], [2.0, 1.0]).tolist() == [2.0]
    assert aggregated(Aggregation.CONCAT, [np.array([1]), np.array([2, 3])]).tolist() == [1, 2, 3]
    assert aggregated(Aggregation.SUM, [np.float64(1.5), np.int64(2), np.array(3)]) == 6.5


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (Aggregation.SUM, [1, "x"], "task 1 returned str"),
        (Aggregation.SUM, [1, None], "task 1 returned NoneType"),
        (Aggregation.AVERAGE, [[1]], "task 0 returned list"),
        (Aggregation.SUM, [1, np.array([1])], "task 1 returned an array where others returned numbers"),
        (Aggregation.SUM, [np.array([1]), np.array([1, 2])], "shape"),
        (Aggregation.SUM, [np.array(["a"])], "only numbers"),
        (Aggregation.MAX, [1, "x"], "task 1 returned str, which cannot be compared"),
        (Aggregation.MAX, [np.array([1]), 2], "cannot be compared"),
        (Aggregation.CONCAT, [[1], "x"], "task 1 returned str where task 0 returned list"),
        (Aggregation.CONCAT, [1, [2]], "task 1 returned list where task 0 returned int"),
        (Aggregation.CONCAT, [np.zeros((1, 2)), np.zeros((1, 3))], "cannot be joined"),
        (Aggregation.MAX, [], "no results"),
        (Aggregation.AVERAGE, [], "no results"),
    ],
)
def test_what_does_not_fit_is_named(kind: Aggregation, values: list[Any], words: str) -> None:
    def aggregate() -> None:
        aggregator = Aggregator(kind)
        for index, value in enumerate(values):
            aggregator.add(index, value)
        aggregator.result()

    with pytest.raises(JobError, match=words):
        aggregate()


@pytest.mark.parametrize("kind", [Aggregation.CUSTOM, Aggregation.REDUCE])
def test_user_code_is_refused(kind: Aggregation) -> None:
    with pytest.raises(UsageError, match="workers"):
        Aggregator(kind)


@pytest.mark.parametrize(
    "partial",
    [
        None,
        {},
        {"aggregation": "max", "count": 1, "state": [0, 1]},
        {"aggregation": "sum", "count": "x", "state": None},
        {"aggregation": "sum", "count": 1, "state": ["number", [["x", 0, False, 0.0], None], [0, 0, False, 0.0]]},
        {"aggregation": "sum", "count": 1, "state": ["array", ["float64", [3]], [0, 0, False, 0.0]]},
    ],
)
def test_nonsense_is_no_partial(partial: Any) -> None:
    with pytest.raises(JobError):
        Aggregator(Aggregation.SUM).merge(partial)
