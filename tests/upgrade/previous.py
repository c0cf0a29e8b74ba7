"""Peers of the previous release and of this tree, run as their users run them: programs in data folders of their own.

A wheel is a zip of importable files: unpacked into a folder that PYTHONPATH names, it is found before whatever is installed.
Everything is asked of the command line of the peer's own release, never of this tree's code: what crosses the control
socket may change between releases, since both of its ends are always of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.peers import Machine, PeerProcess, machine, own_ports, until_now

ROOT = Path(__file__).resolve().parents[2]
#: Until a peer that was told to stop has ended: it says goodbye, and workers are given a grace.
_STOP_S = 20.0


@dataclass(frozen=True)
class Release:
    """One release. `folder`: where its package lies."""

    name: str
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        """What makes Python import this release: nothing else, not even the folder that a command is run in, comes before it."""
        return {"PYTHONPATH": str(self.folder), "PYTHONSAFEPATH": "1"}

    def run_python(self, source: str, *arguments: str) -> str:
        """What the program `source` prints under this release."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("P2PCOMPUTE_")}
        done = subprocess.run(
            [sys.executable, "-c", source, *arguments],
            env={**environ, **self.environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"under {self.name}: {done.stderr}"
        return done.stdout


#: This tree.
CURRENT = Release("current", ROOT)


def unpack_previous(folder: Path) -> Release:
    """The previous release, unpacked into `folder`."""
    (wheel,) = Path(__file__).parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return Release(f"previous ({wheel.name.split('-')[1]})", folder)


@dataclass
class Member:
    """A user with a data folder and at most one running peer, of one release or, later, the other."""

    name: str
    release: Release
    machine: Machine
    process: subprocess.Popen[bytes] | None = None
    #: Where the outputs of its peers lie, the newest last.
    logs: list[Path] = field(default_factory=list)

    def start(self) -> None:
        """Run `up` and wait until it answers."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        log = self.machine.home.parent / f"{self.name}-{len(self.logs) + 1}.log"
        self.logs.append(log)
        with log.open("wb") as sink:
            process = subprocess.Popen(
                self.machine.command("up", "--name", self.name, "--slots", "1", "--log-level", "info"),
                env=self.machine.environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self.process = process
        # `Machine.stop` ends it, whatever becomes of the test.
        self.machine.peers.append(PeerProcess(process, None, 1, log))  # type: ignore[arg-type]

        def answers() -> bool:
            assert process.poll() is None, f"{self.name} ({self.release.name}) ended:\n{log.read_text()}"
            return self.machine.run("peers", "--json", check=False).returncode == 0

        until_now(answers, f"{self.name} answers", step_s=0.2)

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(_STOP_S)
        assert self.logs[-1].read_text().endswith("stopped\n"), self.logs[-1].read_text()

    def kill(self) -> None:
        """End it without a goodbye."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def upgrade(self, release: Release) -> None:
        """Start `release` in the same data folder; the peer has been stopped."""
        self.release = release
        self.machine.environ.update(release.environ)
        self.start()

    @property
    def own(self) -> dict[str, Any]:
        """What it says of itself."""
        return dict(self.machine.json("peers")["own"])

    @property
    def others(self) -> dict[str, dict[str, Any]]:
        """What it says of others, by name."""
        return {row["name"]: row for row in self.machine.json("peers")["peers"]}

    @property
    def alive_names(self) -> set[str]:
        """The others that it believes to be up."""
        return {name for name, row in self.others.items() if row["status"] == "alive"}

    def map(self, program: Path, function: str, *inputs: object) -> list[Any]:
        """The results of a job that it submits."""
        done = self.machine.run("map", str(program), function, *map(json.dumps, inputs), "--json", timeout_s=120)
        rows = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda row: row["index"])
        return [row["result"] for row in rows]

    @property
    def helpers(self) -> set[str]:
        """Who did at least one task of the newest job that it submitted."""
        return {name for name, count in self.machine.json("jobs")[-1]["done_by_peer"].items() if count}


@contextlib.contextmanager
def members(folder: Path, *wanted: tuple[str, Release]) -> Iterator[list[Member]]:
    """Users called as `wanted` says, in one network that the first of them has made; nobody is up yet."""
    ports = own_ports()
    with contextlib.ExitStack() as stack:
        made = [
            Member(name, release, stack.enter_context(machine(folder / name, environ={**ports, **release.environ})))
            for name, release in wanted
        ]
        owner, *others = made
        owner.machine.run("network", "create", "home")
        for member in others:
            token = owner.machine.json("invite", "--label", member.name)["token"]
            member.machine.run("join", token)
        yield made


def all_listed(running: list[Member], timeout_s: float = 40.0) -> None:
    """Until each of `running` lists every other as alive."""
    names = {member.name for member in running}
    deadline = time.monotonic() + timeout_s
    for member in running:
        left_s = max(deadline - time.monotonic(), 0.1)
        missing = names - {member.name}
        until_now(
            lambda member=member, missing=missing: missing <= member.alive_names,
            f"{member.name} ({member.release.name}) lists {sorted(missing)}; it says:\n{member.logs[-1].read_text()[-2000:]}",
            left_s,
            step_s=0.2,
        )
