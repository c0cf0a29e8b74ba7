"""What the tests of the laboratory share: runs of a test's own scenario, ports that remember, hubs on simulated hosts."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.link import LinkSettings
from p2pcompute.net.links import LinkHub
from p2pcompute.sim.hosts import SimHost, SimPort
from p2pcompute.sim.lab import Lab, LabSettings, RunReport, run
from tests.unit.net.link_help import FakeIdentity, Recorder, Side

PORT = 9876


def simulate(scenario: Callable[[Lab], Awaitable[None]], seed: int = 1, **settings: Any) -> RunReport:
    """Run a test's scenario; its assertion is the cause of the SimFailure."""
    return run(scenario, seed, LabSettings(**settings))


class Ear:
    """A UDP port that remembers what it hears, and when."""

    def __init__(self, host: SimHost, number: int = PORT) -> None:
        self.host = host
        self.heard: list[bytes] = []
        self.sources: list[Address] = []
        self.times: list[float] = []
        with host.here():
            self.port: SimPort = host.bind(number, self._received)
        self.address = Address(host.address, self.port.port)

    def _received(self, data: bytes, source: Address) -> None:
        self.heard.append(data)
        self.sources.append(source)
        self.times.append(self.host.network.loop.time())

    def send(self, data: bytes, to: Ear | Address) -> None:
        self.port.send(data, to if isinstance(to, Address) else to.address)


@contextlib.asynccontextmanager
async def hubs(lab: Lab, hosts: Sequence[SimHost], settings: LinkSettings | None = None) -> AsyncIterator[list[Side]]:
    """A hub on each host that listens and runs; stopped at the end."""
    made: list[Side] = []
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []

        def spawn(name: str, work: Coroutine[Any, Any, None]) -> object:
            task = group.create_task(work, name=name)
            tasks.append(task)
            return task

        for number, host in enumerate(hosts, 1):
            identity = FakeIdentity(PeerId(bytes([number]) * 32))
            events = Recorder()
            with host.here():
                hub = LinkHub(
                    identity, events, lab.clock("hub", number), random.Random(number), spawn,
                    settings=settings or LinkSettings(), transport=host.transport(identity.peer, identity.hello),
                )  # fmt: skip
                side = Side(hub, events, identity, host.address)
                side.port = await hub.start(None, PORT, 1)
                tasks.append(group.create_task(hub.run(), name=f"hub {number}"))
            made.append(side)
        try:
            yield made
        finally:
            for side in made:
                await side.hub.stop()
            for task in tasks:
                task.cancel()
