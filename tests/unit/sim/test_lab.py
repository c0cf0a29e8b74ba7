"""Runs, their traces and their failures: the same seed is the same run, in every process; a failed one says how to repeat it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcompute.sim.__main__ import main
from p2pcompute.sim.conditions import Conditions
from p2pcompute.sim.failure import SimFailure
from p2pcompute.sim.lab import ExpectationError, Lab, LabSettings, run
from p2pcompute.sim.loop import Deadlock, SimulationError, TimeIsUp, UncaughtError
from p2pcompute.sim.scenarios import SCENARIOS
from p2pcompute.sim.trace import Detail, Trace
from tests.unit.sim.sim_help import Ear, simulate

ROOT = Path(__file__).resolve().parents[3]

#: A world whose order depends on everything that differs between two processes: sets of tasks and futures, hashes of texts, `os.urandom`.
WORLD = """
import asyncio, os, random, sys, time
from p2pcompute.model.peer import Address
from p2pcompute.sim.conditions import Conditions
from p2pcompute.sim.lab import LabSettings, run

async def world(lab):
    lab.network.set_conditions(Conditions.wan())
    hosts = [lab.network.add_host(f"10.0.0.{n}") for n in range(1, 31)]
    ports = {}
    def heard(name):
        def received(data, source):
            if len(data) < 60:
                ports[name].send(data + os.urandom(3) + random.randbytes(2), source)
        return received
    async def talk(host, rng):
        try:
            while True:
                await asyncio.sleep(rng.random())
                waits = [asyncio.get_running_loop().create_task(asyncio.sleep(0.1), name=str(n)) for n in range(4)]
                done, _ = await asyncio.wait(waits)
                for task in done:
                    lab.note("done", host.name, task.get_name())
                for each in asyncio.as_completed([asyncio.get_running_loop().create_task(asyncio.sleep(0, n)) for n in range(3)]):
                    lab.note("completed", await each)
                to = hosts[rng.randrange(0, len(hosts))]
                ports[host.name].send(b"%f" % time.monotonic(), Address(to.address, 9876))
        finally:
            lab.note("cancelled", host.name)
    for host in hosts:
        ports[host.name] = await host.open_datagrams(None, 9876, heard(host.name))
    try:
        async with asyncio.TaskGroup() as group:
            for host in hosts:
                with host.here():
                    group.create_task(talk(host, lab.dice.of("talk", host.name)))
            lab.network.starve(hosts[0], (0.5, 1.0), (0.5, 1.0))
            await asyncio.sleep(5)
            lab.network.partition(hosts[:10], hosts[10:])
            await asyncio.sleep(5)
            raise KeyError
    except* KeyError:
        pass

report = run(world, int(sys.argv[1]), LabSettings())
print(report.digest, report.events)
"""


def _digest(seed: int, hash_seed: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WORLD, str(seed)], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
    )  # fmt: skip
    digest, events = done.stdout.split()
    assert int(events) > 500
    return digest


def test_the_same_seed_is_the_same_run_in_every_process() -> None:
    assert len({_digest(1, hash_seed) for hash_seed in (0, 1, 2, 3)}) == 1
    assert _digest(2, 0) != _digest(1, 0)


async def _talk(lab: Lab) -> None:
    one, two = (Ear(lab.network.add_host(f"10.0.0.{number}")) for number in (1, 2))
    for number in range(1000):
        one.send(b"%d" % number, two)
    await asyncio.sleep(1.0)


def test_traces_differ_with_seed_and_detail() -> None:
    reports = {detail: run(_talk, 1, LabSettings(detail=detail)) for detail in Detail}
    assert run(_talk, 1).digest == reports[Detail.FULL].digest != reports[Detail.SHORT].digest
    assert run(_talk, 2).digest != reports[Detail.FULL].digest
    assert (reports[Detail.NOTES].events, reports[Detail.SHORT].events) == (0, 1000)
    assert reports[Detail.FULL].virtual_s == 1.0


def test_a_trace_sees_every_byte_and_every_order() -> None:
    def digest(*events: tuple) -> str:
        trace = Trace()
        for event in events:
            trace.event(event)
        return trace.digest()

    first, second = (0.5, "datagram", "a", 1, b"x"), (0.6, "datagram", "a", 1, b"y")
    assert digest(first, second) == digest(first, second)
    changed = [digest(second, first), digest(first), digest(first, (0.6, "datagram", "a", 1, b"z")),
               digest(first, (0.6, "datagram", "a", True, b"y")), digest((0.5, "datagram", "a", 1), (b"x",), second)]  # fmt: skip
    assert len({digest(first, second), *changed}) == 6


def test_a_trace_does_not_depend_on_when_it_is_read() -> None:
    read, unread = Trace(), Trace()
    for number in range(1500):
        for trace in (read, unread):
            trace.event((float(number), "note", number))
        if number % 7 == 0:
            read.digest()
    assert read.digest() == unread.digest()
    assert read.events == unread.events == 1500
    assert len(read.last()) == 80
    assert re.fullmatch(r" +1499\.000000 note 1499", read.last()[-1])


def test_a_field_without_bytes_of_its_own_is_refused() -> None:
    trace = Trace()
    trace.event((1.0, "note", object()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="give its name or number"):
        trace.digest()


def test_a_failure_says_how_to_repeat_it() -> None:
    async def fails(lab: Lab) -> None:
        lab.note("about to fail", 7, 0.25, b"bytes")
        await asyncio.sleep(1.5)
        async with asyncio.TaskGroup():
            raise KeyError("the reason")

    with pytest.raises(SimFailure) as caught:
        run(fails, 42, name="echo-across-a-partition")
    text = str(caught.value)
    assert "scenario echo-across-a-partition failed at 1.500000 s" in text
    assert "KeyError: 'the reason'" in text
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert f"seed 42, sources {commit}" in text
    assert "-m p2pcompute.sim --scenario echo-across-a-partition --seed 42" in text
    assert "0.000000 about to fail 7 0.250000 <5 bytes 6279746573>" in text
    assert isinstance(caught.value.__cause__, ExceptionGroup)


async def _raises_in_a_callback(lab: Lab) -> None:
    lab.loop.call_later(1.0, lambda: 1 / 0)
    await asyncio.sleep(2.0)


async def _raises_at_a_datagram(lab: Lab) -> None:
    one = Ear(lab.network.add_host("10.0.0.1"))
    one.host.bind(1, lambda data, source: 1 / 0)
    one.send(b"", one.address.__class__("10.0.0.1", 1))
    await asyncio.sleep(2.0)


async def _waits_for_nothing(lab: Lab) -> None:
    await asyncio.Event().wait()


async def _never_ends(lab: Lab) -> None:
    while True:  # noqa: ASYNC110 - nothing is waited for
        await asyncio.sleep(1.0)


async def _leaves_a_task_that_fails(lab: Lab) -> None:
    async def late() -> None:
        try:
            await asyncio.sleep(100.0)
        finally:
            raise KeyError("in clean-up")

    lab.task = lab.loop.create_task(late())  # type: ignore[attr-defined]
    await asyncio.sleep(1.0)


async def _loses_a_failed_task(lab: Lab) -> None:
    async def fail() -> None:
        raise KeyError("lost")

    holder: list[object] = [lab.loop.create_task(fail())]
    holder.append(holder)
    await asyncio.sleep(1.0)


async def _expects_too_much(lab: Lab) -> None:
    await lab.until(lambda: lab.now >= 3.0, "three seconds pass", 2.0)


async def _stops_being_true(lab: Lab) -> None:
    await lab.always(lambda: lab.now < 3.0, "it is early", 5.0)


@pytest.mark.parametrize(
    ("scenario", "cause"),
    [
        (_raises_in_a_callback, UncaughtError),
        (_raises_at_a_datagram, ZeroDivisionError),
        (_waits_for_nothing, Deadlock),
        (_never_ends, TimeIsUp),
        (_leaves_a_task_that_fails, SimulationError),
        (_loses_a_failed_task, SimulationError),
        (_expects_too_much, ExpectationError),
        (_stops_being_true, ExpectationError),
    ],
)
def test_nothing_that_goes_wrong_passes(scenario, cause: type[Exception]) -> None:
    settings = LabSettings(time_max_s=1000.0)
    with pytest.raises(SimFailure) as caught:
        run(scenario, 1, settings)
    assert isinstance(caught.value.__cause__, cause)


def test_waiting_tells_how_long_it_took() -> None:
    async def scenario(lab: Lab) -> None:
        assert await lab.until(lambda: lab.now >= 1.0, "a second passes", 2.0) == pytest.approx(1.0, abs=0.06)
        await lab.always(lambda: True, "truth is true", 3.0)
        assert lab.now > 4.0

    simulate(scenario)


def test_without_a_fence_and_without_dice_it_runs_too() -> None:
    simulate(_talk, is_fenced=False, shuffles=False, conditions=Conditions.far())


@pytest.mark.parametrize("name", ["datagrams-under-faults", "echo-across-a-partition"])
def test_scenarios_of_the_network_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--scenario", name, "--seed", "5"]) == 0
    assert f"{name} seed 5: passed" in capsys.readouterr().out


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in SCENARIOS)
    for arguments in (["--scenario", "nonsense"], ["--scenario", "all", "--seeds", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_many_seeds_run_side_by_side() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "p2pcompute.sim", "--scenario", "echo-across-a-partition", "--seeds", "4", "--jobs", "2"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs passed" in done.stdout
    assert done.stdout.count("digest") == 4
