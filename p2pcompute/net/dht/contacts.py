"""Contacts: a peer at an address, as the package's `Node`, as a sender, and in binary inside replies.

The id that Kademlia sorts by is the first 20 bytes of the peer id, which the session below has proven; it never comes from a message.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kademlia.node import Node

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import PEER_ID_BYTES, PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.dht.addresses import Scope, family_of, network_of, scope_of
from p2pcompute.wire.pointer import KEY_BYTES, PointerKey, pack_address, read_address

#: The invitation under which a peer is a member, as far as known: one invitation is one person.
InvitationOf = Callable[[PeerId], bytes | None]


def dht_id(peer: PeerId) -> PointerKey:
    """Where `peer` stands in the key space."""
    return PointerKey(peer[:KEY_BYTES])


class PeerAddress(tuple[str, int]):
    """The (host, port) that the package passes about, with the authenticated peer that sent from there."""

    #: Who it is, proven by its session.
    peer: PeerId
    #: The same place as the product writes it.
    address: Address

    def __new__(cls, peer: PeerId, address: Address) -> PeerAddress:
        made = super().__new__(cls, (address.host, address.port))
        made.peer = peer
        made.address = address
        return made


@dataclass(frozen=True, slots=True)
class Told:
    """What a reply says: this peer, there."""

    peer: PeerId
    address: Address


class Contact(Node):  # type: ignore[misc]
    """A peer at an address that something may be sent to."""

    def __init__(self, peer: PeerId, address: Address, scope: Scope, since: float = 0.0) -> None:
        super().__init__(dht_id(peer), address.host, address.port)
        #: The whole id: sessions need it.
        self.peer = peer
        #: Numeric; what `ip` and `port` of the package say.
        self.address = address
        #: Of `address`; never None.
        self.scope = scope
        #: 4 or 6.
        self.family = family_of(address)
        #: The /24 or /48.
        self.network = network_of(address)
        #: When it first answered, monotonic seconds.
        self.since = since
        #: When it last answered.
        self.heard_at = since
        #: Calls in a row that it did not answer; below `limits.DHT_FAILURES_MAX` while it is in a table.
        self.failures = 0

    @functools.cached_property
    def packed(self) -> bytes:
        """What stands in a reply: 39 bytes for IPv4, 51 for IPv6."""
        return self.peer + pack_address(self.address)

    def distance(self, target: Node) -> int:
        """XOR of the ids."""
        return int(self.long_id ^ target.long_id)

    def voice(self, invitation_of: InvitationOf) -> str:
        """Whom it counts as: its network, or in ranges that anybody may use its invitation."""
        if self.scope is Scope.GLOBAL:
            return self.network
        invitation = invitation_of(self.peer)
        return "invitation " + (invitation.hex() if invitation else "unknown")


def make_contact(peer: PeerId, address: Address, since: float = 0.0) -> Contact | None:
    """The contact, or None where `address` is none that anything may be sent to."""
    scope = scope_of(address)
    return None if scope is None or len(peer) != PEER_ID_BYTES else Contact(peer, address, scope, since)


def pack_contacts(contacts: Iterable[Contact], bytes_max: int) -> bytes:
    """The first of `contacts` that fit into `bytes_max`: 39 bytes for each of IPv4, 51 of IPv6."""
    parts: list[bytes] = []
    size = 0
    for contact in contacts:
        if len(parts) == limits.DHT_CONTACTS_PER_REPLY_MAX or size + len(contact.packed) > bytes_max:
            break
        parts.append(contact.packed)
        size += len(contact.packed)
    return b"".join(parts)


def read_contacts(data: bytes) -> tuple[Told, ...]:
    """What `pack_contacts` wrote. Raises ProtocolError; says nothing about whether the addresses may be used."""
    told: list[Told] = []
    start = 0
    while start < len(data):
        if len(told) == limits.DHT_CONTACTS_PER_REPLY_MAX:
            raise ProtocolError(f"more than {limits.DHT_CONTACTS_PER_REPLY_MAX} contacts in a reply")
        peer = data[start : start + PEER_ID_BYTES]
        address, start = read_address(data, start + PEER_ID_BYTES)
        told.append(Told(PeerId(peer), address))
    return tuple(told)
