"""Loads of named peers as people set and read them: how uneven they are, who has least, what a plan would move.

For loads that somebody states, 0 to 1, over the same arithmetic as `balancing.py`, which moves the leases of jobs by what it
measures. Refuses to know tasks and links: a plan is fractions of load.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pcompute.jobs.balancing import USUAL
from p2pcompute.model.errors import UsageError

if TYPE_CHECKING:
    from p2pcompute.topology.graph import Weights

#: What one more task is taken to add to a load.
LOAD_PER_TASK = 0.05


@dataclass(frozen=True, slots=True)
class Balance:
    """How even loads are. `imbalance`: (max - min) / mean, 0 where there is no load; `load_variance`: of the population."""

    balanced: bool
    needs_rebalance: bool
    max_load: float
    min_load: float
    avg_load: float
    load_variance: float
    imbalance: float


@dataclass(frozen=True, slots=True)
class Shift:
    """`load` of peer `source` should be at peer `target`."""

    source: str
    target: str
    load: float


class LoadView:
    """The loads of peers by name. `threshold`: of the imbalance, above which it needs rebalancing."""

    def __init__(self, threshold: float = USUAL.start_at) -> None:
        if not threshold >= 0.0:
            raise UsageError(f"a threshold of {threshold}: it must not be negative")
        #: Imbalance above which loads need rebalancing.
        self.threshold = threshold
        #: Load of each peer, 0 to 1, in the order in which they were first told.
        self._loads: dict[str, float] = {}

    @property
    def loads(self) -> Mapping[str, float]:
        """Load by peer, 0 to 1."""
        return dict(self._loads)

    def update(self, peer: str, load: float) -> None:
        """Set the load of `peer`, 0 to 1. Raises UsageError."""
        if not 0.0 <= load <= 1.0:
            raise UsageError(f"a load of {load} for {peer}: it must be from 0 (idle) to 1 (fully used)")
        self._loads[peer] = load

    def forget(self, peer: str) -> None:
        """`peer` has left; nothing where it is not known."""
        self._loads.pop(peer, None)

    def check(self) -> Balance:
        """How even the loads are now; those of nobody, or of one peer, are."""
        loads = list(self._loads.values())
        if not loads:
            return Balance(True, False, 0.0, 0.0, 0.0, 0.0, 0.0)
        mean = statistics.fmean(loads)
        imbalance = (max(loads) - min(loads)) / mean if mean > 0 else 0.0
        needs = imbalance > self.threshold
        return Balance(not needs, needs, max(loads), min(loads), mean, statistics.pvariance(loads), imbalance)

    def least_loaded(self) -> str | None:
        """The peer with the lowest load, of several the one whose name comes first; None where none is known."""
        return min(self._loads, key=lambda peer: (self._loads[peer], peer), default=None)

    def predict(self, peer: str, tasks: int = 1) -> float:
        """The load of `peer` with so many more tasks, `LOAD_PER_TASK` each, at most 1. Raises UsageError."""
        if tasks < 0:
            raise UsageError(f"{tasks} more tasks: give 0 or more")
        return min(1.0, self._known(peer) + LOAD_PER_TASK * tasks)

    def plan(self, weights: Weights | None = None) -> tuple[Shift, ...]:
        """The least movement of load that makes all even, by L x = b; none while it does not need rebalancing.

        `weights`: (n, n) affinities between the peers in the order of `loads`; None where all are equally near. Parts of a network
        that have no link between them stay as uneven as they are. Raises UsageError.
        """
        if not self.check().needs_rebalance:
            return ()
        import numpy as np

        from p2pcompute.topology.balance import balancing_flow, surplus
        from p2pcompute.topology.graph import graph_of
        from p2pcompute.topology.moves import decompose

        names = list(self._loads)
        graph = graph_of(np.ones((len(names), len(names))) if weights is None else weights)
        over = surplus(graph, np.array([self._loads[name] for name in names]), np.ones(len(names)))
        moves = decompose(graph, balancing_flow(graph, over), over)
        return tuple(Shift(names[move.source], names[move.target], move.amount) for move in moves)

    def _known(self, peer: str) -> float:
        load = self._loads.get(peer)
        if load is None:
            raise UsageError(f"no load of {peer!r} is known: set it first")
        return load
