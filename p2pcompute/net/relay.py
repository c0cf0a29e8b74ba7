"""Reaching peers that cannot be dialled: relays, dial-backs and reversed dials of one peer, put together.

Owns: which part hears which message. The hub hands over what crosses its links for these purposes, and dials and accepts through it. Refuses to
know: what else crosses a link, and when any of it is worth while (the caller's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.seams import Clock
from p2pcompute.net.dial_back import DialBacks
from p2pcompute.net.link import Link
from p2pcompute.net.relay_book import RelaySettings
from p2pcompute.net.relay_door import RelayDoor
from p2pcompute.net.relay_ends import RelayEnds
from p2pcompute.net.relay_legs import Circuits
from p2pcompute.net.relay_pipe import PipeIdentity, Pipes, TlsPipes
from p2pcompute.net.relay_server import RelayServer
from p2pcompute.net.reversal import Reversals
from p2pcompute.wire.messages import Hello, Message
from p2pcompute.wire.reaching import (
    CircuitClosed,
    CircuitCredit,
    CircuitData,
    CircuitOffered,
    CircuitOpen,
    DialBack,
    DialedBack,
    PleaseDial,
    RelayReserve,
    RelayReserved,
)


class ReachingIdentity(PipeIdentity, Protocol):
    """What the ends of circuits show."""

    def hello(self) -> Hello:
        """The first message."""


class Reaching:
    """One peer's part in reaching and being reached."""

    def __init__(
        self,
        door: RelayDoor,
        identity: ReachingIdentity,
        clock: Clock,
        *,
        handshake_timeout_s: float,
        settings: RelaySettings | None = None,
        pipes: Pipes | None = None,
    ) -> None:
        #: Numbers and legs on all links.
        self.circuits = Circuits()
        #: This peer as a relay.
        self.server = RelayServer(door, self.circuits, clock, settings)
        #: This peer's own circuits and reservations.
        self.ends = RelayEnds(
            door,
            self.circuits,
            pipes or TlsPipes(identity),
            identity.hello,
            clock,
            handshake_timeout_s=handshake_timeout_s,
        )
        self.dial_backs = DialBacks(door, clock)
        self.reversals = Reversals(door, self.ends.outer, clock)
        hear = self.circuits.heard
        #: Who hears what.
        self._hearers: Mapping[type[Message], Callable[[Link, Any], None]] = MappingProxyType(
            {
                RelayReserve: self.server.reserve,
                RelayReserved: self.ends.reserved,
                CircuitOpen: self.server.open,
                CircuitOffered: self.ends.offered,
                CircuitData: hear,
                CircuitCredit: hear,
                CircuitClosed: hear,
                DialBack: self.dial_backs.asked,
                DialedBack: self.dial_backs.answered,
                PleaseDial: self.reversals.heard,
            }
        )

    def heard(self, link: Link, message: Message) -> bool:
        """Whether `message`, which came on `link`, was for this part. Raises ProtocolError."""
        hearer = self._hearers.get(type(message))
        if hearer is None:
            return False
        # Asked of a link that says goodbye already, nothing can be answered; what circuits still carry counts.
        if not link.closed or hearer == self.circuits.heard:
            hearer(link, message)
        return True

    def needs(self, link: Link) -> bool:
        """Whether somebody is reached, or kept reachable, over `link`."""
        if self.circuits.count(link) or self.server.keeps(link.peer):
            return True
        return any(each.relay == link.peer for each in self.ends.reservations)

    def link_gone(self, link: Link, error: P2PComputeError) -> None:
        """Nothing crosses `link` any more."""
        self.circuits.link_gone(link, error)
        self.server.link_gone(link)
        self.ends.link_gone(link, error)
        self.dial_backs.link_gone(link, error)

    def beat(self, now: float) -> None:
        """Look after circuits and reservations; `now`: `monotonic` seconds."""
        self.server.beat(now)
