"""asyncio's datagram endpoints over a simulated port, for foreign packages such as `kademlia`.

Behaves as the transport of a selector loop does (CPython `asyncio/selector_events.py`), the sharp edges included: what the socket module refuses with an
OSError goes to `error_received`, and anything else that it refuses (a port of 70000, a host that is None) closes the transport for
good and is reported to the loop, which ends a simulated run.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from p2pcompute.model.errors import PortTakenError
from p2pcompute.model.peer import Address
from p2pcompute.sim.hosts import UDP_BYTES_MAX, SimHost, SimPort


async def open_endpoint(
    host: SimHost,
    factory: Callable[[], asyncio.DatagramProtocol],
    port: int,
    is_ipv6: bool,
    remote: tuple[Any, ...] | None,
) -> tuple[SimEndpoint, asyncio.DatagramProtocol]:
    """A transport and its protocol on `host`. Raises OSError where the port is taken."""
    protocol = factory()
    transport = SimEndpoint(host, protocol, is_ipv6, remote)
    try:
        transport.bind(port)
    except PortTakenError as error:
        raise OSError(98, str(error)) from error
    ready = asyncio.get_running_loop().create_future()

    def begin() -> None:
        protocol.connection_made(transport)
        if not ready.done():
            ready.set_result(None)

    asyncio.get_running_loop().call_soon(begin)
    await ready
    return transport, protocol


class SimEndpoint(asyncio.DatagramTransport):
    """A datagram transport on a simulated port."""

    def __init__(
        self, host: SimHost, protocol: asyncio.DatagramProtocol, is_ipv6: bool, remote: tuple[Any, ...] | None
    ) -> None:
        super().__init__()
        self._host = host
        self._protocol: Any = protocol
        self._is_ipv6 = is_ipv6
        #: The only peer, of an endpoint that is connected to one.
        self._remote = remote
        #: None before `bind`.
        self._port: SimPort | None = None
        self._is_closing = False
        self._loop = asyncio.get_running_loop()

    def bind(self, port: int) -> None:
        """Take the port, or a free one for 0. Raises PortTakenError."""
        self._port = self._host.bind(port, self._received)

    def _received(self, data: bytes, source: Address) -> None:
        if self._is_closing:
            return
        if self._remote is not None and (source.host, source.port) != self._remote[:2]:
            return
        row = (source.host, source.port, 0, 0) if self._is_ipv6 else (source.host, source.port)
        self._protocol.datagram_received(data, row)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send one datagram; what cannot be sent ends as it does with a real socket."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._is_closing or self._port is None:
            return
        to = addr if addr is not None else self._remote
        try:
            address = _checked(to)
            if len(data) > UDP_BYTES_MAX:
                raise OSError(90, "message too long")
        except OSError as error:
            self._protocol.error_received(error)
            return
        except Exception as error:
            self._fatal(error)
            return
        self._port.send(bytes(data), address)

    def _fatal(self, error: Exception) -> None:
        self._loop.call_exception_handler(
            {
                "message": "Fatal write error on datagram transport",
                "exception": error,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._end(error)

    def close(self) -> None:
        """Receive nothing any more; a second call does nothing."""
        self._end(None)

    def abort(self) -> None:
        """As `close`: nothing is buffered."""
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            if self._port is not None:
                self._port.close()
            self._loop.call_soon(self._protocol.connection_lost, error)

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._is_closing

    def get_protocol(self) -> Any:
        """Whom it calls."""
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        """Call another one."""
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`sockname` and `peername`; there is no socket."""
        if name == "sockname" and self._port is not None:
            own = self._host.address_for("::" if self._is_ipv6 else "0.0.0.0") or self._host.address
            return (own, self._port.port)
        return self._remote if name == "peername" else default


def _checked(to: Any) -> Address:
    """The address that a socket would send to. Raises OSError, TypeError, OverflowError as it does."""
    host, port = to[0], to[1]
    if not isinstance(host, str) or not isinstance(port, int):
        raise TypeError(f"a host name and a port are needed, not {to!r}")
    if not 0 <= port < 65_536:
        raise OverflowError("sendto(): port must be 0-65535.")
    address = Address(host, port)
    if not address.is_numeric:
        # A real socket would ask a name server, and block the loop meanwhile.
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is no numeric address")
    return address
