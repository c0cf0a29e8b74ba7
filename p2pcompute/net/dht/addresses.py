"""What an address is good for: whether anything may be sent to it, how far it is valid, and who counts as its neighbour.

Pure functions. No name is ever looked up: what is no number is no address.
"""

from __future__ import annotations

import enum
import functools
import ipaddress

from p2pcompute.model import limits
from p2pcompute.model.peer import Address

#: Prefix lengths within which addresses count as one network: what one customer of a provider is commonly given.
_NETWORK_BITS = {4: 24, 6: 48}
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


class Scope(enum.IntEnum):
    """How far an address is valid, nearest first."""

    LOOPBACK = 1
    LINK = 2
    #: Private ranges, and those of providers' own translation.
    SITE = 3
    GLOBAL = 4


def plain_address(address: Address) -> Address:
    """`address`, an IPv4 one that is written within IPv6 as IPv4."""
    if type(address.host) is not str or not address.host.lower().startswith("::ffff:"):
        return address
    try:
        mapped = ipaddress.IPv6Address(address.host).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else Address(str(mapped), address.port)


def scope_of(address: Address) -> Scope | None:
    """How far `address` is valid; None where nothing may be sent to it: names, bad ports, groups, broadcast, reserved ranges."""
    # Types are looked at too: nothing below may stumble over what a caller passed on.
    if type(address.port) is not int or not 0 < address.port < 65536 or type(address.host) is not str:
        return None
    return _scope_of_host(address.host)


# Remembered, since every contact of every reply is asked for: a pure function, and the table is bounded.
@functools.lru_cache(limits.DHT_CONTACTS_MAX)
def _scope_of_host(text: str) -> Scope | None:
    try:
        host = ipaddress.ip_address(text)
    except ValueError:
        return None
    if host.is_loopback:
        return Scope.LOOPBACK
    if host.is_multicast or host.is_unspecified or host == _BROADCAST or int(host) >> 24 == 0:
        return None
    if host.is_link_local:
        return Scope.LINK
    if isinstance(host, ipaddress.IPv6Address):
        if host.ipv4_mapped is not None:
            return None
    elif host.is_reserved:
        return None
    return Scope.GLOBAL if host.is_global else Scope.SITE


def family_of(address: Address) -> int:
    """4 or 6, of an address that has a scope."""
    return 6 if ":" in address.host else 4


def network_of(address: Address) -> str:
    """The network that `address`, which has a scope, counts as: /24, or /48 of IPv6."""
    return _network_of_host(address.host)


@functools.lru_cache(limits.DHT_CONTACTS_MAX)
def _network_of_host(text: str) -> str:
    host = ipaddress.ip_address(text.partition("%")[0])
    return str(ipaddress.ip_network((int(host), _NETWORK_BITS[host.version]), strict=False))


def may_be_told(contact: Scope, listener: Scope) -> bool:
    """Whether a contact's address means to who listens what it means here.

    Link-local ones need a zone and are never told; private ones only to who came from one, loopback ones on this host.
    """
    if contact is Scope.GLOBAL:
        return True
    if contact is Scope.SITE:
        return listener in (Scope.SITE, Scope.LOOPBACK)
    return contact is Scope.LOOPBACK and listener is Scope.LOOPBACK
