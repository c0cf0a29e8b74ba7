"""Jobs under hard conditions: wrong values, failing reductions, dropped calls, lost workers, floods, clients that leave."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import jobs_module
import pytest

from p2pcompute.model.errors import JobCancelledError, JobError, ResourceError, TaskTimeoutError, UsageError
from p2pcompute.model.job import JobOptions, JobProgress
from p2pcompute.model.peer import Address
from p2pcompute.node import job_stream
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer
from p2pcompute.node.remote import RemotePeer
from p2pcompute.node.service import serving
from tests.support.peers import linked, network, until


def run(home: Path, count: int, body: Callable[[list[Peer]], Awaitable[None]], **changes: object) -> None:
    async def main() -> None:
        async with asyncio.timeout(25), network(home, count, **changes) as peers:
            await body(peers)

    asyncio.run(main())


def odd_fails(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


def always_fails(x: object) -> object:
    raise ValueError("never works")


def fails_to_merge(values: list[int]) -> int:
    raise ValueError("cannot be merged")


def fails_to_weigh(values: list[int], weights: list[float]) -> int:
    raise ValueError("cannot be weighed")


def total(values: list[int]) -> int:
    return sum(values)


def padded(x: int) -> bytes:
    return b"p" * 60_000


def says(x: int) -> int:
    print("line", x)
    return x


def nap_first(x: int) -> int:
    import time

    if x == 0:
        time.sleep(3.0)
    return x


# --- aggregations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["sum", "average", "max", "min", "concat"])
def test_values_that_do_not_fit_end_the_job_even_when_they_come_last(home: Path, aggregation: str) -> None:
    async def body(peers: list[Peer]) -> None:
        for values in ([1, "text"], [1, 2, 3, "text"], ["text", 1]):
            with pytest.raises(JobError, match="task"):
                await peers[0].map_reduce(jobs_module.identity, None, values, aggregation=aggregation)

    run(home, 1, body)


@pytest.mark.parametrize(
    ("aggregation", "reduce"), [("reduce", fails_to_merge), ("custom", fails_to_weigh)], ids=["reduce", "custom"]
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_reduction_that_fails_ends_the_job_whatever_happens_to_failed_inputs(
    home: Path, aggregation: str, reduce: Callable[..., Any], on_error: str
) -> None:
    async def body(peers: list[Peer]) -> None:
        with pytest.raises(ValueError, match="cannot be"):
            await peers[0].map_reduce(
                jobs_module.identity, reduce, range(40), aggregation=aggregation, on_error=on_error
            )

    run(home, 1, body)


@pytest.mark.parametrize("aggregation", ["reduce", "average", "max", "min"])
def test_an_answer_of_nothing_is_an_error_that_says_so(home: Path, aggregation: str) -> None:
    reduce = total if aggregation == "reduce" else None

    async def body(peers: list[Peer]) -> None:
        for inputs in ([], range(20)):
            with pytest.raises(JobError, match=r"no results|no inputs|left out"):
                await peers[0].map_reduce(always_fails, reduce, inputs, aggregation=aggregation, on_error="skip")

    run(home, 1, body)


@pytest.mark.parametrize("aggregation", ["reduce", "sum", "concat", "none"])
def test_inputs_left_out_are_named_and_do_not_stop_the_reading(
    home: Path, aggregation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_stream, "INPUTS_OPEN_MAX", 48)
    even = list(range(0, 300, 2))
    reduce = total if aggregation == "reduce" else None

    async def body(peers: list[Peer]) -> None:
        outcome = await peers[0].map_reduce(odd_fails, reduce, range(300), aggregation=aggregation, on_error="skip")
        assert outcome.value == (sum(even) if aggregation in ("reduce", "sum") else even)
        assert outcome.skipped == tuple(range(1, 300, 2))
        assert outcome.progress.tasks_failed == 150

    run(home, 1, body)


def test_weights_beside_an_iterator_must_be_as_many_as_its_inputs(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        for aggregation, reduce in (("sum", None), ("custom", jobs_module.weighted)):
            for count in (3, 7):
                with pytest.raises(UsageError, match="weights"):
                    await peers[0].map_reduce(
                        jobs_module.identity, reduce, iter(range(5)), aggregation=aggregation, weights=[1.0] * count
                    )
        answer = await peers[0].map_reduce(
            jobs_module.identity, None, iter(range(5)), aggregation="sum", weights=[2.0] * 5
        )
        assert answer.value == 20

    run(home, 1, body)


def test_numbers_too_large_for_a_float_end_the_job_and_nothing_else(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        with pytest.raises(JobError):
            await peers[0].map_reduce(
                jobs_module.identity, None, [10**400, 10**400], aggregation="sum", weights=[0.5, 0.5]
            )
        assert await peers[0].submit(jobs_module.scaled, 1) == 30

    run(home, 1, body)


# --- callers ------------------------------------------------------------------------------------------------------------


def test_what_a_callback_raises_reaches_the_caller_and_the_link_stays(home: Path) -> None:
    def broken(_: object) -> None:
        raise LookupError("the progress bar is broken")

    async def body(peers: list[Peer]) -> None:
        links = [peers[0].overlay.hub.links[peers[1].peer_id]]
        for callback in ("on_progress", "on_output"):
            with pytest.raises(LookupError, match="progress bar"):
                async for _ in peers[0].map(jobs_module.shout, range(50), **{callback: broken}):  # type: ignore[arg-type]
                    pass
            with pytest.raises(LookupError, match="progress bar"):
                await peers[0].map_reduce(
                    jobs_module.shout,
                    None,
                    range(50),
                    aggregation="sum",
                    **{callback: broken},  # type: ignore[arg-type]
                )
        assert [peers[0].overlay.hub.links[peers[1].peer_id]] == links

    run(home, 2, body)


def test_cancelled_calls_give_their_room_and_their_arguments_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_stream, "INPUTS_OPEN_MAX", 4)

    async def body(peers: list[Peer]) -> None:
        for _ in range(12):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await peers[0].submit(jobs_module.slow, 60.0)
        assert await peers[0].submit(jobs_module.slow, 0.0) == 0.0
        (job,) = peers[0].origin.jobs.values()
        assert not job._arguments

    run(home, 1, body)


def test_a_call_cancelled_before_it_was_sent_never_runs(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        assert await peers[0].submit(jobs_module.slow, 0.0) == 0.0
        async with asyncio.TaskGroup() as group:
            call = group.create_task(peers[0].submit(jobs_module.slow, 60.0))
            group.create_task(asyncio.sleep(0)).add_done_callback(lambda _: call.cancel())
        async with asyncio.timeout(20):
            assert await peers[0].submit(jobs_module.slow, 0.01) == 0.01

    run(home, 1, body)


def test_a_time_limit_of_one_call_is_not_that_of_the_next(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        assert await peers[0].call(jobs_module.slow, (0.0,)) == 0.0  # a worker is warm now
        options = JobOptions(job_timeout_s=2.5)
        for _ in range(3):
            assert await peers[0].call(jobs_module.slow, (0.9,), options=options) == 0.9
        with pytest.raises(TaskTimeoutError):
            await peers[0].call(jobs_module.slow, (60.0,), options=options)

    run(home, 1, body)


def test_the_reading_of_inputs_ends_with_the_job(home: Path) -> None:
    closed = threading.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            yield 3
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def body(peers: list[Peer]) -> None:
        with pytest.raises(jobs_module.OwnError):
            async for _ in peers[0].map(jobs_module.fails, endless()):
                pass
        await peers[0].submit(jobs_module.scaled, 1)
        peers[0]._close_sessions()
        tasks = peers[0]._supervisor._tasks
        await until(lambda: not [t for t in tasks.values() if t.get_name().startswith("inputs of")], "nobody reads on")
        await until(closed.is_set, "the iterator was closed")

    run(home, 1, body)


def test_an_iterator_that_is_cancelled_ends_its_job(home: Path) -> None:
    async def cancelled() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    async def body(peers: list[Peer]) -> None:
        with pytest.raises(JobCancelledError):
            async for _ in peers[0].map(jobs_module.identity, cancelled()):
                pass

    run(home, 1, body)


def test_callers_of_a_peer_that_stops_are_told(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        async def mapped() -> None:
            async for _ in peers[0].map(jobs_module.slow, [60.0] * 5):
                pass

        calls = [peers[0].submit(jobs_module.slow, 60.0), mapped()]
        calls += [peers[0].map_reduce(jobs_module.slow, None, [60.0] * 3, aggregation="sum")]
        async with asyncio.TaskGroup() as group:
            outcomes = [group.create_task(_outcome(call)) for call in calls]
            await until(lambda: len(peers[0].origin.jobs) == 3, "all are open")
            await peers[0].stop()
        assert [type(outcome.result()) for outcome in outcomes] == [JobCancelledError] * 3

    run(home, 2, body, slots=2)


async def _outcome(call: Any) -> object:
    try:
        return await call
    except Exception as error:
        return error


# --- workers and links ----------------------------------------------------------------------------------------------------


def test_workers_that_die_one_after_the_other_do_not_stop_the_peer(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        values = [v async for v in peers[0].map(jobs_module.exits, range(12), on_error="skip", retries=0)]
        assert values == []
        assert await peers[0].submit(jobs_module.scaled, 1) == 30

    run(home, 1, body, slots=2)


def test_workers_that_cannot_be_started_are_tried_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(peers: list[Peer]) -> None:
        pool = peers[0].lender.pool
        start, failures = pool.spawn, iter(range(2))

        def spawn(*arguments: Any) -> int:
            if next(failures, None) is not None:
                raise ResourceError("no descriptor is left")
            return start(*arguments)

        monkeypatch.setattr(pool, "spawn", spawn)
        assert await peers[0].submit(jobs_module.scaled, 1) == 30

    run(home, 1, body)


def _without_slots(home: Path, slots: int, body: Callable[[Peer, Peer], Awaitable[None]]) -> None:
    """`body(submitter, worker)`: everything crosses a link."""

    async def main() -> None:
        folders = Folders.beneath(home)
        config = PeerConfig.test(name="submitter", slots=0)
        async with asyncio.timeout(25), Peer(config, folders=folders) as submitter:
            bootstrap = (Address("127.0.0.1", submitter.port),)
            config = PeerConfig.test(name="worker", slots=slots, bootstrap=bootstrap)
            async with Peer(config, folders=folders) as worker:
                await linked([submitter, worker])
                await body(submitter, worker)

    asyncio.run(main())


def test_arguments_and_results_just_below_the_limit_do_not_flood_a_link(home: Path) -> None:
    async def body(submitter: Peer, worker: Peer) -> None:
        link = submitter.overlay.hub.links[worker.peer_id]
        progress: list[JobProgress] = []
        data = b"d" * 60_000
        async for value in submitter.map(jobs_module.length, (data for _ in range(4000)), on_progress=progress.append):
            assert value == 60_000
        async for value in submitter.map(padded, range(4000), on_progress=progress.append):
            assert len(value) == 60_000
        assert progress[-1].retries == 0
        assert submitter.overlay.hub.links[worker.peer_id] is link

    _without_slots(home, 4, body)


def test_many_lines_of_output_do_not_break_a_link(home: Path) -> None:
    async def body(submitter: Peer, worker: Peer) -> None:
        link = submitter.overlay.hub.links[worker.peer_id]
        seen: list[str] = []
        values = [
            value
            async for value in submitter.map(
                says, range(4000), on_output=lambda rows: seen.extend(row.text for row in rows)
            )
        ]
        assert values == list(range(4000))
        assert submitter.overlay.hub.links[worker.peer_id] is link
        await until(lambda: "line 3999" in "".join(seen), "the output came")

    _without_slots(home, 1, body)


def test_a_peer_that_stops_gives_back_what_it_has_not_begun(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        progress: list[JobProgress] = []
        values = []
        async for value in peers[0].map(jobs_module.naps, range(60), on_progress=progress.append):
            values.append(value)
            if len(values) == 10:
                await peers[1].stop()
        assert values == [x * x for x in range(60)]
        assert progress[-1].retries <= 1, "what had not begun cost an attempt"

    run(home, 2, body)


# --- across the control socket --------------------------------------------------------------------------------------------


def remote(home: Path, body: Callable[[Peer, RemotePeer], Awaitable[None]], **changes: Any) -> None:
    async def main() -> None:
        config = dataclasses.replace(PeerConfig.test(name="served", slots=2), **changes)
        served = serving(config, lambda: None, Folders.beneath(home))
        async with asyncio.timeout(20), served as peer, await RemotePeer.connect(peer.instance.socket_path) as client:
            await body(peer, client)

    asyncio.run(main())


def test_a_client_reads_no_further_ahead_than_it_takes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_stream, "INPUTS_OPEN_MAX", 2000)
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for number in range(20_000):
            read = number
            yield number

    async def body(peer: Peer, client: RemotePeer) -> None:
        ahead = []
        values = client.map(nap_first, numbers())
        assert await anext(values) == 0
        ahead.append(read)
        assert await anext(values) == 1
        assert ahead[0] < 2000 + 20 * 256
        await values.aclose()  # type: ignore[attr-defined]

    remote(home, body)


def test_a_client_whose_first_result_is_late_gets_all_of_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.model.limits.INPUTS_AHEAD", 64)

    async def body(peer: Peer, client: RemotePeer) -> None:
        assert [value async for value in client.map(nap_first, range(6000))] == list(range(6000))

    remote(home, body)


def test_a_call_that_a_client_cancels_is_stopped(home: Path) -> None:
    async def body(peer: Peer, client: RemotePeer) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await client.submit(jobs_module.slow, 60.0)
        await until(lambda: peer.lender.load == 0, "nothing runs any more", 20)
        assert await client.submit(jobs_module.slow, 0.0) == 0.0

    remote(home, body)


def test_jobs_of_a_client_that_leaves_are_cancelled_and_its_callers_told(home: Path) -> None:
    async def body(peer: Peer, client: RemotePeer) -> None:
        async with await RemotePeer.connect(peer.instance.socket_path) as other:
            async with asyncio.TaskGroup() as group:
                outcome = group.create_task(_outcome(other.submit(jobs_module.slow, 60.0)))
                await until(lambda: peer.lender.load > 0, "it runs")
                await other.close()
            assert isinstance(outcome.result(), JobCancelledError)
        await until(lambda: all(job.end is not None for job in peer.origin.jobs.values()), "its job has ended")
        await until(lambda: peer.lender.load == 0, "nothing runs any more", 20)

    remote(home, body)


def test_a_client_that_leaves_at_once_does_not_leave_its_callers_waiting(home: Path) -> None:
    async def body(peer: Peer, client: RemotePeer) -> None:
        other = await RemotePeer.connect(peer.instance.socket_path)
        async with asyncio.TaskGroup() as group:
            outcome = group.create_task(_outcome(other.submit(jobs_module.slow, 60.0)))
            group.create_task(other.close())
        assert isinstance(outcome.result(), (JobCancelledError, ResourceError))

    remote(home, body)
