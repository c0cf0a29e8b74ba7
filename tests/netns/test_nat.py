"""Real peers behind real routers: they join through a public third, compute for each other through it, and say how and why.

Every wait is for a condition. What takes longest is a router that speaks nothing, which is asked for three seconds, and a try at an
address from which nothing comes back.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.nat_scenes import Miniupnpd, ThreeSites, three_sites
from tests.netns.rig import Host, Nat, require_rig
from tests.netns.scenes import Command, ahead_on_path, listed_names, own_name, the_job
from tests.support.holding import holding, let_go
from tests.support.peers import Machine, PeerProcess, until_now

pytestmark = pytest.mark.netns

#: Seconds in which two peers behind routers are linked once both are up.
LINKED_WITHIN_S = 30.0
#: Each of the two at home does so many tasks; the others are held back until the test lets them go, which is why the job is in mid-way until then.
FREE = 8
PROGRAM = """
def turned(text):
    held_back()
    return text[::-1]

def slow(text):
    held_back(0.3)
    return text[::-1]
"""
TEXTS = 24
TEXT_CHARS = 20_000


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig("nft")


def up(sites: ThreeSites, *, slots: int = 1) -> tuple[PeerProcess, PeerProcess, PeerProcess]:
    """The public peer, which lends nothing, then the two at home, told of it alone."""
    sites.stage.same_network(sites.relay, sites.anna, sites.ben)
    relay = sites.relay.up("relay", "--slots", "0")
    told = ("--slots", str(slots), "--bootstrap", f"{sites.relay_host.address}:9876")
    return relay, sites.anna.up("anna", *told), sites.ben.up("ben", *told)


def row_of(peer: PeerProcess, name: str) -> dict[str, Any]:
    """What `peer` says of the one called `name`."""
    rows = [row for row in peer.ask("peers")["peers"] if row["name"] == name]
    return rows[0] if rows else {"linked": False, "path": None, "path_via": None}


def linked_by(peer: PeerProcess, name: str, path: str, timeout_s: float = LINKED_WITHIN_S) -> dict[str, Any]:
    """The row of the one called `name` once it is linked by `path`."""
    seen: list[Any] = [None]

    def found() -> dict[str, Any] | None:
        row = row_of(peer, name)
        seen[0] = (row["linked"], row["path"], row["path_via"])
        return row if row["linked"] and row["path"] == path else None

    try:
        row: dict[str, Any] = until_now(found, f"{name} is linked, {path}", timeout_s, 0.1)
    except AssertionError as error:
        raise AssertionError(f"{error}; it was {seen[0]}\n{peer.log.read_text()[-4000:]}") from None
    return row


def told_reach(peer: PeerProcess, reach: str, timeout_s: float = LINKED_WITHIN_S) -> dict[str, Any]:
    """How `peer` says that it is reached, once that is `reach`."""

    def found() -> dict[str, Any] | None:
        document: dict[str, Any] = peer.ask("status")["reaching"]
        return document if document["reach"] == reach else None

    document: dict[str, Any] = until_now(found, f"{own_name(peer)} is {reach}", timeout_s, 0.1)
    return document


def _missing(words: tuple[str, ...], text: str) -> list[str]:
    return [each for each in words if each not in text]


def texts(folder: Path, marker: str) -> list[str]:
    """Inputs in which `marker` stands often, all different, so that nothing could make them small."""
    return [(marker + secrets.token_hex(TEXT_CHARS // 4)) * 2 for _ in range(TEXTS)]


def job(sites: ThreeSites, at: Machine, folder: Path, function: str, inputs: list[str]) -> Command:
    program, lines = folder / "program.py", folder / "inputs.jsonl"
    program.write_text(holding(folder / "held", free=FREE) + PROGRAM)
    lines.write_text("".join(json.dumps(text) + "\n" for text in inputs))
    return sites.stage.start(at, "map", str(program), function, "--jsonl", str(lines), "--json")


def results(command: Command, timeout_s: float = 50) -> list[str]:
    """What a job printed, in the order of its inputs."""
    rows = [json.loads(line) for line in command.result(timeout_s).splitlines()]
    return [row["result"] for row in sorted(rows, key=lambda row: row["index"])]


def done_by(peer: PeerProcess) -> dict[str, int]:
    document = the_job(peer)
    assert document is not None
    assert (document["state"], document["tasks_failed"]) == ("succeeded", 0)
    counts: dict[str, int] = document["done_by_peer"]
    return counts


# --- through a relay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("endpoint-independent", "endpoint-independent"),
        ("endpoint-independent", "symmetric"),
        ("symmetric", "symmetric"),
    ],
)
def test_two_homes_compute_for_each_other_through_a_public_third(left: Nat, right: Nat, tmp_path: Path) -> None:
    with three_sites(left, right) as sites:
        relay, anna, ben = up(sites)
        began = time.monotonic()
        row = linked_by(anna, "ben", "relayed")
        print(f"{left} and {right}: linked {time.monotonic() - began:.1f} s after both were up")
        assert row["path_via"] == "relay"
        # The link may be there before either side knows how the other one is reached.
        why = "relayed through relay: neither side can be dialled from other networks"
        until_now(lambda: row_of(anna, "ben")["path_why"] == why, "it says why", LINKED_WITHIN_S, 0.1)
        assert linked_by(ben, "anna", "relayed")["path_via"] == "relay"
        assert listed_names(anna) == {"relay", "ben"}
        assert listed_names(ben) == {"relay", "anna"}
        until_now(lambda: told_reach(relay, "public")["serves"]["reserved"] == 2, "both are kept reachable", 20, 0.1)
        kept = lambda: [each["name"] for each in told_reach(anna, "private")["relays"]]  # noqa: E731
        until_now(lambda: kept() == ["relay"], "anna knows it", 20, 0.1)

        marker = secrets.token_hex(16)
        inputs = texts(tmp_path, marker)
        passed_before = told_reach(relay, "public")["serves"]["bytes"]
        command = job(sites, sites.anna, tmp_path, "turned", inputs)
        in_mid_job(anna, command, "ben", 4)
        let_go(tmp_path / "held")
        assert results(command) == [text[::-1] for text in inputs]
        counts = done_by(anna)
        assert counts["ben"] >= 4, counts
        assert counts["anna"] + counts["ben"] == TEXTS, counts

        # What ben did came and went through the relay, and the relay could read none of it.
        at_least = 2 * TEXT_CHARS * counts["ben"]
        assert told_reach(relay, "public")["serves"]["bytes"] - passed_before >= at_least
        packets = sites.capture.packets()
        into = sum(len(each.payload) for each in packets if each.destination == sites.relay_host.address)
        out = sum(len(each.payload) for each in packets if each.source == sites.relay_host.address)
        assert min(into, out) >= at_least, (into, out)
        for words in (marker, marker[::-1], "turned"):
            assert not any(words.encode() in each.payload for each in packets), words
        assert not sites.direct_packets()


def test_people_are_told_the_path_and_why() -> None:
    with three_sites() as sites:
        _, anna, _ = up(sites)
        linked_by(anna, "ben", "relayed")
        shown = sites.anna.run("peers").stdout
        assert "relayed via relay" in shown
        # What others say of how they are reached comes after the links to them.
        words = (
            "relayed through relay: neither side can be dialled from other networks",
            "direct: it can be dialled from other networks",
            "private, relays relay",
        )
        until_now(lambda: not _missing(words, sites.anna.run("peers", "--wide").stdout), "every path has its reason")
        told = {row["name"]: row for row in sites.anna.json("peers")["peers"]}
        assert (told["ben"]["path"], told["ben"]["path_via"]) == ("relayed", "relay")
        assert (told["relay"]["path"], told["relay"]["reach"]) == ("direct", "public")
        found = [each["text"] for each in sites.anna.json("doctor") if each["subject"] == "peer 1"]
        assert any("they reach it through relay. Router: the router at 192.168.1.254" in text for text in found), found
        # Nobody is to blame for two homes with the same private addresses.
        assert not [whom for whom in anna.ask("status")["troubles"] if whom.startswith("192.168.")]


def test_where_no_udp_gets_through_everything_goes_over_links_and_doctor_says_so() -> None:
    with three_sites() as sites:
        sites.left.router.command("nft", "insert", "rule", "inet", "nat", "forward", "meta l4proto udp drop")
        _, anna, ben = up(sites)
        linked_by(anna, "ben", "relayed")

        def warned() -> list[dict[str, Any]]:
            return [each for each in sites.anna.json("doctor") if "no UDP datagrams get through" in each["text"]]

        (warning,) = until_now(warned, "doctor has noticed", 55, 2.0)
        assert warning["level"] == "WARN"
        assert "UDP port 9876" in warning["advice"]
        for peer in (anna, ben):
            # On a busy machine somebody may be suspected for a moment.
            until_now(lambda peer=peer: {row["status"] for row in peer.ask("peers")["peers"]} == {"alive"}, "all alive")
        assert "is gone" not in anna.log.read_text() + ben.log.read_text()
        assert not [each for each in sites.ben.json("doctor") if "no UDP datagrams" in each["text"]]


# --- without a relay --------------------------------------------------------------------------------------------------


def few_links(sites: ThreeSites, machine: Machine) -> None:
    """`machine` is content with one link, as in a large network: it does not dial everybody whom it hears of."""
    folder = sites.stage.folder / "few"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import p2pcompute.model.limits as limits\nlimits.LINKS_MAX = 1\n")
    machine.environ["PYTHONPATH"] = ahead_on_path(folder)


def public_peer(sites: ThreeSites, name: str, slots: int = 0) -> tuple[Host, PeerProcess]:
    """One more public peer, told of the first one."""
    host = sites.world.public(name)
    machine = sites.stage.machine_at(host, name)
    machine.run("join", sites.relay.json("invite", "--label", name)["token"])
    bootstrap = f"{sites.relay_host.address}:9876"
    return host, machine.up(name, "--slots", str(slots), "--bootstrap", bootstrap)


def test_a_public_peer_is_dialled_by_the_one_that_it_cannot_dial() -> None:
    with three_sites() as sites:
        few_links(sites, sites.ben)
        sites.stage.same_network(sites.relay, sites.anna, sites.ben)
        sites.relay.up("relay", "--slots", "0")
        told = ("--slots", "0", "--bootstrap", f"{sites.relay_host.address}:9876")
        sites.anna.up("anna", *told)
        # More than ben will have for relays, which he dials himself; two of other networks have reached each before she hears of him.
        callers = {name: public_peer(sites, name)[1] for name in ("carla", "dora")}
        for caller in callers.values():
            told_reach(caller, "public")
        ben = sites.ben.up("ben", *told)

        seen: list[list[tuple[Any, Any]]] = [[]]

        def reversed_one() -> tuple[dict[str, Any], dict[str, Any]] | None:
            # Of the one whom ben makes a relay at the same moment only she believes that she was dialled because she asked.
            pairs = [(row_of(caller, "ben"), row_of(ben, name)) for name, caller in callers.items()]
            seen[0] = [(row["path"], theirs["path"]) for row, theirs in pairs]
            return next((pair for pair in pairs if {each["path"] for each in pair} == {"reversed"}), None)

        try:
            found = until_now(reversed_one, "one of them was dialled because she asked", LINKED_WITHIN_S, 0.1)
        except AssertionError as error:
            logs = "".join(
                f"\n--- {each.log.name} ---\n{each.log.read_text()[-2000:]}" for each in (*callers.values(), ben)
            )
            raise AssertionError(f"{error}; it was {seen[0]}{logs}") from None
        row, theirs = found
        assert row["path_via"] in {"relay", *callers}
        assert row["path_why"] == (
            f"direct, dialled by it: it cannot be dialled, this peer can, and it was asked through {row['path_via']}"
        )
        assert theirs["path_why"].startswith(f"direct, dialled by this peer: it was asked to through {row['path_via']}")


def test_a_forwarded_port_is_dialled_directly_and_takes_the_relays_place(tmp_path: Path) -> None:
    with three_sites("endpoint-independent", "symmetric") as sites:
        _, anna, ben = up(sites)
        linked_by(anna, "ben", "relayed")
        # Two that are not of one network must have dialled before anybody calls itself reachable.
        public_peer(sites, "carla")
        Miniupnpd(sites.right.router, tmp_path).start()
        # The peer asks its router again when its network changes; a new address of this machine is that.
        sites.right.host.command("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
        mapped = told_reach(ben, "mapped", 55)
        assert mapped["external"] == [f"{sites.right.outside_address}:9876"]
        assert mapped["forwarded"] == f"{sites.right.outside_address}:9876"
        linked_by(anna, "ben", "direct", 40)
        forwarded(anna)


def test_a_peer_whose_router_forwards_is_dialled_directly_from_the_start(tmp_path: Path) -> None:
    with three_sites("endpoint-independent", "symmetric") as sites:
        Miniupnpd(sites.right.router, tmp_path).start()
        relay, anna, ben = up(sites)
        public_peer(sites, "carla")
        assert told_reach(ben, "mapped", 40)["external"] == [f"{sites.right.outside_address}:9876"]
        linked_by(anna, "ben", "direct", 40)
        forwarded(anna)
        linked_by(relay, "ben", "direct")
        until_now(lambda: row_of(relay, "ben")["reach"] == "mapped", "the relay has heard of it")
        assert sites.right.router.outside_address in sites.ben.run("doctor", check=False).stdout


def forwarded(peer: PeerProcess) -> None:
    """Wait until `peer` has heard why it reaches ben: he tells it after the link is there."""
    why = "direct: its router forwards a port to it"
    until_now(lambda: row_of(peer, "ben")["path_why"] == why, "it says why", LINKED_WITHIN_S, 0.1)


# --- when the relay dies ----------------------------------------------------------------------------------------------


def in_mid_job(peer: PeerProcess, command: Command, helper: str, count: int) -> None:
    def reached() -> bool:
        assert command.running, f"ended already: {command.stderr_path.read_text()}"
        document = the_job(peer)
        return document is not None and document["done_by_peer"].get(helper, 0) >= count

    until_now(reached, f"{helper} has done some of the job")


def both_relays(peer: PeerProcess) -> Callable[[], bool]:
    return lambda: len(told_reach(peer, "private")["relays"]) == 2


def test_another_relay_takes_over_and_the_job_goes_on(tmp_path: Path) -> None:
    with three_sites() as sites:
        relay, anna, ben = up(sites)
        _, second = public_peer(sites, "second")
        linked_by(anna, "ben", "relayed")
        for peer in (anna, ben):
            until_now(both_relays(peer), "two relays are held", LINKED_WITHIN_S, 0.1)
        via = row_of(anna, "ben")["path_via"]
        dying, other = (relay, "second") if via == "relay" else (second, "relay")
        inputs = [secrets.token_hex(8) for _ in range(60)]
        command = job(sites, sites.anna, tmp_path, "slow", inputs)
        in_mid_job(anna, command, "ben", 3)
        dying.kill()
        killed_at = time.monotonic()
        row = until_now(
            lambda: (lambda found: found if found["linked"] and found["path_via"] == other else None)(
                row_of(anna, "ben")
            ),
            f"ben is reached through {other}",
            LINKED_WITHIN_S,
            0.1,
        )
        print(f"through the other relay {time.monotonic() - killed_at:.1f} s after the first was killed")
        assert row["path"] == "relayed"
        before = (the_job(anna) or {})["done_by_peer"]["ben"]
        let_go(tmp_path / "held")
        assert results(command) == [text[::-1] for text in inputs]
        counts = done_by(anna)
        assert counts["ben"] > before, "and ben went on computing"


def test_without_another_relay_the_job_ends_alone_and_the_reason_is_said(tmp_path: Path) -> None:
    with three_sites() as sites:
        relay, anna, _ = up(sites)
        linked_by(anna, "ben", "relayed")
        inputs = [secrets.token_hex(8) for _ in range(40)]
        command = job(sites, sites.anna, tmp_path, "slow", inputs)
        in_mid_job(anna, command, "ben", 3)
        relay.kill()
        until_now(lambda: not row_of(anna, "ben")["linked"], "the link is gone")
        # From the log: in the row of ben, what came of dialling him anew may stand by now.
        lost = [line for line in anna.log.read_text().splitlines() if "link lost" in line]
        assert any("the relay" in line and "between is gone" in line for line in lost), lost
        let_go(tmp_path / "held")
        assert results(command) == [text[::-1] for text in inputs]
        assert done_by(anna)["anna"] > 0
        told = [each for each in sites.anna.json("doctor") if each["subject"] == "peer 1"]
        assert any(
            each["level"] == "WARN" and "has no relay" in each["text"] and "forward TCP and UDP port" in each["advice"]
            for each in told
        ), told
