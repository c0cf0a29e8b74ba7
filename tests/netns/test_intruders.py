"""Who does not belong gets nothing: no link, no record, no line in anybody's table; and both sides are told why."""

from __future__ import annotations

import pytest

from tests.netns.rig import require_rig
from tests.netns.scenes import Stage, all_linked, listed_names, scene, troubles
from tests.support.peers import Machine, PeerProcess, until_now

pytestmark = pytest.mark.netns

DAY_S = 86_400.0
INTRUDER = "10.77.1.66"
HONEST = "10.77.1.1"


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig()


def _owner_and_friend(stage: Stage) -> tuple[Machine, Machine]:
    lan = stage.rig.lan("10.77.1.0/24")
    anna, ben = stage.machine("anna", lan, HONEST), stage.machine("ben", lan)
    stage.same_network(anna, ben)
    return anna, ben


def _nothing_for(intruder: PeerProcess, anna: Machine, ben: Machine, reason: str) -> None:
    """Anna dials the intruder, the intruder dials her, and both hear each other's beacons."""
    first = anna.up("anna", "--bootstrap", f"{INTRUDER}:9876")
    second = ben.up("ben")
    all_linked([first, second])
    address = f"{INTRUDER}:9876"
    until_now(lambda: reason in troubles(first).get(address, ""), f"anna refuses whom she dials: {reason}")
    until_now(lambda: INTRUDER in troubles(first), "anna has noticed who knocks at her door")
    assert reason in anna.run("peers").stderr
    story = first.log.read_text()
    assert "trouble" in story
    assert reason in story
    until_now(lambda: any(whom.startswith(HONEST) for whom in troubles(intruder)), "the intruder knows that it failed")
    for peer in (first, second):
        assert listed_names(peer) == {"anna", "ben"} - {peer.ask("status")["name"]}
        assert peer.ask("status")["links"] == 1
    assert intruder.ask("peers")["peers"] == []
    assert intruder.ask("status")["links"] == 0
    assert "linked" not in intruder.log.read_text()


def test_an_intruder_of_another_network_gets_nothing() -> None:
    with scene() as stage:
        anna, ben = _owner_and_friend(stage)
        mallory = stage.machine("mallory", next(iter(stage.rig.hosts.values())).lan, INTRUDER)
        mallory.run("network", "create", "home")
        intruder = mallory.up("mallory", "--bootstrap", f"{HONEST}:9876")
        _nothing_for(intruder, anna, ben, "another network")


def test_an_intruder_with_an_expired_invitation_gets_nothing() -> None:
    with scene() as stage:
        lan = stage.rig.lan("10.77.1.0/24")
        anna, ben = stage.machine("anna", lan, HONEST), stage.machine("ben", lan)
        eve = stage.machine("eve", lan, INTRUDER)
        # A network that is ten days old, and an invitation of then that was good for five.
        anna.environ.update(stage.clock_behind(10 * DAY_S))
        stage.same_network(anna, ben)
        expired = anna.json("invite", "--valid", "5d")["token"]
        anna.environ.clear()
        refused = eve.run("join", expired, check=False)
        assert refused.returncode == 77
        assert "expired" in refused.stderr
        # What an honest program refuses to do, one with a wrong clock does.
        eve.environ.update(stage.clock_behind(8 * DAY_S))
        eve.run("join", expired)
        intruder = eve.up("eve", "--bootstrap", f"{HONEST}:9876")
        _nothing_for(intruder, anna, ben, "expired")
