"""Signed pointers: what a peer publishes about itself in the address book, and the values that are known.

A pointer is (owner, name) -> value, written by the owner alone. Layout, big endian: layout version (1), owner's public key (32),
kind of name (1), length of label (1), version (8), time of issue in whole seconds (8), lifetime in seconds (4), label, value,
signature (64, over a context and all bytes before it). It is kept under the first 20 bytes of a hash of the owner's
id and the name, so that nobody can place a pointer under another's key, and who knows an id can ask without the public key.

Version and end of life stand inside the signature. Of two pointers of one key the one with the higher version wins. Clocks are wrong by minutes, and
versions hold without any: a holder keeps a pointer for at most its lifetime from when it came, whatever its time of issue; it
refuses one only when by its own clock it ended, or will be issued, more than `limits.POINTER_SKEW_MAX_S` away.

Values are maps of msgpack; fields of later versions are kept. Refuses to know: who holds pointers (`net/dht/`), what a
reader does with them.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NewType

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.model.ids import BLOB_ID_BYTES, JOB_ID_BYTES, PEER_ID_BYTES, BlobId, JobId, PeerId, peer_id_of
from p2pcompute.model.peer import Address, Reach, Relay
from p2pcompute.wire.codec import Check, Converted, Many, Maybe, Raw, Row, Schema, Text, Whole, pack, unpack
from p2pcompute.wire.record import Signer, Verifier

#: Prefix of what is signed: a signature made for a pointer is good for nothing else.
CONTEXT = b"p2pc-pointer-v1\0"
LAYOUT = 1
KEY_BYTES = 20
#: Where in the address book a pointer is kept.
PointerKey = NewType("PointerKey", bytes)
SIGNATURE_BYTES = 64

_HEAD = struct.Struct(">B32sBBQQI")
_U63_MAX = (1 << 63) - 1


class NameKind(enum.IntEnum):
    """What a name stands for; holders keep kinds of later versions like any other."""

    PRESENCE = 1
    RELAY = 2
    JOB = 3
    RESULT = 4
    OTHER = 255


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """One of an owner's names. `kind`: 0 to 255, see `NameKind`; `label`: at most `limits.POINTER_LABEL_BYTES_MAX` bytes."""

    kind: int
    label: bytes = b""


PRESENCE_NAME = Name(NameKind.PRESENCE)


def job_name(job: JobId) -> Name:
    """Where the pointer to `job` is."""
    return Name(NameKind.JOB, job)


def result_name(job: JobId) -> Name:
    """Where the pointer to the result of `job` is."""
    return Name(NameKind.RESULT, job)


RELAY_NAME = Name(NameKind.RELAY)


def pointer_key(owner: PeerId, name: Name) -> PointerKey:
    """20 bytes: where in the address book the pointer (`owner`, `name`) is kept."""
    return PointerKey(hashlib.sha256(b"p2pc-pointer" + owner + bytes([name.kind]) + name.label).digest()[:KEY_BYTES])


@dataclass(frozen=True, slots=True)
class Pointer:
    """A pointer as it arrived. `issued_s`: the owner's wall clock; `wire`: the bytes that prove it, which are passed on."""

    owner_key: bytes
    name: Name
    version: int
    issued_s: int
    lifetime_s: int
    value: bytes
    wire: bytes

    @property
    def owner(self) -> PeerId:
        """The peer that wrote it."""
        return peer_id_of(self.owner_key)

    @property
    def key(self) -> PointerKey:
        """Where it is kept, 20 bytes."""
        return pointer_key(self.owner, self.name)

    @property
    def order(self) -> tuple[int, int, bytes]:
        """Newer pointers of one key compare greater; two of one version, which no honest owner writes, by their bytes."""
        return (self.version, self.issued_s, self.wire)

    def is_genuine(self, verify: Verifier) -> bool:
        """Whether the owner signed exactly these bytes."""
        return verify(self.owner_key, CONTEXT, self.wire[:-SIGNATURE_BYTES], self.wire[-SIGNATURE_BYTES:])

    def keep_s(self, now_wall: float) -> float:
        """Seconds for which one who receives it now may keep it: 0 where it is over, or from too far in the future.

        `now_wall`: the receiver's clock. Within the skew both clocks are believed; the lifetime bounds it in any case.
        """
        if self.issued_s > now_wall + limits.POINTER_SKEW_MAX_S:
            return 0.0
        left = self.issued_s + self.lifetime_s + limits.POINTER_SKEW_MAX_S - now_wall
        return max(0.0, min(float(self.lifetime_s), left))


def sign_pointer(signer: Signer, name: Name, value: bytes, *, version: int, issued_s: int, lifetime_s: int) -> Pointer:
    """The signer's pointer `name` -> `value`. Raises UsageError where it is too large or lives too long."""
    if not 0 <= name.kind <= 255 or len(name.label) > limits.POINTER_LABEL_BYTES_MAX:
        raise UsageError(f"a name has a kind from 0 to 255 and at most {limits.POINTER_LABEL_BYTES_MAX} bytes of label")
    if not 1 <= lifetime_s <= limits.POINTER_LIFETIME_MAX_S:
        raise UsageError(f"a pointer lives 1 to {limits.POINTER_LIFETIME_MAX_S} seconds, not {lifetime_s}")
    head = _HEAD.pack(LAYOUT, signer.public_key, name.kind, len(name.label), version, max(0, issued_s), lifetime_s)
    body = head + name.label + value
    size = len(body) + SIGNATURE_BYTES
    if size > limits.POINTER_BYTES_MAX:
        room = limits.POINTER_BYTES_MAX - _HEAD.size - SIGNATURE_BYTES - len(name.label)
        raise UsageError(f"a pointer to a value of {len(value)} bytes, where at most {room} fit under this name")
    wire = body + signer.sign(CONTEXT, body)
    return Pointer(signer.public_key, name, version, max(0, issued_s), lifetime_s, value, wire)


def decode_pointer(wire: bytes) -> Pointer:
    """The pointer in `wire`, its signature not yet checked: callers compare key and version before they pay. Raises ProtocolError."""
    if not _HEAD.size + SIGNATURE_BYTES <= len(wire) <= limits.POINTER_BYTES_MAX:
        raise ProtocolError(f"a pointer of {len(wire)} bytes")
    layout, owner_key, kind, label_bytes, version, issued_s, lifetime_s = _HEAD.unpack_from(wire)
    if layout != LAYOUT:
        raise ProtocolError(f"a pointer of layout {layout}, this peer knows {LAYOUT}")
    content = wire[_HEAD.size : -SIGNATURE_BYTES]
    if label_bytes > min(len(content), limits.POINTER_LABEL_BYTES_MAX):
        raise ProtocolError(f"a pointer whose label should have {label_bytes} bytes")
    if not 1 <= lifetime_s <= limits.POINTER_LIFETIME_MAX_S or version > _U63_MAX or issued_s > _U63_MAX:
        raise ProtocolError("a pointer with an impossible version, time or lifetime")
    name = Name(kind, content[:label_bytes])
    return Pointer(owner_key, name, version, issued_s, lifetime_s, content[label_bytes:], wire)


def open_pointer(wire: bytes, verify: Verifier) -> Pointer:
    """The pointer in `wire`, its signature checked. Raises ProtocolError."""
    pointer = decode_pointer(wire)
    if not pointer.is_genuine(verify):
        raise ProtocolError("the signature of a pointer is wrong")
    return pointer


# --- addresses in binary ----------------------------------------------------------------------------------------------

_FAMILY_BYTES = {4: 4, 6: 16}
_PORT = struct.Struct(">H")


def pack_address(address: Address) -> bytes:
    """7 bytes for IPv4, 19 for IPv6: family, address, port. Raises UsageError for a name or a zone, which mean nothing elsewhere."""
    try:
        host = ipaddress.ip_address(address.host)
    except ValueError as error:
        raise UsageError(f"not a numeric address: {address}") from error
    if isinstance(host, ipaddress.IPv6Address) and host.scope_id:
        raise UsageError(f"an address with a zone means nothing to others: {address}")
    if not 0 < address.port < 65536:
        raise UsageError(f"not a port: {address}")
    return bytes([host.version]) + host.packed + _PORT.pack(address.port)


def read_address(data: bytes, start: int = 0) -> tuple[Address, int]:
    """The address that begins at `start`, and where it ends. Raises ProtocolError; judges nothing but its form."""
    size = _FAMILY_BYTES.get(data[start], 0) if 0 <= start < len(data) else 0
    end = start + 1 + size + _PORT.size
    if not size or end > len(data):
        raise ProtocolError("an address that is neither IPv4 nor IPv6, or is cut off")
    packed = data[start + 1 : start + 1 + size]
    (port,) = _PORT.unpack_from(data, end - _PORT.size)
    if not port:
        raise ProtocolError("an address with port 0")
    host = ipaddress.IPv4Address(packed) if size == 4 else ipaddress.IPv6Address(packed)
    return Address(str(host), port), end


def _addresses(data: bytes) -> tuple[Address, ...]:
    found, start = [], 0
    while start < len(data):
        address, start = read_address(data, start)
        found.append(address)
        if len(found) > limits.ADDRESSES_MAX:
            raise ProtocolError(f"more than {limits.ADDRESSES_MAX} addresses")
    return tuple(found)


def _address_bytes(addresses: tuple[Address, ...]) -> bytes:
    return b"".join(pack_address(each) for each in addresses)


def _one_address(data: bytes) -> Address:
    address, end = read_address(data)
    if end != len(data):
        raise ProtocolError("bytes behind an address")
    return address


def _reach(name: str) -> Reach:
    # What a later version may have found out says nothing to this one.
    return Reach(name) if name in set(Reach) else Reach.UNKNOWN


def _relay(row: tuple[Any, ...]) -> Relay:
    return Relay(PeerId(row[0]), row[1])


def _relay_row(relay: Relay) -> tuple[Any, ...]:
    return (relay.peer, relay.address)


_PEER = Raw(PEER_ID_BYTES, PEER_ID_BYTES)
_ADDRESSES: Check = Converted(Raw(limits.ADDRESSES_MAX * 19), _addresses, _address_bytes)
_ADDRESS: Check = Converted(Raw(19), _one_address, pack_address)
_RELAYS: Check = Many(Converted(Row((_PEER, _ADDRESS)), _relay, _relay_row), limits.RELAYS_MAX)


def portable_addresses(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """Those of `addresses` that mean something on another host, in their order, at most `limits.ADDRESSES_MAX`."""
    kept = []
    for address in addresses:
        try:
            host = ipaddress.ip_address(address.host)
        except ValueError:
            continue
        if not host.is_link_local and not host.is_unspecified and not host.is_multicast and 0 < address.port < 65536:
            kept.append(address)
    return tuple(kept[: limits.ADDRESSES_MAX])


# --- values -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Presence:
    """Where a peer is. `incarnation`: that of its record; `relays`: through whom it is reached where nobody can dial it."""

    incarnation: Annotated[int, Whole()]
    addresses: Annotated[tuple[Address, ...], _ADDRESSES]
    relays: Annotated[tuple[Relay, ...], _RELAYS] = ()
    reach: Annotated[Reach, Converted(Text(32), _reach, str)] = Reach.UNKNOWN
    unknown: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RelayOffer:
    """The owner relays for others: it is dialled at `addresses`, and takes `free` more reservations."""

    addresses: Annotated[tuple[Address, ...], _ADDRESSES]
    free: Annotated[int, Whole(0, 1 << 16)]
    unknown: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobPointer:
    """Who keeps the owner's job: `keeper` has its state in `epoch` (higher ones replace lower ones)."""

    job: Annotated[JobId, Raw(JOB_ID_BYTES, JOB_ID_BYTES)]
    keeper: Annotated[PeerId, _PEER]
    epoch: Annotated[int, Whole()] = 0
    unknown: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResultPointer:
    """Where the result of the owner's job is: the blob and some peers that hold it; no blob where the job failed."""

    job: Annotated[JobId, Raw(JOB_ID_BYTES, JOB_ID_BYTES)]
    blob: Annotated[BlobId | None, Maybe(Raw(BLOB_ID_BYTES, BLOB_ID_BYTES))]
    size_bytes: Annotated[int, Whole(0, limits.VALUE_BYTES_MAX)]
    holders: Annotated[tuple[PeerId, ...], Many(_PEER, 8)] = ()
    unknown: Mapping[str, object] = field(default_factory=dict)


Value = Presence | RelayOffer | JobPointer | ResultPointer

_SCHEMAS: dict[type[Any], Schema[Any]] = {cls: Schema(cls) for cls in (Presence, RelayOffer, JobPointer, ResultPointer)}
_KINDS: dict[int, type[Any]] = {
    NameKind.PRESENCE: Presence,
    NameKind.RELAY: RelayOffer,
    NameKind.JOB: JobPointer,
    NameKind.RESULT: ResultPointer,
}


def encode_value(value: Value) -> bytes:
    """What stands in a pointer's value. Raises UsageError for an address that means nothing elsewhere."""
    return pack(_SCHEMAS[type(value)].to_fields(value))


def read_value(pointer: Pointer) -> Value | None:
    """What an opened pointer says; None for a kind of name that this version does not know. Raises ProtocolError.

    A job or result pointer must speak of the job in its name.
    """
    cls = _KINDS.get(pointer.name.kind)
    if cls is None:
        return None
    value: Value = _SCHEMAS[cls].from_fields(unpack(pointer.value, bytes_max=limits.POINTER_BYTES_MAX))
    if isinstance(value, JobPointer | ResultPointer) and value.job != pointer.name.label:
        raise ProtocolError("a pointer that speaks of another job than its name")
    return value
