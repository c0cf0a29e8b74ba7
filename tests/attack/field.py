"""Two honest peers with work to do, and what must hold while somebody attacks them.

    with field(tmp_path) as honest:
        with honest.working():
            attack()
        honest.blames("127.0.0.7", "datagrams")

`working` submits a job before and demands its complete and right answer afterwards, both peers alive and linked, their memory bounded,
and no bug in their logs. `blames`: the offender is named in the log and in `p2pcompute peers`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

from p2pcompute.model.ids import PeerId, parse_peer_id
from p2pcompute.model.peer import Address
from tests.support.peers import Machine, PeerProcess, machine, own_ports, until_now

PROGRAM = """
import time

def slow_square(x):
    time.sleep(0.05)
    return x * x
"""
TASKS = 120
#: What an attack may cost a peer in memory for good: its tables are bounded, and this is more than all of them together.
MEMORY_GROWTH_MAX = 192 << 20
#: Lines of log that one attack may cause at one peer.
LINES_MAX = 60


def memory_bytes(peer: PeerProcess) -> int:
    """What the process of `peer` holds now."""
    for line in Path(f"/proc/{peer.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("a process without a size")


@dataclass
class Field:
    """See the module. Made by `field`."""

    home: Machine
    peers: list[PeerProcess]
    folder: Path
    jobs: int = 0
    ports: list[int] = dataclass_field(default_factory=list)

    @property
    def address(self) -> Address:
        """Of the first peer."""
        return Address("127.0.0.1", self.ports[0])

    @property
    def addresses(self) -> list[Address]:
        """Of all peers."""
        return [Address("127.0.0.1", port) for port in self.ports]

    @property
    def ids(self) -> list[PeerId]:
        """Of all peers."""
        return [parse_peer_id(peer.ask("peers")["own"]["peer"]) for peer in self.peers]

    def short(self, name: str) -> str:
        """The short id of one of them."""
        row = next(row for peer in self.peers if (row := peer.ask("peers")["own"])["name"] == name)
        found: str = row["short"]
        return found

    @property
    def beacon_port(self) -> int:
        """That of all peers here."""
        return int(self.home.environ["P2PCOMPUTE_BEACON_PORT"])

    def invite(self, label: str) -> str:
        """A token for somebody whom the owner should not have trusted."""
        token: str = self.home.json("invite", "--label", label)["token"]
        return token

    @contextlib.contextmanager
    def working(self, lines_max: int = LINES_MAX) -> Iterator[subprocess.Popen[bytes]]:
        """A job runs meanwhile; see the module."""
        self.jobs += 1
        inputs = self.folder / f"inputs-{self.jobs}.jsonl"
        inputs.write_text("".join(f"{number}\n" for number in range(TASKS)))
        sizes = [memory_bytes(peer) for peer in self.peers]
        lines = [len(peer.log.read_text().splitlines()) for peer in self.peers]
        command = self.home.command(
            "map", str(self.folder / "squares.py"), "slow_square", "--jsonl", str(inputs), "--peer", "1"
        )
        with subprocess.Popen(
            command, env=self.home.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                yield process
                stdout, stderr = process.communicate(timeout=40)
            except BaseException:
                process.kill()
                raise
        assert process.returncode == 0, stderr.decode()
        assert [json.loads(line) for line in stdout.splitlines()] == [number * number for number in range(TASKS)]
        for peer, size, before in zip(self.peers, sizes, lines, strict=True):
            assert peer.process.poll() is None, f"{peer.log.name} has ended"
            story = "\n".join(peer.log.read_text().splitlines()[before:])
            assert "Traceback" not in story, story[:6000]
            grown = memory_bytes(peer) - size
            assert grown < MEMORY_GROWTH_MAX, f"{peer.log.name} has grown by {grown >> 20} MiB"
            # The program itself prints who appears; the log is what it says beside that.
            said = [line for line in story.splitlines() if "Z [" in line]
            assert len(said) <= lines_max, f"{len(said)} lines of log:\n" + "\n".join(said[-80:])
        names = {peer.ask("status")["name"] for peer in self.peers}
        for peer in self.peers:
            own = peer.ask("status")["name"]
            until_now(lambda peer=peer, own=own: names - {own} <= peer.linked_names, f"{own} is linked to the others")

    def alive(self, peer: PeerProcess) -> set[str]:
        """Names of those that `peer` believes to be up."""
        return {row["name"] for row in peer.ask("peers")["peers"] if row["status"] == "alive"}

    def blames(self, whom: str, what: str, *, by: int = 0) -> None:
        """Wait until one peer names the offender with `what`, in the log and in `p2pcompute peers`."""
        peer = self.peers[by]

        def named() -> bool:
            return any(whom in who and what in why for who, why in peer.ask("status")["troubles"].items())

        try:
            until_now(named, "", step_s=0.1)
        except AssertionError:
            raise AssertionError(
                f"{whom} is not blamed for {what!r} but {peer.ask('status')['troubles']}\n{peer.log.read_text()[-3000:]}"
            ) from None
        story = [line for line in peer.log.read_text().splitlines() if "trouble" in line]
        assert any(whom in line and what in line for line in story), "\n".join(story)
        told = self.home.run("peers", "--peer", str(peer.number)).stderr
        assert whom in told, told
        assert what in told, told


@contextlib.contextmanager
def field(folder: Path, count: int = 2) -> Iterator[Field]:
    """`count` honest peers of one network, linked."""
    (folder / "squares.py").write_text(PROGRAM)
    with machine(folder / "home", environ=own_ports()) as home:
        peers = [home.up(name, "--slots", "1") for name in ("anna", "bert", "cleo")[:count]]
        for peer in peers:
            until_now(lambda peer=peer: len(peer.linked_names) == count - 1, "they find each other")
        yield Field(home, peers, folder, ports=[int(peer.ask("status")["port"]) for peer in peers])


def keep_up(attack: Callable[[], None], process: subprocess.Popen[bytes], for_s: float, rounds_min: int = 1) -> None:
    """Repeat `attack` while the job of `process` runs, for at most `for_s` seconds; but at least `rounds_min` times, begun while it runs."""
    until = time.monotonic() + for_s
    rounds = 0
    assert process.poll() is None, "the job was over before the attack began"
    while rounds < rounds_min or (process.poll() is None and time.monotonic() < until):
        attack()
        rounds += 1
