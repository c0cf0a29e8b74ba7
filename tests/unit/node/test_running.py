"""Finding the peers that run here: by nothing, number, name and id."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pcompute.model.errors import NoSuchPeerError, NotRunningError, UsageError
from p2pcompute.model.ids import PeerId, format_peer_id, short_peer_id
from p2pcompute.net.control import ControlCall, ControlServer
from p2pcompute.node.folders import Folders
from p2pcompute.node.running import connect, find_running, socket_of

IDS = [PeerId(bytes([number]) * 32) for number in (1, 2, 3)]


@contextlib.asynccontextmanager
async def running(folders: Folders, *names: str) -> AsyncIterator[None]:
    """Instances that answer "status" with these names."""
    async with contextlib.AsyncExitStack() as stack:
        for name, peer in zip(names, IDS, strict=False):
            instance = folders.claim_instance()
            stack.callback(instance.close)
            status = {"name": name, "short": short_peer_id(peer), "peer": format_peer_id(peer)}

            async def handler(call: ControlCall, status: dict[str, str] = status) -> object:
                return status

            await stack.enter_async_context(ControlServer(instance.socket_path, handler))
        yield


def test_peers_are_found_by_what_people_type(tmp_path: Path) -> None:
    folders = Folders.beneath(tmp_path)

    async def main() -> None:
        async with running(folders, "kitchen", "attic", "attic"):
            assert await socket_of(folders, None) == folders.socket_path(1)
            assert await socket_of(folders, "2") == folders.socket_path(2)
            assert await socket_of(folders, "kitchen") == folders.socket_path(1)
            assert await socket_of(folders, short_peer_id(IDS[2]).lower()) == folders.socket_path(3)
            assert await socket_of(folders, format_peer_id(IDS[1])) == folders.socket_path(2)
            with pytest.raises(UsageError, match="2 peers that run here are called 'attic': give the number"):
                await socket_of(folders, "attic")
            with pytest.raises(NoSuchPeerError, match=r"running are 1 \(kitchen\), 2 \(attic\), 3 \(attic\)"):
                await socket_of(folders, "9")
            async with await connect(folders, "2") as client:
                assert (await client.call("status"))["name"] == "attic"

    asyncio.run(main())


def test_none_running_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="p2pcompute up"):
        asyncio.run(socket_of(Folders.beneath(tmp_path), None))
    with pytest.raises(NotRunningError, match="p2pcompute up"):
        asyncio.run(socket_of(Folders.beneath(tmp_path), "kitchen"))


def test_one_that_does_not_answer_is_listed_with_its_problem(tmp_path: Path) -> None:
    folders = Folders.beneath(tmp_path)
    instance = folders.claim_instance()
    (found,) = asyncio.run(find_running(folders))
    assert found.status is None
    assert "nothing answers" in found.problem
    instance.close()
    assert asyncio.run(find_running(folders)) == []
