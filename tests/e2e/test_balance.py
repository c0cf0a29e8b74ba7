"""Work moves between real peers: one becomes slow in mid-job, and what it holds is done by others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs_module
import pytest
import structlog
from structlog.testing import CapturingLogger

from p2pcompute.model.ids import short_peer_id
from p2pcompute.model.job import Outcome
from p2pcompute.node.peer import Peer
from p2pcompute.node.status import job_details
from tests.support.peers import network, until


@contextlib.contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Processes that stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def listen(peer: Peer) -> CapturingLogger:
    """What `peer` writes to its log about its own jobs."""
    heard = CapturingLogger()
    peer.origin._log = structlog.wrap_logger(
        heard, processors=[], wrapper_class=structlog.make_filtering_bound_logger(20)
    )
    return heard


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process for a while")
def test_a_peer_that_stands_still_loses_its_queue_to_others(home: Path) -> None:
    async def body() -> None:
        async with asyncio.timeout(60), network(home, 3) as peers, asyncio.TaskGroup() as group:
            log = listen(peers[0])
            count = 4_000
            values: list[int] = []

            async def job() -> None:
                async for value in peers[0].map(jobs_module.short_nap, range(count), ordered=False):
                    values.append(value)  # noqa: PERF401 - they are counted meanwhile

            slow = peers[1]

            def is_under_way() -> bool:
                """How long a task takes is known, of the one that will stand still too, which has tasks."""
                jobs = peers[0].origin.jobs
                done = peers[0].origin.progress(next(reversed(jobs))).done_by_peer if jobs else ()
                return len(values) >= 600 and dict(done).get(slow.peer_id, 0) >= 50

            running = group.create_task(job())
            await until(is_under_way, "it has begun everywhere")
            known = next(reversed(peers[0].origin.jobs.values()))

            def told(event: str) -> list[dict[str, Any]]:
                """What was logged of this kind about the slow one since it stands still; on a busy machine any of them may be late before."""
                lines = [call.kwargs for call in log.calls[before:]]
                whom = short_peer_id(slow.peer_id)
                return [line for line in lines if line.get("event") == event and line["peer"] == whom]

            def has_moved() -> bool:
                return any("silent" in line["cause"] for line in told("tasks recalled")) and bool(told("tasks moved"))

            before = len(log.calls)
            pids = [worker.pid for worker in slow.lender.pool.workers.values() if worker.pid]
            assert pids
            with frozen(pids):
                await until(has_moved, "what the frozen peer holds goes elsewhere", 20)
                # All but what the frozen worker has in hand, which gets a copy: the job ends while it stands still.
                await running
            assert sorted(values) == [x * x for x in range(count)]
            progress = peers[0].origin.progress(known.spec.job)
            assert progress.retries == 0, "to be moved is no failure"
            moved = [(task, each) for task, each in known.attempts if each.peer == slow.peer_id]
            assert {each.outcome for _, each in moved} == {Outcome.RETURNED_UNRUN}
            shown = job_details(known, progress, {slow.peer_id: "slow"})["attempts"]
            of_slow = [row for row in shown if row["peer"] == "slow"]
            assert [row["task"] for row in of_slow] == [int(task) for task, _ in moved]
            assert all("moved to another peer" in row["detail"] for row in of_slow)

    asyncio.run(body())
