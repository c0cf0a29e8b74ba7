"""Sleep, set clocks and a late event loop, told apart; fake clocks on a real loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine

import pytest

from p2pcompute.net.wakefulness import FREEZE_S, LOOK_INTERVAL_S, Verdict, WakeClocks, Wakefulness, judge, system_clocks

INTERVAL_S = 0.001


@pytest.mark.parametrize(
    ("monotonic_s", "wall_s", "boot_s", "verdict"),
    [
        (0.5, 0.5, 0.5, Verdict()),
        (0.59, 0.59, 0.59, Verdict()),
        (0.75, 0.75, 0.75, Verdict(lag_s=0.25)),
        (9.5, 9.5, 9.5, Verdict(lag_s=9.0)),
        # A lid that was closed for an hour: the monotonic clock stood still.
        (0.5, 3600.5, 3600.5, Verdict(slept_s=3600.0)),
        (0.75, 3600.75, 3600.75, Verdict(slept_s=3600.0, lag_s=0.25)),
        # A stopped process.
        (60.5, 60.5, 60.5, Verdict(slept_s=60.0)),
        # A stopped process on a machine that slept meanwhile.
        (60.5, 360.5, 360.5, Verdict(slept_s=360.0)),
        # A clock that was set, back and forth, and one that is slewed.
        (0.5, 7200.5, 0.5, Verdict(set_by_s=7200.0)),
        (0.5, -7199.5, 0.5, Verdict(set_by_s=-7200.0)),
        (0.5, 0.55, 0.5, Verdict()),
        # Asleep for an hour with a clock that had been an hour slow, set upon waking.
        (0.5, 7200.5, 3600.5, Verdict(slept_s=3600.0, set_by_s=3600.0)),
        # Without a boot clock: a sleep and a clock set ahead look the same, one set back does not.
        (0.5, 0.5, None, Verdict()),
        (0.5, 3600.5, None, Verdict(slept_s=3600.0)),
        (0.5, -3599.5, None, Verdict(set_by_s=-3600.0)),
        # ... and a monotonic clock that goes on while the machine sleeps, as on Windows.
        (3600.5, 3600.5, None, Verdict(slept_s=3600.0)),
    ],
)
def test_verdicts(monotonic_s: float, wall_s: float, boot_s: float | None, verdict: Verdict) -> None:
    assert judge(0.5, monotonic_s, wall_s, boot_s) == verdict


class Clocks:
    """Clocks that go on by the timer's interval with each look, and by what a test adds."""

    def __init__(self) -> None:
        self.monotonic = self.wall = self.boot = 1_000.0
        self.looks = 0
        #: What is told, in order.
        self.told: list[tuple[str, float]] = []
        self.waiting: asyncio.Event = asyncio.Event()

    def read(self) -> float:
        self.looks += 1
        self.monotonic += INTERVAL_S
        self.wall += INTERVAL_S
        self.boot += INTERVAL_S
        self.waiting.set()
        return self.monotonic

    def functions(self) -> WakeClocks:
        return WakeClocks(self.read, lambda: self.wall, lambda: self.boot)

    def tell(self, kind: str) -> Callable[[float], None]:
        def told(seconds: float) -> None:
            self.told.append((kind, round(seconds, 6)))
            self.waiting.set()

        return told

    async def looked(self, times: int) -> None:
        """Until the clocks were read so many times more."""
        until = self.looks + times
        async with asyncio.timeout(10):
            while self.looks < until:
                self.waiting.clear()
                await self.waiting.wait()


def watched(story: Callable[[Clocks, Wakefulness], Coroutine[None, None, None]], **callbacks: object) -> Clocks:
    async def main() -> Clocks:
        clocks = Clocks()
        told = {kind: clocks.tell(kind) for kind in ("woke", "lagged", "clock_set")} | callbacks
        watch = Wakefulness(clocks.functions(), interval_s=INTERVAL_S, **told)  # type: ignore[arg-type]
        watch.start()
        watch.start()
        try:
            await story(clocks, watch)
        finally:
            watch.stop()
        return clocks

    return asyncio.run(main())


def test_nothing_is_told_while_all_is_well() -> None:
    async def story(clocks: Clocks, watch: Wakefulness) -> None:
        await clocks.looked(20)

    assert watched(story).told == []


def test_each_thing_is_told_once_and_as_what_it_is() -> None:
    async def story(clocks: Clocks, watch: Wakefulness) -> None:
        await clocks.looked(2)
        clocks.boot += 3600.0
        clocks.wall += 3600.0
        await clocks.looked(3)
        for name in ("monotonic", "wall", "boot"):
            setattr(clocks, name, getattr(clocks, name) + 0.3)
        await clocks.looked(3)
        clocks.wall -= 500.0
        await clocks.looked(3)
        for name in ("monotonic", "wall", "boot"):
            setattr(clocks, name, getattr(clocks, name) + FREEZE_S + 5.0)
        await clocks.looked(3)

    assert watched(story).told == [("woke", 3600.0), ("lagged", 0.3), ("clock_set", -500.0), ("woke", FREEZE_S + 5.0)]


def test_after_stop_nothing_is_read_and_a_new_start_does_not_count_the_pause() -> None:
    async def story(clocks: Clocks, watch: Wakefulness) -> None:
        await clocks.looked(1)
        watch.stop()
        watch.stop()
        looks = clocks.looks
        clocks.boot += 60.0
        loop = asyncio.get_running_loop()
        passed = asyncio.Event()
        loop.call_later(5 * INTERVAL_S, passed.set)
        await passed.wait()
        assert clocks.looks == looks
        watch.start()
        await clocks.looked(3)

    assert watched(story).told == []


def test_a_callback_that_raises_is_reported_and_does_not_end_the_watch() -> None:
    reported: list[object] = []

    def fails(seconds: float) -> None:
        raise RuntimeError("a bug of whoever is told")

    async def story(clocks: Clocks, watch: Wakefulness) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        await clocks.looked(1)
        clocks.boot += 60.0
        await clocks.looked(2)
        clocks.wall += 60.0  # the boot clock's hour: one more thing to tell, after the bug
        clocks.wall += 60.0
        await clocks.looked(2)

    clocks = watched(story, woke=fails)
    assert [type(error) for error in reported] == [RuntimeError]
    assert [kind for kind, _ in clocks.told] == ["clock_set", "clock_set"]


def test_a_loop_that_is_really_blocked_is_noticed() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        lag: asyncio.Future[float] = loop.create_future()

        def lagged(seconds: float) -> None:
            if not lag.done():
                lag.set_result(seconds)

        watch = Wakefulness(
            system_clocks(), woke=lambda _: None, lagged=lagged, clock_set=lambda _: None, interval_s=INTERVAL_S
        )
        watch.start()
        began = time.monotonic()
        while time.monotonic() < began + 0.15:
            pass  # work that should have been off-loaded
        async with asyncio.timeout(10):
            seconds = await lag
        watch.stop()
        return seconds

    assert asyncio.run(main()) > 0.1


def test_the_systems_clocks_go_on() -> None:
    clocks = system_clocks()
    boot = clocks.boot or clocks.monotonic
    assert boot() <= boot()
    assert clocks.wall() > 1e9
    assert LOOK_INTERVAL_S == 0.5
