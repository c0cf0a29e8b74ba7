"""The beacon's shell on a network: three machines on one switch, each way alone and none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.rig import Host, Process, Rig, require_rig, wait_until

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.netns

#: Calls five times a second and prints every peer port and address family that it hears.
STATION = """
import asyncio, json, sys, time
sys.path.insert(0, sys.argv[2])
from p2pcompute.net.beacon import BeaconShell
from p2pcompute.wire.beacon import decode_beacon
from tests.support.membership import NETWORK, FakeKey, fake_verify

class Clock:
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

def heard(data, source):
    signed = decode_beacon(data)
    assert signed.is_genuine(fake_verify)
    assert not source.host.startswith("fe80") or "%" in source.host
    way = "ipv6" if ":" in source.host else "loopback" if source.host.startswith("127.") else "ipv4"
    print(json.dumps([signed.beacon.peer_port, way, signed.beacon.is_answer]), flush=True)
    if not signed.beacon.is_answer:
        shell.answer(type(source)(source.host, signed.beacon.answer_port))

async def main():
    global shell
    shell = BeaconShell(FakeKey(sys.argv[1]), NETWORK, int(sys.argv[1]), heard, Clock())
    await shell.start()
    while True:
        shell.broadcast()
        await asyncio.sleep(0.2)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig("nft")


def heard(process: Process) -> set[tuple[int, str, bool]]:
    lines = process.stdout().splitlines(keepends=True)
    return {tuple(json.loads(line)) for line in lines if line.endswith("\n")}


def stations(rig: Rig, prepare: Callable[[Host], None]) -> list[Process]:
    lan = rig.lan("10.77.1.0/24")
    hosts = [rig.host(name, lan) for name in ("anna", "ben", "carl")]
    for host in hosts:
        prepare(host)
    return [host.python(STATION, str(number), str(ROOT)) for number, host in enumerate(hosts, 1)]


def all_hear_all(processes: list[Process], way: str) -> bool:
    return all(
        {(other, way, is_answer) for other in (1, 2, 3) if other != number for is_answer in (False, True)}
        <= heard(process)
        for number, process in enumerate(processes, 1)
    )


def no_ipv6(host: Host) -> None:
    host.namespace.setting("net/ipv6/conf/all/disable_ipv6", "1")


def broadcast_only(host: Host) -> None:
    no_ipv6(host)
    host.block_multicast()


def multicast_only(host: Host) -> None:
    no_ipv6(host)
    host.block_broadcast()


@pytest.mark.parametrize("prepare", [broadcast_only, multicast_only])
def test_three_machines_hear_and_answer_each_other_by_one_way_alone(prepare: Callable[[Host], None]) -> None:
    with Rig() as rig:
        processes = stations(rig, prepare)
        wait_until(lambda: all_hear_all(processes, "ipv4"), 20, "all hear all", *processes)


def test_three_machines_hear_and_answer_each_other_over_ipv6() -> None:
    with Rig() as rig:
        processes = stations(rig, lambda host: None)
        wait_until(lambda: all_hear_all(processes, "ipv6"), 20, "all hear all over IPv6", *processes)


def test_where_nothing_comes_in_a_machine_hears_itself_alone() -> None:
    def deaf(host: Host) -> None:
        host.block_broadcast()
        host.block_multicast()

    with Rig() as rig:
        processes = stations(rig, deaf)
        wait_until(
            lambda: all((number, "loopback", True) in heard(each) for number, each in enumerate(processes, 1)),
            20,
            "each hears itself",
            *processes,
        )
        for number, process in enumerate(processes, 1):
            assert {port for port, _, _ in heard(process)} == {number}
