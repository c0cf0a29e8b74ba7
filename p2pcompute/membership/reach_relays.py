"""The relays of a peer that nobody can dial: whom to ask, when to renew, whom to take instead.

Rules: at most `relays_max`, of peers that are known as public (forwarded ones after them), where possible in different networks, lowest round
trip first. One whose link this peer dialled itself, or has still to dial, stands before one that only says that it can be dialled. A
reservation is renewed while a quarter of it is left; one whose relay dies, refuses or is not public any more is replaced at once. Whoever
refused is left alone for a while that doubles. A relay that serves is kept: a nearer one that appears later changes nothing, since every
change is a new record for everybody.

Owns the reservations and the candidates; refuses to know why relays are wanted (`reach.py`) and how circuits work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2pcompute.membership.backoff import backoff_s
from p2pcompute.membership.machine import earliest
from p2pcompute.membership.reach_events import LinkUp, ReachSettings, RecordKnown, ReleaseRelay, ReserveRelay
from p2pcompute.membership.reach_networks import is_global, network_of
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach, Relay
from p2pcompute.model.seams import Rng

#: Reaches of a peer that can be a relay, best first: what a router forwards lasts as long as the router likes.
RELAYING = (Reach.PUBLIC, Reach.MAPPED)
#: A shorter reservation is as good as none: it would be renewed all the time.
RESERVATION_MIN_S = 60.0


@dataclass(slots=True)
class _Candidate:
    """A peer that says that it can be dialled by anybody."""

    #: Who.
    peer: PeerId
    #: Its reach, one of `RELAYING`.
    reach: Reach
    #: A global address of its record.
    address: Address
    #: Refusals and losses in a row.
    failures: int = 0
    #: Not asked before this.
    next_at: float = 0.0


@dataclass(slots=True)
class _Reservation:
    """One relay, asked or serving."""

    #: Where others find it.
    relay: Relay
    #: Until when it serves, monotonic seconds; None before its first yes.
    expires_at: float | None = None
    #: When to renew; only where it serves and is not being asked.
    renew_at: float | None = None
    #: Until when its answer is awaited, None where it is not being asked.
    asked_until: float | None = None


class RelayTable:
    """See the module. `step` does what is due; everything else only tells."""

    def __init__(self, rng: Rng, settings: ReachSettings) -> None:
        #: Dice for the waits.
        self._rng = rng
        #: Times and limits.
        self._settings = settings
        #: Peers that could be relays, at most `candidates_max`.
        self._candidates: dict[PeerId, _Candidate] = {}
        #: Relays asked or serving, in the order in which they were asked, at most `relays_max`.
        self._reservations: dict[PeerId, _Reservation] = {}
        #: Linked peers, and where this peer dialled them (None: they dialled, or there is a relay between).
        self._linked: dict[PeerId, Address | None] = {}
        #: Round trips to linked peers in seconds; a subset of `_linked`.
        self._rtts_s: dict[PeerId, float] = {}
        #: As `step` was last told.
        self._wanted = False

    @property
    def relays(self) -> tuple[Relay, ...]:
        """The relays that serve, in the order in which they were asked."""
        return tuple(each.relay for each in self._reservations.values() if each.expires_at is not None)

    # --- news ---------------------------------------------------------------------------------------------------------

    def link_up(self, event: LinkUp) -> None:
        """A link came up, which also mends what a lost link had spoilt."""
        at = event.address if event.dialled and event.address is not None and is_global(event.address.host) else None
        self._linked[event.peer] = at
        if event.reach in RELAYING and at is not None and event.peer not in self._candidates:
            self._add(_Candidate(event.peer, event.reach, at))
        candidate = self._candidates.get(event.peer)
        if candidate is not None and not candidate.failures:
            candidate.next_at = 0.0

    def link_down(self, peer: PeerId, now: float) -> None:
        """The link is gone, and with it the reservation, since circuits come over the link."""
        was_linked = peer in self._linked
        self._linked.pop(peer, None)
        self._rtts_s.pop(peer, None)
        lost = self._reservations.get(peer)
        if not was_linked or lost is None:
            return
        del self._reservations[peer]
        candidate = self._candidates.get(peer)
        if candidate is not None:
            # No failure: as soon as it is linked again it will do.
            candidate.next_at = now + self._settings.refused_s

    def record_known(self, event: RecordKnown) -> None:
        """What a record says: a candidate, or none any more."""
        address = next((each for each in event.addresses if is_global(each.host)), None)
        if event.reach not in RELAYING or address is None:
            self._candidates.pop(event.peer, None)
            return
        candidate = self._candidates.get(event.peer)
        if candidate is None:
            self._add(_Candidate(event.peer, event.reach, address))
        else:
            candidate.reach, candidate.address = event.reach, address

    def forget(self, peer: PeerId) -> None:
        """Nothing is known of `peer` any more."""
        self._candidates.pop(peer, None)

    def round_trip(self, peer: PeerId, rtt_s: float) -> None:
        """The round trip to a linked peer."""
        if peer in self._linked:
            self._rtts_s[peer] = rtt_s

    def reserved(self, peer: PeerId, expires_at: float, now: float) -> None:
        """`peer` said yes. One that was not asked says nothing; a lifetime beyond ours is cut, a tiny one is a no."""
        reservation = self._reservations.get(peer)
        if reservation is None:
            return
        lifetime_s = min(expires_at - now, limits.RELAY_RESERVATION_S)
        if not lifetime_s >= RESERVATION_MIN_S:  # so that a lifetime that is no number is a no, too
            self.refused(peer, now)
            return
        reservation.asked_until = None
        reservation.expires_at = now + lifetime_s
        reservation.renew_at = now + lifetime_s * (1 - self._settings.renew_share)
        candidate = self._candidates.get(peer)
        if candidate is not None:
            candidate.failures = 0

    def refused(self, peer: PeerId, now: float) -> None:
        """`peer` said no, or nothing."""
        if self._reservations.pop(peer, None) is None:
            return
        candidate = self._candidates.get(peer)
        if candidate is not None:
            candidate.failures += 1
            base_s, cap_s = self._settings.refused_s, self._settings.refused_cap_s
            candidate.next_at = now + backoff_s(candidate.failures, base_s, cap_s, self._rng)

    # --- what is due --------------------------------------------------------------------------------------------------

    def step(self, now: float, *, wanted: bool) -> list[ReserveRelay | ReleaseRelay]:
        """What is due at `now`, where relays are `wanted` or not."""
        self._wanted = wanted
        effects: list[ReserveRelay | ReleaseRelay] = []
        for peer, reservation in list(self._reservations.items()):
            if not wanted or peer not in self._candidates:
                del self._reservations[peer]
                effects.append(ReleaseRelay(peer))
            elif reservation.expires_at is not None and now >= reservation.expires_at:
                self.refused(peer, now)
            elif reservation.asked_until is not None and now >= reservation.asked_until:
                if reservation.expires_at is None:
                    self.refused(peer, now)
                else:
                    reservation.asked_until, reservation.renew_at = None, now
        if not wanted:
            return effects
        due = [each for each in self._reservations.values() if each.renew_at is not None and now >= each.renew_at]
        effects += [self._ask(each, now) for each in due]
        while len(self._reservations) < self._settings.relays_max:
            best = self._best(now)
            if best is None:
                break
            address = self._linked.get(best.peer) or best.address
            reservation = self._reservations[best.peer] = _Reservation(Relay(best.peer, address))
            effects.append(self._ask(reservation, now))
        return effects

    def deadline(self) -> float | None:
        """When `step` has something to do though nothing happens."""
        due = [earliest(each.expires_at, each.renew_at, each.asked_until) for each in self._reservations.values()]
        if self._wanted and len(self._reservations) < self._settings.relays_max:
            due += [each.next_at for peer, each in self._candidates.items() if peer not in self._reservations]
        return earliest(*due)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert len(self._reservations) <= self._settings.relays_max
        assert len(self._candidates) <= self._settings.candidates_max
        assert set(self._rtts_s) <= set(self._linked)
        for peer, reservation in self._reservations.items():
            assert peer == reservation.relay.peer
            assert (reservation.asked_until is None) != (reservation.renew_at is None)
            assert reservation.expires_at is not None or reservation.asked_until is not None

    def _ask(self, reservation: _Reservation, now: float) -> ReserveRelay:
        reservation.renew_at = None
        reservation.asked_until = now + self._settings.reservation_answer_s
        return ReserveRelay(reservation.relay.peer, reservation.relay.address)

    def _best(self, now: float) -> _Candidate | None:
        taken = {network_of(each.relay.address.host) for each in self._reservations.values()}
        free = (each for peer, each in self._candidates.items() if peer not in self._reservations)
        return min(
            (each for each in free if each.next_at <= now), key=lambda each: self._rank(each, taken), default=None
        )

    def _rank(self, candidate: _Candidate, taken: set[str]) -> tuple[bool, int, bool, float, bytes]:
        peer = candidate.peer
        address = self._linked.get(peer) or candidate.address
        only_says_so = peer in self._linked and self._linked[peer] is None
        rtt_s = self._rtts_s.get(peer, float("inf"))
        return (network_of(address.host) in taken, RELAYING.index(candidate.reach), only_says_so, rtt_s, peer)

    def _add(self, candidate: _Candidate) -> None:
        if len(self._candidates) >= self._settings.candidates_max:
            strangers = self._unlinked(self._candidates)
            # Whoever writes records by the thousand pushes out nobody: only a linked peer may take a stranger's place.
            if not strangers or candidate.peer not in self._linked:
                return
            del self._candidates[max(strangers)]
        self._candidates[candidate.peer] = candidate

    def _unlinked(self, peers: Iterable[PeerId]) -> list[PeerId]:
        return [peer for peer in peers if peer not in self._linked and peer not in self._reservations]
