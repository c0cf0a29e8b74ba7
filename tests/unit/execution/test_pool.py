"""The worker pool with real processes: tasks, failures, time-outs, cancels, memory, replacement."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from p2pcompute.execution.pool import STARVED, PoolSettings, ProgramKey, TaskRun, WorkerPool
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.peer import Isolation
from tests.unit.execution.pool_help import bench, eventually, is_alive, open_descriptors
from tests.unit.execution.program_help import decode_value, encode_arguments, failure_text

BASIC = """
import os, signal, subprocess, sys, time

def same(value):
    return value

def nap(seconds):
    time.sleep(seconds)
    return seconds

def spin():
    while True:
        pass

def hold_the_lock():
    return sum(range(10**12))

def fail(text):
    raise ValueError(text)

def leave(how):
    if how == "exit": sys.exit(3)
    if how == "interrupt": raise KeyboardInterrupt
    if how == "_exit": os._exit(3)
    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if how == "term": os.kill(os.getpid(), signal.SIGTERM)
    if how == "segfault":
        import ctypes
        ctypes.string_at(0)
    if how == "closefds":
        os.closerange(3, 200)
        time.sleep(60)

def sized(count):
    return bytes(count)

def size_of(data):
    return len(data)

def generator():
    return (number for number in range(3))

def whoami():
    return os.getpid()

def with_child():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open("child", "w") as file:
        file.write(str(child.pid))
    time.sleep(600)

def here():
    return os.getcwd()
"""

both_launchers = pytest.mark.parametrize("use_template", [True, False], ids=["template", "direct"])


@both_launchers
def test_ten_thousand_tasks_end_exactly_once(use_template: bool) -> None:
    async def main() -> None:
        async with bench(use_template=use_template) as on:
            worker = on.spawn(BASIC)
            for start in range(0, 10_000, 250):
                on.pool.run(worker, [on.task(worker, number, "same", number) for number in range(start, start + 250)])
            await on.seen.until(lambda: len(on.seen.order) >= 10_000)
            assert on.seen.order == list(range(10_000))
            assert all(decode_value(on.seen.ends[number, 0].payload) == number for number in range(10_000))
            info = on.pool.workers[worker]
            assert (info.tasks_done, info.queued, info.ready, info.running) == (10_000, 0, True, None)
        assert on.seen.gone[worker] == ([], "the peer stops", Outcome.RETURNED_UNRUN)

    asyncio.run(main())


def test_nothing_is_left_open() -> None:
    async def main() -> None:
        async with bench() as on:
            workers = [on.spawn(BASIC) for _ in range(3)]
            for number, worker in enumerate(workers):
                await on.call(worker, number, "same", 1)
            on.pool.retire(workers[0])
            await on.gone(workers[0])

    before = open_descriptors()
    asyncio.run(main())
    assert open_descriptors() == before


def test_what_user_code_raises_is_its_tasks_failure() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            failed = await on.call(worker, 0, "fail", "no such luck")
            assert failed.outcome is Outcome.RAISED
            assert "no such luck" in failure_text(failed.payload)
            assert (await on.call(worker, 1, "leave", "exit")).outcome is Outcome.RAISED
            assert (await on.call(worker, 2, "leave", "interrupt")).outcome is Outcome.RAISED
            assert (await on.call(worker, 3, "same")).outcome is Outcome.RAISED  # missing argument
            assert (await on.call(worker, 4, "generator")).outcome is Outcome.UNSHIPPABLE
            assert (await on.call(worker, 5, "same", 5)).outcome is Outcome.RETURNED
            assert list(on.pool.workers) == [worker]

    asyncio.run(main())


@both_launchers
@pytest.mark.parametrize("how", ["_exit", "kill", "term", "segfault", "closefds"])
def test_a_dead_worker_fails_one_task_and_hands_back_the_rest(how: str, use_template: bool) -> None:
    async def main() -> None:
        async with bench(use_template=use_template) as on:
            worker = on.spawn(BASIC)
            batch = [on.task(worker, number, "same", number) for number in range(6)]
            batch[3] = on.task(worker, 3, "leave", how)
            on.pool.run(worker, batch)
            on.pool.run(worker, [on.task(worker, 6, "same", 6)])
            unfinished, cause, outcome = await on.gone(worker)
            assert on.seen.outcome(3) is Outcome.WORKER_DIED
            assert outcome is Outcome.WORKER_DIED
            assert cause.encode() == on.seen.ends[3, 0].payload
            expected = {"_exit": "status 3", "kill": "SIGKILL", "term": "SIGTERM", "segfault": "SIGSEGV"}
            assert expected.get(how, "the worker process") in cause
            assert on.seen.order == [0, 1, 2, 3]
            assert {on.seen.outcome(number) for number in range(3)} == {Outcome.RETURNED}
            assert unfinished == [(4, 0), (5, 0), (6, 0)]
            assert worker not in on.pool.workers

    asyncio.run(main())


def test_kill_from_outside_in_mid_batch() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            batch = [on.task(worker, 0, "same", 0), on.task(worker, 1, "nap", 60), on.task(worker, 2, "same", 2)]
            on.pool.run(worker, batch)
            await on.running(worker, 1)
            await on.ended(0)
            os.kill(on.pid(worker), signal.SIGKILL)
            unfinished, _, outcome = await on.gone(worker)
            assert (unfinished, outcome, on.seen.outcome(1)) == ([(2, 0)], Outcome.WORKER_DIED, Outcome.WORKER_DIED)

    asyncio.run(main())


def test_an_idle_worker_that_dies_is_reported() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            await on.call(worker, 0, "same", 0)
            os.kill(on.pid(worker), signal.SIGKILL)
            assert (await on.gone(worker))[0] == []

    asyncio.run(main())


@both_launchers
@pytest.mark.parametrize("entry", ["nap", "spin", "hold_the_lock"])
def test_a_time_out_kills_and_blames_one_task(entry: str, use_template: bool) -> None:
    async def main() -> None:
        async with bench(use_template=use_template) as on:
            worker = on.spawn(BASIC)
            arguments = (60,) if entry == "nap" else ()
            batch = [on.task(worker, 0, "same", 0, timeout_s=0.3)]
            batch.append(on.task(worker, 1, entry, *arguments, timeout_s=0.3))
            batch.append(on.task(worker, 2, "same", 2, timeout_s=0.3))
            await on.call(worker, 9, "same", 9)
            began = time.monotonic()
            on.pool.run(worker, batch)
            unfinished, cause, outcome = await on.gone(worker)
            assert time.monotonic() - began < 10
            assert on.seen.outcome(0) is Outcome.RETURNED
            assert on.seen.outcome(1) is outcome is Outcome.TIMED_OUT
            assert on.seen.ends[1, 0].wall_us >= 300_000
            assert "0.3 s" in cause
            assert unfinished == [(2, 0)]

    asyncio.run(main())


def test_a_time_out_holds_for_a_task_that_waited_for_a_slow_start() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn("import time\ntime.sleep(1)\n" + BASIC)
            on.pool.run(worker, [on.task(worker, 0, "spin", timeout_s=0.3)])
            assert (await on.gone(worker))[2] is Outcome.TIMED_OUT
            assert on.seen.ends[0, 0].wall_us < 5_000_000

    asyncio.run(main())


def test_a_time_out_counts_from_the_start_of_its_own_task() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            on.pool.run(worker, [on.task(worker, number, "nap", 0.15, timeout_s=1.0) for number in range(12)])
            await on.ended(*range(12))
            assert {end.outcome for end in on.seen.ends.values()} == {Outcome.RETURNED}

    asyncio.run(main())


def test_cancel_takes_back_what_waits_and_kills_what_runs() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            batch = [
                on.task(worker, 0, "nap", 0.3),
                *(on.task(worker, number, "same", number) for number in range(1, 6)),
            ]
            on.pool.run(worker, batch)
            await on.running(worker, 0)
            on.pool.cancel(worker, [(2, 0), (4, 0), (77, 0)])
            await on.ended(0, 1, 2, 3, 4, 5)
            cancelled = {number for number in range(6) if on.seen.outcome(number) is Outcome.CANCELLED}
            assert cancelled == {2, 4}
            on.pool.run(worker, [on.task(worker, 6, "spin"), on.task(worker, 7, "same", 7)])
            await on.running(worker, 6)
            on.pool.cancel(worker, [(6, 0)])
            unfinished, _, outcome = await on.gone(worker)
            assert on.seen.outcome(6) is outcome is Outcome.CANCELLED
            assert unfinished == [(7, 0)]

    asyncio.run(main())


def test_cancel_before_the_worker_is_up() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            on.pool.run(worker, [on.task(worker, number, "same", number) for number in range(3)])
            on.pool.cancel(worker, [(1, 0)])
            await on.ended(0, 1, 2)
            assert [on.seen.outcome(number).name for number in range(3)] == ["RETURNED", "CANCELLED", "RETURNED"]

    asyncio.run(main())


@pytest.mark.parametrize("entry", ["nap", "spin", "hold_the_lock"])
def test_a_short_tasks_result_does_not_wait_for_a_long_one(entry: str) -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            await on.call(worker, 9, "same", 9)
            batch = [on.task(worker, number, "same", number) for number in range(3)]
            on.pool.run(worker, [*batch, on.task(worker, 3, entry, *((600,) if entry == "nap" else ()))])
            await on.ended(0, 1, 2)
            assert on.pool.workers[worker].running == (3, 0)

    asyncio.run(main())


def test_large_values_pass_both_ways_and_the_loop_lives_on() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            size = 96 << 20
            batch = [on.task(worker, 0, "size_of", bytes(size)), on.task(worker, 1, "same", 1)]
            batch += [
                on.task(worker, 2, "sized", size),
                on.task(worker, 3, "sized", 100_000),
                on.task(worker, 4, "same", 4),
            ]
            on.pool.run(worker, batch)
            # Of this thread's own time: another program that takes the processor from it is no fault of the pool.
            gap_s, looked_at = 0.0, time.thread_time()
            while len(on.seen.order) < 5:
                await asyncio.sleep(0)
                now = time.thread_time()
                gap_s, looked_at = max(gap_s, now - looked_at), now
            assert on.seen.order == [0, 1, 2, 3, 4]
            assert decode_value(on.seen.ends[0, 0].payload) == size
            assert len(decode_value(on.seen.ends[2, 0].payload)) == size
            assert len(decode_value(on.seen.ends[3, 0].payload)) == 100_000
            assert gap_s < 0.2

    asyncio.run(main())


def test_a_batch_larger_than_one_frame() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            on.pool.run(worker, [on.task(worker, number, "size_of", bytes(60_000)) for number in range(50)])
            await on.ended(*range(50))
            assert {decode_value(end.payload) for end in on.seen.ends.values()} == {60_000}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("source", "reason", "module"),
    [
        ("import no_such_module_anywhere\ndef entry(): pass\n", "module", "no_such_module_anywhere"),
        ("raise RuntimeError('not today')\ndef entry(): pass\n", "bundle", ""),
        ("import sys\nsys.exit(1)\ndef entry(): pass\n", "bundle", ""),
    ],
)
def test_a_program_that_does_not_load(source: str, reason: str, module: str) -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(source)
            on.pool.run(worker, [on.task(worker, 0, "entry")])
            unfinished, _, outcome = await on.gone(worker)
            assert on.seen.failed[worker][:2] == (reason, module)
            assert (unfinished, outcome, on.seen.ends) == ([(0, 0)], Outcome.CANNOT_RUN, {})

    asyncio.run(main())


def test_a_program_that_never_finishes_loading() -> None:
    async def main() -> None:
        async with bench(start_timeout_s=1.0) as on:
            worker = on.spawn("import time\ntime.sleep(600)\ndef entry(): pass\n")
            on.pool.run(worker, [on.task(worker, 0, "entry")])
            unfinished, cause, outcome = await on.gone(worker)
            assert (unfinished, outcome, on.seen.ends) == ([(0, 0)], Outcome.WORKER_DIED, {})
            assert "not ready within 1 s" in cause

    asyncio.run(main())


def test_a_worker_is_replaced_after_its_share_of_tasks() -> None:
    async def main() -> None:
        async with bench(tasks_per_worker_max=10) as on:
            worker = on.spawn(BASIC)
            on.pool.run(worker, [on.task(worker, number, "same", number) for number in range(12)])
            unfinished, cause, outcome = await on.gone(worker)
            assert (unfinished, outcome, len(on.seen.ends)) == ([], Outcome.RETURNED_UNRUN, 12)
            assert "replaced after 12 tasks" in cause
            with pytest.raises(UsageError, match="gone"):
                on.pool.run(worker, [])

    asyncio.run(main())


def test_retire_and_stop_hand_back_everything() -> None:
    async def main() -> None:
        async with bench() as on:
            first, second = on.spawn(BASIC), on.spawn(BASIC)
            for worker, base in ((first, 0), (second, 10)):
                batch = [on.task(worker, base, "spin"), on.task(worker, base + 1, "same", 1)]
                on.pool.run(worker, batch)
            await on.running(first, 0)
            await on.running(second, 10)
            on.pool.retire(first)
            assert (await on.gone(first))[::2] == ([(0, 0), (1, 0)], Outcome.RETURNED_UNRUN)
            pid = on.pid(second)
        assert on.seen.gone[second][::2] == ([(10, 0), (11, 0)], Outcome.RETURNED_UNRUN)
        assert on.seen.ends == {}
        assert not is_alive(pid)

    asyncio.run(main())


def test_children_of_user_code_die_with_its_worker() -> None:
    async def main() -> None:
        # Outside of a sandbox, where the child's number and file are the machine's.
        async with bench(isolation_most=Isolation.RESTRICTED) as on:
            worker = on.spawn(BASIC, grants=("processes",))
            folder = decode_value((await on.call(worker, 0, "here")).payload)
            on.pool.run(worker, [on.task(worker, 1, "with_child")])
            path = Path(folder, "child")
            await eventually(lambda: path.exists() and path.read_text() != "")
            child = int(path.read_text())  # noqa: ASYNC240
            assert is_alive(child)
            on.pool.cancel(worker, [(1, 0)])
            await on.gone(worker)
            await eventually(lambda: not is_alive(child))

    asyncio.run(main())


def test_a_stopped_pool_refuses_work() -> None:
    async def main() -> None:
        async with bench() as on:
            pass
        with pytest.raises(UsageError, match="not running"):
            on.spawn(BASIC)

    asyncio.run(main())


def test_spawn_without_start_is_refused() -> None:
    async def main() -> None:
        from tests.unit.execution.pool_help import Recorder, SystemClock

        pool = WorkerPool(Recorder(), SystemClock(), PoolSettings())
        with pytest.raises(UsageError, match=r"start\(\)"):
            pool.spawn(ProgramKey(PeerId(b""), ProgramId(b"")), b"")

    asyncio.run(main())


def test_a_forked_child_that_returns_is_not_a_second_worker() -> None:
    source = "import os\ndef fork():\n    return os.fork() and os.wait()[1]\ndef same(value):\n    return value\n"

    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(source, grants=("processes",))
            assert decode_value((await on.call(worker, 0, "fork")).payload) == 0
            assert decode_value((await on.call(worker, 1, "same", 1)).payload) == 1

    asyncio.run(main())


MEMORY = """
import os, sys, time

def hog(mebibytes):
    held = [bytearray(1 << 20) for _ in range(mebibytes)]
    return len(held)

def family(mebibytes, children):
    for _ in range(children):
        if os.fork() == 0:
            held = b"x" * (mebibytes << 20)
            time.sleep(60)
            os._exit(0)
    time.sleep(60)

def same(value):
    return value
"""


def test_a_task_that_eats_memory_fails_alone() -> None:
    async def main() -> None:
        async with bench(memory_bytes=256 << 20) as on:
            worker = on.spawn(MEMORY)
            on.pool.run(worker, [on.task(worker, 0, "hog", 4096), on.task(worker, 1, "same", 1)])
            await on.ended(0)
            assert on.seen.outcome(0) is Outcome.OUT_OF_MEMORY
            await on.ended(1)
            assert on.seen.outcome(1) is Outcome.RETURNED
            assert (await on.call(worker, 2, "hog", 20)).outcome is Outcome.RETURNED

    asyncio.run(main())


def test_a_jobs_limit_lowers_the_pools_and_never_raises_it() -> None:
    async def main() -> None:
        async with bench(memory_bytes=256 << 20) as on:
            lower, higher = on.spawn(MEMORY, 128 << 20), on.spawn(MEMORY, 1 << 40)
            assert (await on.call(lower, 0, "hog", 120)).outcome is Outcome.OUT_OF_MEMORY
            assert (await on.call(higher, 1, "hog", 120)).outcome is Outcome.RETURNED
            assert (await on.call(higher, 2, "hog", 300)).outcome is Outcome.OUT_OF_MEMORY

    asyncio.run(main())


def test_a_family_of_processes_is_weighed_together() -> None:
    async def main() -> None:
        async with bench(memory_bytes=256 << 20) as on:
            worker = on.spawn(MEMORY, grants=("processes",))
            on.pool.run(worker, [on.task(worker, 0, "family", 90, 4), on.task(worker, 1, "same", 1)])
            unfinished, cause, outcome = await on.gone(worker)
            assert on.seen.outcome(0) is outcome is Outcome.OUT_OF_MEMORY
            assert "256 MiB are allowed" in cause or cause == STARVED
            assert unfinished == [(1, 0)]

    asyncio.run(main())


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="nice"):
        PoolSettings(nice=-5)
    with pytest.raises(UsageError, match="tasks_per_worker_max"):
        PoolSettings(tasks_per_worker_max=0)
    with pytest.raises(UsageError, match="open_files_max"):
        PoolSettings(open_files_max=3)
    assert PoolSettings().start_timeout_s == limits.WORKER_START_TIMEOUT_S


def test_arguments_that_are_none_are_the_tasks_failure() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(BASIC)
            on.pool.run(worker, [TaskRun(0, 0, 0, b"\xc1 rubbish"), TaskRun(1, 0, 99, encode_arguments(()))])
            await on.ended(0, 1)
            assert on.seen.outcome(0) is on.seen.outcome(1) is Outcome.RAISED

    asyncio.run(main())
