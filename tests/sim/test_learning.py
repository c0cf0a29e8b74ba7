"""What learning is worth, on a virtual clock with fixed seeds: `benchmarks/_routing.py` has the world, docs/performance.md the tables.

The same strategies run with the regression of river where it is installed, and with means alone everywhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from benchmarks._routing import (
    CROWDED,
    DRIFTING,
    HONEST,
    MISLEADING,
    FastestFirst,
    Kind,
    Oracle,
    Router,
    Run,
    Scored,
    Simulation,
    Smart,
    World,
    draw,
    resource_score,
)
from p2pcompute.jobs.strategies.smart_adaptive import AdaptiveSettings, Learner
from p2pcompute.model.placement import Target

SEEDS = range(1_000, 1_010)


def _river() -> Learner:
    pytest.importorskip("river", reason="the package river is not installed: pip install 'p2pcompute[learning]'")
    from p2pcompute.node.learner import load_learner

    return load_learner()


@dataclass(frozen=True, slots=True)
class With:
    """smart_adaptive with what learner."""

    name: str
    make: Callable[[], Learner | None]


BOTH = pytest.mark.parametrize(
    "learner", [With("means", lambda: None), With("river", _river)], ids=lambda each: each.name
)


def runs(kind: Kind, router: Callable[[int, World], Router], *, late: bool = False, seeds: range = SEEDS) -> list[Run]:
    """One run a seed."""
    found = []
    for seed in seeds:
        world = draw(kind, seed)
        found.append(Simulation(world, router(seed, world), late=late).run())
    return found


def smart(learner: With, target: Target = Target.LATENCY) -> Callable[[int, World], Router]:
    return lambda seed, world: Smart(seed, learner.make(), target)


def resource_aware(seed: int, world: World) -> Router:
    return Scored(resource_score)


def oracle(seed: int, world: World) -> Router:
    return Oracle(list({task.function.key: task.function for task in world.tasks}.values()))


def ratio(ours: list[Run], theirs: list[Run], figure: str = "p90_s") -> float:
    """Geometric mean over seeds of ours over theirs."""
    return statistics.geometric_mean(
        getattr(one, figure) / getattr(other, figure) for one, other in zip(ours, theirs, strict=True)
    )


@BOTH
@pytest.mark.parametrize("late", [False, True], ids=["routed", "bound late"])
def test_it_beats_resource_aware_where_advertised_strength_misleads(learner: With, late: bool) -> None:
    ours = runs(MISLEADING, smart(learner), late=late)
    theirs = runs(MISLEADING, resource_aware, late=late)
    assert ratio(ours, theirs) < 0.75
    assert ratio(ours, theirs, "mean_s") < 0.75
    assert ratio(ours, theirs, "makespan_s") < 0.9
    wins = sum(one.p90_s < other.p90_s for one, other in zip(ours, theirs, strict=True))
    assert wins >= 9, f"better in {wins} of {len(SEEDS)} worlds"


@BOTH
def test_it_comes_near_to_what_knowing_everything_gives(learner: With) -> None:
    ours, best = runs(MISLEADING, smart(learner)), runs(MISLEADING, oracle)
    assert 0.98 < ratio(ours, best) < (1.25 if learner.name == "river" else 1.4)


@BOTH
def test_it_follows_peers_that_become_slow(learner: With) -> None:
    ours = runs(DRIFTING, smart(learner))
    assert ratio(ours, runs(DRIFTING, resource_aware)) < 0.5
    assert ratio(ours, runs(DRIFTING, lambda seed, world: FastestFirst())) < 0.9


def test_the_regression_is_worth_its_library() -> None:
    """Sizes and loads explain what means cannot."""
    with_river, means = (
        runs(DRIFTING, smart(With(name, make))) for name, make in (("river", _river), ("means", lambda: None))
    )
    assert ratio(with_river, means) < 0.95
    assert ratio(with_river, means, "mean_s") < 0.95


@BOTH
def test_where_peers_are_what_they_say_it_costs_nothing(learner: With) -> None:
    """Nothing to learn beyond ranks: as good as the default, which learns means of a job."""
    ours = runs(HONEST, smart(learner))
    assert ratio(ours, runs(HONEST, lambda seed, world: FastestFirst())) < 1.05


def test_with_learning_off_it_misses_what_it_could_have_learned() -> None:
    def unlearned(seed: int, world: World) -> Router:
        router = Smart(seed, None)
        router.strategy.settings = AdaptiveSettings(learning_enabled=False)
        return router

    kind = replace(MISLEADING, tasks=600)
    assert ratio(runs(kind, smart(With("means", lambda: None))), runs(kind, unlearned), "mean_s") < 0.8


@BOTH
def test_the_cheapest_are_cheaper_and_the_quickest_quicker(learner: With) -> None:
    calm = replace(MISLEADING, tasks=800)
    quick, much, cheap = (runs(calm, smart(learner, target)) for target in Target)
    assert ratio(cheap, quick, "cost") < 0.7
    assert ratio(quick, cheap, "mean_s") < 0.5
    assert ratio(quick, much, "mean_s") < 1.0


def test_where_work_piles_up_more_is_done_in_the_same_time() -> None:
    """Time until nine tenths have ended, over that with the other target: a few per cent, at four times what all can do."""

    def most_ended_s(target: Target) -> list[float]:
        found = []
        for seed, run in zip(SEEDS, runs(CROWDED, smart(With("river", _river), target)), strict=True):
            arrivals = [task.arrives_at for task in draw(CROWDED, seed).tasks]
            ends = sorted(at + taken_s for at, taken_s in zip(arrivals, run.responses_s, strict=True))
            found.append(ends[int(0.9 * len(ends))])
        return found

    pairs = zip(most_ended_s(Target.THROUGHPUT), most_ended_s(Target.LATENCY), strict=True)
    assert statistics.geometric_mean(much / quick for much, quick in pairs) < 0.99


def test_a_seed_gives_the_same_run_again() -> None:
    kind = replace(DRIFTING, tasks=300)
    first, second = (runs(kind, smart(With("means", lambda: None)), seeds=range(3)) for _ in range(2))
    assert first == second
