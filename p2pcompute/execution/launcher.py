"""Starting, killing and reaping worker processes, for the pool: by the warm template, or directly where that cannot be.

A launcher takes descriptors and gives back three kinds of news: a worker has a process, its process ended, or nobody will ever
know (the template died before it said). A template that dies is started again; workers that it forked live on. After
`RESTARTS_MAX` deaths within `RESTARTS_WITHIN_S` workers are started directly, which costs them a tenth of a second.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from p2pcompute.execution import process_tree
from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.pool_channel import FrameChannel, Offload
from p2pcompute.execution.worker_main import Descriptors

RESTARTS_MAX = 3
RESTARTS_WITHIN_S = 10.0
#: How long `stop` waits for the template to clean up and end.
STOP_WAIT_S = 3.0
_POLL_FIRST_S, _POLL_LAST_S = 0.001, 0.1
_TEMPLATE = "import sys; from p2pcompute.execution.template import main; main(sys.argv[1:])"
_WORKER = "import sys; from p2pcompute.execution.worker_main import main; main(sys.argv[1:])"


class LauncherEvents(Protocol):
    """What a launcher tells the pool."""

    def process_started(self, number: int, pid: int) -> None:
        """Worker `number` is process `pid`."""

    def process_ended(self, number: int, status: int | None) -> None:
        """Its process is gone; `status` as `subprocess` counts it, None where nobody saw."""


class Launcher(Protocol):
    """See the file's docstring."""

    def launch(self, number: int, descriptors: Descriptors) -> None:
        """Start a worker; the descriptors belong to the launcher from now on."""

    def kill(self, number: int) -> None:
        """Kill its process group; `process_ended` follows. Killing twice, or the dead, is no error."""

    async def stop(self) -> None:
        """Kill all that is left and wait for it, bounded."""


class DirectLauncher:
    """Each worker is a fresh interpreter, child of the peer."""

    def __init__(self, events: LauncherEvents, *, python: str, environment: Mapping[str, str], folder: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._python = python
        self._environment = dict(environment)
        self._folder = folder
        #: Processes that were not reaped yet.
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def launch(self, number: int, descriptors: Descriptors) -> None:
        """See Launcher."""
        numbers = descriptors.all()
        try:
            process = subprocess.Popen(
                [self._python, "-P", "-c", _WORKER, *map(str, numbers)],
                pass_fds=numbers,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            self._loop.call_soon(self._events.process_ended, number, None)
            return
        finally:
            for each in numbers:
                os.close(each)
        self._processes[number] = process
        self._loop.call_soon(self._events.process_started, number, process.pid)

    def kill(self, number: int) -> None:
        """See Launcher."""
        process = self._processes.get(number)
        if process is not None:
            process_tree.kill_group(process.pid)  # not reaped yet, so the number is still its own
            self._reap(number, _POLL_FIRST_S)

    def _reap(self, number: int, delay_s: float) -> None:
        process = self._processes.get(number)
        if process is None:
            return
        status = process.poll()
        if status is None:
            self._loop.call_later(delay_s, self._reap, number, min(delay_s * 2, _POLL_LAST_S))
            return
        del self._processes[number]
        self._loop.call_soon(self._events.process_ended, number, status)

    async def stop(self) -> None:
        """See Launcher."""
        for number in list(self._processes):
            self.kill(number)
        await _wait_until(lambda: not self._processes)


class TemplateLauncher:
    """Workers are forked from a warm template process (`template.py`)."""

    def __init__(
        self,
        events: LauncherEvents,
        *,
        python: str,
        environment: Mapping[str, str],
        folder: Path,
        preload: tuple[str, ...],
        offload: Offload,
        on_broken: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._command = [python, "-P", "-c", _TEMPLATE]
        self._arguments = [str(folder), *preload]
        self._environment = dict(environment)
        self._folder = folder
        self._offload = offload
        #: Called when templates keep dying; nothing can be launched here after that.
        self._on_broken = on_broken
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: FrameChannel | None = None
        #: Asked for and not yet forked.
        self._asked: set[int] = set()
        #: Pids of living workers whose parent is the present template, and of those whose template died.
        self._pids: dict[int, int] = {}
        self._orphans: dict[int, int] = {}
        self._deaths: deque[float] = deque(maxlen=RESTARTS_MAX)

    @property
    def pid(self) -> int | None:
        """The template's process."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the template; it is ready when it has imported its runtime, and requests wait for it until then."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno()), *self._arguments],
                pass_fds=(theirs.fileno(),),
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._channel = FrameChannel(self._loop, ours, self._on_frame, self._on_closed, self._offload)

    def launch(self, number: int, descriptors: Descriptors) -> None:
        """See Launcher."""
        assert self._channel is not None
        self._asked.add(number)
        self._channel.send((protocol.FORK, number), descriptors=descriptors.all())

    def kill(self, number: int) -> None:
        """See Launcher."""
        if number in self._orphans:
            # Its template is gone and nobody reaps for us: kill at once and take it as gone.
            process_tree.kill_group(self._orphans.pop(number))
            self._loop.call_soon(self._events.process_ended, number, None)
        elif self._channel is not None:
            self._channel.send((protocol.KILL, number))

    def _on_frame(self, head: list[Any], tail: bytes) -> None:
        match head:
            case [protocol.FORKED, int(number), int(pid)]:
                self._asked.discard(number)
                self._pids[number] = pid
                self._events.process_started(number, pid)
            case [protocol.EXITED, int(number), int(status)]:
                del self._pids[number]
                self._events.process_ended(number, status)
            case _:
                raise protocol.MalformedFrameError(f"a frame of kind {head[0]} from the template")

    def _on_closed(self, lie: str | None) -> None:
        """The template died, or might as well: start another, or give up on templates."""
        self._drop_template()
        self._orphans.update(self._pids)
        self._pids.clear()
        asked, self._asked = sorted(self._asked), set()
        now = self._loop.time()
        self._deaths.append(now)
        if len(self._deaths) == RESTARTS_MAX and now - self._deaths[0] < RESTARTS_WITHIN_S:
            self._on_broken()
        else:
            self.start()
        for number in asked:
            self._events.process_ended(number, None)

    def _drop_template(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()  # a killed process of this size is gone within a millisecond or two
            self._process = None

    async def stop(self) -> None:
        """See Launcher. The template kills and reaps its workers and removes the scratch folder."""
        for number in list(self._orphans):
            self.kill(number)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            process = self._process
            await _wait_until(lambda: process.poll() is not None)
            self._drop_template()


async def _wait_until(ended: Callable[[], bool]) -> None:
    # Looking now and then: a child watcher or a process descriptor would be one more way for each system.
    loop = asyncio.get_running_loop()
    deadline = loop.time() + STOP_WAIT_S
    while not ended() and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_FIRST_S)


def can_fork() -> bool:
    """Whether a template can work here at all."""
    return sys.platform != "win32" and hasattr(os, "fork") and hasattr(socket, "send_fds")
