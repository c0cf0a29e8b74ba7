"""Lookups: the package's spider, walking several disjoint paths at a time, each towards the same key.

What is different from the package, whose rounds wait for the slowest of three:

- Disjoint paths (S/Kademlia: Baumgart and Mies, 2007): each peer is asked by one path, and what it tells goes to that path alone, so that a
  liar spoils a path and not the lookup. A peer that did not answer at an address told on one path may still be asked by
  another path that knows a different address of it.
- Nobody waits for a round: `alpha` requests are in flight on each path, and one whose first try has lapsed makes way.
- Of what one responder tells, one contact that nobody here has verified is in flight at a time, and after three that were
  dead the rest is passed over, unless as many were alive: a reply full of inventions costs three tries.
- Those beyond two of one voice (see `contacts.Contact.voice`) are asked, and chosen, last. What only they tell comes last too.
- The dead that are remembered are not asked, and all of it ends at a deadline with what has been found.
"""

from __future__ import annotations

import asyncio
import bisect
import enum
import functools
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from kademlia.crawling import SpiderCrawl
from kademlia.node import Node, NodeHeap

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.dht.addresses import Scope
from p2pcompute.net.dht.contacts import Contact
from p2pcompute.net.dht.protocol import Answer, HardenedProtocol
from p2pcompute.wire.pointer import Pointer, PointerKey, decode_pointer

T = TypeVar("T")

#: Addresses of one peer that one path keeps in mind at a time: one that we verified, and two that were told.
_ADDRESSES_MAX = 3


class _State(enum.Enum):
    #: May be asked.
    NEW = enum.auto()
    #: Asked by this path; its answer is awaited.
    ASKED = enum.auto()
    ANSWERED = enum.auto()
    #: No address of it is left to try.
    FAILED = enum.auto()


@dataclass(slots=True)
class Candidate:
    """A peer as one path knows it. `tellers`: ids of the candidates that told it, empty for one of our own table."""

    id: PointerKey
    #: To the target, by exclusive or.
    distance: int
    contacts: list[Contact]
    tellers: list[PointerKey]
    state: _State = _State.NEW

    def add_address(self, contact: Contact, *, verified: bool) -> None:
        """It may be there too: tried first if it is verified, else after the others."""
        if any(each.address == contact.address for each in self.contacts):
            return
        if verified:
            self.contacts.insert(0, contact)
            del self.contacts[_ADDRESSES_MAX:]
        elif len(self.contacts) < _ADDRESSES_MAX:
            self.contacts.append(contact)
        self.state = _State.NEW


_by_distance = operator.attrgetter("distance")


def _kinds_of_candidate(candidate: Candidate) -> tuple[str, ...]:
    contacts = candidate.contacts
    if len(contacts) == 1:
        return kinds_of(frozenset((contacts[0].family,)), is_global=contacts[0].scope is Scope.GLOBAL)
    families = frozenset(each.family for each in contacts)
    return kinds_of(families, is_global=any(each.scope is Scope.GLOBAL for each in contacts))


@dataclass(slots=True)
class _Teller:
    """What came of the contacts that one responder told."""

    busy: bool = False
    alive: int = 0
    dead: int = 0

    @property
    def is_spent(self) -> bool:
        return self.dead >= limits.DHT_DEAD_TOLD_MAX and self.dead > 2 * self.alive


class Candidates(NodeHeap):  # type: ignore[misc]
    """The candidates of one path, bounded, in place of the package's heap, which compares nodes and searches lists."""

    def __init__(self, node: Node, maxsize: int) -> None:
        super().__init__(node, maxsize)
        #: What is looked for.
        self.target: int = node.long_id
        #: By id; at most `limits.DHT_CANDIDATES_PER_PATH_MAX`.
        self.by_id: dict[PointerKey, Candidate] = {}
        #: The same, nearest first.
        self.ordered: list[Candidate] = []
        #: By id of the responder.
        self.tellers: dict[PointerKey, _Teller] = {}
        #: Requests in flight that have not lapsed.
        self.in_flight = 0

    def push(self, nodes: Iterable[Contact] | Contact, teller: PointerKey | None = None) -> None:
        """Add contacts that `teller` told, or, without one, that have answered us from there before."""
        for contact in [nodes] if isinstance(nodes, Contact) else nodes:
            known = self.by_id.get(contact.id)
            if known is None:
                if len(self.by_id) < limits.DHT_CANDIDATES_PER_PATH_MAX:
                    tellers = [] if teller is None else [teller]
                    distance = contact.long_id ^ self.target
                    added = self.by_id[contact.id] = Candidate(contact.id, distance, [contact], tellers)
                    bisect.insort(self.ordered, added, key=_by_distance)
                continue
            # Twenty equal bytes of different peers: the first one stays.
            if known.contacts[0].peer != contact.peer:
                continue
            if teller is None:
                known.tellers.clear()
            elif known.tellers and teller not in known.tellers:
                known.tellers.append(teller)
            if known.state in (_State.NEW, _State.FAILED):
                known.add_address(contact, verified=teller is None)

    def __len__(self) -> int:
        return len(self.by_id)

    def free_teller(self, candidate: Candidate) -> _Teller | None:
        """A teller of `candidate` that may have one more asked; None where there is none."""
        for each in candidate.tellers:
            teller = self.tellers[each]
            if not teller.busy and not teller.is_spent:
                return teller
        return None

    def is_discredited(self, candidate: Candidate) -> bool:
        """Whether everybody who told it has told too many dead."""
        return bool(candidate.tellers) and all(self.tellers[each].is_spent for each in candidate.tellers)


# Remembered, since every step of every lookup asks for all its candidates; there are eight answers.
@functools.lru_cache(16)
def kinds_of(families: frozenset[int], *, is_global: bool) -> tuple[str, ...]:
    """What a peer counts as when the nearest are chosen: who uses one family, or is far away, can ask only some."""
    return ("any", *(f"family {family}" for family in sorted(families)), *(("global",) if is_global else ()))


def nearest_of_each_kind(ordered: Iterable[T], k: int, kinds: Callable[[T], tuple[str, ...]]) -> list[T]:
    """Those of `ordered` that are among the first k of at least one of their kinds, in their order."""
    counts: dict[str, int] = {}
    chosen = []
    for each in ordered:
        mine = kinds(each)
        is_near = False
        for kind in mine:
            before = counts.get(kind, 0)
            counts[kind] = before + 1
            is_near = is_near or before < k
        if is_near:
            chosen.append(each)
    return chosen


@dataclass(slots=True)
class Found:
    """What a lookup found. `contacts`: who answered, nearest first, those beyond two of one voice at the end."""

    contacts: list[Contact] = field(default_factory=list)
    #: Who has which pointer under the key, opened and genuine.
    holders: list[tuple[Contact, Pointer]] = field(default_factory=list)
    #: Families at which each of them can be asked, as far as known.
    families: dict[PeerId, frozenset[int]] = field(default_factory=dict)
    #: Whether it ended by the deadline.
    is_late: bool = False

    def nearest(self, k: int) -> list[Contact]:
        """The k nearest, and the k nearest of each kind that others may be confined to (see `kinds_of`); the same k in most networks."""
        return nearest_of_each_kind(
            self.contacts, k, lambda each: kinds_of(self.families[each.peer], is_global=each.scope is Scope.GLOBAL)
        )

    @property
    def newest(self) -> Pointer | None:
        """The newest pointer."""
        return max((pointer for _, pointer in self.holders), key=lambda pointer: pointer.order, default=None)


class Crawl(SpiderCrawl):  # type: ignore[misc]
    """A lookup of the peers nearest to a key. `find` may be called once."""

    protocol: HardenedProtocol
    node: Node

    def __init__(self, protocol: HardenedProtocol, node: Node, peers: list[Contact]) -> None:
        settings = protocol.around.settings
        super().__init__(protocol, node, [], settings.k, settings.alpha)
        #: What has been found so far.
        self.found = Found()
        #: One for each path.
        self.paths = [Candidates(node, self.ksize) for _ in range(settings.paths)]
        #: Asked or answered, by whichever path: nobody is asked by two.
        self._claimed: dict[PointerKey, None] = {}
        #: What was tried in vain, by whichever path.
        self._tried: dict[tuple[PointerKey, Address], None] = {}
        #: Requests that run, lapsed or not, by number, so that they are cancelled in the order of their beginning.
        self._running: dict[int, asyncio.Task[None]] = {}
        self._next = 0
        #: Set when there is nothing left to find.
        self._done = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        alive = self._alive(peers)
        #: Contacts of ours beyond the nearest k, the nearest last: one takes the place of each that does not answer.
        self._spare = alive[: self.ksize - 1 : -1] if len(alive) > self.ksize else []
        for number, contact in enumerate(alive[: self.ksize]):
            self.paths[number % settings.paths].push(contact)

    async def find(self) -> Found:
        """Walk until the nearest have answered, or the deadline."""
        try:
            async with asyncio.timeout(self.protocol.around.settings.lookup_deadline_s), asyncio.TaskGroup() as group:
                self._group = group
                self._advance(*self.paths)
                await self._done.wait()
                for task in list(self._running.values()):
                    task.cancel()
        except TimeoutError:
            self.found.is_late = True
        self.found.contacts = self._ranked_answers()
        return self.found

    async def _find(self, rpcmethod: Callable[..., object]) -> None:
        raise AssertionError("the package's rounds are replaced by find()")

    def _alive(self, contacts: Iterable[Contact]) -> list[Contact]:
        now = self.protocol.around.clock.monotonic()
        return [each for each in contacts if not self.protocol.dead.is_dead(each.peer, each.address, now)]

    # --- choosing whom to ask ---------------------------------------------------------------------------------------------

    def _advance(self, *changed: Candidates) -> None:
        """Ask whoever is next on the paths on which something has changed; end when nobody is, and nobody is waited for."""
        if self._done.is_set():
            return
        for path in changed:
            while path.in_flight < self.alpha and (candidate := self._next_of(path)) is not None:
                self._start(path, candidate)
        if not self._running:
            self._done.set()

    def _next_of(self, path: Candidates) -> Candidate | None:
        for candidate in self._nearest(path):
            if candidate.state is not _State.NEW or candidate.id in self._claimed:
                continue
            if candidate.tellers and path.free_teller(candidate) is None:
                continue
            return candidate
        return None

    def _nearest(self, path: Candidates) -> list[Candidate]:
        """The k of a path that matter, in the order in which they are asked."""
        invitation_of = self.protocol.around.invitation_of
        counts: dict[str, int] = {}
        first: list[Candidate] = []
        last: list[Candidate] = []
        crowding: dict[PointerKey, None] = {}
        for candidate in path.ordered:
            if self._tried and candidate.state is _State.NEW:
                self._forget_tried(candidate)
            if candidate.state is _State.FAILED or (
                candidate.state is _State.NEW and path.is_discredited(candidate) and candidate.id not in self._claimed
            ):
                continue
            contact = candidate.contacts[0]
            # Whose invitation an unverified contact has is not known yet, so it is judged by who told it.
            if contact.scope is Scope.GLOBAL or candidate.state is not _State.NEW or not candidate.tellers:
                voice = contact.voice(invitation_of)
                counts[voice] = counts.get(voice, 0) + 1
                if counts[voice] > limits.DHT_SAME_NETWORK_PER_BUCKET_MAX:
                    crowding[candidate.id] = None
            (last if candidate.id in crowding else first).append(candidate)
        if not crowding:
            return nearest_of_each_kind(first, self.ksize, _kinds_of_candidate)
        kept: list[Candidate] = []
        doubtful: list[Candidate] = []
        for each in first:
            is_doubtful = bool(each.tellers) and all(told in crowding for told in each.tellers)
            (doubtful if is_doubtful else kept).append(each)
        behind = sorted(last + doubtful, key=_by_distance)
        return nearest_of_each_kind(kept + behind, self.ksize, _kinds_of_candidate)

    def _forget_tried(self, candidate: Candidate) -> None:
        candidate.contacts = [
            each for each in candidate.contacts if (candidate.id, each.address) not in self._tried
        ] or candidate.contacts[:1]
        if (candidate.id, candidate.contacts[0].address) in self._tried:
            candidate.state = _State.FAILED

    def _start(self, path: Candidates, candidate: Candidate) -> None:
        assert self._group is not None, "find() has been called"
        teller = path.free_teller(candidate) if candidate.tellers else None
        if teller is not None:
            teller.busy = True
        candidate.state = _State.ASKED
        self._claimed[candidate.id] = None
        path.in_flight += 1
        number = self._next
        self._next += 1
        query = self._query(path, candidate, teller, number)
        self._running[number] = self._group.create_task(query, name="dht query")

    # --- asking -----------------------------------------------------------------------------------------------------------

    async def _query(self, path: Candidates, candidate: Candidate, teller: _Teller | None, number: int) -> None:
        lapsed = False

        def make_way() -> None:
            nonlocal lapsed
            lapsed = True
            path.in_flight -= 1
            if teller is not None:
                teller.busy = False
                teller.dead += 1

        def stalled() -> None:
            make_way()
            self._refill(path)
            self._advance(path)

        contact = candidate.contacts[0]
        try:
            answer = await self.ask(contact, stalled)
        finally:
            self._running.pop(number, None)
        if not lapsed:
            make_way()
        usable = answer is not None and self.take(contact, answer)
        if teller is not None and usable:
            # Counted as dead when it lapsed or answered, until now.
            teller.alive += 1
            teller.dead -= 1
        if answer is not None and usable:
            candidate.state = _State.ANSWERED
            self.found.contacts.append(contact)
            known = (*candidate.contacts, *self.protocol.router.known(contact.peer))
            self.found.families[contact.peer] = frozenset(each.family for each in known)
            path.tellers[candidate.id] = _Teller()
            for told in answer.told:
                # Where those that we know have answered us comes first.
                path.push(self._alive(self.protocol.router.known(told.peer)))
                path.push(self._alive([told]), candidate.id)
        else:
            self._tried[candidate.id, contact.address] = None
            self._claimed.pop(candidate.id, None)
            if answer is not None:
                self._refill(path)
            candidate.state = _State.NEW
            self._forget_tried(candidate)
        # Whoever failed on this path may be asked on others, at other addresses.
        self._advance(*((path,) if usable else self.paths))

    def _refill(self, path: Candidates) -> None:
        if self._spare:
            path.push(self._spare.pop())

    async def ask(self, contact: Contact, stalled: Callable[[], None]) -> Answer | None:
        """Ask one peer."""
        return await self.protocol.call_find_node(contact, self.node, stalled)

    def take(self, contact: Contact, answer: Answer) -> bool:
        """Look at an answer; False where it is a lie."""
        return True

    # --- what was found ---------------------------------------------------------------------------------------------------

    def _ranked_answers(self) -> list[Contact]:
        nearest = sorted(self.found.contacts, key=lambda each: (each.long_id ^ self.node.long_id, each.peer))
        return self.protocol.spread(nearest, hard=False)


class ContactCrawl(Crawl):
    """Finds the peers nearest to a key."""


class PointerCrawl(Crawl):
    """Finds the pointers under a key, and the peers nearest to it.

    `wanted`: voices (see `contacts.Contact.voice`) of holders after which it ends, so that one person's identities, all with
    the same old version, do not end it; it ends too when after the first as much time again has gone by, within bounds. None: it walks to
    the end, as an owner does who wants to know what others hold before it publishes.
    """

    def __init__(
        self,
        protocol: HardenedProtocol,
        node: Node,
        peers: list[Contact],
        wanted: int | None = limits.DHT_VALUES_WANTED,
    ) -> None:
        #: See the class.
        self._wanted = wanted
        super().__init__(protocol, node, peers)
        #: Voices of holders so far.
        self._voices: dict[str, None] = {}
        #: When it began, seconds of the loop.
        self._began = asyncio.get_running_loop().time()
        #: The end of the wait for more holders.
        self._grace: asyncio.TimerHandle | None = None

    async def find(self) -> Found:
        """See `Crawl.find`."""
        try:
            return await super().find()
        finally:
            if self._grace is not None:
                self._grace.cancel()

    async def ask(self, contact: Contact, stalled: Callable[[], None]) -> Answer | None:
        """Ask one peer for the pointer."""
        return await self.protocol.call_find_value(contact, self.node, stalled)

    def take(self, contact: Contact, answer: Answer) -> bool:
        """Open the pointer, if one is there; who sends one that is false is a liar."""
        wire = answer.reply.pointer
        if wire is None:
            return True
        around = self.protocol.around
        try:
            pointer = decode_pointer(wire)
            if pointer.key != self.node.id:
                raise ProtocolError("a pointer of another key than was asked for")
            if wire not in (known.wire for _, known in self.found.holders) and not pointer.is_genuine(around.verify):
                raise ProtocolError("a pointer with a wrong signature")
        except ProtocolError:
            self.protocol.lied(contact.peer, "value")
            return False
        # One that has ended may be its holder's clock's doing: no lie, and no pointer either.
        if pointer.keep_s(around.clock.wall()) > 0:
            self.found.holders.append((contact, pointer))
            self._voices[contact.voice(around.invitation_of)] = None
            self._enough()
        return True

    def _enough(self) -> None:
        if self._wanted is None:
            return
        if len(self._voices) >= self._wanted:
            self._done.set()
        elif self._grace is None:
            loop = asyncio.get_running_loop()
            grace_s = min(max(loop.time() - self._began, limits.DHT_VALUE_GRACE_S), limits.DHT_VALUE_GRACE_MAX_S)
            self._grace = loop.call_later(grace_s, self._done.set)
