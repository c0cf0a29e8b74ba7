"""Switches the world off for the length of a block: whatever touches it raises `Impure`.

Two nets. Functions of the standard library are replaced (clocks and dice raise no audit event), and an audit hook
catches what C code does beneath them (files, sockets, processes, threads). Both look at the calling thread only, since pytest and
its plugins live on in others.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import gc
import io
import os
import random
import secrets
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any


class Impure(BaseException):
    """Pure code touched the world. Not an Exception, so that no handler of the code under test can hide it."""


#: What is replaced, as (owner, names).
_DOORS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (time, ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "sleep",
            "thread_time", "localtime", "gmtime", "strftime", "ctime")),
    (random, ("random", "uniform", "randint", "randrange", "choice", "choices", "sample", "shuffle", "gauss", "getrandbits",
              "seed", "randbytes", "expovariate")),
    (secrets, ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "choice", "randbits")),
    (uuid, ("uuid1", "uuid4")),
    (os, ("urandom", "getrandom", "open", "stat", "listdir", "scandir", "getpid", "fork", "getloadavg", "times", "cpu_count")),
    (socket, ("socket", "create_connection", "getaddrinfo", "gethostname", "socketpair")),
    (sqlite3, ("connect",)),
    (subprocess, ("Popen", "run", "check_output")),
    (threading.Thread, ("start",)),
    (builtins, ("open", "input")),
    (io, ("open",)),
    (asyncio, ("get_running_loop", "get_event_loop", "new_event_loop", "run", "sleep", "create_task")),
)  # fmt: skip

#: Beginnings of audit events that mean the world.
_EVENTS = ("open", "socket.", "subprocess.", "os.", "sqlite3.", "shutil.", "glob.", "_thread.start", "tempfile.", "ctypes.dlopen",
           "fcntl.", "mmap.", "pathlib.", "signal.")  # fmt: skip


class _Watch:
    """What the audit hook looks at: the thread in which the world is off, or None."""

    def __init__(self) -> None:
        self.thread: int | None = None

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.thread is not None and event.startswith(_EVENTS) and threading.get_ident() == self.thread:
            raise Impure(f"{event} {arguments!r:.200}")


def _watch() -> _Watch:
    # An audit hook cannot be taken back, so there is one for the process and it is found again.
    found = getattr(sys, "_p2pcompute_purity_watch", None)
    if found is None:
        found = _Watch()
        sys.addaudithook(found)
        sys._p2pcompute_purity_watch = found  # type: ignore[attr-defined]
    assert isinstance(found, _Watch)
    return found


def _shut(name: str, real: Any, thread: int) -> Callable[..., Any]:
    def door(*arguments: Any, **named: Any) -> Any:
        if threading.get_ident() == thread:
            raise Impure(f"{name} was called")
        return real(*arguments, **named)

    return door


@contextlib.contextmanager
def world_switched_off() -> Iterator[None]:
    """Clocks, dice, sockets, disk, processes, threads and event loops raise `Impure` in this thread."""
    thread = threading.get_ident()
    watch = _watch()
    saved = []
    # Finalisers of other tests' rubbish would run in our thread and be blamed on the machine.
    gc.disable()
    try:
        for owner, names in _DOORS:
            for name in names:
                if not hasattr(owner, name):
                    continue
                real = getattr(owner, name)
                saved.append((owner, name, real))
                label = f"{getattr(owner, '__name__', owner)}.{name}"
                setattr(owner, name, _shut(label, real, thread))
        watch.thread = thread
        yield
    finally:
        watch.thread = None
        for owner, name, real in reversed(saved):
            setattr(owner, name, real)
        gc.enable()
