"""Tries the layers of a sandbox on itself: run by the probe, in a process of its own, where workers will run.

Each layer is shown to hold by an attempt that must fail after it and must succeed before it. Prints a JSON map of layer to the reason why it
does not work, empty where it does. Arguments: a folder to keep, one to lose, "own" where the process has a pid namespace.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable

from p2pcompute.execution.sandbox import landlock, seccomp


def main(arguments: list[str]) -> None:
    """Entry; see the file's docstring."""
    kept, lost, processes = arguments
    lacking = seccomp.missing()  # before anything is given up: finding the library takes files and processes
    found = {"landlock": _landlock(kept, lost), "seccomp": lacking or _seccomp(own_processes=processes == "own")}
    json.dump(found, sys.stdout)


def _landlock(kept: str, lost: str) -> str:
    version = landlock.abi()
    if version < 1:
        return "this kernel has no Landlock, or it is switched off: Linux 5.13 or newer, with landlock in the boot parameter lsm="
    probe = os.path.join(lost, "trial")

    def write_outside() -> None:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    return _refused_after(
        write_outside, lambda: landlock.restrict(read=(*sys.path, "/usr", "/lib"), write=(kept,), network=False)
    )


def _seccomp(*, own_processes: bool) -> str:
    return (
        _refused_after(
            lambda: socket.socket().close(), lambda: seccomp.restrict(seccomp.FilterRules(own_processes=own_processes))
        )
        or _threads_work()
    )


def _threads_work() -> str:
    ran: list[int] = []
    thread = threading.Thread(target=ran.append, args=(1,))
    try:
        thread.start()
        thread.join()
    except RuntimeError as error:
        return f"no thread can be started behind the filter of system calls: {error}"
    return "" if ran else "a thread behind the filter of system calls did not run"


def _refused_after(attempt: Callable[[], None], restrict: Callable[[], None]) -> str:
    try:
        attempt()
    except OSError as error:
        return f"cannot be tried: {error}"
    try:
        restrict()
    except OSError as error:
        return f"the kernel refused it: {error}"
    try:
        attempt()
    except PermissionError:
        return ""
    return "it was switched on and refused nothing"


if __name__ == "__main__":
    main(sys.argv[1:])
