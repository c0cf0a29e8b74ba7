"""NAT-PMP (RFC 6886): the client, over one connected datagram socket.

A request has 2 or 12 bytes and is repeated after 250, 500 and 1,000 ms; the RFC goes on for a minute, which is longer than anybody who starts a
peer wants to wait. The socket is connected, so that the system drops what does not come from the router; answers to other
questions are passed over. A router says with each answer how long it has been keeping its table (its epoch): less than it should be
means that it has restarted and forgotten everything.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from p2pcompute.model.errors import ProtocolError, ResourceError
from p2pcompute.model.seams import Clock
from p2pcompute.net.portmap_router import Forwarded, Transport

NATPMP_PORT = 5351
#: Where routers call when they have restarted or got another address, at `ANNOUNCE_GROUP`.
ANNOUNCE_PORT = 5350
ANNOUNCE_GROUP = "224.0.0.1"
#: Pauses after each try.
TRIES_S = (0.25, 0.5, 1.0)
#: A shorter lifetime would be renewed all the time.
LIFETIME_MIN_S = 120.0
#: Answers that wait until they are read; more come from nobody honest.
_ANSWERS_MAX = 16

_VERSION = 0
_OF_ANSWER = 128
_EXTERNAL = 0
_OPERATION = {Transport.UDP: 1, Transport.TCP: 2}
_ASK_MAPPING = struct.Struct("!BBHHHI")
_HEAD = struct.Struct("!BBHI")
_MAPPED = struct.Struct("!HHI")
_ANSWER_BYTES = {_EXTERNAL: 12, 1: 16, 2: 16}
_REASONS = {
    1: "it speaks another version",
    2: "its owner has switched that off",
    3: "it has no address outside at the moment",
    4: "its table is full",
    5: "it does not know the request",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `operation`: 0 (address), 1 (UDP), 2 (TCP); `result`: 0 is yes; `epoch_s`: seconds since its table began.

    `external_host` comes with operation 0, the rest with 1 and 2.
    """

    operation: int
    result: int
    epoch_s: int
    external_host: str = ""
    internal_port: int = 0
    external_port: int = 0
    lifetime_s: int = 0


def decode_answer(data: bytes) -> Answer:
    """The answer in a datagram. Raises ProtocolError."""
    if len(data) < _HEAD.size:
        raise ProtocolError(f"a NAT-PMP answer of {len(data)} bytes")
    version, operation, result, epoch_s = _HEAD.unpack_from(data)
    operation -= _OF_ANSWER
    if version != _VERSION or operation not in _ANSWER_BYTES:
        raise ProtocolError(f"a NAT-PMP answer of version {version} to operation {operation}")
    if result:
        # Some routers leave the rest out of a refusal.
        return Answer(operation, result, epoch_s)
    if len(data) != _ANSWER_BYTES[operation]:
        raise ProtocolError(f"a NAT-PMP answer of {len(data)} bytes to operation {operation}")
    if operation == _EXTERNAL:
        return Answer(operation, result, epoch_s, str(ipaddress.IPv4Address(data[_HEAD.size :])))
    internal_port, external_port, lifetime_s = _MAPPED.unpack_from(data, _HEAD.size)
    return Answer(operation, result, epoch_s, "", internal_port, external_port, lifetime_s)


def has_restarted(epoch_before_s: int, elapsed_s: float, epoch_s: int) -> bool:
    """Whether a router that said `epoch_before_s` and `elapsed_s` later `epoch_s` has begun anew (RFC 6886, section 3.6).

    Its clock may run slow by an eighth, and an answer may be 2 s late.
    """
    return epoch_s + 2 < epoch_before_s + elapsed_s * 7 / 8


class NatPmpRouter:
    """See the module. `port`: this peer's; `at`: the router's UDP port, another one only in tests."""

    protocol = "NAT-PMP"

    def __init__(self, host: str, port: int, clock: Clock, *, at: int = NATPMP_PORT) -> None:
        #: The router.
        self._host = host
        #: This peer's port, TCP and UDP.
        self._port = port
        #: Monotonic time, for the epoch.
        self._clock = clock
        #: The router's port.
        self._at = at
        #: The connected socket, None before the first question.
        self._talk: _Talk | None = None
        #: The last epoch and when it was heard.
        self._epoch: tuple[int, float] | None = None
        #: The router has restarted since something was last forwarded.
        self._has_forgotten = False

    async def external_host(self) -> str:
        """See `Router`."""
        answer = await self._ask(struct.pack("!BB", _VERSION, _EXTERNAL), _EXTERNAL)
        return answer.external_host

    async def forward(self, transport: Transport, external_port: int, lifetime_s: float) -> Forwarded | None:
        """See `Router`; a router that has that port taken names another one, so None never comes."""
        answer = await self._ask_mapping(transport, external_port, round(lifetime_s))
        if not answer.external_port or answer.lifetime_s < LIFETIME_MIN_S:
            raise ProtocolError(
                f"the router forwards port {answer.external_port} for {answer.lifetime_s} s by NAT-PMP, which is of no use"
            )
        self._has_forgotten = False
        return Forwarded(answer.external_port, min(float(answer.lifetime_s), lifetime_s))

    async def unforward(self, transport: Transport, external_port: int) -> None:
        """See `Router`."""
        await self._ask_mapping(transport, 0, 0)

    async def is_intact(self, external_port: int) -> bool:
        """Whether the router has not restarted since; asks it for its epoch."""
        await self.external_host()
        return not self._has_forgotten

    def close(self) -> None:
        """See `Router`."""
        if self._talk is not None:
            self._talk.transport.close()
            self._talk = None

    async def _ask_mapping(self, transport: Transport, external_port: int, lifetime_s: int) -> Answer:
        operation = _OPERATION[transport]
        question = _ASK_MAPPING.pack(_VERSION, operation, 0, self._port, external_port, lifetime_s)
        return await self._ask(question, operation)

    async def _ask(self, question: bytes, operation: int) -> Answer:
        """The router's answer. Raises ResourceError where there is none or it is no."""
        try:
            if self._talk is None:
                self._talk = await _Talk.open(self._host, self._at)
            answer = await self._first_answer(self._talk, question, operation)
        except OSError as error:
            self.close()
            raise ResourceError(f"the router at {self._host} does not speak NAT-PMP: {error}") from error
        if answer is None:
            raise ResourceError(f"the router at {self._host} does not answer NAT-PMP")
        self._note_epoch(answer.epoch_s)
        if answer.result:
            reason = _REASONS.get(answer.result, f"result {answer.result}")
            raise ResourceError(f"the router at {self._host} refuses by NAT-PMP: {reason}")
        return answer

    async def _first_answer(self, talk: _Talk, question: bytes, operation: int) -> Answer | None:
        talk.forget()
        for wait_s in TRIES_S:
            talk.transport.sendto(question)
            try:
                async with asyncio.timeout(wait_s):
                    while True:
                        answer = await talk.next_answer()
                        is_ours = answer.operation == operation and (
                            operation == _EXTERNAL or bool(answer.result) or answer.internal_port == self._port
                        )
                        if is_ours:
                            return answer
            except TimeoutError:
                continue
        return None

    def _note_epoch(self, epoch_s: int) -> None:
        now = self._clock.monotonic()
        if self._epoch is not None and has_restarted(self._epoch[0], now - self._epoch[1], epoch_s):
            self._has_forgotten = True
        self._epoch = (epoch_s, now)


class _Talk(asyncio.DatagramProtocol):
    """The socket and what came in on it."""

    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        #: Answers, or what the system says went wrong; what is no answer is dropped on arrival.
        self._heard: asyncio.Queue[Answer | OSError] = asyncio.Queue(_ANSWERS_MAX)

    @classmethod
    async def open(cls, host: str, port: int) -> _Talk:
        """A socket connected to the router. Raises OSError."""
        loop = asyncio.get_running_loop()
        transport, talk = await loop.create_datagram_endpoint(cls, remote_addr=(host, port))
        talk.transport = transport
        return talk

    async def next_answer(self) -> Answer:
        """The next answer to anything. Raises OSError."""
        heard = await self._heard.get()
        if isinstance(heard, OSError):
            raise heard
        return heard

    def forget(self) -> None:
        """Drop what came late to an earlier question."""
        while not self._heard.empty():
            self._heard.get_nowait()

    def datagram_received(self, data: bytes, addr: tuple[object, ...]) -> None:
        """Keep an answer."""
        try:
            self._keep(decode_answer(data))
        except ProtocolError:
            return  # a question that gets nothing better ends as one without an answer

    def error_received(self, exc: Exception) -> None:
        """The router's machine says that nobody listens there."""
        self._keep(exc if isinstance(exc, OSError) else OSError(str(exc)))

    def _keep(self, item: Answer | OSError) -> None:
        if not self._heard.full():
            self._heard.put_nowait(item)


class Announcements:
    """Hears a router call that it has restarted. `called()` is a hint: whoever is on this LAN can call like that."""

    def __init__(self) -> None:
        #: None where the port cannot be shared: then a restart is noticed at the next look.
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self, host: str, called: Callable[[], None]) -> None:
        """Listen for the router at `host`; a second call listens for another one."""
        self.stop()
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: _Ear(host, called), sock=_shared_socket(ANNOUNCE_PORT)
            )
        except OSError:
            self._transport = None

    def stop(self) -> None:
        """Listen no more."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None


class _Ear(asyncio.DatagramProtocol):
    """Tells of announcements of one router."""

    def __init__(self, host: str, called: Callable[[], None]) -> None:
        self._host = host
        self._called = called

    def datagram_received(self, data: bytes, addr: tuple[object, ...]) -> None:
        """Tell. What is in it does not matter: routers that speak PCP, too, announce in its words (RFC 6887), and the router is asked anyway."""
        if addr[0] == self._host:
            self._called()


def _shared_socket(port: int) -> socket.socket:
    """A UDP socket at `port` that other programs of this machine may hear, too. Raises OSError."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setblocking(False)
        made.bind(("", port))
        # Every machine is in the group of all machines; where the system wants to be asked, it says so.
        group = socket.inet_aton(ANNOUNCE_GROUP) + socket.inet_aton("0.0.0.0")
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    except OSError:
        made.close()
        raise
    return made
