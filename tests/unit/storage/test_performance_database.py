"""performance.db.

Keeps records, answers in windows, stays bounded, survives, and is never overwritten when it cannot be read.
"""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import CorruptFileError, ResourceError, UsageError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.performance import FunctionKey, PerformanceRecord, Summary
from p2pcompute.storage import performance
from p2pcompute.storage.performance import DatedRecord, PerformanceDatabase, percentiles

SQUARE = FunctionKey("square", ProgramId(b"p" * 32))
CUBE = FunctionKey("cube", ProgramId(b"p" * 32))
#: A moment in 2026, seconds since 1970.
NOW_S = 1_790_000_000.0


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def record(
    ago_s: float = 1.0,
    number: int = 1,
    wall_s: float = 1.0,
    outcome: Outcome = Outcome.RETURNED,
    tasks: int = 1,
    queue_s: float = 0.0,
    function: FunctionKey = SQUARE,
    strategy: str = "fastest_first",
    features: tuple[float, ...] = (),
) -> DatedRecord:
    made = PerformanceRecord(function, peer(number), strategy, outcome, wall_s, queue_s, tasks, 77, features)
    return DatedRecord(NOW_S - ago_s, made)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[PerformanceDatabase]:
    opened = PerformanceDatabase.open(tmp_path / "performance.db")
    yield opened
    opened.close()


def test_records_are_as_they_were_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "performance.db"
    records = [
        record(3.0, 1, 0.25, Outcome.RAISED, 3, 0.5, CUBE, "hlig", (1.5, -2.0, 1e-9)),
        record(2.0, 2, features=()),
        record(1.0, 1, outcome=Outcome.PEER_LOST),
    ]
    first = PerformanceDatabase.open(path)
    first.add(records[:2], NOW_S)
    first.add(records[2:], NOW_S)
    first.add([], NOW_S)
    first.close()
    first.close()
    second = PerformanceDatabase.open(path)
    assert second.recent(10) == records
    assert second.recent(2) == records[1:]
    assert second.recent(10, CUBE) == records[:1]
    assert second.recent(10, FunctionKey("none", ProgramId(b"p" * 32))) == []
    second.close()


def test_means_and_rates_per_pair_over_the_last_hour(database: PerformanceDatabase) -> None:
    database.add(
        [
            record(4_000.0, wall_s=50.0),
            record(3_000.0, wall_s=1.0, tasks=3, queue_s=1.0),
            record(10.0, wall_s=5.0),
            record(10.0, outcome=Outcome.WORKER_DIED, wall_s=9.0),
            record(10.0, outcome=Outcome.CANCELLED),
            record(10.0, 2, wall_s=2.0),
            record(10.0, 2, wall_s=4.0, function=CUBE),
        ],
        NOW_S,
    )
    assert [(each.function, each.peer, each.summary) for each in database.by_pair(NOW_S)] == [
        (CUBE, peer(2), Summary(1, 1, 1, 4.0, 4.0)),
        (SQUARE, peer(1), Summary(5, 4, 4, 2.0, 2.75)),
        (SQUARE, peer(2), Summary(1, 1, 1, 2.0, 2.0)),
    ]
    assert database.by_peer(NOW_S) == [
        (peer(1), Summary(5, 4, 4, 2.0, 2.75)),
        (peer(2), Summary(2, 2, 2, 3.0, 3.0)),
    ]
    assert dict(database.by_peer(NOW_S))[peer(1)].success_rate == 0.8
    assert dict(database.by_peer(NOW_S, 5_000.0))[peer(1)].counted == 6
    assert database.by_peer(NOW_S + 10_000.0) == []


def test_percentiles_of_a_function_a_peer_or_all(database: PerformanceDatabase) -> None:
    database.add([record(wall_s=float(number)) for number in range(1, 101)], NOW_S)
    database.add([record(number=2, wall_s=1_000.0, tasks=100)], NOW_S)
    alone = database.summary(NOW_S, peer=peer(1))
    assert (alone.p50_s, alone.p90_s, alone.p99_s) == (50.0, 90.0, 99.0)
    together = database.summary(NOW_S)
    assert (together.p50_s, together.p90_s) == (100.0, 1_000.0)
    assert database.summary(NOW_S, function=SQUARE, peer=peer(2)).mean_s == 1_000.0
    assert database.summary(NOW_S, function=CUBE) == Summary(0, 0, 0, None, None)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([], (None, None)),
        ([(3.0, 1)], (3.0, 3.0)),
        ([(2.0, 1), (1.0, 1)], (1.0, 2.0)),
        ([(1.0, 9), (5.0, 1)], (1.0, 1.0)),
        ([(1.0, 8), (5.0, 2)], (1.0, 5.0)),
    ],
)
def test_percentiles_by_nearest_rank(times: list[tuple[float, int]], found: tuple[float | None, ...]) -> None:
    assert percentiles(times, (50, 90)) == found


def test_days_and_strategies(database: PerformanceDatabase) -> None:
    day_s = 86_400.0
    database.add(
        [
            record(6.5 * day_s, wall_s=1.0),
            record(6.4 * day_s, wall_s=3.0, strategy="hlig"),
            record(0.5 * day_s, wall_s=8.0),
            record(9.0 * day_s, wall_s=99.0),
        ],
        NOW_S,
    )
    days = database.by_day(NOW_S, 7)
    assert [(NOW_S - each.start_s) / day_s for each in days] == [7.0, 1.0]
    assert [each.summary.mean_s for each in days] == [2.0, 8.0]
    assert [(name, each.counted) for name, each in database.by_strategy(NOW_S, 7 * day_s)] == [
        ("fastest_first", 2),
        ("hlig", 1),
    ]


def test_it_is_bounded_by_rows_and_by_age(database: PerformanceDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PERFORMANCE_ROWS_MAX", 5)
    monkeypatch.setattr(limits, "PERFORMANCE_AGE_MAX_S", 100.0)
    monkeypatch.setattr(performance, "TIDY_EVERY", 1)
    database.add([record(50.0, number) for number in range(8)], NOW_S)
    assert [each.record.peer for each in database.recent(99)] == [peer(number) for number in range(3, 8)]
    database.add([record(1.0, 9)], NOW_S + 60.0)
    assert [each.record.peer for each in database.recent(99)] == [peer(9)]
    with database._database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM peers").fetchone() == (1,), "nor do names stay behind"


def test_what_cannot_be_kept_is_said_and_nothing_is_kept(database: PerformanceDatabase) -> None:
    too_many = record(features=tuple(float(number) for number in range(limits.PERFORMANCE_FEATURES_MAX + 1)))
    too_long = record(strategy="x" * (limits.TEXT_CHARS_MAX + 1))
    for wrong in (too_many, too_long):
        with pytest.raises(UsageError):
            database.add([record(), wrong], NOW_S)
    assert database.recent(9) == []


def test_threads_take_turns(database: PerformanceDatabase) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                database.add([record(number=number)], NOW_S)
                database.by_peer(NOW_S)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(database.recent(999)) == 80


def test_the_file_is_private(database: PerformanceDatabase, tmp_path: Path) -> None:
    database.add([record()], NOW_S)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert "performance.db" in modes
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize(
    "content", [b"this is no database, but it is long enough to look at" * 20, b"SQLite format 3\0" + b"\xff" * 4_080]
)
def test_a_broken_file_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "performance.db"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match="move it away"):
        PerformanceDatabase.open(path)
    assert path.read_bytes() == content


def test_a_file_of_a_newer_release_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "performance.db"
    PerformanceDatabase.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CorruptFileError, match="newer release"):
        PerformanceDatabase.open(path)


def test_a_folder_that_is_not_there_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot open"):
        PerformanceDatabase.open(tmp_path / "missing" / "performance.db")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE records SET features = x'0102'",
        "UPDATE records SET outcome = 99",
        "UPDATE records SET tasks = 0",
        "UPDATE peers SET peer = x'01'",
    ],
)
def test_a_damaged_row_is_named_and_kept(database: PerformanceDatabase, tmp_path: Path, damage: str) -> None:
    database.add([record(features=(1.0,))], NOW_S)
    connection = sqlite3.connect(tmp_path / "performance.db")
    with connection:
        connection.execute(damage)
    connection.close()
    with pytest.raises(CorruptFileError, match="was left as it is"):
        database.recent(9)
