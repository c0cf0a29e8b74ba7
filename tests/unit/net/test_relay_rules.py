"""What a relay gives to whom, what it refuses and in which words, and what nobody can make it do. Over the memory network."""

from __future__ import annotations

import asyncio
import random
import sys
from dataclasses import replace

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import (
    AdmissionError,
    AdmissionReason,
    BusyError,
    LinkClosedError,
    P2PComputeError,
    ProtocolError,
)
from p2pcompute.model.ids import PeerId
from p2pcompute.net.link import Link, LinkSettings
from p2pcompute.net.memory import MemoryNetwork
from p2pcompute.net.relay_book import RelaySettings
from p2pcompute.wire.codec import Schema
from p2pcompute.wire.messages import Goodbye, Grant, Message
from p2pcompute.wire.reaching import (
    CircuitClosed,
    CircuitCredit,
    CircuitData,
    CircuitOffered,
    CircuitOpen,
    DialBack,
    DialedBack,
    PleaseDial,
    RelayReserve,
    RelayReserved,
)
from tests.support.samples import sample_of
from tests.unit.net.link_help import FakeAdmission, FakeIdentity, Side, fake_identities, sides, until
from tests.unit.net.relay_help import FAST, dial_via, relayed, serve, server, want

WINDOW = limits.CIRCUIT_WINDOW_BYTES


class Probe:
    """A leg in the hands of a test: says what it likes, keeps what it hears."""

    def __init__(self, side: Side, link: Link) -> None:
        self.link = link
        self.number = side.hub.reaching.circuits.open(link, self)
        self.data: list[bytes] = []
        self.grants = 0
        self.ended: list[tuple[str, str]] = []

    def received(self, data: bytes) -> None:
        self.data.append(data)

    def granted(self, grant_bytes: int) -> None:
        self.grants += grant_bytes

    def closed(self, reason: str, text: str) -> None:
        self.ended.append((reason, text))

    def lost(self, error: P2PComputeError) -> None:
        self.ended.append(("lost", str(error)))


def reached(side: Side) -> list[Link]:
    return [link for link in side.events.open if link.relayed]


# --- reservations -----------------------------------------------------------------------------------------------------


def test_a_reservation_says_what_it_gives_and_is_renewed_and_given_back() -> None:
    async def main() -> None:
        async with relayed(tls=False) as (one, middle, two):
            first = await two.hub.reaching.ends.reserve(middle.peer)
            assert (first.relay, first.circuits_max) == (middle.peer, limits.RELAY_CIRCUITS_PER_TARGET_MAX)
            assert first.bytes_per_second == FAST.bytes_per_second
            assert 3_500 < first.until - two.hub._clock.monotonic() <= 3_600
            assert server(middle).reserved == (two.peer,)
            two.hub.reaching.ends.release(middle.peer)
            await until(lambda: server(middle).reserved == ())
            with pytest.raises(LinkClosedError, match="has no reservation here"):
                await one.hub.dial_via(middle.peer, two.peer)

    asyncio.run(main())


def test_the_33rd_reservation_is_refused_in_words() -> None:
    async def main() -> None:
        async with relayed(tls=False, more=31, reserve=False) as made:
            middle = made[1]
            others = [side for side in made if side is not middle]
            assert len(others) == 33
            for side in others[:32]:
                await side.hub.reaching.ends.reserve(middle.peer)
            with pytest.raises(BusyError, match="keeps 32 peers reachable already"):
                await others[32].hub.reaching.ends.reserve(middle.peer)
            await others[0].hub.reaching.ends.reserve(middle.peer)
            # One of them leaves: there is room.
            await others[5].hub.stop()
            await until(lambda: len(server(middle).reserved) == 31)
            await others[32].hub.reaching.ends.reserve(middle.peer)

    asyncio.run(main())


def test_ids_minted_from_one_invitation_leave_room_for_others() -> None:
    async def main() -> None:
        relay = replace(FAST, reservations_max=4, circuits_max=8, circuits_per_asker_max=2)
        async with relayed(tls=False, more=6, relay=relay) as made:
            middle, two, evil, honest = made[1], made[2], made[3:8], made[8]
            for each in evil:
                middle.link_to(each)._admission = FakeAdmission(each.peer, invitation=b"one token")
            # Of four reservations three, with the honest one that there is already.
            results = [await _raised(each.hub.reaching.ends.reserve(middle.peer)) for each in evil]
            assert [result is None for result in results] == [True] * 3 + [False] * 2
            legs = [Probe(each, each.link_to(middle)) for each in evil for _ in range(2)]
            for leg in legs:
                leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: all(leg.ended or leg.grants for leg in legs))
            assert sum(bool(leg.grants) for leg in legs) == 6
            assert {leg.ended[0][1] for leg in legs if leg.ended} == {
                "peers of your invitation have 6 circuits here already: try another relay"
            }
            await dial_via(honest, middle, two)

    asyncio.run(main())


def test_who_is_no_relay_says_so() -> None:
    async def main() -> None:
        async with relayed(tls=False, reserve=False) as (one, middle, two):
            with pytest.raises(BusyError, match="is no relay for this peer: this peer is no relay"):
                await middle.hub.reaching.ends.reserve(two.peer)
            with pytest.raises(LinkClosedError, match="there is no link"):
                await one.hub.reaching.ends.reserve(PeerId(b"n" * 32))
            with pytest.raises(LinkClosedError, match="there is no link"):
                await one.hub.dial_via(PeerId(b"n" * 32), two.peer)
            with pytest.raises(AdmissionError) as caught:
                await one.hub.dial_via(middle.peer, one.peer)
            assert caught.value.reason is AdmissionReason.SELF
            assert not [link for link in one.hub._open if link.relayed]

    asyncio.run(main())


def test_a_peer_of_the_first_protocol_is_not_asked() -> None:
    async def main() -> None:
        old = FakeIdentity(PeerId(b"\x02" * 32), newest=1)
        new = fake_identities(3)[0]
        async with sides([new, old], network=MemoryNetwork()) as (one, two):
            await one.hub.dial(two.address, two.peer)
            with pytest.raises(LinkClosedError, match="older protocol"):
                await one.hub.reaching.ends.reserve(two.peer)

    asyncio.run(main())


def test_a_relay_that_says_nothing_is_given_up_and_one_that_goes_is_heard_of() -> None:
    async def main() -> None:
        async with relayed(tls=False, reserve=False) as (_, middle, two):
            middle.hub.reaching.heard = lambda link, message: True  # type: ignore[method-assign]
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(_raised(two.hub.reaching.ends.reserve(middle.peer)))
                await until(lambda: two.hub.reaching.ends._asked)
                with pytest.raises(BusyError, match="being asked"):
                    await two.hub.reaching.ends.reserve(middle.peer)
                two.link_to(middle).abort()
            assert isinstance(asked.result(), LinkClosedError)
            assert not two.hub.reaching.ends._asked

    asyncio.run(main())


async def _raised(work: object) -> P2PComputeError | None:
    try:
        await work  # type: ignore[misc]
    except P2PComputeError as error:
        return error
    return None


# --- circuits ---------------------------------------------------------------------------------------------------------


def test_a_target_without_a_reservation_cannot_be_reached() -> None:
    async def main() -> None:
        async with relayed(tls=False, more=1) as (one, middle, two, three):
            with pytest.raises(LinkClosedError, match="has no reservation here: ask a relay that its record names"):
                await one.hub.dial_via(middle.peer, three.peer)
            with pytest.raises(LinkClosedError, match="is not linked to this relay"):
                await one.hub.dial_via(middle.peer, PeerId(b"n" * 32))
            # A reservation without a link is worth nothing, and ends with the link.
            await two.hub.stop()
            await until(lambda: server(middle).reserved == ())
            with pytest.raises(LinkClosedError, match="is not linked to this relay"):
                await one.hub.dial_via(middle.peer, two.peer)
            assert server(middle).circuits == 0

    asyncio.run(main())


def test_one_asker_cannot_take_all_circuits_and_one_target_not_either() -> None:
    async def main() -> None:
        relay = replace(FAST, circuits_per_asker_max=2, circuits_per_target_max=3, opens_per_second=1e9)
        async with relayed(tls=False, more=2, relay=relay) as (one, middle, two, three, four):
            legs = [Probe(one, one.link_to(middle)) for _ in range(3)]
            for leg in legs:
                leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: legs[2].ended)
            assert legs[2].ended == [("busy", "you have 2 circuits here already: close one first")]
            with pytest.raises(BusyError, match="you have 2 circuits here already"):
                await one.hub.dial_via(middle.peer, two.peer)
            await dial_via(three, middle, two)
            with pytest.raises(BusyError, match="has 3 circuits here already: try another relay"):
                await four.hub.dial_via(middle.peer, two.peer)
            legs[0].link.send(CircuitClosed(legs[0].number, "closed"))
            await until(lambda: server(middle).circuits == 2)
            await dial_via(four, middle, two)

    asyncio.run(main())


def test_no_relay_over_a_relay() -> None:
    async def main() -> None:
        async with relayed(tls=False, more=1) as (one, middle, two, three):
            await dial_via(one, middle, two)
            server(two).serve(True)
            with pytest.raises(LinkClosedError, match="is itself reached through a relay"):
                await one.hub.dial_via(two.peer, three.peer)
            # Said without asking whether one may.
            leg = Probe(one, one.link_to(two))
            leg.link.send(CircuitOpen(leg.number, middle.peer, WINDOW))
            leg.link.send(RelayReserve())
            await until(lambda: leg.ended)
            assert "without a relay between" in leg.ended[0][1]
            assert server(two).reserved == ()

    asyncio.run(main())


def test_a_target_that_never_answers_is_given_up() -> None:
    async def main() -> None:
        settings = LinkSettings(heartbeat_interval_s=0.2, silence_max_s=5.0)
        relay = replace(FAST, answer_timeout_s=0.3)
        async with relayed(tls=False, relay=relay, settings=settings) as (one, middle, two):
            two.hub.reaching.heard = lambda link, message: True  # type: ignore[method-assign]
            with pytest.raises(LinkClosedError, match="did not answer"):
                await one.hub.dial_via(middle.peer, two.peer)
            assert server(middle).circuits == 0

    asyncio.run(main())


def test_a_circuit_on_which_nothing_moves_is_closed() -> None:
    async def main() -> None:
        settings = LinkSettings(heartbeat_interval_s=0.2, silence_max_s=30.0)
        async with relayed(tls=False, relay=replace(FAST, silence_max_s=0.4), settings=settings) as (one, middle, two):
            idle = Probe(one, one.link_to(middle))
            idle.link.send(CircuitOpen(idle.number, two.peer, WINDOW))
            lively, _ = await dial_via(one, middle, two)
            await until(lambda: idle.ended)
            assert "nothing moved" in idle.ended[0][1]
            # Heartbeats keep a link's circuit alive.
            assert not lively.closed
            assert server(middle).circuits == 1

    asyncio.run(main())


def test_the_gate_and_the_limit_of_half_open_connections_hold_for_circuits_too() -> None:
    async def main() -> None:
        settings = LinkSettings(half_open_per_relay=2)
        async with relayed(tls=False, settings=settings) as (one, middle, two):
            legs = [Probe(one, one.link_to(middle)) for _ in range(3)]
            for leg in legs:
                leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: legs[2].ended and legs[0].grants and legs[1].grants)
            assert "takes no connections now" in legs[2].ended[0][1]
            assert len(two.hub._half_open_relayed) == 2

    asyncio.run(main())

    async def flood() -> None:
        settings = LinkSettings(handshakes_per_second=2, private_factor=50)
        async with relayed(tls=False, settings=settings) as (one, middle, two):
            legs = [Probe(one, one.link_to(middle)) for _ in range(5)]
            for leg in legs:
                leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: all(leg.ended or leg.grants for leg in legs))
            assert len([leg for leg in legs if leg.grants]) == 2

    asyncio.run(flood())


def test_circuits_are_offered_only_by_relays_that_keep_us_reachable() -> None:
    async def main() -> None:
        async with relayed(tls=False, more=1) as (one, middle, two, three):
            # A linked member without a reservation of ours, and then the relay, invent askers as fast as they may.
            for liar, taken in ((one, 0), (middle, limits.HALF_OPEN_PER_RELAY_MAX)):
                link = await liar.hub.dial(two.address, two.peer)
                legs = [Probe(liar, link) for _ in range(3 * limits.HALF_OPEN_MAX)]
                for number, leg in enumerate(legs):
                    link.send(CircuitOffered(leg.number, bytes([number % 256]) * 32, WINDOW))
                await until(lambda legs=legs, taken=taken: sum(not leg.ended for leg in legs) <= taken)
                assert all(leg.grants or leg.ended for leg in legs)
                if liar is one:
                    assert legs[0].ended[0][0] == "refused"
                    assert "has no reservation at this relay" in legs[0].ended[0][1]
                assert len(two.hub._half_open_relayed) <= taken
                assert len(two.hub._half_open) == 0
            await three.hub.dial(two.address, two.peer)

    asyncio.run(main())


def test_a_circuit_that_is_offered_right_behind_the_promise_is_taken() -> None:
    async def main() -> None:
        async with relayed(tls=False, reserve=False) as (_, middle, two):
            link = middle.link_to(two)
            leg = Probe(middle, link)

            def promise(on: Link, message: Message) -> bool:
                if isinstance(message, RelayReserve):
                    link.send(RelayReserved(60.0, 1, 1))
                    link.send(CircuitOffered(leg.number, b"s" * 32, WINDOW))
                elif isinstance(message, (CircuitCredit, CircuitClosed)):
                    middle.hub.reaching.circuits.heard(on, message)
                return True

            middle.hub.reaching.heard = promise  # type: ignore[method-assign]
            await two.hub.reaching.ends.reserve(middle.peer)
            await until(lambda: leg.grants or leg.ended)
            assert leg.grants

    asyncio.run(main())


# --- flow -------------------------------------------------------------------------------------------------------------


def test_a_slow_target_holds_the_asker_back_and_the_relay_holds_one_window() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with relayed(tls=False, network=network) as (one, middle, two):
            link, back = await dial_via(one, middle, two)
            serve(one, bytes(6 << 20))
            network.hold(middle.host, two.host)
            # What the target asked for before it fell silent, in its name.
            link.serve_stream(2 if back.dialled else 1, bytes(6 << 20))
            carrier = link._carrier
            assert carrier is not None
            # Grants go back in quarters: at most one of them is outstanding.
            await until(lambda: server(middle).held_bytes > WINDOW * 3 // 4, "the relay holds a window")
            server(middle).check_invariants()
            outer = middle.link_to(two)._carrier
            assert outer is not None
            in_flight = outer.buffered_bytes()
            assert in_flight <= limits.BULK_BUFFER_BYTES + WINDOW
            # The asker's link has stopped handing bulk to the circuit, and still says what is small.
            held = carrier.buffered_bytes()
            assert held <= limits.RELAYED_BULK_BUFFER_BYTES + limits.CHUNK_BYTES + 1024
            assert not link.has_room()
            assert one.link_to(middle).has_room()
            at_relay = server(middle).held_bytes
            for _ in range(50):
                await asyncio.sleep(0)
            assert (carrier.buffered_bytes(), server(middle).held_bytes) == (held, at_relay)
            # What is bulk to nobody who asked for it ends the link when it gets there; that it gets there is the point.
            network.release(middle.host, two.host)
            await until(lambda: server(middle).held_bytes == 0)

    asyncio.run(main())


def take_all(side: Side, grant_bytes: int) -> list[bytes]:
    """Have `side` accept every circuit, grant so much once, and keep what comes, in order."""
    came: list[bytes] = []

    def offered(link: Link, message: Message) -> bool:
        if isinstance(message, CircuitOffered):
            side.hub.reaching.circuits.check_new(link, message.circuit)
            link.send(CircuitCredit(message.circuit, grant_bytes))
        elif isinstance(message, CircuitData):
            came.append(message.data)
        return True

    side.hub.reaching.heard = offered  # type: ignore[method-assign]
    return came


def test_relayed_bytes_leave_only_when_the_link_has_room_however_much_the_target_grants() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        piece = bytes(limits.CIRCUIT_DATA_BYTES_MAX)
        async with relayed(tls=False, network=network) as (one, middle, two):
            came = take_all(two, 8 << 20)
            legs = [Probe(one, one.link_to(middle)) for _ in range(6)]
            for leg in legs:
                leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: all(leg.grants for leg in legs))
            network.hold(middle.host, two.host)
            for leg in legs:
                for _ in range(WINDOW // len(piece)):
                    leg.link.send(CircuitData(leg.number, piece))
            total = len(legs) * WINDOW
            outer = middle.link_to(two)._carrier
            assert outer is not None
            await until(lambda: server(middle).held_bytes + outer.buffered_bytes() > total)
            # A ping to the target waits behind this and no more.
            assert outer.buffered_bytes() < limits.BULK_BUFFER_BYTES + 2 * len(piece)
            assert server(middle).held_bytes > total - limits.BULK_BUFFER_BYTES - 2 * len(piece)
            network.release(middle.host, two.host)
            await until(lambda: sum(len(each) for each in came) == total, "all of it goes on")

    asyncio.run(main())


def test_a_window_in_crumbs_costs_the_relay_what_a_window_costs() -> None:
    async def main() -> None:
        crumbs = 20_000
        async with relayed(tls=False) as (one, middle, two):
            came = take_all(two, 1)
            leg = Probe(one, one.link_to(middle))
            leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: leg.grants)
            for number in range(crumbs):
                leg.link.send(CircuitData(leg.number, bytes([number % 251])))
            await until(lambda: server(middle).held_bytes == crumbs - 1)
            onward = next(iter(server(middle)._circuits)).target
            assert sys.getsizeof(onward._queue) < 2 * crumbs
            # All of it may go at once now: in the largest messages there are, not in 20,000.
            two.link_to(middle).send(CircuitCredit(onward.number, WINDOW))
            await until(lambda: sum(len(each) for each in came) == crumbs)
            assert [len(each) for each in came] == [1, crumbs - 1]
            assert b"".join(came) == bytes(number % 251 for number in range(crumbs))

    asyncio.run(main())


def test_crumbs_count_at_the_rate_of_a_circuit_as_what_they_cost() -> None:
    async def main() -> None:
        least = limits.CIRCUIT_DATA_COUNTED_BYTES_MIN
        relay = replace(FAST, bytes_per_second=50 * least, burst_bytes=10 * least)
        async with relayed(tls=False, relay=relay) as (one, middle, two):
            came = take_all(two, WINDOW)
            leg = Probe(one, one.link_to(middle))
            leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: leg.grants)
            for _ in range(200):
                leg.link.send(CircuitData(leg.number, b"x"))
            await until(lambda: sum(len(each) for each in came) == 200)
            # Ten at once, then what has gathered within a fiftieth of a second.
            assert [len(each) for each in came[:10]] == [1] * 10
            assert len(came) < 20

    asyncio.run(main())


def test_what_was_sent_before_an_end_that_did_not_wait_arrives_too() -> None:
    async def main() -> None:
        relay = RelaySettings(bytes_per_second=256 * 1024, burst_bytes=16 * 1024)
        async with relayed(tls=False, relay=relay) as (one, middle, two):
            came = take_all(two, WINDOW)
            leg = Probe(one, one.link_to(middle))
            leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: leg.grants)
            for number in range(8):
                leg.link.send(CircuitData(leg.number, bytes([number]) * 10_000))
            leg.link.send(CircuitClosed(leg.number, "closed"))
            await until(lambda: server(middle).circuits == 0)
            await until(lambda: b"".join(came) == b"".join(bytes([number]) * 10_000 for number in range(8)))

    asyncio.run(main())


def test_what_a_revoked_peer_still_sends_goes_nowhere() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with relayed(tls=False, network=network) as (one, middle, two):
            came = take_all(two, WINDOW)
            leg = Probe(one, one.link_to(middle))
            leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: leg.grants)
            leg.link.send(CircuitData(leg.number, b"before"))
            await until(lambda: came == [b"before"])
            network.hold(one.host, middle.host)
            leg.link.send(CircuitData(leg.number, b"on its way while the relay hears of the revocation"))
            link = middle.link_to(one)
            link.say_goodbye(AdmissionReason.REVOKED.value, "the owner revoked it")
            network.release(one.host, middle.host)
            await until(lambda: link.gone.is_set() and server(middle).circuits == 0)
            assert came == [b"before"]

    asyncio.run(main())


def test_bulk_goes_on_after_the_target_was_slow() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        content = bytes(range(256)) * 8192
        async with relayed(tls=False, network=network) as (one, middle, two):
            _, back = await dial_via(one, middle, two)
            serve(one, content)
            async with asyncio.TaskGroup() as group:
                fetch = group.create_task(back.request_stream(want, len(content)))
                for _ in range(5):
                    await until(lambda before=back.bytes_in: back.bytes_in > before or fetch.done())
                    network.hold(middle.host, two.host)
                    for _ in range(50):
                        await asyncio.sleep(0)
                    network.release(middle.host, two.host)
            assert fetch.result() == content
            assert server(middle).held_bytes == 0

    asyncio.run(main())


def test_what_was_sent_before_a_circuit_closed_arrives() -> None:
    async def main() -> None:
        relay = RelaySettings(bytes_per_second=256 * 1024, burst_bytes=32 * 1024)
        async with relayed(tls=False, relay=relay) as (one, middle, two):
            link, _ = await dial_via(one, middle, two)
            for slots in range(5_000):
                link.send(Grant(slots))
            await link.close("leaving", "enough")
            await until(lambda: [each for each, _ in two.events.down if each.relayed])
            assert [message for _, message in two.events.messages] == [Grant(slots) for slots in range(5_000)]
            assert [error for _, error in two.events.down + one.events.down] == [None, None]

    asyncio.run(main())


def test_a_closed_circuit_whose_rest_nobody_takes_does_not_stay() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        settings = LinkSettings(heartbeat_interval_s=0.2, silence_max_s=30.0)
        relay = replace(FAST, drain_s=0.2)
        async with relayed(tls=False, network=network, relay=relay, settings=settings) as (one, middle, two):
            leg = Probe(one, one.link_to(middle))
            leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: leg.grants)
            # A target that has opened and grants no more.
            two.hub.reaching.heard = lambda link, message: True  # type: ignore[method-assign]
            two_leg = next(iter(server(middle)._circuits)).target
            two_leg.credit_bytes = 0
            leg.link.send(CircuitData(leg.number, b"x" * 1000))
            leg.link.send(CircuitClosed(leg.number, "closed"))
            await until(lambda: server(middle).held_bytes == 1000)
            await until(lambda: server(middle).circuits == 0)
            assert server(middle).held_bytes == 0

    asyncio.run(main())


# --- what no honest peer says -----------------------------------------------------------------------------------------


def test_garbage_in_a_circuit_ends_that_circuit_only() -> None:
    async def main() -> None:
        async with relayed() as (one, middle, two):  # TLS inside, so that garbage is garbage
            lively, _ = await dial_via(one, middle, two)
            for garbage in (b"\xff" * 500, b"\x16\x03\x01\xff\xff" + bytes(300), b"GET / HTTP/1.1\r\n\r\n"):
                leg = Probe(one, one.link_to(middle))
                leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
                await until(lambda leg=leg: leg.grants)
                leg.link.send(CircuitData(leg.number, garbage))
                await until(lambda leg=leg: leg.ended)
            assert len(two.events.refusals) == 3
            assert "relay" in two.events.refusals[0][0].host
            assert not two.hub._half_open
            assert not lively.closed
            assert server(middle).circuits == 1
            assert len(one.events.open) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    "message",
    [
        CircuitData(4_000, b"x"),
        CircuitData(4_001, b"x"),
        CircuitCredit(4_000, 1),
        CircuitClosed(4_001, "closed"),
        CircuitOpen(7, bytes(32), 1),  # a number of the other side's
    ],
)
def test_words_about_circuits_that_never_were_end_the_link(message: Message) -> None:
    async def main() -> None:
        async with relayed(tls=False, more=1) as (one, middle, two, three):
            await dial_via(three, middle, two)
            one.link_to(middle).send(message)
            await until(lambda: one.events.down)
            assert isinstance(next(error for link, error in middle.events.down if link.peer == one.peer), ProtocolError)
            assert reached(three)
            assert reached(two)

    asyncio.run(main())


def test_words_about_a_circuit_that_is_over_are_passed_over() -> None:
    async def main() -> None:
        async with relayed(tls=False) as (one, middle, two):
            leg = Probe(one, one.link_to(middle))
            leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            await until(lambda: leg.grants)
            for message in (
                CircuitClosed(leg.number, "closed"),
                CircuitData(leg.number, b"late"),
                CircuitCredit(leg.number, 10),
                CircuitClosed(leg.number, "closed"),
            ):
                leg.link.send(message)
            one.link_to(middle).send(Grant(1))
            await until(lambda: middle.events.messages)
            assert server(middle).circuits == 0
            assert not one.events.down

    asyncio.run(main())


@pytest.mark.parametrize("sent", ["before it is open", "beyond the window", "a grant beyond measure", "a number twice"])
def test_who_does_not_keep_to_what_was_granted_loses_its_link(sent: str) -> None:
    async def main() -> None:
        settings = LinkSettings(heartbeat_interval_s=0.2, silence_max_s=30.0)
        async with relayed(tls=False, relay=replace(FAST, drain_s=0.1), settings=settings) as (one, middle, two):
            leg = Probe(one, one.link_to(middle))
            leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            if sent == "before it is open":
                two.hub.reaching.heard = lambda link, message: True  # type: ignore[method-assign]
                leg.link.send(CircuitData(leg.number, b"x"))
            elif sent == "a number twice":
                leg.link.send(CircuitOpen(leg.number, two.peer, WINDOW))
            else:
                await until(lambda: leg.grants)
                next(iter(server(middle)._circuits)).target.credit_bytes = 0  # so that nothing is passed on
                for _ in range(WINDOW // limits.CIRCUIT_DATA_BYTES_MAX):
                    leg.link.send(CircuitData(leg.number, bytes(limits.CIRCUIT_DATA_BYTES_MAX)))
                await until(lambda: server(middle).held_bytes == WINDOW)
                if sent == "beyond the window":
                    leg.link.send(CircuitData(leg.number, b"x"))
                else:
                    leg.link.send(CircuitCredit(leg.number, limits.CIRCUIT_GRANT_BYTES_MAX))
            await until(lambda: one.events.down and server(middle).circuits == 0)
            assert isinstance(middle.events.down[0][1], ProtocolError)
            assert not two.link_to(middle).closed

    asyncio.run(main())


def test_a_relay_that_sends_more_than_it_may_loses_the_link() -> None:
    async def main() -> None:
        async with relayed(tls=False) as (one, middle, two):
            link, back = await dial_via(one, middle, two)
            carrier = back._carrier
            assert carrier is not None
            carrier._window_bytes = 10  # type: ignore[attr-defined]
            link.send(Grant(1))
            await until(lambda: [each for each, _ in two.events.down if not each.relayed])
            assert any(isinstance(error, ProtocolError) for _, error in two.events.down)

    asyncio.run(main())


def test_a_circuit_offered_over_a_circuit_is_refused() -> None:
    async def main() -> None:
        async with relayed(tls=False) as (one, middle, two):
            _, back = await dial_via(one, middle, two)
            leg = Probe(two, back)
            back.send(CircuitOffered(leg.number, middle.peer, WINDOW))
            await until(lambda: leg.ended)
            assert leg.ended[0][0] == "busy"

    asyncio.run(main())


def test_a_goodbye_to_the_relay_ends_what_ran_through_it() -> None:
    async def main() -> None:
        async with relayed(tls=False) as (one, middle, two):
            await dial_via(one, middle, two)
            await one.link_to(middle).close("leaving", "for now")
            await until(lambda: not reached(one) and not reached(two))
            assert server(middle).circuits == 0
            assert [link for link in middle.hub._open if link.peer == two.peer]

    asyncio.run(main())


def test_stopping_says_goodbye_through_the_relay_first() -> None:
    async def main() -> None:
        async with relayed(tls=False) as (one, middle, two):
            _, back = await dial_via(one, middle, two)
            await one.hub.stop("leaving", "the peer stops")
            await until(lambda: not reached(two))
            assert back.farewell == Goodbye("leaving", "the peer stops")
            assert [error for link, error in two.events.down if link is back] == [None]

    asyncio.run(main())


def test_a_peer_that_lost_a_direct_link_is_reached_by_a_relay_at_once() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with relayed(tls=False, network=network) as (one, middle, two):
            direct = await one.hub.dial(two.address, two.peer)
            await until(lambda: two.hub.link(one.peer))
            # Only this end breaks; the other one believes in the link that it has.
            carrier = direct._carrier
            assert carrier is not None
            carrier.partner = carrier  # type: ignore[attr-defined]
            carrier.lose(ConnectionResetError("cable pulled"))  # type: ignore[attr-defined]
            link = await one.hub.dial_via(middle.peer, two.peer)
            assert link.relayed
            await until(lambda: two.link_to(one).relayed)
            for each in two.events.up:
                if not each.relayed and each.peer == one.peer:
                    each.abort()

    asyncio.run(main())


def test_whatever_a_member_says_about_circuits_harms_only_itself() -> None:
    """Messages with numbers near those that are in use, in any order, from both sides of a relay and to both."""

    async def main() -> None:
        rng = random.Random(7)
        kinds = (CircuitOpen, CircuitOffered, CircuitData, CircuitCredit, CircuitClosed, RelayReserve, RelayReserved)
        schemas = [Schema(kind) for kind in (*kinds, DialBack, DialedBack, PleaseDial)]
        async with relayed(tls=False, more=2) as made:
            one, middle, two, three, four = made
            await four.hub.reaching.ends.reserve(middle.peer)
            content = bytes(200_000)
            serve(three, content)
            witness, back = await dial_via(three, middle, four)
            for _ in range(300):
                liar = rng.choice([one, two])
                if middle.hub.link(liar.peer) is None or liar.hub.link(middle.peer) is None:
                    await until(lambda liar=liar: not middle.hub.link(liar.peer) and not liar.hub.link(middle.peer))
                    await liar.hub.dial(middle.address, middle.peer)
                    await until(lambda liar=liar: middle.hub.link(liar.peer) is not None)
                message = sample_of(rng.choice(schemas), rng)
                peer = rng.choice(made).peer
                known = {"circuit": rng.randrange(1, 12), "target": peer, "source": rng.choice([peer, liar.peer])}
                fields = {name: value for name, value in known.items() if hasattr(message, name)}
                # To the relay, and through it: what the liar's own side makes of an answer is not the point.
                link = liar.hub.link(middle.peer)
                assert link is not None
                link.send(replace(message, **fields))
                for _ in range(rng.randrange(0, 4)):
                    await asyncio.sleep(0)
                server(middle).check_invariants()
            assert await back.request_stream(want, len(content)) == content
            assert not witness.closed
            assert not [error for link, error in three.events.down + four.events.down if link.peer == middle.peer]

    asyncio.run(main())
