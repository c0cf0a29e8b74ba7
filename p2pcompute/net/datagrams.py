"""Datagrams as the shells above see them: a port that sends and receives, made of sockets or of the laboratory's memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from p2pcompute.model.peer import Address

#: Called with each datagram and where it came from.
Received = Callable[[bytes, Address], None]


class DatagramPort(Protocol):
    """An open UDP port, both families at one number."""

    @property
    def port(self) -> int:
        """Its number."""

    def send(self, data: bytes, to: Address) -> None:
        """Send one datagram; one that the system refuses is lost like any other. `to` is numeric."""

    def close(self) -> None:
        """Close; nothing is received any more. A second call does nothing."""


#: Opens the port `port` at `host` (None: every interface of both families). Raises PortTakenError.
OpenDatagrams = Callable[[str | None, int, Received], Awaitable[DatagramPort]]
