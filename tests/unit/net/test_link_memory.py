"""Links over the memory network: coming up, ending, tie-break in every order, heartbeat, streams."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import (
    AdmissionError,
    AdmissionReason,
    BlobMissingError,
    BusyError,
    FrameTooLargeError,
    LinkClosedError,
    ProtocolError,
)
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.link import RTT_SAMPLES, Link, LinkSettings
from p2pcompute.net.memory import MemoryNetwork
from p2pcompute.wire.framing import FrameType, frame_header, message_frame
from p2pcompute.wire.messages import BlobMissing, BlobWant, Goodbye, Grant, Pong
from tests.unit.net.link_help import FakeIdentity, Later, Recorder, Side, fake_identities, sides, until

QUICK = LinkSettings.test()


def test_a_link_comes_up_and_carries_messages_both_ways() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            assert link is one.link_to(two)
            assert (link.peer, link.dialled, link.path, link.carrier) == (two.peer, True, "memory", "memory")
            assert link.rtt_s is not None
            await until(lambda: two.events.up)
            for slots in range(100):
                link.send(Grant(slots))
            two.link_to(one).send(Grant(7))
            await until(lambda: len(two.events.messages) == 100 and one.events.messages)
            assert [message for _, message in two.events.messages] == [Grant(slots) for slots in range(100)]
            assert link.bytes_out > 100
            await until(lambda: two.link_to(one).rtt_s is not None)
        assert [error for _, error in one.events.down + two.events.down] == [None, None]
        assert not one.hub.links
        assert not two.hub.links

    asyncio.run(main())


class Stopped:
    """A clock that a test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def test_a_busy_moment_is_no_long_round_trip() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            clock = link._clock = Stopped()
            link._round_trips.clear()

            def answered_after(seconds: float, held_s: float = 0.0) -> float | None:
                link.ping()
                clock.now += seconds
                link._ponged(Pong(link._next_ping - 1, round(held_s * 1e6)))
                return link.rtt_s

            # Both ends shake hands with all the others, then they have time.
            assert answered_after(0.9) == pytest.approx(0.9)
            assert link.is_ping_due(clock.now, 20.0), "one answer says little"
            assert answered_after(0.03) == pytest.approx(0.03)
            assert answered_after(0.5) == pytest.approx(0.03)
            assert answered_after(0.52, held_s=0.5) == pytest.approx(0.02)
            assert link.is_ping_due(clock.now, 20.0)
            assert answered_after(0.04) == pytest.approx(0.02)
            assert not link.is_ping_due(clock.now + 19.9, 20.0)
            assert link.is_ping_due(clock.now + 20.0, 20.0)
            # A way that has become longer is believed once all answers say so.
            assert [answered_after(0.1) for _ in range(RTT_SAMPLES)][-1] == pytest.approx(0.1)

    asyncio.run(main())


def test_dialling_again_gives_the_same_link() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            first = await one.hub.dial(two.address, two.peer)
            assert await one.hub.dial(two.address, two.peer) is first
            # Without knowing whom: the connection is made, recognised and dropped.
            assert await one.hub.dial(two.address, None) is first
            # And from the other side.
            await until(lambda: two.events.up)
            assert await two.hub.dial(one.address, None) is two.link_to(one)
            await until(lambda: not [link for link in one.hub._open if link is not first])
            assert one.events.open == [first]
            assert len(two.events.up) == 1
            assert not two.events.down

    asyncio.run(main())


async def _settled(one: Side, two: Side) -> None:
    """One link between the two, the same connection on both sides, and nothing else open."""
    await until(
        lambda: len(one.events.open) == len(two.events.open) == 1 and len(one.hub._open) == len(two.hub._open) == 1,
        "one link on each side",
    )
    ours, theirs = one.link_to(two), two.link_to(one)
    assert ours.dialled != theirs.dialled
    one.events.messages.clear()
    ours.send(Grant(3))
    theirs.send(Grant(4))
    await until(lambda: one.events.messages and (theirs, Grant(3)) in two.events.messages)
    assert (ours, Grant(4)) in one.events.messages


@pytest.mark.parametrize("steps", list(itertools.product(range(4), repeat=4)))
def test_simultaneous_dials_leave_the_connection_of_the_lower_id(steps: tuple[int, ...]) -> None:
    """Both dial at once; which of the four directions (two connections, two ways) moves when is varied over all orders."""

    async def main() -> None:
        network = MemoryNetwork()
        async with sides(fake_identities(2), network=network) as (one, two):
            network.hold(one.host, two.host)
            async with asyncio.TaskGroup() as group:
                dials = [
                    group.create_task(one.hub.dial(two.address, two.peer)),
                    group.create_task(two.hub.dial(one.address, one.peer)),
                ]
                await until(lambda: len(network._carriers) == 4)
                carriers = list(network._carriers)
                for step in steps:
                    carrier = carriers[step]
                    network._held.clear()
                    for _ in range(len(carrier._sent)):
                        if carrier._timer is not None:
                            carrier._timer.cancel()
                        carrier._deliver()
                        if carrier._timer is not None:
                            carrier._timer.cancel()
                            carrier._timer = None
                    # What was answered is written in this turn of the loop, and held.
                    network.hold(one.host, two.host)
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                network.release(one.host, two.host)
                for carrier in carriers:
                    carrier.deliver_soon()
            won = [dial.result() for dial in dials]
            await _settled(one, two)
            assert won == [one.link_to(two), two.link_to(one)]
            # Where both had proposed, the lower id's connection stays; where one was first, that one.
            assert len(one.events.up) == len(two.events.up) == 1

    asyncio.run(main())


def test_both_proposed_then_the_lower_id_wins() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay_s=0.02)
        async with sides(fake_identities(2), network=network) as (one, two):
            async with asyncio.TaskGroup() as group:
                mine = group.create_task(one.hub.dial(two.address, two.peer))
                other = group.create_task(two.hub.dial(one.address, one.peer))
            await _settled(one, two)
            assert one.link_to(two).dialled
            assert mine.result() is one.link_to(two)
            assert other.result() is two.link_to(one)

    asyncio.run(main())


def test_one_side_dials_the_same_peer_many_times_at_once() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork(delay_s=0.005)) as (one, two):
            async with asyncio.TaskGroup() as group:
                dials = [group.create_task(one.hub.dial(two.address, None)) for _ in range(4)]
                dials += [group.create_task(two.hub.dial(one.address, None)) for _ in range(4)]
            await _settled(one, two)
            assert {dial.result() for dial in dials} == {one.link_to(two), two.link_to(one)}
            assert len(one.events.up) == 1

    asyncio.run(main())


def test_a_restarted_peer_replaces_its_old_link_at_once() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        first, second = fake_identities(2)
        async with sides([first, second], network=network) as (one, two):
            await two.hub.dial(one.address, one.peer)
            await until(lambda: one.events.up)
            old = one.link_to(two)
            # The old process is gone without a word; the new one has the same key and another instance.
            network.drop(one.host, two.host)
            reborn = FakeIdentity(second.peer, instance=b"instance1")
            transport = network.transport("10.0.0.9", reborn.peer, reborn.hello)
            events = Recorder()
            hub = type(two.hub)(
                reborn, events, two.hub._clock, two.hub._rng, two.hub._spawn, settings=LinkSettings(), transport=transport
            )  # fmt: skip
            link = await hub.dial(one.address, one.peer)
            assert events.up == [link]
            assert one.link_to(two) is not old
            assert [gone for gone, _ in one.events.down] == [old]
            await hub.stop()
            old.abort()

    asyncio.run(main())


def test_the_side_that_lost_its_link_gets_a_new_one_while_the_other_still_believes_in_the_old() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with sides(fake_identities(2), network=network) as (one, two):
            old = await one.hub.dial(two.address, two.peer)
            await until(lambda: two.events.up)
            # Only the dialler's end breaks.
            carrier = old._carrier
            assert carrier is not None
            carrier.partner = carrier  # type: ignore[attr-defined]  # nothing reaches the far end any more
            carrier.lose(ConnectionResetError("cable pulled"))  # type: ignore[attr-defined]
            assert one.events.down[0][0] is old
            new = await one.hub.dial(two.address, two.peer)
            assert new is not old
            assert one.link_to(two) is new
            assert two.events.open == [two.link_to(one)]
            for link in two.events.up:
                link.abort()

    asyncio.run(main())


def test_own_address_and_wrong_peer_are_refused() -> None:
    async def main() -> None:
        async with sides(fake_identities(3), network=MemoryNetwork()) as (one, two, three):
            for expected in (None, one.peer):
                with pytest.raises(AdmissionError) as caught:
                    await one.hub.dial(one.address, expected)
                assert caught.value.reason is AdmissionReason.SELF
            with pytest.raises(AdmissionError) as caught:
                await one.hub.dial(two.address, three.peer)
            assert caught.value.reason is AdmissionReason.WRONG_PEER
            assert not one.events.up
            await until(lambda: two.events.refusals)
            assert not two.events.up

    asyncio.run(main())


@pytest.mark.parametrize("refuser", [0, 1])
def test_a_refusal_reaches_the_dialler_with_its_reason(refuser: int) -> None:
    async def main() -> None:
        identities = fake_identities(2)
        identities[refuser].refuses.add(identities[1 - refuser].peer)
        async with sides(identities, network=MemoryNetwork()) as (one, two):
            with pytest.raises(AdmissionError) as caught:
                await one.hub.dial(two.address, two.peer)
            assert caught.value.reason is AdmissionReason.REVOKED
            await until(lambda: two.events.refusals)
            refusal = two.events.refusals[0][1]
            assert isinstance(refusal, AdmissionError)
            assert refusal.reason is AdmissionReason.REVOKED
            assert not one.events.up
            assert not two.events.up

    asyncio.run(main())


def test_a_peer_of_an_incompatible_version_is_refused() -> None:
    async def main() -> None:
        identities = fake_identities(2)
        identities[1].newest = 0
        async with sides(identities, network=MemoryNetwork()) as (one, two):
            with pytest.raises((AdmissionError, ProtocolError)):
                await one.hub.dial(two.address, two.peer)

    asyncio.run(main())


def test_silence_ends_a_link_and_nothing_else_does() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with sides(fake_identities(3), network=network, settings=QUICK) as (one, two, three):
            await one.hub.dial(two.address, two.peer)
            await one.hub.dial(three.address, three.peer)
            await until(lambda: two.events.up and three.events.up)
            network.drop(one.host, two.host)
            await until(lambda: one.events.down and two.events.down)
            assert [link.peer for link, _ in one.events.down] == [two.peer]
            error = one.events.down[0][1]
            assert isinstance(error, LinkClosedError)
            assert "nothing was heard" in str(error)
            # The link that is answered lives on, with nothing but heartbeats on it.
            survivor = one.link_to(three)
            pinged_at = survivor.pinged_at
            await until(lambda: survivor.pinged_at > pinged_at + 2 * QUICK.silence_max_s)
            assert not survivor.closed

    asyncio.run(main())


def test_a_cut_connection_is_reported_and_waiting_requests_fail() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with sides(fake_identities(2), network=network) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            async with asyncio.TaskGroup() as group:
                request = group.create_task(_raises(link.request_stream(lambda n: BlobWant(bytes(32), n), 10)))
                await until(lambda: two.events.messages)
                network.cut(one.host, two.host)
            assert isinstance(request.result(), LinkClosedError)
            assert isinstance(one.events.down[0][1], LinkClosedError)
            with pytest.raises(LinkClosedError):
                link.send(Grant(1))
            with pytest.raises(LinkClosedError):
                await link.request_stream(lambda n: BlobWant(bytes(32), n), 10)

    asyncio.run(main())


async def _raises(work: object) -> BaseException | None:
    try:
        await work  # type: ignore[misc]
    except Exception as error:
        return error
    return None


def test_links_beyond_the_limit_are_refused_politely() -> None:
    async def main() -> None:
        settings = LinkSettings(links_max=1)
        async with sides(fake_identities(3), network=MemoryNetwork(), settings=settings) as (one, two, three):
            await one.hub.dial(two.address, two.peer)
            with pytest.raises(BusyError):
                await one.hub.dial(three.address, three.peer)
            with pytest.raises(BusyError, match="has 1 links already"):
                await three.hub.dial(one.address, one.peer)

    asyncio.run(main())


def test_half_open_connections_are_few_and_do_not_last() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        settings = LinkSettings(handshake_timeout_s=0.3, half_open_max=2)
        async with sides(fake_identities(2), network=network, settings=settings) as (one, two):
            network.hold("10.0.0.7", two.host)
            mute = FakeIdentity(PeerId(b"m" * 32))
            dawdlers = network.transport("10.0.0.7", mute.peer, mute.hello)
            links = [type(one.hub)._accept(one.hub, Address("10.0.0.7", 1)) for _ in range(2)]
            assert None not in links
            for _ in range(2):
                await dawdlers.connect(two.address, links.pop(), "memory")  # type: ignore[arg-type]
            assert len(two.hub._half_open) == 2
            await until(lambda: not two.hub._half_open)
            await one.hub.dial(two.address, two.peer)

    asyncio.run(main())


def hold_open(network: MemoryNetwork, host: str, side: Side) -> bool:
    """Connect from `host` to `side` and never greet; whether `side` took the connection."""
    mute = FakeIdentity(PeerId(b"m" * 32))
    transport = network.transport(host, mute.peer, mute.hello)
    link = Link(side.hub, side.hub._clock, dialled=True)
    network.hold(host, side.host)
    try:
        network.join(transport, side.address, link)
    except LinkClosedError:
        return False
    return True


def test_one_address_has_a_share_of_the_half_open_connections() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        settings = LinkSettings(half_open_per_address=3, private_factor=2)
        async with sides(fake_identities(2), network=network, settings=settings) as (one, two):
            assert [hold_open(network, "8.8.8.8", two) for _ in range(5)] == [True] * 3 + [False] * 2
            # On this site many may sit behind one address.
            assert [hold_open(network, "10.0.0.7", two) for _ in range(7)] == [True] * 6 + [False]
            await one.hub.dial(two.address, two.peer)

    asyncio.run(main())


def test_whoever_fills_the_table_waits_for_himself() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        settings = LinkSettings(half_open_max=8)
        async with sides(fake_identities(2), network=network, settings=settings) as (one, two):
            assert hold_open(network, "8.8.8.8", two)
            assert all(hold_open(network, "10.0.0.7", two) for _ in range(20))
            assert len(two.hub._half_open) == 8
            await one.hub.dial(two.address, two.peer)
            # Whom others displaced is gone and told of; whoever held but one is there yet.
            await until(lambda: len(two.hub._open) == 8)
            assert two.hub._half_open.count("8.8.8.8") == 1
            assert {address.host for address, _ in two.events.refusals} == {"10.0.0.7"}
            assert all("others wanted its place" in str(error) for _, error in two.events.refusals)

    asyncio.run(main())


def test_what_said_goodbye_and_hangs_is_ended_by_the_next_beat() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with sides(fake_identities(2), network=network) as (one, two):
            for _ in range(3):
                link = await one.hub.dial(two.address, two.peer)
                await until(lambda: two.hub.link(one.peer) is not None)
                # A carrier that does not keep its word, and a link that another one replaces.
                back = two.link_to(one)
                back._carrier.close = lambda: None  # type: ignore[union-attr,method-assign]
                link.send(Goodbye("leaving"))
                await until(lambda back=back: back.closed)
                one.hub._links.pop(two.peer, None)
            assert len(two.hub._open) == 3
            now = two.hub._clock.monotonic
            two.hub._clock = Later(two.hub._clock, limits.LINK_LEAVING_MAX_S - 1)
            two.hub.beat()
            assert len(two.hub._open) == 3
            two.hub._clock = Later(two.hub._clock, 2)
            assert two.hub._clock.monotonic() > now()
            two.hub.beat()
            await until(lambda: not two.hub._open)

    asyncio.run(main())


def test_one_address_may_not_begin_handshakes_without_end() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        settings = LinkSettings(handshakes_per_second=1, private_factor=3)
        async with sides(fake_identities(2), network=network, settings=settings) as (one, two):
            refused = 0
            for _ in range(8):
                try:
                    await one.hub.dial(two.address, None)
                except LinkClosedError:
                    refused += 1
            assert refused >= 4

    asyncio.run(main())


# --- streams ----------------------------------------------------------------------------------------------------------


def _serves(side: Side, content: bytes | None) -> None:
    def answer(link: object, message: object) -> None:
        if isinstance(message, BlobWant):
            if content is None:
                link.send(BlobMissing(message.stream))  # type: ignore[attr-defined]
            else:
                link.serve_stream(message.stream, content)  # type: ignore[attr-defined]

    side.events.on_message = answer


def want(stream: int) -> BlobWant:
    return BlobWant(bytes(32), stream)


@pytest.mark.parametrize("size", [0, 1, limits.CHUNK_BYTES, 3 * limits.STREAM_WINDOW_BYTES + 5])
def test_bulk_arrives_whole_in_both_directions_at_once(size: int) -> None:
    async def main() -> None:
        content = bytes(range(256)) * (size // 256) + bytes(size % 256)
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            await until(lambda: two.events.up)
            _serves(one, content)
            _serves(two, content)
            async with asyncio.TaskGroup() as group:
                fetches = [group.create_task(link.request_stream(want, size)) for _ in range(3)]
                fetches += [group.create_task(two.link_to(one).request_stream(want, size)) for _ in range(3)]
            assert all(fetch.result() == content for fetch in fetches)
            assert (await link.measure_bandwidth(100_000)) > 0
            assert link.bandwidth_mbps is not None

    asyncio.run(main())


def test_what_is_missing_too_large_or_given_up() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            _serves(two, None)
            with pytest.raises(BlobMissingError):
                await link.request_stream(want, 100)
            # Given up by the one who asked: the other side forgets the stream, and the link goes on.
            two.events.on_message = lambda link, message: None
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await link.request_stream(want, 100)
            late = two.events.messages[-1][1]
            assert isinstance(late, BlobWant)
            two.link_to(one).serve_stream(late.stream, bytes(20 << 20))
            await until(lambda: len(two.link_to(one)._bulk._sender) == 0, "the late stream is reset")
            assert not link.closed
            # More than was asked for is a lie that ends the link.
            _serves(two, bytes(101))
            with pytest.raises(ProtocolError, match="more than the 100 bytes"):
                await link.request_stream(want, 100)
            await until(lambda: one.events.down)
            assert isinstance(one.events.down[0][1], ProtocolError)

    asyncio.run(main())


def test_more_requests_than_may_be_open_wait_their_turn() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            _serves(two, b"x" * 1000)
            async with asyncio.TaskGroup() as group:
                fetches = [
                    group.create_task(link.request_stream(want, 1000)) for _ in range(3 * limits.STREAMS_OPEN_MAX)
                ]
            assert all(fetch.result() == b"x" * 1000 for fetch in fetches)

    asyncio.run(main())


# --- what a dishonest member may not do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (frame_header(FrameType.CHUNK, 2, limits.FRAME_BYTES_MAX + 1), FrameTooLargeError),
        (b"\xff" * 64, FrameTooLargeError),
        (frame_header(FrameType.CHUNK, 2, 1) + b"x", ProtocolError),
        (frame_header(FrameType.CHUNK, 3, 1) + b"x", ProtocolError),
        (message_frame(b"\xc1"), ProtocolError),
        (message_frame(b"\x92\x01\x80"), ProtocolError),
    ],
)
def test_bytes_that_no_honest_peer_sends_end_the_link_and_only_it(data: bytes, error: type[Exception]) -> None:
    async def main() -> None:
        async with sides(fake_identities(3), network=MemoryNetwork()) as (one, two, three):
            link = await one.hub.dial(two.address, two.peer)
            other = await two.hub.dial(three.address, three.peer)
            link.write_frame(data)
            await until(lambda: two.events.down and one.events.down)
            assert isinstance(two.events.down[0][1], error)
            assert isinstance(one.events.down[0][1], LinkClosedError)
            assert not other.closed

    asyncio.run(main())


def test_a_peer_that_takes_nothing_loses_its_link() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with sides(fake_identities(2), network=network) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            network.hold(one.host, two.host)
            payload = bytes(limits.FRAME_BYTES_MAX)
            sent = 0
            while not link.closed:
                link.send_encoded(payload)
                sent += len(payload)
            assert limits.CONTROL_QUEUE_BYTES_MAX <= sent <= limits.CONTROL_QUEUE_BYTES_MAX + 2 * limits.FRAME_BYTES_MAX
            assert isinstance(link.failure, BusyError)
            link.abort()
            await until(lambda: one.events.down)

    asyncio.run(main())


def test_a_message_too_large_is_the_senders_error() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork()) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            with pytest.raises(FrameTooLargeError):
                link.send_encoded(bytes(limits.FRAME_BYTES_MAX + 1))
            assert not link.closed

    asyncio.run(main())


def test_messages_sent_before_close_arrive() -> None:
    async def main() -> None:
        async with sides(fake_identities(2), network=MemoryNetwork(delay_s=0.001)) as (one, two):
            link = await one.hub.dial(two.address, two.peer)
            for slots in range(50):
                link.send(Grant(slots))
            await link.close("leaving", "enough")
            assert len(two.events.messages) == 50
            await until(lambda: two.events.down and one.events.down)
            assert two.events.down[0][1] is None
            assert one.events.down[0][1] is None

    asyncio.run(main())
