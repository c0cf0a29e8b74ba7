"""The shell of yielding: a pause that outlives restarts, the machine as it is, what the record says."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.execution import probes
from p2pcompute.execution.process_tree import family_cpu_s
from p2pcompute.model.capability import Capability
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import NetworkId
from p2pcompute.model.peer import DEFAULT_ROLES, Isolation
from p2pcompute.node import yielding
from p2pcompute.node.config import PeerConfig, load_config
from p2pcompute.node.logs import get_log
from p2pcompute.node.own_record import Identity, OwnRecord
from p2pcompute.node.seams import SystemClock, ThreadOffload
from p2pcompute.node.yielding import YieldsToOwner, minute_of_week
from p2pcompute.storage.peer_database import PeerDatabase
from p2pcompute.wire.identity import PeerKey
from tests.support.peers import until_now


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class Lender:
    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.told: list[tuple[int | None, float]] = []

    def yield_slots(self, slots: int | None, grace_s: float, why: str) -> None:
        self.told.append((slots, grace_s))

    def resize(self, slots: int) -> None:
        self.slots = slots


def own_record() -> OwnRecord:
    key = PeerKey(os.urandom(32))
    identity = Identity(key.peer_id, NetworkId(b"n" * 32), "me", 4, DEFAULT_ROLES, Isolation.PROCESS, (), "0")
    capability = Capability(4, 2000.0, 0.5, 16.0, 8.0)
    return OwnRecord(identity, key, lambda at_least: at_least + 1, capability, (), random.Random(0), tells_load=True)


class Bench:
    """A shell over a database in `folder`; another one there is the next life."""

    def __init__(self, folder: Path, clock: Clock, **config: Any) -> None:
        self.clock, self.lender, self.own, self.offload = clock, Lender(4), own_record(), ThreadOffload()
        self.database = PeerDatabase.open(folder / "peer.db")
        self.shell = YieldsToOwner(
            PeerConfig.test(**config),
            self.database,
            clock,
            self.offload,
            self.lender,  # type: ignore[arg-type]
            self.own,
            get_log("test"),
            local=lambda wall: int(wall) // 60,
        )

    async def __aenter__(self) -> Bench:
        await self.shell.look()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.database.close()
        self.offload.close()

    def told(self) -> tuple[int, tuple[str, ...]]:
        self.own.observe(Capability(4, 2000.0, 0.5, 16.0, 8.0), 0.0, (), (), self.clock.now)
        self.clock.now += 10.0
        return self.own.record.slots, self.own.record.yields


def test_a_pause_outlives_the_peer(tmp_path: Path) -> None:
    async def body() -> None:
        clock = Clock()
        async with Bench(tmp_path, clock, yield_grace_s=7.0) as one:
            assert one.told() == (4, ())
            await one.shell.pause(3_600.0)
            assert one.lender.told == [(0, 7.0)]
            assert one.told() == (0, ("owner",))
            assert one.shell.document()["paused_until_wall"] == one.clock.now + 3_600.0 - 10.0
        async with Bench(tmp_path, clock) as two:
            assert two.told() == (0, ("owner",)), "from the first moment"
            clock.now += 3_600.0
            await two.shell.look()
            assert two.lender.told[-1][0] is None
            assert two.told() == (4, ())
            await two.shell.pause(None)
        async with Bench(tmp_path, clock) as three:
            clock.now += 1e9
            await three.shell.look()
            assert three.told() == (0, ("owner",))
            await three.shell.resume()
            assert three.told() == (4, ())
        async with Bench(tmp_path, clock) as four:
            assert four.told() == (4, ())
            for wrong in (0.0, -1.0, float("nan"), float("inf")):
                with pytest.raises(UsageError, match="a duration above 0"):
                    await four.shell.pause(wrong)

    asyncio.run(body())


def test_battery_schedule_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugged = [False]
    monkeypatch.setattr(yielding, "on_battery", lambda: not plugged[0])

    async def body() -> None:
        clock = Clock()
        config = load_config({"on_battery": "1", "schedule": ("mon 00:00-01:00",)}, {}, None)
        async with Bench(tmp_path, clock, on_battery=config.on_battery, schedule=config.schedule) as bench:
            assert bench.told() == (1, ("battery",))
            bench.shell.resize(8)
            assert bench.shell.document()["slots_total"] == 8
            plugged[0] = True
            clock.now += 60.0
            await bench.shell.look()
            assert bench.told() == (8, ())
            clock.now = 3_600.0
            await bench.shell.look()
            assert bench.told() == (0, ("schedule",))
            assert bench.shell.document()["yields_because"].endswith("it lends again at mon 00:00")

    asyncio.run(body())


def test_what_is_not_asked_for_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(yielding, "on_battery", asked)
    monkeypatch.setattr(probes, "family_cpu_s", lambda _: asked())

    async def body() -> None:
        async with Bench(tmp_path, Clock(), on_battery=None, yield_to_load=None) as bench:
            assert bench.told() == (4, ())

    asyncio.run(body())


def test_only_the_load_of_others_is_theirs() -> None:
    probe = probes.OthersProbe(SystemClock())
    assert probe.sample() is None
    spin = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]
    before = family_cpu_s(os.getpid())
    with subprocess.Popen(spin) as child:
        until_now(lambda: family_cpu_s(os.getpid()) - before >= 0.25, "what a child uses is ours")
        child.wait()
    assert family_cpu_s(os.getpid()) - before >= 0.25, "also once it has ended"
    others = probe.sample()
    assert others is not None
    assert 0.0 <= others <= probes.machine_cores() + 0.5


def test_the_minute_of_the_week_is_local() -> None:
    assert 0 <= minute_of_week(0.0) < 7 * 24 * 60
    assert minute_of_week(60.0) - minute_of_week(0.0) in (1, 1 - 7 * 24 * 60)


def test_a_machine_says_whether_it_runs_on_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    class Battery:
        power_plugged: bool | None = False

    monkeypatch.setattr(probes.psutil, "sensors_battery", Battery, raising=False)
    assert probes.on_battery() is True
    Battery.power_plugged = True
    assert probes.on_battery() is False
    Battery.power_plugged = None
    assert probes.on_battery() is None
    monkeypatch.setattr(probes.psutil, "sensors_battery", lambda: None, raising=False)
    assert probes.on_battery() is None
