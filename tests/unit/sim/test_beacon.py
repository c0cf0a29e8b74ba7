"""The LAN beacon on a simulated LAN: the real beacon machine, the real beacons."""

from __future__ import annotations

import asyncio

from p2pcompute.model.ids import NetworkId
from p2pcompute.model.peer import Address
from p2pcompute.net.beacon import BeaconShell
from p2pcompute.sim.beacon import SimBeaconShell
from p2pcompute.sim.hosts import SimHost
from p2pcompute.sim.lab import Lab
from p2pcompute.wire.beacon import decode_beacon
from p2pcompute.wire.identity import PeerKey
from tests.unit.sim.sim_help import simulate

NETWORK = NetworkId(bytes(32))


class Station:
    """A shell, and what it heard."""

    def __init__(self, lab: Lab, host: SimHost) -> None:
        entropy = lab.entropy(host.name)
        self.heard: list[tuple[bytes, Address]] = []
        self.key = PeerKey.generate(entropy)
        self.changes = 0
        self.shell = SimBeaconShell(
            host, self.key, NETWORK, 9876, lambda data, source: self.heard.append((data, source)),
            lab.clock(host.name), entropy, changed=self._changed,
        )  # fmt: skip

    def _changed(self) -> None:
        self.changes += 1


def test_peers_of_one_lan_hear_and_answer_each_other() -> None:
    async def scenario(lab: Lab) -> None:
        hosts = [lab.network.add_host(f"10.0.0.{number}", lan="office") for number in (1, 2)]
        hosts.append(lab.network.add_host("10.1.0.1", lan="elsewhere"))
        stations = [Station(lab, host) for host in hosts]
        one, two, far = stations
        shell: BeaconShell = one.shell
        shell.broadcast()
        for station in stations:
            await station.shell.start()
        shell.broadcast()
        await asyncio.sleep(1.0)
        assert not far.heard
        # Its own, too: broadcasts come back.
        assert one.heard == two.heard
        ((data, source),) = two.heard
        beacon = decode_beacon(data).beacon
        assert beacon.public_key == one.key.public_key
        assert (source, beacon.answer_port) == (Address("10.0.0.1", one.shell.answer_port), one.shell.answer_port)
        two.shell.answer(source)
        await asyncio.sleep(1.0)
        assert decode_beacon(one.heard[-1][0]).beacon.is_answer
        assert len(two.heard) == 1
        # A laptop is carried to the other LAN.
        lab.network.move(hosts[1], "10.1.0.9", lan="elsewhere")
        assert two.changes == 1
        assert two.shell.interfaces[0].ipv4 == "10.1.0.9"
        two.shell.broadcast()
        await asyncio.sleep(1.0)
        assert len(far.heard) == 1
        assert len(one.heard) == 2
        await far.shell.stop()
        await far.shell.stop()
        two.shell.broadcast()
        lab.network.crash(hosts[1])
        await two.shell.stop()
        await asyncio.sleep(1.0)
        assert len(far.heard) == 1

    simulate(scenario)
