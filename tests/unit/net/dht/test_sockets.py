"""Address books over real UDP sockets of loopback, in real time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from benchmarks.dht import ThinPort
from p2pcompute.net.dht.dht import Dht
from p2pcompute.net.dht.surroundings import DhtSettings
from p2pcompute.wire.pointer import Name
from tests.support.peers import until
from tests.unit.net.dht.virtual import key_of

NAME = Name(255, b"name")


class _Clock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", 4), ("::1", 6)])
def test_peers_find_each_others_pointers_over_sockets(host: str, family: int) -> None:
    async def main() -> None:
        tasks: dict[asyncio.Task[None], None] = {}

        def spawn(name: str, work: Coroutine[Any, Any, None]) -> object:
            task = group.create_task(work, name=name)
            tasks[task] = None
            task.add_done_callback(lambda done: tasks.pop(done))
            return task

        async with asyncio.TaskGroup() as group:
            keys = [key_of(number) for number in range(12)]
            ports = [await ThinPort.open(key.peer_id, host) for key in keys]
            books: list[Dht] = []
            for number, (key, port) in enumerate(zip(keys, ports, strict=True)):
                dht = Dht(
                    key.peer_id,
                    key,
                    port,
                    _Clock(),
                    random.Random(number),
                    spawn,
                    settings=DhtSettings(families=(family,)),
                )
                port.received = dht.received
                books.append(dht)
                spawn("run", dht.run())
            for dht in books[1:]:
                dht.heard_of(keys[0].peer_id, (ports[0].address,))
            await until(lambda: all(len(dht.contacts()) >= 8 for dht in books), "they find each other", timeout_s=20)
            for number, dht in enumerate(books):
                assert await dht.put(NAME, b"%d" % number, 60) >= 8
            for dht, port in list(zip(books, ports, strict=True))[:4]:
                dht.stop()
                port.close()
            for number, key in enumerate(keys):
                found = await books[4 + number % 8].get(key.peer_id, NAME)
                assert found is not None
                assert found.value == b"%d" % number
            for dht, port in zip(books, ports, strict=True):
                dht.check_invariants()
                assert not dht.offenders()
                dht.stop()
                port.close()

    asyncio.run(main())
