"""How many no-op tasks a second the dispatch machine alone settles, on one core: no sockets, no payloads, no workers.

    python benchmarks/dispatch.py [--tasks 1000000] [--peers 4] [--slots 4]

Peers are simulated: each hands every batch back at once. Reports are made outside the measured time, as the wire does that.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence

from p2pcompute.jobs import dispatch as d
from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Lease, Outcome, TaskReport

JOB = JobId(b"benchmark-jb")


def run(tasks: int, peers: int, slots: int, batch: int) -> tuple[float, int]:
    """Seconds in the machine, and events that it took."""
    machine = d.Dispatch()
    spent_s = 0.0
    events = 0
    sent: list[tuple[PeerId, tuple[Lease, ...]]] = []
    wanted = 0
    ended = False

    def feed(event: d.Event) -> None:
        nonlocal spent_s, events, wanted, ended
        start = time.perf_counter()
        effects = machine.handle(event, start)
        machine.deadline()
        spent_s += time.perf_counter() - start
        events += 1
        for effect in effects:
            if isinstance(effect, d.Send):
                sent.append((effect.peer, effect.leases))
            elif isinstance(effect, d.WantInputs):
                wanted += effect.count
            elif isinstance(effect, d.JobEnded):
                ended = True

    for number in range(peers):
        peer = PeerId(bytes([number]) * 32)
        feed(d.PeerUsable(peer, 0.0005, number == 0, 50.0))
    feed(d.JobOpened(JobSpec(JOB, "bench", ProgramId(b"p" * 32), "m", Aggregation.NONE, None, JobOptions())))
    for number in range(peers):
        feed(d.Granted(PeerId(bytes([number]) * 32), slots))
        feed(d.PeerAccepted(PeerId(bytes([number]) * 32), JOB))
    added = 0
    while not ended:
        if added < tasks and wanted:
            count = min(wanted, tasks - added)
            wanted -= count
            feed(d.TasksAdded(JOB, tuple(TaskIndex(number) for number in range(added, added + count))))
            added += count
            if added == tasks:
                feed(d.InputsEnded(JOB))
        batches, sent = sent, []
        for peer, leases in batches:
            for start in range(0, len(leases), batch):
                reports = tuple(
                    TaskReport(lease.task, lease.attempt, Outcome.RETURNED, 1e-5)
                    for lease in leases[start : start + batch]
                )
                feed(d.Reported(peer, JOB, reports))
    progress = machine.progress(JOB, 0.0)
    assert progress.tasks_done == tasks
    return spent_s, events


def main(arguments: Sequence[str] = ()) -> None:
    """Measure with whole batches and with single reports, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=300_000)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--slots", type=int, default=4)
    options = parser.parse_args(arguments)
    for batch in (limits.BATCH_TASKS_MAX, 32, 1):
        spent_s, events = run(options.tasks, options.peers, options.slots, batch)
        print(
            f"{options.tasks} tasks, {options.peers} peers, reports of at most {batch}: "
            f"{options.tasks / spent_s:,.0f} tasks/s, {spent_s / events * 1e6:.1f} µs an event, {events} events"
        )
    print(f"largest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
