"""Data behind handles: held here for whoever put it, and brought here for the tasks of other peers.

A worker names a blob, and what a worker says is user code's word: it gets only what its own origin put, never what is here for
another. Refuses to know: values, jobs, workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from p2pcompute.execution.values import Handle
from p2pcompute.model.errors import BlobMissingError, BusyError
from p2pcompute.model.ids import BlobId, PeerId
from p2pcompute.node.channels import Channel
from p2pcompute.storage.blobs import BlobStore

Bytes = bytes | bytearray | memoryview

#: Label of the holds on data that was put at this peer; one for each `put`, taken back by `drop`.
_PUT = "put"


class Handles:
    """The handles of one peer's store; several may share a store."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        #: Sizes of what was put here and not dropped, and how often it was put, by digest; oldest first.
        self._put: dict[BlobId, tuple[int, int]] = {}

    # --- put at this peer ------------------------------------------------------------------------------------------------

    def put(self, data: Bytes, blob: BlobId | None = None) -> Handle:
        """Hold `data` until `drop`. Give `blob` where the digest is known already. Raises BusyError."""
        found = self._store.put(data, _PUT, blob)
        self._put[found] = (len(data), self._put.get(found, (0, 0))[1] + 1)
        return Handle(found, len(data))

    @property
    def sizes(self) -> dict[BlobId, int]:
        """Bytes of what was put here and not dropped, by digest, oldest first."""
        return {blob: size for blob, (size, _) in self._put.items()}

    def drop(self, handle: Handle) -> None:
        """Take back one `put`."""
        blob = BlobId(handle.blob)
        self._store.release(blob, _PUT)
        size, times = self._put.get(blob, (0, 0))
        if times > 1:
            self._put[blob] = (size, times - 1)
        else:
            self._put.pop(blob, None)

    def holds(self, handle: Handle) -> bool:
        """Whether it was put here and not dropped since."""
        return self._store.is_held(BlobId(handle.blob), _PUT)

    # --- for the tasks of an origin --------------------------------------------------------------------------------------

    async def fetch(
        self, channel: Channel, borrower: PeerId, blob: BlobId, size_bytes: int, keep: Callable[[], bool]
    ) -> Bytes:
        """The data of a handle of `borrower`, from the end of `channel`; it stays here for further tasks if `keep()` then says so.

        Raises BlobMissingError, LinkClosedError, ProtocolError, CorruptFileError.
        """
        label = _PUT if channel.is_local and borrower == channel.peer else handles_label(borrower)
        if self._store.is_held(blob, label):
            data = self._store.get(blob)
            if data is not None:
                return data
        if channel.is_local:
            # Not through the channel: it reads the common store, where data of others lies too.
            raise BlobMissingError(f"blob {blob.hex()[:12]} was never put here, or was dropped")
        data = await channel.fetch(blob, size_bytes)
        if keep() and not self._store.is_held(blob, label):
            # A full store: it is fetched again for the next worker.
            with contextlib.suppress(BusyError):
                self._store.put(data, label, blob)
        return data

    def forget(self, borrower: PeerId) -> None:
        """No task of `borrower` needs handles any more."""
        self._store.release_all(handles_label(borrower))


def handles_label(borrower: PeerId) -> tuple[PeerId, str]:
    """Under which the store holds what the tasks of `borrower` may read: an origin, or `ids.borrower_id_of` one and its coordinator."""
    return (borrower, "handles")
