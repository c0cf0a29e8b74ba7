"""Which addresses are of the same network, as far as trust goes, and whose words count as two.

An address block of /16 (IPv4) or /32 (IPv6) is about what one operator or one customer of a large one holds: whoever speaks from two such
blocks, or under two invitations, is taken for two. It is a price, not a proof: somebody with hosts in two blocks is two.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId


# Remembered, since every address of every record that is renewed is asked for: pure functions, and the tables are bounded.
@functools.lru_cache(limits.HOSTS_PARSED_MAX)
def is_global(host: str) -> bool:
    """Whether `host` is a numeric address that the whole Internet knows: not private, shared (RFC 6598), link-local or loopback."""
    try:
        return _plain(host).is_global
    except ValueError:
        return False


@functools.lru_cache(limits.HOSTS_PARSED_MAX)
def network_of(host: str) -> str:
    """The block of `host`, which must be numeric: /16 of IPv4, /32 of IPv6."""
    address = _plain(host)
    bits = 16 if address.version == 4 else 32
    return str(ipaddress.ip_network((address.packed, bits), strict=False))


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host)
    # A socket of both families shows IPv4 callers as ::ffff:a.b.c.d, which says nothing of where they are.
    return (address.ipv4_mapped or address) if address.version == 6 else address


@dataclass(frozen=True, slots=True)
class Witness:
    """Somebody elsewhere: who, from which block (`network_of`), under which invitation (empty where unknown)."""

    peer: PeerId
    network: str
    invitation: bytes

    def is_independent_of(self, other: Witness) -> bool:
        """Whether the two are taken for two."""
        if self.peer == other.peer:
            return False
        two_invitations = bool(self.invitation) and bool(other.invitation) and self.invitation != other.invitation
        return self.network != other.network or two_invitations


def are_two(witnesses: Iterable[Witness]) -> bool:
    """Whether any two of `witnesses` are taken for two."""
    known = list(witnesses)
    return any(one.is_independent_of(other) for number, one in enumerate(known) for other in known[:number])
