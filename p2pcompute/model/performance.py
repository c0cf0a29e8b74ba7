"""What a finished piece of work says about the peer that did it: one record a batch, and sums of records.

Records are made by the origin from what it measured itself, wherever it can; nothing in them travels.
`storage/performance.py` keeps them, `jobs/performance.py` counts them in a window, strategies learn from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome

#: What says nothing about a peer: the submitter's or the owner's wish. Such records are kept, and counted nowhere.
NOT_COUNTED = frozenset({Outcome.CANCELLED, Outcome.RETURNED_UNRUN})
#: The function ran to its end there, whatever it made of it: the peer served.
SERVED = frozenset({Outcome.RETURNED, Outcome.RAISED, Outcome.UNSHIPPABLE})
#: The longest time of a record: three years. More is no task but a broken clock, or a lie.
TIME_MAX_S = 1e8


def plausible_s(told_s: float) -> float:
    """A time that a peer told, as a record takes it: within 0 and `TIME_MAX_S`; what is no number is 0."""
    return min(max(told_s, 0.0), TIME_MAX_S) if told_s == told_s else 0.0


class FunctionKey(NamedTuple):
    """A function for the purpose of learning: its entry's name within one program. A changed program is another one."""

    name: str
    program: ProgramId


@dataclass(frozen=True, slots=True)
class PerformanceRecord:
    """Tasks of one function that ended at one peer together, and alike.

    `wall_s`: mean seconds a task ran there. `queue_s`: mean seconds that it was neither running nor with the submitter.
    `input_bytes`: mean size of its arguments. `features`: what the strategy saw when it chose the peer, empty where
    none did.
    """

    function: FunctionKey
    peer: PeerId
    strategy: str
    outcome: Outcome
    wall_s: float
    queue_s: float = 0.0
    tasks: int = 1
    input_bytes: int = 0
    features: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise UsageError(f"a record of {self.tasks} tasks: a record is about at least one")
        # Not `wall_s < 0`: what is no number compares with nothing.
        if not (0 <= self.wall_s <= TIME_MAX_S and 0 <= self.queue_s <= TIME_MAX_S and self.input_bytes >= 0):
            raise UsageError(
                f"a record of {self.wall_s} s, {self.queue_s} s in queues and {self.input_bytes} bytes: "
                f"times are 0 to {TIME_MAX_S:.0e} s (`plausible_s` for what a peer told), sizes 0 and up"
            )


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums over records of one subject (a peer, a function, a day). Means and percentiles in seconds, over tasks.

    `counted`: tasks whose outcome says something (not in `NOT_COUNTED`). `served`: those of them that ran to their end.
    `succeeded`: those that returned a value. `mean_s`, `response_s` (running and queueing together) and the percentiles
    are over served tasks, None where there is none.
    """

    counted: int
    served: int
    succeeded: int
    mean_s: float | None
    response_s: float | None
    p50_s: float | None = None
    p90_s: float | None = None
    p99_s: float | None = None

    @property
    def success_rate(self) -> float | None:
        """Share of the counted tasks that returned a value; None where nothing was counted."""
        return self.succeeded / self.counted if self.counted else None

    @property
    def served_rate(self) -> float | None:
        """Share of the counted tasks that the peer ran to their end, errors of the function included; None for none."""
        return self.served / self.counted if self.counted else None


@dataclass(frozen=True, slots=True)
class PairSummary:
    """How one peer did with one function."""

    function: FunctionKey
    peer: PeerId
    summary: Summary


@dataclass(frozen=True, slots=True)
class DaySummary:
    """How all did within one span of time that begins at `start_s` (wall clock, seconds since 1970)."""

    start_s: float
    summary: Summary
