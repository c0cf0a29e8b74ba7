"""The network interfaces of this machine, as the LAN beacon needs them.

Read anew every time: laptops move, cables are pulled, tunnels come up. Directed broadcast addresses are computed from
the netmask where the system names none (Linux, for an address that was added without `broadcast`).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface that is up. `broadcasts`: directed broadcast addresses; `networks`: as "address/prefix".

    `ipv4`: its first IPv4 address or None; `has_ipv6`: whether it carries IPv6; `index`: the system's number for it.
    """

    name: str
    index: int
    ipv4: str | None
    broadcasts: tuple[str, ...]
    networks: tuple[str, ...]
    has_ipv6: bool
    is_loopback: bool


InterfaceReader = Callable[[], tuple[Interface, ...]]


def read_interfaces() -> tuple[Interface, ...]:
    """The interfaces that are up, in the order of their names; empty where the system does not tell."""
    try:
        addresses = psutil.net_if_addrs()
        up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    except (OSError, psutil.Error):
        return ()
    indexes: dict[str, int] = {}
    for name in sorted(up):
        try:
            indexes[name] = socket.if_nametoindex(name)
        except OSError:
            indexes[name] = 0  # a name of the tool and not of the system: sends that need the number fail alone
    return interfaces_of(addresses, indexes)


def interfaces_of(table: Mapping[str, Sequence[Any]], indexes: Mapping[str, int]) -> tuple[Interface, ...]:
    """Interfaces from rows as `psutil.net_if_addrs` gives them; `indexes`: number by name of those that are up."""
    found = []
    for name in sorted(indexes):
        rows = table.get(name, ())
        ipv4 = [ip for ip in (_interface_of(row) for row in rows if row.family == socket.AF_INET) if ip is not None]
        ipv6 = [ip for ip in (_interface_of(row) for row in rows if row.family == socket.AF_INET6) if ip is not None]
        if not ipv4 and not ipv6:
            continue
        is_loopback = all(ip.ip.is_loopback for ip in (*ipv4, *ipv6))
        broadcasts = [str(ip.network.broadcast_address) for ip in ipv4 if ip.network.prefixlen < 31]
        found.append(
            Interface(
                name,
                indexes[name],
                str(ipv4[0].ip) if ipv4 else None,
                tuple(dict.fromkeys(broadcasts)),
                tuple(str(ip) for ip in (*ipv4, *ipv6)),
                bool(ipv6),
                is_loopback,
            )
        )
    return tuple(found)


def _interface_of(row: Any) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface | None:
    host = str(row.address).partition("%")[0]
    mask = row.netmask or ("255.255.255.255" if row.family == socket.AF_INET else "128")
    try:
        if row.family == socket.AF_INET6 and ":" in mask:
            mask = str(int(ipaddress.IPv6Address(mask)).bit_count())
        return ipaddress.ip_interface(f"{host}/{mask}")
    except ValueError:
        return None
