"""Where other machines can reach this one: the addresses of its interfaces."""

from __future__ import annotations

import ipaddress
import socket

import psutil

from p2pcompute.model import limits
from p2pcompute.model.peer import Address


def own_addresses(host: str | None, port: int) -> tuple[Address, ...]:
    """The addresses for the record of a peer that listens at `host` (None: everywhere), private IPv4 first.

    Loopback is told only where there is nothing else: to others it would mean themselves. Link-local IPv6 needs a zone that means
    nothing elsewhere, so it is left out.
    """
    if host is not None:
        return (Address(host, port),)
    found: list[tuple[int, str]] = []
    loopback: list[tuple[int, str]] = []
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    for name, entries in sorted(psutil.net_if_addrs().items()):
        if name not in up:
            continue
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            address = ipaddress.ip_address(entry.address.partition("%")[0])
            rank = (0 if address.version == 4 else 2) + (0 if address.is_private else 1)
            if address.is_loopback:
                loopback.append((rank, str(address)))
            elif not address.is_link_local and not address.is_unspecified:
                found.append((rank, str(address)))
    chosen = sorted(dict.fromkeys(found or loopback))
    return tuple(Address(text, port) for _, text in chosen[: limits.ADDRESSES_MAX])
