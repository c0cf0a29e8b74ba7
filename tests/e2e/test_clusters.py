"""A peer that lends a cluster: real Dask processes, and any executor by its factory."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs_module
import pytest

from p2pcompute.model.errors import TaskTimeoutError
from p2pcompute.model.job import JobProgress
from p2pcompute.model.peer import Address
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer
from tests.support.dask_cluster import DaskProcesses, dask_cluster
from tests.support.executors import descendants
from tests.support.peers import linked, machine, own_ports, until, until_now
from tests.unit.execution.pool_help import is_alive


def has_distributed() -> None:
    pytest.importorskip("distributed", reason="distributed is not installed: pip install 'p2pcompute[dask]'")


def slots_of(peer: Peer) -> int:
    return peer.own.record.slots


def test_a_dask_cluster_is_one_peer_of_the_network(home: Path) -> None:
    """Starting Dask costs seconds, so one cluster goes through all that can happen to it."""
    has_distributed()

    async def main() -> None:
        folders = Folders.beneath(home)
        with dask_cluster(2) as cluster:
            one = PeerConfig.test(name="one", slots=1)
            async with asyncio.timeout(100), Peer(one, folders=folders) as first:
                two = PeerConfig.test(
                    name="two", cluster=cluster.name, labels=("cluster",), bootstrap=(Address("127.0.0.1", first.port),)
                )
                async with Peer(two, folders=folders) as second:
                    await linked([first, second])
                    await until(lambda: slots_of(second) == 2, "the peer has the slots of its cluster")
                    await until(
                        lambda: any(entry.record.slots == 2 for entry in first.view.alive), "the other has heard of it"
                    )
                    record = second.own.record
                    assert record.python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
                    assert record.capability is not None
                    assert (record.capability.cores, record.capability.memory_gb) == (2, 0.5)
                    await _work(first, second, cluster)
                    await _lose_a_worker(first, second, cluster)
                    await _lose_the_scheduler(first, second, cluster)

    asyncio.run(main())


async def _while_both_work(first: Peer, then: Callable[[], object]) -> None:
    """A job at both peers: once the cluster has done some of it, `then`, and a good deal more must come, whatever that did."""
    seen: list[JobProgress] = []
    values: list[int] = []
    stop_at: int | None = None
    results = first.map(jobs_module.naps, range(10_000), on_progress=seen.append)
    async with contextlib.aclosing(results):  # type: ignore[type-var]
        async for value in results:
            values.append(value)
            done = {first.name_of(peer): count for peer, count in seen[-1].done_by_peer} if seen else {}
            if stop_at is None and done.get("two", 0) > 2:
                then()
                stop_at = len(values) + 40
            if len(values) == stop_at:
                break
    assert values == [x * x for x in range(len(values))]


async def _work(first: Peer, second: Peer, cluster: DaskProcesses) -> None:
    await _while_both_work(first, lambda: None)
    with pytest.raises(TaskTimeoutError):
        await _at_cluster(first, jobs_module.slow, 1000.0, timeout_s=0.5)
    # Cancelling kills what runs there: the slot is free at once, though the task would have slept on.
    task = asyncio.get_running_loop().create_task(_at_cluster(first, jobs_module.slow, 1000.0))
    pids = [worker.pid for worker in cluster.workers]
    await until(lambda: any(info.running for info in second.lender.pool.workers.values()), "it is at the cluster")
    await until(lambda: descendants(pids), "somebody runs it there")
    runners = descendants(pids)
    task.cancel()
    await until(lambda: not all(is_alive(runner) for runner in runners), "it is stopped there")
    await until(lambda: slots_of(second) == second.lender.slots == 2, "no slot is held by it")
    handle = await first.put(bytes(1000))
    assert await _at_cluster(first, jobs_module.length, handle) == 1000


async def _at_cluster(peer: Peer, function: Any, *args: Any, **options: Any) -> Any:
    from p2pcompute.node.door import options_named

    return await peer.call(function, args, options=options_named({"requirements": ["label == cluster"], **options}))


async def _lose_a_worker(first: Peer, second: Peer, cluster: DaskProcesses) -> None:
    """In the middle of a job: Dask gives its tasks to the other, and the peer has a slot less until one comes."""
    await _while_both_work(first, cluster.workers[0].kill)
    await until(lambda: slots_of(second) == 1, "the peer has a slot less")
    cluster.start_worker()
    await until(lambda: slots_of(second) == 2, "the peer has two slots again")


async def _lose_the_scheduler(first: Peer, second: Peer, cluster: DaskProcesses) -> None:
    """The other peer does what was left, and when the cluster is back so is its work."""
    assert cluster.scheduler is not None
    await _while_both_work(first, cluster.scheduler.kill)
    await until(lambda: slots_of(second) == 0, "the peer lends nothing")
    cluster.scheduler.wait()
    for worker in cluster.workers:
        worker.kill()
    cluster.start_scheduler()
    cluster.start_worker()
    await until(lambda: slots_of(second) == 1, "the cluster is back")
    assert await _at_cluster_again(first) == 49


async def _at_cluster_again(peer: Peer) -> Any:
    from p2pcompute.node.door import options_named

    options = options_named({"requirements": ["label == cluster"], "on_unmet": "wait"})
    return await peer.call(jobs_module.naps, (7,), options=options)


def test_an_executor_of_the_owners_own_is_lent(home: Path) -> None:
    with machine(home, environ={**own_ports(), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}) as here:
        peer = here.up("", "--cluster", "tests.support.executors:two_processes", "--slots", "1")
        program = home / "program.py"
        program.write_text("def double(x):\n    return 2 * x\n")
        assert here.run("map", str(program), "double", "1", "2", "3").stdout.split() == ["2", "4", "6"]
        until_now(lambda: peer.ask("status")["slots"] == 1, "no more is lent than its owner says")
        refused = here.run("up", "--cluster", "dusk://somewhere", check=False)
        assert refused.returncode != 0
        assert "is no cluster: write dask://" in refused.stderr
