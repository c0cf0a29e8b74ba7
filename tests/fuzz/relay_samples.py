"""How the decoders of circuits are fed: pipes of both kinds, and a carrier between a link and a relay that are not there."""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import Any

from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link
from p2pcompute.net.relay_carrier import RelayCarrier
from p2pcompute.net.relay_legs import Circuits
from p2pcompute.net.relay_pipe import ClearPipe, PipeBroken, TlsPipe
from p2pcompute.net.tls import admission_error_from_tls, client_context, server_context
from p2pcompute.wire import framing, messages
from p2pcompute.wire.versions import ALPN_STREAM
from tests.fuzz import wire_samples as ws
from tests.support.networks import make_member, make_network

_LEAF = b"leaf of the other end"


class _Identity:
    """A member of a network of today: TLS reads the machine's clock."""

    def __init__(self) -> None:
        member = make_member(make_network("fuzzed"), "fuzzed")
        self._client = client_context(member.membership, member.key, [ALPN_STREAM])
        self._server = server_context(member.membership, member.key, [ALPN_STREAM])

    def client_context(self) -> ssl.SSLContext:
        return self._client

    def server_context(self) -> ssl.SSLContext:
        return self._server

    def tls_error(self, error: Exception, dialled: bool) -> P2PComputeError:
        return admission_error_from_tls(error, dialled)


@functools.cache
def _identity() -> _Identity:
    return _Identity()


def _first_flight() -> bytes:
    pipe = TlsPipe(_identity(), dialled=True)
    pipe.start()
    return pipe.take()


def client_hellos() -> list[bytes]:
    """What the end that dials says first."""
    return [_first_flight()]


def server_hellos() -> list[bytes]:
    """The beginning of an answer: all of it is understood only by the handshake that it belongs to."""
    pipe = TlsPipe(_identity(), dialled=False)
    pipe.feed(_first_flight())
    return [pipe.take()[:60]]


def _feed(pipe: Any, data: bytes) -> object:
    half = len(data) // 2
    try:
        return [pipe.feed(data[:half]), pipe.feed(data[half:])]
    except PipeBroken as broken:
        raise broken.error from broken


def feed_accepting(data: bytes) -> object:
    """The end that was dialled hears `data` first."""
    return _feed(TlsPipe(_identity(), dialled=False), data)


def feed_dialling(data: bytes) -> object:
    """The end that dialled hears `data` as the answer."""
    pipe = TlsPipe(_identity(), dialled=True)
    pipe.start()
    return _feed(pipe, data)


def feed_clear(data: bytes) -> object:
    """An end of a network in memory."""
    return _feed(ClearPipe(b"own leaf"), data)


def clear() -> list[bytes]:
    """A leaf, and what a link says after it."""
    shown = len(_LEAF).to_bytes(2) + _LEAF
    hello = framing.message_frame(ws.of_messages((messages.Hello,))[0])
    return [shown, shown + hello, shown + b"".join(ws.frames())]


class _Outer:
    """The link to the relay: has room, and forgets what it is given."""

    peer = PeerId(b"r" * 32)
    remote = Address("127.0.0.1", 9876)
    closed = False

    def named(self) -> str:
        return "the relay"

    def has_room(self) -> bool:
        return True

    def send(self, message: messages.Message) -> None:
        pass

    send_bulk = send


def feed_carrier(owner: Any, clock: Any, data: bytes) -> object:
    """A carrier whose circuit is open hears `data`."""

    async def main() -> None:
        link = Link(owner, clock, dialled=False)
        outer: Any = _Outer()
        hello = messages.Hello(1, 1, bytes(32), (), b"", "test", b"instance")
        carrier = RelayCarrier(
            link,
            lambda: hello,
            ClearPipe(b"own leaf"),
            Circuits(),
            outer,
            lambda: None,
            lambda error: None,
            handshake_timeout_s=10.0,
        )
        carrier.granted(1 << 20)
        carrier.received(data[:100])
        carrier.received(data[100:])
        carrier.abort()
        await asyncio.sleep(0)

    asyncio.run(main())
    return None
