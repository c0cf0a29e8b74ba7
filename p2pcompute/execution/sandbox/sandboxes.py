"""A launcher that gives each program of each submitter sandboxes of its own, with a warm template in each.

The template runs inside and forks the program's workers, which then confine themselves further; a spare sandbox, warm and nobody's yet, waits
for the next program. Programs never share a sandbox: not their processes, files, memory or signals. A sandbox ends with its last
worker and is never given to another program. One whose program may start processes has a single worker, so that nothing survives it.

Refuses to know: what is inside a sandbox (`shelter.py`), and how a template works (`launcher.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from p2pcompute.execution.launcher import (
    INSIDE,
    RESTARTS_MAX,
    RESTARTS_WITHIN_S,
    Berth,
    LauncherEvents,
    Place,
    TemplateLauncher,
)
from p2pcompute.execution.pool_channel import Offload
from p2pcompute.execution.sandbox.grants import NO_GRANTS, Grants
from p2pcompute.execution.sandbox.shelter import Shelter
from p2pcompute.execution.worker_main import Descriptors

#: After a spare was taken, the next one is made so much later: its start must not slow what the first was taken for.
SPARE_AFTER_S = 0.3
#: A template has this long to kill a worker; then its whole sandbox ends.
KILL_WAIT_S = 1.0


@dataclass(slots=True, eq=False)
class _Sandbox:
    """`berths`: scratch folders that are free; `workers`: those taken, by number of worker."""

    template: TemplateLauncher
    grants: Grants
    berths: list[str]
    place: Place | None = None
    workers: dict[int, str] = field(default_factory=dict)


class SandboxLauncher:
    """See the file's docstring; it implements Launcher, and hears its templates as LauncherEvents."""

    def __init__(
        self,
        events: LauncherEvents,
        *,
        python: str,
        shelter: Shelter,
        environment: Mapping[str, str],
        preload: tuple[str, ...],
        offload: Offload,
        on_broken: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._python = python
        self._shelter = shelter
        self._environment = {**environment, **INSIDE}
        self._preload = preload
        self._offload = offload
        self._on_broken = on_broken
        self._spare: _Sandbox | None = None
        self._sandboxes: list[_Sandbox] = []
        self._of_worker: dict[int, _Sandbox] = {}
        self._refill: asyncio.TimerHandle | None = None
        self._deaths: deque[float] = deque(maxlen=RESTARTS_MAX)
        self._stopped = False

    @property
    def template_pids(self) -> list[int]:
        """Of the sandboxes, the spare one included."""
        every = [*self._sandboxes, *([self._spare] if self._spare is not None else [])]
        return [sandbox.template.pid for sandbox in every if sandbox.template.pid is not None]

    def start(self) -> None:
        """Make the spare; it is ready when its template has imported the runtime. Raises OSError."""
        self._spare = self._open(NO_GRANTS)

    def berth(self, number: int, place: Place, folder: Path | None) -> Berth:
        """See Launcher. Raises OSError where no sandbox can be made."""
        sandbox = next((each for each in self._sandboxes if each.place == place and each.berths), None)
        if sandbox is None:
            if self._spare is not None and place.grants == NO_GRANTS:
                sandbox, self._spare = self._spare, None
            else:
                sandbox = self._open(place.grants)
            sandbox.place = place
            self._sandboxes.append(sandbox)
            self._refill_soon()
        inside = sandbox.berths.pop(0)
        sandbox.workers[number] = inside
        self._of_worker[number] = sandbox
        return Berth(inside, self._shelter.confinement(inside, place.grants), self._shelter.variables(place.grants))

    def leave(self, number: int) -> None:
        """See Launcher."""
        self._free(number)

    def launch(self, number: int, descriptors: Descriptors) -> None:
        """See Launcher."""
        sandbox = self._of_worker[number]
        sandbox.template.launch(number, descriptors, sandbox.workers[number])

    def kill(self, number: int) -> None:
        """See Launcher."""
        sandbox = self._of_worker.get(number)
        if sandbox is None:
            return
        sandbox.template.kill(number)
        self._loop.call_later(KILL_WAIT_S, self._end_if_held, number, sandbox)

    def _end_if_held(self, number: int, sandbox: _Sandbox) -> None:
        """End a sandbox whose template does not obey: its own program must have got at it."""
        if number in sandbox.workers:
            sandbox.template.end()
            self._ended(sandbox)

    async def stop(self) -> None:
        """See Launcher."""
        self._stopped = True
        if self._refill is not None:
            self._refill.cancel()
        every = [*self._sandboxes, *([self._spare] if self._spare is not None else [])]
        templates = [sandbox.template for sandbox in every]
        for template in templates:
            template.close()
        for template in templates:
            await template.stop()

    # --- what templates tell

    def process_started(self, number: int, pid: int) -> None:
        """See LauncherEvents."""
        self._events.process_started(number, pid)

    def process_ended(self, number: int, status: int | None) -> None:
        """See LauncherEvents."""
        self._events.process_ended(number, status)
        self._free(number)

    def _free(self, number: int) -> None:
        sandbox = self._of_worker.pop(number, None)
        if sandbox is None:
            return
        sandbox.berths.append(sandbox.workers.pop(number))
        if not sandbox.workers and sandbox in self._sandboxes:
            self._sandboxes.remove(sandbox)
            sandbox.template.end()

    # --- making

    def _open(self, grants: Grants) -> _Sandbox:
        sandbox: _Sandbox
        template = TemplateLauncher(
            self,
            python=self._python,
            environment=self._environment,
            folder=None,
            preload=self._preload,
            offload=self._offload,
            on_broken=lambda: self._ended(sandbox),
            shelter=self._shelter,
            grants=grants,
            enclosed=True,
        )
        sandbox = _Sandbox(template, grants, list(self._shelter.view(grants).scratch))
        template.start()
        return sandbox

    def _ended(self, sandbox: _Sandbox) -> None:
        """A template is gone and nobody ended it: its workers are, too."""
        if sandbox is self._spare:
            self._spare = None
        if sandbox in self._sandboxes:
            self._sandboxes.remove(sandbox)
        for number in list(sandbox.workers):
            self._of_worker.pop(number, None)
            self._loop.call_soon(self._events.process_ended, number, None)
        sandbox.workers.clear()
        if self._stopped or sandbox.template.was_used:
            return
        # Without a program's doing: it does not start, or is killed from outside.
        now = self._loop.time()
        self._deaths.append(now)
        if len(self._deaths) == RESTARTS_MAX and now - self._deaths[0] < RESTARTS_WITHIN_S:
            self._on_broken()
        else:
            self._refill_soon()

    def _refill_soon(self) -> None:
        if self._spare is None and self._refill is None and not self._stopped:
            self._refill = self._loop.call_later(SPARE_AFTER_S, self._make_spare)

    def _make_spare(self) -> None:
        self._refill = None
        if self._spare is None and not self._stopped:
            try:
                self._spare = self._open(NO_GRANTS)
            except OSError:
                return  # the next program's first worker makes its own, or says what is missing
