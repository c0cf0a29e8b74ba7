"""The pool of containers: it stands for worker processes where a program is an image.

A worker serves one origin and one program, as everywhere; what it holds is the program's document and the image's id. Each of its tasks gets a
fresh container, so nothing of one task is there for the next. What an ended task leaves is removed a little later, and what a killed peer left
at the next start, by its label.

Refuses to know: jobs, credits, links, and what an engine is told (`holding.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pcompute.execution.container.engine import GPU_ADVICE, ContainerEngine, ContainerEngineError, ImageMissingError
from p2pcompute.execution.container.holding import Allowance
from p2pcompute.execution.container.program import ContainerProgram, open_container_program, open_container_task
from p2pcompute.execution.container.run import Bench, ContainerRun, Ended, Stop, remove_folder
from p2pcompute.execution.container.zip_start import prepared
from p2pcompute.execution.engines.document import PLAIN, ProgramHead
from p2pcompute.execution.pool_types import PoolEvents, ProgramKey, TaskEnd, TaskRun, WorkerInfo
from p2pcompute.execution.sandbox.grants import GrantedFolder
from p2pcompute.execution.values import Handle, decode, encode_failure
from p2pcompute.model import limits
from p2pcompute.model.errors import BlobMissingError, P2PComputeError, ProtocolError, ResourceError, UsageError
from p2pcompute.model.ids import BlobId
from p2pcompute.model.job import Outcome, Usage
from p2pcompute.model.seams import Clock

#: Runs a coroutine once, under whoever owns the pool's tasks; None where that is stopping.
StartTask = Callable[[str, Coroutine[Any, Any, None]], "asyncio.Task[None] | None"]
#: How long `stop` waits for containers to be removed.
_STOP_S = 4.0
#: Arguments above this are decoded in a thread.
_LARGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """How containers are held. `folder`: where tasks' folders are made, emptied at the start; None for one in the system's temporary folder.

    `instance`: whose containers they are, the same at every start. `pull`: patterns of names of images that may be pulled. `folders`: granted ones.
    """

    instance: str
    allowance: Allowance
    folder: Path | None = None
    pull: tuple[str, ...] = ()
    folders: tuple[GrantedFolder, ...] = ()
    cleanup_delay_s: float = limits.CLEANUP_DELAY_S


@dataclass(slots=True)
class _Worker:
    number: int
    key: ProgramKey
    program: bytes
    memory_bytes: int | None
    started_at: float
    #: Waiting, in order.
    queue: deque[TaskRun] = field(default_factory=deque)
    current: TaskRun | None = None
    #: The container of the current task, once it has one.
    run: ContainerRun | None = None
    ready: bool = False
    tasks_done: int = 0
    #: Set when there may be something to do.
    news: asyncio.Event = field(default_factory=asyncio.Event)
    #: Blobs that were asked for.
    wanted: dict[bytes, asyncio.Future[bytes | None]] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    #: (task, attempt) that were cancelled while they were prepared.
    dropped: set[tuple[int, int]] = field(default_factory=set)


@dataclass(slots=True)
class _Leaving:
    """What a task left. `now`: it is to be removed at once."""

    container: str | None
    folder: Path
    now: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class ContainerPool:
    """See the file's docstring; it implements `pool_types.Pool`. All methods belong to one event loop."""

    def __init__(
        self,
        events: PoolEvents,
        clock: Clock,
        engine: ContainerEngine,
        settings: ContainerSettings,
        start_task: StartTask,
        numbers: Iterator[int] | None = None,
    ) -> None:
        """`engine`: closed by whoever opened it, after `stop`."""
        self._events = events
        self._clock = clock
        self._engine = engine
        self._settings = settings
        self._start_task = start_task
        self._numbers = numbers if numbers is not None else itertools.count(1)
        self._workers: dict[int, _Worker] = {}
        self._serials = itertools.count(1)
        #: Where tasks' folders are; None before start.
        self._folder: Path | None = None
        #: Ended tasks whose container and folder are still there, oldest first.
        self._leaving: dict[int, _Leaving] = {}
        #: Held by who pulls an image: the others find it then.
        self._pulls: dict[str, asyncio.Lock] = {}

    # --- Pool -----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See Pool. What a peer that was killed left under this instance is removed."""
        self._loop = asyncio.get_running_loop()
        root = self._settings.folder
        if root is None:
            self._folder = Path(tempfile.mkdtemp(prefix="p2pcompute-containers-"))
        else:
            # The instance's lock says that whatever is there is nobody's any more.
            await asyncio.to_thread(remove_folder, root)
            root.mkdir(parents=True, mode=0o700)
            self._folder = root
        with contextlib.suppress(ContainerEngineError):
            for container in await self._engine.labelled(self._settings.instance):
                await self._engine.remove(container)

    async def stop(self) -> None:
        """See Pool."""
        folder, self._folder = self._folder, None
        tasks = [worker.task for worker in self._workers.values() if worker.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_S)
        removals = []
        for leaving in self._leaving.values():
            leaving.now.set()
            if leaving.task is not None:
                removals.append(leaving.task)
        if removals:
            await asyncio.wait(removals, timeout=_STOP_S)
        with contextlib.suppress(ContainerEngineError):
            for container in await self._engine.labelled(self._settings.instance):
                await self._engine.remove(container)
        if folder is not None:
            await asyncio.to_thread(remove_folder, folder)

    @property
    def workers(self) -> Mapping[int, WorkerInfo]:
        """See Pool."""
        return {
            worker.number: WorkerInfo(
                key=worker.key,
                pid=None,
                ready=worker.ready,
                running=None if worker.current is None else (worker.current.task, worker.current.attempt),
                queued=len(worker.queue) + (worker.current is not None),
                tasks_done=worker.tasks_done,
                started_at=worker.started_at,
            )
            for worker in self._workers.values()
        }

    def spawn(self, key: ProgramKey, program: bytes, memory_bytes: int | None = None, head: ProgramHead = PLAIN) -> int:
        """See Pool."""
        if self._folder is None:
            raise ResourceError("the pool of containers is not running")
        worker = _Worker(next(self._numbers), key, program, memory_bytes, self._clock.monotonic())
        self._workers[worker.number] = worker
        worker.task = self._start_task(f"container worker {worker.number}", self._serve(worker))
        if worker.task is None:
            del self._workers[worker.number]
            raise ResourceError("this peer is stopping")
        return worker.number

    def run(self, worker: int, batch: Sequence[TaskRun]) -> None:
        """See Pool."""
        held = self._workers.get(worker)
        if held is None:
            raise UsageError(f"worker {worker} is gone")
        held.queue.extend(batch)
        held.news.set()

    def cancel(self, worker: int, tasks: Collection[tuple[int, int]]) -> None:
        """See Pool."""
        held = self._workers.get(worker)
        if held is None:
            return
        wanted = set(tasks)
        taken = [run for run in held.queue if (run.task, run.attempt) in wanted]
        held.queue = deque(run for run in held.queue if (run.task, run.attempt) not in wanted)
        if taken:
            text = b"cancelled before it ran"
            ends = [TaskEnd(run.task, run.attempt, Outcome.CANCELLED, 0, text) for run in taken]
            self._loop.call_soon(self._events.tasks_ended, worker, ends)
        current = held.current
        if current is not None and (current.task, current.attempt) in wanted:
            held.dropped.add((current.task, current.attempt))
            if held.run is not None:
                held.run.stop(_CANCELLED)
            for future in held.wanted.values():
                if not future.done():
                    future.set_result(None)

    def retire(self, worker: int) -> None:
        """See Pool."""
        held = self._workers.get(worker)
        if held is not None and held.task is not None:
            held.task.cancel()

    def supply(self, worker: int, blob: BlobId, data: bytes | bytearray | memoryview | None) -> None:
        """See Pool."""
        held = self._workers.get(worker)
        future = held.wanted.pop(bytes(blob), None) if held is not None else None
        if future is not None and not future.done():
            future.set_result(None if data is None else bytes(data))

    # --- a worker -------------------------------------------------------------------------------------------------------

    async def _serve(self, worker: _Worker) -> None:
        """The life of one worker; whatever ends it, it says so as the last thing."""
        cause, outcome = "the worker was let go", Outcome.RETURNED_UNRUN
        try:
            bench = await self._bench(worker)
            worker.ready = True
            self._events.worker_ready(worker.number)
            while True:
                while not worker.queue:
                    worker.news.clear()
                    await worker.news.wait()
                run = worker.current = worker.queue.popleft()
                if not bench.image:
                    bench = await self._pulled(worker, bench)
                began = self._clock.monotonic()
                ended = await self._run(worker, bench, run)
                self._ended(worker, run, ended, self._clock.monotonic() - began)
        except (ProtocolError, UsageError, ImageMissingError) as error:
            cause, outcome = f"the program does not load: {error}", Outcome.CANNOT_RUN
            self._events.program_failed(worker.number, "bundle", "", str(error)[:4_000])
        except ContainerEngineError as error:
            cause, outcome = str(error), Outcome.WORKER_DIED
        finally:
            if self._folder is None and outcome is Outcome.RETURNED_UNRUN:
                cause = "the peer stops"
            unfinished = [worker.current] if worker.current is not None else []
            rows = [(run.task, run.attempt) for run in (*unfinished, *worker.queue)]
            del self._workers[worker.number]
            self._events.worker_gone(worker.number, rows, cause, outcome)

    def _ended(self, worker: _Worker, run: TaskRun, ended: Ended, wall_s: float) -> None:
        worker.current = None
        worker.dropped.discard((run.task, run.attempt))
        worker.tasks_done += 1
        used = Usage(ended.cpu_us, ended.memory_bytes)
        end = TaskEnd(run.task, run.attempt, ended.outcome, int(wall_s * 1e6), ended.payload, used)
        self._events.tasks_ended(worker.number, [end])

    async def _bench(self, worker: _Worker) -> Bench:
        """What the worker's tasks share; without an image where that has to be pulled first. Raises what `_serve` handles."""
        document, files, command = await asyncio.to_thread(_opened, worker.program)
        if "gpu" in document.demands.grants and not self._engine.info.gpus:
            raise UsageError(f"the program needs a GPU, and {self._engine.info.text} here hands out none: {GPU_ADVICE}")
        found = await self._engine.image(document.image)
        if found is None and not may_pull(document.image, self._settings.pull):
            raise ImageMissingError(
                f"the image {document.image!r} is not at this peer, whose owner does not let it be pulled: ask him to do "
                f"`docker pull {document.image}` there, or to allow it with pull_images"
            )
        return Bench(
            engine=self._engine,
            clock=self._clock,
            program=document,
            image="" if found is None else str(found["Id"]),
            command=command,
            files=files,
            allowance=self._settings.allowance.for_program(document, worker.memory_bytes),
            folders=self._settings.folders,
            instance=self._settings.instance,
        )

    async def _pulled(self, worker: _Worker, bench: Bench) -> Bench:
        name = bench.program.image

        def progress(text: str) -> None:
            if worker.current is not None:
                self._events.task_news(worker.number, [(worker.current.task, -1.0, text)], [])

        async with self._pulls.setdefault(name, asyncio.Lock()):
            found = await self._engine.image(name)
            if found is None:
                try:
                    await self._engine.pull(name, progress)
                except ContainerEngineError as error:
                    raise ImageMissingError(str(error), error.status) from error
                found = await self._engine.image(name)
        if found is None:
            raise ImageMissingError(f"the image {name!r} was pulled and is not there: is the engine's disk full?")
        return Bench(
            bench.engine,
            bench.clock,
            bench.program,
            str(found["Id"]),
            bench.command,
            bench.files,
            bench.allowance,
            bench.folders,
            bench.instance,
        )

    async def _run(self, worker: _Worker, bench: Bench, run: TaskRun) -> Ended:
        """One task; its container and folder are handed on for removal whatever happens."""
        assert self._folder is not None
        serial = next(self._serials)

        def told(number: int, data: bytes) -> None:
            self._events.task_news(worker.number, [], [(run.task, number, data)])

        try:
            size = len(run.arguments)
            open_ = open_container_task
            task = open_(run.arguments) if size <= _LARGE_BYTES else await asyncio.to_thread(open_, run.arguments)
            files = {path: await self._content(worker, each) for path, each in task.files}
        except P2PComputeError as error:
            if (run.task, run.attempt) in worker.dropped:
                return Ended(_CANCELLED.outcome, _CANCELLED.text.encode())
            return Ended(Outcome.RAISED, encode_failure(error))
        worker.run = ContainerRun(bench, run, self._folder / str(serial), told)
        if (run.task, run.attempt) in worker.dropped:
            worker.run.stop(_CANCELLED)
        try:
            return await worker.run.perform(task, files)
        finally:
            self._leave(serial, worker.run)
            worker.run = None

    async def _content(self, worker: _Worker, given: bytes | Handle) -> bytes:
        if not isinstance(given, Handle):
            return given
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        worker.wanted[given.blob] = future
        self._events.blob_wanted(worker.number, BlobId(given.blob), given.size_bytes)
        data = await future
        if data is None:
            raise BlobMissingError(
                f"nobody holds the file behind the handle {given.blob.hex()[:12]} any more: put it again"
            )
        value = await asyncio.to_thread(decode, data)
        if not isinstance(value, (bytes, bytearray)):
            raise UsageError(f"what was put for a file is {type(value).__name__}: put bytes")
        return bytes(value)

    # --- what tasks leave -----------------------------------------------------------------------------------------------

    def _leave(self, serial: int, run: ContainerRun) -> None:
        leaving = self._leaving[serial] = _Leaving(run.container, run.folder)
        if self._folder is None:
            leaving.now.set()
        waiting = len(self._leaving) - limits.CLEANUP_WAITING_MAX
        for each in itertools.islice(self._leaving.values(), max(waiting, 0)):
            each.now.set()
        leaving.task = self._start_task(f"clean up container {serial}", self._remove_later(serial, leaving))
        if leaving.task is None:
            del self._leaving[serial]  # its label tells the next start

    async def _remove_later(self, serial: int, leaving: _Leaving) -> None:
        try:
            if leaving.container is not None:
                # One that was left while it ran must not run on.
                with contextlib.suppress(ContainerEngineError):
                    await self._engine.kill(leaving.container)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.cleanup_delay_s):
                    await leaving.now.wait()
            if leaving.container is not None:
                with contextlib.suppress(ContainerEngineError):
                    await self._engine.remove(leaving.container)
            await asyncio.to_thread(remove_folder, leaving.folder)
        finally:
            self._leaving.pop(serial, None)


_CANCELLED = Stop(Outcome.CANCELLED, "cancelled while it ran; its container was killed")


def may_pull(image: str, patterns: Collection[str]) -> bool:
    """Whether an owner who wrote `patterns` lets `image` be pulled: by its name as programs write it, "*" for any letters."""
    return any(fnmatch.fnmatchcase(image, pattern) for pattern in patterns)


def _opened(data: bytes) -> tuple[ContainerProgram, tuple[tuple[str, bytes, bool], ...], tuple[str, ...]]:
    """The document, its files, unpacked, and its words. Raises ProtocolError, UsageError."""
    document = open_container_program(data)
    return document, *prepared(document)
