"""What peers did that no honest peer does, counted by reason and by name, in bounded memory."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId

#: So often must one peer do one thing before it is told: addresses change, clocks are wrong, a later version asks for other things.
_TOLD_FROM = 8


def _nobody(peer: PeerId, what: str, times: int) -> None:
    """Tells nobody."""


class Troubles:
    """Counts what was refused. Reasons are a fixed set of words of ours, never a peer's text.

    `told(peer, reason, times)` is called when a peer has done one thing 8 times, 16 times, 32 times and so on, with how often since the call before.
    """

    def __init__(self, told: Callable[[PeerId, str, int], None] = _nobody) -> None:
        #: Who wants to know the offenders.
        self._told = told
        #: Times by reason, since the start.
        self.by_reason: Counter[str] = Counter()
        #: Times by peer and reason, the longest quiet offender first; at most `limits.DHT_OFFENDERS_MAX` peers.
        self._offenders: OrderedDict[PeerId, Counter[str]] = OrderedDict()

    def count(self, reason: str, peer: PeerId | None = None) -> None:
        """One more of `reason`, by `peer` where one is to blame."""
        self.by_reason[reason] += 1
        if peer is None:
            return
        counts = self._offenders.pop(peer, None)
        self._offenders[peer] = counts = Counter() if counts is None else counts
        counts[reason] += 1
        number = counts[reason]
        if number >= _TOLD_FROM and number & (number - 1) == 0:
            self._told(peer, reason, number if number == _TOLD_FROM else number // 2)
        while len(self._offenders) > limits.DHT_OFFENDERS_MAX:
            self._offenders.popitem(last=False)

    def of(self, peer: PeerId) -> Mapping[str, int]:
        """What `peer` did lately, times by reason."""
        return dict(self._offenders.get(peer, {}))

    def offenders(self) -> tuple[tuple[PeerId, Mapping[str, int]], ...]:
        """Who did what, the worst first."""
        rows = sorted(self._offenders.items(), key=lambda row: (-row[1].total(), row[0]))
        return tuple((peer, dict(counts)) for peer, counts in rows)
