"""The real world behind `model/seams.py`: this machine's clock, entropy and threads. The laboratory brings its own."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

#: Threads for hashing, serialising and small files: two keep one blocked disk from stopping everything else.
OFFLOAD_THREADS = 2


class SystemClock:
    """The operating system's clocks."""

    def monotonic(self) -> float:
        """Seconds, never going back."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970 as this machine believes."""
        return time.time()


class SystemEntropy:
    """The operating system's generator."""

    def bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""
        return os.urandom(count)


class ThreadOffload:
    """A few threads of our own, so that a task that fills asyncio's default pool cannot starve the peer."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(OFFLOAD_THREADS, thread_name_prefix="p2pcompute-offload")

    async def run(self, function: Callable[[], T]) -> T:
        """`function()` in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def close(self) -> None:
        """Wait for what runs, take nothing more."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def system_rng() -> random.Random:
    """Dice seeded by the operating system: jitter must differ between peers that start together."""
    return random.Random(os.urandom(16))
