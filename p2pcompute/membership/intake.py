"""Records that come in: opened, compared with what is known, taken and passed on, or refused.

Records of one peer are ordered by (incarnation, sequence); older and equal ones change nothing. One that is signed wrongly,
or belongs to another network, is the fault of who sent it and spoils nothing else in the message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from p2pcompute.membership.book_events import Learned, Misbehaved, PeerAppeared
from p2pcompute.membership.common import Common
from p2pcompute.membership.detector import Detector
from p2pcompute.membership.raising import Raising
from p2pcompute.membership.spreading import Spreading
from p2pcompute.membership.table import GONE, GOSSIP_PROTOCOL, Row
from p2pcompute.membership.voice import Voice
from p2pcompute.membership.wants import Wants
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerStatus
from p2pcompute.wire.record import SignedRecord, open_record

#: Gives back what somebody in this process opened before; a laboratory with a thousand books has one.
RememberOpen = Callable[[bytes], SignedRecord | None]
_FROM_THE_FUTURE = "its record is from the future: its clock is wrong, or it wants to outrank every later one"


class Intake:
    """See the module. `evict`: forgets a peer whose place is needed."""

    def __init__(
        self,
        common: Common,
        voice: Voice,
        spreading: Spreading,
        detector: Detector,
        wants: Wants,
        raising: Raising,
        remember_open: RememberOpen | None,
        evict: Callable[[PeerId, float], None],
    ) -> None:
        self._common = common
        self._voice = voice
        self._spreading = spreading
        self._detector = detector
        self._wants = wants
        self._raising = raising
        self._remember_open = remember_open
        self._evict = evict
        #: Records of others that replaced older ones, those left out that were missed here alone; only grows.
        self.renewed = 0

    def heard(self, source: PeerId, wires: Sequence[bytes], wall: float, now: float) -> None:
        """`source` sent records; `wall`: this machine's wall clock, seconds."""
        news: list[SignedRecord] = []
        old: set[PeerId] = set()
        problem = ""
        for wire in wires:
            known = self._common.table.known(wire)
            if known is not None:
                self._spreading.heard(source, known.peer, known.order)
                self._wants.came(known.peer, known.order)
                continue
            try:
                signed = self.open(wire)
            except ProtocolError as error:
                problem = problem or str(error)
                continue
            record = signed.record
            if self._common.is_of_the_future(record.incarnation, wall, self._common.table.rows.get(record.peer)):
                # Who only passes it on may have another clock; whose it is should know.
                problem = problem or (_FROM_THE_FUTURE if record.peer == source else "")
                continue
            self._spreading.heard(source, record.peer, record.order)
            if self._wants.came(record.peer, record.order):
                old.add(record.peer)
            is_known = record.peer in self._common.table.rows
            if self.take(signed, now):
                news.append(signed)
                self.renewed += is_known and record.peer not in old
        if problem:
            self._common.effects.append(Misbehaved(source, problem))
        # Of two versions in one message only the newer one is worth passing on.
        self.pass_on([signed for signed in news if self._common.table.known(signed.wire) is not None], old)

    def open(self, wire: bytes) -> SignedRecord:
        """The record in `wire`, its signature checked. Raises ProtocolError, also for one of another network."""
        signed = self._remember_open(wire) if self._remember_open is not None else None
        if signed is None:
            signed = open_record(wire, self._common.verify)
        if signed.record.network != self._common.own.network:
            raise ProtocolError("a record of another network")
        return signed

    def check_incarnation(self, signed: SignedRecord, wall: float) -> None:
        """Raises ProtocolError for a record that its own peer shows and that is too far ahead of the clocks around."""
        record = signed.record
        if self._common.is_of_the_future(record.incarnation, wall, self._common.table.rows.get(record.peer)):
            raise ProtocolError(_FROM_THE_FUTURE)

    def take(self, signed: SignedRecord, now: float) -> bool:
        """Whether `signed` was news; it is in the book then."""
        record, common = signed.record, self._common
        if record.peer == common.own.peer:
            if record.order > common.own.order:
                self._raising.outrank(record.incarnation)
            return False
        if record.peer in common.banned:
            return False
        row = common.table.rows.get(record.peer)
        if row is None:
            spare = common.table.expendable() if common.table.is_full else None
            if spare is not None:
                self._evict(spare, now)
            row = common.table.add(signed, now)
            if row is None:
                return False
            if record.peer in common.links:
                row.linked = True
                common.table.touch(row)
            if not record.leaving:
                common.effects += [PeerAppeared(record.peer), Learned(record.peer, record.addresses)]
            return True
        if record.order <= row.signed.record.order:
            return False
        self._renew(row, signed, now)
        return True

    def _renew(self, row: Row, signed: SignedRecord, now: float) -> None:
        common, record, before = self._common, signed.record, row.signed.record
        common.table.renew(row, signed, now)
        if before.protocol != record.protocol:
            self._changed_version(row)
            if row.status is PeerStatus.SUSPECT and record.incarnation > before.incarnation:
                common.table.set_alive(row, now, common.effects)
        if record.leaving:
            common.table.set_left(row, now, common.effects)
            self._detector.gone(row)
            return
        if record.incarnation > before.incarnation:
            self._detector.record_renewed(row, before.incarnation, now)
        if row.status in GONE:
            # A later record of one life may be older than its end, and who gossips can be asked. Of the others this is
            # hearsay, and perhaps a rumour older than its end: then no renewal will follow.
            is_doubtful = row.status is PeerStatus.DEAD and record.incarnation == before.incarnation
            if is_doubtful and common.gossip_row(row.peer) is not None:
                self._detector.says_alive(row, now)
            else:
                common.table.set_alive(row, now, common.effects)
        # Said again with every record, so that who dials knows that the addresses still hold.
        common.effects.append(Learned(record.peer, record.addresses))

    def _changed_version(self, row: Row) -> None:
        if self._common.gossip_row(row.peer) is not None:
            self._spreading.closed(row.peer)
        else:
            self._detector.forget(row.peer)
            if row.linked and row.peer not in self._spreading.links:
                self._spreading.opened(row.peer)

    def pass_on(self, news: Sequence[SignedRecord], old: Collection[PeerId] = ()) -> None:
        """`news` were taken just now: send them to linked peers of the first version, announce them to all others.

        `old`: peers whose records are news here alone, most likely; they are announced a few times only.
        """
        self._common.effects += self._spreading.news(news)
        if self._common.own.protocol < GOSSIP_PROTOCOL:
            return
        for signed in news:
            row = self._common.table.rows.get(signed.record.peer)
            # Who had left before it was known here is nobody's news: else its record would go round for ever.
            if row is not None and row.was_alive:
                self._voice.announce(signed.record, 1 if signed.record.peer in old else None)
