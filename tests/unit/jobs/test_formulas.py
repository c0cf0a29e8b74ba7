"""Tables of the pure functions that the machines of jobs decide by."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.jobs.credit import tail_depth, tasks_to_send, worth_a_look
from p2pcompute.jobs.dispatch_events import Refusal
from p2pcompute.jobs.fairness import divide, divide_by_account, weight_of, worker_batch
from p2pcompute.jobs.openings import is_hopeless, refusal_pause_s, returned_pause_s
from p2pcompute.jobs.plan import Candidate, expected_finish_s, fastest_first
from p2pcompute.jobs.retries import failed_at, is_given_up
from p2pcompute.jobs.speculation import overdue_at
from p2pcompute.jobs.speed import Speed, batch_tasks, blend, prefetch_tasks
from p2pcompute.jobs.taskset import TaskSet
from p2pcompute.jobs.timers import Timers
from p2pcompute.model import limits
from p2pcompute.model.ids import REDUCE_BASE, PeerId, TaskIndex
from p2pcompute.model.job import Attempt, Outcome

A, B, C, D = (PeerId(bytes([number]) * 32) for number in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("task_s", "current", "wanted"),
    [
        (None, 1, 1),
        (1.0, 1, 1),
        (0.03, 1, 1),
        (0.01, 1, 3),
        (0.001, 1, 4),
        (0.001, 4, 16),
        (0.001, 100, 30),
        (1e-5, 400, limits.BATCH_TASKS_MAX),
        (0.0, 400, limits.BATCH_TASKS_MAX),
        (10.0, 400, 1),
    ],
)
def test_batch_tasks(task_s: float | None, current: int, wanted: int) -> None:
    assert batch_tasks(task_s, current) == wanted


@pytest.mark.parametrize(
    ("task_s", "rtt_s", "wanted"),
    [
        (None, 1.0, 0),
        (1.0, 0.05, 0),
        (1.0, 0.5, 1),
        (0.01, 0.1, 10),
        (0.01, 0.0, 0),
        (0.01, -1.0, 0),
        (1e-6, 1.0, limits.BATCH_TASKS_MAX),
    ],
)
def test_prefetch_tasks(task_s: float | None, rtt_s: float, wanted: int) -> None:
    assert prefetch_tasks(task_s, rtt_s) == wanted


@pytest.mark.parametrize(
    ("old_s", "new_s", "count", "wanted"),
    [(None, 2.0, 1, 2.0), (None, 0.0, 1, 1e-6), (1.0, 2.0, 1, 1.3), (1.0, 2.0, 2, 1.51), (1.0, 2.0, 500, 2.0)],
)
def test_blend(old_s: float | None, new_s: float, count: int, wanted: float) -> None:
    assert blend(old_s, new_s, count) == pytest.approx(wanted)


def test_a_batch_counts_like_its_tasks_one_by_one() -> None:
    batch, single = Speed(), Speed()
    batch.observe(1.0, 1)
    single.observe(1.0, 1)
    batch.observe(6.0, 3)
    for _ in range(3):
        single.observe(2.0, 1)
    assert batch.task_s == pytest.approx(single.task_s)
    assert batch.samples == single.samples == 4


@pytest.mark.parametrize(
    ("depth", "prefetch", "waiting", "slots_total", "wanted"),
    [(30, 0, 1000, 4, 30), (30, 0, 40, 4, 10), (30, 0, 3, 4, 1), (30, 9, 3, 4, 10), (5, 9, 3, 4, 5), (30, 0, 9, 0, 1)],
)
def test_tail_depth(depth: int, prefetch: int, waiting: int, slots_total: int, wanted: int) -> None:
    assert tail_depth(depth, prefetch, waiting, slots_total) == wanted


@pytest.mark.parametrize(
    ("free_slots", "slots", "depth", "tail", "out", "waiting", "wanted"),
    [
        (2.0, 2, 1, 1, 0, 9, 2),
        (1.0, 2, 1, 1, 1, 9, 1),
        (2.0, 2, 10, 10, 0, 100, 20),
        (2.0, 2, 10, 10, 0, 7, 7),
        (0.0, 2, 10, 10, 20, 100, 0),
        (-1.0, 2, 10, 10, 30, 100, 0),
        (0.1, 2, 10, 10, 19, 100, 0),  # one task is no frame
        (0.1, 2, 10, 10, 19, 1, 1),  # but the last one goes
        (0.2, 2, 10, 10, 18, 100, 2),
        (1.5, 2, 10, 2, 5, 4, 0),  # the tail is served already
        (1.9, 2, 10, 2, 1, 4, 3),
        (1 - 3 / 10, 1, 10, 10, 3, 100, 7),
    ],
)
def test_tasks_to_send(
    free_slots: float, slots: int, depth: int, tail: int, out: int, waiting: int, wanted: int
) -> None:
    count = tasks_to_send(free_slots=free_slots, slots=slots, depth=depth, tail=tail, out=out, waiting=waiting)
    assert count == wanted
    if count:
        assert worth_a_look(free_slots=free_slots, depth=depth, out=out, waiting=waiting)


def attempts(*rows: tuple[PeerId, Outcome]) -> list[Attempt]:
    return [Attempt(peer, outcome, 1.0, "") for peer, outcome in rows]


@pytest.mark.parametrize(
    ("history", "retries", "wanted"),
    [
        (attempts(), 0, False),
        (attempts((A, Outcome.PEER_LOST)), 0, True),
        (attempts((A, Outcome.PEER_LOST)), 1, False),
        (attempts((A, Outcome.RETURNED_UNRUN)), 0, False),
        (attempts((A, Outcome.WORKER_DIED), (A, Outcome.WORKER_DIED), (A, Outcome.WORKER_DIED)), 3, False),
        (attempts((A, Outcome.WORKER_DIED), (B, Outcome.OUT_OF_MEMORY), (C, Outcome.WORKER_DIED)), 9, True),
        (attempts((A, Outcome.PEER_LOST), (B, Outcome.PEER_LOST), (C, Outcome.WORKER_DIED)), 9, False),
    ],
)
def test_is_given_up(history: list[Attempt], retries: int, wanted: bool) -> None:
    assert is_given_up(history, retries) is wanted


def test_failed_at() -> None:
    history = attempts((A, Outcome.WORKER_DIED), (B, Outcome.RETURNED_UNRUN))
    assert failed_at(history, A)
    assert not failed_at(history, B)


@pytest.mark.parametrize(
    ("ahead", "slots", "task_s", "rtt_s", "wanted"),
    [
        (1, 1, None, 0.0, None),
        (1, 1, 1.0, 0.0, 12.0),
        (1, 1, 1.0, 0.5, 13.0),
        (4, 2, 1.0, 0.0, 14.0),
        (5, 2, 1.0, 0.0, 16.0),
        (1, 0, 1.0, 0.0, 12.0),
        (1, 4, 1e-6, 0.0, 10.1),
    ],
)
def test_overdue_at(ahead: int, slots: int, task_s: float | None, rtt_s: float, wanted: float | None) -> None:
    at = overdue_at(since=10.0, ahead=ahead, slots=slots, task_s=task_s, rtt_s=rtt_s)
    assert at == (None if wanted is None else pytest.approx(wanted))


def candidate(peer: PeerId, **values: object) -> Candidate:
    return Candidate(peer, **{"rtt_s": 0.0, "local": False, "rank": 50.0, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("candidates", "wanted"),
    [
        ([], []),
        ([candidate(B), candidate(A)], [A, B]),
        ([candidate(A), candidate(B, local=True)], [B, A]),
        ([candidate(A, rank=10.0), candidate(B, rank=90.0)], [B, A]),
        ([candidate(A, rtt_s=0.2), candidate(B, rank=20.0)], [B, A]),
        ([candidate(A, task_s=1.0, rank=99.0), candidate(B, task_s=0.1)], [B, A]),
        ([candidate(A, task_s=1.0), candidate(B, rank=100.0), candidate(C, rank=10.0)], [B, A, C]),
        ([candidate(A, task_s=1.0, load=3.0), candidate(B, task_s=2.0)], [B, A]),
        ([candidate(A, rank=0.0), candidate(B, rank=-5.0)], [A, B]),
    ],
)
def test_fastest_first(candidates: list[Candidate], wanted: list[PeerId]) -> None:
    assert fastest_first(candidates) == wanted
    assert fastest_first(candidates[::-1]) == wanted


def test_expected_finish() -> None:
    assert expected_finish_s(candidate(A, rtt_s=0.5, task_s=2.0, load=0.5), 9.0, 9.0) == 3.5
    assert expected_finish_s(candidate(A, rank=25.0), 1.0, 50.0) == 2.0


@pytest.mark.parametrize(
    ("reason", "refusals", "wanted"),
    [
        ("busy", 1, 1.0),
        ("busy", 3, 4.0),
        ("busy", 99, 60.0),
        ("none-lent", 1, 5.0),
        ("module", 1, None),
        ("?", 1, None),
    ],
)
def test_refusal_pause(reason: str, refusals: int, wanted: float | None) -> None:
    assert refusal_pause_s(reason, refusals) == wanted


@pytest.mark.parametrize(("last_s", "wanted"), [(0.0, 0.05), (0.05, 0.1), (1.5, 2.0), (2.0, 2.0)])
def test_returned_pause(last_s: float, wanted: float) -> None:
    assert returned_pause_s(last_s) == wanted


@pytest.mark.parametrize(
    ("reasons", "wanted"),
    [([], False), (["busy"], False), (["none-lent"], False), (["module"], True), (["module", "none-lent"], True),
     (["module", "busy"], False)],
)  # fmt: skip
def test_is_hopeless(reasons: list[str], wanted: bool) -> None:
    assert is_hopeless([Refusal(A, reason, "") for reason in reasons]) is wanted


@pytest.mark.parametrize(
    ("slots", "wanted", "parts"),
    [
        (4, [], {}),
        (4, [(A, 6, True)], {A: 4}),
        (4, [(A, 6, True), (B, 6, True)], {A: 2, B: 2}),
        (5, [(B, 6, True), (A, 6, True)], {A: 3, B: 2}),
        (8, [(A, 9, True), (B, 3, True)], {A: 6, B: 2}),
        (4, [(A, 6, True), (B, 6, False)], {A: 4, B: 1}),
        (1, [(A, 6, True), (B, 6, True), (C, 6, True)], {A: 1, B: 1, C: 1}),
        (0, [(A, 6, True)], {A: 0}),
        (4, [(A, 6, False)], {A: 1}),
    ],
)
def test_divide(slots: int, wanted: list[tuple[PeerId, int, bool]], parts: dict[PeerId, int]) -> None:
    assert divide(slots, wanted) == parts


@given(st.integers(1, 200), st.lists(st.tuples(st.integers(1, 10), st.booleans()), max_size=12))
def test_divided_slots_are_all_the_slots(slots: int, rows: list[tuple[int, bool]]) -> None:
    wanted = [(PeerId(bytes([number]) * 32), weight, active) for number, (weight, active) in enumerate(rows)]
    parts = divide(slots, wanted)
    assert set(parts) == {origin for origin, _, _ in wanted}
    assert min(parts.values(), default=1) >= 1
    active = [parts[origin] for origin, _, has_work in wanted if has_work]
    if active:
        assert sum(active) >= slots or len(active) > slots
        assert sum(active) <= slots + len(active)


@given(
    st.integers(0, 50),
    st.lists(st.lists(st.tuples(st.integers(1, 10), st.booleans()), min_size=1, max_size=5), max_size=5),
)
def test_an_account_gets_the_same_however_many_borrow_for_it(
    slots: int, accounts: list[list[tuple[int, bool]]]
) -> None:
    def name(account: int, borrower: int) -> PeerId:
        return PeerId(bytes([account, borrower]) * 16)

    rows = [
        (name(number, 99), [(name(number, each), *row) for each, row in enumerate(borrowers)])
        for number, borrowers in enumerate(accounts)
    ]
    together = divide(
        slots, [(account, max(row[1] for row in own), any(row[2] for row in own)) for account, own in rows]
    )
    divided = divide_by_account(slots, rows)
    assert set(divided) == {borrower for _, own in rows for borrower, _, _ in own}
    for account, own in rows:
        parts = [divided[borrower] for borrower, _, _ in own]
        assert min(parts) >= min(slots, 1)
        active = [divided[borrower] for borrower, _, has_work in own if has_work]
        if active:
            assert together[account] <= sum(active) < together[account] + len(active), "one each at least"
        assert max(parts) <= together[account]


@pytest.mark.parametrize(("priority", "wanted"), [(0, 1), (5, 6), (9, 10), (-3, 1), (99, 10)])
def test_weights(priority: int, wanted: int) -> None:
    assert weight_of(priority) == wanted


@pytest.mark.parametrize(
    ("task_s", "current", "waiting", "workers", "wanted"),
    [(None, 1, 100, 2, 1), (0.001, 4, 100, 2, 4), (0.001, 4, 3, 2, 2), (0.001, 4, 1, 4, 1), (1e-6, 400, 300, 1, 300)],
)
def test_worker_batch(task_s: float | None, current: int, waiting: int, workers: int, wanted: int) -> None:
    assert worker_batch(task_s, current, waiting, workers, 0.004) == wanted


@given(st.lists(st.integers(0, 40_000) | st.integers(REDUCE_BASE, REDUCE_BASE + 40_000)))
def test_task_sets_are_sets(numbers: list[int]) -> None:
    tasks, reference = TaskSet(), set()
    for number in numbers:
        assert (TaskIndex(number) in tasks) is (number in reference)
        assert tasks.add(TaskIndex(number)) is (number not in reference)
        reference.add(number)
    assert len(tasks) == len(reference)
    assert all(TaskIndex(number) in tasks for number in reference)
    assert TaskIndex(40_001) not in tasks


def test_timers_ring_once_and_in_order() -> None:
    timers: Timers[str] = Timers()
    assert timers.deadline() is None
    timers.set("b", 2.0)
    timers.set("a", 1.0)
    timers.set("c", 2.0)
    timers.set("a", 3.0)
    timers.clear("b")
    assert timers.deadline() == 2.0
    assert timers.due(1.9) == []
    assert timers.due(5.0) == ["c", "a"]
    assert timers.deadline() is None
    assert "a" not in timers


def test_timers_that_move_do_not_pile_up() -> None:
    timers: Timers[int] = Timers()
    dice = random.Random(1)
    when: dict[int, float] = {}
    for _ in range(5_000):
        key = dice.randrange(10)
        when[key] = dice.random()
        timers.set(key, when[key])
    assert len(timers._heap) < 200
    assert timers.deadline() == min(when.values())
    assert timers.due(1.0) == sorted(when, key=lambda key: when[key])
