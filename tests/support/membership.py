"""Fakes for the machines of `membership/`: keys without cryptography, records, and a pump that joins peer books in memory."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from p2pcompute.membership import book
from p2pcompute.model.ids import NetworkId, PeerId, peer_id_of
from p2pcompute.model.peer import Address, Isolation, PeerRecord, Role
from p2pcompute.wire.record import SignedRecord, sign_record

NETWORK = NetworkId(b"N" * 32)
OTHER_NETWORK = NetworkId(b"O" * 32)
#: Wall clock of every test, seconds; monotonic time starts at 0.
WALL = 1_700_000_000.0


class FakeKey:
    """Signs with a hash: fast, and as deterministic as Ed25519."""

    def __init__(self, name: object) -> None:
        self.public_key = hashlib.sha256(repr(name).encode()).digest()

    @property
    def peer(self) -> PeerId:
        return peer_id_of(self.public_key)

    def sign(self, context: bytes, data: bytes) -> bytes:
        return hashlib.sha512(self.public_key + context + data).digest()


def fake_verify(public_key: bytes, context: bytes, data: bytes, signature: bytes) -> bool:
    """The verifier for `FakeKey`."""
    return hashlib.sha512(public_key + context + data).digest() == signature


class CountingVerify:
    """`fake_verify` that counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, public_key: bytes, context: bytes, data: bytes, signature: bytes) -> bool:
        self.calls += 1
        return fake_verify(public_key, context, data, signature)


def make_record(key: FakeKey, incarnation: int = 1, sequence: int = 0, **changes: Any) -> SignedRecord:
    """A signed record of `key`'s peer."""
    values: dict[str, Any] = {
        "peer": key.peer,
        "network": NETWORK,
        "incarnation": incarnation,
        "sequence": sequence,
        "name": "peer",
        "addresses": (Address("10.0.0.1", 9876),),
        "capability": None,
        "slots": 1,
        "load": 0.0,
        "roles": frozenset({Role.SUBMIT, Role.COMPUTE}),
        "isolation": Isolation.PROCESS,
        "python": "3.11.0",
        "platform": "linux x86_64",
        "version": "0.1.0",
    }
    return sign_record(PeerRecord(**(values | changes)), key)


@dataclass(slots=True)
class Member:
    """One peer of a `BookWorld`."""

    key: FakeKey
    record: SignedRecord
    book: book.PeerBook
    #: Effects that are not performed by the world, in order.
    said: list[object] = field(default_factory=list)
    is_up: bool = True
    #: The book's deadline after its last event.
    deadline: float | None = None


class BookWorld:
    """Peer books on a virtual clock, joined by links with delays; messages on a lost link are lost."""

    def __init__(self, count: int, seed: int, settings: book.BookSettings | None = None) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.members: list[Member] = []
        #: Everything that any book ever answered, with its time: two equal runs have equal traces.
        self.trace: list[tuple[float, int, object]] = []
        self._settings = settings
        self._places: dict[PeerId, int] = {}
        self._links: dict[frozenset[int], int] = {}
        self._number = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        for number in range(count):
            self.add(number)

    def add(self, number: int) -> int:
        """One more peer; its place."""
        key = FakeKey(number)
        record = make_record(key, incarnation=int(WALL * 1000), addresses=(Address(f"10.0.0.{number + 1}", 9876),))
        peer_book = book.PeerBook(record, fake_verify, random.Random(self.rng.random()), self._settings)
        self.members.append(Member(key, record, peer_book))
        self._places[key.peer] = len(self.members) - 1
        return len(self.members) - 1

    def is_linked(self, one: int, other: int) -> bool:
        return frozenset({one, other}) in self._links

    def link(self, one: int, other: int) -> None:
        pair = frozenset({one, other})
        if pair in self._links or one == other or not (self.members[one].is_up and self.members[other].is_up):
            return
        self._links[pair] = next(self._number)
        for here, there in ((one, other), (other, one)):
            far = self.members[there]
            self.feed(here, book.LinkOpened(far.key.peer, far.record.wire, 0.01, b"i" * 32))

    def unlink(self, one: int, other: int, *, clean: bool = False) -> None:
        if self._links.pop(frozenset({one, other}), None) is None:
            return
        for here, there in ((one, other), (other, one)):
            if self.members[here].is_up:
                self.feed(here, book.LinkLost(self.members[there].key.peer, clean, ""))

    def kill(self, number: int) -> None:
        """A crash: every link breaks, noticed by each neighbour at a time of its own."""
        self.members[number].is_up = False
        for pair in [pair for pair in self._links if number in pair]:
            (other,) = pair - {number}
            self.at(self.now + self.rng.uniform(0, 0.2), lambda other=other: self.unlink(number, other))  # type: ignore[misc]

    def change(self, number: int, **changes: Any) -> None:
        """The peer signs a newer record."""
        member = self.members[number]
        old = member.record.record
        member.record = make_record(
            member.key, old.incarnation, old.sequence + 1, **({"addresses": old.addresses} | changes)
        )
        self.feed(number, book.OwnChanged(member.record))

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._number), action))

    def feed(self, number: int, event: book.Event) -> None:
        member = self.members[number]
        if not member.is_up:
            return
        effects = member.book.handle(event, self.now)
        member.book.check_invariants()
        member.deadline = member.book.deadline()
        for effect in effects:
            self.trace.append((self.now, number, effect))
            self._perform(number, effect)

    def _perform(self, number: int, effect: book.Effect) -> None:
        source = self.members[number].key.peer
        match effect:
            case book.SendRecords(to, wires):
                for peer in to:
                    self._deliver(number, peer, book.RecordsHeard(source, wires, WALL + self.now))
            case book.AskSuspect(to, peer):
                for asked in to:
                    self._deliver(number, asked, book.SuspectAsked(source, peer))
            case book.AnswerSuspect(to, peer, heard_s):
                self._deliver(number, to, book.SuspectAnswered(source, peer, heard_s))
            case _:
                self.members[number].said.append(effect)

    def _deliver(self, number: int, to: PeerId, event: book.Event) -> None:
        target = self._places[to]
        pair = frozenset({number, target})
        link = self._links.get(pair)
        assert link is not None, "a book sends only over links that are up"

        def arrive() -> None:
            if self._links.get(pair) == link:
                self.feed(target, event)

        # One delay for all: a link keeps the order of what is sent on it.
        self.at(self.now + 0.01, arrive)

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while True:
            ticks = [
                (member.deadline, number)
                for number, member in enumerate(self.members)
                if member.is_up and member.deadline is not None
            ]
            tick_at, ticker = min(ticks, default=(end + 1, -1))
            action_at = self._queue[0][0] if self._queue else end + 1
            if min(tick_at, action_at) > end:
                break
            if action_at <= tick_at:
                self.now, _, action = heapq.heappop(self._queue)
                action()
            else:
                self.now = max(self.now, tick_at)
                self.feed(ticker, book.Tick())
                after = self.members[ticker].deadline
                assert after is None or after > self.now, "a Tick leaves nothing that is due"
        self.now = end
