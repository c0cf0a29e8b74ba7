"""What the machines of this room share: the tick.

Every machine here has `handle(event, now) -> list[effect]` and `deadline() -> float | None`, reads no clock, and is fed
by one driver. After `deadline()` has passed without another event the driver sends a Tick.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; do what is due."""


def earliest(*moments: float | None) -> float | None:
    """The smallest of `moments`, None standing for never; None where all are."""
    first = None
    for moment in moments:
        if moment is not None and (first is None or moment < first):
            first = moment
    return first
