"""Digests: whether two peers know the same records, told in 512 bytes, and where they do not.

Each peer's record falls into one of 64 buckets; a bucket's hash is the exclusive or of the hashes of its (peer, incarnation,
sequence), so that a change costs O(1). Two peers compare the hashes, list the versions in buckets that differ, and each asks for
what is newer at the other. Push and pull of whole states, as memberlist does it, would cost n records each time.

The hash is not keyed: who makes two sets of versions collide hides one of them from one exchange between two others, and
the announcement of the record goes round all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.wire.gossip import BUCKET_HASH_BYTES, PREFIX_BYTES

Order = tuple[int, int]
#: A row of Versions: the first bytes of a peer's id, incarnation, sequence.
VersionRow = tuple[bytes, int, int]


def bucket_of(peer: bytes) -> int:
    """In which bucket the peer is whose id begins with `peer`."""
    return peer[0] % limits.DIGEST_BUCKETS


def version_hash(peer: PeerId, order: Order) -> int:
    """64 bits that stand for one version of one record."""
    text = peer + order[0].to_bytes(8, "big") + order[1].to_bytes(8, "big")
    return int.from_bytes(hashlib.blake2b(text, digest_size=BUCKET_HASH_BYTES).digest(), "big")


def batches(sizes: Sequence[int], rows_max: int) -> list[list[int]]:
    """Positions of `sizes` in groups of at most `rows_max` together; one that is larger has a group of its own."""
    groups: list[list[int]] = []
    room = 0
    for place, size in enumerate(sizes):
        if not groups or size > room:
            groups.append([])
            room = rows_max
        groups[-1].append(place)
        room -= size
    return groups


class Digests:
    """The versions that this peer would pass on, and their digest."""

    def __init__(self) -> None:
        #: By bucket: each peer's version; what is told of nobody is in none.
        self._buckets: list[dict[PeerId, Order]] = [{} for _ in range(limits.DIGEST_BUCKETS)]
        #: By bucket: exclusive or of the hashes of its versions.
        self._hashes = [0] * limits.DIGEST_BUCKETS

    def put(self, peer: PeerId, order: Order | None) -> None:
        """This version of `peer` is told now; None: none is."""
        bucket = bucket_of(peer)
        old = self._buckets[bucket].get(peer)
        if old == order:
            return
        if old is not None:
            self._hashes[bucket] ^= version_hash(peer, old)
            del self._buckets[bucket][peer]
        if order is not None:
            self._hashes[bucket] ^= version_hash(peer, order)
            self._buckets[bucket][peer] = order

    @property
    def hashes(self) -> bytes:
        """All buckets' hashes, as `wire.gossip.Digest` carries them."""
        return b"".join(value.to_bytes(BUCKET_HASH_BYTES, "big") for value in self._hashes)

    def differing(self, hashes: bytes) -> list[int]:
        """Buckets whose hash is another than in `hashes`."""
        size = BUCKET_HASH_BYTES
        theirs = [hashes[start : start + size] for start in range(0, limits.DIGEST_BUCKETS * size, size)]
        return [
            bucket
            for bucket, value in enumerate(self._hashes)
            if value.to_bytes(BUCKET_HASH_BYTES, "big") != theirs[bucket]
        ]

    def rows(self, buckets: Iterable[int]) -> list[VersionRow]:
        """The versions in `buckets`, in the order of the ids within each."""
        return [
            (peer[:PREFIX_BYTES], *self._buckets[bucket][peer])
            for bucket in buckets
            for peer in sorted(self._buckets[bucket])
        ]

    def size(self, bucket: int) -> int:
        """How many versions are in `bucket`."""
        return len(self._buckets[bucket])

    def order(self, peer: PeerId) -> Order | None:
        """The version of `peer` that is told."""
        return self._buckets[bucket_of(peer)].get(peer)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        for bucket, versions in enumerate(self._buckets):
            value = 0
            for peer, order in versions.items():
                assert bucket_of(peer) == bucket
                value ^= version_hash(peer, order)
            assert value == self._hashes[bucket]
