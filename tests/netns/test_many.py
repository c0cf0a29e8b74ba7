"""Many peers: five on one machine with the defaults of everything, thirty in one subnet."""

from __future__ import annotations

import time

import psutil
import pytest

from p2pcompute.node.folders import Folders
from tests.netns.rig import require_rig, wait_until
from tests.netns.scenes import all_linked, own_name, scene
from tests.support.peers import Machine, PeerProcess, until_now

pytestmark = pytest.mark.netns

THIRTY = 30
#: They need half a minute of processor time to start and to shake hands, on two cores that may do much else.
WITHIN_S = 100
#: A peer alone has about 65 MB, one with 29 links up to 160: this shows a leak, not the last megabyte.
MEMORY_MB_MAX = 256
#: Runs a peer that lends nothing in the network namespace of each process named. The price of thirty starts is one start.
FORK = """
import ctypes, os, signal, sys
import p2pcompute.node.service
from p2pcompute.app.main import main
CLONE_NEWNET = 0x40000000
setns = ctypes.CDLL(None, use_errno=True).setns
for number, holder in enumerate(sys.argv[1:], 1):
    if os.fork() == 0:
        with open(f"/proc/{holder}/ns/net") as namespace:
            if setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        sys.argv = ["p2pcompute", "up", "--name", f"peer{number:02}", "--slots", "0"]
        main()
        sys.exit()
signal.pause()
"""


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig()


def test_five_peers_on_one_machine_with_default_settings() -> None:
    with scene() as stage:
        desk = stage.machine("desk", stage.rig.lan("10.77.1.0/24"))
        peers = [_up_by_default(desk) for _ in range(5)]
        all_linked(peers)

        assert [peer.number for peer in peers] == [1, 2, 3, 4, 5]
        # 9877 is the beacon's and 9878 the console's.
        assert [peer.ask("status")["port"] for peer in peers] == [9876, 9879, 9880, 9881, 9882]
        names = [own_name(peer) for peer in peers]
        assert names == [names[0], *(f"{names[0]}-{number}" for number in range(2, 6))]
        for number, name in enumerate(names, 1):
            assert desk.json("peers", "--peer", str(number))["own"]["name"] == name
            assert desk.json("peers", "--peer", name)["own"]["name"] == name
        assert desk.json("peers")["own"]["name"] == names[0], "the first is the default"
        wrong = desk.run("peers", "--peer", "6", check=False)
        assert wrong.returncode != 0
        assert names[4] in wrong.stderr, "it says who does run"

        # Each takes its own port, key and folder again.
        before = {number: peer.ask("status")["peer"] for number, peer in enumerate(peers, 1)}
        desk.run("down", "--peer", "3")
        until_now(lambda: peers[2].process.poll() is not None, "the third has stopped")
        again = _up_by_default(desk)
        status = again.ask("status")
        assert (again.number, status["port"], status["peer"]) == (3, 9880, before[3])
        all_linked([*peers[:2], again, *peers[3:]])


def _up_by_default(at: Machine) -> PeerProcess:
    """`p2pcompute up`, without a word more."""
    folders = Folders.beneath(at.home)
    known = {number for number, _ in folders.list_instances()}
    peer = at.up("")
    assert peer.number not in known
    return peer


def not_linked(peer: PeerProcess) -> list[tuple[str, str, str]]:
    """Whom `peer` lists and is not linked to: name, status, and what went wrong last."""
    rows = peer.ask("peers")["peers"]
    assert len(rows) == THIRTY - 1
    return [(row["name"], row["status"], row["last_error"]) for row in rows if not row["linked"]]


@pytest.mark.slow
@pytest.mark.timeout(3 * WITHIN_S)
def test_thirty_peers_in_one_subnet() -> None:
    """Thirty hosts of one address each, and a process on each, forked from one that has imported the program already.

    They are of one user and share a data folder: thirty invitations would show nothing more.
    """
    with scene() as stage:
        lan = stage.rig.lan("10.77.1.0/24")
        hosts = [stage.rig.host(f"peer{number:02}", lan) for number in range(1, THIRTY + 1)]
        owner = stage.machine_at(hosts[0], "all")
        owner.run("network", "create", "home")
        holders = [str(host.namespace.pid) for host in hosts]
        parent = hosts[0].python(FORK, *holders, env={"P2PCOMPUTE_HOME": str(owner.home)})
        folders = Folders.beneath(owner.home)
        numbers = range(1, THIRTY + 1)
        wait_until(lambda: parent.stdout().count(" is up: ") == THIRTY, WITHIN_S, "all are up", parent)
        # Read from what they print: questions would compete with nine hundred handshakes for the same cores.
        everybody = THIRTY * (THIRTY - 1)
        wait_until(lambda: parent.stdout().count(" appeared: ") >= everybody, WITHIN_S, "all have heard of all", parent)
        peers = [PeerProcess(parent.popen, folders, number, parent.stdout_path) for number in numbers]
        deadline = time.monotonic() + WITHIN_S
        for peer in peers:
            while missing := not_linked(peer):
                assert time.monotonic() < deadline, f"peer {peer.number} is not linked to {missing}"
                time.sleep(0.5)
        pids = [pid for host in hosts for pid in host.namespace.processes() if pid != parent.pid]
        assert len(pids) == THIRTY
        processes = [psutil.Process(pid) for pid in pids]
        resident_mb = [process.memory_info().rss / 1e6 for process in processes]
        busy_s = sum(sum(process.cpu_times()[:2]) for process in processes)
        print(
            f"{THIRTY} peers: {min(resident_mb):.0f} to {max(resident_mb):.0f} MB each, {busy_s:.0f} s of processor time"
        )
        assert max(resident_mb) < MEMORY_MB_MAX
