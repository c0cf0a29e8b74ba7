"""What peers that gossip tell each other beside probes: rumours, digests and versions, records on demand.

News is announced, and each record is asked for by whoever lacks it. What an announcement did not reach is found by digests: on
every new link, and every half a minute with one peer at random.
"""

from __future__ import annotations

from p2pcompute.membership import digests, pieces
from p2pcompute.membership.agenda import Agenda
from p2pcompute.membership.book_events import Misbehaved, Way
from p2pcompute.membership.common import Common
from p2pcompute.membership.detector import Detector
from p2pcompute.membership.intake import Intake
from p2pcompute.membership.machine import earliest
from p2pcompute.membership.rate import RateTable
from p2pcompute.membership.table import Row
from p2pcompute.membership.voice import Voice, record_subject
from p2pcompute.membership.wants import Wants
from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerStatus
from p2pcompute.wire import gossip
from p2pcompute.wire.gossip import PREFIX_BYTES, Announcement, LoadUpdate, Suspicion
from p2pcompute.wire.messages import Records

#: Bytes of records in one message over a link: a frame that delays nothing else.
_LINK_RECORDS_BYTES = 64 * 1024
#: Datagrams of versions in answer to one message; what is left over is told in the next exchange.
_VERSIONS_DATAGRAMS_MAX = 3
#: The next exchange with a peer to whom not everything could be told, seconds later.
_AGAIN_S = 1.0
#: Peers with whom another exchange is due.
_AGAIN_MAX = 64
#: The first exchange with anybody, and the next one after an exchange that showed peers which were unknown here; from then on
#: the time between two doubles, as a share of `anti_entropy_s`: who has just joined, or rejoined, has missed more than others.
_HURRY_SHARE = 1 / 15


class Exchange:
    """See the module."""

    def __init__(self, common: Common, voice: Voice, wants: Wants, intake: Intake, detector: Detector) -> None:
        self._common = common
        self._voice = voice
        self._wants = wants
        self._intake = intake
        self._detector = detector
        #: Records that come in pieces.
        self._assembly = pieces.Assembly()
        #: Signed rumours that were heard and checked lately, oldest first; at most `limits.RUMOURS_REMEMBERED_MAX`.
        self._remembered: dict[bytes, None] = {}
        #: Bytes of records that each peer got by asking in datagrams.
        self._given: RateTable[PeerId] = RateTable(limits.PEERS_MAX)
        #: When digests are exchanged with somebody; None while there is nobody.
        self._round_at: float | None = None
        #: Seconds from that round to the next one, before jitter; at most `anti_entropy_s`.
        self._pace_s = 0.0
        #: When digests are exchanged with a certain peer; at most `_AGAIN_MAX`.
        self._again: Agenda[PeerId] = Agenda()

    # --- rumours ------------------------------------------------------------------------------------------------------

    def rumours(self, source: PeerId, wires: tuple[bytes, ...], wall: float, now: float) -> None:
        """`source` told rumours."""
        problem = ""
        for wire in wires:
            if wire in self._remembered:
                continue
            known = self._common.table.announced(wire)
            if known is not None:
                self._told_again(known, wire, now)
                continue
            try:
                said = gossip.read_rumour(wire, self._common.verify)
            except ProtocolError as error:
                problem = problem or str(error)
                continue
            match said:
                case Announcement():
                    self._announced(said, source, wall, now)
                case Suspicion():
                    self._remember(wire)
                    self._detector.accused(said, wire, now)
                    row = self._common.table.rows.get(said.suspect)
                    if row is not None:
                        self._newer(row, said.suspect, (said.incarnation, 0), source, wall, now)
                case LoadUpdate():
                    self._remember(wire)
                    if self._common.table.update_load(said):
                        self._voice.tell(("load", said.peer), wire, self._common.settings.load_mult)
        if problem:
            self._common.effects.append(Misbehaved(source, problem))

    def _remember(self, wire: bytes) -> None:
        if len(self._remembered) >= limits.RUMOURS_REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[wire] = None

    def _announced(self, said: Announcement, source: PeerId, wall: float, now: float) -> None:
        order = (said.incarnation, said.sequence)
        row = self._common.table.with_prefix(said.prefix)
        self._newer(row, said.prefix, order, source, wall, now)

    def _told_again(self, row: Row, wire: bytes, now: float) -> None:
        """Somebody announces the record that is in `row`."""
        self._voice.queue.heard(record_subject(row.peer), wire)
        if row.status is PeerStatus.DEAD:
            self._detector.says_alive(row, now)

    def _newer(
        self,
        row: Row | None,
        start: bytes,
        order: digests.Order,
        source: PeerId,
        wall: float,
        now: float,
        *,
        is_bulk: bool = False,
    ) -> None:
        """`source` has this version of the record of the peer in `row`, whose id begins with `start`: want it if it is newer."""
        if row is not None:
            if row.signed.record.order >= order:
                return
        elif self._common.own.peer.startswith(start) and self._common.own.order >= order:
            return
        if not self._common.is_of_the_future(order[0], wall, row) and not self._common.is_banned(start):
            self._wants.want(start[:PREFIX_BYTES], order, source, now, is_bulk=is_bulk)

    # --- digests ------------------------------------------------------------------------------------------------------

    def linked(self, peer: PeerId) -> None:
        """There is a new link to `peer`: one side sends its digest, which is enough for both."""
        if self._common.own.peer < peer:
            self.begin(peer)

    def begin(self, peer: PeerId) -> None:
        """Send a digest to `peer`."""
        self._voice.send(peer, gossip.Digest(self._common.table.digests.hashes), self._voice.bulk_way(peer))

    def begin_with_any(self, now: float) -> None:
        """Send a digest to one peer at random."""
        for peer in self._voice.some(1, now):
            self.begin(peer)

    def digest(self, source: PeerId, message: gossip.Digest, way: Way, now: float) -> None:
        """`source` has this digest: list the versions in buckets that differ."""
        known = self._common.table.digests
        differing = known.differing(message.hashes)
        if not differing:
            return
        rows_max = gossip.VERSIONS_PER_DATAGRAM_MAX if way is Way.DATAGRAM else limits.VERSIONS_PER_MESSAGE_MAX
        # Begin anywhere: else the first buckets would be told again and again where not all fit.
        start = self._common.rng.randrange(0, len(differing))
        differing = differing[start:] + differing[:start]
        groups = digests.batches([known.size(bucket) for bucket in differing], rows_max)
        if way is Way.DATAGRAM and len(groups) > _VERSIONS_DATAGRAMS_MAX:
            groups = groups[:_VERSIONS_DATAGRAMS_MAX]
            self._begin_again(source, now)
        for group in groups:
            buckets = tuple(sorted(differing[place] for place in group))
            rows = known.rows(buckets)
            if len(rows) > rows_max:
                # One bucket that no message holds: its versions are told, what is missing from it is not.
                self._say_versions(source, rows, way, now)
            else:
                self._voice.send(source, gossip.Versions(tuple(rows), buckets), way)

    def versions(self, source: PeerId, message: gossip.Versions, way: Way, wall: float, now: float) -> None:
        """`source` has these versions: want what is newer there, tell what is newer here."""
        table = self._common.table
        newer_here: list[digests.VersionRow] = []
        told: set[bytes] = set()
        is_missing = False
        for prefix, incarnation, sequence in message.rows:
            told.add(prefix)
            order = (incarnation, sequence)
            row = table.with_prefix(prefix)
            self._newer(row, prefix, order, source, wall, now, is_bulk=True)
            if row is None:
                known = self._common.own.order if self._common.own.peer.startswith(prefix) else None
                is_missing = is_missing or (known is None and self._wants.is_wanted(PeerId(prefix)))
            else:
                known = table.digests.order(row.peer)
                if row.status is PeerStatus.DEAD and row.signed.record.order >= order:
                    self._detector.says_alive(row, now)
            if known is not None and known > order:
                newer_here.append((prefix, *known))
        newer_here += [row for row in table.digests.rows(sorted(set(message.buckets))) if row[0] not in told]
        if newer_here:
            self._say_versions(source, newer_here, way, now)
        if is_missing:
            self._hurry(now)

    def _say_versions(self, to: PeerId, rows: list[digests.VersionRow], way: Way, now: float) -> None:
        size = limits.VERSIONS_PER_MESSAGE_MAX
        if way is Way.DATAGRAM:
            size = gossip.VERSIONS_PER_DATAGRAM_MAX
            if len(rows) > size * _VERSIONS_DATAGRAMS_MAX:
                rows = rows[: size * _VERSIONS_DATAGRAMS_MAX]
                self._begin_again(to, now)
        for start in range(0, len(rows), size):
            self._voice.send(to, gossip.Versions(tuple(rows[start : start + size])), way)

    def _begin_again(self, peer: PeerId, now: float) -> None:
        if self._again.at(peer) is None and len(self._again) < _AGAIN_MAX:
            self._again.set(peer, now + _AGAIN_S)

    def _hurry(self, now: float) -> None:
        self._pace_s = self._common.settings.anti_entropy_s * _HURRY_SHARE
        soon = now + self._pace_s * self._common.rng.uniform(0.5, 1.5)
        self._round_at = soon if self._round_at is None else min(self._round_at, soon)

    # --- records ------------------------------------------------------------------------------------------------------

    def wanted(self, source: PeerId, message: gossip.Want, way: Way, now: float) -> None:
        """`source` asks for records."""
        wires: list[bytes] = []
        asked = message.peers if way is Way.LINK else message.peers[: limits.WANTS_PER_DATAGRAM_MAX]
        for start in dict.fromkeys(asked):
            wire = self._wire_of(start)
            if wire is None:
                continue
            per_second = limits.WANTED_BYTES_PER_SECOND_PER_PEER
            if way is Way.DATAGRAM and not self._given.take(source, per_second, now, len(wire)):
                break
            wires.append(wire)
        self.send_records(source, wires, way)

    def _wire_of(self, start: bytes) -> bytes | None:
        """The record of the peer whose id begins with `start`, where it is here and its peer lives."""
        if self._common.own.peer.startswith(start):
            return self._common.table.own.wire
        row = self._common.table.with_prefix(start)
        return row.signed.wire if row is not None and row.status is not PeerStatus.DEAD else None

    def send_records(self, to: PeerId, wires: list[bytes], way: Way) -> None:
        """Send `wires`, in as many messages as it takes; in pieces those that no datagram holds."""
        room_max = _LINK_RECORDS_BYTES if way is Way.LINK else gossip.RECORDS_ROOM_BYTES
        batch: list[bytes] = []
        room = 0
        for wire in wires:
            size = len(wire) + gossip.RECORD_OVERHEAD_BYTES
            if size > room_max:
                for piece in pieces.cut(wire):
                    self._voice.send(to, piece, way)
                continue
            if batch and (size > room or len(batch) >= limits.RECORDS_PER_MESSAGE_MAX):
                self._voice.send(to, Records(tuple(batch)), way)
                batch = []
            if not batch:
                room = room_max
            batch.append(wire)
            room -= size
        if batch:
            self._voice.send(to, Records(tuple(batch)), way)

    def piece(self, source: PeerId, message: gossip.Piece, wall: float, now: float) -> None:
        """`source` sent a part of a record."""
        wire = self._assembly.add(source, message, now)
        if wire is not None:
            self._intake.heard(source, (wire,), wall, now)

    def unknown(self, source: PeerId, now: float) -> None:
        """Somebody gossips whose record is not here."""
        if source not in self._common.banned:
            self._wants.want(source[:PREFIX_BYTES], (0, 0), source, now)

    def push_own(self, now: float) -> None:
        """Send the own record itself: to who accused this peer, and to some at random; they cannot ask in time."""
        targets = dict(self._detector.accused_by)
        targets.update(dict.fromkeys(self._voice.some(self._common.settings.gossip_fanout, now)))
        self._detector.accused_by.clear()
        for peer in targets:
            for way in self._voice.ways(peer, now):
                self.send_records(peer, [self._common.table.own.wire], way)

    # --- time ---------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When something is due."""
        return earliest(self._round_at, self._again.earliest())

    def due(self, now: float) -> None:
        """Exchange digests with whom it is due."""
        if not self._common.table.gossipers:
            self._round_at = None
        elif self._round_at is None:
            self._hurry(now)
        elif self._round_at <= now:
            self._round_at = now + self._pace_s * self._common.rng.uniform(0.8, 1.2)
            self._pace_s = min(2 * self._pace_s, self._common.settings.anti_entropy_s)
            self.begin_with_any(now)
        while (peer := self._again.pop(now)) is not None:
            if self._common.gossip_row(peer) is not None:
                self.begin(peer)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert len(self._remembered) <= limits.RUMOURS_REMEMBERED_MAX
        assert len(self._again) <= _AGAIN_MAX
        assert len(self._assembly) <= limits.PARTIALS_MAX
