"""What the product takes from the world, as protocols that the composition root fills in.

Real ones are built in `node/`, virtual ones in `sim/`, refusing ones in the purity test. Pure rooms receive `now` and,
where they must draw, an `Rng`; only shells and `wire/identity.py` receive the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Time in seconds, both kinds."""

    def monotonic(self) -> float:
        """Never goes back; for deadlines and durations. Its zero means nothing."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC as this machine believes; wrong on many laptops."""


class Rng(Protocol):
    """Reproducible dice (`random.Random` is one). Never for keys."""

    def random(self) -> float:
        """Uniform in [0, 1)."""

    def uniform(self, a: float, b: float) -> float:
        """Uniform between a and b."""

    def randrange(self, start: int, stop: int) -> int:
        """Uniform integer in [start, stop)."""

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """k distinct members, in random order."""


class Entropy(Protocol):
    """Unpredictable bytes, for keys, nonces and ids."""

    def bytes(self, count: int) -> bytes:
        """`count` bytes that nobody can guess."""


class Offload(Protocol):
    """Runs what would block the loop for more than 10 ms."""

    async def run(self, function: Callable[[], T]) -> T:
        """The value of `function()`, computed off the event loop."""


class Disk(Protocol):
    """The files of one instance, by name relative to its folder. All blocking: call through `Offload` or at start."""

    def read(self, name: str) -> bytes | None:
        """The content, or None where no such file is."""

    def write(self, name: str, content: bytes, *, mode: int = 0o600) -> None:
        """Replace the file in one step: after a crash it has the old content or the new, never half of one."""
