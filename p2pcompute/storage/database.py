"""One SQLite file of a peer: opened, migrated, checked, locked, and its errors mapped.

Write-ahead log, so that a crash loses at most the last transaction; the format's number stands in `user_version` and
migrates forward, one step a version. A file that is broken, or that a newer release wrote, is a CorruptFileError and is
never overwritten.

Refuses to know what is in it. All calls block for a disk write at most; one thread at a time (a lock).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from p2pcompute.model.errors import CorruptFileError, ResourceError

#: Seconds to wait for another process that has the file open, such as a backup or a curious `sqlite3` shell.
BUSY_TIMEOUT_S = 5.0

#: Statements that bring a file of version n to version n + 1, for each n from 0.
Migrations = Sequence[Sequence[str]]


class Database:
    """An open file; `Database.open(path, migrations, lost)` makes one. `lost`: what goes with the file where it is given up."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lost: str) -> None:
        #: Where the file is, for messages.
        self.path = path
        #: What a person loses who moves the file away, as a half-sentence for messages.
        self._lost = lost
        self._connection = connection
        #: Held around every use of the connection: calls come from off-load threads.
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, migrations: Migrations, lost: str) -> Database:
        """Open the file, making or migrating it. Raises CorruptFileError, ResourceError."""
        try:
            # Made here rather than by SQLite, so that it is never readable by others, not even for a moment; the
            # files of its log take over these rights.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise ResourceError(f"cannot open {path}: {error.strerror}") from error
        with _mapped(path, lost):
            connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None)
        database = cls(path, connection, lost)
        try:
            with _mapped(path, lost):
                database._prepare(migrations)
        except BaseException:
            connection.close()
            raise
        return database

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for statements that change nothing."""
        with self._lock, _mapped(self.path, self._lost):
            yield self._connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, within a transaction that is committed at the end and rolled back by an exception."""
        with self._lock, _mapped(self.path, self._lost):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def broken(self, why: str) -> CorruptFileError:
        """The error to be raised where a row cannot be read."""
        return _broken(self.path, why, self._lost)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    def _prepare(self, migrations: Migrations) -> None:
        connection = self._connection
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        # NORMAL: a power cut may lose the last transactions, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        checked = connection.execute("PRAGMA quick_check(1)").fetchone()
        if checked is None or checked[0] != "ok":
            raise self.broken(str(checked[0]) if checked else "it cannot be checked")
        connection.execute("BEGIN IMMEDIATE")  # two processes must not migrate at once
        try:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version > len(migrations):
                raise CorruptFileError(
                    f"{self.path} was written by a newer release (format {version}, this one knows {len(migrations)}): "
                    "upgrade p2pcompute, or move the file away to begin a new one"
                )
            for step in migrations[version:]:
                for statement in step:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(migrations)}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


@contextlib.contextmanager
def _mapped(path: Path, lost: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise ResourceError(f"cannot use {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _broken(path, str(error), lost) from error


def _broken(path: Path, why: str, lost: str) -> CorruptFileError:
    return CorruptFileError(f"{path} is damaged ({why}) and was left as it is: move it away to begin a new one; {lost}")
