"""Advice on how many peers a network should have for its load. Nobody starts machines here: whoever owns some may follow it.

Formula: the mean load (tasks per slot) over the window; above `up`: add so many that the same work would load them to the middle of `up`
and `down`; below `down`: remove so many; never below `nodes_min` or above `nodes_max`. Between the two, and before the
window is full, nothing: a burst that is over in a minute is no reason for a machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.model.errors import UsageError


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """When to grow and shrink. `up`, `down`: tasks per slot; `window_s`: how long the load must have been so."""

    nodes_min: int = 2
    nodes_max: int = 10
    up: float = 0.8
    down: float = 0.3
    window_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.nodes_min <= self.nodes_max:
            raise UsageError(
                f"{self.nodes_min} to {self.nodes_max} nodes: give a least number, and no smaller greatest one"
            )
        if not 0 <= self.down < self.up:
            raise UsageError(f"scaling down below {self.down} and up above {self.up}: give a lower and a higher load")


@dataclass(frozen=True, slots=True)
class Advice:
    """Nodes to add (above 0) or to remove (below 0), and why in words."""

    change: int
    reason: str


def advise(history: Sequence[tuple[float, float]], nodes: int, now: float, settings: ScalingSettings) -> Advice:
    """What to do with `nodes` nodes. `history`: (monotonic seconds, mean load of all nodes), oldest first."""
    if nodes < settings.nodes_min:
        return Advice(settings.nodes_min - nodes, f"{nodes} nodes, at least {settings.nodes_min} are wanted")
    if nodes > settings.nodes_max:
        return Advice(settings.nodes_max - nodes, f"{nodes} nodes, at most {settings.nodes_max} are wanted")
    recent = [load for at, load in history if now - at <= settings.window_s]
    if not recent or now - history[0][0] < settings.window_s:
        return Advice(0, f"the load has been watched for less than {settings.window_s:g} s")
    mean = sum(recent) / len(recent)
    if settings.down <= mean <= settings.up:
        return Advice(0, f"a load of {mean:.2f} is between {settings.down:g} and {settings.up:g}")
    ideal = mean * nodes / ((settings.up + settings.down) / 2)
    wanted = min(max(math.ceil(ideal - 1e-9), settings.nodes_min), settings.nodes_max)
    side = f"above {settings.up:g}" if mean > settings.up else f"below {settings.down:g}"
    return Advice(wanted - nodes, f"a load of {mean:.2f} is {side}: {wanted} nodes would do")
