"""Datagrams on the simulated network, and each fault by itself."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from p2pcompute.model.errors import PortTakenError, UsageError
from p2pcompute.model.peer import Address
from p2pcompute.sim.conditions import Conditions, Line
from p2pcompute.sim.hosts import HERE, SOCKET_BUFFER_BYTES
from p2pcompute.sim.lab import Lab
from tests.unit.sim.sim_help import PORT, Ear, simulate


def _ears(lab: Lab, count: int, **where: str) -> list[Ear]:
    return [Ear(lab.network.add_host(f"10.0.0.{number}", **where)) for number in range(1, count + 1)]


def test_a_datagram_arrives_in_its_time_with_its_source_on_its_host() -> None:
    async def scenario(lab: Lab) -> None:
        lab.network.set_conditions(Conditions(latency_s=0.1, jitter_s=0.05))
        one, two = _ears(lab, 2)
        places = []
        opened = await two.host.open_datagrams("10.0.0.2", 0, lambda data, source: places.append((data, HERE.get())))
        for _ in range(100):
            one.send(b"hello", two)
        one.send(bytearray(b"view"), Address("10.0.0.2", opened.port))
        one.send(b"nobody", Address("10.0.0.9", PORT))
        one.send(b"closed", Address("10.0.0.2", 1))
        await asyncio.sleep(1.0)
        assert two.heard == [b"hello"] * 100
        assert two.sources[0] == Address("10.0.0.1", PORT)
        assert min(two.times) >= 0.1
        assert max(two.times) <= 0.15
        assert max(two.times) - min(two.times) > 0.03
        assert places == [(b"view", two.host)]
        assert (lab.network.delivered, lab.network.lost) == (101, 2)
        assert (one.host.datagrams_out, two.host.datagrams_in, two.host.bytes_in) == (103, 101, 504)

    simulate(scenario)


def test_ports_are_taken_once_and_free_again() -> None:
    async def scenario(lab: Lab) -> None:
        (one,) = _ears(lab, 1)
        with pytest.raises(PortTakenError, match="in use"):
            await one.host.open_datagrams(None, PORT, lambda data, source: None)
        with pytest.raises(PortTakenError, match="no address"):
            await one.host.open_datagrams("10.0.0.2", 5, lambda data, source: None)
        one.port.close()
        one.port.close()
        again = Ear(one.host)
        one.port.send(b"closed", again.address)
        await asyncio.sleep(1.0)
        assert not again.heard
        with pytest.raises(UsageError, match="already"):
            lab.network.add_host("10.0.0.1")
        with pytest.raises(UsageError, match="taken"):
            lab.network.add_host("10.0.0.1", name="other")
        with pytest.raises(UsageError, match="numeric"):
            lab.network.add_host("localhost")

    simulate(scenario)


def test_a_host_reaches_itself_and_both_families() -> None:
    async def scenario(lab: Lab) -> None:
        both = Ear(lab.network.add_host("10.0.0.1", "fd00::1"))
        six = Ear(lab.network.add_host("fd00::2"))
        both.send(b"self", Address("127.0.0.1", PORT))
        both.send(b"six", Address("fd00::2", PORT))
        six.send(b"back", Address("fd00::1", PORT))
        six.send(b"no such family", Address("10.0.0.1", PORT))
        await asyncio.sleep(1.0)
        assert sorted(both.heard) == [b"back", b"self"]
        assert sorted(source.host for source in both.sources) == ["127.0.0.1", "fd00::2"]
        assert six.sources == [Address("fd00::1", PORT)]

    simulate(scenario)


def test_sites_lines_and_pairs_shape_the_way() -> None:
    async def scenario(lab: Lab) -> None:
        network = lab.network
        a, b = (Ear(network.add_host(f"10.1.0.{number}", site="a")) for number in (1, 2))
        c = Ear(network.add_host("10.2.0.1", site="b"))
        network.set_conditions(Conditions(latency_s=0.001, jitter_s=0))
        network.set_sites("a", "b", Conditions(latency_s=0.1, jitter_s=0))

        async def took(near: Ear, far: Ear) -> float:
            began = lab.now
            near.send(b"?", far)
            await asyncio.sleep(2.0)
            return round(far.times[-1] - began, 6)

        assert [await took(a, b), await took(a, c), await took(c, a)] == [0.001, 0.1, 0.1]
        network.set_line(c.host, Line(latency_s=0.05))
        assert [await took(a, b), await took(a, c), await took(c, a)] == [0.001, 0.15, 0.15]
        network.set_pair(a.host, c.host, Conditions(latency_s=0.5, jitter_s=0), one_way=True)
        assert [await took(a, c), await took(c, a)] == [0.55, 0.15]
        network.set_pair(a.host, c.host, None)
        network.set_line(c.host, Line())
        assert [await took(a, c), await took(c, a)] == [0.1, 0.1]

    simulate(scenario)


def test_losses_duplicates_and_overtaking_have_their_shares() -> None:
    async def scenario(lab: Lab) -> None:
        one, two = _ears(lab, 2)
        count = 4000

        async def sent(conditions: Conditions) -> list[int]:
            lab.network.set_conditions(conditions)
            two.heard.clear()
            for number in range(count):
                one.send(b"%d" % number, two)
                await asyncio.sleep(0.001)
            await asyncio.sleep(1.0)
            return [int(each) for each in two.heard]

        assert await sent(Conditions(latency_s=0.01, jitter_s=0)) == list(range(count))
        assert 0.76 < len(await sent(Conditions(loss=0.2))) / count < 0.84
        assert 1.17 < len(await sent(Conditions(duplicate=0.2))) / count < 1.23
        came = await sent(Conditions(jitter_s=0, reorder=0.1, reorder_s=0.05))
        assert sorted(came) == list(range(count))
        assert 0.07 < sum(later < earlier for earlier, later in pairwise(came)) / count < 0.12
        lab.network.set_line(two.host, Line(loss=0.5))
        assert 0.36 < len(await sent(Conditions(loss=0.2))) / count < 0.44

    simulate(scenario)


def test_a_slow_line_delays_and_drops_what_is_too_much() -> None:
    async def scenario(lab: Lab) -> None:
        one, two = _ears(lab, 2)
        lab.network.set_line(one.host, Line(up_bytes_per_s=128_000))
        for _ in range(60):
            one.send(bytes(1000), two)
        await asyncio.sleep(5.0)
        # A quarter of a second waits, at 128 a second; the rest is dropped.
        assert len(two.heard) == 32
        assert two.times[-1] == pytest.approx(0.25, abs=0.001)
        two.heard.clear()
        lab.network.set_line(one.host, Line())
        lab.network.set_line(two.host, Line(down_bytes_per_s=1000))
        began = lab.now
        one.send(bytes(500), two)
        await asyncio.sleep(5.0)
        assert two.times[-1] - began == pytest.approx(0.5, abs=0.001)

    simulate(scenario)


def test_partitions_part_groups_and_leave_others_alone() -> None:
    async def scenario(lab: Lab) -> None:
        ears = _ears(lab, 5)
        hosts = [ear.host for ear in ears]

        async def who_hears(sender: int) -> list[int]:
            for ear in ears:
                ear.heard.clear()
            for ear in ears:
                ears[sender].send(b"!", ear)
            await asyncio.sleep(1.0)
            return [number for number, ear in enumerate(ears) if ear.heard]

        first = lab.network.partition(hosts[:2], hosts[2:4])
        assert await who_hears(0) == [0, 1, 4]
        assert await who_hears(2) == [2, 3, 4]
        assert await who_hears(4) == [0, 1, 2, 3, 4]
        second = lab.network.block([hosts[4]], [hosts[0]])
        assert await who_hears(4) == [1, 2, 3, 4]
        assert await who_hears(0) == [0, 1, 4]
        lab.network.heal(first)
        assert await who_hears(0) == [0, 1, 2, 3, 4]
        assert await who_hears(4) == [1, 2, 3, 4]
        lab.network.heal(second)
        lab.network.partition(hosts[:1], hosts[1:2], hosts[2:])
        assert await who_hears(1) == [1]
        lab.network.heal()
        assert await who_hears(1) == [0, 1, 2, 3, 4]

    simulate(scenario)


def test_a_clog_holds_until_its_time() -> None:
    async def scenario(lab: Lab) -> None:
        one, two, three = _ears(lab, 3)
        lab.network.clog(2.0, one.host, two.host, one_way=True)
        for _ in range(3):
            one.send(b"held", two)
            one.send(b"free", three)
            two.send(b"back", one)
            await asyncio.sleep(0.5)
        assert not two.heard
        assert (len(three.heard), len(one.heard)) == (3, 3)
        await asyncio.sleep(0.6)
        assert two.times == [2.0, 2.0, 2.0]
        lab.network.clog(1.0, three.host)
        one.send(b"held", three)
        lab.network.clog(3.0)
        one.send(b"held", two)
        await asyncio.sleep(4.0)
        assert three.times[-1] == pytest.approx(3.1, abs=0.001)
        assert two.times[-1] == pytest.approx(5.1, abs=0.001)

    simulate(scenario)


def test_who_has_crashed_neither_hears_nor_speaks_until_started_again() -> None:
    async def scenario(lab: Lab) -> None:
        one, two = _ears(lab, 2)
        one.send(b"on its way", two)
        lab.network.crash(two.host)
        two.send(b"ghost", one)
        await asyncio.sleep(1.0)
        with pytest.raises(PortTakenError, match="is down"):
            Ear(two.host)
        lab.network.revive(two.host, "10.7.7.7")
        one.send(b"old address", two)
        again = Ear(two.host)
        one.send(b"new address", again)
        await asyncio.sleep(1.0)
        assert (one.heard, two.heard, again.heard) == ([], [], [b"new address"])
        assert lab.network.host_at("10.0.0.2") is None
        assert lab.network.host_at("10.7.7.7") is two.host

    simulate(scenario)


def test_a_laptop_takes_its_ports_along() -> None:
    async def scenario(lab: Lab) -> None:
        one, two = _ears(lab, 2)
        told: list[object] = []
        two.host.on_moved.append(lambda: told.append(HERE.get()))
        home = lab.network.add_nat("198.51.100.1")
        lab.network.move(two.host, "192.168.0.2", nat=home, site="home")
        one.send(b"old", two)
        two.send(b"from home", one)
        await asyncio.sleep(1.0)
        assert one.sources[0].host == "198.51.100.1"
        one.send(b"answer", one.sources[0])
        await asyncio.sleep(1.0)
        assert two.heard == [b"answer"]
        lab.network.move(two.host, "10.0.0.2")
        one.send(b"back", two)
        await asyncio.sleep(1.0)
        assert two.heard == [b"answer", b"back"]
        assert told == [two.host, two.host]

    simulate(scenario)


def test_a_starved_host_stands_still_with_its_timers_and_reads_later() -> None:
    async def scenario(lab: Lab) -> None:
        one, two = _ears(lab, 2)
        ticks: dict[str, list[float]] = {"one": [], "two": []}

        async def tick(name: str) -> None:
            while True:
                await asyncio.sleep(0.1)
                ticks[name].append(lab.now)

        async with asyncio.TaskGroup() as group:
            with one.host.here():
                first = group.create_task(tick("one"))
            with two.host.here():
                second = group.create_task(tick("two"))
            await asyncio.sleep(1.0)
            lab.network.starve(two.host, run_s=(1.0, 1.0), stall_s=(3.0, 3.0))
            await asyncio.sleep(1.5)
            one.send(b"waits", two)
            await asyncio.sleep(1.0)
            assert not two.heard
            await asyncio.sleep(6.5)
            lab.network.feed(two.host)
            await asyncio.sleep(2.0)
            first.cancel()
            second.cancel()
        gaps = [round(later - earlier, 3) for earlier, later in pairwise(ticks["two"])]
        assert [gap for gap in gaps if gap > 0.2] == pytest.approx([3.1, 3.1], abs=0.11)
        assert max(later - earlier for earlier, later in pairwise(ticks["one"])) < 0.11
        assert two.times[0] == pytest.approx(5.0)

    simulate(scenario)


def test_the_kernel_of_a_starved_host_has_so_much_room() -> None:
    async def scenario(lab: Lab) -> None:
        one, two = _ears(lab, 2)
        lab.network.starve(two.host, run_s=(0.0, 0.0), stall_s=(5.0, 5.0))
        await asyncio.sleep(0.1)
        for _ in range(300):
            one.send(bytes(1000), two)
        await asyncio.sleep(1.0)
        assert lab.network.lost == 300 - SOCKET_BUFFER_BYTES // 1000
        lab.network.feed(two.host)
        await asyncio.sleep(0.1)
        assert len(two.heard) == SOCKET_BUFFER_BYTES // 1000

    simulate(scenario)


def test_a_sleeping_laptop_hears_nothing_and_wakes_late() -> None:
    async def scenario(lab: Lab) -> None:
        one, two = _ears(lab, 2)
        clock = lab.clock("two")
        woke: list[float] = []

        async def sleeper() -> None:
            await asyncio.sleep(10.0)
            woke.append(lab.now)

        async with asyncio.TaskGroup() as group:
            with two.host.here():
                group.create_task(sleeper())
            await asyncio.sleep(1.0)
            lab.network.suspend(two.host)
            clock.stop()
            before = clock.monotonic()
            one.send(b"unheard", two)
            await asyncio.sleep(100.0)
            assert clock.monotonic() == before
            lab.network.resume(two.host)
            clock.go_on()
            assert clock.monotonic() == before + 100.0
        assert woke == [101.0]
        assert not two.heard
        assert lab.loop.stopped is None

    simulate(scenario)


def test_attackers_listen_change_and_lie() -> None:
    async def scenario(lab: Lab) -> None:
        one, two, evil = _ears(lab, 3)
        seen: list[tuple[bytes, Address, Address]] = []

        def tap(data: bytes, source: Address, to: Address) -> bytes | None:
            seen.append((data, source, to))
            return None if data == b"drop" else data.upper()

        lab.network.tap(one.host, two.host, tap)
        one.send(b"text", two)
        one.send(b"drop", two)
        two.send(b"back", one)
        evil.send(b"unseen", two)
        await asyncio.sleep(1.0)
        assert sorted(two.heard) == [b"TEXT", b"unseen"]
        assert one.heard == [b"BACK"]
        assert seen[0] == (b"text", one.address, two.address)
        assert len(seen) == 3
        lab.network.tap(one.host, two.host, None)
        data, source, to = seen[0]
        lab.network.inject(data, source, to, via=evil.host)
        await asyncio.sleep(1.0)
        assert (two.heard[-1], two.sources[-1]) == (b"text", one.address)

    simulate(scenario)


def test_broadcasts_reach_the_lan_alone() -> None:
    async def scenario(lab: Lab) -> None:
        hosts = [lab.network.add_host(f"10.0.0.{n}", lan="office" if n < 4 else "other") for n in range(1, 6)]
        heard: list[tuple[str, Address]] = []
        for host in hosts:
            host.broadcast_listeners.append(lambda data, source, name=host.name: heard.append((name, source)))
        lab.network.partition([hosts[0]], [hosts[2]])
        lab.network.broadcast(hosts[0], b"beacon", Address("10.0.0.1", 5))
        lab.network.crash(hosts[1])
        await asyncio.sleep(1.0)
        assert heard == [("10.0.0.1", Address("10.0.0.1", 5))]

    simulate(scenario)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Conditions(loss=1.5)
    with pytest.raises(ValueError, match="between 0 and an hour"):
        Conditions(latency_s=-1)
    with pytest.raises(ValueError, match="carries nothing"):
        Line(up_bytes_per_s=0)
