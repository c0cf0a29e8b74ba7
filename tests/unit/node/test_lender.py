"""The lending shell with channels that are made up: what it says when links are replaced."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.model.errors import LinkClosedError
from p2pcompute.model.ids import BlobId, PeerId
from p2pcompute.model.job import Outcome, Payload
from p2pcompute.model.peer import Role
from p2pcompute.node.lender import Lender
from p2pcompute.node.logs import get_log
from p2pcompute.node.offers import Offers
from p2pcompute.node.seams import SystemClock, ThreadOffload
from p2pcompute.node.supervise import Supervisor
from p2pcompute.storage.blobs import BlobStore, blob_id_of
from p2pcompute.wire.messages import Grant, JobAccept, JobOpen, JobRefuse, Message, Results, Tasks, TasksRecall
from tests.support.networks import make_member, make_network
from tests.support.peers import until

LENDER = make_member(make_network(), "lender")
ORIGIN = PeerId(b"o" * 32)
JOB = b"j" * 16
PROGRAM = b"\x80"  # a map


class FakeChannel:
    peer = ORIGIN
    roles = frozenset(Role)
    is_local = False
    is_behind = False
    rtt_s = 0.0

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.said: list[Message] = []
        self.asked = False
        self._gate = gate

    def send(self, message: Message) -> None:
        self.said.append(message)

    async def fetch(self, blob: BlobId, bytes_max: int) -> bytes:
        self.asked = True
        if self._gate is None:
            return PROGRAM
        await self._gate.wait()
        raise LinkClosedError("the link is gone")

    def heard(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.said if isinstance(message, kind)]


class FakePool:
    def __init__(self) -> None:
        self.workers = 0

    def spawn(self, *_: Any) -> int:
        self.workers += 1
        return self.workers


def opened() -> JobOpen:
    return JobOpen(JOB, bytes(blob_id_of(PROGRAM)), len(PROGRAM), "f", 0, None, None)


def lending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
    monkeypatch.setattr("p2pcompute.node.lender.missing_in", lambda *_: None)

    async def main() -> None:
        log, store, offload = get_log("test"), BlobStore(tmp_path / "blobs"), ThreadOffload()
        supervisor = Supervisor(log)
        await supervisor.start()
        lender = Lender(store, supervisor, SystemClock(), offload, log, slots=2, offers=Offers(), trust=LENDER.trust)
        lender.start(FakePool())  # type: ignore[arg-type]
        try:
            await body(lender, store)
        finally:
            lender.stop()
            await supervisor.stop()
            offload.close()

    asyncio.run(main())


def test_a_job_that_is_offered_again_over_another_link_hears_of_its_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(lender: Lender, store: BlobStore) -> None:
        first, second = FakeChannel(), FakeChannel()
        lender.message(first, opened())
        await until(lambda: first.heard(Grant), "slots were granted", 5)
        lender.message(second, opened())
        assert second.heard(JobAccept)
        assert second.heard(Grant) == first.heard(Grant)[-1:]

    lending(tmp_path, monkeypatch, body)


def test_a_program_whose_link_was_replaced_is_not_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(lender: Lender, store: BlobStore) -> None:
        gate = asyncio.Event()
        first, second = FakeChannel(gate), FakeChannel()
        lender.message(first, opened())
        await until(lambda: first.asked, "the program is being fetched", 5)
        lender.linked(second)
        gate.set()
        await until(lambda: second.heard(JobRefuse), "the origin hears that it must offer the job again", 5)
        lender.message(second, opened())
        await until(lambda: second.heard(JobAccept), "then it is accepted", 5)

    lending(tmp_path, monkeypatch, body)


def back(channel: FakeChannel) -> list[tuple[int, int]]:
    """What was given back untouched."""
    rows = [row for message in channel.said if isinstance(message, Results) for row in message.rows]
    assert all(row[2] is Outcome.RETURNED_UNRUN for row in rows)
    return [row[:2] for row in rows]


def test_what_is_recalled_comes_back_also_where_its_arguments_are_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(lender: Lender, store: BlobStore) -> None:
        channel = FakeChannel()
        lender.message(channel, opened())
        await until(lambda: channel.heard(Grant), "slots were granted", 5)
        channel._gate = gate = asyncio.Event()
        inline = Payload(inline=b"x", size_bytes=1)
        far = Payload(blob=blob_id_of(b"far"), size_bytes=3)
        lender.message(channel, Tasks(JOB, ((1, 1, 0, inline), (2, 1, 0, far), (3, 1, 0, inline))))
        lender.message(channel, TasksRecall(JOB, ((1, 1), (2, 1), (9, 9))))
        assert back(channel) == [(2, 1), (1, 1)], "no worker is ready: none of it has begun"
        lender.message(channel, TasksRecall(JOB, ((1, 1), (2, 1))))
        lender.message(channel, TasksRecall(b"n" * 16, ((3, 1),)))
        assert len(back(channel)) == 2, "what is not here any more is not given back again"
        assert lender.load == 0.5, "the third waits on"
        gate.set()

    lending(tmp_path, monkeypatch, body)
