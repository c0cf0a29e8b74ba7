"""How far ahead an incarnation may be.

Incarnations are wall clocks in milliseconds, at the time of a peer's start. One from far in the future would outrank every
later life of its peer, so it is refused; measured not against this machine's clock alone, which on a laptop may be an
hour slow and would refuse the whole network, but against the clocks of the neighbours where those are ahead. Half of the
neighbours must lie to move the median.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def latest_incarnation(wall: float, clocks_ahead_s: Sequence[float], ahead_max_s: float) -> float:
    """The highest incarnation to take, ms. `wall`: seconds; `clocks_ahead_s`: of the linked peers, against this machine's."""
    ahead_s = statistics.median(clocks_ahead_s) if clocks_ahead_s else 0.0
    return (wall + max(ahead_s, 0.0) + ahead_max_s) * 1000
