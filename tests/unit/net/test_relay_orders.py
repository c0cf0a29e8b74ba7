"""A direct and a relayed connection between the same two peers, in every order: one direct link stays, and nothing that was said is lost.

The relayed connections here are ones of the memory network that both hubs are told run through a relay, so that each direction of each can be
moved one step at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

import pytest

from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.link import Link
from p2pcompute.net.link_life import RELAYED, Route
from p2pcompute.net.memory import MemoryNetwork, MemoryTransport
from p2pcompute.net.transport import Accept
from p2pcompute.wire.messages import Grant, Message
from tests.unit.net.link_help import Side, fake_identities, sides, until

VIA = PeerId(b"r" * 32)


class TwoWays(MemoryNetwork):
    """Both ends of a connection learn whether it is a relayed one."""

    joining_relayed = False

    def bind(self, host: str, ports: Iterator[int], accept: Accept, transport: MemoryTransport) -> int | None:
        def marked(remote: Address) -> Link | None:
            link = accept(remote)
            if link is not None and self.joining_relayed:
                link.route = Route(RELAYED, VIA)
            return link

        return super().bind(host, ports, marked, transport)

    def join(self, dialler: MemoryTransport, address: Address, link: Link) -> None:
        self.joining_relayed = link.relayed
        super().join(dialler, address, link)


def dial(here: Side, there: Side, relayed: bool) -> Coroutine[Any, Any, Link]:
    if not relayed:
        return here.hub.dial(there.address, there.peer)
    link = here.hub._dialling(there.peer, "relayed", Route(RELAYED, VIA))
    return here.hub._dialled(link, here.hub._transport.connect(there.address, link, "memory"), "relayed")


def step(carrier: Any) -> None:
    """Deliver what one direction of one connection has sent so far."""
    for _ in range(len(carrier._sent)):
        if carrier._timer is not None:
            carrier._timer.cancel()
        carrier._deliver()
        if carrier._timer is not None:
            carrier._timer.cancel()
            carrier._timer = None


class Talk:
    """Each side says a number as soon as a link is up, and again with every message that it hears: all must arrive."""

    def __init__(self, one: Side, two: Side) -> None:
        self.said: dict[str, list[int]] = {"one": [], "two": []}
        self.heard: dict[str, list[int]] = {"one": [], "two": []}
        for name, other, side in (("one", "two", one), ("two", "one", two)):
            side.events.on_up = self._sayer(name)
            side.events.on_message = self._hearer(name, other, side)

    def _sayer(self, name: str) -> Callable[[Link], None]:
        def say(link: Link) -> None:
            number = len(self.said[name])
            self.said[name].append(number)
            link.send(Grant(number))

        return say

    def _hearer(self, name: str, other: str, side: Side) -> Callable[[Link, Message], None]:
        def hear(link: Link, message: Message) -> None:
            assert isinstance(message, Grant)
            self.heard[other].append(message.slots)
            if len(self.said[name]) < 6:
                self._sayer(name)(side.hub.links[link.peer])

        return hear

    def complete(self) -> bool:
        return all(sorted(self.heard[name]) == self.said[name] for name in ("one", "two"))


async def run_order(dials: list[tuple[int, bool]], steps: Iterable[int], relayed_first: int | None) -> None:
    """`dials`: (which side, relayed?) at once; `steps`: which direction of which connection moves; `relayed_first`:
    who has dialled a relayed link that is up before."""
    network = TwoWays()
    async with sides(fake_identities(2), network=network) as both:
        one, two = both
        talk = Talk(one, two)
        if relayed_first is not None:
            await dial(both[relayed_first], both[1 - relayed_first], True)
            await until(lambda: one.events.up and two.events.up and talk.complete())
        before = len(network._carriers)
        network.hold(one.host, two.host)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(dial(both[side], both[1 - side], relayed)) for side, relayed in dials]
            await until(lambda: len(network._carriers) == before + 2 * len(dials))
            carriers = list(network._carriers)
            for number in steps:
                network._held.clear()
                step(carriers[number % len(carriers)])
                # What was answered is written in this turn of the loop, and held.
                network.hold(one.host, two.host)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            network.release(one.host, two.host)
            for carrier in carriers:
                carrier.deliver_soon()
        await until(
            lambda: len(one.events.open) == len(two.events.open) == 1 and len(one.hub._open) == len(two.hub._open) == 1,
            "one link on each side",
        )
        await until(talk.complete, "all that was said is heard")
        ours, theirs = one.link_to(two), two.link_to(one)
        assert ours.dialled != theirs.dialled
        assert not ours.relayed
        assert not theirs.relayed
        assert all(task.result() in both[side].events.up for task, (side, _) in zip(tasks, dials, strict=True))
        assert [error for _, error in one.events.down + two.events.down] == [None] * len(
            one.events.down + two.events.down
        )


ONE, TWO = 0, 1
SCENES = {
    "the lower id relayed, the higher direct": [(ONE, True), (TWO, False)],
    "the lower id direct, the higher relayed": [(ONE, False), (TWO, True)],
    "the lower id both": [(ONE, True), (ONE, False)],
    "the higher id both": [(TWO, True), (TWO, False)],
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_direct_link_wins_over_a_relayed_one_in_every_order(scene: str) -> None:
    for steps in itertools.product(range(4), repeat=4):
        asyncio.run(run_order(SCENES[scene], steps, None))


@pytest.mark.parametrize("first", [ONE, TWO])
def test_both_dial_directly_while_a_relayed_link_is_up_in_every_order(first: int) -> None:
    # The relayed link's two directions are the first carriers; they move as well.
    for steps in itertools.product(range(6), repeat=3):
        asyncio.run(run_order([(ONE, False), (TWO, False)], (*steps, 2, 3, 4, 5), first))


@pytest.mark.parametrize("first", [None, ONE, TWO])
def test_everything_at_once_in_many_orders(first: int | None) -> None:
    rng = random.Random(5 if first is None else first)
    dials = [(ONE, True), (ONE, False), (TWO, True), (TWO, False)]
    for _ in range(150):
        rng.shuffle(dials)
        # With a relayed link up nobody dials another one.
        wanted = [each for each in dials if first is None or not each[1]]
        steps = [rng.randrange(0, 10) for _ in range(rng.randrange(0, 14))]
        asyncio.run(run_order(wanted, steps, first))


@pytest.mark.parametrize("upgrader", [ONE, TWO])
def test_a_link_that_is_relayed_is_replaced_when_somebody_dials_directly(upgrader: int) -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=TwoWays()) as both:
            one, two = both
            relayed = await dial(one, two, True)
            await until(lambda: two.events.up)
            assert (relayed.path, two.link_to(one).path) == ("relayed", "relayed")
            direct = await dial(both[upgrader], both[1 - upgrader], False)
            assert direct.path == "memory"
            await until(lambda: len(one.events.down) == len(two.events.down) == 1)
            assert one.events.open == [one.link_to(two)]
            # And not the other way round.
            assert await dial(one, two, True) is one.link_to(two)
            await until(lambda: len(one.hub._open) == len(two.hub._open) == 1)
            assert len(one.events.up) == len(two.events.up) == 2

    asyncio.run(main())
