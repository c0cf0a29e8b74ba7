"""peer.db: what one peer remembers between two starts.

Owns one SQLite file: the peers it met (id, addresses, relays, when and how often seen, which of them are anchors) and a few
named values (its incarnation, last port, the revocation list, renewals, contacts of the DHT). How the file is opened, migrated and kept is
`database.py`'s. A power cut may lose the last transactions; incarnations then fall back on the clock.

Refuses to know what the named values mean. All calls block for a disk write at most; one thread at a time.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import PEER_ID_BYTES, PeerId
from p2pcompute.model.peer import Address, Reach, Relay
from p2pcompute.storage.database import Database
from p2pcompute.wire.codec import pack, unpack

#: What a person loses who moves the file away.
_LOST = "remembered peers are lost with it, keys and membership are not"
#: MIGRATIONS[n] brings a file of version n to version n + 1.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE peers (peer BLOB PRIMARY KEY, addresses BLOB NOT NULL, last_seen_s REAL NOT NULL) WITHOUT ROWID",
        "CREATE INDEX peers_by_last_seen ON peers (last_seen_s)",
        'CREATE TABLE "values" (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID',
    ),
    (
        # x'90' is the empty list of msgpack.
        "ALTER TABLE peers ADD COLUMN relays BLOB NOT NULL DEFAULT x'90'",
        "ALTER TABLE peers ADD COLUMN reach TEXT NOT NULL DEFAULT 'unknown'",
        "ALTER TABLE peers ADD COLUMN first_seen_s REAL NOT NULL DEFAULT 0.0",
        "ALTER TABLE peers ADD COLUMN times_seen INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE peers ADD COLUMN is_anchor INTEGER NOT NULL DEFAULT 0",
        # Of what was remembered so far only the last sighting is known.
        "UPDATE peers SET first_seen_s = last_seen_s",
    ),
)
_INCARNATION = "incarnation"
_DHT_ANCHORS = "dht anchors"


@dataclass(frozen=True, slots=True)
class RememberedPeer:
    """A peer that was met: where it could be reached, and when it was last seen (wall clock, seconds since 1970).

    The last three fields are the database's own account of it: `remember` takes no notice of them, and two peers are equal
    without them. A sighting is one call of `remember` with it.
    """

    peer: PeerId
    addresses: tuple[Address, ...]
    last_seen_s: float
    relays: tuple[Relay, ...] = ()
    reach: Reach = Reach.UNKNOWN
    first_seen_s: float = field(default=0.0, compare=False)
    times_seen: int = field(default=1, compare=False)
    is_anchor: bool = field(default=False, compare=False)


def incarnation_after(last: int, now_ms: int) -> int:
    """The incarnation of a life that begins at `now_ms`, the one before being `last` (-1 for none): the later of `now_ms` and `last` + 1.

    But where `last` is further ahead than others take (`limits.INCARNATION_AHEAD_MAX_S`) a clock was wrong then, and what it left would keep
    this peer out for as long as it was ahead: `now_ms` counts. Whoever remembers the other life says so, and it is outranked.
    """
    if last > now_ms + limits.INCARNATION_AHEAD_MAX_S * 1000:
        return now_ms
    return max(now_ms, last + 1)


class PeerDatabase:
    """An open peer.db; `PeerDatabase.open(path)` makes one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Where the file is, for messages.
        self.path = database.path

    @classmethod
    def open(cls, path: Path) -> PeerDatabase:
        """Open the file, making or migrating it. Raises CorruptFileError, ResourceError."""
        return cls(Database.open(path, MIGRATIONS, _LOST))

    def incarnation_next(self, now_ms: int) -> int:
        """The number of a new life, see `incarnation_after`; `now_ms`: of the wall clock, or the least to be reached."""
        with self._database.transaction() as connection:
            row = connection.execute('SELECT content FROM "values" WHERE name = ?', (_INCARNATION,)).fetchone()
            last = int.from_bytes(row[0], "big") if row is not None else -1
            incarnation = incarnation_after(last, now_ms)
            _put(connection, _INCARNATION, incarnation.to_bytes(8, "big"))
        return incarnation

    def remember(self, peers: Iterable[RememberedPeer]) -> None:
        """Add or renew `peers` in one transaction, each seen once more; an older sighting than the last changes nothing.

        Beyond `limits.PEERS_MAX` those unseen longest are forgotten, anchors never.
        """
        rows = [
            (
                peer.peer,
                _pack_addresses(peer.addresses),
                peer.last_seen_s,
                pack([[relay.peer, relay.address.host, relay.address.port] for relay in peer.relays]),
                peer.reach.value,
                peer.last_seen_s,
            )
            for peer in peers
        ]
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO peers (peer, addresses, last_seen_s, relays, reach, first_seen_s) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (peer) DO UPDATE SET addresses = excluded.addresses, relays = excluded.relays, "
                "reach = excluded.reach, last_seen_s = excluded.last_seen_s, times_seen = times_seen + 1 "
                "WHERE excluded.last_seen_s >= last_seen_s",
                rows,
            )
            connection.execute(
                "DELETE FROM peers WHERE peer IN "
                "(SELECT peer FROM peers ORDER BY is_anchor DESC, last_seen_s DESC LIMIT -1 OFFSET ?)",
                (limits.PEERS_MAX,),
            )

    def choose_anchors(self, peers: Iterable[PeerId]) -> None:
        """`peers` are the anchors from now on, and no others; one that is not remembered is passed over."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE peers SET is_anchor = 0 WHERE is_anchor != 0")
            connection.executemany("UPDATE peers SET is_anchor = 1 WHERE peer = ?", [(peer,) for peer in peers])

    def forget(self, peers: Iterable[PeerId]) -> None:
        """Drop `peers`, such as revoked ones."""
        with self._database.transaction() as connection:
            connection.executemany("DELETE FROM peers WHERE peer = ?", [(peer,) for peer in peers])

    def remembered(self) -> list[RememberedPeer]:
        """Every remembered peer, the last seen first, ties by id. Raises CorruptFileError."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT peer, addresses, last_seen_s, relays, reach, first_seen_s, times_seen, is_anchor FROM peers "
                "ORDER BY last_seen_s DESC, peer"
            ).fetchall()
        return [self._peer_of(row) for row in rows]

    def dht_anchors(self) -> tuple[tuple[PeerId, Address], ...]:
        """The contacts of the DHT that the last run left. Raises CorruptFileError."""
        content = self.get(_DHT_ANCHORS)
        if content is None:
            return ()
        with self._readable("the contacts of the DHT"):
            return tuple((_peer_id(peer), Address(str(host), int(port))) for peer, host, port in unpack(content))

    def put_dht_anchors(self, contacts: Iterable[tuple[PeerId, Address]]) -> None:
        """Keep `contacts` for the next run, in place of those before."""
        self.put(_DHT_ANCHORS, pack([[peer, address.host, address.port] for peer, address in contacts]))

    def get(self, key: str) -> bytes | None:
        """The value called `key`, or None."""
        with self._database.reading() as connection:
            row = connection.execute('SELECT content FROM "values" WHERE name = ?', (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, key: str, content: bytes) -> None:
        """Set the value called `key`; on disk when this returns."""
        with self._database.transaction() as connection:
            _put(connection, key, content)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._database.close()

    def _peer_of(self, row: tuple[bytes, bytes, float, bytes, str, float, int, int]) -> RememberedPeer:
        peer, addresses, last_seen_s, relays, reach, first_seen_s, times_seen, is_anchor = row
        with self._readable("an entry of the table of peers"):
            return RememberedPeer(
                _peer_id(peer),
                tuple(Address(str(host), int(port)) for host, port in unpack(addresses)),
                float(last_seen_s),
                tuple(Relay(_peer_id(whom), Address(str(host), int(port))) for whom, host, port in unpack(relays)),
                # What a later release may have found out says nothing to this one.
                Reach(reach) if reach in set(Reach) else Reach.UNKNOWN,
                float(first_seen_s),
                int(times_seen),
                bool(is_anchor),
            )

    @contextlib.contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ProtocolError, TypeError, ValueError, msgpack.UnpackException) as error:
            raise self._database.broken(f"{what} cannot be read") from error


def _pack_addresses(addresses: Iterable[Address]) -> bytes:
    return pack([[address.host, address.port] for address in addresses])


def _peer_id(content: object) -> PeerId:
    if not isinstance(content, bytes) or len(content) != PEER_ID_BYTES:
        raise ValueError("an id of the wrong length")
    return PeerId(content)


def _put(connection: sqlite3.Connection, key: str, content: bytes) -> None:
    connection.execute(
        'INSERT INTO "values" VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET content = excluded.content', (key, content)
    )
