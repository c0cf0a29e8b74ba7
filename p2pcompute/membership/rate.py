"""Token buckets: so many a second, and a table of them by sender that cannot be made to grow.

A full table of strangers refuses further strangers rather than forget one that is being held back: else somebody with
many addresses could wash his own bucket out.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class TokenBucket:
    """Lets `per_second` through, and as many at once after a quiet second."""

    #: Tokens that flow in a second, and the most that are kept.
    per_second: float
    #: Tokens left at `at`; between 0 and `per_second`.
    tokens: float
    #: When `tokens` was last computed, monotonic seconds.
    at: float

    def level(self, now: float) -> float:
        """Tokens at `now`."""
        return min(self.per_second, self.tokens + max(0.0, now - self.at) * self.per_second)

    def take(self, now: float, cost: float = 1.0) -> bool:
        """Whether one more of `cost` tokens may pass now; takes them if so."""
        level = self.level(now)
        self.at = now
        self.tokens = level - cost if level >= cost else level
        return level >= cost


class RateTable(Generic[K]):
    """One bucket a sender, at most `senders_max` of them."""

    def __init__(self, senders_max: int) -> None:
        #: Senders heard lately; a full bucket says nothing and may be forgotten.
        self._buckets: dict[K, TokenBucket] = {}
        #: Bound of `_buckets`.
        self._senders_max = senders_max

    def take(self, sender: K, per_second: float, now: float, cost: float = 1.0) -> bool:
        """Whether one more of `sender`, of `cost` tokens, may pass now."""
        bucket = self._buckets.get(sender)
        if bucket is None:
            if len(self._buckets) >= self._senders_max:
                self._forget_full(now)
            if len(self._buckets) >= self._senders_max:
                return False
            bucket = self._buckets[sender] = TokenBucket(per_second, per_second, now)
        return bucket.take(now, cost)

    def _forget_full(self, now: float) -> None:
        self._buckets = {
            sender: bucket for sender, bucket in self._buckets.items() if bucket.level(now) < bucket.per_second
        }

    def __len__(self) -> int:
        return len(self._buckets)
