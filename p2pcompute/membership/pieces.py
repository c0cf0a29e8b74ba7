"""Records that no datagram holds: cut into pieces, and put together again.

A record travels in pieces only where there is no link; pieces may come in any order, twice, or not at all. What they make up is
named by the start of its hash, so that pieces of two versions never mix. The whole is then checked like any record.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.wire.gossip import PIECE_BYTES, WHOLE_HASH_BYTES, Piece


def whole_hash(wire: bytes) -> bytes:
    """The name of what pieces make up."""
    return hashlib.sha256(wire).digest()[:WHOLE_HASH_BYTES]


def cut(wire: bytes, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """`wire` (at most `limits.RECORD_BYTES_MAX`) in pieces of at most `piece_bytes`."""
    parts = [wire[start : start + piece_bytes] for start in range(0, len(wire), piece_bytes)]
    whole = whole_hash(wire)
    return [Piece(whole, index, len(parts), part) for index, part in enumerate(parts)]


@dataclass(slots=True)
class _Partial:
    """What has come of one whole."""

    #: When the first piece came, monotonic seconds.
    since: float
    #: How many pieces it has.
    count: int
    #: Those that have come, by index.
    parts: dict[int, bytes] = field(default_factory=dict)


class Assembly:
    """Wholes that are under way, by who sends them; at most `limits.PARTIALS_MAX`, for `limits.PARTIAL_S` each."""

    def __init__(self) -> None:
        #: Oldest first.
        self._partials: dict[tuple[PeerId, bytes], _Partial] = {}

    def add(self, source: PeerId, piece: Piece, now: float) -> bytes | None:
        """The whole where `piece` was the last one that was missing. Pieces that contradict each other make nothing."""
        self._expire(now)
        key = (source, piece.whole)
        partial = self._partials.get(key)
        if partial is None:
            if len(self._partials) >= limits.PARTIALS_MAX:
                del self._partials[next(iter(self._partials))]
            partial = self._partials[key] = _Partial(now, piece.count)
        if piece.count != partial.count or piece.index >= partial.count:
            return None
        partial.parts[piece.index] = piece.data
        if len(partial.parts) < partial.count:
            return None
        del self._partials[key]
        wire = b"".join(partial.parts[index] for index in range(partial.count))
        return wire if len(wire) <= limits.RECORD_BYTES_MAX and whole_hash(wire) == piece.whole else None

    def __len__(self) -> int:
        return len(self._partials)

    def _expire(self, now: float) -> None:
        while self._partials:
            oldest = next(iter(self._partials))
            if now - self._partials[oldest].since < limits.PARTIAL_S:
                break
            del self._partials[oldest]
