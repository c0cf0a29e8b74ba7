"""Jobs through real peers, real links and real worker processes, all in one event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import jobs_module
import pytest
from jobs_module import Colour, OwnError, Point

from p2pcompute.model.errors import (
    CannotShipError,
    JobCancelledError,
    JobError,
    MissingModuleError,
    NotSerializableError,
    TaskFailedError,
    TaskTimeoutError,
    UnknownNameError,
    UsageError,
    WorkerDiedError,
)
from p2pcompute.model.job import JobProgress
from p2pcompute.node.peer import Peer
from tests.support.holding import PLAIN
from tests.support.peers import network, until


def run(home: Path, count: int, body: Callable[[list[Peer]], Awaitable[None]], **changes: object) -> None:
    async def main() -> None:
        async with asyncio.timeout(100), network(home, count, **changes) as peers:
            await body(peers)

    asyncio.run(main())


def test_submit_returns_the_callers_own_classes(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        point = await peers[0].submit(jobs_module.point, 3)
        assert point == Point(3, Colour.BLUE)
        assert type(point) is Point
        assert point.colour is Colour.BLUE
        assert await peers[0].submit(jobs_module.shifted, point) == Point(4, Colour.BLUE)

    run(home, 1, body)


def test_any_peer_submits_and_both_compute(home: Path, tmp_path: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        for number, peer in enumerate(peers):
            begun = tmp_path / f"begun-{number}"
            begun.mkdir()
            progress: list[JobProgress] = []
            inputs = [(str(begun), 2, x) for x in range(40)]
            values = [value async for value in peer.map(jobs_module.together, inputs, on_progress=progress.append)]
            assert values == [x * x for x in range(40)]
            done = dict(progress[-1].done_by_peer)
            assert sum(done.values()) == 40
            assert len(done) == 2, "only one peer did any work"

    run(home, 2, body, **PLAIN)


def test_a_peer_without_slots_has_others_work(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        assert await peers[0].submit(jobs_module.scaled, 2) == 60

    async def main() -> None:
        async with asyncio.timeout(60), network(home, 2) as peers:
            await body(peers)

    asyncio.run(main())


def test_map_keeps_the_order_of_inputs_and_takes_async_iterators(home: Path) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(300):
            yield number

    async def body(peers: list[Peer]) -> None:
        assert [v async for v in peers[0].map(jobs_module.scaled, numbers())] == [30 * x for x in range(300)]
        unordered = [v async for v in peers[0].map(jobs_module.scaled, range(100), ordered=False)]
        assert sorted(unordered) == [30 * x for x in range(100)]
        assert [v async for v in peers[0].map(jobs_module.scaled, [])] == []

    run(home, 2, body)


def test_a_closure_a_lambda_and_a_changed_global_travel(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(peers: list[Peer]) -> None:
        assert await peers[0].submit(jobs_module.make_closure(7), 2) == Point(13, Colour.RED)
        base = 5
        assert await peers[0].submit(lambda x: x + base, 2) == 7
        monkeypatch.setattr(jobs_module, "FACTOR", 100)
        assert await peers[0].submit(jobs_module.scaled, 2) == 600

    run(home, 1, body)


def test_data_that_changes_between_two_calls_is_seen(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(peers: list[Peer]) -> None:
        base = 1

        def shifted(x: int) -> int:
            return x + base

        assert await peers[0].submit(shifted, 2) == 3
        base = 10
        assert await peers[0].submit(shifted, 2) == 12
        assert await peers[0].submit(jobs_module.scaled, 2) == 60
        monkeypatch.setattr(jobs_module, "FACTOR", 100)
        assert await peers[0].submit(jobs_module.scaled, 2) == 600

    run(home, 1, body)


def test_an_exception_is_the_callers_own_with_the_remote_traceback(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        with pytest.raises(OwnError) as caught:
            await peers[0].submit(jobs_module.fails, 3)
        assert caught.value.code == 3
        cause = caught.value.__cause__
        assert isinstance(cause, TaskFailedError)
        assert "raise OwnError(x)" in cause.remote_traceback
        with pytest.raises(OwnError):
            async for _ in peers[0].map(jobs_module.fails, range(10)):
                pass
        values = [v async for v in peers[0].map(jobs_module.fails, range(6), on_error="skip")]
        assert values == [0, 1, 2, 4, 5]

    run(home, 2, body)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("sum", 14850), ("average", 148.5), ("max", 297), ("min", 0)],
)
def test_aggregations(home: Path, aggregation: str, expected: float) -> None:
    async def body(peers: list[Peer]) -> None:
        outcome = await peers[0].map_reduce(jobs_module.triple_of, None, range(100), aggregation=aggregation)
        assert outcome.value == expected
        assert outcome.progress.tasks_done == 100

    run(home, 2, body)


def test_concat_custom_weighted_and_reduce(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        peer = peers[1]
        concat = await peer.map_reduce(jobs_module.as_list, None, range(50), aggregation="concat")
        assert concat.value == [x for x in range(50) for _ in range(2)]
        weights = [float(x) for x in range(20)]
        custom = await peer.map_reduce(
            jobs_module.identity, jobs_module.weighted, range(20), aggregation="custom", weights=weights
        )
        assert custom.value == sum(x * x for x in range(20))
        total = await peer.map_reduce(jobs_module.identity, None, range(20), aggregation="sum", weights=weights)
        assert total.value == sum(x * x for x in range(20))
        texts = [f"a b{x % 7} c{x % 3}" for x in range(200)]
        words = await peer.map_reduce(jobs_module.words, jobs_module.merged, texts)
        assert words.value == sum((Counter(text.split()) for text in texts), Counter())
        letters = [chr(97 + x % 26) for x in range(333)]
        text = await peer.map_reduce(jobs_module.identity, jobs_module.concatenated, letters)
        assert text.value == "".join(letters), "a reduction must keep the order of inputs"

    run(home, 2, body)


def test_large_arguments_and_results_travel_as_blobs(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        data = bytes(range(256)) * 8192  # 2 MiB
        lengths = [v async for v in peers[0].map(jobs_module.length, [data + bytes([n]) for n in range(8)])]
        assert lengths == [len(data) + 1] * 8
        results = [v async for v in peers[0].map(jobs_module.big, [3_000_000] * 6)]
        assert all(result == b"z" * 3_000_000 for result in results)

    run(home, 2, body)


def test_put_gives_a_handle_that_every_peer_can_use(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        table = await peers[0].put({"numbers": list(range(100_000))})
        totals = [v async for v in peers[0].map(jobs_module.table_entry(table), range(6))]
        assert totals == list(range(6))

    run(home, 2, body)


def test_bad_input_is_refused_before_anything_runs(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        peer = peers[0]
        with pytest.raises(UnknownNameError, match="average"):
            await peer.map_reduce(jobs_module.identity, None, [1], aggregation="averag")
        with pytest.raises(UnknownNameError, match="retries"):
            async for _ in peer.map(jobs_module.identity, [1], retrys=3):
                pass
        with pytest.raises(UsageError, match="needs a function"):
            await peer.map_reduce(jobs_module.identity, None, [1], aggregation="reduce")
        with pytest.raises(NotSerializableError), open(__file__) as file:  # noqa: ASYNC230
            await peer.submit(jobs_module.identity, file)  # type: ignore[arg-type]
        handle = threading.Lock()
        with pytest.raises(CannotShipError, match="handle"):
            await peer.submit(lambda: handle)
        with pytest.raises(UsageError, match="timeout_s"):
            async for _ in peer.map(jobs_module.identity, [1], timeout_s=-1):
                pass

    run(home, 1, body)


def test_a_time_out_stops_the_code(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(TaskTimeoutError):
            async for _ in peers[0].map(jobs_module.slow, [60.0], timeout_s=0.3):
                pass
        assert loop.time() - start < 20
        assert await peers[0].submit(jobs_module.scaled, 1) == 30

    run(home, 1, body)


def test_a_task_that_kills_its_workers_fails_with_its_history(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        with pytest.raises(WorkerDiedError) as caught:
            async for _ in peers[0].map(jobs_module.exits, [1]):
                pass
        assert caught.value.history
        assert "peer" in caught.value.history[0]
        assert await peers[0].submit(jobs_module.scaled, 1) == 30, "the peers live on"

    run(home, 2, body)


def test_a_missing_module_names_module_and_peer(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        with pytest.raises((MissingModuleError, ModuleNotFoundError, CannotShipError), match="no_such_module"):
            await peers[0].submit(jobs_module.needs_module, 1)

    run(home, 1, body)


def test_a_cancelled_map_stops_running_code(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        async for value in peers[0].map(jobs_module.slow, [0.0] + [60.0] * 4, ordered=False):
            assert value == 0.0
            break
        await until(lambda: peers[0].lender.load == 0 and peers[1].lender.load == 0, "nothing runs any more", 20)
        await until(lambda: all(job.end is not None for job in peers[0].origin.jobs.values()), "the job has ended")

    run(home, 2, body)


def test_a_cancelled_submit_stops_its_task(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await peers[0].submit(jobs_module.slow, 60.0)
        await until(lambda: peers[0].lender.load == 0, "nothing runs any more", 20)

    run(home, 1, body)


def test_output_and_progress_stream_back(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        seen: list[str] = []
        values = [
            v
            async for v in peers[0].map(
                jobs_module.shout, range(5), on_output=lambda rows: seen.extend(row.text for row in rows)
            )
        ]
        assert values == list(range(5))
        await until(lambda: "working on 4" in "".join(seen) and "trouble" in "".join(seen), "all output is here")
        assert [v async for v in peers[0].map(jobs_module.flood, [1])] == [1]

    run(home, 2, body)


def test_memory_hog_is_the_tasks_failure_only(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        with pytest.raises(JobError, match="memory"):
            async for _ in peers[0].map(jobs_module.hog, [1], memory_bytes=512 << 20):
                pass
        assert await peers[0].submit(jobs_module.scaled, 1) == 30

    run(home, 1, body)


def test_a_peer_that_stops_in_mid_job_loses_nothing(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        values = []
        async for value in peers[0].map(jobs_module.naps, range(120)):
            values.append(value)
            if len(values) == 20:
                await peers[1].stop()
        assert values == [x * x for x in range(120)]

    run(home, 3, body)


def test_nobody_to_work_is_said(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        messages: list[str] = []
        with pytest.raises(TaskTimeoutError, match="job took longer"):
            async for _ in peers[0].map(
                jobs_module.identity, [1], job_timeout_s=1, on_progress=lambda p: messages.append(p.message)
            ):
                pass
        assert any("peer" in message for message in messages), "nobody said what the job waits for"

    run(home, 1, body, slots=0)


def test_a_failing_iterator_ends_the_job_with_its_own_error(home: Path) -> None:
    def inputs():
        yield 1
        raise LookupError("the list of inputs is broken")

    async def body(peers: list[Peer]) -> None:
        with pytest.raises(LookupError, match="list of inputs"):
            async for _ in peers[0].map(jobs_module.identity, inputs()):
                pass

    run(home, 1, body)


def test_many_submits_at_once(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(peers[0].submit(jobs_module.scaled, x)) for x in range(500)]
        assert [task.result() for task in tasks] == [30 * x for x in range(500)]

    run(home, 2, body)


def test_after_stop_submit_says_so(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        await peers[0].stop()
        with pytest.raises((JobCancelledError, JobError, Exception), match="not running"):
            await peers[0].submit(jobs_module.scaled, 1)

    run(home, 1, body)


def test_calls_and_jobs_use_the_links_that_there_are(home: Path) -> None:
    """No connection is made for a call: what peers say to each other about it goes over the links that joined them."""

    async def body(peers: list[Peer]) -> None:
        def links() -> list[set[int]]:
            return [{id(link) for link in peer.overlay.hub.links.values()} for peer in peers]

        before = links()
        for number in range(30):
            assert await peers[number % 3].submit(jobs_module.naps, number) == number * number
        assert [x async for x in peers[0].map(jobs_module.naps, range(60))] == [x * x for x in range(60)]
        assert links() == before
        # Calls of one function are one open job, whose program is where it runs.
        assert sum(job.end is None for job in peers[0].origin.jobs.values()) == 1

    run(home, 3, body)
