"""The rig itself: hosts hear each other, rules hold, and nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.rig import Host, Lan, Process, Rig, require_rig, wait_until
from tests.netns.wide import WideNetwork, require_wide

pytestmark = pytest.mark.netns

#: Prints the address of whoever sends a datagram to port 7777, multicast included.
LISTEN = """
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", 7777))
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4sL", socket.inet_aton("239.77.77.77"), socket.INADDR_ANY))
print("listening", flush=True)
while True:
    data, sender = s.recvfrom(100)
    print(data.decode(), sender[0], flush=True)
"""
#: Sends argv[2] to argv[1].
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.sendto(sys.argv[2].encode(), (sys.argv[1], 7777))
"""
MULTICAST = "239.77.77.77"


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig("nft", "tc")


def listening(host: Host) -> Process:
    process = host.python(LISTEN)
    wait_until(lambda: "listening" in process.stdout(), 10, f"{host.name} listens", process)
    return process


def send(host: Host, to: str, word: str) -> int:
    return host.python(SEND, to, word).wait(10)


def heard(process: Process, word: str, sender: Host) -> bool:
    return f"{word} {sender.address}\n" in process.stdout()


def reach(sender: Host, lan: Lan, receiver: Process, receiver_host: Host) -> dict[str, bool]:
    """What arrives of one broadcast, one directed broadcast, one multicast, and then one plain datagram."""
    ways = {"limited": "255.255.255.255", "directed": lan.broadcast, "multicast": MULTICAST}
    for word, to in ways.items():
        # Where a rule drops it on the way out, the send itself fails: that is as good as lost.
        send(sender, to, word)
    # Datagrams on one wire keep their order: once this one is there, the others are there or will never be.
    assert send(sender, receiver_host.address, "plain") == 0
    wait_until(lambda: heard(receiver, "plain", sender), 10, "the plain datagram arrives", receiver)
    return {word: heard(receiver, word, sender) for word in ways}


def test_hosts_of_a_lan_hear_broadcast_and_multicast() -> None:
    with Rig() as rig:
        lan = rig.lan("10.77.1.0/24")
        anna, ben = rig.host("anna", lan), rig.host("ben", lan)
        assert (anna.address, ben.address) == ("10.77.1.1", "10.77.1.2")
        ear = listening(ben)
        assert reach(anna, lan, ear, ben) == {"limited": True, "directed": True, "multicast": True}


def test_rules_hold_and_can_be_lifted() -> None:
    with Rig() as rig:
        lan = rig.lan("10.77.1.0/24")
        anna, ben, cleo = rig.host("anna", lan), rig.host("ben", lan), rig.host("cleo", lan)
        ear = listening(cleo)
        anna.block_broadcast()
        assert reach(anna, lan, ear, cleo) == {"limited": False, "directed": False, "multicast": True}
        ben.block_multicast()
        assert reach(ben, lan, ear, cleo) == {"limited": True, "directed": True, "multicast": False}
        anna.unblock()
        fresh = listening(ben)
        assert reach(anna, lan, fresh, ben) == {"limited": True, "directed": True, "multicast": True}


def test_routed_lans_pass_datagrams_but_no_broadcast() -> None:
    with Rig(routed=True) as rig:
        left, right = rig.lan("10.77.1.0/24"), rig.lan("10.77.2.0/24")
        anna, ben = rig.host("anna", left), rig.host("ben", right)
        ear = listening(ben)
        assert reach(anna, right, ear, ben) == {"limited": False, "directed": False, "multicast": False}


def test_unrouted_lans_do_not_meet() -> None:
    with Rig() as rig:
        anna, ben = rig.host("anna", rig.lan("10.77.1.0/24")), rig.host("ben", rig.lan("10.77.2.0/24"))
        listening(ben)
        assert send(anna, ben.address, "hello") != 0


def test_a_pulled_cable_and_a_slow_one() -> None:
    with Rig() as rig:
        lan = rig.lan("10.77.1.0/24")
        anna, ben = rig.host("anna", lan), rig.host("ben", lan)
        anna.rate(10)
        assert "tbf" in anna.command("tc", "qdisc", "show")
        anna.cable(plugged=False)
        assert send(anna, ben.address, "hello") != 0
        anna.cable(plugged=True)
        ear = listening(ben)
        assert reach(anna, lan, ear, ben) == {"limited": True, "directed": True, "multicast": True}


def _root_network() -> str:
    found = [subprocess.run(["ip", "-json", kind], capture_output=True, text=True, check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}).stdout
             for kind in ("link", "route", "netns")]  # fmt: skip
    for link in (links := json.loads(found[0])):
        # Counters and states of the machine's own interfaces move by themselves.
        link.pop("operstate", None)
    return json.dumps([[link.get("ifname") for link in links], found[1], found[2]])


#: A shell that ignores polite signals, and a child of it in a session of its own that prints its process id.
STUBBORN = "trap '' TERM INT HUP; setsid sh -c 'echo $$; exec sleep 600' & wait"


def _fails_in_mid_test() -> list[int]:
    with Rig() as rig:
        host = rig.host("anna", rig.lan("10.77.1.0/24"))
        stubborn = host.run(["sh", "-c", STUBBORN])
        inner = int(
            wait_until(lambda: stubborn.stdout().partition("\n")[0], 10, "the inner process says its id", stubborn)
        )
        assert inner in host.namespace.processes()
        raise LookupError(stubborn.pid, inner, host.namespace.pid)


def test_nothing_is_left_even_when_the_test_fails() -> None:
    before = _root_network()
    with pytest.raises(LookupError) as caught:
        _fails_in_mid_test()
    for pid in caught.value.args:
        wait_until(lambda pid=pid: not _alive(pid), 10, f"process {pid} is gone")
    assert _root_network() == before


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_namespaces_die_with_the_process_that_made_them() -> None:
    """Also when it is killed and can clean nothing up."""
    code = (
        "import sys; from tests.netns.rig import Rig\n"
        "rig = Rig().__enter__()\n"
        "host = rig.host('anna', rig.lan('10.77.1.0/24'))\n"
        "print(host.namespace.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as maker:
        assert maker.stdout is not None
        holder = int(maker.stdout.readline())
        assert _alive(holder)
        maker.kill()
    wait_until(lambda: not _alive(holder), 10, "the holder is gone")


def test_sites_are_as_far_from_each_other_as_asked_for_and_their_kernels_count() -> None:
    require_rig("tc")
    require_wide()
    echo = """
import socket
server = socket.create_server(("", 7777))
print("listening", flush=True)
connection, _ = server.accept()
count = 0
while data := connection.recv(65536):
    count += len(data)
print("heard", count, flush=True)
"""
    send = """
import socket, sys, time
began = time.monotonic()
connection = socket.create_connection((sys.argv[1], 7777))
print("answered after", time.monotonic() - began, flush=True)
connection.sendall(bytes(300_000))
"""
    with Rig() as rig:
        wide = WideNetwork(rig, sites=3, delay_ms=20, mbit_per_s=50)
        anna, ben, cleo = (rig.host(f"host{site}", lan) for site, lan in enumerate(wide.lans, 1))
        before = wide.sent_bytes()
        for sender, receiver, crossings in (
            (anna, cleo, 1),
            (cleo, ben, 1),
            (anna, rig.host("neighbour", anna.lan), 0),
        ):
            server = receiver.python(echo)
            wait_until(lambda: "listening" in server.stdout(), 10, "the server listens", server)  # noqa: B023
            client = sender.python(send, receiver.address)
            wait_until(lambda: "heard 300000" in server.stdout(), 20, "all has come", server, client)  # noqa: B023
            round_trip_s = float(client.stdout().split()[-1])
            assert round_trip_s >= 2 * 0.020 * crossings
            now = wide.sent_bytes()
            assert 300_000 * crossings <= now - before <= 450_000 * crossings + 10_000
            before = now
        assert wide.is_carrying
        relay = wide.relay_pid
    wait_until(lambda: not Path(f"/proc/{relay}").exists(), 5, "the relay has gone with the rig")
