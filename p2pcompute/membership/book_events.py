"""What the peer book is told and what it answers; `book.py` is the machine.

This vocabulary is meant to outlive the protocol behind it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self

from p2pcompute.membership.machine import Tick
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.wire.messages import Message
from p2pcompute.wire.record import SignedRecord


@dataclass(frozen=True, slots=True)
class BookSettings:
    """Times and limits; the defaults are the product's: a LAN's times, and longer waits for peers that are far away.

    The first part is about peers that gossip (protocol 2); its values are memberlist's, but for gossip itself, which is slower
    here, and for anti-entropy, which is cheaper. The second part is about those that do not.
    """

    #: A probe every so many seconds, more rarely where this peer is short of CPU time.
    probe_interval_s: float = 1.0
    #: A direct answer is waited for so many seconds, and for the rest of the interval any answer.
    probe_timeout_s: float = 0.5
    #: Whether peers with long round trips are given more time than that.
    scales_with_rtt: bool = True
    #: Third peers that are asked to probe who did not answer.
    indirect_probes: int = 3
    #: A suspect has at least so many intervals, times the decimal logarithm of the number of peers, to speak up.
    suspicion_mult: int = 4
    #: While nobody else accuses it, it has so many times as long.
    suspicion_max_mult: int = 6
    #: So many others shorten that to the least.
    suspicion_confirmations: int = 2
    #: Peers that are told rumours, every so many seconds, while there are any.
    gossip_fanout: int = 3
    gossip_interval_s: float = 0.5
    #: A rumour is passed on as many times the rounded-up logarithm of the number of peers.
    retransmit_mult: int = 4
    #: The same for load updates: the next one makes good what is lost, and they are large.
    load_mult: int = 1
    #: Digests are exchanged with one peer at random, every so many seconds.
    anti_entropy_s: float = 30.0
    #: The upper end of this peer's doubt of itself.
    awareness_max: int = 8
    #: Datagrams are trusted to reach a linked peer for so many seconds after it answered one; beyond, the link is used as well.
    datagram_trust_s: float = 60.0
    #: Who was asked for a record and says nothing for so many seconds is not waited for; somebody else is asked.
    want_patience_s: float = 1.5
    #: Accusations of this peer are refuted at most every so many seconds.
    refute_interval_s: float = 1.0
    #: A dead peer that somebody says is alive is probed at most every so many seconds.
    revive_interval_s: float = 10.0

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

    @classmethod
    def lan(cls) -> Self:
        """One local network: memberlist's LAN values."""
        return cls(scales_with_rtt=False)

    @classmethod
    def wan(cls) -> Self:
        """Peers all over the world: memberlist's WAN values."""
        return cls(
            probe_interval_s=5.0,
            probe_timeout_s=3.0,
            scales_with_rtt=False,
            suspicion_mult=6,
            suspicion_confirmations=4,
            gossip_fanout=4,
            gossip_interval_s=1.0,
            anti_entropy_s=60.0,
            want_patience_s=3.0,
        )

    @classmethod
    def test(cls) -> Self:
        """Ten times as fast as a LAN, for tests that run on a real clock."""
        return cls(
            probe_interval_s=0.1,
            probe_timeout_s=0.05,
            gossip_interval_s=0.05,
            anti_entropy_s=3.0,
            want_patience_s=0.15,
            refute_interval_s=0.1,
            revive_interval_s=1.0,
            suspect_s=0.5,
            hold_answer_s=0.2,
            recheck_s=1.5,
            repair_interval_s=3.0,
        )


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecordsHeard:
    """`source`, a linked peer, sent signed records; `wall`: this machine's wall clock then, seconds."""

    source: PeerId
    wires: tuple[bytes, ...]
    wall: float


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """A link to `peer` is up; `record_wire`: from its Hello; `invitation`: id of the invitation that it holds.

    `wall`: what this machine's wall clock shows, seconds; `clock_ahead_s`: by how much the other side's clock is ahead of it.
    """

    peer: PeerId
    record_wire: bytes
    rtt_s: float | None
    invitation: bytes
    wall: float | None = None
    clock_ahead_s: float | None = None


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
class OwnLoadChanged:
    """This peer signed an update of its load, see `wire.gossip.sign_load`: pass it on."""

    wire: bytes


@dataclass(frozen=True, slots=True)
class SuspectAsked:
    """`source`, of the first protocol version, has lost `peer` and asks whether it is still heard here."""

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


class Way(enum.Enum):
    """How a gossip message goes."""

    #: In a sealed datagram; may be lost.
    DATAGRAM = "datagram"
    #: Over the link, in order, and never lost while the link lasts.
    LINK = "link"


@dataclass(frozen=True, slots=True)
class GossipHeard:
    """`source`, an admitted peer, said `message` (one of `wire.families.GOSSIP_ONLY`); `wall`: this machine's wall clock then."""

    source: PeerId
    message: Message
    wall: float
    way: Way


@dataclass(frozen=True, slots=True)
class LoopLagged:
    """The event loop came `lag_s` late to a timer: this peer is short of CPU, and what it misses may be its own fault."""

    lag_s: float


@dataclass(frozen=True, slots=True)
class Woke:
    """This machine slept for `slept_s` (or its clock jumped): nothing that seems silent since then is suspect for that.

    How much later things are due is not taken from it: the monotonic clock stands still in some machines' sleep and goes on in others'.
    """

    slept_s: float


Event = (
    RecordsHeard
    | LinkOpened
    | LinkLost
    | LinkMeasured
    | OwnChanged
    | OwnLoadChanged
    | SuspectAsked
    | SuspectAnswered
    | PeerBanned
    | GossipHeard
    | LoopLagged
    | Woke
    | Tick
)


# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Send these records to each of `to`; never more than fit into one message."""

    to: tuple[PeerId, ...]
    wires: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SendGossip:
    """Send `message` to `to` by `way`. A datagram that cannot be sent is as lost as any other."""

    to: PeerId
    message: Message
    way: Way


@dataclass(frozen=True, slots=True)
class PeerSuspected:
    """`peer` did not answer `by` (this peer itself where it is the own id): dead soon, unless it speaks up."""

    peer: PeerId
    by: PeerId


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
    | SendGossip
    | PeerSuspected
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
