"""Partial aggregates between coordinator and origin: how they are written, and what must be true of one before it is believed.

A partial names its tasks, and its value must be of exactly these: for built-in aggregations the aggregator's own count, for reductions
the values in the tree (`jobs/reduce.py`) that cover each named task once and nothing else. Whether the coordinator holds these tasks
is the dispatch machine's question. Refuses to know: messages, links, jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from p2pcompute.execution.values import decode, encode
from p2pcompute.jobs.aggregate import Aggregator
from p2pcompute.jobs.reduce import leaves_under
from p2pcompute.model import limits
from p2pcompute.model.errors import BlobMissingError, ProtocolError, ResultRefusedError
from p2pcompute.model.ids import REDUCE_BASE, TaskIndex
from p2pcompute.model.job import Aggregation

Bytes = bytes | bytearray | memoryview
#: (first task, how many neighbours, attempt of all of them).
Range = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class PartialValue:
    """A partial aggregate that makes sense. `rows`: its (task, attempt); `state`: what `Aggregator.merge` takes; `nodes`: of a
    reduction, numbers in the tree with their encoded values."""

    rows: tuple[tuple[TaskIndex, int], ...]
    state: Any = None
    nodes: tuple[tuple[TaskIndex, Bytes], ...] = ()


def ranges_of(rows: Iterable[tuple[TaskIndex, int]]) -> tuple[Range, ...]:
    """(task, attempt) as ranges of neighbours with the same attempt."""
    found: list[Range] = []
    for task, attempt in sorted(rows):
        if found and found[-1][0] + found[-1][1] == task and found[-1][2] == attempt:
            first, count, _ = found[-1]
            found[-1] = (first, count + 1, attempt)
        else:
            found.append((int(task), 1, attempt))
    return tuple(found)


def write_nodes(nodes: Iterable[tuple[TaskIndex, Bytes]]) -> bytes:
    """The payload of a partial reduction."""
    return encode([[int(node), bytes(value)] for node, value in nodes])


def read_partial(
    aggregation: Aggregation, ranges: Sequence[Range], data: Bytes, inputs: int, skipped: Collection[int]
) -> PartialValue:
    """What a coordinator sent for a job with so many inputs, of which `skipped` have failed for good.

    Raises ProtocolError, or JobError where the value is not one of this aggregation.
    """
    if sum(count for _, count, _ in ranges) > limits.PARTIAL_TASKS_MAX:
        raise ProtocolError(f"a partial aggregate of more than {limits.PARTIAL_TASKS_MAX} tasks")
    rows = tuple((TaskIndex(first + place), attempt) for first, count, attempt in ranges for place in range(count))
    named = {task for task, _ in rows}
    if not rows or len(named) != len(rows):
        raise ProtocolError("a partial aggregate names each of its tasks once")
    if max(named) >= inputs:
        raise ProtocolError("a partial aggregate names a task that there is not")
    value = decode(data)
    if aggregation is Aggregation.REDUCE:
        return PartialValue(rows, nodes=_nodes(value, named, inputs, skipped))
    if not isinstance(value, dict) or value.get("count") != len(rows):
        raise ProtocolError("the value of a partial aggregate is of other tasks than it names")
    # Merged into nothing first: what fails then is no partial at all, and no fault of other results.
    Aggregator(aggregation).merge(value)
    _check_state(aggregation, value["state"], named)
    return PartialValue(rows, state=value)


def _check_state(aggregation: Aggregation, state: Any, named: set[TaskIndex]) -> None:
    """What an aggregator alone cannot see: that something was merged, and of the named tasks."""
    if aggregation in (Aggregation.SUM, Aggregation.AVERAGE):
        kind, total, weights = state
        if kind not in ("number", "array") or total is None or list(weights) != [len(named), 0, False, 0.0]:
            raise ProtocolError("a partial sum is not of the tasks that are named, each counted once")
    elif aggregation in (Aggregation.MAX, Aggregation.MIN) and (
        state is None or type(state[0]) is not int or state[0] not in named
    ):
        raise ProtocolError("a partial extreme is that of a task that is named")


def _nodes(
    value: Any, named: set[TaskIndex], inputs: int, skipped: Collection[int]
) -> tuple[tuple[TaskIndex, Bytes], ...]:
    if not isinstance(value, list) or len(value) > len(named):
        raise ProtocolError("a partial reduction is a list of merged values")
    nodes: list[tuple[TaskIndex, Bytes]] = []
    left = set(named)
    failed: set[int] | None = None
    for row in value:
        if not isinstance(row, list) or len(row) != 2 or type(row[0]) is not int:
            raise ProtocolError("a merged value is its number in the tree and its encoding")
        node, encoded = TaskIndex(row[0]), row[1]
        if not isinstance(encoded, bytes | bytearray | memoryview) or not 0 <= node < 2 * REDUCE_BASE:
            raise ProtocolError("a merged value is its number in the tree and its encoding")
        under = leaves_under(node)
        # Groups at the end of the inputs are merged by the origin, which alone knows where that is.
        if under.stop > inputs:
            raise ProtocolError("a merged value covers inputs that there are not")
        if len(under) > limits.PARTIAL_TASKS_MAX * limits.REDUCE_FAN_IN:
            raise ProtocolError("a merged value covers more than a partial aggregate may name")
        covered = [TaskIndex(task) for task in under if task in left]
        if not covered:
            raise ProtocolError("a merged value covers no task that is named, or one twice")
        if len(covered) < len(under):
            failed = set(skipped) if failed is None else failed
            if any(task not in failed for task in under if task not in left):
                raise ProtocolError("a merged value covers a task that is not named")
        left.difference_update(covered)
        _check_readable(encoded)
        nodes.append((node, encoded))
    if left:
        raise ProtocolError(f"no merged value covers task {min(left)}, which is named")
    return tuple(nodes)


def _check_readable(encoded: Bytes) -> None:
    try:
        decode(encoded)
    except (ResultRefusedError, BlobMissingError):
        pass  # it may be readable for its submitter
