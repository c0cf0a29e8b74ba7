"""Blobs over links: what is fetched is what the digest names, and one transfer serves all who want it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from blake3 import blake3

from p2pcompute.model.errors import BlobMissingError, LinkClosedError, ProtocolError
from p2pcompute.model.ids import BlobId
from p2pcompute.net.blobs import BlobExchange
from p2pcompute.net.link import Link
from p2pcompute.net.memory import MemoryNetwork
from tests.unit.net.link_help import Side, fake_identities, sides, until


class Shelf:
    """A store of blobs that counts how often it was asked."""

    def __init__(self, *contents: bytes) -> None:
        self.held = {BlobId(blake3(content).digest()): content for content in contents}
        self.asked = 0

    def get(self, blob: BlobId) -> bytes | None:
        self.asked += 1
        return self.held.get(blob)


@contextlib.asynccontextmanager
async def exchanges(shelf: Shelf) -> AsyncIterator[tuple[BlobExchange, Link, Side, Side, MemoryNetwork]]:
    """One peer that fetches, one that serves `shelf`."""
    network = MemoryNetwork()
    async with sides(fake_identities(2), network=network) as (one, two), asyncio.TaskGroup() as group:

        def spawn(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            return group.create_task(work, name=name)

        serving = BlobExchange(shelf, spawn)
        two.events.on_message = serving.message
        link = await one.hub.dial(two.address, two.peer)
        yield BlobExchange(Shelf(), spawn), link, one, two, network


@pytest.mark.parametrize("size", [0, 10, 9_000_000])
def test_a_blob_is_fetched_once_for_all_who_want_it(size: int) -> None:
    async def main() -> None:
        content = bytes(size)
        shelf = Shelf(content)
        (blob,) = shelf.held
        async with exchanges(shelf) as (fetching, link, *_):
            async with asyncio.TaskGroup() as group:
                fetches = [group.create_task(fetching.fetch(link, blob, size)) for _ in range(5)]
            assert all(fetch.result() == content for fetch in fetches)
            assert shelf.asked == 1

    asyncio.run(main())


def test_one_who_gives_up_does_not_take_it_from_the_others() -> None:
    async def main() -> None:
        content = bytes(6_000_000)
        shelf = Shelf(content)
        (blob,) = shelf.held
        async with exchanges(shelf) as (fetching, link, *_):
            async with asyncio.TaskGroup() as group:
                first = group.create_task(fetching.fetch(link, blob, len(content)))
                second = group.create_task(fetching.fetch(link, blob, len(content)))
                await until(lambda: shelf.asked)
                first.cancel()
            assert second.result() == content

    asyncio.run(main())


def test_when_the_last_gives_up_the_rest_is_not_sent_and_who_asks_later_gets_all() -> None:
    async def main() -> None:
        content = bytes(6_000_000)
        shelf = Shelf(content)
        (blob,) = shelf.held
        async with exchanges(shelf) as (fetching, link, one, two, _):
            far = two.hub.links[one.peer]
            far.bulk_buffer_bytes = 0  # nothing leaves
            fetches = [asyncio.create_task(fetching.fetch(link, blob, len(content))) for _ in range(2)]
            await until(lambda: shelf.asked)
            for number, fetch in enumerate(fetches):
                assert bool(fetching._fetching), f"{number} of them have given up"
                fetch.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await fetch
            assert not fetching._fetching
            await until(lambda: not len(far._bulk._sender))
            far.bulk_buffer_bytes = 1 << 20
            far.writable()
            assert await fetching.fetch(link, blob, len(content)) == content
            assert far.bytes_out < 1.1 * len(content), "it was sent once"

    asyncio.run(main())


def test_nothing_is_brought_for_one_who_has_given_up_or_gone() -> None:
    async def main() -> None:
        brought = 0
        far = BlobId(bytes(32))

        async def bring(asker: object, wanted: BlobId) -> bytes | None:
            nonlocal brought
            brought += 1
            try:
                await asyncio.Event().wait()
            finally:
                brought -= 1
            return None

        async with exchanges(Shelf()) as (fetching, link, one, two, network):
            serving = two.events.on_message.__self__  # type: ignore[attr-defined]
            serving.bring = bring
            fetch = asyncio.create_task(fetching.fetch(link, far, 100))
            await until(lambda: brought == 1)
            fetch.cancel()
            await until(lambda: brought == 0)
            fetch = asyncio.create_task(fetching.fetch(link, far, 100))
            await until(lambda: brought == 1)
            network.cut(one.host, two.host)
            await until(lambda: brought == 0)
            with pytest.raises(LinkClosedError):
                await fetch

    asyncio.run(main())


def test_missing_forged_and_lost() -> None:
    async def main() -> None:
        shelf = Shelf(b"right")
        (blob,) = shelf.held
        async with exchanges(shelf) as (fetching, link, one, two, network):
            with pytest.raises(BlobMissingError):
                await fetching.fetch(link, BlobId(bytes(32)), 10)
            shelf.held[blob] = b"wrong"
            with pytest.raises(ProtocolError, match="other bytes"):
                await fetching.fetch(link, blob, 10)
            # A failure is not remembered.
            shelf.held[blob] = b"right"
            assert await fetching.fetch(link, blob, 10) == b"right"
            two.events.on_message = lambda link, message: network.cut(one.host, two.host)
            with pytest.raises(LinkClosedError):
                await fetching.fetch(link, blob, 10)

    asyncio.run(main())


def test_what_is_brought_from_elsewhere_holds_up_nothing() -> None:
    async def main() -> None:
        here, elsewhere = b"here", b"elsewhere"
        shelf = Shelf(here)
        (blob,) = shelf.held
        far, nowhere = BlobId(blake3(elsewhere).digest()), BlobId(bytes(32))
        arrived = asyncio.Event()

        async def bring(asker: object, wanted: BlobId) -> bytes | None:
            await arrived.wait()
            return elsewhere if wanted == far else None

        async with exchanges(shelf) as (fetching, link, _, two, _network):
            serving = two.events.on_message.__self__  # type: ignore[attr-defined]
            serving.bring = bring
            async with asyncio.TaskGroup() as group:
                brought = group.create_task(fetching.fetch(link, far, 100))
                missing = group.create_task(_is_missing(fetching, link, nowhere))
                await until(lambda: shelf.asked == 2)
                assert await fetching.fetch(link, blob, 100) == here, "asked for last, sent first"
                assert not brought.done()
                arrived.set()
            assert brought.result() == elsewhere
            assert missing.result()

    asyncio.run(main())


async def _is_missing(fetching: BlobExchange, link: Link, blob: BlobId) -> bool:
    with pytest.raises(BlobMissingError):
        await fetching.fetch(link, blob, 100)
    return True
