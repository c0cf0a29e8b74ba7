"""What was refused or lost: counted by reason, and told now and then.

A flood of nonsense must not become a flood of news: one address is told of once a second, all together
`limits.REFUSALS_TOLD_PER_SECOND` times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError, ProtocolError
from p2pcompute.model.peer import Address
from p2pcompute.net.datagram_rates import Bucket
from p2pcompute.net.nonsense import Nonsense
from p2pcompute.net.session_events import Effect, Refused, Why

#: Between two refusals of one address that are told.
_TOLD_AGAIN_S = 1.0
#: Addresses whose last told refusal is remembered.
_TOLD_MAX = 1_024


#: What a host is said to send when it sends too much of it.
_NONSENSE: Mapping[Why, str] = MappingProxyType(
    {
        Why.SIZE: "datagrams that are too short or too long",
        Why.RATE: "more datagrams than strangers may",
        Why.FOREIGN: "datagrams that are none of this network",
        Why.VERSION: "handshakes of an unknown version",
        Why.MALFORMED: "handshakes that cannot be read",
        Why.COOKIE: "handshakes without the cookie that they were told",
        Why.UNKNOWN: "datagrams of no session",
        Why.REPLAY: "datagrams that came before: somebody has captured them",
        Why.SEAL: "datagrams of others' sessions that are forged",
        Why.STALE: "answers to what was not asked",
    }
)


class Refusals:
    """See the module."""

    def __init__(self) -> None:
        #: When a refusal of a host was last told, oldest first.
        self._told: OrderedDict[str, float] = OrderedDict()
        #: Who sends what no honest peer does.
        self._nonsense = Nonsense()
        #: What all addresses together may be told of.
        self._tellable = Bucket(limits.REFUSALS_TOLD_PER_SECOND, 0.0)
        self._counts: dict[str, int] = {why.value: 0 for why in Why}
        #: How many, by reason; every reason of `Why` is there.
        self.counts: Mapping[str, int] = MappingProxyType(self._counts)

    def count(self, why: Why, number: int = 1) -> tuple[Effect, ...]:
        """Count it; there is nothing to be done about it."""
        self._counts[why] += number
        return ()

    def blame(self, why: Why, source: Address, now: float) -> Sequence[Effect]:
        """Count what no honest peer sends, and tell of its source when that sends too much of it."""
        self._counts[why] += 1
        times = self._nonsense.count(source.host, now)
        if not times or not self._tellable.take(now):
            return ()
        error = ProtocolError(f"sends {_NONSENSE[why]}; they are dropped", f"{source.host} (or somebody in its name)")
        return [Refused(source, error, times)]

    def refuse(self, why: Why, address: Address, error: P2PComputeError, now: float) -> list[Effect]:
        """Count it, and tell it unless that would be too often."""
        self._counts[why] += 1
        if now - self._told.get(address.host, float("-inf")) < _TOLD_AGAIN_S or not self._tellable.take(now):
            return []
        self._told.pop(address.host, None)
        self._told[address.host] = now
        if len(self._told) > _TOLD_MAX:
            self._told.popitem(last=False)
        return [Refused(address, error)]
