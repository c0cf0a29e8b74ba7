"""Which range an address is from: of this site, private, or one that the whole Internet knows.

Ranges are listed here rather than asked of `ipaddress`, whose `is_private` and `is_global` mean what IANA's registries say of special
purposes, differ between versions of Python, and call private what anybody outside may write over a datagram (240.0.0.0/4,
198.18.0.0/15, 192.0.2.0/24) and global what stands for an inner IPv4 address (6to4, NAT64, IPv4-compatible).
"""

from __future__ import annotations

import functools
import ipaddress

from p2pcompute.model import limits

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: RFC 1918, RFC 4193.
_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
#: RFC 6598: between customers and the translation of their provider.
_SHARED = ipaddress.IPv4Network("100.64.0.0/10")
#: RFC 4291, 2.5.5.1, deprecated; RFC 6052; RFC 4291, 2.5.7, deprecated.
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_SITE_LOCAL = ipaddress.IPv6Network("fec0::/10")


@functools.lru_cache(limits.HOSTS_PARSED_MAX)
def parsed(host: str) -> IPAddress | None:
    """The address that `host` writes, without its zone, one of IPv4 within IPv6 as IPv4; None for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def is_private(address: IPAddress) -> bool:
    """Whether it is of somebody's own network, or of a provider's: valid there alone, and more than one link of it."""
    return address in _SHARED or _is_own(address)


def is_near(address: IPAddress) -> bool:
    """Whether who is there is of this site: a private address, one of this machine, or of a link of it."""
    return _is_own(address) or address.is_loopback or address.is_link_local


def is_public(address: IPAddress) -> bool:
    """Whether it is one machine's that the whole Internet can reach there, and stands for no other address."""
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    stands_for = address.sixtofour is not None or address.teredo is not None or any(address in each for each in _NAT64)
    return not (stands_for or address in _COMPATIBLE or address in _SITE_LOCAL)


def _is_own(address: IPAddress) -> bool:
    return any(address in network for network in _PRIVATE if network.version == address.version)
