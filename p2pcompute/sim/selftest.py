"""What `loop.py` relies on of CPython's private parts, each tried: `python -m p2pcompute.sim.selftest`.

Runs without any test tool, so that every Python version that the product supports can be asked. When CPython changes one of these, this says
which, instead of runs that are wrong in silence.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import marshal
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from p2pcompute.sim.loop import REFUSED, Deadlock, RealIoRefused, SimLoop, UncaughtError, current_context_of


class SelfTestFailed(Exception):
    """CPython is not as the laboratory needs it."""


def _expect(condition: object, what: str) -> None:
    if not condition:
        raise SelfTestFailed(what)


def _run(main: Callable[[], Any], seed: int | None = 1) -> SimLoop:
    loop = SimLoop(random.Random(seed) if seed is not None else None)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    return loop


def the_parts_are_there() -> None:
    """`_ready` is a deque of handles, `_scheduled` a heap of timers, and their flags have their names."""
    loop = SimLoop()
    try:
        late, soon = loop.call_at(2.0, print), loop.call_at(1.0, print)
        ready = loop.call_soon(print)
        _expect(type(loop._ready) is deque and loop._ready[0] is ready, "BaseEventLoop._ready")
        _expect(type(loop._scheduled) is list and loop._scheduled == [soon, late], "BaseEventLoop._scheduled")
        _expect(soon._when == 1.0 == soon.when(), "TimerHandle._when")  # type: ignore[attr-defined]
        _expect(soon._scheduled is True, "TimerHandle._scheduled")  # type: ignore[attr-defined]
        _expect(loop._timer_cancelled_count == 0, "BaseEventLoop._timer_cancelled_count")
        soon.cancel()
        _expect(soon._cancelled and loop._timer_cancelled_count == 1, "cancelled timers are counted")
        _expect(loop._stopping is False, "BaseEventLoop._stopping")
        loop.stop()
        _expect(loop._stopping is True, "BaseEventLoop.stop()")
    finally:
        loop.close()


def a_handle_knows_its_context() -> None:
    """A timer runs in the context in which it was made, and that can be read."""
    loop = SimLoop()
    try:
        variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
        context = contextvars.copy_context()
        context.run(variable.set, 7)
        handle = context.run(loop.call_at, 1.0, print)
        _expect(current_context_of(handle).get(variable) == 7, "Handle._context")
    finally:
        loop.close()


def time_jumps() -> None:
    """The base loop asks the selector before each turn, and a clock of any age reaches the timer that it jumps to."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for pause_s in (1e-9, 0.3, 86_400.0 * 2, 1e8, 1e-3, 3.0):
            due = loop.time() + pause_s
            await asyncio.sleep(pause_s)
            _expect(abs(loop.time() - due) < 1e-6, f"a sleep of {pause_s} s ends in time")

    _run(main)


def cancelled_timers_do_not_move_time() -> None:
    """Timers that are cancelled, one or many, are passed over."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for handle in [loop.call_later(50.0, print) for _ in range(500)]:
            handle.cancel()
        loop.call_later(1.0, print).cancel()
        await asyncio.sleep(2.0)
        _expect(loop.time() == 2.0, "cancelled timers do not move time")

    _run(main)


def nothing_to_do_is_a_deadlock() -> None:
    """A selector that is asked to wait for ever may raise."""

    async def main() -> None:
        await asyncio.Event().wait()

    try:
        _run(main)
    except Deadlock as error:
        _expect("1 tasks wait" in str(error), "a Deadlock names the tasks")
    else:
        raise SelfTestFailed("a deadlock is noticed")


def order_is_of_the_dice() -> None:
    """Callbacks of one turn, timers of one time: each seed has its order, without dice it is first come, first served."""

    def order(seed: int | None) -> tuple[list[int], list[int]]:
        soon: list[int] = []
        timers: list[int] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            for number in range(20):
                loop.call_soon(soon.append, number)
                loop.call_later(1.0, timers.append, number)
            await asyncio.sleep(2.0)

        _run(main, seed)
        return soon, timers

    _expect(order(None)[0] == list(range(20)), "without dice, callbacks run in order")
    _expect(order(1) == order(1), "the same seed, the same order")
    _expect(order(1)[0] != order(2)[0] and order(1)[1] != order(2)[1], "another seed, another order")


def tasks_are_cancelled_in_the_order_of_their_numbers() -> None:
    """TaskGroup, wait and as_completed walk through sets of tasks and futures, whose hashes are their numbers."""
    cancelled: list[int] = []

    async def main() -> None:
        async def child(number: int) -> None:
            try:
                await asyncio.sleep(100.0)
            finally:
                cancelled.append(number)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(child(number)) for number in range(8)]
                await asyncio.sleep(1.0)
                raise KeyError
        except* KeyError:
            pass
        _expect([hash(task) for task in tasks] == [task.number for task in tasks], "tasks are hashed by number")  # type: ignore[attr-defined]
        futures = [asyncio.get_running_loop().create_future() for _ in range(4)]
        _expect([hash(each) for each in futures] == [each.number for each in futures], "futures are hashed by number")  # type: ignore[attr-defined]
        _expect(len({*futures, *futures}) == 4, "futures are equal to themselves alone")

    _run(main, None)
    _expect(cancelled == list(range(8)), "a TaskGroup cancels in the order of numbers")


def what_nobody_catches_ends_the_run() -> None:
    """Exceptions in callbacks, lost tasks and lost futures all reach `call_exception_handler`."""

    async def in_a_callback() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1.0)

    async def in_a_lost_task() -> None:
        async def fail() -> None:
            raise KeyError("lost")

        task = asyncio.get_running_loop().create_task(fail())
        await asyncio.sleep(0.1)
        del task
        gc.collect()
        await asyncio.sleep(1.0)

    for main, cause in ((in_a_callback, ZeroDivisionError), (in_a_lost_task, KeyError)):
        try:
            _run(main)
        except UncaughtError as error:
            _expect(isinstance(error.__cause__, cause), f"{main.__name__} is reported with its cause")
        else:
            raise SelfTestFailed(f"an exception {main.__name__} ends the run")


def threads_are_not_started() -> None:
    """`run_in_executor`, and with it `asyncio.to_thread`, runs in this thread; a refusal cannot be caught away."""

    async def main() -> None:
        import threading

        _expect(await asyncio.to_thread(threading.get_ident) == threading.get_ident(), "to_thread stays in this thread")
        asyncio.get_running_loop().call_soon_threadsafe(lambda: None)
        try:
            await asyncio.to_thread(lambda: 1 / 0)
        except ZeroDivisionError:
            pass
        else:
            raise SelfTestFailed("to_thread passes exceptions on")

    async def refused() -> None:
        try:
            await asyncio.open_connection("127.0.0.1", 1)
        except RealIoRefused:
            pass
        await asyncio.sleep(1.0)

    _run(main)
    _expect({"create_server", "sock_connect", "add_reader", "subprocess_exec"} <= set(REFUSED), "real I/O is refused")
    try:
        _run(refused)
    except RealIoRefused:
        return
    raise SelfTestFailed("a refusal that is caught ends the run all the same")


def names_do_not_go_on_from_run_to_run() -> None:
    """A task without a name is named by its number in its loop, under every version's way of naming."""

    async def main() -> None:
        task = asyncio.current_task()
        _expect(task is not None and task.get_name() == "task 1", "tasks are named by number")
        async with asyncio.TaskGroup() as group:
            named = group.create_task(asyncio.sleep(0), name="mine")
            _expect(named.get_name() == "mine", "a name is kept")

    _run(main)


def equal_events_have_equal_bytes() -> None:
    """Version 2 of marshal says nothing of sharing and interning."""
    text = "".join(["inter", "ned"])
    apart, shared = (1.5, text, "".join(["inter", "ned"])), (1.5, sys.intern(text), sys.intern(text))
    _expect(marshal.dumps(apart, 2) == marshal.dumps(shared, 2), "marshal version 2 is a function of the value")


CHECKS: Final = (
    the_parts_are_there,
    a_handle_knows_its_context,
    time_jumps,
    cancelled_timers_do_not_move_time,
    nothing_to_do_is_a_deadlock,
    order_is_of_the_dice,
    tasks_are_cancelled_in_the_order_of_their_numbers,
    what_nobody_catches_ends_the_run,
    threads_are_not_started,
    names_do_not_go_on_from_run_to_run,
    equal_events_have_equal_bytes,
)


def main() -> int:
    """Run all checks; 1 where one fails."""
    warnings.simplefilter("error")
    failed = 0
    for check in CHECKS:
        try:
            check()
            sys.stdout.write(f"ok    {check.__name__.replace('_', ' ')}\n")
        except Exception as error:
            failed += 1
            sys.stdout.write(f"WRONG {check.__name__.replace('_', ' ')}: {type(error).__name__}: {error}\n")
    sys.stdout.write(f"{len(CHECKS) - failed} of {len(CHECKS)} on Python {sys.version.split()[0]}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
