"""The reduction tree: order kept, the same tree whatever comes first, one answer, early merging."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.jobs.reduce import ReducePlan, place_of, reduction_number
from p2pcompute.model.errors import JobError, UsageError
from p2pcompute.model.ids import REDUCE_BASE, TaskIndex


class World:
    """Runs a plan: values are lists of inputs, reduction is concatenation (associative, not commutative)."""

    def __init__(self, fan_in: int, dice: random.Random) -> None:
        self.plan = ReducePlan(fan_in)
        self.dice = dice
        self.values: dict[TaskIndex, list[int]] = {}
        self.todo: list[tuple[TaskIndex, tuple[TaskIndex, ...]]] = []
        self.merged: set[tuple[TaskIndex, tuple[TaskIndex, ...]]] = set()
        self.fan_in = fan_in

    def take(self, steps: list[tuple[TaskIndex, tuple[TaskIndex, ...]]]) -> None:
        for task, members in steps:
            assert task >= REDUCE_BASE
            assert 1 <= len(members) <= self.fan_in
            assert all(member in self.values for member in members)
            self.todo.append((task, members))

    def work(self, everything: bool) -> None:
        while self.todo and (everything or self.dice.random() < 0.5):
            task, members = self.todo.pop(self.dice.randrange(len(self.todo)))
            assert (task, members) not in self.merged
            self.merged.add((task, members))
            self.values[task] = [number for member in members for number in self.values.pop(member)]
            self.take(self.plan.ready(task))

    def run(self, count: int, holes: set[int], early: bool) -> list[int] | None:
        order = list(range(count))
        self.dice.shuffle(order)
        end_at = self.dice.randrange(count + 1) if early else count
        for position in range(count + 1):
            if position == end_at:
                self.take(self.plan.leaves_ended(count))
            if position < count:
                task = TaskIndex(order[position])
                if task in holes:
                    self.take(self.plan.left_out(task))
                else:
                    self.values[task] = [int(task)]
                    self.take(self.plan.ready(task))
                self.work(False)
        if holes != set(range(count)):
            assert self.plan.all_planned or self.todo
        self.work(True)
        assert self.plan.all_planned
        if self.plan.is_empty:
            return None
        assert self.plan.result is not None
        assert set(self.values) == {self.plan.result}, "something was never merged"
        return self.values[self.plan.result]


@given(st.integers(1, 80), st.integers(2, 5), st.data(), st.integers(0, 2**32), st.booleans())
def test_every_input_once_and_in_order(count: int, fan_in: int, data: st.DataObject, seed: int, early: bool) -> None:
    holes = data.draw(st.sets(st.integers(0, count - 1)))
    first = World(fan_in, random.Random(seed))
    answer = first.run(count, holes, early)
    wanted = [number for number in range(count) if number not in holes]
    assert answer == (wanted or None)
    second = World(fan_in, random.Random(seed + 1))
    assert second.run(count, holes, not early) == answer
    assert first.merged == second.merged, "which values meet must not depend on who was first"


def test_a_single_input_is_reduced_once() -> None:
    plan = ReducePlan()
    assert plan.ready(TaskIndex(0)) == []
    assert plan.leaves_ended(1) == [(reduction_number(1, 0), (0,))]
    assert plan.all_planned
    assert plan.result is None
    assert plan.ready(reduction_number(1, 0)) == []
    assert plan.result == reduction_number(1, 0)


def test_merging_starts_before_the_inputs_have_ended() -> None:
    plan = ReducePlan(fan_in=2)
    plan.ready(TaskIndex(1))
    assert plan.ready(TaskIndex(0)) == [(reduction_number(1, 0), (0, 1))]
    assert plan.ready(reduction_number(1, 0)) == []
    assert plan.leaves_ended(2) == []
    assert plan.result == reduction_number(1, 0)


def test_a_group_of_one_is_passed_on_except_at_the_bottom() -> None:
    world = World(2, random.Random(1))
    assert world.run(5, set(), early=False) == [0, 1, 2, 3, 4]
    assert {place_of(task) for task, _ in world.merged} == {(1, 0), (1, 1), (1, 2), (2, 0), (3, 0)}


def test_no_inputs_and_no_values() -> None:
    with pytest.raises(JobError, match="no inputs"):
        ReducePlan().leaves_ended(0)
    plan = ReducePlan()
    plan.left_out(TaskIndex(0))
    plan.leaves_ended(1)
    assert plan.is_empty
    with pytest.raises(UsageError):
        ReducePlan(fan_in=1)


def test_numbers_name_their_place() -> None:
    assert place_of(TaskIndex(17)) == (0, 17)
    assert place_of(reduction_number(3, 12345)) == (3, 12345)
    assert reduction_number(1, 0) > REDUCE_BASE
    assert reduction_number(12, 1 << 30) < 1 << 62
