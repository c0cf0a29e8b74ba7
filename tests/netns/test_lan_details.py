"""Interfaces that come and go under a running peer: it uses what appears within seconds and forgets what is gone."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.rig import Host, Lan, Process, Rig, require_rig, wait_until
from tests.netns.scenes import Stage, all_linked, scene
from tests.support.peers import PeerProcess, until_now

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]
#: "Within a few seconds", on a machine that does much else: the next call that is not an answer to a change is 24 s away at least.
SOON_S = 15.0


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with scene() as made:
        yield made


def second_cable(host: Host, lan: Lan, name: str = "eth1", address: str = "") -> str:
    """One more interface of `host`, plugged into `lan`; the address that it has."""
    rig = host.rig
    assert rig._switches is not None
    taken = {each.address for each in rig.hosts.values()}
    chosen = address or next(str(each) for each in lan.network.hosts() if str(each) not in taken)
    port = f"{name}-{host.name}"
    rig._switches.command(
        "ip", "link", "add", port, "type", "veth", "peer", "name", name, "netns", str(host.namespace.pid)
    )
    rig._switches.command("ip", "link", "set", port, "master", lan.bridge)
    rig._switches.command("ip", "link", "set", port, "up")
    host.command("ip", "address", "add", f"{chosen}/{lan.network.prefixlen}", "broadcast", lan.broadcast, "dev", name)
    host.command("ip", "link", "set", name, "up")
    return chosen


def own_hosts(peer: PeerProcess) -> set[str]:
    """The hosts of the addresses that it tells others."""
    return {address.rpartition(":")[0] for address in peer.ask("status")["addresses"]}


def first_calls_are_over(*peers: PeerProcess) -> None:
    """What is found from now on is found by something new, or by a call that comes every 30 s."""
    until_now(lambda: all(peer.ask("status")["uptime_s"] > 4 for peer in peers), "the first calls are over")


def test_an_interface_added_while_running_is_used_and_a_removed_one_forgotten(stage: Stage) -> None:
    here, there = stage.rig.lan("10.77.1.0/24"), stage.rig.lan("10.77.2.0/24")
    anna, ben = stage.machine("anna", here), stage.machine("ben", there)
    stage.same_network(anna, ben)
    peers = [anna.up("anna"), ben.up("ben")]
    first_calls_are_over(*peers)
    assert [peer.linked_names for peer in peers] == [set(), set()]
    address = second_cable(stage.rig.hosts["anna"], there)
    all_linked(peers, SOON_S)
    until_now(lambda: address in own_hosts(peers[0]), "the new address is told", SOON_S)
    stage.rig.hosts["anna"].command("ip", "link", "delete", "eth1")
    until_now(lambda: address not in own_hosts(peers[0]), "the old address is no longer told", SOON_S)
    assert stage.rig.hosts["anna"].address in own_hosts(peers[0])


def test_a_second_address_of_one_interface_reaches_those_of_its_subnet(stage: Stage) -> None:
    switch = stage.rig.lan("10.77.1.0/24")
    other = Lan(switch.bridge, ipaddress.IPv4Network("10.88.5.0/24"))
    anna, ben = stage.machine("anna", switch), stage.machine("ben", other)
    for host in stage.rig.hosts.values():
        # No IPv6, by which any two machines on one wire meet, and no multicast: what is left is each subnet's own broadcast.
        host.namespace.setting("net/ipv6/conf/all/disable_ipv6", "1")
    stage.same_network(anna, ben)
    peers = [anna.up("anna"), ben.up("ben")]
    first_calls_are_over(*peers)
    assert peers[0].linked_names == set(), "two subnets on one wire cannot dial each other"
    stage.rig.hosts["anna"].command("ip", "address", "add", "10.88.5.77/24", "broadcast", "10.88.5.255", "dev", "eth0")
    all_linked(peers, SOON_S)
    assert {"10.77.1.1", "10.88.5.77"} <= own_hosts(peers[0])


def test_a_cable_pulled_before_the_others_came_and_put_back_is_noticed(stage: Stage) -> None:
    lan = stage.rig.lan("10.77.1.0/24")
    anna, ben = stage.machine("anna", lan), stage.machine("ben", lan)
    stage.same_network(anna, ben)
    first = anna.up("anna")
    host = stage.rig.hosts["anna"]
    until_now(lambda: host.address in own_hosts(first), "anna is on the LAN")
    host.cable(plugged=False)
    until_now(lambda: host.address not in own_hosts(first), "anna knows that she is not on the LAN", SOON_S)
    second = ben.up("ben")
    first_calls_are_over(second)
    assert first.linked_names == set()
    host.cable(plugged=True)
    all_linked([first, second], SOON_S)
    until_now(lambda: host.address in own_hosts(first), "anna is on the LAN again", SOON_S)


def test_peers_linked_before_a_cable_was_pulled_are_linked_after_it_is_back(stage: Stage) -> None:
    lan = stage.rig.lan("10.77.1.0/24")
    anna, ben = stage.machine("anna", lan), stage.machine("ben", lan)
    stage.same_network(anna, ben)
    peers = [anna.up("anna"), ben.up("ben")]
    all_linked(peers)
    host = stage.rig.hosts["anna"]
    host.cable(plugged=False)
    until_now(lambda: host.address not in own_hosts(peers[0]), "anna knows that her cable is out", SOON_S)
    host.cable(plugged=True)
    all_linked(peers, SOON_S)
    until_now(lambda: host.address in own_hosts(peers[0]), "and that it is back", SOON_S)


#: Prints the names and addresses of the interfaces, and how often it looked, at each change.
WATCHER = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from p2pcompute.net import interfaces

interfaces.LOOK_INTERVAL_TOLD_S = 3600.0
looks = 0

def look():
    global looks
    looks += 1
    print(json.dumps([looks, [[each.name, list(each.networks)] for each in interfaces.read_interfaces()]]), flush=True)

async def main():
    watch = interfaces.InterfaceWatch(look)
    watch.start()
    look()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_system_tells_of_every_kind_of_change_and_a_flock_costs_one_look() -> None:
    with Rig() as rig:
        lan = rig.lan("10.77.1.0/24")
        host = rig.host("anna", lan)
        watcher = host.python(WATCHER, str(ROOT))

        def seen(name: str) -> list[str] | None:
            networks: dict[str, list[str]] = dict(_last(watcher)[1])
            return networks.get(name)

        wait_until(lambda: watcher.stdout().endswith("\n"), 10, "the first look", watcher)
        host.command("ip", "address", "add", "10.77.1.99/24", "dev", "eth0")
        wait_until(lambda: "10.77.1.99/24" in (seen("eth0") or []), 5, "an address came", watcher)
        host.command("ip", "address", "delete", "10.77.1.99/24", "dev", "eth0")
        wait_until(lambda: "10.77.1.99/24" not in (seen("eth0") or []), 5, "an address went", watcher)
        host.command("ip", "address", "add", "fd00:77::1/64", "dev", "eth0")
        wait_until(lambda: "fd00:77::1/64" in (seen("eth0") or []), 5, "an IPv6 address came", watcher)
        second_cable(host, lan, address="10.77.1.50")
        wait_until(lambda: seen("eth1") is not None, 5, "an interface came", watcher)
        host.command("ip", "link", "set", "eth1", "down")
        wait_until(lambda: seen("eth1") is None, 5, "a cable went", watcher)
        host.command("ip", "link", "set", "eth1", "up")
        wait_until(lambda: seen("eth1") is not None, 5, "a cable came", watcher)
        host.command("ip", "link", "delete", "eth1")
        wait_until(lambda: seen("eth1") is None, 5, "an interface went", watcher)
        before = _last(watcher)[0]
        many = "\n".join(f"address add 10.77.1.{number}/24 dev eth0" for number in range(100, 200))
        host.namespace.command("ip", "-batch", "-", text=many + "\n")
        wait_until(lambda: len(seen("eth0") or []) >= 100, 5, "a hundred addresses came", watcher)
        assert _last(watcher)[0] - before <= 20


def _last(process: Process) -> tuple[int, list[tuple[str, list[str]]]]:
    lines = [line for line in process.stdout().splitlines(keepends=True) if line.endswith("\n")]
    count, found = json.loads(lines[-1])
    return count, found
