"""The first carrier: TLS over TCP as a plain stream of frames, read straight into the link's buffer; and the port of a peer.

Connections are accepted bare and wrapped afterwards, so that a flood is turned away before it costs a handshake and a failed handshake can
be told with its reason. ALPN names the protocol: a connection that asks for HTTP goes to the WebSocket carrier at the same port. Refuses to
know: frames, who may link.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

from p2pcompute.model import limits
from p2pcompute.model.errors import LinkClosedError, P2PComputeError, PortTakenError, UnknownNameError
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link
from p2pcompute.net.ports import bound_sockets, candidate_ports
from p2pcompute.net.tls import read_leaf
from p2pcompute.net.transport import Accept, Refused, Spawn
from p2pcompute.wire.messages import Hello
from p2pcompute.wire.versions import ALPN_HTTP, ALPN_STREAM

#: How long the other side may take to answer the end of TLS.
SHUTDOWN_TIMEOUT_S = 2.0
#: Pause after the system refused to accept, as it does while it has no file descriptors left.
_ACCEPT_PAUSE_S = 0.2
#: What the kernel may hold unsent: control waits behind it, and more of it makes nothing faster.
_KERNEL_UNSENT_BYTES = 256 * 1024
#: Where Linux's struct tcp_info counts segments: all that were sent again, all that were sent.
_SENT_AGAIN_AT, _SENT_AT, _TCP_INFO_BYTES = 100, 136, 144


class TlsIdentity(Protocol):
    """What the carrier needs of a peer's identity."""

    def server_context(self) -> ssl.SSLContext:
        """For accepting."""

    def client_context(self) -> ssl.SSLContext:
        """For dialling."""

    def hello(self) -> Hello:
        """The first message."""

    def tls_error(self, error: Exception, dialled: bool) -> P2PComputeError:
        """What a failed handshake means."""


class StreamCarrier(asyncio.BufferedProtocol):
    """One TLS connection under one link."""

    name = "stream"

    def __init__(self, link: Link, hello: Hello) -> None:
        self._link = link
        self._hello = hello
        #: None before TLS is through.
        self._transport: asyncio.Transport | None = None
        self.remote = Address("0.0.0.0", 0)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is through."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.remote = remote_of(transport)
        tune(transport)
        self._link.attach(self, self._hello)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for what arrives."""
        return self._link.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """So much has arrived."""
        self._link.buffer_updated(nbytes)

    def resume_writing(self) -> None:
        """There is room again."""
        self._link.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._link.carrier_lost(exc)

    # the link's side

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep until it can be sent."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def buffered_bytes(self) -> int:
        """What could not be sent yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def leaf(self) -> bytes:
        """The other side's certificate."""
        return read_leaf(self._transport.get_extra_info("ssl_object")) if self._transport is not None else b""

    def loss(self) -> float | None:
        """Share of segments that were sent again."""
        return None if self._transport is None else segments_lost(self._transport.get_extra_info("socket"))

    def close(self) -> None:
        """Send what is kept, then hang up."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Hang up now."""
        if self._transport is not None:
            self._transport.abort()


class HttpDoor(Protocol):
    """The WebSocket carrier's part of the port."""

    def protocol(self, link: Link, hello: Hello, transport: asyncio.Transport) -> asyncio.Protocol:
        """What serves a connection that asks for HTTP and is to carry `link`."""

    async def connect(self, address: Address, link: Link, hello: Hello) -> None:
        """Connect `link` to `address` through HTTP."""


class _Fork(asyncio.Protocol):
    """Sends an accepted connection, as soon as TLS is through, to the carrier that it asked for."""

    def __init__(self, link: Link, hello: Hello, http: HttpDoor | None) -> None:
        self._link = link
        self._hello = hello
        self._http = http

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is through; nothing was read yet."""
        assert isinstance(transport, asyncio.Transport)
        tls = transport.get_extra_info("ssl_object")
        protocol: asyncio.BaseProtocol
        if tls.selected_alpn_protocol() != ALPN_HTTP:
            protocol = StreamCarrier(self._link, self._hello)
        elif self._http is not None:
            protocol = self._http.protocol(self._link, self._hello, transport)
        else:
            self._link.carrier_lost(None)
            transport.abort()
            return
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


class _Tls(ssl.SSLObject):
    """One side of TLS that keeps the alert with which its handshake fails."""

    outgoing: ssl.MemoryBIO | None = None
    alert = b""

    def do_handshake(self) -> None:
        """What asyncio calls until it is through."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            self.alert = self.outgoing.read() if self.outgoing is not None else b""
            raise


class _Overheard:
    """A context for one handshake that keeps hold of what TLS says last."""

    def __init__(self, context: ssl.SSLContext) -> None:
        context.sslobject_class = _Tls
        self._context = context
        self._tls: ssl.SSLObject | None = None

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **options: Any) -> ssl.SSLObject:
        """What asyncio asks of a context."""
        self._tls = self._context.wrap_bio(incoming, outgoing, **options)
        if isinstance(self._tls, _Tls):
            self._tls.outgoing = outgoing
        return self._tls

    @property
    def alert(self) -> bytes:
        """Why the handshake failed, as the other side is told."""
        return self._tls.alert if isinstance(self._tls, _Tls) else b""


class TlsTransport:
    """Listens and dials with TLS. `spawn` runs handshakes; `http` serves and dials the WebSocket carrier."""

    def __init__(
        self,
        identity: TlsIdentity,
        spawn: Spawn,
        *,
        handshake_timeout_s: float = limits.HANDSHAKE_TIMEOUT_S,
        http: HttpDoor | None = None,
    ) -> None:
        self._identity = identity
        self._spawn = spawn
        self._timeout_s = handshake_timeout_s
        self._http = http
        self._listening: list[socket.socket] = []
        #: Tasks that accept, and that shake hands.
        self._accepting: dict[asyncio.Task[object], None] = {}
        #: What ends each handshake under way from outside, and its task.
        self._shaking: dict[socket.socket, asyncio.Task[object]] = {}
        #: Whether what is refused is nobody's business any more.
        self._stopped = False

    async def listen(self, accept: Accept, refused: Refused, host: str | None, port: int, ports_tried: int) -> int:
        """Take connections at `port` or the next free one. Raises PortTakenError."""
        for candidate in candidate_ports(port, ports_tried):
            sockets = bound_sockets(host, candidate)
            if sockets is None:
                continue
            self._listening += sockets
            for listening in sockets:
                self._spawn("accept", self._accept(listening, accept, refused))
            return int(sockets[0].getsockname()[1])
        raise PortTakenError(
            f"ports {port} to {port + ports_tried - 1} are all in use at {host or 'this machine'}: give another with --port"
        )

    async def _accept(self, listening: socket.socket, accept: Accept, refused: Refused) -> None:
        loop = asyncio.get_running_loop()
        with _listed(self._accepting):
            while listening in self._listening:
                try:
                    accepted, _ = await loop.sock_accept(listening)
                except OSError:
                    # A connection that was gone before it was taken, or no descriptors left: both pass.
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                    continue
                link = accept(_address_of(accepted.getpeername)) if listening in self._listening else None
                if link is None:
                    accepted.close()
                else:
                    self._spawn("handshake", self._handshake(accepted, link, refused))

    async def _handshake(self, accepted: socket.socket, link: Link, refused: Refused) -> None:
        remote = _address_of(accepted.getpeername)
        context = _Overheard(self._identity.server_context())
        # asyncio closes the connection of a failed handshake before the alert is sent that tells the other side why.
        last_words = accepted.dup()
        with _listed(self._accepting), last_words, _noted(self._shaking, last_words):
            link.connecting(lambda: _shut_down(last_words))
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: _Fork(link, self._identity.hello(), self._http),
                    accepted,
                    ssl=cast(ssl.SSLContext, context),
                    ssl_handshake_timeout=self._timeout_s,
                    ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
                )
            except OSError as error:
                accepted.close()
                with contextlib.suppress(OSError):
                    last_words.send(context.alert)
                if not self._stopped:
                    refused(remote, link.failure or self._identity.tls_error(error, False))
                link.carrier_lost(error)
            except BaseException:
                accepted.close()
                link.carrier_lost(None)
                raise

    async def connect(self, address: Address, link: Link, carrier: str) -> None:
        """Connect `link` to `address`. Raises AdmissionError, LinkClosedError, UnknownNameError."""
        if carrier not in ("stream", "websocket") or (carrier == "websocket" and self._http is None):
            raise UnknownNameError("carrier", carrier, ["stream"] if self._http is None else ["stream", "websocket"])
        try:
            async with asyncio.timeout(limits.DIAL_TIMEOUT_S):
                if carrier == "websocket" and self._http is not None:
                    await self._http.connect(address, link, self._identity.hello())
                else:
                    await self._connect_stream(address, link)
        except TimeoutError as error:
            raise LinkClosedError(f"{address} does not answer within {limits.DIAL_TIMEOUT_S:.0f} s") from error
        except ssl.SSLError as error:
            raise self._identity.tls_error(error, True) from error
        except OSError as error:
            raise LinkClosedError(f"cannot reach {address}: {error.strerror or error}") from error
        except ValueError as error:
            # What no name server could be asked for: labels too long or empty, a NUL, a lone surrogate.
            raise LinkClosedError(f"{address} is no address that anything can be at: {error}") from error

    async def _connect_stream(self, address: Address, link: Link) -> None:
        context = self._identity.client_context()

        def make() -> StreamCarrier:
            # Here, right before the loop wraps the connection: the context is shared with the WebSocket carrier.
            context.set_alpn_protocols([ALPN_STREAM])
            return StreamCarrier(link, self._identity.hello())

        # An empty server name: a peer has no host name to prove, and none to tell whoever listens in.
        await asyncio.get_running_loop().create_connection(
            make,
            address.host,
            address.port,
            ssl=context,
            server_hostname="",
            ssl_handshake_timeout=limits.DIAL_TIMEOUT_S,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            happy_eyeballs_delay=0.25,
        )

    async def stop(self) -> None:
        """Take no more connections; handshakes under way are dropped."""
        self._stopped = True
        listening, self._listening = self._listening, []
        # What was accepted last begins its handshake after one turn of the loop.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # Not cancelled: a handshake that is cancelled before asyncio's transport knows its protocol leaves that transport open for ever.
        # Whose connection ends closes it itself.
        shaking = dict(self._shaking)
        for connection in shaking:
            _shut_down(connection)
        if shaking:
            await asyncio.wait(shaking.values(), timeout=SHUTDOWN_TIMEOUT_S)
        tasks = list(self._accepting)
        for task in tasks:
            task.cancel()
        # Only when nobody waits on them: the loop would go on watching a descriptor that another socket may get.
        if tasks:
            await asyncio.wait(tasks)
        for bound in listening:
            bound.close()


@contextlib.contextmanager
def _noted(among: dict[socket.socket, asyncio.Task[object]], one: socket.socket) -> Iterator[None]:
    """`one` stands in `among` meanwhile, with the running task."""
    task = asyncio.current_task()
    assert task is not None, "handshakes are tasks"
    among[one] = task
    try:
        yield
    finally:
        del among[one]


def _shut_down(connection: socket.socket) -> None:
    """End a connection that another descriptor still holds: whoever reads there hears of it."""
    with contextlib.suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _listed(tasks: dict[asyncio.Task[object], None]) -> Iterator[None]:
    """The running task stands in `tasks` meanwhile."""
    task = asyncio.current_task()
    assert task is not None, "outside a task"
    tasks[task] = None
    try:
        yield
    finally:
        del tasks[task]


def tune(transport: asyncio.Transport) -> None:
    """Hold little unsent, so that control does not wait behind bulk."""
    transport.set_write_buffer_limits(high=limits.BULK_BUFFER_BYTES, low=limits.BULK_BUFFER_BYTES // 2)
    connection = transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _KERNEL_UNSENT_BYTES)


def segments_lost(connection: socket.socket | None) -> float | None:
    """Share of TCP segments that had to be sent again, 0 to 1; None where the system does not tell."""
    if connection is None or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _TCP_INFO_BYTES:
        return None
    (again,), (sent,) = struct.unpack_from("=I", info, _SENT_AGAIN_AT), struct.unpack_from("=I", info, _SENT_AT)
    return min(again / sent, 1.0) if sent else None


def remote_of(transport: asyncio.BaseTransport) -> Address:
    """The other end of a connection."""
    return _address_of(lambda: transport.get_extra_info("peername"))


def _address_of(peer_name: Callable[[], object]) -> Address:
    try:
        name = peer_name()
    except OSError:
        name = None
    if not isinstance(name, tuple) or len(name) < 2:
        return Address("0.0.0.0", 0)  # it hung up already
    host = str(name[0])
    return Address(host.removeprefix("::ffff:") if host.startswith("::ffff:") and "." in host else host, int(name[1]))
