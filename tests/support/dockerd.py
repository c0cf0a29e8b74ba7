"""Container engines of the tests' own: one dockerd, and one podman, for the whole run, shared by all xdist workers; images of this machine's files.

Its data, exec root and socket lie in a temporary folder. It is started by whichever test asks first, by a guard process (this file as a script)
that ends it, by its own pid, when the run is over, however that ends. It touches no network: no bridge, no iptables.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

#: Commands of busybox that tests use.
_APPLETS = [
    "sh",
    "cat",
    "ls",
    "echo",
    "sleep",
    "dd",
    "head",
    "tail",
    "id",
    "mount",
    "umount",
    "wget",
    "nc",
    "ps",
    "env",
    "true",
    "false",
    "mkdir",
    "ln",
    "rm",
    "yes",
    "chmod",
    "ip",
    "mknod",
    "mkfifo",
    "touch",
    "seq",
    "kill",
]
BUSYBOX, PYTHON = "p2pcompute-test/busybox:latest", "p2pcompute-test/python:latest"
_START_S = 30.0
_FLAGS = [
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--ip-masq=false",
    "--default-ulimit",
    "nofile=1024:1024",
]
_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")


#: What to run, what it needs, and the package that has it.
_NEEDS = {"dockerd": (("dockerd", "docker.io"),), "podman": (("podman", "podman"), ("runc", "docker.io"))}


def why_not(kind: str) -> str:
    """Why no engine of that kind can be started here; empty where one can."""
    if sys.platform != "linux":
        return "not on this platform: containers are Linux's"
    if os.geteuid() != 0:
        return "engines are started as root only, and this is not root"
    path = os.pathsep.join((os.environ.get("PATH", ""), *_PATHS))
    for program, package in (*_NEEDS[kind], ("busybox", "busybox-static")):
        if shutil.which(program, path=path) is None:
            return f"{program} is not installed; tests/setup.sh installs {package}"
    return ""


def shared_engine(shared: Path, kind: str = "dockerd") -> Path:
    """The socket of this run's engine, with the image `BUSYBOX`; `shared` is a folder that all workers of the run see. Skips where it cannot be."""
    reason = why_not(kind)
    if reason:
        pytest.skip(reason)
    with _locked(shared):
        note = shared / f"{kind}.json"
        if not note.exists():
            _started(note, kind)
        found = json.loads(note.read_text())
    if "problem" in found:
        pytest.skip(f"{kind} does not run here: {found['problem']}")
    return Path(found["socket"])


def with_python_image(shared: Path, engine: Path) -> str:
    """`PYTHON` at the engine: Debian's Python of this machine's files. Skips where there is none."""
    with _locked(shared):
        if not (shared / "python-image").exists():
            _import(engine, PYTHON, _python_tar())
            (shared / "python-image").touch()
    return PYTHON


@contextlib.contextmanager
def _locked(shared: Path):  # type: ignore[no-untyped-def]
    with (shared / "dockerd.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _started(note: Path, kind: str) -> None:
    # Under xdist the run is the parent of its workers.
    run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    # A socket's path has 107 characters, and pytest's folders are deep.
    folder = Path(tempfile.mkdtemp(prefix="p2pd-"))
    subprocess.run(
        [sys.executable, __file__, str(folder), str(run), kind],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, check=True,
    )  # fmt: skip
    engine = folder / "docker.sock"
    deadline = time.monotonic() + _START_S
    while not (problem := (folder / "problem")).exists() and time.monotonic() < deadline:
        if engine.exists() and ask(engine, "GET", "/_ping")[0] == 200:
            _import(engine, BUSYBOX, _busybox_tar())
            note.write_text(json.dumps({"socket": str(engine)}))
            return
        time.sleep(0.05)
    text = problem.read_text() if problem.exists() else f"it did not answer within {_START_S:g} s"
    note.write_text(json.dumps({"problem": text}))


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


def ask(engine: Path, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """(status, answer) of the engine's API; (0, b"") where nobody answers."""
    connection = _Connection(engine)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def _import(engine: Path, name: str, tar: bytes) -> None:
    repository, _, tag = name.rpartition(":")
    query = urllib.parse.urlencode({"fromSrc": "-", "repo": repository, "tag": tag})
    status, answer = ask(engine, "POST", f"/images/create?{query}", tar)
    assert status == 200, answer
    assert b'"error"' not in answer, answer


class _Tar:
    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")  # noqa: SIM115
        self._names: set[str] = set()

    def folder(self, name: str, mode: int = 0o755) -> None:
        self._add(name, tarfile.DIRTYPE, mode=mode)

    def text(self, name: str, text: str) -> None:
        self._add(name, tarfile.REGTYPE, data=text.encode())

    def link(self, name: str, target: str) -> None:
        self._add(name, tarfile.SYMTYPE, target=target)

    def file(self, source: str, name: str | None = None, keep: Callable[[str], bool] = lambda path: True) -> None:
        self._tar.add(source, (name or source).lstrip("/"), filter=lambda info: info if keep(info.name) else None)

    def _add(self, name: str, kind: bytes, *, mode: int = 0o755, target: str = "", data: bytes = b"") -> None:
        if name in self._names:
            return
        self._names.add(name)
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.size = kind, mode, target, len(data)
        self._tar.addfile(info, io.BytesIO(data))

    def done(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def _base() -> _Tar:
    tar = _Tar()
    for name in ("proc", "sys", "dev", "etc", "bin"):
        tar.folder(name)
    tar.folder("tmp", 0o1777)
    tar.text("etc/passwd", "root:x:0:0::/:/bin/sh\n")
    busybox = shutil.which("busybox", path=os.pathsep.join(_PATHS))
    assert busybox is not None
    tar.file(os.path.realpath(busybox), "bin/busybox")
    for applet in _APPLETS:
        tar.link(f"bin/{applet}", "busybox")
    return tar


def _busybox_tar() -> bytes:
    return _base().done()


def _python_tar() -> bytes:
    """Debian's own Python with what it is linked with, its library without tests and caches."""
    python = os.path.realpath("/usr/bin/python3")
    if not os.path.exists(python) or not python.startswith("/usr/bin/"):
        pytest.skip("this machine has no Python of its system's in /usr/bin: install python3")
    library = f"/usr/lib/{Path(python).name}"
    tar = _base()
    skipped = ("/test", "/__pycache__", "/idlelib", "/lib2to3", "/config-")
    tar.file(python)
    tar.file(library, keep=lambda path: not any(part in f"/{path}" for part in skipped))
    tar.link("bin/python3", python)
    linked = subprocess.run(
        ["ldd", python, *map(str, Path(library, "lib-dynload").glob("*.so"))],
        capture_output=True,
        text=True,
        check=False,
    )
    needed = {
        word
        for line in linked.stdout.splitlines()
        for word in line.split()
        if word.startswith("/") and not word.endswith(":")
    }
    for path in sorted(needed):
        tar.file(os.path.realpath(path), path)
    return tar.done()


# --- the guard --------------------------------------------------------------------------------------------------------


def _command(folder: Path, kind: str) -> list[str]:
    if kind == "podman":
        places = ["--root", str(folder / "data"), "--runroot", str(folder / "run"), "--tmpdir", str(folder / "tmp")]
        flags = ["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc"]
        return ["podman", *places, *flags, "system", "service", "--time=0", f"unix://{folder}/docker.sock"]
    places = [
        "--data-root",
        str(folder / "data"),
        "--exec-root",
        str(folder / "exec"),
        "--pidfile",
        str(folder / "pid"),
    ]
    return ["dockerd", *_FLAGS, *places, "--host", f"unix://{folder}/docker.sock", "--storage-driver", "overlay2"]


def _guard(folder: Path, run: int, kind: str) -> None:
    """Start an engine, and end it when the process `run` is gone."""
    environment = {**os.environ, "PATH": os.pathsep.join((*_PATHS, os.environ.get("PATH", "")))}
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            _command(folder, kind),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True,
        )  # fmt: skip
    while daemon.poll() is None and _is_alive(run):
        time.sleep(0.25)
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    else:
        (folder / "problem").write_text((folder / "log").read_text()[-2000:])
        while _is_alive(run):
            time.sleep(0.25)
    if kind == "podman":
        # It leaves its overlay mounted.
        for mounted in (folder / "data" / "overlay", folder / "data"):
            subprocess.run(["umount", "--lazy", str(mounted)], stderr=subprocess.DEVNULL, env=environment, check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    # Nobody's child: it outlives the worker that started it.
    if os.fork():
        os._exit(0)
    _guard(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
