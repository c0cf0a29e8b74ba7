"""A router that speaks NAT-PMP, played by this process over loopback, honest or not."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

#: What it does with an honest answer before it goes out: the datagrams to send instead.
Twist = Callable[[bytes], list[bytes]]


@dataclass
class FakeRouter(asyncio.DatagramProtocol):
    """Answers like a router of RFC 6886. `external`: its address outside; `taken`: ports that others have there."""

    external: str = "11.5.0.9"
    taken: set[tuple[int, int]] = field(default_factory=set)
    twist: Twist = lambda answer: [answer]
    result: int = 0
    lease_max_s: int = 1 << 31
    #: (operation, external port) of what is forwarded now: internal port and lifetime.
    table: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    #: Every question, as it came.
    questions: list[bytes] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)
    epoch_before_s: int = 10_000
    silent: bool = False

    async def start(self) -> int:
        """Listen on loopback; the port."""
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        return int(self.transport.get_extra_info("sockname")[1])

    def stop(self) -> None:
        self.transport.close()

    def restart(self) -> None:
        """Forget everything, as a router does that has no memory for it."""
        self.table.clear()
        self.started_at = time.monotonic()
        self.epoch_before_s = 0

    @property
    def epoch_s(self) -> int:
        return self.epoch_before_s + int(time.monotonic() - self.started_at)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing to do."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.questions.append(data)
        if self.silent:
            return
        for answer in self.twist(self.answer(data)):
            self.transport.sendto(answer, addr)

    def answer(self, data: bytes) -> bytes:
        if len(data) == 2:
            head = struct.pack("!BBHI", 0, 128, self.result, self.epoch_s)
            return head + ipaddress.IPv4Address(self.external).packed
        _, operation, _, internal, wanted, lifetime_s = struct.unpack("!BBHHHI", data)
        head = struct.pack("!BBHI", 0, 128 + operation, self.result, self.epoch_s)
        if lifetime_s == 0:
            self.table = {key: held for key, held in self.table.items() if key[0] != operation or held[0] != internal}
            return head + struct.pack("!HHI", internal, 0, 0)
        external = wanted
        while (operation, external) in self.taken or self.table.get((operation, external), (internal,))[0] != internal:
            external += 1
        lifetime_s = min(lifetime_s, self.lease_max_s)
        if not self.result:
            self.table[operation, external] = (internal, lifetime_s)
        return head + struct.pack("!HHI", internal, external, lifetime_s)
