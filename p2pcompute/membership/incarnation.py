"""How far ahead an incarnation may be.

Incarnations are wall clocks in milliseconds, at the time of a peer's start. One from far in the future would outrank every
later life of its peer, so it is refused; measured not against this machine's clock alone, which on a laptop may be an
hour slow and would refuse the whole network, but against what the neighbours use where that is later. Half of the
neighbours must lie to move the median.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def latest_incarnation(wall: float, neighbours: Sequence[int], ahead_max_s: float) -> float:
    """The highest incarnation to take. `wall`: seconds; `neighbours`: incarnations of the linked peers, ms."""
    return max(wall * 1000, statistics.median(neighbours) if neighbours else 0) + ahead_max_s * 1000
