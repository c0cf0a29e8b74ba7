"""The network interfaces of this machine, as the LAN beacon needs them, and word of their changes.

Read anew every time: laptops move, cables are pulled, tunnels come up. Directed broadcast addresses are computed from
the netmask where the system names none (Linux, for an address that was added without `broadcast`).

Linux tells of changes over a netlink socket (rtnetlink(7)); what it says is not read but taken as a hint to look, so that a
message of a later kernel, or one lost because the socket was full, means no more than one look. Elsewhere looks are
repeated often.
"""

from __future__ import annotations

import asyncio
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

#: Multicast groups of rtnetlink: links, IPv4 addresses, IPv6 addresses.
_GROUPS = 0x1 | 0x10 | 0x100
#: Changes come in flocks (an address, a route, a flag): one look for all that arrive within so many seconds.
GATHER_S = 0.1
#: Looks where the system tells of changes, and where it does not, seconds.
LOOK_INTERVAL_TOLD_S = 30.0
LOOK_INTERVAL_UNTOLD_S = 3.0
#: Messages read at a time; what is left wakes the loop again.
_READS_MAX = 64


class InterfaceWatch:
    """Calls `look` soon after something about the interfaces changed, and now and then in any case.

    `tells`: use what the system tells, where it does. Must be used inside a running event loop.
    """

    def __init__(self, look: Callable[[], None], *, tells: bool = True) -> None:
        #: What is called; never from within a method of this class.
        self._look = look
        #: The socket on which the system tells, None where it does not.
        self._told = _open_netlink() if tells else None
        #: The next look; None only before `start` and after `stop`.
        self._timer: asyncio.TimerHandle | None = None
        #: Whether the next look is one that the system asked for.
        self._soon = False

    @property
    def interval_s(self) -> float:
        """Seconds between looks that nothing asked for."""
        return LOOK_INTERVAL_UNTOLD_S if self._told is None else LOOK_INTERVAL_TOLD_S

    def start(self) -> None:
        """Begin; the first look is the caller's own."""
        if self._told is not None:
            asyncio.get_running_loop().add_reader(self._told, self._heard)
        self._arm(self.interval_s)

    def stop(self) -> None:
        """End; a second call does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._told is not None:
            asyncio.get_running_loop().remove_reader(self._told)
            self._told.close()
            self._told = None

    def _heard(self) -> None:
        assert self._told is not None, "a closed socket is not read"
        for _ in range(_READS_MAX):
            try:
                self._told.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                break  # ENOBUFS: more happened than the socket holds, which is word of a change like any other
        if not self._soon:
            # Not put off by what comes after it: an interface that flaps for ever is looked at all the same.
            self._soon = True
            self._arm(GATHER_S)

    def _arm(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._soon = False
        self._arm(self.interval_s)
        self._look()


def _open_netlink() -> socket.socket | None:
    if not hasattr(socket, "AF_NETLINK"):
        return None
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    except OSError:
        return None  # a sandbox without netlink
    try:
        opened.bind((0, _GROUPS))
    except OSError:
        opened.close()
        return None
    return opened


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
