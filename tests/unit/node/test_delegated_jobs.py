"""The lending shell and coordinators: what is taken in another's name, under which slots, and what ends it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.execution.pool import ProgramKey, TaskRun
from p2pcompute.jobs.lend import Forget
from p2pcompute.model import limits
from p2pcompute.model.ids import BlobId, JobId, PeerId, ProgramId, borrower_id_of
from p2pcompute.model.job import Outcome, Payload
from p2pcompute.model.peer import Role
from p2pcompute.node.delegations import DelegatedShare, Delegations, Refusal
from p2pcompute.node.lender import Lender
from p2pcompute.node.logs import get_log
from p2pcompute.node.offers import Lacking, Offers
from p2pcompute.node.seams import SystemClock, ThreadOffload
from p2pcompute.node.supervise import Supervisor
from p2pcompute.storage.blobs import BlobStore, blob_id_of
from p2pcompute.wire.authority import open_network
from p2pcompute.wire.delegation import Delegation, Manifest, delegate
from p2pcompute.wire.membership import Trust
from p2pcompute.wire.messages import Grant, JobAccept, JobClose, JobOpen, JobRefuse, Message, Results, Tasks
from tests.support.networks import NOW, Member, make_member, make_network
from tests.support.peers import until

NETWORK = make_network()
ANNA, BERT, LENDER = (make_member(NETWORK, name) for name in ("anna", "bert", "lender"))
GUEST = make_member(NETWORK, "guest", roles=frozenset({Role.COMPUTE}))
FIRST, SECOND = PeerId(b"1" * 32), PeerId(b"2" * 32)
SHARE, OTHER = JobId(b"s" * 12), JobId(b"t" * 12)
PROGRAM = b"\x80"  # a map
MANIFEST = Manifest(
    JobId(b"j" * 12), NETWORK.network, ProgramId(blob_id_of(PROGRAM)), len(PROGRAM), 5, 2.0, None, NOW + 3_600
)
INLINE = Payload(inline=b"x", size_bytes=1)


class FakeChannel:
    """A coordinator that may not submit itself."""

    is_local = False
    is_behind = False
    invitation = None
    rtt_s = 0.0

    def __init__(self, peer: PeerId = FIRST, roles: frozenset[Role] = frozenset()) -> None:
        self.peer = peer
        self.roles = roles
        self.said: list[Message] = []

    def send(self, message: Message) -> None:
        self.said.append(message)

    async def fetch(self, blob: BlobId, bytes_max: int) -> bytes:
        return PROGRAM

    def heard(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.said if isinstance(message, kind)]

    @property
    def refused(self) -> list[tuple[bytes, str]]:
        return [(message.job, message.reason) for message in self.heard(JobRefuse)]


class FakePool:
    """Workers that start when told and never end anything by themselves."""

    def __init__(self) -> None:
        self.keys: dict[int, ProgramKey] = {}
        self.cancelled: list[tuple[int, Sequence[tuple[int, int]]]] = []
        self.retired: list[int] = []

    def spawn(self, key: ProgramKey, *_: Any) -> int:
        worker = len(self.keys) + 1
        self.keys[worker] = key
        return worker

    def run(self, worker: int, runs: Sequence[TaskRun]) -> None:
        pass

    def cancel(self, worker: int, rows: Sequence[tuple[int, int]]) -> None:
        self.cancelled.append((worker, tuple(rows)))

    def retire(self, worker: int) -> None:
        self.retired.append(worker)


def opened(
    coordinator: PeerId = FIRST,
    origin: Member = ANNA,
    manifest: Manifest = MANIFEST,
    *,
    share: JobId = SHARE,
    epoch: int = 1,
    tasks_max: int = 100,
    **said: Any,
) -> JobOpen:
    """What a coordinator says that got this share; `said`: what of it is not what the origin signed."""
    signed = delegate(
        origin.key, origin.membership, manifest, Delegation(share, coordinator, epoch, tasks_max, NOW + 3_600)
    )
    message = JobOpen(share, manifest.program, manifest.program_bytes, "f", 5, 2.0, None, delegation=signed)
    return dataclasses.replace(message, **said)


def lending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: Any, slots: int = 4) -> None:
    monkeypatch.setattr("p2pcompute.node.lender.missing_in", lambda *_, **__: None)

    async def main() -> None:
        log, store, offload = get_log("test"), BlobStore(tmp_path / "blobs"), ThreadOffload()
        supervisor = Supervisor(log)
        await supervisor.start()
        lender = Lender(
            store, supervisor, SystemClock(), offload, log, slots=slots, offers=Offers(), trust=LENDER.trust
        )
        pool = FakePool()
        lender.start(pool)  # type: ignore[arg-type]
        try:
            await body(lender, pool)
        finally:
            lender.stop()
            await supervisor.stop()
            offload.close()

    asyncio.run(main())


async def accepted(lender: Lender, channel: FakeChannel, message: JobOpen) -> None:
    before = len(channel.heard(JobAccept))
    lender.message(channel, message)
    await until(lambda: len(channel.heard(JobAccept)) > before, f"accepted, not {channel.refused}", 5)


# --- the papers -------------------------------------------------------------------------------------------------------


class FakeClock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now, self.now_wall = 0.0, NOW

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now_wall


def judge(message: JobOpen, trust: Callable[[], Trust] = LENDER.trust, clock: FakeClock | None = None) -> Any:
    return Delegations(trust, clock or FakeClock()).judge(FIRST, message)


def test_a_share_is_taken_in_its_origins_name() -> None:
    found = judge(opened(priority=3))
    assert isinstance(found, DelegatedShare), found
    assert (found.origin, found.job, found.coordinator) == (ANNA.key.peer_id, MANIFEST.job, FIRST)
    assert found.borrower == borrower_id_of(ANNA.key.peer_id, FIRST)
    assert len({found.borrower, borrower_id_of(ANNA.key.peer_id, SECOND), borrower_id_of(BERT.key.peer_id, FIRST)}) == 3


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (opened(SECOND), "was given to peer"),
        (opened(job=OTHER), "it is for share"),
        (opened(program=blob_id_of(b"another")), "it is for program"),
        (opened(program_bytes=len(PROGRAM) + 1), "it is for program"),
        (opened(priority=6), "priority 6 is above the job's 5"),
        (opened(timeout_s=3.0), "a time-out of 3.0 s"),
        (opened(timeout_s=None), "a time-out of None s"),
        (opened(memory_bytes=1 << 30), "bytes of memory"),
        (opened(delegation=b"nonsense"), "is refused"),
        (opened(manifest=dataclasses.replace(MANIFEST, expires_wall=NOW - 3_600)), "manifest of a job ended"),
    ],
    ids=["coordinator", "share", "program", "size", "priority", "time-out", "none", "memory", "nonsense", "ended"],
)
def test_what_the_origin_did_not_sign_is_refused(message: JobOpen, said: str) -> None:
    found = judge(message)
    assert isinstance(found, Refusal)
    assert found.reason == "delegation"
    assert said in found.text


def test_whose_job_it_is_must_be_allowed_to_submit() -> None:
    assert judge(opened(origin=GUEST)).reason == "role"
    playground = open_network("playground")
    stranger, lender = make_member(playground, "stranger"), make_member(playground, "lender")
    manifest = dataclasses.replace(MANIFEST, network=playground.network)
    assert judge(opened(origin=stranger, manifest=manifest), lender.trust).reason == "role"


def test_a_revoked_origin_has_no_coordinators() -> None:
    revoked = NETWORK.revoke(None, invitations=[ANNA.invitation.id], now_wall=NOW)
    found = judge(opened(), lambda: LENDER.trust(revoked))
    assert found.reason == "delegation"
    assert "revoked" in found.text


def test_delegations_are_checked_at_a_bounded_rate_for_each_coordinator() -> None:
    clock = FakeClock()
    delegations = Delegations(LENDER.trust, clock)
    nonsense = opened(delegation=b"nonsense")
    reasons = [delegations.judge(FIRST, nonsense).reason for _ in range(100)]  # type: ignore[union-attr]
    assert reasons.index("busy") == limits.DELEGATIONS_PER_SECOND_PER_PEER
    assert isinstance(delegations.judge(SECOND, opened(SECOND)), DelegatedShare), "others are not held up"
    clock.now += 1.0
    assert isinstance(delegations.judge(FIRST, opened(epoch=9)), DelegatedShare)


def test_tasks_are_counted_once_each_and_may_not_lie_anywhere() -> None:
    share = DelegatedShare(ANNA.key.peer_id, MANIFEST.job, FIRST, 1, 3)
    assert [share.take(task) for task in (5, 5, 1 << 48, 7, 5, 8, 1 << 48)] == [True] * 5 + [False, True]
    share.renew(DelegatedShare(ANNA.key.peer_id, MANIFEST.job, FIRST, 4, 4))
    assert (share.take(8), share.take(9), share.epoch) == (True, False, 4)
    scattered = DelegatedShare(ANNA.key.peer_id, MANIFEST.job, FIRST, 1, 1 << 40)
    pages = limits.SHARE_TASK_PAGES_MAX
    assert all(scattered.take(page << 13) for page in range(pages))
    assert not scattered.take(pages << 13)


# --- the shell --------------------------------------------------------------------------------------------------------


def test_slots_are_granted_for_the_origin_and_workers_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        channel = FakeChannel(roles=frozenset({Role.SUBMIT}))
        anna, bert = ANNA.key.peer_id, BERT.key.peer_id
        await accepted(lender, channel, opened())
        assert channel.heard(Grant) == [Grant(12, anna)]
        await accepted(lender, channel, opened(origin=BERT, share=OTHER))
        assert sorted(channel.heard(Grant)[1:], key=str) == sorted([Grant(6, anna), Grant(6, bert)], key=str)
        # The coordinator's own job, without a delegation.
        await accepted(lender, channel, opened(share=JobId(b"o" * 12), delegation=b""))
        told = channel.heard(Grant)[3:]
        assert sorted(told, key=str) == sorted([Grant(4, anna), Grant(4, bert), Grant(4)], key=str)
        assert {key.origin for key in pool.keys.values()} == {
            borrower_id_of(anna, FIRST),
            borrower_id_of(bert, FIRST),
            FIRST,
        }
        assert lender.works_for(FIRST)
        # A second coordinator of one origin takes nothing from the others.
        second = FakeChannel(SECOND)
        await accepted(lender, second, opened(SECOND))
        assert second.heard(Grant) == [Grant(2, anna)]
        assert channel.heard(Grant)[6:] == [Grant(2, anna)]

    lending(tmp_path, monkeypatch, body, slots=12)


def test_a_coordinator_that_comes_back_hears_of_each_origins_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        await accepted(lender, FakeChannel(), opened())
        again = FakeChannel()
        lender.linked(again)
        lender.message(again, opened(epoch=2, tasks_max=200))
        assert again.heard(JobAccept)
        assert again.heard(Grant) == [Grant(4, ANNA.key.peer_id)]
        lender.message(again, Tasks(SHARE, tuple((task, 1, 0, INLINE) for task in range(201))))
        (back,) = again.heard(Results)
        assert [row[0] for row in back.rows] == [200], "the newer delegation counts"

    lending(tmp_path, monkeypatch, body)


def test_tasks_of_a_share_run_and_what_is_beyond_it_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        channel = FakeChannel()
        await accepted(lender, channel, opened(tasks_max=2))
        lender.worker_ready(1)
        lender.message(channel, Tasks(SHARE, tuple((task, 1, 0, INLINE) for task in (1, 2, 3))))
        (back,) = channel.heard(Results)
        assert [(row[:3]) for row in back.rows] == [(3, 1, Outcome.RETURNED_UNRUN)]
        assert b"fewer tasks" in back.rows[0][4].inline
        lender.message(channel, Tasks(SHARE, ((2, 2, 0, INLINE),)))
        assert len(channel.heard(Results)) == 1, "another attempt of a task that was given is not beyond it"

    lending(tmp_path, monkeypatch, body)


def test_a_higher_epoch_ends_what_another_coordinator_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        old, new, bystander = FakeChannel(FIRST), FakeChannel(SECOND), FakeChannel(PeerId(b"3" * 32))
        await accepted(lender, old, opened())
        await accepted(lender, bystander, opened(bystander.peer, BERT, share=OTHER, epoch=0))
        lender.worker_ready(1)
        lender.message(old, Tasks(SHARE, ((1, 1, 0, INLINE),)))
        await accepted(lender, new, opened(SECOND, share=OTHER, epoch=2))
        assert old.refused == [(SHARE, "fenced")]
        assert pool.cancelled == [(1, ((1, 1),))], "what ran is stopped"
        assert not lender.works_for(FIRST)
        assert not bystander.refused, "another origin's job"
        lender.message(old, Tasks(SHARE, ((2, 1, 0, INLINE),)))
        assert old.heard(Results)[-1].rows[0][2] is Outcome.RETURNED_UNRUN
        lender.message(old, opened())
        assert old.refused == [(SHARE, "fenced")] * 2, "and is not taken again"
        await accepted(lender, old, opened(epoch=3))
        assert new.refused == [(OTHER, "fenced")]

    lending(tmp_path, monkeypatch, body)


def test_equal_epochs_and_shares_of_one_coordinator_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        first, second = FakeChannel(FIRST), FakeChannel(SECOND)
        await accepted(lender, first, opened())
        await accepted(lender, second, opened(SECOND))
        await accepted(lender, second, opened(SECOND, share=OTHER))
        assert not first.refused + second.refused

    lending(tmp_path, monkeypatch, body)


def test_a_share_ends_with_the_link_to_its_coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        channel, other = FakeChannel(), FakeChannel(SECOND)
        await accepted(lender, channel, opened())
        await accepted(lender, other, opened(SECOND))
        lender.message(channel, Tasks(SHARE, ((1, 1, 0, INLINE),)))
        lender.origin_gone(FIRST)
        assert pool.retired == [worker for worker, key in pool.keys.items() if key.origin != other_id]
        assert not lender.works_for(FIRST)
        assert lender.load == 0
        assert other.heard(Grant)[-1] == Grant(4, ANNA.key.peer_id), "its other coordinator has all of it again"
        again = FakeChannel()
        await accepted(lender, again, opened())
        assert again.heard(Grant) == [Grant(2, ANNA.key.peer_id)], "said anew, by the machine"

    other_id = borrower_id_of(ANNA.key.peer_id, SECOND)
    lending(tmp_path, monkeypatch, body)


def test_what_is_refused_when_it_is_offered_again_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        channel = FakeChannel()
        await accepted(lender, channel, opened())
        lender.message(channel, opened(delegation=b"nonsense"))
        assert channel.refused == [(SHARE, "delegation")]
        assert not lender.works_for(FIRST)

    lending(tmp_path, monkeypatch, body)


def test_a_borrower_is_known_while_a_share_is_prepared_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        channel = FakeChannel()
        lender.message(channel, opened())
        # What the machine says when it has long seen no job of theirs.
        lender._forget_borrower(Forget(borrower_id_of(ANNA.key.peer_id, FIRST)))
        await until(lambda: channel.heard(Grant), "slots were granted", 5)
        assert channel.heard(Grant) == [Grant(4, ANNA.key.peer_id)]
        monkeypatch.setattr("p2pcompute.node.lender.missing_in", lambda *_, **__: Lacking("module", "", "numpy"))
        lender.message(channel, opened(origin=BERT, share=OTHER))
        await until(lambda: channel.refused == [(OTHER, "module")], "the program does not run here", 5)
        assert list(lender._coordinated.values()) == [(FIRST, ANNA.key.peer_id)]
        lender.message(channel, JobClose(SHARE))
        await until(lambda: not lender._coordinated, "long done", 5)

    lending(tmp_path, monkeypatch, body)


def test_an_id_is_one_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        channel = FakeChannel()
        await accepted(lender, channel, opened())
        lender.message(channel, opened(origin=BERT))
        assert channel.refused == [(SHARE, "delegation")]
        lender.message(channel, JobClose(SHARE))
        await accepted(lender, channel, opened(origin=BERT))

    lending(tmp_path, monkeypatch, body)


def test_who_coordinates_nothing_must_be_allowed_to_submit_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(lender: Lender, pool: FakePool) -> None:
        channel = FakeChannel()
        lender.message(channel, opened(delegation=b""))
        assert channel.refused == [(SHARE, "role")]

    lending(tmp_path, monkeypatch, body)


def test_jobs_are_limited_for_each_origin_and_each_coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOBS_PER_ORIGIN_MAX", 2)
    monkeypatch.setattr(limits, "JOBS_PER_COORDINATOR_MAX", 3)

    async def body(lender: Lender, pool: FakePool) -> None:
        first, second = FakeChannel(FIRST), FakeChannel(SECOND)
        shares = [JobId(bytes([number]) * 12) for number in range(5)]
        await accepted(lender, first, opened(share=shares[0]))
        await accepted(lender, second, opened(SECOND, share=shares[1]))
        lender.message(first, opened(share=shares[2]))
        assert first.refused == [(shares[2], "busy")], "two of this origin, through whomever"
        for share in shares[2:4]:
            await accepted(lender, first, opened(origin=BERT, share=share))
        lender.message(first, opened(origin=LENDER, share=shares[4]))
        assert first.refused[1:] == [(shares[4], "busy")]

    lending(tmp_path, monkeypatch, body)
