"""Real datagrams of real peers, captured from the wire and sent again: by their own address, by others, and after a restart.

Needs root, for whoever listens to a wire and forges addresses does. A replay changes nothing: no session, no message, no membership.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from p2pcompute.wire.datagram import Kind, datagram_tag, write_hello
from p2pcompute.wire.gossip import Probe
from p2pcompute.wire.messages import Records
from tests.attack.evil import evil_member
from tests.attack.field import Field, field, keep_up
from tests.support.peers import until, until_now

_ETHERNET_BYTES = 14
# Of <linux/socket.h> and <linux/if_packet.h>; the socket module does not name them.
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_STATISTICS = 26, 33, 263, 6
_EAR_BYTES = 16 << 20
_STRANGER = "127.0.0.91"
_ATTACK_S = 3.0


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("capturing and forging datagrams needs root on Linux")
    with field(tmp_path_factory.mktemp("field")) as found:
        yield found


@dataclass(frozen=True)
class Captured:
    """A UDP datagram on the loopback interface."""

    source: tuple[str, int]
    target: tuple[str, int]
    data: bytes


def _udp_to(ports: list[int]) -> bytes:
    """A packet filter (struct sock_filter, classic BPF) that lets UDP over IPv4 to one of `ports` pass, in Ethernet frames."""
    keep, drop = len(ports) + 4, len(ports) + 5
    code = [(0x30, 0, 0, _ETHERNET_BYTES + 9)]  # the protocol's byte
    code.append((0x15, 0, drop - 2, socket.IPPROTO_UDP))
    code.append((0xB1, 0, 0, _ETHERNET_BYTES))  # X: the length of the IP header
    code.append((0x48, 0, 0, _ETHERNET_BYTES + 2))  # the target's port
    for at, port in enumerate(ports, start=4):
        last = at == len(ports) + 3
        code.append((0x15, keep - at - 1, drop - at - 1 if last else 0, port))
    code.append((0x06, 0, 0, 0xFFFF))
    code.append((0x06, 0, 0, 0))
    return b"".join(struct.pack("=HBBI", *line) for line in code)


class Wire:
    """Listens to the loopback interface for datagrams to `ports`, and sends in anybody's name."""

    def __init__(self, stack: contextlib.ExitStack, ports: list[int]) -> None:
        self._ear = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)))
        # Other tests talk over this interface too: unfiltered, their traffic fills the buffer before ours comes.
        code = ctypes.create_string_buffer(_udp_to(ports))
        program = struct.pack("@HP", len(code.raw) // 8, ctypes.addressof(code))
        self._ear.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        self._ear.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EAR_BYTES)
        self._ear.bind(("lo", 0))
        self._ear.setblocking(False)
        self._mouth = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self._number = 0

    def heard(self) -> list[Captured]:
        """What went to the ports since the last call, nothing missed; each datagram once."""
        found: dict[Captured, None] = {}
        while True:
            try:
                frame = self._ear.recv(65_535)
            except BlockingIOError:
                counts = self._ear.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
                assert struct.unpack("=II", counts)[1] == 0, "the capture has no hole"
                return list(found)
            packet = frame[_ETHERNET_BYTES:]
            head = (packet[0] & 15) * 4
            source_port, target_port, size = struct.unpack_from(">HHH", packet, head)
            source, target = (socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16))
            found[Captured((source, source_port), (target, target_port), packet[head + 8 : head + size])] = None

    def say(self, source: tuple[str, int], target: tuple[str, int], data: bytes) -> None:
        """Send `data` to `target` as if it came from `source`."""
        self._number = self._number % 65_535 + 1
        udp = struct.pack(">HHHH", source[1], target[1], 8 + len(data), 0) + data
        hosts = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), self._number, 0, 64, socket.IPPROTO_UDP, 0) + hosts
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            self._mouth.sendto(head + udp, target)


def sessions(honest: Field) -> list[tuple[str, bool]]:
    return sorted((row["name"], row["linked"]) for peer in honest.peers for row in peer.ask("peers")["peers"])


def test_everything_that_was_said_is_said_again(honest: Field) -> None:
    """Handshakes included: a visitor's stay is captured whole, and replayed a hundred times by two addresses when it is over."""
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, honest.ports)
        token, ids = honest.invite("visitor"), honest.ids

        async def visit() -> None:
            async with evil_member(token, "visitor") as visitor:
                for peer, address in zip(ids, honest.addresses, strict=True):
                    await visitor.session(peer, address)  # first, so that it is this side that shakes hands
                    await visitor.link(address)
                    for number in range(20):
                        visitor.gossip(peer, Probe(number))
                    visitor.gossip(peer, Records((visitor.own.wire,)))
                await until(lambda: len(visitor.heard) > 20, "it is answered")

        asyncio.run(visit())
        captured = wire.heard()
        kinds = {each.data[0] for each in captured}
        assert {Kind.HELLO, Kind.PROOF, Kind.SEALED} <= kinds, kinds
        until_now(lambda: all("visitor" not in honest.alive(peer) for peer in honest.peers), "the visitor is gone")
        before = sessions(honest)
        dice = random.Random(3)
        with honest.working() as job:

            def again() -> None:
                for each in captured:
                    wire.say(each.source, each.target, each.data)
                    wire.say((_STRANGER, 4_000 + dice.randrange(0, 100)), each.target, each.data)
                    # One flipped bit: what a forger has who knows everything but the keys.
                    at = dice.randrange(0, len(each.data))
                    wire.say(
                        each.source, each.target, each.data[:at] + bytes((each.data[at] ^ 8,)) + each.data[at + 1 :]
                    )

            keep_up(again, job, _ATTACK_S)
        assert sessions(honest) == before, "nobody was raised from the dead, and nobody was cut off"
        for by in range(2):
            honest.blames(_STRANGER, "they are dropped", by=by)


def test_spoofed_addresses_by_the_thousand(honest: Field) -> None:
    """Each datagram from another address: memory stays bounded, the log short, and honest peers speak on."""
    tag = datagram_tag(bytes.fromhex(honest.peers[0].ask("status")["network_id"]))  # type: ignore[arg-type]
    dice = random.Random(4)
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, honest.ports)
        with honest.working() as job:

            def volley() -> None:
                for _ in range(200):
                    source = (f"127.{dice.randrange(1, 255)}.{dice.randrange(0, 255)}.{dice.randrange(1, 255)}", 5_000)
                    for port in honest.ports:
                        wire.say(source, ("127.0.0.1", port), write_hello(tag, 1, dice.randbytes(32)))
                        wire.say(source, ("127.0.0.1", port), dice.randbytes(100))

            keep_up(volley, job, _ATTACK_S, rounds_min=26)
        assert len(honest.peers[0].ask("status")["troubles"]) <= 1_024
