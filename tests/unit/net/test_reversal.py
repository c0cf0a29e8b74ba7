"""Reversed dials: what comes of a wish, who passes it on, and what nobody can have others do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, LinkClosedError, ProtocolError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.dial_back import Turns
from p2pcompute.net.link import Link
from p2pcompute.net.memory import MemoryNetwork
from p2pcompute.net.reversal import Reversals
from p2pcompute.wire.messages import Grant, Message
from p2pcompute.wire.reaching import PleaseDial
from tests.unit.net.link_help import Side, fake_identities, sides, tls_identities, until
from tests.unit.net.relay_help import dial_via, relayed


@contextlib.asynccontextmanager
async def around(more: int = 0, delay_s: float = 0.0) -> AsyncIterator[list[Side]]:
    """[asker, the peer between, target, …] in a memory network."""
    async with relayed(tls=False, more=more, network=MemoryNetwork(delay_s)) as made:
        yield made


@pytest.mark.parametrize("first", ["no link", "a relayed link"])
def test_a_peer_behind_nat_dials_because_it_is_asked(first: str) -> None:
    async def main() -> None:
        async with relayed() as (one, middle, two):
            if first == "a relayed link":
                await dial_via(one, middle, two)
            link = await one.hub.dial_reversed(middle.peer, two.peer, [one.address])
            assert (link.path, link.dialled, link.carrier) == ("reversed", False, "stream")
            assert link.route is not None
            assert link.route.via == middle.peer
            await until(lambda: two.hub.link(one.peer) is not None and not two.link_to(one).relayed)
            back = two.link_to(one)
            assert (back.path, back.dialled) == ("reversed", True)
            assert back.route == link.route
            back.send(Grant(1))
            await until(lambda: one.events.messages)
            # It is there already.
            assert await one.hub.dial_reversed(middle.peer, two.peer, [one.address]) is link
            assert not one.hub._expected
            await until(lambda: len(one.events.open) == len(two.events.open) == 2)

    asyncio.run(main())


def test_a_link_that_was_not_asked_for_is_called_what_it_is() -> None:
    async def main() -> None:
        async with around() as (one, _, two):
            link = await two.hub.dial(one.address, one.peer)
            await until(lambda: one.hub.link(two.peer) is not None)
            assert (link.path, one.link_to(two).path) == ("memory", "memory")

    asyncio.run(main())


def test_nobody_between_nobody_there_and_no_address() -> None:
    async def main() -> None:
        async with around() as (one, middle, two):
            with pytest.raises(LinkClosedError, match="there is no link"):
                await one.hub.dial_reversed(PeerId(b"n" * 32), two.peer, [one.address])
            with pytest.raises(LinkClosedError, match="is not linked to the peer that was to pass the wish on"):
                await one.hub.dial_reversed(middle.peer, PeerId(b"n" * 32), [one.address])
            with pytest.raises(LinkClosedError, match="none of your addresses is public"):
                await one.hub.dial_reversed(middle.peer, two.peer, [Address("192.168.7.7", 9876)])
            with pytest.raises(LinkClosedError, match=r"it tried, and did not reach this peer there$"):
                await one.hub.dial_reversed(middle.peer, two.peer, [Address(one.host, 1_024)])
            assert not one.hub._expected
            assert not one.hub.reaching.reversals._wished
            with pytest.raises(LinkClosedError, match="less than 10 s ago"):
                await one.hub.dial_reversed(middle.peer, two.peer, [one.address])

    asyncio.run(main())


def test_all_who_ask_through_one_peer_in_the_same_moment_are_dialled() -> None:
    """As when it becomes known that a peer is behind a router: every public one hears of its relay, and asks through that."""

    async def main() -> None:
        async with around(more=3) as (one, middle, two, *others):
            askers = [one, *others]
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(each.hub.dial_reversed(middle.peer, two.peer, [each.address])) for each in askers
                ]
            assert [task.result().path for task in asked] == ["reversed"] * 4

    asyncio.run(main())


def test_one_wish_at_a_time() -> None:
    async def main() -> None:
        async with around(delay_s=0.03) as (one, middle, two):
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(one.hub.dial_reversed(middle.peer, two.peer, [one.address]))
                await until(lambda: one.hub._expected)
                with pytest.raises(BusyError, match="has been asked"):
                    await one.hub.dial_reversed(middle.peer, two.peer, [one.address])
            assert asked.result().path == "reversed"

    asyncio.run(main())


def test_who_asks_in_anothers_name_loses_its_link() -> None:
    async def main() -> None:
        async with around(more=1) as (one, middle, two, three):
            three.link_to(middle).send(PleaseDial(two.peer, one.peer, (three.address,)))
            await until(lambda: three.events.down)
            assert any(isinstance(error, ProtocolError) for _, error in middle.events.down)
            assert not two.hub._open.keys() - two.hub.links.values()

    asyncio.run(main())


def test_only_the_target_and_the_peer_between_can_refuse() -> None:
    async def main() -> None:
        async with around(more=1) as (one, middle, two, three):
            await one.hub.dial(three.address, three.peer)
            two.hub.reaching.heard = lambda link, message: True  # type: ignore[method-assign]
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(one.hub.dial_reversed(middle.peer, two.peer, [one.address]))
                await until(lambda: one.hub._expected and three.hub.link(one.peer))
                three.link_to(one).send(PleaseDial(two.peer, one.peer, (), "never"))
                three.link_to(middle).send(PleaseDial(two.peer, one.peer, (), "never"))
                three.link_to(middle).send(Grant(1))
                three.link_to(one).send(Grant(1))
                await until(lambda: middle.events.messages and one.events.messages)
                assert not asked.done()
                await two.hub.dial(one.address, one.peer)
            assert asked.result().path == "reversed"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("between", "address", "expected"),
    [
        ("8.8.8.8", "8.8.4.4:9876", True),
        ("8.8.8.8", "192.168.1.1:9876", False),
        ("8.8.8.8", "127.0.0.1:9876", False),
        ("192.168.1.9", "192.168.1.1:9876", True),
        ("192.168.1.9", "8.8.4.4:9876", True),
        ("relay ABC", "192.168.1.1:9876", False),
        ("192.168.1.9", "192.168.1.1:80", False),
        ("192.168.1.9", "127.0.0.1:9876", False),
        ("192.168.1.9", "169.254.169.254:9876", False),
        ("192.168.1.9", "[fe80::1]:9876", False),
        ("192.168.1.9", "[::1]:9876", False),
        ("192.168.1.9", "240.0.0.1:9876", False),
        ("127.0.0.1", "127.0.0.1:9876", True),
        ("127.0.0.1", "127.0.0.2:9876", False),
        ("127.0.0.1", "192.168.1.1:9876", True),
        ("100.64.0.9", "100.64.0.1:9876", True),
    ],
)
def test_nobody_out_there_has_private_addresses_dialled(between: str, address: str, expected: bool) -> None:
    class Between:
        relayed = False
        remote = Address(between, 1)

    assert Reversals._may_dial(Address.parse(address), Between()) is expected  # type: ignore[arg-type]


def test_invented_askers_have_nothing_scanned_and_learn_nothing() -> None:
    """The peer between may write any name over a wish: it gets few dials all the same, and no word of what came of them."""

    async def main() -> None:
        connected: list[object] = []
        server = await asyncio.start_server(
            lambda _, writer: (connected.append(writer), writer.close()), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        async with server, sides(tls_identities(2)) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            heard: list[PleaseDial] = []

            def listen(_: Link, message: Message) -> bool:
                if isinstance(message, PleaseDial):
                    heard.append(message)
                return True

            one.hub.reaching.heard = listen  # type: ignore[method-assign]
            for number in range(50):
                link.send(PleaseDial(two.peer, PeerId(number.to_bytes(32)), (Address("127.0.0.1", port),)))
            await until(lambda: len(heard) == 50)
            assert len(connected) <= limits.DIAL_BACKS_AT_ONCE_MAX
            opened = {each.refused for each in heard if "ago" not in each.refused and "already" not in each.refused}
            two.hub.reaching.reversals._heard_from = Turns(10.0)
            server.close()
            link.send(PleaseDial(two.peer, PeerId(b"x" * 32), (Address("127.0.0.1", port),)))
            await until(lambda: len(heard) == 51)
            assert {heard[-1].refused} == opened, "open and closed are the same"

    asyncio.run(main())


def test_one_refusal_of_each_wish_is_passed_back() -> None:
    async def main() -> None:
        async with around() as (one, middle, two):
            refusals: list[PleaseDial] = []

            def listen(_: Link, message: Message) -> bool:
                if isinstance(message, PleaseDial):
                    refusals.append(message)
                return isinstance(message, PleaseDial)

            one.hub.reaching.heard = listen  # type: ignore[method-assign]
            two.hub.reaching.heard = lambda link, message: True  # type: ignore[method-assign]
            back = two.link_to(middle)
            for _ in range(20):
                back.send(PleaseDial(two.peer, one.peer, (), "nobody asked"))
            one.link_to(middle).send(PleaseDial(two.peer, one.peer, (one.address,)))
            await until(lambda: middle.hub.reaching.reversals._open_wishes)
            for number in range(20):
                back.send(PleaseDial(two.peer, one.peer, (), f"no, {number}"))
            back.send(Grant(1))
            await until(lambda: middle.events.messages)
            middle.link_to(one).send(Grant(1))
            await until(lambda: one.events.messages)
            assert [each.refused for each in refusals] == ["no, 0"]

    asyncio.run(main())


def test_a_peer_does_not_dial_for_everybody_at_once() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            heard: list[PleaseDial] = []

            def listen(_: Link, message: Message) -> bool:
                if isinstance(message, PleaseDial):
                    heard.append(message)
                return True

            one.hub.reaching.heard = listen  # type: ignore[method-assign]
            wished = two.hub.reaching.reversals
            two.hub._transport.connect = _never  # type: ignore[method-assign]
            wished._heard_from = Turns(0.0)
            for number in range(12):
                link.send(PleaseDial(two.peer, PeerId(number.to_bytes(32)), (Address("10.0.0.7", 9_876),)))
            await until(lambda: len(heard) == 4)
            assert wished._running == 8
            assert "dials for others already" in heard[0].refused
            wished._dialled = Turns(0.0)

    asyncio.run(main())


async def _never(*_: object) -> None:
    await asyncio.Event().wait()
