"""smart_adaptive: predicts how long a task would take at each peer, from how tasks took before, and orders by that.

The logarithm of a task's seconds is predicted, since what makes tasks slow multiplies:

    log seconds = start(function) - log rank + learner(row, peer) + correction(function, peer)

- start: the first time that was seen of the function; before that, as everywhere, `plan.TASK_UNKNOWN_S`. So with
  nothing learned peers are ordered as `plan.fastest_first` orders them.
- learner: a regression on the numbers of `features.py` with a constant and a slope over the request's size for each
  peer (`Learner`; the library behind it is an optional extra). Without one it is the mean over all peers.
- correction: an exponentially weighted mean of what the prediction lately missed by at this peer. It follows a peer
  whose owner has come back long before a regression would.

A prediction and the wait before it become one figure by what the submitter wants (`Target`), divided by the share of
tasks that the peer ran to their end. Now and then (`explore_share`) a peer of which little is known, and which might be
the best for all that is known, is put first.

Refuses to know clock and dice (`now` and the Rng are passed), and where records are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pcompute.jobs.performance import PerformanceBook
from p2pcompute.jobs.plan import TASK_UNKNOWN_S
from p2pcompute.jobs.speed import TASK_MIN_S
from p2pcompute.jobs.strategies import features
from p2pcompute.jobs.strategies.features import PeerFacts, Request
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.performance import NOT_COUNTED, SERVED, TIME_MAX_S, FunctionKey, PerformanceRecord
from p2pcompute.model.placement import Target
from p2pcompute.model.seams import Rng

#: Weight of the newest record in a correction: five make up two thirds of it.
NEWEST_WEIGHT = 0.2
#: Weight of the newest record in the usual time of any task at a peer: their sizes scatter, so ten make up two thirds.
USUAL_WEIGHT = 0.1
#: Without a learner a correction is taken for n / (n + this) of itself after n records.
SHRINK_RECORDS = 2.0
#: Without a learner, the newest record's weight in the mean over all peers: of them there are many.
MEAN_WEIGHT = 0.05
#: What one record may miss its prediction by before the rest is cut off, in natural logarithms: a factor of 20.
MISS_MAX = 3.0
#: Spread of the times of one function over peers of which nothing is known: a factor of 2 up or down.
UNKNOWN_SPREAD = 0.7
#: Predictions stay within these seconds.
PREDICTED_MIN_S = TASK_MIN_S
PREDICTED_MAX_S = TIME_MAX_S
#: What an hour costs at a peer that says nothing or nonsense of its price.
_FREE = 0.0


@dataclass(frozen=True, slots=True)
class AdaptiveSettings:
    """`learning_enabled`: whether records change predictions. `explore_share`.

    Orderings that may try a little-known peer, 0 to 0.5.
    """

    optimization_target: Target = Target.LATENCY
    learning_enabled: bool = True
    explore_share: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.explore_share <= 0.5:
            raise UsageError(f"explore_share is {self.explore_share}: give 0 (never) to 0.5 (every second time)")


class Learner(Protocol):
    """A regression per function, learned one row at a time. Deterministic; everything in it is bounded."""

    def learn(self, function: FunctionKey, peer: PeerId, row: Sequence[float], value: float) -> None:
        """`value` was observed at `peer` with `row` (`features.SHARED`, then `features.OWN`)."""

    def predict(
        self, function: FunctionKey, peers: Sequence[PeerId], shared: Sequence[float], own: Sequence[Sequence[float]]
    ) -> list[float]:
        """The expected value at each of `peers`, whose own parts are `own` in the same order.

        0 where nothing is known.
        """


class _Correction:
    """What predictions missed by at one peer.

    Beside a learner it begins at 0 and moves slowly, since first misses are the learner's to explain. Alone it is the peer's
    mean from the first record on, and shrunk while that rests on little.
    """

    __slots__ = ("beside", "miss", "records")

    def __init__(self, beside: bool) -> None:
        #: Whether a learner explains what it can.
        self.beside = beside
        #: Weighted mean of the misses, natural logarithm of observed over predicted.
        self.miss = 0.0
        #: Records that it rests on.
        self.records = 0

    @property
    def value(self) -> float:
        """What is added to predictions."""
        return self.miss if self.beside else self.miss * self.records / (self.records + SHRINK_RECORDS)

    def observe(self, miss: float) -> None:
        """One record more."""
        self.records += 1
        weight = NEWEST_WEIGHT if self.beside else max(NEWEST_WEIGHT, 1 / self.records)
        self.miss += (miss - self.miss) * weight


class _Function:
    """What is known of one function."""

    __slots__ = ("corrections", "mean", "records", "start")

    def __init__(self, start: float) -> None:
        #: Where its regression starts from: log seconds + log rank of the first record.
        self.start = start
        #: Without a learner: weighted mean over all peers of log seconds + log rank - start.
        self.mean = 0.0
        #: Records learned from.
        self.records = 0
        #: By peer, at most `limits.PERFORMANCE_PEERS_MAX`; the last written last.
        self.corrections: dict[PeerId, _Correction] = {}


#: Of a function that was never seen.
_UNSEEN = _Function(math.log(TASK_UNKNOWN_S))


class SmartAdaptive:
    """The strategy with what it has learned.

    `order` before tasks are sent, `record`'s features with them, `observe` when they ended.
    """

    def __init__(
        self,
        rng: Rng,
        settings: AdaptiveSettings | None = None,
        learner: Learner | None = None,
        book: PerformanceBook | None = None,
    ) -> None:
        #: What is wanted of it.
        self.settings = settings or AdaptiveSettings()
        #: Windows of how peers did lately. Its owner feeds it, before `observe` is called with the same record.
        self.book = book if book is not None else PerformanceBook()
        #: Decides when to explore, and whom.
        self._rng = rng
        #: The regression; None: predictions rest on means alone.
        self._learner = learner
        #: By function, at most `limits.PERFORMANCE_FUNCTIONS_MAX`; the last written last.
        self._functions: dict[FunctionKey, _Function] = {}
        #: Weighted mean seconds of any task by peer, at most `limits.PERFORMANCE_PEERS_MAX`; the last written last.
        self._usual_s: dict[PeerId, float] = {}

    def order(
        self, request: Request, peers: Sequence[PeerFacts], now: float, target: Target | None = None
    ) -> list[PeerId]:
        """The ids of `peers`, the one to be asked first first; ties: this peer itself, then the lower id.

        `target`: what this request wants, None for what the settings say.
        """
        if not peers:
            return []
        own, rates = self._own_rows(request.function, peers, now)
        predicted = self._predict(request, peers, own)
        target = target or self.settings.optimization_target
        keys: list[tuple[float, float, bool, PeerId]] = []
        for facts, task_s, rate in zip(peers, predicted, rates, strict=True):
            first, second = _figures(target, facts, task_s / rate, self._wait_s(facts, task_s))
            keys.append((first, second, not facts.local, facts.peer))
        order = [key[-1] for key in sorted(keys)]
        if len(order) > 1 and self._rng.random() < self.settings.explore_share:
            self._explore(request.function, order, {key[-1]: key[0] for key in keys})
        return order

    def predict_s(self, request: Request, peers: Sequence[PeerFacts], now: float) -> list[float]:
        """Seconds that a task of `request` would run at each of `peers`, in their order."""
        return self._predict(request, peers, self._own_rows(request.function, peers, now)[0])

    def _predict(self, request: Request, peers: Sequence[PeerFacts], own: Sequence[tuple[float, ...]]) -> list[float]:
        known = self._functions.get(request.function, _UNSEEN)
        if self._learner is not None and known.records:
            ids = [facts.peer for facts in peers]
            learned = self._learner.predict(request.function, ids, features.shared_row(request), own)
        else:
            learned = [known.mean] * len(peers)
        corrections = known.corrections
        seconds = []
        for facts, row, value in zip(peers, own, learned, strict=True):
            correction = corrections.get(facts.peer)
            total = known.start - row[0] + value + (correction.value if correction is not None else 0.0)
            seconds.append(math.exp(total) if _LOG_MIN < total < _LOG_MAX else math.exp(_cut_to(total)))
        return seconds

    def features(self, request: Request, facts: PeerFacts, now: float) -> tuple[float, ...]:
        """The row to be put into the `PerformanceRecord` of tasks that are sent now."""
        return features.shared_row(request) + self._own_rows(request.function, (facts,), now)[0][0]

    def observe(self, record: PerformanceRecord) -> None:
        """Learn from a record; one without features, or with those of another release, changes corrections only.

        Only times of served tasks are learned here. Failures count in the book, and so in the next ordering.
        """
        if not self.settings.learning_enabled or record.outcome in NOT_COUNTED or record.outcome not in SERVED:
            return
        row = record.features if features.is_row(record.features) else None
        rank = row[len(features.SHARED)] if row is not None else 0.0
        observed = math.log(min(max(record.wall_s, PREDICTED_MIN_S), PREDICTED_MAX_S)) + rank
        known = self._functions.pop(record.function, None) or _Function(observed)
        self._functions[record.function] = known
        if len(self._functions) > limits.PERFORMANCE_FUNCTIONS_MAX:
            del self._functions[next(iter(self._functions))]
        self._learn(record, known, row, observed - known.start)
        known.records += 1
        self._see(record.peer, record.wall_s)

    def _see(self, peer: PeerId, wall_s: float) -> None:
        """What a place in the queue of `peer` costs: lately, since the mean of an hour knows nothing of a change."""
        before = self._usual_s.pop(peer, None)
        self._usual_s[peer] = wall_s if before is None else before + (wall_s - before) * USUAL_WEIGHT
        if len(self._usual_s) > limits.PERFORMANCE_PEERS_MAX:
            del self._usual_s[next(iter(self._usual_s))]

    def _learn(self, record: PerformanceRecord, known: _Function, row: tuple[float, ...] | None, value: float) -> None:
        correction = known.corrections.pop(record.peer, None) or _Correction(self._learner is not None)
        known.corrections[record.peer] = correction
        if len(known.corrections) > limits.PERFORMANCE_PEERS_MAX:
            del known.corrections[next(iter(known.corrections))]
        if self._learner is not None and row is not None:
            shared, own = row[: len(features.SHARED)], row[len(features.SHARED) :]
            expected = self._learner.predict(record.function, (record.peer,), shared, (own,))[0]
            # One absurd time, or a peer that lies about its own, must not bend the regression for all others.
            value = expected + _cut(value - expected, MISS_MAX)
            self._learner.learn(record.function, record.peer, row, value)
        else:
            expected = known.mean
            value = expected + _cut(value - expected, MISS_MAX)
            known.mean += (value - known.mean) * max(MEAN_WEIGHT, 1 / (known.records + 1))
        correction.observe(value - expected)

    def _own_rows(
        self, function: FunctionKey, peers: Sequence[PeerFacts], now: float
    ) -> tuple[list[tuple[float, ...]], list[float]]:
        """The own part of each row, and the share of tasks that each peer served, 1 where nothing is known."""
        windows = self.book.windows(function)
        overall_s = self.book.mean_function_s(function, now)
        rows, rates = [], []
        for facts in peers:
            window = windows.get(facts.peer)
            mean_s, rate = window.lately(now) if window is not None else (None, 1.0)
            rows.append(features.own_row(facts, mean_s / overall_s if mean_s and overall_s else None))
            rates.append(rate)
        return rows, rates

    def _wait_s(self, facts: PeerFacts, task_s: float) -> float:
        """Seconds before a task would start: the way there, and the tasks ahead at the peer's usual time over its slots."""
        slots = facts.slots if facts.slots > 1 else 1
        wait_s = facts.rtt_s if facts.rtt_s > 0 else 0.0
        ahead = facts.queued + 1 - slots
        if ahead > 0:
            wait_s += ahead * self._usual_s.get(facts.peer, task_s) / slots
        return wait_s

    def _explore(self, function: FunctionKey, order: list[PeerId], figures: dict[PeerId, float]) -> None:
        """Put one of those first that might be the best.

        Whose figure, as good as its uncertainty allows, beats the first one's.
        """
        known = self._functions.get(function, _UNSEEN)
        best = figures[order[0]]
        hopeful = []
        for peer in order[1:]:
            correction = known.corrections.get(peer)
            records = correction.records if correction is not None else 0
            if figures[peer] * math.exp(-2 * UNKNOWN_SPREAD / math.sqrt(1 + records)) < best:
                hopeful.append(peer)
        if hopeful:
            chosen = hopeful[self._rng.randrange(0, len(hopeful))]
            order.remove(chosen)
            order.insert(0, chosen)


_LOG_MIN = math.log(PREDICTED_MIN_S)
_LOG_MAX = math.log(PREDICTED_MAX_S)


def _figures(target: Target, facts: PeerFacts, task_s: float, wait_s: float) -> tuple[float, float]:
    """What candidates are ordered by, smaller first, and then by the second figure."""
    done_s = wait_s + task_s
    if target is Target.LATENCY:
        return done_s, task_s
    if target is Target.THROUGHPUT:
        return done_s + task_s, done_s
    price = facts.cost_per_hour
    return (price if price > 0 else _FREE) * task_s / 3600, done_s


def _cut_to(total: float) -> float:
    return min(max(total, _LOG_MIN), _LOG_MAX)


def _cut(value: float, most: float) -> float:
    return min(max(value, -most), most)
