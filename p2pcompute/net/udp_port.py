"""A UDP port of this machine, both families at one number.

What the system refuses to send is lost like any datagram and counted: a full buffer, no route, a network that went away. An error
that a receiver's machine reported (ICMP) harms nothing either. Sockets are read in bursts and written directly: the
transports of asyncio read one datagram a round of the loop, into a buffer of 256 KiB, and would send late what does not go at once.
Refuses to know what datagrams say.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

from p2pcompute.model import limits
from p2pcompute.model.errors import PortTakenError
from p2pcompute.model.peer import Address
from p2pcompute.net.beacon import source_address, zone_index
from p2pcompute.net.datagrams import Received

#: One byte more than may be, so that a longer one is seen to be longer.
_READ_BYTES = limits.DATAGRAM_BYTES_MAX + 1
#: Read before others have their turn on the loop: 2 ms.
_BURST = 64
#: Asked of the system for each socket, which may grant less: what 1,000 datagrams need while the loop is busy.
_BUFFER_BYTES = 2 << 20
#: Addresses that are kept in both forms; both are cheap to make again.
_CACHED_MAX = 4_096
#: Free numbers that are tried until one is free in both families.
_PAIR_TRIES = 16
_IPV4_ANY = "0.0.0.0"
_IPV6_ANY = "::"


async def open_udp_port(host: str | None, port: int, received: Received) -> UdpPort:
    """Open UDP port `port` (0: any that is free) at `host` (None: every interface, both families). Raises PortTakenError."""
    opened = UdpPort(_bound(host, port), received)
    await opened.listen()
    return opened


class UdpPort:
    """See the module. Made by `open_udp_port`; a `DatagramPort`."""

    def __init__(self, sockets: dict[int, socket.socket], received: Received) -> None:
        #: By family; empty once closed.
        self._sockets = sockets
        self._received = received
        self._port = int(next(iter(sockets.values())).getsockname()[1])
        #: Of `listen`.
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Sockets that the loop watches, and transports where it cannot watch sockets.
        self._watched: list[socket.socket] = []
        self._transports: list[asyncio.DatagramTransport] = []
        #: `Address` by what the system calls it, so that datagrams of one source carry one object.
        self._sources: dict[tuple[Any, ...], Address] = {}
        #: The other way round, with the socket.
        self._targets: dict[Address, tuple[socket.socket, tuple[Any, ...]]] = {}
        #: What the system refused to send, and errors instead of datagrams.
        self.refused_sends = 0
        self.errors_received = 0

    @property
    def port(self) -> int:
        """Its number."""
        return self._port

    async def listen(self) -> None:
        """Begin to hand in datagrams."""
        self._loop = asyncio.get_running_loop()
        for opened in self._sockets.values():
            try:
                self._loop.add_reader(opened, self._read, opened)
            except NotImplementedError:  # the loop of Windows
                transport, _ = await self._loop.create_datagram_endpoint(lambda: _Reader(self), sock=opened)
                self._transports.append(transport)
            else:
                self._watched.append(opened)

    def send(self, data: bytes, to: Address) -> None:
        """Send one datagram; what the system refuses is lost, and counted in `refused_sends`."""
        target = self._targets.get(to) or self._target(to)
        if target is None:
            self.refused_sends += 1
            return
        try:
            target[0].sendto(data, target[1])
        except (OSError, OverflowError):  # the latter for the number of an interface that no system has
            self.refused_sends += 1

    def close(self) -> None:
        """Close the sockets; a second call does nothing."""
        for watched in self._watched:
            assert self._loop is not None, "the loop that watches it"
            self._loop.remove_reader(watched)
        for transport in self._transports:
            transport.abort()
        for opened in self._sockets.values():
            opened.close()
        self._watched.clear()
        self._transports.clear()
        self._sockets.clear()
        self._targets.clear()

    def _read(self, opened: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                data, row = opened.recvfrom(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # Windows and BSD report here what a machine answered that we sent to.
                self.errors_received += 1
                continue
            self.hand_in(data, row)
            if not self._watched:
                return  # whoever received it has closed us

    def hand_in(self, data: bytes, row: tuple[Any, ...]) -> None:
        """A datagram came from what the system calls `row`."""
        source = self._sources.get(row)
        if source is None:
            source = self._source(row)
        if source.port and self._sockets:
            self._received(data, source)

    def _source(self, row: tuple[Any, ...]) -> Address:
        if len(self._sources) >= _CACHED_MAX:
            self._sources.clear()
        source = self._sources[row] = source_address(row)
        return source

    def _target(self, to: Address) -> tuple[socket.socket, tuple[Any, ...]] | None:
        """Socket and system's name for `to`, None where this machine cannot send there now."""
        is_ipv6 = ":" in to.host
        opened = self._sockets.get(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
        if opened is None or not 0 < to.port < 65536 or not to.is_numeric:
            return None
        if not is_ipv6:
            target = (opened, (to.host, to.port))
        else:
            host, _, zone = to.host.partition("%")
            try:
                scope = zone_index(zone)
            except OSError:
                return None  # the interface is gone, and its peer with it
            if zone:
                # Not kept: an interface that comes back has another number.
                return opened, (host, to.port, 0, scope)
            return self._keep(to, (opened, (host, to.port, 0, 0)))
        return self._keep(to, target)

    def _keep(
        self, to: Address, target: tuple[socket.socket, tuple[Any, ...]]
    ) -> tuple[socket.socket, tuple[Any, ...]]:
        if len(self._targets) >= _CACHED_MAX:
            self._targets.clear()
        self._targets[to] = target
        return target


class _Reader(asyncio.DatagramProtocol):
    """Reads where the loop cannot watch sockets."""

    def __init__(self, port: UdpPort) -> None:
        self._port = port

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._port.hand_in(data, addr)

    def error_received(self, exc: Exception) -> None:
        self._port.errors_received += 1


def _bound(host: str | None, port: int) -> dict[int, socket.socket]:
    """Sockets bound to one number, by family. Raises PortTakenError."""
    if host is not None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return {family: _open(family, host, port)}
        except OSError as error:
            raise _taken(port, error) from error
    for attempt in range(_PAIR_TRIES):
        try:
            first = _open(socket.AF_INET, _IPV4_ANY, port)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                break
            raise _taken(port, error) from error
        try:
            second = _open(socket.AF_INET6, _IPV6_ANY, first.getsockname()[1])
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return {socket.AF_INET: first}  # no IPv6 here
            first.close()
            if port or attempt == _PAIR_TRIES - 1:
                raise _taken(port, error) from error
        else:
            return {socket.AF_INET: first, socket.AF_INET6: second}
    try:
        return {socket.AF_INET6: _open(socket.AF_INET6, _IPV6_ANY, port)}
    except OSError as error:
        raise _taken(port, error) from error


def _taken(port: int, error: OSError) -> PortTakenError:
    return PortTakenError(
        f"UDP port {port} cannot be used: {error.strerror or error}; end the program that holds it, or choose another port"
    )


def _open(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            opened.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((host, port))
    except BaseException:
        opened.close()
        raise
    return opened
