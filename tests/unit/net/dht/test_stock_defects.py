"""The package `kademlia` as it comes: each defect of the table D1 to D23 is still there.

These fail when upstream has mended one. That is good news: then see whether the override that stands against it (its test is in
`test_defects.py`) is still needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import kademlia
import pytest
import rpcudp.protocol
import umsgpack
from kademlia.crawling import NodeSpiderCrawl, RPCFindResponse, ValueSpiderCrawl
from kademlia.network import Server
from kademlia.node import Node
from kademlia.protocol import KademliaProtocol
from kademlia.routing import RoutingTable
from kademlia.storage import ForgetfulStorage
from kademlia.utils import digest

HERE = "127.0.0.1"


def still(there: object, defect: str) -> None:
    """Fail with what to do where `defect` is no longer there."""
    assert there, (
        f"kademlia {kademlia.__version__} no longer has defect {defect}: upstream has mended it. "
        "Read its change, and see whether our override is still needed"
    )


class _Transport:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, tuple[Any, ...]]] = []

    def sendto(self, data: bytes, address: tuple[Any, ...]) -> None:
        self.sent.append((data, address))

    def close(self) -> None:
        pass


def _server(node_id: bytes = bytes(19) + b"\1") -> Server:
    server = Server(node_id=node_id)
    server.protocol = server._create_protocol()
    server.protocol.transport = _Transport()
    server.protocol._wait_timeout = 0.05
    return server


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def quietly() -> None:
        # What the package leaves to the loop's handler is its defect, not this test's failure.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        await main()

    asyncio.run(quietly())


class _Evil(asyncio.DatagramProtocol):
    """Answers every request of the package with one answer."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.id = os.urandom(20)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        if data[:1] == b"\0":
            name, _ = umsgpack.unpackb(data[21:])
            said = self.id if name == "ping" else self.answer
            self.transport.sendto(b"\1" + data[1:21] + umsgpack.packb(said), address)


async def _with_evil(answer: object, then: Callable[[Server, _Evil], Awaitable[None]]) -> None:
    server = Server()
    await server.listen(0, HERE)
    server.protocol._wait_timeout = 0.1
    server.refresh_loop.cancel()
    loop = asyncio.get_running_loop()
    transport, evil = await loop.create_datagram_endpoint(lambda: _Evil(answer), local_addr=(HERE, 0))
    try:
        await then(server, evil)
    finally:
        transport.close()
        server.stop()
        await asyncio.sleep(0)


@pytest.mark.parametrize("contact", [[os.urandom(20), HERE, 70_000], [os.urandom(20), None, None]])
def test_d1_a_bad_address_in_a_reply_closes_the_socket(contact: list[object]) -> None:
    async def look(server: Server, evil: _Evil) -> None:
        server.protocol.router.add_contact(Node(evil.id, *evil.transport.get_extra_info("sockname")))
        # It may raise or not; what matters is the socket.
        with contextlib.suppress(Exception):
            await server.get("something")
        still(server.transport.is_closing(), "D1")

    _run(lambda: _with_evil([contact], look))


def test_d2_twin_ids_break_lookups() -> None:
    table = RoutingTable(None, 20, Node(os.urandom(20)))
    twin = os.urandom(20)
    for each in (twin, b"\0" + twin):
        table.add_contact(Node(each, HERE, 1))
    try:
        table.find_neighbors(Node(os.urandom(20)))
    except TypeError:
        return
    still(False, "D2")


def test_d3_a_reply_of_wrong_shape_raises_and_the_liar_stays() -> None:
    async def look(server: Server, evil: _Evil) -> None:
        server.protocol.router.add_contact(Node(evil.id, *evil.transport.get_extra_info("sockname")))
        with pytest.raises(TypeError):
            await server.get("something")
        still(not server.protocol.router.is_new_node(Node(evil.id)), "D3")

    _run(lambda: _with_evil(7, look))


def test_d4_all_of_a_reply_is_taken() -> None:
    many = [[os.urandom(20), HERE, 9] for _ in range(1_500)]
    spider = NodeSpiderCrawl(None, Node(os.urandom(20)), [], 20, 3)
    spider.nearest.push(RPCFindResponse((True, many)).get_node_list())
    still(len(spider.nearest.heap) == 1_500, "D4")


def test_d5_anybody_overwrites_any_key() -> None:
    async def main() -> None:
        server = _server()
        server.storage[digest("job")] = "good"
        server.protocol.rpc_store((HERE, 9), os.urandom(20), digest("job"), "evil")
        still(server.storage[digest("job")] == "evil", "D5")

    _run(main)


def test_d6_a_list_as_value_breaks_the_getter() -> None:
    async def main() -> None:
        spider = ValueSpiderCrawl(None, Node(os.urandom(20)), [], 20, 3)
        try:
            await spider._handle_found_values([["not", "hashable"]])
        except TypeError:
            return
        still(False, "D6")

    _run(main)


def test_d7_a_key_of_wrong_length_stops_republishing() -> None:
    async def main() -> None:
        server = _server()
        server.protocol.rpc_store((HERE, 9), os.urandom(20), b"\xff" * 40, "value")
        old = [(key, value) for key, (_, value) in server.storage.data.items()]
        server.storage.iter_older_than = lambda seconds: old
        try:
            await server._refresh_table()
        except (TypeError, ValueError):
            return
        still(False, "D7")

    _run(main)


def test_d8_storage_has_no_limit() -> None:
    storage = ForgetfulStorage()
    for number in range(5_000):
        storage[number.to_bytes(20, "big")] = "x" * 2_000
    still(len(storage.data) == 5_000, "D8")


def _told_contacts(count: int) -> Server:
    server = _server()
    rng = random.Random(1)
    for _ in range(count):
        server.protocol.rpc_ping((HERE, 9), rng.randbytes(20))
    return server


def test_d9_one_socket_fills_the_table() -> None:
    async def main() -> None:
        server = _told_contacts(400)
        still(sum(len(bucket) for bucket in server.protocol.router.buckets) > 40, "D9")

    _run(main)


def test_d10_a_small_question_has_a_large_answer() -> None:
    async def main() -> None:
        server = _told_contacts(40)
        server.protocol.transport.sent.clear()
        server.storage[bytes(20)] = "x" * 8_000
        question = b"\0" + bytes(20) + umsgpack.packb(["find_value", [os.urandom(20), bytes(20)]])
        await server.protocol._solve_datagram(question, (HERE, 9))
        for _ in range(5):
            await asyncio.sleep(0)
        replies = [data for data, _ in server.protocol.transport.sent if data[:1] == b"\1"]
        still(replies and len(replies[0]) > 10 * len(question), "D10")

    _run(main)


def test_d11_a_host_name_is_an_address() -> None:
    async def main() -> None:
        server = _server()
        told = RPCFindResponse((True, [[os.urandom(20), "slow.example.invalid", 9]])).get_node_list()
        await server.protocol.call_find_node(told[0], Node(os.urandom(20)))
        still(server.protocol.transport.sent[0][1] == ("slow.example.invalid", 9), "D11")

    _run(main)


def test_d12_a_cancelled_call_leaks_and_raises_later() -> None:
    async def main() -> None:
        server = _server()
        future = server.protocol.ping((HERE, 9), server.node.id)
        future.cancel()
        (message_id,) = server.protocol._outstanding
        try:
            server.protocol._timeout(message_id)
        except asyncio.InvalidStateError:
            return
        still(False, "D12")

    _run(main)


def test_d13_a_put_with_dead_neighbours_raises_something_else() -> None:
    async def main() -> None:
        server = _server()
        server.protocol.router.add_contact(Node(os.urandom(20), HERE, 9))
        try:
            await server.set("key", "value")
        except ValueError:
            return
        still(False, "D13")

    _run(main)


def test_d14_one_lost_datagram_evicts_after_five_seconds() -> None:
    async def main() -> None:
        server = _server()
        contact = Node(os.urandom(20), HERE, 9)
        server.protocol.router.add_contact(contact)
        server.protocol.handle_call_response((False, None), contact)
        still(server.protocol.router.is_new_node(contact), "D14")
        still(KademliaProtocol(server.node, server.storage, 20)._wait_timeout == 5, "D14")

    _run(main)


def _tables() -> Iterator[tuple[RoutingTable, list[Node], random.Random]]:
    for seed in range(10):
        rng = random.Random(seed)
        table = RoutingTable(None, 5, Node(rng.randbytes(20)))
        table.protocol = _Nobody()
        contacts = [Node(rng.randbytes(20), HERE, number + 1) for number in range(100)]
        for contact in contacts:
            table.add_contact(contact)
        yield table, [node for bucket in table.buckets for node in bucket.get_nodes()], rng


class _Nobody:
    async def call_ping(self, node: Node) -> None:
        pass


def test_d15_neighbours_are_not_the_nearest() -> None:
    async def main() -> None:
        wrong = 0
        for table, known, rng in _tables():
            target = Node(rng.randbytes(20))
            found = [node.id for node in table.find_neighbors(target)]
            nearest = sorted(known, key=target.distance_to)[:5]
            wrong += found != [node.id for node in nearest]
        still(wrong, "D15")
        await asyncio.sleep(0)

    _run(main)


def test_d16_the_last_id_of_a_bucket_is_looked_for_in_the_next() -> None:
    table = RoutingTable(None, 5, Node(os.urandom(20)))
    table.split_bucket(0)
    last = Node(table.buckets[0].range[1].to_bytes(20, "big"))
    still(not table.buckets[table.get_bucket_for(last)].has_in_range(last), "D16")


def test_d17_the_handover_hashes_keys_twice() -> None:
    async def main() -> None:
        key = os.urandom(20)
        server = _server()
        server.storage[key] = "value"
        # Nearest to the hash of the key, so that the newcomer, nearest to the key itself, gets nothing.
        near_hash = digest(key)[:-1] + bytes([digest(key)[-1] ^ 1])
        server.protocol.router.add_contact(Node(near_hash, HERE, 9))
        server.protocol.welcome_if_new(Node(key, HERE, 10))
        await asyncio.sleep(0)
        still(not server.protocol.transport.sent, "D17")

    _run(main)


def test_d18_the_majority_wins() -> None:
    async def main() -> None:
        spider = ValueSpiderCrawl(None, Node(os.urandom(20)), [], 20, 3)
        still(await spider._handle_found_values(["old", "old", "new"]) == "old", "D18")
        still(ForgetfulStorage().ttl == 604_800, "D18")

    _run(main)


def test_d19_state_is_a_pickle(tmp_path: Path) -> None:
    async def main() -> None:
        server = _server()
        server.protocol.router.add_contact(Node(os.urandom(20), HERE, 9))
        server.save_state(tmp_path / "state")
        still((tmp_path / "state").read_bytes().startswith(b"\x80"), "D19")

    _run(main)


def test_d20_a_new_address_is_ignored() -> None:
    async def main() -> None:
        server = _server()
        peer = os.urandom(20)
        server.protocol.rpc_ping((HERE, 9), peer)
        server.protocol.rpc_ping((HERE, 10), peer)
        (known,) = server.protocol.router.find_neighbors(Node(os.urandom(20)))
        still(known.port == 9, "D20")

    _run(main)


def test_d21_tasks_are_not_kept_and_the_codec_is_python() -> None:
    received = inspect.getsource(rpcudp.protocol.RPCProtocol.datagram_received)
    still("asyncio.ensure_future(self._solve_datagram(data, addr))" in received, "D21")
    still(str(umsgpack.__file__).endswith(".py") and rpcudp.protocol.umsgpack is umsgpack, "D21")


def test_d22_one_table_for_both_families() -> None:
    async def main() -> None:
        server = _server()
        server.protocol.rpc_ping(("::1", 9), os.urandom(20))
        server.protocol.rpc_ping((HERE, 9), os.urandom(20))
        told = server.protocol.rpc_find_node(("::1", 9), os.urandom(20), os.urandom(20))
        still(any(ip == HERE for _, ip, _ in told), "D22")

    _run(main)


def test_d23_whoever_asks_is_a_contact() -> None:
    async def main() -> None:
        server = _server()
        server.protocol.rpc_ping(("198.51.100.7", 40_000), os.urandom(20))
        still(len(server.protocol.router.find_neighbors(Node(os.urandom(20)))) == 1, "D23")

    _run(main)


def test_unknown_attributes_are_remote_calls() -> None:
    async def main() -> None:
        server = _server()
        server.protocol.no_such_method((HERE, 9))
        still(server.protocol.transport.sent, "of __getattr__")

    _run(main)
