"""The real package `kademlia`, as it comes from the index, on the simulated network."""

from __future__ import annotations

import asyncio
import logging

import pytest
from kademlia.network import Server

from p2pcompute.sim.conditions import Conditions
from p2pcompute.sim.failure import SimFailure
from p2pcompute.sim.lab import Lab
from p2pcompute.sim.loop import UncaughtError
from tests.unit.sim.sim_help import simulate

PORT = 8468


async def _servers(lab: Lab, count: int) -> list[Server]:
    servers = []
    for number in range(count):
        host = lab.network.add_host(f"10.0.0.{number + 1}")
        with host.here():
            server = Server()
            # Once by where the code runs, otherwise by the address.
            await server.listen(PORT, "0.0.0.0" if number % 2 else host.address)
        servers.append(server)
    for number, server in enumerate(servers[1:]):
        assert await server.bootstrap([(f"10.0.0.{number + 1}", PORT)])
    return servers


def _run(count: int, loss: float, seed: int) -> str:
    found: list[object] = []

    async def scenario(lab: Lab) -> None:
        lab.network.set_conditions(Conditions(latency_s=0.01, jitter_s=0.02))
        servers = await _servers(lab, count)
        lab.network.set_conditions(Conditions(latency_s=0.01, jitter_s=0.02, loss=loss))
        for number in range(5):
            assert await servers[number].set(f"key {number}", f"value {number}")
        found.extend([await servers[-1 - number].get(f"key {number}") for number in range(5)])
        for server in servers:
            server.stop()
        # Replies that nobody waits for any more end by the package's own five seconds.
        await asyncio.sleep(10.0)

    report = simulate(scenario, seed)
    assert found == [f"value {number}" for number in range(5)]
    return report.digest


@pytest.fixture(autouse=True)
def _quiet() -> None:
    for name in ("rpcudp", "kademlia"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def test_stock_servers_find_each_other_and_their_values() -> None:
    first = _run(20, 0.0, 1)
    # The package draws message numbers and ids from the system: inside the fence these are seeded as well.
    assert first == _run(20, 0.0, 1) != _run(20, 0.0, 2)


def test_they_do_over_a_lossy_network() -> None:
    _run(12, 0.05, 3)


def test_a_port_of_70000_closes_the_transport_as_with_a_real_socket() -> None:
    async def scenario(lab: Lab) -> None:
        (server,) = await _servers(lab, 1)
        server.transport.sendto(b"x", ("10.0.0.9", 70_000))
        assert server.transport.is_closing()
        await asyncio.sleep(1.0)

    with pytest.raises(SimFailure) as caught:
        simulate(scenario)
    assert isinstance(caught.value.__cause__, UncaughtError)
    assert isinstance(caught.value.__cause__.__cause__, OverflowError)


def test_endpoints_refuse_what_sockets_refuse() -> None:
    async def scenario(lab: Lab) -> None:
        lab.network.add_host("10.0.0.1", "fd00::1")
        other = lab.network.add_host("10.0.0.2")
        errors: list[Exception] = []
        ended: list[Exception | None] = []
        heard: list[tuple[bytes, tuple]] = []

        class Protocol(asyncio.DatagramProtocol):
            def error_received(self, exc: Exception) -> None:
                errors.append(exc)

            def connection_lost(self, exc: Exception | None) -> None:
                ended.append(exc)

            def datagram_received(self, data: bytes, addr: tuple) -> None:
                heard.append((data, addr))

        with pytest.raises(OSError, match=r"no host of the simulation"):
            await lab.loop.create_datagram_endpoint(Protocol, ("10.9.9.9", 5))
        transport, _ = await lab.loop.create_datagram_endpoint(Protocol, ("10.0.0.1", 5))
        with pytest.raises(OSError, match=r"in use"):
            await lab.loop.create_datagram_endpoint(Protocol, ("10.0.0.1", 5))
        with other.here():
            connected, _ = await lab.loop.create_datagram_endpoint(Protocol, remote_addr=("10.0.0.1", 5))
        transport.sendto(b"x", ("localhost", 5))
        transport.sendto(bytes(70_000), ("10.0.0.2", 5))
        assert [type(each).__name__ for each in errors] == ["gaierror", "OSError"]
        assert transport.get_extra_info("sockname") == ("10.0.0.1", 5)
        connected.sendto(b"question")
        await asyncio.sleep(1.0)
        transport.sendto(b"answer", heard[0][1])
        await asyncio.sleep(1.0)
        assert heard == [(b"question", connected.get_extra_info("sockname")), (b"answer", ("10.0.0.1", 5))]
        transport.close()
        connected.abort()
        await asyncio.sleep(1.0)
        assert ended == [None, None]

    simulate(scenario)
