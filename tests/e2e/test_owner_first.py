"""A peer's machine is its owner's first: it pauses, its guests' tasks move away, and its owner's go on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jobs_module
import pytest

from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import JobOptions, JobProgress
from p2pcompute.model.peer import Address
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer
from tests.support.peers import linked, machine, until

AT_PEER2 = JobOptions(requirements=["name == peer2"])  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def peers_of(home: Path, *configs: dict[str, Any]) -> AsyncIterator[list[Peer]]:
    """Linked peers, each with its own configuration."""
    async with contextlib.AsyncExitStack() as stack:
        peers: list[Peer] = []
        for number, changes in enumerate(configs, 1):
            bootstrap = tuple(Address("127.0.0.1", peer.port) for peer in peers[:1])
            config = PeerConfig.test(**{"name": f"peer{number}", "slots": 1, "bootstrap": bootstrap, **changes})
            peers.append(await stack.enter_async_context(Peer(config, folders=Folders.beneath(home))))
        await linked(peers)
        yield peers


def yields_at(seer: Peer, peer: PeerId) -> tuple[int, tuple[str, ...]]:
    entry = seer.view.entry(peer)
    assert entry is not None
    return entry.record.slots, entry.record.yields


def test_a_pause_moves_what_runs_and_the_owners_work_goes_on(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()

    async def body() -> None:
        async with peers_of(
            home, {"slots": 0}, {"yield_grace_s": 0.2, "isolation": "process"}, {"isolation": "process"}
        ) as peers:
            origin, yielding, other = peers
            seen: list[JobProgress] = []
            inputs = [(str(folder), x) for x in range(2)]
            results = origin.map(jobs_module.waits_for_go, inputs, on_progress=seen.append)
            async with asyncio.TaskGroup() as group:
                task = group.create_task(_all(results))
                await until(lambda: len(list(folder.iterdir())) == 2, "one task runs at each peer")
                await yielding.yielding.pause(None)
                await until(
                    lambda: not any(each.running for each in yielding.lender.pool.workers.values()),
                    "what ran at the paused peer is taken from it",
                )
                # Its own user's work goes on, also beside a pause.
                assert await yielding.call(jobs_module.scaled, (2,), None, AT_PEER2) == 60
                (folder / "go").touch()
            assert task.result() == [0, 1]
            assert {origin.name_of(who) for who, _ in seen[-1].done_by_peer} == {"peer3"}
            await until(lambda: yields_at(origin, yielding.peer_id) == (0, ("owner",)), "others see it")
            await yielding.yielding.resume()
            assert await origin.call(jobs_module.scaled, (2,), None, AT_PEER2) == 60
            await until(lambda: yields_at(origin, yielding.peer_id) == (1, ()), "others see that, too")
            assert yields_at(origin, other.peer_id) == (1, ())

    asyncio.run(_bounded(body()))


def test_a_peer_pauses_by_the_command_line_and_over_a_restart(tmp_path: Path) -> None:
    with machine(tmp_path) as mine:
        peer = mine.up("desk", "--no-lan", "--host", "127.0.0.1", "--slots", "2", "--on-battery", "run")
        paused = mine.json("pause", "--for", "2h")
        assert paused["yields"] == ["owner"]
        assert paused["paused_until_wall"] is not None
        told = mine.run("peers")
        assert "this peer, paused (owner)" in " ".join(told.stdout.split())
        assert "lends nothing: its owner has paused it" in told.stderr
        peer.process.send_signal(signal.SIGINT)
        assert peer.process.wait(30) == 128 + signal.SIGINT
        again = mine.up("desk", "--no-lan", "--host", "127.0.0.1", "--slots", "2", "--on-battery", "run")
        assert again.ask("status")["slots"] == 0
        assert again.ask("status")["slots_total"] == 2
        assert "lends all its slots" in mine.run("resume").stderr
        wrong = mine.run("pause", "--for", "soon", check=False)
        assert wrong.returncode == 2
        assert "not a duration" in wrong.stderr


@pytest.mark.parametrize("flags", [("--schedule", "noon"), ("--on-battery", "perhaps"), ("--yield-to-load", "all")])
def test_what_cannot_be_meant_is_named(tmp_path: Path, flags: tuple[str, str]) -> None:
    with machine(tmp_path) as mine:
        wrong = mine.run("up", *flags, check=False)
        assert wrong.returncode == 78
        assert flags[0] in wrong.stderr


async def _all(results: Any) -> list[Any]:
    return [value async for value in results]


async def _bounded(body: Any) -> None:
    async with asyncio.timeout(60):
        await body
