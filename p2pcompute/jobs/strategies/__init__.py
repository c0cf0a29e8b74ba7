"""Strategies by name: who is given work first, and who is left out. The interface is `base.Strategy`; one file each.

A strategy is added by a line in `FACTORIES`; every door then knows its name. `smart_adaptive`, whose jobs share what they have learned, is
given to a `Registry` by whoever composes a peer: `Registry({**FACTORIES, ADAPTIVE: shared.strategy_of})`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from p2pcompute.jobs.strategies.base import Report, Situation, Strategy
from p2pcompute.jobs.strategies.cost_aware import CostAware
from p2pcompute.jobs.strategies.custom import Custom
from p2pcompute.jobs.strategies.dynamic import Dynamic
from p2pcompute.jobs.strategies.hlig import Hlig
from p2pcompute.jobs.strategies.latency_based import LatencyBased
from p2pcompute.jobs.strategies.least_loaded import LeastLoaded
from p2pcompute.jobs.strategies.resource_aware import ResourceAware
from p2pcompute.jobs.strategies.round_robin import RoundRobin
from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.job import JobOptions
from p2pcompute.model.placement import STRATEGY_DEFAULT

__all__ = ("ADAPTIVE", "FACTORIES", "NAMES", "Factory", "Registry", "Report", "Situation", "Strategy", "check_names")

#: The strategy that `dynamic` uses when nothing is the matter, where there is one of that name.
ADAPTIVE = "smart_adaptive"

#: Makes the strategy of one job; the registry is for those that ask others.
Factory = Callable[[JobOptions, "Registry"], Strategy]


def _dynamic(options: JobOptions, registry: Registry) -> Strategy:
    otherwise = ADAPTIVE if ADAPTIVE in registry.names else STRATEGY_DEFAULT
    return Dynamic(lambda name: registry.make(name, options), otherwise)


FACTORIES: Mapping[str, Factory] = {
    "cost_aware": lambda options, registry: CostAware(),
    "dynamic": _dynamic,
    "hlig": lambda options, registry: Hlig(),
    "latency_based": lambda options, registry: LatencyBased(),
    "least_loaded": lambda options, registry: LeastLoaded(),
    "resource_aware": lambda options, registry: ResourceAware(),
    "round_robin": lambda options, registry: RoundRobin(),
}
#: What may be asked for at a peer.
NAMES: tuple[str, ...] = tuple(sorted((*FACTORIES, ADAPTIVE)))


def check_names(options: JobOptions, names: Collection[str]) -> None:
    """Raise UnknownNameError, or UsageError, where `options` name strategies that cannot be; `names`: those that can."""
    for name in (options.strategy, options.fallback_strategy):
        if name is not None and name not in names:
            raise UnknownNameError("strategy", name, names)
    if options.balancer is not None and options.strategy != STRATEGY_DEFAULT:
        raise UsageError(f"strategy {options.strategy!r} and a balancer of your own: give one of them")


class Registry:
    """Makes strategies by name. `factories`: as `FACTORIES`, which are the default."""

    def __init__(self, factories: Mapping[str, Factory] = FACTORIES) -> None:
        self._factories = factories

    @property
    def names(self) -> tuple[str, ...]:
        """What may be asked for."""
        return tuple(sorted(self._factories))

    def make(self, name: str, options: JobOptions) -> Strategy:
        """The strategy of that name for one job. Raises UnknownNameError with the nearest valid name."""
        factory = self._factories.get(name)
        if factory is None:
            raise UnknownNameError("strategy", name, self._factories)
        return factory(options, self)

    def make_for(self, options: JobOptions) -> Strategy:
        """The strategy that `options` ask for: by name, or the submitter's own."""
        return self.make(options.strategy, options) if options.balancer is None else Custom(options.balancer)

    def check(self, options: JobOptions) -> None:
        """Raise UnknownNameError, or UsageError, where `options` name strategies that cannot be."""
        check_names(options, self._factories)
