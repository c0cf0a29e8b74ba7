"""The second carrier: the same bytes in binary WebSocket messages, for networks that let nothing but HTTP through.

It shares the port of the first: a connection that asks for HTTP by ALPN is served by aiohttp. Where a WebSocket message ends means nothing; frames are
found in the bytes, as on a stream. Certificates are demanded and checked as on a stream. Slower than a stream by a half, so only
used when it is asked for. Refuses to know: frames, who may link. aiohttp is imported when the first such connection comes: it costs 0.3 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable
from socket import SHUT_RDWR
from typing import TYPE_CHECKING, Any

from p2pcompute.model import limits
from p2pcompute.model.errors import LinkClosedError
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link
from p2pcompute.net.stream_carrier import SHUTDOWN_TIMEOUT_S, TlsIdentity, remote_of, segments_lost
from p2pcompute.net.tls import read_leaf
from p2pcompute.net.transport import Spawn
from p2pcompute.wire.messages import Hello
from p2pcompute.wire.versions import ALPN_HTTP

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientWebSocketResponse, web

#: Where a peer's WebSocket is.
PATH = "/p2pc"
#: Bytes put into one message: larger ones move more slowly.
_MESSAGE_BYTES = 256 * 1024
#: The largest message that is taken: one write of a link, which is never cut, fits.
_MESSAGE_BYTES_MAX = 2 * limits.FRAME_BYTES_MAX
#: How long the other side may take to answer the end of a WebSocket.
_CLOSE_TIMEOUT_S = 1.0
#: Turns of the loop that a closed connection needs: TLS, then the socket, then their callbacks.
_SETTLE_TURNS = 5


class WebSocketCarrier:
    """One WebSocket under one link. `serve` runs for as long as it lives."""

    name = "websocket"

    def __init__(
        self,
        socket: web.WebSocketResponse | ClientWebSocketResponse,
        link: Link,
        remote: Address,
        extra: Callable[[str], Any],
        hang_up: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._link = link
        self.remote = remote
        self._extra = extra
        self._hang_up = hang_up
        # Read now: aiohttp forgets the connection when it closes, and the link may ask later.
        self._leaf = read_leaf(extra("ssl_object"))
        #: What waits to be sent.
        self._waiting: deque[bytes | memoryview] = deque()
        self._waiting_bytes = 0
        self._is_closing = False
        self._is_full = False
        #: Hangs up where what is kept, or the end, is not taken in time; set by `close`.
        self._timer: asyncio.TimerHandle | None = None
        #: Set while there is something to do for `_send`.
        self._awake = asyncio.Event()

    async def serve(self, hello: Hello) -> None:
        """Attach the link and move its bytes, until either side ends it."""
        from aiohttp import WSMsgType

        self._link.attach(self, hello)
        sending: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send())
                async for message in self._socket:
                    if message.type is not WSMsgType.BINARY:
                        break
                    self._link.feed(message.data)
                sending.cancel()
        finally:
            self._is_closing = True
            if self._timer is not None:
                self._timer.cancel()
            self._hang_up()
            self._link.carrier_lost(None)

    async def _send(self) -> None:
        while True:
            await self._awake.wait()
            self._awake.clear()
            while self._waiting:
                pieces, size_bytes = [self._waiting.popleft()], 0
                size_bytes = len(pieces[0])
                while self._waiting and size_bytes + len(self._waiting[0]) <= _MESSAGE_BYTES:
                    size_bytes += len(self._waiting[0])
                    pieces.append(self._waiting.popleft())
                try:
                    await self._socket.send_bytes(b"".join(pieces))
                except (ConnectionError, RuntimeError):
                    return  # it is closed, and the reader hears of it
                self._waiting_bytes -= size_bytes
                if self._is_full and self._waiting_bytes <= limits.BULK_BUFFER_BYTES // 2:
                    self._is_full = False
                    self._link.writable()
            if self._is_closing:
                await self._socket.close()
                return

    # --- the link's side ------------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep until it can be sent."""
        if self._is_closing:
            return
        for start in range(0, len(data), _MESSAGE_BYTES):
            self._waiting.append(data[start : start + _MESSAGE_BYTES])
        self._waiting_bytes += len(data)
        self._is_full = self._is_full or self._waiting_bytes >= limits.BULK_BUFFER_BYTES
        self._awake.set()

    def buffered_bytes(self) -> int:
        """What could not be sent yet."""
        return self._waiting_bytes

    def leaf(self) -> bytes:
        """The other side's certificate."""
        return self._leaf

    def loss(self) -> float | None:
        """Share of segments that were sent again."""
        return segments_lost(self._extra("socket"))

    def close(self) -> None:
        """Send what is kept, then hang up; bounded."""
        if not self._is_closing:
            self._is_closing = True
            # The other side may have stopped reading, and then `_send` waits for ever.
            self._timer = asyncio.get_running_loop().call_later(SHUTDOWN_TIMEOUT_S, self._hang_up)
            self._awake.set()

    def abort(self) -> None:
        """Hang up now."""
        self._is_closing = True
        self._hang_up()


class WebSocketDoor:
    """Serves and dials WebSocket carriers for one peer."""

    def __init__(self, identity: TlsIdentity, spawn: Spawn, handshake_timeout_s: float) -> None:
        self._identity = identity
        self._spawn = spawn
        self._timeout_s = handshake_timeout_s

    def protocol(self, link: Link, hello: Hello, transport: asyncio.Transport) -> asyncio.Protocol:
        """What serves a connection that asks for HTTP and is to carry `link`."""
        from aiohttp import web

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            socket = web.WebSocketResponse(compress=False, max_msg_size=_MESSAGE_BYTES_MAX, timeout=_CLOSE_TIMEOUT_S)
            if request.path != PATH or not socket.can_prepare(request).ok or link.carrier:
                return web.Response(status=426, text=f"this is the port of a peer: it speaks WebSocket at {PATH}\n")
            await socket.prepare(request)
            carrier = WebSocketCarrier(
                socket, link, remote_of(transport), transport.get_extra_info, transport.abort
            )  # fmt: skip
            await carrier.serve(hello)
            return socket

        def give_up() -> None:
            # Whoever asked for HTTP and then for no WebSocket has no link that could notice.
            if not link.carrier:
                transport.abort()
                link.carrier_lost(None)

        link.connecting(give_up)
        asyncio.get_running_loop().call_later(self._timeout_s, give_up)
        return web.Server(answer)()

    async def connect(self, address: Address, link: Link, hello: Hello) -> None:
        """Connect `link` to `address` through HTTP. Raises OSError (ssl.SSLError among them), LinkClosedError."""
        import aiohttp

        context = _HttpContext.over(self._identity.client_context())
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=1))
        try:
            socket = await session.ws_connect(
                f"https://{address}{PATH}",
                compress=0,
                max_msg_size=_MESSAGE_BYTES_MAX,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT_S),
            )
        except BaseException as error:
            await session.close()
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                raise error.certificate_error from error
            if isinstance(error, aiohttp.ClientConnectorError):
                raise error.os_error from error
            if isinstance(error, aiohttp.ClientError) and not isinstance(error, OSError):
                raise LinkClosedError(f"{address} serves no WebSocket of a peer: {error}") from error
            raise
        self._spawn("websocket", self._serve(session, socket, address, link, hello))

    async def _serve(
        self, session: ClientSession, socket: ClientWebSocketResponse, address: Address, link: Link, hello: Hello
    ) -> None:
        connection = socket.get_extra_info("socket")

        def hang_up() -> None:
            # aiohttp has no close that does not wait; it hears of this one from the system.
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(SHUT_RDWR)

        try:
            await WebSocketCarrier(socket, link, address, socket.get_extra_info, hang_up).serve(hello)
        finally:
            hang_up()
            await session.close()
            for _ in range(_SETTLE_TURNS):
                # The transports below hear of the end in the next turns of the loop, and must not outlive it.
                await asyncio.sleep(0)


class _HttpContext(ssl.SSLContext):
    """A peer's client context that asks for HTTP. aiohttp wants a real context, and only the peer's holds its key."""

    _inner: ssl.SSLContext

    @classmethod
    def over(cls, inner: ssl.SSLContext) -> _HttpContext:
        """One that does everything by `inner`."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context._inner = inner
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """What asyncio asks of a context. `inner` is shared with the other carrier, which names its protocol in the same way."""
        self._inner.set_alpn_protocols([ALPN_HTTP])
        return self._inner.wrap_bio(incoming, outgoing, server_side=server_side)
