"""What work has used, added up by whoever did it, or whoever it was done for.

Numbers of other peers are their word: receipts between peers are made elsewhere. Refuses to know: where results come from.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from p2pcompute.model.job import NO_USAGE, SHORT_TASK_US, Outcome, Usage

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Spent:
    """A sum over attempts, added to in place: it runs for every task. `wall_us`: from beginning to end of each; `ended`: those that returned."""

    attempts: int = 0
    ended: int = 0
    wall_us: int = 0
    cpu_us: int = 0
    peak_memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    fuel: int = 0
    gpu_us: int = 0

    def add(self, outcome: Outcome, wall_us: int, usage: Usage) -> None:
        """One attempt more; a short one that was not measured kept one core busy."""
        self.attempts += 1
        self.ended += outcome is Outcome.RETURNED or outcome is Outcome.MERGED
        self.wall_us += wall_us
        if usage is NO_USAGE:
            self.cpu_us += wall_us if wall_us < SHORT_TASK_US else 0
            return
        self.cpu_us += usage.cpu_us or (wall_us if wall_us < SHORT_TASK_US else 0)
        self.peak_memory_bytes = max(self.peak_memory_bytes, usage.peak_memory_bytes)
        self.read_bytes += usage.read_bytes
        self.written_bytes += usage.written_bytes
        self.fuel += usage.fuel
        self.gpu_us += usage.gpu_us

    def take(self, other: Spent) -> None:
        """Everything of `other` too."""
        for name in self.__slots__:
            both = (getattr(self, name), getattr(other, name))
            setattr(self, name, max(both) if name == "peak_memory_bytes" else sum(both))


class Accounts(Generic[K]):
    """Sums by key, in the order in which keys first came; beyond `keys_max` the oldest key goes, and what it had is kept in `rest`."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        #: By key; never more than `keys_max`.
        self.of: dict[K, Spent] = {}
        #: Of keys that had to go.
        self.rest = Spent()

    def add(self, key: K, outcome: Outcome, wall_us: int, usage: Usage) -> None:
        """One attempt of `key` more."""
        known = self.of.get(key)
        if known is None:
            if len(self.of) >= self._keys_max:
                self.rest.take(self.of.pop(next(iter(self.of))))
            known = self.of[key] = Spent()
        known.add(outcome, wall_us, usage)

    def total(self) -> Spent:
        """Of all keys."""
        total = Spent()
        for spent in (self.rest, *self.of.values()):
            total.take(spent)
        return total
