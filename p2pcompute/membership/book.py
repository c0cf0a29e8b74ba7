"""The peer book: who belongs to the network, what each says about itself, and who is believed to be up.

Rules of the protocol behind it (the first one; full gossip replaces it without touching its users):

- State of a peer is a record signed by itself, ordered by (incarnation, sequence). Older and equal ones are dropped, so
  nobody can make another leave, move or come back. What is new is passed on, see `spreading.py`.
- A peer with a link is alive. A link lost without a goodbye makes a suspect: linked peers are asked, and the peer is dead
  when none of them hears it (`suspicion.py`); at once where there is nobody to ask.
- A peer alive by hearsay after its link was lost is asked about again until it is linked or dead. A peer that never had a
  link here lives as long as its record is renewed.
- A record that says `leaving` makes its peer LEFT. The dead and the left are kept, so that a newer record brings them back
  and an older one does not, and are forgotten after an hour.
- A record of the own key that is newer than the own one is outranked with a higher incarnation.

Refuses to know: sockets, what is dialled (`joining.py`), jobs. Everything that a peer sends can cause `Misbehaved` at worst.
"""

from __future__ import annotations

from p2pcompute.membership.book_events import (
    AnswerSuspect,
    AskSuspect,
    BookSettings,
    Effect,
    Event,
    Learned,
    LinkLost,
    LinkMeasured,
    LinkOpened,
    Misbehaved,
    OwnChanged,
    PeerAppeared,
    PeerBanned,
    PeerDied,
    PeerLeft,
    RaiseIncarnation,
    RecordsHeard,
    SendRecords,
    SuspectAnswered,
    SuspectAsked,
    ViewChanged,
)
from p2pcompute.membership.incarnation import latest_incarnation
from p2pcompute.membership.machine import Tick, earliest
from p2pcompute.membership.spreading import Spreading
from p2pcompute.membership.suspicion import Inquiry, Verdict
from p2pcompute.membership.table import GONE, Row, Table
from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerRecord, PeerStatus, PeerView
from p2pcompute.model.seams import Rng
from p2pcompute.wire.record import SignedRecord, Verifier, open_record

__all__ = [
    "AnswerSuspect", "AskSuspect", "BookSettings", "Effect", "Event", "Learned", "LinkLost", "LinkMeasured",
    "LinkOpened", "Misbehaved", "OwnChanged", "PeerAppeared", "PeerBanned", "PeerBook", "PeerDied", "PeerLeft",
    "RaiseIncarnation", "RecordsHeard", "SendRecords", "SuspectAnswered", "SuspectAsked", "Tick", "ViewChanged",
]  # fmt: skip

#: Relative change of a measurement that is worth a new view.
_NOISE = 0.1


class PeerBook:
    """See the module. `verify` is a pure function of its arguments."""

    def __init__(self, own: SignedRecord, verify: Verifier, rng: Rng, settings: BookSettings | None = None) -> None:
        #: Checks a signature.
        self._verify = verify
        #: Times and limits.
        self._settings = settings or BookSettings()
        #: The machine's dice.
        self._rng = rng
        #: Every peer that is known, this one included.
        self._table = Table(own, self._settings)
        #: Who is linked, and who knows what.
        self._spreading = Spreading(rng, self._settings.spread_links, self._settings.records_per_message)
        #: When each linked peer last said anything, monotonic seconds.
        self._heard_at: dict[PeerId, float] = {}
        #: Answers that are held back, by (who asked, about whom): when they are due.
        self._held: dict[tuple[PeerId, PeerId], float] = {}
        #: Revoked peers: nothing of them is taken.
        self._banned: set[PeerId] = set()
        #: When one link is told what it may have missed; None while there is no link.
        self._repair_at: float | None = None
        #: The link that was told last; at first this peer itself.
        self._repaired: PeerId = own.record.peer
        #: The incarnation that this peer must outrank, None where it need not.
        self._raise_to: int | None = None
        #: Not raised again before this.
        self._raise_from = 0.0

    @property
    def _own(self) -> PeerRecord:
        return self._table.own.record

    @property
    def view(self) -> PeerView:
        """The network as this peer sees it now; the same object until something changes."""
        return self._table.view

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What `event` leads to, and whatever else is due at `now`."""
        version = self._table.version
        effects: list[Effect] = []
        match event:
            case RecordsHeard():
                self._records_heard(event, now, effects)
            case LinkOpened():
                self._link_opened(event, now, effects)
            case LinkLost():
                self._link_lost(event, now, effects)
            case LinkMeasured():
                self._link_measured(event, now)
            case OwnChanged(record):
                self._own_changed(record, effects)
            case SuspectAsked():
                self._suspect_asked(event, now, effects)
            case SuspectAnswered():
                self._suspect_answered(event, now, effects)
            case PeerBanned(peer):
                self._banish(peer, effects)
        self._due(now, effects)
        if self._table.version != version:
            effects.append(ViewChanged())
        return effects

    def deadline(self) -> float | None:
        """When something is due without an event."""
        return earliest(
            self._table.deadline(),
            min(self._held.values(), default=None),
            self._repair_at,
            self._raise_from if self._raise_to is not None else None,
        )

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        self._table.check_invariants()
        assert set(self._spreading.links) == set(self._heard_at)
        assert (self._repair_at is None) == (not self._heard_at)
        for peer, row in self._table.rows.items():
            assert peer not in self._banned
            assert row.linked == (peer in self._heard_at)
        for source, _ in self._held:
            assert source in self._heard_at

    # --- records ------------------------------------------------------------------------------------------------------

    def _records_heard(self, event: RecordsHeard, now: float, effects: list[Effect]) -> None:
        if event.source in self._heard_at:
            self._heard_at[event.source] = now
        news: list[SignedRecord] = []
        problem = ""
        latest = self._latest_incarnation(event.wall)
        for wire in event.wires:
            known = self._table.known(wire)
            if known is not None:
                self._spreading.heard(event.source, known.peer, known.order)
                continue
            try:
                signed = self._open(wire)
            except ProtocolError as error:
                problem = problem or str(error)
                continue
            if signed.record.incarnation > latest:
                continue
            self._spreading.heard(event.source, signed.record.peer, signed.record.order)
            if self._take(signed, now, effects):
                news.append(signed)
        if problem:
            effects.append(Misbehaved(event.source, problem))
        # Of two versions in one message only the newer one is worth passing on.
        effects += self._spreading.news([signed for signed in news if self._table.known(signed.wire) is not None])

    def _open(self, wire: bytes) -> SignedRecord:
        signed = open_record(wire, self._verify)
        if signed.record.network != self._own.network:
            raise ProtocolError("a record of another network")
        return signed

    def _latest_incarnation(self, wall: float) -> float:
        rows = self._table.rows
        linked = [rows[peer].signed.record.incarnation for peer in self._spreading.links if peer in rows]
        return latest_incarnation(wall, linked, self._settings.incarnation_ahead_max_s)

    def _take(self, signed: SignedRecord, now: float, effects: list[Effect]) -> bool:
        """Whether `signed` was news; it is in the book then."""
        record = signed.record
        if record.peer == self._own.peer:
            if record.order > self._own.order:
                self._raise_to = max(self._raise_to or 0, record.incarnation + 1)
            return False
        if record.peer in self._banned:
            return False
        row = self._table.rows.get(record.peer)
        if row is None:
            row = self._table.add(signed, now)
            if row is not None:
                row.linked = record.peer in self._heard_at
            if row is not None and not record.leaving:
                effects += [PeerAppeared(record.peer), Learned(record.peer, record.addresses)]
            return row is not None
        if record.order <= row.signed.record.order:
            return False
        self._table.renew(row, signed, now)
        if record.leaving:
            self._table.set_left(row, now, effects)
            return True
        if row.status in GONE:
            # Without a link this is hearsay, and perhaps a rumour older than its end: then no renewal will follow.
            self._table.set_alive(row, now, effects)
        # Said again with every record, so that who dials knows that the addresses still hold.
        effects.append(Learned(record.peer, record.addresses))
        return True

    def _own_changed(self, record: SignedRecord, effects: list[Effect]) -> None:
        assert record.record.peer == self._own.peer, "the own record stays the own peer's"
        if record is self._table.own:
            return
        assert record.record.order > self._own.order, "a changed record has a higher order"
        self._table.own = record
        if self._raise_to is not None and record.record.incarnation >= self._raise_to:
            self._raise_to = None
        self._table.changed()
        effects += self._spreading.news([record], to_all=True)

    # --- links --------------------------------------------------------------------------------------------------------

    def _link_opened(self, event: LinkOpened, now: float, effects: list[Effect]) -> None:
        peer = event.peer
        if peer in self._banned or peer == self._own.peer:
            return
        self._heard_at[peer] = now
        if self._repair_at is None:
            self._repair_at = now + self._settings.repair_interval_s
        try:
            signed = self._open(event.record_wire)
            if signed.record.peer != peer:
                raise ProtocolError("its Hello carries the record of another peer")
        except ProtocolError as error:
            effects.append(Misbehaved(peer, str(error)))
            signed = None
        is_news = signed is not None and self._take(signed, now, effects)
        self._spreading.opened(peer)
        if signed is not None:
            self._spreading.heard(peer, peer, signed.record.order)
        effects += self._spreading.missing(peer, self._table.worth_telling())
        row = self._table.rows.get(peer)
        if row is not None:
            row.linked = True
            row.rtt_s = event.rtt_s if event.rtt_s is not None else row.rtt_s
            row.invitation = event.invitation
            row.renewed_at = now
            self._table.changed()
            # A link proves life, whatever was believed, and whatever record it showed.
            if not row.signed.record.leaving:
                self._table.set_alive(row, now, effects)
        if is_news and signed is not None:
            effects += self._spreading.news([signed])

    def _link_lost(self, event: LinkLost, now: float, effects: list[Effect]) -> None:
        if event.peer not in self._heard_at:
            return
        self._unlink(event.peer)
        # Who asked about it is answered at once.
        for key in [key for key in self._held if key[1] == event.peer]:
            del self._held[key]
            effects.append(AnswerSuspect(key[0], event.peer, None))
        row = self._table.rows.get(event.peer)
        if row is None:
            return
        row.linked = False
        row.renewed_at = now
        self._table.changed()
        if row.status is PeerStatus.LEFT:
            row.since = now
        elif event.clean and event.reason == "leaving":
            self._table.set_left(row, now, effects)
        elif not event.clean:
            self._table.set_suspect(row, now)
            self._inquire(row, now, effects)

    def _unlink(self, peer: PeerId) -> None:
        """There is no link to `peer` any more: it answers nothing and is answered nothing."""
        self._heard_at.pop(peer, None)
        self._spreading.closed(peer)
        self._held = {key: at for key, at in self._held.items() if key[0] != peer}
        for row in self._table.rows.values():
            if row.inquiry is not None:
                row.inquiry.open.discard(peer)
        if not self._heard_at:
            self._repair_at = None

    def _link_measured(self, event: LinkMeasured, now: float) -> None:
        row = self._table.rows.get(event.peer)
        if row is None or event.peer not in self._heard_at:
            return
        self._heard_at[event.peer] = now
        if event.rtt_s is not None and _differs(row.rtt_s, event.rtt_s):
            row.rtt_s = event.rtt_s
            self._table.changed()
        if event.bandwidth_mbps is not None and _differs(row.bandwidth_mbps, event.bandwidth_mbps):
            row.bandwidth_mbps = event.bandwidth_mbps
            self._table.changed()

    # --- suspicion ----------------------------------------------------------------------------------------------------

    def _inquire(self, row: Row, now: float, effects: list[Effect]) -> None:
        asked = tuple(other for other in self._spreading.links if other != row.peer)
        row.recheck_at = None
        row.inquiry = Inquiry(now + self._settings.suspect_s, set(asked))
        if asked:
            effects.append(AskSuspect(asked, row.peer))
        else:
            self._conclude(row, now, effects)

    def _suspect_asked(self, event: SuspectAsked, now: float, effects: list[Effect]) -> None:
        if event.source not in self._heard_at:
            return
        self._heard_at[event.source] = now
        if event.peer == self._own.peer:
            effects.append(AnswerSuspect(event.source, event.peer, 0.0))
        elif event.peer not in self._heard_at:
            effects.append(AnswerSuspect(event.source, event.peer, None))
        else:
            self._held.setdefault((event.source, event.peer), now + self._settings.hold_answer_s)

    def _suspect_answered(self, event: SuspectAnswered, now: float, effects: list[Effect]) -> None:
        if event.source in self._heard_at:
            self._heard_at[event.source] = now
        row = self._table.rows.get(event.peer)
        if row is not None and row.inquiry is not None:
            row.inquiry.answer(event.source, event.heard_s, self._settings.heard_max_s)
            self._conclude(row, now, effects)

    def _conclude(self, row: Row, now: float, effects: list[Effect]) -> None:
        assert row.inquiry is not None, "only what is asked about is concluded"
        verdict = row.inquiry.verdict(now)
        if verdict is Verdict.ALIVE:
            self._table.set_alive(row, now, effects)
            row.renewed_at = now
            row.recheck_at = now + self._settings.recheck_s
        elif verdict is Verdict.DEAD:
            self._table.set_dead(row, now, "its link was lost and nobody hears it", effects)

    def _banish(self, peer: PeerId, effects: list[Effect]) -> None:
        if peer == self._own.peer or len(self._banned) >= limits.REVOCATIONS_MAX:
            return
        self._banned.add(peer)
        row = self._table.rows.get(peer)
        if row is not None and row.status not in GONE:
            effects.append(PeerDied(peer, "the owner of the network has revoked it"))
        self._unlink(peer)
        self._held = {key: at for key, at in self._held.items() if key[1] != peer}
        self._forget(peer)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _due(self, now: float, effects: list[Effect]) -> None:
        for row in self._table.due(now):
            self._row_due(row, now, effects)
        # A witness that went away may have been the last one that was waited for.
        for row in [row for row in self._table.rows.values() if row.inquiry is not None and not row.inquiry.open]:
            self._conclude(row, now, effects)
        for source, peer in [key for key, at in self._held.items() if at <= now]:
            del self._held[source, peer]
            heard_s = min(now - self._heard_at[peer], limits.LINK_SILENCE_MAX_S) if peer in self._heard_at else None
            effects.append(AnswerSuspect(source, peer, heard_s))
        if self._repair_at is not None and self._repair_at <= now:
            self._repair_at = now + self._settings.repair_interval_s * self._rng.uniform(0.8, 1.2)
            # In a circle that begins at the own id, so that peers with equal neighbours do not all turn to the same one.
            links = self._spreading.links
            self._repaired = next((link for link in links if link > self._repaired), links[0])
            # One message and no more: what is left over has its turn in the next round.
            size = self._settings.records_per_message
            effects += self._spreading.missing(self._repaired, self._table.worth_telling(), size)
        if self._raise_to is not None and self._raise_from <= now:
            effects.append(RaiseIncarnation(self._raise_to))
            self._raise_to = None
            self._raise_from = now + self._settings.raise_interval_s

    def _row_due(self, row: Row, now: float, effects: list[Effect]) -> None:
        if row.status in GONE:
            self._forget(row.peer)
        elif row.renewed_at + self._settings.silence_max_s <= now:
            self._table.set_dead(row, now, "its record was not renewed", effects)
        elif row.inquiry is not None:
            self._conclude(row, now, effects)
        else:
            self._inquire(row, now, effects)

    def _forget(self, peer: PeerId) -> None:
        if self._table.forget(peer):
            self._spreading.forget(peer)


def _differs(old: float | None, new: float) -> bool:
    return old is None or abs(old - new) > _NOISE * max(abs(old), abs(new))
