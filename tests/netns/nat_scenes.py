"""The Internet in a rig: networks that see each other, homes behind routers, and somebody who listens to a wire.

    with internet() as world:
        anna = world.home("anna", "endpoint-independent")
        ben = world.home("ben", "symmetric")
        carla = world.public("carla")

Each home has its own public network (11.n.0.0/16, so that homes count as different networks), the same private one, 192.168.1.0/24, as homes
have, and a router between. The numbers of public networks are other people's in the real world: addresses reserved for examples
are not taken for public by routers or peers. Nothing of it leaves the namespaces.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.netns.rig import INTERFACE, Host, Lan, Nat, Process, Rig, Router, require_rig, wait_until
from tests.netns.scenes import Stage, scene
from tests.support.holding import PLAIN_ENVIRONMENT
from tests.support.peers import Machine

#: What every home has inside, and where the first machine in it is.
HOME_NETWORK = "192.168.1.0/24"
HOME_ADDRESS = "192.168.1.20"

# --- homes ------------------------------------------------------------------------------------------------------------


@dataclass
class Home:
    """A household: its router, its network, and the one machine in it."""

    host: Host
    router: Router
    lan: Lan

    @property
    def outside_address(self) -> str:
        """What the world sees of it."""
        return self.router.outside_address


@dataclass
class World:
    """Public networks and the homes on them."""

    rig: Rig
    _networks: int = 0

    def network(self) -> Lan:
        """A public network that no other one shares a /16 with."""
        self._networks += 1
        return self.rig.lan(f"11.{self._networks}.0.0/24")

    def public(self, name: str) -> Host:
        """A machine with a public address in a network of its own."""
        return self.rig.host(name, self.network())

    def home(self, name: str, nat: Nat) -> Home:
        """A machine called `name` at home behind a router called `name`-router."""
        lan = self.rig.lan(HOME_NETWORK, site=True)
        router = self.rig.router(f"{name}-router", lan, self.network(), nat)
        return Home(self.rig.host(name, lan, HOME_ADDRESS), router, lan)

    def behind_two_routers(self, name: str, nat: Nat) -> Home:
        """The same with a second router between, as where a provider translates, too: the first one's address outside is private."""
        between = self.rig.lan("10.0.0.0/24", site=True)
        self.rig.router(f"{name}-provider", between, self.network(), nat)
        lan = self.rig.lan(HOME_NETWORK, site=True)
        router = self.rig.router(f"{name}-router", lan, between, nat)
        return Home(self.rig.host(name, lan, HOME_ADDRESS), router, lan)


@contextlib.contextmanager
def internet() -> Iterator[World]:
    """An empty world. Skips the test where there can be no rig."""
    require_rig("nft")
    with Rig(routed=True) as rig:
        yield World(rig)


@dataclass
class ThreeSites:
    """Two homes, each behind its own router, and a public machine: who computes for whom goes through the third.

    `capture` hears every packet at the public machine.
    """

    stage: Stage
    world: World
    left: Home
    right: Home
    anna: Machine
    ben: Machine
    relay_host: Host
    relay: Machine
    capture: Capture

    def direct_packets(self) -> list[Packet]:
        """Packets between the two homes themselves, as far as they pass the relay's wire: there must be none there."""
        homes = {self.left.outside_address, self.right.outside_address}
        return [each for each in self.capture.packets() if {each.source, each.destination} == homes]


@contextlib.contextmanager
def three_sites(left: Nat = "endpoint-independent", right: Nat = "symmetric") -> Iterator[ThreeSites]:
    """Machines "anna" (left home), "ben" (right home) and "relay" (public), with data folders and nothing started in them."""
    require_rig("nft")
    with scene(routed=True) as stage:
        stage.environ.update(PLAIN_ENVIRONMENT)
        world = World(stage.rig)
        left_home, right_home = world.home("anna", left), world.home("ben", right)
        relay_host = world.public("relay")
        machines = [stage.machine_at(home.host, home.host.name) for home in (left_home, right_home)]
        relay = stage.machine_at(relay_host, "relay")
        capture = Capture.start(relay_host)
        yield ThreeSites(stage, world, left_home, right_home, *machines, relay_host, relay, capture)


# --- listening to a wire ----------------------------------------------------------------------------------------------

#: Writes every packet of an interface, in and out: a length in 4 bytes and the bytes from the IP header on.
CAPTURE = """
import socket, struct, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
wire.bind((sys.argv[1], 3))
print("capturing", file=sys.stderr, flush=True)
out = sys.stdout.buffer
while True:
    packet = wire.recv(1 << 17)
    out.write(struct.pack("!I", len(packet)) + packet)
    out.flush()
"""
_TCP, _UDP = 6, 17


@dataclass(frozen=True)
class Packet:
    """One IPv4 packet with TCP or UDP in it."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    is_tcp: bool
    payload: bytes = field(repr=False)


@dataclass
class Capture:
    """What passes the interface of a host."""

    process: Process

    @classmethod
    def start(cls, host: Host, interface: str = INTERFACE) -> Capture:
        """Begin; what passes from now on is kept."""
        process = host.python(CAPTURE, interface)
        wait_until(lambda: "capturing" in process.stderr(), 10, f"{host.name} listens to its wire", process)
        return cls(process)

    def packets(self) -> list[Packet]:
        """What has passed so far, apart from other protocols."""
        data = self.process.stdout_path.read_bytes()
        found, at = [], 0
        while at + 4 <= len(data):
            (length,) = struct.unpack_from("!I", data, at)
            packet = _parse(data[at + 4 : at + 4 + length])
            if packet is not None:
                found.append(packet)
            at += 4 + length
        return found

    def contains(self, words: bytes) -> bool:
        """Whether any payload has `words` in it, in one packet."""
        return any(words in packet.payload for packet in self.packets())


def _parse(data: bytes) -> Packet | None:
    if len(data) < 20 or data[0] >> 4 != 4 or data[9] not in (_TCP, _UDP):
        return None
    total, start = int.from_bytes(data[2:4], "big"), (data[0] & 15) * 4
    is_tcp = data[9] == _TCP
    if len(data) < start + (20 if is_tcp else 8):
        return None
    source_port, destination_port = struct.unpack_from("!HH", data, start)
    header = (data[start + 12] >> 4) * 4 if is_tcp else 8
    source, destination = (str(ipaddress.IPv4Address(data[at : at + 4])) for at in (12, 16))
    return Packet(source, source_port, destination, destination_port, is_tcp, data[start + header : total])


# --- routers that forward on request ----------------------------------------------------------------------------------

_CHAINS = """
table inet upnp {
    chain forward { type filter hook forward priority 0; jump miniupnpd; }
    chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 99; jump postrouting_miniupnpd; }
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
"""


@dataclass
class Miniupnpd:
    """The daemon that most home routers run, in a router of the rig. `upnp`, `natpmp`: what it speaks."""

    router: Router
    folder: Path
    upnp: bool = True
    natpmp: bool = True
    process: Process | None = None

    def start(self) -> None:
        """Start it with an empty table, as after power was switched on."""
        require_rig("miniupnpd")
        self.router.namespace.command("nft", "-f", "-", text="add table inet upnp\ndelete table inet upnp\n" + _CHAINS)
        settings = self.folder / f"{self.router.name}.conf"
        settings.write_text(
            "\n".join(
                [
                    f"ext_ifname={Router.OUTSIDE}", f"listening_ip={INTERFACE}", f"enable_upnp={_yes(self.upnp)}",
                    f"enable_natpmp={_yes(self.natpmp)}", "secure_mode=yes", "system_uptime=no", "min_lifetime=120", "max_lifetime=86400",
                    "upnp_table_name=upnp", "upnp_nat_table_name=upnp", "uuid=00000000-0000-4000-8000-000000000001",
                    f"allow 1024-65535 {self.router.lan.network} 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535", "",
                ]
            )
        )  # fmt: skip
        pid = self.folder / f"{self.router.name}.pid"
        pid.unlink(missing_ok=True)
        daemon = shutil.which("miniupnpd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        assert daemon is not None
        self.process = self.router.run([daemon, "-d", "-f", str(settings), "-P", str(pid)])
        process = self.process
        signs = [
            sign
            for sign, speaks in (("HTTP listening on", self.upnp), ("Listening for NAT-PMP", self.natpmp))
            if speaks
        ]
        wait_until(lambda: all(sign in process.output() for sign in signs), 10, "miniupnpd listens", process)

    def stop(self) -> None:
        """Switch it off; its table goes, and with it what it forwarded."""
        assert self.process is not None
        self.process.kill()
        self.router.command("nft", "flush", "chain", "inet", "upnp", "prerouting_miniupnpd")
        self.router.command("nft", "flush", "chain", "inet", "upnp", "miniupnpd")

    def forwarded(self) -> str:
        """Its table, as the kernel has it."""
        return self.router.command("nft", "list", "chain", "inet", "upnp", "prerouting_miniupnpd")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
