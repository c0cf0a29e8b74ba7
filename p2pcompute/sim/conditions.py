"""What the way between two hosts is like: latency, loss and the rest, as the laboratory is told them and as a datagram meets them.

A way is a path between two sites and the access line of each end. Faults are added up as they are in the world: latencies add, a datagram arrives
if no part loses it. Refuses to know who the hosts are and what is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple


@dataclass(frozen=True, slots=True)
class Conditions:
    """A path between sites, one way."""

    #: Seconds that everything takes, and at most so many more, evenly distributed.
    latency_s: float = 0.000_3
    jitter_s: float = 0.000_2
    #: Share of datagrams that vanish, and that arrive twice; 0 to 1. On links a loss costs a retransmission instead.
    loss: float = 0.0
    duplicate: float = 0.0
    #: Share of datagrams that take up to `reorder_s` more than the others, so that later ones overtake them.
    reorder: float = 0.0
    reorder_s: float = 0.05

    def __post_init__(self) -> None:
        _check_times(self.latency_s, self.jitter_s, self.reorder_s)
        _check_shares(self.loss, self.duplicate, self.reorder)

    @classmethod
    def lan(cls) -> Conditions:
        """A switched office network: the defaults."""
        return cls()

    @classmethod
    def wan(cls) -> Conditions:
        """Two places of one continent: 20 to 25 ms one way, a loss in a thousand, some reordering."""
        return cls(latency_s=0.020, jitter_s=0.005, loss=0.001, duplicate=0.0002, reorder=0.005, reorder_s=0.01)

    @classmethod
    def far(cls) -> Conditions:
        """Two continents: 75 to 90 ms one way, half a percent of loss."""
        return cls(latency_s=0.075, jitter_s=0.015, loss=0.005, duplicate=0.0005, reorder=0.01, reorder_s=0.02)


@dataclass(frozen=True, slots=True)
class Line:
    """How one host is connected; counts for what it sends and for what it receives."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    #: Bytes a second out of the host and into it; None: as fast as one likes.
    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        _check_times(self.latency_s, self.jitter_s)
        _check_shares(self.loss)
        for rate in (self.up_bytes_per_s, self.down_bytes_per_s):
            if rate is not None and rate <= 0:
                raise ValueError(f"a line of {rate} bytes a second carries nothing: partition the host instead")

    @property
    def is_limited(self) -> bool:
        """Whether it has a rate."""
        return self.up_bytes_per_s is not None or self.down_bytes_per_s is not None

    @classmethod
    def wifi(cls) -> Line:
        """A full café: a percent of loss, up to 8 ms of waiting for the air."""
        return cls(latency_s=0.001, jitter_s=0.008, loss=0.01)

    @classmethod
    def dsl(cls) -> Line:
        """A home: 10 ms, 10 Mbit/s up and 100 down."""
        return cls(latency_s=0.010, jitter_s=0.002, up_bytes_per_s=1.25e6, down_bytes_per_s=12.5e6)


class Path(NamedTuple):
    """The whole way from one kind of host to another."""

    #: As in `Conditions`, with both lines.
    base_s: float
    jitter_s: float
    loss: float
    duplicate: float
    reorder: float
    reorder_s: float
    #: Whether a partition lies between.
    is_blocked: bool
    #: Whether there is nothing to decide but when it arrives.
    is_plain: bool


def path_over(conditions: Conditions, near: Line, far: Line, is_blocked: bool) -> Path:
    """The way over `conditions` between hosts with the lines `near` and `far`."""
    kept = (1.0 - conditions.loss) * (1.0 - near.loss) * (1.0 - far.loss)
    is_limited = near.is_limited or far.is_limited
    return Path(
        conditions.latency_s + near.latency_s + far.latency_s,
        conditions.jitter_s + near.jitter_s + far.jitter_s,
        1.0 - kept if kept < 1.0 else 0.0,
        conditions.duplicate,
        conditions.reorder,
        conditions.reorder_s,
        is_blocked,
        kept == 1.0 and not (conditions.duplicate or conditions.reorder or is_blocked or is_limited),
    )


def _check_times(*times_s: float) -> None:
    if any(not 0 <= each < 3600 for each in times_s):
        raise ValueError(f"latencies are between 0 and an hour, not {times_s}")


def _check_shares(*shares: float) -> None:
    if any(not 0 <= each <= 1 for each in shares):
        raise ValueError(f"shares are between 0 and 1, not {shares}")


#: A host that speaks with itself.
OWN_HOST: Final = path_over(Conditions(latency_s=0.000_03, jitter_s=0.000_02), Line(), Line(), is_blocked=False)
