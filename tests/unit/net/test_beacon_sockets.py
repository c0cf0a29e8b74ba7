"""The beacon's shell on real sockets, loopback alone."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from p2pcompute.membership import beacons
from p2pcompute.model import limits
from p2pcompute.model.errors import PortTakenError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net import interfaces as net_interfaces
from p2pcompute.net.beacon import BeaconShell, source_address
from p2pcompute.net.interfaces import Interface
from p2pcompute.wire.beacon import decode_beacon
from tests.support.membership import NETWORK, WALL, FakeKey, fake_verify

LOOPBACK = (Interface("lo", 1, "127.0.0.1", ("127.255.255.255",), ("127.0.0.1/8",), False, True),)
NO_IPV6 = not socket.has_ipv6


class StoppedClock:
    """Wall time stands still: a beacon must have a later time all the same."""

    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> float:
        return WALL


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], bool], bound_s: float = 10.0) -> None:
    async with asyncio.timeout(bound_s):
        while not condition():  # noqa: ASYNC110 - what is waited for are datagrams, which set no event
            await asyncio.sleep(0.005)


@dataclass
class Station:
    """A shell and what it heard."""

    key: FakeKey
    shell: BeaconShell
    heard: list[tuple[bytes, Address]]

    def keys_heard(self) -> set[bytes]:
        return {decode_beacon(data).beacon.public_key for data, _ in self.heard}


async def station(name: str, port: int, **changes: object) -> Station:
    key, heard = FakeKey(name), list[tuple[bytes, Address]]()
    shell = BeaconShell(
        key,
        NETWORK,
        9876,
        lambda data, source: heard.append((data, source)),
        StoppedClock(),
        port=port,
        **({"interfaces": lambda: LOOPBACK} | changes),  # type: ignore[arg-type]
    )
    await shell.start()
    return Station(key, shell, heard)


def test_three_shells_of_one_host_hear_each_other() -> None:
    async def main() -> None:
        port = free_udp_port()
        stations = [await station(name, port) for name in "abc"]
        keys = {each.key.public_key for each in stations}
        for each in stations:
            each.shell.broadcast()
        await until(lambda: all(each.keys_heard() == keys for each in stations))
        assert len({each.shell.answer_port for each in stations}) == 3
        for each in stations:
            for data, source in each.heard:
                signed = decode_beacon(data)
                assert signed.is_genuine(fake_verify)
                assert source.host == "127.0.0.1"
                assert source.port == signed.beacon.answer_port
            await each.shell.stop()

    asyncio.run(main())


def test_an_answer_reaches_the_one_it_is_for() -> None:
    async def main() -> None:
        port = free_udp_port()
        one, two, three = [await station(name, port) for name in "abc"]
        two.shell.answer(Address("127.0.0.1", one.shell.answer_port))
        await until(lambda: bool(one.heard))
        assert decode_beacon(one.heard[0][0]).beacon.is_answer
        # A call after it arrives at all: had the answer gone to others, it would have been before this.
        two.shell.broadcast()
        await until(lambda: bool(three.heard) and len(one.heard) >= 2)
        assert not decode_beacon(three.heard[0][0]).beacon.is_answer
        for each in (one, two, three):
            await each.shell.stop()

    asyncio.run(main())


@pytest.mark.skipif(NO_IPV6, reason="not on this platform: no IPv6")
def test_answers_arrive_over_ipv6_at_the_same_port() -> None:
    async def main() -> None:
        port = free_udp_port()
        one, two = [await station(name, port) for name in "ab"]
        if ("send", socket.AF_INET6) in one.shell._sockets:
            two.shell.answer(Address("::1", one.shell.answer_port))
            await until(lambda: bool(one.heard))
            assert one.heard[0][1].host == "::1"
        for each in (one, two):
            await each.shell.stop()

    asyncio.run(main())


def test_machines_and_shells_together_find_each_other_and_answer() -> None:
    async def main() -> None:
        port = free_udp_port()
        hinted: dict[str, set[PeerId]] = {}
        stations: list[Station] = []
        machines: list[beacons.BeaconMachine] = []

        def perform(number: int, effects: list[beacons.Effect]) -> None:
            for effect in effects:
                match effect:
                    case beacons.Broadcast():
                        stations[number].shell.broadcast()
                    case beacons.Answer(to):
                        stations[number].shell.answer(to)
                    case beacons.PeerHinted(peer, addresses):
                        assert addresses == (Address("127.0.0.1", 9876),)
                        hinted.setdefault("abc"[number], set()).add(peer)

        for number, name in enumerate("abc"):
            stations.append(await station(name, port))
            own = beacons.BeaconOwn(stations[-1].key.public_key, NETWORK)
            # No burst: the one who starts last calls once, the others are known to it by their answers alone.
            quick = beacons.BeaconSettings(burst_s=(0.0,), answer_delay_max_s=0.0)
            machines.append(beacons.BeaconMachine(own, fake_verify, random.Random(number), quick))
            perform(number, machines[number].handle(beacons.Start(), 0.0))

            def pump() -> bool:
                for place, machine in enumerate(machines):
                    while stations[place].heard:
                        data, source = stations[place].heard.pop(0)
                        perform(place, machine.handle(beacons.BeaconHeard(data, source, WALL), 1.0))
                everybody = {each.key.peer for each in stations}
                return all(
                    hinted.get("abc"[place], set()) == everybody - {each.key.peer}
                    for place, each in enumerate(stations)
                )

            await until(pump)
        for each in stations:
            await each.shell.stop()

    asyncio.run(main())


def test_noise_of_any_size_is_dropped_or_handed_on_and_stops_nothing() -> None:
    async def main() -> None:
        port = free_udp_port()
        one = await station("a", port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for size in (0, 1, limits.BEACON_BYTES_MAX + 1, 1400, 60_000):
                stranger.sendto(bytes(size), ("127.0.0.1", port))
        one.shell.broadcast()
        await until(lambda: len(one.heard) >= 5)
        cut_off = limits.BEACON_BYTES_MAX + 1
        assert [len(data) for data, _ in one.heard][:4] == [1, cut_off, cut_off, cut_off], (
            "seen to be too long, and no more"
        )
        assert len(one.heard) == 5
        await one.shell.stop()

    asyncio.run(main())


def test_beacons_of_a_stopped_clock_still_have_rising_times_and_one_instance() -> None:
    async def main() -> None:
        one = await station("a", free_udp_port(), instance=b"instance")
        for _ in range(3):
            one.shell.broadcast()
        await until(lambda: len(one.heard) == 3)
        beacons_heard = [decode_beacon(data).beacon for data, _ in one.heard]
        assert len({each.time_ms for each in beacons_heard}) == 3
        assert {each.instance for each in beacons_heard} == {b"instance"}
        await one.shell.stop()

    asyncio.run(main())


def test_new_interfaces_are_noticed_and_called_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_interfaces, "LOOK_INTERVAL_UNTOLD_S", 0.02)

    def watch(look: Callable[[], None]) -> net_interfaces.InterfaceWatch:
        return net_interfaces.InterfaceWatch(look, tells=False)

    found: list[tuple[Interface, ...]] = [()]

    async def main() -> None:
        changes: list[int] = []
        told = await station(
            "a", free_udp_port(), interfaces=lambda: found[0], changed=lambda: changes.append(1), watch=watch
        )
        alone = await station("b", free_udp_port(), interfaces=lambda: found[0], watch=watch)
        assert told.shell.interfaces == ()
        found[0] = LOOPBACK
        await until(lambda: bool(changes) and bool(alone.heard))
        assert told.shell.interfaces == LOOPBACK
        assert not told.heard, "who is told decides itself"
        await told.shell.stop()
        await alone.shell.stop()

    asyncio.run(main())


def test_peers_that_know_each_other_have_one_view_hash() -> None:
    async def main() -> None:
        port, keys = free_udp_port(), [FakeKey(name) for name in "abc"]
        everybody = [key.peer for key in keys]
        # Who knows everybody lists the others; whether it lists itself too makes no difference.
        one = await station("a", port, known_peers=lambda: everybody[1:])
        two = await station("b", port, known_peers=lambda: everybody)
        other = await station("c", port, known_peers=lambda: everybody[:1])
        for each in (one, two, other):
            each.shell.broadcast()
        await until(lambda: len(one.keys_heard()) == 3)
        hashes = {decode_beacon(data).beacon.public_key: decode_beacon(data).beacon.view_hash for data, _ in one.heard}
        assert hashes[keys[0].public_key] == hashes[keys[1].public_key] == one.shell.view_hash
        assert hashes[keys[2].public_key] != one.shell.view_hash
        for each in (one, two, other):
            await each.shell.stop()

    asyncio.run(main())


def test_a_port_that_cannot_be_shared_is_named() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as greedy:
            greedy.bind(("", 0))
            with pytest.raises(PortTakenError, match=str(greedy.getsockname()[1])):
                await station("a", greedy.getsockname()[1])

    asyncio.run(main())


def test_stop_is_final_and_may_be_repeated() -> None:
    async def main() -> None:
        port = free_udp_port()
        one = await station("a", port)
        await one.shell.stop()
        await one.shell.stop()
        one.shell.broadcast()
        one.shell.answer(Address("127.0.0.1", port))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as next_owner:
            next_owner.bind(("", port))

    asyncio.run(main())


def test_an_answer_to_a_vanished_interface_is_left_out() -> None:
    async def main() -> None:
        one = await station("a", free_udp_port())
        one.shell.answer(Address("fe80::1%gone0", 9))
        one.shell.answer(Address("not an address", 9))
        one.shell.broadcast()
        await until(lambda: bool(one.heard))
        await one.shell.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("row", "host"),
    [
        (("10.0.0.1", 5), "10.0.0.1"),
        (("::1", 5, 0, 0), "::1"),
        (("fd00::1", 5, 0, 1), "fd00::1"),
        (("fe80::1", 5, 0, 1), f"fe80::1%{socket.if_indextoname(1)}"),
        (("fe80::1%eth7", 5, 0, 1), "fe80::1%eth7"),
        (("fe80::1", 5, 0, 4_000_000), "fe80::1%4000000"),
    ],
)
def test_link_local_sources_carry_their_zone(row: tuple[object, ...], host: str) -> None:
    assert source_address(row) == Address(host, 5)
