"""A member of the network that does what it likes, built from the product's own parts: a valid invitation, an own key, real links and sessions.

    async with evil_member(token) as evil:
        link = await evil.link(address)
        link.send(...)                      # any message over a link
        await evil.session(peer, address)
        evil.gossip(peer, ...)              # any gossip in a sealed datagram

It answers probes, so that it stays alive to the others, and nothing else that it is not told to answer; what reaches it is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from p2pcompute.model.capability import Capability
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address, Isolation, PeerRecord, Reach, Role
from p2pcompute.net.link import Link
from p2pcompute.net.links import LinkHub
from p2pcompute.net.udp import UdpEndpoint
from p2pcompute.net.udp_port import open_udp_port
from p2pcompute.node.gossiping import DHT_CHANNEL, GOSSIP_CHANNEL
from p2pcompute.node.identity import NodeIdentity
from p2pcompute.node.seams import SystemClock, SystemEntropy
from p2pcompute.wire.families import GOSSIP_CODEC
from p2pcompute.wire.gossip import Ack, Probe
from p2pcompute.wire.identity import PeerKey, verify_signature
from p2pcompute.wire.invitation import Invitation
from p2pcompute.wire.membership import Admitted, Membership
from p2pcompute.wire.messages import Message
from p2pcompute.wire.record import SignedRecord, Signer, open_record, sign_record
from p2pcompute.wire.versions import PROTOCOL

#: Nothing here takes longer on an idle machine than a tenth of it.
PATIENCE_S = 20.0


def record_of(key: Signer, peer: PeerId, network: Any, name: str, **changes: Any) -> PeerRecord:
    """A record of `peer`, an ordinary one but for `changes`."""
    plain = PeerRecord(
        peer=peer,
        network=network,
        incarnation=int(time.time() * 1000),
        sequence=1,
        name=name,
        addresses=(Address("127.0.0.1", 9),),
        capability=Capability(2, 3_000.0, 0.9, 8.0, 6.0),
        slots=0,
        load=0.0,
        roles=frozenset({Role.SUBMIT, Role.COMPUTE}),
        isolation=Isolation.PROCESS,
        python="3.11",
        platform="linux",
        version="0.0.0",
        protocol=PROTOCOL,
        reach=Reach.UNKNOWN,
    )
    return dataclasses.replace(plain, **changes)


@dataclass
class EvilMember:
    """See the module. Made by `evil_member`."""

    identity: NodeIdentity
    own: SignedRecord
    hub: LinkHub
    udp: UdpEndpoint
    #: Messages over links, and (peer, channel, payload) of datagrams.
    said: list[Message] = field(default_factory=list)
    heard: list[tuple[PeerId, int, bytes]] = field(default_factory=list)
    #: Called with each of these; what hostile answers are made of.
    on_datagram: Callable[[PeerId, int, bytes], None] = lambda peer, channel, payload: None
    on_message: Callable[[Link, Message], None] = lambda link, message: None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def peer(self) -> PeerId:
        """Its id."""
        return self.identity.peer

    @property
    def short_id(self) -> str:
        """By which honest peers name it."""
        return short_peer_id(self.peer)

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> object:
        """Run work until the end of the test."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.append(task)
        return task

    # --- links ----------------------------------------------------------------------------------------------------------

    async def link(self, address: Address) -> Link:
        """A link to the honest peer at `address`."""
        return await self.hub.dial(address, None)

    def overhear(self, link: Link, call: Callable[[Message], None]) -> None:
        """Hand to `call` every message that comes on `link`, those that the hub deals with itself included."""
        received = self.hub.received

        def tapped(on: Link, message: Message) -> None:
            if on is link:
                call(message)
            received(on, message)

        self.hub.received = tapped  # type: ignore[method-assign]

    async def flood(self, link: Link, messages: Iterable[Message]) -> None:
        """Send `messages` over `link`, as fast as it takes them, until it is closed."""
        for number, message in enumerate(messages):
            if link.closed:
                return
            link.send(message)
            if number % 32 == 31:
                await asyncio.sleep(0)
            while not link.has_room() and not link.closed:  # noqa: ASYNC110 - a flood asks again and again
                await asyncio.sleep(0.002)

    # --- datagrams ------------------------------------------------------------------------------------------------------

    async def session(self, peer: PeerId, address: Address) -> None:
        """A session with the honest `peer` at `address`."""
        async with asyncio.timeout(PATIENCE_S):
            while self.udp.session(peer) is None:
                self.udp.greet(address)
                await asyncio.sleep(0.05)

    def gossip(self, peer: PeerId, message: Message) -> None:
        """One message in a sealed datagram."""
        self.udp.send(peer, (), GOSSIP_CHANNEL, GOSSIP_CODEC.encode(message))

    def raw(self, peer: PeerId, payload: bytes, channel: int = GOSSIP_CHANNEL) -> None:
        """Any bytes in a sealed datagram."""
        self.udp.send(peer, (), channel, payload)

    def book(self, peer: PeerId, payload: bytes) -> None:
        """Any bytes for the address book."""
        self.raw(peer, payload, DHT_CHANNEL)

    # --- records --------------------------------------------------------------------------------------------------------

    def record(self, **changes: Any) -> SignedRecord:
        """The own record, changed and signed."""
        sequence = changes.pop("sequence", self.own.record.sequence + 1)
        self.own = sign_record(dataclasses.replace(self.own.record, sequence=sequence, **changes), self.identity.key)
        return self.own

    def invented(self, count: int, **changes: Any) -> Iterable[bytes]:
        """Records of peers that do not exist, each signed by a key of its own."""
        entropy = SystemEntropy()
        for number in range(count):
            key = PeerKey.generate(entropy)
            name = f"ghost{number}"
            record = record_of(key, key.peer_id, self.identity.membership.network, name, **changes)
            yield sign_record(record, key).wire

    # --- LinkEvents, UdpEvents ------------------------------------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """Called by the hub."""

    def message(self, link: Link, message: Message) -> None:
        """Called by the hub."""
        self.said.append(message)
        if isinstance(message, Probe) and not link.closed:
            link.send(Ack(message.nonce))
        self.on_message(link, message)

    def link_down(self, link: Link, error: P2PComputeError | None) -> None:
        """Called by the hub."""

    def refused(self, address: Address, error: P2PComputeError, times: int = 1) -> None:
        """Called by both."""

    def datagram(self, peer: PeerId, channel: int, payload: bytes, source: Address) -> None:
        """Called by the endpoint."""
        self.heard.append((peer, channel, payload))
        if channel == GOSSIP_CHANNEL:
            message = GOSSIP_CODEC.decode(payload)
            if isinstance(message, Probe):
                self.gossip(peer, Ack(message.nonce))
        self.on_datagram(peer, channel, payload)

    def session_up(self, peer: PeerId, address: Address, admission: Admitted) -> None:
        """Called by the endpoint."""


@contextlib.asynccontextmanager
async def evil_member(token: str, name: str = "mallory", **changes: Any) -> AsyncIterator[EvilMember]:
    """A member under the invitation in `token`, with `changes` in its record; it listens, and has no links yet."""
    clock, entropy = SystemClock(), SystemEntropy()
    key = PeerKey.generate(entropy)
    membership = Membership.mint(key, Invitation.from_token(token, clock.wall()), clock.wall(), entropy)
    record = record_of(key, key.peer_id, membership.network, name, **changes)
    evil = EvilMember.__new__(EvilMember)
    identity = NodeIdentity(
        key, membership, membership.trust(None), clock, agent="evil", instance=entropy.bytes(16),
        record_wire=lambda: evil.own.wire,
    )  # fmt: skip
    hub = LinkHub(identity, evil, clock, random.Random(7), lambda what, work: evil.spawn(what, work))
    udp = UdpEndpoint(identity.for_datagrams, evil, clock, entropy, open_udp_port)
    EvilMember.__init__(evil, identity, sign_record(record, key), hub, udp)
    port = await udp.start("127.0.0.1", 0)
    await hub.start("127.0.0.1", port, 1)
    evil.record(addresses=(Address("127.0.0.1", port),))
    try:
        yield evil
    finally:
        await hub.stop()
        await udp.stop()
        for task in evil.tasks:
            task.cancel()
        await asyncio.wait(evil.tasks) if evil.tasks else None


def forged(record: SignedRecord, key: PeerKey, **changes: Any) -> bytes:
    """`record` of somebody, changed, with the signature of `key` under that peer's public key: what a forger can do."""
    from p2pcompute.wire.codec import pack, unpack

    honest = open_record(record.wire, verify_signature).record
    version, public_key, _, _ = unpack(record.wire, bytes_max=10_000)
    mine = sign_record(dataclasses.replace(honest, peer=key.peer_id, **changes), key)
    _, _, body, signature = unpack(mine.wire, bytes_max=10_000)
    return pack([version, public_key, body, signature])
