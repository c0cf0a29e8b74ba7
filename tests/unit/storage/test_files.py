"""Files: replaced in one step, private, refused where they are not ours."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from p2pcompute.model.errors import ResourceError, UsageError
from p2pcompute.storage.files import InstanceDisk, make_private_folder, read_if_there, write_atomically, write_new

as_plain_user = pytest.mark.skipif(os.getuid() == 0, reason="rights of files do not bind root")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    disk = InstanceDisk(tmp_path / "instance")
    disk.write("key.pem", b"first")
    disk.write("key.pem", b"second")
    disk.write("inner/name", b"deep")
    assert disk.read("key.pem") == b"second"
    assert disk.read("inner/name") == b"deep"
    assert disk.read("missing") is None
    disk.remove("key.pem")
    disk.remove("key.pem")
    assert disk.read("key.pem") is None


def test_files_and_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        disk = InstanceDisk(tmp_path / "instance")
        disk.write("key.pem", b"secret")
        disk.write("notice", b"public", mode=0o644)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "instance") == 0o700
    assert mode_of(tmp_path / "instance" / "key.pem") == 0o600
    assert mode_of(tmp_path / "instance" / "notice") == 0o644


def test_a_narrow_umask_does_not_narrow_the_mode(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        write_atomically(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == 0o600


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../outside", "a/../../b", "a\0b"])
def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    disk = InstanceDisk(tmp_path)
    with pytest.raises(UsageError):
        disk.write(name, b"x")
    with pytest.raises(UsageError):
        disk.read(name)


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_write_new_never_replaces(tmp_path: Path) -> None:
    assert write_new(tmp_path / "file", b"first")
    assert not write_new(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_if_there(tmp_path / "file", bytes_max=5) == b"12345"
    with pytest.raises(ResourceError, match="more than 4 bytes"):
        read_if_there(tmp_path / "file", bytes_max=4)


def test_an_open_folder_is_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    make_private_folder(folder)
    assert mode_of(folder) == 0o700


def test_a_link_or_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "file"):
        with pytest.raises(ResourceError, match="not a folder"):
            make_private_folder(tmp_path / name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    os.chown(folder, 12_345, 12_345)
    with pytest.raises(ResourceError, match="belongs to user number 12345"):
        make_private_folder(folder)


@as_plain_user
def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ResourceError, match="cannot make the folder"):
            make_private_folder(tmp_path / "inner")
    finally:
        tmp_path.chmod(0o700)
