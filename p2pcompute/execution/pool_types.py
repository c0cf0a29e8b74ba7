"""What goes into a worker pool and comes out of it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from p2pcompute.execution.engines.document import PLAIN, ProgramHead
from p2pcompute.execution.sandbox.grants import GrantedFolder
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import BlobId, PeerId, ProgramId
from p2pcompute.model.job import NO_USAGE, Outcome, Usage
from p2pcompute.model.peer import Isolation


@dataclass(frozen=True, slots=True)
class ProgramKey:
    """Whom a worker serves: one submitter and one program, never another's."""

    origin: PeerId
    program: ProgramId


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One attempt to run. `entry`: number of the program's entry; `arguments`: encoded `[list(args), kwargs]`."""

    task: int
    attempt: int
    entry: int
    arguments: bytes | bytearray | memoryview
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How an attempt ended. `payload`: as `wire.messages.Results` defines it for `outcome`; `usage`: what it used, as far as is known."""

    task: int
    attempt: int
    outcome: Outcome
    wall_us: int
    payload: bytes
    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How workers are held.

    `memory_bytes`: address space of one worker where its job asks for no less, None for no limit. `threads_per_worker`: threads
    of numeric libraries. `tasks_per_worker_max`: a worker is replaced after so many. `nice`: added to the peer's own
    niceness. `folder`: where scratch folders are made, emptied at start; None for one in the system's temporary folder.
    `python`: the interpreter of workers. `wasm_python`: where the WebAssembly Python's compiled form is,
    or will be (`engines/wasm_python_build.py`); workers read it. `preload`: modules that the template imports beforehand. `use_template`: fork
    workers from a warm template where the system can.

    `isolation`: how well workers must be held at least, None for as well as this machine can; `isolation_most`: layers above this
    level are left out. `scratch_bytes`: size of the scratch folder of a worker in a sandbox, which lies in memory. `folders`: what a program
    may be granted; `whole_network`: who asks for one address may get the network. `private`: folders that no worker may see, whatever path variables say.
    """

    memory_bytes: int | None = None
    threads_per_worker: int = 1
    tasks_per_worker_max: int = limits.TASKS_PER_WORKER_MAX
    nice: int = 0
    open_files_max: int = 1024
    folder: Path | None = None
    python: str = sys.executable
    wasm_python: Path | None = None
    preload: tuple[str, ...] = ()
    use_template: bool = sys.platform != "win32"
    start_timeout_s: float = limits.WORKER_START_TIMEOUT_S
    isolation: Isolation | None = None
    isolation_most: Isolation = Isolation.SANDBOX
    scratch_bytes: int = limits.SCRATCH_BYTES
    folders: tuple[GrantedFolder, ...] = ()
    whole_network: bool = False
    private: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.threads_per_worker < 1 or self.tasks_per_worker_max < 1 or self.start_timeout_s <= 0:
            raise UsageError("threads_per_worker, tasks_per_worker_max and start_timeout_s must be above 0")
        if not 0 <= self.nice <= 19:
            raise UsageError(f"nice is {self.nice}: give 0 to 19, workers never run before their peer")
        if self.open_files_max < 32:
            raise UsageError(f"open_files_max is {self.open_files_max}: a Python worker needs at least 32")


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as the pool sees it now. `running`: (task, attempt), None while idle; `pid` None until it has one."""

    key: ProgramKey
    pid: int | None
    ready: bool
    running: tuple[int, int] | None
    queued: int
    tasks_done: int
    started_at: float


class Pool(Protocol):
    """What runs tasks: worker processes, or what stands for them. Each attempt given to `run` comes back exactly once."""

    @property
    def workers(self) -> Mapping[int, WorkerInfo]:
        """All workers by number, as they are now."""

    def spawn(self, key: ProgramKey, program: bytes, memory_bytes: int | None = None, head: ProgramHead = PLAIN) -> int:
        """Start a worker that serves `key`; its number. Raises ResourceError where there is no room for it.

        `head`: what `program` says of itself; whoever calls has made sure that this pool offers it.
        """

    def run(self, worker: int, batch: Sequence[TaskRun]) -> None:
        """Queue a batch on a worker, which runs it in order. Raises UsageError for a worker that is gone."""

    def cancel(self, worker: int, tasks: Collection[tuple[int, int]]) -> None:
        """Take back these (task, attempt): they end as CANCELLED, and one that runs is stopped."""

    def retire(self, worker: int) -> None:
        """Let a worker go, idle or not; what it has in hand comes back as unfinished."""

    def supply(self, worker: int, blob: BlobId, data: bytes | bytearray | memoryview | None) -> None:
        """Answer `blob_wanted`; None where nobody holds it."""

    async def start(self) -> None:
        """Be ready to take workers."""

    async def stop(self) -> None:
        """End every worker, hand back what they had, and clean up; bounded by a few seconds."""


class PoolEvents(Protocol):
    """What a pool tells its user: on the event loop, in order, never from within a call of `run` or `spawn`."""

    def tasks_ended(self, worker: int, ends: Sequence[TaskEnd]) -> None:
        """These attempts ended; each attempt ends at most once."""

    def task_news(
        self, worker: int, progress: Sequence[tuple[int, float, str]], output: Sequence[tuple[int, int, bytes]]
    ) -> None:
        """Rows of (task, fraction or -1, message) and of (task, 1 or 2, bytes), before the end of their task."""

    def worker_ready(self, worker: int) -> None:
        """The process is up and the program loaded."""

    def worker_gone(self, worker: int, unfinished: Sequence[tuple[int, int]], cause: str, outcome: Outcome) -> None:
        """The worker is no more; always the last event of a worker.

        The task that was running has ended by `tasks_ended` before. `unfinished`: attempts in its hands that never ran, or whose
        result was lost with it. `outcome`: why, as its running task saw it; RETURNED_UNRUN where nobody is to blame,
        CANNOT_RUN after `program_failed`.
        """

    def blob_wanted(self, worker: int, blob: BlobId, size_bytes: int) -> None:
        """A task, or the program itself, waits for the data behind a handle: answer with `supply`, once.

        `blob` is what user code says: give only what the worker's origin put there.
        """

    def program_failed(self, worker: int, reason: str, module: str, text: str) -> None:
        """The program does not load here: `reason` "module" (then `module` is missing) or "bundle". `worker_gone` follows."""
