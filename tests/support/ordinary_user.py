"""Runs a command as a user who is nobody in particular, from root, with the interpreter and this repository in sight.

An interpreter may lie where only root can enter, such as root's home. In a mount namespace of its own, folders that stop others are replaced by
empty ones in which only what is needed is bound again.

    python ordinary_user.py NUMBER PATH… -- COMMAND…

PATH: what the user must be able to read. With NUMBER 0 it stays root, in the mount namespace. Standard modules only.
"""

import ctypes
import os
import sys

_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x00020000, 4096, 16384, 1 << 18


def main(arguments: list[str]) -> None:
    """Entry; becomes the command."""
    at = arguments.index("--")
    user, paths, command = int(arguments[0]), arguments[1:at], arguments[at + 1 :]
    libc = ctypes.CDLL(None, use_errno=True)
    os.umask(0o022)
    _must(libc.unshare(_CLONE_NEWNS))
    _must(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    opened = {os.path.realpath(path): os.open(path, os.O_PATH) for path in paths}
    for path, descriptor in opened.items() if user else ():
        closed = _closed_ancestor(path)
        if closed is None:
            continue
        if closed not in _covered:
            _must(libc.mount(b"tmpfs", closed.encode(), b"tmpfs", 0, b"mode=755"))
            _covered.add(closed)
        os.makedirs(path, exist_ok=True)
        _must(libc.mount(f"/proc/self/fd/{descriptor}".encode(), path.encode(), None, _MS_BIND | _MS_REC, None))
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    os.environ.update(USER="somebody", LOGNAME="somebody")
    os.execvp(command[0], command)


_covered: set[str] = set()


def _closed_ancestor(path: str) -> str | None:
    """The uppermost folder on the way to `path` that others may not enter, or that was covered because of that."""
    parts = path.split("/")
    for count in range(2, len(parts) + 1):
        folder = "/".join(parts[:count])
        if folder in _covered or not os.path.isdir(folder) or not os.stat(folder).st_mode & 0o001:
            return folder
    return None


def _must(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    main(sys.argv[1:])
