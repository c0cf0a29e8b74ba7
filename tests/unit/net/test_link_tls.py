"""Links over real TLS on loopback: admission, hostile bytes at the port, slow handshakes, bulk beside control."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import (
    AdmissionError,
    AdmissionReason,
    BusyError,
    LinkClosedError,
    PeerError,
    PortTakenError,
)
from p2pcompute.model.peer import Address
from p2pcompute.net import stream_carrier, websocket_carrier
from p2pcompute.net.link import Link, LinkSettings
from p2pcompute.net.stream_carrier import TlsTransport
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.framing import FrameType, frame_header
from p2pcompute.wire.messages import BlobWant, EchoWant, Goodbye, Grant, Message
from tests.unit.net.link_help import Dice, Side, TlsIdentity, Wall, sides, tls_identities, until

SHORT = LinkSettings(handshake_timeout_s=0.4)


def test_a_link_comes_up_with_the_roles_of_the_invitation() -> None:
    async def main() -> None:
        async with sides(tls_identities(2)) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            await until(lambda: two.events.up)
            assert link.admission.public_key == two.identity.key.public_key
            assert link.admission.roles == two.link_to(one).admission.roles
            assert (link.path, link.carrier, link.remote) == ("local", "stream", two.address)
            assert link.loss in (None, 0.0)
            link.send(Grant(5))
            await until(lambda: two.events.messages)
        assert one.events.down[0][1] is None
        assert two.events.down[0][1] is None

    asyncio.run(main())


def test_a_name_is_resolved_and_both_families_answer_at_one_port() -> None:
    async def main() -> None:
        one, two = tls_identities(2)
        async with sides([one]) as (dialler,), sides([two]) as (listener,):
            if not socket.has_ipv6:
                pytest.skip("this machine has no IPv6")
            port = await listener.hub.start(None, 0, 1)
            link = await dialler.hub.dial(Address("localhost", port), None)
            assert link.peer == listener.peer
            await link.close("leaving")
            with contextlib.suppress(LinkClosedError):  # IPv6 may be switched off on loopback
                link = await dialler.hub.dial(Address("::1", port), None)
                assert link.remote.host == "::1"

    asyncio.run(main())


def test_a_peer_of_another_network_gets_nothing_and_learns_why() -> None:
    async def main() -> None:
        stranger = TlsIdentity(50, Authority.create("elsewhere", now_wall=time.time(), entropy=Dice(5)))
        (native,) = tls_identities(1)
        async with sides([stranger, native]) as (intruder, host):
            with pytest.raises(AdmissionError) as caught:
                await intruder.hub.dial(host.address, None)
            assert caught.value.reason is AdmissionReason.OTHER_NETWORK
            await until(lambda: host.events.refusals)
            assert isinstance(host.events.refusals[0][1], PeerError | LinkClosedError)
            assert not host.events.up

    asyncio.run(main())


def test_the_dialler_learns_that_it_was_refused_at_the_tls_level() -> None:
    """The dialler trusts the host, the host not the dialler: in TLS 1.3 only the next read says so."""

    async def main() -> None:
        stranger = TlsIdentity(50, Authority.create("elsewhere", now_wall=time.time(), entropy=Dice(5)))
        (native,) = tls_identities(1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        stranger._client = context
        async with sides([stranger, native]) as (intruder, host):
            for _ in range(20):
                with pytest.raises(AdmissionError) as caught:
                    await intruder.hub.dial(host.address, None)
                assert caught.value.reason is AdmissionReason.NO_CERTIFICATE
            assert not host.events.up

    asyncio.run(main())


def test_wrong_peer_and_nobody_there() -> None:
    async def main() -> None:
        async with sides(tls_identities(3)) as (one, two, three):
            with pytest.raises(AdmissionError) as caught:
                await one.hub.dial(two.address, three.peer)
            assert caught.value.reason is AdmissionReason.WRONG_PEER
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                with pytest.raises(LinkClosedError, match="cannot reach"):
                    await one.hub.dial(Address("127.0.0.1", unused.getsockname()[1]), None)
            with pytest.raises(AdmissionError) as caught:
                await one.hub.dial(one.address, None)
            assert caught.value.reason is AdmissionReason.SELF
            with pytest.raises(LinkClosedError, match="cannot reach"):
                await one.hub.dial(Address("no-such-host.invalid", 9), None)
            for host in ("fe80::1%a..b", "fe80::1%²", "a..b", "a\0b", "\ud800"):
                with pytest.raises(LinkClosedError):
                    await one.hub.dial(Address(host, 9), None)

    asyncio.run(main())


def test_both_dial_at_once() -> None:
    async def main() -> None:
        for _ in range(10):
            async with sides(tls_identities(2)) as (one, two):
                async with asyncio.TaskGroup() as group:
                    dials = [
                        group.create_task(side.hub.dial(other.address, None))
                        for side, other in ((one, two), (two, one))
                        for _ in range(2)
                    ]
                await until(lambda one=one, two=two: len(one.hub._open) == len(two.hub._open) == 1)
                assert {dial.result() for dial in dials} == {one.link_to(two), two.link_to(one)}
                assert one.link_to(two).dialled != two.link_to(one).dialled

    asyncio.run(main())


def test_random_bytes_at_the_port_harm_only_their_connection() -> None:
    async def main() -> None:
        rng = random.Random(11)
        async with sides(tls_identities(2)) as (one, two):
            link = await one.hub.dial(two.address, None)
            for size in (1, 5, 300, 70_000):
                reader, writer = await asyncio.open_connection("127.0.0.1", two.port)
                with contextlib.suppress(ConnectionError):
                    writer.write(rng.randbytes(size))
                    await writer.drain()
                    if size < 300:
                        writer.write_eof()
                    await reader.read()
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            await until(lambda: len(two.events.refusals) == 4)
            link.send(Grant(1))
            await until(lambda: two.events.messages)

    asyncio.run(main())


def test_a_link_ends_with_the_membership_of_its_peer() -> None:
    async def main() -> None:
        async with sides(tls_identities(2)) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            await until(lambda: two.hub.link(one.peer) is not None)
            back = two.link_to(one)
            assert back.expires_wall == back.admission.expires_wall < math.inf
            two.hub._clock = Wall(two.hub._clock, back.expires_wall)
            two.hub.beat()
            assert not back.closed
            two.hub._clock = Wall(two.hub._clock, back.expires_wall + 1)
            two.hub.beat()
            await until(lambda: one.events.down and two.events.down)
            for error in (one.events.down[0][1], two.events.down[0][1]):
                assert isinstance(error, AdmissionError)
                assert error.reason is AdmissionReason.EXPIRED
                assert "its membership has ended meanwhile" in str(error)
            assert link.closed

    asyncio.run(main())


def test_a_displaced_handshake_gives_its_socket_back_at_once() -> None:
    async def main() -> None:
        settings = LinkSettings(half_open_max=4, private_factor=100)
        async with sides(tls_identities(2), settings=settings) as (one, two):
            mute = [await asyncio.open_connection("127.0.0.1", two.port) for _ in range(10)]
            await until(lambda: len(two.events.refusals) == 6)
            # Long before the 10 s of a handshake are over.
            for reader, _ in mute[:6]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            assert len(two.hub._open) == 4
            assert all("others wanted its place" in str(error) for _, error in two.events.refusals)
            await one.hub.dial(two.address, two.peer)
            for _, writer in mute:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    asyncio.run(main())


def test_a_slow_handshake_is_closed() -> None:
    async def main() -> None:
        async with sides(tls_identities(2), settings=SHORT) as (one, two):
            # Says nothing at all, and trickles what may be the start of TLS.
            mute, writer_of_mute = await asyncio.open_connection("127.0.0.1", two.port)
            slow, writer_of_slow = await asyncio.open_connection("127.0.0.1", two.port)
            await until(lambda: len(two.hub._half_open) == 2)
            with contextlib.suppress(ConnectionError):
                while not slow.at_eof():
                    writer_of_slow.write(b"\x16")
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await slow.read()
            with contextlib.suppress(ConnectionError):
                await mute.read()
            for writer in (writer_of_mute, writer_of_slow):
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            assert not two.hub._half_open
            await one.hub.dial(two.address, None)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def raw_member(
    identity: TlsIdentity, port: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A member of the network that speaks TLS as it should, and then what it likes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=identity.client_context(), server_hostname="")
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    "said",
    [b"", b"\xff" * 50, frame_header(FrameType.MESSAGE, 0, 70_000), frame_header(FrameType.CHUNK, 2, 1) + b"x"],
)
def test_a_member_that_does_not_greet_is_closed(said: bytes) -> None:
    async def main() -> None:
        one, two = tls_identities(2)
        async with sides([two], settings=SHORT) as (host,), raw_member(one, host.port) as (reader, writer):
            writer.write(said)
            async with asyncio.timeout(5):
                heard = await reader.read()
            assert len(heard) > 9  # its Hello, and where it was told something wrong a goodbye
            await until(lambda: host.events.refusals)
            assert not host.hub._open
            assert not host.events.up

    asyncio.run(main())


def test_a_taken_port_means_the_next_free_one() -> None:
    async def main() -> None:
        one, two, three = tls_identities(3)
        async with sides([one, two]) as (first, second):
            assert first.port != second.port
            with socket.socket() as taken:
                # Whatever the system gives: a number of our own may be another test's.
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                port = taken.getsockname()[1]
                found = await second.hub.start("127.0.0.1", port, 20)
                assert port < found < port + 20
                with pytest.raises(PortTakenError, match="--port"):
                    await second.hub.start("127.0.0.1", port, 1)
        assert three is not None

    asyncio.run(main())


def _serve(side: Side, content: memoryview) -> None:
    def answer(link: Link, message: Message) -> None:
        if isinstance(message, BlobWant):
            link.serve_stream(message.stream, content)

    side.events.on_message = answer


def want(stream: int) -> BlobWant:
    return BlobWant(bytes(32), stream)


def test_control_does_not_wait_behind_bulk() -> None:
    """A ping takes a small part of the time that 200 MB take, in both directions at once."""

    async def main() -> None:
        size = 100 << 20
        content = memoryview(random.Random(1).randbytes(1 << 20) * 100)
        async with sides(tls_identities(2)) as (one, two):
            link = await one.hub.dial(two.address, None)
            await until(lambda: two.events.up)
            _serve(one, content)
            _serve(two, content)
            started = time.monotonic()
            delays = []
            async with asyncio.TaskGroup() as group:
                fetches = [
                    group.create_task(link.request_stream(want, size)),
                    group.create_task(two.link_to(one).request_stream(want, size)),
                ]
                while not all(fetch.done() for fetch in fetches):
                    sent = time.monotonic()
                    link.ping()
                    await until(lambda: not link._pings, wait_s=20)
                    delays.append(time.monotonic() - sent)
            taken = time.monotonic() - started
            assert all(fetch.result() == content for fetch in fetches)
            delays.sort()
            assert len(delays) > 5
            # Both ends share this one loop with all the encryption: a hundredth of the transfer is far below what a
            # full queue of one window would take.
            assert delays[len(delays) // 2] < max(taken / 20, 0.02)

    asyncio.run(main())


def test_many_streams_and_messages_together() -> None:
    async def main() -> None:
        content = memoryview(random.Random(2).randbytes(3_000_000))
        async with sides(tls_identities(2)) as (one, two):
            link = await one.hub.dial(two.address, None)
            _serve(two, content)
            async with asyncio.TaskGroup() as group:
                fetches = [group.create_task(link.request_stream(want, 3_000_000)) for _ in range(20)]
                for slots in range(2_000):
                    link.send(Grant(slots))
                    if slots % 100 == 0:
                        await asyncio.sleep(0)
            assert all(fetch.result() == content for fetch in fetches)
            grants = [message for _, message in two.events.messages if isinstance(message, Grant)]
            assert grants == [Grant(slots) for slots in range(2_000)]

    asyncio.run(main())


def test_large_messages_right_after_the_link_is_up() -> None:
    """They may arrive in one piece with the frame that ends the handshake."""

    async def main() -> None:
        payload = (
            b"\x92\xcd\x75\x30" + b"\xc6" + (900_000).to_bytes(4, "big") + bytes(900_000)
        )  # a kind of a later version
        async with sides(tls_identities(2)) as (one, two):

            def greet(link: Link) -> None:
                link.send_encoded(payload)
                link.send(Grant(1))

            one.events.on_up = two.events.on_up = greet
            await one.hub.dial(two.address, None)
            await until(lambda: one.events.messages and two.events.messages)

    asyncio.run(main())


def test_stop_leaves_nothing_behind_even_in_the_middle_of_things() -> None:
    async def main() -> None:
        async with sides(tls_identities(2)) as (one, two):
            async with asyncio.TaskGroup() as group:
                dial = group.create_task(_quiet(one.hub.dial(two.address, None)))
                await until(lambda: two.hub._half_open or dial.done())
                await two.hub.stop()
            assert not two.hub.links
            assert isinstance(two.hub._transport, TlsTransport)

    asyncio.run(main())


async def _quiet(work: object) -> None:
    with contextlib.suppress(LinkClosedError, AdmissionError):
        await work  # type: ignore[misc]


def test_frames_larger_than_the_limit_end_the_link_with_a_word() -> None:
    async def main() -> None:
        async with sides(tls_identities(2)) as (one, two):
            link = await one.hub.dial(two.address, None)
            link.write_frame(frame_header(FrameType.CHUNK, 2, limits.FRAME_BYTES_MAX + 1))
            await until(lambda: one.events.down and two.events.down)
            assert "frame-too-large" in str(one.events.down[0][1])

    asyncio.run(main())


# --- the WebSocket carrier --------------------------------------------------------------------------------------------


def test_a_websocket_carries_the_same_link() -> None:
    async def main() -> None:
        content = memoryview(random.Random(3).randbytes(9_000_000))
        async with sides(tls_identities(3)) as (one, two, three):
            link = await one.hub.dial(two.address, two.peer, "websocket")
            await until(lambda: two.events.up)
            assert (link.carrier, two.link_to(one).carrier, link.path) == ("websocket", "websocket", "local")
            other = await three.hub.dial(two.address, two.peer)
            assert other.carrier == "stream"
            _serve(one, content)
            _serve(two, content)
            async with asyncio.TaskGroup() as group:
                fetches = [group.create_task(link.request_stream(want, len(content))) for _ in range(3)]
                fetches += [group.create_task(two.link_to(one).request_stream(want, len(content))) for _ in range(3)]
                for slots in range(500):
                    link.send(Grant(slots))
            assert all(fetch.result() == content for fetch in fetches)
            grants = [message for _, message in two.events.messages if isinstance(message, Grant)]
            assert grants == [Grant(slots) for slots in range(500)]
            link.send_encoded(b"\x92\xcd\x75\x30" + b"\xc6" + (900_000).to_bytes(4, "big") + bytes(900_000))
            link.send(Grant(7))
            await link.close("leaving")
            assert two.events.messages[-1][1] == Grant(7)
            await until(lambda: two.events.down)
            assert two.events.down[0][1] is None

    asyncio.run(main())


def stop_reading(link: Link) -> Any:
    """From here on nothing that comes to this end of a link is taken; its transport, which may read again."""
    carrier = link._carrier
    if carrier is not None and carrier.name == "websocket":
        transport = carrier._socket._conn.transport  # type: ignore[attr-defined]
    else:
        transport = carrier._transport  # type: ignore[union-attr]
    transport.pause_reading()
    return transport


@pytest.mark.parametrize("carrier", ["stream", "websocket"])
@pytest.mark.parametrize("how", ["a goodbye", "a wrong word", "a goodbye of ours"])
def test_a_link_to_a_peer_that_stops_reading_ends(carrier: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks for much, stops reading, says goodbye, and dials again."""
    for module in (stream_carrier, websocket_carrier):
        monkeypatch.setattr(module, "SHUTDOWN_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with sides(tls_identities(2)) as (one, two):
            held, deaf = [], []
            for _ in range(3):
                link = await one.hub.dial(two.address, two.peer, carrier)
                await until(lambda: two.hub.link(one.peer) is not None)
                back = two.link_to(one)
                held.append(back)
                deaf.append(stop_reading(link))
                for stream in (2, 4, 6):
                    link.send(EchoWant(stream, 8 << 20))
                await until(lambda back=back: not back.has_room())
                if how == "a goodbye":
                    link.send(Goodbye("leaving"))
                elif how == "a wrong word":
                    link.send(link.hello)
                else:
                    back.fail(BusyError("enough"))
                await until(lambda back=back: back.closed)
                one.hub._links.pop(two.peer, None)
            await until(lambda: all(each.gone.is_set() for each in held), wait_s=5)
            assert not [each for each in two.hub._open if each in held]
            for transport in deaf:
                transport.resume_reading()  # so that this end goes too

    asyncio.run(main())


def test_a_websocket_of_another_network_is_refused_with_its_reason() -> None:
    async def main() -> None:
        stranger = TlsIdentity(50, Authority.create("elsewhere", now_wall=time.time(), entropy=Dice(5)))
        (native,) = tls_identities(1)
        async with sides([stranger, native]) as (intruder, host):
            with pytest.raises(AdmissionError) as caught:
                await intruder.hub.dial(host.address, None, "websocket")
            assert caught.value.reason is AdmissionReason.OTHER_NETWORK
            assert not host.events.up

    asyncio.run(main())


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\xff" * 40])
def test_a_member_that_asks_for_http_and_no_websocket(said: bytes) -> None:
    async def main() -> None:
        one, two = tls_identities(2)
        async with sides([two], settings=SHORT) as (host,):
            one.client_context().set_alpn_protocols(["http/1.1"])
            async with raw_member(one, host.port) as (reader, writer):
                writer.write(said)
                async with asyncio.timeout(5):
                    heard = await reader.read()
                assert heard.startswith(b"HTTP/1.") or not said
                await until(lambda: not host.hub._open)
            assert not host.events.up

    asyncio.run(main())
