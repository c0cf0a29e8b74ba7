"""What could keep a peer of this user from working, looked at one thing after the other.

Every finding says how it stands (OK, WARN, FAIL), what was found, and what to do about it. Nothing is changed: files are only read,
ports are bound for an instant.

Refuses to decide how findings are shown.
"""

from __future__ import annotations

import enum
import importlib
import os
import platform
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pcompute.model import limits
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.peer import Isolation
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.node.config import PeerConfig, load_config
from p2pcompute.node.folders import Folders
from p2pcompute.node.networks import Networks, NetworkSummary
from p2pcompute.node.running import find_running
from p2pcompute.node.status import reach_text
from p2pcompute.wire.membership import window_needs_renewal

PYTHON_OLDEST = (3, 11)
#: What a peer cannot do without, beside Python; the rest of the dependencies is for the console and accelerators.
PACKAGES = (
    "blake3",
    "click",
    "cloudpickle",
    "cryptography",
    "msgpack",
    "numpy",
    "platformdirs",
    "psutil",
    "rich",
    "structlog",
)
#: A clock before this program was written is wrong; certificates would be refused.
CLOCK_OLDEST_S = 1_735_689_600.0
DISK_FREE_MIN_BYTES = 1 << 30
KEY_FILE = "key.pem"
_DAY_S = 86_400.0


#: How other people's tasks run at each level.
ISOLATION_WORDS = {
    Isolation.PROCESS: "other people's tasks run as processes of your user with limits of time and memory; they can read what you "
    "can read. Let only people in whom you trust",
    Isolation.RESTRICTED: "other people's tasks run as processes that may open no files of yours, no connections, and signal nobody; they "
    "share this system with you in all else",
    Isolation.SANDBOX: "other people's tasks see nothing of this machine but system programs and Python, and reach nothing outside",
}


class Level(enum.StrEnum):
    """How a thing stands."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it stands, what was found, and what to do (empty where nothing needs doing)."""

    subject: str
    level: Level
    text: str
    advice: str = ""


class Doctor:
    """Looks at one user's installation; `examine` gives every finding."""

    def __init__(self, folders: Folders, environ: Mapping[str, str], clock: Clock, entropy: Entropy) -> None:
        self._folders = folders
        self._environ = environ
        self._clock = clock
        self._networks = Networks(folders, clock, entropy)

    async def examine(self, config_file: Path | None = None) -> list[Finding]:
        """Every finding, in the order in which they are best read. Never raises for what it finds."""
        file = config_file or self._folders.config_file
        found = [*self._python(), *self._packages()]
        config, finding = self._config(file)
        found.append(finding)
        found += [*self._data_folder(), *self._keys(), *self._clock_finding(), *self._memberships()]
        found += [*await self._running(), *self._ports(config), *self._broadcast(config)]
        found += [*self._isolation(config), self._webassembly(config), *self._hardware()]
        found += [await container_finding(config, self._environ), *_engine_findings(config)]
        return found

    # --- the program ----------------------------------------------------------------------------------------------------

    def _python(self) -> Iterator[Finding]:
        version = platform.python_version()
        if sys.version_info >= PYTHON_OLDEST:
            yield Finding("Python", Level.OK, f"{version} at {sys.executable}")
        else:
            yield Finding("Python", Level.FAIL, f"{version} is too old", "install Python 3.11 or newer")

    def _packages(self) -> Iterator[Finding]:
        missing: list[str] = []
        for package in PACKAGES:
            try:
                importlib.import_module(package)
            except Exception as error:  # a broken package fails in its own ways; each is a finding, not an end
                missing.append(f"{package} ({type(error).__name__}: {error})")
        if missing:
            yield Finding(
                "packages", Level.FAIL, f"cannot be loaded: {', '.join(missing)}", "install p2pcompute again with pip"
            )
        else:
            yield Finding("packages", Level.OK, f"all {len(PACKAGES)} load")

    def _config(self, file: Path) -> tuple[PeerConfig, Finding]:
        try:
            config = load_config({}, self._environ, file)
        except P2PComputeError as error:
            return PeerConfig(), Finding("configuration", Level.FAIL, str(error), "repair what is named there")
        where = f"{file}" if file.exists() else f"defaults (no file at {file})"
        return config, Finding("configuration", Level.OK, where)

    # --- files ----------------------------------------------------------------------------------------------------------

    def _data_folder(self) -> Iterator[Finding]:
        folder = self._folders.data
        existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        if not os.access(existing, os.W_OK | os.X_OK):
            yield Finding(
                "data folder", Level.FAIL, f"{existing} cannot be written", "set P2PCOMPUTE_HOME to a folder of yours"
            )
            return
        free_bytes = shutil.disk_usage(existing).free
        text = f"{folder}, {free_bytes / 2**30:.1f} GB free"
        if free_bytes < DISK_FREE_MIN_BYTES:
            yield Finding("data folder", Level.WARN, text, "make room: large arguments and results are kept there")
        else:
            yield Finding("data folder", Level.OK, text)

    def _keys(self) -> Iterator[Finding]:
        from p2pcompute.wire.identity import PeerKey

        numbers = self._folders.known_instances()
        bad = False
        for number in numbers:
            path = self._folders.instance_folder(number) / KEY_FILE
            try:
                status = path.stat()
                if os.name == "posix" and status.st_mode & 0o077:
                    bad = True
                    rights = stat.filemode(status.st_mode)
                    yield Finding("keys", Level.FAIL, f"{path} can be read by others ({rights})", f"chmod 600 {path}")
                PeerKey.from_pem(path.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, P2PComputeError) as error:
                bad = True
                yield Finding("keys", Level.FAIL, f"{path}: {error}", "restore it, or move it away for a new identity")
        if not bad:
            yield Finding(
                "keys", Level.OK, f"{len(numbers)} instance folders" if numbers else "none yet; made at the first start"
            )

    def _clock_finding(self) -> Iterator[Finding]:
        now = self._clock.wall()
        if now < CLOCK_OLDEST_S:
            yield Finding(
                "clock", Level.FAIL, "this machine's clock is years behind", "set it: memberships look not yet valid"
            )
            return
        newest = max((path.stat().st_mtime for path in self._folders.peers.glob("*/peer.db*")), default=0.0)
        if newest > now + limits.INCARNATION_AHEAD_MAX_S:
            yield Finding(
                "clock",
                Level.WARN,
                "the clock has gone back since the last start",
                "check date and time of this machine",
            )
        else:
            yield Finding("clock", Level.OK, "plausible")

    def _memberships(self) -> Iterator[Finding]:
        summaries = self._networks.summaries()
        if not summaries:
            yield Finding("network", Level.OK, "none yet; `p2pcompute up` makes a private one")
        for summary in summaries:
            yield self._membership(summary)
        try:
            self._networks.current_name()
        except P2PComputeError as error:
            yield Finding("network", Level.FAIL, str(error), "p2pcompute network use NAME")

    def _membership(self, summary: NetworkSummary) -> Finding:
        subject = f"network {summary.name}"
        if summary.problem:
            return Finding(
                subject,
                Level.FAIL if summary.current else Level.WARN,
                summary.problem,
                "ask its owner for a new invitation",
            )
        now = self._clock.wall()
        assert summary.expires_wall is not None, "a network without a problem has an end"
        left_s = summary.expires_wall - now
        text = f"{summary.kind}{', current' if summary.current else ''}, membership ends in {left_s / _DAY_S:.0f} days"
        # What this user signs for himself is renewed at the next start.
        window = self._networks.get(summary.name).invitation.lineage.window
        if summary.kind == "joined" and window_needs_renewal(window, now):
            return Finding(
                subject,
                Level.WARN,
                text,
                "be online while the owner's peer is, which renews it; or ask for a new token",
            )
        return Finding(subject, Level.OK, text)

    # --- the surroundings -----------------------------------------------------------------------------------------------

    async def _running(self) -> list[Finding]:
        try:
            peers = await find_running(self._folders)
        except P2PComputeError as error:
            return [Finding("running peers", Level.FAIL, str(error), "check the rights of the data folder")]
        if not peers:
            return [Finding("running peers", Level.OK, "none")]
        findings: list[Finding] = []
        for peer in peers:
            subject = f"peer {peer.number}"
            if peer.status is None:
                findings.append(
                    Finding(
                        subject,
                        Level.FAIL,
                        f"runs but does not answer: {peer.problem}",
                        "stop its process and start it again",
                    )
                )
                continue
            status = peer.status
            links = status.get("links", 0)
            findings.append(
                Finding(
                    subject,
                    Level.OK,
                    f"{status['name']} at port {status['port']}, {links} {'link' if links == 1 else 'links'}",
                )
            )
            findings += _reach_findings(subject, status)
            findings += [
                Finding(subject, Level.WARN, f"trouble with {whom}: {what}")
                for whom, what in sorted(status.get("troubles", {}).items())
            ]
        return findings

    def _ports(self, config: PeerConfig) -> Iterator[Finding]:
        port = config.port
        if port and _is_bound(port):
            yield Finding(
                "TCP port", Level.OK, f"{port} is in use (a running peer?); a peer that starts takes the next free one"
            )
        else:
            yield Finding("TCP port", Level.OK, f"{port or 'any'} is free")

    def _broadcast(self, config: PeerConfig) -> Iterator[Finding]:
        if not config.lan:
            yield Finding("broadcast", Level.WARN, "switched off (lan = false)", "peers must be named with --bootstrap")
            return
        import psutil

        broadcasting = sorted(
            name
            for name, addresses in psutil.net_if_addrs().items()
            if any(address.family == socket.AF_INET and address.broadcast for address in addresses)
        )
        if broadcasting:
            yield Finding("broadcast", Level.OK, f"UDP port {config.beacon_port} at {', '.join(broadcasting)}")
        else:
            yield Finding(
                "broadcast",
                Level.WARN,
                "no interface of this machine can broadcast",
                "peers on this machine still meet; name others with --bootstrap",
            )

    def _isolation(self, config: PeerConfig) -> Iterator[Finding]:
        from p2pcompute.execution.probes import sandbox_report
        from p2pcompute.node.offers import wanted_isolation

        report = sandbox_report()
        wanted = wanted_isolation(config)
        lacking = "" if wanted is None else report.lacking(wanted)
        if lacking:
            yield Finding(
                "isolation", Level.FAIL, lacking, "repair what is named below, or ask for less: isolation = auto"
            )
        else:
            yield Finding("isolation", Level.OK, f"{report.level}: {ISOLATION_WORDS[report.level]}")
        for layer in report.layers:
            yield Finding(f"  {layer.name}", Level.OK if layer.active else Level.WARN, layer.text)

    def _webassembly(self, config: PeerConfig) -> Finding:
        from p2pcompute.node.wasm_engines import WasmEngines

        found = WasmEngines.look(self._folders, config.wasm_python)
        # In an open network nothing else is run for others.
        in_open = any(each.current and each.kind == "open" for each in self._networks.summaries())
        lacking = Level.WARN if in_open else Level.OK
        if not found.runs_modules:
            return Finding(
                "WebAssembly", lacking, "not installed: no modules are run here", "pip install 'p2pcompute[wasm]'"
            )
        if found.python_is_ready:
            return Finding("WebAssembly", Level.OK, "modules, and Python functions of strangers, can be run")
        if found.place is None:
            return Finding("WebAssembly", lacking, f"modules can be run, Python functions not: {found.problem}")
        return Finding(
            "WebAssembly",
            Level.OK,
            "modules can be run; the WebAssembly Python is not made yet",
            "p2pcompute wasm-python makes it, in a minute; in an open network a peer does so by itself",
        )

    def _hardware(self) -> Iterator[Finding]:
        from p2pcompute.execution.probes import gpu_summary

        try:
            gpus = gpu_summary().gpus
        except P2PComputeError as error:
            yield Finding("GPU", Level.WARN, str(error))
        else:
            yield Finding("GPU", Level.OK, ", ".join(gpu.name for gpu in gpus) or "none found")


def _engine_findings(config: PeerConfig) -> Iterator[Finding]:
    """Whether commands are let in, and what a cluster needs here; it is not connected to."""
    if "command" in config.engines and config.cluster is None:
        text = "this peer runs executables of this machine for members of its network"
        yield Finding("engine command", Level.OK, text)
    else:
        yield Finding(
            "engine command", Level.OK, "not offered; to let members run executables: p2pcompute up --engine command"
        )
    if config.cluster is None:
        return
    scheme = config.cluster.partition("://")[0].partition("+")[0]
    package = {"dask": "distributed", "ray": "ray"}.get(scheme, config.cluster.partition(":")[0])
    try:
        version = getattr(importlib.import_module(package), "__version__", "")
    except Exception as error:  # the owner's own module may fail in its own way
        advice = (
            f"pip install 'p2pcompute[{scheme}]'" if "://" in config.cluster else "see that Python finds the module"
        )
        yield Finding("cluster", Level.FAIL, f"{config.cluster} needs {package}: {error}", advice)
    else:
        yield Finding("cluster", Level.OK, f"{config.cluster} through {package} {version}".rstrip())


async def container_finding(config: PeerConfig, environ: Mapping[str, str]) -> Finding:
    """Whether a container engine answers, which one, and what it or this installation lacks."""
    from p2pcompute.node.containers import GPU_ADVICE, find_engine

    subject = "containers"
    if config.engines and Engine.CONTAINER not in config.engines:
        return Finding(subject, Level.OK, "not offered (engines in the configuration)")
    engine, problem = await find_engine(config, environ)
    if engine is None:
        wanted = Engine.CONTAINER in config.engines
        text, _, advice = problem.partition(": ")
        return Finding(subject, Level.WARN if wanted else Level.OK, f"not offered: {text}", advice)
    await engine.close()
    images = ", ".join(config.pull_images) or "none"
    if "gpu" in config.grants and not engine.info.gpus:
        text = f"{engine.info.text} at {engine.socket} hands out no GPUs, which are granted"
        return Finding(subject, Level.WARN, text, GPU_ADVICE)
    gpus = "can hand out GPUs" if engine.info.gpus else "hands out no GPUs"
    text = f"{engine.info.text} at {engine.socket}, {gpus}; images that may be pulled: {images}"
    return Finding(subject, Level.OK, text)


def _reach_findings(subject: str, status: Mapping[str, Any]) -> Iterator[Finding]:
    """How a running peer can be reached, and whether its datagrams get through."""
    reaching = status.get("reaching")
    if reaching is None:  # of an earlier version
        return
    reach, relays = reaching["reach"], [str(relay["name"]) for relay in reaching["relays"]]
    words = f"reach {reach}: {reach_text(reach, reaching['external'], relays, reaching['mapping'])}"
    serves = reaching["serves"]
    if not serves.get("allowed", True):
        words += "; it is no relay of others (relay = false)"
    elif serves["reserved"]:
        words += f"; it is the relay of {serves['reserved']}, and has passed on {serves['bytes'] / 1e6:.1f} MB"
    if reach == "private" and not relays:
        why = "".join(f"; {name}: {text}" for name, text in reaching["refusals"].items())
        yield Finding(
            subject,
            Level.WARN,
            words + why,
            f"forward TCP and UDP port {status['port']} in the router, or have a peer that others can dial in the network",
        )
    else:
        yield Finding(subject, Level.OK, words)
    datagrams = reaching["datagrams"]
    if datagrams["links"] and not datagrams["sessions"]:
        yield Finding(
            subject,
            Level.WARN,
            f"no UDP datagrams get through, to none of {datagrams['links']} linked peers: what goes by UDP goes over links, slower",
            f"allow UDP port {status['port']} in the firewall, in both directions",
        )


def _is_bound(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
