"""Which addresses a datagram may be sent to: numeric ones of a single machine.

Addresses come from other peers' records. Names would mean a blocking look-up, multicast and broadcast a flood of answers.
"""

from __future__ import annotations

import ipaddress

from p2pcompute.model.peer import Address

_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def can_be_sent_to(address: Address) -> bool:
    """Whether somebody can be at `address`; directed broadcasts, which only their own network knows, the system refuses."""
    if not 0 < address.port < 65536:
        return False
    try:
        host = ipaddress.ip_address(address.host.partition("%")[0])
    except ValueError:
        return False
    return not (host.is_multicast or host.is_unspecified or host == _BROADCAST)
