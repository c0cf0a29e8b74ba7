"""The address book with a third of its peers dead, beside the stock package `kademlia` in the same run.

    python -m benchmarks dht

All peers run in one process and loop, over UDP sockets of loopback; ours through a port without seals, since the stock package has none
either. Both networks grow in the same way, every peer publishes one value, a third is killed without a word, and those that
live get the same values in the same order twice. What is measured is mostly how long one waits for the dead.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from kademlia.network import Server

from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.dht.dht import Dht
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.pointer import Name

PEERS = 60
KILLED = 20
GETS = 120
GETS_AT_ONCE = 12
NAME = Name(255, b"benchmark")
HERE = "127.0.0.1"

Get = Callable[[int, int], Awaitable[bool]]


class _Clock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class ThinPort(asyncio.DatagramProtocol):
    """A `DhtPort` over one UDP socket, without seals: the sender's id stands in front of each datagram, and is believed."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.received: Callable[[PeerId, Address, bytes], None] = lambda peer, source, payload: None
        self.transport: Any = None

    @classmethod
    async def open(cls, peer: PeerId, host: str = HERE) -> ThinPort:
        """Open one at a free port of `host`."""
        loop = asyncio.get_running_loop()
        _, port = await loop.create_datagram_endpoint(lambda: cls(peer), local_addr=(host, 0))
        return port

    @property
    def address(self) -> Address:
        """Where it is."""
        return Address(*self.transport.get_extra_info("sockname")[:2])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received(PeerId(data[:32]), Address(*addr[:2]), data[32:])

    def send(self, peer: PeerId, addresses: tuple[Address, ...], payload: bytes) -> None:
        """See `DhtPort`."""
        if not self.transport.is_closing():
            self.transport.sendto(self.peer + payload, (addresses[0].host, addresses[0].port))

    def close(self) -> None:
        """Hear and send nothing any more."""
        self.transport.close()


async def _timed(get: Get, readers: int, seed: int) -> tuple[int, list[float]]:
    """How many gets succeeded, and the seconds of each, sorted."""
    rng = random.Random(seed)
    wanted = [(KILLED + rng.randrange(0, readers), rng.randrange(0, PEERS)) for _ in range(GETS)]
    took: list[float] = []
    succeeded = 0

    async def worker() -> None:
        nonlocal succeeded
        while wanted:
            reader, owner = wanted.pop()
            started = time.perf_counter()
            has_succeeded = await get(reader, owner)
            succeeded += has_succeeded
            took.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(GETS_AT_ONCE):
            group.create_task(worker())
    return succeeded, sorted(took)


async def ours() -> list[tuple[int, list[float]]]:
    """Both passes of ours."""
    tasks: dict[asyncio.Task[None], None] = {}

    def spawn(name: str, work: Coroutine[Any, Any, None]) -> object:
        task = asyncio.get_running_loop().create_task(work, name=name)
        tasks[task] = None
        task.add_done_callback(lambda done: tasks.pop(done))
        return task

    keys = [PeerKey(random.Random(number).randbytes(32)) for number in range(PEERS)]
    ports = [await ThinPort.open(key.peer_id) for key in keys]
    books = []
    for number, (key, port) in enumerate(zip(keys, ports, strict=True)):
        dht = Dht(key.peer_id, key, port, _Clock(), random.Random(number), spawn, invitation_of=lambda peer: peer)
        port.received = dht.received
        books.append(dht)
    for dht, key in list(zip(books, keys, strict=True))[1:]:
        dht.heard_of(keys[0].peer_id, (ports[0].address,))
        await asyncio.wait(list(tasks))
        await dht.lookup(key.peer_id)
    for number, dht in enumerate(books):
        await dht.put(NAME, b"%d" % number, 3_600)
    for dht, port in list(zip(books, ports, strict=True))[:KILLED]:
        dht.stop()
        port.close()

    async def get(reader: int, owner: int) -> bool:
        found = await books[reader].get(keys[owner].peer_id, NAME)
        return found is not None and found.value == b"%d" % owner

    found = [await _timed(get, PEERS - KILLED, 1) for _ in range(2)]
    for dht, port in zip(books, ports, strict=True):
        dht.stop()
        port.close()
    for task in list(tasks):
        task.cancel()
    await asyncio.sleep(0)
    return found


async def stock() -> list[tuple[int, list[float]]]:
    """Both passes of the stock package."""
    rng = random.Random(1)
    servers = [Server(node_id=rng.randbytes(20)) for _ in range(PEERS)]
    places = []
    for server in servers:
        await server.listen(0, HERE)
        places.append(server.transport.get_extra_info("sockname")[:2])
    for server in servers[1:]:
        await server.bootstrap([places[0]])
    for number, server in enumerate(servers):
        await server.set(f"value {number}", str(number))
    for server in servers[:KILLED]:
        server.stop()

    async def get(reader: int, owner: int) -> bool:
        # Whatever it raises is a get that failed.
        try:
            return bool(await servers[reader].get(f"value {owner}") == str(owner))
        except Exception:
            return False

    found = [await _timed(get, PEERS - KILLED, 1) for _ in range(2)]
    for server in servers[KILLED:]:
        server.stop()
    return found


def main() -> None:
    """Print success and latency of both passes, ours and stock."""
    logging.getLogger("rpcudp").setLevel(logging.CRITICAL)
    logging.getLogger("kademlia").setLevel(logging.CRITICAL)
    print(f"{PEERS} peers on loopback, {KILLED} killed, {GETS} gets a pass, {GETS_AT_ONCE} at once")
    print(f"{'':22}{'succeeded':>12}{'median s':>10}{'p95 s':>10}{'worst s':>10}")
    for name, measure in (("ours", ours), ("stock kademlia", stock)):
        for number, (succeeded, took) in enumerate(asyncio.run(measure()), 1):
            label = f"{name}, pass {number}"
            figures = f"{took[len(took) // 2]:>10.3f}{took[len(took) * 95 // 100]:>10.3f}{took[-1]:>10.3f}"
            print(f"{label:22}{succeeded:>6} of {len(took):<3}{figures}")
    print("aims of ours: every get succeeds, p95 under 2.5 s in the first pass and 0.3 s in the second")


if __name__ == "__main__":
    main()
