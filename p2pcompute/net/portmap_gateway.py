"""The default gateway of this machine: the router that is asked to forward a port.

Linux tells in a file; other systems are asked with `netstat -rn`, which macOS, the BSDs and Windows have alike. A machine without an IPv4
gateway, or whose default route is a tunnel, has no router to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

LINUX_ROUTES = Path("/proc/net/route")
#: How long `netstat` may take.
NETSTAT_TIMEOUT_S = 3.0
#: Text of `netstat` that is read; the routes of an ordinary machine have 10 kB.
NETSTAT_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Gateway:
    """A router (`host`) and the address that this machine has towards it (`own`), both IPv4."""

    host: str
    own: str


#: Finds the gateway; None where there is none.
GatewayFinder = Callable[[], Awaitable[Gateway | None]]


async def find_gateway() -> Gateway | None:
    """The gateway of the default route as it is now, None where there is none."""
    host = parse_linux_routes(_read_linux_routes()) if sys.platform.startswith("linux") else await _ask_netstat()
    own = own_address_towards(host) if host is not None else None
    return Gateway(host, own) if host is not None and own is not None else None


def parse_linux_routes(text: str) -> str | None:
    """The gateway of the default route with the lowest metric, from the text of /proc/net/route; None where there is none."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        try:
            destination, gateway, flags, metric, mask = (int(fields[at], base) for at, base in _LINUX_FIELDS)
            # The file shows addresses in the byte order of the machine, which network order is not on common ones.
            host = str(ipaddress.IPv4Address(gateway.to_bytes(4, sys.byteorder)))
        except (ValueError, IndexError, OverflowError):
            continue
        if destination == 0 and mask == 0 and gateway and flags & _ROUTE_UP and flags & _ROUTE_GATEWAY:
            found.append((metric, host))
    return min(found)[1] if found else None


def parse_netstat_routes(text: str) -> str | None:
    """The gateway of the first IPv4 default route in what `netstat -rn` prints on macOS, BSDs or Windows; None where there is none."""
    for line in text.splitlines():
        fields = line.split()
        # "default 192.168.1.1 UGScg en0", or "0.0.0.0 0.0.0.0 192.168.1.1 192.168.1.20 25".
        candidate = ""
        if len(fields) >= 3 and fields[0] == "default":
            candidate = fields[1]
        elif len(fields) >= 4 and fields[0] == fields[1] == "0.0.0.0":
            candidate = fields[2]
        with contextlib.suppress(ValueError):
            return str(ipaddress.IPv4Address(candidate))
    return None


def own_address_towards(host: str) -> str | None:
    """The IPv4 address from which this machine would send to `host`, None where it cannot. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


#: Columns of /proc/net/route and their bases: destination, gateway, flags, metric, mask.
_LINUX_FIELDS = ((1, 16), (2, 16), (3, 16), (6, 10), (7, 16))
_ROUTE_UP = 0x1
_ROUTE_GATEWAY = 0x2


def _read_linux_routes() -> str:
    try:
        return LINUX_ROUTES.read_text(errors="replace")
    except OSError:
        return ""


async def _ask_netstat() -> str | None:
    try:
        process = await asyncio.create_subprocess_exec(
            "netstat", "-rn", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )  # fmt: skip
    except OSError:
        return None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(NETSTAT_TIMEOUT_S):
            text = await process.stdout.read(NETSTAT_BYTES_MAX)
    except TimeoutError:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return parse_netstat_routes(text.decode(errors="replace"))
