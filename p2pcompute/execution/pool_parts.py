"""What one worker is made of, before there is a process: a folder, a shared page, a socket pair, pipes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from p2pcompute.execution.pool_types import PoolSettings, ProgramKey
from p2pcompute.execution.pool_worker import PoolWorker
from p2pcompute.execution.sandbox.probe import probe
from p2pcompute.execution.sandbox.shelter import Shelter, make_shelter
from p2pcompute.execution.worker_main import Descriptors
from p2pcompute.execution.worker_output import PIPE_BYTES
from p2pcompute.execution.worker_protocol import StatePage

if sys.platform != "win32":
    import fcntl

#: What a socket pair should hold, where the system grants it: one frame of rows without waiting.
SOCKET_BYTES = 1 << 20


def shelter_of(settings: PoolSettings, environment: Mapping[str, str]) -> Shelter:
    """How this machine can hold workers. Blocks. Raises UsageError where that is less than `settings.isolation`."""
    private = [Path.home(), *settings.private, *([settings.folder] if settings.folder is not None else [])]
    report = probe(settings.python, environment, private)
    if settings.wasm_python is not None and report.interpreter is not None:
        # The folder: what is in it may be made later.
        paths = (*report.interpreter.paths, str(settings.wasm_python.parent))
        report = replace(report, interpreter=replace(report.interpreter, paths=paths))
    return make_shelter(
        report,
        least=settings.isolation,
        most=settings.isolation_most,
        scratch_bytes=settings.scratch_bytes,
        folders=settings.folders,
        whole_network=settings.whole_network,
    )


def make_worker(
    number: int, key: ProgramKey, folder: Path | None, memory_bytes: int | None, now: float
) -> tuple[PoolWorker, socket.socket, Descriptors]:
    """A new worker's state, our end of its socket, and the descriptors for its process, which the caller hands on.

    `folder`: its scratch folder, to be made; None where it has one in a sandbox. Raises OSError, and leaves nothing behind then.
    """
    with contextlib.ExitStack() as undo:
        if folder is not None:
            folder.mkdir(mode=0o700)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
        page, page_descriptor = StatePage.make()
        undo.callback(os.close, page_descriptor)
        undo.callback(page.close)
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        undo.callback(theirs.close)
        for each in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                each.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
        lifeline, out, err = (_pipe(undo) for _ in range(3))
        copies = [os.dup(read_end) for read_end, _ in (out, err)]
        for read_end, _ in (out, err):
            os.set_blocking(read_end, False)
        undo.pop_all()
    worker = PoolWorker(
        number=number,
        key=key,
        folder=folder,
        page=page,
        outputs=(out[0], err[0]),
        lifeline=lifeline[1],
        memory_bytes=memory_bytes,
        started_at=now,
    )
    descriptors = Descriptors(
        connection=theirs.detach(),
        page=page_descriptor,
        lifeline=lifeline[0],
        out_read=copies[0],
        out_write=out[1],
        err_read=copies[1],
        err_write=err[1],
    )
    return worker, ours, descriptors


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    undo.callback(os.close, read_end)
    undo.callback(os.close, write_end)
    if sys.platform == "linux":
        # Refused where the user's pipes hold too much already: then the pipe stays small.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read_end, write_end
