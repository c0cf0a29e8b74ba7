"""The overlay of hundreds of peers: how soon a crash is known, what idling costs, how long coming together takes.

    python -m benchmarks overlay                                     all parts, at sizes that take minutes
    python -m benchmarks overlay --part detection --peers 100        one part, at one size
    python -m benchmarks overlay --part idle --peers 1000 --write    into benchmarks/overlay.json and docs/performance.md

Peers are the product's own, in the laboratory (`p2pcompute/sim`): its clock is virtual, so seconds are what a network would take, and the
same seed gives the same figures again. What is real is said to be: CPU seconds, memory. Each run has a process of its own.

Others' figures are not measured here but where their packages run in the same process; beside ours stands what they state of
themselves, with the place where they do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import _overlay_runs as runs
from benchmarks import dht
from benchmarks._overlay_runs import Row
from p2pcompute.membership.book import BookSettings
from p2pcompute.sim.failure import sources

HERE = Path(__file__).parent
#: Every row that was measured with `--write`, by part; the section of the documentation is made of it.
RESULTS = HERE / "overlay.json"
DOCUMENT = HERE.parent / "docs" / "performance.md"
HEADING = "## The overlay"

#: A run as a function, its arguments, and its part.
Job = tuple[str, Callable[..., Any], tuple[Any, ...]]

#: Sizes that are measured unless told otherwise; those beyond take long and are asked for.
SIZES = {
    "detection": (10, 30, 100),
    "false-positives": (30,),
    "idle": (10, 100),
    "churn": (10, 100),
    "cold-start": (10, 100),
    "merge": (20, 100),
    "restart": (12, 100),
    "move": (10, 100),
    "nat": (2,),
    "dht": (dht.PEERS,),
}
PARTS = tuple(SIZES)
#: Seeds of each run, from 0; fewer of what is long or does not vary.
SEEDS = {
    "detection": 3,
    "false-positives": 3,
    "idle": 1,
    "churn": 1,
    "cold-start": 3,
    "merge": 3,
    "restart": 3,
    "move": 1,
    "nat": 1,
    "dht": 1,
}
CRASHES = 8
MOVES = 4
MINUTES = 10.0
LOSS = 0.05
MEASURED_S = 120.0
CHURN_EVERY_S = 10.0


def _jobs(part: str, count: int, seeds: Iterable[int]) -> list[Job]:
    each: dict[str, Callable[[int], Job]] = {
        "detection": lambda seed: (part, runs.detection, (count, seed, CRASHES)),
        "false-positives": lambda seed: (part, runs.false_positives, (count, seed, MINUTES, LOSS)),
        "idle": lambda seed: (part, runs.idle_traffic, (count, seed, MEASURED_S)),
        "churn": lambda seed: (part, runs.churn_traffic, (count, seed, MEASURED_S, CHURN_EVERY_S, True)),
        "churn-quiet": lambda seed: (part, runs.churn_traffic, (count, seed, MEASURED_S, CHURN_EVERY_S, False)),
        "cold-start": lambda seed: (part, runs.cold_start, (count, seed)),
        "merge": lambda seed: (part, runs.merge, (count, seed)),
        "restart": lambda seed: (part, runs.restart, (count, seed)),
        "move": lambda seed: (part, runs.move, (count, seed, MOVES)),
        "nat": lambda seed: (part, runs.nat, (seed,)),
        "dht": lambda seed: (part, lookups, (seed,)),
    }
    kinds = ("churn", "churn-quiet") if part == "churn" else (part,)
    return [each[kind](seed) for kind in kinds for seed in seeds]


def lookups(seed: int) -> list[Row]:
    """`benchmarks/dht.py`: lookups with a third dead, ours and the stock package in one run, on loopback and real time."""
    for name in ("rpcudp", "kademlia"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    rows: list[Row] = []
    for name, measure in (("ours", dht.ours), ("stock kademlia", dht.stock)):
        for number, (succeeded, took) in enumerate(asyncio.run(measure()), 1):
            rows.append(
                {
                    "seed": seed,
                    "peers": dht.PEERS,
                    "killed": dht.KILLED,
                    "who": name,
                    "pass": number,
                    "succeeded": succeeded,
                    "gets": len(took),
                    "median_s": round(took[len(took) // 2], 3),
                    "p95_s": round(took[len(took) * 95 // 100], 3),
                    "worst_s": round(took[-1], 3),
                }
            )
    return rows


def measure(jobs: Sequence[Job], at_once: int) -> Iterable[tuple[str, list[Row]]]:
    """Run `jobs`, each in a process of its own, `at_once` at a time; rows by part as they are there, in order."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1) as pool:
        pending = [(part, pool.submit(function, *arguments)) for part, function, arguments in jobs]
        for part, future in pending:
            found = future.result()
            yield part, found if isinstance(found, list) else [found]


# --- tables -----------------------------------------------------------------------------------------------------------


def _mean(rows: Sequence[Row], name: str) -> float:
    return statistics.fmean(float(row[name]) for row in rows)


def _worst(rows: Sequence[Row], name: str) -> float:
    return max(float(row[name]) for row in rows)


def _by_peers(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    sizes = sorted({int(row["peers"]) for row in rows})
    return [(size, [row for row in rows if row["peers"] == size]) for size in sizes]


def _detection(rows: Sequence[Row]) -> list[list[str]]:
    table = [["peers", "crashes", "first suspected, intervals: mean / p95", "known to all, s: mean / p95 / worst"]]
    for size, of_size in _by_peers(rows):
        table.append(
            [
                f"{size:,}",
                f"{sum(int(row['crashes']) for row in of_size)}",
                f"{_mean(of_size, 'first_mean_intervals'):.2f} / {_mean(of_size, 'first_p95_intervals'):.2f}",
                f"{_mean(of_size, 'all_mean_s'):.1f} / {_mean(of_size, 'all_p95_s'):.1f} / {_worst(of_size, 'all_worst_s'):.1f}",
            ]
        )
    return table


def _false_positives(rows: Sequence[Row]) -> list[list[str]]:
    table = [
        ["peers, starved", "minutes", "called dead: healthy / starved", "suspected for a moment: healthy / starved"]
    ]
    table += [
        [
            f"{row['peers']}, {row['starved']}",
            f"{row['minutes']:g}",
            f"{row['dead_healthy']} / {row['dead_starved']}",
            f"{row['suspected_healthy']} / {row['suspected_starved']}",
        ]
        for row in rows
    ]
    return table


def _idle(rows: Sequence[Row]) -> list[list[str]]:
    table = [
        [
            "peers",
            "UDP, bytes/s",
            "datagrams/s",
            "links, bytes/s",
            "together",
            "most in 10 s",
            "formula, gossip alone: no news / all news",
            "formula, settled",
        ]
    ]
    for size, of_size in _by_peers(rows):
        row = of_size[0]
        table.append(
            [
                f"{size:,}",
                f"{_mean(of_size, 'udp_bytes'):,.0f}",
                f"{_mean(of_size, 'datagrams'):.1f}",
                f"{_mean(of_size, 'link_bytes'):,.0f}",
                f"{_mean(of_size, 'all_bytes'):,.0f}",
                f"{_worst(of_size, 'peak_bytes'):,.0f}",
                f"{row['formula_idle']:,} / {row['formula_busy']:,}",
                f"{row['formula_settled']:,}",
            ]
        )
    return table


def _churn(rows: Sequence[Row]) -> list[list[str]]:
    table = [
        ["peers", "UDP, bytes/s", "links, bytes/s: with / without measuring them", "all agree after the last change, s"]
    ]
    for size, of_size in _by_peers(rows):
        quiet = [row for row in of_size if not row["measures"]] or of_size
        full = [row for row in of_size if row["measures"]] or of_size
        table.append(
            [
                f"{size:,}",
                f"{_mean(quiet, 'udp_bytes'):,.0f}",
                f"{_mean(full, 'link_bytes'):,.0f} / {_mean(quiet, 'link_bytes'):,.0f}",
                f"{_worst(of_size, 'agreed_after_s'):.1f}",
            ]
        )
    return table


def _cold_start(rows: Sequence[Row]) -> list[list[str]]:
    table = [["peers", "everybody knows everybody after, s: mean / worst", "links each", "CPU s", "memory, MiB"]]
    for size, of_size in _by_peers(rows):
        table.append(
            [
                f"{size:,}",
                f"{_mean(of_size, 'converged_s'):.1f} / {_worst(of_size, 'converged_s'):.1f}",
                f"{_mean(of_size, 'links'):.0f}",
                f"{_mean(of_size, 'converged_cpu_s'):,.0f}",
                f"{_worst(of_size, 'converged_memory_mib'):,.0f}",
            ]
        )
    return table


def _together(part: str, name: str, what: str) -> Callable[[Sequence[Row]], list[list[str]]]:
    def table(rows: Sequence[Row]) -> list[list[str]]:
        lines = [["peers", "runs", f"{what}, s: mean / worst"]]
        for size, of_size in _by_peers(rows):
            lines.append([f"{size:,}", f"{len(of_size)}", f"{_mean(of_size, name):.1f} / {_worst(of_size, name):.1f}"])
        return lines

    return table


def _move(rows: Sequence[Row]) -> list[list[str]]:
    table = [["peers", "moves", "new address known to all, s: mean / worst"]]
    for size, of_size in _by_peers(rows):
        moves = sum(int(row["moves"]) for row in of_size)
        table.append([f"{size:,}", f"{moves}", f"{_mean(of_size, 'mean_s'):.1f} / {_worst(of_size, 'worst_s'):.1f}"])
    return table


def _nat(rows: Sequence[Row]) -> list[list[str]]:
    kinds = list(dict.fromkeys(str(row["one"]) for row in rows))
    cells = {(row["one"], row["other"]): f"{row['path']}, {row['took_s']:.1f} s" for row in rows}
    return [
        ["one behind, the other behind", *kinds],
        *([one, *(cells.get((one, other), "") for other in kinds)] for one in kinds),
    ]


def _dht(rows: Sequence[Row]) -> list[list[str]]:
    table = [["", "succeeded", "median s", "p95 s", "worst s"]]
    table += [
        [
            f"{row['who']}, pass {row['pass']}",
            f"{row['succeeded']} of {row['gets']}",
            *(f"{row[name]:.3f}" for name in ("median_s", "p95_s", "worst_s")),
        ]
        for row in rows
    ]
    return table


TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], list[list[str]]]]] = {
    "detection": (
        f"Machines that fall silent ({CRASHES} a run). Aims: 1.6 intervals in the mean; known to all of 100 within 15 s. SWIM's analysis gives "
        "e / (e - 1) = 1.58 intervals to the first detection, to which the wait for an answer is added here.",
        _detection,
    ),
    "false-positives": (
        f"Nobody crashes, {LOSS:.0%} of all datagrams are lost, a quarter of the machines runs for 0.05 to 0.5 s and then stands still for 0.2 to 3 s, "
        "again and again. Aim: nobody is called dead.",
        _false_positives,
    ),
    "idle": (
        f"What each peer sends while nothing happens, over {MEASURED_S:.0f} s, {runs.WARM_UP_S:.0f} s after the start; IP and UDP headers counted, of links what is inside "
        "TLS. Gossip, address book, links' heartbeats, all together. Aims: 3,000 up to 100 peers, 6,000 at 1,000. The formula is "
        "`membership/traffic.py`, with no record signed anew but once in 20 minutes, and with every record signed as often as its budget allows; settled: "
        "the whole peer, hours after the start.",
        _idle,
    ),
    "churn": (
        f"The same while every {CHURN_EVERY_S:.0f} s a peer falls silent and the one before comes back. Whoever comes back measures the throughput of its links with a "
        "megabyte for each that its record lists, and is measured: nearly all that links carry here.",
        _churn,
    ),
    "cold-start": (
        f"From the first start, everybody told of one of three addresses, the last started {runs.START_S:.0f} s after the first. Aim: 1,000 within 30 s. CPU and memory are the "
        "laboratory's, for all peers in one process.",
        _cold_start,
    ),
    "merge": (
        "Halves parted for two to five minutes. Aim: one network within 90 s.",
        _together("merge", "merged_s", "one network again"),
    ),
    "restart": (
        "All machines lose power, and come back within a minute, ten seconds to ten minutes later; counted from the last start.",
        _together("restart", "restarted_s", "one network again"),
    ),
    "move": ("A machine gets another address while its peer runs.", _move),
    "nat": ("Two peers behind routers, one public peer known to both (one run).", _nat),
    "dht": (
        f"Lookups in the address book, {dht.KILLED} of {dht.PEERS} peers dead (`benchmarks/dht.py`: loopback and real time, both in this run).",
        _dht,
    ),
}

TITLES = {
    "detection": "Crashes",
    "false-positives": "False alarms",
    "idle": "Bytes while idle",
    "churn": "Bytes while peers come and go",
    "cold-start": "Cold start",
    "merge": "Halves that meet again",
    "restart": "All restart at once",
    "move": "A move",
    "nat": "Behind routers",
    "dht": "Lookups with a third dead",
}

_BOOK = BookSettings()
#: What others state of themselves: ours, theirs, where.
OTHERS = f"""### Beside others

What they state of themselves; nothing of it was measured here but stock kademlia above.

| | here | others, as they state it |
|---|---|---|
| probe interval / timeout | {_BOOK.probe_interval_s:g} s / {_BOOK.probe_timeout_s:g} s | memberlist, LAN: 1 s / 0.5 s [1] |
| rumours | to {_BOOK.gossip_fanout} every {_BOOK.gossip_interval_s:g} s, {_BOOK.retransmit_mult} ceil(log10(n + 1)) times | memberlist, LAN: to 3 every 0.2 s, 4 log(n + 1) times [1] |
| anti-entropy | digest of 512 bytes every {_BOOK.anti_entropy_s:g} s, then what differs | memberlist, LAN: the full state of every member, both ways over TCP, every 30 s [1, 2]; 4.5 MB/s at the peak of 254 nodes on one machine after it was made smaller [3] |
| false positives where members are short of CPU | table above | Lifeguard: more than 50 times fewer than SWIM's in controlled tests [4] |
| first detection | table above | SWIM: e / (e - 1) protocol periods expected [5] |
| lookups with none dead | - | hivemind: 1,024 peers on one machine, 16,384 gets, all found, 6.6 ms each in the mean; emulates neither failures nor latency [6] |

1. <https://github.com/hashicorp/memberlist/blob/master/config.go>, `DefaultLANConfig`
2. <https://arxiv.org/abs/1707.00788>, on memberlist's anti-entropy
3. <https://github.com/hashicorp/memberlist/pull/1>
4. <https://arxiv.org/abs/1707.00788>, first version's abstract
5. Das, Gupta, Motivala: SWIM, DSN 2002
6. <https://github.com/learning-at-home/hivemind/blob/master/docs/user/benchmarks.md>
"""


def _plain(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def _markdown(table: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


# --- keeping ----------------------------------------------------------------------------------------------------------


def keep(found: dict[str, list[Row]], commit: str) -> None:
    """Put rows into the results, in place of those of the same part and size, and write the section of the documentation anew."""
    known: dict[str, list[Row]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part, rows in found.items():
        sizes = {row.get("peers") for row in rows}
        kept = [row for row in known.get(part, []) if row.get("peers") not in sizes]
        known[part] = kept + [{**row, "commit": commit} for row in rows]
    RESULTS.write_text(json.dumps({part: known[part] for part in PARTS if part in known}, indent=1) + "\n")
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(HEADING + "\n")
    following = rest.find("\n## ")
    after = rest[following + 1 :] if following >= 0 else ""
    if not rest:
        before, marker, tail = text.partition("## What falls short\n")
        after = marker + tail
    DOCUMENT.write_text(before + section(known) + "\n" + after)


def section(known: dict[str, list[Row]]) -> str:
    """The section of the documentation."""
    lines = [
        HEADING + ": `python -m benchmarks overlay`",
        "",
        "Peers of the product in the laboratory: their clock is virtual, so loaded machines change nothing but how long one waits for the figures, and",
        "a seed gives them again. Defaults throughout, a switched network of 0.3 to 0.5 ms one way. All rows, with seeds and commits: `benchmarks/overlay.json`.",
        "",
    ]
    lines[0] = HEADING
    lines.insert(2, "`python -m benchmarks overlay`, in parts: `--part NAME --peers COUNT`.")
    for part in PARTS:
        if part in known:
            text, table = TABLES[part]
            lines += [f"### {TITLES[part]}", "", text, "", _markdown(table(known[part])), ""]
    return "\n".join(lines) + "\n" + OTHERS


def main(arguments: Sequence[str] = ()) -> None:
    """Measure the parts that `arguments` name, print their tables, and keep them where that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks overlay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="which; may be repeated; by default all")
    parser.add_argument(
        "--peers",
        action="append",
        type=int,
        metavar="COUNT",
        help="how many; may be repeated; by default as suits the part",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, metavar="COUNT", help="how many seeds; by default as suits the part")
    parser.add_argument("--jobs", type=int, default=1, metavar="COUNT", help="runs at a time")
    parser.add_argument("--write", action="store_true", help=f"keep them in {RESULTS.name} and {DOCUMENT.name}")
    chosen = parser.parse_args(arguments)
    parts = [part for part in PARTS if part in (chosen.part or PARTS)]
    commit = sources()
    for part in parts:
        seeds = range(chosen.seed, chosen.seed + (chosen.seeds or SEEDS[part]))
        sizes = SIZES[part] if part in ("nat", "dht") else tuple(chosen.peers or SIZES[part])
        jobs = [job for count in sizes for job in _jobs(part, count, seeds)]
        print(
            f"\n{part}: peers {', '.join(map(str, sizes))}, seeds {seeds.start} to {seeds.stop - 1}, sources {commit}"
        )
        print(TABLES[part][0])
        rows: list[Row] = []
        for _, found in measure(jobs, chosen.jobs):
            rows += found
            for row in found:
                print("  " + ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        print(_plain(TABLES[part][1](rows)), flush=True)
        if chosen.write:
            keep({part: rows}, commit)


if __name__ == "__main__":
    main()
