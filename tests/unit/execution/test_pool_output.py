"""What tasks print and report while they run: caught, attributed, bounded."""

from __future__ import annotations

import asyncio
import time

import pytest

from p2pcompute.model import limits
from p2pcompute.model.job import Outcome
from tests.unit.execution.pool_help import bench, eventually
from tests.unit.execution.program_help import decode_value

CHATTY = """
import ctypes, faulthandler, os, subprocess, sys, threading, time, warnings
from p2pcompute.execution import task

def say(text):
    print(text)

def say_unfinished(text):
    print(text, end="")

def all_ways():
    print("python out")
    print("python err", file=sys.stderr)
    os.write(1, b"descriptor out\\n")
    subprocess.run(["sh", "-c", "echo child out; echo child err >&2"], check=True)
    libc = ctypes.CDLL(None)
    libc.puts(b"c out")
    libc.fflush(None)
    warnings.warn("careful now")

def flood(seconds):
    until = time.monotonic() + seconds
    lines = 0
    while time.monotonic() < until:
        print("x" * 99)
        lines += 1
    return lines

def flood_holding_the_lock(mebibytes):
    # PyDLL keeps the interpreter lock during calls: the worker's own threads cannot read what is printed.
    write = ctypes.PyDLL(None).write
    block = b"y" * (1 << 16)
    for _ in range(mebibytes * 16):
        done = 0
        while done < len(block):
            done += write(1, block[done:], len(block) - done)
    return mebibytes

def last_words():
    print("before the end", flush=True)
    os._exit(5)

def crash():
    print("about to crash")
    ctypes.string_at(0)

def close_streams():
    sys.stdout.close()
    os.close(2)

def background():
    def later():
        time.sleep(0.2)
        print("from a thread")
    threading.Thread(target=later).start()

def report(count):
    for number in range(count):
        task.progress(number / count, f"step {number}")
    task.progress(1.0, "done")

def report_slowly():
    task.progress(0.25, "a quarter")
    time.sleep(600)

def nap(seconds):
    time.sleep(seconds)

def odd_reports():
    task.progress(float("nan"), "who knows \\udce4")
"""


def test_output_of_every_kind_is_caught() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY, grants=("processes",))
            await on.call(worker, 0, "all_ways")
            out, err = on.seen.printed(0, 1).decode(), on.seen.printed(0, 2).decode()
            for line in ("python out", "descriptor out", "child out", "c out"):
                assert f"{line}\n" in out
            for line in ("python err\n", "child err\n", "UserWarning: careful now"):
                assert line in err

    asyncio.run(main())


def test_output_belongs_to_the_task_that_printed_it() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            batch = [
                on.task(worker, number, "say" if number % 2 else "say_unfinished", f"line of {number}")
                for number in range(300)
            ]
            on.pool.run(worker, batch)
            await on.ended(*range(300))
            for number in range(300):
                assert on.seen.printed(number, 1).decode().rstrip("\n") == f"line of {number}"

    asyncio.run(main())


def test_output_arrives_while_the_task_runs() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY + "\ndef talk_and_stay():\n    print('here')\n    time.sleep(600)\n")
            on.pool.run(worker, [on.task(worker, 0, "talk_and_stay")])
            await on.seen.until(lambda: on.seen.printed(0, 1) == b"here\n")
            assert on.pool.workers[worker].running == (0, 0)

    asyncio.run(main())


def test_printing_without_end_is_cut_and_does_not_stop_the_task() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            end = await on.call(worker, 0, "flood", 1.5)
            assert end.outcome is Outcome.RETURNED
            printed_bytes = 100 * decode_value(end.payload)
            assert printed_bytes > 10 * limits.TASK_OUTPUT_BYTES_MAX
            assert len(on.seen.printed(0, 1)) <= limits.TASK_OUTPUT_BYTES_MAX
            note = on.seen.printed(0, 2).decode()
            assert f"{printed_bytes - len(on.seen.printed(0, 1))} more bytes of output were dropped" in note
            await on.call(worker, 1, "say", "still here")
            assert on.seen.printed(1, 1) == b"still here\n"

    asyncio.run(main())


def test_printing_without_end_goes_on_while_the_peer_is_busy() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            await on.call(worker, 0, "say", "warm")
            on.pool.run(worker, [on.task(worker, 1, "flood", 1.0)])
            await on.running(worker, 1)
            time.sleep(3.0)  # noqa: ASYNC251 - the peer's loop is stuck for as long as the task runs
            await on.ended(1)
            assert on.seen.ends[1, 0].wall_us < 3_000_000
            assert decode_value(on.seen.ends[1, 0].payload) * 100 > 10 * limits.TASK_OUTPUT_BYTES_MAX

    asyncio.run(main())


def test_c_code_that_prints_and_holds_the_interpreter_is_not_stuck() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            end = await on.call(worker, 0, "flood_holding_the_lock", 2)
            assert decode_value(end.payload) == 2
            kept = len(on.seen.printed(0, 1))
            assert 0 < kept <= 2 * limits.TASK_OUTPUT_BYTES_MAX

    asyncio.run(main())


@pytest.mark.parametrize(("entry", "said"), [("last_words", "before the end"), ("crash", "about to crash")])
def test_last_words_of_a_worker_are_heard(entry: str, said: str) -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            on.pool.run(worker, [on.task(worker, 0, "say", "fine"), on.task(worker, 1, entry)])
            await on.gone(worker)
            assert said in on.seen.printed(1, 1).decode()
            if entry == "crash":
                assert "Segmentation fault" in on.seen.printed(1, 2).decode()

    asyncio.run(main())


def test_streams_that_a_task_closes_are_opened_again_where_that_can_be() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            assert (await on.call(worker, 0, "close_streams")).outcome is Outcome.RETURNED
            await on.call(worker, 1, "say", "again")
            assert on.seen.printed(1, 1) == b"again\n"

    asyncio.run(main())


def test_output_of_a_thread_that_outlives_its_task_harms_nobody() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            on.pool.run(worker, [on.task(worker, 0, "background"), on.task(worker, 1, "nap", 0.5)])
            await on.ended(0, 1)
            assert on.seen.printed(0, 1) == b""
            assert on.seen.printed(1, 1) == b"from a thread\n"

    asyncio.run(main())


def test_progress_is_thinned_and_the_last_report_always_comes() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            end = await on.call(worker, 0, "report", 200_000)
            assert on.seen.progress[-1] == (0, 1.0, "done")
            allowed = 2 + end.wall_us / 1e6 * limits.PROGRESS_PER_SECOND
            assert len(on.seen.progress) <= allowed
            on.pool.run(worker, [on.task(worker, 1, "report_slowly")])
            await on.seen.until(lambda: (1, 0.25, "a quarter") in on.seen.progress)

    asyncio.run(main())


def test_each_short_tasks_last_report_comes() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            on.pool.run(worker, [on.task(worker, number, "report", 3) for number in range(100)])
            await on.ended(*range(100))
            last = {task: (fraction, message) for task, fraction, message in on.seen.progress}
            assert last == dict.fromkeys(range(100), (1.0, "done"))

    asyncio.run(main())


def test_unknown_fractions_and_unprintable_messages_pass() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(CHATTY)
            assert (await on.call(worker, 0, "odd_reports")).outcome is Outcome.RETURNED
            assert on.seen.progress == [(0, -1.0, "who knows ?")]
            await eventually(lambda: on.pool.workers[worker].running is None)

    asyncio.run(main())
