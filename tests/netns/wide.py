"""Sites that are far from each other: a switch each, and wide links between them with a delay, a rate and a counter.

    with scene() as stage:
        wide = WideNetwork(stage.rig, sites=3, delay_ms=15, mbit_per_s=20)
        anna, ben = stage.rig.host("anna", wide.lans[0]), stage.rig.host("ben", wide.lans[1])
        before = wide.sent_bytes()

`FarPeers` fills them with peers, which find out by themselves who is where.

Each site has a gateway, a plain router that translates nothing; all meet in a relay (`tests/support/wide_relay.py`) that holds every packet
back for the delay. The gateways limit what goes out and what comes in, and their kernels count it. Broadcast and multicast stay at a site.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from p2pcompute.model import limits
from p2pcompute.node.folders import Folders
from tests.netns.rig import INTERFACE, Host, Lan, Rig, wait_until
from tests.netns.scenes import ROOT, Stage, ahead_on_path, forked
from tests.support.peers import PeerProcess, until_now

#: The wide side of each gateway.
WIDE = "wide0"
#: Communities that were seen for so long stay: peers look at the network every two seconds.
STEADY_S = 5.0


def require_wide() -> None:
    """Skip the calling test where there can be no wide links; call `require_rig("tc")` before it."""
    if not Path("/dev/net/tun").exists():
        pytest.skip(
            "/dev/net/tun is missing, which wide links are made of: `modprobe tun`, or let the container have it"
        )


class WideNetwork:
    """See the module. Sites have subnets 10.77.1.0/24, 10.77.2.0/24 and so on. `delay_ms`: one way; `mbit_per_s`: of each site, each way."""

    def __init__(self, rig: Rig, *, sites: int, delay_ms: float, mbit_per_s: float) -> None:
        require_wide()
        #: The switch of each site.
        self.lans: tuple[Lan, ...] = tuple(rig.lan(f"10.77.{site}.0/24", site=True) for site in range(1, sites + 1))
        #: The way out of each site.
        self.gateways: tuple[Host, ...] = tuple(
            rig.host(f"gateway{site}", lan, lan.router) for site, lan in enumerate(self.lans, 1)
        )
        links = [f"{gateway.namespace.pid}/{gateway.lan.network}" for gateway in self.gateways]
        self._relay = self.gateways[0].python(
            "from tests.support.wide_relay import main; main()",
            str(delay_ms),
            WIDE,
            *links,
            env={"PYTHONPATH": ahead_on_path(ROOT)},
        )
        wait_until(lambda: "ready" in self._relay.stdout(), 20, "the relay is ready", self._relay)
        for gateway in self.gateways:
            gateway.namespace.setting("net/ipv4/ip_forward", "1")
            gateway.namespace.setting(f"net/ipv6/conf/{WIDE}/disable_ipv6", "1")
            gateway.command("ip", "link", "set", WIDE, "up")
            gateway.command("ip", "route", "replace", "default", "dev", WIDE)
            for interface in (WIDE, INTERFACE):
                gateway.rate(mbit_per_s, interface)

    @property
    def is_carrying(self) -> bool:
        """Whether the relay runs."""
        return self._relay.running

    @property
    def relay_pid(self) -> int:
        """The process that carries."""
        return self._relay.pid

    def sent_bytes(self) -> int:
        """IP bytes that all sites have sent to others so far, headers and whatever was sent again included, as their kernels count them."""
        found = 0
        for gateway in self.gateways:
            (interface,) = json.loads(gateway.command("ip", "-json", "-statistics", "link", "show", WIDE))
            found += int(interface["stats64"]["tx"]["bytes"])
        return found


class FarPeers:
    """`each` peers at every site of `wide`, forked from one process, on a host each: `peer23` is the third one of the second site.

    They are of one user and share a data folder: invitations would show nothing more. All know the address of the first, `peer11`. Nothing
    else is told to anybody. `flags`: further ones of `up`.
    """

    def __init__(
        self, stage: Stage, wide: WideNetwork, *, each: int, slots: int = 2, flags: Sequence[str] = ()
    ) -> None:
        assert each < 10
        self.wide = wide
        #: Names of the peers at each site.
        self.sites: list[set[str]] = []
        hosts: list[Host] = []
        for number, lan in enumerate(wide.lans, 1):
            here = [stage.rig.host(f"peer{number}{place}", lan) for place in range(1, each + 1)]
            self.sites.append({host.name for host in here})
            hosts += here
        owner = stage.machine_at(hosts[0], "all")
        owner.run("network", "create", "home")
        first = f"{hosts[0].address}:{limits.PEER_PORT}"
        told = ("--slots", str(slots), "--bootstrap", first, *flags)
        #: The process that forked all.
        self.parent = forked(owner, {host: ("--name", host.name, *told) for host in hosts})
        count = len(hosts)
        wait_until(lambda: self.parent.stdout().count(" is up: ") == count, 60, "all are up", self.parent)
        self._hosts = {host.name: host for host in hosts}
        folders = Folders.beneath(owner.home)
        found = [
            PeerProcess(self.parent.popen, folders, number, self.parent.stdout_path) for number in range(1, count + 1)
        ]
        #: The peers by name. `kill` of this object ends one of them, that of a peer all.
        self.peers: dict[str, PeerProcess] = {peer.ask("status")["name"]: peer for peer in found}

    def communities(self, seen_by: str) -> list[tuple[set[str], str]]:
        """Members and key node of each community, as one peer sees it."""
        document = self.peers[seen_by].ask("topology")
        names = {row["peer"]: row["name"] for row in document["peers"]}
        return [({names[peer] for peer in row["members"]}, names[row["key_node"]]) for row in document["communities"]]

    def are_found(self, seen_by: str) -> bool:
        """Whether one peer sees the sites as communities, no more and no fewer, and is linked to all."""
        found = [members for members, _ in self.communities(seen_by)]
        others = set(self.peers) - {seen_by}
        return (
            sorted(map(sorted, found)) == sorted(map(sorted, self.sites)) and others <= self.peers[seen_by].linked_names
        )

    def wait_for_communities(self, timeout_s: float, seen_by: str = "peer11") -> None:
        """Until `are_found` at every look for `STEADY_S`: the first figures of a network are its worst. Says what is seen instead where it
        takes longer."""
        since_s: float | None = None

        def have_been_found() -> bool:
            nonlocal since_s
            now_s = time.monotonic()
            since_s = (now_s if since_s is None else since_s) if self.are_found(seen_by) else None
            return since_s is not None and now_s - since_s >= STEADY_S

        try:
            until_now(have_been_found, "sites are communities", timeout_s, 0.5)
        except AssertionError:
            links = self.peers[seen_by].ask("topology")["links"]
            told = "\n".join(str(row) for row in links)
            raise AssertionError(
                f"not within {timeout_s} s: {seen_by} sees {self.communities(seen_by)}\n{told}\n{self.parent.output()[-4000:]}"
            ) from None

    def namespace_of(self, name: str) -> int:
        """The number of the network namespace in which a peer runs."""
        return os.stat(f"/proc/{self._hosts[name].namespace.pid}/ns/net").st_ino

    def kill(self, name: str) -> None:
        """SIGKILL to one peer alone: its workers must notice by themselves."""
        inside = self._hosts[name].namespace.processes()
        (pid,) = [pid for pid in inside if psutil.Process(pid).ppid() == self.parent.pid]
        os.kill(pid, signal.SIGKILL)
