"""What peers of unlike standing may have run at the same lender: their tiers, and how many slots they get at once."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import jobs_module
import pytest

from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.job import JobOptions
from p2pcompute.model.peer import Address, Role
from p2pcompute.node.config import PeerConfig, load_config
from p2pcompute.node.folders import Folders
from p2pcompute.node.networks import Networks
from p2pcompute.node.peer import Peer
from p2pcompute.node.seams import SystemClock, SystemEntropy
from tests.support.peers import linked, until

NEEDS_NETWORK = JobOptions(grants=("network",), requirements=["name == lender"])  # type: ignore[arg-type]
PLAIN = JobOptions(requirements=["name == lender"])  # type: ignore[arg-type]


def networks(home: Path) -> Networks:
    home.mkdir(mode=0o700, exist_ok=True)
    return Networks(Folders.beneath(home), SystemClock(), SystemEntropy())


def guest(home: Path, name: str, token: str, port: int) -> Peer:
    """A peer of another user, who joined with `token`."""
    joined = networks(home).join(token)
    config = PeerConfig.test(
        name=name, slots=0, bootstrap=(Address("127.0.0.1", port),), network=joined.network.name
    )  # fmt: skip
    return Peer(config, folders=Folders.beneath(home))


async def scaled(peer: Peer, options: JobOptions) -> int:
    found = await peer.call(jobs_module.scaled, (2,), None, options)
    assert isinstance(found, int)
    return found


def test_a_mixed_set_of_peers(tmp_path: Path) -> None:
    async def body() -> None:
        home = networks(tmp_path / "owner")
        network = home.get()
        roles = frozenset({Role.SUBMIT, Role.COMPUTE})
        tokens = {name: network.invite(roles=roles, valid_s=3600.0, label=name) for name in ("member", "friend")}
        trusted = load_config({"trusted": (tokens["friend"].id.hex(),)}, {}, None).trusted
        config = PeerConfig.test(name="lender", slots=4, isolation="process", grants=("network",), trusted=trusted)
        async with (
            asyncio.timeout(60),
            Peer(config, folders=Folders.beneath(tmp_path / "owner")) as lender,
            guest(tmp_path / "one", "member", tokens["member"].token(), lender.port) as member,
            guest(tmp_path / "two", "friend", tokens["friend"].token(), lender.port) as friend,
        ):
            await linked([lender, member, friend])
            # Python for everybody who may submit; what the owner grants, for whom the owner trusts, and the own user.
            assert [await scaled(each, PLAIN) for each in (lender, member, friend)] == [60, 60, 60]
            assert [await scaled(each, NEEDS_NETWORK) for each in (lender, friend)] == [60, 60]
            with pytest.raises(P2PComputeError, match="the program needs network: that is for peers that the owner"):
                await scaled(member, NEEDS_NETWORK)
            # What has little credit gets little, even where slots idle; others, and the own user, are not concerned.
            scores = {member.peer_id: 10.0}
            lender.lender.standings = dataclasses.replace(lender.lender.standings, score_of=scores.get)
            for each, slots in ((member, 1), (friend, 4), (lender, 4)):
                begun = tmp_path / each.own.record.name
                begun.mkdir()
                results = each.map(
                    jobs_module.waits_for_go, [(str(begun), x) for x in range(8)], requirements=["name == lender"]
                )
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(_all(results))
                    await until(lambda begun=begun, n=slots: len(list(begun.iterdir())) >= n, "as many run as may")
                    granted = lender.lender.granted_to(each.peer_id)
                    assert granted == slots
                    assert len(list(begun.iterdir())) == slots
                    (begun / "go").touch()
                assert task.result() == [x * x for x in range(8)]

    asyncio.run(body())


async def _all(results: object) -> list[object]:
    return [value async for value in results]  # type: ignore[attr-defined]
