"""Network coordinates: from a few round trips a place for this peer, and from two places the round trip between any pair.

Vivaldi with a height (Dabek, Cox, Kaashoek, Morris: "Vivaldi", SIGCOMM 2004), with what practice added as in HashiCorp
Serf: a filter of three round trips a peer and a weak gravity against drift (Ledlie, Gardner, Seltzer: "Network coordinates in
the wild", NSDI 2007), an adjustment for what no Euclidean space can hold (Lee et al., "On suitability of Euclidean
embedding", IEEE/ACM ToN 2010). A round trip is |x_a - x_b| + height_a + height_b: the distance between two places in the core
of the network, and the access line at each end. Each sample pulls this peer's place a little towards where it would
fit, the more the surer the other end says that it is.

Others' coordinates are claims. Three bounds keep a liar from dragging an honest peer:

- what is absurd (other dimensions, not finite, seconds away) is dropped, and so are round trips above 10 s;
- nobody is believed to be surer than `error_believed_min`, so a claimed error of nothing weighs little more than an honest one;
- a residual counts up to `residual_factor` times the median of the newest residuals of distinct peers. An honest minority of
  surprises is followed slowly, a majority moves the median with it (the forces of Seibert et al., "Newton", ToN 2014, without
  their bookkeeping).

Dimensions, measured over 8 made-up networks (tests/support/round_trips.py) of 60 peers at 6 places on a globe, with access lines,
detours and queues, each peer having probed 300 times; relative error between places, and error within a place:

    dimensions   median   90th percentile   median within a place
    2            10.1 %   25.6 %            4.6 ms
    3            10.1 %   24.6 %            3.2 ms
    4            10.3 %   24.8 %            3.4 ms
    5            10.2 %   24.7 %            3.5 ms

So there are three. After 60 probes the three have a median of 12.3 % and a 90th percentile of 42 %. With a tenth of the peers lying at
the edge of what is plausible, the honest others' median goes from 12.4 % to 13.6 %; without the bounds above it would be 62 %.

Refuses to know: sockets, probes, who is asked when, what estimates are used for (`edges.py`).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Coordinate
from p2pcompute.model.seams import Rng

#: Places nearer than this have no direction between them, seconds: the unit of the wire.
_COINCIDENT_S = 1e-6


@dataclass(frozen=True, slots=True)
class CoordinateSettings:
    """How places move; the defaults are the product's."""

    #: Dimensions of the core; see the module for what more of them would bring.
    dimensions: int = 3
    #: Error of who knows nothing yet, and the largest of all; relative.
    error_max: float = 1.5
    #: Others count as no surer than this, whatever they say.
    error_believed_min: float = 0.05
    #: Share of a sample's error that goes into the own error, at full weight.
    error_tuning: float = 0.25
    #: Share of a residual by which a place moves, at full weight.
    movement_tuning: float = 0.25
    #: A height is never less, seconds: an access line takes some time.
    height_min_s: float = 1e-5
    #: Round trips of one peer of which the median counts.
    filter_samples: int = 3
    #: A round trip older than so many seconds is not compared with new ones: the peer may have moved.
    filter_age_max_s: float = 600.0
    #: Samples over which the adjustment is averaged.
    adjustment_samples: int = 20
    #: Distinct peers whose newest residuals say what is usual, and how many there must be before that bounds anything.
    residual_peers: int = 32
    residual_peers_min: int = 8
    #: A residual counts up to so many times the usual one.
    residual_factor: float = 3.0
    #: A residual up to so many seconds always counts: the jitter of a LAN and of a busy process.
    residual_floor_s: float = 1e-3
    #: Seconds from the origin at which gravity is as strong as a residual of one second (square law).
    gravity_s: float = 150.0
    #: Round trips beyond this are no round trips, seconds.
    rtt_max_s: float = 10.0
    #: No place is further than this from the origin, no height and no adjustment larger, seconds.
    span_max_s: float = 10.0
    #: Peers whose round trips are remembered.
    peers_max: int = limits.COORDINATE_PEERS_MAX


class CoordinateSpace:
    """This peer's place; see the module."""

    def __init__(self, rng: Rng, settings: CoordinateSettings | None = None) -> None:
        #: Directions for who stands on the same place as another.
        self._rng = rng
        #: Bounds and speeds.
        self._settings = settings or CoordinateSettings()
        #: Newest round trips by peer as (when, seconds), at most `filter_samples` each; at most `peers_max`, the longest
        #: not sampled first.
        self._round_trips: dict[PeerId, list[tuple[float, float]]] = {}
        #: Newest absolute residual by peer, seconds, the longest not sampled first; at most `residual_peers`.
        self._residuals: dict[PeerId, float] = {}
        #: What samples were off by after the move, seconds, oldest first; at most `adjustment_samples`.
        self._adjustments: list[float] = []
        #: Where this peer is; finite and within `span_max_s`.
        self._own = self._origin()
        #: Samples that were dropped, by reason, for `doctor`; reasons: "round trip", "coordinate".
        self.rejected: Counter[str] = Counter()

    @property
    def own(self) -> Coordinate:
        """Where this peer is now."""
        return self._own

    def update(self, peer: PeerId, theirs: Coordinate, rtt_s: float, now: float) -> None:
        """A probe of `peer`, which says that it is at `theirs`, took `rtt_s` seconds. Bad samples are counted and dropped."""
        if not math.isfinite(rtt_s) or not 0.0 < rtt_s <= self._settings.rtt_max_s:
            self.rejected["round trip"] += 1
            return
        if not self._is_plausible(theirs):
            self.rejected["coordinate"] += 1
            return
        self._move(peer, theirs, self._filtered(peer, rtt_s, now))
        self._fall()
        self.reset_if_invalid()

    def forget(self, peer: PeerId) -> None:
        """`peer` is gone: what was measured of it says nothing about the next who has its place."""
        self._round_trips.pop(peer, None)
        self._residuals.pop(peer, None)

    def reset_if_invalid(self) -> bool:
        """Start again from the origin where the own place is no number or out of all bounds; whether that was so."""
        if self._is_plausible(self._own):
            return False
        self._own = self._origin()
        self._residuals.clear()
        self._adjustments.clear()
        return True

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        settings = self._settings
        assert self._is_plausible(self._own)
        assert len(self._round_trips) <= settings.peers_max
        assert all(0 < len(samples) <= settings.filter_samples for samples in self._round_trips.values())
        assert len(self._residuals) <= settings.residual_peers
        assert len(self._adjustments) <= settings.adjustment_samples

    def _origin(self) -> Coordinate:
        zero = (0.0,) * self._settings.dimensions
        return Coordinate(zero, self._settings.height_min_s, self._settings.error_max)

    def _is_plausible(self, place: Coordinate) -> bool:
        span_s = self._settings.span_max_s
        return (
            len(place.vector) == self._settings.dimensions
            and all(math.isfinite(each) and abs(each) <= span_s for each in place.vector)
            and math.isfinite(place.height_s)
            and 0.0 <= place.height_s <= span_s
            and math.isfinite(place.error)
            and place.error >= 0.0
            and math.isfinite(place.adjustment_s)
            and abs(place.adjustment_s) <= span_s
        )

    def _filtered(self, peer: PeerId, rtt_s: float, now: float) -> float:
        """The lower median of the newest round trips of `peer`: one that was held up in a queue is not the line's."""
        fresh = [row for row in self._round_trips.pop(peer, ()) if now - row[0] <= self._settings.filter_age_max_s]
        fresh = [*fresh, (now, rtt_s)][-self._settings.filter_samples :]
        while len(self._round_trips) >= self._settings.peers_max:
            del self._round_trips[next(iter(self._round_trips))]
        self._round_trips[peer] = fresh
        return statistics.median_low([seconds for _, seconds in fresh])

    def _move(self, peer: PeerId, theirs: Coordinate, rtt_s: float) -> None:
        settings, own = self._settings, self._own
        guess_s = estimate_s(own, theirs)
        residual_s = self._bounded(peer, rtt_s - guess_s, rtt_s)
        believed = min(max(theirs.error, settings.error_believed_min), settings.error_max)
        weight = own.error / (own.error + believed)
        share = settings.error_tuning * weight
        # Relative to the larger of the two, so at most 1: a neighbour's 10 ms where 0.2 were right would drown all else.
        wrong = abs(residual_s) / max(rtt_s, guess_s, settings.residual_floor_s)
        error = min(wrong * share + own.error * (1.0 - share), settings.error_max)
        force_s = settings.movement_tuning * weight * residual_s
        # The norm of height vectors (section 5.4 of the paper): core and heights share the force.
        away = tuple(mine - other for mine, other in zip(own.vector, theirs.vector, strict=True))
        core_s = math.hypot(*away)
        heights_s = own.height_s + theirs.height_s
        if core_s < _COINCIDENT_S:
            away, core_s = self._any_direction(), 1.0
            heights_s = 0.0
        step = force_s / (core_s + heights_s)
        vector = tuple(mine + step * each for mine, each in zip(own.vector, away, strict=True))
        height_s = max(own.height_s + step * heights_s, settings.height_min_s)
        moved = Coordinate(vector, height_s, max(error, 1e-3), own.adjustment_s)
        self._own = Coordinate(vector, height_s, moved.error, self._adjusted(moved, theirs, residual_s, rtt_s))

    def _bounded(self, peer: PeerId, residual_s: float, rtt_s: float) -> float:
        """`residual_s`, cut where it is out of proportion; notes it as what is usual."""
        settings = self._settings
        self._residuals.pop(peer, None)
        usual = statistics.median(self._residuals.values()) if self._residuals else 0.0
        while len(self._residuals) >= settings.residual_peers:
            del self._residuals[next(iter(self._residuals))]
        self._residuals[peer] = abs(residual_s)
        if len(self._residuals) < settings.residual_peers_min:
            # Nobody can say what is usual: no pull is stronger than the strongest push.
            bound_s = max(rtt_s, settings.residual_floor_s)
        else:
            bound_s = max(settings.residual_factor * usual, settings.residual_floor_s)
        return min(max(residual_s, -bound_s), bound_s)

    def _adjusted(self, moved: Coordinate, theirs: Coordinate, residual_s: float, rtt_s: float) -> float:
        """Half of what the space is wrong by on the average: each end of a pair adds its own half."""
        off_s = rtt_s - _unadjusted_s(moved, theirs)
        self._adjustments.append(min(max(off_s, -abs(residual_s)), abs(residual_s)))
        del self._adjustments[: -self._settings.adjustment_samples]
        return sum(self._adjustments) / (2.0 * self._settings.adjustment_samples)

    def _fall(self) -> None:
        """Gravity: all places together may drift, and a network that splits and merges must not find itself far apart."""
        own = self._own
        far_s = math.hypot(*own.vector)
        if far_s < _COINCIDENT_S:
            return
        keep = 1.0 - min((far_s / self._settings.gravity_s) ** 2, far_s) / far_s
        vector = tuple(each * keep for each in own.vector)
        self._own = Coordinate(vector, own.height_s, own.error, own.adjustment_s)

    def _any_direction(self) -> tuple[float, ...]:
        while True:
            drawn = tuple(self._rng.uniform(-1.0, 1.0) for _ in range(self._settings.dimensions))
            length = math.hypot(*drawn)
            if 0.1 < length <= 1.0:
                return tuple(each / length for each in drawn)


def estimate_s(one: Coordinate, other: Coordinate) -> float:
    """The round trip between two places in seconds; symmetric, never negative.

    A place of fewer dimensions stands at zero in those that it lacks. Adjustments count as long as anything is left.
    """
    plain_s = _unadjusted_s(one, other)
    adjusted_s = plain_s + (one.adjustment_s + other.adjustment_s)
    return adjusted_s if adjusted_s > 0.0 else plain_s


def _unadjusted_s(one: Coordinate, other: Coordinate) -> float:
    if len(one.vector) == len(other.vector):
        core_s = math.dist(one.vector, other.vector)
    else:
        places = max(len(one.vector), len(other.vector))
        left, right = (each.vector + (0.0,) * (places - len(each.vector)) for each in (one, other))
        core_s = math.dist(left, right)
    return core_s + (one.height_s + other.height_s)
