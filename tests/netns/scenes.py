"""Machines of people on the networks of a rig: each host with data folders of its own, run by the real command line.

    with scene() as stage:
        lan = stage.rig.lan("10.77.1.0/24")
        anna, ben = stage.machine("anna", lan), stage.machine("ben", lan)
        stage.same_network(anna, ben)
        peers = [anna.up("anna"), ben.up("ben")]
        all_linked(peers)

A peer is asked through its control socket, which is a file: no namespace stands in the way. Everything is stopped and
removed at the end, whatever happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.netns.rig import Host, Lan, Process, Rig
from tests.support.peers import WAIT_S, Machine, PeerProcess, machine, until_now

#: Where the packages of the tests are.
ROOT = Path(__file__).parents[2]
#: A data folder whose clock is so far behind that what ended since then is still valid there.
CLOCK_BEHIND = "import time\n_true = time.time\ntime.time = lambda: _true() - {seconds}\n"


@dataclass
class Command:
    """A command of somebody's that still runs."""

    process: subprocess.Popen[bytes]
    stdout_path: Path
    stderr_path: Path

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def result(self, timeout_s: float) -> str:
        """What it printed, once it has ended well."""
        status = self.process.wait(timeout_s)
        errors = self.stderr_path.read_text()
        assert status == 0, f"ended with {status}:\n{errors}"
        return self.stdout_path.read_text()


@dataclass
class Stage:
    """A rig and the machines on it."""

    rig: Rig
    folder: Path
    stack: contextlib.ExitStack
    machines: dict[str, Machine] = field(default_factory=dict)
    #: Of the programs of every machine, beside its own.
    environ: dict[str, str] = field(default_factory=dict)

    def machine(self, name: str, lan: Lan, address: str | None = None, **environ: str) -> Machine:
        """A host on `lan` with a data folder of its own."""
        host = self.rig.host(name, lan, address)
        return self.machine_at(host, name, **environ)

    def machine_at(self, host: Host, name: str, **environ: str) -> Machine:
        """A data folder called `name` on `host`."""
        prefix = tuple(host.namespace.enter([]))
        made = self.stack.enter_context(machine(self.folder / name, prefix=prefix, environ={**self.environ, **environ}))
        self.machines[name] = made
        return made

    def clock_behind(self, seconds: float) -> dict[str, str]:
        """What makes the programs of a machine believe that it is `seconds` earlier."""
        folder = self.folder / f"clock-{seconds:.0f}"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(CLOCK_BEHIND.format(seconds=seconds))
        return {"PYTHONPATH": ahead_on_path(folder)}

    def same_network(self, owner: Machine, *members: Machine) -> None:
        """`owner` makes a network and invites `members`, before anybody is up: the tokens name no address."""
        owner.run("network", "create", "home")
        for member in members:
            invitation = owner.json("invite", "--label", member.home.name)
            assert invitation["addresses"] == []
            member.run("join", invitation["token"])

    def start(self, at: Machine, *arguments: str) -> Command:
        """Start a command of `at`'s and do not wait for it."""
        number = len(list(self.folder.glob("command-*.stdout")))
        out, err = self.folder / f"command-{number}.stdout", self.folder / f"command-{number}.stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                at.command(*arguments), env=at.environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
        self.stack.callback(_end, process)
        return Command(process, out, err)


@contextlib.contextmanager
def scene(*, routed: bool = False) -> Iterator[Stage]:
    """An empty stage. Its folder has a short name: paths of sockets must be short."""
    folder = Path(tempfile.mkdtemp(prefix="p2pc-"))
    try:
        with Rig(routed=routed) as rig, contextlib.ExitStack() as stack:
            yield Stage(rig, folder, stack)
    finally:
        shutil.rmtree(folder)


def ahead_on_path(folder: Path) -> str:
    """The PYTHONPATH with which the modules in `folder` come first, and the product is the one under test as before."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def all_linked(peers: Sequence[PeerProcess], timeout_s: float = WAIT_S) -> None:
    """Wait until each of `peers` has a link to every other, by name. `timeout_s`: less than `WAIT_S` only where it shows which way they met."""
    names = [own_name(peer) for peer in peers]
    deadline = time.monotonic() + timeout_s
    for name, peer in zip(names, peers, strict=True):
        wanted = set(names) - {name}
        try:
            # Asking costs the peers something: not more often than needed.
            until_now(lambda: wanted <= peer.linked_names, "linked", max(deadline - time.monotonic(), 0.0), 0.1)  # noqa: B023
        except AssertionError:
            missing = ", ".join(sorted(wanted - peer.linked_names))
            logs = "".join(
                f"\n--- {path.name} ---\n{path.read_text()[-3000:]}" for path in {each.log for each in peers}
            )
            raise AssertionError(f"not within {timeout_s} s: {name} has no link to {missing}{logs}") from None


def forked(owner: Machine, peers: Mapping[Host, Sequence[str]]) -> Process:
    """`p2pcompute up` with these arguments on each of `peers`, all of them with the data folder of `owner`, for the price of one start.

    They are children of the process that comes back, which prints what they print.
    """
    told = json.dumps([[host.namespace.pid, arguments] for host, arguments in peers.items()])
    code = "from tests.support.forked_peers import main; main()"
    environ = {"P2PCOMPUTE_HOME": str(owner.home), "PYTHONPATH": ahead_on_path(ROOT)}
    return next(iter(peers)).python(code, told, env=environ)


def own_name(peer: PeerProcess) -> str:
    """What others call it."""
    name: str = peer.ask("status")["name"]
    return name


def listed_names(peer: PeerProcess) -> set[str]:
    """Everybody whom it lists, linked or not."""
    return {row["name"] for row in peer.ask("peers")["peers"]}


def troubles(peer: PeerProcess) -> dict[str, str]:
    """What went wrong, by address or peer, as `p2pcompute peers` tells it."""
    found: dict[str, str] = peer.ask("status")["troubles"]
    return found


def the_job(peer: PeerProcess) -> dict[str, Any] | None:
    """The only job of `peer`, None before it begins."""
    jobs = peer.ask("jobs")
    assert len(jobs) <= 1
    return jobs[0] if jobs else None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
