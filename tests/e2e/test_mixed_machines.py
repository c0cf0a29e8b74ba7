"""A network of unlike machines: a job that demands more than a peer has never reaches it, and one that nobody can run says what is lacking."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import jobs_module
import pytest

from p2pcompute.execution.probes import sandbox_report
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.peer import Address, Isolation
from p2pcompute.node.config import Folder, PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer
from tests.support.peers import linked

ADD = '(module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))'
TASKS = 24


def test_what_a_job_demands_decides_where_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("wasmtime", reason="wasmtime is not installed: pip install 'p2pcompute[wasm]'")
    lacking = sandbox_report().lacking(Isolation.SANDBOX)
    if lacking:
        pytest.skip(f"{lacking}; tests/setup.sh installs what it may")
    data = tmp_path / "data"
    data.mkdir()

    async def body() -> None:
        machines = {
            "open": {"isolation": "process"},  # a machine that can hold nobody, or whose owner holds nobody
            "python only": {"isolation": "auto", "engines": ("python",)},
            "whole": {"isolation": "auto", "folders": (Folder("data", data),)},
        }
        async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
            folders = Folders.beneath(tmp_path / "home")
            origin = await stack.enter_async_context(Peer(PeerConfig.test(name="origin", slots=0), folders=folders))
            near = (Address("127.0.0.1", origin.port),)
            lenders: dict[str, Peer] = {}
            for name, settings in machines.items():
                config = PeerConfig.test(name=name, slots=2, bootstrap=near, **settings)
                lenders[name] = await stack.enter_async_context(Peer(config, folders=folders))
            await linked([origin, *lenders.values()])

            async def runs_at(allowed: set[str], function: object, inputs: object, **options: object) -> None:
                """Nowhere else, however often; and, sooner or later, at all of them."""
                # No late copies, which could still end somewhere when the next job is counted.
                options |= {"speculate": False, "strategy": "round_robin"}
                seen: set[str] = set()
                while seen != allowed:
                    before = Counter({name: peer.lender.tasks_done for name, peer in lenders.items()})
                    outcome = await origin.map_reduce(function, None, inputs, aggregation="sum", **options)  # type: ignore[arg-type]
                    assert outcome.value == sum(range(TASKS)) * (30 if function is jobs_module.scaled else 1)
                    seen |= {name for name, peer in lenders.items() if peer.lender.tasks_done > before[name]}
                    assert seen <= allowed

            numbers = range(TASKS)
            await runs_at({"open", "python only", "whole"}, jobs_module.scaled, numbers)
            await runs_at({"python only", "whole"}, jobs_module.scaled, numbers, isolation="sandbox")
            await runs_at({"whole"}, jobs_module.scaled, numbers, grants=("folder:data",))
            module = origin.wasm(ADD)
            pairs = [(number, 0) for number in numbers]
            await runs_at({"open", "whole"}, module.add, pairs)
            await runs_at({"whole"}, module.add, pairs, grants=("folder:data",))
            with pytest.raises(P2PComputeError, match=r"no peer has .*command.*: the nearest is "):
                await origin.command(["true"])
            with pytest.raises(P2PComputeError, match=r"no peer has .*folder:data:rw.*: the nearest is "):
                await origin.map_reduce(
                    jobs_module.scaled, None, numbers, aggregation="sum", grants=("folder:data:rw",)
                )

    asyncio.run(body())
