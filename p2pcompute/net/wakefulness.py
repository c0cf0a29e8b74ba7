"""Whether this machine slept, whether its clock was set, and whether the event loop keeps up: one timer tells all three.

Every half second the timer compares how far three clocks came. The monotonic clock of Linux and macOS stands still while the
machine sleeps, the boot clock goes on, and the wall clock does what people and time servers tell it. Hence:

- the boot clock came further than the monotonic one by more than a second: the machine slept for the difference;
- the monotonic clock came much further than the timer's interval: the event loop was late by the difference. Lateness of ten
  seconds and more is nothing that a busy loop does: the process was stopped, its virtual machine was paused, or the machine
  slept on a system whose monotonic clock goes on. To everybody else that is a sleep;
- the wall clock differs from the boot clock by more than a second: it was set. Without a boot clock this cannot be told from
  a sleep, so a wall clock that went ahead counts as a sleep there: that costs some questions, the other mistake costs links.

Refuses to know what becomes of any of that.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds between two looks.
LOOK_INTERVAL_S = 0.5
#: Lateness of the event loop that is told: what gossip on a LAN can bear a few of.
LAG_TOLD_S = 0.1
#: Lateness that is a sleep.
FREEZE_S = 10.0
#: Differences between clocks below this are their own inaccuracy: time servers slew a clock by 0.5 ms a second.
CLOCKS_DIFFER_S = 1.0

ClockFunction = Callable[[], float]


@dataclass(frozen=True, slots=True)
class WakeClocks:
    """Functions that read clocks, in seconds. `boot` counts sleep, `monotonic` does not where `boot` is given; None: there is none."""

    monotonic: ClockFunction
    wall: ClockFunction
    boot: ClockFunction | None


#: The clock that goes on while the system sleeps, by the system's name, where time.monotonic() stands still meanwhile.
_BOOT_CLOCKS = {"linux": "CLOCK_BOOTTIME", "darwin": "CLOCK_MONOTONIC"}


def system_clocks() -> WakeClocks:
    """This machine's."""
    name = _BOOT_CLOCKS.get(sys.platform)
    number: int | None = getattr(time, name, None) if name is not None else None
    if number is None:
        return WakeClocks(time.monotonic, time.time, None)
    return WakeClocks(time.monotonic, time.time, functools.partial(time.clock_gettime, number))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one interval, in seconds; 0.0: nothing of the kind. `set_by_s`: negative where the wall clock went back."""

    slept_s: float = 0.0
    lag_s: float = 0.0
    set_by_s: float = 0.0


def judge(interval_s: float, monotonic_s: float, wall_s: float, boot_s: float | None) -> Verdict:
    """What happened in an interval that was to take `interval_s`, and in which the clocks came that far."""
    late_s = monotonic_s - interval_s
    is_frozen = late_s >= FREEZE_S
    lag_s = late_s if late_s > LAG_TOLD_S and not is_frozen else 0.0
    frozen_s = late_s if is_frozen else 0.0
    if boot_s is None:
        ahead_s = wall_s - monotonic_s
        slept_s = frozen_s + (ahead_s if ahead_s > CLOCKS_DIFFER_S else 0.0)
        return Verdict(slept_s, lag_s, ahead_s if ahead_s < -CLOCKS_DIFFER_S else 0.0)
    asleep_s = boot_s - monotonic_s
    slept_s = frozen_s + (asleep_s if asleep_s > CLOCKS_DIFFER_S else 0.0)
    set_by_s = wall_s - boot_s
    return Verdict(slept_s, lag_s, set_by_s if abs(set_by_s) > CLOCKS_DIFFER_S else 0.0)


class Wakefulness:
    """Calls `woke(slept_s)`, `lagged(lag_s)` and `clock_set(by_s)` from its timer. Must be used inside a running event loop."""

    def __init__(
        self,
        clocks: WakeClocks,
        *,
        woke: Callable[[float], None],
        lagged: Callable[[float], None],
        clock_set: Callable[[float], None],
        interval_s: float = LOOK_INTERVAL_S,
    ) -> None:
        #: What is compared.
        self._clocks = clocks
        #: Who is told; never from within a method of this class.
        self._woke = woke
        self._lagged = lagged
        self._clock_set = clock_set
        #: Seconds between two looks.
        self._interval_s = interval_s
        #: The readings of the last look: monotonic, wall, boot.
        self._last: tuple[float, float, float | None] = self._read()
        #: The look to come; None before `start` and after `stop`.
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look; a second call does nothing."""
        if self._timer is None:
            self._last = self._read()
            self._arm()

    def stop(self) -> None:
        """Look no more; a second call does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def _look(self) -> None:
        (monotonic, wall, boot), (now_monotonic, now_wall, now_boot) = self._last, self._read()
        self._last = (now_monotonic, now_wall, now_boot)
        # Armed before anybody is told: what they raise must not end the watch, and how long they take is lateness too.
        self._arm()
        boot_s = None if boot is None or now_boot is None else now_boot - boot
        verdict = judge(self._interval_s, now_monotonic - monotonic, now_wall - wall, boot_s)
        if verdict.lag_s:
            self._lagged(verdict.lag_s)
        if verdict.set_by_s:
            self._clock_set(verdict.set_by_s)
        if verdict.slept_s:
            self._woke(verdict.slept_s)

    def _read(self) -> tuple[float, float, float | None]:
        boot = self._clocks.boot
        return (self._clocks.monotonic(), self._clocks.wall(), boot() if boot is not None else None)
