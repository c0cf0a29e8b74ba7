"""What datagrams cost: sealed and opened a second beside the bare cipher, handshakes a second, bytes of each datagram.

    python -m benchmarks datagrams

Both ends run in one process, so all figures are what one core gives for both. Only ratios from one run mean anything.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Role
from p2pcompute.net.session_events import Transmit
from p2pcompute.net.sessions import Sessions
from p2pcompute.net.udp import UdpEndpoint
from p2pcompute.net.udp_port import open_udp_port
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.datagram import Kind
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.invitation import Invitation
from p2pcompute.wire.membership import Admitted, Membership

DATAGRAMS = 30_000
PAYLOAD_BYTES = 200
HANDSHAKES = 300
RUNS = 3
#: Datagrams between two looks at the clock that the machine is given: their rate is bounded.
_STEP_S = 0.001


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
    def __init__(self, inviter: Authority | Invitation) -> None:
        entropy, now = _Entropy(), time.time()
        self.key = PeerKey.generate(entropy)
        invitation = inviter.invite(
            now_wall=now, entropy=entropy, roles=frozenset({Role.SUBMIT, Role.COMPUTE}), label="somebody's laptop"
        )
        self.membership = Membership.mint(self.key, invitation, now, entropy)
        self.peer: PeerId = self.key.peer_id
        self._trust = self.membership.trust(None)

    def admit(self, leaf_der: bytes, chain: Sequence[bytes], expected: PeerId | None) -> Admitted:
        return self._trust.admit(leaf_der, chain, time.time(), expected=expected)


class _Pair:
    """Two machines and what goes between them."""

    def __init__(self, one: _Identity, two: _Identity) -> None:
        self.addresses = (Address("10.0.0.1", 9876), Address("10.0.0.2", 9876))
        self.machines = (Sessions(one, _Entropy()), Sessions(two, _Entropy()))
        self.peers = (one.peer, two.peer)
        self.now = 1_000.0
        self.sizes: dict[Kind, int] = {}

    def shake_hands(self) -> None:
        air = [(each, 0) for each in self.machines[0].greet(self.addresses[1], self.now)]
        while air:
            effect, source = air.pop(0)
            if isinstance(effect, Transmit):
                self.sizes.setdefault(Kind(effect.data[0]), len(effect.data))
                to = 1 - source
                air += [(each, to) for each in self.machines[to].receive(effect.data, self.addresses[source], self.now)]
        assert self.machines[1].session(self.peers[0]) is not None, "shaken"


def _best(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(RUNS))


def _cipher_us(size: int) -> float:
    cipher, nonce, plain = ChaCha20Poly1305(bytes(32)), bytes(12), bytes(size)
    start = time.perf_counter()
    for _ in range(DATAGRAMS):
        cipher.decrypt(nonce, cipher.encrypt(nonce, plain, None), None)
    return (time.perf_counter() - start) / DATAGRAMS * 1e6


def _machine_us(pair: _Pair, size: int) -> float:
    anna, bert = pair.machines
    source, _ = pair.addresses
    payload, peer = bytes(size), pair.peers[1]
    now = pair.now
    start = time.perf_counter()
    for _ in range(DATAGRAMS):
        now += _STEP_S
        for effect in anna.send(peer, (), 1, payload, now):
            if type(effect) is Transmit:
                bert.receive(effect.data, source, now)
    seconds = time.perf_counter() - start
    pair.now = now
    return seconds / DATAGRAMS * 1e6


def _handshake_ms(authority: Authority) -> tuple[float, dict[Kind, int]]:
    one, two = _Identity(authority), _Identity(authority)
    pairs = [_Pair(one, two) for _ in range(HANDSHAKES)]
    start = time.perf_counter()
    for pair in pairs:
        pair.shake_hands()
    return (time.perf_counter() - start) / HANDSHAKES * 1e3, pairs[0].sizes


class _Count:
    def __init__(self) -> None:
        self.datagrams = 0
        self.up = asyncio.Event()

    def datagram(self, peer: PeerId, channel: int, payload: bytes, source: Address) -> None:
        self.datagrams += 1

    def session_up(self, peer: PeerId, address: Address, admission: Admitted) -> None:
        self.up.set()

    def refused(self, address: Address, error: P2PComputeError) -> None:
        raise error


async def _sockets_us(one: _Identity, two: _Identity) -> float:
    heard = _Count()
    anna = UdpEndpoint(one, _Count(), _Clock(), _Entropy(), open_udp_port)
    bert = UdpEndpoint(two, heard, _Clock(), _Entropy(), open_udp_port)
    await anna.start("127.0.0.1", 0)
    port = await bert.start("127.0.0.1", 0)
    anna.greet(Address("127.0.0.1", port))
    await heard.up.wait()
    payload, count = bytes(PAYLOAD_BYTES), 10_000
    start = time.perf_counter()
    for number in range(count):
        anna.send(two.peer, (), 1, payload)
        if number % 32 == 31:
            while heard.datagrams <= number:  # noqa: ASYNC110 - an event would be measured too
                await asyncio.sleep(0)
    while heard.datagrams < count - 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    seconds = time.perf_counter() - start
    await anna.stop()
    await bert.stop()
    return seconds / count * 1e6


def main() -> None:
    """Measure and print."""
    authority = Authority.create("bench", _Entropy(), time.time())
    one, two = _Identity(authority), _Identity(authority)
    for size in (64, PAYLOAD_BYTES, 1_168):
        pair = _Pair(one, two)
        pair.shake_hands()
        cipher = _best(lambda size=size: _cipher_us(size))  # type: ignore[misc]
        machine = _best(lambda size=size, pair=pair: _machine_us(pair, size))  # type: ignore[misc]
        print(
            f"{size:5} bytes: cipher alone {cipher:5.2f} µs, sealed and opened by sessions {machine:5.2f} µs "
            f"({1e6 / machine:,.0f} a second, {machine - cipher:.2f} µs above the cipher)"
        )
    sockets = _best(lambda: asyncio.run(_sockets_us(one, two)))
    print(
        f"{PAYLOAD_BYTES:5} bytes over two sockets of loopback, one process: {sockets:.1f} µs, {1e6 / sockets:,.0f} a second"
    )
    milliseconds, sizes = _handshake_ms(authority)
    print(f"handshake, both sides: {milliseconds:.2f} ms, {1e3 / milliseconds:,.0f} a second")
    admin = authority.invite(
        now_wall=time.time(), entropy=_Entropy(), roles=frozenset(Role), may_invite=True, label="somebody's laptop"
    )
    guests = _Pair(_Identity(admin), _Identity(admin))
    guests.shake_hands()
    for name, each in (("owner's", sizes), ("admin's", guests.sizes)):
        print(f"{name} invitation:", ", ".join(f"{kind.name} {size}" for kind, size in each.items()), "bytes")


if __name__ == "__main__":
    main()
