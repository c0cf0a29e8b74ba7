"""Membership while time goes by: renewed before it ends, revoked for good, and a cable that is pulled and plugged again."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2pcompute.model.limits import LINK_SILENCE_MAX_S
from p2pcompute.model.peer import DEFAULT_ROLES
from p2pcompute.node.folders import Folders
from p2pcompute.node.networks import Networks
from p2pcompute.node.seams import SystemClock, SystemEntropy
from tests.netns.rig import INTERFACE, require_rig
from tests.netns.scenes import all_linked, scene, troubles
from tests.support.peers import Machine, PeerProcess, until_now

pytestmark = pytest.mark.netns

#: Of this, the last third is when the owner's peer renews; three peers must be up by then on a busy machine.
VALID_S = 30


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig("nft")


def _networks(machine: Machine) -> Networks:
    """What the command line would do, without the time that a program needs to start."""
    return Networks(Folders.beneath(machine.home), SystemClock(), SystemEntropy())


def _ends(peer: PeerProcess) -> float:
    expires_wall: float = peer.ask("status")["expires_wall"]
    return expires_wall


@pytest.mark.slow
def test_who_was_renewed_is_linked_after_the_tokens_end_and_can_come_again() -> None:
    with scene() as stage:
        lan = stage.rig.lan("10.77.1.0/24")
        anna, ben, cleo = (stage.machine(name, lan) for name in ("anna", "ben", "cleo"))
        owned = _networks(anna).create("home")
        invitations = [owned.invite(roles=DEFAULT_ROLES, valid_s=VALID_S) for _ in range(2)]
        end = max(invitation.expires_wall for invitation in invitations)
        for member, invitation in zip((ben, cleo), invitations, strict=True):
            _networks(member).join(invitation.token())
        # Cleo hears nothing of anna: ben has to pass the news on.
        (link,) = json.loads(stage.rig.hosts["anna"].command("ip", "-j", "link", "show", INTERFACE))
        stage.rig.hosts["cleo"].block(f"ether saddr {link['address']}")
        with ThreadPoolExecutor(3) as pool:
            first, second, third = pool.map(lambda machine: machine.up(machine.home.name), (anna, ben, cleo))
        all_linked([first, second])
        all_linked([second, third])
        assert first.linked_names == {"ben"}
        until_now(lambda: min(_ends(second), _ends(third)) > end, "both are renewed", VALID_S)
        assert time.time() < end, "they were renewed before they ended"

        until_now(lambda: time.time() > end + 1, "the tokens have ended", VALID_S + 2)
        assert second.linked_names == {"anna", "cleo"}
        refused = stage.machine("dora", lan).run("join", invitations[0].token(), check=False)
        assert "expired" in refused.stderr

        # What was renewed was kept: a fresh start shows the new certificate, which ends soon where it is not a fresh one.
        until_now(lambda: _ends(second) - time.time() > 0.8 * VALID_S, "ben was renewed once more", VALID_S)
        ben.stop()
        until_now(lambda: "ben" not in first.linked_names, "ben is gone")
        all_linked([first, ben.up("ben again")])


def test_who_is_revoked_is_out_everywhere_and_stays_out() -> None:
    with scene() as stage:
        lan = stage.rig.lan("10.77.1.0/24")
        anna, ben, cleo = (stage.machine(name, lan) for name in ("anna", "ben", "cleo"))
        stage.same_network(anna, ben, cleo)
        first, second, third = anna.up("anna"), ben.up("ben"), cleo.up("cleo")
        all_linked([first, second, third])

        anna.run("network", "revoke", "ben")
        until_now(lambda: not second.linked_names, "nobody is linked with ben")
        until_now(lambda: first.linked_names == {"cleo"} and third.linked_names == {"anna"}, "ben is out")
        until_now(lambda: any("revoked" in trouble for trouble in troubles(second).values()), "ben is told why")

        ben.stop()
        again = ben.up("ben again", "--bootstrap", f"{stage.rig.hosts['cleo'].address}:9876")
        address = stage.rig.hosts["ben"].address
        until_now(
            lambda: any("revoked" in what for whom, what in troubles(third).items() if whom.startswith(address)),
            "cleo, who heard of it from anna, refuses ben",
        )
        assert again.linked_names == set()
        assert first.linked_names == {"cleo"}

        # Revoked while no peer of the owner's runs: the next one brings the news.
        anna.stop()
        until_now(lambda: not third.linked_names, "anna is gone")
        anna.run("network", "revoke", "cleo")
        first = anna.up("anna again")
        until_now(
            lambda: any("revoked" in what for what in troubles(third).values()), "cleo is told that it is revoked"
        )
        assert first.linked_names == set()
        assert third.linked_names == set()


@pytest.mark.slow
def test_a_cable_that_is_pulled_and_plugged_again() -> None:
    with scene() as stage:
        lan = stage.rig.lan("10.77.1.0/24")
        anna, ben, cleo = (stage.machine(name, lan) for name in ("anna", "ben", "cleo"))
        stage.same_network(anna, ben, cleo)
        first, second, third = anna.up("anna"), ben.up("ben"), cleo.up("cleo")
        all_linked([first, second, third])

        stage.rig.hosts["cleo"].cable(plugged=False)
        # Nothing tells a peer of it but silence.
        until_now(lambda: third.linked_names == set(), "cleo has noticed", LINK_SILENCE_MAX_S + 20)
        until_now(lambda: "cleo" not in first.linked_names | second.linked_names, "the others have too")
        assert first.linked_names == {"ben"}, "the others stay linked"

        stage.rig.hosts["cleo"].cable(plugged=True)
        all_linked([first, second, third])
