"""A pool of a cluster's slots, over processes of an ordinary executor: values, failures, deaths, handles, time-outs."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from p2pcompute.execution import values
from p2pcompute.execution.cluster.clusters import ExecutorCluster, opener_of
from p2pcompute.execution.cluster.pool import ClusterPool, ClusterState
from p2pcompute.execution.pool_types import ProgramKey, TaskRun
from p2pcompute.execution.program import open_program, pack_program
from p2pcompute.execution.values import Handle
from p2pcompute.model.errors import ResourceError, UsageError
from p2pcompute.model.ids import BlobId, PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.storage.blobs import blob_id_of
from tests.support import executors
from tests.support.networks import SeededEntropy
from tests.unit.execution.pool_help import WAIT_S, Recorder, SystemClock, eventually, is_alive
from tests.unit.execution.program_help import decode_value, encode_arguments, failure_text, make_program

SOURCE = """
import os, time
SEEN = []
def double(x): return 2 * x
def seen(x): SEEN.append(x); return SEEN
def fail(x): raise ValueError(f"no {x}")
def say(x): print("said", x); return x
def die(): os._exit(3)
def nap(seconds): time.sleep(seconds)
def length(x): return len(x)
"""


class Bench:
    """A running pool of a cluster, its recorder, and what it told of its state."""

    def __init__(self, pool: ClusterPool, recorder: Recorder, states: list[ClusterState]) -> None:
        self.pool = pool
        self.seen = recorder
        self.states = states
        self._entries: list[str] = []

    def spawn(self, source: str = SOURCE, origin: int = 0) -> int:
        data, self._entries = make_program(source)
        key = ProgramKey(PeerId(bytes([origin]) * 32), ProgramId(blob_id_of(data)))
        return self.pool.spawn(key, data)

    def task(self, number: int, entry: str, *args: Any, timeout_s: float | None = None) -> TaskRun:
        return TaskRun(number, 0, self._entries.index(entry), encode_arguments(args), timeout_s)

    async def call(self, worker: int, number: int, entry: str, *args: Any, timeout_s: float | None = None) -> Any:
        self.pool.run(worker, [self.task(number, entry, *args, timeout_s=timeout_s)])
        await self.ended(number)
        end = self.seen.ends[number, 0]
        return decode_value(end.payload) if end.outcome is Outcome.RETURNED else end

    async def ended(self, *numbers: int) -> None:
        await self.seen.until(lambda: all((number, 0) in self.seen.ends for number in numbers))

    async def gone(self, worker: int) -> tuple[list[tuple[int, int]], str, Outcome]:
        await self.seen.until(lambda: worker in self.seen.gone)
        return self.seen.gone[worker]

    @property
    def slots(self) -> int:
        return self.states[-1].slots


@asynccontextmanager
async def bench(opener: Callable[[], Any]) -> AsyncIterator[Bench]:
    recorder, states = Recorder(), list[ClusterState]()
    pool = ClusterPool(recorder, SystemClock(), SeededEntropy("cluster"), opener, states.append)
    await pool.start()
    try:
        yield Bench(pool, recorder, states)
    finally:
        await pool.stop()


def run(body: Any, opener: Callable[[], Any] | None = None) -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(3 * WAIT_S),
            bench(opener or opener_of("tests.support.executors:two_processes")) as it,
        ):
            await body(it)

    asyncio.run(main())


def test_tasks_run_beside_the_clusters_processes() -> None:
    """Most of what a pool does, in one test: starting Python twice in each of several processes is what costs."""

    async def body(it: Bench) -> None:
        assert (it.slots, it.states[-1].cause) == (2, "")
        assert it.states[-1].python.startswith("3.")
        one, two = it.spawn(), it.spawn(origin=1)
        await it.seen.until(lambda: {one, two} <= set(it.seen.ready))
        it.pool.run(one, [it.task(number, "double", number) for number in range(20)])
        await it.ended(*range(20))
        assert [decode_value(it.seen.ends[number, 0].payload) for number in range(20)] == [2 * n for n in range(20)]
        assert it.seen.order == list(range(20))
        assert it.pool.workers[one].tasks_done == 20

        end = await it.call(one, 30, "fail", 7)
        assert end.outcome is Outcome.RAISED
        assert "ValueError: no 7" in failure_text(end.payload)
        assert await it.call(one, 31, "say", "this") == "this"
        assert it.seen.printed(31, 1) == b"said this\n"

        # What one submitter's program keeps no other sees, though bytes and process of the cluster may be the same.
        assert await it.call(one, 40, "seen", 1) == [1]
        assert await it.call(two, 41, "seen", 2) == [2]

        # A task that kills its process is that task's doing; what was behind it in the batch is run.
        it.pool.run(one, [it.task(50, "die"), it.task(51, "double", 5)])
        await it.ended(50, 51)
        assert it.seen.outcome(50) is Outcome.WORKER_DIED
        assert decode_value(it.seen.ends[51, 0].payload) == 10

        # A time-out kills, and says so.
        end = await it.call(one, 60, "nap", 1000, timeout_s=0.3)
        assert end.outcome is Outcome.TIMED_OUT
        assert await it.call(one, 61, "double", 4) == 8

        it.pool.retire(two)
        assert (await it.gone(two))[2] is Outcome.RETURNED_UNRUN
        with pytest.raises(UsageError):
            it.pool.run(two, [])

    run(body)


def test_data_behind_handles_is_brought_once_to_each_process() -> None:
    async def body(it: Bench) -> None:
        content = values.encode(list(range(1000)))
        handle = Handle(blob_id_of(content), len(content))
        worker = it.spawn()
        it.pool.run(worker, [it.task(0, "double", 1), it.task(1, "length", handle), it.task(2, "length", handle)])
        await it.seen.until(lambda: bool(it.seen.wanted))
        assert (0, 0) in it.seen.ends
        it.pool.supply(worker, BlobId(handle.blob), content)
        await it.ended(1, 2)
        assert [decode_value(it.seen.ends[number, 0].payload) for number in (1, 2)] == [1000, 1000]
        for number in range(10, 20):
            assert await it.call(worker, number, "length", handle) == 1000
        assert it.seen.wanted == [(worker, handle.blob)]

        lost = Handle(bytes(32), 10)
        it.pool.run(worker, [it.task(30, "length", lost), it.task(31, "double", 1)])
        await it.seen.until(lambda: len(it.seen.wanted) == 2)
        it.pool.supply(worker, BlobId(lost.blob), None)
        await it.ended(30, 31)
        assert it.seen.outcome(30) is Outcome.RAISED
        assert "is not held by the submitting peer any more" in failure_text(it.seen.ends[30, 0].payload)
        assert it.seen.outcome(31) is Outcome.RETURNED

    run(body)


def test_a_program_that_does_not_load_there_says_why() -> None:
    async def body(it: Bench) -> None:
        broken = it.spawn("import no_such_module_here\ndef f(): pass\n")
        _, cause, outcome = await it.gone(broken)
        assert outcome is Outcome.CANNOT_RUN
        assert it.seen.failed[broken][:2] == ("module", "no_such_module_here")
        assert "no_such_module_here" in cause

        # A function without source is bound to one version of Python; the cluster's is another.
        data, _ = make_program("def f(): pass\n")
        bound = pack_program(dataclasses.replace(open_program(data), python_minor=(3, 99)))
        worker = it.pool.spawn(ProgramKey(PeerId(bytes(32)), ProgramId(blob_id_of(bound))), bound)
        _, cause, outcome = await it.gone(worker)
        assert outcome is Outcome.CANNOT_RUN
        assert it.seen.failed[worker][1] == "Python 3.99"
        assert "it needs Python 3.99" in cause
        assert "this is another version" in cause

    run(body)


def test_what_is_cancelled_is_not_waited_for() -> None:
    async def body(it: Bench) -> None:
        worker = it.spawn()
        await it.seen.until(lambda: worker in it.seen.ready)
        it.pool.run(worker, [it.task(1, "nap", 1000, timeout_s=3), it.task(2, "double", 2)])
        await eventually(lambda: is_begun(it, worker))
        it.pool.cancel(worker, [(1, 0), (2, 0)])
        await it.gone(worker)
        assert it.seen.outcome(1) is it.seen.outcome(2) is Outcome.CANCELLED
        # An executor cannot be told: the slot is not there for others until the task has ended by itself.
        await eventually(lambda: it.slots == 1)
        other = it.spawn()
        assert await it.call(other, 3, "double", 3) == 6
        await eventually(lambda: it.slots == 2)

    run(body)


def is_begun(it: Bench, worker: int) -> bool:
    future = it.pool._seats[worker].future
    return future is not None and future.running()


def test_a_process_of_the_cluster_that_dies_takes_its_task_and_is_replaced() -> None:
    made: list[ProcessPoolExecutor] = []

    def opener() -> ExecutorCluster:
        executor = executors.two_processes()
        assert isinstance(executor, ProcessPoolExecutor)
        made.append(executor)
        return ExecutorCluster(executor)

    async def body(it: Bench) -> None:
        worker = it.spawn()
        await it.seen.until(lambda: worker in it.seen.ready)
        it.pool.run(worker, [it.task(2, "nap", 1000)])
        await eventually(lambda: is_begun(it, worker))
        processes = list(made[0]._processes)
        await eventually(lambda: bool(executors.descendants(processes)))
        runners = executors.descendants(processes)
        for process in processes:
            os.kill(process, signal.SIGKILL)
        await it.gone(worker)
        assert it.seen.outcome(2) is Outcome.WORKER_DIED
        assert b"a worker of the cluster died under it" in it.seen.ends[2, 0].payload
        await eventually(lambda: not any(is_alive(runner) for runner in runners))
        await eventually(lambda: len(made) == 2 and it.slots == 2)
        assert 0 in [state.slots for state in it.states]
        assert await it.call(it.spawn(), 3, "double", 3) == 6

    run(body, opener)


def test_a_cluster_that_is_away_is_tried_again_and_nothing_starts_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.model.limits.CLUSTER_RETRY_FIRST_S", 0.01)
    tries: list[int] = []

    def opener() -> ExecutorCluster:
        tries.append(1)
        if len(tries) < 4:
            raise ResourceError("nobody answers")
        return ExecutorCluster(executors.two_processes())

    async def body(it: Bench) -> None:
        assert it.states == [ClusterState(0, cause="nobody answers")]
        with pytest.raises(ResourceError, match="the cluster cannot be reached now: nobody answers"):
            it.spawn()
        await eventually(lambda: it.slots == 2)
        assert len(tries) == 4

    run(body, opener)


@pytest.mark.parametrize("text", ["nothing", "dusk://host:1", "dask://", "a b:c", "module:", ":factory"])
def test_a_name_that_is_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write"):
        opener_of(text)


def test_a_factory_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ResourceError, match="no_such_module_here:make of a cluster is not found"):
        opener_of("no_such_module_here:make")()
    with pytest.raises(ResourceError, match="let the factory return"):
        opener_of("tests.support.executors:ByHand")()
    cluster = opener_of("tests.support.executors:one_process_of_four_slots")()
    assert cluster.look().slots == 4
    cluster.close()
