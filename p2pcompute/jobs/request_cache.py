"""Answers to equal calls, kept for a while: the same function of the same program with the same arguments.

Off unless the submitter asks for it, since only the submitter knows whether a function gives the same answer twice. A
key covers the program's digest (its code and data) and the encoded arguments, so a hit is never another call's answer;
equal values that are encoded differently (dicts in another order) are a miss and cost only time. Only values that were
returned are kept, no errors. Bounded by bytes, count and age; what would expire first goes first, which is also what
was kept longest.

Refuses to know the clock (`now` is monotonic seconds) and what is in an answer. `node/answers.py` asks it before tasks are made of
inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NewType

import blake3

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.job import Outcome, Payload
from p2pcompute.model.performance import FunctionKey

RequestKey = NewType("RequestKey", bytes)

#: Bytes that an entry is taken for beside its content: key, times, the table's own.
ENTRY_OVERHEAD_BYTES = 300


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """`enabled`: whether anything is kept. `ttl_s`: seconds that an answer is good for. The rest.

    Bounds, see `limits`.
    """

    enabled: bool = False
    ttl_s: float = limits.CACHE_TTL_S
    bytes_max: int = limits.CACHE_BYTES_MAX
    entries_max: int = limits.CACHE_ENTRIES_MAX

    def __post_init__(self) -> None:
        if not 0 < self.ttl_s < math.inf:
            raise UsageError(f"ttl_s is {self.ttl_s}: give seconds above 0; a cache that never forgets is not offered")
        if self.bytes_max < 0 or self.entries_max < 0:
            raise UsageError(
                f"a cache of {self.bytes_max} bytes and {self.entries_max} entries: give numbers from 0 up"
            )


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """What a cache holds and how it did since it was made. `dropped`.

    Kept answers that gave way to others before their time.
    """

    entries: int
    bytes: int
    hits: int
    misses: int
    dropped: int


def request_key(function: FunctionKey, arguments: Payload) -> RequestKey:
    """The key of a call: BLAKE3 over function and arguments, each with its length before it. `arguments`.

    Inline, or a blob's id.
    """
    digest = blake3.blake3()
    place = b"blob" if arguments.blob is not None else b"inline"
    for part in (function.name.encode(), function.program, place, arguments.blob or arguments.inline):
        digest.update(len(part).to_bytes(8, "big") + part)
    return RequestKey(digest.digest())


class RequestCache:
    """Answers by key."""

    def __init__(self, settings: CacheSettings | None = None) -> None:
        #: Bounds and time.
        self.settings = settings or CacheSettings()
        #: (kept at, content) by key; the one kept longest first, so that expired ones stand together at the front.
        self._entries: dict[RequestKey, tuple[float, bytes]] = {}
        #: Sum over the entries of their contents and overheads; at most `bytes_max`.
        self._bytes = 0
        #: Latest time that was told: time never goes back.
        self._now = -math.inf
        self._hits = 0
        self._misses = 0
        self._dropped = 0

    def get(self, key: RequestKey, now: float, younger_than_s: float = math.inf) -> bytes | None:
        """The answer that was kept less than `ttl_s` and less than `younger_than_s` ago, or None."""
        if not self.settings.enabled:
            return None
        self._expire(now)
        entry = self._entries.get(key)
        if entry is None or self._now - entry[0] >= younger_than_s:
            self._misses += 1
            return None
        self._hits += 1
        return entry[1]

    def put(self, key: RequestKey, outcome: Outcome, content: bytes, now: float) -> bool:
        """Keep the answer `content`, in place of an older one; whether it was kept.

        Errors and what is too large are not.
        """
        settings = self.settings
        size = len(content) + ENTRY_OVERHEAD_BYTES
        if not settings.enabled or outcome is not Outcome.RETURNED or settings.entries_max == 0:
            return False
        if size > min(limits.CACHE_ENTRY_BYTES_MAX, settings.bytes_max):
            return False
        self._expire(now)
        if key in self._entries:
            self._remove(key)
        while len(self._entries) >= settings.entries_max or self._bytes + size > settings.bytes_max:
            self._remove(next(iter(self._entries)))
            self._dropped += 1
        self._entries[key] = (self._now, content)
        self._bytes += size
        return True

    def forget(self, key: RequestKey) -> None:
        """Drop one answer, where it is there."""
        if key in self._entries:
            self._remove(key)

    def clear(self) -> None:
        """Drop all of them."""
        self._entries.clear()
        self._bytes = 0

    def figures(self, now: float) -> CacheFigures:
        """What it holds at `now`, and how it did."""
        self._expire(now)
        return CacheFigures(len(self._entries), self._bytes, self._hits, self._misses, self._dropped)

    def check_invariants(self) -> None:
        """Raise AssertionError where sums and bounds do not hold."""
        assert self._bytes == sum(len(content) + ENTRY_OVERHEAD_BYTES for _, content in self._entries.values())
        assert self._bytes <= self.settings.bytes_max
        assert len(self._entries) <= self.settings.entries_max
        kept = [at for at, _ in self._entries.values()]
        assert kept == sorted(kept)
        assert not kept or kept[-1] <= self._now

    def _expire(self, now: float) -> None:
        self._now = max(self._now, now)
        oldest = self._now - self.settings.ttl_s
        expired = []
        for key, (kept_at, _) in self._entries.items():
            if kept_at > oldest:
                break
            expired.append(key)
        for key in expired:
            self._remove(key)

    def _remove(self, key: RequestKey) -> None:
        _, content = self._entries.pop(key)
        self._bytes -= len(content) + ENTRY_OVERHEAD_BYTES
