"""A share at its coordinator: numbers, what it holds, and what it hands over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pcompute.execution.values import Encoded, decode, encode
from p2pcompute.jobs.aggregate import Aggregator
from p2pcompute.jobs.reduce import ReducePlan, reduction_number
from p2pcompute.model import limits
from p2pcompute.model.ids import REDUCE_BASE, BlobId, JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Outcome, Payload
from p2pcompute.node.partials import read_partial
from p2pcompute.node.share import Share
from p2pcompute.storage.blobs import BlobStore, blob_id_of
from p2pcompute.wire.messages import ShareOpen

ONE, TWO = PeerId(b"1" * 32), PeerId(b"2" * 32)
LONG = "x" * 100


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def share_of(store: BlobStore, aggregation: Aggregation = Aggregation.REDUCE) -> Share:
    opened = ShareOpen(b"s" * 12, b"p" * 32, 1, "f", aggregation.value, (ONE, TWO))
    spec = JobSpec(JobId(b"s" * 12), "f", ProgramId(b"p" * 32), "map", aggregation, "reduce", JobOptions())
    return Share(opened, None, spec, store, 0.0)  # type: ignore[arg-type]


def inline(value: Any) -> Payload:
    data = encode(value)
    return Payload(inline=data, size_bytes=len(data))


def done(share: Share, task: int, value: Any, worker: PeerId = ONE) -> tuple[bool, tuple[TaskIndex, ...]]:
    """A task that comes, runs and returns."""
    inner = share.take(task, 1, 0, inline(task))
    assert inner is not None
    share.settle(inner)
    return share.merge(task, 1, Outcome.RETURNED, encode(value), worker)


def merged_values(share: Share, inner: TaskIndex) -> list[Any]:
    ((values,), _) = decode(share.arguments(inner).inline)
    return [decode(value.data) if isinstance(value, Encoded) else value for value in values]


def test_a_task_keeps_its_number_until_it_was_settled_here(store: BlobStore) -> None:
    share = share_of(store)
    assert share.take(7, 1, 0, inline(1)) == 7
    assert share.take(7, 2, 0, inline(1)) is None, "it is here"
    assert share.let_go(TaskIndex(7)) == (7, 1)
    assert share.take(7, 2, 0, inline(1)) == 7, "it had not run"
    assert share.inner_of(7, 1) is None
    assert share.inner_of(7, 2) == 7
    assert share.settle(TaskIndex(7)) == (7, 2)
    seen = {7}
    for attempt in range(3, 10):
        inner = share.take(7, attempt, 0, inline(1))
        assert inner is not None
        assert inner not in seen
        assert share.row_of(inner) == (7, attempt)
        seen.add(int(inner))
        share.settle(inner)
    assert share.size == 0
    assert share.argument_bytes == 0


def test_no_number_is_taken_for_another_one(store: BlobStore) -> None:
    share = share_of(store)
    assert share.take(1 << 49, 1, 0, inline(1)) is None, "these are its own merges"
    assert share.take((1 << 50) + 7, 1, 0, inline(1)) is None, "these are tasks that came again"
    assert share.take(1 << 62, 1, 0, inline(1)) is None
    assert share.size == 0


def test_what_an_origin_repeats_for_ever_has_an_end(store: BlobStore) -> None:
    share = share_of(store)
    count = 0
    while (inner := share.take(7, 1, 0, inline(1))) is not None:
        assert inner < 1 << 62, "a lender could not be sent it"
        share.settle(inner)
        count += 1
        assert count <= 4096
    assert count == 4096


def test_scattered_numbers_have_an_end(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHARE_TASK_PAGES_MAX", 3)
    share = share_of(store)
    for page in range(3):
        inner = share.take(page << 20, 1, 0, inline(1))
        assert inner is not None
        share.settle(inner)
    assert share.take(9 << 20, 1, 0, inline(1)) is None
    assert share.take((2 << 20) + 1, 1, 0, inline(1)) is not None, "what lies beside others costs nothing"


def test_equal_arguments_are_held_as_long_as_one_task_needs_them(store: BlobStore) -> None:
    share = share_of(store)
    data = b"d" * 100
    blob = BlobId(blob_id_of(data))
    payload = Payload(blob=blob, size_bytes=100)
    assert share.take(1, 1, 0, payload) == 1
    store.put(data, share.hold, blob)
    assert share.take(2, 1, 0, payload) == 2
    share.fetching.add((2, 1))
    share.settle(TaskIndex(2))
    assert store.has(blob), "the second had not held it yet"
    assert not share.fetching
    share.settle(TaskIndex(1))
    assert not store.has(blob)


@pytest.mark.parametrize("aggregation", [Aggregation.SUM, Aggregation.AVERAGE, Aggregation.MAX, Aggregation.MIN])
def test_large_results_are_merged_and_small_ones_go_up(store: BlobStore, aggregation: Aggregation) -> None:
    share = share_of(store, aggregation)
    assert done(share, 1, 5) == (False, ())
    values = {2: 1 << 800, 3: -(1 << 900), 4: 1 << 700}
    for task, value in values.items():
        assert done(share, task, value, TWO if task == 4 else ONE) == (True, ())
    cut = share.cut()
    assert cut is not None
    assert cut.workers == ((ONE, 2), (TWO, 1))
    found = read_partial(aggregation, cut.rows, cut.payload, 10, ())
    assert found.rows == ((2, 1), (3, 1), (4, 1))
    one, other = Aggregator(aggregation), Aggregator(aggregation)
    one.merge(found.state)
    for task, value in values.items():
        other.add(task, value)
    assert one.result() == other.result()
    assert share.cut() is None, "handed over once"


def test_what_cannot_be_added_up_goes_to_who_can_say_so(store: BlobStore) -> None:
    share = share_of(store, Aggregation.SUM)
    assert done(share, 1, LONG) == (False, ())
    assert share.cut() is None


def test_whole_groups_are_merged_and_the_rest_goes_as_it_is(store: BlobStore) -> None:
    share = share_of(store)
    merges: tuple[TaskIndex, ...] = ()
    for task in range(18):
        stays, merges_now = done(share, task, [task])
        assert stays
        merges += merges_now
    (inner,) = merges
    assert share.is_merging
    assert share.row_of(inner) is None, "the origin does not know it"
    assert merged_values(share, inner) == [[task] for task in range(16)]
    assert share.merge_ended(inner, encode(list(range(16)))) == ()
    cut = share.cut()
    assert cut is not None
    found = read_partial(Aggregation.REDUCE, cut.rows, cut.payload, 40, ())
    assert [(node, decode(value)) for node, value in found.nodes] == [
        (16, [16]),
        (17, [17]),
        (reduction_number(1, 0), list(range(16))),
    ]


def test_a_merge_that_failed_leaves_its_values_to_the_origin(store: BlobStore) -> None:
    share = share_of(store)
    merges = [inner for task in range(16) for inner in done(share, task, [task])[1]]
    assert share.merge_ended(merges[0], None) == ()
    assert not share.is_merging
    cut = share.cut()
    assert cut is not None
    assert [node for node, _ in read_partial(Aggregation.REDUCE, cut.rows, cut.payload, 16, ()).nodes] == list(
        range(16)
    )


def test_a_group_is_merged_without_what_failed(store: BlobStore) -> None:
    share = share_of(store)
    merges = [inner for task in range(15) for inner in done(share, task, [task])[1]]
    assert not merges
    stays, late = share.merge(15, 1, Outcome.RAISED, b"", ONE)
    assert not stays
    assert share.merge_ended(late[0], encode("all but one")) == ()
    cut = share.cut()
    assert cut is not None
    assert len(read_partial(Aggregation.REDUCE, cut.rows, cut.payload, 16, [15]).nodes) == 1


def test_no_merge_begins_once_it_is_to_hand_over(store: BlobStore) -> None:
    share = share_of(store)
    for task in range(15):
        done(share, task, [task])
    share.merges_no_more = True
    assert done(share, 15, [15]) == (True, ())
    cut = share.cut()
    assert cut is not None
    assert len(read_partial(Aggregation.REDUCE, cut.rows, cut.payload, 16, ()).nodes) == 16
    assert not share.merges_no_more
    merges = [inner for task in range(16, 32) for inner in done(share, task, [task])[1]]
    assert len(merges) == 1, "after that it merges again"


def test_reductions_and_repeated_tasks_are_not_merged(store: BlobStore) -> None:
    share = share_of(store)
    assert share.merge(REDUCE_BASE + 1, 1, Outcome.RETURNED, encode(1), ONE) == (False, ())
    assert share.merge(1, 1, Outcome.RETURNED, encode(1), ONE)[0]
    assert share.merge(1, 2, Outcome.RETURNED, encode(1), ONE) == (False, ()), "its value is among the others already"


def test_a_partial_aggregate_never_names_more_than_one_message_may(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BATCH_TASKS_MAX", 8)
    share = share_of(store)
    stayed = [task for task in range(0, 40, 2) if share.merge(task, 1, Outcome.RETURNED, encode(task), ONE)[0]]
    assert stayed == list(range(0, 16, 2))
    assert share.is_full
    assert share.merge(1, 1, Outcome.RETURNED, encode(1), ONE)[0], "it joins two ranges"
    cut = share.cut()
    assert cut is not None
    assert len(cut.rows) == 7
    assert not share.is_full
    monkeypatch.setattr(limits, "PARTIAL_TASKS_MAX", 5)
    stayed = [task for task in range(100, 110) if share.merge(task, 1, Outcome.RETURNED, encode(task), ONE)[0]]
    assert stayed == list(range(100, 105))


def test_what_is_merged_is_handed_over_before_the_submitter_reads_no_further(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.MERGED_TASKS_MAX * 7 < 2 * limits.INPUTS_AHEAD, (
        "seven communities do not use up what may be read ahead"
    )
    monkeypatch.setattr(limits, "MERGED_TASKS_MAX", 3)
    share = share_of(store)
    filled = []
    for task in range(3):
        assert share.merge(task, 1, Outcome.RETURNED, encode(task), ONE)[0]
        filled.append(share.is_full)
    assert filled == [False, False, True]


def test_a_share_that_is_over_holds_nothing(store: BlobStore) -> None:
    share = share_of(store)
    for task in range(15):
        done(share, task, LONG * 1000)
    assert share.take(20, 1, 0, inline("y" * 100)) is not None
    share.to_fetch(TaskIndex(20))
    assert store.bytes_held
    share.close()
    assert store.bytes_held == 0
    assert not share.has_merged
    assert share.size == share.argument_bytes == 0


@pytest.mark.parametrize("count", [1, 15, 16, 17, 256, 300])
def test_a_plan_knows_a_value_that_was_merged_elsewhere(count: int) -> None:
    """The group of a value that covers all under it is not merged again."""
    plan = ReducePlan()
    steps = plan.placed(reduction_number(1, 0)) if count >= 16 else []
    for task in range(16 if count >= 16 else 0, count):
        steps += plan.ready(TaskIndex(task))
    steps += plan.leaves_ended(count)
    assert not any(node == reduction_number(1, 0) for node, _ in steps) or count < 16
