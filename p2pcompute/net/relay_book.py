"""The books of a relay: who has a reservation, how many circuits there are for whom, what they may and did move.

Rules: a reservation lasts an hour and is renewed by asking again; a full book refuses newcomers and renews those it has; circuits are counted
for the relay, for each target and for each asker, so that one asker cannot take all there is. Whoever holds an invitation can be any number of
peers: those of one invitation have a share of each of these together, and never all. Pure: takes `now`, in seconds from any zero.
Refuses to know: links, frames, tasks (`relay_server.py`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, LinkClosedError
from p2pcompute.model.ids import PeerId, short_peer_id

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """What a relay gives; the defaults are the product's."""

    #: Seconds that a reservation lasts.
    reservation_s: float = limits.RELAY_RESERVATION_S
    #: Peers that may hold one.
    reservations_max: int = limits.RELAY_RESERVATIONS_MAX
    #: Circuits altogether, to one target, by one asker.
    circuits_max: int = limits.RELAY_CIRCUITS_MAX
    circuits_per_target_max: int = limits.RELAY_CIRCUITS_PER_TARGET_MAX
    circuits_per_asker_max: int = limits.RELAY_CIRCUITS_PER_ASKER_MAX
    #: Circuits that one asker may begin in a second, after `circuits_per_asker_max` at once.
    opens_per_second: float = limits.RELAY_OPENS_PER_SECOND_PER_ASKER
    #: Of reservations, of circuits, and of those to one target, what peers of one invitation may have together, 0 to 1.
    invitation_share: float = limits.RELAY_INVITATION_SHARE
    #: Bytes a second that pass a circuit in each direction, and bytes that may pass at once after a pause.
    bytes_per_second: int = limits.RELAY_BYTES_PER_SECOND
    burst_bytes: int = limits.RELAY_BURST_BYTES
    #: Bytes that the relay holds for each direction of a circuit.
    window_bytes: int = limits.CIRCUIT_WINDOW_BYTES
    #: Seconds without a byte after which a circuit is closed.
    silence_max_s: float = limits.CIRCUIT_SILENCE_MAX_S
    #: Seconds that a target may take to accept, and that the rest of a closed circuit may take to be delivered.
    answer_timeout_s: float = limits.CIRCUIT_ANSWER_TIMEOUT_S
    drain_s: float = limits.CIRCUIT_DRAIN_S

    def share_of(self, count: int) -> int:
        """What peers of one invitation may have of `count` places; at least one."""
        return max(1, int(count * self.invitation_share))


@dataclass(slots=True)
class Metered:
    """What a relay has moved for one peer: bytes that it sent, bytes that were sent to it, circuits that it had."""

    sent_bytes: int = 0
    received_bytes: int = 0
    circuits: int = 0


@dataclass(frozen=True, slots=True)
class Party:
    """An end of a circuit, or a holder of a reservation: a peer, and the invitation by which it came."""

    peer: PeerId
    invitation: bytes


class RateBucket:
    """A token bucket (the leaky bucket of ITU-T I.371): `rate` a second in the mean, `burst` at once, of bytes or whatever is counted."""

    __slots__ = ("_burst", "_level", "_rate", "_since")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        #: What comes in a second.
        self._rate = rate
        #: What the bucket holds.
        self._burst = burst
        #: What may pass at `_since`; at most `_burst`, never negative.
        self._level = burst
        self._since = now

    def take(self, count: int, now: float) -> float:
        """0 where `count` may pass now, and is counted; else the seconds until it may, and nothing is counted.

        More than the whole burst may pass when the bucket is full.
        """
        self._level = min(self._burst, self._level + (now - self._since) * self._rate)
        self._since = now
        wanted = min(float(count), self._burst)
        # Rounding must not make a wait of nothing: it would be waited for for ever.
        if self._level + 1e-6 >= wanted:
            self._level = max(0.0, self._level - wanted)
            return 0.0
        return max((wanted - self._level) / self._rate, 1e-4)


class RelayBook:
    """Reservations, circuits and meters of one relay."""

    def __init__(self, settings: RelaySettings) -> None:
        #: What is given.
        self._settings = settings
        #: When each reservation ends, and the invitation of its holder; at most `reservations_max` of them.
        self._reserved: dict[PeerId, tuple[float, bytes]] = {}
        #: Open circuits by target, by asker, by the asker's invitation, and by that and target; who has none does not stand there.
        self._to: Counter[PeerId] = Counter()
        self._by: Counter[PeerId] = Counter()
        self._by_invitation: Counter[bytes] = Counter()
        self._by_invitation_to: Counter[tuple[bytes, PeerId]] = Counter()
        #: Circuits open altogether: the sum of each of these.
        self.circuits = 0
        #: How often each asker may begin another, longest quiet first; bounded.
        self._opens: OrderedDict[PeerId, RateBucket] = OrderedDict()
        #: What was moved for whom, longest unused first; bounded.
        self._meters: OrderedDict[PeerId, Metered] = OrderedDict()

    # --- reservations ---------------------------------------------------------------------------------------------------

    def reserve(self, party: Party, wanted_s: float, now: float) -> float:
        """Reserve for `party`, or renew; for how many seconds. Raises BusyError when there are too many."""
        self.expire(now)
        settings = self._settings
        if party.peer not in self._reserved:
            if len(self._reserved) >= settings.reservations_max:
                raise BusyError(
                    f"this relay keeps {settings.reservations_max} peers reachable already: ask another one"
                )
            share = settings.share_of(settings.reservations_max)
            if sum(invitation == party.invitation for _, invitation in self._reserved.values()) >= share:
                raise BusyError(f"this relay keeps {share} peers of your invitation reachable already: ask another one")
        lifetime_s = min(wanted_s, settings.reservation_s)
        self._reserved[party.peer] = (now + lifetime_s, party.invitation)
        return lifetime_s

    def release(self, peer: PeerId) -> None:
        """`peer` does not want to be reached any more, or cannot be."""
        self._reserved.pop(peer, None)

    def is_reserved(self, peer: PeerId, now: float) -> bool:
        """Whether `peer` may be reached through this relay."""
        until, _ = self._reserved.get(peer, (0.0, b""))
        return until > now

    def expire(self, now: float) -> None:
        """Forget what has ended."""
        for peer in [peer for peer, (until, _) in self._reserved.items() if until <= now]:
            del self._reserved[peer]

    @property
    def reserved(self) -> tuple[PeerId, ...]:
        """Who holds a reservation, ordered by id."""
        return tuple(sorted(self._reserved))

    # --- circuits -------------------------------------------------------------------------------------------------------

    def open(self, party: Party, target: PeerId, now: float) -> None:
        """Count a circuit that `party` asks for. Raises LinkClosedError where `target` has no reservation, BusyError beyond a limit."""
        settings, asker, invitation = self._settings, party.peer, party.invitation
        if not self.is_reserved(target, now):
            raise LinkClosedError(f"{short_peer_id(target)} has no reservation here: ask a relay that its record names")
        if self.circuits >= settings.circuits_max:
            raise BusyError(f"this relay carries {settings.circuits_max} circuits already: try another one")
        if self._by[asker] >= settings.circuits_per_asker_max:
            raise BusyError(f"you have {settings.circuits_per_asker_max} circuits here already: close one first")
        share = settings.share_of(settings.circuits_max)
        if self._by_invitation[invitation] >= share:
            raise BusyError(f"peers of your invitation have {share} circuits here already: try another relay")
        if self._to[target] >= settings.circuits_per_target_max:
            raise BusyError(
                f"{short_peer_id(target)} has {settings.circuits_per_target_max} circuits here already: try another relay"
            )
        share = settings.share_of(settings.circuits_per_target_max)
        if self._by_invitation_to[invitation, target] >= share:
            raise BusyError(
                f"peers of your invitation have {share} circuits to {short_peer_id(target)} here already: try another relay"
            )
        if self._opening(asker, now) > 0:
            raise BusyError("you ask for circuits too often: wait a second")
        self.circuits += 1
        self._by[asker] += 1
        self._to[target] += 1
        self._by_invitation[invitation] += 1
        self._by_invitation_to[invitation, target] += 1
        for peer in (asker, target):
            self._meter(peer).circuits += 1

    def _opening(self, asker: PeerId, now: float) -> float:
        """Seconds until `asker` may begin another; 0, and counted, where it may now."""
        bucket = self._opens.get(asker)
        if bucket is None:
            settings = self._settings
            bucket = self._opens[asker] = RateBucket(settings.opens_per_second, settings.circuits_per_asker_max, now)
            while len(self._opens) > limits.RELAY_METERED_MAX:
                self._opens.popitem(last=False)
        self._opens.move_to_end(asker)
        return bucket.take(1, now)

    def close(self, party: Party, target: PeerId) -> None:
        """A circuit that `open` counted is over."""
        self.circuits -= 1
        _less(self._by, party.peer)
        _less(self._to, target)
        _less(self._by_invitation, party.invitation)
        _less(self._by_invitation_to, (party.invitation, target))

    # --- meters ---------------------------------------------------------------------------------------------------------

    def moved(self, source: PeerId, target: PeerId, size_bytes: int) -> None:
        """So many bytes of `source` were passed on to `target`."""
        self._meter(source).sent_bytes += size_bytes
        self._meter(target).received_bytes += size_bytes

    def _meter(self, peer: PeerId) -> Metered:
        meter = self._meters.get(peer)
        if meter is None:
            meter = self._meters[peer] = Metered()
            while len(self._meters) > limits.RELAY_METERED_MAX:
                self._meters.popitem(last=False)
        else:
            self._meters.move_to_end(peer)
        return meter

    @property
    def meters(self) -> dict[PeerId, Metered]:
        """What was moved for whom, ordered by peer id."""
        return dict(sorted(self._meters.items()))

    def check_invariants(self) -> None:
        """For tests."""
        for table in (self._to, self._by, self._by_invitation, self._by_invitation_to):
            assert sum(table.values()) == self.circuits
            assert all(count > 0 for count in table.values())
        assert len(self._reserved) <= self._settings.reservations_max
        assert len(self._meters) <= limits.RELAY_METERED_MAX
        assert len(self._opens) <= limits.RELAY_METERED_MAX


def _less(table: Counter[K], key: K) -> None:
    """One less of `key`, which goes with its last."""
    table[key] -= 1
    if not table[key]:
        del table[key]
