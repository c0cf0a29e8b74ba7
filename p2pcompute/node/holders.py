"""Which peers already hold the data that was put here, and which jobs use it: so that tasks can go where their data is.

A handle stands in encoded arguments and programs as the 32 bytes of its digest, so a job that uses one is found by looking for
them: nothing has to be decoded, and the same works for jobs from other processes. A peer that was sent data keeps it for this
origin's tasks until the link is gone. Refuses to know: links, stores, orders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from p2pcompute.model.ids import BlobId, PeerId

#: Arguments of one job that are looked at: what tasks share, the first ones have.
ARGUMENTS_SCANNED = 256
#: Handles that are looked for; with more at a time, the newest.
HANDLES_SCANNED = 16
#: Larger arguments, and programs, are not looked at: with these, all arguments of a job take 3 ms, and its program as long.
ARGUMENT_BYTES_SCANNED = 4096
PROGRAM_BYTES_SCANNED = 1 << 20


class Holders:
    """`put`: sizes of the data that is held here for handles, by digest, oldest first."""

    def __init__(self, put: Callable[[], Mapping[BlobId, int]]) -> None:
        self._put = put
        #: Data that each peer was sent, over its present link.
        self._sent: dict[PeerId, dict[BlobId, int]] = {}

    def found_in(self, parts: Sequence[bytes], bytes_max: int) -> dict[BlobId, int]:
        """Sizes of the handles that stand in any of `parts` of up to `bytes_max` bytes, by digest."""
        put = self._put()
        if not put:
            return {}
        small = [part for part in parts if len(part) <= bytes_max]
        newest = list(put)[-HANDLES_SCANNED:]
        return {blob: put[blob] for blob in newest if any(part.find(blob) >= 0 for part in small)}

    def common_to(self, parts: Sequence[bytes], bytes_max: int) -> tuple[BlobId, ...]:
        """The handles that stand in every one of `parts`; none where any is larger than `bytes_max`."""
        if not parts or any(len(part) > bytes_max for part in parts):
            return ()
        newest = list(self._put())[-HANDLES_SCANNED:]
        return tuple(blob for blob in newest if all(part.find(blob) >= 0 for part in parts))

    def sent(self, peer: PeerId, blob: BlobId) -> bool:
        """`peer` is being sent `blob`; whether that is data behind a handle."""
        size = self._put().get(blob)
        if size is None:
            return False
        self._sent.setdefault(peer, {})[blob] = size
        return True

    def gone(self, peer: PeerId) -> None:
        """The link to `peer` is down: it lets go of what it had."""
        self._sent.pop(peer, None)

    def held(self, shared: Mapping[BlobId, int]) -> tuple[tuple[PeerId, int], ...]:
        """Bytes of `shared` at each peer that has any, by id."""
        rows = (
            (peer, sum(size for blob, size in blobs.items() if blob in shared)) for peer, blobs in self._sent.items()
        )
        return tuple(sorted(row for row in rows if row[1]))
