"""performance.db: a row for every batch of tasks that ended, so that reports and strategies have a past.

Owns one SQLite file, bounded by rows and by age; what is beyond either is dropped while new rows are written. Times are
wall-clock seconds since 1970. Functions and peers stand in tables of their own: a row has about 200 bytes.

Refuses to judge. All calls block: `add` for a disk write and 10 µs a row, so rows are to come in batches; questions for
up to a second where the table is full. Off the event loop only.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PEER_ID_BYTES, PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.performance import (
    NOT_COUNTED,
    SERVED,
    DaySummary,
    FunctionKey,
    PairSummary,
    PerformanceRecord,
    Summary,
)
from p2pcompute.storage.database import Database

#: MIGRATIONS[n] brings a file of version n to version n + 1.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE functions (id INTEGER PRIMARY KEY, name TEXT NOT NULL, program BLOB NOT NULL, "
        "UNIQUE (name, program))",
        "CREATE TABLE peers (id INTEGER PRIMARY KEY, peer BLOB NOT NULL UNIQUE)",
        "CREATE TABLE records (id INTEGER PRIMARY KEY, ended_s REAL NOT NULL, function INTEGER NOT NULL, "
        "peer INTEGER NOT NULL, strategy TEXT NOT NULL, outcome INTEGER NOT NULL, tasks INTEGER NOT NULL, "
        "wall_s REAL NOT NULL, queue_s REAL NOT NULL, input_bytes INTEGER NOT NULL, features BLOB NOT NULL)",
        "CREATE INDEX records_by_time ON records (ended_s)",
    ),
)
#: What a person loses with the file.
LOST_TEXT = "what was learned about peers is lost with it, and is learned again"
#: Functions or peers that no row names any more are dropped once in so many calls of `add`: looking for them reads the
#: whole table.
TIDY_EVERY = 1_000
_NOT_COUNTED = ", ".join(str(int(outcome)) for outcome in sorted(NOT_COUNTED))
_SERVED = ", ".join(str(int(outcome)) for outcome in sorted(SERVED))


@dataclass(frozen=True, slots=True)
class DatedRecord:
    """A record and when it ended (wall clock, seconds since 1970)."""

    ended_s: float
    record: PerformanceRecord


class PerformanceDatabase:
    """An open performance.db; `PerformanceDatabase.open(path)` makes one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Calls of `add` so far.
        self._added = 0

    @classmethod
    def open(cls, path: Path) -> PerformanceDatabase:
        """Open the file, making or migrating it. Raises CorruptFileError, ResourceError."""
        return cls(Database.open(path, MIGRATIONS, LOST_TEXT))

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._database.close()

    def add(self, records: Sequence[DatedRecord], now_s: float) -> None:
        """Keep `records`, in one transaction; drop what is too old at `now_s` or too many.

        Raises ResourceError, CorruptFileError.
        Features beyond `limits.PERFORMANCE_FEATURES_MAX` and texts beyond `limits.TEXT_CHARS_MAX` are a UsageError.
        """
        for each in records:
            _check(each.record)
        with self._database.transaction() as connection:
            names = {each.record.function for each in records}
            connection.executemany("INSERT OR IGNORE INTO functions (name, program) VALUES (?, ?)", sorted(names))
            peers = sorted({each.record.peer for each in records})
            connection.executemany("INSERT OR IGNORE INTO peers (peer) VALUES (?)", [(peer,) for peer in peers])
            connection.executemany(
                "INSERT INTO records "
                "(ended_s, function, peer, strategy, outcome, tasks, wall_s, queue_s, input_bytes, features) "
                "VALUES (?, (SELECT id FROM functions WHERE name = ? AND program = ?), "
                "(SELECT id FROM peers WHERE peer = ?), ?, ?, ?, ?, ?, ?, ?)",
                [_row(each) for each in records],
            )
            connection.execute("DELETE FROM records WHERE ended_s < ?", (now_s - limits.PERFORMANCE_AGE_MAX_S,))
            # Ids rise with every row, so this keeps the latest written; no count of the table is needed.
            connection.execute(
                "DELETE FROM records WHERE id <= (SELECT max(id) FROM records) - ?", (limits.PERFORMANCE_ROWS_MAX,)
            )
            if self._added % TIDY_EVERY == 0:
                connection.execute("DELETE FROM functions WHERE id NOT IN (SELECT function FROM records)")
                connection.execute("DELETE FROM peers WHERE id NOT IN (SELECT peer FROM records)")
        self._added += 1

    def recent(self, count: int, function: FunctionKey | None = None) -> list[DatedRecord]:
        """The last `count` records, oldest first, of `function` or of all: what a strategy learns from at a start."""
        where, values = _where(function, None)
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT ended_s, name, program, peers.peer, strategy, outcome, tasks, wall_s, queue_s, input_bytes, "
                "features FROM records JOIN functions ON functions.id = function JOIN peers ON peers.id = records.peer "
                f"WHERE {where} ORDER BY records.id DESC LIMIT ?",
                (*values, min(count, limits.PERFORMANCE_ROWS_READ_MAX)),
            ).fetchall()
        return [self._record(row) for row in reversed(rows)]

    def by_pair(self, now_s: float, window_s: float = limits.PERFORMANCE_WINDOW_S) -> list[PairSummary]:
        """Every function and peer with records in the window before `now_s`, by function and peer.

        Without percentiles.
        """
        with self._database.reading() as connection:
            # Grouped by numbers first, named afterwards: joining every row took three times as long.
            rows = connection.execute(
                f"WITH sums AS (SELECT function, peer, {_SUMS} FROM records WHERE ended_s > ? AND ended_s <= ? "
                "GROUP BY function, peer) SELECT name, program, peers.peer, sums.* FROM sums "
                "JOIN functions ON functions.id = function JOIN peers ON peers.id = sums.peer "
                "ORDER BY name, program, peers.peer",
                (now_s - window_s, now_s),
            ).fetchall()
        return [
            PairSummary(FunctionKey(str(name), ProgramId(program)), self._peer(peer), _summary(sums))
            for name, program, peer, _, _, *sums in rows
        ]

    def by_peer(self, now_s: float, window_s: float = limits.PERFORMANCE_WINDOW_S) -> list[tuple[PeerId, Summary]]:
        """Every peer with records in the window before `now_s`, by id; without percentiles."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"WITH sums AS (SELECT peer, {_SUMS} FROM records WHERE ended_s > ? AND ended_s <= ? GROUP BY peer) "
                "SELECT peers.peer, sums.* FROM sums JOIN peers ON peers.id = sums.peer ORDER BY peers.peer",
                (now_s - window_s, now_s),
            ).fetchall()
        return [(self._peer(peer), _summary(sums)) for peer, _, *sums in rows]

    def by_strategy(self, now_s: float, window_s: float = limits.PERFORMANCE_WINDOW_S) -> list[tuple[str, Summary]]:
        """Every strategy with records in the window before `now_s`, by name; without percentiles."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT strategy, {_SUMS} FROM records WHERE ended_s > ? AND ended_s <= ? "
                "GROUP BY strategy ORDER BY strategy",
                (now_s - window_s, now_s),
            ).fetchall()
        return [(str(strategy), _summary(sums)) for strategy, *sums in rows]

    def by_day(self, now_s: float, days: int, span_s: float = 86_400.0) -> list[DaySummary]:
        """The last `days` spans of `span_s` that end at `now_s`, oldest first; spans without records are left out."""
        start_s = now_s - days * span_s
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT CAST((ended_s - ?) / ? AS INTEGER) AS day, {_SUMS} FROM records "
                "WHERE ended_s > ? AND ended_s < ? GROUP BY day ORDER BY day",
                (start_s, span_s, start_s, now_s),
            ).fetchall()
        return [DaySummary(start_s + day * span_s, _summary(sums)) for day, *sums in rows]

    def summary(
        self,
        now_s: float,
        window_s: float = limits.PERFORMANCE_WINDOW_S,
        *,
        function: FunctionKey | None = None,
        peer: PeerId | None = None,
    ) -> Summary:
        """Of all records in the window before `now_s`, or those of a function, a peer, or both; with percentiles.

        Percentiles are of running times over tasks, nearest rank, of the latest `limits.PERFORMANCE_ROWS_READ_MAX`
        rows.
        """
        where, values = _where(function, peer)
        source = f"FROM records WHERE {where} AND ended_s > ? AND ended_s <= ?"
        window = (now_s - window_s, now_s)
        with self._database.reading() as connection:
            sums = connection.execute(f"SELECT {_SUMS} {source}", (*values, *window)).fetchone()
            times = connection.execute(
                f"SELECT wall_s, tasks {source} AND outcome IN ({_SERVED}) ORDER BY id DESC LIMIT ?",
                (*values, *window, limits.PERFORMANCE_ROWS_READ_MAX),
            ).fetchall()
        return _summary(sums, percentiles([(float(wall_s), int(tasks)) for wall_s, tasks in times], (50, 90, 99)))

    def _record(self, row: tuple[object, ...]) -> DatedRecord:
        ended_s, name, program, peer, strategy, outcome, tasks, wall_s, queue_s, input_bytes, features = row
        try:
            numbers = array.array("d")
            numbers.frombytes(bytes(features))  # type: ignore[call-overload]
            record = PerformanceRecord(
                FunctionKey(str(name), ProgramId(bytes(program))),  # type: ignore[call-overload]
                self._peer(peer),
                str(strategy),
                Outcome(int(outcome)),  # type: ignore[call-overload]
                float(wall_s),  # type: ignore[arg-type]
                float(queue_s),  # type: ignore[arg-type]
                int(tasks),  # type: ignore[call-overload]
                int(input_bytes),  # type: ignore[call-overload]
                tuple(numbers),
            )
            return DatedRecord(float(ended_s), record)  # type: ignore[arg-type]
        except (TypeError, ValueError, UsageError) as error:
            raise self._database.broken("a record cannot be read") from error

    def _peer(self, content: object) -> PeerId:
        if not isinstance(content, bytes) or len(content) != PEER_ID_BYTES:
            raise self._database.broken("an id of a peer has the wrong length")
        return PeerId(content)


def percentiles(times: Iterable[tuple[float, int]], wanted: Sequence[int]) -> tuple[float | None, ...]:
    """Percentiles by nearest rank of values given as (value, how often), in the order of `wanted` (1 to 100).

    None without values.
    """
    ordered = sorted(times)
    total = sum(count for _, count in ordered)
    if total == 0:
        return (None,) * len(wanted)
    found: list[float | None] = []
    for each in wanted:
        rank = -(-total * each // 100)
        seen = 0
        for value, count in ordered:
            seen += count
            if seen >= rank:
                found.append(value)
                break
    return tuple(found)


#: Sums of tasks (counted, served, succeeded) and of seconds over served tasks (running, queueing).
_SUMS = (
    f"total(CASE WHEN outcome NOT IN ({_NOT_COUNTED}) THEN tasks END), "
    f"total(CASE WHEN outcome IN ({_SERVED}) THEN tasks END), "
    f"total(CASE WHEN outcome = {int(Outcome.RETURNED)} THEN tasks END), "
    f"total(CASE WHEN outcome IN ({_SERVED}) THEN tasks * wall_s END), "
    f"total(CASE WHEN outcome IN ({_SERVED}) THEN tasks * queue_s END)"
)


def _summary(sums: Sequence[float], found: Sequence[float | None] = (None, None, None)) -> Summary:
    counted, served, succeeded = (int(each) for each in sums[:3])
    wall_s, queue_s = sums[3], sums[4]
    mean_s = wall_s / served if served else None
    response_s = (wall_s + queue_s) / served if served else None
    return Summary(counted, served, succeeded, mean_s, response_s, *found)


def _where(function: FunctionKey | None, peer: PeerId | None) -> tuple[str, tuple[object, ...]]:
    parts: list[str] = ["1"]
    values: list[object] = []
    if function is not None:
        parts.append("records.function = (SELECT id FROM functions WHERE name = ? AND program = ?)")
        values += [function.name, function.program]
    if peer is not None:
        parts.append("records.peer = (SELECT id FROM peers WHERE peer = ?)")
        values.append(peer)
    return " AND ".join(parts), tuple(values)


def _row(each: DatedRecord) -> tuple[object, ...]:
    record = each.record
    return (
        each.ended_s,
        record.function.name,
        record.function.program,
        record.peer,
        record.strategy,
        int(record.outcome),
        record.tasks,
        record.wall_s,
        record.queue_s,
        record.input_bytes,
        array.array("d", record.features).tobytes(),
    )


def _check(record: PerformanceRecord) -> None:
    if len(record.features) > limits.PERFORMANCE_FEATURES_MAX:
        raise UsageError(
            f"a record with {len(record.features)} features: at most {limits.PERFORMANCE_FEATURES_MAX} are kept"
        )
    for text in (record.function.name, record.strategy):
        if len(text) > limits.TEXT_CHARS_MAX:
            raise UsageError(f"{text[:40]!r}… has {len(text)} characters: at most {limits.TEXT_CHARS_MAX} are kept")
