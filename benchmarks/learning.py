"""What learning from past tasks is worth, and what it costs, in a simulated network on a virtual clock.

    python -m benchmarks learning [--seeds 30] [--part worlds|targets|cost|learners]

Needs the extra `learning` for the rows of smart_adaptive itself. Times of `worlds` and `targets` are virtual: a seed
gives them again on any machine. Those of `cost` and `learners` are of this machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks._routing import (
    CROWDED,
    KINDS,
    MISLEADING,
    Run,
    Simulation,
    Smart,
    draw,
    strategies,
)
from p2pcompute.jobs.performance import PerformanceBook
from p2pcompute.jobs.strategies.features import PeerFacts, Request
from p2pcompute.jobs.strategies.smart_adaptive import AdaptiveSettings, Learner, SmartAdaptive, Target
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.performance import FunctionKey, PerformanceRecord

PARTS = ("worlds", "targets", "cost", "learners")


def learner_or_none() -> Callable[[], Learner] | None:
    """What makes learners, or None where the extra is not installed."""
    if importlib.util.find_spec("river") is None:
        print("the package river is not installed: rows of smart_adaptive with its regression are left out")
        return None
    from p2pcompute.node.learner import load_learner

    return load_learner


def _median(runs: Sequence[Run], figure: Callable[[Run], float]) -> float:
    return statistics.median(figure(run) for run in runs)


def _figures(runs: Sequence[Run]) -> str:
    """Medians of makespan, 90th percentile and mean, as cells of a table."""
    makespan_s = _median(runs, lambda run: run.makespan_s)
    p90_s = _median(runs, lambda run: run.p90_s)
    return f"{makespan_s:.1f} | {p90_s:.2f} | {_median(runs, lambda run: run.mean_s):.2f}"


def worlds(seeds: int) -> None:
    """Every kind of world, tasks routed as they arrive and tasks bound late.

    Medians, and how often resource_aware is beaten.
    """
    make = learner_or_none()
    for kind in KINDS:
        for late in (False, True):
            runs: dict[str, list[Run]] = {}
            for seed in range(seeds):
                world = draw(kind, seed)
                for name, router in strategies(world, seed, make).items():
                    runs.setdefault(name, []).append(Simulation(world, router, late=late).run())
            print(f"\n{kind.name}, {'bound late' if late else 'routed on arrival'}: {seeds} seeds, {kind.tasks} tasks")
            print("| strategy | makespan, s | p90, s | mean, s | p90 better than resource_aware | makespan better |")
            print("|---|---|---|---|---|---|")
            base = runs["resource_aware"]
            for name, rows in runs.items():
                pairs = list(zip(rows, base, strict=True))
                p90 = sum(row.p90_s < other.p90_s for row, other in pairs)
                makespan = sum(row.makespan_s < other.makespan_s for row, other in pairs)
                print(
                    f"| {name} | {_figures(rows)} | {p90} of {seeds} | {makespan} of {seeds} |",
                    flush=True,
                )


def targets(seeds: int) -> None:
    """What each optimization target gives and costs."""
    make = learner_or_none()
    for kind, late in ((MISLEADING, False), (CROWDED, False), (MISLEADING, True)):
        print(f"\n{kind.name}, {'bound late' if late else 'routed on arrival'}")
        print("| target | makespan, s | p90, s | mean, s | cost |")
        print("|---|---|---|---|---|")
        for target in Target:
            rows = [
                Simulation(draw(kind, seed), Smart(seed, make() if make else None, target), late=late).run()
                for seed in range(seeds)
            ]
            print(
                f"| {target.value} | {_figures(rows)} | {_median(rows, lambda run: run.cost):.3f} |",
                flush=True,
            )


def cost(peers: int = 50) -> None:
    """Microseconds of an ordering of `peers` candidates, nothing cached, and of learning one record."""
    make = learner_or_none()
    for name, learner in (("means only", None), *((("with river", make()),) if make else ())):
        dice = random.Random(1)
        book = PerformanceBook()
        strategy = SmartAdaptive(random.Random(2), AdaptiveSettings(), learner, book)
        function = FunctionKey("function", ProgramId(bytes(32)))
        candidates = [
            PeerFacts(
                PeerId(number.to_bytes(32, "big")),
                dice.uniform(5, 95),
                0.01,
                4,
                dice.randrange(0, 8),
                dice.random(),
                dice.random(),
                dice.random() if number % 2 else None,
            )
            for number in range(peers)
        ]
        learning, ordering = [], []
        for step in range(3_000):
            where = dice.choice(candidates)
            request = Request(function, int(dice.lognormvariate(9, 1)), hour=3.0)
            row = strategy.features(request, where, step)
            record = PerformanceRecord(
                function, where.peer, "x", Outcome.RETURNED, dice.lognormvariate(0, 0.3), features=row
            )
            start = time.perf_counter()
            book.observe(record, step)
            strategy.observe(record)
            learning.append(time.perf_counter() - start)
            start = time.perf_counter()
            strategy.order(request, candidates, step)
            ordering.append(time.perf_counter() - start)
        middle = (statistics.median(learning) * 1e6, statistics.fmean(learning) * 1e6)
        usual = (statistics.median(ordering) * 1e6, sorted(ordering)[int(0.99 * len(ordering))] * 1e6)
        print(
            f"{name}: ordering of {peers} peers {usual[0]:.0f} µs (p99 {usual[1]:.0f}), "
            f"learning a record {middle[0]:.0f} µs (mean {middle[1]:.0f})"
        )


def learners() -> None:
    """Error of several learners on one stream of tasks.

    4 functions, 50 peers, hidden factors and slopes; half of all peers change at task 2,000. Prequential: each task is
    predicted, then learned. Natural logarithm of the time; its scatter alone gives 0.12.
    """
    from benchmarks import _learners

    print("| learner | tasks 0-250 | 250-1,000 | 1,000-2,000 | 2,000-2,500 | 2,500-4,000 | predict, µs | learn, µs |")
    print("|---|---|---|---|---|---|---|---|")
    for name, make in _learners.available():
        row = _learners.prequential(make())
        errors = " | ".join(f"{error:.3f}" for error in row.errors)
        print(f"| {name} | {errors} | {row.predict_us:.1f} | {row.learn_us:.1f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The parts asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--part", choices=PARTS, action="append")
    options = parser.parse_args(arguments if arguments is not None else [])
    for part in options.part or PARTS:
        print(f"\n-- {part}")
        if part in ("worlds", "targets"):
            (worlds if part == "worlds" else targets)(options.seeds)
        else:
            (cost if part == "cost" else learners)()


if __name__ == "__main__":
    main()
