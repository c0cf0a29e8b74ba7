"""Data behind handles: held for who put it, brought for an origin's tasks, and never given to another origin's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcompute.model.errors import BlobMissingError
from p2pcompute.model.ids import BlobId, PeerId, borrower_id_of
from p2pcompute.model.peer import Role
from p2pcompute.node.channels import connect_locally
from p2pcompute.node.handles import Handles, handles_label
from p2pcompute.storage.blobs import BlobStore, blob_id_of
from p2pcompute.wire.messages import Message

DATA = b"a table" * 100
BLOB = blob_id_of(DATA)


class Origin:
    """A channel to a peer that holds some blobs."""

    is_local = False
    rtt_s = 0.0
    roles = frozenset(Role)
    invitation = None

    def __init__(self, number: int, *blobs: bytes) -> None:
        self.peer = PeerId(bytes([number]) * 32)
        self.blobs = {blob_id_of(data): data for data in blobs}
        self.asked: list[BlobId] = []

    def send(self, message: Message) -> None:
        raise AssertionError(f"nobody should say {message}")

    async def fetch(self, blob: BlobId, bytes_max: int) -> bytes:
        self.asked.append(blob)
        if blob not in self.blobs:
            raise BlobMissingError("not held by this origin")
        return self.blobs[blob]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    found = BlobStore(tmp_path / "blobs")
    yield found
    found.close()


def fetch(handles: Handles, origin: Origin, keep: bool = True) -> bytes:
    return bytes(asyncio.run(handles.fetch(origin, origin.peer, BLOB, len(DATA), lambda: keep)))


def test_what_an_origin_put_is_fetched_from_it_once(store: BlobStore) -> None:
    handles, origin = Handles(store), Origin(1, DATA)
    assert fetch(handles, origin) == DATA
    assert fetch(handles, origin) == DATA
    assert origin.asked == [BLOB]
    handles.forget(origin.peer)
    assert not store.has(BLOB)


def test_what_arrives_after_the_last_job_is_not_kept(store: BlobStore) -> None:
    assert fetch(Handles(store), Origin(1, DATA), keep=False) == DATA
    assert store.bytes_held == 0


def test_an_origin_does_not_get_what_is_here_for_another(store: BlobStore) -> None:
    handles, owner, stranger = Handles(store), Origin(1, DATA), Origin(2)
    handles.put(DATA)
    assert fetch(handles, owner) == DATA
    with pytest.raises(BlobMissingError, match="not held by this origin"):
        fetch(handles, stranger)
    assert stranger.asked == [BLOB]


def test_forgetting_one_origin_leaves_what_others_need(store: BlobStore) -> None:
    handles, first, second = Handles(store), Origin(1, DATA), Origin(2, DATA)
    fetch(handles, first)
    fetch(handles, second)
    handles.forget(first.peer)
    assert fetch(handles, second) == DATA
    assert second.asked == [BLOB]


def test_a_full_store_does_not_stop_a_task(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", memory_bytes_max=10, disk_bytes_max=10)
    handles, origin = Handles(store), Origin(1, DATA)
    assert fetch(handles, origin) == DATA
    assert fetch(handles, origin) == DATA
    assert len(origin.asked) == 2
    store.close()


def test_tasks_of_this_peer_get_what_was_put_here_and_nothing_else(store: BlobStore) -> None:
    handles = Handles(store)
    _, to_origin = connect_locally(PeerId(bytes(32)), store)
    store.put(DATA, "the result of somebody else's task")

    async def ask() -> bytes:
        return bytes(await handles.fetch(to_origin, to_origin.peer, BLOB, len(DATA), lambda: True))

    with pytest.raises(BlobMissingError, match="never put here, or was dropped"):
        asyncio.run(ask())
    handle = handles.put(DATA)
    assert asyncio.run(ask()) == DATA
    handles.put(DATA, BLOB)
    handles.drop(handle)
    assert asyncio.run(ask()) == DATA, "the second of two puts was dropped with the first"
    handles.drop(handle)
    handles.drop(handle)
    with pytest.raises(BlobMissingError):
        asyncio.run(ask())
    assert store.has(BLOB)


def test_tasks_that_this_peer_coordinates_get_nothing_of_its_own(store: BlobStore) -> None:
    handles = Handles(store)
    _, to_origin = connect_locally(PeerId(bytes(32)), store)
    borrower = borrower_id_of(PeerId(b"o" * 32), to_origin.peer)
    handles.put(DATA)

    async def ask() -> bytes:
        return bytes(await handles.fetch(to_origin, borrower, BLOB, len(DATA), lambda: True))

    with pytest.raises(BlobMissingError):
        asyncio.run(ask())
    store.put(DATA, handles_label(borrower), BLOB)
    assert asyncio.run(ask()) == DATA, "what was brought here for them"
    handles.forget(borrower)
    with pytest.raises(BlobMissingError):
        asyncio.run(ask())


def test_one_coordinators_origins_do_not_read_each_others_data(store: BlobStore) -> None:
    handles, coordinator = Handles(store), Origin(1, DATA)
    first, second = (borrower_id_of(PeerId(name * 32), coordinator.peer) for name in (b"a", b"b"))

    def ask(borrower: PeerId) -> bytes:
        return bytes(asyncio.run(handles.fetch(coordinator, borrower, BLOB, len(DATA), lambda: True)))

    assert ask(first) == DATA
    coordinator.blobs.clear()
    assert ask(first) == DATA, "it is kept for who asked"
    with pytest.raises(BlobMissingError):
        ask(second)
