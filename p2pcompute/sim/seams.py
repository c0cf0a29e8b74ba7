"""The virtual world behind `model/seams.py`: clocks that can be wrong, entropy with a seed, off-loading without threads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

#: Wall time at the start of a run: 2026-01-01 00:00 UTC. Any fixed time would do; one that certificates of today are valid at is the least surprising.
WALL_START_S: Final = 1_767_225_600.0


class SimClock:
    """The clocks of one machine, made from the loop's.

    `offset_s`: what the monotonic clock shows at the start; every machine has another. `skew_s`: how far the wall clock is ahead at the start. `drift`:
    seconds that it gains in a second (5e-5 is a bad quartz, 0.01 a broken one).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        offset_s: float = 0.0,
        skew_s: float = 0.0,
        drift: float = 0.0,
        wall_start_s: float = WALL_START_S,
    ) -> None:
        self._loop = loop
        #: What is added to the loop's time; only grows.
        self._offset_s = offset_s
        #: Seconds that the wall clock is ahead of the true time, apart from its drift.
        self._skew_s = skew_s
        self._drift = drift
        self._wall_start_s = wall_start_s
        #: The loop's time at which this clock stands still; None while it goes.
        self._stands_at: float | None = None

    def monotonic(self) -> float:
        """Seconds, never going back."""
        return self._loop_time() + self._offset_s

    def wall(self) -> float:
        """Seconds since 1970 as this machine believes."""
        return self._wall_start_s + self._loop_time() * (1.0 + self._drift) + self._skew_s

    def jump(self, seconds: float) -> None:
        """Both clocks go on by `seconds` at once, as a laptop sees it that has slept; not back."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s: use set_wall")
        self._offset_s += seconds
        self._skew_s += seconds

    def set_wall(self, wall: float) -> None:
        """Set the wall clock, as a person or NTP does; the monotonic one does not notice."""
        self._skew_s += wall - self.wall()

    def stop(self) -> None:
        """Stand still, as the clocks of a machine that sleeps; a second call does nothing."""
        if self._stands_at is None:
            self._stands_at = self._loop.time()

    def go_on(self, *, counts_sleep: bool = True) -> None:
        """Go again. `counts_sleep`: whether the monotonic clock has counted on meanwhile (macOS, Windows) or not (Linux); the wall clock always has."""
        if self._stands_at is not None:
            if not counts_sleep:
                self._offset_s -= self._loop.time() - self._stands_at
            self._stands_at = None

    def _loop_time(self) -> float:
        return self._loop.time() if self._stands_at is None else self._stands_at


class SimEntropy:
    """Bytes from seeded dice: keys and nonces that are the same in each run."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def bytes(self, count: int) -> bytes:
        """`count` bytes."""
        return self._rng.randbytes(count)


class InlineOffload:
    """Runs what would go to a thread in a turn of the loop of its own: order is free as with a thread, time is not."""

    async def run(self, function: Callable[[], T]) -> T:
        """`function()`."""
        return await asyncio.get_running_loop().run_in_executor(None, function)
