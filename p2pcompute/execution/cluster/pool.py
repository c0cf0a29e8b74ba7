"""A pool whose workers are the slots of a cluster. See `Pool`.

A worker here is a *seat*: it has at most one call at the cluster, and runs its batches one after the other. Which of the cluster's processes
serves a call is the cluster's affair; each keeps programs and data for the next one, and says what it lacks.

Time-outs are kept by the cluster's workers, which kill the process of the task. What is cancelled or let go while it runs is stopped where
the kind of cluster has a way to (`Cluster.interrupt`); where it has none, the call *lingers* until it ends by itself, and as long the
peer has one slot less. When the cluster is gone, so are all seats, and what they had comes back unfinished; it is tried again with
pauses that double.

Refuses to know: jobs, links, and what a payload means. Everything that blocks runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from p2pcompute.execution.cluster import remote
from p2pcompute.execution.cluster.calls import ID_BYTES, Answer, open_answer, open_site, pack_call
from p2pcompute.execution.cluster.clusters import Blame, Capacity, Cluster, Opener
from p2pcompute.execution.cluster.seats import Seat
from p2pcompute.execution.engines.document import PLAIN, ProgramHead
from p2pcompute.execution.pool_types import PoolEvents, ProgramKey, TaskEnd, TaskRun, WorkerInfo
from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError, ResourceError, UsageError
from p2pcompute.model.ids import BlobId
from p2pcompute.model.job import Outcome
from p2pcompute.model.seams import Clock, Entropy

T = TypeVar("T")
Row = tuple[int, int]

#: Calls that block, side by side: a connection that hangs must not keep what was cancelled from being stopped.
_THREADS = 4
#: Calls of more bytes are handed to the executor in a thread.
_SMALL_BYTES = 64 * 1024
_STOP_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What a cluster is now. `slots`: 0 while it cannot be reached, then `cause` says why; `python`: of its workers, empty before one told."""

    slots: int
    memory_bytes: int | None = None
    python: str = ""
    cause: str = ""


class ClusterPool:
    """See the file's docstring. All methods belong to one event loop."""

    def __init__(
        self,
        events: PoolEvents,
        clock: Clock,
        entropy: Entropy,
        opener: Opener,
        on_state: Callable[[ClusterState], None],
        *,
        numbers: Iterator[int] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """`opener`: connects, in a thread; `on_state`: hears of every change; `numbers`, `memory_bytes`: as of `WorkerPool`."""
        self._events = events
        self._clock = clock
        self._opener = opener
        self._on_state = on_state
        self._numbers = numbers if numbers is not None else itertools.count(1)
        self._memory_bytes = memory_bytes
        #: Makes names of calls that no other peer of this cluster uses.
        self._prefix = entropy.bytes(ID_BYTES // 2)
        self._serials = itertools.count(1)
        #: None while the cluster is away.
        self._cluster: Cluster | None = None
        self._capacity = Capacity(0)
        self._python = ""
        self._cause = "not connected yet"
        #: What was last told.
        self._told: ClusterState | None = None
        self._seats: dict[int, Seat] = {}
        #: Calls that nobody waits for and that have not ended there; of these, those that could not be stopped and hold a slot.
        self._lingering: set[bytes] = set()
        self._held: set[bytes] = set()
        #: Data behind handles, by whose it is; shared by the seats of one program.
        self._blobs: dict[ProgramKey, dict[bytes, bytes]] = {}
        self._pause_s = limits.CLUSTER_RETRY_FIRST_S
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="p2pcompute-cluster")
        self._chores: set[asyncio.Future[Any]] = set()
        self._stopped = False

    # --- life cycle -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Try to connect once; where that fails it is tried again for as long as the pool lives."""
        self._loop = asyncio.get_running_loop()
        await asyncio.wait([self._connect()])

    async def stop(self) -> None:
        """See Pool."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for seat in list(self._seats.values()):
            self._abandon(seat)
            self._gone(seat, "the peer stops", Outcome.RETURNED_UNRUN)
        cluster, self._cluster = self._cluster, None
        if self._chores:
            await asyncio.wait(self._chores, timeout=_STOP_WAIT_S)
        if cluster is not None:
            await asyncio.wait([self._close(cluster)], timeout=_STOP_WAIT_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _connect(self) -> asyncio.Future[tuple[Cluster, Capacity, str]]:
        def connect() -> tuple[Cluster, Capacity, str]:
            cluster = self._opener()
            try:
                capacity = cluster.look()
                return cluster, capacity, _python_of(cluster, capacity)
            except BaseException:
                with contextlib.suppress(Exception):
                    cluster.close()
                raise

        def connected(done: asyncio.Future[tuple[Cluster, Capacity, str]]) -> None:
            if done.cancelled():
                return
            error = done.exception()
            if error is not None:
                self._cause = _sentence(error)
                self._tell()
                self._retry()
                return
            self._cluster, self._capacity, self._python = done.result()
            if self._stopped:
                self._close(self._cluster)
                return
            self._pause_s = limits.CLUSTER_RETRY_FIRST_S
            self._cause = ""
            self._tell()
            self._later(limits.CLUSTER_LOOK_S, self._look)

        return self._chore(connect, connected)

    def _retry(self) -> None:
        self._later(self._pause_s, self._connect)
        self._pause_s = min(self._pause_s * 2, limits.CLUSTER_RETRY_LAST_S)

    def _look(self) -> None:
        """See how large the cluster is, and whether it is there at all."""
        cluster = self._cluster
        if cluster is None:
            return

        def seen(done: asyncio.Future[tuple[Capacity, str]]) -> None:
            if done.cancelled() or self._cluster is not cluster:
                return
            error = done.exception()
            if error is not None:
                self._break(_sentence(error))
                return
            self._capacity, self._python = done.result()
            self._tell()
            self._later(limits.CLUSTER_LOOK_S, self._look)

        def look() -> tuple[Capacity, str]:
            capacity = cluster.look()
            return capacity, self._python or _python_of(cluster, capacity)

        self._chore(look, seen)

    def _break(self, cause: str) -> None:
        """The cluster is gone: so are all seats; connect again."""
        cluster, self._cluster = self._cluster, None
        if cluster is None or self._stopped:
            return
        self._close(cluster)
        self._lingering.clear()
        self._held.clear()
        self._python = ""
        self._cause = cause
        # Before the seats go: nobody is to ask for new ones.
        self._tell()
        for seat in list(self._seats.values()):
            self._gone(seat, f"the cluster is gone: {cause}", Outcome.RETURNED_UNRUN)
        self._retry()

    def _tell(self) -> None:
        if self._cluster is None:
            state = ClusterState(0, cause=self._cause)
        else:
            slots = max(self._capacity.slots - len(self._held), 0)
            state = ClusterState(slots, self._capacity.memory_bytes, self._python)
        if state != self._told and not self._stopped:
            self._told = state
            self._on_state(state)

    # --- Pool -----------------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> Mapping[int, WorkerInfo]:
        """See Pool."""
        return MappingProxyType({number: seat.info() for number, seat in self._seats.items()})

    def spawn(self, key: ProgramKey, program: bytes, memory_bytes: int | None = None, head: ProgramHead = PLAIN) -> int:
        """See Pool."""
        if self._cluster is None:
            raise ResourceError(f"the cluster cannot be reached now: {self._cause}")
        allowed = [each for each in (memory_bytes, self._memory_bytes) if each is not None]
        seat = Seat(next(self._numbers), key, program, min(allowed, default=None), self._clock.monotonic())
        self._seats[seat.number] = seat
        self._blobs.setdefault(key, {})
        # An empty call: the program is loaded, and what stands in its way is known before there is a task.
        self._loop.call_soon(self._submit, seat)
        return seat.number

    def run(self, worker: int, batch: Sequence[TaskRun]) -> None:
        """See Pool."""
        seat = self._seats.get(worker)
        if seat is None:
            raise UsageError(f"worker {worker} is gone")
        seat.waiting.extend(batch)
        self._go_on(seat)

    def cancel(self, worker: int, tasks: Collection[tuple[int, int]]) -> None:
        """See Pool. What is at the cluster is stopped there where that can be, and otherwise nobody waits for it."""
        seat = self._seats.get(worker)
        if seat is None:
            return
        ends, running = seat.cancel(tasks)
        if running and not seat.running:
            self._abandon(seat)
        if ends:
            self._loop.call_soon(self._events.tasks_ended, worker, ends)
        if running and not seat.running:
            self._let_go(seat, "its task was cancelled while it ran", Outcome.CANCELLED)

    def retire(self, worker: int) -> None:
        """See Pool."""
        seat = self._seats.get(worker)
        if seat is not None:
            self._abandon(seat)
            self._let_go(seat, "the worker was let go", Outcome.RETURNED_UNRUN)

    def supply(self, worker: int, blob: BlobId, data: bytes | bytearray | memoryview | None) -> None:
        """See Pool."""
        seat = self._seats.get(worker)
        if seat is None:
            return
        if data is None:
            seat.absent.add(bytes(blob))
        else:
            self._blobs[seat.key][bytes(blob)] = bytes(data)
            seat.lacking.add(bytes(blob))
        seat.wanted.discard(bytes(blob))
        self._go_on(seat)

    # --- calls ----------------------------------------------------------------------------------------------------------

    def _go_on(self, seat: Seat) -> None:
        if seat.call is None and seat.ready and not seat.wanted and seat.waiting:
            self._submit(seat)
        elif seat.call is None and not seat.ready and not seat.wanted and seat.was_asked:
            # Its program waited for data behind a handle.
            self._submit(seat)

    def _submit(self, seat: Seat) -> None:
        cluster = self._cluster
        if cluster is None or self._seats.get(seat.number) is not seat or seat.call is not None:
            return
        name = self._prefix + next(self._serials).to_bytes(ID_BYTES // 2, "big")
        call = seat.begin(name, self._blobs[seat.key])
        size = sum(len(row[3]) for row in call.rows) + sum(len(content) for _, content in call.data)
        if size <= _SMALL_BYTES:
            try:
                future = cluster.submit(remote.run, pack_call(call))
            except Exception as error:
                self._not_submitted(seat, name, cluster, error)
                return
            self._watch(seat, name, cluster, future)
            return

        def submitted(done: asyncio.Future[Future[bytes]]) -> None:
            if done.cancelled():
                return
            error = done.exception()
            if error is not None:
                self._not_submitted(seat, name, cluster, error)
            else:
                self._watch(seat, name, cluster, done.result())

        self._chore(lambda: cluster.submit(remote.run, pack_call(call)), submitted)

    def _not_submitted(self, seat: Seat, name: bytes, cluster: Cluster, error: BaseException) -> None:
        if seat.call == name and self._seats.get(seat.number) is seat:
            self._failed(seat, cluster, error)

    def _watch(self, seat: Seat, name: bytes, cluster: Cluster, future: Future[bytes]) -> None:
        if seat.call == name:
            seat.future = future
        elif name in self._lingering:
            self._interrupt(cluster, future, name)  # given up while it was handed over

        def done(_: Future[bytes]) -> None:
            # Here, in the executor's own thread: an answer may be large.
            outcome: tuple[Answer, list[TaskEnd]] | BaseException
            try:
                answer = open_answer(future.result())
                outcome = answer, answer.task_ends()
            except BaseException as error:  # CancelledError, too: an executor that is shut down cancels what waits
                outcome = error
            # A loop that is closed needs no news.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._done, seat, name, cluster, outcome)

        future.add_done_callback(done)

    def _done(
        self, seat: Seat, name: bytes, cluster: Cluster, outcome: tuple[Answer, list[TaskEnd]] | BaseException
    ) -> None:
        if name in self._lingering:
            self._lingering.discard(name)
            self._held.discard(name)
            self._tell()
        if seat.call != name or self._seats.get(seat.number) is not seat:
            return
        if isinstance(outcome, BaseException):
            self._failed(seat, cluster, outcome)
        else:
            self._answered(seat, *outcome)

    def _answered(self, seat: Seat, answer: Answer, ends: list[TaskEnd]) -> None:
        if answer.missing:
            seat.miss(answer.missing)
            self._submit(seat)
            return
        progress, output, ended = seat.end(answer, ends, self._clock.monotonic())
        if progress or output:
            self._events.task_news(seat.number, progress, output)
        if ended:
            self._events.tasks_ended(seat.number, ended)
        if self._seats.get(seat.number) is not seat:
            return  # let go meanwhile
        if answer.failed is not None:
            self._events.program_failed(seat.number, answer.failed.reason, answer.failed.module, answer.failed.text)
            self._gone(seat, f"the program does not load: {answer.failed.text}", Outcome.CANNOT_RUN)
        elif answer.wanted:
            for digest, size in answer.wanted:
                self._want(seat, digest, size)
            self._go_on(seat)
        elif answer.gone and not ended:
            self._gone(seat, answer.gone, Outcome.RETURNED_UNRUN)
        elif not seat.ready:
            seat.ready = True
            self._events.worker_ready(seat.number)
            self._go_on(seat)
        elif seat.tasks_done >= limits.TASKS_PER_WORKER_MAX:
            self._gone(seat, f"replaced after {seat.tasks_done} tasks", Outcome.RETURNED_UNRUN)
        else:
            self._go_on(seat)

    def _want(self, seat: Seat, digest: bytes, size_bytes: int) -> None:
        held = self._blobs[seat.key]
        if len(seat.names) >= limits.CLUSTER_HANDLES_MAX and digest not in seat.names:
            seat.absent.add(digest)
            return
        seat.names[digest] = None
        seat.was_asked = True
        if digest in held:
            seat.lacking.add(digest)
        else:
            seat.wanted.add(digest)
            self._events.blob_wanted(seat.number, BlobId(digest), size_bytes)

    def _failed(self, seat: Seat, cluster: Cluster, error: BaseException) -> None:
        """The call of a seat came to nothing."""
        if self._cluster is not cluster:
            return  # it has been said already
        text = _sentence(error)
        blame = cluster.blame(error)
        match blame:
            case Blame.CLUSTER:
                self._break(text)
            case Blame.WORKER | Blame.BOTH:
                cause = f"a worker of the cluster died under it: {text}"
                ended = seat.blame(cause)
                if ended:
                    self._events.tasks_ended(seat.number, ended)
                self._gone(seat, cause, Outcome.WORKER_DIED)
                if blame is Blame.BOTH:
                    self._loop.call_soon(self._break_down, cluster, text)
            case Blame.FUNCTION:
                # Whatever a program does happens in processes of its own: this is the cluster's installation.
                reason = (
                    f"the workers of this cluster cannot run it: {text}; they need p2pcompute, of this peer's version"
                )
                self._events.program_failed(seat.number, "bundle", "", reason)
                self._gone(seat, reason, Outcome.CANNOT_RUN)

    def _break_down(self, cluster: Cluster, cause: str) -> None:
        if self._cluster is cluster:
            self._break(cause)

    # --- endings --------------------------------------------------------------------------------------------------------

    def _abandon(self, seat: Seat) -> None:
        """Nobody waits for the call of a seat any more: stop it, or let it linger."""
        name, future, cluster = seat.call, seat.future, self._cluster
        seat.call = seat.future = None
        if name is None or cluster is None:
            return
        if future is None:
            self._lingering.add(name)  # on its way in a thread
        elif not cluster.take_back(future) and not future.done():
            self._lingering.add(name)
            self._interrupt(cluster, future, name)
        self._tell()

    def _interrupt(self, cluster: Cluster, future: Future[bytes], name: bytes) -> None:
        def told(done: asyncio.Future[bool]) -> None:
            # Where it could not be stopped it goes on to its end: no more can be done.
            if not done.cancelled() and (done.exception() is not None or not done.result()) and name in self._lingering:
                self._held.add(name)
                self._tell()

        self._chore(lambda: cluster.interrupt(future, name), told)

    def _gone(self, seat: Seat, cause: str, outcome: Outcome) -> None:
        if self._seats.get(seat.number) is seat:
            self._events.worker_gone(seat.number, self._strike_out(seat), cause, outcome)

    def _let_go(self, seat: Seat, cause: str, outcome: Outcome) -> None:
        """As `_gone`, from within a call of the pool's user, who hears of it after that."""
        self._loop.call_soon(self._events.worker_gone, seat.number, self._strike_out(seat), cause, outcome)

    def _strike_out(self, seat: Seat) -> list[Row]:
        del self._seats[seat.number]
        seat.call = seat.future = None
        if not any(other.key == seat.key for other in self._seats.values()):
            self._blobs.pop(seat.key, None)
        return seat.unfinished()

    # --- threads and timers ---------------------------------------------------------------------------------------------

    def _close(self, cluster: Cluster) -> asyncio.Future[None]:
        def closed(done: asyncio.Future[None]) -> None:
            if not done.cancelled():
                done.exception()  # it is gone in any case

        return self._chore(cluster.close, closed)

    def _later(self, delay_s: float, function: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._stopped:
            self._timer = self._loop.call_later(delay_s, function)

    def _chore(self, function: Callable[[], T], then: Callable[[asyncio.Future[T]], None]) -> asyncio.Future[T]:
        chore = self._loop.run_in_executor(self._threads, function)
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        chore.add_done_callback(then)
        return chore


def _python_of(cluster: Cluster, capacity: Capacity) -> str:
    """The version of Python of one of its workers; empty where there is none, or none that tells. Blocks."""
    if capacity.slots == 0:
        return ""
    try:
        data = cluster.submit(remote.describe, b"").result(limits.CLUSTER_CONNECT_TIMEOUT_S)
        return open_site(data).python
    except TimeoutError:
        return ""  # all of them are busy: told another time
    except ImportError as error:
        raise ResourceError(f"the workers of the cluster have no p2pcompute: install it there ({error})") from error


def _sentence(error: BaseException) -> str:
    if isinstance(error, P2PComputeError):
        return str(error)
    return f"{type(error).__name__}: {error}"[:2_000]
