"""What moving queued leases is worth: loads over time and the length of jobs, with and without it, on a virtual clock.

    python -m benchmarks balance [--seeds 20] [--part load|cases]

Both machines of a job are real, links and workers are simulated: a message takes half a round trip, a worker as long as its
task. Times are virtual: a seed gives them again on any machine. The load of a peer is the seconds of work that it holds,
at its true speed.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from p2pcompute.jobs import dispatch as d
from p2pcompute.jobs.balancing import USUAL, BalancingSettings
from p2pcompute.jobs.plan import Facts
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Lease, Outcome, TaskReport

PARTS = ("load", "cases")
JOB = JobId(b"benchmark-jb")
PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 5))


@dataclass(frozen=True)
class Case:
    """A job, and what happens to its first peer at `at_s`: it becomes `factor` times slower."""

    name: str
    tasks: int
    task_s: float
    at_s: float
    factor: float = 1.0
    slots: int = 2
    rtt_s: float = 0.001
    #: A task takes `task_s` times e to a normal deviate of this width.
    scatter: float = 0.2
    argument_bytes: int = 0
    bandwidth_mbps: float = 100.0
    #: Seconds after which it is as it was.
    lasts_s: float = float("inf")
    knows_recall: bool = True


CASES = (
    Case("becomes 100 times slower half-way", 8_000, 0.002, 1.0, 100.0),
    Case("becomes 1,000 times slower half-way", 8_000, 0.002, 1.0, 1_000.0),
    Case("becomes 100 times slower near the end", 8_000, 0.002, 1.9, 100.0),
    Case("stands still for 1.5 s", 8_000, 0.002, 1.0, 1e6, lasts_s=1.5),
    Case("round trips of 200 ms, 100 times slower", 8_000, 0.002, 1.5, 100.0, rtt_s=0.2),
    Case("nobody becomes slow", 8_000, 0.002, 1.0),
    Case("tasks of 0.2 s: no queue at peers", 160, 0.2, 2.0, 20.0),
    Case("arguments of 60 KB over 10 Mbit/s", 400, 0.002, 2.0, 20.0, argument_bytes=60_000, bandwidth_mbps=10.0),
    Case("a peer of protocol 1 becomes slow", 8_000, 0.002, 1.0, 100.0, knows_recall=False),
)


@dataclass
class Lender:
    """A peer that computes: rows wait in `queue`, run in `running`, the time at which each ends included."""

    slots: int
    queue: deque[Lease] = field(default_factory=deque)
    running: dict[Lease, float] = field(default_factory=dict)


@dataclass
class Run:
    """What came of a run. `waits_s`: of each counted task, from its first lease to its result."""

    makespan_s: float
    moved: int
    executed: int
    waits_s: list[float]
    #: (time, seconds of work that each peer holds), every `STEP_S`.
    loads: list[tuple[float, tuple[float, ...]]]

    @property
    def longest_wait_s(self) -> float:
        """Of the task that waited longest at peers."""
        return max(self.waits_s)


#: Between two samples of the loads, seconds.
STEP_S = 0.1


class World:
    """One origin, four lenders, one job."""

    def __init__(self, case: Case, seed: int, balancing: BalancingSettings | None, speculate: bool) -> None:
        self.case, self.now, self.speculate = case, 0.0, speculate
        self.machine = d.Dispatch(balancing=balancing)
        self.lenders = {peer: Lender(case.slots) for peer in PEERS}
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        dice = random.Random(seed)
        self.sizes = [case.task_s * dice.lognormvariate(0.0, case.scatter) for _ in range(case.tasks)]
        self.leased: dict[int, float] = {}
        self.run_ = Run(0.0, 0, 0, [], [])
        self.ended = False
        #: When the way to each peer is free again: arguments go one after the other.
        self.way_free: dict[PeerId, float] = dict.fromkeys(PEERS, 0.0)

    def run(self) -> Run:
        """Until the job has ended."""
        case = self.case
        facts = Facts(gives_back=True, bandwidth_mbps=case.bandwidth_mbps)
        for peer in PEERS:
            known = facts if case.knows_recall or peer != PEERS[0] else Facts(bandwidth_mbps=case.bandwidth_mbps)
            self.feed(d.PeerUsable(peer, case.rtt_s, False, 50.0, known), d.Granted(peer, case.slots))
        spec = JobSpec(
            JOB,
            "bench",
            ProgramId(b"p" * 32),
            "m",
            Aggregation.NONE,
            None,
            JobOptions(speculate=self.speculate),
            case.tasks,
        )
        tasks = tuple(map(TaskIndex, range(case.tasks)))
        self.feed(d.JobOpened(spec), d.TasksAdded(JOB, tasks, 0, case.argument_bytes * case.tasks), d.InputsEnded(JOB))
        for peer in PEERS:
            self.after(case.rtt_s, lambda peer=peer: self.feed(d.PeerAccepted(peer, JOB)))  # type: ignore[misc]
        self.after(case.at_s, self.changes)
        self.after(0.0, self.sample)
        while not self.ended:
            deadline = self.machine.deadline()
            if deadline is not None and (not self.queue or deadline < self.queue[0][0]):
                self.now = max(self.now, deadline)
                self.feed(d.Tick())
                continue
            self.now, _, action = heapq.heappop(self.queue)
            action()
        self.run_.makespan_s = self.now
        return self.run_

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do `action` later."""
        heapq.heappush(self.queue, (self.now + delay_s, next(self.serial), action))

    def changes(self) -> None:
        """What happens to the first peer."""
        if self.case.factor > 1:
            lender = self.lenders[PEERS[0]]
            # What runs is hit too.
            for lease, at in list(lender.running.items()):
                self.begins(PEERS[0], lease, (at - self.now) * self.factor(PEERS[0], self.now))
            if self.case.lasts_s < 1e6:
                self.after(self.case.lasts_s, self.recovers)

    def recovers(self) -> None:
        """What runs at the first peer goes on at its old speed."""
        for lease, at in list(self.lenders[PEERS[0]].running.items()):
            self.begins(PEERS[0], lease, (at - self.now) / self.case.factor)

    def factor(self, peer: PeerId, at_s: float) -> float:
        """How many times longer tasks take there."""
        is_slow = peer == PEERS[0] and self.case.at_s <= at_s < self.case.at_s + self.case.lasts_s
        return self.case.factor if is_slow else 1.0

    def sample(self) -> None:
        """Note the loads."""
        loads = []
        for peer, lender in self.lenders.items():
            waiting = sum(self.sizes[lease.task] for lease in lender.queue) * self.factor(peer, self.now)
            left = sum(at - self.now for at in lender.running.values())
            loads.append((waiting + left) / self.case.slots)
        self.run_.loads.append((self.now, tuple(loads)))
        self.after(STEP_S, self.sample)

    def feed(self, *events: d.Event) -> None:
        """Tell the origin, and do what it says."""
        for event in events:
            for effect in self.machine.handle(event, self.now):
                self.perform(effect)

    def perform(self, effect: d.Effect) -> None:
        """Carry it to the peer that it is about."""
        half_s = self.case.rtt_s / 2
        match effect:
            case d.Send(peer, _, leases):
                for lease in leases:
                    self.leased.setdefault(lease.task, self.now)
                bytes_s = len(leases) * self.case.argument_bytes * 8e-6 / self.case.bandwidth_mbps
                self.way_free[peer] = max(self.way_free[peer], self.now) + bytes_s
                self.after(half_s + self.way_free[peer] - self.now, lambda: self.arrives(peer, leases))
            case d.RecallAt(peer, _, leases):
                self.after(half_s, lambda: self.gives_back(peer, leases))
            case d.CancelAt(peer, _, leases):
                self.after(half_s, lambda: self.stops(peer, leases))
            case d.Moved(_, _, tasks):
                self.run_.moved += len(tasks)
            case d.Completed(_, reports):
                self.run_.waits_s += [self.now - self.leased[report.task] for report, _ in reports]
            case d.JobEnded():
                self.ended = True

    # --- at a peer ----------------------------------------------------------------------------------------------------

    def arrives(self, peer: PeerId, leases: Sequence[Lease]) -> None:
        """Tasks wait at the peer."""
        self.lenders[peer].queue.extend(leases)
        self.works(peer)

    def gives_back(self, peer: PeerId, leases: Iterable[Lease]) -> None:
        """What has not begun goes back."""
        lender, asked = self.lenders[peer], set(leases)
        back = [lease for lease in lender.queue if lease in asked]
        lender.queue = deque(lease for lease in lender.queue if lease not in asked)
        reports = tuple(TaskReport(lease.task, lease.attempt, Outcome.RETURNED_UNRUN) for lease in back)
        if reports:
            self.after(self.case.rtt_s / 2, lambda: self.feed(d.Reported(peer, JOB, reports)))

    def stops(self, peer: PeerId, leases: Iterable[Lease]) -> None:
        """What nobody wants any more makes room."""
        lender, unwanted = self.lenders[peer], set(leases)
        lender.queue = deque(lease for lease in lender.queue if lease not in unwanted)
        for lease in unwanted:
            lender.running.pop(lease, None)
        self.works(peer)

    def works(self, peer: PeerId) -> None:
        """Free slots take what waits longest."""
        lender = self.lenders[peer]
        while lender.queue and len(lender.running) < lender.slots:
            lease = lender.queue.popleft()
            self.run_.executed += 1
            self.begins(peer, lease, self.sizes[lease.task] * self.factor(peer, self.now))

    def begins(self, peer: PeerId, lease: Lease, wall_s: float) -> None:
        """The lease ends after so many seconds, unless that changes."""
        lender, at = self.lenders[peer], self.now + wall_s
        lender.running[lease] = at

        def ends() -> None:
            if lender.running.get(lease) != at:
                return
            del lender.running[lease]
            report = TaskReport(lease.task, lease.attempt, Outcome.RETURNED, wall_s)
            self.after(self.case.rtt_s / 2, lambda: self.feed(d.Reported(peer, JOB, (report,))))
            self.works(peer)

        self.after(wall_s, ends)


def load() -> None:
    """Loads over time of the first case that has nothing but the queue to tell, before and after."""
    case = CASES[1]
    print(
        f"\nSeconds of work at each of {len(PEERS)} peers; the first {case.name.replace('half-way', f'at {case.at_s:g} s')}"
    )
    before, after = (World(case, 1, each, speculate=True).run() for each in (None, USUAL))
    print("| time, s | " + " | ".join(f"peer {n}, without" for n in range(1, 3)) + " | peer 1, with | peer 2, with |")
    print("|---|---|---|---|---|")
    rows = {round(at / STEP_S): loads for at, loads in after.loads}
    for at, loads in before.loads:
        step = round(at / STEP_S)
        others = rows.get(step)
        if step < round(case.at_s / STEP_S) - 2 or (step > 14 and step not in (16, 18, 20, 25, 50, 100, 200, 300)):
            continue
        cells = [*loads[:2], *(others[:2] if others is not None else ())]
        text = [f"{cell:.2f}" for cell in cells] + ["-"] * (4 - len(cells))
        print(f"| {at:.1f} | " + " | ".join(text) + " |")
    print(f"job ends after {before.makespan_s:.2f} s without, {after.makespan_s:.2f} s with; {after.moved} tasks moved")


def cases(seeds: int) -> None:
    """Every case, medians over seeds."""
    print(f"\nMedians over {seeds} seeds: length of the job / longest time that a task was at peers, seconds")
    print("| first peer of four | alone | copies | moves | both | moved | run twice: copies | both |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        runs = {
            name: [World(case, seed, settings, speculate).run() for seed in range(seeds)]
            for name, settings, speculate in (
                ("alone", None, False),
                ("copies", None, True),
                ("moves", USUAL, False),
                ("both", USUAL, True),
            )
        }
        cells = [
            f"{_median(rows, lambda run: run.makespan_s):.2f} / {_median(rows, lambda run: run.longest_wait_s):.2f}"
            for rows in runs.values()
        ]
        twice = [_median(runs[name], lambda run: run.executed) - case.tasks for name in ("copies", "both")]
        moved = _median(runs["both"], lambda run: run.moved)
        print(f"| {case.name} | {' | '.join(cells)} | {moved:.0f} | {twice[0]:.0f} | {twice[1]:.0f} |", flush=True)


def _median(runs: Sequence[Run], figure: Callable[[Run], float]) -> float:
    return statistics.median(figure(run) for run in runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """The parts asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--part", choices=PARTS, action="append")
    options = parser.parse_args(arguments if arguments is not None else [])
    for part in options.part or PARTS:
        if part == "load":
            load()
        else:
            cases(options.seeds)


if __name__ == "__main__":
    main()
