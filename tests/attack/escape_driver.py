"""Runs every attempt of `escape_attempts.py` in workers of a pool, as the user whose process this is, and prints what happened as JSON.

    python -m tests.attack.escape_driver FOLDER LEVEL

FOLDER: empty, this user's own. It is made to look like the owner's home with a running peer: a secret, a key, a control socket, services
on loopback, another process with the secret in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from p2pcompute.model.job import Outcome
from p2pcompute.model.peer import Isolation
from tests.attack import escape_attempts
from tests.unit.execution.pool_help import Bench, bench, is_alive
from tests.unit.execution.program_help import decode_value, failure_text

MARKER = "nobody-may-see-this"
ATTEMPTS = (
    "threads_work", "event_loops_work", "read_secrets", "list_folders", "write_outside", "write_shared_memory", "change_rights",
    "write_kernel_settings", "through_proc", "write_interpreter", "open_devices", "remount", "user_namespace", "trace", "read_memory",
    "read_environments", "see_processes", "send_signals", "send_signal_by_pipe", "change_others", "start_processes", "open_sockets",
    "pair_of_datagram_sockets", "connect", "call_kernel", "other_architecture", "fill_disk", "open_files", "read_other_worker",
    "leave_traces",
)  # fmt: skip
SCRATCH_BYTES = 8 << 20
SIGNALS = frozenset({"send_signals", "send_signal_by_pipe"})
SIGNAL_WAIT_S = 0.3


class Owner:
    """What the owner of the peer has that nobody may touch."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir(mode=0o700)
        self.secret, self.key = self.home / "secret", self.home / "key.pem"
        for path in (self.secret, self.key):
            path.write_text(MARKER)
            path.chmod(0o600)
        self.writable = folder / "writable"
        self.writable.mkdir()
        (self.writable / "file").write_text("as it was")
        self.port = socket.create_server(("127.0.0.1", 0))
        # Sockets with a path need a short one.
        self._short = tempfile.TemporaryDirectory(prefix="esc-")
        self.control, self.datagram = Path(self._short.name, "control"), Path(self._short.name, "datagram")
        self.abstract = f"p2pcompute-test-{os.getpid()}"
        self._listeners = [
            self._listen(socket.SOCK_STREAM, str(self.control)),
            self._listen(socket.SOCK_STREAM, f"\0{self.abstract}"),
        ]
        self._datagrams = self._listen(socket.SOCK_DGRAM, str(self.datagram))
        self.shared = f"p2pcompute-test-{os.getpid()}"
        self.victim = self._start_victim()
        self._before = self._looks()

    def _listen(self, kind: int, address: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(address)
        if kind == socket.SOCK_STREAM:
            made.listen(64)
        made.setblocking(False)
        return made

    def _start_victim(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-c", "import time\nprint(flush=True)\ntime.sleep(600)", MARKER]
        victim = subprocess.Popen(command, env={**os.environ, "MINE": MARKER}, stdout=subprocess.PIPE)
        assert victim.stdout is not None
        victim.stdout.readline()
        return victim

    def _looks(self) -> dict[str, Any]:
        files = {}
        for path in (self.secret, self.key, self.writable / "file", self.home, Path("/dev/null"), Path("/")):
            status = path.stat()
            content = path.read_text() if stat.S_ISREG(status.st_mode) else ""
            files[str(path)] = (stat.S_IMODE(status.st_mode), int(status.st_mtime) if content else 0, content)
        return {
            "files": files,
            "written": (self.writable / "written").exists(),
            "shared": Path("/dev/shm", self.shared).exists(),
            "priority": os.getpriority(os.PRIO_PROCESS, self.victim.pid),
        }

    def damage(self, signal_wait_s: float) -> list[str]:
        """What is no longer as it was. `signal_wait_s`: how long a signal may be on its way."""
        now = self._looks()
        found = [name for name in now if now[name] != self._before[name]]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.victim.wait(timeout=signal_wait_s)
            found.append("victim")
        with contextlib.suppress(BlockingIOError):
            self._datagrams.recv(16)
            found.append("datagram")
        return found

    def repair(self) -> None:
        """As it was, for the next attempt."""
        if self.victim.poll() is not None:
            self.victim = self._start_victim()
        for path in (self.writable / "written", Path("/dev/shm", self.shared)):
            path.unlink(missing_ok=True)
        for path, (mode, time_s, content) in self._before["files"].items():
            if content:
                Path(path).write_text(content)
                os.utime(path, (time_s, time_s))
            if os.stat(path).st_uid == os.getuid():
                os.chmod(path, mode)
        self._before["priority"] = os.getpriority(os.PRIO_PROCESS, self.victim.pid)

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        traces = [Path(folder, f"{self.shared}-trace") for folder in ("/tmp", "/dev/shm")]
        for path in (self.writable / "written", Path("/dev/shm", self.shared), *traces):
            path.unlink(missing_ok=True)
        for each in (self.port, *self._listeners, self._datagrams):
            each.close()
        self._short.cleanup()


async def attack(folder: Path, level: Isolation) -> dict[str, Any]:
    owner = Owner(folder)
    os.environ["OWNERS_TOKEN"] = MARKER
    source = inspect.getsource(escape_attempts)
    found: dict[str, Any] = {}
    async with bench(isolation_most=level, scratch_bytes=SCRATCH_BYTES) as on:
        other = on.spawn(source, submitter=2)
        _, other_folder = await call(on, other, 0, "keep", {"marker": MARKER})
        targets = {
            "home": str(owner.home), "secret": str(owner.secret), "key": str(owner.key), "writable": str(owner.writable),
            "markers": ["secret", "p2pcompute-home", "home", folder.name, "shadow", "pytest-of-root", ".ssh", ".pyenv", "etc"],
            "socket": str(owner.control), "abstract": owner.abstract, "datagram": str(owner.datagram),
            "trace": f"{owner.shared}-trace", "port": owner.port.getsockname()[1], "shared": owner.shared, "marker": MARKER,
            "other": on.pid(other), "other_folder": other_folder, "peer": os.getpid(), "victim": owner.victim.pid,
        }  # fmt: skip
        hostile = on.spawn(source, submitter=1)
        for number, name in enumerate(ATTEMPTS, start=10):
            targets["victim"] = owner.victim.pid
            value = await call(on, hostile, number, name, targets)
            found[name] = {"reached": value, "damage": owner.damage(SIGNAL_WAIT_S if name in SIGNALS else 0.0)}
            owner.repair()
            if hostile in on.seen.gone:
                hostile = on.spawn(source, submitter=1)
        found["next submitter"] = await call(on, on.spawn(source, submitter=3), 1000, "honest", targets)
        if level is Isolation.SANDBOX:
            bomber = on.spawn(source, submitter=4, grants=("processes",))
            found["bomb"] = await call(on, bomber, 1001, "bomb", {}, timeout_s=20.0)
            on.pool.retire(bomber)
            await on.gone(bomber)
        found["other worker lives"] = is_alive(targets["other"])
        found["level"] = on.pool.isolation.value
    owner.close()
    return found


async def call(
    on: Bench, worker: int, number: int, entry: str, targets: dict[str, Any], timeout_s: float = 30.0
) -> Any:
    end = await on.call(worker, number, entry, targets, timeout_s=timeout_s)
    match end.outcome:
        case Outcome.RETURNED:
            return decode_value(end.payload)
        case Outcome.RAISED:
            return f"raised {failure_text(end.payload)}"
    return f"{end.outcome.name} {end.payload.decode(errors='replace')}"


if __name__ == "__main__":
    place, wanted = sys.argv[1:]
    print(json.dumps(asyncio.run(attack(Path(place), Isolation(wanted)))))
