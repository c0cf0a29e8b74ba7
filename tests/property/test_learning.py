"""What is learned from jobs, against models that keep everything.

Windows, the request cache, and orders under nonsense.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.jobs.performance import WINDOW_BUCKETS, PerformanceBook, Window
from p2pcompute.jobs.request_cache import ENTRY_OVERHEAD_BYTES, CacheSettings, RequestCache, RequestKey
from p2pcompute.jobs.strategies.features import PeerFacts, Request
from p2pcompute.jobs.strategies.smart_adaptive import AdaptiveSettings, SmartAdaptive
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.performance import NOT_COUNTED, SERVED, FunctionKey, PerformanceRecord, plausible_s
from p2pcompute.model.placement import Target

SQUARE = FunctionKey("square", ProgramId(b"p" * 32))


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


class Observed(NamedTuple):
    at: float
    outcome: Outcome
    tasks: int
    wall_s: float


steps = st.lists(
    st.tuples(
        st.floats(0, 40),
        st.sampled_from(Outcome),
        st.integers(1, 500),
        st.floats(0, 100),
    ),
    max_size=60,
)


@given(steps, st.floats(1, 200), st.floats(0, 300))
def test_a_window_is_what_a_list_of_everything_says_within_one_bucket(
    told: list[tuple[float, Outcome, int, float]], window_s: float, wait_s: float
) -> None:
    window = Window(window_s)
    everything = []
    now = 0.0
    for pause_s, outcome, tasks, wall_s in told:
        now += pause_s
        window.observe(PerformanceRecord(SQUARE, peer(1), "x", outcome, wall_s, tasks=tasks), now)
        window.check_invariants()
        if outcome not in NOT_COUNTED:
            everything.append(Observed(now, outcome, tasks, wall_s))
    now += wait_s
    found = window.summary(now)
    # A bucket is forgotten by its start, so up to one bucket's length too early, and never too late.
    most = [each for each in everything if each.at > now - window_s]
    least = [each for each in everything if each.at > now - window_s * (1 - 1 / WINDOW_BUCKETS) + 1e-9]
    assert sum(each.tasks for each in least) <= found.counted <= sum(each.tasks for each in most)
    served = [each for each in most if each.outcome in SERVED]
    if found.served:
        assert found.mean_s is not None
        assert min(each.wall_s for each in served) - 1e-6 <= found.mean_s <= max(each.wall_s for each in served) + 1e-6
    if found.counted == sum(each.tasks for each in most):
        assert found.served == sum(each.tasks for each in served)
        assert found.succeeded == sum(each.tasks for each in served if each.outcome is Outcome.RETURNED)
        if served:
            mean_s = math.fsum(each.tasks * each.wall_s for each in served) / found.served
            assert found.mean_s == pytest.approx(mean_s, abs=1e-8)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(0, 10)), max_size=80))
def test_a_book_adds_up(told: list[tuple[int, int, float]]) -> None:
    book = PerformanceBook(50.0)
    now = 0.0
    for function, number, pause_s in told:
        now += pause_s
        key = FunctionKey(f"f{function}", ProgramId(b"p" * 32))
        book.observe(PerformanceRecord(key, peer(number), "x", Outcome.RETURNED, 1.0), now)
    book.check_invariants()
    by_peer = sum(summary.counted for _, summary in book.peers(now))
    # Buckets of a pair and of a peer begin at different moments, so they may differ by what one bucket holds.
    if told and now <= 50.0 * (1 - 1 / WINDOW_BUCKETS):
        assert by_peer == len(told)


class Model:
    """A cache that keeps everything and looks through all of it."""

    def __init__(self, limits: CacheSettings) -> None:
        self.limits = limits
        self.kept: list[tuple[RequestKey, float, bytes]] = []

    def get(self, key: RequestKey, now: float) -> bytes | None:
        self.kept = [each for each in self.kept if now - each[1] < self.limits.ttl_s]
        return next((content for other, _, content in self.kept if other == key), None)

    def put(self, key: RequestKey, content: bytes, now: float) -> None:
        size = len(content) + ENTRY_OVERHEAD_BYTES
        if size > self.limits.bytes_max or not self.limits.entries_max:
            return
        self.get(key, now)
        self.kept = [each for each in self.kept if each[0] != key]
        self.kept.append((key, now, content))
        while (
            len(self.kept) > self.limits.entries_max
            or sum(len(content) + ENTRY_OVERHEAD_BYTES for _, _, content in self.kept) > self.limits.bytes_max
        ):
            del self.kept[0]


# Whole numbers, so that the model's and the cache's arithmetic of times cannot differ by rounding.
actions = st.lists(
    st.tuples(st.sampled_from("gp"), st.integers(0, 6), st.integers(0, 9), st.integers(0, 900)), max_size=80
)


@given(actions, st.integers(1, 30), st.integers(0, 4_000), st.integers(0, 5))
def test_the_cache_answers_as_one_that_keeps_everything(
    told: list[tuple[str, int, int, int]], ttl_s: int, bytes_max: int, entries_max: int
) -> None:
    limits = CacheSettings(True, float(ttl_s), bytes_max, entries_max)
    cache, model = RequestCache(limits), Model(limits)
    now = 0.0
    for action, number, pause_s, size in told:
        now += pause_s
        key = RequestKey(bytes([number]))
        if action == "g":
            assert cache.get(key, now) == model.get(key, now)
        else:
            content = bytes([number]) * size
            cache.put(key, Outcome.RETURNED, content, now)
            model.put(key, content, now)
        cache.check_invariants()


anything = st.floats(allow_nan=True, allow_infinity=True)
claims = st.builds(
    PeerFacts,
    peer=st.integers(0, 20).map(peer),
    rank=anything,
    rtt_s=st.floats(0, 10),
    slots=st.integers(-3, 64),
    queued=st.floats(0, 1e9),
    cpu=st.none() | anything,
    memory=st.none() | anything,
    gpu=st.none() | anything,
    cost_per_hour=anything,
)


@settings(max_examples=60)
@given(
    st.lists(claims, min_size=1, max_size=12, unique_by=lambda each: each.peer),
    st.lists(st.tuples(st.integers(0, 11), anything.map(plausible_s), st.sampled_from(Outcome)), max_size=25),
    st.sampled_from(Target),
    st.integers(0, 1 << 40),
)
def test_whatever_peers_claim_the_order_has_each_once_and_is_the_same_again(
    peers: list[PeerFacts], told: list[tuple[int, float, Outcome]], target: Target, size: int
) -> None:
    def ordered() -> list[list[PeerId]]:
        strategy = SmartAdaptive(random.Random(1), AdaptiveSettings(target, explore_share=0.5))
        request = Request(SQUARE, size)
        orders = []
        for number, wall_s, outcome in told:
            where = peers[number % len(peers)]
            row = strategy.features(request, where, 0.0)
            record = PerformanceRecord(SQUARE, where.peer, "x", outcome, wall_s, features=row)
            strategy.book.observe(record, 0.0)
            strategy.observe(record)
            assert all(math.isfinite(each) and each > 0 for each in strategy.predict_s(request, peers, 0.0))
            orders.append(strategy.order(request, peers, 0.0))
        orders.append(strategy.order(request, peers, 0.0))
        return orders

    found = ordered()
    assert all(sorted(order) == sorted(each.peer for each in peers) for order in found)
    assert found == ordered()
