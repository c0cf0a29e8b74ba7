"""The control socket: how the command line, the library and the console reach a running peer.

Owns both ends. A Unix socket of mode 0600 in a folder of mode 0700, and on Linux the kernel's word about who calls
(SO_PEERCRED); where Unix sockets are missing, loopback with a secret from a file of mode 0600 at the same path. One
connection carries many calls. A call has a method and arguments, may be fed values on its way, gives notices and ends
with an answer or an error; it is cancelled when its client hangs up or is gone. What a method does with that is its own decision.

Refuses to know any method.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import structlog

from p2pcompute.model import limits
from p2pcompute.model.errors import (
    BusyError,
    LinkClosedError,
    NotRunningError,
    P2PComputeError,
    ProtocolError,
)
from p2pcompute.net.control_endpoint import is_our_user, listening_socket, read_endpoint, write_endpoint
from p2pcompute.net.control_faults import error_of, fault_of
from p2pcompute.net.control_frames import SECRET_BYTES, Credit, FrameProtocol, Intake, Window
from p2pcompute.wire.messages import Answer, Call, Fault, Feed, Goodbye, Hangup, Message, Notice, Ping, Pong

_log = structlog.get_logger("control")

START_HINT = "start one with `p2pcompute up`"
#: Connecting to a socket on the same machine; a peer whose loop hangs for so long is as good as not running.
CONNECT_TIMEOUT_S = 5.0
#: What was written last must be read within this, else it is lost: the other end does not read at all.
FAREWELL_TIMEOUT_S = 1.0
#: Turns of the loop between the acceptance of a connection and `connection_made`.
SETTLE_TURNS = 3

Handler = Callable[["ControlCall"], Awaitable[object]]
NoticeHandler = Callable[[Any], object]


class ControlCall:
    """One open call, as its handler sees it."""

    def __init__(self, connection: _Connection, call: Call) -> None:
        self.number = call.call
        #: What to do, such as "job.submit".
        self.method = call.method
        #: By name; plain msgpack values that nobody has checked.
        self.arguments: dict[str, Any] = call.arguments
        self._connection = connection
        self._window = Window()
        self._intake = Intake(lambda count: connection.protocol.write_now(Credit(self.number, count)))

    async def notice(self, value: object) -> None:
        """Tell the client something on the way; waits while it is slow to take them. Raises LinkClosedError."""
        await self._window.take()
        await self._connection.protocol.send(Notice(self.number, value))

    def notice_now(self, value: object) -> bool:
        """Tell the client unless it is behind; whether it was told. For progress, where the next one says it all again."""
        if not self._window.take_now():
            return False
        self._connection.protocol.write_now(Notice(self.number, value))
        return True

    @property
    def client(self) -> object:
        """The same object for all calls of one connection, and for no other's."""
        return self._connection

    def when_client_gone(self, act: Callable[[], None]) -> None:
        """Call `act` once when the connection of this call ends, whenever the call itself does."""
        self._connection.when_gone(act)

    def feed(self) -> AsyncIterator[Any]:
        """The values that the client feeds, in order, until it says that there are no more."""
        return self._intake.values()


class ControlServer:
    """Answers calls at `path` for as long as it is entered (`async with`).

    `handler` runs once a call, in a task of its own; what it returns is the answer, and an error of our tree that it
    raises is raised at the client. It is cancelled when the client hangs up, is gone, or the server is left.
    """

    def __init__(self, path: Path, handler: Handler, *, loopback: bool | None = None) -> None:
        #: Where the socket is, or the file with port and secret.
        self.path = path
        self._handler = handler
        self._loopback = not hasattr(socket, "AF_UNIX") if loopback is None else loopback
        self._secret = b""
        self._server: asyncio.Server | None = None
        self._identity: tuple[int, int] | None = None
        #: In the order in which they came; a dict because a set has none.
        self._connections: dict[_Connection, None] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        await self._group.__aenter__()
        try:
            if self._loopback:
                self._secret = secrets.token_bytes(SECRET_BYTES)
                self._server = await loop.create_server(self._connected, "127.0.0.1", 0)
                port = self._server.sockets[0].getsockname()[1]
                write_endpoint(self.path, port, self._secret)
            else:
                self._server = await loop.create_unix_server(self._connected, sock=listening_socket(self.path))
            status = self.path.lstat()
            self._identity = (status.st_dev, status.st_ino)
        except BaseException:
            if self._server is not None:
                self._server.close()
            await self._group.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_listening()
        # Only our own socket: whoever owns the instance by now may have put another in its place.
        with contextlib.suppress(OSError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self.path.unlink()
        for connection in list(self._connections):
            connection.stop()
        # Without the error of the body: every call is cancelled already, and the group would only wrap it.
        await self._group.__aexit__(None, None, None)
        for connection in list(self._connections):
            await connection.protocol.finish(FAREWELL_TIMEOUT_S)

    async def _stop_listening(self) -> None:
        """Accept no more, then let asyncio finish those accepted just now: closing in between would lose their sockets."""
        if self._server is None:
            return
        loop = asyncio.get_running_loop()
        for listener in self._server.sockets:
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(listener.fileno())
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)
        self._server.close()

    def _connected(self) -> FrameProtocol:
        connection = _Connection(self._handler, self._group, self._secret, self._connections)
        return connection.protocol


class _Connection:
    """One client at the server."""

    def __init__(
        self, handler: Handler, group: asyncio.TaskGroup, secret: bytes, registry: dict[_Connection, None]
    ) -> None:
        self._handler = handler
        self._group = group
        self._registry = registry
        #: Open calls by number, with the task that runs the handler.
        self._calls: dict[int, tuple[ControlCall, asyncio.Task[None]]] = {}
        self._stopped = False
        #: What handlers want done when the client is gone; None once it is.
        self._at_end: list[Callable[[], None]] | None = []
        self.protocol = FrameProtocol(self._arrived, self._lost, secret_expected=secret, admit=is_our_user)
        registry[self] = None

    def stop(self) -> None:
        """The peer stops: say so and cancel every call."""
        self._stopped = True
        self.protocol.write_now(Goodbye("stopping", "this peer is stopping"))
        self._cancel_calls()

    def when_gone(self, act: Callable[[], None]) -> None:
        """See ControlCall; at once where the client is gone already."""
        if self._at_end is None:
            act()
        else:
            self._at_end.append(act)

    def _lost(self) -> None:
        self._registry.pop(self, None)
        self._cancel_calls()
        acts, self._at_end = self._at_end or [], None
        for act in acts:
            act()

    def _cancel_calls(self) -> None:
        for call, task in list(self._calls.values()):
            call._window.close()
            call._intake.end(LinkClosedError("the client of this call is gone"))
            task.cancel()

    def _arrived(self, item: Message | Credit) -> None:
        match item:
            case Call():
                self._begin(item)
            case Feed():
                if (entry := self._calls.get(item.call)) is not None:
                    if item.end:
                        entry[0]._intake.end()
                    else:
                        entry[0]._intake.put(item.value)
            case Hangup():
                if (entry := self._calls.get(item.call)) is not None:
                    entry[0]._window.close()
                    entry[1].cancel()
            case Credit():
                if (entry := self._calls.get(item.call)) is not None:
                    entry[0]._window.add(item.count)
            case Ping():
                self.protocol.write_now(Pong(item.nonce))
            case Goodbye():
                self.protocol.close()
            case _:
                raise ProtocolError(f"a client does not send {type(item).__name__}")

    def _begin(self, message: Call) -> None:
        if message.call in self._calls:
            raise ProtocolError(f"call {message.call} is open already")
        if self._stopped:
            refusal: P2PComputeError = NotRunningError("this peer is stopping")
        elif len(self._calls) >= limits.CONTROL_CALLS_MAX:
            refusal = BusyError(f"{limits.CONTROL_CALLS_MAX} calls are open on this connection: wait for one to end")
        else:
            call = ControlCall(self, message)
            task = self._group.create_task(self._run(call), name=f"control {message.method}")
            self._calls[message.call] = (call, task)
            # Not in the task itself: one that is cancelled before its first step never runs its own clean-up.
            task.add_done_callback(lambda _: self._ended(call))
            return
        self.protocol.write_now(fault_of(message.call, refusal))

    def _ended(self, call: ControlCall) -> None:
        if self._calls.get(call.number, (None, None))[0] is call:
            del self._calls[call.number]
        call._window.close()
        call._intake.end()

    async def _run(self, call: ControlCall) -> None:
        reply: Message
        try:
            reply = Answer(call.number, await self._handler(call))
        except P2PComputeError as error:
            reply = fault_of(call.number, error)
        except Exception as error:  # a defect of ours: told to the client, logged with its traceback, peer goes on
            reply = fault_of(call.number, error)
            if reply.error == P2PComputeError.__name__:
                _log.exception("control.call_failed", method=call.method)
        self._ended(call)
        try:
            await self.protocol.send(reply)
        except LinkClosedError:
            pass  # the client left while the answer was made; nobody is there to be told
        except P2PComputeError as error:  # an answer that cannot be packed, or is too large
            self.protocol.write_now(fault_of(call.number, error))


class ControlClient:
    """Calls methods of a running peer; `ControlClient.connect(path)` makes one. Many calls may be open at once."""

    def __init__(self) -> None:
        self._protocol = FrameProtocol(self._arrived, self._lost, admit=is_our_user)
        #: Open calls by number.
        self._exchanges: dict[int, _Exchange] = {}
        self._next = 1
        self._farewell: P2PComputeError | None = None

    @classmethod
    async def connect(cls, path: Path, *, loopback: bool | None = None) -> ControlClient:
        """Connect to the peer that answers at `path`. Raises NotRunningError."""
        client = cls()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if loopback is None:
                    loopback = not hasattr(socket, "AF_UNIX")
                if loopback:
                    port, secret = read_endpoint(path)
                    await loop.create_connection(lambda: client._protocol, "127.0.0.1", port)
                    client._protocol.write_raw(secret)
                else:
                    await loop.create_unix_connection(lambda: client._protocol, os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunningError(f"no peer is running here (nothing answers at {path}): {START_HINT}") from error
        except TimeoutError as error:
            raise NotRunningError(f"the peer at {path} does not answer: stop it and {START_HINT}") from error
        except OSError as error:
            raise NotRunningError(f"cannot reach the peer at {path}: {error.strerror or error}") from error
        return client

    @property
    def is_open(self) -> bool:
        """Whether the connection still stands."""
        return not self._protocol.closed.is_set()

    async def call(
        self,
        method: str,
        on_notice: NoticeHandler | None = None,
        feed: AsyncIterator[Any] | None = None,
        **arguments: Any,
    ) -> Any:
        """The answer to `method`; cancelling this hangs up.

        `on_notice` is called with every notice, in order, and awaited where it is a coroutine function; while it runs,
        the peer waits with further ones. Values of `feed` are sent as the peer takes them. Raises what the peer
        raised; NotRunningError where the connection is lost.
        """
        exchange = self._open()
        try:
            await self._send(Call(exchange.number, method, arguments))
            if feed is None:
                return await exchange.answer(on_notice)
            try:
                async with asyncio.TaskGroup() as group:
                    feeder = group.create_task(self._feed(exchange, feed))
                    answer = await exchange.answer(on_notice)
                    feeder.cancel()
            except BaseExceptionGroup as errors:
                raise _first(errors) from None
            return answer
        finally:
            self._exchanges.pop(exchange.number, None)
            exchange.window.close()
            if not exchange.ended:
                self._protocol.write_now(Hangup(exchange.number))

    async def close(self) -> None:
        """Close the connection; calls that are open end with NotRunningError. A second call does nothing."""
        self._farewell = self._farewell or NotRunningError("this connection to the peer was closed")
        await self._protocol.finish(FAREWELL_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self) -> _Exchange:
        if not self.is_open:
            raise self._lost_error()
        if len(self._exchanges) >= limits.CONTROL_CALLS_MAX:
            raise BusyError(f"{limits.CONTROL_CALLS_MAX} calls are open on this connection: wait for one to end")
        number = self._next
        self._next += 1
        exchange = _Exchange(number, lambda count: self._protocol.write_now(Credit(number, count)))
        self._exchanges[number] = exchange
        return exchange

    async def _send(self, message: Message) -> None:
        try:
            await self._protocol.send(message)
        except LinkClosedError as error:
            raise self._lost_error() from error

    async def _feed(self, exchange: _Exchange, feed: AsyncIterator[Any]) -> None:
        try:
            async for value in feed:
                await exchange.window.take()
                await self._send(Feed(exchange.number, value))
            await self._send(Feed(exchange.number, None, end=True))
        except (LinkClosedError, NotRunningError):
            pass  # the call has ended, or the connection is gone: its answer says which
        finally:
            if inspect.isasyncgen(feed):
                await feed.aclose()

    def _arrived(self, item: Message | Credit) -> None:
        if isinstance(item, Goodbye):
            self._farewell = NotRunningError(item.text or f"the peer closed the connection: {item.reason}")
            return
        if isinstance(item, Ping):
            self._protocol.write_now(Pong(item.nonce))
            return
        exchange = self._exchanges.get(item.call) if isinstance(item, (Notice, Answer, Fault, Credit)) else None
        if exchange is None:
            return  # of a call that was hung up meanwhile
        match item:
            case Notice():
                exchange.intake.put(item.value)
            case Credit():
                exchange.window.add(item.count)
            case Answer():
                exchange.end(item.value, None)
            case Fault():
                exchange.end(None, error_of(item))

    def _lost(self) -> None:
        for exchange in self._exchanges.values():
            exchange.end(None, self._lost_error())

    def _lost_error(self) -> P2PComputeError:
        if self._protocol.closing_error is not None:
            return NotRunningError(
                f"the peer sent what this release cannot read ({self._protocol.closing_error}): upgrade the older one"
            )
        return self._farewell or NotRunningError(f"the peer has stopped, the connection to it is lost: {START_HINT}")


class _Exchange:
    """One open call at the client."""

    def __init__(self, number: int, give_credit: Callable[[int], None]) -> None:
        self.number = number
        self.window = Window()
        self.intake = Intake(give_credit)
        #: Whether the answer, or the error in its place, is here.
        self.ended = False
        self._value: Any = None

    def end(self, value: Any, error: P2PComputeError | None) -> None:
        if not self.ended:
            self.ended = True
            self._value = value
            self.window.close()
            self.intake.end(error)

    async def answer(self, on_notice: NoticeHandler | None) -> Any:
        async for value in self.intake.values():
            if on_notice is not None:
                outcome = on_notice(value)
                if inspect.isawaitable(outcome):
                    await outcome
        return self._value


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
