"""Machines, switches and routers for tests, made of Linux network namespaces.

    with Rig() as rig:
        lan = rig.lan("10.77.1.0/24")
        anna, ben = rig.host("anna", lan), rig.host("ben", lan)
        peer = anna.run(["p2pcompute", "up"], env={"P2PCOMPUTE_HOME": str(tmp_path / "anna")})
        wait_until(lambda: "ready" in peer.output(), 10, "anna's peer is ready", peer)

Rules. A host is a namespace held open by one process that waits for the end of its input: when the test process dies, however it dies, the
pipe ends, the namespace goes and everything inside it with it. Namespaces have no names on disk, switches live in a namespace of
their own, so the machine's own network is never touched. Every process started here is killed when the rig closes, and the rig closes
even when the test fails. Needs root on Linux with `ip`; `require_rig()` skips with the reason.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, TypeVar

import pytest

T = TypeVar("T")

#: Interfaces of hosts are called alike, whatever the host: each is alone in its namespace.
INTERFACE = "eth0"
_SEARCH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
_COMMAND_TIMEOUT_S = 20.0
_POLL_S = 0.02


class RigError(Exception):
    """The rig could not be built, or a command in it failed."""


def _tool(name: str) -> str:
    found = shutil.which(name, path=_SEARCH)
    if found is None:
        raise RigError(f"{name} is not installed; tests/setup.sh installs what this needs")
    return found


@cache
def why_no_rig() -> str:
    """Why there can be no rig on this machine, or nothing."""
    if not sys.platform.startswith("linux"):
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name, path=_SEARCH) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)}; tests/setup.sh installs them"
    tried = subprocess.run(
        [_tool("unshare"), "--net", _tool("ip"), "link", "add", "probe", "type", "bridge"],
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
        check=False,
    )
    return f"this kernel gives no namespaces with bridges: {tried.stderr.strip()}" if tried.returncode else ""


def require_rig(*tools: str) -> None:
    """Skip the calling test where there can be no rig, or where one of `tools` (such as "nft") is missing."""
    reason = why_no_rig()
    missing = [name for name in tools if shutil.which(name, path=_SEARCH) is None]
    if not reason and missing:
        reason = f"{', '.join(missing)} not installed; tests/setup.sh installs them"
    if reason:
        pytest.skip(reason)


def wait_until(condition: Callable[[], T], timeout_s: float, what: str, *shown: Process) -> T:
    """The first true value of `condition()`. Fails after `timeout_s`, with the output of the processes in `shown`."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            story = "".join(f"\n--- {each} ---\n{each.output()[-4000:]}" for each in shown)
            pytest.fail(f"not within {timeout_s} s: {what}{story}")
        time.sleep(_POLL_S)


@dataclass(eq=False)
class Process:
    """A process in a host. Its stdout and stderr go to files, so that it never blocks on a pipe that nobody reads."""

    host: Host
    argv: tuple[str, ...]
    popen: subprocess.Popen[bytes]
    stdout_path: Path
    stderr_path: Path

    def __str__(self) -> str:
        state = "running" if self.popen.poll() is None else f"exit {self.popen.returncode}"
        return f"{self.host.name}: {' '.join(self.argv)[:120]} ({state})"

    @property
    def pid(self) -> int:
        """The process id; that of the program itself, nothing stands between."""
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    def stdout(self) -> str:
        """What it has written to stdout so far."""
        return self.stdout_path.read_text(errors="replace")

    def stderr(self) -> str:
        """What it has written to stderr so far."""
        return self.stderr_path.read_text(errors="replace")

    def output(self) -> str:
        """Both, stdout first."""
        return self.stdout() + self.stderr()

    def wait(self, timeout_s: float) -> int:
        """Its exit status. Fails the test, with its output, when it has none within `timeout_s`."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self} did not end within {timeout_s} s\n{self.output()[-4000:]}")

    def terminate(self) -> None:
        """SIGTERM to the program."""
        self.popen.terminate()

    def interrupt(self) -> None:
        """SIGINT to the program, as Ctrl-C does."""
        self.popen.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the program alone: what it started must notice by itself."""
        self.popen.kill()
        self.popen.wait()


#: How a `Router` translates addresses, in the words of RFC 4787. Both drop from outside what is no answer.
Nat = Literal["endpoint-independent", "symmetric"]


@dataclass(frozen=True)
class Lan:
    """A switch with a subnet. The router, where there is one, has the last address; `has_router`: hosts send to it what is for elsewhere."""

    bridge: str
    network: ipaddress.IPv4Network
    has_router: bool = False

    @property
    def router(self) -> str:
        """The address of the router in this subnet."""
        return str(self.network[-2])

    @property
    def broadcast(self) -> str:
        """The directed broadcast address."""
        return str(self.network.broadcast_address)


class _Namespace:
    """A network namespace without a name, alive as long as its holder's input is open."""

    def __init__(self, name: str) -> None:
        self.name = name
        # cat ends when its input does: when we close it, or when this process dies in whatever way.
        self._holder = subprocess.Popen(
            [_tool("unshare"), "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: self._link() not in ("", own), 10, f"the namespace of {name}")
        #: What /proc/PID/ns/net shows for every process inside.
        self.link = self._link()
        self.command("ip", "link", "set", "lo", "up")

    def _link(self) -> str:
        try:
            return os.readlink(f"/proc/{self.pid}/ns/net")
        except OSError:
            return ""

    @property
    def pid(self) -> int:
        """The holder's process id, which stands for the namespace in commands of `ip`."""
        return self._holder.pid

    def enter(self, argv: Sequence[str]) -> list[str]:
        """`argv` as a command line that runs inside."""
        return [_tool("nsenter"), "--target", str(self.pid), "--net", "--", *argv]

    def command(self, tool: str, *arguments: str, text: str | None = None) -> str:
        """Run a short system command inside. Raises RigError with what it said."""
        argv = self.enter([_tool(tool), *arguments])
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
        if done.returncode:
            raise RigError(f"{self.name}: {tool} {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def setting(self, path: str, value: str) -> None:
        """Write a kernel setting of this namespace, such as `net/ipv4/ip_forward`."""
        self.command("sh", "-c", f"echo {value} > /proc/sys/{path}")

    def processes(self) -> list[int]:
        """The process ids inside, the holder's left out."""
        inside = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns" / "net") == self.link:
                        inside.append(int(entry.name))
        return inside

    def close(self) -> None:
        """Kill what runs inside and let the namespace go."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait(10)


@dataclass(eq=False)
class Host:
    """One machine on one LAN."""

    rig: Rig
    name: str
    lan: Lan
    address: str
    namespace: _Namespace
    _rules: list[str] = field(default_factory=list)

    def run(self, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
        """Start a program here, with an environment of PATH, HOME (its own) and LANG, and what `env` adds."""
        return self.rig._start(self, argv, env or {}, cwd)

    def python(self, code: str, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Start `code` with this test's interpreter."""
        return self.run([sys.executable, "-c", code, *arguments], env)

    def command(self, tool: str, *arguments: str) -> str:
        """Run a short system command here and return what it printed. Raises RigError."""
        return self.namespace.command(tool, *arguments)

    def block(self, *rules: str, direction: Literal["in", "out"] = "in") -> None:
        """Drop what one of `rules` (nftables matches, e.g. `udp dport 9877`) fits, on its way in or out."""
        for rule in rules:
            self._rules.append(f"add rule inet rig {direction} {rule} drop")
        lines = ["add table inet rig", "flush table inet rig"]
        for chain, hook in (("in", "input"), ("out", "output")):
            lines.append(f"add chain inet rig {chain} {{ type filter hook {hook} priority 0; }}")
        self.namespace.command("nft", "-f", "-", text="\n".join([*lines, *self._rules]) + "\n")

    def block_broadcast(self) -> None:
        """No UDP broadcast leaves this host, directed or not."""
        self.block(f"ip daddr {{ 255.255.255.255, {self.lan.broadcast} }} meta l4proto udp", direction="out")

    def block_multicast(self) -> None:
        """No UDP multicast leaves this host, of either family (neighbour discovery goes on)."""
        self.block("ip daddr 224.0.0.0/4 meta l4proto udp", "ip6 daddr ff00::/8 meta l4proto udp", direction="out")

    def unblock(self) -> None:
        """Forget every rule of `block`."""
        self._rules.clear()
        self.block()

    def cable(self, *, plugged: bool) -> None:
        """Pull the network cable, or plug it in again."""
        self.command("ip", "link", "set", INTERFACE, "up" if plugged else "down")
        if plugged:
            self.rig._routes(self)

    def rate(self, mbit_per_s: float, interface: str = INTERFACE) -> None:
        """Limit what this host sends, by `interface`."""
        kbit = max(1, round(mbit_per_s * 1000))
        arguments = ("qdisc", "replace", "dev", interface, "root", "tbf", "rate", f"{kbit}kbit")
        self.command("tc", *arguments, "burst", "64kb", "latency", "400ms")


@dataclass(eq=False)
class Router(Host):
    """A home router: `lan` is its inside, where it has the last address; `outside` and `outside_address` are what the world sees.

    Its rules are in three tables: `rig` (those of `Host.block`), `nat` (the translation) and `upnp` (what miniupnpd writes, see
    `routers.py`). Nothing from outside gets to the inside or to the router itself unless it answers something, or a port is forwarded.
    """

    outside: Lan | None = None
    outside_address: str = ""
    nat: Nat = "endpoint-independent"

    #: Its interfaces: INTERFACE is inside, like that of every host on that switch.
    OUTSIDE: ClassVar[str] = "wan0"

    def _translate(self) -> None:
        # masquerade looks for the translation that an inside address and port already has, and keeps it for every destination while it lasts; it
        # keeps the port, too, where it is free. fully-random draws a new port for each flow instead.
        how = "masquerade random,fully-random" if self.nat == "symmetric" else "masquerade"
        rules = f"""
            table inet nat {{
                chain postrouting {{
                    type nat hook postrouting priority 100;
                    oifname "{self.OUTSIDE}" meta nfproto ipv4 {how}
                }}
                chain forward {{
                    type filter hook forward priority 0;
                    ct state established,related accept
                    iifname "{self.OUTSIDE}" ct status dnat accept
                    iifname "{self.OUTSIDE}" drop
                }}
                chain input {{
                    type filter hook input priority 0;
                    ct state established,related accept
                    iifname "{self.OUTSIDE}" drop
                }}
            }}
        """
        self.namespace.command("nft", "-f", "-", text=rules)
        self.namespace.setting("net/ipv4/ip_forward", "1")


class Rig:
    """Builds hosts and switches, and takes everything away again. `routed`: LANs reach each other through a router."""

    def __init__(self, *, routed: bool = False) -> None:
        require_rig()
        self._routed = routed
        self._stack = contextlib.ExitStack()
        self._folder: Path | None = None
        self._switches: _Namespace | None = None
        self._lans = 0
        self._ports = 0
        self._processes: list[Process] = []
        #: The hosts, by name.
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Rig:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pcompute-rig-")))
        try:
            self._switches = self._namespace("switches")
            if self._routed:
                self._switches.setting("net/ipv4/ip_forward", "1")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._stack.close()
        for process in self._processes:
            process.popen.wait(10)

    def _namespace(self, name: str) -> _Namespace:
        made = _Namespace(name)
        self._stack.callback(made.close)
        return made

    def lan(self, network: str, *, site: bool = False) -> Lan:
        """A switch whose hosts have addresses of `network`, e.g. "10.77.1.0/24".

        `site`: a network of its own even in a routed rig, which gets a `router` for its hosts.
        """
        assert self._switches is not None, "use the rig as a context manager"
        self._lans += 1
        lan = Lan(f"br{self._lans}", ipaddress.IPv4Network(network), self._routed or site)
        # Without snooping, multicast reaches every port at once, as in a simple switch.
        self._switches.command("ip", "link", "add", lan.bridge, "type", "bridge", "mcast_snooping", "0")
        self._switches.command("ip", "link", "set", lan.bridge, "up")
        if self._routed and not site:
            self._switches.command("ip", "address", "add", f"{lan.router}/{lan.network.prefixlen}", "dev", lan.bridge)
        return lan

    def host(self, name: str, lan: Lan, address: str | None = None) -> Host:
        """A host on `lan`, with `address` or the next free one."""
        host = Host(self, name, lan, address or self._free_address(lan), self._namespace_of_host(name))
        self._add(host)
        return host

    def router(self, name: str, inside: Lan, outside: Lan, nat: Nat, address: str | None = None) -> Router:
        """A home router between a site and a switch of a routed rig, where it has `address` or the next free one. Needs `nft`."""
        require_rig("nft")
        assert inside.has_router, "the inside is made with lan(..., site=True)"
        chosen = address or self._free_address(outside)
        namespace = self._namespace_of_host(name)
        router = Router(self, name, inside, inside.router, namespace, outside=outside, outside_address=chosen, nat=nat)
        self._plug(namespace, Router.OUTSIDE, outside, chosen)
        router.command("ip", "route", "replace", "default", "via", outside.router, "dev", Router.OUTSIDE)
        self._add(router)
        router._translate()
        return router

    def _namespace_of_host(self, name: str) -> _Namespace:
        assert name not in self.hosts, f"there is a host {name} already"
        namespace = self._namespace(name)
        # Duplicate detection would hold IPv6 addresses back for a second; nobody else is on this wire.
        namespace.setting("net/ipv6/conf/default/accept_dad", "0")
        return namespace

    def _free_address(self, lan: Lan) -> str:
        taken = {host.address for host in self.hosts.values()}
        taken |= {host.outside_address for host in self.hosts.values() if isinstance(host, Router)}
        return next(str(each) for each in lan.network.hosts() if str(each) not in taken)

    def _add(self, host: Host) -> None:
        self.hosts[host.name] = host
        self._plug(host.namespace, INTERFACE, host.lan, host.address)
        self._routes(host)

    def _plug(self, namespace: _Namespace, interface: str, lan: Lan, address: str) -> None:
        """A cable from a port of the switch to `interface`, which gets `address`."""
        assert self._switches is not None, "use the rig as a context manager"
        self._ports += 1
        port = f"port{self._ports}"
        arguments = ("link", "add", port, "type", "veth", "peer", "name", interface, "netns", str(namespace.pid))
        self._switches.command("ip", *arguments)
        self._switches.command("ip", "link", "set", port, "master", lan.bridge)
        self._switches.command("ip", "link", "set", port, "up")
        prefix = lan.network.prefixlen
        namespace.command("ip", "address", "add", f"{address}/{prefix}", "broadcast", lan.broadcast, "dev", interface)
        namespace.command("ip", "link", "set", interface, "up")

    def _routes(self, host: Host) -> None:
        # Without a default route, these two have no way out; real machines have both.
        host.command("ip", "route", "replace", "224.0.0.0/4", "dev", INTERFACE)
        host.command("ip", "route", "replace", "255.255.255.255/32", "dev", INTERFACE)
        if host.lan.has_router and not isinstance(host, Router):
            host.command("ip", "route", "replace", "default", "via", host.lan.router)

    def _start(self, host: Host, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> Process:
        assert self._folder is not None, "use the rig as a context manager"
        own = self._folder / host.name
        own.mkdir(exist_ok=True)
        number = len(self._processes)
        stdout_path, stderr_path = own / f"{number}.stdout", own / f"{number}.stderr"
        path = f"{Path(sys.executable).parent}:{_SEARCH}"
        environment = {"PATH": path, "HOME": str(own), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", **env}
        with stdout_path.open("wb") as stdout, stderr_path.open("wb") as stderr:
            # nsenter becomes the program: the process id is the program's own, the session its own.
            popen = subprocess.Popen(
                host.namespace.enter(argv),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                cwd=cwd or own,
                start_new_session=True,
            )
        process = Process(host, tuple(argv), popen, stdout_path, stderr_path)
        self._processes.append(process)
        return process
