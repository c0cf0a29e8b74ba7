"""Messages by which peers that cannot simply dial each other meet: relays, dial-back, and reversed dials.

A relay keeps a *reservation* for each peer that asked for one, and joins an asker's *circuit* to such a peer: two numbered legs, one on each
link, between which it passes bytes on that it cannot read. A leg's number is chosen by the side that opens it: even by the side that dialled
the link, odd by the other, each used once and in rising order. Nobody sends more on a leg than the receiver has granted, and a target
accepts an offered circuit by its first grant.

Refuses to know: what the bytes of a circuit are (`net/relay_carrier.py`), whom to ask for what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from p2pcompute.model import limits
from p2pcompute.model.ids import PEER_ID_BYTES
from p2pcompute.model.peer import Address
from p2pcompute.wire.address import ADDRESS
from p2pcompute.wire.codec import Many, Maybe, Raw, Real, Text, Whole
from p2pcompute.wire.messages import Message

#: The first protocol version whose peers know these messages; others pass them over without a word.
REACHING_PROTOCOL = 2
#: The largest number of a leg.
CIRCUIT_NUMBER_MAX = (1 << 32) - 1

_PEER = Raw(PEER_ID_BYTES, PEER_ID_BYTES)
_CIRCUIT = Whole(1, CIRCUIT_NUMBER_MAX)
_GRANT = Whole(1, limits.CIRCUIT_GRANT_BYTES_MAX)
_WORDS = Text(1024)


@dataclass(frozen=True, slots=True)
class RelayReserve(Message):
    """Asks the receiver to be a relay of the sender, or to go on being one; answered by RelayReserved.

    `lifetime_s`: for how long; 0 gives the reservation back, and is not answered.
    """

    kind: ClassVar[int] = 90
    lifetime_s: Annotated[float, Real(0, 1e6)] = limits.RELAY_RESERVATION_S


@dataclass(frozen=True, slots=True)
class RelayReserved(Message):
    """The answer. `lifetime_s`: how long the reservation lasts without being renewed; 0: refused, and `refused` says why, for people."""

    kind: ClassVar[int] = 91
    lifetime_s: Annotated[float, Real(0, 1e6)]
    circuits_max: Annotated[int, Whole(0, 1 << 20)] = 0
    bytes_per_second: Annotated[int, Whole()] = 0
    refused: Annotated[str, _WORDS] = ""


@dataclass(frozen=True, slots=True)
class CircuitOpen(Message):
    """Asks a relay for a circuit to `target`, which has a reservation there; answered by CircuitCredit or CircuitClosed.

    `grant_bytes`: how much the sender takes at first.
    """

    kind: ClassVar[int] = 92
    circuit: Annotated[int, _CIRCUIT]
    target: Annotated[bytes, _PEER]
    grant_bytes: Annotated[int, _GRANT]


@dataclass(frozen=True, slots=True)
class CircuitOffered(Message):
    """A relay's word to a target that `source` wants a circuit; answered by CircuitCredit or CircuitClosed.

    Who `source` really is, only the handshake inside the circuit proves. `grant_bytes`: how much the relay takes at first.
    """

    kind: ClassVar[int] = 93
    circuit: Annotated[int, _CIRCUIT]
    source: Annotated[bytes, _PEER]
    grant_bytes: Annotated[int, _GRANT]


@dataclass(frozen=True, slots=True)
class CircuitData(Message):
    """The next bytes on a circuit, within what the receiver has granted."""

    kind: ClassVar[int] = 94
    circuit: Annotated[int, _CIRCUIT]
    data: Annotated[bytes, Raw(limits.CIRCUIT_DATA_BYTES_MAX, 1)]


@dataclass(frozen=True, slots=True)
class CircuitCredit(Message):
    """So many more bytes may be sent on a circuit; the first one says that it is open."""

    kind: ClassVar[int] = 95
    circuit: Annotated[int, _CIRCUIT]
    grant_bytes: Annotated[int, _GRANT]


@dataclass(frozen=True, slots=True)
class CircuitClosed(Message):
    """A circuit is refused or over: `reason` for programs, `text` for people. What was sent before it still counts."""

    kind: ClassVar[int] = 96
    circuit: Annotated[int, _CIRCUIT]
    reason: Annotated[str, Text(64)]
    text: Annotated[str, _WORDS] = ""


@dataclass(frozen=True, slots=True)
class DialBack(Message):
    """Asks the receiver to dial the sender at `addresses` and to hang up again; answered by DialedBack.

    Without addresses only `seen` is wanted, which is answered as often as it is asked.
    """

    kind: ClassVar[int] = 97
    nonce: Annotated[int, Whole()]
    addresses: Annotated[tuple[Address, ...], Many(ADDRESS, limits.DIAL_BACK_ADDRESSES_MAX)]


@dataclass(frozen=True, slots=True)
class DialedBack(Message):
    """The answer. `reached`: where the asker itself answered; `seen`: where its link seems to come from.

    `refused`: why nothing was tried, or why not everything, for people.
    """

    kind: ClassVar[int] = 98
    nonce: Annotated[int, Whole()]
    reached: Annotated[tuple[Address, ...], Many(ADDRESS, limits.DIAL_BACK_ADDRESSES_MAX)]
    seen: Annotated[Address | None, Maybe(ADDRESS)] = None
    refused: Annotated[str, _WORDS] = ""


@dataclass(frozen=True, slots=True)
class PleaseDial(Message):
    """Asks `target` to dial `source`, who cannot dial it, at `addresses`; a peer linked to both passes it on.

    With `refused` it is the way back: `target`, or the peer between, says to `source` why that will not be.
    """

    kind: ClassVar[int] = 99
    target: Annotated[bytes, _PEER]
    source: Annotated[bytes, _PEER]
    addresses: Annotated[tuple[Address, ...], Many(ADDRESS, limits.DIAL_BACK_ADDRESSES_MAX)]
    refused: Annotated[str, _WORDS] = ""


#: What crosses a link for these purposes; a peer of the first protocol version passes it over.
REACHING_MESSAGES: tuple[type[Message], ...] = (
    RelayReserve, RelayReserved, CircuitOpen, CircuitOffered, CircuitData, CircuitCredit, CircuitClosed, DialBack, DialedBack, PleaseDial,
)  # fmt: skip
