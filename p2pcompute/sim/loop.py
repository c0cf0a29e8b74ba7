"""asyncio on virtual time: the same tasks, timers and futures, but the clock jumps to whatever comes next.

The loop is CPython's own `BaseEventLoop`; only what waits is replaced. Where the real loop would wait for sockets, this one moves its clock to
the next timer. Three things differ between two runs of the real loop and are pinned here:

- Order. What is ready in one turn runs in an order that seeded dice choose (without dice: in the order in which it became ready), so that
  races are tried out, and the same race again with the same seed.
- Sets. `TaskGroup`, `wait` and `as_completed` walk through sets, whose order follows hashes, which are memory addresses by default. Tasks and futures of
  this loop are hashed by their number.
- Garbage. A cycle is found whenever the collector happens to look, and finalizers act then. `collect` looks at fixed turns.

Deliveries of a simulated network are the bulk of all events, so they have a way of their own, `post`: no handle, no context, one
tuple in a heap. What is posted runs inside the selector, in the base context.

Real sockets, pipes, processes, signals and threads are refused, and a refusal ends the run even where the caller catches it, as
does everything that reaches the loop's exception handler: a bug may not hide in a log line. What is relied on of CPython's private
parts is pinned by `selftest.py`.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import ipaddress
import math
import random
import selectors
import socket
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, Final, NoReturn, Protocol, TypeVar

T = TypeVar("T")

#: Turns between two looks of the garbage collector at young objects, and how many of those are followed by a full one. A run of a
#: minute has a few million turns; the full look costs a second where there are thousands of peers.
_COLLECT_TURNS: Final = 50_000
_COLLECTS_PER_FULL: Final = 40
#: Posts that run before the loop is asked again whether it should stop.
_POSTS_PER_TURN: Final = 10_000
#: Tasks that a Deadlock names.
_TASKS_NAMED: Final = 20
#: Timers this near are due: what rounding adds to a sum of times, up to a month.
_RESOLUTION_S: Final = 1e-9


class SimulationError(Exception):
    """Something is wrong with the run itself; none of the product's errors, so that no code of the product takes it for one."""


class Deadlock(SimulationError):
    """Nothing can run any more and no timer is set, yet the run is not over."""


class TimeIsUp(SimulationError):
    """The run has gone on past the virtual time that it was given."""


class UncaughtError(SimulationError):
    """What reached the loop's exception handler; `__cause__` is the exception, where there was one."""


class RealIoRefused(SimulationError):
    """Code under simulation asked for a real socket, process, signal or thread, or for the machine's own clock or disk."""


class DatagramDoor(Protocol):
    """Where `create_datagram_endpoint` leads: the simulated network."""

    async def datagram_endpoint(
        self,
        factory: Callable[[], asyncio.DatagramProtocol],
        local: tuple[Any, ...] | None,
        remote: tuple[Any, ...] | None,
    ) -> tuple[asyncio.DatagramTransport, asyncio.DatagramProtocol]:
        """As the method of the loop. Raises OSError where the address is taken."""

    def addresses_of(self, name: str) -> list[str]:
        """The numeric addresses of a host name; empty where it has none."""


class SimTask(asyncio.Task[T]):
    """A task that is hashed by its number in its loop."""

    def __init__(self, work: Generator[Any, None, T] | Coroutine[Any, Any, T], number: int, **rest: Any) -> None:
        #: Counted from 1 in its loop. Set first: the base class puts the task into a set at once.
        self.number = number
        super().__init__(work, **rest)

    def __hash__(self) -> int:
        return self.number


class SimFuture(asyncio.Future[T]):
    """A future that is hashed by its number in its loop."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        #: Counted from 1 in its loop.
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class _Selector(selectors.BaseSelector):
    """What the base loop calls in order to wait; asks its loop to move time instead."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def register(self, fileobj: Any, events: int, data: Any = None) -> NoReturn:
        """Refuse."""
        self._loop.refuse("a file descriptor in the loop")

    def unregister(self, fileobj: Any) -> NoReturn:
        """Refuse."""
        self._loop.refuse("a file descriptor in the loop")

    def select(self, timeout: float | None = None) -> list[Any]:
        """Let the next thing happen; no file is ever ready."""
        self._loop._advance()
        return []

    def get_map(self) -> dict[Any, Any]:
        """Empty."""
        return {}


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `rng`: dice for the order of what is ready at one time; None keeps the order in which it became ready."""

    # Private parts of the base class that are read or set here; `selftest.py` pins each.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int
    _clock_resolution: float
    _stopping: bool

    def __init__(self, rng: random.Random | None = None) -> None:
        super().__init__()
        self._selector = _Selector(self)
        self._clock_resolution = _RESOLUTION_S
        self._rng = rng
        #: Virtual seconds since the start of the run; never goes back.
        self._now = 0.0
        #: What `post` was given: time, tie-breaker, function, its two arguments; a heap.
        self._posts: list[tuple[float, float, Callable[[Any, Any], object], Any, Any]] = []
        self._next_post = 0
        self._next_task = 0
        self._next_future = 0
        #: Time does not go beyond this.
        self.time_max_s = math.inf
        #: Turns of the loop so far, and posts among them.
        self.turns = 0
        self.posts_run = 0
        self._collect_at = _COLLECT_TURNS
        self._collects = 0
        #: What ends the run at the next turn, oldest first.
        self._uncaught: list[UncaughtError | RealIoRefused] = []
        #: The simulated network, where there is one.
        self.door: DatagramDoor | None = None
        #: Asked about each timer that is due: True where it has taken it, to give it back with `resume` later. None: no process is stopped.
        self.stopped: Callable[[asyncio.TimerHandle], bool] | None = None

    def time(self) -> float:
        """Virtual seconds since the start of the run."""
        return self._now

    # --- what comes next ------------------------------------------------------------------------------------------------

    def post(self, when: float, function: Callable[[Any, Any], object], first: Any, second: Any) -> None:
        """Call `function(first, second)` at `when` (seconds of `time()`), outside any task. Cannot be taken back; what it raises ends the run."""
        rng = self._rng
        if rng is not None:
            tie = rng.random()
        else:
            self._next_post += 1
            tie = self._next_post
        heapq.heappush(self._posts, (when, tie, function, first, second))

    def resume(self, handle: asyncio.Handle) -> None:
        """Run a timer that `stopped` has taken, in the next turn."""
        self._ready.append(handle)

    def _advance(self) -> None:
        """Called by the base loop in each turn, before it runs what is ready."""
        self.turns += 1
        if self.turns >= self._collect_at:
            self._collect()
        if self._uncaught:
            raise self._uncaught.pop(0)
        if self._stopping:
            return
        ready = self._ready
        if not ready:
            self._jump()
        else:
            self._run_due_posts()
        self._take_due_timers()
        if self._rng is not None and len(ready) > 1:
            draw = self._rng.random
            in_order = sorted(ready, key=lambda _: draw())
            ready.clear()
            ready.extend(in_order)

    def _jump(self) -> None:
        """Nothing is ready: go on to the next timer or post; of posts, to as many as it takes until something is ready."""
        ready, posts, scheduled = self._ready, self._posts, self._scheduled
        pop = heapq.heappop
        for _ in range(_POSTS_PER_TURN):
            if scheduled and (not posts or scheduled[0]._when < posts[0][0]):  # type: ignore[attr-defined]
                head = scheduled[0]
                if not head._cancelled:
                    self._move_to(head.when())
                return  # the base loop removes a cancelled one before it asks again
            if not posts:
                raise Deadlock(self._waiting())
            when, _, function, first, second = pop(posts)
            if when > self._now:
                self._move_to(when)
            self.posts_run += 1
            function(first, second)
            if ready or self._uncaught or self._stopping:
                return

    def _move_to(self, when: float) -> None:
        if when > self._now:
            if when > self.time_max_s:
                raise TimeIsUp(f"the run does not end within {self.time_max_s} s")
            self._now = when
            if when > 1e6:  # a clock of 64 bits gets coarser than the resolution after months
                self._clock_resolution = max(_RESOLUTION_S, 2 * math.ulp(when))

    def _run_due_posts(self) -> None:
        """Callbacks are ready, and perhaps posts of the same time: the dice say how many of these come first."""
        posts, rng = self._posts, self._rng
        for _ in range(len(posts)):
            if posts[0][0] > self._now or (rng is not None and rng.random() < 0.5):
                return
            _, _, function, first, second = heapq.heappop(posts)
            self.posts_run += 1
            function(first, second)

    def _take_due_timers(self) -> None:
        """Make due timers ready here, before the order is chosen; the base loop would append them in the order of their times."""
        scheduled, ready = self._scheduled, self._ready
        until = self._now + self._clock_resolution
        while scheduled and scheduled[0].when() < until:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False  # type: ignore[attr-defined]
            if handle._cancelled:
                self._timer_cancelled_count -= 1
            elif self.stopped is None or not self.stopped(handle):
                ready.append(handle)

    def _collect(self) -> None:
        self._collect_at = self.turns + _COLLECT_TURNS
        self._collects += 1
        gc.collect(2 if self._collects % _COLLECTS_PER_FULL == 0 else 1)

    def _waiting(self) -> str:
        waiting = sorted((task for task in asyncio.all_tasks(self) if isinstance(task, SimTask)), key=hash)
        names = [f"{task.get_name()} ({_place(task)})" for task in waiting[:_TASKS_NAMED]]
        more = f" and {len(waiting) - len(names)} more" if len(waiting) > len(names) else ""
        return (
            f"at {self._now:.6f} s nothing is ready, no timer is set and nothing is on its way, "
            f"but {len(waiting)} tasks wait: {', '.join(names) or 'none'}{more}"
        )

    # --- tasks, futures, threads ----------------------------------------------------------------------------------------

    def create_future(self) -> SimFuture[Any]:
        """A future that is hashed by its number."""
        self._next_future += 1
        return SimFuture(self._next_future, self)

    def create_task(
        self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], *, name: object = None, **rest: Any
    ) -> SimTask[T]:
        """A task that is hashed by its number."""
        self._next_task += 1
        # Not the base class's default name: its numbers go on from one run in this process to the next.
        return SimTask(coro, self._next_task, loop=self, name=str(name) if name else f"task {self._next_task}", **rest)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """`func(*args)` in a turn of its own, whatever the executor; no thread is started."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                value = func(*args)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(value)

        self.call_soon(run)
        return future

    def _write_to_self(self) -> None:
        """Nothing to wake up: this loop never waits."""

    def _process_events(self, event_list: list[Any]) -> None:
        """There are never any."""

    # --- what must not pass silently ------------------------------------------------------------------------------------

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """End the run at the next turn."""
        error = context.get("exception")
        where = context.get("task") or context.get("future") or context.get("handle") or context.get("asyncgen") or ""
        uncaught = UncaughtError(
            f"{context.get('message', 'unhandled exception')}{f': {error!r}' if error else ''} {where!r}"
        )
        uncaught.__cause__ = error
        self._uncaught.append(uncaught)

    def refuse(self, what: str) -> NoReturn:
        """Raise RealIoRefused, and end the run even if that is caught."""
        refused = RealIoRefused(f"{what}: a simulated peer has only its network, its clock and its dice")
        self._uncaught.append(refused)
        raise refused

    def uncaught(self) -> list[UncaughtError | RealIoRefused]:
        """What would have ended the run at the next turn; empties the list."""
        found, self._uncaught = self._uncaught, []
        return found

    def run_until_complete(self, future: Any) -> Any:
        """As the base class, but raises what reached the exception handler in the last turns."""
        result = super().run_until_complete(future)
        if self._uncaught:
            raise self._uncaught.pop(0)
        return result

    # --- the network ----------------------------------------------------------------------------------------------------

    async def create_datagram_endpoint(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], Any],
        local_addr: tuple[Any, ...] | None = None,
        remote_addr: tuple[Any, ...] | None = None,
        *,
        sock: object = None,
        **_: Any,
    ) -> tuple[asyncio.DatagramTransport, Any]:
        """A UDP port of the simulated host that has the address, or on which the calling code runs. Raises OSError where it is taken."""
        if self.door is None or sock is not None:
            self.refuse("a datagram socket")
        return await self.door.datagram_endpoint(protocol_factory, local_addr, remote_addr)

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        """Numeric addresses as they are, names as the simulated network knows them. Raises socket.gaierror."""
        try:
            numeric = [str(ipaddress.ip_address(str(host).partition("%")[0]))]
        except ValueError:
            numeric = self.door.addresses_of(str(host)) if self.door is not None else []
        rows = [
            (socket.AF_INET6, type, proto, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, type, proto, "", (each, port))
            for each in numeric
        ]
        rows = [row for row in rows if family in (0, row[0])]
        if not rows:
            raise socket.gaierror(socket.EAI_NONAME, f"the simulated network knows no host {host!r}")
        return rows


def _place(task: asyncio.Task[Any]) -> str:
    """Where a task waits: the innermost frame that is left of it."""
    stack = task.get_stack()
    return f"{stack[-1].f_code.co_filename.rpartition('/')[2]}:{stack[-1].f_lineno}" if stack else "not begun"


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refused(self: SimLoop, *_: Any, **__: Any) -> NoReturn:
        self.refuse(f"loop.{name}()")

    return refused


#: What a loop can do with the real machine.
REFUSED: Final = (
    *(
        name
        for name in dir(events.AbstractEventLoop)
        if name.startswith(("sock_", "connect_", "subprocess_", "create_unix_", "add_", "remove_"))
    ),
    *("create_server", "create_connection", "start_tls", "sendfile", "getnameinfo", "set_default_executor"),
)
for _name in REFUSED:
    setattr(SimLoop, _name, _refusing(_name))


def current_context_of(handle: asyncio.Handle) -> Context:
    """The context in which a handle runs; its method for that came with Python 3.12."""
    context: Context = handle._context  # type: ignore[attr-defined]
    return context
