"""What `benchmarks/coordination_netns.py` runs: jobs of each kind at peers that have found each other, and the table of what they took."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from p2pcompute.node.remote import RemotePeer
from tests.netns.scenes import scene
from tests.netns.wide import FarPeers, WideNetwork
from tests.support import far_tasks
from tests.support.peers import until

POLICIES = ("auto", "off")
#: The peer that submits, and how long it may take to see the sites.
ORIGIN, FOUND_WITHIN_S = "peer11", 180
SLOTS = 2
SHARED_BYTES = 4_000_000
TASKS_PER_SLOT, TASK_S = 12, 0.25
#: A key node is killed when its site has done so many tasks for each of its slots.
DONE_PER_SLOT = 2
#: Between two jobs the wide links carry less than this, bytes a second: gossip alone.
QUIET_BYTES_PER_S, QUIET_WITHIN_S = 100_000, 120


@dataclass(frozen=True, slots=True)
class Run:
    """What one job took."""

    seconds: float
    wide_bytes: int


class Bench:
    """Peers that have found each other, and the connection to the one that submits."""

    def __init__(self, far: FarPeers, origin: RemotePeer) -> None:
        self._far = far
        self._origin = origin
        self._runs = 0
        self.tasks = TASKS_PER_SLOT * SLOTS * len(far.peers)

    async def run(self, case: str, policy: str) -> Run:
        """One job of this kind."""
        self._runs += 1
        inputs = range(self.tasks)
        if case == "compute":
            return await self._timed(far_tasks.squares(TASK_S), sum(x * x for x in inputs), policy)
        expected = far_tasks.sum_of_vectors(inputs)
        if case == "vectors":
            return await self._timed(far_tasks.vectors(TASK_S), expected, policy)
        if case == "killed":
            return await self._killed(expected, policy)
        # Other data each time: nobody has it yet.
        handle = await self._origin.put(np.random.default_rng(self._runs).bytes(SHARED_BYTES))
        expected = expected + np.uint64(self.tasks * SHARED_BYTES)
        run = await self._timed(far_tasks.vectors_with(handle, TASK_S), expected, policy)
        await self._origin.drop(handle)
        return run

    async def _timed(self, function: Any, expected: Any, policy: str) -> Run:
        wide = self._far.wide
        sent, began = wide.sent_bytes(), time.monotonic()
        done = await self._origin.map_reduce(
            function, None, range(self.tasks), aggregation="sum", coordination=policy, expected_task_s=TASK_S
        )
        seconds = time.monotonic() - began
        # What is on its way to peers that were not quick enough comes nevertheless, and is of this job.
        await self._quiet()
        run = Run(seconds, wide.sent_bytes() - sent)
        if not np.array_equal(done.value, expected) or done.progress.tasks_done != self.tasks:
            sys.exit(f"a wrong answer with coordination {policy!r}: {done}")
        return run

    async def _quiet(self) -> None:
        """Until the wide links carry next to nothing."""
        before = self._far.wide.sent_bytes()
        for _ in range(QUIET_WITHIN_S):
            await asyncio.sleep(1.0)
            now = self._far.wide.sent_bytes()
            if now - before < QUIET_BYTES_PER_S:
                return
            before = now
        sys.exit(f"the wide links still carry something {QUIET_WITHIN_S} s after the job")

    async def _killed(self, expected: Any, policy: str) -> Run:
        far = self._far
        found = await asyncio.to_thread(far.communities, ORIGIN)
        members, key_node = next(each for each in found if ORIGIN not in each[0])
        there = {far.namespace_of(name) for name in members}
        with tempfile.TemporaryDirectory(prefix="p2pcompute-done-") as folder:

            def done_there() -> int:
                return sum(int(path.name.partition("-")[0]) in there for path in Path(folder).iterdir())

            job = asyncio.create_task(self._timed(far_tasks.noted_vectors(folder, TASK_S), expected, policy))
            enough = DONE_PER_SLOT * SLOTS * len(members)
            await until(lambda: job.done() or done_there() >= enough, "the site does some of it", 60)
            if job.done():
                sys.exit(f"the job ended before {key_node} could be killed")
            far.kill(key_node)
            return await job


def table(found: dict[tuple[str, str], list[Run]]) -> str:
    """Medians, and all makespans; a line for each kind of job and policy."""
    head = (
        "| job | coordination | makespan, s | of all runs | wide MB | of those without |\n|---|---|---:|---|---:|---:|"
    )
    lines = [head]
    for (case, policy), runs in found.items():
        wide = statistics.median(run.wide_bytes for run in runs)
        beside = found.get((case, "off"))
        share = "-" if not beside else f"{wide / statistics.median(run.wide_bytes for run in beside):.2f}"
        seconds = sorted(run.seconds for run in runs)
        every = ", ".join(f"{each:.1f}" for each in seconds)
        lines.append(f"| {case} | {policy} | {statistics.median(seconds):.1f} | {every} | {wide / 1e6:.2f} | {share} |")
    return "\n".join(lines)


async def measure(far: FarPeers, cases: Sequence[str], repetitions: int) -> dict[tuple[str, str], list[Run]]:
    """All runs, policies in turn, the order changed each time."""
    found: dict[tuple[str, str], list[Run]] = {(case, policy): [] for case in cases for policy in POLICIES}
    submitter = far.peers[ORIGIN]
    async with await RemotePeer.connect(submitter.folders.socket_path(submitter.number)) as origin:
        bench = Bench(far, origin)
        # Workers start once.
        await bench.run("compute", "off")
        for case in cases:
            for repetition in range(repetitions if case != "killed" else 1):
                for policy in POLICIES[:: 1 if repetition % 2 else -1]:
                    if case == "killed" and policy == "off":
                        continue
                    run = await bench.run(case, policy)
                    found[case, policy].append(run)
                    print(f"{case}, {policy}: {run.seconds:.2f} s, {run.wide_bytes / 1e6:.2f} MB", flush=True)
    return {group: runs for group, runs in found.items() if runs}


def measure_sites(
    cases: Sequence[str], *, sites: int, each: int, delay_ms: float, mbit_per_s: float, repetitions: int
) -> None:
    """Build the sites, wait until they are found, run the jobs and print the table."""
    with scene() as stage:
        wide = WideNetwork(stage.rig, sites=sites, delay_ms=delay_ms, mbit_per_s=mbit_per_s)
        began = time.monotonic()
        far = FarPeers(stage, wide, each=each, slots=SLOTS)
        up_s = time.monotonic() - began
        far.wait_for_communities(FOUND_WITHIN_S, ORIGIN)
        print(
            f"{sites} sites of {each} peers with {SLOTS} slots, {2 * delay_ms:g} ms and {mbit_per_s:g} Mbit/s apart: "
            f"all up after {up_s:.0f} s, the sites found after {time.monotonic() - began:.0f} s",
            flush=True,
        )
        found = asyncio.run(measure(far, cases, repetitions))
        tasks = TASKS_PER_SLOT * SLOTS * len(far.peers)
        assert wide.is_carrying, "the relay has ended"
    print(f"\n{tasks} tasks of {TASK_S:g} s, at least {TASKS_PER_SLOT * TASK_S:g} s in all\n\n{table(found)}")
