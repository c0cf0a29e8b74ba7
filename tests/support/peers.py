"""Peers for tests: several in one event loop, or real processes started by the command line.

Every wait is for a condition, with a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pcompute.model.peer import Address
from p2pcompute.net.control import ControlClient
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer

#: Generous: two cores run the whole suite in parallel.
WAIT_S = 40.0
#: Ports that a test has from `free_port` on: its peers take the next free ones.
PORTS_EACH = 16
#: Where they begin, and how many the tests that run at a time share, in turns: all of them below 32,768.
_PORT_FIRST, _PORT_SHARES, _PORT_ROUNDS = 12_000, 8, 160


async def until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first true value of `condition()`, asked every few milliseconds."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        await asyncio.sleep(0.01)
    return value


def until_now(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S, step_s: float = 0.02) -> Any:
    """`until` without an event loop."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(step_s)
    return value


def free_port() -> int:
    """A port that nobody uses now, by TCP or UDP, with `PORTS_EACH` to itself, so that a peer that comes again finds its own free.

    No connection that others make meanwhile gets it either: systems take those ports from higher ones.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PORT_SHARES
    while True:
        port = _PORT_FIRST + PORTS_EACH * (worker + _PORT_SHARES * secrets.randbelow(_PORT_ROUNDS))
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError):
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            return port


def own_ports() -> dict[str, str]:
    """The environment that keeps a test's peers from hearing those of others, and from competing for ports."""
    return {"P2PCOMPUTE_BEACON_PORT": str(free_port()), "P2PCOMPUTE_PORT": str(free_port())}


@contextlib.asynccontextmanager
async def network(home: Path, count: int, **changes: Any) -> AsyncIterator[list[Peer]]:
    """`count` linked peers of one private network in this process; `slots` defaults to 1 each."""
    folders = Folders.beneath(home)
    changes.setdefault("slots", 1)
    async with contextlib.AsyncExitStack() as stack:
        peers: list[Peer] = []
        for number in range(1, count + 1):
            bootstrap = tuple(Address("127.0.0.1", peer.port) for peer in peers[:1])
            config = PeerConfig.test(name=f"peer{number}", bootstrap=bootstrap, **changes)
            peers.append(await stack.enter_async_context(Peer(config, folders=folders)))
        await linked(peers)
        yield peers


async def linked(peers: list[Peer]) -> None:
    """Until every one of `peers` has a link to every other and has heard its record."""
    await until(
        lambda: all(len([e for e in peer.view.alive if e.linked]) >= len(peers) - 1 for peer in peers),
        f"{len(peers)} peers are all linked",
    )


@dataclass
class PeerProcess:
    """One `p2pcompute up` in a process of its own."""

    process: subprocess.Popen[bytes]
    folders: Folders
    number: int
    log: Path

    def ask(self, method: str, **arguments: Any) -> Any:
        """The answer of its control socket."""

        async def once() -> Any:
            async with (
                asyncio.timeout(WAIT_S),
                await ControlClient.connect(self.folders.socket_path(self.number)) as client,
            ):
                return await client.call(method, **arguments)

        return asyncio.run(once())

    @property
    def linked_names(self) -> set[str]:
        """Names of the peers to which it has a link."""
        return {row["name"] for row in self.ask("peers")["peers"] if row["linked"]}

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self.process.kill()
        self.process.wait()


@dataclass
class Machine:
    """One user's data folder and the peers that run in it. `prefix`: how programs are run there (e.g. in a namespace)."""

    home: Path
    prefix: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    peers: list[PeerProcess] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What programs of this user see."""
        base = {name: value for name, value in os.environ.items() if not name.startswith("P2PCOMPUTE_")}
        return {**base, "P2PCOMPUTE_HOME": str(self.home), "NO_COLOR": "1", **self.environ}

    def command(self, *arguments: str) -> list[str]:
        """The command line program with `arguments`."""
        return [*self.prefix, self.python, "-m", "p2pcompute", *arguments]

    def run(self, *arguments: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run the command line program to its end."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str) -> Any:
        """What `arguments` print with --json."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def up(self, name: str, *arguments: str) -> PeerProcess:
        """Start a peer and wait until it answers; `name` "": with the name that it has by default."""
        folders = Folders.beneath(self.home)
        known = {number for number, _ in folders.list_instances()}
        log = self.home.parent / f"{self.home.name}-{name or len(self.peers) + 1}.log"
        called = ("--name", name) if name else ()
        with log.open("wb") as sink:
            process = subprocess.Popen(
                self.command("up", *called, "--log-level", "info", *arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )

        def answering() -> int | None:
            assert process.poll() is None, f"{name} ended with {process.returncode}:\n{log.read_text()}"
            for number, path in folders.list_instances():
                if number not in known and path.exists():
                    with contextlib.suppress(Exception):
                        peer = PeerProcess(process, folders, number, log)
                        if peer.ask("status")["name"].startswith(name):
                            return number
            return None

        try:
            number = until_now(answering, f"{name} answers")
        except BaseException:
            process.kill()
            process.wait()
            raise
        peer = PeerProcess(process, folders, number, log)
        self.peers.append(peer)
        return peer

    def stop(self) -> None:
        """End every peer that still runs; bounded."""
        for peer in self.peers:
            if peer.process.poll() is None:
                peer.process.send_signal(signal.SIGTERM)
        for peer in self.peers:
            try:
                peer.process.wait(15)
            except subprocess.TimeoutExpired:
                peer.kill()


@contextlib.contextmanager
def machine(home: Path, **settings: Any) -> Iterator[Machine]:
    """A machine whose peers are stopped at the end."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = Machine(home, **settings)
    try:
        yield found
    finally:
        found.stop()
