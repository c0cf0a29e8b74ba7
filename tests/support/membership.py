"""Fakes for the machines of `membership/`: keys without cryptography, records, and a world that joins peer books in memory."""

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
from p2pcompute.wire.families import GOSSIP_CODEC
from p2pcompute.wire.gossip import MESSAGE_BYTES_MAX
from p2pcompute.wire.messages import Message, Records
from p2pcompute.wire.record import SignedRecord, open_record, sign_record

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


#: What a datagram costs beside its payload (IP, UDP, seal), and a frame on a link (IP, TCP, TLS, frame header), bytes.
DATAGRAM_OVERHEAD_BYTES = 57
LINK_OVERHEAD_BYTES = 78


#: The protocol that each record names, or a function of the peer's place.
Protocol = int | Callable[[int], int]


class Library:
    """Opens each record once for all books of a world: they see the same object."""

    def __init__(self) -> None:
        self._opened: dict[bytes, SignedRecord] = {}

    def __call__(self, wire: bytes) -> SignedRecord:
        signed = self._opened.get(wire)
        if signed is None:
            signed = self._opened[wire] = open_record(wire, fake_verify)
        return signed


@dataclass(slots=True)
class Member:
    """One peer of a `BookWorld`."""

    key: FakeKey
    record: SignedRecord
    book: book.PeerBook
    #: Effects that are not performed by the world, in order, with their times.
    told: list[tuple[float, book.Effect]] = field(default_factory=list)
    is_up: bool = True
    #: How many events it has had.
    events: int = 0
    #: The book's deadline after its last event.
    deadline: float | None = None
    #: Bytes that it sent as gossip, with everything around them.
    sent_bytes: int = 0
    sent_messages: int = 0
    #: Events that wait while it has no CPU time; None: it has.
    backlog: list[book.Event] | None = None
    #: Whether it is handling what waited.
    is_behind: bool = False

    @property
    def said(self) -> list[book.Effect]:
        """Effects that are not performed by the world, in order."""
        return [effect for _, effect in self.told]


@dataclass(slots=True)
class Weather:
    """What becomes of datagrams."""

    #: Share that is lost.
    loss: float = 0.0
    #: Seconds on the way, between these.
    delay_s: tuple[float, float] = (0.0005, 0.002)
    #: Whether a datagram from the first to the second place arrives at all.
    passes: Callable[[int, int], bool] = lambda _one, _other: True


#: Books of worlds of more peers than this are checked at every eighth of their events and at the end of each `run`: a check looks at every
#: row, which is nearly all that such a world takes, and a book that contradicts itself does not mend itself.
CHECKED_EACH_TIME_MAX, CHECK_EVERY = 15, 8


class BookWorld:
    """Peer books on a virtual clock, joined by links with delays and by datagrams; messages on a lost link are lost.

    `protocol`: what each record says; `checks`: whether invariants are checked, in small worlds after each event.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        settings: book.BookSettings | None = None,
        *,
        protocol: Protocol = 1,
        weather: Weather | None = None,
        checks: bool = True,
        is_traced: bool = True,
        record_changes: dict[str, Any] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.members: list[Member] = []
        #: Everything that any book ever answered, with its time: two equal runs have equal traces.
        self.trace: list[tuple[float, int, object]] = []
        self.weather = weather or Weather()
        #: Told of each effect before it is performed.
        self.watch: Callable[[int, book.Effect], None] = lambda _number, _effect: None
        #: Whether a peer that was late says so.
        self.tells_lag = True
        #: Changes to each record at the start.
        self._record_changes = record_changes or {}
        self._protocol: Callable[[int], int] = protocol if callable(protocol) else lambda _: protocol
        self._checks = checks
        self._is_traced = is_traced
        self._settings = settings
        self._library = Library()
        self._places: dict[PeerId, int] = {}
        self._links: dict[frozenset[int], int] = {}
        self._number = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._ticks: list[tuple[float, int]] = []
        for number in range(count):
            self.add(number)

    def add(self, number: int) -> int:
        """One more peer; its place."""
        key = FakeKey(number)
        place = len(self.members)
        changes = {"addresses": (Address(f"10.0.0.{number % 250 + 1}", 9876),), "protocol": self._protocol(place)}
        record = make_record(key, incarnation=int(WALL * 1000), **(changes | self._record_changes))
        peer_book = book.PeerBook(
            record,
            fake_verify,
            random.Random(self.rng.random()),
            self._settings,
            signer=key,
            remember_open=self._library,
        )
        self.members.append(Member(key, record, peer_book))
        self._places[key.peer] = place
        return place

    def place(self, peer: PeerId) -> int:
        return self._places[peer]

    def introduce(self, one: int, other: int) -> None:
        """`one` hears of `other` without a link, as from a file of addresses."""
        self.feed(
            one, book.RecordsHeard(self.members[one].key.peer, (self.members[other].record.wire,), WALL + self.now)
        )

    def is_linked(self, one: int, other: int) -> bool:
        return frozenset({one, other}) in self._links

    def link(self, one: int, other: int) -> None:
        pair = frozenset({one, other})
        if pair in self._links or one == other or not (self.members[one].is_up and self.members[other].is_up):
            return
        self._links[pair] = next(self._number)
        for here, there in ((one, other), (other, one)):
            far = self.members[there]
            self.feed(here, book.LinkOpened(far.key.peer, far.record.wire, 0.01, hashlib.sha256(far.key.peer).digest()))

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

    def change(self, number: int, incarnation: int | None = None, **changes: Any) -> None:
        """The peer signs a newer record."""
        member = self.members[number]
        old = member.record.record
        order = (old.incarnation, old.sequence + 1) if incarnation is None else (incarnation, 0)
        kept = {"addresses": old.addresses, "protocol": old.protocol, "leaving": old.leaving}
        member.record = make_record(member.key, *order, **(kept | self._record_changes | changes))
        self.feed(number, book.OwnChanged(member.record))

    def starve(self, number: int, asleep_s: tuple[float, float], awake_s: tuple[float, float]) -> None:
        """From now on the peer gets CPU time only now and then: everything waits for it in between."""

        def sleep() -> None:
            member = self.members[number]
            member.backlog = []
            self.at(self.now + self.rng.uniform(*asleep_s), wake)

        def wake() -> None:
            member = self.members[number]
            backlog, member.backlog, member.is_behind = member.backlog or [], None, True
            due_at = member.book.deadline()
            member.deadline = None
            # A timer that is overdue comes before all but the first datagram in a real loop.
            for event in [book.Tick(), *backlog]:
                self.feed(number, event)
            if self.tells_lag and due_at is not None and due_at < self.now:
                self.feed(number, book.LoopLagged(self.now - due_at))
            member.is_behind = False
            self.at(self.now + self.rng.uniform(*awake_s), sleep)

        self.at(self.now + self.rng.uniform(*awake_s), sleep)

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._number), action))

    def feed(self, number: int, event: book.Event) -> None:
        member = self.members[number]
        if not member.is_up:
            return
        if member.backlog is not None:
            member.backlog.append(event)
            return
        effects = member.book.handle(event, self.now)
        member.events += 1
        if self._checks and (len(self.members) <= CHECKED_EACH_TIME_MAX or member.events % CHECK_EVERY == 0):
            member.book.check_invariants()
        deadline = member.book.deadline()
        if deadline != member.deadline:
            member.deadline = deadline
            if deadline is not None:
                heapq.heappush(self._ticks, (deadline, number))
        for effect in effects:
            if self._is_traced:
                self.trace.append((self.now, number, effect))
            self.watch(number, effect)
            self._perform(number, effect)

    def _perform(self, number: int, effect: book.Effect) -> None:
        member = self.members[number]
        source = member.key.peer
        match effect:
            case book.SendRecords(to, wires):
                for peer in to:
                    self._deliver(number, peer, book.RecordsHeard(source, wires, WALL + self.now))
            case book.AskSuspect(to, peer):
                for asked in to:
                    self._deliver(number, asked, book.SuspectAsked(source, peer))
            case book.AnswerSuspect(to, peer, heard_s):
                self._deliver(number, to, book.SuspectAnswered(source, peer, heard_s))
            case book.SendGossip(to, message, way):
                self._gossip(number, to, message, way)
            case book.RaiseIncarnation(at_least):
                member.told.append((self.now, effect))
                clock = int((WALL + self.now) * 1000)
                self.at(self.now, lambda: self._raise(number, max(at_least, clock)))
            case _:
                member.told.append((self.now, effect))

    def _raise(self, number: int, incarnation: int) -> None:
        if self.members[number].is_up and incarnation > self.members[number].record.record.incarnation:
            self.change(number, incarnation)

    def _gossip(self, number: int, to: PeerId, message: Message, way: book.Way) -> None:
        member, target = self.members[number], self._places[to]
        assert self.members[target].record.record.protocol >= 2, "who does not gossip is not gossiped to"
        payload = len(GOSSIP_CODEC.encode(message))
        assert way is book.Way.LINK or payload <= MESSAGE_BYTES_MAX, "what goes in a datagram fits into one"
        member.sent_bytes += payload + (DATAGRAM_OVERHEAD_BYTES if way is book.Way.DATAGRAM else LINK_OVERHEAD_BYTES)
        member.sent_messages += 1
        event: book.Event
        if isinstance(message, Records):
            event = book.RecordsHeard(member.key.peer, message.records, WALL + self.now)
        else:
            event = book.GossipHeard(member.key.peer, message, WALL + self.now, way)
        if way is book.Way.LINK:
            self._deliver(number, to, event)
        elif self.weather.passes(number, target) and self.rng.random() >= self.weather.loss:
            self.at(self.now + self.rng.uniform(*self.weather.delay_s), lambda: self.feed(target, event))

    def _deliver(self, number: int, to: PeerId, event: book.Event) -> None:
        target = self._places[to]
        pair = frozenset({number, target})
        link = self._links.get(pair)
        # Who has no CPU time has not heard yet that a link is gone.
        assert link is not None or self.members[number].is_behind, "a book sends only over links that are up"

        def arrive() -> None:
            if link is not None and self._links.get(pair) == link:
                self.feed(target, event)

        # One delay for all: a link keeps the order of what is sent on it.
        self.at(self.now + 0.01, arrive)

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while True:
            tick_at = self._next_tick()
            action_at = self._queue[0][0] if self._queue else end + 1
            if min(tick_at, action_at) > end:
                break
            if action_at <= tick_at:
                self.now, _, action = heapq.heappop(self._queue)
                action()
            else:
                self._tick()
        self.now = end
        if self._checks:
            for member in self.members:
                member.book.check_invariants()

    def _next_tick(self) -> float:
        while self._ticks:
            at, number = self._ticks[0]
            member = self.members[number]
            if member.is_up and member.backlog is None and member.deadline == at:
                return at
            heapq.heappop(self._ticks)
        return float("inf")

    def _tick(self) -> None:
        at, number = heapq.heappop(self._ticks)
        self.now = max(self.now, at)
        member = self.members[number]
        member.deadline = None
        self.feed(number, book.Tick())
        assert member.deadline is None or member.deadline > self.now, "a Tick leaves nothing that is due"
