"""Which of a peer's addresses to try first: the nearer, the sooner.

Only an order of tries, never a reason to believe anything: whoever wrote a record chose the addresses in it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

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
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return NAME
    if address.is_loopback:
        return LOOPBACK
    if address.is_link_local:
        return LINK_LOCAL
    if any(address in network for network in own_networks):
        return SAME_SUBNET
    return PRIVATE if address.is_private else ELSEWHERE
