"""The owner's list of revoked invitations and peers.

One list a network, cumulative, with a rising number; gossip spreads the newest and every link to somebody on it
closes. On the wire: msgpack [version, owner's public key, body, signature], the signature over the body's bytes as
received. Refuses to know: who is refused for it (`membership.py`) and how it travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.model.ids import INVITATION_ID_BYTES, NETWORK_ID_BYTES, PEER_ID_BYTES, InvitationId, NetworkId, PeerId
from p2pcompute.wire.chain import network_of, read_owner
from p2pcompute.wire.codec import Many, Raw, Schema, Whole, pack, unpack
from p2pcompute.wire.identity import (
    PUBLIC_KEY_BYTES,
    REVOCATIONS_CONTEXT,
    SIGNATURE_BYTES,
    SigningKey,
    verify_signature,
)

_VERSION = 1
#: Entries, keys and signature, and room for fields of later versions.
_WIRE_BYTES_MAX = limits.REVOCATIONS_MAX * 2 * (INVITATION_ID_BYTES + 2) + 8_192


@dataclass(frozen=True, slots=True)
class _Body:
    network: Annotated[bytes, Raw(NETWORK_ID_BYTES, NETWORK_ID_BYTES)]
    number: Annotated[int, Whole(1)]
    invitations: Annotated[
        tuple[bytes, ...], Many(Raw(INVITATION_ID_BYTES, INVITATION_ID_BYTES), limits.REVOCATIONS_MAX)
    ] = ()
    peers: Annotated[tuple[bytes, ...], Many(Raw(PEER_ID_BYTES, PEER_ID_BYTES), limits.REVOCATIONS_MAX)] = ()
    unknown: dict[str, Any] = field(default_factory=dict)


_BODY = Schema(_Body)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A signed list whose signature was checked. `wire` is what is kept and passed on."""

    network: NetworkId
    number: int
    invitations: frozenset[InvitationId]
    peers: frozenset[PeerId]
    wire: bytes = field(repr=False)

    @classmethod
    def sign(
        cls,
        signer: SigningKey,
        network: NetworkId,
        number: int,
        invitations: Iterable[InvitationId],
        peers: Iterable[PeerId],
    ) -> RevocationList:
        """The list with these entries, signed by an owner's key. Raises UsageError where there are too many."""
        revoked_invitations, revoked_peers = frozenset(invitations), frozenset(peers)
        if max(len(revoked_invitations), len(revoked_peers)) > limits.REVOCATIONS_MAX:
            raise UsageError(
                f"more than {limits.REVOCATIONS_MAX} revocations: make a new network and invite those who should stay"
            )
        body = pack(
            _BODY.to_fields(_Body(network, number, tuple(sorted(revoked_invitations)), tuple(sorted(revoked_peers))))
        )
        signature = signer.sign(REVOCATIONS_CONTEXT, body)
        wire = pack([_VERSION, signer.public_key, body, signature])
        return cls(network, number, revoked_invitations, revoked_peers, wire)

    @classmethod
    def open(cls, wire: bytes, owners: Sequence[bytes]) -> RevocationList:
        """The list in `wire`, which one of `owners` (DER) must have signed for its network. Raises ProtocolError."""
        parts = unpack(wire, bytes_max=_WIRE_BYTES_MAX)
        if (
            type(parts) is not list
            or len(parts) != 4
            or type(parts[0]) is not int
            or any(type(part) is not bytes for part in parts[1:])
            or len(parts[1]) != PUBLIC_KEY_BYTES
            or len(parts[3]) != SIGNATURE_BYTES
        ):
            raise ProtocolError("a revocation list is [version, key, body, signature]")
        version, public_key, body, signature = parts
        if version != _VERSION:
            raise ProtocolError(f"a revocation list of version {version}, this peer reads {_VERSION}: upgrade it")
        owner = next((found for found in map(read_owner, owners) if found.public_key == public_key), None)
        if owner is None or not verify_signature(public_key, REVOCATIONS_CONTEXT, body, signature):
            raise ProtocolError("a revocation list that no owner of this network has signed")
        plain = _BODY.from_fields(unpack(body, bytes_max=_WIRE_BYTES_MAX))
        network = network_of(owner)
        if plain.network != network:
            raise ProtocolError("a revocation list of another network")
        return cls(
            network,
            plain.number,
            frozenset(InvitationId(entry) for entry in plain.invitations),
            frozenset(PeerId(entry) for entry in plain.peers),
            bytes(wire),
        )

    def newer_than(self, other: RevocationList | None) -> bool:
        """Whether this list replaces `other`. Total over distinct lists, so that all peers end with the same one."""
        return other is None or self._order > other._order

    @property
    def _order(self) -> tuple[int, int, bytes]:
        # Equal numbers happen only where an owner's key is used on two machines at once: more entries win, then the bytes.
        return (self.number, len(self.invitations) + len(self.peers), self.wire)
