"""The peer book: who belongs to the network, what each says about itself, and who is believed to be up.

State of a peer is a record signed by itself, ordered by (incarnation, sequence), so nobody can make another leave, move or
come back. How records travel and how death is noticed depends on the peer's protocol version, which its record says:

- Peers of version 2 gossip: SWIM with Lifeguard (`detector.py`), rumours and digests (`exchange.py`), in datagrams, or over links
  where no datagram gets through.
- To peers of version 1 records are pushed over links, and a lost link is asked about (`hearsay.py`).
- News of the one reaches the others through whoever is linked to both, and so do suspicions.

For all of them: a record that says `leaving` makes its peer LEFT. The dead and the left are kept, so that a newer record brings
them back and an older one does not, and are forgotten after an hour. A record of the own key that is newer than the own one is
outranked with a higher incarnation. A book whose own record says version 1 behaves as that version did.

This class is the composition: it hands each event to the part that owns it, then lets every part do what is due. Refuses to know:
sockets, what is dialled (`joining.py`), jobs. Everything that a peer sends can cause `Misbehaved` at worst.
"""

from __future__ import annotations

from p2pcompute.membership import awareness
from p2pcompute.membership.book_events import (
    AnswerSuspect,
    AskSuspect,
    BookSettings,
    Effect,
    Event,
    GossipHeard,
    Learned,
    LinkLost,
    LinkMeasured,
    LinkOpened,
    LoopLagged,
    Misbehaved,
    OwnChanged,
    OwnLoadChanged,
    PeerAppeared,
    PeerBanned,
    PeerDied,
    PeerLeft,
    PeerSuspected,
    RaiseIncarnation,
    RecordsHeard,
    SendGossip,
    SendRecords,
    SuspectAnswered,
    SuspectAsked,
    ViewChanged,
    Way,
    Woke,
)
from p2pcompute.membership.common import Common
from p2pcompute.membership.detector import Detector
from p2pcompute.membership.exchange import Exchange
from p2pcompute.membership.hearsay import Hearsay
from p2pcompute.membership.intake import Intake, RememberOpen
from p2pcompute.membership.machine import Tick, earliest
from p2pcompute.membership.raising import Raising
from p2pcompute.membership.spreading import Spreading
from p2pcompute.membership.table import GONE, Row
from p2pcompute.membership.voice import Voice
from p2pcompute.membership.wants import Wants
from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Coordinate, PeerEntry, PeerRecord, PeerStatus, PeerView
from p2pcompute.model.seams import Rng
from p2pcompute.wire import gossip
from p2pcompute.wire.record import SignedRecord, Signer, Verifier

__all__ = [
    "AnswerSuspect", "AskSuspect", "BookSettings", "Effect", "Event", "GossipHeard", "Learned", "LinkLost", "LinkMeasured",
    "LinkOpened", "LoopLagged", "Misbehaved", "OwnChanged", "OwnLoadChanged", "PeerAppeared", "PeerBanned", "PeerBook",
    "PeerDied", "PeerLeft", "PeerSuspected", "RaiseIncarnation", "RecordsHeard", "RememberOpen", "SendGossip", "SendRecords",
    "SuspectAnswered", "SuspectAsked", "Tick", "ViewChanged", "Way", "Woke",
]  # fmt: skip

#: Relative change of a measurement that is worth a new view.
_NOISE = 0.1


class PeerBook:
    """See the module. `verify` is a pure function of its arguments, and `signer` a deterministic one, as Ed25519 is.

    Without a signer this peer accuses nobody publicly. `remember_open` may give back a record that was opened before.
    """

    def __init__(
        self,
        own: SignedRecord,
        verify: Verifier,
        rng: Rng,
        settings: BookSettings | None = None,
        *,
        signer: Signer | None = None,
        remember_open: RememberOpen | None = None,
    ) -> None:
        #: What the parts share.
        self._common = Common(own, verify, rng, settings or BookSettings(), signer)
        #: Times and limits.
        self._settings = self._common.settings
        #: Every peer that is known, this one included.
        self._table = self._common.table
        #: Who of the first version is linked, and who of them knows what.
        self._spreading = Spreading(rng, self._settings.spread_links, self._settings.records_per_message)
        #: Ways, rumours, rounds.
        self._voice = Voice(self._common)
        #: Records that are under way.
        self._wants = Wants(self._common, self._voice)
        #: When this peer must sign a higher incarnation.
        self._raising = Raising(self._common)
        #: Peers of the first version.
        self._hearsay = Hearsay(self._common, self._spreading, self._denied, self._died)
        #: Whom this peer suspects.
        self._detector = Detector(self._common, self._voice, self._raising, self._wants, self._ask)
        #: Records that come in.
        self._intake = Intake(
            self._common, self._voice, self._spreading, self._detector, self._wants, self._raising, remember_open,
            self._evict,
        )  # fmt: skip
        #: Rumours, digests, records on demand.
        self._exchange = Exchange(self._common, self._voice, self._wants, self._intake, self._detector)
        #: The earliest deadline of all parts; nothing changes it but an event.
        self._deadline: float | None = None
        #: When this peer last noticed by itself that it came late, monotonic seconds.
        self._late_at = -awareness.SLEPT_S

    @property
    def view(self) -> PeerView:
        """The network as this peer sees it now; the same object until something changes."""
        return self._table.view

    @property
    def version(self) -> int:
        """Grows with every change of `view`; no view is made for it."""
        return self._table.version

    def record(self, peer: PeerId) -> PeerRecord | None:
        """The newest record of another peer, None where it is unknown."""
        row = self._table.rows.get(peer)
        return None if row is None else row.signed.record

    def entry(self, peer: PeerId) -> PeerEntry | None:
        """The row of another peer as `view` shows it, None where it is unknown; no view is made for it."""
        row = self._table.rows.get(peer)
        return None if row is None else row.entry()

    def counts(self) -> tuple[int, int]:
        """How many other peers are believed to be up, and how many are known; no view is made for it."""
        rows = self._table.rows
        return sum(row.status is PeerStatus.ALIVE for row in rows.values()), len(rows)

    @property
    def renewed(self) -> int:
        """How many records of others were announced so far that replaced older ones; only grows."""
        return self._intake.renewed

    @property
    def own_record(self) -> PeerRecord:
        """This peer's own record, as others are told of it."""
        return self._table.own.record

    @property
    def coordinate(self) -> Coordinate:
        """Where this peer is among the others, in the space of round trips."""
        return self._detector.prober.coordinates.own

    @property
    def health(self) -> int:
        """How far this peer doubts itself: 0 (well) to `awareness_max`."""
        return self._common.awareness.score

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What `event` leads to, and whatever else is due at `now`."""
        version = self._table.version
        effects: list[Effect] = []
        self._common.effects = effects
        deadline = self._deadline
        late_s = 0.0 if deadline is None else now - deadline
        if late_s >= awareness.SLEPT_S:
            self._woke(late_s, now)
        elif late_s > awareness.LAG_MAX_S:
            self._late_at = now
            self._lagged(late_s, now)
        self._dispatch(event, now)
        self._due(now)
        if self._table.version != version:
            effects.append(ViewChanged())
        self._deadline = earliest(
            self._table.deadline(),
            self._hearsay.deadline(),
            self._raising.deadline(),
            self._detector.deadline(),
            self._wants.deadline(),
            self._voice.deadline(),
            self._exchange.deadline(),
        )
        return effects

    def deadline(self) -> float | None:
        """When something is due without an event."""
        return self._deadline

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        self._table.check_invariants()
        self._hearsay.check_invariants()
        self._detector.check_invariants()
        self._wants.check_invariants()
        self._exchange.check_invariants()
        self._voice.queue.check_invariants()
        links, rows = self._common.links, self._table.rows
        assert set(self._spreading.links) == {peer for peer in links if self._common.gossip_row(peer) is None}
        assert 0 <= self._common.awareness.score <= self._settings.awareness_max
        for peer, row in rows.items():
            assert peer not in self._common.banned
            assert row.linked == (peer in links)
            if row.status is PeerStatus.SUSPECT:
                assert row.inquiry is not None or self._detector.has_case(peer)

    def _dispatch(self, event: Event, now: float) -> None:
        match event:
            case GossipHeard():
                self._gossip_heard(event, now)
            case RecordsHeard():
                self._heard_on_link(event.source, now)
                row = self._common.gossip_row(event.source)
                if row is not None:
                    self._detector.heard(row, now)
                self._intake.heard(event.source, event.wires, event.wall, now)
            case LinkOpened():
                self._link_opened(event, now)
            case LinkLost():
                self._link_lost(event, now)
            case LinkMeasured():
                self._link_measured(event, now)
            case OwnChanged(record):
                self._own_changed(record, now)
            case OwnLoadChanged(wire):
                self._voice.tell(("load", self._common.own.peer), wire, self._settings.load_mult)
            case SuspectAsked():
                self._suspect_asked(event, now)
            case SuspectAnswered():
                self._heard_on_link(event.source, now)
                self._hearsay.answered(event, now)
            case PeerBanned(peer):
                self._banish(peer)
            case LoopLagged(lag_s):
                if now - lag_s > self._late_at:  # else it is the same lag that was noticed then
                    self._lagged(lag_s, now)
            case Woke():
                self._woke(0.0, now)

    # --- gossip -------------------------------------------------------------------------------------------------------

    def _gossip_heard(self, event: GossipHeard, now: float) -> None:
        source, message, way = event.source, event.message, event.way
        if not self._table.gossips or source in self._common.banned or source == self._common.own.peer:
            return
        prober, exchange = self._detector.prober, self._exchange
        if isinstance(message, gossip.Ack):
            # Before anything else: whether it came in time says who was wrong about its sender.
            prober.acked(source, message, way, now)
        if way is Way.LINK:
            self._heard_on_link(source, now)
        row = self._common.gossip_row(source)
        if row is not None:
            self._detector.heard(row, now)
        else:
            exchange.unknown(source, now)
        match message:
            case gossip.Probe():
                self._rumours(event, message.rumours, now)
                prober.probed(source, message, way)
            case gossip.Ack():
                self._rumours(event, message.rumours, now)
            case gossip.ProbeVia():
                self._rumours(event, message.rumours, now)
                prober.asked_for_other(source, message, way, now)
            case gossip.ViaAck():
                self._rumours(event, message.rumours, now)
                prober.via_acked(source, message, now)
            case gossip.Rumours():
                self._rumours(event, message.rumours, now)
            case gossip.Digest():
                exchange.digest(source, message, way, now)
            case gossip.Versions():
                exchange.versions(source, message, way, event.wall, now)
            case gossip.Want():
                exchange.wanted(source, message, way, now)
            case gossip.Piece():
                exchange.piece(source, message, event.wall, now)

    def _rumours(self, event: GossipHeard, wires: tuple[bytes, ...], now: float) -> None:
        self._exchange.rumours(event.source, wires, event.wall, now)

    def _own_changed(self, record: SignedRecord, now: float) -> None:
        assert record.record.peer == self._common.own.peer, "the own record stays the own peer's"
        if record is self._table.own:
            return
        before = self._common.own
        assert record.record.order > before.order, "a changed record has a higher order"
        self._table.own_changed(record)
        self._raising.signed()
        self._common.effects += self._spreading.news([record], to_all=True)
        if self._table.gossips:
            self._voice.announce(record.record)
            self._voice.speak_up(now)
            if record.record.incarnation > before.incarnation or record.record.leaving:
                # A refutation has to be there before the accused is given up, a farewell before its peer is gone.
                self._exchange.push_own(now)

    # --- links --------------------------------------------------------------------------------------------------------

    def _heard_on_link(self, source: PeerId, now: float) -> None:
        if source not in self._common.links:
            return
        self._common.links[source] = now
        row = self._common.gossip_row(source)
        if row is not None:
            row.answered_at = now
            self._detector.heard(row, now)

    def _link_opened(self, event: LinkOpened, now: float) -> None:
        peer = event.peer
        if peer in self._common.banned or peer == self._common.own.peer:
            return
        self._common.links[peer] = now
        if event.clock_ahead_s is not None:
            self._common.clocks_ahead_s[peer] = event.clock_ahead_s
        try:
            signed: SignedRecord | None = self._intake.open(event.record_wire)
            if signed is not None and signed.record.peer != peer:
                raise ProtocolError("its Hello carries the record of another peer")
            if signed is not None and event.wall is not None:
                self._intake.check_incarnation(signed, event.wall)
        except ProtocolError as error:
            self._common.effects.append(Misbehaved(peer, str(error)))
            signed = None
        is_news = signed is not None and self._intake.take(signed, now)
        row = self._table.rows.get(peer)
        if row is not None:
            row.linked = True
            row.rtt_s = event.rtt_s if event.rtt_s is not None else row.rtt_s
            row.invitation = event.invitation
            row.renewed_at = now
            self._table.changed(row)
            self._table.touch(row)
        if row is not None and self._common.gossip_row(peer) is not None:
            self._spreading.closed(peer)
            row.answered_at = now
            self._detector.heard(row, now)
            self._exchange.linked(peer)
        else:
            self._spreading.opened(peer)
            if signed is not None:
                self._spreading.heard(peer, peer, signed.record.order)
            self._common.effects += self._spreading.missing(peer, self._table.worth_telling())
            if row is not None:
                self._detector.heard(row, now)  # what others said against it, and nobody linked denied, is settled
        # A link proves life, whatever was believed, and whatever record it showed.
        if row is not None and not row.signed.record.leaving:
            self._table.set_alive(row, now, self._common.effects)
        if is_news and signed is not None:
            self._intake.pass_on([signed])

    def _link_lost(self, event: LinkLost, now: float) -> None:
        if event.peer not in self._common.links:
            return
        self._unlink(event.peer)
        row = self._table.rows.get(event.peer)
        if row is None:
            return
        row.linked = False
        row.renewed_at = now
        self._table.changed(row)
        self._table.touch(row)
        if row.status is PeerStatus.LEFT:
            row.since = now
            self._table.touch(row)
        elif event.clean and event.reason == "leaving":
            self._table.set_left(row, now, self._common.effects)
            self._detector.gone(row)
        elif event.clean or row.status is PeerStatus.DEAD:
            return
        elif self._common.gossip_row(event.peer) is not None:
            self._detector.link_lost(row, now)
        else:
            self._hearsay.suspect(row, now)

    def _unlink(self, peer: PeerId) -> None:
        self._common.links.pop(peer, None)
        self._common.clocks_ahead_s.pop(peer, None)
        self._spreading.closed(peer)
        self._hearsay.link_lost(peer)

    def _link_measured(self, event: LinkMeasured, now: float) -> None:
        self._heard_on_link(event.peer, now)
        row = self._table.rows.get(event.peer)
        if row is None or event.peer not in self._common.links:
            return
        if event.rtt_s is not None and _differs(row.rtt_s, event.rtt_s):
            row.rtt_s = event.rtt_s
            self._table.changed(row)
        if event.bandwidth_mbps is not None and _differs(row.bandwidth_mbps, event.bandwidth_mbps):
            row.bandwidth_mbps = event.bandwidth_mbps
            self._table.changed(row)

    # --- suspects of the first version --------------------------------------------------------------------------------

    def _suspect_asked(self, event: SuspectAsked, now: float) -> None:
        if event.source not in self._common.links:
            return
        self._heard_on_link(event.source, now)
        row = self._table.rows.get(event.peer)
        if self._hearsay.asked(event, now) and row is not None:
            self._detector.check(row, now)

    def _ask(self, row: Row, now: float) -> None:
        self._hearsay.inquire(row, now, is_check=True)

    def _denied(self, row: Row, now: float) -> None:
        self._detector.denied(row, now)

    def _died(self, row: Row, now: float) -> None:
        self._detector.gone(row)
        self._detector.concluded(row)

    def _banish(self, peer: PeerId) -> None:
        if peer == self._common.own.peer or len(self._common.banned) >= limits.REVOCATIONS_MAX:
            return
        self._common.ban(peer)
        row = self._table.rows.get(peer)
        if row is not None and row.status not in GONE:
            self._common.effects.append(PeerDied(peer, "the owner of the network has revoked it"))
        self._wants.forget(peer)
        self._unlink(peer)
        self._forget(peer)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _lagged(self, lag_s: float, now: float) -> None:
        self._common.awareness.add(awareness.lag_points(lag_s))
        if lag_s > awareness.LAG_MAX_S:
            self._detector.lagged(lag_s, now)

    def _woke(self, late_s: float, now: float) -> None:
        """`late_s`: what this machine's own clock says that it was not there for, seconds."""
        self._late_at = now
        self._common.awareness.add(awareness.WOKE_POINTS)
        for peer in self._common.links:
            self._common.links[peer] = now
        self._table.postpone(late_s)
        self._detector.woke(late_s, now)
        if self._table.gossips:
            self._exchange.begin_with_any(now)

    def _due(self, now: float) -> None:
        while (row := self._table.next_due(now)) is not None:
            if row.status in GONE:
                self._forget(row.peer)
            elif self._table.is_silent(row, now):
                self._table.set_dead(row, now, "its record was not renewed", self._common.effects)
                self._detector.gone(row)
            else:
                self._hearsay.row_due(row, now)
        self._hearsay.due(now)
        self._detector.due(now)
        self._raising.due(now)
        self._exchange.due(now)
        self._wants.due(now)
        self._voice.due(now)

    def _evict(self, peer: PeerId, now: float) -> None:
        row = self._table.rows[peer]
        if row.status not in GONE:
            self._table.set_dead(row, now, "it was never met, and its place is needed", self._common.effects)
        self._forget(peer)

    def _forget(self, peer: PeerId) -> None:
        self._hearsay.forget(peer)
        self._detector.forget(peer)
        if self._table.forget(peer):
            self._spreading.forget(peer)
            self._wants.forget(peer)


def _differs(old: float | None, new: float) -> bool:
    return old is None or abs(old - new) > _NOISE * max(abs(old), abs(new))
