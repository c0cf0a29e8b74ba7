"""Which waiting tasks belong together: neighbours whose results one reduction merges (`reduce.py`)."""

from __future__ import annotations

from collections import deque

from p2pcompute.model.ids import REDUCE_BASE, TaskIndex


def take_waiting(
    queue: deque[TaskIndex], count: int, align: int, *, is_whole: bool, breaks: bool, reductions: bool
) -> list[TaskIndex]:
    """Take up to `count` tasks out of `queue`, in order. `reductions`: these too; else they stay where they are.

    `align` above 1, and as many wanted: whole groups of so many neighbours, from the end of the queue, whose front is other peers'.
    `is_whole`: no input will come behind the last one, so that its group is as large as it gets. `breaks`: single tasks where
    there is no such group.
    """
    if align > 1 and count >= align:
        taken = _groups(queue, count - count % align, align, is_whole)
        if taken:
            return taken
    if align > 1 and not breaks:
        return []
    taken = []
    kept: list[TaskIndex] = []
    while queue and len(taken) < count:
        task = queue.popleft()
        (kept if task >= REDUCE_BASE and not reductions else taken).append(task)
    queue.extendleft(reversed(kept))
    return taken


def _groups(queue: deque[TaskIndex], count: int, align: int, is_whole: bool) -> list[TaskIndex]:
    taken: list[TaskIndex] = []
    skipped: list[TaskIndex] = []
    first = end = -1
    while queue and len(taken) < count:
        task = queue.pop()
        if end < 0 and task < REDUCE_BASE:
            end = task + 1 if is_whole else task + 1 - (task + 1) % align
            first = -(-max(end - count, 0) // align) * align
        if task >= REDUCE_BASE or task >= end:
            skipped.append(task)
        elif task < first:
            queue.append(task)
            break
        else:
            taken.append(task)
    # The front of a group that others have begun stays.
    whole = next((place for place, task in enumerate(reversed(taken)) if task % align == 0), len(taken))
    queue.extend(reversed(taken[len(taken) - whole :]))
    queue.extend(reversed(skipped))
    return taken[::-1][whole:]
