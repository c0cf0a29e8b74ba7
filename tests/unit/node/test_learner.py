"""The regression of river behind smart_adaptive: what it learns, its bounds, and what is said where it is missing."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest

from p2pcompute.jobs.strategies import features
from p2pcompute.jobs.strategies.features import PeerFacts, Request, own_row, shared_row
from p2pcompute.jobs.strategies.smart_adaptive import AdaptiveSettings, SmartAdaptive
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.performance import FunctionKey, PerformanceRecord
from p2pcompute.node.learner import ROWS_BETWEEN, ROWS_EAGER, RiverLearner, load_learner

SQUARE = FunctionKey("square", ProgramId(b"p" * 32))


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


@pytest.fixture
def learner() -> RiverLearner:
    pytest.importorskip("river", reason="the package river is not installed: pip install 'p2pcompute[learning]'")
    return load_learner()


def rows(request: Request, where: PeerFacts) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return shared_row(request), own_row(where, None)


def test_where_it_is_missing_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river.linear_model", None)
    with pytest.raises(UsageError, match=r"pip install 'p2pcompute\[learning\]'"):
        load_learner()


def test_nothing_learned_is_nothing_said(learner: RiverLearner) -> None:
    shared, own = rows(Request(SQUARE), PeerFacts(peer(1), 50.0))
    assert learner.predict(SQUARE, [peer(1), peer(2)], shared, [own, own]) == [0.0, 0.0]


def test_it_learns_what_size_and_load_do_to_each_peer(learner: RiverLearner) -> None:
    """value = 0.5·size at peer 1, 1.5·size at peer 2, and 0.4·cpu anywhere; slightly noisy."""
    rng = random.Random(4)

    def true(number: int, shared: tuple[float, ...], own: tuple[float, ...]) -> float:
        return (0.5 if number == 1 else 1.5) * shared[1] + 0.4 * own[1] + 0.2 * number

    def example() -> tuple[int, tuple[float, ...], tuple[float, ...]]:
        number = rng.randrange(1, 3)
        request = Request(SQUARE, int(2 ** rng.uniform(6, 18)), hour=rng.uniform(0, 23))
        return number, *rows(request, PeerFacts(peer(number), 50.0, cpu=rng.random()))

    for _ in range(400):
        number, shared, own = example()
        learner.learn(SQUARE, peer(number), shared + own, true(number, shared, own) + rng.gauss(0, 0.05))
    for _ in range(50):
        number, shared, own = example()
        (value,) = learner.predict(SQUARE, [peer(number)], shared, [own])
        assert value == pytest.approx(true(number, shared, own), abs=0.15)


def test_read_off_weights_predict_what_the_library_predicts(learner: RiverLearner) -> None:
    rng = random.Random(9)
    for step in range(ROWS_EAGER - 1):
        number = step % 5
        request = Request(SQUARE, rng.randrange(0, 1 << 16), hour=rng.uniform(0, 23))
        shared, own = rows(request, PeerFacts(peer(number), rng.uniform(5, 90), cpu=rng.random(), queued=step % 7))
        learner.learn(SQUARE, peer(number), shared + own, rng.gauss(0, 1))
        (value,) = learner.predict(SQUARE, [peer(number)], shared, [own])
        named: dict[object, float] = dict(enumerate(shared + own))
        named[peer(number)] = 1.0
        named[(peer(number),)] = shared[1]
        assert value == pytest.approx(learner._models[SQUARE].model.predict_one(named), abs=1e-9)


def test_weights_are_read_off_once_in_a_while(learner: RiverLearner) -> None:
    shared, own = rows(Request(SQUARE), PeerFacts(peer(1), 50.0))

    def learned(value: float) -> float:
        learner.learn(SQUARE, peer(1), shared + own, value)
        return learner.predict(SQUARE, [peer(1)], shared, [own])[0]

    eager = [learned(float(number % 3)) for number in range(ROWS_EAGER - 1)]
    assert all(before != after for before, after in pairwise(eager[1:]))
    later = [learned(5.0) for _ in range(4 * ROWS_BETWEEN)]
    assert len(set(later)) == 4 + (later[0] == eager[-1]), "each reading lasts for its rows"


def test_what_it_holds_is_bounded(learner: RiverLearner) -> None:
    shared, own = rows(Request(SQUARE), PeerFacts(peer(1), 50.0))
    for number in range(limits.LEARNED_PEERS_MAX + 20):
        learner.learn(SQUARE, peer(number), shared + own, 1.0)
    weights = learner._models[SQUARE]
    assert len(weights.peers) == limits.LEARNED_PEERS_MAX
    assert features.ROW_LENGTH + 2 * limits.LEARNED_PEERS_MAX <= 128, "the library rounds columns up to this"
    assert len(learner.predict(SQUARE, [peer(999)], shared, [own])) == 1
    for number in range(limits.PERFORMANCE_FUNCTIONS_MAX + 5):
        learner.learn(FunctionKey(f"f{number}", ProgramId(b"p" * 32)), peer(1), shared + own, 1.0)
    assert len(learner._models) == limits.PERFORMANCE_FUNCTIONS_MAX


def test_records_replayed_after_a_restart_give_the_same_predictions() -> None:
    pytest.importorskip("river", reason="the package river is not installed: pip install 'p2pcompute[learning]'")
    rng = random.Random(2)
    request = Request(SQUARE, 9_000, hour=3.0)
    everybody = [PeerFacts(peer(number), rng.uniform(10, 90)) for number in range(6)]

    def made() -> SmartAdaptive:
        return SmartAdaptive(random.Random(1), AdaptiveSettings(explore_share=0.0), load_learner())

    first, kept = made(), []
    for step in range(200):
        where = everybody[step % 6]
        row = first.features(request, where, float(step))
        record = PerformanceRecord(SQUARE, where.peer, "x", Outcome.RETURNED, rng.uniform(1, 3), features=row)
        first.book.observe(record, float(step))
        first.observe(record)
        kept.append(record)
    second = made()
    for step, record in enumerate(kept):
        second.book.observe(record, float(step))
        second.observe(record)
    assert second.predict_s(request, everybody, 200.0) == first.predict_s(request, everybody, 200.0)
    assert second.order(request, everybody, 200.0) == first.order(request, everybody, 200.0)
