"""The hub, as relays, dial-backs and reversed dials see it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link
from p2pcompute.net.link_life import Route


class RelayDoor(Protocol):
    """What `links.LinkHub` does for them."""

    @property
    def peer(self) -> PeerId:
        """Who this is."""

    def link(self, peer: PeerId) -> Link | None:
        """The open link to `peer`."""

    def offered(self, source: PeerId, route: Route) -> Link | None:
        """A link for a circuit that `source` is said to want, or None where it is not wanted now."""

    def turned_away(self, address: Address, error: P2PComputeError) -> None:
        """A circuit did not become a link."""

    async def dial(
        self, address: Address, expected: PeerId | None, carrier: str = "stream", route: Route | None = None
    ) -> Link:
        """A link to whoever listens at `address`; `route`: how it came about."""

    async def probe(self, address: Address, expected: PeerId) -> None:
        """Connect, see that `expected` answers, hang up. Raises AdmissionError, LinkClosedError."""

    def expect(self, peer: PeerId, route: Route) -> asyncio.Future[Link]:
        """The next link to `peer` that runs over no relay; one that it dials meanwhile gets `route`. One at a time for each peer."""

    def unexpect(self, peer: PeerId) -> None:
        """Nobody waits for it any more."""

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> object:
        """Run work in the background."""
