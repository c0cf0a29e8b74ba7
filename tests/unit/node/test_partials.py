"""Partial aggregates: what is written is read, and whatever is not what it says is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from p2pcompute.execution.values import encode
from p2pcompute.jobs.aggregate import Aggregator
from p2pcompute.jobs.reduce import reduction_number
from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import REDUCE_BASE, TaskIndex
from p2pcompute.model.job import Aggregation
from p2pcompute.node.partials import ranges_of, read_partial, write_nodes

NODE = reduction_number(1, 0)


def of(aggregation: Aggregation, values: dict[int, Any]) -> dict[str, Any]:
    aggregator = Aggregator(aggregation)
    for index, value in values.items():
        aggregator.add(index, value)
    return aggregator.partial()


def nodes(*rows: tuple[int, Any]) -> bytes:
    return write_nodes((TaskIndex(node), encode(value)) for node, value in rows)


def test_ranges_are_of_neighbours_with_one_attempt() -> None:
    rows = [(TaskIndex(task), attempt) for task, attempt in [(3, 1), (1, 1), (2, 1), (4, 2), (5, 2), (9, 1)]]
    assert ranges_of(rows) == ((1, 3, 1), (4, 2, 2), (9, 1, 1))
    assert ranges_of([]) == ()


@pytest.mark.parametrize("seed", range(20))
def test_ranges_say_what_they_were_made_of(seed: int) -> None:
    rng = random.Random(seed)
    rows = sorted((TaskIndex(task), rng.randint(1, 2)) for task in rng.sample(range(60), 40))
    value = encode(of(Aggregation.SUM, dict.fromkeys([int(task) for task, _ in rows], 1)))
    assert sorted(read_partial(Aggregation.SUM, ranges_of(rows), value, 60, ()).rows) == rows


@pytest.mark.parametrize("aggregation", [Aggregation.SUM, Aggregation.AVERAGE, Aggregation.MAX, Aggregation.MIN])
@pytest.mark.parametrize(
    "values", [{4: 3, 5: 1}, {4: 0.1, 5: -7.5}, {4: np.arange(3.0), 5: np.ones(3)}, {4: 1 << 80, 5: 2}]
)
def test_what_an_aggregator_made_is_taken(aggregation: Aggregation, values: dict[int, Any]) -> None:
    found = read_partial(aggregation, ((4, 2, 1),), encode(of(aggregation, values)), 6, ())
    assert found.rows == ((4, 1), (5, 1))
    merged, plain = Aggregator(aggregation), Aggregator(aggregation)
    merged.merge(found.state)
    for index, value in values.items():
        plain.add(index, value)
    assert np.array_equal(merged.result(), plain.result())


SUM = of(Aggregation.SUM, {4: 3, 5: 1})
MAX = of(Aggregation.MAX, {4: 3, 5: 1})
ARRAYS = of(Aggregation.SUM, {4: np.ones(2), 5: np.ones(2)})


def arrays(name: str, *members: Any) -> dict[str, Any]:
    return {**ARRAYS, "state": ["array", [name, list(members)], [2, 0, False, 0.0]]}


@pytest.mark.parametrize(
    ("aggregation", "ranges", "value"),
    [
        (Aggregation.SUM, (), SUM),
        (Aggregation.SUM, ((4, 2, 1), (5, 1, 1)), SUM),
        (Aggregation.SUM, ((4, 1, 1), (4, 1, 2)), SUM),
        (Aggregation.SUM, ((5, 2, 1),), SUM),
        (Aggregation.SUM, ((1 << 62, 2, 1),), SUM),
        (Aggregation.SUM, ((REDUCE_BASE, 2, 1),), SUM),
        (Aggregation.SUM, ((0, limits.PARTIAL_TASKS_MAX, 1), (4, 1, 1)), SUM),
        (Aggregation.SUM, ((4, 1, 1),), SUM),
        (Aggregation.SUM, ((3, 3, 1),), SUM),
        (Aggregation.AVERAGE, ((4, 2, 1),), SUM),
        (Aggregation.SUM, ((4, 2, 1),), MAX),
        (Aggregation.SUM, ((4, 2, 1),), [1, 2]),
        (Aggregation.SUM, ((4, 2, 1),), None),
        (Aggregation.SUM, ((4, 2, 1),), {**SUM, "state": None}),
        (Aggregation.SUM, ((4, 2, 1),), {**SUM, "state": ["number", None, [2, 0, False, 0.0]]}),
        (Aggregation.SUM, ((4, 2, 1),), {**SUM, "state": ["else", SUM["state"][1], [2, 0, False, 0.0]]}),
        (Aggregation.SUM, ((4, 2, 1),), {**SUM, "state": [*SUM["state"][:2], [3, 0, False, 0.0]]}),
        (Aggregation.SUM, ((4, 2, 1),), {**SUM, "state": [*SUM["state"][:2], [2, 0, True, 0.0]]}),
        (Aggregation.SUM, ((4, 2, 1),), {**SUM, "state": [*SUM["state"][:2], ["2", 0, False, 0.0]]}),
        (Aggregation.SUM, ((4, 2, 1),), {"aggregation": "sum", "count": 2}),
        (Aggregation.SUM, ((4, 2, 1),), arrays("O", np.ones(2))),
        (Aggregation.SUM, ((4, 2, 1),), arrays("M8[s]", np.ones(2))),
        (Aggregation.SUM, ((4, 2, 1),), arrays("no type", np.ones(2))),
        (Aggregation.SUM, ((4, 2, 1),), arrays("float64")),
        (Aggregation.SUM, ((4, 2, 1),), arrays("float64", np.ones(2), np.ones(3))),
        (Aggregation.SUM, ((4, 2, 1),), arrays("float64", 1.0)),
        (Aggregation.MAX, ((4, 2, 1),), {**MAX, "state": None}),
        (Aggregation.MAX, ((4, 2, 1),), {**MAX, "state": [6, 3]}),
        (Aggregation.MAX, ((4, 2, 1),), {**MAX, "state": [None, 3]}),
        (Aggregation.MAX, ((4, 2, 1),), {**MAX, "state": ["4", 3]}),
        (Aggregation.MAX, ((4, 2, 1),), {**MAX, "state": 4}),
    ],
)
def test_what_is_no_partial_of_its_tasks_is_refused(aggregation: Aggregation, ranges: Any, value: Any) -> None:
    with pytest.raises((P2PComputeError, ValueError)):
        read_partial(aggregation, ranges, encode(value), 6, ())


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93", b"x" * 100])
def test_what_is_no_value_is_refused(data: bytes) -> None:
    for aggregation in (Aggregation.SUM, Aggregation.REDUCE):
        with pytest.raises((P2PComputeError, ValueError)):
            read_partial(aggregation, ((4, 2, 1),), data, 6, ())


def test_a_reduction_covers_what_it_names_and_what_was_left_out() -> None:
    found = read_partial(Aggregation.REDUCE, ((0, 18, 1),), nodes((NODE, "a"), (16, "b"), (17, "c")), 40, ())
    assert [node for node, _ in found.nodes] == [NODE, 16, 17]
    with_hole = read_partial(Aggregation.REDUCE, ((0, 3, 1), (4, 12, 1)), nodes((NODE, "a")), 16, [3])
    assert len(with_hole.rows) == 15


@pytest.mark.parametrize(
    ("ranges", "payload", "skipped"),
    [
        (((0, 16, 1),), nodes((NODE, 1), (NODE, 1)), ()),
        (((0, 16, 1),), nodes((NODE, 1), (3, 1)), ()),
        (((0, 15, 1),), nodes((NODE, 1)), ()),
        (((0, 15, 1),), nodes((NODE, 1)), (14,)),
        (((0, 16, 1),), nodes((15, 1)), ()),
        (((0, 16, 1),), nodes(), ()),
        (((0, 2, 1),), nodes((0, 1), (1, 1), (2, 1)), ()),
        (((32, 8, 1),), nodes((reduction_number(1, 2), 1)), ()),
        (((0, 16, 1),), nodes((reduction_number(2, 0), 1)), ()),
        (((0, 16, 1),), nodes((reduction_number(200, 0), 1)), ()),
        (((0, 16, 1),), nodes((reduction_number(200, 9), 1)), ()),
        (((0, 1, 1),), encode([[0]]), ()),
        (((0, 1, 1),), encode([[0, "not bytes"]]), ()),
        (((0, 1, 1),), encode([[True, encode(1)]]), ()),
        (((0, 1, 1),), encode([[-1, encode(1)]]), ()),
        (((0, 1, 1),), encode([[2 * REDUCE_BASE, encode(1)]]), ()),
        (((0, 1, 1),), encode([[0, b"\xc1"]]), ()),
        (((0, 1, 1),), encode({"aggregation": "reduce", "count": 1}), ()),
    ],
)
def test_a_reduction_that_covers_anything_else_is_refused(ranges: Any, payload: bytes, skipped: Any) -> None:
    with pytest.raises((P2PComputeError, ValueError)):
        read_partial(Aggregation.REDUCE, ranges, payload, 40, skipped)
