"""The signed form of a peer's record.

On the wire: msgpack [version, public key, body, signature]; the signature is over a prefix, the version and the body's bytes as received, never
over a re-encoding, so fields of later versions survive. A record whose key does not hash to the id inside is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from p2pcompute.model import limits
from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import NETWORK_ID_BYTES, PEER_ID_BYTES, NetworkId, PeerId, peer_id_of
from p2pcompute.model.peer import Address, Coordinate, Edge, Isolation, PeerRecord, Reach, Relay, Role
from p2pcompute.model.requirement import TIER_DEFAULT, TIERS
from p2pcompute.wire.address import ADDRESS
from p2pcompute.wire.codec import (
    Converted,
    Inner,
    Many,
    Maybe,
    Raw,
    Real,
    Row,
    Schema,
    Text,
    Truth,
    Whole,
    pack,
    unpack,
)
from p2pcompute.wire.versions import RECORD

#: Prefix of what is signed: a signature made for a record is good for nothing else.
CONTEXT = b"p2pc-record-v1\0"


class Signer(Protocol):
    """A peer's own key, as `wire/identity.py` holds it."""

    @property
    def public_key(self) -> bytes:
        """32 bytes, raw Ed25519."""

    def sign(self, context: bytes, data: bytes) -> bytes:
        """64 bytes: the Ed25519 signature over context || data."""


class Verifier(Protocol):
    """Checks a signature; `wire.identity.verify_signature` is one."""

    def __call__(self, public_key: bytes, context: bytes, data: bytes, signature: bytes) -> bool:
        """Whether `signature` is that key's over context || data."""


@dataclass(frozen=True, slots=True)
class _Gpu:
    name: Annotated[str, Text()]
    memory_gb: Annotated[float, Real(0, 1e6)]
    utilisation: Annotated[float, Real(0, 1)] = 0.0


@dataclass(frozen=True, slots=True)
class _Capability:
    cores: Annotated[int, Whole(0, 1 << 20)]
    frequency_mhz: Annotated[float, Real(0, 1e6)]
    idle: Annotated[float, Real(0, 1)]
    memory_gb: Annotated[float, Real(0, 1e9)]
    memory_available_gb: Annotated[float, Real(0, 1e9)]
    gpus: Annotated[tuple[_Gpu, ...], Many(Inner(Schema(_Gpu)), 64)] = ()
    bandwidth_mbps: Annotated[float | None, Maybe(Real(0, 1e9))] = None
    latency_ms: Annotated[float | None, Maybe(Real(0, 1e9))] = None
    loss: Annotated[float | None, Maybe(Real(0, 1))] = None


def _capability(plain: _Capability) -> Capability:
    gpus = tuple(Gpu(gpu.name, gpu.memory_gb, gpu.utilisation) for gpu in plain.gpus)
    return Capability(
        plain.cores,
        plain.frequency_mhz,
        plain.idle,
        plain.memory_gb,
        plain.memory_available_gb,
        gpus,
        plain.bandwidth_mbps,
        plain.latency_ms,
        plain.loss,
    )


def _roles(names: tuple[str, ...]) -> frozenset[Role]:
    # A role of a later version is one that this peer never grants anything for.
    return frozenset(Role(name) for name in names if name in set(Role))


# Functions, not lambdas inside the annotation: there a lambda sees the names of the class alone.
def _edge(row: tuple[Any, ...]) -> Edge:
    return Edge(*row)


def _edge_row(edge: Edge) -> tuple[Any, ...]:
    return (edge.peer, edge.rtt_s, edge.bandwidth_mbps)


# Whole microseconds and thousandths: a coordinate in twenty bytes instead of eighty.
def _coordinate(row: tuple[Any, ...]) -> Coordinate:
    vector, height_us, error_milli, adjustment_us = row
    if not vector:
        raise ValueError("a coordinate without a dimension")
    return Coordinate(tuple(us / 1e6 for us in vector), height_us / 1e6, error_milli / 1e3, adjustment_us / 1e6)


def _coordinate_row(place: Coordinate) -> tuple[Any, ...]:
    vector = tuple(round(seconds * 1e6) for seconds in place.vector)
    return (vector, round(place.height_s * 1e6), round(place.error * 1e3), round(place.adjustment_s * 1e6))


_MICROSECONDS = Whole(-100_000_000, 100_000_000)
#: A coordinate on the wire: [vector in us, height in us, error in thousandths, adjustment in us].
COORDINATE = Converted(
    Row((Many(_MICROSECONDS, 8), Whole(0, 100_000_000), Whole(0, 10_000), _MICROSECONDS)), _coordinate, _coordinate_row
)


def _reach(name: str) -> Reach:
    # What a later version may have found out says nothing to this one.
    return Reach(name) if name in set(Reach) else Reach.UNKNOWN


def isolation_of(name: str) -> Isolation:
    """The isolation of that name; of one of a later version nothing is believed."""
    return Isolation(name) if name in set(Isolation) else Isolation.PROCESS


def _tier(name: str) -> str:
    # A tier of a later version promises nothing that this one could compare.
    return name if name in TIERS else TIER_DEFAULT


def _relay(row: tuple[Any, ...]) -> Relay:
    return Relay(*row)


def _relay_row(relay: Relay) -> tuple[Any, ...]:
    return (relay.peer, relay.address)


@dataclass(frozen=True, slots=True)
class _Body:
    peer: Annotated[bytes, Raw(PEER_ID_BYTES, PEER_ID_BYTES)]
    network: Annotated[bytes, Raw(NETWORK_ID_BYTES, NETWORK_ID_BYTES)]
    incarnation: Annotated[int, Whole()]
    sequence: Annotated[int, Whole()]
    name: Annotated[str, Text(64)]
    addresses: Annotated[tuple[Address, ...], Many(ADDRESS, limits.ADDRESSES_MAX)]
    capability: Annotated[
        Capability | None, Maybe(Converted(Inner(Schema(_Capability)), _capability, lambda plain: plain))
    ]
    slots: Annotated[int, Whole(0, 1 << 20)]
    load: Annotated[float, Real(0, 1e6)]
    roles: Annotated[
        frozenset[Role], Converted(Many(Text(32), 16), _roles, lambda roles: sorted(role.value for role in roles))
    ]
    isolation: Annotated[Isolation, Converted(Text(32), isolation_of, str)]
    python: Annotated[str, Text(32)]
    platform: Annotated[str, Text(64)]
    version: Annotated[str, Text(32)]
    edges: Annotated[
        tuple[Edge, ...],
        Many(
            Converted(
                Row((Raw(PEER_ID_BYTES, PEER_ID_BYTES), Real(0, 1e4), Maybe(Real(0, 1e9)))),
                _edge,
                _edge_row,
            ),
            64,
        ),
    ] = ()
    functions: Annotated[tuple[str, ...], Many(Text(128), 256)] = ()
    labels: Annotated[tuple[str, ...], Many(Text(limits.LABEL_CHARS_MAX), 64)] = ()
    leaving: Annotated[bool, Truth()] = False
    protocol: Annotated[int, Whole(1, 1_000_000)] = 1
    coordinate: Annotated[Coordinate | None, Maybe(COORDINATE)] = None
    reach: Annotated[Reach, Converted(Text(32), _reach, str)] = Reach.UNKNOWN
    relays: Annotated[
        tuple[Relay, ...],
        Many(
            Converted(Row((Raw(PEER_ID_BYTES, PEER_ID_BYTES), ADDRESS)), _relay, _relay_row),
            limits.RELAYS_MAX,
        ),
    ] = ()
    leads: Annotated[bool, Truth()] = False
    cost_per_hour: Annotated[float, Real(0, limits.COST_PER_HOUR_MAX)] = 0.0
    performance_tier: Annotated[str, Converted(Text(32), _tier, str)] = TIER_DEFAULT
    engines: Annotated[tuple[str, ...], Many(Text(limits.ENGINE_CHARS_MAX), limits.ENGINES_MAX)] = ("python",)
    grants: Annotated[tuple[str, ...], Many(Text(limits.GRANT_CHARS_MAX), limits.GRANTS_MAX)] = ()
    yields: Annotated[tuple[str, ...], Many(Text(32), limits.YIELDS_MAX)] = ()
    unknown: dict[str, Any] = field(default_factory=dict)


_BODY = Schema(_Body)
_FIELDS = tuple(PeerRecord.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record and the bytes that prove it; `wire` is what is passed on."""

    record: PeerRecord
    public_key: bytes
    wire: bytes


def sign_record(record: PeerRecord, signer: Signer) -> SignedRecord:
    """`record` signed by its own peer. The caller's key must be the record's."""
    assert record.peer == peer_id_of(signer.public_key), "a peer signs only its own record"
    body = pack(_BODY.to_fields(_Body(**{name: getattr(record, name) for name in _FIELDS})))
    signature = signer.sign(CONTEXT + bytes([RECORD]), body)
    return SignedRecord(record, signer.public_key, pack([RECORD, signer.public_key, body, signature]))


def open_record(wire: bytes, verify: Verifier) -> SignedRecord:
    """The record in `wire`, its signature checked. Raises ProtocolError."""
    parts = unpack(wire, bytes_max=limits.RECORD_BYTES_MAX)
    if (
        type(parts) is not list
        or len(parts) != 4
        or type(parts[0]) is not int
        or not 1 <= parts[0] <= 255
        or any(type(part) is not bytes for part in parts[1:])
        or len(parts[1]) != 32
        or len(parts[3]) != 64
    ):
        raise ProtocolError("a signed record is [version, key, body, signature]")
    version, public_key, body, signature = parts
    if not verify(public_key, CONTEXT + bytes([version]), body, signature):
        raise ProtocolError("the signature of a record is wrong")
    plain = _BODY.from_fields(unpack(body, bytes_max=limits.RECORD_BYTES_MAX))
    if plain.peer != peer_id_of(public_key):
        raise ProtocolError("a record is signed by another key than its peer's")
    fields: dict[str, Any] = {name: getattr(plain, name) for name in _FIELDS}
    fields["peer"] = PeerId(plain.peer)
    fields["network"] = NetworkId(plain.network)
    return SignedRecord(PeerRecord(**fields), public_key, wire)
