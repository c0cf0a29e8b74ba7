"""Handles through real peers: put once, used by every peer's tasks, gone when they are dropped or when who put them is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import jobs_module
import pytest

from p2pcompute.execution.values import Handle
from p2pcompute.model.errors import BlobMissingError, JobError, NotSerializableError, TaskFailedError
from p2pcompute.model.peer import Address
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.remote import RemotePeer
from p2pcompute.node.service import serving
from p2pcompute.storage.blobs import BlobStore
from tests.support.peers import network, until

TABLE = None


def size_of(data: bytes) -> int:
    return len(data)


def entry_of(row: tuple[list[int], int]) -> int:
    table, index = row
    return table[index]


def from_global(index: int) -> int:
    return TABLE[index]  # type: ignore[index]


def test_a_handle_is_the_value_in_arguments_of_every_peers_tasks(home: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(100), network(home, 2) as peers:
            numbers = list(range(200_000))
            handle = await peers[0].put(numbers)
            assert isinstance(handle, Handle)
            assert await peers[0].submit(entry_of, (handle, 17)) == 17
            assert await peers[0].submit(sum, handle) == sum(numbers)
            done: dict[bytes, int] = {}
            values = [
                value
                async for value in peers[0].map(
                    entry_of,
                    [(handle, index) for index in range(300)],
                    on_progress=lambda progress: done.update(progress.done_by_peer),
                )
            ]
            assert values == list(range(300))
            assert sum(done.values()) == 300

    asyncio.run(main())


def test_large_data_reaches_a_peer_that_did_not_put_it_once_and_leaves_with_the_job(home: Path) -> None:
    async def main() -> None:
        folders = Folders.beneath(home)
        async with (
            asyncio.timeout(100),
            serving(PeerConfig.test(name="idle", slots=0), lambda: None, folders) as idle,
            serving(
                PeerConfig.test(name="busy", slots=2, bootstrap=(Address("127.0.0.1", idle.port),)),
                lambda: None,
                folders,
            ) as busy,
        ):
            await until(lambda: any(entry.linked for entry in idle.view.alive), "both are linked")
            data = bytes(range(256)) * 40_000
            handle = await idle.put(data)
            lengths = [value async for value in idle.map(size_of, [handle] * 50)]
            assert lengths == [len(data)] * 50
            store: BlobStore = busy._blobs
            await until(lambda: store.bytes_held == 0, "the peer that computed has let go of the data")

    asyncio.run(main())


def test_a_global_that_holds_a_handle_is_its_value_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with asyncio.timeout(100), network(home, 2) as peers:
            monkeypatch.setitem(globals(), "TABLE", await peers[0].put([5, 6, 7]))
            assert [value async for value in peers[0].map(from_global, range(3))] == [5, 6, 7]

    asyncio.run(main())


def test_a_dropped_handle_fails_its_tasks_with_a_sentence(home: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(100), network(home, 2) as peers:
            handle = await peers[0].put(list(range(100)))
            await peers[0].drop(handle)
            await peers[0].drop(handle)
            with pytest.raises((BlobMissingError, TaskFailedError), match="put the data again and submit again"):
                await peers[0].submit(entry_of, (handle, 1))
            with pytest.raises(JobError, match="put the data again and submit again"):
                async for _ in peers[0].map(jobs_module.table_entry(handle), range(3)):
                    pass
            again = await peers[0].put(list(range(100)))
            assert await peers[0].submit(entry_of, (again, 1)) == 1

    asyncio.run(main())


def test_what_cannot_travel_is_refused_and_nothing_is_kept(home: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), network(home, 1) as peers:
            with pytest.raises(NotSerializableError, match=r"value\['rows'\]\[1\]"):
                await peers[0].put({"rows": [1, (x for x in ())]})
            assert peers[0]._blobs.bytes_held == 0

    asyncio.run(main())


def test_a_client_of_a_running_peer_puts_and_its_data_goes_with_it(home: Path) -> None:
    async def main() -> None:
        folders = Folders.beneath(home)
        config = PeerConfig.test(name="peer1", slots=1)
        async with asyncio.timeout(100), serving(config, lambda: None, folders) as peer:
            table = list(range(300_000))  # several pieces on the control socket
            async with await RemotePeer.connect(peer.instance.socket_path) as client:
                handle = await client.put(table)
                assert handle.size_bytes > 600_000
                assert [v async for v in client.map(jobs_module.table_entry(handle), [])] == []
                assert await client.submit(entry_of, (handle, 299_999)) == 299_999
                async with await RemotePeer.connect(peer.instance.socket_path) as other:
                    assert await other.put(table) == handle
                    await other.drop(handle)
                    await other.drop(handle)
                assert await client.submit(entry_of, (handle, 3)) == 3
                await client.drop(handle)
                again = await client.put({"kept": "until this client is gone"})
                assert peer.handles.holds(again)
                assert not peer.handles.holds(handle), (
                    "a client's drop released nothing, or another's drop released too much"
                )
            await until(lambda: not peer.handles.holds(again), "the data of a client that is gone is let go")

    asyncio.run(main())
