"""Blobs over links: fetch by digest, serve what the store holds.

One transfer of a blob at a time from one peer, shared by all who want it, and stopped at both ends when the last of them gives up.
What arrives is checked against its digest, off the loop where it is large. Refuses to know who may have what: ids are digests, and whoever knows one was told it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from blake3 import blake3

from p2pcompute.model.errors import LinkClosedError, P2PComputeError, ProtocolError
from p2pcompute.model.ids import BlobId, PeerId, short_peer_id
from p2pcompute.net.link import Link
from p2pcompute.wire.messages import BlobMissing, BlobWant, Message

#: Digests of more than this are computed off the loop: BLAKE3 does 5 GB/s, so this is half a millisecond.
HASH_INLINE_BYTES = 2 << 20

Bytes = bytes | bytearray | memoryview


class Store(Protocol):
    """What is held here; `storage.blobs.BlobStore` is one."""

    def get(self, blob: BlobId) -> Bytes | None:
        """The bytes, or None."""


Spawn = Callable[[str, Coroutine[Any, Any, None]], asyncio.Task[None] | None]


@dataclass(slots=True)
class _Transfer:
    """One blob on its way from one peer."""

    #: What it comes to.
    arrived: asyncio.Future[Bytes]
    #: Who wait for it: at least one while it runs.
    waiting: int = 0
    #: What fetches it.
    task: asyncio.Task[None] | None = None


class BlobExchange:
    """Fetches and serves blobs of one peer. `spawn` runs transfers under the peer's supervisor, or gives None when it stops."""

    def __init__(self, store: Store, spawn: Spawn) -> None:
        self._store = store
        self._spawn = spawn
        #: Told of each blob that a peer is sent; the composition root sets it.
        self.on_served: Callable[[PeerId, BlobId], None] = lambda peer, blob: None
        #: Asked for a blob that a peer wants and that is not held here; the composition root sets it where some can be brought.
        self.bring: Callable[[PeerId, BlobId], Coroutine[Any, Any, Bytes | None]] | None = None
        #: Transfers under way, by peer and blob.
        self._fetching: dict[tuple[PeerId, BlobId], _Transfer] = {}

    async def fetch(self, link: Link, blob: BlobId, bytes_max: int) -> Bytes:
        """The bytes of `blob` from the peer at the end of `link`. Raises BlobMissingError, LinkClosedError, ProtocolError."""
        key = (link.peer, blob)
        transfer = self._fetching.get(key)
        if transfer is None:
            transfer = self._fetching[key] = _Transfer(asyncio.get_running_loop().create_future())
            work = self._transfer(link, blob, bytes_max, key, transfer)
            transfer.task = self._spawn(f"blob {blob.hex()[:12]}", work)
            if transfer.task is None:
                del self._fetching[key]
                raise LinkClosedError("this peer is stopping")
        transfer.waiting += 1
        try:
            # Shielded: one who gives up must not take the transfer from the others.
            return await asyncio.shield(transfer.arrived)
        finally:
            transfer.waiting -= 1
            if not transfer.waiting and not transfer.arrived.done():
                self._end(key, transfer)
                assert transfer.task is not None
                transfer.task.cancel()

    async def _transfer(
        self, link: Link, blob: BlobId, bytes_max: int, key: tuple[PeerId, BlobId], transfer: _Transfer
    ) -> None:
        shared = transfer.arrived
        try:
            data = await link.request_stream(lambda stream: BlobWant(blob, stream), bytes_max)
            digest = (
                blake3(data).digest()
                if len(data) <= HASH_INLINE_BYTES
                else await asyncio.to_thread(lambda: blake3(data).digest())
            )
            if digest != blob:
                raise ProtocolError(f"sent other bytes than blob {blob.hex()[:12]} names", short_peer_id(link.peer))
        except P2PComputeError as error:
            if not shared.done():
                shared.set_exception(error)
                shared.exception()  # whoever waits sees it; nobody may wait any more
        except asyncio.CancelledError:
            if not shared.done():
                shared.set_exception(LinkClosedError("this peer is stopping"))
                shared.exception()
            raise
        else:
            if not shared.done():
                shared.set_result(data)
        finally:
            self._end(key, transfer)

    def _end(self, key: tuple[PeerId, BlobId], transfer: _Transfer) -> None:
        """Who asks from here on starts anew."""
        if self._fetching.get(key) is transfer:
            del self._fetching[key]

    def message(self, link: Link, message: Message) -> None:
        """A peer wants a blob."""
        if not isinstance(message, BlobWant) or link.closed:
            return
        try:
            data = self._store.get(BlobId(message.blob))
        except P2PComputeError:
            data = None
        if data is not None:
            link.serve_stream(message.stream, data)
            self.on_served(link.peer, BlobId(message.blob))
        elif self.bring is None:
            link.send(BlobMissing(message.stream))
        elif link.promise_stream(message.stream):
            bringing = self._spawn(f"bring {message.blob.hex()[:12]}", self._bring(link, message, self.bring))
            if bringing is not None:
                link.when_given_up(message.stream, bringing.cancel)

    async def _bring(
        self,
        link: Link,
        message: BlobWant,
        bring: Callable[[PeerId, BlobId], Coroutine[Any, Any, Bytes | None]],
    ) -> None:
        data = await bring(link.peer, BlobId(message.blob))
        if not link.fulfil_stream(message.stream, data):
            return
        if data is None:
            link.send(BlobMissing(message.stream))
        else:
            self.on_served(link.peer, BlobId(message.blob))
