"""What the peer book is told and what it answers; `book.py` is the machine.

This vocabulary is meant to outlive the protocol behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pcompute.membership.machine import Tick
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.wire.record import SignedRecord


@dataclass(frozen=True, slots=True)
class BookSettings:
    """Times and limits; the defaults are the product's."""

    #: A suspect for whom nobody speaks within so many seconds is dead.
    suspect_s: float = 5.0
    #: Who is asked about a linked peer waits so many seconds: its own link may be breaking at the same moment.
    hold_answer_s: float = 2.0
    #: "Heard" counts when it is no older than so many seconds.
    heard_max_s: float = limits.LINK_SILENCE_MAX_S
    #: A peer that is alive by hearsay, after its link was lost, is asked about again every so many seconds.
    recheck_s: float = 15.0
    #: A peer without a link whose record was not renewed for so many seconds is dead: a renewal is due every 300 s.
    silence_max_s: float = 400.0
    #: A record not renewed for so many seconds after its peer died or left is forgotten.
    forget_s: float = limits.RECORD_EXPIRY_S
    #: Up to so many links a new record goes to all of them, beyond to as many of them at random.
    spread_links: int = 8
    #: One link is told what it may have missed, every so many seconds.
    repair_interval_s: float = 30.0
    #: Own higher records are outranked at most every so many seconds: two machines with one key must not flood a network.
    raise_interval_s: float = 5.0
    #: Milliseconds are the unit of incarnations; one that is further ahead than so many seconds is refused.
    incarnation_ahead_max_s: float = limits.INCARNATION_AHEAD_MAX_S
    #: Peers in the book.
    peers_max: int = limits.PEERS_MAX
    #: Records in one message.
    records_per_message: int = limits.RECORDS_PER_MESSAGE_MAX


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecordsHeard:
    """`source`, a linked peer, sent signed records; `wall`: this machine's wall clock then, seconds."""

    source: PeerId
    wires: tuple[bytes, ...]
    wall: float


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """A link to `peer` is up; `record_wire`: from its Hello; `invitation`: id of the invitation that it holds."""

    peer: PeerId
    record_wire: bytes
    rtt_s: float | None
    invitation: bytes


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The only link to `peer` is gone. `clean`: it ended with a goodbye, for `reason` ("leaving": it stops)."""

    peer: PeerId
    clean: bool
    reason: str


@dataclass(frozen=True, slots=True)
class LinkMeasured:
    """What was measured on the link to `peer`; None: not measured this time."""

    peer: PeerId
    rtt_s: float | None
    bandwidth_mbps: float | None


@dataclass(frozen=True, slots=True)
class OwnChanged:
    """This peer signed a newer record of its own."""

    record: SignedRecord


@dataclass(frozen=True, slots=True)
class SuspectAsked:
    """`source` has lost `peer` and asks whether it is still heard here."""

    source: PeerId
    peer: PeerId


@dataclass(frozen=True, slots=True)
class SuspectAnswered:
    """`source` heard `peer` `heard_s` seconds ago over its own link; None: it has none."""

    source: PeerId
    peer: PeerId
    heard_s: float | None


@dataclass(frozen=True, slots=True)
class PeerBanned:
    """The owner of the network has revoked `peer`."""

    peer: PeerId


Event = (
    RecordsHeard
    | LinkOpened
    | LinkLost
    | LinkMeasured
    | OwnChanged
    | SuspectAsked
    | SuspectAnswered
    | PeerBanned
    | Tick
)


# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Send these records to each of `to`; never more than fit into one message."""

    to: tuple[PeerId, ...]
    wires: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AskSuspect:
    """Ask each of `to` whether it hears `peer`."""

    to: tuple[PeerId, ...]
    peer: PeerId


@dataclass(frozen=True, slots=True)
class AnswerSuspect:
    """Tell `to` when `peer` was last heard here; None: there is no link to it."""

    to: PeerId
    peer: PeerId
    heard_s: float | None


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """`view` differs from what it was; once an event at most."""


@dataclass(frozen=True, slots=True)
class PeerAppeared:
    """`peer` is alive and was unknown, dead or gone before."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerDied:
    """`peer` is believed dead, `reason` says why."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """`peer` has said that it stops."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class RaiseIncarnation:
    """A record of this peer's own, newer than its newest, is about: sign one with at least this incarnation."""

    at_least: int


@dataclass(frozen=True, slots=True)
class Learned:
    """`peer` says that it listens at `addresses`."""

    peer: PeerId
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """`peer` sent what no honest peer sends; `reason` says what."""

    peer: PeerId
    reason: str


Effect = (
    SendRecords
    | AskSuspect
    | AnswerSuspect
    | ViewChanged
    | PeerAppeared
    | PeerDied
    | PeerLeft
    | RaiseIncarnation
    | Learned
    | Misbehaved
)
