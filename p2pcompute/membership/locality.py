"""Which of a peer's addresses to try first: the nearer, the sooner.

Only an order of tries, never a reason to believe anything: whoever wrote a record chose the addresses in it.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence

from p2pcompute.model import limits

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK = 0
SAME_SUBNET = 1
LINK_LOCAL = 2
PRIVATE = 3
ELSEWHERE = 4
NAME = 5


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """The networks written in `texts` ("192.168.1.20/24"); what is not one is left out."""
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            continue
    return tuple(networks)


def locality(host: str, own_networks: Sequence[Network] = ()) -> int:
    """0 for this machine, then the own subnets, link-local, private and other addresses, and names last."""
    address, place = _parsed(host)
    if address is not None and any(address in network for network in own_networks):
        return SAME_SUBNET
    return place


# Remembered, since every address of every record that is renewed is asked for: a pure function, and the table is bounded.
@functools.lru_cache(limits.HOSTS_PARSED_MAX)
def _parsed(host: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address | None, int]:
    """`host` where own networks may be nearer to it, and its place without them."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None, NAME
    if address.is_loopback:
        return None, LOOPBACK
    if address.is_link_local:
        return None, LINK_LOCAL
    return address, PRIVATE if address.is_private else ELSEWHERE
