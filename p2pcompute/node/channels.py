"""How jobs reach a peer: over a link, or straight across the room when the peer is this one.

Origin and lender speak only through channels, so the local peer is a worker like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from p2pcompute.model.errors import BlobMissingError
from p2pcompute.model.ids import BlobId, InvitationId, PeerId
from p2pcompute.model.peer import Role
from p2pcompute.net.blobs import BlobExchange
from p2pcompute.net.link import Link
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.wire.messages import Message

Bytes = bytes | bytearray | memoryview

#: Payloads above this are left to be fetched while a channel is behind: messages are not flow-controlled, streams are.
SMALL_BYTES = 2048


class Channel(Protocol):
    """One peer as origin and lender see it."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""

    @property
    def roles(self) -> frozenset[Role]:
        """What the other end may ask of us."""

    @property
    def invitation(self) -> InvitationId | None:
        """By which the other end was admitted; None: it is this very peer."""

    @property
    def is_local(self) -> bool:
        """Whether the other end is this very peer."""

    @property
    def rtt_s(self) -> float:
        """Round trip in seconds, 0.0 while unknown."""

    @property
    def is_behind(self) -> bool:
        """Whether much of what was sent has not left yet: payloads had better wait to be fetched."""

    def send(self, message: Message) -> None:
        """Hand over `message`, without waiting. Raises LinkClosedError."""

    async def fetch(self, blob: BlobId, bytes_max: int) -> bytes | bytearray | memoryview:
        """The bytes of a blob that the other end holds. Raises BlobMissingError, LinkClosedError."""


class LinkChannel:
    """A peer at the end of a link."""

    is_local = False

    def __init__(self, link: Link, exchange: BlobExchange) -> None:
        self.link = link
        self._exchange = exchange
        self.peer = link.peer
        self.roles = link.admission.roles
        self.invitation = InvitationId(link.admission.invitation)

    @property
    def rtt_s(self) -> float:
        """The link's round trip: the shortest of the last few answers."""
        return self.link.rtt_s or 0.0

    @property
    def is_behind(self) -> bool:
        """Whether the link holds so much that bulk would wait too."""
        return not self.link.has_room()

    def send(self, message: Message) -> None:
        """Over the link, before all bulk."""
        self.link.send(message)

    async def fetch(self, blob: BlobId, bytes_max: int) -> bytes | bytearray | memoryview:
        """On a stream of the link, checked against its digest."""
        return await self._exchange.fetch(self.link, blob, bytes_max)


class LocalChannel:
    """This very peer: `deliver` is the other side's way in, called in a later turn of the loop, as a link would."""

    is_local = True
    is_behind = False
    rtt_s = 0.0
    roles = frozenset(Role)
    invitation = None

    def __init__(self, peer: PeerId, store: BlobStore) -> None:
        self.peer = peer
        self._store = store
        #: Set by the composition root: (channel of the way back, message) -> None.
        self.deliver: Callable[[LocalChannel, Message], None] | None = None
        #: The channel whose `deliver` leads back.
        self.back: LocalChannel | None = None

    def send(self, message: Message) -> None:
        """In the next turn of the loop."""
        assert self.deliver is not None, "the local channel is not connected"
        assert self.back is not None, "the local channel has no way back"
        asyncio.get_running_loop().call_soon(self.deliver, self.back, message)

    async def fetch(self, blob: BlobId, bytes_max: int) -> bytes | bytearray | memoryview:
        """Straight from the common store."""
        data = self._store.get(blob)
        if data is None or len(data) > bytes_max:
            raise BlobMissingError(f"blob {blob.hex()[:12]} is not held here any more")
        return data


class CommunityChannel(LocalChannel):
    """This very peer as a member of its community: its lender and its coordinator meet as over a link.

    `bring`: asked for what is not held here; what users of this peer keep for themselves is not reached through it.
    """

    is_local = False

    def __init__(
        self, peer: PeerId, store: BlobStore, bring: Callable[[PeerId, BlobId], Awaitable[Bytes | None]]
    ) -> None:
        super().__init__(peer, store)
        self._bring = bring

    async def fetch(self, blob: BlobId, bytes_max: int) -> bytes | bytearray | memoryview:
        """From the common store, or from the origin of the share."""
        data = self._store.get(blob)
        if data is None:
            data = await self._bring(self.peer, blob)
        if data is None or len(data) > bytes_max:
            raise BlobMissingError(f"blob {blob.hex()[:12]} is not held here, nor where the share comes from")
        return data


def connect_in_community(
    peer: PeerId, store: BlobStore, bring: Callable[[PeerId, BlobId], Awaitable[Bytes | None]]
) -> tuple[CommunityChannel, CommunityChannel]:
    """(the coordinator's channel to the local lender, the lender's channel to the local coordinator); set `deliver` on both."""
    to_lender, to_coordinator = CommunityChannel(peer, store, bring), CommunityChannel(peer, store, bring)
    to_lender.back, to_coordinator.back = to_coordinator, to_lender
    return to_lender, to_coordinator


def connect_locally(peer: PeerId, store: BlobStore) -> tuple[LocalChannel, LocalChannel]:
    """(the origin's channel to the local lender, the lender's channel to the local origin); set `deliver` on both."""
    to_lender, to_origin = LocalChannel(peer, store), LocalChannel(peer, store)
    to_lender.back, to_origin.back = to_origin, to_lender
    return to_lender, to_origin
