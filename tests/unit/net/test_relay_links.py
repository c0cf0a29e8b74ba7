"""Links through a relay over real TLS: they carry what others carry, the relay reads none of it, and lies are found out."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, LinkClosedError, P2PComputeError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.net.link import LinkSettings
from p2pcompute.net.relay_book import RelaySettings
from p2pcompute.net.relay_pipe import ClearPipes
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.messages import Grant, Message
from p2pcompute.wire.reaching import CircuitData, CircuitOpen
from tests.unit.net.link_help import Dice, TlsIdentity, until
from tests.unit.net.relay_help import dial_via, meddle, overhear, relayed, serve, server, want

SECRET = b"the plain text that nobody between may read: " * 50


async def raised(work: object) -> P2PComputeError | None:
    try:
        await work  # type: ignore[misc]
    except P2PComputeError as error:
        return error
    return None


def test_a_relayed_link_says_what_it_is_and_carries_messages_both_ways() -> None:
    async def main() -> None:
        async with relayed() as (one, middle, two):
            link, back = await dial_via(one, middle, two)
            assert (link.path, link.carrier, link.relayed, link.dialled) == ("relayed", "relay", True, True)
            assert (back.path, back.carrier, back.relayed, back.dialled) == ("relayed", "relay", True, False)
            assert link.route is not None
            assert link.route.via == middle.peer
            assert short_peer_id(middle.peer) in str(link.remote)
            assert (link.peer, back.peer) == (two.peer, one.peer)
            # Who is there was proven inside the circuit, as on any other link.
            assert link.leaf() == two.identity.membership.leaf
            assert back.leaf() == one.identity.membership.leaf
            assert back.admission.roles == link.admission.roles
            for slots in range(200):
                link.send(Grant(slots))
                back.send(Grant(slots))
            await until(lambda: len(one.events.messages) == len(two.events.messages) == 200)
            assert [message for _, message in two.events.messages] == [Grant(slots) for slots in range(200)]
            assert await one.hub.dial_via(middle.peer, two.peer) is link
            await link.close("leaving", "enough")
            await until(lambda: two.events.down and server(middle).circuits == 0)
            assert [error for _, error in one.events.down + two.events.down] == [None, None]

    asyncio.run(main())


def test_eight_mebibytes_each_way_arrive_whole_while_control_goes_on() -> None:
    async def main() -> None:
        size = 8 << 20
        contents = [random.Random(seed).randbytes(size) for seed in (1, 2)]
        async with relayed() as (one, middle, two):
            link, back = await dial_via(one, middle, two)
            serve(one, contents[0])
            serve(two, contents[1])
            async with asyncio.TaskGroup() as group:
                theirs = group.create_task(link.request_stream(want, size))
                ours = group.create_task(back.request_stream(want, size))
                pings = 0
                while not (theirs.done() and ours.done()):
                    for each in (link, one.link_to(middle)):
                        each.ping()
                        await until(lambda each=each: not each._pings, wait_s=20)
                    pings += 1
            assert theirs.result() == contents[1]
            assert ours.result() == contents[0]
            assert pings > 3
            meters = server(middle).meters
            assert set(meters) == {one.peer, two.peer}
            for peer, other in ((one.peer, two.peer), (two.peer, one.peer)):
                assert size < meters[peer].sent_bytes < size * 1.05
                assert meters[peer].sent_bytes == meters[other].received_bytes
                assert meters[peer].circuits == 1

    asyncio.run(main())


@pytest.mark.parametrize("private", [True, False])
def test_the_relay_sees_only_ciphertext(private: bool) -> None:
    """And the test would notice: without TLS inside it finds what it looks for."""

    async def main() -> None:
        async with relayed() as (one, middle, two):
            if not private:
                for side in (one, two):
                    side.hub.reaching.ends._pipes = ClearPipes(side.identity.membership.leaf)
            heard = overhear(middle)
            link, back = await dial_via(one, middle, two)
            serve(two, SECRET)
            assert await link.request_stream(want, len(SECRET)) == SECRET
            back.send(Grant(1))
            await until(lambda: one.events.messages)
            passed = b"".join(heard)
            assert len(passed) > len(SECRET)
            secrets = (
                SECRET[:100],
                two.identity.membership.leaf,
                one.identity.membership.chain[0],
                one.identity.instance,
            )
            assert [secret in passed for secret in secrets] == [not private] * len(secrets)

    asyncio.run(main())


def test_the_rate_of_a_circuit_holds_and_its_neighbours_do_not_suffer() -> None:
    async def main() -> None:
        rate, burst, size = 512 * 1024, 64 * 1024, 768 * 1024
        slow = RelaySettings(bytes_per_second=rate, burst_bytes=burst)
        async with relayed(relay=slow) as (one, middle, two):
            link, _ = await dial_via(one, middle, two)
            serve(two, bytes(size))
            started = time.monotonic()
            waits_s = []
            async with asyncio.TaskGroup() as group:
                fetch = group.create_task(link.request_stream(want, size))
                while not fetch.done():
                    direct = one.link_to(middle)
                    sent = time.monotonic()
                    direct.ping()
                    await until(lambda direct=direct: not direct._pings)
                    waits_s.append(time.monotonic() - sent)
                    assert server(middle).held_bytes <= 2 * limits.CIRCUIT_WINDOW_BYTES
            taken_s = time.monotonic() - started
            assert (size - burst) / rate * 0.98 <= taken_s < 4 * size / rate
            # Behind a full window a ping would wait for half a second.
            assert sorted(waits_s)[len(waits_s) // 2] < limits.CIRCUIT_WINDOW_BYTES / rate / 2

    asyncio.run(main())


def test_the_relay_dies_in_the_middle() -> None:
    async def main() -> None:
        async with relayed(relay=RelaySettings(bytes_per_second=1 << 20)) as (one, middle, two):
            link, _ = await dial_via(one, middle, two)
            serve(two, bytes(4 << 20))
            async with asyncio.TaskGroup() as group:
                fetch = group.create_task(raised(link.request_stream(want, 4 << 20)))
                await until(lambda: link.bytes_in > 100_000)
                for each in list(middle.hub._open):
                    each.abort()
            assert isinstance(fetch.result(), LinkClosedError)
            await until(lambda: len(one.events.down) == len(two.events.down) == 2)
            for side in (one, two):
                (lost,) = [error for each, error in side.events.down if each.relayed]
                assert isinstance(lost, LinkClosedError)
                assert f"the relay {short_peer_id(middle.peer)} between is gone" in str(lost)
                assert not side.hub.reaching.circuits._tables

    asyncio.run(main())


def test_the_relay_stops_in_order_and_so_do_the_links_through_it() -> None:
    async def main() -> None:
        async with relayed() as (one, middle, two):
            await dial_via(one, middle, two)
            server(middle).serve(False)
            await until(lambda: one.events.down and two.events.down)
            assert "the relay stops serving" in str(one.events.down[0][1])
            assert server(middle).circuits == 0
            assert server(middle).reserved == ()
            assert isinstance(await raised(one.hub.dial_via(middle.peer, two.peer)), LinkClosedError)

    asyncio.run(main())


# --- a relay that lies ------------------------------------------------------------------------------------------------


def _flipped(from_byte: int) -> Callable[[CircuitData], CircuitData]:
    seen = 0

    def flip(message: CircuitData) -> CircuitData:
        nonlocal seen
        seen += len(message.data)
        if seen < from_byte:
            return message
        middle = len(message.data) // 2
        return CircuitData(
            message.circuit, message.data[:middle] + bytes([message.data[middle] ^ 1]) + message.data[middle + 1 :]
        )

    return flip


@pytest.mark.parametrize("towards", [0, 2])
def test_a_flipped_bit_in_the_handshake_is_refused(towards: int) -> None:
    async def main() -> None:
        async with relayed() as sides_:
            one, middle, two = sides_
            meddle(middle, sides_[towards], _flipped(0))
            error = await raised(one.hub.dial_via(middle.peer, two.peer))
            assert isinstance(error, LinkClosedError | AdmissionError)
            await until(lambda: server(middle).circuits == 0 and not two.hub._half_open)
            assert [link.relayed for link in one.events.up + two.events.up] == [False, False]
            # Nothing else suffers.
            assert not one.link_to(middle).closed
            assert not two.link_to(middle).closed

    asyncio.run(main())


def test_a_flipped_bit_later_ends_the_link_in_words_and_nothing_wrong_is_believed() -> None:
    async def main() -> None:
        async with relayed() as (one, middle, two):
            link, _ = await dial_via(one, middle, two)
            meddle(middle, one, _flipped(20_000))
            serve(two, SECRET * 40)
            error = await raised(link.request_stream(want, len(SECRET) * 40))
            assert isinstance(error, LinkClosedError)
            await until(lambda: one.events.down and two.events.down)
            assert "changed on its way" in str(one.events.down[0][1])
            assert not one.events.messages

    asyncio.run(main())


def test_a_relay_that_joins_the_wrong_two_is_found_out() -> None:
    async def main() -> None:
        async with relayed(more=1) as (one, middle, two, three):
            await three.hub.reaching.ends.reserve(middle.peer)
            reaching = middle.hub.reaching
            hear = reaching.heard

            def misled(link: object, message: Message) -> bool:
                if isinstance(message, CircuitOpen):
                    message = CircuitOpen(message.circuit, three.peer, message.grant_bytes)
                return hear(link, message)  # type: ignore[arg-type]

            reaching.heard = misled  # type: ignore[method-assign, assignment]
            error = await raised(one.hub.dial_via(middle.peer, two.peer))
            assert isinstance(error, AdmissionError)
            assert error.reason is AdmissionReason.WRONG_PEER
            await until(lambda: not three.hub._half_open)
            assert not [link for link in three.events.up if link.relayed]

    asyncio.run(main())


def test_a_relay_that_names_another_source_is_found_out() -> None:
    async def main() -> None:
        async with relayed(more=1) as (one, middle, two, three):
            offered = two.hub.offered
            two.hub.offered = lambda source, route: offered(three.peer, route)  # type: ignore[method-assign]
            error = await raised(one.hub.dial_via(middle.peer, two.peer))
            assert isinstance(error, AdmissionError)
            assert error.reason is AdmissionReason.WRONG_PEER
            await until(lambda: two.events.refusals)
            assert not [link for link in two.events.up if link.relayed]

    asyncio.run(main())


def test_a_revoked_member_loses_its_circuits_and_gets_no_new_ones() -> None:
    async def main() -> None:
        async with relayed() as (one, middle, two):
            await dial_via(one, middle, two)
            # The relay has heard that the owner revoked the asker.
            await middle.link_to(one).close(AdmissionReason.REVOKED.value, "the owner revoked it")
            await until(lambda: one.events.down and [link for link, _ in two.events.down if link.relayed])
            assert server(middle).circuits == 0
            assert isinstance(await raised(one.hub.dial_via(middle.peer, two.peer)), LinkClosedError)
            assert not two.link_to(middle).closed
            assert server(middle).reserved == (two.peer,)

    asyncio.run(main())


def test_a_target_that_does_not_admit_the_asker_says_so_through_the_relay() -> None:
    async def main() -> None:
        async with relayed() as (one, middle, two):
            admit = two.identity.admit

            def picky(leaf: bytes, hello: object, expected: PeerId | None) -> object:
                if leaf == one.identity.membership.leaf:
                    raise AdmissionError(AdmissionReason.REVOKED, "the owner revoked it")
                return admit(leaf, hello, expected)

            two.identity.admit = picky
            error = await raised(one.hub.dial_via(middle.peer, two.peer))
            assert isinstance(error, AdmissionError)
            assert error.reason is AdmissionReason.REVOKED
            await until(lambda: two.events.refusals and server(middle).circuits == 0)

    asyncio.run(main())


def test_somebody_without_a_valid_certificate_inside_the_circuit_is_refused_by_tls() -> None:
    """A member as far as the relay knows, whose inner handshake shows another network's certificate."""

    async def main() -> None:
        async with relayed() as (one, middle, two):
            stranger = TlsIdentity(70, Authority.create("elsewhere", now_wall=time.time(), entropy=Dice(5)))
            one.hub.reaching.ends._pipes._identity = stranger  # type: ignore[attr-defined]
            error = await raised(one.hub.dial_via(middle.peer, two.peer))
            assert isinstance(error, AdmissionError)
            assert error.reason is AdmissionReason.OTHER_NETWORK
            await until(lambda: not two.hub._half_open and server(middle).circuits == 0)
            assert not [link for link in two.events.up if link.relayed]

    asyncio.run(main())


def test_a_direct_link_replaces_the_relayed_one_while_messages_flow() -> None:
    async def main() -> None:
        async with relayed() as (one, middle, two):
            link, _ = await dial_via(one, middle, two)
            sent = 0
            dialling = True

            async def talk() -> None:
                nonlocal sent
                while dialling or sent < 500:
                    one.hub.links[two.peer].send(Grant(sent))
                    sent += 1
                    if sent % 5 == 0:
                        await asyncio.sleep(0)

            async with asyncio.TaskGroup() as group:
                group.create_task(talk())
                direct = await two.hub.dial(one.address, one.peer)
                dialling = False
            assert direct.path == "local"
            await until(lambda: len(two.events.messages) == sent)
            assert sorted(message.slots for _, message in two.events.messages) == list(range(sent))  # type: ignore[attr-defined]
            await until(lambda: link.gone.is_set() and server(middle).circuits == 0)
            assert [error for _, error in one.events.down + two.events.down] == [None, None]
            # The direct one breaks: the relay is there at once.
            direct.abort()
            await until(lambda: one.hub.link(two.peer) is None and two.hub.link(one.peer) is None)
            again, _ = await dial_via(one, middle, two)
            assert again.relayed

    asyncio.run(main())


def test_an_inner_handshake_that_stalls_is_given_up_on_both_sides() -> None:
    async def main() -> None:
        settings = LinkSettings(handshake_timeout_s=0.4)
        async with relayed(settings=settings) as (one, middle, two):
            link = middle.link_to(two)
            link.send_bulk = lambda message: None  # type: ignore[method-assign]
            error = await raised(one.hub.dial_via(middle.peer, two.peer))
            assert isinstance(error, LinkClosedError)
            await until(lambda: not two.hub._half_open and not two.hub.reaching.circuits.count(two.link_to(middle)))
            await until(lambda: server(middle).circuits == 0)
            assert not [each for each in one.hub._open if each.relayed]

    asyncio.run(main())


def test_everything_stops_in_the_middle_of_a_relayed_handshake() -> None:
    async def main() -> None:
        async with relayed() as (one, middle, two):
            async with asyncio.TaskGroup() as group:
                dial = group.create_task(raised(one.hub.dial_via(middle.peer, two.peer)))
                await until(lambda: two.hub._half_open or dial.done())
                await two.hub.stop()
            assert not two.hub.links

    asyncio.run(main())
