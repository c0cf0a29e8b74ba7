"""What was refused or lost: counted by reason, and told now and then.

A flood of nonsense must not become a flood of news: one address is told of once a second, all together
`limits.REFUSALS_TOLD_PER_SECOND` times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.peer import Address
from p2pcompute.net.datagram_rates import Bucket
from p2pcompute.net.session_events import Effect, Refused, Why

#: Between two refusals of one address that are told.
_TOLD_AGAIN_S = 1.0
#: Addresses whose last told refusal is remembered.
_TOLD_MAX = 1_024


class Refusals:
    """See the module."""

    def __init__(self) -> None:
        #: When a refusal of an address was last told, oldest first.
        self._told: OrderedDict[Address, float] = OrderedDict()
        #: What all addresses together may be told of.
        self._tellable = Bucket(limits.REFUSALS_TOLD_PER_SECOND, 0.0)
        self._counts: dict[str, int] = {why.value: 0 for why in Why}
        #: How many, by reason; every reason of `Why` is there.
        self.counts: Mapping[str, int] = MappingProxyType(self._counts)

    def count(self, why: Why, number: int = 1) -> tuple[Effect, ...]:
        """Count it; there is nothing to be done about it."""
        self._counts[why] += number
        return ()

    def refuse(self, why: Why, address: Address, error: P2PComputeError, now: float) -> list[Effect]:
        """Count it, and tell it unless that would be too often."""
        self._counts[why] += 1
        if now - self._told.get(address, float("-inf")) < _TOLD_AGAIN_S or not self._tellable.take(now):
            return []
        self._told.pop(address, None)
        self._told[address] = now
        if len(self._told) > _TOLD_MAX:
            self._told.popitem(last=False)
        return [Refused(address, error)]
