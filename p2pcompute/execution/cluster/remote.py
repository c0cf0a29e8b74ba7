"""What a peer has a cluster's workers run: `run`, one small function that any executor can ship by name.

A worker of a cluster is a process that is not ours: threads of other people's work may run in it, so no program is loaded into it. It
keeps a pool of worker processes beside it, as a peer does, and hands them what comes: one process serves one program of one
submitter, a time-out kills it and nobody else, and what crashes is that process. They die with the cluster's worker. Programs and data behind
handles are kept for the next call, by submitter and digest, so that nobody is served what another brought.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import platform
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import p2pcompute
from p2pcompute.execution.cluster.calls import Answer, Call, Failed, Site, open_call, pack_answer, pack_site
from p2pcompute.execution.engines.document import head_of
from p2pcompute.execution.pool import PoolSettings, ProgramKey, TaskEnd, WorkerPool
from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import BlobId, PeerId, ProgramId
from p2pcompute.model.job import Outcome

Row = tuple[int, int]
_STOP_TIMEOUT_S = 5.0
#: Guards the making of the one host of this process.
_MAKING = threading.Lock()
#: The host by process number: one a process, because executors call functions and keep no objects; a fork makes its own.
_HOSTS: dict[int, Host] = {}


def run(data: bytes) -> bytes:
    """Run the tasks of a call, wait for them, and answer. See `calls.py`."""
    return _host().serve(open_call(data))


def stop(call: bytes) -> bool:
    """Kill what runs for `call` in this process; whether there was anything. The call answers that its tasks were cancelled."""
    host = _HOSTS.get(os.getpid())
    return host is not None and host.stop_call(call)


def describe(_: bytes) -> bytes:
    """What this worker is, as `calls.open_site` reads it."""
    return pack_site(Site(platform.python_version(), p2pcompute.__version__))


def _host() -> Host:
    with _MAKING:
        own = os.getpid()
        if own not in _HOSTS:
            _HOSTS.clear()
            _HOSTS[own] = Host()
            atexit.register(_HOSTS[own].close)
        return _HOSTS[own]


class _Clock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


@dataclass(slots=True)
class _Runner:
    """A worker process, and the call that it works on; None while it is idle."""

    number: int
    binding: tuple[ProgramKey, int | None]
    ready: bool = False
    work: _Work | None = None
    idle_since: float = 0.0


@dataclass(slots=True)
class _Work:
    """A call that runs, and what has become of it so far."""

    call: Call
    done: asyncio.Future[None]
    ends: list[TaskEnd] = field(default_factory=list)
    unfinished: list[Row] = field(default_factory=list)
    progress: list[tuple[int, float, str]] = field(default_factory=list)
    output: list[tuple[int, int, bytes]] = field(default_factory=list)
    wanted: dict[bytes, int] = field(default_factory=dict)
    #: Whether the task that runs, or the loading, waits for what is not here: its end is none.
    in_vain: bool = False
    #: Whether it was stopped from outside.
    stopped: bool = False
    gone: str = ""
    failed: Failed | None = None

    @property
    def is_over(self) -> bool:
        return len(self.ends) + len(self.unfinished) >= len(self.call.rows)

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Host:
    """The pool of this process, on an event loop in a thread of its own. Implements PoolEvents there."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="p2pcompute-cluster", daemon=True)
        #: Belong to the loop: workers, calls by id, and kept bytes by (origin, digest), least recently used first.
        self._runners: dict[int, _Runner] = {}
        self._calls: dict[bytes, _Runner] = {}
        self._kept: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()
        self._kept_bytes = 0
        self._looking: asyncio.TimerHandle | None = None
        self._thread.start()
        self._pool = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    async def _start(self) -> WorkerPool:
        _sweep()
        # No template: a cluster has many processes, and one beside each of them would be memory for nothing.
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        pool = WorkerPool(self, _Clock(), PoolSettings(use_template=False, folder=self._folder))
        await pool.start()
        return pool

    def serve(self, call: Call) -> bytes:
        """Run a call to its end. In any thread but the loop's."""
        return asyncio.run_coroutine_threadsafe(self._serve(call), self._loop).result()

    def stop_call(self, call: bytes) -> bool:
        """See `stop`."""
        return asyncio.run_coroutine_threadsafe(self._stop_call(call), self._loop).result(_STOP_TIMEOUT_S)

    def close(self) -> None:
        """Kill every worker and remove what lies about; bounded."""
        with contextlib.suppress(TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(self._pool.stop(), self._loop).result(_STOP_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- calls, on the loop ---------------------------------------------------------------------------------------------

    async def _serve(self, call: Call) -> bytes:
        for digest, content in call.data:
            self._keep((call.origin, digest), content)
        missing = tuple(name for name in (call.program, *call.names) if self._get(call.origin, name) is None)
        if missing:
            return pack_answer(Answer(missing=missing))
        work = _Work(call, self._loop.create_future())
        try:
            runner = self._runner_for(call)
        except (P2PComputeError, OSError) as error:
            rows = tuple((row[0], row[1]) for row in call.rows)
            return pack_answer(Answer(unfinished=rows, gone=str(error)))
        runner.work = work
        self._calls[call.call] = runner
        if call.rows:
            self._pool.run(runner.number, call.runs)
        elif runner.ready:
            work.finish()
        try:
            await work.done
        finally:
            del self._calls[call.call]
            runner.work = None
            runner.idle_since = self._loop.time()
            self._look_later()
        return pack_answer(
            Answer(
                ends=tuple(
                    (end.task, end.attempt, int(end.outcome), end.wall_us, bytes(end.payload)) for end in work.ends
                ),
                unfinished=tuple(work.unfinished),
                progress=tuple(work.progress),
                output=tuple(work.output),
                wanted=tuple(work.wanted.items()),
                gone=work.gone,
                failed=work.failed,
            )
        )

    async def _stop_call(self, call: bytes) -> bool:
        runner = self._calls.get(call)
        if runner is None or runner.work is None:
            return False
        runner.work.stopped = True
        self._pool.retire(runner.number)
        return True

    def _runner_for(self, call: Call) -> _Runner:
        """An idle one of this program, or a new one."""
        binding = (ProgramKey(PeerId(call.origin), ProgramId(call.program)), call.memory_bytes)
        for runner in self._runners.values():
            if runner.binding == binding and runner.work is None:
                return runner
        program = self._get(call.origin, call.program)
        assert program is not None
        number = self._pool.spawn(binding[0], program, call.memory_bytes, head_of(program))
        runner = self._runners[number] = _Runner(number, binding)
        return runner

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = self._loop.call_later(limits.CLUSTER_IDLE_S, self._look)

    def _look(self) -> None:
        """Let go of whom nobody has called for long."""
        self._looking = None
        now = self._loop.time()
        idle = [runner for runner in self._runners.values() if runner.work is None]
        for runner in idle:
            if now - runner.idle_since >= limits.CLUSTER_IDLE_S * 0.99:
                self._pool.retire(runner.number)
        if idle:
            self._look_later()

    # --- what is kept ---------------------------------------------------------------------------------------------------

    def _keep(self, key: tuple[bytes, bytes], content: bytes) -> None:
        if key in self._kept:
            return
        self._kept[key] = content
        self._kept_bytes += len(content)
        # The newest stays whatever its size: the call that brought it is about to use it.
        while self._kept_bytes > limits.CLUSTER_KEPT_BYTES_MAX and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped)

    def _get(self, origin: bytes, digest: bytes) -> bytes | None:
        found = self._kept.get((origin, digest))
        if found is not None:
            self._kept.move_to_end((origin, digest))
        return found

    # --- PoolEvents -----------------------------------------------------------------------------------------------------

    def _work_of(self, worker: int) -> _Work | None:
        runner = self._runners.get(worker)
        return None if runner is None else runner.work

    def tasks_ended(self, worker: int, ends: Sequence[TaskEnd]) -> None:
        """See PoolEvents."""
        work = self._work_of(worker)
        if work is None:
            return
        for end in ends:
            if work.in_vain:
                # It says that its data was missing, which its user will never hear: it is given again.
                work.in_vain = False
                work.unfinished.append((end.task, end.attempt))
            else:
                work.ends.append(end)
        if work.is_over:
            work.finish()

    def task_news(
        self, worker: int, progress: Sequence[tuple[int, float, str]], output: Sequence[tuple[int, int, bytes]]
    ) -> None:
        """See PoolEvents: told with the answer, of progress the newest of each task."""
        work = self._work_of(worker)
        if work is not None:
            work.progress = [*{row[0]: row for row in (*work.progress, *progress)}.values()]
            work.output.extend(output)

    def worker_ready(self, worker: int) -> None:
        """See PoolEvents."""
        self._runners[worker].ready = True
        work = self._work_of(worker)
        if work is not None and not work.call.rows:
            work.finish()

    def worker_gone(self, worker: int, unfinished: Sequence[Row], cause: str, outcome: Outcome) -> None:
        """See PoolEvents."""
        work = self._runners.pop(worker).work
        if work is None:
            return
        if work.stopped:
            work.ends.extend(
                TaskEnd(task, attempt, Outcome.CANCELLED, 0, cause.encode()) for task, attempt in unfinished
            )
        else:
            work.unfinished.extend(unfinished)
        work.gone = cause
        work.finish()

    def blob_wanted(self, worker: int, blob: BlobId, size_bytes: int) -> None:
        """See PoolEvents."""
        work = self._work_of(worker)
        content = None if work is None else self._get(work.call.origin, blob)
        if content is None and work is not None and blob not in work.call.absent:
            work.wanted[bytes(blob)] = size_bytes
            work.in_vain = True
        self._pool.supply(worker, blob, content)

    def program_failed(self, worker: int, reason: str, module: str, text: str) -> None:
        """See PoolEvents."""
        work = self._work_of(worker)
        if work is not None and not work.wanted:
            work.failed = Failed(reason, module[:1024], text)


# --- folders ----------------------------------------------------------------------------------------------------------

_FOLDER = "p2pcompute-cluster-"


def _sweep() -> None:
    """Remove the folders of processes that were killed: nobody else will."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        number = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True
