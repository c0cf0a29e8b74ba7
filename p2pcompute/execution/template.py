"""The warm template: a small process, one thread, that has imported the worker's runtime and forks workers on request.

Forking it costs a few milliseconds where a fresh interpreter costs a hundred, and is safe because it has no threads, no
event loop and none of the peer's secrets. It reaps its workers and reports how they ended. When the peer
goes it kills what is left, removes the scratch folder and ends. Refuses to know: programs, tasks.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time

from p2pcompute.execution import process_tree, worker_main
from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.sandbox import seccomp

_DESCRIPTORS = len(worker_main.Descriptors.__slots__)
_PR_SET_DUMPABLE = 4
_RECEIVE_BYTES = 64 * 1024
#: How long the template waits for killed workers when the peer is gone.
_LAST_WAIT_S = 2.0


class Template:
    """The loop of the template. `run` returns when the peer is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        #: Pid by worker number, and back; exactly the children that are not reaped.
        self._pids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        #: Folders to be emptied when their workers are gone.
        self._scratch: dict[int, str] = {}
        #: Descriptors that have come and whose frame has not been read.
        self._descriptors: list[int] = []
        self._received = bytearray()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> None:
        """Serve until the peer's end of the socket closes."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                self._reap()
            if self._connection.fileno() in ready and not self._receive():
                return

    def end_workers(self) -> None:
        """Kill all workers and wait for them, bounded."""
        for pid in self._numbers:
            process_tree.kill_group(pid)
        deadline = time.monotonic() + _LAST_WAIT_S
        while self._numbers and time.monotonic() < deadline:
            for pid, _ in process_tree.reap_ended():
                self._numbers.pop(pid, None)
            time.sleep(0.002)

    def _receive(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._connection, _RECEIVE_BYTES, 8 * _DESCRIPTORS)
        except ConnectionError:
            return False
        self._descriptors += descriptors
        self._received += data
        while len(self._received) >= protocol.HEADER.size:
            head_bytes, _ = protocol.parse_header(self._received)
            end = protocol.HEADER.size + head_bytes
            if len(self._received) < end:
                break
            head = protocol.parse_head(bytes(self._received[protocol.HEADER.size : end]))
            del self._received[:end]
            match head:
                case [protocol.FORK, number, scratch]:
                    given, self._descriptors = self._descriptors[:_DESCRIPTORS], self._descriptors[_DESCRIPTORS:]
                    if scratch:
                        self._scratch[number] = scratch
                    self._fork(number, given)
                case [protocol.KILL, number]:
                    if number in self._pids:
                        process_tree.kill_group(self._pids[number])
                case _:
                    raise protocol.MalformedFrameError(f"a frame of kind {head[0]} from the peer")
        return bool(data)

    def _fork(self, number: int, given: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                self._connection.close()
                for descriptor in (self._wake_read, self._wake_write, *self._descriptors):
                    os.close(descriptor)
                set_dumpable(True)
                worker_main.work(worker_main.Descriptors(*given))
            finally:
                os._exit(70)
        for descriptor in given:
            os.close(descriptor)
        self._pids[number] = pid
        self._numbers[pid] = number
        self._send(protocol.FORKED, number, pid)

    def _reap(self) -> None:
        for pid, status in process_tree.reap_ended():
            number = self._numbers.pop(pid)
            del self._pids[number]
            if number in self._scratch:
                empty(self._scratch.pop(number))
            self._send(protocol.EXITED, number, status)

    def _send(self, *head: int) -> None:
        with contextlib.suppress(ConnectionError):  # the next read notices
            self._connection.sendall(protocol.pack_frame(head))


def set_dumpable(dumpable: bool) -> None:
    """Whether processes of the same user may look into this one. Linux only; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def empty(folder: str) -> None:
    """Remove what is in a folder, as far as its rights allow."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def main(arguments: list[str]) -> None:
    """Entry: number of the descriptor of the socket, folder to remove at the end or nothing, rules of a filter of system calls to make
    beforehand as JSON or nothing, names of modules to import."""
    connection = socket.socket(fileno=int(arguments[0]))
    if arguments[2]:
        seccomp.compiled(seccomp.FilterRules(**json.loads(arguments[2])))
    for module in arguments[3:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    enclosed = not arguments[1]
    if enclosed:
        # What its own program may do in the same sandbox, it must not do to the template: neither look into it nor change it.
        set_dumpable(False)
    template = Template(connection)
    template.run()
    template.end_workers()
    if arguments[1]:
        shutil.rmtree(arguments[1], ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
