"""What a link costs: messages a second, round trip, bulk, by each carrier, beside a bare asyncio TLS stream in the same run.

    python -m benchmarks links

Both ends run in one process and one loop, so all figures are what one core gives for both. Only ratios from one run mean anything.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import DEFAULT_ROLES, Address
from p2pcompute.net.link import Link
from p2pcompute.net.links import LinkHub
from p2pcompute.net.tls import admission_error_from_tls, client_context, server_context
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.families import LINK_CODEC
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.membership import Admitted, Membership
from p2pcompute.wire.messages import BlobWant, Grant, Hello, Message, Records
from p2pcompute.wire.versions import ALPN_HTTP, ALPN_STREAM, PROTOCOL, PROTOCOL_OLDEST

FRAMES = 100_000
FRAME_BYTES = 200
ROUND_TRIPS = 2_000
BULK_BYTES = 100 << 20
RUNS = 3


class _Entropy:
    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


class _Clock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class _Identity:
    def __init__(self, authority: Authority) -> None:
        entropy, now = _Entropy(), time.time()
        key = PeerKey.generate(entropy)
        invitation = authority.invite(now_wall=now, entropy=entropy, roles=DEFAULT_ROLES)
        self.membership = Membership.mint(key, invitation, now, entropy)
        self.peer: PeerId = key.peer_id
        self._trust = self.membership.trust(None)
        self._server = server_context(self.membership, key, [ALPN_STREAM, ALPN_HTTP])
        self._client = client_context(self.membership, key, [ALPN_STREAM])

    def server_context(self) -> ssl.SSLContext:
        return self._server

    def client_context(self) -> ssl.SSLContext:
        return self._client

    def hello(self) -> Hello:
        membership = self.membership
        return Hello(PROTOCOL, PROTOCOL_OLDEST, membership.network, membership.chain, b"", "bench", bytes(16))

    def admit(self, leaf_der: bytes, hello: Hello, expected: PeerId | None) -> Admitted:
        return self._trust.admit(leaf_der, hello.invitations, time.time(), expected=expected)

    def tls_error(self, error: Exception, dialled: bool) -> Exception:
        return admission_error_from_tls(error, dialled)


class _Events:
    """Counts messages, answers grants, serves bulk."""

    def __init__(self) -> None:
        self.count = 0
        self.wanted = 0
        self.reached = asyncio.Event()
        self.bulk = bytes(BULK_BYTES)

    def link_up(self, link: Link) -> None:
        pass

    def link_down(self, link: Link, error: Exception | None) -> None:
        pass

    def refused(self, address: Address, error: Exception) -> None:
        raise error

    def message(self, link: Link, message: Message) -> None:
        if isinstance(message, BlobWant):
            link.serve_stream(message.stream, self.bulk)
        elif isinstance(message, Grant) and not link.dialled:
            link.send(message)
        else:
            self.count += 1
            if self.count >= self.wanted:
                self.reached.set()

    def expect(self, count: int) -> None:
        self.count, self.wanted = 0, count
        self.reached.clear()


async def _of_link(link: Link, here: _Events, there: _Events) -> tuple[float, float, float]:
    """Messages a second, median round trip in µs, bulk in MB/s."""
    payload = LINK_CODEC.encode(Records((bytes(FRAME_BYTES - 14),)))
    assert abs(len(payload) - FRAME_BYTES) < 10, len(payload)
    started = time.perf_counter()
    there.expect(FRAMES)
    for number in range(FRAMES):
        link.send_encoded(payload)
        if number % 500 == 0:
            await asyncio.sleep(0)
    await there.reached.wait()
    rate = FRAMES / (time.perf_counter() - started)
    trips = []
    for _ in range(ROUND_TRIPS):
        here.expect(1)
        started = time.perf_counter()
        link.send(Grant(1))
        await here.reached.wait()
        trips.append(time.perf_counter() - started)
    started = time.perf_counter()
    data = await link.request_stream(lambda stream: BlobWant(bytes(32), stream), BULK_BYTES)
    bulk = len(data) / 1e6 / (time.perf_counter() - started)
    return rate, statistics.median(trips) * 1e6, bulk


async def _of_bare(identities: list[_Identity]) -> tuple[float, float, float]:
    """The same by asyncio's streams, with nothing but a length before each frame and no decoding."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(FRAMES):
                await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            writer.write(b"x")
            for _ in range(ROUND_TRIPS):
                writer.write(await reader.readexactly(FRAME_BYTES))
            await reader.readexactly(1)
            content = memoryview(bytes(BULK_BYTES))
            for start in range(0, BULK_BYTES, 256 * 1024):
                writer.write(content[start : start + 256 * 1024])
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=identities[0].server_context())
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=identities[1].client_context(), server_hostname=""
    )
    frame = FRAME_BYTES.to_bytes(4, "big") + bytes(FRAME_BYTES)
    started = time.perf_counter()
    for number in range(FRAMES):
        writer.write(frame)
        if number % 500 == 0:
            await writer.drain()
            await asyncio.sleep(0)
    await reader.readexactly(1)
    rate = FRAMES / (time.perf_counter() - started)
    trips = []
    for _ in range(ROUND_TRIPS):
        started = time.perf_counter()
        writer.write(bytes(FRAME_BYTES))
        await reader.readexactly(FRAME_BYTES)
        trips.append(time.perf_counter() - started)
    started = time.perf_counter()
    writer.write(b"x")
    await reader.readexactly(BULK_BYTES)
    bulk = BULK_BYTES / 1e6 / (time.perf_counter() - started)
    writer.close()
    server.close()
    return rate, statistics.median(trips) * 1e6, bulk


async def _by_carrier(identities: list[_Identity], carrier: str) -> tuple[float, float, float]:
    async with asyncio.TaskGroup() as group:
        tasks = []

        def spawn(name: str, work: Coroutine[Any, Any, None]) -> object:
            tasks.append(group.create_task(work, name=name))
            return tasks[-1]

        events = [_Events(), _Events()]
        hubs = [
            LinkHub(identity, seen, _Clock(), random.Random(1), spawn)
            for identity, seen in zip(identities, events, strict=True)
        ]
        port = await hubs[0].start("127.0.0.1", 0, 1)
        link = await hubs[1].dial(Address("127.0.0.1", port), None, carrier)
        figures = await _of_link(link, events[1], events[0])
        for hub in hubs:
            await hub.stop()
        for task in tasks:
            task.cancel()
    return figures


def main() -> None:
    """Print medians of a few runs and the ratio to the bare stream."""
    authority = Authority.create("bench", now_wall=time.time(), entropy=_Entropy())
    identities = [_Identity(authority), _Identity(authority)]
    kinds: dict[str, Callable[[], Awaitable[tuple[float, float, float]]]] = {
        "bare TLS, asyncio streams": lambda: _of_bare(identities),
        "link by stream": lambda: _by_carrier(identities, "stream"),
        "link by WebSocket": lambda: _by_carrier(identities, "websocket"),
    }

    async def measure(work: Callable[[], Awaitable[tuple[float, float, float]]]) -> tuple[float, float, float]:
        return await work()

    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in kinds}
    for _ in range(RUNS):
        for name, work in kinds.items():
            found[name].append(asyncio.run(measure(work)))
    bare = [statistics.median(column) for column in zip(*found["bare TLS, asyncio streams"], strict=True)]
    print(f"{'':28}{'frames/s':>12}{'round trip µs':>16}{'bulk MB/s':>12}   of bare")
    for name, rows in found.items():
        figures = [statistics.median(column) for column in zip(*rows, strict=True)]
        ratios = " / ".join(f"{figure / base:.2f}" for figure, base in zip(figures, bare, strict=True))
        print(f"{name:28}{figures[0]:>12,.0f}{figures[1]:>16,.0f}{figures[2]:>12,.0f}   {ratios}")


if __name__ == "__main__":
    main()
