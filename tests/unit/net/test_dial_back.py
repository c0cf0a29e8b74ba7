"""Dial-back: who is reached where, what is tried for whom and what not, and that no link is disturbed."""

from __future__ import annotations

import asyncio
import socket

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, LinkClosedError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.dial_back import DialBacks, Turns, may_try
from p2pcompute.net.memory import MemoryNetwork
from p2pcompute.wire.messages import Grant
from p2pcompute.wire.reaching import DialBack, DialedBack
from tests.unit.net.link_help import Side, fake_identities, sides, tls_identities, until
from tests.unit.net.relay_help import dial_via, relayed


def dial_backs(side: Side) -> DialBacks:
    return side.hub.reaching.dial_backs


@pytest.mark.parametrize(
    ("address", "seen", "expected"),
    [
        # Where the asker is seen, at any port.
        ("203.0.113.7:9876", "203.0.113.7", True),
        ("192.168.1.5:9876", "192.168.1.5", True),
        ("127.0.0.1:443", "127.0.0.1", True),
        ("[2001:db8::1]:9876", "2001:db8:0::1", True),
        ("[fe80::1]:9876", "fe80::1%eth0", True),
        # Public, at a port of ordinary programs.
        ("8.8.8.8:9876", "203.0.113.7", True),
        ("[2a00:1450::1]:9876", "192.168.1.5", True),
        ("8.8.8.8:25", "203.0.113.7", False),
        ("8.8.8.8:9876", "", True),
        # Of our own network, or of nobody's.
        ("192.168.1.1:9876", "203.0.113.7", False),
        ("192.168.1.1:9876", "192.168.1.5", False),
        ("127.0.0.1:9876", "203.0.113.7", False),
        ("10.0.0.1:9876", "", False),
        ("169.254.169.254:80", "203.0.113.7", False),
        ("100.64.0.1:9876", "203.0.113.7", False),
        ("[::1]:9876", "203.0.113.7", False),
        ("[fd00::1]:9876", "2a00:1450::1", False),
        ("[fe80::1]:9876", "2a00:1450::1", False),
        ("[::ffff:192.168.1.1]:9876", "203.0.113.7", False),
        ("224.0.0.1:9876", "203.0.113.7", False),
        ("0.0.0.0:9876", "203.0.113.7", False),
        ("255.255.255.255:9876", "203.0.113.7", False),
        # What stands for another address, which may be this machine's own.
        ("[::127.0.0.1]:9876", "203.0.113.7", False),
        ("[fec0::1]:9876", "203.0.113.7", False),
        ("[2002:7f00:1::]:9876", "203.0.113.7", False),
        ("[64:ff9b::7f00:1]:9876", "203.0.113.7", False),
        ("[2001::7f00:1]:9876", "203.0.113.7", False),
    ],
)
def test_which_addresses_are_dialled_for_others(address: str, seen: str, expected: bool) -> None:
    assert may_try(Address.parse(address), seen) is expected


def test_host_names_and_port_nought_are_never_dialled() -> None:
    assert not may_try(Address("localhost", 9876), "localhost")
    assert not may_try(Address("8.8.8.8", 0), "8.8.8.8")


def test_turns() -> None:
    turns = Turns(10.0)
    one, two = PeerId(b"1" * 32), PeerId(b"2" * 32)
    assert turns.take(one, 0.0)
    assert not turns.take(one, 9.9)
    assert turns.take(two, 9.9)
    assert turns.take(one, 10.0)
    for number in range(5_000):
        turns.take(PeerId(number.to_bytes(32)), 11.0)
    assert len(turns._next) <= 4_096


def test_several_turns_at_once_after_a_pause() -> None:
    turns, one = Turns(10.0, at_once=3), PeerId(b"1" * 32)
    taken = [now for now in range(100) if turns.take(one, float(now))]
    assert taken == [0, 1, 2, *range(10, 100, 10)]
    assert [turns.take(one, 300.0) for _ in range(4)] == [True, True, True, False]


def test_a_peer_that_can_be_dialled_learns_so_and_its_link_lives_on() -> None:
    async def main() -> None:
        async with sides(tls_identities(2)) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            await until(lambda: two.events.up)
            with socket.socket() as nobody:
                nobody.bind(("127.0.0.1", 0))
                closed = Address("127.0.0.1", nobody.getsockname()[1])
                result = await dial_backs(one).ask(link, [one.address, closed])
            assert result.reached == (one.address,)
            assert result.seen is not None
            assert result.seen.host == "127.0.0.1"
            assert result.refused == ""
            # No second link came of it, nothing was refused, and the first is as it was.
            await until(lambda: len(one.hub._open) == len(two.hub._open) == 1)
            assert one.events.up == [link]
            assert len(two.events.up) == 1
            assert not one.events.down + two.events.down
            assert not one.events.refusals + two.events.refusals
            assert not two.hub._probes
            link.send(Grant(1))
            await until(lambda: two.events.messages)

    asyncio.run(main())


def test_the_other_way_round_works_too() -> None:
    async def main() -> None:
        async with sides(tls_identities(2)) as (one, two):
            await one.hub.dial(two.address, two.peer)
            await until(lambda: two.events.up)
            result = await dial_backs(two).ask(two.link_to(one), [two.address])
            assert result.reached == (two.address,)
            # The dialler sees where it dialled.
            assert result.seen == two.address

    asyncio.run(main())


def test_somebody_else_at_the_address_does_not_count() -> None:
    async def main() -> None:
        async with sides(tls_identities(3)) as (one, two, three):
            link = await one.hub.dial(two.address, two.peer)
            result = await dial_backs(one).ask(link, [three.address, two.address])
            assert result.reached == ()
            await until(lambda: len(two.hub._open) == 1 and not three.hub._open)
            with pytest.raises(AdmissionError) as caught:
                await two.hub.probe(three.address, one.peer)
            assert caught.value.reason is AdmissionReason.WRONG_PEER

    asyncio.run(main())


def test_a_probe_makes_no_link_where_there_is_none() -> None:
    async def main() -> None:
        async with sides(tls_identities(2)) as (one, two):
            await two.hub.probe(one.address, one.peer)
            await until(lambda: not one.hub._open and not two.hub._open)
            assert not one.events.up + two.events.up
            assert not one.events.refusals
            assert not two.hub._probes

    asyncio.run(main())


def test_addresses_of_others_networks_are_not_tried() -> None:
    async def main() -> None:
        tried: list[Address] = []
        async with sides(fake_identities(3), network=MemoryNetwork()) as (one, two, three):
            link = await one.hub.dial(two.address, two.peer)
            probe = two.hub.probe

            async def watched(address: Address, expected: PeerId) -> None:
                tried.append(address)
                await probe(address, expected)

            two.hub.probe = watched  # type: ignore[method-assign]
            result = await dial_backs(one).ask(link, [three.address, Address("127.0.0.1", 22)])
            assert result.reached == ()
            assert "only public addresses" in result.refused
            assert tried == []

    asyncio.run(main())


def test_once_in_a_while_is_enough_and_few_run_at_a_time() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            assert (await dial_backs(one).ask(link, [one.address])).reached == (one.address,)
            again = await dial_backs(one).ask(link, [one.address])
            assert again.reached == ()
            assert "ask again later" in again.refused
            # How it is seen it may ask at any time, and that takes no turn.
            for _ in range(3):
                asked = await dial_backs(one).ask(link, [])
                assert (asked.reached, asked.seen, asked.refused) == ((), two.link_to(one).remote, "")
            dial_backs(two)._turns = Turns(0.0)
            dial_backs(two)._running = limits.DIAL_BACKS_AT_ONCE_MAX
            busy = await dial_backs(one).ask(link, [one.address])
            assert "dials for others already" in busy.refused
            dial_backs(two)._running = 0

    asyncio.run(main())


def test_what_was_not_asked_for_is_not_believed() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)

            def lie(told: object, message: object) -> bool:
                if isinstance(message, DialBack):
                    told.send(DialedBack(message.nonce + 7, (Address("8.8.8.8", 1),)))  # type: ignore[attr-defined]
                    told.send(DialedBack(message.nonce, (Address("8.8.8.8", 1), one.address)))  # type: ignore[attr-defined]
                return True

            two.hub.reaching.heard = lie  # type: ignore[method-assign, assignment]
            assert (await dial_backs(one).ask(link, [one.address])).reached == (one.address,)

    asyncio.run(main())


def test_an_asker_whose_link_goes_hears_of_it() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            two.hub.reaching.heard = lambda link, message: True  # type: ignore[method-assign]

            async def ask() -> None:
                with pytest.raises(LinkClosedError):
                    await dial_backs(one).ask(link, [one.address])

            async with asyncio.TaskGroup() as group:
                group.create_task(ask())
                await until(lambda: dial_backs(one)._asked)
                link.abort()
            assert not dial_backs(one)._asked

    asyncio.run(main())


def test_who_is_seen_through_a_relay_is_seen_nowhere() -> None:
    async def main() -> None:
        async with relayed(tls=False) as (one, middle, two):
            link, _ = await dial_via(one, middle, two)
            result = await dial_backs(one).ask(link, [one.address])
            assert (result.reached, result.seen) == ((), None)

    asyncio.run(main())
