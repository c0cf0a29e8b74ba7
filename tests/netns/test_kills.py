"""SIGKILL in mid-job: a peer on another machine dies, a worker dies, and the answer is complete and exact."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.netns.rig import require_rig
from tests.netns.scenes import Command, Stage, all_linked, scene, the_job
from tests.support.holding import PLAIN_ENVIRONMENT, holding, let_go
from tests.support.peers import Machine, PeerProcess, until_now

pytestmark = pytest.mark.netns

#: Follows `holding`: each peer does some tasks, and the rest once a test lets it go, so that the job is in mid-way until then.
PROGRAM = """
from collections import Counter

def count(text):
    held_back()
    return Counter(text.split())

def merge(counters):
    total = Counter()
    for counter in counters:
        total.update(counter)
    return total

def square(x):
    held_back()
    return x * x
"""
TEXTS = 240
#: Tasks that each of three peers does before it is held back: of all of them together less than half.
FREE = 12
WORDS = ("lend", "each", "other", "computing", "power", "without", "server")


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig()


def _three(stage: Stage) -> tuple[list[Machine], list[PeerProcess]]:
    stage.environ.update(PLAIN_ENVIRONMENT)
    lan = stage.rig.lan("10.77.1.0/24")
    machines = [stage.machine(name, lan) for name in ("anna", "ben", "cleo")]
    stage.same_network(*machines)
    peers = [machine.up(machine.home.name, "--slots", "2") for machine in machines]
    all_linked(peers)
    return machines, peers


def _in_mid_job(peer: PeerProcess, command: Command, helper: str) -> dict[str, Any]:
    """The job of `peer` when `helper` has done some of it and most is still to be done."""

    def reached() -> dict[str, Any] | None:
        assert command.running, f"ended already: {command.stderr_path.read_text()}"
        job = the_job(peer)
        return job if job is not None and job["done_by_peer"].get(helper, 0) >= 4 else None

    job: dict[str, Any] = until_now(reached, f"{helper} has done some of the job")
    assert job["state"] == "running"
    assert job["tasks_done"] < TEXTS // 2
    return job


def _program(folder: Path) -> str:
    path = folder / "program.py"
    path.write_text(holding(folder / "held", free=FREE) + PROGRAM)
    return str(path)


def _texts(folder: Path) -> tuple[list[str], Counter[str]]:
    paths, expected = [], Counter[str]()
    for number in range(TEXTS):
        words = [WORDS[number % len(WORDS)]] * (number % 5 + 1) + [f"only{number}"]
        path = folder / f"{number}.txt"
        path.write_text(" ".join(words))
        paths.append(str(path))
        expected.update(words)
    return paths, expected


def _kill_a_worker(peer: PeerProcess) -> None:
    """SIGKILL to one of those that compute: children of the peer's one child, which only forks."""
    for process in psutil.Process(peer.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() != peer.process.pid:
                process.kill()
                return
    raise AssertionError("there is no worker to be killed")


def test_the_answer_is_exact_when_one_of_three_peers_is_killed_in_mid_job(tmp_path: Path) -> None:
    with scene() as stage:
        (anna, _, _), (first, second, third) = _three(stage)
        paths, expected = _texts(tmp_path)
        arguments = ("--map", "count", "--reduce", "merge", "--as", "text", "--json")
        command = stage.start(anna, "submit", _program(tmp_path), *paths, *arguments)
        _in_mid_job(first, command, "cleo")
        third.kill()
        let_go(tmp_path / "held")

        answer = json.loads(command.result(60))
        assert Counter(answer["result"]) == expected
        job = the_job(first)
        assert job is not None
        assert (job["state"], job["tasks_failed"]) == ("succeeded", 0)
        # The merges of the reduction are tasks as well; everything counts once.
        assert sum(job["done_by_peer"].values()) == job["tasks_done"] == job["tasks_total"] >= TEXTS
        until_now(lambda: (first.linked_names, second.linked_names) == ({"ben"}, {"anna"}), "cleo is out everywhere")
        # Workers of a peer that died do not outlive it.
        until_now(lambda: stage.rig.hosts["cleo"].namespace.processes() == [], "nothing of cleo's is left", 10)


def test_the_answer_is_exact_when_workers_are_killed_in_mid_job(tmp_path: Path) -> None:
    with scene() as stage:
        (_, ben, _), peers = _three(stage)
        inputs = tmp_path / "inputs.jsonl"
        inputs.write_text("".join(f"{number}\n" for number in range(TEXTS)))
        program = _program(tmp_path)
        command = stage.start(ben, "map", program, "square", "--jsonl", str(inputs))
        _in_mid_job(peers[1], command, "cleo")
        # Of another machine's, and of the submitter's own.
        for peer in (peers[2], peers[1]):
            _kill_a_worker(peer)
        let_go(tmp_path / "held")

        values = [json.loads(line) for line in command.result(60).splitlines()]
        assert values == [number**2 for number in range(TEXTS)]
        job = the_job(peers[1])
        assert job is not None
        assert (job["state"], job["tasks_failed"]) == ("succeeded", 0)
        assert job["retries"] >= 1
        assert all(peer.process.poll() is None for peer in peers), "no peer dies with its worker"
        # And the peer has workers again.
        again = [int(line) for line in ben.run("map", program, "square", "5", "6").stdout.split()]
        assert again == [25, 36]
