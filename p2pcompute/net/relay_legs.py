"""Legs of circuits: which number on which link belongs to whom, at a relay and at both ends alike.

A leg's number is chosen by the side that opens it, even where that side dialled the link and odd where not, rising and used once, as with
streams. Words about a leg that is over are passed over, since its end may have crossed them; words about one that never was are no
honest peer's. Refuses to know: what a leg does with what it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from p2pcompute.model.errors import BusyError, P2PComputeError, ProtocolError
from p2pcompute.net.link import Link
from p2pcompute.wire.messages import Message
from p2pcompute.wire.reaching import CIRCUIT_NUMBER_MAX, CircuitClosed, CircuitCredit, CircuitData


class Leg(Protocol):
    """One end of what crosses a link under one number."""

    def received(self, data: bytes) -> None:
        """Bytes have come. Raises ProtocolError for more than was granted."""

    def granted(self, grant_bytes: int) -> None:
        """The other side takes so much more. Raises ProtocolError for more than anybody grants."""

    def closed(self, reason: str, text: str) -> None:
        """The other side has ended it; the number is free of this leg already."""

    def lost(self, error: P2PComputeError) -> None:
        """The link under it is gone."""


@dataclass(slots=True)
class _Table:
    """The legs on one link."""

    #: The next number that this side gives out, and the last that the other side has.
    next_own: int
    last_theirs: int = 0
    #: Open legs by number.
    legs: dict[int, Leg] = field(default_factory=dict)


class Circuits:
    """All legs of one peer. A link stands here from its first leg until `link_gone`."""

    def __init__(self) -> None:
        #: By link; a link whose carrier is gone does not stand here.
        self._tables: dict[Link, _Table] = {}

    def _table(self, link: Link) -> _Table:
        table = self._tables.get(link)
        if table is None:
            table = self._tables[link] = _Table(2 if link.dialled else 1)
        return table

    def open(self, link: Link, leg: Leg) -> int:
        """A new number for `leg`. Raises BusyError when a link has used them all up."""
        table = self._table(link)
        if table.next_own > CIRCUIT_NUMBER_MAX:
            raise BusyError("all circuit numbers of this link are used: a new link to the peer helps")
        number = table.next_own
        table.next_own += 2
        table.legs[number] = leg
        return number

    def check_new(self, link: Link, number: int) -> None:
        """The other side opens a leg under `number`. Raises ProtocolError where it may not."""
        table = self._table(link)
        if number % 2 == table.next_own % 2 or number <= table.last_theirs:
            raise ProtocolError(f"opens circuit {number}, which is not its to open", link.named())
        table.last_theirs = number

    def adopt(self, link: Link, number: int, leg: Leg) -> None:
        """`leg` serves the number that `check_new` let pass."""
        self._table(link).legs[number] = leg

    def drop(self, link: Link, number: int) -> None:
        """The leg is over here."""
        table = self._tables.get(link)
        if table is not None:
            table.legs.pop(number, None)

    def count(self, link: Link) -> int:
        """Legs that are open on `link`."""
        table = self._tables.get(link)
        return 0 if table is None else len(table.legs)

    def say(self, link: Link, message: Message) -> None:
        """Send `message`, unless nobody would hear it."""
        if not link.closed:
            link.send(message)

    def heard(self, link: Link, message: CircuitData | CircuitCredit | CircuitClosed) -> None:
        """Hand a message to its leg. Raises ProtocolError."""
        number = message.circuit
        table = self._table(link)
        leg = table.legs.get(number)
        if leg is None:
            given_out = table.next_own if number % 2 == table.next_own % 2 else table.last_theirs + 1
            if number >= given_out:
                raise ProtocolError(f"speaks of circuit {number}, which never was", link.named())
        elif isinstance(message, CircuitData):
            leg.received(message.data)
        elif isinstance(message, CircuitCredit):
            leg.granted(message.grant_bytes)
        else:
            del table.legs[number]
            leg.closed(message.reason, message.text)

    def link_gone(self, link: Link, error: P2PComputeError) -> None:
        """Nothing crosses `link` any more: its legs are lost."""
        table = self._tables.pop(link, None)
        if table is not None:
            for leg in list(table.legs.values()):
                leg.lost(error)
