"""Clocks, entropy, off-loading, dice and the fence."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import time
import uuid

import pytest

from p2pcompute.sim.dice import Dice
from p2pcompute.sim.fence import fenced
from p2pcompute.sim.lab import Lab
from p2pcompute.sim.loop import RealIoRefused, SimLoop, SimulationError
from p2pcompute.sim.seams import WALL_START_S, InlineOffload, SimClock, SimEntropy
from tests.unit.sim.sim_help import simulate


def test_a_clock_has_an_offset_a_skew_and_a_drift() -> None:
    async def scenario(lab: Lab) -> None:
        clock = SimClock(lab.loop, offset_s=100.0, skew_s=-30.0, drift=0.01)
        assert (clock.monotonic(), clock.wall()) == (100.0, WALL_START_S - 30.0)
        await asyncio.sleep(1000.0)
        assert clock.monotonic() == 1100.0
        assert clock.wall() == pytest.approx(WALL_START_S - 30.0 + 1010.0)
        clock.set_wall(WALL_START_S)
        assert clock.wall() == pytest.approx(WALL_START_S)
        assert clock.monotonic() == 1100.0
        clock.jump(3600.0)
        assert clock.wall() == pytest.approx(WALL_START_S + 3600.0)
        assert clock.monotonic() == 4700.0
        with pytest.raises(ValueError, match="cannot go back"):
            clock.jump(-1.0)

    simulate(scenario)


@pytest.mark.parametrize("counts_sleep", [True, False])
def test_a_clock_stands_still_and_goes_on(counts_sleep: bool) -> None:
    async def scenario(lab: Lab) -> None:
        clock = SimClock(lab.loop)
        clock.stop()
        await asyncio.sleep(10.0)
        clock.stop()
        assert clock.monotonic() == 0.0
        clock.go_on(counts_sleep=counts_sleep)
        clock.go_on(counts_sleep=counts_sleep)
        assert clock.monotonic() == (10.0 if counts_sleep else 0.0)
        assert clock.wall() == WALL_START_S + 10.0
        await asyncio.sleep(1.0)
        assert clock.monotonic() == (11.0 if counts_sleep else 1.0)

    simulate(scenario)


def test_machines_have_clocks_and_entropy_of_their_own() -> None:
    async def scenario(lab: Lab) -> None:
        clocks = [lab.clock(number, skew_max_s=60.0, drift_max=1e-4) for number in range(20)]
        assert len({clock.monotonic() for clock in clocks}) == 20
        skews = [clock.wall() - WALL_START_S for clock in clocks]
        assert all(-60 <= skew <= 60 for skew in skews)
        assert max(skews) - min(skews) > 30
        assert lab.entropy(1).bytes(16) != lab.entropy(2).bytes(16)
        assert len(SimEntropy(random.Random(1)).bytes(7)) == 7

    simulate(scenario)


def test_off_loading_runs_in_a_turn_of_its_own() -> None:
    async def scenario(lab: Lab) -> None:
        ran: list[str] = []

        async def other() -> None:
            ran.append("other")

        async with asyncio.TaskGroup() as group:
            group.create_task(other())
            assert await InlineOffload().run(lambda: ran.append("off-loaded")) is None
        assert sorted(ran) == ["off-loaded", "other"]
        with pytest.raises(KeyError):
            await lab.offload.run(lambda: {}["missing"])

    simulate(scenario)


def test_dice_of_purposes_are_independent() -> None:
    dice = Dice(7)
    first = [dice.of("peer", 3, "gossip").random() for _ in range(3)]
    again = Dice(7)
    again.of("network").random()
    assert [again.of("peer", 3, "gossip").random() for _ in range(3)] == first
    assert dice.of("peer", 3) is dice.of("peer", 3)
    purposes = [("a",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), ("network",)]
    assert len({Dice(7).of(*purpose).random() for purpose in purposes}) == len(purposes)
    assert Dice(7).of("a").random() != Dice(8).of("a").random()
    # The same in every process and version, whatever its hash seed: runs are named by their seeds.
    assert Dice(0).of("network").getrandbits(32) == 2_244_218_003


def test_inside_the_fence_the_machine_is_virtual() -> None:
    def draw() -> tuple[object, ...]:
        loop = SimLoop()

        async def main() -> tuple[object, ...]:
            assert (time.time(), time.monotonic()) == (WALL_START_S, 0.0)
            await asyncio.sleep(5.0)
            assert (time.time(), time.monotonic()) == (WALL_START_S + 5, 5.0)
            return os.urandom(8), random.random(), random.getrandbits(64), uuid.uuid4(), secrets.token_bytes(4)

        with fenced(loop, Dice(3)):
            try:
                return loop.run_until_complete(main())
            finally:
                loop.close()

    assert draw() == draw()
    before = random.getstate()
    methods = {name: getattr(socket.socket, name) for name in ("bind", "connect", "sendto")}
    draw()
    assert random.getstate() == before
    assert time.monotonic() > 0
    assert {name: getattr(socket.socket, name) for name in methods} == methods
    assert "connect" not in vars(socket.socket)


@pytest.mark.parametrize(
    "act", [lambda opened: opened.bind(("127.0.0.1", 0)), lambda opened: opened.connect(("127.0.0.1", 9)),
            lambda opened: opened.sendto(b"x", ("127.0.0.1", 9)), lambda opened: time.sleep(0)]
)  # fmt: skip
def test_the_fence_refuses_sockets_and_sleep(act) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened, pytest.raises(RealIoRefused):
            act(opened)

    loop = SimLoop()
    with fenced(loop, Dice(3)), pytest.raises(RealIoRefused):
        loop.run_until_complete(main())
    loop.close()


def test_there_is_one_fence_at_a_time() -> None:
    loop = SimLoop()
    with fenced(loop, Dice(1)), pytest.raises(SimulationError, match="a process of its own"), fenced(loop, Dice(1)):
        pass
    loop.close()
