"""A member that lies: in records, rumours, suspicions and answers, about others and about itself, while a job runs.

Whatever it says of others changes nothing, and it is named; what it says of itself cannot be disproved, and breaks no job.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from p2pcompute.model import limits
from p2pcompute.model.capability import Capability
from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import Outcome
from p2pcompute.model.peer import Address, Edge, Reach
from p2pcompute.node.gossiping import GOSSIP_CHANNEL
from p2pcompute.wire import gossip
from p2pcompute.wire.codec import pack, unpack
from p2pcompute.wire.families import GOSSIP_CODEC
from p2pcompute.wire.identity import PeerKey, verify_signature
from p2pcompute.wire.messages import Grant, JobAccept, JobOpen, Message, Payload, Records, Results, Tasks, TasksCancel
from p2pcompute.wire.record import CONTEXT, SignedRecord, open_record, sign_record
from tests.attack.evil import EvilMember, evil_member, forged, record_of
from tests.attack.field import TASKS, Field, field
from tests.support.networks import SeededEntropy
from tests.support.peers import until, until_now

_ATTACK_S = 3.0


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with field(tmp_path_factory.mktemp("field")) as found:
        yield found


def attack(honest: Field, name: str, what: Callable[[EvilMember], Coroutine[Any, Any, None]], **record: Any) -> str:
    """Run `what` as a member called `name` while a job runs; the short id of that member."""
    token = honest.invite(name)

    async def main() -> str:
        async with evil_member(token, name, **record) as evil:
            await what(evil)
            return evil.short_id

    with honest.working():
        return asyncio.run(main())


async def repeat(what: Callable[[], None], for_s: float = _ATTACK_S, pause_s: float = 0.05) -> None:
    """Do `what` again and again."""
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        what()
        await asyncio.sleep(pause_s)


def test_records_of_others_cannot_be_written(honest: Field) -> None:
    """Forged, broken, foreign and oversized records, and a leave in the name of another: no effect, and the forger is named."""

    async def lie(evil: EvilMember) -> None:
        links = [await evil.link(address) for address in honest.addresses]
        thief = PeerKey.generate(SeededEntropy("thief"))
        network = evil.identity.membership.network
        victim = links[1].hello.record
        signed = open_record(victim, verify_signature)
        mine = record_of(thief, thief.peer_id, bytes(32), "elsewhere")
        lies = (
            forged(signed, thief, leaving=True, incarnation=signed.record.incarnation + 1),
            forged(signed, thief, name="mallory", sequence=signed.record.sequence + 1_000),
            victim[:-1] + bytes((victim[-1] ^ 1,)),
            sign_record(mine, thief).wire,
            pack([1, thief.public_key, bytes(8_000), bytes(64)]),
            bytes(limits.RECORD_BYTES_MAX),
        )
        assert network != bytes(32)

        def once() -> None:
            for link in links:
                for wire in lies:
                    if not link.closed:
                        link.send(Records((wire,)))

        await repeat(once)
        assert all(not link.closed for link in links), "who passes on a bad record is named, not cut off"

    short = attack(honest, "forger", lie)
    for by in range(2):
        honest.blames(short, "signature", by=by)
    # The forger said no goodbye; it is given up like anybody who falls silent.
    for peer, other in zip(honest.peers, ("bert", "anna"), strict=True):
        until_now(
            lambda peer=peer, other=other: honest.alive(peer) - {"forger"} == {other},
            "the honest believe in each other",
        )


def test_an_incarnation_far_ahead_is_refused(honest: Field) -> None:
    """A record from the year 2100 over a link that was opened with an honest one: not taken, not passed on, named."""

    async def lie(evil: EvilMember) -> None:
        links = [await evil.link(address) for address in honest.addresses]

        def once() -> None:
            wire = evil.record(incarnation=4_102_444_800_000, name="future").wire
            for link in links:
                link.send(Records((wire,)))

        await repeat(once)

    short = attack(honest, "prophet", lie)
    honest.blames(short, "from the future")
    assert "future" not in {row["name"] for row in honest.peers[0].ask("peers")["peers"]}


def test_false_suspicions_kill_nobody(honest: Field) -> None:
    """Everybody is accused, again and again, of being down in the life that they have just begun: all live on.

    That the accuser is named takes longer, since honest peers are wrong now and then: the laboratory shows it.
    """

    async def lie(evil: EvilMember) -> None:
        links = [await evil.link(address) for address in honest.addresses]
        await asyncio.gather(*(evil.session(link.peer, link.remote) for link in links))
        newest = {link.peer: open_record(link.hello.record, verify_signature).record.incarnation for link in links}

        def heard(message: Message | None) -> None:
            for wire in getattr(message, "records", ()):
                record = open_record(wire, verify_signature).record
                if record.peer in newest:
                    newest[record.peer] = max(newest[record.peer], record.incarnation)
            for wire in getattr(message, "rumours", ()):
                said = gossip.read_rumour(wire, verify_signature)
                if isinstance(said, gossip.Announcement):
                    for peer in newest:
                        if peer.startswith(said.prefix):
                            newest[peer] = max(newest[peer], said.incarnation)

        def read(_: PeerId, channel: int, payload: bytes) -> None:
            if channel == GOSSIP_CHANNEL:
                heard(GOSSIP_CODEC.decode(payload))

        evil.on_message = lambda link, message: heard(message)
        evil.on_datagram = read

        def once() -> None:
            for link in links:
                for victim, incarnation in newest.items():
                    wire = gossip.sign_suspicion(victim, incarnation, evil.identity.key)
                    evil.gossip(link.peer, gossip.Rumours((wire,)))
                    link.send(gossip.Rumours((wire,)))

        await repeat(once, 2 * _ATTACK_S, 0.2)

    starts = [len(peer.log.read_text()) for peer in honest.peers]
    attack(honest, "accuser", lie)
    for peer, start in zip(honest.peers, starts, strict=True):
        story = peer.log.read_text()[start:]
        assert not any(f"{name} ({honest.short(name)}) is gone" in story for name in ("anna", "bert")), story


def test_records_that_do_not_exist_are_not_asked_for_without_end(honest: Field) -> None:
    """Thousands of announced records that nobody has: who announces them is named, and newcomers are heard of all the same."""

    async def lie(evil: EvilMember) -> None:
        link = await evil.link(honest.address)
        entropy = SeededEntropy("announcer")
        now_ms = int(time.time() * 1000)

        def once() -> None:
            if not link.closed:
                rows = tuple((entropy.bytes(12), now_ms, 1) for _ in range(400))
                link.send(gossip.Versions(rows))

        await repeat(once, 3 * _ATTACK_S, 0.1)

    short = attack(honest, "announcer", lie)
    honest.blames(short, "announces records that nobody has")
    late = honest.home.up("dora", "--slots", "0")
    until_now(lambda: "dora" in honest.alive(honest.peers[0]), "a newcomer is heard of")
    late.kill()


def with_addresses(record: SignedRecord, key: PeerKey, told: list[str]) -> bytes:
    """`record` with these texts for addresses, rightly signed."""
    version, public_key, body, _ = unpack(record.wire, bytes_max=10_000)
    body = pack({**unpack(body, bytes_max=10_000), "addresses": told})
    return pack([version, public_key, body, key.sign(CONTEXT + bytes([version]), body)])


def test_addresses_that_mean_nothing_here_break_nothing(honest: Field) -> None:
    """Records whose addresses have zones that no interface, no name server and no number has."""
    zones = ("²", "a..b", "a\0b", "9" * 30, "eth0")

    async def lie(evil: EvilMember) -> None:
        link = await evil.link(honest.address)
        await evil.session(honest_ids[0], honest.address)
        for number in range(20):
            key = PeerKey.generate(SeededEntropy(f"zoned {number}"))
            plain = sign_record(record_of(key, key.peer_id, evil.identity.membership.network, f"zoned{number}"), key)
            wire = with_addresses(plain, key, [f"[fe80::1%{zone}]:9" for zone in zones])
            if not link.closed:
                link.send(Records((wire,)))
            evil.gossip(honest_ids[0], Records((wire,)))
        await asyncio.sleep(_ATTACK_S)

    honest_ids = honest.ids
    short = attack(honest, "zoner", lie)
    honest.blames(short, "addresses")


def test_invented_peers_push_nobody_out(honest: Field) -> None:
    """Two thousand records of peers that do not exist, rightly signed: the honest stay linked, work, and find newcomers."""

    async def lie(evil: EvilMember) -> None:
        links = [await evil.link(address) for address in honest.addresses]
        batch: list[bytes] = []
        for wire in evil.invented(2_000, reach=Reach.PRIVATE, addresses=(Address("127.0.0.9", 9),)):
            batch.append(wire)
            if len(batch) == 40:
                for link in links:
                    link.send(Records(tuple(batch)))
                batch = []
                await asyncio.sleep(0)
        # What comes back after all of it says that it has been taken in.
        asked_at = [link.heard_at for link in links]
        for link in links:
            link.ping()
        await until(
            lambda: all(link.closed or link.heard_at > at for link, at in zip(links, asked_at, strict=True)),
            "the honest answer after two thousand records",
        )
        await asyncio.sleep(_ATTACK_S)

    attack(honest, "inventor", lie)
    until_now(lambda: "anna" in honest.alive(honest.peers[1]), "the honest believe in each other")
    late = honest.home.up("emil", "--slots", "0")
    until_now(lambda: {"anna", "bert"} <= late.linked_names, "a newcomer finds the honest ones")
    late.kill()


def test_a_lender_that_lies_about_itself_breaks_no_job(honest: Field) -> None:
    """A million cores next door, accepted jobs, granted slots, and then silence, nonsense, results of others' tasks: the answer is right."""
    token = honest.invite("braggart")
    capability = Capability(1 << 20, 1e6, 1.0, 1e6, 1e6)

    names: list[str] = []

    async def lend(process: subprocess.Popen[bytes]) -> int:
        async with evil_member(token, "braggart", capability=capability, slots=1 << 20) as evil:
            names.append(evil.short_id)
            taken = 0

            def obey(link: Any, message: Message) -> None:
                nonlocal taken
                if link.closed:
                    return
                if isinstance(message, JobOpen):
                    link.send(JobAccept(message.job))
                    link.send(Grant(1 << 20))
                elif isinstance(message, Tasks):
                    taken += len(message.rows)
                    # A third is kept for ever, a third comes back undone, and of all there are results that nobody asked for.
                    unrun = tuple(_result(row, 6, b"no room") for row in message.rows if row[0] % 3 == 1)
                    others = tuple(_result((row[0] + 1_000, 7, 0, None), 0, b"\x01") for row in message.rows)
                    early = tuple(_result((row[0], row[1] + 1, 0, None), 0, b"\x01") for row in message.rows)
                    # After a while, what is no result at all.
                    garbage = tuple(_result(row, 0, b"\xc1garbage") for row in message.rows if taken > 6)
                    for rows in (unrun, others, early, garbage):
                        if rows and not link.closed:
                            link.send(Results(message.job, rows))
                elif isinstance(message, TasksCancel):
                    link.send(Grant(1 << 20))

            evil.on_message = obey
            links = [await evil.link(address) for address in honest.addresses]
            edges = tuple(Edge(link.peer, 0.0, 1e9) for link in links)
            for link in links:
                link.send(Records((evil.record(edges=edges).wire,)))
            deadline = time.monotonic() + 35
            while process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110 - a process sets no event
                await asyncio.sleep(0.05)
            return taken

    # A line for each task that has to be given to another.
    with honest.working(lines_max=3 * TASKS) as process:
        taken = asyncio.run(lend(process))
    assert taken, "nobody believed it, so nothing was tried"
    honest.blames(names[0], "sent a result that cannot be read")


def _result(row: Any, outcome: int, payload: bytes) -> Any:
    return (row[0], row[1], Outcome(outcome), 1, Payload(inline=payload, size_bytes=len(payload)))
