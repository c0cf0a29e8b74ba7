"""peer.db: remembers, orders, survives, and is never overwritten when it cannot be read."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import CorruptFileError, ResourceError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach, Relay
from p2pcompute.storage import peer_database
from p2pcompute.storage.peer_database import PeerDatabase, RememberedPeer


def peer(number: int, last_seen_s: float, *hosts: str) -> RememberedPeer:
    addresses = tuple(Address(host, 9876) for host in hosts or ("10.0.0.1",))
    return RememberedPeer(PeerId(number.to_bytes(32, "big")), addresses, last_seen_s)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[PeerDatabase]:
    opened = PeerDatabase.open(tmp_path / "peer.db")
    yield opened
    opened.close()


def test_incarnations_rise_even_where_the_clock_goes_back(database: PeerDatabase) -> None:
    assert database.incarnation_next(1_000) == 1_000
    assert database.incarnation_next(1_000) == 1_001
    assert database.incarnation_next(10) == 1_002
    assert database.incarnation_next(5_000) == 5_000


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "peer.db"
    first = PeerDatabase.open(path)
    first.incarnation_next(500)
    first.put("port", b"9881")
    first.put("port", b"9882")
    first.remember([peer(1, 10.0, "10.0.0.1", "fd00::1")])
    first.close()
    first.close()
    second = PeerDatabase.open(path)
    assert second.incarnation_next(0) == 501
    assert second.get("port") == b"9882"
    assert second.get("missing") is None
    assert second.remembered() == [peer(1, 10.0, "10.0.0.1", "fd00::1")]
    second.close()


def test_peers_come_last_seen_first_and_an_older_sighting_changes_nothing(database: PeerDatabase) -> None:
    database.remember([peer(1, 10.0), peer(2, 30.0), peer(3, 20.0)])
    database.remember([peer(2, 5.0, "10.9.9.9"), peer(1, 40.0, "10.0.0.7")])
    assert database.remembered() == [peer(1, 40.0, "10.0.0.7"), peer(2, 30.0), peer(3, 20.0)]
    database.forget([peer(2, 0.0).peer])
    assert [found.peer for found in database.remembered()] == [peer(1, 0).peer, peer(3, 0).peer]


def test_beyond_the_limit_those_unseen_longest_are_forgotten(
    database: PeerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PEERS_MAX", 3)
    database.remember(peer(number, float(number)) for number in range(1, 6))
    assert [found.last_seen_s for found in database.remembered()] == [5.0, 4.0, 3.0]


def test_the_file_is_private(database: PeerDatabase, tmp_path: Path) -> None:
    database.put("key", b"value")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert "peer.db" in modes
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize(
    "content", [b"this is no database, but it is long enough to look at" * 20, b"SQLite format 3\0" + b"\xff" * 4_080]
)
def test_a_broken_file_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peer.db"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"peer\.db is damaged.*left as it is"):
        PeerDatabase.open(path)
    assert path.read_bytes() == content


def test_damage_inside_is_found(tmp_path: Path) -> None:
    path = tmp_path / "peer.db"
    database = PeerDatabase.open(path)
    database.remember(peer(number, 1.0) for number in range(1, 500))
    database.close()
    content = bytearray(path.read_bytes())
    content[8_192:16_384] = b"\xa5" * 8_192
    path.write_bytes(content)
    with pytest.raises(CorruptFileError):
        PeerDatabase.open(path).remembered()
    assert path.read_bytes() == bytes(content)


def test_an_entry_that_makes_no_sense_is_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "peer.db"
    PeerDatabase.open(path).close()
    raw = sqlite3.connect(path)
    raw.execute("INSERT INTO peers (peer, addresses, last_seen_s) VALUES (?, ?, ?)", (b"short", b"\xc1", 1.0))
    raw.commit()
    raw.close()
    database = PeerDatabase.open(path)
    with pytest.raises(CorruptFileError, match="table of peers"):
        database.remembered()
    database.close()


def test_a_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peer.db"
    PeerDatabase.open(path).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(CorruptFileError, match="newer release"):
        PeerDatabase.open(path)
    assert path.read_bytes() == before


def test_older_files_migrate_step_by_step_and_keep_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "peer.db"
    old = PeerDatabase.open(path)
    old.put("port", b"9876")
    old.close()
    further = ('ALTER TABLE peers ADD COLUMN note TEXT NOT NULL DEFAULT ""',)
    monkeypatch.setattr(peer_database, "MIGRATIONS", (*peer_database.MIGRATIONS, further))
    new = PeerDatabase.open(path)
    assert new.get("port") == b"9876"
    new.close()
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA user_version").fetchone() == (len(peer_database.MIGRATIONS),)
    raw.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "peer.db"
    old = PeerDatabase.open(path)
    old.put("port", b"9876")
    old.close()
    good = peer_database.MIGRATIONS
    monkeypatch.setattr(peer_database, "MIGRATIONS", (*good, ("CREATE TABLE extra (x)", "no such statement")))
    with pytest.raises(ResourceError):
        PeerDatabase.open(path)
    monkeypatch.setattr(peer_database, "MIGRATIONS", good)
    again = PeerDatabase.open(path)
    assert again.get("port") == b"9876"
    again.close()


def test_a_path_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot open"):
        PeerDatabase.open(tmp_path / "missing" / "peer.db")


# --- what is remembered of a peer -------------------------------------------------------------------------------------

ANNA = PeerId(b"a" * 32)


def test_how_long_and_how_often_a_peer_was_seen(database: PeerDatabase) -> None:
    for moment in (100.0, 130.0, 160.0, 20.0):
        database.remember([peer(1, moment)])
    (found,) = database.remembered()
    assert (found.first_seen_s, found.last_seen_s, found.times_seen) == (100.0, 160.0, 3)


def test_relays_and_reach_are_those_of_the_last_sighting(database: PeerDatabase) -> None:
    relays = (Relay(ANNA, Address("203.0.113.7", 9876)), Relay(ANNA, Address("fd00::7", 9877)))
    database.remember([RememberedPeer(ANNA, (), 1.0, relays, Reach.PRIVATE)])
    (found,) = database.remembered()
    assert found.relays == relays
    assert found.reach is Reach.PRIVATE
    database.remember([RememberedPeer(ANNA, (Address("10.0.0.1", 1),), 2.0)])
    (found,) = database.remembered()
    assert (found.relays, found.reach) == ((), Reach.UNKNOWN)


def test_a_reach_of_a_later_release_is_unknown(tmp_path: Path, database: PeerDatabase) -> None:
    database.remember([peer(1, 1.0)])
    raw = sqlite3.connect(tmp_path / "peer.db")
    raw.execute("UPDATE peers SET reach = 'by pigeon'")
    raw.commit()
    raw.close()
    assert database.remembered()[0].reach is Reach.UNKNOWN


def test_anchors_are_exactly_those_that_were_chosen_last(database: PeerDatabase) -> None:
    database.remember(peer(number, float(number)) for number in range(1, 6))
    ids = [peer(number, 0).peer for number in range(6)]
    database.choose_anchors([ids[1], ids[2], ids[0]])
    database.choose_anchors([ids[2], ids[3]])
    database.remember([peer(2, 50.0)])
    assert [found.peer for found in database.remembered() if found.is_anchor] == [ids[2], ids[3]]


def test_anchors_are_not_forgotten_for_others(database: PeerDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEERS_MAX", 3)
    database.remember([peer(1, 1.0)])
    database.choose_anchors([peer(1, 0).peer])
    database.remember(peer(number, float(number)) for number in range(2, 9))
    assert [found.last_seen_s for found in database.remembered()] == [8.0, 7.0, 1.0]


def test_contacts_of_the_dht_are_kept_for_the_next_run(tmp_path: Path, database: PeerDatabase) -> None:
    assert database.dht_anchors() == ()
    contacts = ((ANNA, Address("203.0.113.7", 9876)), (PeerId(b"b" * 32), Address("fd00::7", 9877)))
    database.put_dht_anchors(contacts)
    database.close()
    again = PeerDatabase.open(tmp_path / "peer.db")
    assert again.dht_anchors() == contacts
    again.put_dht_anchors(())
    assert again.dht_anchors() == ()
    again.close()


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x91\x01", b"\x91\x93\xc4\x01a\xa1h\x01"])
def test_contacts_that_make_no_sense_are_a_damaged_file(database: PeerDatabase, content: bytes) -> None:
    database.put("dht anchors", content)
    with pytest.raises(CorruptFileError, match="contacts of the DHT"):
        database.dht_anchors()


#: What release 0.1.0 wrote when it made a file: its statements, letter by letter.
VERSION_1 = """
CREATE TABLE peers (peer BLOB PRIMARY KEY, addresses BLOB NOT NULL, last_seen_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX peers_by_last_seen ON peers (last_seen_s);
CREATE TABLE "values" (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


def test_a_file_of_version_1_migrates_with_all_that_is_in_it(tmp_path: Path) -> None:
    """tests/upgrade does the same with a file that the old release itself has written."""
    path = tmp_path / "peer.db"
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.executescript(VERSION_1)
    rows = [(number.to_bytes(32, "big"), b"\x91\x92\xa810.0.0.1\xcd\x26\x94", 10.0 * number) for number in (1, 2)]
    raw.executemany("INSERT INTO peers VALUES (?, ?, ?)", rows)
    raw.execute('INSERT INTO "values" VALUES (?, ?)', ("incarnation", (5_000).to_bytes(8, "big")))
    raw.commit()
    raw.close()
    database = PeerDatabase.open(path)
    assert database.remembered() == [peer(2, 20.0), peer(1, 10.0)]
    assert [(found.first_seen_s, found.times_seen, found.is_anchor) for found in database.remembered()] == [
        (20.0, 1, False),
        (10.0, 1, False),
    ]
    assert database.incarnation_next(0) == 5_001
    database.remember([peer(1, 30.0)])
    database.choose_anchors([peer(1, 0).peer])
    database.close()
    again = PeerDatabase.open(path)
    assert (again.remembered()[0].times_seen, again.remembered()[0].is_anchor) == (2, True)
    again.close()
