"""An event loop on virtual time, and a network of address books in memory: loss, delay, deaths, hostile peers."""

from __future__ import annotations

import asyncio
import hashlib
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach
from p2pcompute.net.dht import frames
from p2pcompute.net.dht.dht import Dht, DhtContact
from p2pcompute.net.dht.surroundings import DhtSettings
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.pointer import pack_address

T = TypeVar("T")

WALL_START = 1_800_000_000.0


class _Advancing(selectors.SelectSelector):
    """Never waits: where the loop would, time goes on."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing runs and nothing is awaited: the test hangs"
            self.loop.now += max(timeout, 0.0)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while nobody has anything to do."""

    def __init__(self) -> None:
        self.now = 1_000.0
        selector = _Advancing()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class LoopClock:
    """The clock of a peer: the loop's time, and a wall clock that may be wrong by `wrong_s`."""

    def __init__(self, wrong_s: float = 0.0) -> None:
        self.wrong_s = wrong_s

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return WALL_START + self.monotonic() + self.wrong_s


def key_of(name: object) -> PeerKey:
    """A key that is the same for the same name."""
    return PeerKey(hashlib.sha256(repr(name).encode()).digest())


class Port:
    """What one peer sends through."""

    def __init__(self, net: Net, member: Member) -> None:
        self.net = net
        self.member = member
        #: All that was sent: (peer, addresses, payload).
        self.sent: list[tuple[PeerId, tuple[Address, ...], bytes]] = []

    def send(self, peer: PeerId, addresses: tuple[Address, ...], payload: bytes) -> None:
        self.sent.append((peer, addresses, payload))
        self.net.carry(self.member, peer, addresses, payload)


class Member:
    """Somebody at an address. `received(peer, source, payload)` takes what arrives; None: nobody is there."""

    def __init__(self, net: Net, key: PeerKey, addresses: tuple[Address, ...], invitation: bytes) -> None:
        self.key = key
        self.peer: PeerId = key.peer_id
        self.addresses = addresses
        self.invitation = invitation
        self.port = Port(net, self)
        self.received: Callable[[PeerId, Address, bytes], None] | None = None
        self.rng = random.Random(f"member {key.public_key.hex()}")


class Net:
    """Sealed sessions, as their upper side sees them: who sends is who it says, from where it is, and nobody else reads."""

    def __init__(self, seed: int = 1, *, loss: float = 0.0, latency_s: tuple[float, float] = (0.005, 0.02)) -> None:
        self.rng = random.Random(f"net {seed}")
        self.loss = loss
        self.latency_s = latency_s
        self.by_peer: dict[PeerId, Member] = {}
        self.tasks: dict[asyncio.Task[None], None] = {}
        self.failures: list[BaseException] = []
        self.books: list[tuple[Member, Dht]] = []

    # --- carrying -----------------------------------------------------------------------------------------------------

    def carry(self, sender: Member, peer: PeerId, addresses: Iterable[Address], payload: bytes) -> None:
        there = self.by_peer.get(peer)
        for address in addresses:
            if there is None or address not in there.addresses or self.rng.random() < self.loss:
                continue
            family = ":" in address.host
            source = next((each for each in sender.addresses if (":" in each.host) == family), None)
            if source is not None:
                delay_s = self.rng.uniform(*self.latency_s)
                asyncio.get_running_loop().call_later(delay_s, self._deliver, there, sender.peer, source, payload)

    @staticmethod
    def _deliver(there: Member, sender: PeerId, source: Address, payload: bytes) -> None:
        if there.received is not None:
            there.received(sender, source, payload)

    # --- members ------------------------------------------------------------------------------------------------------

    def invitation_of(self, peer: PeerId) -> bytes | None:
        member = self.by_peer.get(peer)
        return None if member is None else member.invitation

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.pop(task)
        if not task.cancelled() and task.exception() is not None:
            self.failures.append(task.exception())  # type: ignore[arg-type]

    def member(self, name: object, *addresses: str, invitation: bytes | None = None) -> Member:
        """Somebody who does nothing yet."""
        key = key_of(name)
        places = tuple(Address.parse(each) for each in addresses)
        made = Member(self, key, places, repr(name).encode() if invitation is None else invitation)
        self.by_peer[made.peer] = made
        return made

    def book(
        self,
        name: object,
        *addresses: str,
        invitation: bytes | None = None,
        clock: LoopClock | None = None,
        anchors: Iterable[DhtContact] = (),
        settings: DhtSettings | None = None,
        reach: Reach = Reach.UNKNOWN,
    ) -> Dht:
        """A peer with an address book."""
        member = self.member(name, *addresses, invitation=invitation)
        dht = Dht(
            member.peer, member.key, member.port, clock or LoopClock(), member.rng, self.spawn,
            anchors=anchors, settings=settings, reach=reach, invitation_of=self.invitation_of,
        )  # fmt: skip
        member.received = dht.received
        self.books.append((member, dht))
        return dht

    def member_of(self, dht: Dht) -> Member:
        return next(member for member, each in self.books if each is dht)

    def kill(self, dht: Dht) -> None:
        """It answers nothing any more."""
        self.member_of(dht).received = None
        dht.stop()

    async def close(self) -> None:
        """Stop everybody; what failed in a task fails the test."""
        for _, dht in self.books:
            dht.stop()
            dht.check_invariants()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.wait(list(self.tasks)) if self.tasks else None
        await asyncio.sleep(0)
        assert not self.failures, self.failures


async def until(condition: Callable[[], object], what: str, virtual_s: float = 60.0) -> None:
    """Let virtual time pass until `condition()`; fail after `virtual_s`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + virtual_s
    while not condition():
        assert loop.time() < end, f"{what}: not within {virtual_s} virtual seconds"
        await asyncio.sleep(0.01)


async def settle(net: Net) -> None:
    """Let virtual time pass until no task of an address book runs."""
    await until(lambda: not net.tasks, "tasks end")


def scene(body: Callable[[Net], Awaitable[None]], **changes: Any) -> None:
    """Run `body` with a network on virtual time, and stop what it made."""

    async def main() -> None:
        net = Net(**changes)
        try:
            await body(net)
        finally:
            await net.close()

    run(main())


async def grown(net: Net, addresses: Callable[[int], tuple[str, ...]], count: int, **changes: Any) -> list[Dht]:
    """`count` address books that have found each other through the first."""
    books = [net.book(number, *addresses(number), **changes) for number in range(count)]
    first = net.member_of(books[0])
    for dht in books[1:]:
        dht.heard_of(first.peer, first.addresses)
        await settle(net)
        await dht.lookup(net.member_of(dht).peer)
    await settle(net)
    for dht in books:
        await dht.lookup(net.member_of(dht).peer)
    await settle(net)
    return books


class Liar:
    """A member that answers requests with whatever `answer(method, message id, argument)` returns; None: with nothing."""

    def __init__(self, net: Net, name: object, address: str, *, invitation: bytes | None = None) -> None:
        self.net = net
        self.member = net.member(name, address, invitation=invitation)
        self.member.received = self._received
        self.address = self.member.addresses[0]
        #: What it was asked: (peer, request).
        self.asked: list[tuple[PeerId, frames.Request]] = []
        #: Replies to its own questions: (peer, bytes).
        self.replies: list[tuple[PeerId, bytes]] = []
        self.answer: Callable[[frames.Method, bytes, bytes], bytes | None] = self.honest

    @property
    def peer(self) -> PeerId:
        return self.member.peer

    def honest(self, method: frames.Method, message_id: bytes, argument: bytes) -> bytes:
        """What an honest peer with empty hands answers."""
        if method is frames.Method.PING:
            return frames.ping_reply_frame(message_id, 6)
        if method is frames.Method.STORE:
            return frames.store_reply_frame(message_id, 6, kept=True)
        return frames.find_reply_frame(message_id, 6, None, b"")

    def lying(self, lie: Callable[[frames.Method, bytes, bytes], bytes | None]) -> None:
        """Answer pings honestly and everything else with `lie`."""
        self.answer = lambda method, message_id, argument: (self.honest if method is frames.Method.PING else lie)(
            method, message_id, argument
        )

    def _received(self, peer: PeerId, source: Address, payload: bytes) -> None:
        if payload[0] == frames.REPLY:
            self.replies.append((peer, payload))
            return
        request = frames.read_request(payload[frames.HEAD_BYTES :])
        self.asked.append((peer, request))
        said = self.answer(request.method, payload[1 : frames.HEAD_BYTES], request.argument)
        if said is not None:
            self.member.port.send(peer, self.net.by_peer[peer].addresses, said)

    def say(self, dht: Dht, payload: bytes) -> None:
        """Bytes of its own to `dht`, at once."""
        dht.received(self.peer, self.address, payload)

    def ask(self, dht: Dht, method: frames.Method, argument: bytes = b"", flags: int = 6) -> bytes:
        """A question to `dht`, and the reply as it goes out."""
        sent = self.net.member_of(dht).port.sent
        before = len(sent)
        self.say(dht, frames.request_frame(bytes(20), frames.Request(method, flags, argument)))
        return next((data for _, _, data in sent[before:] if data[0] == frames.REPLY), b"")


async def befriend(dht: Dht, *liars: Liar) -> None:
    """Have `dht` take `liars` for contacts."""
    for liar in liars:
        dht.heard_of(liar.peer, (liar.address,))
        await until(lambda: any(each.peer == liar.peer for each in dht.contacts()), "a liar is taken for a contact")  # noqa: B023


def told(*contacts: tuple[PeerId, str]) -> bytes:
    """Contacts as a reply holds them, without any of our checks."""
    return b"".join(peer + pack_address(Address.parse(address)) for peer, address in contacts)
