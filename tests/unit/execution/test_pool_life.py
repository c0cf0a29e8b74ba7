"""The surroundings of workers: no orphans, a template that dies, a clean environment, workers that lie."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.model.job import Outcome
from p2pcompute.model.peer import Isolation
from tests.unit.execution.pool_help import bench, eventually, exists, is_alive
from tests.unit.execution.program_help import decode_value

INSIDE = """
import os, random, resource, signal, socket, sys, threading, time

def same(value):
    return value

def spin():
    while True:
        pass

def hold_the_lock():
    return sum(range(10**12))

def surroundings():
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the listing itself
    open("left-behind", "w").close()
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "descriptors": sorted(descriptors.items()),
        "core": list(resource.getrlimit(resource.RLIMIT_CORE)),
        "files": list(resource.getrlimit(resource.RLIMIT_NOFILE)),
        "memory": list(resource.getrlimit(resource.RLIMIT_AS)),
        "nice": os.nice(0),
        "session": os.getsid(0) == os.getpid(),
        "handlers": sorted(int(n) for n in signal.valid_signals() if signal.getsignal(n) is not signal.SIG_DFL),
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "parent": os.getppid(),
    }

def dice():
    return [random.random(), os.getpid()]

def numpy_dice():
    import numpy
    return [float(numpy.random.random()), "numpy" in sys.modules]

def connection():
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=int(name))
        except OSError:
            continue
        return found

def lie(data):
    found = connection()
    found.sendall(data)
    found.detach()
    time.sleep(60)

def fork_and_stay():
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    os._exit(1)
"""

PEER = """
import asyncio, os, sys
sys.path[:0] = {path!r}
from tests.unit.execution.pool_help import bench
from tests.unit.execution.test_pool_life import INSIDE

async def main():
    async with bench(use_template={use_template}) as on:
        busy, idle = on.spawn(INSIDE), on.spawn(INSIDE)
        await on.call(busy, 0, "same", 0)
        await on.call(idle, 1, "same", 1)
        on.pool.run(busy, [on.task(busy, 2, {entry!r})])
        await on.running(busy, 2)
        print(on.pool._folder or "-", *[info.pid for info in on.pool.workers.values()], flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("use_template", [True, False], ids=["template", "direct"])
@pytest.mark.parametrize("entry", ["spin", "hold_the_lock"])
def test_no_worker_outlives_a_peer_that_is_killed(entry: str, use_template: bool) -> None:
    script = PEER.format(path=sys.path, use_template=use_template, entry=entry)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        folder, *pids = peer.stdout.readline().split()
        workers = [int(pid) for pid in pids]
        assert len(workers) == 2
        assert all(map(is_alive, workers))
        peer.kill()

    async def main() -> None:
        await eventually(lambda: not any(map(is_alive, workers)))
        if use_template:
            await eventually(lambda: not exists(folder))

    asyncio.run(main())
    if exists(folder):
        subprocess.run(["rm", "-r", folder], check=True)


def test_workers_survive_the_death_of_their_template() -> None:
    async def main() -> None:
        async with bench(isolation_most=Isolation.RESTRICTED) as on:
            first = on.spawn(INSIDE)
            before = decode_value((await on.call(first, 0, "surroundings")).payload)["parent"]
            os.kill(before, signal.SIGKILL)
            await eventually(lambda: not is_alive(before))
            assert (await on.call(first, 1, "same", 1)).outcome is Outcome.RETURNED
            second = on.spawn(INSIDE)
            after = decode_value((await on.call(second, 2, "surroundings")).payload)["parent"]
            assert after not in (before, os.getpid())
            on.pool.run(first, [on.task(first, 3, "spin", timeout_s=0.2), on.task(first, 4, "same", 4)])
            unfinished, _, outcome = await on.gone(first)
            assert (unfinished, outcome) == ([(4, 0)], Outcome.TIMED_OUT)
            assert sorted(on.pool.workers) == [second]

    asyncio.run(main())


def test_a_template_that_keeps_dying_is_done_without() -> None:
    async def main() -> None:
        async with bench(isolation_most=Isolation.RESTRICTED) as on:
            templates = set()
            for number in range(4):
                worker = on.spawn(INSIDE)
                parent = decode_value((await on.call(worker, number, "surroundings")).payload)["parent"]
                if parent == os.getpid():
                    break
                assert parent not in templates
                templates.add(parent)
                os.kill(parent, signal.SIGKILL)
                await eventually(lambda: on.pool._warm and on.pool._warm.pid != parent)  # noqa: B023 - awaited before the next turn
            assert len(templates) == 3

    asyncio.run(main())


def test_a_request_that_dies_with_the_template_is_reported() -> None:
    async def main() -> None:
        async with bench(isolation_most=Isolation.RESTRICTED) as on:
            template = on.pool._warm
            assert template is not None
            assert template.pid is not None
            os.kill(template.pid, signal.SIGSTOP)
            worker = on.spawn(INSIDE)
            on.pool.run(worker, [on.task(worker, 0, "same", 0)])
            os.kill(template.pid, signal.SIGKILL)
            assert (await on.gone(worker))[::2] == ([(0, 0)], Outcome.RETURNED_UNRUN)
            assert (await on.call(on.spawn(INSIDE), 1, "same", 1)).outcome is Outcome.RETURNED

    asyncio.run(main())


@pytest.mark.parametrize("level", [Isolation.PROCESS, Isolation.RESTRICTED, Isolation.SANDBOX])
@pytest.mark.parametrize("use_template", [True, False], ids=["template", "direct"])
def test_a_worker_finds_a_clean_place(use_template: bool, level: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", "/secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LC_TIME", "C")

    async def main() -> None:
        async with bench(
            use_template=use_template, threads_per_worker=3, nice=4, memory_bytes=1 << 30, isolation_most=level
        ) as on:
            inside = on.pool.isolation is Isolation.SANDBOX
            worker, other = on.spawn(INSIDE), on.spawn(INSIDE)
            there = decode_value((await on.call(worker, 0, "surroundings")).payload)
            elsewhere = decode_value((await on.call(other, 1, "surroundings")).payload)
            environment = there["environment"]
            assert not [name for name in environment if name.startswith(("P2PCOMPUTE", "AWS"))]
            assert environment["HOME"] == environment["TMPDIR"] == there["folder"]
            # Two workers of one program share a sandbox where they are forked in it; else the same name means two folders.
            assert (there["folder"] == elsewhere["folder"]) is (inside and not use_template)
            assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "3"
            assert environment["LC_TIME"] == "C"
            numbers = dict(map(tuple, there["descriptors"]))
            assert numbers[0] == "/dev/null"
            kinds = sorted(text.partition(":")[0] for number, text in numbers.items() if number > 2)
            assert [kind for kind in kinds if not kind.startswith(("/proc", "/memfd"))] == ["pipe"] * 5 + ["socket"]
            assert there["core"][0] == 0
            assert there["files"] == [1024, 1024]
            assert there["memory"] == [1 << 30, 1 << 30]
            assert there["nice"] == os.nice(0) + 4
            assert there["session"]
            python_ignores = {signal.SIGPIPE, signal.SIGXFSZ}
            assert set(there["handlers"]) <= {signal.SIGINT, signal.SIGKILL, signal.SIGSTOP, *python_ignores, 32, 33}
            assert there["blocked"] == 0
            on.pool.retire(worker)
            await on.gone(worker)
            if not inside:
                await eventually(lambda: not exists(there["folder"]))
                assert exists(elsewhere["folder"])
        assert not exists(elsewhere["folder"])

    asyncio.run(main())


def test_workers_throw_different_dice() -> None:
    async def main() -> None:
        async with bench(preload=("numpy",)) as on:
            workers = [on.spawn(INSIDE) for _ in range(3)]
            for number, worker in enumerate(workers):
                await on.call(worker, number, "dice")
                await on.call(worker, 10 + number, "numpy_dice")
            plain = {tuple(decode_value(on.seen.ends[number, 0].payload)) for number in range(3)}
            assert len({value for value, _ in plain}) == 3
            assert len({decode_value(on.seen.ends[10 + number, 0].payload)[0] for number in range(3)}) == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    "lie",
    [
        b"\xff" * 64,
        protocol.HEADER.pack(1 << 30, 0),
        protocol.HEADER.pack(3, 1 << 62) + b"abc",
        protocol.HEADER.pack(1, 0) + b"\xc1",
        protocol.pack_frame((99, 1, 2)),
        protocol.pack_frame((protocol.READY,)),
        protocol.pack_frame((protocol.ENDS, b"\xc1")),
        protocol.pack_frame((protocol.ENDS, protocol.pack_end(1, 77, 0, b""))),
        protocol.pack_frame((protocol.ENDS, b"\x93\x01\x02\x03")),
        protocol.pack_frame((protocol.NEWS, [[1, "x", 3]], [])),
        protocol.pack_frame((protocol.NEWS, [], [[1, 7, b"x"]])),
    ],
)
def test_a_worker_that_lies_is_killed_and_nobody_else(lie: bytes) -> None:
    async def main() -> None:
        async with bench() as on:
            liar, honest = on.spawn(INSIDE), on.spawn(INSIDE)
            await on.call(honest, 10, "same", 1)
            on.pool.run(liar, [on.task(liar, 0, "lie", lie), on.task(liar, 1, "same", 1)])
            unfinished, _, outcome = await on.gone(liar)
            assert on.seen.outcome(0) is outcome is Outcome.WORKER_DIED
            assert "no worker sends" in on.seen.gone[liar][1]
            assert unfinished == [(1, 0)]
            assert (await on.call(honest, 11, "same", 1)).outcome is Outcome.RETURNED

    asyncio.run(main())


def test_a_result_for_a_task_that_was_never_given_is_dropped() -> None:
    async def main() -> None:
        async with bench() as on:
            liar = on.spawn(INSIDE)
            rows = protocol.pack_end(4711, 0, 0, b"")
            on.pool.run(liar, [on.task(liar, 0, "lie", protocol.pack_frame((protocol.ENDS, rows)))])
            await on.running(liar, 0)
            on.pool.cancel(liar, [(0, 0)])
            await on.gone(liar)
            assert set(on.seen.ends) == {(0, 0)}

    asyncio.run(main())


def test_a_child_that_keeps_the_descriptors_does_not_hide_its_workers_death() -> None:
    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(INSIDE, grants=("processes",))
            on.pool.run(worker, [on.task(worker, 0, "fork_and_stay")])
            assert (await on.gone(worker))[2] is Outcome.WORKER_DIED
            assert "status 1" in on.seen.gone[worker][1]

    asyncio.run(main())


def test_a_given_folder_is_emptied_at_start(tmp_path: Path) -> None:
    left = tmp_path / "workers" / "worker-1" / "file"
    left.parent.mkdir(parents=True)
    left.write_text("of a peer that was killed")
    mine = tmp_path / "mine"
    mine.write_text("not a worker's")

    async def main() -> None:
        async with bench(folder=tmp_path) as on:
            assert not left.exists()
            await on.call(on.spawn(INSIDE), 0, "same", 0)

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
