"""Where tasks run: strategies, requirements, budgets and health, over real peers, links and worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import jobs_module
import pytest

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.shares import ShareState
from p2pcompute.jobs.strategies import Situation
from p2pcompute.model.errors import (
    BudgetExceededError,
    NoAvailableNodesError,
    StrategyError,
    UnknownNameError,
    UsageError,
)
from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import JobOptions, JobProgress
from p2pcompute.model.peer import Address
from p2pcompute.model.placement import Budget, OnUnmet, Preferences
from p2pcompute.net.control import ControlServer
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.control_methods import ControlMethods
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer
from p2pcompute.node.remote import RemotePeer
from tests.support.holding import PLAIN, PLAIN_ENVIRONMENT, holding
from tests.support.peers import Machine, linked, machine, own_ports, until, until_now

LAB, DEAR = {"labels": ("zone=lab",)}, {"cost_per_hour": 100.0, "performance_tier": "premium"}


@contextlib.asynccontextmanager
async def peers_of(home: Path, *configs: dict[str, Any]) -> AsyncIterator[list[Peer]]:
    """Linked peers, each with its own configuration, one slot each unless it says otherwise."""
    async with contextlib.AsyncExitStack() as stack:
        peers: list[Peer] = []
        for number, changes in enumerate(configs, 1):
            peers.append(await stack.enter_async_context(one_more(home, number, peers, **changes)))
        await linked(peers)
        yield peers


def one_more(home: Path, number: int, peers: Sequence[Peer], **changes: Any) -> Peer:
    bootstrap = tuple(Address("127.0.0.1", peer.port) for peer in peers[:1])
    config = PeerConfig.test(**{"name": f"peer{number}", "slots": 1, "bootstrap": bootstrap, **changes})
    return Peer(config, folders=Folders.beneath(home))


async def done_by(peer: Peer, count: int = 12, **options: Any) -> Counter[str]:
    """Who did how many of `count` naps."""
    return await done_by_each(peer, jobs_module.naps, range(count), **options)


async def done_by_each(peer: Peer, function: Callable[..., int], inputs: Sequence[Any], **options: Any) -> Counter[str]:
    """Who did how many of `inputs`, of which the squares of 0, 1, … come."""
    seen: list[JobProgress] = []
    values = [x async for x in peer.map(function, inputs, on_progress=seen.append, **options)]
    assert values == [x * x for x in range(len(inputs))]
    return Counter({peer.name_of(who): number for who, number in seen[-1].done_by_peer})


def run(body: Any, timeout_s: float = 60) -> None:
    async def main() -> None:
        async with asyncio.timeout(timeout_s):
            await body

    asyncio.run(main())


def test_a_job_runs_only_where_its_requirements_are_met(home: Path) -> None:
    async def body() -> None:
        async with peers_of(home, {}, LAB, DEAR) as peers:
            assert set(await done_by(peers[0], requirements={"labels": {"zone": "lab"}})) == {"peer2"}
            assert set(await done_by(peers[0], requirements=["performance_tier >= premium"])) == {"peer3"}
            assert set(await done_by(peers[0], requirements=["name != peer1", "cost_per_hour <= 1"])) == {"peer2"}
            # A single call too, and the peer itself may be the only one.
            options = JobOptions(requirements={"labels": "zone=lab"})  # type: ignore[arg-type]
            assert await peers[1].call(jobs_module.scaled, (2,), None, options) == 60

    run(body())


def test_a_requirement_that_nobody_meets_names_the_nearest_peer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.jobs.judging.SETTLING_S", 1.0)

    async def body() -> None:
        async with peers_of(home, {}, LAB) as peers:
            with pytest.raises(
                NoAvailableNodesError, match=r"no peer has cpu_cores >= 9999: the nearest is .* with \d+"
            ):
                await done_by(peers[0], requirements={"cpu_cores": ">=9999"})
            with pytest.raises(
                NoAvailableNodesError, match=r"the nearest is peer2 \(\w{8}\), which lacks gpu_count >= 64"
            ):
                await done_by(peers[0], requirements={"gpu_count": ">=64", "labels": "zone=lab"})
            # Single calls too, also those that fail as soon as they are made.
            options = JobOptions(requirements={"gpu_count": 64})  # type: ignore[arg-type]
            for _ in range(3):
                with pytest.raises(NoAvailableNodesError, match="no peer has gpu_count >= 64"):
                    await peers[0].call(jobs_module.scaled, (2,), None, options)
            # What was refused harms nothing.
            assert sum((await done_by(peers[0])).values()) == 12

    run(body())


def test_a_peer_that_has_just_started_waits_for_its_links(home: Path) -> None:
    async def body() -> None:
        async with peers_of(home, LAB) as peers, one_more(home, 2, peers) as newcomer:
            # No link is up when this is asked for.
            assert set(await done_by(newcomer, requirements={"labels": "zone=lab"})) == {"peer1"}

    run(body())


def test_a_job_that_waits_says_so_and_goes_on_when_a_peer_comes(home: Path) -> None:
    async def body() -> None:
        async with peers_of(home, {}, {}) as peers:
            seen: list[JobProgress] = []
            results = peers[0].map(
                jobs_module.naps,
                range(6),
                on_progress=seen.append,
                requirements={"labels": {"zone": "lab"}},
                on_unmet="wait",
            )
            async with asyncio.TaskGroup() as group:
                task = group.create_task(_all(results))
                await until(
                    lambda: seen and "no peer has label zone=lab" in seen[-1].message, "it says what it waits for"
                )
                async with one_more(home, 3, peers, **LAB) as third:
                    assert await task == [x * x for x in range(6)]
                    assert dict(seen[-1].done_by_peer) == {third.peer_id: 6}

    run(body())


async def _all(results: AsyncIterator[Any]) -> list[Any]:
    return [value async for value in results]


def test_a_budget_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.jobs.judging.SETTLING_S", 1.0)

    async def body() -> None:
        async with peers_of(home, {"slots": 0}, DEAR, {**DEAR, "cost_per_hour": 1e5}) as peers:
            with pytest.raises(
                BudgetExceededError, match=r"would cost 27\.78 and its budget is 1 USD.*peer2.*nothing was run"
            ):
                await done_by(peers[0], 10, budget=1, expected_task_s=100)
            with pytest.raises(BudgetExceededError, match="does not pay for one task"):
                await done_by(peers[0], 10, budget=0)
            assert all(peer.lender.tasks_done == 0 for peer in peers), "something ran"
            # Ten naps of 50 ms cost 0.014 at the cheaper one; nothing is left for the other.
            assert set(await done_by(peers[0], 10, budget={"max_cost": 0.1}, expected_task_s=0.05)) == {"peer2"}
            # What turns out dearer than was thought ends once the money is gone.
            with pytest.raises(BudgetExceededError, match=r"used up after \d+ of 100 tasks"):
                await done_by(peers[0], 100, budget={"max_cost": 0.01}, expected_task_s=0.0001)

    run(body())


def test_cost_aware_uses_what_is_free_first(home: Path) -> None:
    async def body() -> None:
        async with peers_of(home, {"slots": 0}, DEAR, {}) as peers:
            assert set(await calls(peers[0], 5, JobOptions(strategy="cost_aware"))) == {"peer3"}
            nothing_dear = Preferences(cost_limit=1.0)
            assert set(await done_by(peers[0], strategy="cost_aware", preferences=nothing_dear)) == {"peer3"}

    run(body())


async def calls(peer: Peer, count: int, options: JobOptions) -> Counter[str]:
    """Who did how many of `count` single calls, one after the other, once every peer has the job behind them."""

    def session() -> JobProgress:
        return peer.origin.progress(next(reversed(peer._sessions.values())).job)

    def is_settled() -> bool:
        machine = peer.origin._machine
        shares = machine._jobs[session().job].shares.values()
        return all(
            share.state is ShareState.REFUSED
            or (share.state is ShareState.READY and machine._roster.lenders[share.peer].granted is not None)
            for share in shares
        )

    await peer.call(jobs_module.naps, (1,), None, options)
    await until(is_settled, "every peer has accepted the job or refused it")
    before = Counter(dict(session().done_by_peer))
    for _ in range(count):
        await peer.call(jobs_module.naps, (1,), None, options)
    done = Counter(dict(session().done_by_peer)) - before
    return Counter({peer.name_of(who): number for who, number in done.items()})


def test_round_robin_takes_turns(home: Path, tmp_path: Path) -> None:
    """Turns are whose task it is next. Who has ended and finds tasks waiting for a peer that has not accepted yet takes them, and
    late tasks run a second time elsewhere: so here no task ends before all have been sent, and none runs twice."""
    begun = tmp_path / "begun"
    begun.mkdir()

    async def body() -> None:
        async with peers_of(home, *[{"slots": 4, **PLAIN}] * 3) as peers:
            inputs = [(str(begun), 6, x) for x in range(6)]
            spread = await done_by_each(peers[0], jobs_module.together, inputs, strategy="round_robin", speculate=False)
            assert spread == {"peer1": 2, "peer2": 2, "peer3": 2}
            spread = await calls(peers[0], 9, JobOptions(strategy="round_robin", speculate=False))
            assert spread == {"peer1": 3, "peer2": 3, "peer3": 3}

    run(body())


def test_it_is_known_which_peers_have_the_data_of_a_job(home: Path) -> None:
    """That they then come first, `tests/unit/jobs/test_placing.py` shows."""

    async def body() -> None:
        async with peers_of(home, {"slots": 0}, {}, {}) as peers:
            table = await peers[0].put({"numbers": bytes(1_000_000)})
            entry = jobs_module.table_entry(table)
            books = peers[0].origin._machine._jobs
            for name, holders in (("peer3", peers[2:]), ("peer2", peers[1:])):
                only = JobOptions(requirements={"name": name})  # type: ignore[arg-type]
                assert await peers[0].call(entry, (7,), None, only) == 0
                book = list(books.values())[-1]
                assert book.placing.shared_bytes == table.size_bytes
                assert book.placing.held_bytes == {peer.peer_id: table.size_bytes for peer in holders}

    run(body())


def test_prefer_local_and_a_balancer_of_ones_own(home: Path) -> None:
    asked: list[int] = []

    def last(candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        asked.append(len(candidates))
        return [max(candidates, key=lambda each: each.facts.name).peer]

    def broken(candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        raise ZeroDivisionError("no balance")

    async def body() -> None:
        async with peers_of(home, {"slots": 4}, {"slots": 4}) as peers:
            at_home = JobOptions(preferences=Preferences(prefer_local=True), speculate=False)
            assert set(await calls(peers[0], 4, at_home)) == {"peer1"}
            assert set(await done_by(peers[0], 8, balancer=last)) == {"peer2"}
            assert asked
            with pytest.raises(StrategyError, match="ZeroDivisionError: no balance"):
                await done_by(peers[0], 8, balancer=broken)
            assert sum((await done_by(peers[0], 8, balancer=broken, fallback_strategy="least_loaded")).values()) == 8

    run(body())


def test_a_strategy_that_leaves_out_everybody_hands_over_to_the_fallback(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pcompute.jobs.judging.SETTLING_S", 1.0)

    async def body() -> None:
        async with peers_of(home, {"slots": 0}, {}) as peers:
            lenders = peers[0].origin._machine._roster.lenders
            await until(lambda: lenders[peers[1].peer_id].rtt_s > 0, "the round trip is known")
            near = {"strategy": "latency_based", "preferences": {"max_latency_s": 1e-9}}
            with pytest.raises(NoAvailableNodesError, match="latency_based leaves out all of 1 peers"):
                await done_by(peers[0], 3, **near)
            assert await done_by(peers[0], 3, fallback_strategy="round_robin", **near) == {"peer2": 3}

    run(body())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "round_robbin"}, "round_robin"),
        ({"requirements": {"gpu_memry": ">=1GB"}}, "gpu_memory"),
        ({"preferences": {"prefer_locl": True}}, "prefer_local"),
        ({"task_type": "computed"}, "compute"),
    ],
)
def test_names_are_checked_before_anything_is_sent(home: Path, options: dict[str, Any], words: str) -> None:
    async def body() -> None:
        async with peers_of(home, {}) as peers:
            with pytest.raises(UnknownNameError, match=words):
                await done_by(peers[0], **options)
            assert not peers[0].origin.jobs

    run(body())


def test_all_of_it_crosses_the_control_socket(home: Path) -> None:
    async def body() -> None:
        async with peers_of(home, {"slots": 0}, LAB, DEAR) as peers:
            path = peers[0].instance.socket_path
            methods = ControlMethods(peers[0], lambda: None)
            async with ControlServer(path, methods.handle), await RemotePeer.connect(path) as remote:
                seen: list[JobProgress] = []
                options = JobOptions(
                    strategy="cost_aware",
                    fallback_strategy="round_robin",
                    requirements={"labels": "zone=lab", "python": ">=3.11"},  # type: ignore[arg-type]
                    preferences=Preferences(max_latency_s=5.0, cost_limit=10.0),
                    budget=Budget(1.0, "EUR"),
                    expected_task_s=0.05,
                    on_unmet=OnUnmet.WAIT,
                )
                values = [
                    x async for x in remote.map(jobs_module.naps, range(6), options=options, on_progress=seen.append)
                ]
                assert values == [x * x for x in range(6)]
                assert [remote.name_of(peer) for peer, _ in seen[-1].done_by_peer] == ["peer2"]
                (job,) = peers[0].origin.jobs.values()
                assert job.spec.options == options
                with pytest.raises(UsageError, match="only in the process of the peer"):
                    await _all(remote.map(jobs_module.naps, [1], balancer=lambda candidates, job: candidates))

    run(body())


# --- across processes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> Any:
    with machine(tmp_path / "home", environ=own_ports()) as found:
        yield found


PROGRAM = """
import os, time

def where(x):
    time.sleep(0.05)
    return os.getppid()

def nap(x):
    time.sleep(x)
    return x
"""


#: Ends once tasks of all have begun.
EACH = """
def each(x):
    wait_for_others()
    return x
"""


def test_the_command_line_places_jobs(here: Machine, tmp_path: Path) -> None:
    program = tmp_path / "user_program.py"
    program.write_text(PROGRAM)
    first = here.up("anna")
    second = here.up("bert", "--label", "zone=lab", "--cost-per-hour", "2.5", "--tier", "premium", "--slots", "2")
    for peer in (first, second):
        until_now(lambda peer=peer: peer.linked_names, "both are linked")
    row = here.json("peers")["peers"][0]
    assert (row["labels"], row["cost_per_hour"], row["performance_tier"]) == (["zone=lab"], 2.5, "premium")
    assert "zone=lab" in here.run("peers", "--wide").stdout
    count = [str(number) for number in range(8)]
    for flags in (
        ("--label", "zone=lab"),
        ("--require", "performance_tier>=premium", "--strategy", "round_robin"),
        ("--require", "name=bert", "--require", "cost_per_hour<=3", "--max-cost", "1", "--prefer", "max_latency=2s"),
    ):
        here.run("map", str(program), "where", *flags, "--", *count)
        shown = here.json("jobs")[-1]
        assert shown["done_by_peer"] == {"bert": 8}, flags
    refused = here.run("map", str(program), "where", "--strategy", "hligg", "1", check=False)
    assert refused.returncode == 2
    assert "did you mean 'hlig'" in refused.stderr
    refused = here.run("map", str(program), "where", "--require", "gpu_memory>=1000TB", "1", check=False)
    assert refused.returncode == 70
    assert "no peer has gpu_memory >= 1000TB: the nearest is" in refused.stderr
    refused = here.run("map", str(program), "where", "--label", "zone=lab", "--max-cost", "0", "1", check=False)
    assert "the budget of 0 USD does not pay for one task" in refused.stderr


def test_a_killed_peer_is_left_and_a_frozen_one_is_not_asked(here: Machine, tmp_path: Path) -> None:
    """Calls go on at once when a peer is killed, and avoid one that is suspected to be down."""
    program = tmp_path / "user_program.py"
    program.write_text(holding(tmp_path / "begun", peers=3) + PROGRAM + EACH)
    here.environ.update(PLAIN_ENVIRONMENT)
    origin = here.up("anna", "--slots", "0", "--timing", "lan")
    killed, frozen, good = (here.up(name, "--slots", "1", "--timing", "lan") for name in ("bert", "carl", "dora"))
    until_now(lambda: len(origin.linked_names) == 3, "all are linked")
    here.run("map", str(program), "each", "--strategy", "round_robin", *map(str, range(12)))
    assert here.json("jobs")[-1]["done_by_peer"].keys() == {"bert", "carl", "dora"}
    killed.kill()
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        until_now(
            lambda: {row["name"]: row["status"] for row in origin.ask("peers")["peers"]}["carl"] != "alive",
            "the frozen one is suspected",
        )
        here.run("map", str(program), "where", "--strategy", "round_robin", *map(str, range(12)), timeout_s=30)
        assert here.json("jobs")[-1]["done_by_peer"] == {"dora": 12}
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    assert good.process.poll() is None


def test_strategies_know_the_shape_of_the_network(home: Path) -> None:
    """Links that peers measure become communities and scores, at every peer the same, and reach the strategies of its jobs."""

    async def body() -> None:
        seen: list[tuple[int | None, set[tuple[int | None, float]]]] = []

        def watching(candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
            seen.append((job.home, {(each.facts.community, each.facts.fiedler_score) for each in candidates}))
            return [each.peer for each in candidates]

        async def told() -> bool:
            await done_by(peers[0], 6, balancer=watching)
            return seen[-1][0] == 0 and all(row == {(0, 1.0)} for _, row in seen[-3:])

        async with peers_of(home, {}, {}, {}) as peers:
            async with asyncio.timeout(30):
                while not await told():
                    pass
            shapes = [await peer.shape() for peer in peers]
            assert {shape.peers for shape in shapes} == {tuple(sorted(peer.peer_id for peer in peers))}
            assert len({shape.key_nodes[0].peer for shape in shapes}) == 1
            (leads,) = [peer for peer in peers if shapes[0].is_key_node(peer.peer_id)]
            async with asyncio.timeout(30):
                while not leads.own.record.leads:  # noqa: ASYNC110 - the record is told at the next look
                    await asyncio.sleep(0.05)

    run(body(), 90)
