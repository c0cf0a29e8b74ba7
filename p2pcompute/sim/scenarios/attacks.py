"""Scenarios of attacks: one member of twenty-one lies, somebody replays and forges what he hears, thousands of peers are invented.

What must hold in all of them: honest peers believe each other up, all the time; none is dead or gone on the word of a liar; tables keep their
bounds; and who is to blame is named.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address, Edge, PeerStatus, Reach
from p2pcompute.model.seams import Entropy
from p2pcompute.node.gossiping import DHT_CHANNEL, GOSSIP_CHANNEL
from p2pcompute.node.topology import shape_of
from p2pcompute.sim.invariants import settle
from p2pcompute.sim.lab import ExpectationError, Lab
from p2pcompute.sim.peers import SimOverlay, SimPeer
from p2pcompute.sim.scenarios.overlay import machines, network, start_all
from p2pcompute.wire import gossip
from p2pcompute.wire.codec import pack, unpack
from p2pcompute.wire.families import GOSSIP_CODEC
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.messages import Message, Records
from p2pcompute.wire.record import SignedRecord, sign_record

#: Honest peers.
HONEST = 20
#: Virtual seconds that an attack lasts.
ATTACK_S = 60.0
#: However many peers are made up, a crash is known to all within so many seconds.
_CRASH_KNOWN_S = 25.0
#: Peers made up for the sake of their edges, and how many times its fair share of the network's connectivity a liar may come to have.
_GHOSTS = 12
_SHARE_MAX = 2.0
#: Peers that somebody makes up.
INVENTED = 600
#: Milliseconds since 1970 in the year 2100.
_FAR_AHEAD = 4_102_444_800_000
#: What a flood sends at a time, and its pause, seconds.
_VOLLEY, _PAUSE_S = 40, 0.5


class Liar:
    """A member whose machine runs the ordinary program, and who says hostile things beside it."""

    def __init__(self, peer: SimPeer, rng: random.Random, entropy: Entropy) -> None:
        self._peer = peer
        self._rng = rng
        self._entropy = entropy
        self._thief = PeerKey.generate(entropy)

    @property
    def short_id(self) -> str:
        """By which others name it."""
        return short_peer_id(self._peer.peer)

    def say(self, to: SimPeer, message: Message) -> None:
        """Over the link where there is one, and in a datagram, once there is a session."""
        side = self._peer.side
        assert side is not None, "the liar runs"
        with self._peer.host.here():
            link = side.hub.link(to.peer)
            if link is not None:
                link.send(message)
            data = GOSSIP_CODEC.encode(message)
            if len(data) <= limits.DATAGRAM_PAYLOAD_BYTES_MAX:
                side.udp.send(to.peer, (to.address,), GOSSIP_CHANNEL, data)

    def babble(self, to: SimPeer) -> None:
        """Bytes that mean nothing, to gossip and to the address book."""
        side = self._peer.side
        assert side is not None, "the liar runs"
        with self._peer.host.here():
            for channel in (GOSSIP_CHANNEL, DHT_CHANNEL):
                side.udp.send(to.peer, (to.address,), channel, self._entropy.bytes(self._rng.randrange(1, 900)))

    def lies_about(self, victim: SimPeer) -> Iterator[Message]:
        """Everything that a member can say against another."""
        assert victim.own is not None, "the victim runs"
        signed = victim.own.signed
        accusation = gossip.sign_suspicion(victim.peer, signed.record.incarnation, self._peer.key)
        yield gossip.Rumours((accusation,))
        yield Records((self._forged(signed, leaving=True, incarnation=signed.record.incarnation + 1),))
        yield Records(
            (self._forged(signed, addresses=(Address("10.66.6.6", 6),), sequence=signed.record.sequence + 9),)
        )
        yield gossip.Rumours((gossip.announcement_wire(gossip.Announcement(victim.peer[:12], _FAR_AHEAD, 1)),))

    def lies(self) -> Iterator[Message]:
        """What needs no victim."""
        assert self._peer.own is not None, "the liar runs"
        own = self._peer.own.signed.record
        yield Records((sign_record(dataclasses.replace(own, incarnation=_FAR_AHEAD), self._peer.key).wire,))
        now_ms = own.incarnation
        yield gossip.Versions(tuple((self._entropy.bytes(12), now_ms, 1) for _ in range(30)))
        yield gossip.Want(tuple(self._entropy.bytes(12) for _ in range(30)))
        yield gossip.Digest(self._entropy.bytes(8 * limits.DIGEST_BUCKETS))
        yield gossip.Piece(self._entropy.bytes(8), 0, 16, self._entropy.bytes(900))
        yield gossip.ProbeVia(1, self._entropy.bytes(32))

    def _forged(self, signed: SignedRecord, **changes: object) -> bytes:
        """A record of somebody, changed, under that peer's public key, with a signature that is not by it."""
        mine = dataclasses.replace(signed.record, peer=self._thief.peer_id, **changes)  # type: ignore[arg-type]
        version, _, body, signature = unpack(sign_record(mine, self._thief).wire)
        return pack([version, signed.public_key, body, signature])


async def liar(lab: Lab) -> None:
    """A member accuses, forges, announces and asks without end: nobody is lost by it in a minute, and everybody names it."""
    async with network(lab, machines(HONEST + 1)) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        evil, honest = overlay.peers[-1], overlay.peers[:-1]
        mallory = Liar(evil, rng, lab.entropy("mallory"))
        said = len(overlay.said)
        until = lab.now + ATTACK_S
        while lab.now < until:
            for to in honest:
                for victim in rng.sample(honest, 2):
                    for message in mallory.lies_about(victim):
                        mallory.say(to, message)
                for message in mallory.lies():
                    mallory.say(to, message)
                mallory.babble(to)
            await asyncio.sleep(1.0)
            _all_alive(honest, f"{lab.now - until + ATTACK_S:.0f} s into the attack")
        _nobody_lost(overlay, honest, said)
        _all_name(honest, mallory.short_id)


async def replays(lab: Lab) -> None:
    """Every datagram of a minute is captured, and sent again for a minute by its own address and by another: nothing comes of it."""
    async with network(lab, machines(10)) as overlay:
        rng = lab.dice.of("scenario")
        captured: list[tuple[bytes, Address, Address]] = []

        def ear(data: bytes, source: Address, to: Address) -> bytes:
            # A reservoir: each one is as likely to be kept as any other.
            if len(captured) < 5_000:
                captured.append((data, source, to))
            else:
                captured[rng.randrange(0, 5_000)] = (data, source, to)
            return data

        for one in overlay.peers:
            for other in overlay.peers:
                if one is not other:
                    lab.network.tap(one.host, other.host, ear, one_way=True)
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        await asyncio.sleep(ATTACK_S)
        attacker = lab.network.add_host("66.6.6.6", name="attacker")
        said = len(overlay.said)
        # One peer begins a new life: what was said to the former one is said to the new one.
        await overlay.peers[3].crash()
        await overlay.peers[3].restart([overlay.peers[0]])
        until = lab.now + ATTACK_S
        while lab.now < until:
            for data, source, to in rng.sample(captured, 200):
                lab.network.inject(data, source, to, attacker)
                lab.network.inject(data, Address("66.6.6.6", 666), to, attacker)
                at = rng.randrange(0, len(data))
                lab.network.inject(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :], source, to, attacker)
            await asyncio.sleep(_PAUSE_S)
        await settle(overlay, 30.0, "the replays have changed nothing")
        _nobody_lost(overlay, [each for each in overlay.peers if each is not overlay.peers[3]], said)
        _some_name(overlay.peers, "66.6.6.6")


async def spoofed_flood(lab: Lab) -> None:
    """Junk and greetings from thousands of forged addresses, some of them members': sessions hold, tables stay small."""
    async with network(lab, machines(10)) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        attacker, entropy = lab.network.add_host("66.6.6.6", name="attacker"), lab.entropy("attacker")
        said = len(overlay.said)
        until = lab.now + ATTACK_S
        while lab.now < until:
            for victim in overlay.peers:
                for _ in range(_VOLLEY):
                    member = overlay.peers[rng.randrange(0, len(overlay.peers))]
                    stranger = Address(
                        f"{rng.randrange(11, 200)}.{rng.randrange(0, 250)}.7.7", rng.randrange(1, 60_000)
                    )
                    source = member.address if rng.random() < 0.3 else stranger
                    data = entropy.bytes(rng.randrange(1, 1_300))
                    lab.network.inject(data, source, victim.address, attacker)
                    lab.network.inject(b"\xd0" + data, source, victim.address, attacker)
            await asyncio.sleep(_PAUSE_S)
            _all_alive(overlay.peers, "under a flood")
        _nobody_lost(overlay, overlay.peers, said)


async def invented_peers(lab: Lab) -> None:
    """A member invents six hundred peers: the twenty honest ones keep each other, and a crash among them is still noticed."""
    async with sybil_network(lab, HONEST + 1) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        evil, honest = overlay.peers[-1], overlay.peers[:-1]
        assert evil.own is not None, "it runs"
        mallory, entropy = Liar(evil, rng, lab.entropy("mallory")), lab.entropy("invented")
        plain = evil.own.signed.record
        said = len(overlay.said)
        for number in range(INVENTED // 20):
            batch = []
            for _ in range(20):
                key = PeerKey.generate(entropy)
                ghost = dataclasses.replace(
                    plain, peer=key.peer_id, name=f"ghost{number}", addresses=(Address("10.66.6.6", 6),), edges=(),
                    reach=Reach.PRIVATE, relays=(),
                )  # fmt: skip
                batch.append(sign_record(ghost, key).wire)
            for to in rng.sample(honest, 3):
                mallory.say(to, Records(tuple(batch)))
            await asyncio.sleep(0.2)
        await asyncio.sleep(ATTACK_S)
        _all_alive(honest, "among invented peers")
        _nobody_lost(overlay, honest, said)
        victim = honest[7]
        await victim.crash()
        begun = lab.now
        others = [each for each in honest if each is not victim]
        while any(victim.peer in each.alive for each in others):
            if lab.now - begun > _CRASH_KNOWN_S:
                late = [each.name for each in others if victim.peer in each.alive]
                raise ExpectationError(
                    f"after {lab.now - begun:.0f} s {', '.join(late)} believe that {victim.name} lives"
                )
            await asyncio.sleep(0.25)
        await victim.restart()
        await asyncio.sleep(ATTACK_S / 2)
        _all_alive(honest, "after a crash among invented peers")


async def false_edges(lab: Lab) -> None:
    """A member says that it is next to everybody, with the widest lines, and invents peers that say so, too: nobody's picture of the network changes."""
    async with sybil_network(lab, HONEST // 2 + 1) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        await asyncio.sleep(ATTACK_S / 2)
        evil, honest = overlay.peers[-1], overlay.peers[:-1]
        assert evil.own is not None, "it runs"
        mallory, entropy = Liar(evil, rng, lab.entropy("mallory")), lab.entropy("invented")
        plain = evil.own.signed.record
        keys = [PeerKey.generate(entropy) for _ in range(_GHOSTS)]
        names = [*(each.peer for each in honest), *(key.peer_id for key in keys)]
        for life in range(int(ATTACK_S)):
            lies = [(key, 1) for key in keys] + [(evil.key, 1_000_000)]
            wires = []
            for key, ahead in lies:
                near = [Edge(other, 1e-6, 1e6) for other in (*names, evil.peer) if other != key.peer_id]
                told = dataclasses.replace(
                    plain, peer=key.peer_id, sequence=plain.sequence + ahead + life, reach=Reach.PRIVATE, relays=(),
                    edges=tuple(rng.sample(near, limits.EDGES_MAX)),
                )  # fmt: skip
                wires.append(sign_record(told, key).wire)
            for to in honest:
                mallory.say(to, Records(tuple(wires)))
            await asyncio.sleep(1.0)
        wall_s = honest[0].clock.wall()
        for each in honest:
            shape = shape_of(each.view, wall_s)
            invented = [peer for peer in shape.peers if peer not in {other.peer for other in overlay.peers}]
            if invented:
                raise ExpectationError(f"{each.name} takes {len(invented)} invented peers for parts of the network")
            row = shape.row(evil.peer)
            share, fair = 0.0 if row is None else float(shape.shares[row]), 1.0 / len(shape.peers)
            if share > _SHARE_MAX * fair:
                raise ExpectationError(f"to {each.name} the liar has a share of {share:.3f}, {fair:.3f} would be fair")


@asynccontextmanager
async def sybil_network(lab: Lab, count: int) -> AsyncIterator[SimOverlay]:
    """`network` without the rule that everybody who is known must exist, and without looking at thousands of rows after each event."""
    overlay = SimOverlay(lab)
    for machine in machines(count):
        overlay.add(machine)
    yield overlay
    await overlay.stop()


def _all_alive(honest: list[SimPeer], when: str) -> None:
    for each in honest:
        for other in honest:
            status = each.status_of(other) if other is not each else PeerStatus.ALIVE
            if status in (PeerStatus.DEAD, PeerStatus.LEFT, None):
                raise ExpectationError(f"{when} {each.name} believes {other.name} {status}")


def _nobody_lost(overlay: SimOverlay, honest: list[SimPeer], since: int) -> None:
    about: dict[PeerId, None] = dict.fromkeys(each.peer for each in honest)
    for each in overlay.said[since:]:
        if each.kind in ("peer_died", "peer_left") and each.about in about and each.by.peer in about:
            raise ExpectationError(
                f"{each.by.name} believed that {overlay.name_of(each.about)} was gone: {each.kind} {each.text}"
            )


def _all_name(honest: list[SimPeer], whom: str) -> None:
    for each in honest:
        if each.side is None or whom not in each.side.overlay.troubles:
            raise ExpectationError(f"{each.name} does not name {whom}")
    told = [each.side.overlay.troubles[whom].what for each in honest if each.side is not None]
    for what in ("signature", "from the future", "accuses", "nobody has", "cannot be read", "address book"):
        if not any(what in text for text in told):
            raise ExpectationError(f"nobody says {what!r} of {whom}, but {told[0]}")


def _some_name(peers: list[SimPeer], whom: str) -> None:
    if not any(each.side is not None and whom in each.side.overlay.troubles for each in peers):
        raise ExpectationError(f"nobody names {whom}")
