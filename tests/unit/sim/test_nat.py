"""Simulated routers: who gets through which."""

from __future__ import annotations

import asyncio

import pytest

from p2pcompute.model.errors import UsageError
from p2pcompute.model.peer import Address
from p2pcompute.sim.lab import Lab
from p2pcompute.sim.nat import Filter, NatSettings
from tests.unit.sim.sim_help import PORT, Ear, simulate


def _world(lab: Lab, settings: NatSettings) -> tuple[Ear, Ear, Ear, Ear]:
    """An inside host, two outside, and a second port of the first of these."""
    nat = lab.network.add_nat("198.51.100.1", settings)
    inside = Ear(lab.network.add_host("192.168.1.2", nat=nat))
    first = Ear(lab.network.add_host("203.0.113.1"))
    second = Ear(lab.network.add_host("203.0.113.2"))
    return inside, first, second, Ear(first.host, 7)


@pytest.mark.parametrize(
    ("settings", "through"),
    [
        (NatSettings(filter=Filter.ANYBODY), ["first", "other port", "second"]),
        (NatSettings(filter=Filter.ADDRESS), ["first", "other port"]),
        (NatSettings(filter=Filter.PORT), ["first"]),
        (NatSettings.symmetric(), ["first"]),
    ],
)
def test_who_gets_through_a_mapping(settings: NatSettings, through: list[str]) -> None:
    async def scenario(lab: Lab) -> None:
        inside, first, second, other = _world(lab, settings)
        second.send(b"unasked", Address("198.51.100.1", PORT))
        inside.send(b"hello", first)
        await asyncio.sleep(1.0)
        seen = first.sources[0]
        assert seen.host == "198.51.100.1"
        for ear, name in ((first, b"first"), (other, b"other port"), (second, b"second")):
            ear.send(name, seen)
        await asyncio.sleep(1.0)
        assert sorted(inside.heard) == sorted(name.encode() for name in through)

    simulate(scenario)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_mapping_is_by_destination_or_not(is_symmetric: bool) -> None:
    async def scenario(lab: Lab) -> None:
        inside, first, second, other = _world(lab, NatSettings(is_symmetric=is_symmetric))
        for ear in (first, second, other, first):
            inside.send(b"hello", ear)
        await asyncio.sleep(1.0)
        seen = [first.sources[0], second.sources[0], other.sources[0]]
        assert len(set(seen)) == (3 if is_symmetric else 1)
        assert first.sources[0] == first.sources[1]

    simulate(scenario)


def test_a_mapping_dies_of_silence_and_is_another_one_later() -> None:
    async def scenario(lab: Lab) -> None:
        inside, first, _, _ = _world(lab, NatSettings(lifetime_s=30.0))
        for _ in range(4):
            inside.send(b"keep", first)
            await asyncio.sleep(20.0)
        first.send(b"in time", first.sources[-1])
        await asyncio.sleep(20.0)
        first.send(b"too late", first.sources[-1])
        await asyncio.sleep(1.0)
        assert inside.heard == [b"in time"]
        inside.send(b"again", first)
        await asyncio.sleep(1.0)
        assert first.sources[-1] != first.sources[0]
        inside.host.realm.nat.reboot()
        first.send(b"after the power cut", first.sources[-1])
        await asyncio.sleep(1.0)
        assert inside.heard == [b"in time"]

    simulate(scenario)


def test_two_behind_routers_meet_by_punching_unless_one_is_symmetric() -> None:
    def punches(one: NatSettings, two: NatSettings) -> bool:
        met: list[bool] = []

        async def scenario(lab: Lab) -> None:
            server = Ear(lab.network.add_host("203.0.113.1"))
            ears = []
            for number, settings in enumerate((one, two), 1):
                nat = lab.network.add_nat(f"198.51.100.{number}", settings)
                # Both have the same address, each behind its own router.
                ears.append(Ear(lab.network.add_host("192.168.1.2", nat=nat)))
                ears[-1].send(b"%d" % number, server)
                await asyncio.sleep(0.1)
            for _ in range(3):
                for own, other in ((0, 1), (1, 0)):
                    ears[own].send(b"punch", server.sources[other])
                await asyncio.sleep(0.5)
            met.append(all(ear.heard for ear in ears))

        simulate(scenario)
        return met[0]

    assert punches(NatSettings(), NatSettings())
    assert punches(NatSettings(), NatSettings.full_cone())
    assert not punches(NatSettings(), NatSettings.symmetric())
    assert not punches(NatSettings.symmetric(), NatSettings.symmetric())


def test_routers_behind_routers_and_forwarded_ports() -> None:
    async def scenario(lab: Lab) -> None:
        carrier = lab.network.add_nat("198.51.100.1")
        home = lab.network.add_nat("100.64.0.2", behind=carrier)
        inside = Ear(lab.network.add_host("192.168.1.2", nat=home))
        outside = Ear(lab.network.add_host("203.0.113.1"))
        inside.send(b"hello", outside)
        await asyncio.sleep(1.0)
        assert outside.sources[0].host == "198.51.100.1"
        outside.send(b"back", outside.sources[0])
        await asyncio.sleep(1.0)
        assert inside.heard == [b"back"]
        # A forwarded port, for everybody.
        dsl = lab.network.add_nat("198.51.100.9")
        server = Ear(lab.network.add_host("192.168.1.2", nat=dsl))
        dsl.forward(4000, server.host, PORT)
        outside.send(b"in", Address("198.51.100.9", 4000))
        await asyncio.sleep(1.0)
        dsl.close_forward(4000)
        outside.send(b"closed", Address("198.51.100.9", 4000))
        await asyncio.sleep(1.0)
        assert server.heard == [b"in"]
        with pytest.raises(UsageError, match="taken"):
            lab.network.add_nat("198.51.100.9")

    simulate(scenario)


@pytest.mark.parametrize("hairpins", [True, False])
def test_hairpins(hairpins: bool) -> None:
    async def scenario(lab: Lab) -> None:
        nat = lab.network.add_nat("198.51.100.1", NatSettings(filter=Filter.ANYBODY, hairpins=hairpins))
        one, two = (Ear(lab.network.add_host(f"192.168.1.{n}", nat=nat)) for n in (2, 3))
        outside = Ear(lab.network.add_host("203.0.113.1"))
        two.send(b"hello", outside)
        one.send(b"direct", two)
        await asyncio.sleep(1.0)
        one.send(b"hairpin", outside.sources[0])
        await asyncio.sleep(1.0)
        assert two.heard == [b"direct", b"hairpin"][: 2 if hairpins else 1]
        assert two.sources[0].host == "192.168.1.2"

    simulate(scenario)
