"""What a peer remembers of its jobs: across a restart, beside a full disk, while the regression is loaded, and without it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.recording import USUAL_S, Recording
from p2pcompute.jobs.strategies import Situation
from p2pcompute.jobs.strategies.smart_adaptive import Learner
from p2pcompute.model import limits
from p2pcompute.model.errors import CorruptFileError, UsageError
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Outcome, TaskReport
from p2pcompute.model.performance import FunctionKey
from p2pcompute.node import records as module
from p2pcompute.node.records import FILE, Records, is_adaptive
from p2pcompute.node.seams import ThreadOffload
from tests.support.peers import until

A, B = (PeerId(bytes([number]) * 32) for number in (1, 2))
PROGRAM = ProgramId(b"p" * 32)
JOB = JobId(b"j" * 12)


class Clock:
    """Says what it is told."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.wall_s = 1.7e9

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.wall_s

    def go_on(self, seconds: float) -> None:
        self.now += seconds
        self.wall_s += seconds


class Counting:
    """A learner that only counts, once it may."""

    def __init__(self) -> None:
        self.learned = 0
        self.asked, self.may = threading.Event(), threading.Event()

    def learn(self, function: FunctionKey, peer: PeerId, row: Sequence[float], value: float) -> None:
        self.asked.set()
        assert self.may.wait(40)
        self.learned += 1

    def predict(
        self, function: FunctionKey, peers: Sequence[PeerId], shared: Sequence[float], own: Sequence[Sequence[float]]
    ) -> list[float]:
        return [0.0] * len(peers)


@contextlib.asynccontextmanager
async def opened(folder: Path, clock: Clock, make: Callable[[], Learner] = Counting) -> AsyncIterator[Records]:
    offload = ThreadOffload()
    try:
        found = await Records.open(folder, clock, random.Random(1), offload, structlog.get_logger(), make)
        try:
            yield found
        finally:
            await found.close()
    finally:
        offload.close()


def spec(job: JobId = JOB, **options: Any) -> JobSpec:
    return JobSpec(job, "squares", PROGRAM, "map", Aggregation.NONE, None, JobOptions(**options))


def ends(records: Records, recording: Recording, *outcomes: Outcome, peer: PeerId = A, wall_s: float = 0.5) -> None:
    recording.batch(tuple((TaskReport(TaskIndex(0), 1, outcome, wall_s), peer) for outcome in outcomes))
    records.told(JOB, recording, lambda: 100)


def counted(records: Records, peer: PeerId) -> int:
    summary = records.of_peer(peer)[0]
    return 0 if summary is None else summary.counted


def test_records_survive_and_grow_old(tmp_path: Path) -> None:
    async def body() -> None:
        clock = Clock()
        async with opened(tmp_path, clock) as first:
            recording = first.begin(spec())
            ends(first, recording, Outcome.RETURNED, Outcome.RETURNED, Outcome.RAISED)
            ends(first, recording, Outcome.RETURNED, peer=B)
            assert counted(first, A) == 0, "not every batch is told"
            first.ended(JOB, recording, lambda: 100)
            whole, functions = first.of_peer(A)
            assert whole is not None
            assert (whole.counted, whole.success_rate, whole.mean_s) == (3, pytest.approx(2 / 3), 0.5)
            assert [(name, row.counted) for name, row in functions] == [("squares", 3)]
            assert first.of_peer(PeerId(b"c" * 32)) == (None, ())
        # Another start of the machine: its monotonic clock began anew.
        clock.now = 5.0
        clock.wall_s += 600
        async with opened(tmp_path, clock) as again:
            assert (counted(again, A), counted(again, B)) == (3, 1)
            assert again.of_peer(A)[1][0][0] == f"map of {PROGRAM.hex()[:8]}", (
                "no job of this process has said its name"
            )
            assert again.begin(spec())
            assert again.of_peer(A)[1][0][0] == "squares"
            clock.go_on(limits.PERFORMANCE_WINDOW_S - 500)
            assert counted(again, A) == 0, "an hour after it was measured, whatever the restart"
            assert again.of_peer(A)[1] == ()

    asyncio.run(body())


def test_a_clock_that_was_set_back_makes_nothing_new(tmp_path: Path) -> None:
    async def body() -> None:
        clock = Clock()
        async with opened(tmp_path, clock) as first:
            recording = first.begin(spec())
            ends(first, recording, Outcome.RETURNED)
            first.ended(JOB, recording, lambda: 100)
        clock.wall_s -= 86_400
        async with opened(tmp_path, clock) as again:
            assert counted(again, A) == 0

    asyncio.run(body())


def test_its_service_tells_and_writes_what_no_event_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_INTERVAL_S", 0.01)

    async def body() -> None:
        clock = Clock()
        async with opened(tmp_path, clock) as records, asyncio.TaskGroup() as group:
            service = group.create_task(records.run())
            recording = records.begin(spec())
            ends(records, recording, Outcome.RETURNED)
            assert counted(records, A) == 0, "not due"
            clock.go_on(1.1 * USUAL_S[0])
            await until(lambda: counted(records, A) == 1, "it is told when it is due")
            await until(lambda: bool(records._database.recent(10)), "and written")
            assert not records._open
            service.cancel()

    asyncio.run(body())


def test_a_disk_that_is_full_costs_records_and_nothing_else(tmp_path: Path) -> None:
    async def body() -> None:
        clock = Clock()
        async with opened(tmp_path, clock) as records:
            with records._database._database.transaction() as connection:
                connection.execute(
                    "CREATE TRIGGER full BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'full'); END"
                )
            with capture_logs() as said:
                for _ in range(3):
                    recording = records.begin(spec())
                    ends(records, recording, Outcome.RETURNED)
                    records.ended(JOB, recording, lambda: 100)
                    await records.write()
            assert [line["event"] for line in said] == ["records of performance are lost"], "said once"
            assert counted(records, A) == 3
            assert not records._pending

    asyncio.run(body())


def test_a_damaged_file_stops_the_start_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)

    async def body() -> None:
        async with opened(tmp_path, Clock()):
            raise AssertionError("opened")

    with pytest.raises(CorruptFileError, match=r"performance\.db is damaged .* move it away"):
        asyncio.run(body())


def test_the_regression_learns_what_was_before_it_and_what_came_while_it_was_loaded(tmp_path: Path) -> None:
    async def body() -> None:
        clock, learner = Clock(), Counting()
        async with opened(tmp_path, clock, lambda: learner) as records:
            means = records.shared.core
            records.seen = lambda job, peer: (seen_peer(peer), situation(clock.now))
            options = JobOptions(strategy="smart_adaptive")
            assert not records.wants_learner(JobOptions())
            assert records.wants_learner(options)
            assert not records.wants_learner(options), "once"
            tell(records, 3, clock)
            await records.write()
            tell(records, 2, clock)  # pending while it is loaded
            async with asyncio.TaskGroup() as group:
                loading = group.create_task(records.load())
                await until(learner.asked.is_set, "the database was read")
                tell(records, 4, clock)
                assert records.shared.core is means
                learner.may.set()
                await loading
            assert records.shared.core is not means
            assert learner.learned == 3 + 2 + 4
            tell(records, 1, clock)
            assert learner.learned == 10

    asyncio.run(body())


def tell(records: Records, count: int, clock: Clock) -> None:
    for _ in range(count):
        clock.go_on(10)
        recording = records.begin(spec(strategy="smart_adaptive"))
        ends(records, recording, Outcome.RETURNED)
        assert recording.is_empty, "of a job whose placing rests on it the first result is told at once"


def seen_peer(peer: PeerId) -> Candidate:
    return Candidate(peer, 0.0, False, 50.0)


def situation(now: float) -> Situation:
    return Situation(now, JobOptions(), function=FunctionKey("map", PROGRAM))


def test_without_the_extra_it_says_so_and_learns_means(tmp_path: Path) -> None:
    def missing() -> Learner:
        raise UsageError("river is not installed: pip install 'p2pcompute[learning]'")

    async def body() -> None:
        async with opened(tmp_path, Clock(), missing) as records:
            with capture_logs() as said:
                await records.load()
            assert [(line["event"], line["log_level"]) for line in said] == [
                ("smart_adaptive learns means only", "warning")
            ]
            assert "pip install" in said[0]["cause"]
            tell(records, 1, Clock())
            assert records.shared.core._functions[FunctionKey("map", PROGRAM)].records == 1

    asyncio.run(body())


def test_who_asks_for_it() -> None:
    assert is_adaptive(JobOptions(strategy="smart_adaptive"))
    assert is_adaptive(JobOptions(strategy="dynamic"))
    assert is_adaptive(JobOptions(fallback_strategy="smart_adaptive"))
    assert not is_adaptive(JobOptions())
    assert not is_adaptive(JobOptions(balancer=lambda candidates, job: candidates))


def test_what_comes_after_its_end_is_passed_over(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path, Clock()) as records:
            await records.close()
            means = records.shared.core
            with capture_logs() as said:
                tell(records, 1, Clock())
                await records.load()
                await records.write()
                await records.close()
            assert not said
            assert records.shared.core is means

    asyncio.run(body())
