"""Kept archives: names, sizes, and how long."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import ResourceError, UsageError
from p2pcompute.storage.archives import Archives

DAY_S = 86_400.0


def test_what_is_kept_is_got_until_a_day_has_gone(tmp_path: Path) -> None:
    archives = Archives(tmp_path / "kept")
    assert archives.get("ab12") is None
    assert archives.sweep(0.0) == 0
    place = archives.keep("ab12", b"first", 1000.0)
    archives.keep("ab12", b"second", 1001.0)
    assert archives.get("ab12") == b"second"
    assert place == tmp_path / "kept" / "ab12.zip"
    assert place.parent.stat().st_mode & 0o077 == 0
    assert [path.name for path in place.parent.iterdir()] == ["ab12.zip"]
    assert archives.sweep(1001.0 + limits.ARCHIVE_KEPT_S) == 0
    assert archives.sweep(1002.0 + limits.ARCHIVE_KEPT_S) == 1
    assert archives.get("ab12") is None


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/x", "a\\b", "a.b", "-x", "x" * 129, "a\n", "é"])
def test_only_ids_are_names(tmp_path: Path, name: str) -> None:
    archives = Archives(tmp_path)
    with pytest.raises(UsageError):
        archives.keep(name, b"", 0.0)
    with pytest.raises(UsageError):
        archives.get(name)


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARCHIVES_BYTES_MAX", 250)
    archives = Archives(tmp_path)
    for number in range(4):
        archives.keep(f"job{number}", bytes(100), 1000.0 + number)
    assert [archives.get(f"job{number}") is not None for number in range(4)] == [False, False, True, True]
    monkeypatch.setattr(limits, "TASK_FILES_BYTES_MAX", 50)
    with pytest.raises(UsageError, match="51 bytes"):
        archives.keep("large", bytes(51), 2000.0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        Archives(tmp_path / "file").keep("a", b"", 0.0)
