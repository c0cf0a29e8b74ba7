"""The table of the peer book: one row a peer, what is believed of it, and the view that others read.

Owns the rows, their statuses and the way from one to the next; the rules for when to take it are the book's. Records come in
with their signatures checked. A row's deadline is the only timer: what to do at it is the book's, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pcompute.membership.book_events import BookSettings, Effect, PeerAppeared, PeerDied, PeerLeft
from p2pcompute.membership.machine import earliest
from p2pcompute.membership.suspicion import Inquiry
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerEntry, PeerRecord, PeerStatus, PeerView
from p2pcompute.wire.record import SignedRecord

GONE = frozenset({PeerStatus.DEAD, PeerStatus.LEFT})


@dataclass(slots=True)
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
    #: Whether a link to it is up; then `status` is ALIVE or LEFT.
    linked: bool = False
    #: As last measured on its link, kept after the link.
    rtt_s: float | None = None
    #: As last measured on its link, kept after the link.
    bandwidth_mbps: float | None = None
    #: The invitation that it showed on its link; empty where it never had one.
    invitation: bytes = b""
    #: The question that is out about it, None where there is none.
    inquiry: Inquiry | None = None
    #: When it is asked about again: only while it is alive by hearsay after a lost link.
    recheck_at: float | None = None

    @property
    def peer(self) -> PeerId:
        """Whose row this is."""
        return self.signed.record.peer

    def entry(self) -> PeerEntry:
        """The row as views show it."""
        return PeerEntry(
            self.signed.record,
            self.status,
            self.since,
            self.linked,
            self.rtt_s,
            self.bandwidth_mbps,
            self.invitation,
        )


class Table:
    """See the module."""

    def __init__(self, own: SignedRecord, settings: BookSettings) -> None:
        #: The newest record of this peer itself.
        self.own = own
        #: Times and limits.
        self._settings = settings
        #: Every other peer that is known, at most `peers_max`, never this one.
        self.rows: dict[PeerId, Row] = {}
        #: Whose record these bytes are: exactly the newest ones of `rows`.
        self._wires: dict[bytes, PeerId] = {}
        #: Grows with every change of the view.
        self.version = 0
        #: The view of `version`, None where it must be built.
        self._view: PeerView | None = None

    @property
    def view(self) -> PeerView:
        """The network as this peer sees it now; the same object until something changes."""
        if self._view is None:
            entries = tuple(self.rows[peer].entry() for peer in sorted(self.rows))
            self._view = PeerView(self.own.record, entries, self.version)
        return self._view

    def changed(self) -> None:
        """Something that the view shows is different."""
        self.version += 1
        self._view = None

    # --- records ------------------------------------------------------------------------------------------------------

    def known(self, wire: bytes) -> PeerRecord | None:
        """The record in `wire` where these very bytes are here: they need no second check of a signature."""
        if wire == self.own.wire:
            return self.own.record
        peer = self._wires.get(wire)
        return None if peer is None else self.rows[peer].signed.record

    def add(self, signed: SignedRecord, now: float) -> Row | None:
        """A row for a peer that is not here yet; None where the table is full of the living."""
        if len(self.rows) >= self._settings.peers_max and not self._make_room():
            return None
        status = PeerStatus.LEFT if signed.record.leaving else PeerStatus.ALIVE
        row = self.rows[signed.record.peer] = Row(signed, status, now, now)
        self._wires[signed.wire] = row.peer
        self.changed()
        return row

    def renew(self, row: Row, signed: SignedRecord, now: float) -> None:
        """Put a newer record of the same peer into `row`."""
        self._wires.pop(row.signed.wire, None)
        self._wires[signed.wire] = row.peer
        row.signed, row.renewed_at = signed, now
        self.changed()

    def forget(self, peer: PeerId) -> bool:
        """Remove the row of `peer`; whether there was one."""
        row = self.rows.pop(peer, None)
        if row is not None:
            self._wires.pop(row.signed.wire, None)
            self.changed()
        return row is not None

    def worth_telling(self) -> list[SignedRecord]:
        """The own record, and those of peers that live or have said that they left; of the dead nobody is told."""
        told = [
            row.signed
            for row in self.rows.values()
            if row.status in (PeerStatus.ALIVE, PeerStatus.SUSPECT) or row.signed.record.leaving
        ]
        return [self.own, *sorted(told, key=lambda signed: signed.record.peer)]

    def _make_room(self) -> bool:
        gone = [row for row in self.rows.values() if row.status in GONE and not row.linked]
        longest = min(gone, key=lambda row: (row.since, row.peer), default=None)
        return longest is not None and self.forget(longest.peer)

    # --- status -------------------------------------------------------------------------------------------------------

    def set_suspect(self, row: Row, now: float) -> None:
        """Its link was lost without a word."""
        self._set(row, PeerStatus.SUSPECT, now)

    def set_alive(self, row: Row, now: float, effects: list[Effect]) -> None:
        """It is believed to be up; nothing is asked about it any more."""
        if row.status in GONE:
            effects.append(PeerAppeared(row.peer))
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
            self.changed()

    # --- time ---------------------------------------------------------------------------------------------------------

    def row_deadline(self, row: Row) -> float | None:
        """When something about `row` is due; None while a link vouches for it."""
        if row.linked:
            return None
        if row.status in GONE:
            return row.since + self._settings.forget_s
        silent_at = row.renewed_at + self._settings.silence_max_s
        return earliest(silent_at, row.recheck_at, row.inquiry.until if row.inquiry is not None else None)

    def due(self, now: float) -> list[Row]:
        """Rows whose deadline has come."""
        return [row for row in self.rows.values() if (at := self.row_deadline(row)) is not None and at <= now]

    def deadline(self) -> float | None:
        """The earliest deadline of a row."""
        moments = [at for row in self.rows.values() if (at := self.row_deadline(row)) is not None]
        return min(moments, default=None)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        own = self.own.record
        assert own.peer not in self.rows
        assert len(self.rows) <= self._settings.peers_max
        assert self._wires == {row.signed.wire: peer for peer, row in self.rows.items()}
        for peer, row in self.rows.items():
            assert row.peer == peer
            assert row.signed.record.network == own.network
            assert not (row.linked and row.status in (PeerStatus.DEAD, PeerStatus.SUSPECT))
            assert (row.status is PeerStatus.SUSPECT) <= (row.inquiry is not None)
            assert not (row.inquiry is not None and (row.linked or row.status in GONE))
        assert [entry.record.peer for entry in self.view.entries] == sorted(self.rows)
