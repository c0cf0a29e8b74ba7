"""The worker pool: processes that run other people's tasks for this peer, on its event loop.

It starts workers, gives them tasks, hears how they end, kills what runs too long, eats too much or is not wanted any more, and
says who is to blame for a death and what comes back untouched. Killing is always SIGKILL to the whole process group:
nothing that user code does can delay it. Every attempt given to `run` comes back exactly once, in `tasks_ended` or in
`worker_gone`.

Refuses to know: jobs, credits, links, and what a payload means.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from p2pcompute.execution import process_tree
from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.engines.document import PLAIN, ProgramHead
from p2pcompute.execution.engines.wasm_python_build import COMPILED_VARIABLE
from p2pcompute.execution.launcher import DirectLauncher, Launcher, Place, TemplateLauncher, can_fork
from p2pcompute.execution.pool_channel import FrameChannel
from p2pcompute.execution.pool_groups import WorkerGroups
from p2pcompute.execution.pool_parts import make_worker, shelter_of
from p2pcompute.execution.pool_types import PoolEvents, PoolSettings, ProgramKey, TaskEnd, TaskRun, WorkerInfo
from p2pcompute.execution.pool_worker import PoolWorker, Sentence
from p2pcompute.execution.resources import worker_environment
from p2pcompute.execution.sandbox.sandboxes import SandboxLauncher
from p2pcompute.execution.sandbox.shelter import Shelter
from p2pcompute.model import limits
from p2pcompute.model.errors import ResourceError, UsageError
from p2pcompute.model.ids import BlobId
from p2pcompute.model.job import Outcome
from p2pcompute.model.peer import Isolation
from p2pcompute.model.seams import Clock

__all__ = ["PoolEvents", "PoolSettings", "ProgramKey", "TaskEnd", "TaskRun", "WorkerInfo", "WorkerPool"]

T = TypeVar("T")


#: How often busy workers are looked at: their memory, and output that they do not read themselves.
INSPECT_S = 0.25
#: Pauses between weighings, in lengths of the last: on a machine with many processes weighing costs a few per cent at most. While
#: one is under way no other begins.
WEIGH_PAUSES = 25
WEIGH_PAUSE_MAX_S = 2.0
WEIGH_WAIT_S = 60.0
#: A task that a worker begins just when it is cancelled, or when the worker becomes ready, is found by a look so much later.
SOON_S = 0.01
STARVED = "used more memory than is allowed; the kernel killed it, or a process that it had started"
#: A worker whose connection closed must be reported dead within this, else it is taken as gone.
GONE_WAIT_S = 2.0


class WorkerPool:
    """See the file's docstring. All methods belong to one event loop."""

    def __init__(
        self, events: PoolEvents, clock: Clock, settings: PoolSettings, numbers: Iterator[int] | None = None
    ) -> None:
        """`numbers`: what workers are called; pools that stand side by side share one."""
        self._events = events
        self._clock = clock
        self._settings = settings
        self._workers: dict[int, PoolWorker] = {}
        self._numbers = numbers if numbers is not None else itertools.count(1)
        #: The first launches; the template is missing from here once it keeps dying.
        self._launchers: list[Launcher] = []
        self._warm: TemplateLauncher | SandboxLauncher | None = None
        self._shelter: Shelter | None = None
        #: Launcher of each living worker.
        self._launched_by: dict[int, Launcher] = {}
        #: The pool's own scratch folder; None before start, and where workers have theirs in sandboxes.
        self._folder: Path | None = None
        #: Blocking trifles: removing folders, weighing processes, joining large values.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="p2pcompute-pool")
        self._chores: set[asyncio.Future[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: Monotonic seconds of the last look at all busy workers, and when they may be weighed again.
        self._inspected_at = 0.0
        self._weigh_again_at = 0.0

    async def start(self) -> None:
        """Make the scratch folder and start the template; returns before the template is warm."""
        self._loop = asyncio.get_running_loop()
        environment = worker_environment(os.environ, threads=self._settings.threads_per_worker)
        if self._settings.wasm_python is not None:
            environment[COMPILED_VARIABLE] = str(self._settings.wasm_python)
        self._shelter = await self._chore(lambda: shelter_of(self._settings, environment))
        if self._settings.folder is not None:
            # Left by a peer that was killed; the instance's lock says it is ours.
            shutil.rmtree(self._settings.folder / "workers", ignore_errors=True)
        if self._shelter.enclosure is None:
            self._folder = self._make_folder()
            environment["HOME"] = environment["TMPDIR"] = str(self._folder)
        self._groups = WorkerGroups(self._shelter.cgroups, self._settings.threads_per_worker, self._loop, self._chore)
        direct = DirectLauncher(
            self, python=self._settings.python, environment=environment, folder=self._folder, shelter=self._shelter
        )
        self._launchers = [direct]
        if self._settings.use_template and can_fork():
            launcher = self._make_warm(self._shelter, environment)
            launcher.start()
            self._launchers.insert(0, launcher)
            self._warm = launcher

    def _make_warm(self, shelter: Shelter, environment: Mapping[str, str]) -> TemplateLauncher | SandboxLauncher:
        preload = self._settings.preload
        launcher: TemplateLauncher | SandboxLauncher
        if shelter.enclosure is not None:
            launcher = SandboxLauncher(
                self,
                python=self._settings.python,
                shelter=shelter,
                environment=environment,
                preload=preload,
                offload=self._offload,
                on_broken=lambda: self._launchers.remove(launcher),
            )
        else:
            launcher = TemplateLauncher(
                self,
                python=self._settings.python,
                environment=environment,
                folder=self._folder,
                preload=preload,
                offload=self._offload,
                on_broken=lambda: self._launchers.remove(launcher),
                shelter=shelter,
            )
        return launcher

    @property
    def isolation(self) -> Isolation:
        """How workers are held, once started."""
        assert self._shelter is not None, "asked before start()"
        return self._shelter.level

    def _make_folder(self) -> Path:
        root = self._settings.folder
        if root is None:
            return Path(tempfile.mkdtemp(prefix="p2pcompute-"))
        folder = root / "workers"
        folder.mkdir(parents=True, mode=0o700)
        return folder

    @property
    def workers(self) -> Mapping[int, WorkerInfo]:
        """All workers by number, as they are now."""
        return MappingProxyType({number: self._info(worker) for number, worker in self._workers.items()})

    def _info(self, worker: PoolWorker) -> WorkerInfo:
        run, _, _ = worker.running()
        return WorkerInfo(
            key=worker.key,
            pid=worker.pid,
            ready=worker.ready,
            running=None if run is None else (run.task, run.attempt),
            queued=len(worker.unfinished()),
            tasks_done=worker.tasks_done,
            started_at=worker.started_at,
        )

    # --- what the peer asks for

    def spawn(self, key: ProgramKey, program: bytes, memory_bytes: int | None = None, head: ProgramHead = PLAIN) -> int:
        """Start a worker that serves `key`; its number. Tasks may be given at once.

        `program`: the bundle; `memory_bytes`: address space, None for the pool's own limit, never more than that; `head`: what the
        program says of itself. Raises ResourceError where the machine has no process, descriptor or disk left for it.
        """
        if not self._launchers or self._shelter is None:
            raise UsageError("the worker pool is not running: call start() first, and nothing after stop()")
        place = Place(key, self._shelter.choose(head.allowed))
        memory_limits = [each for each in (memory_bytes, self._settings.memory_bytes) if each is not None]
        number = next(self._numbers)
        launcher = self._launchers[0]
        berth = None
        try:
            folder = None if self._folder is None else self._folder / f"worker-{number}"
            berth = launcher.berth(number, place, folder)
            worker, connection, descriptors = make_worker(
                number, key, folder, min(memory_limits, default=None), self._clock.monotonic()
            )
        except OSError as error:
            if berth is not None:
                launcher.leave(number)
            raise ResourceError(
                f"no worker process could be started: {error.strerror or error}; free descriptors or disk, or lend fewer slots"
            ) from error
        self._workers[number] = worker
        worker.channel = FrameChannel(
            self._loop,
            connection,
            lambda head, tail: self._on_frame(worker, head, tail),
            lambda lie: self._on_connection_closed(worker, lie),
            self._offload,
        )
        if self._groups.active and place.grants.processes:
            # A bomb is quicker than the tens of milliseconds that the kernel takes to move a process; threads alone are watched meanwhile.
            worker.channel.hold()
        settings = {
            "folder": berth.folder or str(worker.folder),
            "memory_bytes": worker.memory_bytes,
            "open_files_max": self._settings.open_files_max,
            "nice": self._settings.nice,
            "engine": head.engine.value,
            "confinement": berth.confinement.to_map(),
            "variables": dict(berth.variables),
        }
        worker.channel.send((protocol.LOAD, settings), program)
        self._launched_by[number] = launcher
        launcher.launch(number, descriptors)
        self._look_within(self._settings.start_timeout_s)
        return number

    def run(self, worker: int, batch: Sequence[TaskRun]) -> None:
        """Queue a batch on a worker, which runs it in order. Raises UsageError for a worker that is gone."""
        held = self._workers.get(worker)
        if held is None:
            raise UsageError(f"worker {worker} is gone")
        held.give(batch)
        shortest_s = min((run.timeout_s for run in batch if run.timeout_s is not None), default=INSPECT_S)
        self._look_within(min(shortest_s, INSPECT_S))

    def cancel(self, worker: int, tasks: Collection[tuple[int, int]]) -> None:
        """Take back these (task, attempt): they end as CANCELLED, and one that runs is killed with its worker."""
        held = self._workers.get(worker)
        if held is None:
            return
        ends, running = held.cancel(tasks)
        if running:
            self._condemn(held, Sentence(running, Outcome.CANCELLED, "cancelled while it ran; its process was killed"))
        else:
            self._look_within(SOON_S)
        if ends:
            self._loop.call_soon(self._events.tasks_ended, worker, ends)

    def retire(self, worker: int) -> None:
        """Let a worker go, idle or not; what it has in hand comes back as unfinished."""
        held = self._workers.get(worker)
        if held is not None:
            self._condemn(held, Sentence(0, Outcome.RETURNED_UNRUN, "the worker was let go"))

    def supply(self, worker: int, blob: BlobId, data: bytes | bytearray | memoryview | None) -> None:
        """Answer `blob_wanted`; None where nobody holds it. Does nothing where the worker is gone."""
        held = self._workers.get(worker)
        if held is not None:
            held.supply(blob, data, self._clock.monotonic())

    async def stop(self) -> None:
        """Kill every worker, hand back what they had, and clean up; bounded by a few seconds."""
        for worker in list(self._workers.values()):
            self._condemn(worker, Sentence(0, Outcome.RETURNED_UNRUN, "the peer stops"))
        launchers, self._launchers = self._launchers, []
        if self._warm is not None and self._warm not in launchers:
            launchers.append(self._warm)  # broken, but there may be workers that it forked
        for launcher in launchers:
            await launcher.stop()
        for worker in list(self._workers.values()):
            self._finish(worker, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        folder, self._folder = self._folder, None
        while self._chores:
            await asyncio.wait(self._chores)
        if self._shelter is not None:
            await self._groups.stop()
        if folder is not None:
            await self._chore(lambda: shutil.rmtree(folder, ignore_errors=True))
        self._threads.shutdown(wait=False)

    # --- what launchers tell

    def process_started(self, number: int, pid: int) -> None:
        """See LauncherEvents."""
        worker = self._workers.get(number)
        if worker is not None:
            worker.pid = pid
            channel = worker.channel
            assert channel is not None
            self._groups.enter(number, pid, worker.memory_bytes, channel.release)

    def process_ended(self, number: int, status: int | None) -> None:
        """See LauncherEvents."""
        worker = self._workers.get(number)
        if worker is None:
            return
        if status is None and worker.pid is None and worker.sentence is None:
            worker.sentence = Sentence(0, Outcome.RETURNED_UNRUN, "its process could not be started; another one may")
        self._finish(worker, status)

    # --- what workers tell

    def _on_frame(self, worker: PoolWorker, head: list[Any], tail: bytes) -> None:
        match head:
            case [protocol.ENDS, bytes(rows)]:
                self._on_ends(worker, protocol.parse_ends(rows))
            case [protocol.END_LARGE, serial, outcome, wall_us, usage]:
                self._on_ends(worker, [(serial, outcome, wall_us, tail, usage)])
            case [protocol.NEWS, list(progress), list(output)]:
                heard, printed = worker.take_news(progress, output)
                if heard or printed:
                    self._events.task_news(worker.number, heard, printed)
            case [protocol.WANT_BLOB, bytes(blob), int(size_bytes)]:
                self._events.blob_wanted(worker.number, worker.take_want(blob, size_bytes), size_bytes)
            case [protocol.READY] if not worker.ready:
                worker.ready = True
                self._look_within(SOON_S)  # its tasks begin now, and with them their time
                self._events.worker_ready(worker.number)
            case [protocol.FAILED, str(reason), str(module), str(text)]:
                if worker.sentence is None:
                    self._condemn(worker, Sentence(0, Outcome.CANNOT_RUN, f"the program does not load: {text}"))
                    self._events.program_failed(worker.number, reason, module, text)
            case _:
                raise protocol.MalformedFrameError(f"a frame of kind {head[0]}")

    def _on_ends(self, worker: PoolWorker, rows: Sequence[Any]) -> None:
        ends = worker.take_ends(rows)
        worker.worn = worker.tasks_done >= self._settings.tasks_per_worker_max
        if worker.worn and worker.idle:
            text = f"replaced after {worker.tasks_done} tasks"
            self._condemn(worker, Sentence(0, Outcome.RETURNED_UNRUN, text))
        if ends:
            self._events.tasks_ended(worker.number, ends)

    def _take_mirrored(self, worker: PoolWorker) -> None:
        """Take ends that the worker gathered and did not send: it is dead, or long in a task that holds its interpreter."""
        _, serial, since = worker.running()
        rows = worker.page.mirrored()
        if worker.page.running() == (serial, since):
            # What user code wrote into its own page is its own affair.
            with contextlib.suppress(protocol.MalformedFrameError):
                self._on_ends(worker, protocol.parse_ends(rows))

    def _on_connection_closed(self, worker: PoolWorker, lie: str | None) -> None:
        """It died, closed its connection, or lied: make sure that it is dead, and wait until somebody has seen how."""
        if lie is not None:
            _, serial, _ = worker.running()
            self._condemn(worker, Sentence(serial, Outcome.WORKER_DIED, f"the worker sent what no worker sends: {lie}"))
        self._kill(worker)

    # --- endings

    def _condemn(self, worker: PoolWorker, sentence: Sentence) -> None:
        """Kill a worker for a reason; the first reason counts."""
        if worker.sentence is None:
            worker.sentence = sentence
            self._kill(worker)

    def _kill(self, worker: PoolWorker) -> None:
        self._launched_by[worker.number].kill(worker.number)
        self._loop.call_later(GONE_WAIT_S, self._give_up_on, worker)

    def _give_up_on(self, worker: PoolWorker) -> None:
        if self._workers.get(worker.number) is worker:
            if worker.pid is not None:
                process_tree.kill_group(worker.pid)
            self._finish(worker, None)

    def _finish(self, worker: PoolWorker, status: int | None) -> None:
        """Tell the end of a worker: what it said last, whom its death is to blame on, what comes back."""
        number = worker.number
        if worker.channel is not None:
            worker.channel.drain()
        if number in self._workers:
            self._take_mirrored(worker)
        if self._workers.pop(number, None) is None:
            return
        del self._launched_by[number]
        if self._groups.leave(number) and worker.sentence is None and status == -signal.SIGKILL:
            _, serial, _ = worker.running()
            worker.sentence = Sentence(serial, Outcome.OUT_OF_MEMORY, STARVED)
        sentence = worker.sentence
        printed = worker.rescue_output(only_full=False)
        cause = process_tree.describe_exit(status) if sentence is None else sentence.text
        ended = worker.blamed(cause, self._clock.monotonic())
        unfinished = worker.unfinished()
        worker.close()
        if worker.folder is not None:
            self._chore(lambda: shutil.rmtree(str(worker.folder), ignore_errors=True))
        if printed:
            self._events.task_news(number, [], printed)
        if ended is not None:
            self._events.tasks_ended(number, [ended])
        outcome = Outcome.WORKER_DIED if sentence is None else sentence.outcome
        self._events.worker_gone(number, unfinished, cause, outcome)

    # --- looking after busy workers

    def _look_within(self, delay_s: float) -> None:
        when = self._loop.time() + delay_s
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        delays = [self._look_at(worker, now) for worker in list(self._workers.values())]
        busy = [worker for worker in self._workers.values() if not worker.idle and worker.sentence is None]
        if busy and now - self._inspected_at >= INSPECT_S * 0.9:
            self._inspected_at = now
            self._weigh(busy, now)
            for worker in busy:
                _, serial, since = worker.running()
                if serial and now - since > INSPECT_S / 2:
                    self._take_mirrored(worker)
                rows = worker.rescue_output(only_full=True)
                if rows:
                    self._events.task_news(worker.number, [], rows)
        due = [delay for delay in delays if delay is not None]
        if due:
            self._look_within(max(min(due), 0.001))

    def _look_at(self, worker: PoolWorker, now: float) -> float | None:
        """Kill it if its time is over; else how many seconds until it should be looked at again, None while it is idle."""
        if worker.sentence is not None:
            return None
        due = worker.due(now, self._settings.start_timeout_s, INSPECT_S)
        if isinstance(due, Sentence):
            self._condemn(worker, due)
            return None
        return due

    def _weigh(self, busy: Sequence[PoolWorker], now: float) -> None:
        """Weigh the process families of busy workers in a thread, then kill what is too heavy or has too many threads."""
        known = [(each, each.pid, each.memory_bytes) for each in busy if each.pid]
        if not known or now < self._weigh_again_at:
            return
        self._weigh_again_at = now + WEIGH_WAIT_S
        pids, allowed = [pid for _, pid, _ in known], [memory_bytes for _, _, memory_bytes in known]

        groups = self._groups.of([worker.number for worker, _, _ in known])

        def weigh() -> tuple[list[process_tree.Weight], set[int]]:
            starved = {number for number, group in groups.items() if group.was_out_of_memory()}
            return process_tree.weigh_families(pids, allowed), starved

        def judge(done: asyncio.Future[tuple[list[process_tree.Weight], set[int]]]) -> None:
            took_s = self._clock.monotonic() - now
            self._weigh_again_at = now + min(max(took_s * WEIGH_PAUSES, INSPECT_S * 0.9), WEIGH_PAUSE_MAX_S)
            weights, starved = done.result()
            for (worker, _, memory_bytes), weight in zip(known, weights, strict=True):
                if self._workers.get(worker.number) is not worker:
                    continue
                _, serial, _ = worker.running()
                if memory_bytes is not None and weight.memory_bytes > memory_bytes:
                    text = (
                        f"used {weight.memory_bytes >> 20} MiB of memory where {memory_bytes >> 20} MiB are allowed; "
                        "its process was killed"
                    )
                    self._condemn(worker, Sentence(serial, Outcome.OUT_OF_MEMORY, text))
                elif worker.number in starved:
                    self._condemn(worker, Sentence(serial, Outcome.OUT_OF_MEMORY, STARVED))
                elif weight.threads > limits.WORKER_THREADS_MAX:
                    text = (
                        f"had {weight.threads} threads and processes where {limits.WORKER_THREADS_MAX} are allowed; "
                        "all were killed"
                    )
                    self._condemn(worker, Sentence(serial, Outcome.WORKER_DIED, text))

        self._chore(weigh).add_done_callback(judge)

    # --- threads

    def _chore(self, function: Callable[[], T]) -> asyncio.Future[T]:
        chore = self._loop.run_in_executor(self._threads, function)
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        return chore

    def _offload(self, function: Callable[[], bytes]) -> asyncio.Future[bytes]:
        return self._chore(function)
