"""Wide links between sites: a program that carries IPv4 packets between interfaces of different network namespaces after a fixed delay.

    python -m tests.support.wide_relay DELAY_MS INTERFACE PID/SUBNET ...

Makes one TUN interface in the network namespace of each process PID, prints "ready" and carries packets: what a site sends to an address in
another's SUBNET comes out there DELAY_MS later, in the order in which it came; everything else is dropped. What waits is bounded. It ends with
its parent, and the interfaces go with it. Many kernels lack the netem queue, which could do this inside; rates are the business of `tc` at
the interfaces. What it adds to the delay is what the machine takes to give it a processor.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence

#: Packets under way at a time, over all links: 100 Mbit/s for half a second. Further ones are dropped, as at a full router.
PACKETS_MAX = 4096
#: Packets that are read from one interface before the others have their turn.
_AT_ONCE = 64
_PACKET_BYTES_MAX = 65_536
#: Between two looks whether the parent is there.
_LOOK_INTERVAL_S = 1.0

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LIBC = ctypes.CDLL(None, use_errno=True)


class DelayLine:
    """Packets on their way, each for `delay_s`; the link to which each goes is a number that it does not interpret."""

    def __init__(self, delay_s: float, packets_max: int = PACKETS_MAX) -> None:
        self.delay_s = delay_s
        self._packets_max = packets_max
        #: When it is there, where, and what; ascending, since all take the same time.
        self._under_way: deque[tuple[float, int, bytes]] = deque()
        #: Packets that found no room.
        self.dropped = 0

    def enter(self, now: float, link: int, packet: bytes) -> None:
        """`packet` sets out for `link`, or is dropped."""
        if len(self._under_way) >= self._packets_max:
            self.dropped += 1
            return
        self._under_way.append((now + self.delay_s, link, packet))

    def arrived(self, now: float) -> list[tuple[int, bytes]]:
        """What is there by now, each once."""
        found = []
        while self._under_way and self._under_way[0][0] <= now:
            _, link, packet = self._under_way.popleft()
            found.append((link, packet))
        return found

    def wait_s(self, now: float) -> float | None:
        """Until the next one is there; None where none is under way."""
        return max(self._under_way[0][0] - now, 0.0) if self._under_way else None


def link_of(packet: bytes, subnets: Sequence[tuple[int, int]]) -> int | None:
    """Which of `subnets` (address and mask) an IPv4 packet goes to; None where it goes to none of them, or is no such packet."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    destination = int.from_bytes(packet[16:20], "big")
    return next((link for link, (network, mask) in enumerate(subnets) if destination & mask == network), None)


def _interface_in(pid: str, name: str) -> int:
    """A TUN interface called `name` in the network namespace of a process; it lives as long as the descriptor is open."""
    with open(f"/proc/{pid}/ns/net") as namespace:
        if _LIBC.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to the network namespace of {pid}")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def _carry(line: DelayLine, descriptors: Sequence[int], subnets: Sequence[tuple[int, int]]) -> None:
    parent, looked = os.getppid(), time.monotonic()
    while True:
        now = time.monotonic()
        if now - looked > _LOOK_INTERVAL_S:
            looked = now
            if os.getppid() != parent:
                return
        for link, packet in line.arrived(now):
            try:
                os.write(descriptors[link], packet)
            except OSError:
                # The interface is down or its queue full: packets get lost on wide links.
                line.dropped += 1
        wait_s = line.wait_s(time.monotonic())
        readable, _, _ = select.select(descriptors, (), (), _LOOK_INTERVAL_S if wait_s is None else wait_s)
        for descriptor in readable:
            for _ in range(_AT_ONCE):
                try:
                    packet = os.read(descriptor, _PACKET_BYTES_MAX)
                except OSError:
                    # Nothing more for now, or the interface is down.
                    break
                to = link_of(packet, subnets)
                if to is not None and descriptors[to] != descriptor:
                    line.enter(time.monotonic(), to, packet)


def main() -> None:
    """Carry packets until the parent ends."""
    delay_ms, name, *links = sys.argv[1:]
    descriptors, subnets = [], []
    for link in links:
        pid, _, subnet = link.partition("/")
        network = ipaddress.IPv4Network(subnet)
        descriptors.append(_interface_in(pid, name))
        subnets.append((int(network.network_address), int(network.netmask)))
    print("ready", flush=True)
    _carry(DelayLine(float(delay_ms) / 1000.0), descriptors, subnets)


if __name__ == "__main__":
    main()
