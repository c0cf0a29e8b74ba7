"""asyncio on virtual time: order, deadlocks, refusals, failures that nobody catches; on every Python version there is."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.sim import selftest
from p2pcompute.sim.loop import Deadlock, RealIoRefused, SimLoop, UncaughtError

ROOT = Path(__file__).resolve().parents[3]


def play(main: Callable[[], Coroutine[Any, Any, Any]], seed: int | None = 1) -> Any:
    """Run on a loop of its own."""
    loop = SimLoop(random.Random(seed) if seed is not None else None)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main())


@pytest.mark.parametrize("check", selftest.CHECKS, ids=lambda check: check.__name__)
def test_cpython_is_as_the_loop_needs_it(check: Callable[[], None]) -> None:
    check()


def test_other_pythons_are_as_the_loop_needs_them(other_pythons: tuple[Path, ...]) -> None:
    for python in other_pythons:
        done = subprocess.run(
            [python, "-W", "error", "-m", "p2pcompute.sim.selftest"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{len(selftest.CHECKS)} of {len(selftest.CHECKS)} on Python 3." in done.stdout


def test_the_self_test_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from p2pcompute.sim.loop import SimTask

    monkeypatch.setattr(SimTask, "__hash__", lambda self: -self.number)
    with pytest.raises(selftest.SelfTestFailed, match="hashed by number"):
        selftest.tasks_are_cancelled_in_the_order_of_their_numbers()
    monkeypatch.setattr(SimLoop, "call_exception_handler", lambda self, context: None)
    assert selftest.main() == 1


def test_an_hour_takes_no_time() -> None:
    async def main() -> float:
        async def work(number: int) -> None:
            for _ in range(60):
                await asyncio.sleep(60)

        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(work(number))
        return asyncio.get_running_loop().time()

    began = time.process_time()
    assert play(main) == 3600.0
    assert time.process_time() - began < 5.0


def test_ordinary_asyncio_code_runs() -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        said: list[str] = []
        event, lock, queue = asyncio.Event(), asyncio.Lock(), asyncio.Queue[int](2)

        async def waits() -> None:
            async with lock:
                await event.wait()
            said.append(f"event {loop.time():g}")

        async def gets() -> None:
            said.append(f"sum {sum([await queue.get() for _ in range(10)])}")

        async with asyncio.TaskGroup() as group:
            group.create_task(waits())
            group.create_task(gets())
            for number in range(10):
                await queue.put(number)
            await asyncio.sleep(2)
            event.set()
        try:
            async with asyncio.timeout(3):
                await asyncio.Event().wait()
        except TimeoutError:
            said.append(f"timeout {loop.time():g}")
        done, pending = await asyncio.wait(
            [loop.create_task(asyncio.sleep(delay, delay)) for delay in (3, 1, 2)], return_when="FIRST_COMPLETED"
        )
        said.append(f"first {[task.result() for task in done]}")
        for task in pending:
            task.cancel()
        said.append(str(await asyncio.to_thread(lambda: 6 * 7)))
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        return said

    for seed in (None, 1, 2):
        assert play(main, seed) == ["sum 45", "event 2", "timeout 5", "first [1]", "42"]


def test_a_deadlock_names_who_waits_and_where() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait(), name="waits for nobody")

    with pytest.raises(Deadlock, match=r"at 0\.000000 s .*2 tasks wait: .*waits for nobody \(locks\.py"):
        play(main)


def test_posts_come_in_time_and_before_later_timers() -> None:
    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        seen: list[tuple[str, float]] = []

        def note(what: str, _: object) -> None:
            seen.append((what, loop.time()))

        loop.post(2.0, note, "late", None)
        loop.post(1.0, note, "soon", None)
        loop.post(0.0, note, "now", None)
        await asyncio.sleep(1.5)
        note("timer", None)
        await asyncio.sleep(1.0)
        return seen

    for seed in (None, 1, 2, 3):
        assert play(main, seed) == [("now", 0.0), ("soon", 1.0), ("timer", 1.5), ("late", 2.0)]


def test_a_post_of_now_comes_even_while_others_spin() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        came: list[object] = []
        loop.post(loop.time(), lambda first, second: came.append(first), 1, None)
        turns = 0
        while not came:
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert play(main, None) <= 2
    assert {play(main, seed) for seed in range(30)} > {1, 2}, "the dice say when"


def test_what_a_post_raises_ends_the_run() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        loop.post(1.0, lambda first, second: first / second, 1, 0)
        await asyncio.sleep(2.0)

    with pytest.raises(ZeroDivisionError):
        play(main)


@pytest.mark.parametrize("in_last_turn", [False, True])
def test_what_nobody_catches_ends_the_run(in_last_turn: bool) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_later(1.0, lambda: 1 / 0)
        await asyncio.sleep(1.0 if in_last_turn else 5.0)

    for seed in range(4):
        with pytest.raises(UncaughtError, match="ZeroDivisionError") as caught:
            play(main, seed)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    "act",
    [
        lambda: asyncio.start_server(lambda r, w: None, "127.0.0.1", 0),
        lambda: asyncio.open_connection("127.0.0.1", 9),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.get_running_loop().sock_recv(None, 1),
        lambda: asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0)),
    ],
)
def test_real_io_is_refused_even_where_that_is_caught(act: Callable[[], Any]) -> None:
    async def main() -> None:
        with pytest.raises(RealIoRefused):
            await act()
        await asyncio.sleep(1.0)

    with pytest.raises(RealIoRefused, match="only its network"):
        play(main)


def test_names_are_not_looked_up_in_the_real_world() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert (await loop.getaddrinfo("10.0.0.1", 5))[0][4] == ("10.0.0.1", 5)
        assert (await loop.getaddrinfo("::1", 5))[0][0] == socket.AF_INET6
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("localhost", 5)
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("10.0.0.1", 5, family=socket.AF_INET6)

    play(main)


def test_generators_that_are_left_open_are_closed() -> None:
    closed: list[int] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(10):
                yield number
        finally:
            closed.append(1)

    async def main() -> None:
        async for number in numbers():
            if number == 3:
                break
        await asyncio.sleep(1.0)

    play(main)
    assert closed == [1]


def test_what_fails_in_the_very_last_turn_ends_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)

    loop = SimLoop()
    try:
        with pytest.raises(UncaughtError):
            loop.run_until_complete(main())
    finally:
        loop.close()


def test_cancelled_timers_are_counted_down_whoever_takes_them() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        timers = [loop.call_at(1.0, lambda: None) for _ in range(10)]
        for timer in timers[3:]:
            timer.cancel()
        await asyncio.sleep(2.0)
        return loop._timer_cancelled_count

    assert play(main) == 0


def test_debug_mode_works() -> None:
    async def main() -> None:
        await asyncio.sleep(1.0)

    loop = SimLoop(random.Random(1))
    loop.set_debug(True)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
