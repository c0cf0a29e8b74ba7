"""A cluster behind this peer: what it has is what the peer announces and lends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from structlog.typing import FilteringBoundLogger

from p2pcompute.execution.cluster.clusters import opener_of
from p2pcompute.execution.cluster.pool import ClusterPool, ClusterState
from p2pcompute.execution.pool_types import PoolEvents
from p2pcompute.model.capability import Capability
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.node.config import PeerConfig

_GIB = 1 << 30


class ClusterSide:
    """The cluster that `config.cluster` names, as the other parts of a peer see it."""

    def __init__(
        self, config: PeerConfig, log: FilteringBoundLogger, on_change: Callable[[ClusterState], None]
    ) -> None:
        """`on_change`: hears of slots as they are to be lent, no more than `config.slots` where that is set. Raises UsageError."""
        assert config.cluster is not None
        self._config = config
        self._log = log
        self._on_change = on_change
        self._opener = opener_of(config.cluster)
        #: As last told; no slots until the cluster has answered.
        self.state = ClusterState(0)

    def pool(self, events: PoolEvents, clock: Clock, entropy: Entropy, numbers: Iterator[int]) -> ClusterPool:
        """What runs the tasks, not started yet."""
        return ClusterPool(
            events, clock, entropy, self._opener, self._changed, numbers=numbers, memory_bytes=self._config.memory_bytes
        )

    def capability(self, own: Capability, load: float) -> Capability:
        """What the peer can do, from what its `own` machine can: cores and memory are the cluster's, and idle is what nobody uses."""
        total_gb = own.memory_gb if self.state.memory_bytes is None else self.state.memory_bytes / _GIB
        free = max(0.0, 1.0 - load)
        return dataclasses.replace(
            own,
            cores=max(self.state.slots, 1),
            idle=free,
            memory_gb=total_gb,
            memory_available_gb=own.memory_available_gb if self.state.memory_bytes is None else total_gb * free,
        )

    def _changed(self, state: ClusterState) -> None:
        most = self._config.slots
        lent = state if most is None else dataclasses.replace(state, slots=min(state.slots, most))
        if state.cause:
            self._log.warning("the cluster cannot be reached", cluster=self._config.cluster, cause=state.cause)
        else:
            self._log.info("cluster", cluster=self._config.cluster, slots=state.slots, python=state.python)
        self.state = lent
        self._on_change(lent)
