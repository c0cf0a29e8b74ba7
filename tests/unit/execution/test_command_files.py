"""The files of a task: names that stay inside, what is new, patterns, links and pipes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pcompute.execution.engines.command_files import TaskFolder
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError


def test_what_is_new_or_changed_comes_back(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path)
    folder.write({"same.txt": b"abc", "changed.txt": b"abc", "deep/er/in.txt": "text"})
    (tmp_path / "changed.txt").write_bytes(b"xyz")  # as long as before, and at once
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "out.bin").write_bytes(b"\0")
    assert folder.collect(None) == {"changed.txt": b"xyz", "new/out.bin": b"\0"}


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["*.txt"], ["a.txt"]),
        (["**/*.txt"], ["a.txt", "b/c.txt", "b/d/e.txt"]),
        (["b/*"], ["b/c.txt"]),
        (["b/"], ["b/c.txt", "b/d/e.txt"]),
        (["b/**"], ["b/c.txt", "b/d/e.txt"]),
        (["?.[x]", "a.txt"], ["?.[x]", "a.txt"]),
        (["a?txt", "b/c.txt"], ["a.txt", "b/c.txt"]),
        (["*.csv"], []),
        ([], []),
    ],
)
def test_patterns_are_those_of_shells(tmp_path: Path, patterns: list[str], found: list[str]) -> None:
    folder = TaskFolder(tmp_path)
    folder.write(dict.fromkeys(("a.txt", "b/c.txt", "b/d/e.txt", "?.[x]"), b""))
    assert list(folder.collect(patterns)) == sorted(found)


def test_a_file_that_was_named_and_is_missing_is_an_error(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path)
    (tmp_path / "out.jpeg").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no file 'out.jpg' after the task, which made out.jpeg"):
        folder.collect(["out.jpg"])
    assert folder.collect(["out.jpg"], insists=False) == {}


def test_links_pipes_and_what_is_behind_them_stay_there(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    os.symlink(outside / "secret", inside / "link")
    os.symlink(outside, inside / "folder")
    os.mkfifo(inside / "pipe")
    (inside / "plain").write_bytes(b"plain")
    assert TaskFolder(inside).collect(None) == {"plain": b"plain"}
    assert TaskFolder(inside).collect(["**"]) == {"plain": b"plain"}


def test_scripts_and_programs_may_be_executed(tmp_path: Path) -> None:
    TaskFolder(tmp_path).write({"run.sh": b"#!/bin/sh\n", "tool": b"\x7fELF...", "data": b"data"})
    assert [os.access(tmp_path / name, os.X_OK) for name in ("run.sh", "tool")] == [True, True]
    assert (tmp_path / "data").stat().st_mode & 0o111 == 0


def test_more_than_a_task_may_give_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = TaskFolder(tmp_path)
    (tmp_path / "a").write_bytes(bytes(100))
    (tmp_path / "b").write_bytes(bytes(100))
    monkeypatch.setattr(limits, "TASK_FILES_BYTES_MAX", 150)
    with pytest.raises(ValueError, match="more than"):
        folder.collect(None)
    assert list(folder.collect(["a"])) == ["a"]
    monkeypatch.setattr(limits, "TASK_FILES_MAX", 1)
    with pytest.raises(UsageError, match="pack them"):
        folder.write({"c": b"", "d": b""})
