"""The six kinds of datagrams between peers, each a fixed layout, big endian.

    HELLO    common, sender (4), ephemeral (32), zeros (18)                                 64 bytes
    COOKIE   common, receiver (4), cookie (16)                                              30 bytes
    PROOF    common, sender (4), ephemeral (32), cookie (16), generation (4), papers, signature (64)
    ACCEPT   common, receiver (4), sender (4), ephemeral (32), generation (4), papers, signature (64)
    UNKNOWN  common, receiver (4), counter (8)                                              22 bytes
    SEALED   kind (1), receiver (4), counter (8), sealed bytes, at least 17                 30 bytes and more

`common` is kind (1), version (1), network tag (8). `sender` and `receiver` are numbers by which one side finds its own
session again, drawn by that side. `papers` are the certificates of whoever signs: how many (1), each with its length
(2), deflated (RFC 1951), since an admin's chain would not fit otherwise: three certificates of up to 1,300 bytes become
at most 950.

No kind is answered by a longer one before its sender has shown a cookie. Refuses to know: what is signed and with which
keys it is sealed (`session.py`), when anything is sent (`net/sessions.py`).

A peer's bytes can cause only ProtocolError here (fuzzed in tests/fuzz).
"""

from __future__ import annotations

import enum
import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.model.ids import NetworkId
from p2pcompute.wire.chain import INVITATIONS_MAX
from p2pcompute.wire.identity import SIGNATURE_BYTES

#: Version of every layout here and of the handshake; another one is answered with silence.
VERSION = 1
TAG_BYTES = 8
EPHEMERAL_BYTES = 32
COOKIE_BYTES = 16
#: Of the Poly1305 tag.
SEAL_BYTES = 16
#: The most that a generation can be; it stays there.
GENERATION_MAX = (1 << 32) - 1


class Kind(enum.IntEnum):
    """The first byte. Nothing else that shares a port with us (STUN, DTLS, RTP, QUIC) begins so."""

    SEALED = 0xD0
    HELLO = 0xD1
    COOKIE = 0xD2
    PROOF = 0xD3
    ACCEPT = 0xD4
    UNKNOWN = 0xD5


_COMMON = struct.Struct(f">BB{TAG_BYTES}s")
_HELLO = struct.Struct(f">10xI{EPHEMERAL_BYTES}s18s")
_COOKIE = struct.Struct(f">10xI{COOKIE_BYTES}s")
_PROOF = struct.Struct(f">10xI{EPHEMERAL_BYTES}s{COOKIE_BYTES}sI")
_ACCEPT = struct.Struct(f">10xII{EPHEMERAL_BYTES}sI")
_UNKNOWN = struct.Struct(">10xIQ")
#: Kind, receiver and counter of a sealed datagram.
SEALED_HEAD = struct.Struct(">BIQ")
_LENGTH = struct.Struct(">H")
_PADDING = bytes(18)

HELLO_BYTES = _HELLO.size
COOKIE_DATAGRAM_BYTES = _COOKIE.size
UNKNOWN_BYTES = _UNKNOWN.size
#: Head, channel and tag around nothing.
SEALED_BYTES_MIN = SEALED_HEAD.size + 1 + SEAL_BYTES
#: The shortest datagram that can mean anything.
DATAGRAM_BYTES_MIN = UNKNOWN_BYTES
_DEFLATE_WINDOW_BITS = -15


@dataclass(frozen=True, slots=True)
class Hello:
    """A stranger asks for a cookie. `sender`: the number that answers carry; `ephemeral`: raw X25519 public key."""

    sender: int
    ephemeral: bytes


@dataclass(frozen=True, slots=True)
class Cookie:
    """The answer to a HELLO, or to a PROOF whose cookie is too old."""

    receiver: int
    cookie: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """A HELLO once more, with the cookie and everything that proves who sends it.

    `generation`: that of the newest session with the receiver that the sender knows, 0 for none; `papers`: its
    certificates as they travel; `signed`: the bytes that `signature` must cover, with the network before them.
    """

    sender: int
    ephemeral: bytes
    cookie: bytes
    generation: int
    papers: bytes = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Accept:
    """The answer to a PROOF. `generation`: that of the session which it makes."""

    receiver: int
    sender: int
    ephemeral: bytes
    generation: int
    papers: bytes = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A hint that proves nothing: the sender knows no session `receiver`, to which `counter` was sent."""

    receiver: int
    counter: int


def datagram_tag(network: NetworkId) -> bytes:
    """Eight bytes that tell the handshakes of `network` from others, without naming it to who does not know it."""
    return hashlib.sha256(b"p2pc-datagram-tag" + network).digest()[:TAG_BYTES]


# --- writing ----------------------------------------------------------------------------------------------------------


def write_hello(tag: bytes, sender: int, ephemeral: bytes) -> bytes:
    """A HELLO."""
    return _with_common(Kind.HELLO, tag, _HELLO.pack(sender, ephemeral, _PADDING))


def write_cookie(tag: bytes, receiver: int, cookie: bytes) -> bytes:
    """A COOKIE."""
    return _with_common(Kind.COOKIE, tag, _COOKIE.pack(receiver, cookie))


def write_proof(tag: bytes, sender: int, ephemeral: bytes, cookie: bytes, generation: int, papers: bytes) -> bytes:
    """A PROOF without its signature, which the caller appends."""
    return _with_common(Kind.PROOF, tag, _PROOF.pack(sender, ephemeral, cookie, generation)) + papers


def write_accept(tag: bytes, receiver: int, sender: int, ephemeral: bytes, generation: int, papers: bytes) -> bytes:
    """An ACCEPT without its signature, which the caller appends."""
    return _with_common(Kind.ACCEPT, tag, _ACCEPT.pack(receiver, sender, ephemeral, generation)) + papers


def write_unknown(tag: bytes, receiver: int, counter: int) -> bytes:
    """An UNKNOWN."""
    return _with_common(Kind.UNKNOWN, tag, _UNKNOWN.pack(receiver, counter))


def _with_common(kind: Kind, tag: bytes, body: bytes) -> bytes:
    return _COMMON.pack(kind, VERSION, tag) + body[_COMMON.size :]


# --- reading ----------------------------------------------------------------------------------------------------------


def decode_handshake(data: bytes) -> Hello | Cookie | Proof | Accept | Unknown:
    """What a datagram of any kind but SEALED says; signatures and papers are not looked at. Raises ProtocolError.

    Kind, version and tag are taken as they are: callers compare them first, since that is cheaper than anything here.
    """
    size = len(data)
    kind = data[0] if data else -1
    if kind == Kind.HELLO and size == HELLO_BYTES:
        sender, ephemeral, padding = _HELLO.unpack(data)
        if padding != _PADDING:
            raise ProtocolError("a HELLO that is not padded with zeros")
        return Hello(sender, ephemeral)
    if kind == Kind.COOKIE and size == COOKIE_DATAGRAM_BYTES:
        return Cookie(*_COOKIE.unpack(data))
    if kind == Kind.UNKNOWN and size == UNKNOWN_BYTES:
        return Unknown(*_UNKNOWN.unpack(data))
    if kind == Kind.PROOF and _PROOF.size + SIGNATURE_BYTES < size <= limits.DATAGRAM_BYTES_MAX:
        signed, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        sender, ephemeral, cookie, generation = _PROOF.unpack_from(data)
        return Proof(sender, ephemeral, cookie, generation, signed[_PROOF.size :], signed, signature)
    if kind == Kind.ACCEPT and _ACCEPT.size + SIGNATURE_BYTES < size <= limits.DATAGRAM_BYTES_MAX:
        signed, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        receiver, sender, ephemeral, generation = _ACCEPT.unpack_from(data)
        return Accept(receiver, sender, ephemeral, generation, signed[_ACCEPT.size :], signed, signature)
    raise ProtocolError(f"no datagram of ours: {size} bytes, the first is {kind}")


# --- papers -----------------------------------------------------------------------------------------------------------


def pack_papers(leaf: bytes, chain: Sequence[bytes]) -> bytes:
    """A leaf and the invitations above it (DER, the issuer of the leaf first) as they travel.

    Raises UsageError where they fit into no datagram, which those of our own making always do.
    """
    certificates = (leaf, *chain)
    if len(certificates) > 1 + INVITATIONS_MAX or any(not 0 < len(der) < 1 << 16 for der in certificates):
        raise UsageError(f"a peer shows its own certificate and at most {INVITATIONS_MAX} invitations")
    deflate = zlib.compressobj(9, zlib.DEFLATED, _DEFLATE_WINDOW_BITS)
    plain = bytes((len(certificates),)) + b"".join(_LENGTH.pack(len(der)) + der for der in certificates)
    papers = deflate.compress(plain) + deflate.flush()
    if len(plain) > limits.PAPERS_BYTES_MAX or len(papers) > _ROOM_FOR_PAPERS:
        raise UsageError(
            f"the certificates of this membership need {len(papers)} bytes and a datagram has room for {_ROOM_FOR_PAPERS}: "
            "ask for an invitation with a shorter label"
        )
    return papers


#: What the larger of the two signed layouts leaves.
_ROOM_FOR_PAPERS = limits.DATAGRAM_BYTES_MAX - max(_PROOF.size, _ACCEPT.size) - SIGNATURE_BYTES


def decode_papers(papers: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """The leaf and the invitations above it, as DER that nobody has read yet. Raises ProtocolError."""
    inflate = zlib.decompressobj(_DEFLATE_WINDOW_BITS)
    try:
        # One byte more than may be: a bomb stops here and not in memory.
        plain = inflate.decompress(papers, limits.PAPERS_BYTES_MAX + 1)
    except zlib.error as error:
        raise ProtocolError(f"certificates that cannot be unpacked: {error}") from error
    if not inflate.eof or inflate.unused_data or not 0 < len(plain) <= limits.PAPERS_BYTES_MAX:
        raise ProtocolError("certificates that are cut off, followed by something, or too many")
    count, at = plain[0], 1
    if not 1 <= count <= 1 + INVITATIONS_MAX:
        raise ProtocolError(f"{count} certificates of one peer")
    found = []
    for _ in range(count):
        if at + _LENGTH.size > len(plain):
            raise ProtocolError("certificates that are cut off")
        (length,) = _LENGTH.unpack_from(plain, at)
        at += _LENGTH.size
        found.append(plain[at : at + length])
        at += length
    if at != len(plain) or not all(found):
        raise ProtocolError("certificates whose lengths are wrong")
    return found[0], tuple(found[1:])
