"""The reach machine: how this peer can be reached from outside its own network, found out by asking, and through whom where it cannot.

Nobody knows its own reach: a router stands between, and what it does shows only from outside. So peers elsewhere are asked to dial back. Rules:

- A *witness* is a peer with a direct link from a global address, neither of this peer's own LAN nor of the address block of its own global
  addresses. Two witnesses count as two if their blocks (/16, /32 for IPv6) or their invitations differ (`reach_networks.py`).
- An address is confirmed by two such witnesses: PUBLIC, or MAPPED where it is the one that the router forwards. Two that reached nothing:
  PRIVATE. One alone decides neither; where the two asked disagree or one is silent, others are asked, up to `asks_max`.
- Where there is only one witness, and this machine itself has no global address, its failure agrees with what this machine knows by itself:
  PRIVATE, until there are more. The price of being wrong there is a relay.
- Somebody who dials this peer from elsewhere is as good a witness as one that says it did, and needs no request.
- A witness is asked about the address from which it sees this peer itself, never about one that another witness named: else one liar
  could make honest witnesses fail.
- A peer that is linked through a relay and whose record begins to promise that it can be dialled is worth a direct try.
- PRIVATE leads to a request to the router first; what it forwards is dialled back like anything else. Until that has worked, relays
  (`reach_relays.py`) are held.
- Checked again every 30 min, and when the own networks change. Without witnesses nothing is sent at all: on a LAN, reach costs nothing.

Refuses to know: sockets, how a router is asked, how circuits work, what else stands in the own record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pcompute.membership.machine import Tick, earliest
from p2pcompute.membership.reach_events import (
    AddressSeen,
    AskDialBack,
    DialBackFailed,
    DialBackRefused,
    DialedBack,
    Effect,
    Event,
    InboundSeen,
    LinkDown,
    LinkUp,
    MappingChanged,
    MapPort,
    NetworksChanged,
    PeerForgotten,
    ReachChanged,
    ReachSettings,
    RecordKnown,
    RelayRefused,
    RelayReserved,
    RoundTripMeasured,
    TryDirect,
)
from p2pcompute.membership.reach_networks import Witness, are_two, is_global, network_of
from p2pcompute.membership.reach_paths import DIALLABLE
from p2pcompute.membership.reach_relays import RelayTable
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach
from p2pcompute.model.seams import Rng

#: Peers whose dials are remembered as evidence; two of different networks are needed.
_INBOUND_MAX = 32


@dataclass(slots=True)
class _Link:
    """A linked peer as a witness."""

    #: Who it is, and where as far as trust goes; None where it is no witness.
    witness: Witness | None
    #: From where it sees this peer, as it says; global or None.
    seen: Address | None = None
    #: When it was last asked, monotonic seconds; never: minus infinity.
    asked_at: float = float("-inf")
    #: When it may be asked to dial again; how it sees this peer it says at any time.
    free_at: float = float("-inf")
    #: The link passes through a relay.
    is_indirect: bool = False
    #: The ways that the newest record of a peer behind a relay promised, and when they were last worth a try; unused for others.
    promised: tuple[Reach, tuple[Address, ...]] | None = None
    tried_at: float = float("-inf")


@dataclass(slots=True)
class _Check:
    """One round of asking."""

    #: What was asked of whom, and until when the answer is awaited.
    asked: dict[PeerId, tuple[tuple[Address, ...], float]] = field(default_factory=dict)
    #: Whom to ask as soon as it may be asked again; disjoint from `asked`.
    later: dict[PeerId, float] = field(default_factory=dict)
    #: Witnesses that reached this peer, and where.
    yes: list[tuple[Witness, frozenset[Address]]] = field(default_factory=list)
    #: Witnesses that tried and did not.
    no: list[Witness] = field(default_factory=list)
    #: Everybody who was asked in this check; each once, apart from learning our address.
    tried: dict[PeerId, None] = field(default_factory=dict)

    @property
    def voters(self) -> list[Witness]:
        """Whose word is known."""
        return [witness for witness, _ in self.yes] + self.no


class ReachMachine:
    """See the module."""

    def __init__(self, rng: Rng, settings: ReachSettings | None = None) -> None:
        #: Times and limits.
        self._settings = settings or ReachSettings()
        #: Relays, and who could be one.
        self._table = RelayTable(rng, self._settings)
        #: This machine's own addresses.
        self._own: tuple[Address, ...] = ()
        #: Linked peers.
        self._links: dict[PeerId, _Link] = {}
        #: Who dialled this peer from elsewhere, from which family, and when; at most `_INBOUND_MAX`, oldest first.
        self._inbound: dict[PeerId, tuple[Witness, int, float]] = {}
        #: The round under way.
        self._check: _Check | None = None
        #: When the next begins; None while one is under way or nobody could be asked.
        self._check_at: float | None = None
        #: When the last one ended.
        self._checked_at = float("-inf")
        #: Checks in a row that decided nothing.
        self._undecided = 0
        #: The reach was decided by two witnesses.
        self._is_settled = False
        #: What the router forwards; global or None.
        self._mapping: Address | None = None
        #: Until when the router's answer is awaited, None where it is not.
        self._mapping_until: float | None = None
        #: What the last check found.
        self._reach = Reach.UNKNOWN
        #: Where two witnesses reached this peer; not empty exactly when PUBLIC or MAPPED.
        self._confirmed: tuple[Address, ...] = ()
        #: Relays are wanted: PRIVATE, and the router did not help, or not yet provably.
        self._wants_relays = False
        #: What was last told to the outside.
        self._told = ReachChanged(Reach.UNKNOWN, (), ())

    @property
    def current(self) -> ReachChanged:
        """What the last ReachChanged said; UNKNOWN before the first."""
        return self._told

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What `event` leads to."""
        effects: list[Effect] = []
        match event:
            case LinkUp():
                self._link_up(event, now)
            case LinkDown(peer):
                self._link_down(peer, now)
            case AddressSeen(peer, address):
                link = self._links.get(peer)
                if link is not None and is_global(address.host):
                    link.seen = address
            case DialedBack(peer, reached):
                self._answered(peer, frozenset(reached), now)
            case DialBackFailed(peer):
                self._answered(peer, frozenset(), now)
            case DialBackRefused(peer):
                self._answered(peer, None, now)
            case InboundSeen(peer, address):
                self._dialled_from(peer, address, now)
            case NetworksChanged(addresses):
                self._networks_changed(addresses, now, effects)
            case MappingChanged(address):
                self._mapping_changed(address, now)
            case RelayReserved(peer, expires_at):
                self._table.reserved(peer, expires_at, now)
            case RelayRefused(peer):
                self._table.refused(peer, now)
            case RecordKnown():
                self._table.record_known(event)
                self._promised(event, now, effects)
            case PeerForgotten(peer):
                self._table.forget(peer)
            case RoundTripMeasured(peer, rtt_s):
                self._table.round_trip(peer, rtt_s)
            case Tick():
                pass
        self._advance(now, effects)
        return effects

    def deadline(self) -> float | None:
        """When something is due though nothing happens."""
        check = self._check
        asked = [until for _, until in check.asked.values()] if check is not None else []
        later = list(check.later.values()) if check is not None else []
        return earliest(self._check_at, self._mapping_until, self._table.deadline(), *asked, *later)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert bool(self._confirmed) == (self._reach in (Reach.PUBLIC, Reach.MAPPED))
        assert self._check is None or self._check_at is None
        assert len(self._inbound) <= _INBOUND_MAX
        assert not (self._wants_relays and self._confirmed)
        if self._check is not None:
            assert not set(self._check.asked) & set(self._check.later)
            assert len(self._check.tried) <= self._settings.asks_max
            assert set(self._check.asked) | set(self._check.later) <= set(self._links)
        assert len(self._told.relays) <= limits.RELAYS_MAX
        assert all(is_global(address.host) for address in self._told.external)
        self._table.check_invariants()

    # --- events -------------------------------------------------------------------------------------------------------

    def _link_up(self, event: LinkUp, now: float) -> None:
        old = self._links.pop(event.peer, None)
        host = event.address.host if event.address is not None and not event.same_lan else ""
        witness = Witness(event.peer, network_of(host), event.invitation) if is_global(host) else None
        link = self._links[event.peer] = _Link(witness, is_indirect=event.address is None)
        if old is not None:
            link.asked_at, link.free_at, link.tried_at = old.asked_at, old.free_at, old.tried_at
        self._table.link_up(event)
        if witness is not None and self._check is None and (self._check_at is None or not self._is_settled):
            self._schedule(now)

    def _link_down(self, peer: PeerId, now: float) -> None:
        self._links.pop(peer, None)
        self._table.link_down(peer, now)
        if self._check is not None:
            self._check.asked.pop(peer, None)
            self._check.later.pop(peer, None)

    def _answered(self, peer: PeerId, reached: frozenset[Address] | None, now: float) -> None:
        check, link = self._check, self._links.get(peer)
        asked = check.asked.pop(peer, None) if check is not None else None
        if check is None or asked is None or link is None or link.witness is None:
            return
        addresses, _ = asked
        if not addresses:
            # It was asked how it sees us; now it can be asked whether it reaches us there.
            if link.seen is not None:
                check.later[peer] = max(now, link.free_at)
        elif reached is not None:
            found = reached & frozenset(addresses)
            if found:
                check.yes.append((link.witness, found))
            else:
                check.no.append(link.witness)

    def _dialled_from(self, peer: PeerId, address: Address, now: float) -> None:
        link = self._links.get(peer)
        if not is_global(address.host) or (link is not None and link.witness is None):
            return
        known = link.witness if link is not None else None
        witness = Witness(peer, network_of(address.host), known.invitation if known is not None else b"")
        if witness.network in self._own_networks():
            return
        self._inbound.pop(peer, None)
        self._inbound[peer] = (witness, _family(address.host), now)
        while len(self._inbound) > _INBOUND_MAX:
            del self._inbound[next(iter(self._inbound))]
        votes = self._inbound_votes(now)
        if self._check is not None:
            voters = {voter.peer for voter in self._check.voters}
            self._check.yes += [vote for vote in votes if vote[0].peer not in voters]
        elif not self._confirmed and self._confirmed_by(votes):
            self._check_at = now

    def _networks_changed(self, addresses: tuple[Address, ...], now: float, effects: list[Effect]) -> None:
        if addresses == self._own:
            return
        if self._mapping is not None or self._reach is Reach.PRIVATE:
            # Another network has another router; the same one may know this machine by an address that is gone.
            effects.append(MapPort())
        self._own = addresses
        self._check = None
        self._inbound.clear()
        for link in self._links.values():
            link.seen = None
        self._is_settled = False
        if self._confirmed and not set(self._confirmed) <= {*addresses, self._mapping}:
            self._reach, self._confirmed = Reach.UNKNOWN, ()
        self._schedule(now)

    def _mapping_changed(self, address: Address | None, now: float) -> None:
        address = address if address is not None and is_global(address.host) else None
        old, self._mapping = self._mapping, address
        # What is forwarded waits for its dial-back, and relays wait with it.
        self._mapping_until = None if address is None else self._mapping_until
        if address == old:
            return
        if old in self._confirmed:
            # Without what was forwarded this peer is what it was before; that was found out then.
            self._confirmed = tuple(each for each in self._confirmed if each != old)
            self._reach = self._reach if self._confirmed else Reach.PRIVATE
        if self._reach is not Reach.PUBLIC and address is not None:
            self._check = None
            self._check_at = now

    def _promised(self, event: RecordKnown, now: float, effects: list[Effect]) -> None:
        link = self._links.get(event.peer)
        if link is None or not link.is_indirect:
            return
        before, link.promised = link.promised, (event.reach, event.addresses)
        if event.reach in DIALLABLE and link.promised != before and now >= link.tried_at + self._settings.direct_s:
            link.tried_at = now
            effects.append(TryDirect(event.peer))

    def _schedule(self, now: float) -> None:
        pause_s = self._settings.recheck_s if self._is_settled else self._settings.again_s
        at = max(now + self._settings.settle_s, self._checked_at + pause_s)
        self._check_at = at if self._check_at is None else min(self._check_at, at)

    # --- checking -----------------------------------------------------------------------------------------------------

    def _advance(self, now: float, effects: list[Effect]) -> None:
        if self._mapping_until is not None and now >= self._mapping_until:
            self._mapping_until = None
        if self._check is not None:
            for peer in [peer for peer, (_, until) in self._check.asked.items() if now >= until]:
                del self._check.asked[peer]
        if self._check_at is not None and now >= self._check_at:
            self._check_at = None
            self._check = _Check(yes=self._inbound_votes(now))
            if not self._confirmed_by(self._check.yes):
                first = self._choose_first(self._check)
                for witness in first:
                    self._ask(witness.peer, now, effects)
                if not first:
                    # Nobody to ask: a new link begins the next check.
                    self._check = None
        if self._check is not None:
            self._go_on(self._check, now, effects)
        if self._confirmed:
            self._wants_relays = False
        elif self._reach is Reach.PRIVATE and self._mapping_until is None:
            self._wants_relays = True
        relays = self._table.step(now, wanted=self._wants_relays)
        external = tuple(address for address in self._confirmed if address not in self._own)
        changed = ReachChanged(self._reach, external, self._table.relays)
        if changed != self._told:
            self._told = changed
            effects.append(changed)
        effects += relays

    def _go_on(self, check: _Check, now: float, effects: list[Effect]) -> None:
        for peer in [peer for peer, at in check.later.items() if now >= at]:
            del check.later[peer]
            self._ask(peer, now, effects)
        confirmed = self._confirmed_by(check.yes)
        if confirmed:
            is_mapped = all(address == self._mapping for address in confirmed)
            self._conclude(Reach.MAPPED if is_mapped else Reach.PUBLIC, confirmed, now, effects)
        elif are_two(check.no):
            self._conclude(Reach.PRIVATE, (), now, effects)
        elif not check.asked and not check.later:
            another = self._choose_another(check)
            if another is not None:
                self._ask(another.peer, now, effects)
            elif check.no and not check.yes and self._mapping is None and not self._own_globals():
                self._conclude(Reach.PRIVATE, (), now, effects, settled=False)
            else:
                self._give_up(now)

    def _conclude(
        self, reach: Reach, confirmed: tuple[Address, ...], now: float, effects: list[Effect], *, settled: bool = True
    ) -> None:
        self._reach, self._confirmed, self._is_settled = reach, confirmed, settled
        self._undecided = 0
        self._check, self._checked_at = None, now
        self._check_at = now + self._settings.recheck_s
        self._mapping_until = None
        if reach is Reach.PRIVATE and self._mapping is None:
            self._mapping_until = now + self._settings.mapping_s
            effects.append(MapPort())

    def _give_up(self, now: float) -> None:
        """The check decided nothing: what was known stands, and it is tried again, ever more seldom."""
        pause_s = min(self._settings.undecided_s * 2.0 ** min(self._undecided, 30), self._settings.recheck_s)
        self._undecided += 1
        self._check, self._checked_at = None, now
        self._check_at = now + pause_s
        self._mapping_until = None

    def _confirmed_by(self, yes: list[tuple[Witness, frozenset[Address]]]) -> tuple[Address, ...]:
        """The addresses at which two witnesses reached this peer."""
        reached = sorted({address for _, addresses in yes for address in addresses})
        return tuple(address for address in reached if are_two(witness for witness, found in yes if address in found))

    def _inbound_votes(self, now: float) -> list[tuple[Witness, frozenset[Address]]]:
        votes = []
        for witness, family, at in self._inbound.values():
            if now - at > self._settings.recheck_s:
                continue
            own = [address for address in self._own_globals() if _family(address.host) == family]
            forwarded = [self._mapping] if self._mapping is not None and _family(self._mapping.host) == family else []
            if own or forwarded:
                votes.append((witness, frozenset(own or forwarded)))
        return votes

    # --- witnesses ----------------------------------------------------------------------------------------------------

    def _own_globals(self) -> tuple[Address, ...]:
        return tuple(address for address in self._own if is_global(address.host))

    def _own_networks(self) -> set[str]:
        return {network_of(address.host) for address in self._own_globals()}

    def _witnesses(self, check: _Check) -> list[Witness]:
        """Who can still be asked, longest unasked first: a liar does not stay in its place."""
        own, voters = self._own_networks(), {witness.peer for witness in check.voters}
        found = [
            (link.asked_at, peer, link.witness)
            for peer, link in self._links.items()
            if link.witness is not None and link.witness.network not in own
            if peer not in check.tried and peer not in voters
        ]
        return [witness for _, _, witness in sorted(found, key=lambda each: each[:2])]

    def _choose_first(self, check: _Check) -> list[Witness]:
        """Whom to ask so that something may come of it: two that count as two, or one where this peer or a dialler is the other."""
        if not self._own:
            return []
        witnesses = self._witnesses(check)
        if check.yes:
            return [each for each in witnesses if any(each.is_independent_of(voter) for voter in check.voters)][:1]
        for number, one in enumerate(witnesses):
            for other in witnesses[number + 1 :]:
                if one.is_independent_of(other):
                    return [one, other]
        return witnesses[:1] if not self._own_globals() and self._mapping is None else []

    def _choose_another(self, check: _Check) -> Witness | None:
        if len(check.tried) >= self._settings.asks_max:
            return None
        voters = check.voters
        return next(
            (
                each
                for each in self._witnesses(check)
                if not voters or any(each.is_independent_of(voter) for voter in voters)
            ),
            None,
        )

    def _ask(self, peer: PeerId, now: float, effects: list[Effect]) -> None:
        assert self._check is not None
        link = self._links[peer]
        self._check.tried[peer] = None
        addresses = self._addresses_for(link)
        if addresses and now < link.free_at:
            self._check.later[peer] = link.free_at
            return
        link.asked_at = now
        if addresses:
            link.free_at = now + self._settings.again_s
        self._check.asked[peer] = (addresses, now + self._settings.answer_s)
        effects.append(AskDialBack(peer, addresses))

    def _addresses_for(self, link: _Link) -> tuple[Address, ...]:
        """Where to be dialled, one address of each family: what the router forwards, an own address, or what the witness sees."""
        seen = [Address(link.seen.host, self._own[0].port)] if link.seen is not None else []
        own = sorted(self._own_globals(), key=lambda each: each not in seen)
        mapping = [self._mapping] if self._mapping is not None else []
        chosen: dict[int, Address] = {}
        for address in (*mapping, *own, *seen):
            chosen.setdefault(_family(address.host), address)
        return tuple(chosen[family] for family in sorted(chosen))[: limits.DIAL_BACK_ADDRESSES_MAX]


def _family(host: str) -> int:
    return 6 if ":" in host else 4
