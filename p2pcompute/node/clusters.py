"""A cluster behind this peer: what it has is what the peer announces and lends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from p2pcompute.execution.cluster.clusters import opener_of
from p2pcompute.execution.cluster.pool import ClusterPool, ClusterState
from p2pcompute.execution.pool_types import PoolEvents
from p2pcompute.model.capability import Capability
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.node.config import PeerConfig

_GIB = 1 << 30


class HasSlots(Protocol):
    """What lends, as far as a cluster is concerned."""

    def resize(self, slots: int) -> None:
        """There are so many from now on, and the record says so."""


class HasRecord(Protocol):
    """What a peer says of itself, as far as a cluster is concerned."""

    def set_python(self, version: str) -> None:
        """Which version of Python runs tasks."""


class ClusterSide:
    """The cluster that `config.cluster` names, as the other parts of a peer see it."""

    def __init__(self, name: str, config: PeerConfig, log: FilteringBoundLogger) -> None:
        """`name`: see `clusters.opener_of`. Raises UsageError."""
        self._name = name
        self._config = config
        self._log = log
        self._opener = opener_of(name)
        #: Whose slots follow the cluster's; None until `tells`.
        self._told: tuple[HasSlots, HasRecord] | None = None
        #: As last told; no slots until the cluster has answered.
        self.state = ClusterState(0)

    def tells(self, lending: HasSlots, own: HasRecord) -> None:
        """From now on `lending` lends what the cluster has, no more than `slots` of the configuration, and `own` says so."""
        self._told = (lending, own)

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
            self._log.warning("the cluster cannot be reached", cluster=self._name, cause=state.cause)
        else:
            self._log.info("cluster", cluster=self._name, slots=state.slots, python=state.python)
        self.state = lent
        if self._told is not None:
            lending, own = self._told
            lending.resize(lent.slots)
            own.set_python(lent.python)


def cluster_of(config: PeerConfig, log: FilteringBoundLogger) -> ClusterSide | None:
    """The cluster behind a peer of this configuration, or None. Raises UsageError."""
    return None if config.cluster is None else ClusterSide(config.cluster, config, log)


def sample_of(own: Capability, load: float, cluster: ClusterSide | None) -> tuple[Capability, float]:
    """What a peer can do and its load, from what its `own` machine can."""
    return (own if cluster is None else cluster.capability(own, load)), load
