"""The port mapper against the daemon that most home routers run, in a router of the rig: forwarded, reached, given back, forwarded again."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.netns.nat_scenes import Home, Miniupnpd, World, internet
from tests.netns.rig import Host, Process, require_rig, wait_until

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]
PORT = 9_876

#: A peer's port with a mapper: echoes on TCP and UDP, prints what the mapper tells as JSON, and stops at SIGTERM. argv: protocols, check_s, retry_s.
PEER = """
import asyncio, json, signal, sys, time
from p2pcompute.net.portmap import PortMapper, PortMapSettings

PORT = 9876

class Clock:
    def monotonic(self): return time.monotonic()
    def wall(self): return time.time()

class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport): self.transport = transport
    def datagram_received(self, data, sender): self.transport.sendto(b"udp " + data, sender)

async def serve(reader, writer):
    writer.write(b"tcp " + await reader.readline())
    await writer.drain()
    writer.close()

def told(address, how):
    print(json.dumps([str(address) if address else None, how, round(time.monotonic() - began, 2)]), flush=True)

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.start_server(serve, "0.0.0.0", PORT)
    await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("0.0.0.0", PORT))
    settings = PortMapSettings(protocols=tuple(sys.argv[1].split(",")), check_s=float(sys.argv[2]), retry_s=float(sys.argv[3]))
    async with asyncio.TaskGroup() as group:
        mapper = PortMapper(PORT, Clock(), lambda name, work: group.create_task(work), told, settings=settings)
        mapper.ask()
        await stop.wait()
        await mapper.stop()
    print("stopped", flush=True)

began = time.monotonic()
asyncio.run(main())
"""
#: Says what argv[1]:argv[2] answers by TCP and UDP.
VISIT = """
import socket, sys
place = (sys.argv[1], int(sys.argv[2]))
with socket.create_connection(place, timeout=2) as tcp:
    tcp.sendall(b"hello\\n")
    print(tcp.makefile().readline().strip(), flush=True)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.settimeout(2)
    udp.sendto(b"hello", place)
    print(udp.recv(100).decode())
"""


@pytest.fixture(autouse=True)
def _needs_daemon() -> None:
    require_rig("nft", "miniupnpd")


def peer(host: Host, protocols: str = "NAT-PMP,UPnP", check_s: float = 60, retry_s: float = 900) -> Process:
    return host.run([sys.executable, "-c", PEER, protocols, str(check_s), str(retry_s)], {"PYTHONPATH": str(ROOT)})


def told(process: Process, count: int, timeout_s: float = 20) -> tuple[str | None, str]:
    """The `count`th thing that the mapper told."""

    def found() -> list[str]:
        lines = [line for line in process.stdout().splitlines() if line.startswith("[")]
        return lines if len(lines) >= count else []

    lines = wait_until(found, timeout_s, f"the mapper tells {count} things", process)
    address, how, _ = json.loads(lines[count - 1])
    return address, how


def visit(visitor: Host, home: Home, port: int) -> list[str]:
    process = visitor.python(VISIT, home.outside_address, str(port))
    process.wait(10)
    return process.stdout().splitlines()


def port_of(address: str | None) -> int:
    assert address is not None
    return int(address.rpartition(":")[2])


def daemon(world: World, home: Home, tmp_path: Path, **speaks: bool) -> Miniupnpd:
    made = Miniupnpd(home.router, tmp_path, **speaks)
    made.start()
    return made


@pytest.mark.parametrize(("protocol", "speaks"), [("NAT-PMP", {"upnp": False}), ("UPnP", {"natpmp": False})])
def test_forwarded_reached_and_given_back(protocol: str, speaks: dict[str, bool], tmp_path: Path) -> None:
    with internet() as world:
        home, visitor = world.home("anna", "symmetric"), world.public("visitor")
        router = daemon(world, home, tmp_path, **speaks)
        assert visit(visitor, home, PORT) == [], "nothing gets in before"
        mapper = peer(home.host)
        address, how = told(mapper, 1)
        assert address == f"{home.outside_address}:{PORT}", f"{how}\n{router.process and router.process.output()}"
        assert how.startswith(f"{protocol}: ")
        assert visit(visitor, home, PORT) == ["tcp hello", "udp hello"]
        assert router.forwarded().count(str(home.host.address)) == 2
        mapper.popen.send_signal(signal.SIGTERM)
        assert mapper.wait(10) == 0, mapper.output()
        assert "stopped" in mapper.stdout()
        assert str(home.host.address) not in router.forwarded()
        assert visit(visitor, home, PORT) == []


@pytest.mark.parametrize(
    ("protocol", "speaks", "check_s"),
    # A NAT-PMP router calls when it has restarted; a UPnP router is looked at.
    [("NAT-PMP", {"upnp": False}, 600.0), ("NAT-PMP", {"upnp": False}, 0.3), ("UPnP", {"natpmp": False}, 0.3)],
)
def test_a_router_that_restarts_forwards_again(
    protocol: str, speaks: dict[str, bool], check_s: float, tmp_path: Path
) -> None:
    with internet() as world:
        home, visitor = world.home("anna", "endpoint-independent"), world.public("visitor")
        router = daemon(world, home, tmp_path, **speaks)
        mapper = peer(home.host, protocol, check_s, 0.3)
        told(mapper, 1)
        # Without some age, a router that restarts is not younger than it was.
        grown = time.monotonic() + 4.5
        wait_until(lambda: time.monotonic() > grown, 6, "the router has been up for some seconds")
        router.stop()
        router.start()
        wait_until(lambda: router.forwarded().count(str(home.host.address)) == 2, 20, "forwarded again", mapper)
        assert visit(visitor, home, PORT) == ["tcp hello", "udp hello"]


@pytest.mark.parametrize("speaks", [{"upnp": False}, {"natpmp": False}])
def test_the_second_peer_behind_a_router_gets_another_number(speaks: dict[str, bool], tmp_path: Path) -> None:
    with internet() as world:
        home, visitor = world.home("anna", "symmetric"), world.public("visitor")
        neighbour = world.rig.host("neighbour", home.lan)
        daemon(world, home, tmp_path, **speaks)
        first, second = peer(home.host), None
        assert port_of(told(first, 1)[0]) == PORT
        second = peer(neighbour)
        port = port_of(told(second, 1)[0])
        assert port != PORT
        assert visit(visitor, home, port) == ["tcp hello", "udp hello"]
        assert visit(visitor, home, PORT) == ["tcp hello", "udp hello"]


def test_behind_two_routers_nothing_is_forwarded_and_the_reason_is_said(tmp_path: Path) -> None:
    with internet() as world:
        home = world.behind_two_routers("anna", "endpoint-independent")
        router = daemon(world, home, tmp_path)
        mapper = peer(home.host)
        address, how = told(mapper, 1)
        assert address is None
        # The daemon knows that an address like its own is nothing to forward from, and names none.
        assert how == (
            f"the router at {home.router.address} refuses by NAT-PMP: it has no address outside at the moment; "
            f"the router at {home.router.address} refuses by UPnP: it has no address outside at the moment"
        )
        assert str(home.host.address) not in router.forwarded()


def test_a_router_that_speaks_neither_costs_seconds_and_says_so() -> None:
    with internet() as world:
        home = world.home("anna", "symmetric")
        mapper = peer(home.host)
        address, how = told(mapper, 1, 10)
        assert address is None
        assert "NAT-PMP" in how
        assert "UPnP" in how
        assert home.router.address in how


def test_a_machine_without_a_router_says_so() -> None:
    with internet() as world:
        host = world.rig.host("alone", world.rig.lan("192.168.7.0/24", site=True))
        host.command("ip", "route", "del", "default")
        assert told(peer(host), 1) == (None, "this machine has no default gateway that could forward a port")
