"""Peers for the tests of links: real identities and TLS on loopback, or fakes in a memory network."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pcompute.model.errors import AdmissionError, AdmissionReason, LinkClosedError, P2PComputeError
from p2pcompute.model.ids import PeerId, peer_id_of
from p2pcompute.model.peer import Address, Role
from p2pcompute.model.seams import Clock
from p2pcompute.net.link import Link, LinkSettings
from p2pcompute.net.links import LinkHub, Worth
from p2pcompute.net.memory import MemoryNetwork
from p2pcompute.net.relay_book import RelaySettings
from p2pcompute.net.relay_pipe import ClearPipes
from p2pcompute.net.tls import admission_error_from_tls, client_context, server_context
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.membership import Membership
from p2pcompute.wire.messages import Hello, Message
from p2pcompute.wire.versions import ALPN_HTTP, ALPN_STREAM, PROTOCOL, PROTOCOL_OLDEST

WAIT_S = 10.0


async def until(condition: Callable[[], object], what: str = "condition", wait_s: float = WAIT_S) -> None:
    """Wait until `condition()` holds."""
    try:
        async with asyncio.timeout(wait_s):
            while not condition():  # noqa: ASYNC110 - any condition, not only ours
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true within {wait_s} s") from None


class SystemClock:
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return time.time()


class Later:
    """A clock that is ahead of another one."""

    def __init__(self, clock: Clock, ahead_s: float) -> None:
        self.clock = clock
        self.ahead_s = ahead_s

    def monotonic(self) -> float:
        return self.clock.monotonic() + self.ahead_s

    def wall(self) -> float:
        return self.clock.wall() + self.ahead_s


class Wall:
    """A clock whose wall says what the test wants."""

    def __init__(self, clock: Clock, now_wall: float) -> None:
        self.monotonic = clock.monotonic
        self.now_wall = now_wall

    def wall(self) -> float:
        return self.now_wall


class Dice:
    """Entropy with a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


@dataclass(frozen=True)
class FakeAdmission:
    peer: PeerId
    public_key: bytes = b""
    roles: frozenset[Role] = frozenset({Role.SUBMIT, Role.COMPUTE})
    invitation: bytes = b"i"
    expires_wall: float = 1e12


@dataclass
class FakeIdentity:
    """In a memory network the leaf is the peer's id."""

    peer: PeerId
    instance: bytes = b"instance0"
    newest: int = PROTOCOL
    refuses: set[PeerId] = field(default_factory=set)

    def server_context(self) -> ssl.SSLContext:
        raise AssertionError("no TLS here")

    client_context = server_context

    def hello(self) -> Hello:
        return Hello(self.newest, PROTOCOL_OLDEST, bytes(32), (), b"", "test", self.instance)

    def admit(self, leaf_der: bytes, hello: Hello, expected: PeerId | None) -> FakeAdmission:
        if leaf_der in self.refuses:
            raise AdmissionError(AdmissionReason.REVOKED, "the owner revoked it")
        return FakeAdmission(PeerId(leaf_der), invitation=leaf_der)

    def tls_error(self, error: Exception, dialled: bool) -> P2PComputeError:
        return LinkClosedError(str(error))


class TlsIdentity:
    """A peer of a real network, with real certificates."""

    def __init__(self, seed: int, authority: Authority, wall: float | None = None, valid_s: float = 3600.0) -> None:
        dice = Dice(seed)
        now = time.time() if wall is None else wall
        key = PeerKey.generate(dice)
        invitation = authority.invite(
            roles=frozenset({Role.SUBMIT, Role.COMPUTE}), label="test", valid_s=valid_s, now_wall=now, entropy=dice,
            may_invite=False, addresses=(),
        )  # fmt: skip
        self.key = key
        self.peer = key.peer_id
        self.membership = Membership.mint(key, invitation, now, dice)
        self._trust = self.membership.trust(None)
        self._server = server_context(self.membership, key, [ALPN_STREAM, ALPN_HTTP])
        self._client = client_context(self.membership, key, [ALPN_STREAM])
        self.instance = dice.bytes(16)

    def server_context(self) -> ssl.SSLContext:
        return self._server

    def client_context(self) -> ssl.SSLContext:
        return self._client

    def hello(self) -> Hello:
        membership = self.membership
        return Hello(PROTOCOL, PROTOCOL_OLDEST, membership.network, membership.chain, b"", "test", self.instance)

    def admit(self, leaf_der: bytes, hello: Hello, expected: PeerId | None) -> Any:
        return self._trust.admit(leaf_der, hello.invitations, time.time(), expected=expected)

    def tls_error(self, error: Exception, dialled: bool) -> P2PComputeError:
        return admission_error_from_tls(error, dialled)


class Recorder:
    """LinkEvents that remembers, and checks that their order makes sense."""

    def __init__(self) -> None:
        self.up: list[Link] = []
        self.down: list[tuple[Link, P2PComputeError | None]] = []
        self.messages: list[tuple[Link, Message]] = []
        self.refusals: list[tuple[Address, P2PComputeError]] = []
        self.on_message: Callable[[Link, Message], None] = lambda link, message: None
        self.on_up: Callable[[Link], None] = lambda link: None

    def link_up(self, link: Link) -> None:
        assert link not in self.up
        assert not link.closed
        assert link.admission.peer == link.peer
        self.up.append(link)
        self.on_up(link)

    def message(self, link: Link, message: Message) -> None:
        assert link in self.up
        self.messages.append((link, message))
        self.on_message(link, message)

    def link_down(self, link: Link, error: P2PComputeError | None) -> None:
        assert link in self.up
        assert all(link is not earlier for earlier, _ in self.down)
        self.down.append((link, error))

    def refused(self, address: Address, error: P2PComputeError) -> None:
        self.refusals.append((address, error))

    @property
    def open(self) -> list[Link]:
        gone = [link for link, _ in self.down]
        return [link for link in self.up if link not in gone]


class Side:
    """A hub, its events and where it listens."""

    def __init__(self, hub: LinkHub, events: Recorder, identity: Any, host: str) -> None:
        self.hub = hub
        self.events = events
        self.identity = identity
        self.host = host
        self.port = 0

    @property
    def peer(self) -> PeerId:
        return PeerId(self.identity.peer)

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)

    def link_to(self, other: Side) -> Link:
        return self.hub.links[other.peer]


async def _serve(hub: LinkHub) -> None:
    await hub.run()


@contextlib.asynccontextmanager
async def sides(
    identities: Sequence[Any],
    *,
    settings: LinkSettings | None = None,
    network: MemoryNetwork | None = None,
    relay: RelaySettings | None = None,
    worth: Worth | None = None,
) -> AsyncIterator[list[Side]]:
    """Hubs that listen and run, one for each identity; stopped at the end."""
    made: list[Side] = []
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []

        def spawn(name: str, work: Coroutine[Any, Any, None]) -> object:
            task = group.create_task(work, name=name)
            tasks.append(task)
            return task

        for number, identity in enumerate(identities, 1):
            events = Recorder()
            host = f"10.0.0.{number}" if network is not None else "127.0.0.1"
            transport = network.transport(host, identity.peer, identity.hello) if network is not None else None
            hub = LinkHub(
                identity, events, SystemClock(), random.Random(number), spawn,
                settings=settings or LinkSettings(), transport=transport, worth=worth, relay=relay,
                pipes=ClearPipes(identity.peer) if network is not None else None,
            )  # fmt: skip
            side = Side(hub, events, identity, host)
            side.port = await hub.start(None if network is not None else "127.0.0.1", 0, 1)
            made.append(side)
            tasks.append(group.create_task(_serve(hub), name="run"))
        try:
            yield made
        finally:
            for side in made:
                await side.hub.stop()
            for task in tasks:
                task.cancel()


def fake_identities(count: int) -> list[FakeIdentity]:
    """Peers in the order of their ids."""
    return [FakeIdentity(PeerId(bytes([number]) * 32)) for number in range(1, count + 1)]


def tls_identities(count: int) -> list[TlsIdentity]:
    """Peers of one network, in the order of their ids."""
    authority = Authority.create("test", Dice(99), time.time())
    return sorted((TlsIdentity(seed, authority) for seed in range(count)), key=lambda identity: identity.peer)


def peer_of(public_key: bytes) -> PeerId:
    return peer_id_of(public_key)
