"""Starting, killing and reaping worker processes, for the pool: by the warm template, or directly where that cannot be.

A launcher takes descriptors and gives back three kinds of news: a worker has a process, its process ended, or nobody will ever
know (the template died before it said). A template that dies is started again; workers that it forked live on. After
`RESTARTS_MAX` deaths within `RESTARTS_WITHIN_S` workers are started directly, which costs them a tenth of a second. Templates in
sandboxes are the affair of `sandbox/sandboxes.py`; a worker that is started directly gets a sandbox of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from p2pcompute.execution import process_tree
from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.pool_channel import FrameChannel, Offload
from p2pcompute.execution.pool_types import ProgramKey
from p2pcompute.execution.sandbox.bubblewrap import View
from p2pcompute.execution.sandbox.confine import Confinement
from p2pcompute.execution.sandbox.enclosure import Enclosed
from p2pcompute.execution.sandbox.grants import NO_GRANTS, Grants
from p2pcompute.execution.sandbox.shelter import Shelter
from p2pcompute.execution.worker_main import Descriptors

RESTARTS_MAX = 3
RESTARTS_WITHIN_S = 10.0
#: How long `stop` waits for the template to clean up and end.
STOP_WAIT_S = 3.0
#: How long a sandbox may take to end after the process in it.
INSIDE_WAIT_S = 0.5
_POLL_FIRST_S, _POLL_LAST_S = 0.001, 0.1
_TEMPLATE = "import sys; from p2pcompute.execution.template import main; main(sys.argv[1:])"
_WORKER = "import sys; from p2pcompute.execution.worker_main import main; main(sys.argv[1:])"


#: Of the environment inside a sandbox.
INSIDE = {"HOME": "/tmp", "TMPDIR": "/tmp", "USER": "worker", "LOGNAME": "worker"}
#: A shell's way, and bubblewrap's, to say in a status that a signal ended a process.
_SIGNALLED = 128


@dataclass(frozen=True, slots=True)
class Place:
    """Whom a worker serves and what it is granted: workers of one place may share a sandbox, others never."""

    key: ProgramKey
    grants: Grants = NO_GRANTS


@dataclass(frozen=True, slots=True)
class Berth:
    """Where one worker is to work. `folder`: its scratch folder, as it sees it; None for the one that the pool made for it.

    `variables`: of its environment, beside those that all workers have.
    """

    folder: str | None
    confinement: Confinement
    variables: Mapping[str, str] = field(default_factory=dict)


class LauncherEvents(Protocol):
    """What a launcher tells the pool."""

    def process_started(self, number: int, pid: int) -> None:
        """Worker `number` is process `pid`."""

    def process_ended(self, number: int, status: int | None) -> None:
        """Its process is gone; `status` as `subprocess` counts it, None where nobody saw."""


class Launcher(Protocol):
    """See the file's docstring."""

    def berth(self, number: int, place: Place, folder: Path | None) -> Berth:
        """Find room for a worker that `launch` is to start; `folder`: the one that the pool makes for it, None in sandboxes. Raises OSError."""

    def leave(self, number: int) -> None:
        """Give its room back: it is not launched after all."""

    def launch(self, number: int, descriptors: Descriptors) -> None:
        """Start a worker; the descriptors belong to the launcher from now on."""

    def kill(self, number: int) -> None:
        """Kill its process group; `process_ended` follows. Killing twice, or the dead, is no error."""

    async def stop(self) -> None:
        """Kill all that is left and wait for it, bounded."""


class DirectLauncher:
    """Each worker is a fresh interpreter, child of the peer, in a sandbox of its own where sandboxes work."""

    def __init__(
        self,
        events: LauncherEvents,
        *,
        python: str,
        environment: Mapping[str, str],
        folder: Path | None,
        shelter: Shelter,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._python = python
        self._environment = dict(environment)
        self._folder = folder
        self._shelter = shelter
        #: What each worker to be launched is granted.
        self._grants: dict[int, Grants] = {}
        #: Processes that were not reaped yet, and the sandboxes of those that have one.
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._enclosed: dict[int, Enclosed] = {}

    def berth(self, number: int, place: Place, folder: Path | None) -> Berth:
        """See Launcher."""
        self._grants[number] = place.grants
        inside = None
        if self._shelter.enclosure is not None:
            inside = self._shelter.view(place.grants).scratch[0]
        confinement = self._shelter.confinement(inside or str(folder), place.grants)
        return Berth(inside, confinement, self._shelter.variables(place.grants))

    def leave(self, number: int) -> None:
        """See Launcher."""
        del self._grants[number]

    def launch(self, number: int, descriptors: Descriptors) -> None:
        """See Launcher."""
        numbers = descriptors.all()
        try:
            process = self._start(number, numbers, self._grants.pop(number))
        except OSError:
            self._loop.call_soon(self._events.process_ended, number, None)
            return
        finally:
            for each in numbers:
                os.close(each)
        self._processes[number] = process
        self._loop.call_soon(self._events.process_started, number, process.pid)

    def _start(self, number: int, numbers: tuple[int, ...], grants: Grants) -> subprocess.Popen[bytes]:
        command = [self._python, "-P", "-c", _WORKER, *map(str, numbers)]
        if self._shelter.enclosure is not None:
            view = self._shelter.view(grants)
            environment = {**self._environment, **INSIDE}
            enclosed = self._shelter.enclosure.start(view, command, numbers, environment)
            self._enclosed[number] = enclosed
            return enclosed.process
        return subprocess.Popen(
            command,
            pass_fds=numbers,
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self, number: int) -> None:
        """See Launcher."""
        process = self._processes.get(number)
        if process is None:
            return
        if number in self._enclosed and self._enclosed[number].kill_inside():
            # The sandbox then tells how its process ended; one that does not is ended itself.
            self._loop.call_later(INSIDE_WAIT_S, self._kill_outside, process)
        else:
            self._kill_outside(process)
        self._reap(number, _POLL_FIRST_S)

    def _kill_outside(self, process: subprocess.Popen[bytes]) -> None:
        if process.returncode is None:
            process_tree.kill_group(process.pid)  # not reaped yet, so the number is still its own

    def _reap(self, number: int, delay_s: float) -> None:
        process = self._processes.get(number)
        if process is None:
            return
        status = process.poll()
        if status is None:
            self._loop.call_later(delay_s, self._reap, number, min(delay_s * 2, _POLL_LAST_S))
            return
        del self._processes[number]
        if number in self._enclosed:
            self._enclosed.pop(number).close()
        if self._shelter.enclosure is not None and status > _SIGNALLED:
            status = _SIGNALLED - status
        self._loop.call_soon(self._events.process_ended, number, status)

    async def stop(self) -> None:
        """See Launcher."""
        for number in list(self._processes):
            self.kill(number)
        await _wait_until(lambda: not self._processes)


class TemplateLauncher:
    """Workers are forked from a warm template process (`template.py`), all in one sandbox or in none."""

    def __init__(
        self,
        events: LauncherEvents,
        *,
        python: str,
        environment: Mapping[str, str],
        folder: Path | None,
        preload: tuple[str, ...],
        offload: Offload,
        on_broken: Callable[[], None],
        shelter: Shelter,
        grants: Grants = NO_GRANTS,
        enclosed: bool = False,
    ) -> None:
        """`folder`: of workers outside of sandboxes. `enclosed`: be a sandbox, in which all workers have `grants`."""
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._command = [python, "-P", "-c", _TEMPLATE]
        rules = shelter.confinement("", grants).rules() if shelter.seccomp else None
        self._arguments = [str(folder or ""), "" if rules is None else json.dumps(asdict(rules)), *preload]
        self._environment = dict(environment)
        self._folder = folder
        self._offload = offload
        #: Called when templates keep dying, or one that is enclosed has died: nothing can be launched here after that.
        self._on_broken = on_broken
        self._shelter = shelter
        #: What the sandbox shows, None outside of sandboxes.
        self._view: View | None = shelter.view(grants) if enclosed else None
        self._enclosed: Enclosed | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: FrameChannel | None = None
        #: Asked for and not yet forked.
        self._asked: set[int] = set()
        #: Pids of living workers whose parent is the present template, and of those whose template died.
        self._pids: dict[int, int] = {}
        self._orphans: dict[int, int] = {}
        self._deaths: deque[float] = deque(maxlen=RESTARTS_MAX)
        #: Whether a worker was ever forked here.
        self.was_used = False

    @property
    def pid(self) -> int | None:
        """The template's process, or that of its sandbox."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the template; it is ready when it has imported its runtime, and requests wait for it until then. Raises OSError."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            with theirs:
                self._process = self._start_process(theirs.fileno())
            undo.pop_all()
        self._channel = FrameChannel(self._loop, ours, self._on_frame, self._on_closed, self._offload)

    def _start_process(self, descriptor: int) -> subprocess.Popen[bytes]:
        command = [*self._command, str(descriptor), *self._arguments]
        if self._view is not None:
            assert self._shelter.enclosure is not None
            self._enclosed = self._shelter.enclosure.start(
                self._view, command, (descriptor,), self._environment, stdout=subprocess.DEVNULL
            )
            return self._enclosed.process
        return subprocess.Popen(
            command,
            pass_fds=(descriptor,),
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def berth(self, number: int, place: Place, folder: Path | None) -> Berth:
        """See Launcher; for workers outside of sandboxes."""
        confinement = self._shelter.confinement(str(folder), place.grants)
        return Berth(None, confinement, self._shelter.variables(place.grants))

    def leave(self, number: int) -> None:
        """See Launcher."""

    def launch(self, number: int, descriptors: Descriptors, scratch: str = "") -> None:
        """See Launcher. `scratch`: a folder that the template empties after the worker."""
        if self._channel is None:
            for each in descriptors.all():
                os.close(each)
            self._loop.call_soon(self._events.process_ended, number, None)
            return
        self._asked.add(number)
        self._channel.send((protocol.FORK, number, scratch), descriptors=descriptors.all())

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
                if number not in self._asked:
                    raise protocol.MalformedFrameError("a worker that nobody asked for")
                self._asked.discard(number)
                self.was_used = True
                outer = pid if self._enclosed is None else self._enclosed.outer_pid(pid)
                self._pids[number] = outer or 0
                if outer is not None:
                    self._events.process_started(number, outer)
            case [protocol.EXITED, int(number), int(status)]:
                if self._pids.pop(number, None) is None:
                    raise protocol.MalformedFrameError("the end of a worker that was never begun")
                self._events.process_ended(number, status)
            case _:
                raise protocol.MalformedFrameError(f"a frame of kind {head[0]} from the template")

    def _on_closed(self, lie: str | None) -> None:
        """The template died, or might as well: start another, or give up on templates."""
        self._drop_template()
        if self._view is not None:
            self._pids.clear()  # the sandbox went, and all in it
            self._asked.clear()
            self._on_broken()
            return
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

    def close(self) -> None:
        """Have the template kill its workers and end, in its own time."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def end(self) -> None:
        """End the template at once, and with it its sandbox."""
        self._drop_template()

    def _drop_template(self) -> None:
        self.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()  # a killed process of this size is gone within a millisecond or two
            self._process = None
        if self._enclosed is not None:
            self._enclosed.close()

    async def stop(self) -> None:
        """See Launcher. The template kills and reaps its workers and removes the scratch folder."""
        for number in list(self._orphans):
            self.kill(number)
        self.close()
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
