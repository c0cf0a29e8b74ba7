"""Jobs over several sites: makespans, bytes over wide links and the best that could be, by case, number of peers and policy.

    python -m benchmarks coordination                                          everything, which takes hours
    python -m benchmarks coordination --peers 32 --seeds 10 --jobs 2           one size, two runs at a time
    python -m benchmarks coordination --case shared --policy hlig --write      kept in benchmarks/coordination.json

A laboratory in virtual time: origins, lenders and the machines inside them are the product's; links (`_coordination_links.py`) and
workers (`_coordination_peers.py`) are modelled, and what is drawn (`_coordination_cases.py`) depends on the seed alone, so every policy
meets the same sites, tasks and misfortunes, and a seed gives the same figures on any machine. Bytes are counted where they leave a
site. Every answer is checked; a wrong one ends the benchmark. The bound is the best possible time: no schedule is done sooner.

An origin is linked to every peer here, which the product allows up to `limits.LINKS_MAX` only: beyond, flat dispatch is better here than it is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._coordination_cases import CASES, POLICIES, percentile, sites_of
from benchmarks._coordination_runs import Row, simulate
from p2pcompute.sim.failure import sources

#: What was measured with `--write`, a line a group.
RESULTS = Path(__file__).parent / "coordination.json"
SIZES = (8, 32, 128, 256)
SEEDS = 30
#: What others are compared with: flat dispatch as the product does it unless told otherwise.
FLAT = "hlig"
#: Of a run, what is kept by seed.
_KEPT = ("seed", "makespan_s", "bound_s", "wide_mb", "begun", "cpu_s")

#: A group of runs: case, peers, policy.
Group = tuple[str, int, str]


def measure(groups: Sequence[Group], seeds: Iterable[int], at_once: int) -> Iterator[tuple[Group, list[Row]]]:
    """Run all seeds of `groups`, `at_once` runs at a time; each group when it is complete, in order."""
    # Matrices are small here: a second thread only waits, and where others need the cores it waits a hundred times as long as it works.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, mp_context=context) as pool:
        pending = [
            (group, [pool.submit(simulate, group[0], group[1], seed, group[2]) for seed in seeds]) for group in groups
        ]
        try:
            for group, runs in pending:
                yield group, [run.result() for run in runs]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# --- tables ---------------------------------------------------------------------------------------------------------------


HEAD = ("case", "policy", "makespan p50, s", "p90, s", "to best p90", "to bound p50", "p90", "wide MB", "to flat", "begun / tasks", "CPU s")  # fmt: skip


def table(case: str, peers: int, found: dict[Group, list[Row]]) -> list[list[str]]:
    """One line a policy. Times: 90th percentiles over seeds, to the bound of their own seed and to the best policy's; bytes: medians."""
    rows = {policy: found[case, peers, policy] for policy in POLICIES if (case, peers, policy) in found}
    best_s = min(percentile(_column(runs, "makespan_s"), 0.9) for runs in rows.values())
    flat = _column(rows[FLAT], "wide_mb") if FLAT in rows else None
    lines = []
    for policy, runs in rows.items():
        makespans, wide = _column(runs, "makespan_s"), _column(runs, "wide_mb")
        ratios = [run["makespan_s"] / run["bound_s"] for run in runs]
        shares = [] if flat is None else [mb / of for mb, of in zip(wide, flat, strict=True) if of]
        lines.append(
            [
                case,
                policy,
                f"{statistics.median(makespans):.2f}",
                f"{percentile(makespans, 0.9):.2f}",
                f"{percentile(makespans, 0.9) / best_s:.3f}",
                f"{statistics.median(ratios):.2f}",
                f"{percentile(ratios, 0.9):.2f}",
                f"{statistics.median(wide):.2f}",
                f"{statistics.median(shares):.3f}" if shares else "-",
                f"{sum(_column(runs, 'begun')) / sum(_column(runs, 'tasks')):.3f}",
                f"{statistics.mean(_column(runs, 'cpu_s')):.2f}",
            ]
        )
    return lines


def _column(runs: Sequence[Row], name: str) -> list[float]:
    return [run[name] for run in runs]


def _body(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join([_body([HEAD]), "|---|---|" + "---:|" * (len(HEAD) - 2), _body(lines)])


# --- keeping --------------------------------------------------------------------------------------------------------------


def keep(found: dict[Group, list[Row]], commit: str) -> None:
    """Put groups into the results, in place of those of the same case, size and policy."""
    known: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    groups = {(each["case"], each["peers"], each["policy"]): each for each in known}
    for (case, peers, policy), runs in found.items():
        columns = {name: _column(runs, name) for name in _KEPT}
        head = {"case": case, "peers": peers, "policy": policy, "commit": commit, "tasks": runs[0]["tasks"]}
        groups[case, peers, policy] = head | columns
    order = sorted(groups, key=lambda key: (list(CASES).index(key[0]), key[1], list(POLICIES).index(key[2])))
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(groups[key]) for key in order) + "\n]\n")


def main(arguments: Sequence[str] = ()) -> None:
    """Measure what `arguments` ask for, print a table for each number of peers, and keep the figures where that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks coordination",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", action="append", choices=CASES, help="which; may be repeated; by default all")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="which; may be repeated; by default all")
    parser.add_argument(
        "--peers", default=",".join(map(str, SIZES)), metavar="COUNT,…", help="how many; by default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="COUNT", help="how many; by default %(default)s")
    parser.add_argument("--jobs", type=int, default=1, metavar="COUNT", help="runs at a time")
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {RESULTS.name}")
    chosen = parser.parse_args(arguments)
    cases = [case for case in CASES if case in (chosen.case or CASES)]
    policies = [policy for policy in POLICIES if policy in (chosen.policy or POLICIES)]
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    commit = sources()
    for peers in map(int, chosen.peers.split(",")):
        print(f"\n{peers} peers, {sites_of(peers)} sites, seeds {seeds.start} to {seeds.stop - 1}, sources {commit}")
        groups = [(case, peers, policy) for case in cases for policy in policies]
        found: dict[Group, list[Row]] = {}
        for group, rows in measure(groups, seeds, chosen.jobs):
            found[group] = rows
            if group[2] == policies[-1]:
                # A case is complete: said and kept now, the next may take long.
                lines = table(group[0], peers, found)
                print(_markdown(lines) if group[0] == cases[0] else _body(lines), flush=True)
                if chosen.write:
                    keep(found, commit)
                found = {}


if __name__ == "__main__":
    main()
