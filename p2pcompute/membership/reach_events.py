"""What the reach machine is told and what it answers; `reach.py` is the machine."""

from __future__ import annotations

from dataclasses import dataclass

from p2pcompute.membership.machine import Tick
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach, Relay


@dataclass(frozen=True, slots=True)
class ReachSettings:
    """How often to ask and how long to wait; the defaults are the product's."""

    #: Seconds after a change before a check begins: several links come up together.
    settle_s: float = 1.0
    #: Seconds until an answer to a dial-back counts as lost: both families one after the other, and a round trip.
    answer_s: float = 2 * limits.DIAL_BACK_TIMEOUT_S + 4.0
    #: Seconds between two requests to one peer, which answers no sooner.
    again_s: float = limits.DIAL_BACK_INTERVAL_S + 1.0
    #: Seconds between checks while nothing changes.
    recheck_s: float = limits.REACH_RECHECK_INTERVAL_S
    #: Seconds until the next check after one that decided nothing; doubles up to `recheck_s`.
    undecided_s: float = 60.0
    #: Requests in one check.
    asks_max: int = limits.DIAL_BACKS_ASKED_MAX
    #: Seconds that a router, and the dial-back after it, may take before relays are asked for.
    mapping_s: float = 20.0
    #: Relays held at a time.
    relays_max: int = limits.RELAYS_MAX
    #: Peers remembered as possible relays.
    candidates_max: int = limits.RELAY_CANDIDATES_MAX
    #: Seconds between two tries to be linked directly with one peer whose record promises it: records can be written by the thousand.
    direct_s: float = 30.0
    #: Seconds until a request for a reservation counts as refused: a dial, where no link is up, and the relay's word.
    reservation_answer_s: float = limits.DIAL_TIMEOUT_S + limits.HANDSHAKE_TIMEOUT_S + limits.CIRCUIT_ANSWER_TIMEOUT_S
    #: Part of a reservation's lifetime that is left when it is renewed.
    renew_share: float = 0.25
    #: Seconds that a peer which refused a reservation is left alone; doubles up to `refused_cap_s`.
    refused_s: float = 30.0
    refused_cap_s: float = 1_800.0


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link to `peer` is up, or a better one in place of another.

    `address`: where it is at the other end, None where it passes through a relay; `dialled`: this peer dialled it there; `reach`: as its record
    says; `same_lan`: it is of this peer's own network; `invitation`: id of the invitation that it was admitted under.
    """

    peer: PeerId
    address: Address | None
    dialled: bool
    reach: Reach = Reach.UNKNOWN
    same_lan: bool = False
    invitation: bytes = b""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link to `peer` is gone, and no other to it is left."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class AddressSeen:
    """`peer` says that our link to it comes from `address`. It may lie."""

    peer: PeerId
    address: Address


@dataclass(frozen=True, slots=True)
class DialedBack:
    """`peer` says that it dialled this one and reached it at `reached`. It may lie."""

    peer: PeerId
    reached: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class DialBackFailed:
    """`peer` says that it dialled this one and reached it nowhere. It may lie."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DialBackRefused:
    """`peer` did not try, or does not know how: that says nothing."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class InboundSeen:
    """`peer`, an admitted one, dialled this peer from `address`, directly: not through a relay, nor because it was asked to."""

    peer: PeerId
    address: Address


@dataclass(frozen=True, slots=True)
class NetworksChanged:
    """This machine's own addresses, with the port at which this peer listens."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class MappingChanged:
    """The router forwards `address` to this peer (`how`: by which protocol), or forwards nothing (None; `how`: why)."""

    address: Address | None
    how: str = ""


@dataclass(frozen=True, slots=True)
class RelayReserved:
    """`peer` is a relay of this one until `expires_at`, in this machine's monotonic seconds."""

    peer: PeerId
    expires_at: float


@dataclass(frozen=True, slots=True)
class RelayRefused:
    """`peer` is no relay of this one, or is none any more."""

    peer: PeerId
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RecordKnown:
    """The newest record of `peer` says this."""

    peer: PeerId
    reach: Reach
    relays: tuple[Relay, ...]
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class PeerForgotten:
    """The peer book has forgotten `peer`: it is no relay for anybody."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class RoundTripMeasured:
    """A message to `peer` and back takes `rtt_s` seconds."""

    peer: PeerId
    rtt_s: float


Event = (
    LinkUp
    | LinkDown
    | AddressSeen
    | DialedBack
    | DialBackFailed
    | DialBackRefused
    | InboundSeen
    | NetworksChanged
    | MappingChanged
    | RelayReserved
    | RelayRefused
    | RecordKnown
    | PeerForgotten
    | RoundTripMeasured
    | Tick
)


# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskDialBack:
    """Ask `to` to dial this peer at `addresses`; none where only its view of our address is wanted.

    Answered by DialedBack, DialBackFailed or DialBackRefused, and by AddressSeen before it.
    """

    to: PeerId
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class MapPort:
    """Ask the router to forward a port; where it was asked before, ask again now. Answered by MappingChanged."""


@dataclass(frozen=True, slots=True)
class ReserveRelay:
    """Make `peer` a relay of this one, or renew that; dial it at `address` where no link is up. Answered by RelayReserved or RelayRefused."""

    peer: PeerId
    address: Address


@dataclass(frozen=True, slots=True)
class ReleaseRelay:
    """Give the reservation at `peer` back: it needs to take no new circuits for this peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class TryDirect:
    """`peer`, which is linked through a relay, says by now that it can be dialled: try that soon, its link would be a better one."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class ReachChanged:
    """What the own record is to say: `external` are addresses to add, each reached from two other networks or forwarded to one that was."""

    reach: Reach
    external: tuple[Address, ...]
    relays: tuple[Relay, ...]


Effect = AskDialBack | MapPort | ReserveRelay | ReleaseRelay | TryDirect | ReachChanged
