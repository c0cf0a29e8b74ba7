"""Who sends what no honest peer sends: counted by host, and told when it is more than accidents explain.

Networks duplicate datagrams, a peer that restarted is still sent what its former life would have understood, and somebody's port may once have
been another program's. So a bucket for each host leaks `limits.NONSENSE_FORGIVEN_PER_SECOND`, and only a host whose bucket has
overflown is told, then once in `limits.NONSENSE_TOLD_AGAIN_S` with how much it was. Sources of datagrams can be forged: what is told
names an address, and nothing is done to it. Takes `now`; refuses to know what the nonsense was.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from p2pcompute.model import limits


@dataclass(slots=True)
class _Bucket:
    """What one host has sent: `level` at `at`, and how much has not been told since `told_at` (monotonic seconds)."""

    level: float
    at: float
    untold: int = 0
    told_at: float = float("-inf")


class Nonsense:
    """See the module."""

    def __init__(self) -> None:
        #: By host, the longest quiet first; at most `limits.ADDRESSES_COUNTED_MAX`.
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def count(self, host: str, now: float) -> int:
        """`host` sent one more; how many of them are to be told now, 0 for none."""
        bucket = self._buckets.get(host)
        if bucket is None:
            bucket = self._buckets[host] = _Bucket(0.0, now)
            if len(self._buckets) > limits.ADDRESSES_COUNTED_MAX:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(host)
        leaked = max(0.0, now - bucket.at) * limits.NONSENSE_FORGIVEN_PER_SECOND
        # Never far above the brim, so that the end of a flood is soon forgiven.
        bucket.level = min(max(0.0, bucket.level - leaked) + 1.0, 2.0 * limits.NONSENSE_TOLERATED)
        bucket.at = now
        bucket.untold += 1
        if bucket.level <= limits.NONSENSE_TOLERATED:
            if bucket.level == 1.0:
                bucket.untold = 1  # what came before was an accident
            return 0
        if now - bucket.told_at < limits.NONSENSE_TOLD_AGAIN_S:
            return 0
        times, bucket.untold, bucket.told_at = bucket.untold, 0, now
        return times

    def __len__(self) -> int:
        return len(self._buckets)
