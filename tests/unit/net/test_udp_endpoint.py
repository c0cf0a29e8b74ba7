"""The endpoint in a running loop: over memory, and over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, LinkClosedError, PortTakenError, UsageError
from p2pcompute.model.peer import Address
from p2pcompute.net.datagrams import DatagramPort, OpenDatagrams
from p2pcompute.net.session_events import SessionSettings
from p2pcompute.net.udp import UdpEndpoint
from p2pcompute.net.udp_port import UdpPort, open_udp_port
from tests.support.networks import SeededEntropy
from tests.unit.net.datagram_help import NOW_WALL, Identity, MemoryPorts, Told, home, member
from tests.unit.net.link_help import SystemClock, until

HASTY = SessionSettings(retry_s=0.02, tries_max=3, handshake_s=0.5)


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


NEEDS_IPV6 = pytest.mark.skipif(not _has_ipv6(), reason="not on this platform: no IPv6")


class Side:
    """An endpoint and what it told."""

    def __init__(self, seed: str, opener: OpenDatagrams, settings: SessionSettings | None = None) -> None:
        self.identity = Identity(member(seed))
        self.told = Told()
        self.endpoint = UdpEndpoint(
            self.identity, self.told, SystemClock(), SeededEntropy(seed), opener, settings=settings
        )

    @property
    def peer(self) -> Any:
        return self.identity.peer


@contextlib.asynccontextmanager
async def sides(*hosts: str | None, opener: OpenDatagrams = open_udp_port) -> AsyncIterator[Sequence[Side]]:
    made = [Side(name, opener) for name, _ in zip(("anna", "bert", "carl"), hosts, strict=False)]
    try:
        for side, host in zip(made, hosts, strict=True):
            await side.endpoint.start(host, 0)
        yield made
    finally:
        for side in made:
            await side.endpoint.stop()
            await side.endpoint.stop()


async def _converse(anna: Side, bert: Side, to: Address) -> None:
    anna.endpoint.send(bert.peer, (to,), 3, b"over there?")
    await until(lambda: bert.told.datagrams)
    peer, channel, payload, source = bert.told.datagrams[0]
    assert (peer, channel, payload) == (anna.peer, 3, b"over there?")
    assert source.port == anna.endpoint.port
    bert.endpoint.send(anna.peer, (), 4, b"here")
    await until(lambda: anna.told.datagrams)
    assert anna.told.datagrams[0][:3] == (bert.peer, 4, b"here")
    for here, there in ((anna, bert), (bert, anna)):
        info = here.endpoint.session(there.peer)
        assert info is not None
        assert info.rtt_s is not None
        assert 0 < info.rtt_s < 5
        assert here.told.ups[0][2].peer == there.peer
        assert not any(here.endpoint.counts.values())


def test_over_ipv4() -> None:
    async def main() -> None:
        async with sides("127.0.0.1", "127.0.0.1") as (anna, bert):
            await _converse(anna, bert, Address("127.0.0.1", bert.endpoint.port))

    asyncio.run(main())


@NEEDS_IPV6
def test_over_ipv6() -> None:
    async def main() -> None:
        async with sides("::1", "::1") as (anna, bert):
            await _converse(anna, bert, Address("::1", bert.endpoint.port))

    asyncio.run(main())


@NEEDS_IPV6
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.0.0.77"])
def test_both_families_at_one_number(host: str) -> None:
    """127.0.0.77: the answer comes from another address than the question went to, as on machines with several."""

    async def main() -> None:
        async with sides(None, None) as (anna, bert):
            await _converse(anna, bert, Address(host, bert.endpoint.port))

    asyncio.run(main())


def test_by_address_alone() -> None:
    async def main() -> None:
        async with sides("127.0.0.1", "127.0.0.1") as (anna, bert):
            anna.endpoint.greet(Address("127.0.0.1", bert.endpoint.port))
            await until(lambda: anna.told.ups and bert.told.ups)
            assert anna.told.ups[0][0] == bert.peer
            with pytest.raises(UsageError):
                anna.endpoint.greet(Address("host.example", 1))

    asyncio.run(main())


def test_in_memory() -> None:
    async def main() -> None:
        ports = MemoryPorts()
        anna, bert = Side("anna", ports.opener("10.0.0.1")), Side("bert", ports.opener("10.0.0.2"))
        assert await anna.endpoint.start(None, 9876) == await bert.endpoint.start(None, 9876) == 9876
        await _converse(anna, bert, Address("10.0.0.2", 9876))
        await anna.endpoint.stop()
        await bert.endpoint.stop()
        assert not ports.open

    asyncio.run(main())


def test_timers_repeat_and_give_up() -> None:
    async def main() -> None:
        ports = MemoryPorts()
        anna = Side("anna", ports.opener("10.0.0.1"), HASTY)
        heard: list[bytes] = []
        ports.open[Address("10.0.0.2", 9876)] = lambda data, source: heard.append(data)
        await anna.endpoint.start(None, 9876)
        anna.endpoint.greet(Address("10.0.0.2", 9876))
        await until(lambda: anna.told.refusals)
        assert len(heard) == 3
        assert isinstance(anna.told.refusals[0][1], LinkClosedError)
        await anna.endpoint.stop()

    asyncio.run(main())


def test_a_revoked_peer_is_gone_without_being_used() -> None:
    async def main() -> None:
        async with sides("127.0.0.1", "127.0.0.1") as (anna, bert):
            await _converse(anna, bert, Address("127.0.0.1", bert.endpoint.port))
            trust = anna.identity.trust
            anna.identity.trust = trust.with_revocations(home().revoke(None, peers=[bert.peer], now_wall=NOW_WALL))
            anna.endpoint.recheck()
            await until(lambda: anna.endpoint.session(bert.peer) is None)
            await until(lambda: anna.told.refusals)
            error = anna.told.refusals[-1][1]
            assert isinstance(error, AdmissionError)
            assert error.reason is AdmissionReason.REVOKED

    asyncio.run(main())


def test_dropping_and_stopping() -> None:
    async def main() -> None:
        async with sides("127.0.0.1", "127.0.0.1") as (anna, bert):
            await _converse(anna, bert, Address("127.0.0.1", bert.endpoint.port))
            anna.endpoint.drop(bert.peer)
            assert anna.endpoint.session(bert.peer) is None
            await bert.endpoint.stop()
            bert.endpoint.send(anna.peer, (), 1, b"nothing happens")
            bert.endpoint.greet(Address("127.0.0.1", anna.endpoint.port))
            # A port that comes back elsewhere is found by the session.
            await bert.endpoint.start("127.0.0.1", 0)
            anna.endpoint.send(bert.peer, (Address("127.0.0.1", bert.endpoint.port),), 1, b"again")
            await until(lambda: any(payload == b"again" for _, _, payload, _ in bert.told.datagrams))

    asyncio.run(main())


def test_events_may_answer_at_once() -> None:
    async def main() -> None:
        async with sides("127.0.0.1", "127.0.0.1") as (anna, bert):
            answered = bert.told.datagram

            def answer(peer: Any, channel: int, payload: bytes, source: Address) -> None:
                answered(peer, channel, payload, source)
                bert.endpoint.send(peer, (source,), channel, b"re: " + payload)

            bert.told.datagram = answer  # type: ignore[method-assign]
            for number in range(5):
                anna.endpoint.send(bert.peer, (Address("127.0.0.1", bert.endpoint.port),), 1, bytes([number]))
            await until(lambda: len(anna.told.datagrams) == 5)
            assert [payload for _, _, payload, _ in anna.told.datagrams] == [b"re: " + bytes([n]) for n in range(5)]

    asyncio.run(main())


def test_an_effect_that_fails_is_told_and_loses_no_other() -> None:
    async def main() -> None:
        bugs: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
        async with sides("127.0.0.1", "127.0.0.1") as (anna, bert):
            answered = bert.told.session_up

            def breaks(*what: Any) -> None:
                answered(*what)
                raise RuntimeError("a listener with a bug")

            bert.told.session_up = breaks  # type: ignore[method-assign]
            anna.endpoint.send(bert.peer, (Address("127.0.0.1", bert.endpoint.port),), 1, b"first")
            await until(lambda: bert.told.datagrams)  # came with the datagram that made the session
            assert [payload for _, _, payload, _ in bert.told.datagrams] == [b"first"]
        assert [str(bug["exception"]) for bug in bugs] == ["a listener with a bug"]

    asyncio.run(main())


# --- the port ---------------------------------------------------------------------------------------------------------


async def _opened(host: str | None, port: int = 0) -> tuple[UdpPort, list[tuple[bytes, Address]]]:
    heard: list[tuple[bytes, Address]] = []
    return await open_udp_port(host, port, lambda data, source: heard.append((data, source))), heard


def _in_loop(main: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await main()

    asyncio.run(run())


def test_a_taken_port_is_said_to_be_taken() -> None:
    async def main() -> None:
        one, _ = await _opened("127.0.0.1")
        with pytest.raises(PortTakenError):
            await _opened("127.0.0.1", one.port)
        with pytest.raises(PortTakenError):
            await _opened(None, one.port)
        with pytest.raises(PortTakenError):
            await _opened("203.0.113.7")
        one.close()
        again, _ = await _opened("127.0.0.1", one.port)
        again.close()

    _in_loop(main)


@NEEDS_IPV6
def test_a_number_that_is_free_in_one_family_only_is_taken() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            other.bind(("::", 0))
            with pytest.raises(PortTakenError):
                await _opened(None, other.getsockname()[1])

    _in_loop(main)


def test_what_cannot_be_sent_is_lost_and_counted() -> None:
    async def main() -> None:
        one, _ = await _opened("127.0.0.1")
        two, heard = await _opened("127.0.0.1")
        lost = [
            Address("::1", 9), Address("fe80::1%no-such-interface", 9), Address("host.example", 9), Address("127.0.0.1", 0),
            Address("127.0.0.1", 70_000), Address("255.255.255.255", 9), Address("203.0.113.7", 9),
        ]  # fmt: skip
        lost += [Address(f"fe80::1%{zone}", 9) for zone in ("²", "a\0b", "\ud800", "9" * 30, "9" * 9_000)]
        for to in lost:
            one.send(b"lost", to)
        one.send(bytes(70_000), Address("127.0.0.1", two.port))
        assert one.refused_sends == len(lost) + 1
        one.send(b"goes on", Address("127.0.0.1", two.port))
        await until(lambda: heard)
        assert heard == [(b"goes on", Address("127.0.0.1", one.port))]
        one.close()
        one.close()
        one.send(b"closed", Address("127.0.0.1", two.port))
        assert one.refused_sends == len(lost) + 2
        two.close()

    _in_loop(main)


def test_errors_that_come_back_harm_nothing() -> None:
    async def main() -> None:
        one, heard = await _opened("127.0.0.1")
        two, _ = await _opened("127.0.0.1")
        gone, port = two.port, one.port
        two.close()
        for _ in range(10):
            one.send(b"nobody is there", Address("127.0.0.1", gone))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"heard", ("127.0.0.1", port))
            await until(lambda: heard)
        one.close()

    _in_loop(main)


def test_bursts_and_long_datagrams() -> None:
    async def main() -> None:
        one, heard = await _opened("127.0.0.1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            for number in range(200):
                other.sendto(number.to_bytes(2), ("127.0.0.1", one.port))
            other.sendto(bytes(9_000), ("127.0.0.1", one.port))
            await until(lambda: len(heard) == 201)
        assert [int.from_bytes(data) for data, _ in heard[:200]] == list(range(200))
        assert len({id(source) for _, source in heard}) == 1, "one object for one source"
        assert len(heard[-1][0]) == limits.DATAGRAM_BYTES_MAX + 1, "long enough to be seen to be too long"
        one.close()

    _in_loop(main)


def test_nothing_is_heard_after_closing_within_a_burst() -> None:
    async def main() -> None:
        heard: list[bytes] = []
        ports: list[DatagramPort] = []

        def received(data: bytes, source: Address) -> None:
            heard.append(data)
            ports[0].close()

        ports.append(await open_udp_port("127.0.0.1", 0, received))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            for _ in range(5):
                other.sendto(b"x", ("127.0.0.1", ports[0].port))
            await until(lambda: heard)
        assert len(heard) == 1

    _in_loop(main)


class LoopWithoutReaders(asyncio.SelectorEventLoop):
    """As on Windows: sockets cannot be watched from outside."""

    def add_reader(self, *arguments: Any) -> Any:
        raise NotImplementedError


def test_where_the_loop_cannot_watch_sockets() -> None:
    async def main() -> None:
        one, heard = await _opened("127.0.0.1")
        two, _ = await _opened("127.0.0.1")
        two.send(b"read by a transport", Address("127.0.0.1", one.port))
        await until(lambda: heard)
        assert heard == [(b"read by a transport", Address("127.0.0.1", two.port))]
        one.close()
        two.close()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=LoopWithoutReaders) as runner:
        runner.run(main())
