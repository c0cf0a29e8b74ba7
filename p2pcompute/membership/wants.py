"""Records that this peer knows to exist and does not have: whom it asks, and whom else when no answer comes.

Each record is asked of one peer at a time, so that it crosses to each peer about once, however many announce it. Who said that it
has the record and does not send it in time is passed over for the next who said so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from p2pcompute.membership.agenda import Agenda
from p2pcompute.membership.book_events import Misbehaved, Way
from p2pcompute.membership.common import Common
from p2pcompute.membership.digests import Order
from p2pcompute.membership.promises import Promises
from p2pcompute.membership.voice import Voice
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.wire.gossip import PREFIX_BYTES, Want

#: Peers remembered that have one record.
_SOURCES_MAX = 4
#: A record that did not come after being asked for so often is given up; it is announced again, or in the next digest.
_TRIES_MAX = 4
#: Between two batches that are asked of one peer in datagrams, seconds: the answers to one fit into a socket's buffer.
_BATCH_GAP_S = 0.2
_BROKEN = "it announces records that nobody has, again and again; its announcements are ignored for now"


@dataclass(slots=True)
class _Wanted:
    """One record that is missing."""

    #: At least this version.
    order: Order
    #: Who has it, whom to ask next first.
    sources: list[PeerId]
    #: Whether it was found missing in a comparison, where whoever else lacks it will find the same.
    is_bulk: bool
    #: On whose word it takes its place.
    promised_by: PeerId
    #: How often it was asked for.
    tries: int = 0


class Wants:
    """See the module. Records go by the first `PREFIX_BYTES` bytes of their peer's id."""

    def __init__(self, common: Common, voice: Voice) -> None:
        self._common = common
        self._voice = voice
        #: By prefix; at most `limits.WANTS_MAX`.
        self._wanted: dict[bytes, _Wanted] = {}
        #: When each is asked for, again or for the first time.
        self._asks: Agenda[bytes] = Agenda()
        #: On whose word, and who keeps it.
        self._promises = Promises()

    def want(self, prefix: bytes, order: Order, source: PeerId, now: float, *, is_bulk: bool = False) -> None:
        """`source` has a record of `order`, which is newer than what is here. `is_bulk`: it was not announced."""
        wanted = self._wanted.get(prefix)
        if wanted is None:
            if len(self._wanted) < limits.WANTS_MAX and self._promises.made(source, now):
                self._wanted[prefix] = _Wanted(order, [source], is_bulk, source)
                self._asks.set(prefix, now)
            return
        wanted.is_bulk = wanted.is_bulk and is_bulk
        if order > wanted.order:
            # Another promise: nobody else has to keep it. Those before have only the older one.
            if source != wanted.promised_by:
                if not self._promises.made(source, now):
                    return
                self._promises.ended(wanted.promised_by)
                wanted.promised_by, wanted.tries = source, 0
            wanted.order = order
            wanted.sources = [source, *(each for each in wanted.sources if each != source)][:_SOURCES_MAX]
        elif source not in wanted.sources and len(wanted.sources) < _SOURCES_MAX:
            # Before those that were asked already.
            wanted.sources.insert(0, source)

    def came(self, peer: PeerId, order: Order) -> bool:
        """A record of `peer` has come; whether it was one of those that only a comparison showed to be missing."""
        prefix = peer[:PREFIX_BYTES]
        wanted = self._wanted.get(prefix)
        if wanted is not None and wanted.order <= order:
            self._drop(prefix)
        return wanted is not None and wanted.is_bulk

    def is_wanted(self, peer: PeerId) -> bool:
        """Whether a newer record of `peer` is announced and asked for."""
        return peer[:PREFIX_BYTES] in self._wanted

    def deadline(self) -> float | None:
        """When somebody is to be asked."""
        return self._asks.earliest()

    def due(self, now: float) -> None:
        """Ask for what is due, in one message for each who is asked; in batches where only datagrams go."""
        asked: dict[PeerId, list[bytes]] = {}
        while (prefix := self._asks.pop(now)) is not None:
            wanted = self._wanted[prefix]
            if wanted.tries >= _TRIES_MAX:
                del self._wanted[prefix]
                if self._promises.broken(wanted.promised_by, now):
                    self._common.effects.append(Misbehaved(wanted.promised_by, _BROKEN))
                continue
            asked.setdefault(wanted.sources[0], []).append(prefix)
        for source, prefixes in asked.items():
            way = self._voice.bulk_way(source)
            batch = limits.WANTS_PER_DATAGRAM_MAX if way is Way.DATAGRAM else limits.RECORDS_PER_MESSAGE_MAX
            now_asked, later = prefixes, prefixes[:0]
            if way is Way.DATAGRAM:
                now_asked, later = prefixes[:batch], prefixes[batch:]
            for start in range(0, len(now_asked), batch):
                self._voice.send(source, Want(tuple(now_asked[start : start + batch])), way)
            for prefix in now_asked:
                wanted = self._wanted[prefix]
                wanted.tries += 1
                wanted.sources.append(wanted.sources.pop(0))
                self._asks.set(prefix, now + self._common.settings.want_patience_s)
            for place, prefix in enumerate(later):
                self._asks.set(prefix, now + _BATCH_GAP_S * (1 + place // batch))

    def forget(self, peer: PeerId) -> None:
        """Nothing is wanted of `peer`, nor of its record."""
        self._drop(peer[:PREFIX_BYTES])

    def _drop(self, prefix: bytes) -> None:
        wanted = self._wanted.pop(prefix, None)
        if wanted is not None:
            self._asks.set(prefix, None)
            self._promises.ended(wanted.promised_by)

    def __len__(self) -> int:
        return len(self._wanted)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert set(self._asks.keys) == set(self._wanted)
        assert len(self._wanted) <= limits.WANTS_MAX
        assert len(self._promises) <= limits.PEERS_MAX
        by = Counter(wanted.promised_by for wanted in self._wanted.values())
        assert all(self._promises.open_of(peer) == count <= limits.WANTS_PER_SOURCE_MAX for peer, count in by.items())
        for wanted in self._wanted.values():
            assert 0 < len(wanted.sources) <= _SOURCES_MAX
            assert len(set(wanted.sources)) == len(wanted.sources)
