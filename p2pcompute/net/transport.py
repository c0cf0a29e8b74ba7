"""How a hub listens and connects: the interface of TLS over TCP and of the memory network."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link

#: Makes the link for a connection from `remote`, or None where it is not wanted.
Accept = Callable[[Address], Link | None]
#: Told about connections that did not become links.
Refused = Callable[[Address, P2PComputeError], None]
#: Runs work in the background, under the peer's supervisor.
Spawn = Callable[[str, Coroutine[Any, Any, None]], object]


class Transport(Protocol):
    """One way to move bytes between peers."""

    async def listen(self, accept: Accept, refused: Refused, host: str | None, port: int, ports_tried: int) -> int:
        """Take connections; the port in use. Raises PortTakenError."""

    async def connect(self, address: Address, link: Link, carrier: str) -> None:
        """Connect `link` to `address` by the carrier of that name. Raises UnknownNameError for none of that name, AdmissionError, LinkClosedError."""

    async def stop(self) -> None:
        """Take no more connections."""
