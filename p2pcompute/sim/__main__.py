"""`python -m p2pcompute.sim`: run scenarios by name, one seed or many.

argparse, since only the command line knows a terminal library (`setup.cfg`); developers' output is plain lines.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from p2pcompute.sim.lab import RunReport
from p2pcompute.sim.many import run_many, run_one
from p2pcompute.sim.scenarios import SCENARIOS
from p2pcompute.sim.trace import Detail


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; 1 where a run failed, 2 for arguments that make no sense."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if not chosen.scenario:
        width = max(map(len, SCENARIOS))
        for name, scenario in sorted(SCENARIOS.items()):
            _say(f"{name:{width}}  {(scenario.__doc__ or '').strip().splitlines()[0]}")
        return 0
    names = sorted(SCENARIOS) if chosen.scenario == ["all"] else chosen.scenario
    for name in names:
        if name not in SCENARIOS:
            parser.error(f"there is no scenario {name!r}: there are {', '.join(sorted(SCENARIOS))}")
    if chosen.seeds < 1 or chosen.jobs < 1:
        parser.error("--seeds and --jobs are at least 1")
    detail = Detail[chosen.detail.upper()]
    work = [(name, seed, detail) for name in names for seed in range(chosen.seed, chosen.seed + chosen.seeds)]
    if len(work) == 1:
        return 0 if _tell(*run_one(work[0])) else 1
    failures = sum(not _tell(*outcome) for outcome in run_many(work, chosen.jobs))
    _say(f"{len(work) - failures} of {len(work)} runs passed")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m p2pcompute.sim",
        description="Run the overlay on a virtual clock. Without arguments: list the scenarios.",
    )
    parser.add_argument(
        "--scenario", action="append", default=[], metavar="NAME", help="which one; may be repeated; all: every one"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the seed, or the first of several (default 0)"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="COUNT", help="how many seeds from there on (default 1)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="COUNT",
        help="how many runs at a time (default: one for each core)",
    )
    parser.add_argument(
        "--detail",
        choices=[each.name.lower() for each in Detail],
        default="full",
        help="what of the network's traffic goes into the trace and its hash",
    )
    return parser


def _tell(report: RunReport | None, failure: str) -> bool:
    if report is None:
        _say(failure)
        return False
    _say(
        f"{report.scenario} seed {report.seed}: passed, {report.virtual_s:.3f} virtual seconds in {report.real_s:.2f}, "
        f"{report.events} events, {report.delivered} datagrams, {report.lost} lost, digest {report.digest[:16]}"
    )
    return True


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
