"""The joining machine: which addresses to dial, and when. A duty that never ends and never fails.

Addresses come from many sources and are kept as candidates. A candidate is an address together with the peer that is
expected there, or None where a person named an address and whoever answers will do. Rules:

- Peers that are linked are not dialled, but for those that are linked through a relay: they are tried directly now and then.
- While no more than `mesh_peers_max` peers are known every one of them is dialled. Beyond that `links_wanted_beyond` links
  are enough: `LinksPreferred` says which to have rather than others. However many are up, dialled up to `links_max` are
  what a person named and nobody has answered at yet, what `LinkWanted` asks for, and the preferred ones; in that order.
- A failure waits for 1 s to 5 min (60 s where somebody is waiting: LAN hints and `--bootstrap`), see `backoff.py`. A
  refusal that trying again cannot mend waits for about 10 min. An address that turned out to be this peer itself is
  never dialled again.
- The addresses of one peer are tried nearest first, the next one 300 ms later or as soon as the one before failed
  (RFC 8305's idea), until one links. When all have failed, the relays that its record names are.
- A peer that closed a link to make room for others is left alone for some minutes, unless somebody needs it or no other link is up.
- What a person or an earlier run named is never given up. A LAN hint lasts as long as beacons repeat it, a record's
  address as long as the record.
- Of two peers that learn of each other at the same time the one with the higher id waits up to 300 ms: fewer
  simultaneous dials. Which of two links stays is the business of `net/`.

An event costs O(log n), n being the peers that are known: a network of 1,000 peers tells each of them of a change of some
record many times a second. What is kept of addresses is the business of `joining_table.py`.

Refuses to know: sockets, names and their resolution, TLS, why a refusal is permanent, how a relay is used.
"""

from __future__ import annotations

from p2pcompute.membership.backoff import backoff_s
from p2pcompute.membership.joining_events import (
    HURRIED,
    NAMED,
    SOURCES,
    CandidateHeard,
    CandidatesHeard,
    Dial,
    DialEnded,
    DialVia,
    DirectPromised,
    Effect,
    Event,
    JoiningSettings,
    LinkDown,
    LinksPreferred,
    LinkUp,
    LinkWanted,
    NetworksChanged,
    PeerForgotten,
    RecordAddresses,
    Source,
)
from p2pcompute.membership.joining_queue import DueQueue
from p2pcompute.membership.joining_table import AddressTable, Candidate, Key, Target, Urgency
from p2pcompute.membership.locality import parse_networks
from p2pcompute.membership.machine import Tick, earliest
from p2pcompute.model.errors import AdmissionReason
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Rng

__all__ = [
    "SOURCES",
    "CandidateHeard",
    "CandidatesHeard",
    "Dial",
    "DialEnded",
    "DialVia",
    "DirectPromised",
    "Effect",
    "Event",
    "JoiningMachine",
    "JoiningSettings",
    "LinkDown",
    "LinkUp",
    "LinkWanted",
    "LinksPreferred",
    "NetworksChanged",
    "PeerForgotten",
    "RecordAddresses",
    "Source",
    "Tick",
]

#: Classes of targets, in the order in which they are served: each has its queue.
_NEEDED, _PREFERRED, _OTHER, _DIRECT = range(4)


class JoiningMachine:
    """See the module."""

    def __init__(self, own: PeerId, rng: Rng, settings: JoiningSettings | None = None) -> None:
        #: Who dials.
        self._own = own
        #: The machine's dice.
        self._rng = rng
        #: Times and limits.
        self._settings = settings or JoiningSettings()
        #: What may be dialled, and whom that may link.
        self._table = AddressTable(self._settings)
        #: The candidates that are being dialled: exactly those with `dialled_at`; at most `dials_at_once_max`.
        self._under_way: dict[Key, Candidate] = {}
        #: Linked peers, and since when; exactly those whose target says so.
        self._linked: dict[PeerId, float] = {}
        #: Peers that somebody needs, and until when, the soonest first; none of them linked.
        self._wanted: dict[PeerId, float] = {}
        #: Peers to be linked with rather than with others.
        self._preferred: frozenset[PeerId] = frozenset()
        #: By class: targets that are not linked (but for `_DIRECT`), that no dial is under way to, and that have a way.
        self._queues = tuple(DueQueue(place, self._urgency) for place in range(4))
        #: The last ticket given to a queue.
        self._ticket = 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What `event` leads to: the dials that are due and allowed at `now`."""
        match event:
            case CandidateHeard():
                self._hear(event, now)
            case CandidatesHeard(rows):
                for row in rows:
                    self._hear_record(row, now)
            case LinksPreferred(peers):
                self._prefer(frozenset(peers))
            case DialEnded():
                self._end_dial(event, now)
            case LinkUp():
                self._link_up(event, now)
            case LinkDown(peer, idle):
                self._link_down(peer, idle, now)
            case LinkWanted(peer):
                self._want(peer, now)
            case DirectPromised(peer):
                self._promise_direct(peer, now)
            case PeerForgotten(peer):
                self._forget_peer(peer)
            case NetworksChanged(networks):
                self._table.networks_changed(parse_networks(networks))
            case Tick():
                pass
        self._expire(now)
        return self._dials(now)

    def deadline(self) -> float | None:
        """When a dial, or the end of one that was never told, is due; None where only an event can change anything."""
        lost = [(each.dialled_at or 0.0) + self._settings.dial_lost_s for each in self._under_way.values()]
        due: list[float | None] = []
        if len(lost) < self._settings.dials_at_once_max:
            racing = self._racing()
            links = self._links(racing)
            due = [queue.next_at() for queue in self._queues if len(queue) and self._is_open(queue.place, links)]
            due += [each.next_at() for each in racing if self._may_race(each, links)]
        return earliest(min(lost, default=None), *due, next(iter(self._wanted.values()), None))

    @property
    def candidates(self) -> tuple[tuple[Address, PeerId | None, int], ...]:
        """Address, peer as far as known, and failures in a row of every candidate: for `doctor`."""
        return tuple(
            (candidate.address, candidate.peer, 0 if candidate.peer in self._linked else candidate.failures)
            for candidate in sorted(
                self._table.candidates.values(), key=lambda each: (each.address, each.expected or b"")
            )
        )

    @property
    def peers_known(self) -> int:
        """Peers of which a link or a way to them is known."""
        return self._table.peers

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        self._table.check_invariants()
        assert len(self._under_way) <= self._settings.dials_at_once_max
        dialled = {key for key, each in self._table.candidates.items() if each.dialled_at is not None}
        assert dialled == set(self._under_way)
        assert self._own not in self._linked
        assert not set(self._linked) & set(self._wanted)
        assert list(self._wanted.values()) == sorted(self._wanted.values())
        counts = [0] * len(self._queues)
        for target in self._table.targets.values():
            assert target.is_linked == (target.peer in self._linked)
            assert (target.place, target.due_at if target.place is not None else None) == self._place_of(target)
            if target.place is not None:
                counts[target.place] += 1
        assert counts == [len(queue) for queue in self._queues]
        for queue in self._queues:
            queue.check_invariants()

    # --- events -------------------------------------------------------------------------------------------------------

    def _hear(self, event: CandidateHeard, now: float) -> None:
        if event.peer == self._own:
            return
        candidate = self._table.candidates.get((event.address, event.peer, None))
        if candidate is None:
            next_at = now
            if event.peer is not None and event.source in ("lan", "record"):
                next_at = self._yield_until(event.peer, now)
            candidate = self._table.new(event.address, event.peer, event.source, now, next_at)
            target = self._table.add(candidate)
            if target is not None:
                self._place(target)
            return
        candidate.heard_at = now
        if event.source not in candidate.sources:
            self._table.add_source(candidate, event.source)
            # A better source shortens the wait: somebody has just named it.
            candidate.next_at = min(candidate.next_at, now + self._cap_s(candidate))
            self._place(self._table.home_of(candidate))

    def _hear_record(self, heard: RecordAddresses, now: float) -> None:
        if heard.peer == self._own:
            return
        known = self._table.targets.get(heard.peer)
        is_new = known is None or known.row is None
        lot = self._rng.random() if is_new else 0.0
        next_at = self._yield_until(heard.peer, now) if is_new else now
        target, is_changed = self._table.set_row(heard, now, next_at, lot)
        if is_changed:
            self._place(target)

    def _yield_until(self, peer: PeerId, now: float) -> float:
        if self._own < peer:
            return now
        # One wait for all addresses of the peer, or the nearest would not be the first.
        target = self._table.targets.get(peer)
        siblings = target.candidates.values() if target is not None else ()
        fresh = [candidate.next_at for candidate in siblings if not candidate.failures]
        yield_s = self._rng.uniform(self._settings.yield_max_s / 2, self._settings.yield_max_s)
        return min(fresh, default=now + yield_s)

    def _prefer(self, peers: frozenset[PeerId]) -> None:
        changed = sorted(peers ^ self._preferred)
        self._preferred = peers
        for peer in changed:
            self._place_peer(peer)

    def _end_dial(self, event: DialEnded, now: float) -> None:
        candidate = self._under_way.pop((event.address, event.peer, event.via), None) or self._under_way.pop(
            (event.address, None, event.via), None
        )
        if candidate is None:
            return
        candidate.dialled_at = None
        target = self._table.home_of(candidate)
        if candidate.peer is not None:
            target.gate_at = 0.0
        if event.error_kind is None:
            # Failures are forgotten when the link has proved good (`_link_down`): one that breaks at once is none.
            before, target = self._table.rehome(candidate, candidate.expected or event.peer)
            self._place(before)
            # LinkUp usually comes before or at once after; where it never does, this is a try like any other.
            candidate.next_at = now + self._settings.backoff_base_s
        elif event.error_kind == AdmissionReason.SELF.value and candidate.expected is None:
            candidate.is_self = True
        elif event.permanent:
            candidate.failures += 1
            candidate.next_at = now + self._settings.refused_retry_s * self._rng.uniform(0.75, 1.25)
        else:
            self._fail(candidate, now)
        self._table.ended(candidate)
        if target.direct_at is not None and candidate.failures:
            # Of a peer behind a relay each address has its turn before any has its second.
            untried = (each for each in target.usable() if each.relay is None and each.failures < candidate.failures)
            if any(untried):
                target.direct_at = min(target.direct_at, now + self._settings.next_address_s)
        self._place(target)

    def _link_up(self, event: LinkUp, now: float) -> None:
        if event.peer == self._own:
            return
        target = self._table.target_of(event.peer)
        self._linked.setdefault(event.peer, now)
        target.is_linked, target.gate_at = True, 0.0
        target.direct_at = self._next_direct(now) if event.relayed else None
        self._wanted.pop(event.peer, None)
        anybody = self._table.candidates.get((event.address, None, None)) if event.address is not None else None
        if anybody is not None:
            before, _ = self._table.rehome(anybody, event.peer)
            self._place(before)
        self._place(target)

    def _link_down(self, peer: PeerId, idle: bool, now: float) -> None:
        since = self._linked.pop(peer, None)
        if since is None:
            return
        was_good = now - since >= self._settings.stable_s
        target = self._table.target_of(peer)
        target.is_linked, target.direct_at = False, None
        for candidate in target.candidates.values():
            if candidate.dialled_at is not None:
                continue
            if was_good:
                candidate.failures = 0
                candidate.next_at = now + self._rng.uniform(0.0, self._settings.redial_max_s)
            else:
                self._fail(candidate, now)
            self._table.ended(candidate)
        row = target.row
        if row is not None and not row.is_unfolded:
            row.failures = 0 if was_good else row.failures + 1
            base_s, cap_s = self._settings.backoff_base_s, self._settings.backoff_cap_s
            wait_s = backoff_s(row.failures, base_s, cap_s, self._rng)
            row.next_at = now + (self._rng.uniform(0.0, self._settings.redial_max_s) if was_good else wait_s)
        if idle and self._linked:
            # It would only be closed again, in another's place. Whoever has no other link dials all the same.
            rest_until = now + self._settings.idle_rest_s * self._rng.uniform(0.75, 1.25)
            target.rest(rest_until)
        self._place(target)
        self._table.prune(target)

    def _want(self, peer: PeerId, now: float) -> None:
        if peer in self._linked or peer == self._own:
            return
        self._wanted.pop(peer, None)  # the soonest to end is the first
        self._wanted[peer] = now + self._settings.wanted_s
        target = self._table.targets.get(peer)
        if target is None:
            return
        for candidate in target.candidates.values():
            candidate.next_at = min(candidate.next_at, now)
        if target.row is not None:
            target.row.next_at = min(target.row.next_at, now)
        self._place(target)

    def _promise_direct(self, peer: PeerId, now: float) -> None:
        target = self._table.targets.get(peer)
        if target is not None and target.direct_at is not None:
            target.direct_at = min(target.direct_at, now + self._rng.uniform(0.0, self._settings.redial_max_s))
            self._place(target)

    def _forget_peer(self, peer: PeerId) -> None:
        self._wanted.pop(peer, None)
        target = self._table.targets.get(peer)
        if target is None:
            return
        self._table.forget_row(target)
        for candidate in list(target.candidates.values()):
            if self._table.remove_sources(candidate, ("record", "lan")):
                continue
            if candidate.dialled_at is None:
                self._table.drop(candidate)
            else:
                # Its end is still to be told; after that it expires like any unrepeated hint.
                candidate.sources, candidate.heard_at = frozenset({"lan"}), -self._settings.lan_forget_s
                candidate.rank = SOURCES.index("lan")
        self._place(target)

    # --- dialling -----------------------------------------------------------------------------------------------------

    def _dials(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while len(self._under_way) < self._settings.dials_at_once_max:
            target = self._most_urgent(now)
            if target is None:
                break
            if target.row is not None and not self._table.unfold(target, now):
                # Everything in the table is worth more: this peer's turn comes when something of it has gone.
                target.row.next_at = now + self._settings.backoff_cap_s
            self._settle()
            candidate = self._choose(target, now)
            if candidate is not None:
                effects.append(self._dial(target, candidate, now))
            elif target.is_linked:
                target.direct_at = self._next_direct(now)
            self._place(target)
        return effects

    def _most_urgent(self, now: float) -> Target | None:
        """Asked again for each dial: the one before may have been the last that was wanted."""
        racing = self._racing()
        links = self._links(racing)
        found: list[tuple[int, Urgency, Target]] = []
        for queue in self._queues:
            first = queue.first(now) if len(queue) and self._is_open(queue.place, links) else None
            if first is not None:
                found.append((queue.place, *first))
                break
        for target in racing:
            place, next_at = self._class_of(target), target.next_at()
            if next_at is not None and next_at <= now and self._may_race(target, links):
                found.append((place, self._urgency(target, now), target))
        return min(found, key=lambda each: each[:2])[2] if found else None

    def _choose(self, target: Target, now: float) -> Candidate | None:
        """The next way to `target`; None where none is due, which unfolding its record may show."""
        if target.is_linked:
            direct = [each for each in target.usable() if each.relay is None]
            return min(direct, key=lambda each: (each.failures, each.urgency), default=None)
        due = [each for each in target.usable() if each.next_at <= now]
        return min(due, key=lambda each: each.urgency, default=None)

    def _dial(self, target: Target, candidate: Candidate, now: float) -> Effect:
        if target.peer is not None:
            target.gate_at = now + self._settings.next_address_s
        if target.is_linked:
            target.direct_at = self._next_direct(now)
        candidate.dialled_at = now
        self._under_way[candidate.key] = candidate
        if candidate.relay is None:
            return Dial(candidate.address, candidate.expected)
        assert target.peer is not None, "a relay is known by a record"
        return DialVia(target.peer, candidate.relay)

    def _next_direct(self, now: float) -> float:
        return now + self._settings.direct_retry_s * self._rng.uniform(0.75, 1.25)

    def _links(self, racing: list[Target]) -> int:
        """Links that are up or may soon be, `racing` being what `_racing` says."""
        return len(self._linked) + sum(not target.is_linked for target in racing)

    def _racing(self) -> list[Target]:
        """Targets with a dial under way, in the order of their first one."""
        if not self._under_way:
            return []
        homes = (self._table.home_of(candidate) for candidate in self._under_way.values())
        return list({id(home): home for home in homes}.values())

    def _may_race(self, target: Target, links: int) -> bool:
        """Whether a further way to `target` may be tried beside the dial that is under way, which is among `links`."""
        return not target.is_linked and self._is_open(self._class_of(target), links - 1)

    def _is_open(self, place: int, links: int) -> bool:
        """Whether a target of that class may be dialled while `links` are up or under way."""
        if place == _DIRECT:
            return True
        if place != _OTHER:
            return links < self._settings.links_max
        wanted = self._settings.links_wanted
        if self._table.peers > self._settings.mesh_peers_max:
            wanted = min(wanted, self._settings.links_wanted_beyond)
        return links < min(wanted, self._settings.links_max)

    def _class_of(self, target: Target) -> int:
        if target.is_linked:
            return _DIRECT
        if target.peer is None:
            return _NEEDED if any(each.sources & NAMED for each in target.candidates.values()) else _OTHER
        if target.peer in self._wanted:
            return _NEEDED
        return _PREFERRED if target.peer in self._preferred else _OTHER

    def _place_of(self, target: Target) -> tuple[int | None, float | None]:
        """The queue that `target` belongs into and until when it waits there; (None, None) for no queue."""
        due_at = target.direct_at if target.is_linked else target.next_at()
        # Of a relayed link that is tried directly, one dial at a time is enough.
        if due_at is None or target.is_racing:
            return None, None
        return self._class_of(target), due_at

    def _place(self, target: Target) -> None:
        """Must follow whatever changes a target's class, its ways or their moments."""
        place, due_at = self._place_of(target)
        if target.place is not None:
            if (place, due_at) == (target.place, target.due_at):
                return
            self._queues[target.place].remove(target)
        is_known = target.candidates or target.row is not None or target.is_linked
        if place is not None and due_at is not None and is_known:
            self._ticket += 1
            self._queues[place].add(target, due_at, self._ticket)

    def _settle(self) -> None:
        """What made room for something else, or has expired, may be due at another time."""
        for target in self._table.take_touched():
            self._place(target)

    def _place_peer(self, peer: PeerId) -> None:
        target = self._table.targets.get(peer)
        if target is not None:
            self._place(target)

    def _urgency(self, target: Target, now: float) -> Urgency:
        ways = [each.urgency for each in target.usable() if each.next_at <= now]
        row = target.row
        if row is not None and target.peer is not None and not row.is_unfolded and row.next_at <= now:
            ways.append(self._table.row_urgency(target.peer, row))
        return min(ways, default=(len(SOURCES), 0, 0.0, now, Address("", 0), target.peer or b""))

    def _fail(self, candidate: Candidate, now: float) -> None:
        candidate.failures += 1
        wait_s = backoff_s(candidate.failures, self._settings.backoff_base_s, self._cap_s(candidate), self._rng)
        candidate.next_at = now + wait_s

    def _cap_s(self, candidate: Candidate) -> float:
        hurried = bool(candidate.sources & HURRIED)
        return self._settings.backoff_hurried_cap_s if hurried else self._settings.backoff_cap_s

    def _expire(self, now: float) -> None:
        for key, candidate in list(self._under_way.items()):
            if (candidate.dialled_at or 0.0) + self._settings.dial_lost_s <= now:
                candidate.dialled_at = None
                del self._under_way[key]
                self._fail(candidate, now)
                self._table.ended(candidate)
                self._place(self._table.home_of(candidate))
        self._table.expire(now)
        while self._wanted:
            peer, until = next(iter(self._wanted.items()))
            if until > now:
                break
            del self._wanted[peer]
            self._place_peer(peer)
        self._settle()
