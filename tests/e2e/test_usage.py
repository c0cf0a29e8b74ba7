"""What tasks used, as submitters and lenders see it, directly and through coordinators' words."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import jobs_module
import pytest

from p2pcompute.model.errors import UsageError
from p2pcompute.model.job import NO_USAGE, Usage
from p2pcompute.model.peer import Address
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.explaining import explain_document, used_document
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer
from p2pcompute.node.upward import Upward
from p2pcompute.wire.messages import Results
from tests.support.peers import linked, machine


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of memory and bytes")
def test_a_job_knows_what_it_used_and_where(home: Path) -> None:
    async def body() -> None:
        async with (
            asyncio.timeout(60),
            Peer(PeerConfig.test(name="asks", slots=0), folders=Folders.beneath(home)) as origin,
            Peer(
                PeerConfig.test(name="works", slots=1, bootstrap=(Address("127.0.0.1", origin.port),)),
                folders=Folders.beneath(home),
            ) as worker,
        ):
            await linked([origin, worker])
            assert [x async for x in origin.map(jobs_module.burns, range(4))] == [0, 1, 2, 3]
            job = next(iter(origin.origin.jobs.values()))
            used = used_document(job, origin.name_of)
            assert [row["peer"] for row in used["by_peer"]] == ["works"]
            assert used["total"]["attempts"] == used["total"]["returned"] == 4
            assert used["total"]["cpu_s"] >= 0.12
            assert used["total"]["wall_s"] >= used["total"]["cpu_s"] * 0.9
            assert used["total"]["written_bytes"] >= 400_000
            assert used["total"]["peak_memory_bytes"] > 1 << 20
            told = explain_document(job, 2, origin.name_of)["tasks"]
            assert [(row["task"], row["peer"], row["outcome"], row["attempt"]) for row in told] == [
                (2, "works", "returned", 1)
            ]
            assert told[0]["cpu_s"] >= 0.03
            assert not told[0]["cpu_is_assumed"]
            with pytest.raises(UsageError, match="nothing is remembered of task 9"):
                explain_document(job, 9, origin.name_of)
            (spent,) = worker.lender.spent.of.values()
            assert spent.cpu_us >= 120_000
            assert list(worker.lender.spent.of) == [origin.peer_id]

    asyncio.run(body())


def test_the_command_line_explains(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("def square(x):\n    return x * x\n")
    with machine(tmp_path / "home") as mine:
        peer = mine.up("desk", "--no-lan", "--host", "127.0.0.1", "--slots", "1")
        mine.run("map", str(script), "square", "1", "2", "3")
        job = mine.json("jobs")[0]["job"]
        shown = mine.run("job", "show", job).stdout
        assert "what it used" in shown
        explained = mine.json("job", "explain", job)
        assert [row["task"] for row in explained["tasks"]] == [0, 1, 2]
        assert {row["peer"] for row in explained["tasks"]} == {"desk"}
        assert explained["used"]["total"]["attempts"] == 3
        assert "desk" in mine.run("job", "explain", job, "1").stdout
        wrong = mine.run("job", "explain", job, "77", check=False)
        assert wrong.returncode != 0
        assert "nothing is remembered of task 77" in wrong.stderr
        assert peer.ask("status")["done_for"][0]["attempts"] == 3
        json.dumps(peer.ask("job.show", job=job)["used"])


def test_coordinators_pass_on_what_their_members_say() -> None:
    class Channel:
        said: list[Any]

        def __init__(self) -> None:
            self.said = []

        def send(self, message: Any) -> None:
            self.said.append(message)

    async def body() -> None:
        from p2pcompute.model.ids import JobId, PeerId
        from p2pcompute.model.job import Outcome, Payload
        from p2pcompute.node.logs import get_log

        up, channel = Upward(get_log("test")), Channel()
        up.channel = channel  # type: ignore[assignment]
        job, peer = JobId(b"j" * 16), PeerId(b"p" * 32)
        up.row(job, (1, 1, Outcome.RETURNED, 5, Payload(), peer), Usage(7, 8))
        up.row(job, (2, 1, Outcome.RETURNED, 5, Payload(), peer))
        up.flush()
        up.row(job, (3, 1, Outcome.RETURNED, 5, Payload(), peer))
        up.flush()
        first, second = channel.said
        assert isinstance(first, Results)
        assert first.usage == ((7, 8), ())
        assert (first.usage_of(0), first.usage_of(1)) == (Usage(7, 8), NO_USAGE)
        assert second.usage == (), "nothing is said of nothing"

    asyncio.run(body())
