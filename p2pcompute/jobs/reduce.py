"""Which partial values are merged by which reduction task of a map-reduce job.

A fixed tree over the numbers of the inputs: the values of inputs 0 to 15 are merged by one task, 16 to 31 by the next, their results
again by sixteens, up to one. So only neighbours are merged and in order, which is right for every associative function
whether or not it commutes, and which values meet never depends on who was first: the same inputs give the same answer to the
last bit of a float. Merging starts as soon as a group is complete, long before all maps are done.

Each group of inputs is reduced, even one of a single value, so a reduce function sees every value at least once and a single
input is still reduced once. A group further up that has a single member passes it on without a task. Inputs that were
left out are holes: the rest of their group is merged without them.
"""

from __future__ import annotations

from p2pcompute.model import limits
from p2pcompute.model.errors import JobError, UsageError
from p2pcompute.model.ids import REDUCE_BASE, TaskIndex

#: Bits of a reduction's number below its level: more groups than tasks can be submitted.
_LEVEL_SHIFT = 40

Step = tuple[TaskIndex, tuple[TaskIndex, ...]]


def reduction_number(level: int, group: int) -> TaskIndex:
    """The number of the task that makes value `group` of `level` (1: merges values of inputs)."""
    return TaskIndex(REDUCE_BASE + (level << _LEVEL_SHIFT) + group)


def place_of(task: TaskIndex) -> tuple[int, int]:
    """(level, group) of the value that `task` makes; level 0 for inputs."""
    if task < REDUCE_BASE:
        return 0, int(task)
    rest = task - REDUCE_BASE
    return rest >> _LEVEL_SHIFT, rest & ((1 << _LEVEL_SHIFT) - 1)


def leaves_under(task: TaskIndex, fan_in: int = limits.REDUCE_FAN_IN) -> range:
    """The inputs whose values are merged in that of `task`, as far as there are so many."""
    level, place = place_of(task)
    width = fan_in**level
    return range(place * width, (place + 1) * width)


class ReducePlan:
    """The tree of one job. Steps are (number of the reduction task, tasks whose values it merges, in order)."""

    def __init__(self, fan_in: int = limits.REDUCE_FAN_IN) -> None:
        if fan_in < 2:
            raise UsageError(f"fan_in is {fan_in}: a reduction merges at least 2 values")
        #: Values merged by one task, at most.
        self._fan_in = fan_in
        #: Values there should be on each level, from the inputs up to the single one; None until the inputs have ended.
        self._widths: list[int] | None = None
        #: Members of groups that are not complete: (level, group) of the group to {place: task, None for a hole}.
        self._groups: dict[tuple[int, int], dict[int, TaskIndex | None]] = {}
        #: Reductions that were asked for and are not ready.
        self._running: set[TaskIndex] = set()
        #: What became of groups above the inputs that made no task: (level, group) to the task that stands for them.
        self._tops: dict[tuple[int, int], TaskIndex | None] = {}

    # --- what happened ------------------------------------------------------------------------------------------------

    def ready(self, task: TaskIndex) -> list[Step]:
        """The value of `task`, an input or a reduction, is there; reductions that have become possible."""
        self._running.discard(task)
        level, place = place_of(task)
        return self._put(level, place, task)

    def left_out(self, task: TaskIndex) -> list[Step]:
        """`task` will never have a value; reductions that have become possible without it."""
        self._running.discard(task)
        level, place = place_of(task)
        return self._put(level, place, None)

    def placed(self, task: TaskIndex) -> list[Step]:
        """The value of `task` is there, of an input or merged elsewhere from every input under it; reductions that have become possible."""
        level, place = place_of(task)
        for below in range(1, level + 1):
            # What was noted of inputs that were left out is part of it.
            width = self._fan_in ** (level - below)
            for group in range(place * width, (place + 1) * width):
                self._groups.pop((below, group), None)
        return self._put(level, place, task)

    def leaves_ended(self, count: int) -> list[Step]:
        """There are `count` inputs; reductions of the last, smaller groups. Raises JobError where there are none."""
        if count == 0:
            raise JobError("there is nothing to reduce: the job had no inputs; give it at least one")
        widths = [count]
        while len(widths) == 1 or widths[-1] > 1:
            widths.append(-(-widths[-1] // self._fan_in))
        self._widths = widths
        steps: list[Step] = []
        for level, group in sorted(self._groups):
            if (level, group) in self._groups:
                steps += self._close(level, group)
        return steps

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def all_planned(self) -> bool:
        """Whether every reduction that will ever be needed has been asked for."""
        if self._widths is None:
            return False
        level = len(self._widths) - 1
        return (level, 0) in self._tops or reduction_number(level, 0) in self._running

    @property
    def result(self) -> TaskIndex | None:
        """The task whose value is the answer, once its value is there. None before, and where every input was left out."""
        if self._widths is None:
            return None
        return self._tops.get((len(self._widths) - 1, 0))

    @property
    def is_empty(self) -> bool:
        """Whether every input was left out: there is no answer."""
        return self.all_planned and self.result is None and not self._running

    # --- inner --------------------------------------------------------------------------------------------------------

    def _put(self, level: int, place: int, task: TaskIndex | None) -> list[Step]:
        """Value `place` of `level` is there (or never will be)."""
        top = self._widths is not None and level == len(self._widths) - 1
        if level > 0 and place == 0:
            # Until the inputs have ended, the first value of any level may turn out to be the answer.
            self._tops[level, 0] = task
        if top:
            return []
        group = (level + 1, place // self._fan_in)
        self._groups.setdefault(group, {})[place % self._fan_in] = task
        return self._close(*group)

    def _close(self, level: int, group: int) -> list[Step]:
        """Merge a group if all its members are there."""
        members = self._groups.get((level, group), {})
        expected = self._fan_in
        if self._widths is not None:
            if level >= len(self._widths):
                del self._groups[level, group]  # above the single value at the top
                return []
            expected = min(expected, self._widths[level - 1] - group * self._fan_in)
        if len(members) < expected:
            return []
        del self._groups[level, group]
        present = tuple(task for _, task in sorted(members.items()) if task is not None)
        if not present:
            return self._put(level, group, None)
        if level > 1 and len(present) == 1:
            return self._put(level, group, present[0])
        number = reduction_number(level, group)
        self._running.add(number)
        return [(number, present)]
