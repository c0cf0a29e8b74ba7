"""What the joining machine knows of addresses: candidates, what records name, and whose they are.

Owns three tables and their limits. Rules:

- A candidate is one address that was named, hinted at or tried; at most `candidates_max`. What records name is kept beside
  them, a row a peer, and becomes candidates only when its peer is to be dialled: 20,000 known peers are 20,000 rows that
  share their tuples with the records, not 60,000 candidates.
- A target is whom a dial may link: a peer with all that is known of its ways, or an address of which nobody knows whose
  it is. Every candidate belongs to exactly one.
- Where room is missing the least worthy goes: the worst source first, then what has failed, then what was heard longest
  ago; never a better source for a worse. A record's candidates go back into their row, with their failures.

Expiry and worth are kept in heaps whose entries are put right when they come up: O(log n) for each event, however many
peers are known. Refuses to know: links, dials and when they are due.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from p2pcompute.membership.joining_events import LASTING, SOURCES, JoiningSettings, RecordAddresses, Source
from p2pcompute.membership.locality import NAME, Network, locality
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Relay

#: Address, the peer expected there, and the relay's peer where the address is a relay's.
Key = tuple[Address, PeerId | None, PeerId | None]
#: Rank of the source, nearness, lot, when it was due, address, peer: the smaller, the sooner it is dialled.
Urgency = tuple[int, int, float, float, Address, bytes]

_RECORD: frozenset[Source] = frozenset({"record"})
_RANKS = {source: rank for rank, source in enumerate(SOURCES)}
#: A relay is tried after every address of its peer.
_RELAYED = NAME + 1
#: Heaps are built anew when so many entries more than twice the living are in them.
_SLACK = 64


@dataclass(slots=True, eq=False)
class Candidate:
    """One address, and what came of trying it."""

    address: Address
    #: The only peer that will do there, None where anybody will.
    expected: PeerId | None
    #: The relay that listens at `address` for `expected`, None where the address is the peer's own.
    relay: Relay | None
    #: Who answered there last; equals `expected` where that is set.
    peer: PeerId | None
    #: Who said so; never empty.
    sources: frozenset[Source]
    #: When it was last said, monotonic seconds.
    heard_at: float
    #: Not dialled before this.
    next_at: float
    #: `locality` of the address, kept right when the own networks change.
    near: int
    #: Place of the best source in `SOURCES`.
    rank: int
    #: Drawn for what records name, so that peers which all heard the same records choose differently; 0.0 for others.
    lot: float = 0.0
    #: Failures in a row.
    failures: int = 0
    #: When the dial under way began, None where none is.
    dialled_at: float | None = None
    #: It is this peer itself that listens there.
    is_self: bool = False

    @property
    def key(self) -> Key:
        """Its place in the table."""
        return (self.address, self.expected, self.relay.peer if self.relay is not None else None)

    @property
    def urgency(self) -> Urgency:
        """What is due is dialled in this order."""
        return (self.rank, self.near, self.lot, self.next_at, self.address, self.expected or b"")

    @property
    def worth(self) -> tuple[int, int, float]:
        """The smallest makes room first."""
        return (-self.rank, -self.failures, self.heard_at)


@dataclass(slots=True)
class RecordRow:
    """What the newest record of a peer names, and what came of trying it as long as no candidates say that."""

    addresses: tuple[Address, ...]
    relays: tuple[Relay, ...]
    #: When it was last said, monotonic seconds.
    heard_at: float
    #: Not dialled before this.
    next_at: float
    #: See `Candidate.lot`.
    lot: float
    #: Failures in a row.
    failures: int = 0
    #: Its addresses are candidates now.
    is_unfolded: bool = False


@dataclass(slots=True, eq=False)
class Target:
    """Whom a dial may link."""

    #: None for an address of which nobody knows whose it is: then it has exactly one candidate.
    peer: PeerId | None
    #: Its candidates, in the order in which they were heard.
    candidates: dict[Key, Candidate] = field(default_factory=dict)
    #: What its record names, None where none does.
    row: RecordRow | None = None
    #: Before this no further address of it is tried.
    gate_at: float = 0.0
    #: A link to it is up.
    is_linked: bool = False
    #: When it is dialled directly although a relayed link is up; None where no relayed link is.
    direct_at: float | None = None
    #: The queue it waits in (see `joining_queue.py`) and since which entry; None where it waits in none.
    place: int | None = None
    ticket: int = 0
    due_at: float = 0.0

    @property
    def is_racing(self) -> bool:
        """A dial of it is under way."""
        return any(candidate.dialled_at is not None for candidate in self.candidates.values())

    def usable(self) -> Iterator[Candidate]:
        """Candidates that may be dialled, apart from when; relays only after every direct way has failed."""
        folded = self.row is not None and not self.row.is_unfolded and bool(self.row.addresses)
        direct_is_open = folded or any(
            candidate.relay is None and not candidate.is_self and not candidate.failures
            for candidate in self.candidates.values()
        )
        for candidate in self.candidates.values():
            if (
                candidate.is_self
                or candidate.dialled_at is not None
                or (candidate.relay is not None and direct_is_open)
            ):
                continue
            yield candidate

    def rest(self, until: float) -> None:
        """No way to it is tried before `until`, unless something shortens the wait."""
        for candidate in self.candidates.values():
            candidate.next_at = max(candidate.next_at, until)
        if self.row is not None:
            self.row.next_at = max(self.row.next_at, until)

    def next_at(self) -> float | None:
        """When a way to it may be tried next, None where there is none."""
        moments = [candidate.next_at for candidate in self.usable()]
        if self.row is not None and not self.row.is_unfolded and (self.row.addresses or self.row.relays):
            moments.append(self.row.next_at)
        return max(min(moments), self.gate_at) if moments else None


class AddressTable:
    """See the module."""

    def __init__(self, settings: JoiningSettings) -> None:
        #: Times and limits.
        self._settings = settings
        #: What may be dialled, at most `candidates_max`.
        self.candidates: dict[Key, Candidate] = {}
        #: By peer, or by candidate where nobody knows the peer. A peer's stays while anything is known of it.
        self.targets: dict[PeerId | Key, Target] = {}
        #: Peers with a row, the one heard longest ago first; at most `records_max`.
        self._rows: dict[PeerId, Target] = {}
        #: How many targets are peers.
        self.peers = 0
        #: Targets that lost something since `take_touched`; each once.
        self._touched: dict[int, Target] = {}
        #: This machine's own networks.
        self._networks: tuple[Network, ...] = ()
        #: (when, number, candidate): at least one entry a candidate, never later than its end.
        self._ends: list[tuple[float, int, Candidate]] = []
        #: (worth, number, candidate): at least one entry a candidate, never better than its worth.
        self._worths: list[tuple[tuple[int, int, float], int, Candidate]] = []
        #: Numbers of entries: no two candidates are ever compared.
        self._number = 0

    # --- candidates ---------------------------------------------------------------------------------------------------

    def target_of(self, peer: PeerId) -> Target:
        """Of `peer`, made where there is none; `prune` takes an empty one away."""
        target = self.targets.get(peer)
        if target is None:
            target = self.targets[peer] = Target(peer)
            self.peers += 1
        return target

    def home_of(self, candidate: Candidate) -> Target:
        """The target that `candidate` belongs to."""
        return self.targets[candidate.peer if candidate.peer is not None else candidate.key]

    def new(
        self,
        address: Address,
        expected: PeerId | None,
        source: Source,
        now: float,
        next_at: float,
        relay: Relay | None = None,
    ) -> Candidate:
        """A candidate that is in no table yet."""
        near = _RELAYED if relay is not None else locality(address.host, self._networks)
        sources: frozenset[Source] = frozenset({source})
        return Candidate(address, expected, relay, expected, sources, now, next_at, near, _RANKS[source])

    def add(self, candidate: Candidate) -> Target | None:
        """Take `candidate` in; its target, or None where there is no room for it."""
        if not self._make_room(candidate):
            return None
        self.candidates[candidate.key] = candidate
        if candidate.peer is not None:
            target = self.target_of(candidate.peer)
        else:
            target = self.targets[candidate.key] = Target(None)
        target.candidates[candidate.key] = candidate
        self._push_end(candidate)
        self.push_worth(candidate)
        return target

    def rehome(self, candidate: Candidate, peer: PeerId | None) -> tuple[Target, Target]:
        """Somebody answered at `candidate`: it belongs to `peer` from now on. The target before, and the one now."""
        before = self.home_of(candidate)
        if peer == candidate.peer or peer is None:
            return before, before
        del before.candidates[candidate.key]
        candidate.peer = peer
        now = self.target_of(peer)
        now.candidates[candidate.key] = candidate
        self.prune(before, candidate.key)
        return before, now

    def drop(self, candidate: Candidate) -> None:
        """Take `candidate` out."""
        target = self.home_of(candidate)
        del self.candidates[candidate.key]
        del target.candidates[candidate.key]
        self._touched[id(target)] = target
        self.prune(target, candidate.key)

    def take_touched(self) -> tuple[Target, ...]:
        """Targets that lost a way since the last call: when they are due may have changed."""
        touched = tuple(self._touched.values())
        self._touched.clear()
        return touched

    def prune(self, target: Target, key: Key | None = None) -> None:
        """Forget `target` where nothing is known of it any more; `key`: of the candidate that it was without a peer."""
        if target.candidates or target.row is not None or target.is_linked:
            return
        name = target.peer if target.peer is not None else key
        if name is not None and self.targets.pop(name, None) is not None and target.peer is not None:
            self.peers -= 1

    def add_source(self, candidate: Candidate, source: Source) -> None:
        """`source` names it too."""
        candidate.sources |= {source}
        candidate.rank = min(candidate.rank, _RANKS[source])
        self._push_end(candidate)  # what went with its row has an end of its own now

    def remove_sources(self, candidate: Candidate, sources: Iterable[Source]) -> bool:
        """These name it no more; whether any other still does. Without one it keeps its sources: drop it."""
        left = candidate.sources - frozenset(sources)
        if not left:
            return False
        candidate.sources = left
        candidate.rank = min(_RANKS[source] for source in left)
        self.push_worth(candidate)
        self._push_end(candidate)
        return True

    def networks_changed(self, networks: tuple[Network, ...]) -> None:
        """These are this machine's own networks."""
        self._networks = networks
        for candidate in self.candidates.values():
            if candidate.relay is None:
                candidate.near = locality(candidate.address.host, networks)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def row_urgency(self, peer: PeerId, row: RecordRow) -> Urgency:
        """Of the nearest address in a row that is not unfolded."""
        near, address = min(
            ((locality(address.host, self._networks), address) for address in row.addresses),
            default=(_RELAYED, row.relays[0].address if row.relays else Address("", 0)),
        )
        return (_RANKS["record"], near, row.lot, row.next_at, address, peer)

    def set_row(self, heard: RecordAddresses, now: float, next_at: float, lot: float) -> tuple[Target, bool]:
        """The newest record names these; its target, and whether that differs from what was known."""
        target = self.target_of(heard.peer)
        row = target.row
        addresses = heard.addresses[: limits.ADDRESSES_MAX]
        relays = heard.relays[: limits.RELAYS_MAX]
        if row is not None:
            # The one heard longest ago is the first.
            del self._rows[heard.peer]
            self._rows[heard.peer] = target
            row.heard_at = now
            if row.addresses == addresses and row.relays == relays:
                return target, False
            self._replace(target, row, addresses, relays)
            return target, True
        if len(self._rows) >= self._settings.records_max:
            self.forget_row(next(iter(self._rows.values())))
        target.row = RecordRow(addresses, relays, now, next_at, lot)
        self._rows[heard.peer] = target
        return target, True

    def forget_row(self, target: Target) -> None:
        """The record of `target`'s peer is worth nothing any more; candidates made of it go unless others name them."""
        row = target.row
        if row is None or target.peer is None:
            return
        self._replace(target, row, (), ())
        target.row = None
        self._touched[id(target)] = target
        del self._rows[target.peer]
        self.prune(target)

    def unfold(self, target: Target, now: float) -> bool:
        """Make candidates of what its record names; whether there was room for any."""
        row, peer = target.row, target.peer
        if row is None or peer is None or row.is_unfolded:
            return True
        row.is_unfolded = True
        made = False
        ways: list[tuple[Address, Relay | None]] = [(address, None) for address in row.addresses]
        ways += [(relay.address, relay) for relay in row.relays]
        for address, relay in ways:
            known = self.candidates.get((address, peer, relay.peer if relay is not None else None))
            if known is not None:
                self.add_source(known, "record")
                made = True
                continue
            candidate = self.new(address, peer, "record", row.heard_at, row.next_at, relay)
            candidate.failures, candidate.lot = row.failures, row.lot
            made = self.add(candidate) is not None or made
        if not made:
            row.is_unfolded = False
        return made

    def expire(self, now: float) -> None:
        """Forget what nobody has repeated for too long."""
        while self._rows:
            peer, target = next(iter(self._rows.items()))
            assert target.row is not None
            if target.row.heard_at + self._settings.record_forget_s > now:
                break
            if target.is_linked:
                # Its records come over the link itself, whether or not they say anything new: look again later.
                target.row.heard_at = now
                del self._rows[peer]
                self._rows[peer] = target
                continue
            self.forget_row(target)
        while self._ends and self._ends[0][0] <= now:
            _, _, candidate = heapq.heappop(self._ends)
            if self.candidates.get(candidate.key) is not candidate:
                continue
            end = self._end_of(candidate)
            if end is None:
                continue
            if candidate.dialled_at is not None or self.home_of(candidate).is_linked:
                # Looked at again when the dial or the link has ended, see `ended`.
                continue
            if end <= now:
                self.drop(candidate)
            else:
                self._push_end(candidate)

    def ended(self, candidate: Candidate) -> None:
        """Its dial, or the link to its peer, is over: it may end and is worth what it is."""
        self.push_worth(candidate)
        self._push_end(candidate)

    # --- room ---------------------------------------------------------------------------------------------------------

    def push_worth(self, candidate: Candidate) -> None:
        """Must follow whatever makes a candidate worth less; what makes it worth more is seen when it comes up."""
        self._number += 1
        if len(self._worths) > 2 * len(self.candidates) + _SLACK:
            alive = enumerate(self.candidates.values(), self._number)
            self._worths = [(each.worth, number, each) for number, each in alive]
            self._number += len(self._worths)
            heapq.heapify(self._worths)
        heapq.heappush(self._worths, (candidate.worth, self._number, candidate))

    def _push_end(self, candidate: Candidate) -> None:
        end = self._end_of(candidate)
        if end is None:
            return
        self._number += 1
        if len(self._ends) > 2 * len(self.candidates) + _SLACK:
            ends = ((self._end_of(each), each) for each in self.candidates.values())
            kept = [(at, each) for at, each in ends if at is not None]
            self._ends = [(at, number, each) for number, (at, each) in enumerate(kept, self._number)]
            self._number += len(self._ends)
            heapq.heapify(self._ends)
        heapq.heappush(self._ends, (end, self._number, candidate))

    def _end_of(self, candidate: Candidate) -> float | None:
        """When it is forgotten unless somebody repeats it, None for never."""
        if candidate.sources & LASTING:
            return None
        if candidate.peer is not None and candidate.sources == _RECORD:
            row = self.targets[candidate.peer].row
            if row is not None and self._is_of(row, candidate):
                return None  # it goes with its row
        is_record = "record" in candidate.sources
        return candidate.heard_at + (self._settings.record_forget_s if is_record else self._settings.lan_forget_s)

    def _make_room(self, new: Candidate) -> bool:
        """Whether `new` may be kept; the least worthy of its peer, then of all, goes for it."""
        if new.expected is not None and new.relay is None:
            target = self.targets.get(new.expected)
            siblings = target.candidates.values() if target is not None else ()
            same = [each for each in siblings if each.expected is not None and each.relay is None]
            if len(same) >= limits.ADDRESSES_MAX and not self._drop_worst_of(same, new):
                return False
        return len(self.candidates) < self._settings.candidates_max or self._drop_worst(new)

    def _drop_worst_of(self, among: Sequence[Candidate], new: Candidate) -> bool:
        idle = [each for each in among if each.dialled_at is None and each.rank >= new.rank]
        worst = min(idle, key=lambda each: (each.worth, each.address), default=None)
        if worst is not None:
            self._give_way(worst, alone=True)
        return worst is not None

    def _drop_worst(self, new: Candidate) -> bool:
        aside: list[tuple[tuple[int, int, float], int, Candidate]] = []
        found = False
        while self._worths and not found:
            entry = heapq.heappop(self._worths)
            worth, _, candidate = entry
            if self.candidates.get(candidate.key) is not candidate:
                continue
            if worth != candidate.worth:
                # Never worse than its true worth would be put, so what comes up with the right one is the worst.
                self.push_worth(candidate)
            elif candidate.dialled_at is not None or (new.expected is not None and candidate.peer == new.expected):
                aside.append(entry)
            elif candidate.rank < new.rank:
                aside.append(entry)
                break
            else:
                self._give_way(candidate)
                found = True
        for entry in aside:
            heapq.heappush(self._worths, entry)
        return found

    def _give_way(self, candidate: Candidate, *, alone: bool = False) -> None:
        """Drop `candidate`; where its record still names it, its siblings go back into their row with it."""
        target = self.home_of(candidate)
        row = target.row
        if alone or row is None or not row.is_unfolded or not self._is_of(row, candidate):
            self.drop(candidate)
            return
        going = [
            each
            for each in target.candidates.values()
            if each.sources == _RECORD and each.dialled_at is None and self._is_of(row, each)
        ]
        if candidate not in going:
            going.append(candidate)
        row.is_unfolded = False
        row.failures = min(each.failures for each in going)
        row.next_at = min(each.next_at for each in going)
        for each in going:
            self.drop(each)

    @staticmethod
    def _is_of(row: RecordRow, candidate: Candidate) -> bool:
        return candidate.relay in row.relays if candidate.relay is not None else candidate.address in row.addresses

    def _replace(
        self, target: Target, row: RecordRow, addresses: tuple[Address, ...], relays: tuple[Relay, ...]
    ) -> None:
        """The row names these from now on; candidates that only it named go, new ones are made when it is unfolded."""
        row.addresses, row.relays = addresses, relays
        for candidate in list(target.candidates.values()):
            if "record" not in candidate.sources or self._is_of(row, candidate):
                continue
            if candidate.dialled_at is None and not self.remove_sources(candidate, _RECORD):
                self.drop(candidate)
        row.is_unfolded, row.failures = False, 0

    # --- checks -------------------------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert len(self.candidates) <= self._settings.candidates_max
        assert len(self._rows) <= self._settings.records_max
        assert self.peers == sum(target.peer is not None for target in self.targets.values())
        assert set(self._rows) == {peer for peer, target in self.targets.items() if target.row is not None}
        housed = 0
        for name, target in self.targets.items():
            assert target.candidates or target.row is not None or target.is_linked
            assert target.peer is not None or len(target.candidates) == 1
            assert name == (target.peer if target.peer is not None else next(iter(target.candidates)))
            housed += len(target.candidates)
            for key, candidate in target.candidates.items():
                assert candidate.key == key
                assert self.candidates[key] is candidate
                assert candidate.peer == target.peer
        assert housed == len(self.candidates)
        ends = {id(candidate) for _, _, candidate in self._ends}
        worths: dict[int, tuple[int, int, float]] = {}
        for worth, _, candidate in self._worths:
            worths[id(candidate)] = min(worth, worths.get(id(candidate), worth))
        for candidate in self.candidates.values():
            assert candidate.sources
            assert candidate.rank == min(_RANKS[source] for source in candidate.sources)
            assert candidate.expected is None or candidate.peer == candidate.expected
            assert not (candidate.is_self and candidate.dialled_at is not None)
            assert candidate.dialled_at is not None or worths[id(candidate)] <= candidate.worth
            is_kept = candidate.dialled_at is not None or self.home_of(candidate).is_linked
            assert is_kept or self._end_of(candidate) is None or id(candidate) in ends
