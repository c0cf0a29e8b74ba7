"""Asking a router for a port: a router played over loopback, honest, broken and hostile; routes as systems print them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest

from p2pcompute.model.errors import ProtocolError, ResourceError
from p2pcompute.model.peer import Address
from p2pcompute.net import portmap_gateway, portmap_natpmp, portmap_upnp
from p2pcompute.net.portmap import PORTS_TRIED, PortMapper, PortMapSettings, ports_to_try
from p2pcompute.net.portmap_gateway import Gateway, parse_linux_routes, parse_netstat_routes
from p2pcompute.net.portmap_natpmp import Answer, NatPmpRouter, decode_answer, has_restarted
from p2pcompute.net.portmap_router import Transport
from p2pcompute.net.portmap_upnp import decode_search_answer, find_upnp
from tests.support.routers import FakeRouter

PORT = 9876
HERE = Gateway("127.0.0.1", "127.0.0.1")


class Clock:
    """The real one, which can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def wall(self) -> float:
        return time.time()


class Mapping:
    """A mapper and what it told."""

    def __init__(self, group: asyncio.TaskGroup, settings: PortMapSettings, gateway: Gateway | None = HERE) -> None:
        self.told: list[tuple[Address | None, str]] = []
        self.clock = Clock()
        self.gateway = gateway
        self._news = asyncio.Event()
        self.mapper = PortMapper(
            PORT, self.clock, self._spawner(group), self._changed, settings=settings, gateway=self._find
        )

    @staticmethod
    def _spawner(group: asyncio.TaskGroup) -> Callable[[str, Coroutine[Any, Any, None]], object]:
        return lambda name, work: group.create_task(work, name=name)

    async def _find(self) -> Gateway | None:
        return self.gateway

    def _changed(self, address: Address | None, how: str) -> None:
        self.told.append((address, how))
        self._news.set()

    async def next(self) -> tuple[Address | None, str]:
        """What it tells next, or told last without being read."""
        async with asyncio.timeout(10):
            await self._news.wait()
        self._news.clear()
        return self.told[-1]


def quick(natpmp_port: int, **changes: Any) -> PortMapSettings:
    return PortMapSettings(natpmp_port=natpmp_port, protocols=("NAT-PMP",), **changes)


@contextlib.asynccontextmanager
async def mapping(router: FakeRouter, **changes: Any) -> AsyncIterator[Mapping]:
    port = await router.start()
    async with asyncio.TaskGroup() as group:
        made = Mapping(group, quick(port, **changes))
        made.mapper.ask()
        yield made
        await made.mapper.stop()
    router.stop()


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await story()

    asyncio.run(main())


# --- the mapper -------------------------------------------------------------------------------------------------------


def test_both_transports_get_one_number_and_are_given_back_at_the_stop() -> None:
    async def story() -> None:
        router = FakeRouter()
        async with mapping(router) as peer:
            address, how = await peer.next()
            assert address == Address("11.5.0.9", PORT)
            assert how == "NAT-PMP: the router at 127.0.0.1 forwards 11.5.0.9:9876"
            assert router.table == {(2, PORT): (PORT, 7_200), (1, PORT): (PORT, 7_200)}
        assert router.table == {}
        assert len(peer.told) == 1, "the stop is nobody's news"

    run(story)


def test_a_number_that_is_taken_for_one_of_them_is_given_back_and_another_one_tried() -> None:
    async def story() -> None:
        router = FakeRouter(taken={(1, PORT)})
        async with mapping(router) as peer:
            address, _ = await peer.next()
            assert address is not None
            assert address.port == ports_to_try(PORT, "127.0.0.1")[1]
            assert set(router.table) == {(2, address.port), (1, address.port)}

    run(story)


def test_asking_again_tells_again() -> None:
    async def story() -> None:
        router = FakeRouter()
        async with mapping(router) as peer:
            first = await peer.next()
            peer.mapper.ask()
            assert await peer.next() == first

    run(story)


def test_a_lease_is_renewed_at_half() -> None:
    async def story() -> None:
        router = FakeRouter(lease_max_s=3_600)
        async with mapping(router, check_s=0.02) as peer:
            await peer.next()
            asked = len([each for each in router.questions if len(each) == 12])
            peer.clock.ahead_s = 1_700
            router.epoch_before_s += 1_700
            await _until(lambda: len(router.questions) > 12)
            assert len([each for each in router.questions if len(each) == 12]) == asked
            peer.clock.ahead_s = 1_900
            router.epoch_before_s += 200
            await _until(lambda: len([each for each in router.questions if len(each) == 12]) == asked + 2)
            assert len(peer.told) == 1

    run(story)


def test_a_router_that_restarts_is_asked_again() -> None:
    async def story() -> None:
        router = FakeRouter()
        async with mapping(router, check_s=0.02) as peer:
            await peer.next()
            router.restart()
            await _until(lambda: len(router.table) == 2)
            assert len(peer.told) == 1, "it forwards the same again"
            router.external = "11.6.0.1"
            assert (await peer.next())[0] == Address("11.6.0.1", PORT)

    run(story)


def test_a_router_that_vanishes_is_told_and_found_again() -> None:
    async def story() -> None:
        router = FakeRouter()
        async with mapping(router, check_s=0.02, retry_s=0.02) as peer:
            await peer.next()
            router.silent = True
            address, why = await peer.next()
            assert address is None
            assert why == "the router at 127.0.0.1 does not answer NAT-PMP"
            router.silent = False
            assert (await peer.next())[0] == Address("11.5.0.9", PORT)

    run(story)


def test_another_network_is_another_router() -> None:
    async def story() -> None:
        router = FakeRouter()
        async with mapping(router) as peer:
            await peer.next()
            peer.gateway = None
            peer.mapper.ask()
            assert await peer.next() == (None, "this machine has no default gateway that could forward a port")
        assert len(router.table) == 2, "a router of another network is not spoken to"

    run(story)


def test_a_stop_in_another_network_gives_nothing_back() -> None:
    async def story() -> None:
        router = FakeRouter()
        async with mapping(router) as peer:
            await peer.next()
            peer.gateway = Gateway("127.0.0.9", "127.0.0.1")
        assert len(router.table) == 2, "that router has another peer's ports, if it is one"

    run(story)


@pytest.mark.parametrize("outside", ["10.0.0.5", "100.64.3.4", "192.168.1.7", "0.0.0.0", "127.0.0.1"])
def test_an_address_outside_that_is_private_is_another_router_before_this_one(outside: str) -> None:
    async def story() -> None:
        router = FakeRouter(external=outside)
        async with mapping(router) as peer:
            address, why = await peer.next()
            assert address is None
            assert f"no public address, but {outside}: there is another router before it" in why
            assert router.table == {}

    run(story)


def test_a_refusal_is_told_in_words() -> None:
    async def story() -> None:
        router = FakeRouter(result=2)
        async with mapping(router) as peer:
            assert await peer.next() == (
                None,
                "the router at 127.0.0.1 refuses by NAT-PMP: its owner has switched that off",
            )
            assert peer.mapper.status == peer.told[-1][1]

    run(story)


def test_a_machine_where_nobody_listens_says_so_at_once() -> None:
    async def story() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        async with asyncio.TaskGroup() as group:
            peer = Mapping(group, quick(port))
            peer.mapper.ask()
            _, why = await peer.next()
            assert "does not speak NAT-PMP" in why
            await peer.mapper.stop()

    run(story)


def test_the_stop_is_bounded_though_the_router_is_silent() -> None:
    async def story() -> None:
        router = FakeRouter()
        async with mapping(router, stop_s=0.3) as peer:
            await peer.next()
            router.silent = True
            before = time.monotonic()
            await peer.mapper.stop()
            assert time.monotonic() - before < PortMapSettings().stop_s, "its own bound is the one that counts"

    run(story)


def test_one_that_was_never_asked_stops_without_a_word() -> None:
    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            peer = Mapping(group, quick(1))
            await peer.mapper.stop()
            peer.mapper.ask()
            assert peer.told == []

    run(story)


def test_the_numbers_tried_are_few_and_stay_the_same() -> None:
    ports = ports_to_try(PORT, "192.168.1.20")
    assert ports == ports_to_try(PORT, "192.168.1.20")
    assert ports != ports_to_try(PORT, "192.168.1.21")
    assert ports[0] == PORT
    assert len(ports) == PORTS_TRIED
    assert all(49_152 <= port < 65_536 for port in ports[1:])


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# --- hostile answers --------------------------------------------------------------------------------------------------


def external(router: FakeRouter) -> str:
    """What the client makes of the router's address."""
    found: list[str] = []
    broken: list[object] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: broken.append(context))
        client = NatPmpRouter("127.0.0.1", PORT, Clock(), at=await router.start())
        try:
            found.append(await client.external_host())
        finally:
            client.close()
            router.stop()

    asyncio.run(story())
    assert not broken
    return found[0]


def other_port(answer: bytes) -> bytes:
    return answer[:8] + struct.pack("!H", PORT + 1) + answer[10:] if len(answer) == 16 else answer


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\0",
        bytes(1_000),
        b"\0\x80\0\0\0\0\0\x01",
        b"\x02" + bytes(11),
        b"\0\x85" + bytes(10),
        b"\0\x80" + bytes(11),
    ],
)
def test_junk_before_the_answer_is_passed_over(junk: bytes) -> None:
    assert external(FakeRouter(twist=lambda answer: [junk] * 20 + [answer])) == "11.5.0.9"


def test_a_flood_of_answers_is_dropped() -> None:
    assert external(FakeRouter(twist=lambda answer: [answer] * 100)) == "11.5.0.9"


def test_nothing_but_junk_is_no_answer() -> None:
    with pytest.raises(ResourceError, match="does not answer NAT-PMP"):
        external(FakeRouter(twist=lambda answer: [answer[:7]]))


def test_answers_for_another_port_are_not_ours() -> None:
    async def story() -> None:
        router = FakeRouter(twist=lambda answer: [other_port(answer)])
        async with mapping(router) as peer:
            address, why = await peer.next()
            assert address is None
            assert "does not answer" in why

    run(story)


@pytest.mark.parametrize(("lease_s", "port"), [(1, None), (0, None), (7_200, 0)])
def test_a_yes_that_is_of_no_use_is_a_no(lease_s: int, port: int | None) -> None:
    def twist(answer: bytes) -> list[bytes]:
        if len(answer) != 16:
            return [answer]
        internal, given, _ = struct.unpack_from("!HHI", answer, 8)
        return [answer[:8] + struct.pack("!HHI", internal, given if port is None else port, lease_s)]

    async def story() -> None:
        async with mapping(FakeRouter(twist=twist)) as peer:
            address, why = await peer.next()
            assert address is None
            assert "of no use" in why

    run(story)


def test_answers_from_elsewhere_do_not_arrive() -> None:
    """Somebody else on the LAN answers faster than the router, from another address."""

    async def story() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as liar:
            liar.bind(("127.0.0.2", 0))
            router = FakeRouter()
            port = await router.start()
            client = NatPmpRouter("127.0.0.1", PORT, Clock(), at=port)
            honest = router.datagram_received

            def first_the_liar(data: bytes, addr: tuple[str, int]) -> None:
                liar.sendto(struct.pack("!BBHI4B", 0, 128, 0, 1, 66, 6, 6, 6), addr)
                honest(data, addr)

            router.datagram_received = first_the_liar  # type: ignore[method-assign]
            assert await client.external_host() == "11.5.0.9"
            client.close()
            router.stop()

    run(story)


def test_a_router_whose_epoch_jumps_back_costs_no_more_than_a_look_each() -> None:
    async def story() -> None:
        def twist(answer: bytes) -> list[bytes]:
            return [answer[:4] + struct.pack("!I", 0) + answer[8:]]

        router = FakeRouter(twist=twist)
        async with mapping(router, check_s=0.05) as peer:
            await peer.next()
            peer.clock.ahead_s = 1_000
            await _until(lambda: len(router.questions) > 20)
            assert set(peer.told) == {peer.told[0]}

    run(story)


# --- decoders ---------------------------------------------------------------------------------------------------------


def test_answers_are_read_as_the_rfc_writes_them() -> None:
    assert decode_answer(bytes.fromhex("0080000000000e1005060708")) == Answer(0, 0, 3_600, "5.6.7.8")
    assert decode_answer(bytes.fromhex("0082000000000e10269426950000 1c20")) == Answer(
        2, 0, 3_600, "", 9_876, 9_877, 7_200
    )
    assert decode_answer(bytes.fromhex("0081000200000e10")) == Answer(1, 2, 3_600)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 11, 13, 16, 60])
def test_an_answer_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(bytes.fromhex("0080000000000e1005060708").ljust(size, b"x")[:size])


@pytest.mark.parametrize(
    ("before_s", "elapsed_s", "epoch_s", "expected"),
    [
        (1_000, 100, 1_100, False), (1_000, 100, 1_088, False), (1_000, 100, 1_080, True), (1_000, 0, 998, False),
        (1_000, 0, 997, True), (1_000, 60, 0, True), (0, 60, 5_000, False),
    ],
)  # fmt: skip
def test_when_a_router_has_restarted(before_s: int, elapsed_s: float, epoch_s: int, expected: bool) -> None:
    assert has_restarted(before_s, elapsed_s, epoch_s) is expected


LINUX = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\tFE01A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
TUNNEL = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
tun0\t00000000\t00000000\t0003\t0\t0\t50\t00000000\t0\t0\t0
"""
MACOS = """Routing tables

Internet:
Destination        Gateway            Flags               Netif Expire
default            192.168.1.1        UGScg                 en0
127                127.0.0.1          UCS                   lo0

Internet6:
default            fe80::%utun0       UGcIg               utun0
"""
WINDOWS = """IPv4 Route Table
===========================================================================
Active Routes:
Network Destination        Netmask          Gateway       Interface  Metric
          0.0.0.0          0.0.0.0      192.168.1.1     192.168.1.20     25
        127.0.0.0        255.0.0.0         On-link         127.0.0.1    331
"""


def test_the_gateway_is_read_from_routes() -> None:
    assert parse_linux_routes(LINUX) == "192.168.1.254"
    assert parse_linux_routes(TUNNEL) is None
    assert parse_linux_routes("") is None
    assert parse_netstat_routes(MACOS) == "192.168.1.1"
    assert parse_netstat_routes(WINDOWS) == "192.168.1.1"
    assert parse_netstat_routes("default link#7 UCS en0\n") is None


def test_the_own_address_towards_a_router() -> None:
    assert portmap_gateway.own_address_towards("127.0.0.1") == "127.0.0.1"


ANSWER = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"Location: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"
)


def test_a_search_answer_names_a_description_at_the_router_itself() -> None:
    assert decode_search_answer(ANSWER, "192.168.1.1") == "http://192.168.1.1:5000/rootDesc.xml"


@pytest.mark.parametrize(
    "location",
    [
        b"http://192.168.1.66:5000/x", b"https://192.168.1.1/x", b"file:///etc/passwd", b"http://192.168.1.1:99999/x", b"http://[::1/x",
        b"http://192.168.1.1@evil.example/", b"http://user@192.168.1.1/", b"http://192.168.1.1:0/", b"\xff\xfe", b"",
    ],
)  # fmt: skip
def test_a_description_elsewhere_is_refused(location: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_search_answer(ANSWER.replace(b"http://192.168.1.1:5000/rootDesc.xml", location), "192.168.1.1")


def test_a_datagram_that_is_no_answer_is_refused() -> None:
    for data in (b"", b"NOTIFY * HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", ANSWER + bytes(5_000)):
        with pytest.raises(ProtocolError):
            decode_search_answer(data, "192.168.1.1")


# --- a hostile UPnP device --------------------------------------------------------------------------------------------

BOMB = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><root>&b;</root>"""
EMPTY = """<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device></device></root>"""
ELSEWHERE = """<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>x</friendlyName><manufacturer>x</manufacturer>
<modelName>x</modelName><UDN>uuid:1</UDN><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<serviceId>x</serviceId><SCPDURL>http://127.0.0.2:1/scpd</SCPDURL><controlURL>http://127.0.0.2:1/c</controlURL><eventSubURL>/e</eventSubURL>
</service></serviceList></device></root>"""


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, BOMB, "nonsense"),
        (200, EMPTY, "nonsense|forwards no ports"),
        (200, ELSEWHERE, "nonsense|forwards no ports|not at the router"),
        (200, "\ufffd<", "nonsense"),
        (200, "x" * 600_000, "more than"),
        (404, "", "does not answer"),
        (302, "", "does not answer"),
    ],
)
def test_a_device_that_answers_nonsense_is_told_in_words(status: int, body: str, words: str) -> None:
    async def story() -> None:
        async with device(status, body) as (search_port, visits_elsewhere):
            with pytest.raises((ResourceError, ProtocolError), match=words):
                await find_upnp("127.0.0.1", "127.0.0.1", PORT, search_port=search_port)
            assert visits_elsewhere == []

    run(story)


@contextlib.asynccontextmanager
async def device(status: int, body: str) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A UPnP device on loopback that answers a search and every HTTP request with `body`, and names doors at 127.0.0.2.

    The port to search at, and what came to those doors.
    """
    visits_elsewhere: list[bytes] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits_elsewhere.append(await reader.read(100))
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        data = body.replace("127.0.0.2:1/", f"127.0.0.2:{door}/").encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\nLocation: http://127.0.0.2:{door}/\r\nConnection: close\r\n\r\n"
        with contextlib.suppress(ConnectionError):
            writer.write(head.encode() + data)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    class Search(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            assert data == portmap_upnp.search_request("127.0.0.1")
            answer = f"HTTP/1.1 200 OK\r\nLOCATION: http://127.0.0.1:{http_port}/d.xml\r\n\r\n"
            transport.sendto(answer.encode(), addr)

    doors = await asyncio.start_server(elsewhere, "127.0.0.2", 0)
    door = doors.sockets[0].getsockname()[1]
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    http_port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Search, local_addr=("127.0.0.1", 0))
    try:
        yield int(transport.get_extra_info("sockname")[1]), visits_elsewhere
    finally:
        transport.close()
        for each in (server, doors):
            each.close()
            await each.wait_closed()


def test_what_is_forwarded_is_called_tcp_and_udp() -> None:
    assert [str(each) for each in Transport] == ["TCP", "UDP"]
    assert PortMapSettings().lease_s > portmap_natpmp.LIFETIME_MIN_S
