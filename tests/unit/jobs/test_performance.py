"""How peers did lately: windows by function and peer, their rates, what falls out of them, and their bounds."""

from __future__ import annotations

import pytest

from p2pcompute.jobs.performance import WINDOW_BUCKETS, PerformanceBook, Window
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.performance import TIME_MAX_S, FunctionKey, PerformanceRecord, Summary, plausible_s

SQUARE = FunctionKey("square", ProgramId(b"p" * 32))
OTHER = FunctionKey("square", ProgramId(b"q" * 32))


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def record(
    number: int = 1,
    wall_s: float = 1.0,
    outcome: Outcome = Outcome.RETURNED,
    tasks: int = 1,
    queue_s: float = 0.0,
    function: FunctionKey = SQUARE,
) -> PerformanceRecord:
    return PerformanceRecord(function, peer(number), "fastest_first", outcome, wall_s, queue_s, tasks)


def test_means_and_rates_are_over_tasks_not_over_records() -> None:
    window = Window()
    window.observe(record(wall_s=1.0, tasks=3, queue_s=0.5), 10.0)
    window.observe(record(wall_s=5.0, queue_s=2.5), 11.0)
    window.observe(record(outcome=Outcome.WORKER_DIED, wall_s=99.0), 12.0)
    window.observe(record(outcome=Outcome.RAISED, wall_s=2.0), 12.0)
    found = window.summary(12.0)
    assert found == Summary(6, 5, 4, (3 * 1.0 + 5.0 + 2.0) / 5, (3 * 1.5 + 7.5 + 2.0) / 5)
    assert found.success_rate == 4 / 6
    assert found.served_rate == 5 / 6
    assert window.lately(12.0) == (2.0, 6 / 7)


@pytest.mark.parametrize(
    ("outcome", "counted", "served", "succeeded"),
    [
        (Outcome.RETURNED, 1, 1, 1),
        (Outcome.RAISED, 1, 1, 0),
        (Outcome.UNSHIPPABLE, 1, 1, 0),
        (Outcome.TIMED_OUT, 1, 0, 0),
        (Outcome.WORKER_DIED, 1, 0, 0),
        (Outcome.OUT_OF_MEMORY, 1, 0, 0),
        (Outcome.CANNOT_RUN, 1, 0, 0),
        (Outcome.PEER_LOST, 1, 0, 0),
        (Outcome.CANCELLED, 0, 0, 0),
        (Outcome.RETURNED_UNRUN, 0, 0, 0),
    ],
)
def test_what_each_outcome_says(outcome: Outcome, counted: int, served: int, succeeded: int) -> None:
    window = Window()
    window.observe(record(outcome=outcome), 0.0)
    found = window.summary(0.0)
    assert (found.counted, found.served, found.succeeded) == (counted, served, succeeded)
    assert (found.mean_s is None) == (served == 0)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    window = Window(3_600.0)
    window.observe(record(outcome=Outcome.TIMED_OUT), 0.0)
    window.observe(record(wall_s=2.0), 1_800.0)
    assert window.summary(3_599.0).success_rate == 0.5
    assert window.summary(3_601.0).success_rate == 1.0
    assert window.summary(9_000.0) == Summary(0, 0, 0, None, None)
    assert window.summary(9_000.0).success_rate is None
    assert window.lately(9_000.0) == (None, 1.0)
    window.check_invariants()


def test_a_window_holds_no_more_than_its_buckets_whatever_is_recorded() -> None:
    window = Window(60.0)
    for number in range(20_000):
        window.observe(record(wall_s=0.001), number * 0.01)
    window.check_invariants()
    assert len(window._buckets) <= WINDOW_BUCKETS + 1
    assert window.counted(200.0) == pytest.approx(6_000, abs=6_000 / WINDOW_BUCKETS)


def test_time_that_goes_back_counts_as_the_last_one() -> None:
    window = Window(100.0)
    window.observe(record(), 50.0)
    window.observe(record(), 10.0)
    assert window.counted(20.0) == 2
    window.check_invariants()


def test_pairs_peers_and_functions_are_counted_apart() -> None:
    book = PerformanceBook()
    book.observe(record(1, 1.0), 0.0)
    book.observe(record(2, 3.0), 1.0)
    book.observe(record(1, 9.0, function=OTHER), 2.0)
    assert book.of(SQUARE, peer(1), 3.0) == Summary(1, 1, 1, 1.0, 1.0)
    assert book.of(OTHER, peer(1), 3.0) == Summary(1, 1, 1, 9.0, 9.0)
    assert book.of(OTHER, peer(2), 3.0) is None
    assert book.of_peer(peer(3), 3.0) is None
    assert book.of_peer(peer(1), 3.0) == Summary(2, 2, 2, 5.0, 5.0)
    assert book.mean_function_s(SQUARE, 3.0) == 2.0
    assert [each for each, _ in book.peers(3.0)] == [peer(1), peer(2)]
    book.check_invariants()


def test_the_book_forgets_who_was_written_longest_ago() -> None:
    book = PerformanceBook()
    for number in range(limits.PERFORMANCE_PEERS_MAX + 5):
        book.observe(record(1), float(number))
        book.observe(record(100 + number), float(number))
    book.check_invariants()
    assert len(book.windows(SQUARE)) == limits.PERFORMANCE_PEERS_MAX
    busiest = book.of(SQUARE, peer(1), 0.0)
    assert busiest is not None
    assert busiest.counted == limits.PERFORMANCE_PEERS_MAX + 5, "the busiest one stays"
    assert book.of(SQUARE, peer(100), 0.0) is None
    for number in range(limits.PERFORMANCE_FUNCTIONS_MAX):
        book.observe(record(1, function=FunctionKey(f"f{number}", ProgramId(b"p" * 32))), 0.0)
    book.check_invariants()
    assert book.mean_function_s(SQUARE, 0.0) is None
    assert not book.windows(SQUARE)


@pytest.mark.parametrize(
    "wrong", [{"wall_s": -1.0}, {"wall_s": float("nan")}, {"wall_s": 2 * TIME_MAX_S}, {"tasks": 0}]
)
def test_a_record_is_about_something(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        record(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told_s", "taken_s"),
    [(1.5, 1.5), (-1.0, 0.0), (float("nan"), 0.0), (float("inf"), TIME_MAX_S), (1e300, TIME_MAX_S)],
)
def test_what_a_peer_tells_is_made_plausible(told_s: float, taken_s: float) -> None:
    assert record(wall_s=plausible_s(told_s)).wall_s == taken_s
