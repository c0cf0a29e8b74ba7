"""Many runs at a time, each in a process of its own: a run uses one core, and the fence around it is for its whole process."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from p2pcompute.sim.failure import SimFailure
from p2pcompute.sim.lab import LabSettings, RunReport, run
from p2pcompute.sim.scenarios import SCENARIOS
from p2pcompute.sim.trace import Detail

#: A scenario's name, a seed, and what of the traffic is traced.
Work = tuple[str, int, Detail]
#: The report of a run, or None and the text of its failure.
Outcome = tuple[RunReport | None, str]


def run_one(work: Work) -> Outcome:
    """Run one seed of a scenario here."""
    name, seed, detail = work
    try:
        return run(SCENARIOS[name], seed, LabSettings(detail=detail), name=name), ""
    except SimFailure as failure:
        return None, "".join(traceback.format_exception(failure))


def run_many(work: Sequence[Work], jobs: int) -> Iterator[Outcome]:
    """Run all of `work`, `jobs` at a time; outcomes come as they are there."""
    # Spawned, not forked: a child begins with nothing of its parent's state.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run_one, each) for each in work]):
            yield done.result()
