"""The routers of the rig do what their names say, and the capture hears what passes."""

from __future__ import annotations

import pytest

from tests.netns.nat_scenes import Capture, World, internet, three_sites
from tests.netns.rig import Host, Nat, Process, require_rig, wait_until

pytestmark = pytest.mark.netns

#: Tells whoever sends something, by UDP and by TCP, from where it came, at port 7000 and 7001.
MIRROR = """
import selectors, socket
doors = selectors.DefaultSelector()
for port in (7000, 7001):
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("", port))
    doors.register(udp, 1, "udp")
    tcp = socket.socket()
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("", port))
    tcp.listen()
    doors.register(tcp, 1, "tcp")
print("listening", flush=True)
while True:
    for key, _ in doors.select():
        if key.data == "udp":
            data, sender = key.fileobj.recvfrom(2000)
            key.fileobj.sendto(("%s %d" % sender).encode(), sender)
        else:
            taken, sender = key.fileobj.accept()
            taken.sendall(("%s %d" % sender).encode())
            taken.close()
"""
#: Asks mirrors (argv[3:], host:port) from local port argv[2] by argv[1], prints what each says, then every datagram that comes.
ASK = """
import socket, sys
kind, port = sys.argv[1], int(sys.argv[2])
places = [(place.split(":")[0], int(place.split(":")[1])) for place in sys.argv[3:]]
if kind == "udp":
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", port))
    for place in places:
        s.sendto(b"who am I", place)
        print(s.recv(100).decode(), flush=True)
    print("waiting", flush=True)
    while True:
        data, sender = s.recvfrom(100)
        print("heard", data.decode(), sender[0], flush=True)
else:
    for place in places:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("", port))
        s.connect(place)
        print(s.recv(100).decode(), flush=True)
        s.close()
    print("waiting", flush=True)
"""
#: Sends argv[3] to argv[1]:argv[2] by UDP, from local port argv[4].
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", int(sys.argv[4])))
s.sendto(sys.argv[3].encode(), (sys.argv[1], int(sys.argv[2])))
"""
#: Says how a connection to argv[1]:argv[2] ends.
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.0)
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(autouse=True)
def _needs_rig() -> None:
    require_rig("nft")


def mirror(world: World, name: str) -> Host:
    host = world.public(name)
    process = host.python(MIRROR)
    wait_until(lambda: "listening" in process.stdout(), 10, f"{name} listens", process)
    return host


def asked(host: Host, kind: str, port: int, *places: str) -> tuple[Process, list[tuple[str, int]]]:
    """What the mirrors say, and the process, which goes on listening."""
    process = host.python(ASK, kind, str(port), *places)
    wait_until(lambda: "waiting" in process.stdout(), 10, "the mirrors answer", process)
    seen = [line.split() for line in process.stdout().splitlines() if line != "waiting"]
    return process, [(address, int(number)) for address, number in seen]


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_endpoint_independent_mapping_is_the_same_for_all_destinations(kind: str) -> None:
    with internet() as world:
        one, two = mirror(world, "one"), mirror(world, "two")
        home = world.home("anna", "endpoint-independent")
        neighbour = world.rig.host("neighbour", home.lan)
        places = [f"{one.address}:7000", f"{one.address}:7001", f"{two.address}:7000"]
        _, seen = asked(home.host, kind, 9_876, *places)
        assert seen == [(home.outside_address, 9_876)] * 3, "the port is kept, too"
        # A second machine with the same port gets another one outside, which is again the same for all.
        _, others = asked(neighbour, kind, 9_876, *places)
        assert {address for address, _ in others} == {home.outside_address}
        assert len({port for _, port in others}) == 1
        assert others[0] != seen[0]


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_symmetric_mapping_differs_with_every_destination(kind: str) -> None:
    with internet() as world:
        one, two = mirror(world, "one"), mirror(world, "two")
        home = world.home("anna", "symmetric")
        _, seen = asked(home.host, kind, 9_876, f"{one.address}:7000", f"{one.address}:7001", f"{two.address}:7000")
        assert {address for address, _ in seen} == {home.outside_address}
        ports = [port for _, port in seen]
        assert len({*ports, 9_876}) == 4, f"three ports, none of them the inside one: {ports}"


@pytest.mark.parametrize("nat", ["endpoint-independent", "symmetric"])
def test_what_is_no_answer_is_dropped(nat: Nat) -> None:
    with internet() as world:
        one, stranger = mirror(world, "one"), world.public("stranger")
        home = world.home("anna", nat)
        ear, seen = asked(home.host, "udp", 9_876, f"{one.address}:7000")
        (address, port), inside = seen[0], home.host.address
        assert stranger.python(SEND, address, str(port), "from-a-stranger", "7000").wait(10) == 0
        assert one.python(SEND, address, str(port), "from-another-port", "7002").wait(10) == 0
        # The mirror itself may answer again; it is one wire, so what was sent before would have come before.
        again = home.host.python(SEND, one.address, "7000", "x", "9999")
        assert again.wait(10) == 0
        assert stranger.python(CONNECT, address, str(port)).wait(10) == 0
        for target in (address, inside):
            tried = stranger.python(CONNECT, target, "22")
            assert tried.wait(10) == 0
            assert tried.stdout().split() in (["TimeoutError"], ["OSError"]), f"{target}: {tried.stdout()}"
        assert "heard" not in ear.stdout()


def test_homes_with_the_same_private_network_do_not_meet() -> None:
    with internet() as world:
        one = mirror(world, "one")
        anna, ben = world.home("anna", "endpoint-independent"), world.home("ben", "endpoint-independent")
        assert anna.host.address == ben.host.address
        ear, _ = asked(ben.host, "udp", 9_876, f"{one.address}:7000")
        anna.host.python(SEND, ben.host.address, "9876", "hello", "1234").wait(10)
        anna.host.python(SEND, ben.outside_address, "9876", "hello", "1234").wait(10)
        _, seen = asked(anna.host, "udp", 9_876, f"{one.address}:7000")
        assert seen == [(anna.outside_address, 9_876)]
        assert "heard" not in ear.stdout()


def test_behind_two_routers_the_world_sees_the_outer_one() -> None:
    with internet() as world:
        one = mirror(world, "one")
        home = world.behind_two_routers("anna", "endpoint-independent")
        _, seen = asked(home.host, "udp", 9_876, f"{one.address}:7000")
        assert home.outside_address.startswith("10.0.0.")
        assert seen[0][0].startswith("11.")


def test_the_capture_hears_both_directions() -> None:
    with internet() as world:
        one = mirror(world, "one")
        home = world.home("anna", "symmetric")
        capture = Capture.start(one)
        _, seen = asked(home.host, "udp", 9_876, f"{one.address}:7000")
        wait_until(lambda: capture.contains(b"who am I"), 10, "the question is heard", capture.process)
        wait_until(lambda: capture.contains(home.outside_address.encode()), 10, "the answer, too", capture.process)
        question = next(packet for packet in capture.packets() if packet.payload == b"who am I")
        assert (question.source, question.source_port) == seen[0]
        assert (question.destination, question.destination_port, question.is_tcp) == (one.address, 7000, False)


def test_three_sites_are_built_and_empty() -> None:
    with three_sites() as sites:
        assert sites.left.host.address == sites.right.host.address
        assert len({sites.left.outside_address, sites.right.outside_address, sites.relay_host.address}) == 3
        assert sites.anna.home != sites.ben.home
        assert not sites.direct_packets()
