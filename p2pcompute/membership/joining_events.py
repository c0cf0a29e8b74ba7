"""What the joining machine is told and what it answers; `joining.py` is the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p2pcompute.membership.machine import Tick
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Relay

Source = Literal["flag", "file", "config", "invitation", "lan", "remembered", "record"]

#: Sources in the order in which they are served and kept.
SOURCES: tuple[Source, ...] = ("flag", "invitation", "config", "file", "lan", "remembered", "record")
#: A person named these: dialled until somebody answers, however many links are up.
NAMED: frozenset[Source] = frozenset({"flag", "invitation", "config", "file"})
#: Never given up.
LASTING: frozenset[Source] = NAMED | {"remembered"}
#: Somebody sits before the screen and waits.
HURRIED: frozenset[Source] = frozenset({"flag", "lan"})


@dataclass(frozen=True, slots=True)
class JoiningSettings:
    """How eagerly to dial; the defaults are the product's."""

    #: Links below which every known peer is dialled, while at most `mesh_peers_max` peers are known.
    links_wanted: int = limits.LINKS_MAX
    #: The same once more are known: beyond a full mesh each further link costs more than it tells.
    links_wanted_beyond: int = limits.LINKS_WANTED
    #: Peers up to which everybody links everybody.
    mesh_peers_max: int = limits.LINKS_MAX
    #: Links beyond which nobody is.
    links_max: int = limits.LINKS_MAX
    #: Dials under way at a time.
    dials_at_once_max: int = limits.DIALS_AT_ONCE_MAX
    #: Candidates remembered: addresses that were named, hinted at or tried.
    candidates_max: int = limits.CANDIDATES_MAX
    #: Peers whose addresses are kept as their records name them, untried.
    records_max: int = limits.PEERS_MAX
    #: First window of the back-off, seconds.
    backoff_base_s: float = 1.0
    #: Its cap, seconds.
    backoff_cap_s: float = 300.0
    #: Its cap where somebody waits, seconds.
    backoff_hurried_cap_s: float = 60.0
    #: Seconds between tries after a permanent refusal; varied by a quarter.
    refused_retry_s: float = 600.0
    #: The next address of one peer follows after so many seconds.
    next_address_s: float = 0.3
    #: The higher of two ids waits up to so many seconds before its first dial.
    yield_max_s: float = 0.3
    #: A link that lasted for so many seconds was a good one: its loss is followed by a quick try.
    stable_s: float = 30.0
    #: A lost good link is dialled again within so many seconds.
    redial_max_s: float = 1.0
    #: A link that made room for others at its other side is not dialled again for so many seconds, unless it is wanted; varied by a quarter.
    idle_rest_s: float = 300.0
    #: A dial whose end is never told counts as failed after so many seconds.
    dial_lost_s: float = limits.DIAL_TIMEOUT_S + limits.HANDSHAKE_TIMEOUT_S + 5.0
    #: A LAN hint that no beacon repeats is good for so many seconds.
    lan_forget_s: float = limits.BEACON_FORGET_S
    #: An address in a record that no newer record repeats is good for so many seconds.
    record_forget_s: float = limits.RECORD_EXPIRY_S
    #: `LinkWanted` holds for so many seconds.
    wanted_s: float = 30.0
    #: A peer that is linked through a relay is dialled directly every so many seconds; varied by a quarter.
    direct_retry_s: float = 600.0


@dataclass(frozen=True, slots=True)
class CandidateHeard:
    """`source` says that a peer listens at `address`: `peer`, or whoever it is."""

    address: Address
    source: Source
    peer: PeerId | None = None


@dataclass(frozen=True, slots=True)
class RecordAddresses:
    """The ways to `peer` that its newest record names; both may be empty."""

    peer: PeerId
    addresses: tuple[Address, ...]
    relays: tuple[Relay, ...] = ()


@dataclass(frozen=True, slots=True)
class CandidatesHeard:
    """News of records. A row replaces what an earlier record of its peer named, so it must hold all of it."""

    rows: tuple[RecordAddresses, ...]


@dataclass(frozen=True, slots=True)
class LinksPreferred:
    """Whom to be linked with rather than with others; replaces what was preferred before."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class DialEnded:
    """The dial of `address` ended. `peer`: the `expected` of its Dial, or who answered; `error_kind`: None where it
    succeeded, else an `AdmissionReason` or any other name; `permanent`: trying again soon cannot help; `via`: the relay's
    peer where it was a DialVia, whose `address` is the relay's.
    """

    address: Address
    peer: PeerId | None
    error_kind: str | None = None
    permanent: bool = False
    via: PeerId | None = None


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link to `peer` is up, or a better one in place of another. `address`: where this peer dialled it, None where it
    was accepted or relayed; `relayed`: it passes through a third peer.
    """

    peer: PeerId
    address: Address | None = None
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link to `peer` is gone, and no other to it is left. `idle`: the other side closed it to make room for others."""

    peer: PeerId
    idle: bool = False


@dataclass(frozen=True, slots=True)
class LinkWanted:
    """Somebody here needs a link to `peer` now, however many are up."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DirectPromised:
    """`peer`, which is linked through a relay, can perhaps be dialled by now: try it soon rather than when its turn comes."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerForgotten:
    """The peer book has forgotten `peer`: what its record said is worth nothing any more."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class NetworksChanged:
    """This machine's own networks, as "address/prefix": their addresses are tried first."""

    networks: tuple[str, ...]


Event = (
    CandidateHeard
    | CandidatesHeard
    | LinksPreferred
    | DialEnded
    | LinkUp
    | LinkDown
    | LinkWanted
    | DirectPromised
    | PeerForgotten
    | NetworksChanged
    | Tick
)


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to `address`; refuse anybody but `expected` where that is not None. Answered by DialEnded. It may name a peer
    that is linked through a relay: a direct link is to take that one's place.
    """

    address: Address
    expected: PeerId | None


@dataclass(frozen=True, slots=True)
class DialVia:
    """Reach `peer` with the help of `relay`: through it, or by having `peer` dial back. Answered by DialEnded with the
    relay's address and `via` its peer.
    """

    peer: PeerId
    relay: Relay


Effect = Dial | DialVia
