"""A member that misuses what members may do: floods over links and in datagrams, streams, jobs, the address book, dial-backs and relays."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from p2pcompute.model import limits
from p2pcompute.model.peer import Address
from p2pcompute.net.dht import frames
from p2pcompute.net.dht.contacts import dht_id
from p2pcompute.net.dht.frames import Flag, MessageId, Method, Request
from p2pcompute.net.link import Link
from p2pcompute.node.gossiping import GOSSIP_CHANNEL
from p2pcompute.wire import gossip
from p2pcompute.wire.families import GOSSIP_CODEC, LINK_CODEC
from p2pcompute.wire.framing import FrameType, frame_header, message_frame
from p2pcompute.wire.identity import verify_signature
from p2pcompute.wire.messages import (
    BlobMissing,
    BlobWant,
    EchoWant,
    Grant,
    JobAccept,
    JobClose,
    JobOpen,
    Message,
    Payload,
    Ping,
    Records,
    Results,
    SuspectQuery,
    Tasks,
    TasksCancel,
)
from p2pcompute.wire.reaching import DialBack, DialedBack
from p2pcompute.wire.record import open_record
from p2pcompute.wire.versions import ALPN_STREAM
from tests.attack.evil import EvilMember, evil_member
from tests.attack.field import Field, field
from tests.support.networks import SeededEntropy
from tests.support.peers import until

_ATTACK_S = 3.0
#: Has an address of its own, so that it can be seen who is named.
_DRIBBLER = "127.0.0.81"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with field(tmp_path_factory.mktemp("field")) as found:
        yield found


def attack(honest: Field, name: str, what: Callable[[EvilMember], Coroutine[Any, Any, None]]) -> str:
    """Run `what` as a member called `name` while a job runs; the short id of that member."""
    token = honest.invite(name)

    async def main() -> str:
        async with evil_member(token, name) as evil:
            await what(evil)
            return evil.short_id

    with honest.working():
        return asyncio.run(main())


async def for_a_while(work: Coroutine[Any, Any, None], for_s: float = _ATTACK_S) -> None:
    """Run `work`, which need not end."""
    try:
        async with asyncio.timeout(for_s):
            await work
    except TimeoutError:
        pass


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_flood_of_messages_over_a_link(honest: Field) -> None:
    """Pings, questions about everybody, comparisons that differ in everything, requests for everything: as fast as a link takes them."""
    entropy = SeededEntropy("flood")

    async def flood(evil: EvilMember) -> None:
        link = await evil.link(honest.address)
        wanted = (*(entropy.bytes(12) for _ in range(2_000)), link.peer[:12])
        kinds: tuple[Message, ...] = (
            Ping(1),
            SuspectQuery(entropy.bytes(32)),
            gossip.Digest(entropy.bytes(8 * limits.DIGEST_BUCKETS)),
            gossip.Want(wanted),
            gossip.Probe(5),
            gossip.ProbeVia(6, entropy.bytes(32)),
            Records((link.hello.record,) * 8),
        )
        await for_a_while(evil.flood(link, itertools.cycle(kinds)))
        # What takes long to be read is no flood where the machine has other work: so twice what a second may bring, cheap and in one piece.
        piece = message_frame(LINK_CODEC.encode(gossip.Probe(7))) * int(2 * limits.LINK_GOSSIP_PER_SECOND)
        for _ in range(5):
            await until(lambda: link.closed or link.has_room(), "there is room for more")
            link.write_frame(piece)
        link.ping()
        await until(lambda: link.closed or not link._pings, "all of it is read")

    short = attack(honest, "flooder", flood)
    honest.blames(short, "floods its link")


def test_greetings_that_are_dribbled_keep_nobody_out(honest: Field) -> None:
    """TLS with a good certificate, then a byte of the Hello now and then, on more connections than may be half open."""
    ended_after_s: list[float] = []

    async def dribble(evil: EvilMember) -> None:
        greeting = message_frame(LINK_CODEC.encode(evil.identity.hello()))
        context = evil.identity.client_context()
        context.set_alpn_protocols([ALPN_STREAM])

        async def one() -> None:
            reader, writer = await asyncio.open_connection(
                honest.address.host, honest.address.port, ssl=context, server_hostname="", local_addr=(_DRIBBLER, 0)
            )
            began = time.monotonic()
            with contextlib.suppress(OSError):
                for place in range(len(greeting)):
                    writer.write(greeting[place : place + 1])
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            while await reader.read(65_536):
                                pass
                    if reader.at_eof():
                        break
            ended_after_s.append(time.monotonic() - began)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        async with asyncio.TaskGroup() as group:
            for _ in range(limits.HALF_OPEN_MAX + 16):
                group.create_task(one())
                await asyncio.sleep(0.02)
            # Meanwhile others get in, each of them at once.
            for _ in range(5):
                began = time.monotonic()
                link = await evil.link(honest.address)
                assert time.monotonic() - began < limits.HANDSHAKE_TIMEOUT_S / 2
                await link.close("leaving")
                await asyncio.sleep(0.5)

    attack(honest, "dribbler", dribble)
    assert len(ended_after_s) == limits.HALF_OPEN_MAX + 16
    assert max(ended_after_s) < limits.HANDSHAKE_TIMEOUT_S + 5
    honest.blames(_DRIBBLER, "did not greet in time")


def test_messages_that_nobody_may_send_end_the_link_and_name_the_sender(honest: Field) -> None:
    """A second greeting, a frame longer than any, chunks on streams that nobody opened, bytes that are no message."""

    async def misbehave(evil: EvilMember) -> None:
        async def once(send: Callable[[Link], None]) -> None:
            link = await evil.link(honest.address)
            send(link)
            await until(lambda: link.closed, "the link is ended", 10)
            await until(lambda: evil.hub.link(link.peer) is None, "", 10)

        await once(lambda link: link.send(evil.identity.hello()))
        await once(lambda link: link.write_frame(frame_header(FrameType.MESSAGE, 0, limits.FRAME_BYTES_MAX + 1)))
        await once(lambda link: link.send_encoded(b"\xc1" * 40))
        await once(lambda link: link.write_frame(frame_header(FrameType.CHUNK, 9_999, 4) + b"data"))

    short = attack(honest, "rude", misbehave)
    honest.blames(short, "a frame of")


def test_streams_that_are_asked_for_and_not_read(honest: Field) -> None:
    """Eight mebibytes of noise on every stream there is, none of them taken; blobs that nobody has, in their thousands."""

    async def hoard(evil: EvilMember) -> None:
        link = await evil.link(honest.address)
        # What comes is neither taken nor refused.
        link._bulk.frame = lambda kind, stream, payload: None  # type: ignore[method-assign]

        def wants() -> Iterator[Message]:
            for number in itertools.count(1):
                yield EchoWant(2 * number + 1, 8 << 20)
                yield BlobWant(bytes(32), 2 * number + 1_000_001)
                yield BlobMissing(number)

        await for_a_while(evil.flood(link, wants()))

    attack(honest, "hoarder", hoard)


def test_job_messages_in_no_order(honest: Field) -> None:
    """Tasks of jobs that were never opened, results of tasks that nobody gave away, grants of everything, ends of others' jobs."""
    entropy = SeededEntropy("jobs")

    async def confuse(evil: EvilMember) -> None:
        links = [await evil.link(address) for address in honest.addresses]
        payload = Payload(inline=b"\x01", size_bytes=1)
        missing = Payload(blob=entropy.bytes(32), size_bytes=1 << 20)  # type: ignore[arg-type]

        def messages() -> Iterator[Message]:
            known = entropy.bytes(12)
            yield JobOpen(known, entropy.bytes(32), 1_000, "never fetched", 5)
            for _ in itertools.count():
                job = entropy.bytes(12)
                yield Tasks(job, ((0, 0, 0, payload), (1, 0, 0, missing)))
                yield Tasks(known, tuple((number, 0, 0, missing) for number in range(64)))
                yield Results(job, ((0, 0, 0, 1, payload),))  # type: ignore[arg-type]
                yield Grant(1 << 20)
                yield JobAccept(job)
                yield TasksCancel(job, ((0, 0),))
                yield JobClose(job)
                yield JobOpen(job, entropy.bytes(32), limits.PROGRAM_BYTES_MAX, "another", 5)

        await for_a_while(
            _both(evil.flood(links[0], itertools.islice(messages(), 20_000)), evil.flood(links[1], messages()))
        )

    attack(honest, "confuser", confuse)


async def _both(*works: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)


def test_nobody_scans_ports_with_our_address(honest: Field) -> None:
    """Dial-backs to places that are not the asker's are refused, and more than one in ten seconds, too."""

    async def scan(evil: EvilMember) -> None:
        link = await evil.link(honest.address)
        answers: list[DialedBack] = []
        evil.overhear(link, lambda message: answers.append(message) if isinstance(message, DialedBack) else None)
        asked = 0
        for number in range(20):
            link.send(DialBack(number, (Address("10.1.2.3", 22), Address("192.168.1.1", 80))))
            asked += 1
        await until(lambda: len(answers) == asked, "every one is answered", 10)
        assert not any(answer.reached for answer in answers)
        assert all(answer.refused for answer in answers), answers[:2]

    attack(honest, "scanner", scan)


# --- datagrams --------------------------------------------------------------------------------------------------------


def test_gossip_that_cannot_be_read(honest: Field) -> None:
    entropy = SeededEntropy("unreadable")

    async def babble(evil: EvilMember) -> None:
        peer = honest_ids[0]
        await evil.session(peer, honest.address)
        until_s = time.monotonic() + _ATTACK_S
        while time.monotonic() < until_s:
            for size in (1, 40, 400, limits.DATAGRAM_PAYLOAD_BYTES_MAX - 1):
                evil.raw(peer, entropy.bytes(size))
                evil.raw(peer, entropy.bytes(size), 77)
                evil.gossip(peer, gossip.Rumours((entropy.bytes(137), b"\x02" + entropy.bytes(136))))
            await asyncio.sleep(0.005)

    honest_ids = honest.ids
    short = attack(honest, "babbler", babble)
    honest.blames(short, "gossip that cannot be read")


def test_datagrams_that_ask_for_much_and_pieces_that_never_come(honest: Field) -> None:
    """Small questions, large answers, again and again; and beginnings of thousands of records that are never told to the end."""
    entropy = SeededEntropy("greedy")
    honest_ids = honest.ids
    received: list[int] = []
    sent: list[int] = []

    async def ask(evil: EvilMember) -> None:
        peer = honest_ids[0]
        await evil.session(peer, honest.address)
        evil.on_datagram = lambda _, channel, payload: received.append(len(payload))
        until_s = time.monotonic() + _ATTACK_S
        while time.monotonic() < until_s:
            for message in (
                gossip.Digest(entropy.bytes(8 * limits.DIGEST_BUCKETS)),
                gossip.Want(tuple(each[:12] for each in honest_ids)),
                gossip.Want(tuple(entropy.bytes(12) for _ in range(60))),
                gossip.Piece(entropy.bytes(8), 0, 16, entropy.bytes(900)),
            ):
                sent.append(1)
                evil.gossip(peer, message)
            await asyncio.sleep(0.002)

    attack(honest, "greedy", ask)
    # Four kilobytes a round and a half, of which no answer makes more than the little that two records have.
    assert sum(received) < 2 * 600 * len(sent), (sum(received), len(sent))


def test_nobody_has_answers_sent_to_somebody_else(honest: Field) -> None:
    """Requests for records under a false source: whoever is there gets at most three times what was sent in its name."""
    honest_ids = honest.ids
    sent: list[int] = []
    received: list[int] = []

    async def reflect(evil: EvilMember) -> None:
        peer = honest_ids[0]
        link = await evil.link(honest.address)
        wires = list(evil.invented(32, labels=tuple(f"x{number:03}" + "y" * 110 for number in range(60))))
        for wire in wires:
            link.send(Records((wire,)))
        starts = tuple(open_record(wire, verify_signature).record.peer[:12] for wire in wires)
        asked = link.heard_at
        link.ping()
        await until(lambda: link.heard_at > asked, "the records have been taken in")
        await evil.session(peer, honest.address)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
            victim.bind(("127.0.0.66", 0))
            victim.setblocking(False)
            for _ in range(10):
                # The endpoint's own session: what is sealed with it goes out from where the victim is.
                sealer = evil.udp._sessions.table.peers[peer].best.sealer
                data = sealer.seal(GOSSIP_CHANNEL, GOSSIP_CODEC.encode(gossip.Want(starts)))
                victim.sendto(data, (honest.address.host, honest.address.port))
                sent.append(len(data))
                await asyncio.sleep(0.2)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        received.append(len(victim.recv(2_000)))

    attack(honest, "reflector", reflect)
    assert received, "it is asked whether it is there"
    assert sum(received) <= 3 * sum(sent), (sum(received), sum(sent))


def test_the_address_book_under_attack(honest: Field) -> None:
    """Noise, requests without end, forged pointers, hostile replies to what was not asked, and invented contacts in every reply."""
    entropy = SeededEntropy("book")
    honest_ids = honest.ids

    async def poison(evil: EvilMember) -> None:
        peer = honest_ids[0]
        await evil.session(peer, honest.address)

        def reply(source: Any, channel: int, payload: bytes) -> None:
            if channel == 2 and payload and payload[0] != frames.REPLY and len(payload) > frames.HEAD_BYTES:
                number = MessageId(payload[1 : frames.HEAD_BYTES])
                evil.book(source, frames.find_reply_frame(number, Flag.IPV4, None, entropy.bytes(700)))
                evil.book(source, bytes((frames.REPLY,)) + number + entropy.bytes(300))

        evil.on_datagram = reply
        until_s = time.monotonic() + _ATTACK_S
        while time.monotonic() < until_s:
            for _ in range(8):
                number = MessageId(entropy.bytes(frames.MESSAGE_ID_BYTES))
                evil.book(peer, frames.request_frame(number, Request(Method.STORE, Flag.IPV4, entropy.bytes(600))))
                evil.book(peer, frames.request_frame(number, Request(Method.FIND_NODE, Flag.IPV4, dht_id(peer))))
                evil.book(peer, bytes((0,)) + entropy.bytes(60))
                evil.book(peer, bytes((frames.REPLY,)) + entropy.bytes(200))
            await asyncio.sleep(0.01)

    short = attack(honest, "poisoner", poison)
    honest.blames(short, "misuses the address book")
