"""Data of an origin that the tasks of its shares need: over the wide link once, however many ask, and kept while a share is open."""

from __future__ import annotations

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, P2PComputeError
from p2pcompute.model.ids import BlobId, PeerId
from p2pcompute.node.channels import Channel
from p2pcompute.node.share import Share
from p2pcompute.storage.blobs import BlobStore

Bytes = bytes | bytearray | memoryview


class Bringing:
    """Data of `origin`."""

    def __init__(self, origin: PeerId, store: BlobStore, log: FilteringBoundLogger) -> None:
        self._store = store
        self._log = log
        #: Label of what it keeps.
        self._label = ("brought", origin)

    async def bring(self, blob: BlobId, channel: Channel, keep: Callable[[], bool]) -> Bytes | None:
        """The data from the end of `channel`, None where it has none; kept for the next who asks if `keep()` then says so.

        Those who ask while it is on its way share the channel's transfer of it.
        """
        try:
            data = await channel.fetch(blob, limits.VALUE_BYTES_MAX)
        except (P2PComputeError, OSError) as error:
            self._log.info("data of a share not found", blob=blob.hex()[:12], cause=str(error))
            return None
        if keep() and not self._store.is_held(blob, self._label):
            try:
                self._store.put(data, self._label, blob)
            except BusyError as error:
                # It is brought again for the next who asks.
                self._log.info("data of a share not kept", blob=blob.hex()[:12], cause=str(error))
        return data

    async def gather(self, share: Share) -> None:
        """What a share needs before its first task: its program, which it holds, and what all tasks use. Raises BlobMissingError,
        LinkClosedError, BusyError where the program cannot be had; what else cannot is said to the task that needs it."""
        program = BlobId(share.opened.program)
        if not self._store.hold(program, share.hold):
            data = await share.channel.fetch(program, share.opened.program_bytes)
            self._store.put(data, share.hold, program)
        for shared in map(BlobId, share.opened.shared):
            if not self._store.hold(shared, share.hold):
                await self.bring(shared, share.channel, lambda: share.is_open)

    def forget(self) -> None:
        """No share is open any more."""
        self._store.release_all(self._label)
