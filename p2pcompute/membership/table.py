"""The table of the peer book: one row a peer, what is believed of it, and the view that others read.

Owns the rows, their statuses and the way from one to the next; the rules for when to take it are the book's. Records come in
with their signatures checked. What follows from a row is kept beside it and costs O(log n) a change: its deadline, its version in the
digests, its place among the peers that are probed. What to do at a deadline is the book's, too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from p2pcompute.membership.agenda import Agenda
from p2pcompute.membership.book_events import BookSettings, Effect, PeerAppeared, PeerDied, PeerLeft
from p2pcompute.membership.digests import Digests
from p2pcompute.membership.machine import earliest
from p2pcompute.membership.probing import Ring
from p2pcompute.membership.suspicion import Inquiry
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerEntry, PeerRecord, PeerStatus, PeerView
from p2pcompute.model.seams import Rng
from p2pcompute.wire.gossip import PREFIX_BYTES, Announcement, LoadUpdate, announcement_wire
from p2pcompute.wire.record import SignedRecord

GONE = frozenset({PeerStatus.DEAD, PeerStatus.LEFT})
#: From this protocol version on a peer gossips.
GOSSIP_PROTOCOL = 2


def announcement_of(record: PeerRecord) -> bytes:
    """The rumour that there is `record`."""
    return announcement_wire(Announcement(record.peer[:PREFIX_BYTES], record.incarnation, record.sequence))


@dataclass(slots=True, eq=False)
class Row:
    """One other peer."""

    #: Its newest record.
    signed: SignedRecord
    #: What is believed.
    status: PeerStatus
    #: Since when, monotonic seconds.
    since: float
    #: When `signed` arrived, or its peer was last known to live by other means.
    renewed_at: float
    #: Whether a link to it is up; then `status` is ALIVE or LEFT. Who gossips may be SUSPECT, and DEAD once its link is silent.
    linked: bool = False
    #: As last measured on its link, or with a probe.
    rtt_s: float | None = None
    #: As last measured on its link, kept after the link.
    bandwidth_mbps: float | None = None
    #: The invitation that it showed on its link; empty where it never had one.
    invitation: bytes = b""
    #: The question that is out about it, None where there is none.
    inquiry: Inquiry | None = None
    #: When it is asked about again: only while it is alive by hearsay after a lost link.
    recheck_at: float | None = None
    #: When it last said anything itself, monotonic seconds; None: never in this life of this peer.
    heard_at: float | None = None
    #: When it last answered a probe that went in a datagram, monotonic seconds.
    datagram_at: float | None = None
    #: When it last answered a probe, or a link to it was up, monotonic seconds.
    answered_at: float | None = None
    #: Accusations by this peer that it refuted without answering a probe since: this peer may be no judge of it.
    refuted: int = 0
    #: Whether it was alive here at some time; who was not is not told of when it left.
    was_alive: bool = False
    #: Newest update of its load; of the incarnation of `signed` and with a higher sequence.
    load: LoadUpdate | None = None

    @property
    def peer(self) -> PeerId:
        """Whose row this is."""
        return self.signed.record.peer

    @property
    def is_met(self) -> bool:
        """Whether it has ever said anything to this peer itself, in a session or over a link, which proves that it is a member."""
        return self.heard_at is not None

    @property
    def gossips(self) -> bool:
        """Whether its peer takes part in gossip."""
        return self.signed.record.protocol >= GOSSIP_PROTOCOL

    @property
    def shown(self) -> PeerRecord:
        """Its record with the newest load."""
        record, load = self.signed.record, self.load
        if load is None:
            return record
        capability = record.capability
        if capability is not None:
            capability = dataclasses.replace(
                capability, idle=load.idle, memory_available_gb=min(load.memory_available_gb, capability.memory_gb)
            )
        return dataclasses.replace(record, load=load.load, capability=capability)

    def entry(self) -> PeerEntry:
        """The row as views show it."""
        return PeerEntry(
            self.shown,
            self.status,
            self.since,
            self.linked,
            self.rtt_s,
            self.bandwidth_mbps,
            self.invitation,
            self.is_met,
        )


class Table:
    """See the module."""

    def __init__(self, own: SignedRecord, settings: BookSettings, rng: Rng) -> None:
        #: The newest record of this peer itself.
        self.own = own
        #: Times and limits.
        self._settings = settings
        #: Every other peer that is known, at most `peers_max`, never this one.
        self.rows: dict[PeerId, Row] = {}
        #: Whose record these bytes are: exactly the newest ones of `rows`.
        self._wires: dict[bytes, PeerId] = {}
        #: What announces the newest record of a row: exactly one for each of `rows`. Most of what is told is known.
        self._announcements: dict[bytes, Row] = {}
        #: Whose id begins so: exactly the peers of `rows`.
        self._prefixes: dict[bytes, PeerId] = {}
        #: When something about a row is due.
        self._agenda: Agenda[PeerId] = Agenda()
        #: Peers that are dead or gone and have no link, longest first.
        self._gone: dict[PeerId, None] = {}
        #: The versions that are passed on; empty where this peer does not gossip.
        self.digests = Digests()
        #: Peers that gossip, are alive or suspect, and have said something to this one, so that they are members and there;
        #: empty where this peer does not gossip.
        self.ring = Ring(rng)
        #: The same of whom only others have told: a member can invent any number of them.
        self.strangers = Ring(rng)
        #: Strangers, of whatever status: whoever came first goes first where room is needed.
        self._unmet: dict[PeerId, None] = {}
        #: Rows as views show them, of those that have not changed since.
        self._entries: dict[PeerId, PeerEntry] = {}
        #: Grows with every change of the view.
        self.version = 0
        #: The view of `version`, None where it must be built.
        self._view: PeerView | None = None
        self.own_changed(own)

    @property
    def gossips(self) -> bool:
        """Whether this peer itself takes part in gossip."""
        return self.own.record.protocol >= GOSSIP_PROTOCOL

    @property
    def gossipers(self) -> int:
        """Peers that gossip and are alive or suspect, strangers included."""
        return len(self.ring) + len(self.strangers)

    @property
    def view(self) -> PeerView:
        """The network as this peer sees it now; the same object until something changes."""
        if self._view is None:
            for peer, row in self.rows.items():
                if peer not in self._entries:
                    self._entries[peer] = row.entry()
            entries = tuple(self._entries[peer] for peer in sorted(self._entries))
            self._view = PeerView(self.own.record, entries, self.version)
        return self._view

    def changed(self, row: Row | None = None) -> None:
        """Something that the view shows is different: of `row`, or of the view as a whole."""
        self.version += 1
        self._view = None
        if row is not None:
            self._entries.pop(row.peer, None)

    # --- records ------------------------------------------------------------------------------------------------------

    def own_changed(self, own: SignedRecord) -> None:
        """This peer has a newer record of its own."""
        self.own = own
        if self.gossips:
            self.digests.put(own.record.peer, own.record.order)
        self.changed()

    def known(self, wire: bytes) -> PeerRecord | None:
        """The record in `wire` where these very bytes are here: they need no second check of a signature."""
        if wire == self.own.wire:
            return self.own.record
        peer = self._wires.get(wire)
        return None if peer is None else self.rows[peer].signed.record

    def announced(self, wire: bytes) -> Row | None:
        """The row whose newest record the rumour `wire` announces, None where it announces another one, or is none."""
        return self._announcements.get(wire)

    def with_prefix(self, start: bytes) -> Row | None:
        """The row of the peer whose id begins with `start` (`PREFIX_BYTES` or more)."""
        peer = self._prefixes.get(start[:PREFIX_BYTES])
        return self.rows[peer] if peer is not None and peer.startswith(start) else None

    def add(self, signed: SignedRecord, now: float) -> Row | None:
        """A row for a peer that is not here yet; None where the table is full (see `expendable`)."""
        peer = signed.record.peer
        if peer[:PREFIX_BYTES] in self._prefixes or self.is_full:
            return None
        status = PeerStatus.LEFT if signed.record.leaving else PeerStatus.ALIVE
        row = self.rows[peer] = Row(signed, status, now, now, was_alive=not signed.record.leaving)
        self._wires[signed.wire] = peer
        self._announcements[announcement_of(signed.record)] = row
        self._prefixes[peer[:PREFIX_BYTES]] = peer
        self.changed(row)
        self.touch(row)
        return row

    def renew(self, row: Row, signed: SignedRecord, now: float) -> None:
        """Put a newer record of the same peer into `row`."""
        self._wires.pop(row.signed.wire, None)
        self._wires[signed.wire] = row.peer
        self._announcements.pop(announcement_of(row.signed.record), None)
        self._announcements[announcement_of(signed.record)] = row
        row.signed, row.renewed_at = signed, now
        load, record = row.load, signed.record
        if load is not None and (load.incarnation != record.incarnation or load.sequence <= record.sequence):
            row.load = None
        self.changed(row)
        self.touch(row)

    def update_load(self, update: LoadUpdate) -> bool:
        """Whether `update` was news about somebody; the view shows it then."""
        row = self.rows.get(update.peer)
        if row is None or row.status in GONE or row.signed.record.incarnation != update.incarnation:
            return False
        if update.sequence <= max(row.signed.record.sequence, row.load.sequence if row.load is not None else -1):
            return False
        row.load = update
        self.changed(row)
        return True

    def forget(self, peer: PeerId) -> bool:
        """Remove the row of `peer`; whether there was one."""
        row = self.rows.pop(peer, None)
        if row is None:
            return False
        self._wires.pop(row.signed.wire, None)
        self._announcements.pop(announcement_of(row.signed.record), None)
        del self._prefixes[peer[:PREFIX_BYTES]]
        self._agenda.set(peer, None)
        self._gone.pop(peer, None)
        self.digests.put(peer, None)
        self.ring.remove(peer)
        self.strangers.remove(peer)
        self._unmet.pop(peer, None)
        self.changed(row)
        return True

    def worth_telling(self) -> list[SignedRecord]:
        """The own record, and those of peers that live or have said that they left; of the dead nobody is told."""
        told = [
            row.signed
            for row in self.rows.values()
            if row.status in (PeerStatus.ALIVE, PeerStatus.SUSPECT) or row.signed.record.leaving
        ]
        return [self.own, *sorted(told, key=lambda signed: signed.record.peer)]

    @property
    def is_full(self) -> bool:
        """Whether there is no room for a further row."""
        return len(self.rows) >= self._settings.peers_max

    def expendable(self) -> PeerId | None:
        """Whom to forget for somebody new: who has been gone longest, else the stranger that has been here longest."""
        return next(iter(self._gone), next(iter(self._unmet), None))

    # --- status -------------------------------------------------------------------------------------------------------

    def set_suspect(self, row: Row, now: float) -> None:
        """Its link was lost without a word, or it did not answer."""
        self._set(row, PeerStatus.SUSPECT, now)

    def set_alive(self, row: Row, now: float, effects: list[Effect]) -> None:
        """It is believed to be up; nothing is asked about it any more."""
        if row.status in GONE:
            effects.append(PeerAppeared(row.peer))
        row.was_alive = True
        self._set(row, PeerStatus.ALIVE, now)

    def set_dead(self, row: Row, now: float, reason: str, effects: list[Effect]) -> None:
        """It is believed to be down."""
        if row.status not in GONE:
            effects.append(PeerDied(row.peer, reason))
        self._set(row, PeerStatus.DEAD, now)

    def set_left(self, row: Row, now: float, effects: list[Effect]) -> None:
        """It has said that it stops."""
        if row.status is not PeerStatus.LEFT:
            effects.append(PeerLeft(row.peer))
        self._set(row, PeerStatus.LEFT, now)

    def _set(self, row: Row, status: PeerStatus, now: float) -> None:
        row.inquiry = None
        row.recheck_at = None
        if row.status is not status:
            row.status, row.since = status, now
            self.changed(row)
        self.touch(row)

    # --- what follows from a row --------------------------------------------------------------------------------------

    def touch(self, row: Row) -> None:
        """A field of `row` was changed: keep what follows from it."""
        peer, is_gone = row.peer, row.status in GONE
        self._agenda.set(peer, self.row_deadline(row))
        if is_gone and not row.linked:
            self._gone.setdefault(peer)
        else:
            self._gone.pop(peer, None)
        if self.gossips:
            is_told = not is_gone or (row.status is PeerStatus.LEFT and row.was_alive and row.signed.record.leaving)
            self.digests.put(peer, row.signed.record.order if is_told else None)
            for ring, is_in in ((self.ring, row.is_met), (self.strangers, not row.is_met)):
                if is_in and row.gossips and not is_gone:
                    ring.add(peer)
                else:
                    ring.remove(peer)
        if row.is_met or row.linked:
            self._unmet.pop(peer, None)
        else:
            self._unmet.setdefault(peer)

    def row_deadline(self, row: Row) -> float | None:
        """When something about `row` is due; None while a link vouches for it."""
        if row.linked:
            return None
        if row.status in GONE:
            return row.since + self._settings.forget_s
        inquired_at = row.inquiry.until if row.inquiry is not None else None
        return earliest(self._silent_at(row), row.recheck_at, inquired_at)

    def is_silent(self, row: Row, now: float) -> bool:
        """Whether the record of a peer without a link has not been renewed for too long."""
        return self._silent_at(row) <= now

    def _silent_at(self, row: Row) -> float:
        # Who gossips is probed: its record need not be renewed to show that it lives.
        is_probed = self.gossips and row.gossips
        return row.renewed_at + (self._settings.forget_s if is_probed else self._settings.silence_max_s)

    def next_due(self, now: float) -> Row | None:
        """A row whose deadline has come; each call another one, until it is touched again."""
        peer = self._agenda.pop(now)
        return None if peer is None else self.rows[peer]

    def deadline(self) -> float | None:
        """The earliest deadline of a row."""
        return self._agenda.earliest()

    def postpone(self, by_s: float) -> None:
        """This machine was not there for so long: whatever is due about peers that are believed to live is due later."""
        for row in self.rows.values():
            if row.status not in GONE:
                row.renewed_at += by_s
                row.recheck_at = None if row.recheck_at is None else row.recheck_at + by_s
                if row.inquiry is not None:
                    row.inquiry.until += by_s
                self.touch(row)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        own = self.own.record
        assert own.peer not in self.rows
        assert len(self.rows) <= self._settings.peers_max
        assert self._wires == {row.signed.wire: peer for peer, row in self.rows.items()}
        assert self._announcements == {announcement_of(row.signed.record): row for row in self.rows.values()}
        assert self._prefixes == {peer[:PREFIX_BYTES]: peer for peer in self.rows}
        for peer, row in self.rows.items():
            record = row.signed.record
            assert row.peer == peer
            assert record.network == own.network
            is_gossiping = self.gossips and row.gossips
            assert not (row.linked and row.status in (PeerStatus.DEAD, PeerStatus.SUSPECT) and not is_gossiping)
            assert not (row.inquiry is not None and (row.linked or row.status in GONE))
            assert self._agenda.at(peer) == self.row_deadline(row)
            assert (peer in self._gone) == (row.status in GONE and not row.linked)
            assert (peer in self.ring) == (is_gossiping and row.status not in GONE and row.is_met)
            assert (peer in self.strangers) == (is_gossiping and row.status not in GONE and not row.is_met)
            assert (peer in self._unmet) == (not row.is_met and not row.linked)
            if row.load is not None:
                assert row.load.incarnation == record.incarnation
                assert row.load.sequence > record.sequence
            if self.gossips and row.status not in GONE:
                assert self.digests.order(peer) == record.order
        assert self.gossipers <= len(self.rows)
        self.ring.check_invariants()
        self.strangers.check_invariants()
        self.digests.check_invariants()
        assert [entry.record.peer for entry in self.view.entries] == sorted(self.rows)
        assert all(self._entries[peer] == row.entry() for peer, row in self.rows.items())
