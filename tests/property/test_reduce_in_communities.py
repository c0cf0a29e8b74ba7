"""A reduction gives the same answer to the last bit, whoever merges which part of it, in whatever order, whatever fails."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.execution.values import Encoded, decode, encode
from p2pcompute.jobs.reduce import ReducePlan, Step
from p2pcompute.model.ids import REDUCE_BASE, JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Outcome, Payload
from p2pcompute.node.partials import read_partial
from p2pcompute.node.share import Share
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.wire.messages import ShareOpen

ONE = PeerId(b"1" * 32)
Value = tuple[list[int], float]


def reduce(values: list[Any]) -> Value:
    """Associative and not commutative in its first part; in its second not even associative, so the tree must be the same."""
    total = 0.0
    for value in values:
        total += value[1]
    return ([number for value in values for number in value[0]], total)


class Submitter:
    """The tree of an origin, its reductions run at once, or where `later` says so at the end."""

    def __init__(self) -> None:
        self.plan = ReducePlan()
        self.values: dict[TaskIndex, Any] = {}
        self.answer: Any = None

    def run(self, steps: list[Step]) -> None:
        while steps:
            node, members = steps.pop(0)
            self.values[node] = reduce([self.values.pop(member) for member in members])
            steps += self.plan.ready(node)
        if self.plan.result is not None and self.plan.result in self.values:
            self.answer = self.values.pop(self.plan.result)

    def take(self, task: int, value: Any, *, placed: bool = False) -> None:
        self.values[TaskIndex(task)] = value
        self.run(self.plan.placed(TaskIndex(task)) if placed else self.plan.ready(TaskIndex(task)))

    def leave_out(self, task: int) -> None:
        self.run(self.plan.left_out(TaskIndex(task)))


def share_of(store: BlobStore, number: int) -> Share:
    name = bytes([number]) * 12
    opened = ShareOpen(name, b"p" * 32, 1, "f", "reduce", (ONE,))
    spec = JobSpec(JobId(name), "f", ProgramId(b"p" * 32), "map", Aggregation.REDUCE, "reduce", JobOptions())
    return Share(opened, None, spec, store, 0.0)  # type: ignore[arg-type]


def leaf(task: int) -> Value:
    return ([task], 0.1 * task + 1e15 / (task + 1))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), count=st.integers(1, 600), shares=st.integers(1, 3), holes=st.integers(0, 5))
def test_any_division_among_coordinators_gives_the_flat_answer(
    data: st.DataObject, count: int, shares: int, holes: int
) -> None:
    rng = data.draw(st.randoms(use_true_random=False))
    failed = set(rng.sample(range(count), min(holes, count - 1)))
    flat = Submitter()
    for task in range(count):
        flat.leave_out(task) if task in failed else flat.take(task, leaf(task))
    flat.run(flat.plan.leaves_ended(count))
    assert flat.answer is not None

    with tempfile.TemporaryDirectory() as folder:
        communities = [share_of(BlobStore(Path(folder) / str(number)), number) for number in range(shares)]
        origin, skipped = Submitter(), []
        ended_at = rng.randrange(count + 1)
        block = rng.choice([1, 7, 16, 64])
        place_of = [rng.randrange(-1, shares) for _ in range(count // block + 1)]
        order = list(range(count))
        if rng.random() < 0.8:
            rng.shuffle(order)

        def cut(share: Share) -> None:
            made = share.cut()
            if made is None:
                return
            found = read_partial(Aggregation.REDUCE, made.rows, made.payload, count, skipped)
            for node, encoded in found.nodes:
                origin.take(node, decode(encoded), placed=True)

        def merge(share: Share, begun: list[TaskIndex]) -> None:
            while begun:
                inner = begun.pop(rng.randrange(len(begun)))
                ((values,), _) = decode(share.arguments(inner).inline)
                members = [decode(value.data) if isinstance(value, Encoded) else value for value in values]
                result = None if rng.random() < 0.1 else encode(reduce(members))
                begun.extend(share.merge_ended(inner, result))

        for number, task in enumerate(order):
            if number == ended_at:
                origin.run(origin.plan.leaves_ended(count))
            place = place_of[task // block]
            if place < 0:
                if task in failed:
                    skipped.append(task)
                    origin.leave_out(task)
                else:
                    origin.take(task, leaf(task))
                continue
            share = communities[place]
            inner = share.take(task, 1, 0, Payload())
            assert inner is not None
            share.settle(inner)
            outcome = Outcome.RAISED if task in failed else Outcome.RETURNED
            stays, begun = share.merge(task, 1, outcome, encode(leaf(task)), ONE)
            assert stays is (task not in failed)
            if task in failed:
                skipped.append(task)
                origin.leave_out(task)
            merge(share, list(begun))
            if rng.random() < 0.02:
                cut(share)
        if ended_at >= count:
            origin.run(origin.plan.leaves_ended(count))
        for share in communities:
            cut(share)
    assert origin.answer is not None
    assert list(origin.answer[0]) == list(flat.answer[0])
    assert origin.answer[1] == flat.answer[1], "to the last bit"
    assert origin.plan.all_planned
    assert not [node for node in origin.values if node >= REDUCE_BASE]
