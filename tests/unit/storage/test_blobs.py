"""Blobs: held, spilled, released, refused, and never handed out changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute.model.errors import BusyError, CorruptFileError
from p2pcompute.storage.blobs import BlobStore, blob_id_of


def test_a_blob_lives_until_its_last_hold_is_released(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    blob = store.put(b"data", "a")
    assert blob == blob_id_of(b"data")
    assert store.put(b"data", "b") == blob
    assert store.hold(blob, "a")
    store.release(blob, "a")
    store.release(blob, "b")
    assert store.get(blob) == b"data"
    store.release(blob, "a")
    assert store.get(blob) is None
    assert store.bytes_held == 0
    assert not store.hold(blob, "a")
    store.release(blob, "a")


def test_beyond_the_quota_the_oldest_goes_to_disk_and_comes_back(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, memory_bytes_max=1000, disk_bytes_max=10_000)
    blobs = [store.put(bytes([n]) * 400, "job") for n in range(6)]
    assert len(list(tmp_path.glob("*.blob"))) == 4
    assert [store.get(blob) for blob in blobs] == [bytes([n]) * 400 for n in range(6)]
    store.release_all("job")
    assert not list(tmp_path.glob("*.blob"))
    assert store.bytes_held == 0


def test_full_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, memory_bytes_max=1000, disk_bytes_max=1000)
    first = store.put(b"a" * 900, "x")
    second = store.put(b"b" * 900, "x")
    with pytest.raises(BusyError, match="release"):
        store.put(b"c" * 900, "x")
    assert store.get(first) == b"a" * 900
    assert store.get(second) == b"b" * 900


def test_a_file_that_changed_is_never_handed_out(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, memory_bytes_max=10, disk_bytes_max=1000)
    blob = store.put(b"a" * 100, "x")
    store.put(b"b" * 100, "x")
    (path,) = tmp_path.glob("*.blob")
    path.write_bytes(b"c" * 100)
    with pytest.raises(CorruptFileError):
        store.get(blob)


def test_a_new_start_empties_the_folder(tmp_path: Path) -> None:
    (tmp_path / "old.blob").write_bytes(b"x")
    BlobStore(tmp_path)
    assert not list(tmp_path.iterdir())
