"""Too many links: the least useful makes room, with a word that nobody takes for a death."""

from __future__ import annotations

import asyncio

import pytest

from p2pcompute.model.errors import BusyError
from p2pcompute.net.link import Link, LinkSettings
from p2pcompute.net.link_loss import IDLE
from p2pcompute.net.memory import MemoryNetwork
from p2pcompute.wire.messages import Goodbye
from tests.unit.net.link_help import Side, fake_identities, sides, until
from tests.unit.net.relay_help import FAST, dial_via, server


def by_peer(link: Link) -> float | None:
    """The higher the id the less it is worth; the first peer's is in use."""
    return None if link.peer[0] == 1 else -float(link.peer[0])


async def fill(full: Side, others: list[Side]) -> None:
    for other in others:
        await other.hub.dial(full.address, full.peer)
    await until(lambda: len(full.hub.links) == len(others))


def test_a_full_hub_gives_a_newcomer_the_place_of_the_least_useful_link() -> None:
    async def main() -> None:
        settings = LinkSettings(links_max=3)
        async with sides(fake_identities(6), network=MemoryNetwork(), settings=settings, worth=by_peer) as made:
            full, newcomer, others = made[4], made[5], made[:3]
            await fill(full, others)
            link = await newcomer.hub.dial(full.address, full.peer)
            await until(lambda: not others[2].hub.links)
            assert [peer[0] for peer in full.hub.links] == [1, 2, 6]
            # Both sides know why, and to neither it is a failure.
            (gone, error) = others[2].events.down[0]
            assert error is None
            assert isinstance(gone.farewell, Goodbye)
            assert gone.farewell.reason == IDLE
            assert [error for _, error in full.events.down] == [None]
            assert not link.closed
            # The next one takes the newcomer's place: of least worth now.
            await made[3].hub.dial(full.address, full.peer)
            await until(lambda: [peer[0] for peer in full.hub.links] == [1, 2, 4])

    asyncio.run(main())


def test_links_in_use_stay_and_the_newcomer_is_told() -> None:
    async def main() -> None:
        settings = LinkSettings(links_max=1)
        async with sides(fake_identities(3), network=MemoryNetwork(), settings=settings, worth=by_peer) as made:
            first, full, newcomer = made
            await fill(full, [first])
            with pytest.raises(BusyError, match="has 1 links already"):
                await newcomer.hub.dial(full.address, full.peer)
            with pytest.raises(BusyError, match="1 links are open already"):
                await full.hub.dial(newcomer.address, newcomer.peer)
            assert list(full.hub.links) == [first.peer]

    asyncio.run(main())


def test_a_full_hub_that_dials_makes_room_when_somebody_answers() -> None:
    async def main() -> None:
        settings = LinkSettings(links_max=1)
        async with sides(fake_identities(4), network=MemoryNetwork(), settings=settings, worth=by_peer) as made:
            _, full, old, wanted = made
            await fill(full, [old])
            link = await full.hub.dial(wanted.address, wanted.peer)
            assert not link.closed
            await until(lambda: list(full.hub.links) == [wanted.peer] and not old.hub.links)
            assert [error for _, error in full.events.down + old.events.down] == [None, None]

    asyncio.run(main())


def test_idle_links_beyond_what_is_kept_are_closed_in_time_and_one_by_one() -> None:
    async def main() -> None:
        settings = LinkSettings(links_kept=2)
        async with sides(fake_identities(6), network=MemoryNetwork(), settings=settings, worth=by_peer) as made:
            hub = made[5].hub
            await fill(made[5], made[:5])
            hub.beat()
            assert len(hub.links) == 5  # too young to judge
            for link in hub.links.values():
                link.opened_at -= settings.idle_after_s
            for left in ([1, 2, 3, 4], [1, 2, 3], [1, 2], [1, 2]):
                hub.beat()
                await until(lambda left=left: [peer[0] for peer in hub.links] == left)
            assert [error for _, error in made[5].events.down] == [None] * 3
            assert [link.peer[0] for link, _ in made[5].events.down] == [5, 4, 3]

    asyncio.run(main())


def test_links_to_a_relay_and_to_those_it_keeps_reachable_stay() -> None:
    async def main() -> None:
        settings = LinkSettings(links_max=2)
        async with sides(fake_identities(5), network=MemoryNetwork(), settings=settings, worth=by_peer) as made:
            middle, kept, other = made[0], made[4], made[1]
            await fill(middle, [kept, other])
            server(middle).serve(True)
            await kept.hub.reaching.ends.reserve(middle.peer)
            await made[2].hub.dial(middle.address, middle.peer)
            # The one that is kept reachable was worth least.
            await until(lambda: [peer[0] for peer in middle.hub.links] == [3, 5])
            for newcomer in (made[2], made[3]):
                await newcomer.hub.dial(kept.address, kept.peer)
            await until(lambda: [peer[0] for peer in kept.hub.links] == [1, 4])
            kept.hub.reaching.ends.release(middle.peer)
            assert kept.hub.reaching.ends.reservations == ()
            await until(lambda: not server(middle).keeps(kept.peer))

    asyncio.run(main())


def test_a_link_that_carries_circuits_stays() -> None:
    async def main() -> None:
        settings = LinkSettings(links_max=3)
        async with sides(
            fake_identities(5), network=MemoryNetwork(), settings=settings, worth=by_peer, relay=FAST
        ) as made:
            middle, one, newcomer, two = made[0], made[3], made[1], made[4]
            await fill(middle, [one, two])
            server(middle).serve(True)
            await two.hub.reaching.ends.reserve(middle.peer)
            await dial_via(one, middle, two)
            await made[2].hub.dial(middle.address, middle.peer)
            await newcomer.hub.dial(middle.address, middle.peer)
            # The ends of the circuit were worth less.
            await until(lambda: [peer[0] for peer in middle.hub.links] == [2, 4, 5])

    asyncio.run(main())
