"""The LAN beacon: one signed datagram of at most 300 bytes that says "a peer of this network listens here".

Layout, big endian: magic (4), version (1), flags (1), network tag (8), public key (32), instance (8), time in ms (8),
peer port (2), answer port (2), view hash (8), whatever later versions add, signature (64, over a context and all bytes
before it). A fixed layout and not msgpack: strangers send to this port, and the first fourteen bytes are enough to drop
nearly all of what is not meant for us.

A beacon is a hint. It proves that the key's holder once wrote these bytes, never that it sits at the address they came
from: TLS proves who is there. Refuses to know: sockets, when to send, whom to believe (`membership/beacons.py`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import NetworkId, PeerId, peer_id_of
from p2pcompute.wire.record import Signer, Verifier
from p2pcompute.wire.versions import BEACON

MAGIC = b"p2pb"
#: Prefix of what is signed: a signature made for a beacon is good for nothing else.
CONTEXT = b"p2pc-beacon-v1\0"
TAG_BYTES = 8
INSTANCE_BYTES = 8
VIEW_HASH_BYTES = 8
KEY_BYTES = 32
SIGNATURE_BYTES = 64

_FIXED = struct.Struct(f">4sBB{TAG_BYTES}s{KEY_BYTES}s{INSTANCE_BYTES}sQHH{VIEW_HASH_BYTES}s")
_ANSWER_FLAG = 1


@dataclass(frozen=True, slots=True)
class Beacon:
    """What a beacon says.

    `tag`: which network, see `network_tag`; `instance`: random, new at each start of the peer; `time_ms`: wall clock of
    the sender in milliseconds, rising within an instance; `peer_port`: TCP port for links; `answer_port`: UDP port that
    takes answers (the common beacon port reaches only one of several peers on a host); `view_hash`: see `view_hash`;
    `is_answer`: sent to one peer because of its beacon, and never answered itself; `extra`: bytes of later versions.
    """

    tag: bytes
    public_key: bytes
    instance: bytes
    time_ms: int
    peer_port: int
    answer_port: int
    view_hash: bytes
    is_answer: bool = False
    extra: bytes = b""

    @property
    def peer(self) -> PeerId:
        """The id of the peer whose key this is."""
        return peer_id_of(self.public_key)


@dataclass(frozen=True, slots=True)
class SignedBeacon:
    """A beacon as it arrived, signature not yet checked: `signed` is what `signature` must cover."""

    beacon: Beacon
    signed: bytes
    signature: bytes

    def is_genuine(self, verify: Verifier) -> bool:
        """Whether the holder of the key inside signed exactly these bytes."""
        return verify(self.beacon.public_key, CONTEXT, self.signed, self.signature)


def network_tag(network: NetworkId) -> bytes:
    """Eight bytes that tell the beacons of `network` from others, without naming the network to who does not know it."""
    return hashlib.sha256(b"p2pc-beacon-tag" + network).digest()[:TAG_BYTES]


def view_hash(peers: Iterable[PeerId]) -> bytes:
    """Eight bytes that are equal for equal sets of peers: two halves of a split network notice each other by it."""
    digest = hashlib.sha256(b"p2pc-view")
    for peer in sorted(peers):
        digest.update(peer)
    return digest.digest()[:VIEW_HASH_BYTES]


def sign_beacon(beacon: Beacon, signer: Signer) -> bytes:
    """The datagram that says `beacon`. The caller's key must be the beacon's."""
    assert beacon.public_key == signer.public_key, "a peer signs only its own beacon"
    signed = (
        _FIXED.pack(
            MAGIC,
            BEACON,
            _ANSWER_FLAG if beacon.is_answer else 0,
            beacon.tag,
            beacon.public_key,
            beacon.instance,
            beacon.time_ms,
            beacon.peer_port,
            beacon.answer_port,
            beacon.view_hash,
        )
        + beacon.extra
    )
    assert len(signed) + SIGNATURE_BYTES <= limits.BEACON_BYTES_MAX, "a beacon fits into its limit"
    return signed + signer.sign(CONTEXT, signed)


def decode_beacon(data: bytes) -> SignedBeacon:
    """The beacon in `data`, its signature split off but not checked. Raises ProtocolError.

    Cheap on purpose: callers drop by tag, time, duplicate and rate before they pay for the signature.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ProtocolError("not a beacon: it starts with other bytes")
    if not _FIXED.size + SIGNATURE_BYTES <= len(data) <= limits.BEACON_BYTES_MAX:
        raise ProtocolError(f"a beacon of {len(data)} bytes")
    signed, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    _, version, flags, tag, public_key, instance, time_ms, peer_port, answer_port, view = _FIXED.unpack_from(signed)
    # Additions stand behind the fixed part and need no new version; another version means another fixed part.
    if version != BEACON:
        raise ProtocolError(f"a beacon of version {version}, this peer knows {BEACON}")
    if not peer_port or not answer_port:
        raise ProtocolError("a beacon with port 0")
    beacon = Beacon(
        tag,
        public_key,
        instance,
        time_ms,
        peer_port,
        answer_port,
        view,
        bool(flags & _ANSWER_FLAG),
        signed[_FIXED.size :],
    )
    return SignedBeacon(beacon, signed, signature)
