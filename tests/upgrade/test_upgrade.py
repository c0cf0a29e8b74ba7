"""Peers of the previous release and of this tree in one network: they see each other, work for each other, and are upgraded."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from p2pcompute.storage.peer_database import MIGRATIONS, PeerDatabase
from p2pcompute.wire import versions
from p2pcompute.wire.record import CONTEXT, open_record
from tests.support.membership import FakeKey, fake_verify, make_record
from tests.support.peers import until_now
from tests.upgrade.previous import CURRENT, Member, Release, all_listed, members, unpack_previous

#: Many short programs one after the other, on a machine that may run other tests beside.
pytestmark = pytest.mark.timeout(400)

PROGRAM = """
import time

def square(x):
    time.sleep(0.03)
    return x * x
"""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return unpack_previous(tmp_path_factory.mktemp("previous"))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "squares.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def four(tmp_path: Path, previous: Release) -> Iterator[list[Member]]:
    """Two of each release, all up, in one network that one of the previous release has made."""
    wanted = (("anna", previous), ("ben", CURRENT), ("cleo", previous), ("dora", CURRENT))
    with members(tmp_path / "homes", *wanted) as made:
        for member in made:
            member.start()
        all_listed(made)
        yield made


def squares_work(member: Member, program: Path, helpers: set[str]) -> None:
    """A job that `member` submits succeeds, and each of `helpers` does some of it."""

    def helped() -> bool:
        # Which peers a short job meets depends on how busy this machine is; its answer does not.
        assert member.map(program, "square", *range(60)) == [x * x for x in range(60)]
        return helpers <= member.helpers

    until_now(helped, f"{sorted(helpers)} work for {member.name} ({member.release.name})", 60.0)


def database_of(member: Member) -> Path:
    (path,) = member.machine.home.rglob("peer.db")
    return path


def database_version(path: Path) -> int:
    raw = sqlite3.connect(path)
    try:
        return int(raw.execute("PRAGMA user_version").fetchone()[0])
    finally:
        raw.close()


# --- the wheel itself -------------------------------------------------------------------------------------------------

_WHO = """
import p2pcompute
from p2pcompute.wire import versions
print(p2pcompute.__file__, versions.PROTOCOL)
"""


def test_what_runs_as_the_previous_release_is_that_release(previous: Release) -> None:
    where, protocol = previous.run_python(_WHO).split()
    assert Path(where).is_relative_to(previous.folder)
    assert versions.PROTOCOL_OLDEST <= int(protocol) <= versions.PROTOCOL
    where, protocol = CURRENT.run_python(_WHO).split()
    assert Path(where).is_relative_to(CURRENT.folder)
    assert int(protocol) == versions.PROTOCOL


# --- one network ------------------------------------------------------------------------------------------------------


def test_old_and_new_peers_list_each_other_and_work_for_each_other(four: list[Member], program: Path) -> None:
    anna, ben, cleo, dora = four
    for member in four:
        assert set(member.others) == {other.name for other in four} - {member.name}
    squares_work(anna, program, {"ben", "dora"})
    squares_work(ben, program, {"anna", "cleo"})
    squares_work(cleo, program, {"dora"})
    squares_work(dora, program, {"cleo"})


@pytest.mark.parametrize("victim", ["cleo", "dora"])
def test_peers_of_both_releases_notice_that_one_was_killed(four: list[Member], program: Path, victim: str) -> None:
    (gone,) = [member for member in four if member.name == victim]
    left = [member for member in four if member is not gone]
    gone.kill()
    for member in left:
        until_now(
            lambda member=member: victim not in member.alive_names,  # type: ignore[misc]
            f"{member.name} ({member.release.name}) notices that {victim} ({gone.release.name}) is dead",
            90.0,
            step_s=0.3,
        )
    all_listed(left)
    squares_work(left[0], program, {left[1].name})


@pytest.mark.slow
def test_a_network_is_upgraded_peer_by_peer(tmp_path: Path, previous: Release, program: Path) -> None:
    """Each peer keeps its data folder, and with it who it is and whom it remembers; jobs work at every step."""
    wanted = [(name, previous) for name in ("anna", "ben", "cleo", "dora")]
    with members(tmp_path / "homes", *wanted) as made:
        for member in made:
            member.start()
        all_listed(made)
        for number, member in enumerate(made):
            path = database_of(member)
            before = member.own
            assert database_version(path) == 1
            member.stop()
            remembered = rows_of(path)
            assert remembered, "the previous release wrote down nobody: the migration of nothing shows nothing"
            member.upgrade(CURRENT)
            after = member.own
            assert after["peer"] == before["peer"], "the upgraded peer is somebody else"
            assert database_version(path) == len(MIGRATIONS)
            assert {peer for peer, _ in remembered} <= {peer for peer, _ in rows_of(path)}
            all_listed(made)
            old, new = made[-1], made[0]
            squares_work(old, program, {new.name})
            squares_work(new, program, {made[(number + 1) % len(made)].name} - {new.name})
        assert {member.release for member in made} == {CURRENT}


def rows_of(path: Path) -> list[tuple[bytes, float]]:
    raw = sqlite3.connect(path)
    try:
        return [(bytes(peer), seen) for peer, seen in raw.execute("SELECT peer, last_seen_s FROM peers")]
    finally:
        raw.close()


# --- what lies on disk and what travels -------------------------------------------------------------------------------

_WRITE = """
import sys
from pathlib import Path
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.storage.peer_database import PeerDatabase, RememberedPeer
database = PeerDatabase.open(Path(sys.argv[1]))
database.remember(
    RememberedPeer(PeerId(bytes([number]) * 32), (Address("10.0.0.1", number), Address("fd00::1", 9876)), 100.0 * number)
    for number in range(1, 6)
)
database.put("port", b"9876")
print(database.incarnation_next(1_000))
database.close()
"""


def test_a_database_that_the_previous_release_wrote_is_migrated(tmp_path: Path, previous: Release) -> None:
    path = tmp_path / "peer.db"
    assert previous.run_python(_WRITE, str(path)).split() == ["1000"]
    assert database_version(path) == 1
    database = PeerDatabase.open(path)
    found = database.remembered()
    assert [(peer.peer[0], peer.last_seen_s, peer.first_seen_s) for peer in found] == [
        (number, 100.0 * number, 100.0 * number) for number in range(5, 0, -1)
    ]
    assert [str(address) for address in found[0].addresses] == ["10.0.0.1:5", "[fd00::1]:9876"]
    assert database.get("port") == b"9876"
    assert database.incarnation_next(0) == 1_001
    database.close()
    assert database_version(path) == len(MIGRATIONS)


_PASS_ON = """
import hashlib, random, sys
from p2pcompute.membership import book
from p2pcompute.model.ids import peer_id_of
from p2pcompute.wire.record import open_record

def verify(key, context, data, signature):
    return hashlib.sha512(key + context + data).digest() == signature

own, far, near = (bytes.fromhex(each) for each in sys.argv[1:4])
machine = book.PeerBook(open_record(own, verify), verify, random.Random(1))
ids = [open_record(wire, verify).record.peer for wire in (far, near)]
said = []
said += machine.handle(book.LinkOpened(ids[1], near, 0.01, b""), 1.0)
said += machine.handle(book.LinkOpened(ids[0], far, 0.01, b""), 2.0)
at = machine.deadline()
said += machine.handle(book.Tick(), at if at is not None else 3.0)
for effect in said:
    if isinstance(effect, book.SendRecords) and ids[1] in effect.to:
        for wire in effect.wires:
            print(wire.hex())
"""


def test_a_record_with_fields_of_a_later_release_passes_through_a_peer_of_the_previous_one(previous: Release) -> None:
    own, far, near = FakeKey("own"), FakeKey("far"), FakeKey("near")
    plain = make_record(far, incarnation=1_700_000_000_000)
    _, public_key, body, _ = msgpack.unpackb(plain.wire)
    fields = msgpack.unpackb(body)
    later = {"shoe size": 43, "nested": {"of": [1, b"bytes", None]}}
    body = msgpack.packb({**fields, **later}, use_bin_type=True)
    signature = far.sign(CONTEXT + bytes([versions.RECORD]), body)
    wire = msgpack.packb([versions.RECORD, public_key, body, signature], use_bin_type=True)
    others = [make_record(key, incarnation=1_700_000_000_000).wire for key in (own, near)]
    passed = previous.run_python(_PASS_ON, others[0].hex(), wire.hex(), others[1].hex()).split()
    assert wire.hex() in passed, "it was not passed on, or not as it came"
    record = open_record(bytes.fromhex(passed[passed.index(wire.hex())]), fake_verify).record
    assert {name: record.unknown[name] for name in later} == later
