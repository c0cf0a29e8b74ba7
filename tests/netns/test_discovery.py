"""Peers of three people find each other: by broadcast alone, by multicast alone, over a router by an address alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.netns.rig import require_rig
from tests.netns.scenes import Stage, all_linked, listed_names, scene
from tests.support.holding import PLAIN_ENVIRONMENT, holding
from tests.support.peers import until_now

pytestmark = pytest.mark.netns

#: By then the calls of the first three seconds have been heard, on a machine that does much else; the next ones come after 24 s at least.
FIRST_CALLS_S = 20.0
#: No task ends before tasks of all peers have begun.
SQUARES = """
def square(x):
    wait_for_others()
    return x * x
"""


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig("nft")


def _found_on_the_lan(stage: Stage, blocked: str) -> None:
    lan = stage.rig.lan("10.77.1.0/24")
    anna, ben, cleo = (stage.machine(name, lan) for name in ("anna", "ben", "cleo"))
    for host in stage.rig.hosts.values():
        if blocked == "multicast":
            host.block_multicast()
        else:
            host.block_broadcast()
    stage.same_network(anna, ben, cleo)
    peers = [machine.up(machine.home.name) for machine in (anna, ben, cleo)]
    all_linked(peers, FIRST_CALLS_S)
    assert listed_names(peers[0]) == {"ben", "cleo"}


def test_three_hosts_find_each_other_by_broadcast_alone() -> None:
    with scene() as stage:
        _found_on_the_lan(stage, "multicast")


def test_three_hosts_find_each_other_by_multicast_alone() -> None:
    with scene() as stage:
        _found_on_the_lan(stage, "broadcast")


def test_with_both_blocked_nobody_is_found() -> None:
    """Shows that the two tests above stand on what they say: there is no third way."""
    with scene() as stage:
        lan = stage.rig.lan("10.77.1.0/24")
        anna, ben = stage.machine("anna", lan), stage.machine("ben", lan)
        for host in stage.rig.hosts.values():
            host.block_broadcast()
            host.block_multicast()
        stage.same_network(anna, ben)
        peers = [anna.up("anna"), ben.up("ben")]
        # The calls of the first three seconds, which the tests above need, are over.
        until_now(lambda: all(peer.ask("status")["uptime_s"] > 4 for peer in peers), "the first calls are over")
        assert [peer.linked_names for peer in peers] == [set(), set()]


def test_two_routed_subnets_meet_by_an_address_alone_and_both_compute(tmp_path: Path) -> None:
    with scene(routed=True) as stage:
        stage.environ.update(PLAIN_ENVIRONMENT)
        near, far = stage.rig.lan("10.77.1.0/24"), stage.rig.lan("10.77.2.0/24")
        anna, ben, cleo = stage.machine("anna", near), stage.machine("ben", far), stage.machine("cleo", far)
        stage.same_network(anna, ben, cleo)
        first = anna.up("anna", "--port", "9900")
        bootstrap = ("--bootstrap", f"{stage.rig.hosts['anna'].address}:9900")
        second = ben.up("ben", *bootstrap)
        all_linked([first, second])
        # Told of nothing but ben's neighbour: it hears of the others from whom it meets.
        third = cleo.up("cleo", "--no-lan", *bootstrap)
        all_linked([first, second, third])

        program = tmp_path / "squares.py"
        program.write_text(holding(tmp_path / "begun", peers=3) + SQUARES)
        inputs = tmp_path / "inputs.jsonl"
        inputs.write_text("".join(f"{number}\n" for number in range(120)))
        done = ben.run("map", str(program), "square", "--jsonl", str(inputs))
        assert [json.loads(line) for line in done.stdout.splitlines()] == [number**2 for number in range(120)]
        (job,) = second.ask("jobs")
        assert set(job["done_by_peer"]) == {"anna", "ben", "cleo"}
        assert sum(job["done_by_peer"].values()) == 120
