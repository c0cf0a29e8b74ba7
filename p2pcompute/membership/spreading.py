"""Who is sent which records: nobody what it is known to have, everything once to a new link, news to all or to some.

For each link it is remembered up to which version both sides know each peer's record. News goes to all links while they
are few, beyond that to some at random: with 8 targets each, a rumour reaches all but e^-8 of the peers (Eugster et al.,
"Epidemic information dissemination", 2004), and a slow repair, one link at a time, reaches the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2pcompute.membership.book_events import SendRecords
from p2pcompute.model.ids import PeerId
from p2pcompute.model.seams import Rng
from p2pcompute.wire.record import SignedRecord

Order = tuple[int, int]


class Spreading:
    """Links and what is known to be known on them."""

    def __init__(self, rng: Rng, links_max: int, records_per_message: int) -> None:
        #: The machine's dice.
        self._rng = rng
        #: Links that news is sent to.
        self._links_max = links_max
        #: Size of one message.
        self._records_per_message = records_per_message
        #: By link: the newest version of each peer's record that is known at both ends.
        self._known: dict[PeerId, dict[PeerId, Order]] = {}

    @property
    def links(self) -> tuple[PeerId, ...]:
        """Peers with a link, in the order of their ids."""
        return tuple(sorted(self._known))

    def opened(self, link: PeerId) -> None:
        """A link is up, perhaps in place of an older one: nothing is known to have arrived over it."""
        self._known[link] = {}

    def closed(self, link: PeerId) -> None:
        """The link is gone."""
        self._known.pop(link, None)

    def forget(self, peer: PeerId) -> None:
        """`peer` is no longer in the book."""
        for known in self._known.values():
            known.pop(peer, None)

    def heard(self, link: PeerId, peer: PeerId, order: Order) -> None:
        """`link` has shown that it knows this version of `peer`."""
        known = self._known.get(link)
        if known is not None and known.get(peer, (-1, -1)) < order:
            known[peer] = order

    def missing(
        self, link: PeerId, records: Iterable[SignedRecord], records_max: int | None = None
    ) -> list[SendRecords]:
        """Whatever of `records` the peer at the end of `link` is not known to have, at most `records_max` of them."""
        return self._messages({link: self._lacking(link, records, records_max)})

    def news(self, records: Sequence[SignedRecord], *, to_all: bool = False) -> list[SendRecords]:
        """`records` were learned just now: pass them on to those who may lack them."""
        links = list(self.links)
        if not to_all and len(links) > self._links_max:
            links = sorted(self._rng.sample(links, self._links_max))
        return self._messages({link: self._lacking(link, records) for link in links})

    def _lacking(
        self, link: PeerId, records: Iterable[SignedRecord], records_max: int | None = None
    ) -> tuple[bytes, ...]:
        known = self._known[link]
        wires: list[bytes] = []
        for signed in records:
            if records_max is not None and len(wires) >= records_max:
                break
            record = signed.record
            if known.get(record.peer, (-1, -1)) < record.order:
                known[record.peer] = record.order
                wires.append(signed.wire)
        return tuple(wires)

    def _messages(self, wanted: dict[PeerId, tuple[bytes, ...]]) -> list[SendRecords]:
        together: dict[tuple[bytes, ...], list[PeerId]] = {}
        for link, wires in wanted.items():
            if wires:
                together.setdefault(wires, []).append(link)
        size = self._records_per_message
        return [
            SendRecords(tuple(links), wires[start : start + size])
            for wires, links in together.items()
            for start in range(0, len(wires), size)
        ]
