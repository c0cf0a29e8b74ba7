"""What a link goes through and what it is kept by: its states, its settings, and whom the other side proved to be."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Role


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How links are kept alive; the defaults are the product's."""

    #: Seconds between two pings.
    heartbeat_interval_s: float = limits.HEARTBEAT_INTERVAL_S
    #: A link on which nothing arrives for so many seconds is dead.
    silence_max_s: float = limits.LINK_SILENCE_MAX_S
    #: Seconds for TLS and Hello together.
    handshake_timeout_s: float = limits.HANDSHAKE_TIMEOUT_S
    #: Links kept open; a newcomer beyond it takes the place of the least useful one.
    links_max: int = 4 * limits.LINKS_MAX
    #: Links beyond this are closed one by one when they are idle and have been up for `idle_after_s` seconds.
    links_kept: int = limits.LINKS_MAX
    idle_after_s: float = limits.LINK_IDLE_AFTER_S
    #: Half-open handshakes at a time, at this peer's port and through relays each.
    half_open_max: int = limits.HALF_OPEN_MAX
    #: Of them, through one relay, and of one address; private addresses get `private_factor` times as many.
    half_open_per_relay: int = limits.HALF_OPEN_PER_RELAY_MAX
    half_open_per_address: int = limits.HALF_OPEN_PER_ADDRESS_MAX
    #: New handshakes a second from one address; private addresses get `private_factor` times as many.
    handshakes_per_second: int = limits.HANDSHAKES_PER_SECOND_PER_ADDRESS
    private_factor: int = 10

    @classmethod
    def test(cls) -> LinkSettings:
        """Quick to notice, for tests."""
        return cls(heartbeat_interval_s=0.2, silence_max_s=0.6, handshake_timeout_s=2.0)


#: What `Link.path` says of a link that runs through a relay, and of one that the other side dialled because it was asked to.
RELAYED = "relayed"
REVERSED = "reversed"


#: What a peer is told whose certificate was good when it came, and is not any more.
MEMBERSHIP_ENDED = (
    "its membership has ended meanwhile: ask the network's owner to renew the invitation, or set the clock"
)


@dataclass(frozen=True, slots=True)
class Route:
    """How two peers meet of whom one cannot dial the other: `path` is RELAYED or REVERSED, `via` the peer that helps or helped."""

    path: str
    via: PeerId


class Admission(Protocol):
    """Whom the other side proved to be; `wire.membership.Admitted` is one."""

    @property
    def peer(self) -> PeerId:
        """Its id."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""

    @property
    def roles(self) -> frozenset[Role]:
        """What its invitation allows."""

    @property
    def invitation(self) -> bytes:
        """By which invitation it came."""

    @property
    def expires_wall(self) -> float:
        """When its membership ends."""


class LinkState(enum.Enum):
    """The life of a link; `NEXT_STATES` says what follows what. A link that says goodbye still hears what was on its way."""

    #: Nothing was heard yet.
    GREETING = "greeting"
    #: The other side is admitted; the dialler has to decide.
    ADMITTED = "admitted"
    #: This side dialled and wants to use the link.
    PROPOSED = "proposed"
    UP = "up"
    LEAVING = "leaving"
    CLOSED = "closed"


#: The states that may follow each; a pair that is not listed is an error.
NEXT_STATES = MappingProxyType(
    {
        LinkState.GREETING: (LinkState.ADMITTED, LinkState.LEAVING, LinkState.CLOSED),
        LinkState.ADMITTED: (LinkState.PROPOSED, LinkState.UP, LinkState.LEAVING, LinkState.CLOSED),
        LinkState.PROPOSED: (LinkState.UP, LinkState.LEAVING, LinkState.CLOSED),
        LinkState.UP: (LinkState.LEAVING, LinkState.CLOSED),
        LinkState.LEAVING: (LinkState.CLOSED,),
        LinkState.CLOSED: (),
    }
)
