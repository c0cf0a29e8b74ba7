"""Data on its way for a job: the transfer ends with the job, at both ends of a real link, and what others wait for goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import BlobId
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer
from p2pcompute.node.service import serving
from tests.support.peers import until

#: What each job moves, and how much of it may pass before the test lifts the barrier.
DATA_BYTES, FIRST_BYTES = 24 << 20, 2 << 20
#: What messages, chunks that were being written and measurements of the link may make.
OTHER_BYTES = 6 << 20
TABLE = None


def size_of(data: bytes) -> int:
    return len(data)


def size_of_more(data: bytes) -> int:
    return len(data) + 1


def make(size: int) -> bytes:
    return bytes(size)


def in_table(index: int) -> int:
    return TABLE[index]  # type: ignore[index]


async def all_of(values: AsyncIterator[object]) -> list[object]:
    return [value async for value in values]


@contextlib.asynccontextmanager
async def pair(home: Path) -> AsyncIterator[tuple[Peer, Peer]]:
    """One peer that submits and lends nothing, and one that computes."""
    folders = Folders.beneath(home)
    config = PeerConfig.test(name="idle", slots=0)
    async with serving(config, lambda: None, folders) as idle:
        bootstrap = (Address("127.0.0.1", idle.port),)
        config = PeerConfig.test(name="busy", slots=2, bootstrap=bootstrap)
        async with serving(config, lambda: None, folders) as busy:
            await until(lambda: any(e.linked for p in (idle, busy) for e in p.view.alive), "both are linked")
            await until(lambda: idle.peer_id in busy.overlay.hub.links, "both ends are up")
            yield idle, busy


class Barrier:
    """Lets `FIRST_BYTES` of bulk pass from `sender` to `receiver` until it is lifted."""

    def __init__(self, sender: Peer, receiver: Peer) -> None:
        self.link: Link = sender.overlay.hub.links[receiver.peer_id]
        self._patch = pytest.MonkeyPatch()
        self._from = self.link.bytes_out
        free = self.link.has_room
        self._patch.setattr(self.link, "has_room", lambda: self.sent < FIRST_BYTES and free(), raising=False)

    @property
    def sent(self) -> int:
        """Bytes that have been sent since the barrier stands."""
        return self.link.bytes_out - self._from

    async def stands(self) -> None:
        """Until the first bytes are through."""
        await until(lambda: self.sent >= FIRST_BYTES, "the transfer has begun")

    def lift(self) -> None:
        """Let everything pass that still wants to."""
        self._patch.undo()
        self.link.writable()


async def ended(job: asyncio.Task[object]) -> None:
    job.cancel()
    with contextlib.suppress(asyncio.CancelledError, P2PComputeError):
        await job


@pytest.mark.parametrize("what", ["a handle", "a handle of a program", "an argument", "a result"])
def test_what_a_cancelled_job_waited_for_is_not_sent_on(what: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with asyncio.timeout(100), pair(home) as (idle, busy):
            assert await idle.submit(size_of, await idle.submit(make, 4)) == 4, "both programs are there"
            barrier = Barrier(busy, idle) if what == "a result" else Barrier(idle, busy)
            data = bytes(DATA_BYTES)
            if what == "a handle of a program":
                monkeypatch.setitem(globals(), "TABLE", await idle.put(data))
                work = all_of(idle.map(in_table, [1]))
            elif what == "a handle":
                work = idle.submit(size_of, await idle.put(data))
            elif what == "an argument":
                work = idle.submit(size_of, data)
            else:
                work = idle.submit(make, DATA_BYTES)
            job: asyncio.Task[object] = asyncio.create_task(work)
            asking = idle if what == "a result" else busy
            await until(lambda: asking.exchange._fetching, "it is asked for")
            await barrier.stands()
            await ended(job)
            await until(lambda: not asking.exchange._fetching, "nobody asks for it any more")
            barrier.lift()
            # Behind this there would have been the rest.
            assert await idle.submit(size_of, bytes(FIRST_BYTES)) == FIRST_BYTES
            assert len(await idle.submit(make, FIRST_BYTES)) == FIRST_BYTES
            assert barrier.sent < 2 * FIRST_BYTES + OTHER_BYTES
            await until(lambda: busy.lender.load == 0, "nothing of it is left there")

    asyncio.run(main())


def test_another_job_that_waits_for_the_same_data_gets_it(home: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(100), pair(home) as (idle, busy):
            data = bytes(DATA_BYTES)
            handle = await idle.put(data)
            barrier = Barrier(idle, busy)
            one = asyncio.create_task(idle.submit(size_of, handle))
            other = asyncio.create_task(idle.submit(size_of_more, handle))
            key = (idle.peer_id, BlobId(handle.blob))
            await until(lambda: key in busy.exchange._fetching, "it is asked for")
            transfer = busy.exchange._fetching[key]
            await until(lambda: transfer.waiting == 2, "both jobs wait for one transfer")
            await barrier.stands()
            await ended(one)
            await until(lambda: transfer.waiting == 1, "one has given up")
            barrier.lift()
            assert await other == DATA_BYTES + 1
            assert barrier.sent < DATA_BYTES + OTHER_BYTES, "it crossed the link once"

    asyncio.run(main())
