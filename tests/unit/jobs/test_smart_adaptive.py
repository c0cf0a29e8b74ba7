"""smart_adaptive: sane when cold, learns, follows changes, explores by passed dice, and bears with what peers claim."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from p2pcompute.jobs.performance import PerformanceBook
from p2pcompute.jobs.plan import Candidate, fastest_first
from p2pcompute.jobs.strategies import features, smart_adaptive
from p2pcompute.jobs.strategies.features import PeerFacts, Request, own_row, shared_row
from p2pcompute.jobs.strategies.smart_adaptive import AdaptiveSettings, SmartAdaptive
from p2pcompute.model import limits
from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.performance import FunctionKey, PerformanceRecord
from p2pcompute.model.placement import Target
from tests.purity.world import world_switched_off

SQUARE = FunctionKey("square", ProgramId(b"p" * 32))
REQUEST = Request(SQUARE, 4_096, hour=6.0)
QUIET = AdaptiveSettings(explore_share=0.0)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def facts(number: int, rank: float = 50.0, **more: object) -> PeerFacts:
    return PeerFacts(peer(number), rank, **more)  # type: ignore[arg-type]


def smart(settings: AdaptiveSettings = QUIET, seed: int = 1) -> SmartAdaptive:
    return SmartAdaptive(random.Random(seed), settings)


def learn(
    strategy: SmartAdaptive,
    where: PeerFacts,
    wall_s: float,
    now: float = 0.0,
    outcome: Outcome = Outcome.RETURNED,
    request: Request = REQUEST,
) -> None:
    row = strategy.features(request, where, now)
    record = PerformanceRecord(request.function, where.peer, "smart_adaptive", outcome, wall_s, features=row)
    strategy.book.observe(record, now)
    strategy.observe(record)


def order(strategy: SmartAdaptive, *peers: PeerFacts, now: float = 0.0, request: Request = REQUEST) -> list[int]:
    return [int.from_bytes(each) for each in strategy.order(request, peers, now)]


# --- cold -------------------------------------------------------------------------------------------------------------


def test_nobody_to_order() -> None:
    assert order(smart()) == []


@pytest.mark.parametrize("seed", range(20))
def test_with_nothing_learned_it_orders_like_the_default(seed: int) -> None:
    """Idle peers of one slot: by round trip + task · typical rank / rank, as `plan.fastest_first`."""
    rng = random.Random(seed)
    peers = [
        facts(number, rng.uniform(30, 70), rtt_s=rng.choice((0.0, 0.001, 0.02)), local=number == 3)
        for number in range(8)
    ]
    # The default's estimate is about the candidates' mean rank; here the rank that is typical anywhere.
    mean = sum(each.rank for each in peers) / len(peers)
    scaled = [
        facts(int.from_bytes(each.peer), each.rank * 50 / mean, rtt_s=each.rtt_s, local=each.local) for each in peers
    ]
    expected = fastest_first([Candidate(each.peer, each.rtt_s, each.local, each.rank) for each in scaled])
    assert smart().order(REQUEST, scaled, 0.0) == expected


def test_ties_go_to_this_peer_itself_then_the_lower_id() -> None:
    assert order(smart(), facts(3), facts(1), facts(2, local=True)) == [2, 1, 3]


# --- learning ---------------------------------------------------------------------------------------------------------


def test_a_strong_peer_that_is_slow_in_truth_falls_behind() -> None:
    strategy = smart()
    strong, weak = facts(1, 90.0), facts(2, 30.0)
    assert order(strategy, strong, weak) == [1, 2]
    for number in range(40):
        learn(strategy, strong, 8.0)
        learn(strategy, weak, 1.0)
        assert number < 2 or order(strategy, strong, weak) == [2, 1], "three each are enough for the order"
    slow_s, fast_s = strategy.predict_s(REQUEST, (strong, weak), 0.0)
    assert slow_s == pytest.approx(8.0, rel=0.2)
    assert fast_s == pytest.approx(1.0, rel=0.2)


def test_what_one_function_taught_says_nothing_about_another() -> None:
    strategy = smart()
    for _ in range(5):
        learn(strategy, facts(1, 90.0), 8.0)
        learn(strategy, facts(2, 30.0), 1.0)
    other = Request(FunctionKey("cube", ProgramId(b"p" * 32)))
    assert order(strategy, facts(1, 90.0), facts(2, 30.0), request=other) == [1, 2]


def test_without_learning_records_change_nothing() -> None:
    strategy = smart(AdaptiveSettings(learning_enabled=False, explore_share=0.0))
    for _ in range(5):
        learn(strategy, facts(1, 90.0), 8.0)
        learn(strategy, facts(2, 30.0), 1.0)
    assert order(strategy, facts(1, 90.0), facts(2, 30.0)) == [1, 2]


def test_it_follows_a_peer_whose_owner_came_back() -> None:
    strategy = smart()
    for _ in range(50):
        learn(strategy, facts(1), 1.0)
        learn(strategy, facts(2), 2.0)
    assert order(strategy, facts(1), facts(2)) == [1, 2]
    seen = 0
    while order(strategy, facts(1), facts(2)) == [1, 2]:
        learn(strategy, facts(1), 6.0)
        seen += 1
        assert seen < 12, "a dozen records must be enough"
    assert seen >= 2, "one slow task is no change"


def test_one_absurd_time_does_not_bury_a_peer() -> None:
    strategy = smart()
    for _ in range(20):
        learn(strategy, facts(1), 1.0)
        learn(strategy, facts(2), 1.8)
    learn(strategy, facts(1), 1e8)
    assert strategy.predict_s(REQUEST, (facts(1),), 0.0)[0] < 4.0


def test_a_peer_that_fails_is_put_last_until_the_window_forgets() -> None:
    strategy = smart()
    for _ in range(10):
        learn(strategy, facts(1), 1.0)
        learn(strategy, facts(2), 1.5)
    for _ in range(20):
        learn(strategy, facts(1), 0.0, outcome=Outcome.WORKER_DIED)
    assert order(strategy, facts(1), facts(2)) == [2, 1]
    assert order(strategy, facts(1), facts(2), now=2 * limits.PERFORMANCE_WINDOW_S) == [1, 2]


def test_an_error_of_the_function_is_not_held_against_the_peer() -> None:
    strategy = smart()
    for _ in range(10):
        learn(strategy, facts(1), 1.0, outcome=Outcome.RAISED)
        learn(strategy, facts(2), 1.5)
    assert order(strategy, facts(1), facts(2)) == [1, 2]


def test_what_was_cancelled_teaches_nothing() -> None:
    strategy = smart()
    for outcome in (Outcome.CANCELLED, Outcome.RETURNED_UNRUN):
        learn(strategy, facts(1), 100.0, outcome=outcome)
    assert strategy.predict_s(REQUEST, (facts(1),), 0.0) == smart().predict_s(REQUEST, (facts(1),), 0.0)


def test_a_record_of_another_release_teaches_times_only() -> None:
    strategy = smart()
    for _ in range(8):
        for number, wall_s in ((1, 4.0), (2, 1.0)):
            strategy.observe(
                PerformanceRecord(SQUARE, peer(number), "x", Outcome.RETURNED, wall_s, features=(1.0, 2.0))
            )
    assert order(strategy, facts(1), facts(2)) == [2, 1]


# --- what is wanted ---------------------------------------------------------------------------------------------------


def test_a_queue_is_waited_for_where_that_is_faster() -> None:
    strategy = smart()
    for _ in range(10):
        learn(strategy, facts(1), 1.0)
        learn(strategy, facts(2), 5.0)
    assert order(strategy, facts(1, queued=3), facts(2)) == [1, 2], "four times 1 s is less than 5 s"
    assert order(strategy, facts(1, queued=9), facts(2)) == [2, 1]
    assert order(strategy, facts(1, queued=9, slots=8), facts(2)) == [1, 2], "eight slots work it off"


def test_each_target_has_its_own_order() -> None:
    peers = (
        facts(1, queued=5, cost_per_hour=2.0),  # runs 1 s, waits 5 s
        facts(2, cost_per_hour=1.0),  # runs 4.5 s
        facts(3, cost_per_hour=0.1),  # runs 9 s
    )
    found = {}
    for target in Target:
        strategy = smart(AdaptiveSettings(target, explore_share=0.0))
        for _ in range(30):
            for where, wall_s in zip((facts(1), facts(2), facts(3)), (1.0, 4.5, 9.0), strict=True):
                learn(strategy, where, wall_s)
        found[target] = order(strategy, *peers)
    assert found == {
        Target.LATENCY: [2, 1, 3],
        Target.THROUGHPUT: [1, 2, 3],
        Target.COST: [3, 1, 2],
    }


def test_targets_by_name() -> None:
    assert [Target.parse(each.value.upper()) for each in Target] == list(Target)
    with pytest.raises(UnknownNameError) as caught:
        Target.parse("minimise_latency")
    assert caught.value.nearest == "minimize_latency"
    with pytest.raises(UsageError):
        AdaptiveSettings(explore_share=0.6)


# --- exploring --------------------------------------------------------------------------------------------------------


def test_it_tries_the_little_known_now_and_then_and_by_its_dice_only() -> None:
    settings = AdaptiveSettings(explore_share=0.1)

    def firsts(seed: int) -> list[int]:
        strategy = smart(settings, seed)
        for _ in range(40):
            learn(strategy, facts(1), 1.0)
            learn(strategy, facts(2), 3.0)
        return [order(strategy, facts(1), facts(2), facts(3, 40.0))[0] for _ in range(2_000)]

    first = firsts(7)
    assert first == firsts(7)
    assert first != firsts(8)
    assert 120 < first.count(3) < 280, "of 2,000, one in ten"
    assert first.count(2) == 0, "it is known to be slow"


def test_every_order_has_every_peer_once() -> None:
    strategy = smart(AdaptiveSettings(explore_share=0.5))
    peers = [facts(number) for number in range(10)]
    for number in range(10):
        learn(strategy, facts(number), 1.0 + number / 10)
    for _ in range(200):
        assert sorted(order(strategy, *peers)) == list(range(10))


# --- features ---------------------------------------------------------------------------------------------------------


def test_a_row_has_every_feature_in_its_place() -> None:
    shared = dict(zip(features.SHARED, shared_row(Request(SQUARE, 4_095, 4.0, 6.0)), strict=True))
    assert shared == {
        "one": features.ONE,
        "request size": 0.0,
        "complexity": 0.5,
        "hour sine": 1.0,
        "hour cosine": pytest.approx(0.0, abs=1e-12),
    }
    where = PeerFacts(peer(1), 100.0, slots=2, queued=8, cpu=1.0, memory=0.0, gpu=0.75)
    own = dict(zip(features.OWN, own_row(where, 2.0), strict=True))
    assert own == {
        "rank": pytest.approx(math.log(2)),
        "cpu": 1.0,
        "memory": -1.0,
        "gpu": 0.5,
        "no gpu": 0.0,
        "queue": 1.0,
        "historical time": pytest.approx(math.log(2)),
    }
    silent = dict(zip(features.OWN, own_row(PeerFacts(peer(1), 50.0), None), strict=True))
    assert silent == {**dict.fromkeys(features.OWN, 0.0), "no gpu": 1.0}


def test_the_historical_time_is_of_this_function_at_this_peer() -> None:
    strategy = smart()
    for _ in range(3):
        learn(strategy, facts(1), 3.0)
        learn(strategy, facts(2), 1.0)
    place = features.ROW_LENGTH - 1
    assert features.OWN[-1] == "historical time"
    assert strategy.features(REQUEST, facts(1), 0.0)[place] == pytest.approx(math.log(1.5))
    assert strategy.features(REQUEST, facts(2), 0.0)[place] == pytest.approx(math.log(0.5))
    assert strategy.features(REQUEST, facts(3), 0.0)[place] == 0.0


@pytest.mark.parametrize("hour", [-1.0, 24.0, float("nan")])
def test_a_request_that_cannot_be(hour: float) -> None:
    with pytest.raises(UsageError):
        Request(SQUARE, hour=hour)


NONSENSE = (float("nan"), float("inf"), -float("inf"), -5.0, 1e300)


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("name", ["rank", "cpu", "memory", "gpu", "queued"])
def test_nonsense_that_a_peer_claims_stays_in_range(name: str, value: float) -> None:
    row = own_row(PeerFacts(**{"peer": peer(1), "rank": 50.0, name: value}), None)  # type: ignore[arg-type]
    assert features.is_row((*shared_row(REQUEST), *row))
    assert all(abs(number) <= 5.0 for number in row)


# --- bounds and purity ------------------------------------------------------------------------------------------------


def test_what_it_remembers_is_bounded() -> None:
    strategy = smart()
    for number in range(limits.PERFORMANCE_PEERS_MAX + 10):
        learn(strategy, facts(number), 1.0)
    assert len(strategy._functions[SQUARE].corrections) == limits.PERFORMANCE_PEERS_MAX
    for number in range(limits.PERFORMANCE_FUNCTIONS_MAX + 10):
        learn(strategy, facts(1), 1.0, request=Request(FunctionKey(f"f{number}", ProgramId(b"p" * 32))))
    assert len(strategy._functions) == limits.PERFORMANCE_FUNCTIONS_MAX
    strategy.book.check_invariants()


class _Shifting:
    """A learner whose every weight is known: the value is the request's size."""

    def __init__(self) -> None:
        self.learned: list[float] = []

    def learn(self, function: FunctionKey, peer: PeerId, row: Sequence[float], value: float) -> None:
        self.learned.append(value)

    def predict(
        self, function: FunctionKey, peers: Sequence[PeerId], shared: Sequence[float], own: Sequence[Sequence[float]]
    ) -> list[float]:
        return [shared[1]] * len(peers)


def test_a_learner_is_told_relative_times_and_asked_for_them() -> None:
    learner = _Shifting()
    strategy = SmartAdaptive(random.Random(1), QUIET, learner)
    for _ in range(3):
        learn(strategy, facts(1), 2.0)
    learn(strategy, facts(1), 2.0 * math.e)
    assert learner.learned == [pytest.approx(value, abs=1e-9) for value in (0.0, 0.0, 0.0, 1.0)]
    learn(strategy, facts(1), 1e8)
    assert learner.learned[-1] == pytest.approx(smart_adaptive.MISS_MAX, abs=1e-3), "cut off"
    big = Request(SQUARE, 4_096 * 16 - 1, hour=6.0)
    small_s, large_s = (strategy.predict_s(each, (facts(2),), 0.0)[0] for each in (REQUEST, big))
    assert large_s / small_s == pytest.approx(math.e, rel=1e-3)


def test_it_runs_with_the_world_switched_off() -> None:
    def exercise() -> list[list[int]]:
        strategy = smart(AdaptiveSettings(explore_share=0.3), seed=5)
        dice = random.Random(3)
        found = []
        for step in range(200):
            where = facts(dice.randrange(0, 9), dice.uniform(1, 99))
            learn(strategy, where, dice.uniform(0.1, 3.0), now=float(step))
            found.append(order(strategy, *(facts(number) for number in range(9)), now=float(step)))
        return found

    with world_switched_off():
        first = exercise()
    assert first == exercise()


def test_the_book_may_be_shared() -> None:
    book = PerformanceBook()
    strategy = SmartAdaptive(random.Random(1), QUIET, book=book)
    book.observe(PerformanceRecord(SQUARE, peer(1), "x", Outcome.TIMED_OUT, 1.0, tasks=50), 0.0)
    assert order(strategy, facts(1), facts(2)) == [2, 1]
