"""Peers on several Python versions serve one job together: a helper module, a closure, a dataclass, exact results."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from versions_module import Visit, visits

from p2pcompute.node.folders import Folders
from p2pcompute.node.remote import RemotePeer
from tests.support.holding import PLAIN_ENVIRONMENT
from tests.support.peers import WAIT_S, Machine, machine, own_ports, until_now

_TASKS = 60


def _version_of(python: Path) -> tuple[int, int]:
    text = subprocess.check_output([python, "-c", "import sys; print(*sys.version_info[:2])"], text=True)
    major, minor = text.split()
    return int(major), int(minor)


def test_peers_on_several_python_versions_serve_one_job(tmp_path: Path, other_pythons: tuple[Path, ...]) -> None:
    versions = {sys.version_info[:2], *map(_version_of, other_pythons)}
    environ = {**own_ports(), **PLAIN_ENVIRONMENT}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(machine(tmp_path / "home", environ=environ))
        peers = [first.up("of-this-version", "--slots", "1")]
        for number, python in enumerate(other_pythons):
            # The same user on the same machine, whose program runs under another interpreter.
            other = stack.enter_context(machine(tmp_path / "home", environ=environ, python=str(python)))
            peers.append(other.up(f"of-another-{number}", "--slots", "1"))
        for peer in peers:
            until_now(lambda peer=peer: len(peer.linked_names) == len(peers) - 1, "all are linked")
        for peer in peers:  # any of them takes the job, whatever it runs under
            begun = tmp_path / f"begun-{peer.number}"
            begun.mkdir()
            found = asyncio.run(_visit(first, peer.number, visits(7, str(begun), len(peers))))
            assert [(visit.number, visit.value) for visit in found] == [(n, 3 * n + 7) for n in range(_TASKS)]
            assert all(type(visit) is Visit for visit in found)
            done = Counter(visit.version for visit in found)
            assert set(done) == versions, f"who did how many: {done}"


async def _visit(here: Machine, number: int, visit: Callable[[int], Visit]) -> list[Visit]:
    async with (
        asyncio.timeout(WAIT_S),
        await RemotePeer.connect(Folders.beneath(here.home).socket_path(number)) as peer,
    ):
        return [visit async for visit in peer.map(visit, range(_TASKS))]
