"""Files of tasks: written and collected without ever leaving their folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.execution.task_files import check_files, check_path, collect_files, folder_bytes, write_files
from p2pcompute.execution.task_result import TaskResult
from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError, ResourceError, UsageError

posix = pytest.mark.skipif(sys.platform == "win32", reason="not on this platform: links and pipes are Unix's")


@pytest.mark.parametrize("path", ["a", "a/b.txt", "..a", "a..", ".hidden/x", "ünï/ço∂e", "a b", "-x"])
def test_ordinary_paths_are_taken(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "..",
        "../a",
        "a/..",
        "a/../b",
        ".",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "C:a",
        "a\0b",
        "a\x7f",
        "\ud800",
        b"a",
        None,
        3,
    ],
)
def test_other_paths_are_refused(path: object) -> None:
    with pytest.raises(UsageError):
        check_path(path)


def test_files_are_written_and_collected_again(tmp_path: Path) -> None:
    files = {"a": b"1", "b/c/d": b"2" * 100_000, "b/e": b""}
    write_files(tmp_path, files)
    found = collect_files(tmp_path)
    assert found.files == files
    assert found.left_out == []
    assert found.bytes_total == 100_001


@posix
def test_nothing_is_written_through_a_link_or_over_a_file(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "file").symlink_to(outside / "new")
    (folder / "there").write_text("old")
    for path in ("link/x", "file", "there"):
        with pytest.raises(ResourceError, match=path.split("/")[0]):
            write_files(folder, {path: b"evil"})
    assert list(outside.iterdir()) == []
    assert (folder / "there").read_text() == "old"


@posix
def test_links_pipes_and_sockets_are_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "fine").write_text("fine")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    found = collect_files(folder)
    assert found.files == {"fine": b"fine"}
    assert sorted(found.left_out) == ["link: it is a link", "pipe: it is no ordinary file", "up: it is a link"]
    (tmp_path / "alias").symlink_to(folder)
    assert collect_files(tmp_path / "alias").files == {}
    # Neither is a link followed that stands in the middle of the way.
    assert collect_files(tmp_path, "out").files == {"fine": b"fine"}
    assert collect_files(tmp_path, "alias/sub").files == {}
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_text("x")
    assert collect_files(tmp_path, "out/sub").files == {"x": b"x"}
    assert collect_files(tmp_path, "alias/sub").left_out == ["alias/sub: it is no folder"]
    assert collect_files(tmp_path / "missing").files == {}


def test_what_comes_back_is_bounded_in_files_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        (tmp_path / str(number)).write_bytes(bytes(100))
    found = collect_files(tmp_path, bytes_max=350)
    assert list(found.files) == ["0", "1", "2"]
    assert len(found.left_out) == 5
    monkeypatch.setattr(limits, "TASK_FILES_MAX", 5)
    assert len(collect_files(tmp_path).files) == 5


def test_a_file_with_holes_counts_what_it_takes(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "full").write_bytes(bytes(1 << 20))
    used, entries = folder_bytes(tmp_path, 100)
    assert entries == 3
    assert used < 10 << 20
    assert collect_files(tmp_path).files.keys() == {"a/full"}
    assert folder_bytes(tmp_path, 1)[1] == 2


def test_a_file_cannot_be_a_folder_of_another() -> None:
    with pytest.raises(UsageError, match="'a' is a file and a folder"):
        check_files({"a": 1, "a/b": 1})


def test_results_are_written_whole_into_an_empty_folder_only(tmp_path: Path) -> None:
    result = TaskResult(0, files={"a/b": b"1", "c": b"2"})
    result.write_to(tmp_path / "new" / "place")
    assert (tmp_path / "new" / "place" / "a" / "b").read_bytes() == b"1"
    with pytest.raises(UsageError, match="nothing was written"):
        result.write_to(tmp_path / "new" / "place")
    (tmp_path / "empty").mkdir()
    result.write_to(tmp_path / "empty")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["a", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../x": b""}},
        {"files": {"/x": b""}},
        {"files": {"x": "text"}},
        {"files": {1: b""}},
        {"files": []},
        {"status": "0"},
        {"status": True},
        {"stdout": "text"},
        {"stopped": None},
        {"left_out": [1]},
    ],
)
def test_a_result_that_is_none_is_refused(change: dict[str, Any]) -> None:
    assert TaskResult.from_plain(TaskResult(0).plain()) == TaskResult(0)
    with pytest.raises(ProtocolError):
        TaskResult.from_plain(TaskResult(0).plain() | change)
