"""The lending shell with channels that are made up: what it says when links are replaced."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import LinkClosedError
from p2pcompute.model.ids import BlobId, PeerId
from p2pcompute.model.job import Outcome, Payload
from p2pcompute.model.peer import Isolation, Role
from p2pcompute.node.lender import Lender
from p2pcompute.node.logs import get_log
from p2pcompute.node.offers import Offers
from p2pcompute.node.seams import SystemClock, ThreadOffload
from p2pcompute.node.standing import Standings
from p2pcompute.node.supervise import Supervisor
from p2pcompute.storage.blobs import BlobStore, blob_id_of
from p2pcompute.wire.codec import pack
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
    invitation = None
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
    monkeypatch.setattr("p2pcompute.node.lender.missing_in", lambda *_, **__: None)

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


class CrowdedPool(FakePool):
    """Starts whatever it is asked to."""

    def run(self, *_: Any) -> None:
        """Nothing ends."""

    def retire(self, *_: Any) -> None:
        """Nobody goes."""


def judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes, standings: Standings, roles: frozenset[Role]
) -> list[Message]:
    """What a submitter hears that offers `program` at a peer of ten slots."""
    monkeypatch.setattr("p2pcompute.node.lender.missing_in", lambda *_, **__: None)
    channel = FakeChannel()
    channel.roles = roles

    async def fetch(blob: BlobId, bytes_max: int) -> bytes:
        return program

    channel.fetch = fetch  # type: ignore[method-assign]

    async def main() -> None:
        log, store, offload = get_log("test"), BlobStore(tmp_path / "blobs"), ThreadOffload()
        supervisor = Supervisor(log)
        await supervisor.start()
        offers = Offers(engines=tuple(Engine), grants=("network",))
        lender = Lender(
            store, supervisor, SystemClock(), offload, log, slots=10, offers=offers, trust=LENDER.trust, standings=standings
        )  # fmt: skip
        lender.start(CrowdedPool())  # type: ignore[arg-type]
        try:
            message = JobOpen(JOB, bytes(blob_id_of(program)), len(program), "f", 9, None, None)
            lender.message(channel, message)
            await until(lambda: channel.heard(JobRefuse) or channel.heard(Grant), "it is answered")
        finally:
            lender.stop()
            await supervisor.stop()
            offload.close()

    asyncio.run(main())
    return channel.said


def told(said: list[Message], kind: type[Message]) -> Any:
    found = [message for message in said if isinstance(message, kind)]
    return found[0] if found else None


MEMBER = frozenset({Role.SUBMIT})


@pytest.mark.parametrize(
    ("fields", "standings", "roles", "reason", "slots"),
    [
        ({}, Standings(), MEMBER, None, 10),
        ({}, Standings(), frozenset(), "role", None),
        ({}, Standings(is_open=True), frozenset(), "tier", None),
        ({"engine": "wasm"}, Standings(is_open=True), frozenset(), None, 8),
        ({"engine": "command"}, Standings(), MEMBER, "tier", None),
        ({"engine": "command"}, Standings(trusted=(ORIGIN,)), MEMBER, None, 10),
        ({"engine": "container"}, Standings(), frozenset({Role.ADMIN}), None, 10),
        ({"demands": {"grants": ["network"]}}, Standings(), MEMBER, "tier", None),
        ({"demands": {"grants": ["network"]}}, Standings(trusted=(ORIGIN,)), MEMBER, None, 10),
        ({"demands": {"grants": ["gpu"]}}, Standings(trusted=(ORIGIN,)), MEMBER, "grant", None),
        ({}, Standings(required=Isolation.SANDBOX), MEMBER, "tier", None),
        ({}, Standings(own=ORIGIN, required=Isolation.SANDBOX), frozenset(), None, 10),
        ({}, Standings(score_of=lambda peer: 70.0), MEMBER, None, 8),
        ({}, Standings(score_of=lambda peer: 10.0), MEMBER, None, 3),
        ({"engine": "wasm"}, Standings(score_of=lambda peer: 10.0), MEMBER, None, 5),
    ],
)
def test_a_submitter_has_what_its_standing_allows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    standings: Standings,
    roles: frozenset[Role],
    reason: str | None,
    slots: int | None,
) -> None:
    said = judged(tmp_path, monkeypatch, pack(fields), standings, roles)
    refused, granted = told(said, JobRefuse), told(said, Grant)
    assert (refused.reason if refused else None) == reason
    assert (granted.slots if granted else None) == slots
