"""Folders and instances: one process an instance, given back by the kernel whatever happens."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from p2pcompute.model.errors import BusyError, ConfigError, ResourceError
from p2pcompute.node.folders import SOCKET_PATH_BYTES_MAX, Folders, locked_file

HOLDER = """
import sys
from pathlib import Path
from p2pcompute.node.folders import Folders
instance = Folders.beneath(Path(sys.argv[1])).claim_instance(None)
print(instance.number, flush=True)
sys.stdin.read()
"""


def test_everything_is_beneath_home_where_that_is_set(tmp_path: Path) -> None:
    folders = Folders.locate({"P2PCOMPUTE_HOME": str(tmp_path)})
    assert folders == Folders(tmp_path / "data", tmp_path / "config", tmp_path / "runtime")
    assert folders.config_file == tmp_path / "config" / "config.toml"


def test_without_home_the_platform_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable, name in (("XDG_DATA_HOME", "d"), ("XDG_CONFIG_HOME", "c")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    (tmp_path / "r").mkdir(mode=0o700)
    folders = Folders.locate({"XDG_RUNTIME_DIR": str(tmp_path / "r")})
    assert folders.data.name == "p2pcompute"
    if sys.platform == "linux":
        assert folders == Folders(*(tmp_path / name / "p2pcompute" for name in "dcr"))


def test_without_a_session_sockets_go_to_a_checked_folder_of_our_own(tmp_path: Path) -> None:
    folders = Folders.locate({"XDG_RUNTIME_DIR": str(tmp_path / "missing")})
    if sys.platform == "linux":
        assert folders.runtime == Path(tempfile.gettempdir()) / f"p2pcompute-{os.getuid()}"


def test_a_relative_home_is_refused() -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        Folders.locate({"P2PCOMPUTE_HOME": "here"})


def test_instances_are_taken_in_order_and_used_again(tmp_path: Path) -> None:
    folders = Folders.beneath(tmp_path)
    first, second, third = (folders.claim_instance() for _ in range(3))
    assert [instance.number for instance in (first, second, third)] == [1, 2, 3]
    assert len({instance.socket_path for instance in (first, second, third)}) == 3
    (second.folder / "key.pem").write_text("kept")
    second.close()
    second.close()
    again = folders.claim_instance()
    assert again.number == 2
    assert (again.folder / "key.pem").read_text() == "kept"
    for instance in (first, again, third):
        instance.close()
    assert folders.list_instances() == []
    assert folders.known_instances() == [1, 2, 3]


def test_a_number_can_be_asked_for_once(tmp_path: Path) -> None:
    folders = Folders.beneath(tmp_path)
    seventh = folders.claim_instance(7)
    with pytest.raises(BusyError, match="instance 7 is running already"):
        folders.claim_instance(7)
    assert folders.list_instances() == [(7, seventh.socket_path)]
    seventh.close()
    folders.claim_instance(7).close()


def test_folders_are_private(tmp_path: Path) -> None:
    instance = Folders.beneath(tmp_path).claim_instance()
    assert stat.S_IMODE(instance.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(instance.socket_path.parent.stat().st_mode) == 0o700
    instance.close()


def test_a_killed_process_gives_its_instance_back(tmp_path: Path) -> None:
    folders = Folders.beneath(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"1\n"
        assert [number for number, _ in folders.list_instances()] == [1]
        second = folders.claim_instance()
        assert second.number == 2
        second.close()
        holder.kill()
        holder.wait()
        assert folders.list_instances() == []
        first = folders.claim_instance()
        assert first.number == 1
        first.close()


def test_looking_never_takes_an_instance_from_a_claim(tmp_path: Path) -> None:
    folders = Folders.beneath(tmp_path)
    folders.claim_instance().close()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            folders.list_instances()

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(200):
            instance = folders.claim_instance()
            assert instance.number == 1
            instance.close()
    finally:
        done.set()
        for looker in lookers:
            looker.join()


def test_many_claims_at_once_get_different_numbers(tmp_path: Path) -> None:
    folders = Folders.beneath(tmp_path)
    instances = []
    threads = [threading.Thread(target=lambda: instances.append(folders.claim_instance())) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(instance.number for instance in instances) == list(range(1, 13))
    for instance in instances:
        instance.close()


def test_socket_paths_are_short_and_differ_by_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    folders = Folders.beneath(deep)
    path = folders.socket_path(3)
    assert len(os.fsencode(path)) < SOCKET_PATH_BYTES_MAX
    assert path.is_relative_to(tempfile.gettempdir())
    shared = tmp_path / "r"
    one = Folders(tmp_path / "one", tmp_path, shared)
    two = Folders(tmp_path / "two", tmp_path, shared)
    assert one.socket_path(1) != two.socket_path(1)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/" + "t" * 120)
    assert len(os.fsencode(folders.socket_path(3))) < SOCKET_PATH_BYTES_MAX


def test_a_runtime_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runtime").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="not a folder"):
        Folders.beneath(tmp_path).claim_instance()
    (tmp_path / "runtime").unlink()
    instance = Folders.beneath(tmp_path).claim_instance()
    assert instance.number == 1, "the refused claim gave its lock back"
    instance.close()


def test_a_lock_keeps_threads_apart(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(50):
            with locked_file(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) == 200
