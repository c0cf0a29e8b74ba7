"""What peers learn from jobs, over real peers, links and worker processes: records, smart_adaptive, the request cache."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jobs_module
import pytest

from p2pcompute.jobs.strategies.smart_adaptive import SmartAdaptive
from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import JobOptions, JobProgress, Outcome
from p2pcompute.model.peer import Address
from p2pcompute.model.performance import FunctionKey, PerformanceRecord
from p2pcompute.net.control import ControlServer
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.control_methods import ControlMethods
from p2pcompute.node.folders import Folders
from p2pcompute.node.learner import RiverLearner
from p2pcompute.node.peer import Peer
from p2pcompute.node.remote import RemotePeer
from tests.support.holding import PLAIN
from tests.support.peers import Machine, linked, machine, own_ports, until, until_now

MISSING = "the package river is not installed: pip install 'p2pcompute[learning]'"


def a_peer(home: Path, number: int, *beside: Peer, **changes: Any) -> Peer:
    bootstrap = tuple(Address("127.0.0.1", peer.port) for peer in beside[:1])
    config = PeerConfig.test(**{"name": f"peer{number}", "instance": number, "bootstrap": bootstrap, **changes})
    return Peer(config, folders=Folders.beneath(home))


@contextlib.asynccontextmanager
async def three(home: Path, **changes: Any) -> AsyncIterator[list[Peer]]:
    """An origin that lends nothing, and two lenders of one slot each."""
    async with (
        a_peer(home, 1, slots=0) as first,
        a_peer(home, 2, first, slots=1, **changes) as second,
        a_peer(home, 3, first, slots=1, **changes) as third,
    ):
        peers = [first, second, third]
        await linked(peers)
        yield peers


def run(body: Any, timeout_s: float = 60) -> None:
    async def main() -> None:
        async with asyncio.timeout(timeout_s):
            await body

    asyncio.run(main())


async def naps(peer: Any, inputs: Any, **options: Any) -> JobProgress:
    """The progress at the end of a job of naps. None runs twice, or it would be counted twice."""
    options = options if "options" in options else {"speculate": False, **options}
    seen: list[JobProgress] = []
    values = [x async for x in peer.map(jobs_module.naps, inputs, on_progress=seen.append, **options)]
    assert values == [x * x for x in inputs]
    return seen[-1]


async def both(peer: Any, inputs: list[tuple[str, int, int]], **options: Any) -> JobProgress:
    """The progress at the end of a job of what `for_both` gave."""
    seen: list[JobProgress] = []
    values = [x async for x in peer.map(jobs_module.together, inputs, on_progress=seen.append, **options)]
    assert values == [x * x for x in range(len(inputs))]
    return seen[-1]


def for_both(count: int, folder: Path) -> list[tuple[str, int, int]]:
    """Inputs of `count` tasks, none of which ends before both lenders have begun one; `folder` is made."""
    folder.mkdir()
    return [(str(folder), 2, x) for x in range(count)]


def function_of(peer: Peer) -> FunctionKey:
    """What the newest job of a peer runs."""
    spec = list(peer.origin.jobs.values())[-1].spec
    return FunctionKey(spec.map_entry, spec.program)


def learned(peer: Peer, strategy: str) -> list[PerformanceRecord]:
    """The records in the database of a peer about jobs of a strategy."""
    return [each.record for each in peer.records._database.recent(1000) if each.record.strategy == strategy]


@pytest.mark.parametrize("strategy", ["hlig", "round_robin"])
def test_every_job_leaves_records_that_survive_the_peer(home: Path, tmp_path: Path, strategy: str) -> None:
    async def body() -> None:
        async with three(home, **PLAIN) as peers:
            assert (await both(peers[0], for_both(12, tmp_path / "begun"), strategy=strategy)).tasks_done == 12
            with pytest.raises(jobs_module.OwnError):
                assert [x async for x in peers[0].map(jobs_module.fails, [3], strategy=strategy)]
            await peers[0].records.write()
            records = learned(peers[0], strategy)
            by_outcome: Counter[Outcome] = Counter()
            for record in records:
                by_outcome[record.outcome] += record.tasks
            assert by_outcome == {Outcome.RETURNED: 12, Outcome.RAISED: 1}
            good = [record for record in records if record.outcome is Outcome.RETURNED]
            assert {record.peer for record in good} == {peer.peer_id for peer in peers[1:]}
            assert all(0 < record.wall_s < 60 and record.input_bytes > 0 and record.features for record in good)
            told = [peers[0].records.of_peer(peer.peer_id)[0] for peer in peers[1:]]
        async with a_peer(home, 1, slots=0) as again:
            after = [again.records.of_peer(peer.peer_id)[0] for peer in peers[1:]]
            assert [row and (row.counted, row.succeeded) for row in after] == [
                row and (row.counted, row.succeeded) for row in told
            ]
            assert sum(row.counted for row in after if row is not None) == 13
            assert again.records.shared.core._functions, "the adaptive core learns from what was written"

    run(body())


def test_smart_adaptive_runs_and_learns(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("river", reason=MISSING)

    async def body() -> None:
        async with three(home, **PLAIN) as peers:
            records = peers[0].records
            means: SmartAdaptive = records.shared.core
            assert means._learner is None
            options = {"strategy": "smart_adaptive", "optimization_target": "minimize_cost"}
            progress = await both(peers[0], for_both(40, tmp_path / "begun"), **options)
            assert {who for who, _ in progress.done_by_peer} == {peer.peer_id for peer in peers[1:]}
            await until(lambda: records.shared.core is not means, "the regression is loaded")
            assert isinstance(records.shared.core._learner, RiverLearner)
            function = function_of(peers[0])
            # What was learned while it was loaded is in it, and it goes on learning.
            before = records.shared.core._functions[function].records
            assert before > 0
            await both(peers[0], for_both(20, tmp_path / "begun again"), strategy="dynamic")
            assert records.shared.core._functions[function].records > before
            await records.write()
            assert {r.strategy for r in learned(peers[0], "smart_adaptive") + learned(peers[0], "dynamic")} == {
                "smart_adaptive",
                "dynamic",
            }

    run(body())


def test_smart_adaptive_avoids_who_was_slow(home: Path) -> None:
    """Two peers say the same of themselves; what their tasks took decides who is asked first."""
    pytest.importorskip("river", reason=MISSING)

    async def body() -> None:
        async with three(home) as peers:
            options = JobOptions(strategy="smart_adaptive")
            await naps(peers[0], range(4), options=options)
            records, function = peers[0].records, function_of(peers[0])
            await until(lambda: records.shared.core._learner is not None, "the regression is loaded")
            for slow in (peers[1], peers[2]):
                for _ in range(60):
                    for peer in peers[1:]:
                        wall_s = 5.0 if peer is slow else 0.05
                        records._keep(record_of(function, peer.peer_id, wall_s), asyncio.get_running_loop().time())
                quick = peers[2] if slow is peers[1] else peers[1]
                for _ in range(3):
                    done = (await naps(peers[0], [1], options=options)).done_by_peer
                    assert done == ((quick.peer_id, 1),)

    run(body())


def record_of(function: FunctionKey, peer: PeerId, wall_s: float) -> PerformanceRecord:
    return PerformanceRecord(function, peer, "smart_adaptive", Outcome.RETURNED, wall_s, tasks=1)


def test_equal_calls_are_answered_without_a_peer(home: Path) -> None:
    async def body() -> None:
        async with three(home) as peers:
            lenders = peers[1:]

            def tasks() -> int:
                return sum(peer.lender.tasks_done for peer in lenders)

            first = await naps(peers[0], range(8), cache_ttl_s=300)
            assert (first.tasks_cached, tasks()) == (0, 8)
            again = await naps(peers[0], range(10), cache_ttl_s=300)
            assert (again.tasks_cached, again.tasks_done, again.tasks_total, tasks()) == (8, 10, 10, 10)
            assert (await naps(peers[0], range(10), cache_ttl_s=300)).tasks_cached == 10
            seen: list[JobProgress] = []
            many = peers[0].map(
                jobs_module.naps, iter(range(10)), on_progress=seen.append, cache_ttl_s=300, speculate=False
            )
            assert [value async for value in many] == [x * x for x in range(10)]
            assert (seen[-1].tasks_cached, seen[-1].tasks_done, seen[-1].tasks_total) == (10, 10, 10)
            # Nobody else is given what was computed for others, and what was not asked for is not kept.
            assert (await naps(peers[0], range(8))).tasks_cached == 0
            assert tasks() == 18
            # Single calls, also when nobody is there any more.
            options = JobOptions(cache_ttl_s=300, speculate=False)
            assert await peers[0].call(jobs_module.naps, (50,), None, options) == 2500
            assert tasks() == 19
            for lender in lenders:
                await lender.stop()
            assert await peers[0].call(jobs_module.naps, (50,), None, options) == 2500
            assert (await naps(peers[0], range(10), cache_ttl_s=300)).tasks_cached == 10
            assert peers[0].origin.answers.figures().hits == 8 + 10 + 10 + 1 + 10

    run(body())


def test_answers_grow_old_and_failures_are_no_answers(home: Path) -> None:
    async def body() -> None:
        async with three(home) as peers:
            await naps(peers[0], [1, 2], cache_ttl_s=300)
            # A job that wants newer answers than there are computes; the one after it finds them.
            assert (await naps(peers[0], [1, 2], cache_ttl_s=1e-6)).tasks_cached == 0
            for _ in range(2):
                with pytest.raises(jobs_module.OwnError):
                    assert [x async for x in peers[0].map(jobs_module.fails, [3], cache_ttl_s=300, speculate=False)]
            assert sum(peer.lender.tasks_done for peer in peers[1:]) == 6
            with pytest.raises(UsageError, match="aggregation 'sum'"):
                await peers[0].map_reduce(jobs_module.naps, None, [1], aggregation="sum", cache_ttl_s=300)

    run(body())


def test_all_of_it_crosses_the_control_socket(home: Path) -> None:
    async def body() -> None:
        async with three(home) as peers:
            methods = ControlMethods(peers[0], lambda: None)
            path = peers[0].instance.socket_path
            async with ControlServer(path, methods.handle), await RemotePeer.connect(path) as remote:
                options = {"cache_ttl_s": 60, "strategy": "smart_adaptive", "optimization_target": "minimize_cost"}
                await naps(remote, range(6), **options)
                assert (await naps(remote, range(6), **options)).tasks_cached == 6
                rows = (await remote.ask("peers"))["peers"]
                assert sum(row["tasks"] for row in rows) == 6
                served = [row for row in rows if row["tasks"]]
                assert all(row["success_rate"] == 1.0 and 0.04 < row["mean_s"] < 5 for row in served)
                assert {each["function"] for row in served for each in row["functions"]} == {"naps"}
                with pytest.raises(UnknownNameError, match="minimize_cost"):
                    await naps(remote, [1], optimization_target="minimise_cost")

    run(body())


@pytest.fixture
def here(tmp_path: Path) -> Any:
    with machine(tmp_path / "home", environ=own_ports()) as found:
        yield found


def test_the_command_line_shows_what_was_learned(here: Machine, tmp_path: Path) -> None:
    program = tmp_path / "user_program.py"
    program.write_text("def more(x):\n    return x + 1\n")
    anna = here.up("anna", "--slots", "0")
    bert = here.up("bert", "--slots", "1")
    until_now(lambda: anna.linked_names and bert.linked_names, "both are linked")
    flags = ("--strategy", "smart_adaptive", "--target", "maximize_throughput", "--cache", "60", "--peer", "anna")
    for _ in range(2):
        assert here.run("map", str(program), "more", *flags, "--", "1", "2", "3").stdout.split() == ["2", "3", "4"]
    jobs = here.json("jobs", "--peer", "anna")
    assert [job["tasks_cached"] for job in jobs] == [0, 3]
    assert jobs[-1]["done_by_peer"] == {}
    shown = here.run("job", "show", jobs[-1]["job"], "--peer", "anna").stdout
    assert "from the cache" in shown
    (row,) = here.json("peers", "--peer", "anna")["peers"]
    assert (row["tasks"], row["success_rate"]) == (3, 1.0)
    assert row["functions"][0]["function"] == "user_program.more"
    assert "user_program.more: 100% of 3" in here.run("peers", "--wide", "--peer", "anna").stdout
    refused = here.run("map", str(program), "more", "--target", "minimise_cost", "--", "1", check=False)
    assert refused.returncode == 2
    assert "did you mean 'minimize_cost'" in refused.stderr
    refused = here.run("map", str(program), "more", "--cache", "0", "--", "1", check=False)
    assert "cache_ttl_s is 0" in refused.stderr
