"""An asker, a relay and a target, linked to each other as peers behind NAT would be."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from p2pcompute.net.link import Link, LinkSettings
from p2pcompute.net.memory import MemoryNetwork
from p2pcompute.net.relay_book import RelaySettings
from p2pcompute.net.relay_server import RelayServer
from p2pcompute.wire.messages import BlobWant, Message
from p2pcompute.wire.reaching import CircuitData
from tests.unit.net.link_help import Side, fake_identities, sides, tls_identities, until

#: A relay that no test has to wait for.
FAST = RelaySettings(bytes_per_second=256 << 20, burst_bytes=16 << 20, opens_per_second=1_000)


def server(side: Side) -> RelayServer:
    return side.hub.reaching.server


@contextlib.asynccontextmanager
async def relayed(
    *,
    tls: bool = True,
    more: int = 0,
    relay: RelaySettings | None = None,
    settings: LinkSettings | None = None,
    network: MemoryNetwork | None = None,
    reserve: bool = True,
) -> AsyncIterator[list[Side]]:
    """[asker, relay, target, …]: all linked to the relay, which serves; the target has a reservation. Checked at the end."""
    identities: list[Any] = list(tls_identities(3 + more) if tls else fake_identities(3 + more))
    network = None if tls else network or MemoryNetwork()
    async with sides(identities, network=network, relay=relay or FAST, settings=settings) as made:
        middle = made[1]
        server(middle).serve(True)
        for side in made:
            if side is not middle:
                await side.hub.dial(middle.address, middle.peer)
        await until(lambda: len(middle.hub.links) == len(made) - 1)
        if reserve:
            await made[2].hub.reaching.ends.reserve(middle.peer)
        yield made
        server(middle).check_invariants()


async def dial_via(asker: Side, middle: Side, target: Side) -> tuple[Link, Link]:
    """The relayed link, as both ends have it."""
    link = await asker.hub.dial_via(middle.peer, target.peer)
    await until(lambda: target.hub.link(asker.peer) is not None)
    return link, target.link_to(asker)


def serve(side: Side, content: bytes) -> None:
    """Answer every BlobWant with `content`."""

    def answer(link: Link, message: Message) -> None:
        if isinstance(message, BlobWant):
            link.serve_stream(message.stream, content)

    side.events.on_message = answer


def want(stream: int) -> BlobWant:
    return BlobWant(bytes(32), stream)


def overhear(side: Side) -> list[bytes]:
    """Everything that circuits bring to `side` from here on."""
    heard: list[bytes] = []
    reaching = side.hub.reaching
    hear = reaching.heard

    def listen(link: Link, message: Message) -> bool:
        if isinstance(message, CircuitData):
            heard.append(message.data)
        return hear(link, message)

    reaching.heard = listen  # type: ignore[method-assign]
    return heard


def meddle(middle: Side, towards: Side, change: Callable[[CircuitData], CircuitData]) -> None:
    """Have the relay change what it passes on to one side."""
    link = middle.link_to(towards)
    send = link.send_bulk

    def changed(message: Message) -> None:
        send(change(message) if isinstance(message, CircuitData) else message)

    link.send_bulk = changed  # type: ignore[method-assign]
