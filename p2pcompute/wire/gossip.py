"""What gossip says: messages between two peers, and the rumours that ride on them.

Messages go in sealed datagrams or over a link, whichever there is; their kinds are of one family with those of links
(`messages.py`). A rumour is small and true by itself: an announcement only says that something newer is to be had, and
everything else is signed by whoever it speaks for, so it does not matter who passes it on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, ClassVar

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import PEER_ID_BYTES, PeerId, peer_id_of
from p2pcompute.model.peer import Coordinate
from p2pcompute.wire.codec import Many, Maybe, Raw, Row, Truth, Whole
from p2pcompute.wire.messages import Message
from p2pcompute.wire.record import COORDINATE, Signer, Verifier

#: Prefixes of what is signed.
SUSPICION_CONTEXT = b"p2pc-suspicion-v1\0"
LOAD_CONTEXT = b"p2pc-load-v1\0"
WITNESS_CONTEXT = b"p2pc-witness-v1\0"
#: Bytes of a digest's hash of one bucket.
BUCKET_HASH_BYTES = 8
#: Leading bytes of a peer id that stand for it in announcements.
PREFIX_BYTES = 12
#: Bytes of the hash that names what pieces belong to.
WHOLE_HASH_BYTES = 8
#: What may stand in one datagram: one byte says which protocol it belongs to.
MESSAGE_BYTES_MAX = limits.DATAGRAM_PAYLOAD_BYTES_MAX - 1
#: Room for rumours in a datagram: the rest is for the largest message that carries them, an Ack with eight dimensions.
RUMOURS_ROOM_BYTES = MESSAGE_BYTES_MAX - 127
#: What msgpack puts before each rumour.
RUMOUR_OVERHEAD_BYTES = 2
#: Room for records in a datagram, and what msgpack puts before each.
RECORDS_ROOM_BYTES = MESSAGE_BYTES_MAX - 16
RECORD_OVERHEAD_BYTES = 3
#: Data in a Piece that fills a datagram.
PIECE_BYTES = MESSAGE_BYTES_MAX - 64
#: Rows of Versions in a datagram: each has at most 33 bytes, and the buckets up to 70 together.
VERSIONS_PER_DATAGRAM_MAX = 30

_SIGNATURE_BYTES = 64
_PEER = Raw(PEER_ID_BYTES, PEER_ID_BYTES)
_RUMOURS = Many(Raw(limits.RUMOUR_BYTES_MAX), limits.RUMOURS_PER_MESSAGE_MAX)


@dataclass(frozen=True, slots=True)
class Probe(Message):
    """Are you there? Answered at once by Ack with the same number. `rumours`: see `read_rumour`.

    `asker`, `asker_nonce`: for whom the sender asks, and that peer's number; it wants a witness.
    """

    kind: ClassVar[int] = 80
    nonce: Annotated[int, Whole()]
    rumours: Annotated[tuple[bytes, ...], _RUMOURS] = ()
    asker: Annotated[bytes, Raw(PEER_ID_BYTES)] = b""
    asker_nonce: Annotated[int, Whole()] = 0


@dataclass(frozen=True, slots=True)
class Ack(Message):
    """The answer to Probe. `held_us`: how long the answerer kept it, microseconds; `coordinate`: where it believes to be.

    `witness`: see `sign_witness`; only where it was asked for, and then there are no rumours.
    """

    kind: ClassVar[int] = 81
    nonce: Annotated[int, Whole()]
    held_us: Annotated[int, Whole()] = 0
    coordinate: Annotated[Coordinate | None, Maybe(COORDINATE)] = None
    rumours: Annotated[tuple[bytes, ...], _RUMOURS] = ()
    witness: Annotated[bytes, Raw(_SIGNATURE_BYTES)] = b""


@dataclass(frozen=True, slots=True)
class ProbeVia(Message):
    """Asks a third peer to probe `target`; answered by ViaAck. `wait_ms`: how long the asker waits, milliseconds."""

    kind: ClassVar[int] = 82
    nonce: Annotated[int, Whole()]
    target: Annotated[bytes, _PEER]
    wait_ms: Annotated[int, Whole(0, 60_000)] = 500
    rumours: Annotated[tuple[bytes, ...], _RUMOURS] = ()


@dataclass(frozen=True, slots=True)
class ViaAck(Message):
    """The answer to ProbeVia. `heard`: the target answered; False, shortly before the asker's time is up: not so far.

    `witness`: the target's own word for it (`sign_witness`), without which nobody need believe the sender.
    """

    kind: ClassVar[int] = 83
    nonce: Annotated[int, Whole()]
    heard: Annotated[bool, Truth()]
    rumours: Annotated[tuple[bytes, ...], _RUMOURS] = ()
    witness: Annotated[bytes, Raw(_SIGNATURE_BYTES)] = b""


@dataclass(frozen=True, slots=True)
class Rumours(Message):
    """Rumours that nothing else was about to carry."""

    kind: ClassVar[int] = 84
    rumours: Annotated[tuple[bytes, ...], _RUMOURS]


@dataclass(frozen=True, slots=True)
class Digest(Message):
    """A hash a bucket over (peer, incarnation, sequence) of every record that the sender would pass on.

    `hashes`: `DIGEST_BUCKETS` times 8 bytes; a peer's bucket is the first byte of its id modulo their number. Answered
    by Versions for buckets that differ.
    """

    kind: ClassVar[int] = 85
    hashes: Annotated[bytes, Raw(limits.DIGEST_BUCKETS * BUCKET_HASH_BYTES, limits.DIGEST_BUCKETS * BUCKET_HASH_BYTES)]


@dataclass(frozen=True, slots=True)
class Versions(Message):
    """Which versions the sender has, as rows of (first `PREFIX_BYTES` bytes of a peer's id, incarnation, sequence).

    `buckets`: those that are listed whole, so that what is missing from them is missing at the sender.
    """

    kind: ClassVar[int] = 86
    rows: Annotated[
        tuple[tuple[bytes, int, int], ...],
        Many(Row((Raw(PREFIX_BYTES, PREFIX_BYTES), Whole(), Whole())), limits.VERSIONS_PER_MESSAGE_MAX),
    ]
    buckets: Annotated[tuple[int, ...], Many(Whole(0, limits.DIGEST_BUCKETS - 1), limits.DIGEST_BUCKETS)] = ()


@dataclass(frozen=True, slots=True)
class Want(Message):
    """Asks for the newest records of `peers`; answered by Records, or by Pieces of one that no datagram holds.

    An entry has the whole id, or its first `PREFIX_BYTES` bytes where an announcement gave no more.
    """

    kind: ClassVar[int] = 87
    peers: Annotated[tuple[bytes, ...], Many(Raw(PEER_ID_BYTES, PREFIX_BYTES), limits.VERSIONS_PER_MESSAGE_MAX)]


@dataclass(frozen=True, slots=True)
class Piece(Message):
    """Part `index` of `count` of a signed record that is larger than a datagram. `whole`: the start of its SHA-256."""

    kind: ClassVar[int] = 88
    whole: Annotated[bytes, Raw(WHOLE_HASH_BYTES, WHOLE_HASH_BYTES)]
    index: Annotated[int, Whole(0, 15)]
    count: Annotated[int, Whole(1, 16)]
    data: Annotated[bytes, Raw(limits.DATAGRAM_PAYLOAD_BYTES_MAX)]


# --- rumours ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announcement:
    """Somebody has a record of this version. Proves nothing: who cares asks for the record itself.

    `prefix`: the first `PREFIX_BYTES` bytes of the peer's id.
    """

    prefix: bytes
    incarnation: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Suspicion:
    """`accuser` could not reach `suspect`, whose incarnation was then `incarnation`. Signed by the accuser."""

    accuser: PeerId
    suspect: PeerId
    incarnation: int


@dataclass(frozen=True, slots=True)
class LoadUpdate:
    """What changes often, told between two records by the peer itself, and counted in the sequence of its records.

    Applies to the newest record of `incarnation` whose sequence is lower. `load`: tasks run per slot; `idle`: share of
    the cores that nobody uses, 0 to 1; `memory_available_gb`: GiB.
    """

    peer: PeerId
    incarnation: int
    sequence: int
    load: float
    idle: float
    memory_available_gb: float


Rumour = Announcement | Suspicion | LoadUpdate

# Fixed layouts, big endian, and not msgpack: a rumour is sent a dozen times, so its bytes count a dozen times.
_ANNOUNCEMENT = struct.Struct(f">B{PREFIX_BYTES}sQI")
_SUSPICION = struct.Struct(f">B32s{PEER_ID_BYTES}sQ")
_LOAD = struct.Struct(">B32sQIIHI")
_ANNOUNCEMENT_TAG, _SUSPICION_TAG, _LOAD_TAG = 1, 2, 3
_WITNESS = struct.Struct(f">{PEER_ID_BYTES}sQ")
_U32_MAX = (1 << 32) - 1
_U63_MAX = (1 << 63) - 1


def announcement_wire(said: Announcement) -> bytes:
    """25 bytes."""
    return _ANNOUNCEMENT.pack(_ANNOUNCEMENT_TAG, said.prefix, said.incarnation, min(said.sequence, _U32_MAX))


def sign_suspicion(suspect: PeerId, incarnation: int, signer: Signer) -> bytes:
    """137 bytes: the signer accuses `suspect`."""
    body = _SUSPICION.pack(_SUSPICION_TAG, signer.public_key, suspect, incarnation)
    return body + signer.sign(SUSPICION_CONTEXT, body)


def sign_load(update: LoadUpdate, signer: Signer) -> bytes:
    """119 bytes. Figures are rounded to thousandths and megabytes. The signer must be the update's peer."""
    assert update.peer == peer_id_of(signer.public_key), "a peer tells only its own load"
    body = _LOAD.pack(
        _LOAD_TAG,
        signer.public_key,
        update.incarnation,
        update.sequence,
        min(round(update.load * 1000), _U32_MAX),
        min(max(round(update.idle * 1000), 0), 1000),
        min(round(update.memory_available_gb * 1024), _U32_MAX),
    )
    return body + signer.sign(LOAD_CONTEXT, body)


def sign_witness(asker: PeerId, nonce: int, signer: Signer) -> bytes:
    """64 bytes: the signer was there when `asker` asked for it with `nonce`, through a third peer that could have invented it."""
    return signer.sign(WITNESS_CONTEXT, _WITNESS.pack(asker, nonce))


def is_witness(witness: bytes, public_key: bytes, asker: PeerId, nonce: int, verify: Verifier) -> bool:
    """Whether `witness` is what the peer of `public_key` signed for this question of `asker`."""
    return len(witness) == _SIGNATURE_BYTES and verify(
        public_key, WITNESS_CONTEXT, _WITNESS.pack(asker, nonce), witness
    )


def read_rumour(wire: bytes, verify: Verifier) -> Rumour | None:
    """What `wire` says, its signature checked; None for a kind of a later version. Raises ProtocolError."""
    tag = wire[0] if wire else 0
    if tag > _LOAD_TAG:
        return None
    if tag == _ANNOUNCEMENT_TAG and len(wire) == _ANNOUNCEMENT.size:
        _, prefix, incarnation, sequence = _ANNOUNCEMENT.unpack(wire)
        return Announcement(prefix, _bounded(incarnation), sequence)
    if tag == _SUSPICION_TAG and len(wire) == _SUSPICION.size + _SIGNATURE_BYTES:
        _, public_key, suspect, incarnation = _SUSPICION.unpack_from(wire)
        _check(wire, public_key, SUSPICION_CONTEXT, verify)
        return Suspicion(peer_id_of(public_key), PeerId(suspect), _bounded(incarnation))
    if tag == _LOAD_TAG and len(wire) == _LOAD.size + _SIGNATURE_BYTES:
        _, public_key, incarnation, sequence, load_milli, idle_milli, memory_mb = _LOAD.unpack_from(wire)
        if idle_milli > 1000:
            raise ProtocolError("a load update with more idle cores than there are")
        _check(wire, public_key, LOAD_CONTEXT, verify)
        return LoadUpdate(
            peer_id_of(public_key),
            _bounded(incarnation),
            sequence,
            load_milli / 1000,
            idle_milli / 1000,
            memory_mb / 1024,
        )
    raise ProtocolError(f"a rumour of {len(wire)} bytes that is none")


def _bounded(number: int) -> int:
    if number > _U63_MAX:
        raise ProtocolError("a rumour with a number beyond 63 bits")
    return number


def _check(wire: bytes, public_key: bytes, context: bytes, verify: Verifier) -> None:
    if not verify(public_key, context, wire[:-_SIGNATURE_BYTES], wire[-_SIGNATURE_BYTES:]):
        raise ProtocolError("the signature of a rumour is wrong")
