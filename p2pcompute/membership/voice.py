"""Saying things to peers that gossip: by which way, with which rumours on top, and the rounds in which rumours go out alone.

A datagram is the cheaper way, a link the surer one. A linked peer that has not answered a datagram lately is spoken to over its
link, so that a network through which no datagram passes still gossips; others can only be reached by datagrams.
"""

from __future__ import annotations

from collections.abc import Hashable

from p2pcompute.membership.book_events import SendGossip, Way
from p2pcompute.membership.common import Common
from p2pcompute.membership.dissemination import RumourQueue
from p2pcompute.membership.table import announcement_of
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerRecord
from p2pcompute.wire import gossip
from p2pcompute.wire.gossip import PREFIX_BYTES, RUMOUR_OVERHEAD_BYTES, RUMOURS_ROOM_BYTES, Rumours
from p2pcompute.wire.messages import Message

#: Messages that fit into a datagram, always.
_SMALL = (gossip.Probe, gossip.Ack, gossip.ProbeVia, gossip.ViaAck, gossip.Rumours, gossip.Digest, gossip.Piece)


def record_subject(peer: bytes) -> Hashable:
    """The subject of announcements of a peer's record, by the beginning of its id."""
    return ("record", peer[:PREFIX_BYTES])


class Voice:
    """See the module."""

    def __init__(self, common: Common) -> None:
        self._common = common
        #: Rumours that are passed on.
        self.queue = RumourQueue()
        #: When the next round is; None while there is nothing to tell or nobody to tell it to.
        self._round_at: float | None = None
        #: When anybody last answered a datagram, monotonic seconds; None: nobody ever did.
        self._datagram_at: float | None = None

    # --- ways ---------------------------------------------------------------------------------------------------------

    def answered_datagram(self, peer: PeerId, now: float) -> None:
        """`peer` answered one: both directions work."""
        self._datagram_at = now
        row = self._common.table.rows.get(peer)
        if row is not None:
            row.datagram_at = now

    def datagrams_work(self, now: float) -> bool:
        """Whether anybody answered a datagram lately."""
        return self._datagram_at is not None and now - self._datagram_at <= self._common.settings.datagram_trust_s

    def way(self, peer: PeerId, now: float) -> Way:
        """How one message goes to `peer`."""
        return self.ways(peer, now)[0]

    def ways(self, peer: PeerId, now: float) -> tuple[Way, ...]:
        """How something that must arrive soon goes to `peer`: both ways where it is not known that datagrams arrive."""
        if peer not in self._common.links:
            return (Way.DATAGRAM,)
        row = self._common.table.rows.get(peer)
        trust_s = self._common.settings.datagram_trust_s
        if row is not None and row.datagram_at is not None and now - row.datagram_at <= trust_s:
            return (Way.DATAGRAM,)
        return (Way.LINK, Way.DATAGRAM)

    def bulk_way(self, peer: PeerId) -> Way:
        """How records go to `peer`: over its link where there is one."""
        return Way.LINK if peer in self._common.links else Way.DATAGRAM

    # --- whom to tell -------------------------------------------------------------------------------------------------

    def some(self, count: int, now: float, but: PeerId | None = None) -> list[PeerId]:
        """Up to `count` peers at random that gossip and live, without `but`; those with a link where datagrams do not work.

        Strangers only where there are too few others: who invents peers must not be able to have most gossip sent to nobody.
        """
        table, ring = self._common.table, self._common.table.ring
        if not self.datagrams_work(now):
            linked = [peer for peer in sorted(self._common.links) if peer in ring and peer != but]
            if linked:
                return self._common.rng.sample(linked, min(count, len(linked)))
        chosen = ring.some(count, lambda peer: peer != but)
        return chosen + table.strangers.some(count - len(chosen), lambda peer: peer != but)

    # --- rumours ------------------------------------------------------------------------------------------------------

    def rumours(self, first: bytes | None = None) -> tuple[bytes, ...]:
        """What rides on a message that is sent now; `first` before all others."""
        if first is None:
            return self.queue.take(RUMOURS_ROOM_BYTES, self._common.peers)
        room_bytes = RUMOURS_ROOM_BYTES - len(first) - RUMOUR_OVERHEAD_BYTES
        return (first, *self.queue.take(room_bytes, self._common.peers, limits.RUMOURS_PER_MESSAGE_MAX - 1))

    def announce(self, record: PeerRecord, mult: int | None = None) -> None:
        """There is a new record: say so."""
        self.tell(record_subject(record.peer), announcement_of(record), mult)

    def tell(self, subject: Hashable, wire: bytes, mult: int | None = None) -> None:
        """Pass on the rumour `wire` about `subject`."""
        self.queue.put(subject, wire, self._common.settings.retransmit_mult if mult is None else mult)

    def speak_up(self, now: float) -> None:
        """The next round is now."""
        self._round_at = now

    def send(self, to: PeerId, message: Message, way: Way) -> None:
        """Say `message`. Where the link is gone meanwhile, what fits into a datagram goes in one, and the rest is lost with it."""
        if way is Way.LINK and to not in self._common.links:
            if not isinstance(message, _SMALL):
                return
            way = Way.DATAGRAM
        self._common.effects.append(SendGossip(to, message, way))

    # --- time ---------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When the next round is."""
        return self._round_at

    def due(self, now: float) -> None:
        """Hold the round that is due, and appoint the next one."""
        has_work = len(self.queue) > 0 and self._common.table.gossipers > 0
        if has_work and self._round_at is not None and self._round_at <= now:
            for peer in self.some(self._common.settings.gossip_fanout, now):
                rumours = self.rumours()
                if rumours:
                    self.send(peer, Rumours(rumours), self.way(peer, now))
            self._round_at = None
            has_work = len(self.queue) > 0
        if not has_work:
            self._round_at = None
        elif self._round_at is None:
            self._round_at = now + self._common.settings.gossip_interval_s
