"""Where this user's files are, and which instance of a peer owns which folder.

Owns three roots (data, configuration, runtime): where the platform wants them, or all beneath P2PCOMPUTE_HOME where that
is set. Each running peer owns one instance folder, <data>/peers/<number>, through a file lock that the kernel releases
when the process dies, however it dies; the next peer to start takes the lowest number that is free, and with it the
key, port and database that it had. A second lock, held for an instant, keeps `claim` and `list` from taking each
other's probes for a running peer.

Refuses to know what stands in an instance folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from p2pcompute.model.errors import BusyError, ConfigError, ResourceError, UsageError
from p2pcompute.node.config import CONFIG_FILE
from p2pcompute.storage.files import make_private_folder, write_new

PROGRAM = "p2pcompute"
#: The path of a Unix socket has 108 bytes on Linux and 104 on macOS, its end included; 100 leaves room for both.
SOCKET_PATH_BYTES_MAX = 100
#: Instances of one user on one machine; every one has workers, so nobody needs near so many.
INSTANCES_MAX = 9_999
_LOCK = "lock"
_CLAIMS = "claims.lock"


@dataclass(frozen=True, slots=True)
class Folders:
    """The three roots of one user; `Folders.locate(os.environ)` finds them. Nothing is made until it is needed."""

    #: Keys, networks, databases, blobs.
    data: Path
    #: `config.toml` and `bootstrap.txt`; written by people only.
    config: Path
    #: Control sockets; may vanish at a restart of the machine.
    runtime: Path

    @classmethod
    def locate(cls, environ: Mapping[str, str]) -> Folders:
        """Beneath P2PCOMPUTE_HOME where that is set, else where the platform wants them. Raises ConfigError."""
        home = environ.get("P2PCOMPUTE_HOME", "")
        if home:
            return cls.beneath(Path(home))
        import platformdirs

        return cls(
            data=Path(platformdirs.user_data_dir(PROGRAM, appauthor=False)),
            config=Path(platformdirs.user_config_dir(PROGRAM, appauthor=False)),
            runtime=_runtime_folder(environ),
        )

    @classmethod
    def beneath(cls, home: Path) -> Folders:
        """All three beneath `home`. Raises ConfigError where it is not an absolute path."""
        root = home.expanduser()
        if not root.is_absolute():
            raise ConfigError(f"P2PCOMPUTE_HOME is {str(home)!r}: write an absolute path")
        return cls(data=root / "data", config=root / "config", runtime=root / "runtime")

    @property
    def config_file(self) -> Path:
        """The configuration file; may be missing."""
        return self.config / CONFIG_FILE

    @property
    def networks(self) -> Path:
        """The networks of this user."""
        return self.data / "networks"

    @property
    def peers(self) -> Path:
        """The instance folders."""
        return self.data / "peers"

    @property
    def results(self) -> Path:
        """Result archives of this user's tasks, kept for a day."""
        return self.data / "results"

    def instance_folder(self, number: int) -> Path:
        """The folder of one instance; may be missing."""
        return self.peers / str(number)

    def socket_path(self, number: int) -> Path:
        """Where the control socket of one instance is, short enough for every system.

        The name holds a digest of the data folder: two data folders of one user may share a runtime folder.
        """
        digest = hashlib.sha256(os.fsencode(self.data.absolute())).hexdigest()[:10]
        name = f"{digest}-{number}.sock"
        path = self.runtime / name
        if len(os.fsencode(path)) < SOCKET_PATH_BYTES_MAX:
            return path
        path = _temporary_folder(Path(tempfile.gettempdir())) / name
        if len(os.fsencode(path)) < SOCKET_PATH_BYTES_MAX:
            return path
        # A temporary folder with a very long path: every system with Unix sockets has /tmp as well.
        return _temporary_folder(Path("/tmp")) / name

    def claim_instance(self, number: int | None = None) -> Instance:
        """Own an instance: `number`, or the lowest that no running peer owns. Raises BusyError, ResourceError."""
        make_private_folder(self.peers)
        with self._claims():
            for candidate in [number] if number is not None else range(1, INSTANCES_MAX + 1):
                folder = make_private_folder(self.instance_folder(candidate))
                descriptor = _try_lock(folder / _LOCK)
                if descriptor is not None:
                    return self._claimed(candidate, folder, descriptor)
        if number is not None:
            raise BusyError(
                f"instance {number} is running already: stop it, or leave the number out to take the next free one"
            )
        raise BusyError(f"all {INSTANCES_MAX} instance folders beneath {self.peers} are in use")

    def _claimed(self, number: int, folder: Path, descriptor: int) -> Instance:
        try:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)  # for people who look; never read by us
            socket_path = self.socket_path(number)
            make_private_folder(socket_path.parent)
        except (OSError, AttributeError) as error:
            if isinstance(error, AttributeError):  # Windows has no pwrite; the number is a courtesy
                return Instance(number, folder, self.socket_path(number), descriptor)
            os.close(descriptor)
            raise ResourceError(f"cannot use {folder}: {error.strerror}") from error
        except BaseException:
            os.close(descriptor)
            raise
        return Instance(number, folder, socket_path, descriptor)

    def list_instances(self) -> list[tuple[int, Path]]:
        """Number and control socket of every running instance of this user, lowest number first."""
        numbers = self.known_instances()
        if not numbers:
            return []
        running: list[tuple[int, Path]] = []
        with self._claims():
            for number in numbers:
                lock = self.instance_folder(number) / _LOCK
                if not lock.exists():
                    continue
                descriptor = _try_lock(lock)
                if descriptor is None:
                    running.append((number, self.socket_path(number)))
                else:
                    os.close(descriptor)
        return running

    def known_instances(self) -> list[int]:
        """The number of every instance folder that exists, running or not, lowest first."""
        try:
            names = [entry.name for entry in self.peers.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResourceError(f"cannot read {self.peers}: {error.strerror}") from error
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and int(name) > 0)

    @contextlib.contextmanager
    def _claims(self) -> Iterator[None]:
        with locked_file(self.peers / _CLAIMS):
            yield


@dataclass(slots=True)
class Instance:
    """An instance folder that this process owns until `close`, or until it dies."""

    #: From 1; what `--peer` and `--instance` name.
    number: int
    #: Key, database, blobs of this peer; mode 0700.
    folder: Path
    #: Where this peer answers its user; its folder exists with mode 0700.
    socket_path: Path
    _descriptor: int = field(repr=False)
    _closing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def close(self) -> None:
        """Give the folder back; a second call does nothing."""
        with self._closing:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _runtime_folder(environ: Mapping[str, str]) -> Path:
    """Where sockets go. On Linux without a session (XDG_RUNTIME_DIR) a folder of our own in the temporary one.

    platformdirs would put it inside of /tmp/runtime-<user>, whose owner nobody checks; ours is checked when it is used.
    """
    import platformdirs

    if sys.platform != "linux":
        return Path(platformdirs.user_runtime_dir(PROGRAM, appauthor=False))
    given = environ.get("XDG_RUNTIME_DIR", "")
    session = Path(given) if given else Path(f"/run/user/{os.getuid()}")
    return session / PROGRAM if session.is_dir() else _temporary_folder(Path(tempfile.gettempdir()))


def _temporary_folder(beneath: Path) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return beneath / f"{PROGRAM}-{user}"


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user can read, where none is yet. Raises UsageError, ResourceError."""
    if not write_new(path, content):
        raise UsageError(f"{path} exists already and is not overwritten: name another file")


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path` (made where missing) for the duration; waits for whoever holds it.

    Only for what takes an instant. Between threads of one process it works as between processes.
    """
    descriptor = _open_lock(path)
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The open descriptor that holds the lock, or None where somebody else holds it."""
    descriptor = _open_lock(path)
    try:
        if _lock(descriptor, wait=False):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _open_lock(path: Path) -> int:
    try:
        # Python opens files so that child processes started by exec do not inherit them: a worker that outlives its
        # peer does not keep the lock.
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        raise ResourceError(f"cannot open the lock {path}: {error.strerror}") from error


if sys.platform == "win32":

    def _lock(descriptor: int, *, wait: bool) -> bool:
        import msvcrt

        while True:
            try:
                os.lseek(descriptor, 1 << 30, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError:
                if not wait:
                    return False
            else:
                return True

else:

    def _lock(descriptor: int, *, wait: bool) -> bool:
        import fcntl

        # flock, not lockf: a lock of the latter kind is lost as soon as the process closes any descriptor of the file.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            raise ResourceError(f"cannot lock a file: {error.strerror}") from error
        return True
