"""Which port a peer listens at, and the sockets for it: both families at one number."""

from __future__ import annotations

import errno
import socket

from p2pcompute.model import limits
from p2pcompute.model.errors import PortTakenError

#: Ports that other parts of the product use: the beacon's and the console's.
RESERVED_PORTS = frozenset({limits.BEACON_PORT, 9878})
_LISTEN_BACKLOG = 128


def candidate_ports(port: int, ports_tried: int) -> list[int]:
    """The ports to try, from `port` on, those of other parts of the product passed over; 0 is whatever is free."""
    if port == 0:
        return [0]
    return [candidate for candidate in range(port, min(port + ports_tried, 65536)) if candidate not in RESERVED_PORTS]


def bound_sockets(host: str | None, port: int) -> list[socket.socket] | None:
    """Sockets bound to `port` on both families (`host` None) or at `host`; None where it is taken. Raises PortTakenError."""
    wanted = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")] if host is None else [
        (socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    ]  # fmt: skip
    made: list[socket.socket] = []
    for family, address in wanted:
        try:
            bound = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue  # no IPv6 in this kernel
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind((address, made[0].getsockname()[1] if made else port))
            bound.listen(_LISTEN_BACKLOG)
            bound.setblocking(False)
        except OSError as error:
            bound.close()
            if (
                error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
                and (made or family == socket.AF_INET6)
                and host is None
            ):
                continue  # IPv6 is switched off
            for earlier in made:
                earlier.close()
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return None
            raise PortTakenError(f"cannot listen at {address} port {port}: {error.strerror or error}") from error
        made.append(bound)
    if not made:
        raise PortTakenError(f"cannot listen at port {port}: this machine has no network")
    return made
