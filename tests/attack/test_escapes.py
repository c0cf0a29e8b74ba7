"""What hostile tasks try from within workers fails at every level of isolation, and succeeds where workers are plain processes.

The second half shows that each attempt is one: a refusal for another reason would pass for a wall. Each user's three levels run at once, each
in a process of its own (`escape_driver.py`), as root and as an ordinary user.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.execution.probes import sandbox_report
from p2pcompute.model import limits
from p2pcompute.model.peer import Isolation
from tests.attack.escape_driver import ATTEMPTS, SCRATCH_BYTES

ROOT = Path(__file__).resolve().parents[2]
ORDINARY = 54321
RUN_TIMEOUT_S = 100
CONFINED = (Isolation.RESTRICTED, Isolation.SANDBOX)
#: No attacks, or looked at by what they leave: see the tests.
APART = frozenset({"threads_work", "event_loops_work", "write_shared_memory", "other_architecture", "fill_disk", "open_files", "leave_traces"})  # fmt: skip
#: What only root reaches from a plain process.
ROOTS = frozenset({"write_kernel_settings", "write_interpreter", "remount"})

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="not on this platform: sandboxes need Linux")


def run_all(user: str, folder: Path) -> dict[Isolation, dict[str, Any]]:
    """What the driver found at each level."""
    begun = {level: start(user, level, folder) for level in (Isolation.PROCESS, *CONFINED)}
    found = {}
    for level, process in begun.items():
        out, err = process.communicate(timeout=RUN_TIMEOUT_S)
        assert process.returncode == 0, err.decode()
        found[level] = json.loads(out)
        assert found[level]["level"] == level, f"asked for {level}: {err.decode()}"
    return found


def start(user: str, level: Isolation, folder: Path) -> subprocess.Popen[bytes]:
    place = folder / f"{user}-{level}"
    place.mkdir()
    driver = [sys.executable, "-m", "tests.attack.escape_driver", str(place), level.value]
    if os.geteuid() == 0:
        # In a mount namespace either way: plain processes of root succeed in changing mounts.
        number = ORDINARY if user == "ordinary" else 0
        os.chown(place, number, number)
        stage = [sys.executable, str(ROOT / "tests" / "support" / "ordinary_user.py"), str(number)]
        driver = [*stage, sys.base_prefix, sys.prefix, str(ROOT), str(place), "--", *driver]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(place)}
    return subprocess.Popen(driver, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("user", ["own", "ordinary"])
def test_no_attempt_gets_out(user: str, tmp_path: Path) -> None:
    if user == "ordinary" and os.geteuid() != 0:
        pytest.skip("only root can become another user; the own user is an ordinary one here")
    lacking = sandbox_report().lacking(Isolation.SANDBOX)
    if lacking:
        pytest.skip(f"{lacking}; tests/setup.sh installs what it may")
    found = run_all(user, tmp_path)
    escapes = [
        f"{level}: {name}: {seen}"
        for level in CONFINED
        for name in ATTEMPTS
        if ((seen := found[level][name])["reached"] and name not in APART) or seen["damage"]
    ]
    assert not escapes
    root = user == "own" and os.geteuid() == 0
    traced = root or not _reads_one("/proc/sys/kernel/yama/ptrace_scope")
    expected = [
        name for name in ATTEMPTS if (root or name not in ROOTS) and (traced or name not in ("trace", "read_memory"))
    ]
    plain = found[Isolation.PROCESS]
    assert not [name for name in expected if not plain[name]["reached"]], "attempts that fail without any wall"
    damaged = {
        "write_outside",
        "write_shared_memory",
        "change_rights",
        "send_signal_by_pipe",
        "change_others",
        "pair_of_datagram_sockets",
    }
    assert {name for name in ATTEMPTS if plain[name]["damage"]} >= damaged

    for level in CONFINED:
        seen = found[level]
        assert seen["threads_work"]["reached"] == list(range(8))
        assert seen["event_loops_work"]["reached"] == "ran"
        # One that comes by the door of another architecture is killed at once, as a whole.
        assert "SIGSYS" in seen["other_architecture"]["reached"] or not seen["other_architecture"]["reached"]
        assert 100 < seen["open_files"]["reached"] < 1024
        assert seen["next submitter"] == [3, '{"a": 1}', []]
        assert seen["other worker lives"]
    assert plain["fill_disk"]["reached"] == 64
    assert found[Isolation.SANDBOX]["fill_disk"]["reached"] <= SCRATCH_BYTES >> 20
    # Granted processes: many, and not without end. Where no control group holds them they are counted, and all killed.
    bomb = found[Isolation.SANDBOX]["bomb"]
    assert "all were killed" in bomb if isinstance(bomb, str) else 100 < bomb < limits.WORKER_THREADS_MAX


def test_no_attempt_gets_out_where_there_are_no_user_namespaces(tmp_path: Path) -> None:
    """In a user namespace in which no further one can be made: to whoever is inside, a machine set up without them."""
    lacking = sandbox_report().lacking(Isolation.RESTRICTED)
    if lacking:
        pytest.skip(f"{lacking}; tests/setup.sh installs what it may")
    none_further = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    machine = ["unshare", "--user", "--map-root-user", "sh", "-c", none_further, "sh"]
    try:
        subprocess.run([*machine, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this user cannot make a user namespace, so there is nothing to take away")
    driver = [sys.executable, "-m", "tests.attack.escape_driver", str(tmp_path), Isolation.SANDBOX.value]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run([*machine, *driver], cwd=ROOT, env=environment, capture_output=True, timeout=RUN_TIMEOUT_S)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["level"] == Isolation.RESTRICTED, "asked for a sandbox, it says what it could do"
    escapes = [
        f"{name}: {seen}"
        for name in ATTEMPTS
        if ((seen := found[name])["reached"] and name not in APART) or seen["damage"]
    ]
    assert not escapes
    assert found["next submitter"] == [3, '{"a": 1}', []]


def _reads_one(path: str) -> bool:
    try:
        return Path(path).read_text().strip() != "0"
    except OSError:
        return False
