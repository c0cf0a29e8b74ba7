"""An origin, coordinators and members whose messages cross in memory: answers, deaths, lies, and messages that no honest peer sends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from p2pcompute.execution.values import Encoded, Failure, decode, encode
from p2pcompute.jobs.coordinating import Region
from p2pcompute.jobs.plan import Facts
from p2pcompute.jobs.strategies import Registry
from p2pcompute.model.errors import BlobMissingError, LinkClosedError
from p2pcompute.model.ids import BlobId, JobId, PeerId, ProgramId, is_seat, seat_of
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, JobState, OnError, Outcome, Payload
from p2pcompute.model.peer import Role
from p2pcompute.node.coordinator import Coordinator
from p2pcompute.node.delegating import Delegating
from p2pcompute.node.job_stream import JobRequest, JobStream
from p2pcompute.node.logs import get_log
from p2pcompute.node.origin import Origin
from p2pcompute.node.records import Records
from p2pcompute.node.seams import SystemClock, ThreadOffload
from p2pcompute.node.supervise import Supervisor
from p2pcompute.storage.blobs import BlobStore, blob_id_of
from p2pcompute.wire.messages import (
    CommunityGrant,
    Grant,
    JobAccept,
    JobClose,
    JobOpen,
    JobRefuse,
    Message,
    Partial,
    Results,
    ShareOpen,
    Tasks,
    TasksCancel,
    TasksRecall,
)
from tests.support.peers import until

PROGRAM = b"a program"
HOME = PeerId(b"h" * 32)
FACTS = Facts(gives_back=True)
#: Two communities: their coordinator and its stand-in, and one member more.
FAR = [[PeerId(bytes([number]) * 32) for number in numbers] for numbers in ((11, 12, 13), (21, 22, 23))]
SHARE = b"s" * 12


class NoDelegating(Delegating):
    """Members in this file believe everything."""

    def __init__(self) -> None:
        self.given = 0

    def share_of(self, spec: JobSpec, program_bytes: int, coordinator: PeerId, epoch: int) -> tuple[JobId, bytes]:
        self.given += 1
        return JobId(self.given.to_bytes(12, "big")), b"signed"


class NoDatabase:
    """Nothing was ever computed, and nothing is written down."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: ()


class Wire:
    """One direction of a link; `store`: of the other end."""

    roles = frozenset(Role)
    invitation = None
    is_local = False
    is_behind = False
    rtt_s = 0.01

    def __init__(self, peer: PeerId, store: BlobStore, deliver: Callable[[Wire, Message], None]) -> None:
        self.peer = peer
        self.store = store
        self.deliver = deliver
        self.back: Wire = self
        self.is_cut = False
        #: May change or swallow what is sent.
        self.mangle: Callable[[Message], Message | None] = lambda message: message
        self.said: list[Message] = []
        #: Data passes while this is set, and so many wait for it.
        self.passes = asyncio.Event()
        self.passes.set()
        self.waiting = 0

    def send(self, message: Message) -> None:
        if self.is_cut:
            raise LinkClosedError("the link is gone")
        changed = self.mangle(message)
        if changed is not None:
            self.said.append(changed)
            asyncio.get_running_loop().call_soon(self._arrive, changed)

    def _arrive(self, message: Message) -> None:
        if not self.is_cut:
            self.deliver(self.back, message)

    async def fetch(self, blob: BlobId, bytes_max: int) -> bytes | bytearray | memoryview:
        await asyncio.sleep(0)
        self.waiting += 1
        try:
            await self.passes.wait()
        finally:
            self.waiting -= 1
        data = None if self.is_cut else self.store.get(blob)
        if data is None:
            raise BlobMissingError("it is not held there")
        return data


class Member:
    """Computes at once what it is sent: x gives `answer(x)`, lists of values their merging."""

    def __init__(self, world: World, peer: PeerId) -> None:
        self.world, self.peer = world, peer
        # At home it takes longer, so that the job is not over before communities have answered.
        self.task_s = 0.02 if peer == HOME else 0.002
        self.ran: list[int] = []

    def message(self, channel: Wire, message: Message) -> None:
        if isinstance(message, JobOpen):
            channel.send(JobAccept(message.job))
            channel.send(Grant(2, HOME if message.delegation else b""))
        elif isinstance(message, Tasks):
            for row in message.rows:
                asyncio.get_running_loop().call_later(self.task_s, self.run, channel, message.job, row)

    def run(self, channel: Wire, job: bytes, row: tuple[int, int, int, Payload]) -> None:
        task, attempt, entry, payload = row
        data = payload.inline if payload.blob is None else channel.store.get(payload.blob)
        if channel.is_cut or data is None:
            return
        self.ran.append(task)
        wall_us = int(self.task_s * 1e6)
        ((argument,), _) = decode(data)
        if entry == 1:
            value = self.world.merge([decode(each.data) if isinstance(each, Encoded) else each for each in argument])
        elif argument in self.world.failing:
            failed = encode(Failure("ValueError", "no", "", None))
            channel.send(Results(job, ((task, attempt, Outcome.RAISED, wall_us, Payload(inline=failed)),)))
            return
        else:
            value = self.world.answer(argument)
        channel.send(Results(job, ((task, attempt, Outcome.RETURNED, wall_us, Payload(inline=encode(value))),)))


class World:
    """One origin with a member at home, and two communities of three."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log, self.clock, self.offload = get_log("test"), SystemClock(), ThreadOffload()
        self.supervisor = Supervisor(self.log)
        self.stores: dict[PeerId, BlobStore] = {}
        self.members = {peer: Member(self, peer) for peer in (HOME, *FAR[0], *FAR[1])}
        self.coordinators: dict[PeerId, Coordinator] = {}
        self.up: dict[PeerId, Wire] = {}
        self.down: dict[PeerId, Wire] = {}
        self.failing: frozenset[int] = frozenset()
        self.answer: Callable[[int], Any] = lambda x: x
        self.merge: Callable[[list[Any]], Any] = sum
        self.misdeeds: list[PeerId] = []
        self.uncaught: list[dict[str, Any]] = []

    def store(self, peer: PeerId) -> BlobStore:
        if peer not in self.stores:
            self.stores[peer] = BlobStore(self.folder / peer.hex())
        return self.stores[peer]

    def wires(
        self,
        one: PeerId,
        to_one: Callable[[Wire, Message], None],
        other: PeerId,
        to_other: Callable[[Wire, Message], None],
    ) -> tuple[Wire, Wire]:
        """(`one`'s end, `other`'s end)."""
        near, far = Wire(other, self.store(other), to_other), Wire(one, self.store(one), to_one)
        near.back, far.back = far, near
        return near, far

    async def start(self) -> None:
        await self.supervisor.start()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.uncaught.append(context))
        registry = Registry()
        records = Records(cast(Any, NoDatabase()), self.clock, random.Random(1), self.offload, self.log)
        self.origin = Origin(
            self.store(HOME), self.supervisor, self.clock, self.log, lambda peer: peer.hex()[:4], records
        )
        self.origin.seats.delegating = NoDelegating()
        self.origin.misdeed = lambda peer, what: self.misdeeds.append(peer)
        self.origin.regions(tuple(Region(frozenset(ms), tuple(seat_of(each) for each in ms[:2]), 6) for ms in FAR))
        near, _ = self.wires(HOME, self.origin.message, PeerId(b"m" * 32), self.members[HOME].message)
        self.origin.peer_usable(near, FACTS)
        for members in FAR:
            for peer in members[:2]:
                coordinator = Coordinator(self.store(peer), self.supervisor, self.clock, self.log, registry)
                self.coordinators[peer] = coordinator
                self.link(peer)
                for member in members:
                    wire, _ = self.wires(peer, self.to_coordinator(peer), member, self.members[member].message)
                    coordinator.peer_usable(wire, FACTS)

    def to_coordinator(self, peer: PeerId) -> Callable[[Wire, Message], None]:
        def deliver(channel: Wire, message: Message) -> None:
            if self.coordinators[peer].takes(channel.peer, message):
                self.coordinators[peer].message(channel, message)

        return deliver

    def link(self, peer: PeerId) -> None:
        self.down[peer], self.up[peer] = self.wires(HOME, self.origin.message, peer, self.to_coordinator(peer))
        self.origin.seat_usable(self.down[peer], FACTS)

    def kill(self, peer: PeerId) -> None:
        if not self.up[peer].is_cut:
            self.up[peer].is_cut = self.down[peer].is_cut = True
            self.coordinators[peer].peer_gone(HOME, "the link broke")
            self.origin.peer_gone(peer, "the link broke")

    async def stop(self) -> None:
        self.origin.stop()
        for coordinator in self.coordinators.values():
            coordinator.stop()
        await self.supervisor.stop()
        self.offload.close()

    def submit(
        self, count: int, aggregation: Aggregation, weights: Sequence[float] | None = None, **options: Any
    ) -> JobStream:
        entry = "reduce" if aggregation in (Aggregation.REDUCE, Aggregation.CUSTOM) else None
        job, program = JobId(b"j" * 12), ProgramId(blob_id_of(PROGRAM))
        spec = JobSpec(job, "f", program, "map", aggregation, entry, JobOptions(**options), None)

        async def inputs() -> AsyncIterator[list[bytes]]:
            for first in range(0, count, 100):
                yield [encode([[task], {}]) for task in range(first, min(first + 100, count))]

        given = None if weights is None else tuple(weights)
        return self.origin.open(JobRequest(spec, PROGRAM, ("map", "reduce"), given), inputs())


def run(tmp_path: Path, body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World(tmp_path)
        await world.start()
        try:
            await asyncio.wait_for(body(world), 60)
        finally:
            await world.stop()
        assert world.uncaught == []

    asyncio.run(main())


def partials(world: World) -> int:
    return sum(isinstance(message, Partial) for wire in world.up.values() for message in wire.said)


def big(task: int) -> int:
    """Too large to go up as it is."""
    return (task + 1) << 700


ANSWERS: list[tuple[Aggregation, Any]] = [
    (Aggregation.SUM, lambda values: sum(values)),
    (Aggregation.AVERAGE, None),
    (Aggregation.MAX, max),
    (Aggregation.MIN, min),
    (Aggregation.REDUCE, lambda values: sum(values)),
    (Aggregation.CONCAT, list),
]


@pytest.mark.parametrize(("aggregation", "expected"), ANSWERS)
@pytest.mark.parametrize("failing", [frozenset(), frozenset({3, 17, 60})])
def test_answers_are_those_of_a_flat_job(
    tmp_path: Path, aggregation: Aggregation, expected: Any, failing: frozenset[int]
) -> None:
    async def body(world: World) -> None:
        world.answer, world.failing = big, failing
        if aggregation is Aggregation.AVERAGE:
            world.answer = float
        end = await world.submit(300, aggregation, on_error=OnError.SKIP).ended()
        assert end.state is JobState.SUCCEEDED, end.failure
        assert set(end.skipped) == failing
        left = [task for task in range(300) if task not in failing]
        wanted = sum(left) / len(left) if expected is None else expected([big(task) for task in left])
        assert decode(end.result) == wanted
        assert not any(is_seat(peer) for peer, _ in end.progress.done_by_peer)
        if aggregation not in (Aggregation.CONCAT, Aggregation.AVERAGE):
            assert partials(world) >= 2, "communities merged what they computed"
        assert world.misdeeds == []

    run(tmp_path, body)


def test_what_a_coordinator_fetches_for_a_share_ends_with_the_share(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        ups = [world.up[members[0]] for members in FAR]
        for up in ups:
            up.passes.clear()
        job = world.submit(300, Aggregation.SUM)
        await until(lambda: any(up.waiting for up in ups), "a coordinator fetches the program")
        world.origin.cancel(job.job)
        await until(lambda: not any(up.waiting for up in ups), "and gives up when the job has ended")
        assert all(not coordinator.uses(HOME) for coordinator in world.coordinators.values())

    run(tmp_path, body)


@pytest.mark.parametrize("what", ["a recall", "a cancel", "a close"])
def test_arguments_of_a_share_that_are_on_their_way_are_given_up(tmp_path: Path, what: str) -> None:
    async def body(world: World) -> None:
        peer = FAR[0][0]
        down, up = world.down[peer], world.up[peer]
        world.store(HOME).put(PROGRAM, "test")
        blob = world.store(HOME).put(b"far" * 100, "test")
        members = tuple(sorted(map(bytes, FAR[0])))
        program = bytes(blob_id_of(PROGRAM))
        down.send(ShareOpen(SHARE, program, len(PROGRAM), "f", "sum", members, {}, b"signed", ()))
        await until(lambda: any(isinstance(message, JobAccept) for message in up.said), "the share is open")
        up.passes.clear()
        rows = tuple((task, 1, 0, Payload(blob=blob, size_bytes=300)) for task in (1, 2))
        down.send(Tasks(SHARE, rows))
        await until(lambda: up.waiting == 2, "its arguments are fetched")
        named = ((1, 1),)
        if what == "a close":
            down.send(JobClose(SHARE))
        else:
            down.send(TasksRecall(SHARE, named) if what == "a recall" else TasksCancel(SHARE, named))
        left = 0 if what == "a close" else 1
        await until(lambda: up.waiting == left, "what nobody needs any more is not fetched on")

    run(tmp_path, body)


@pytest.mark.parametrize("aggregation", [Aggregation.SUM, Aggregation.AVERAGE])
def test_weighted_answers_are_right(tmp_path: Path, aggregation: Aggregation) -> None:
    async def body(world: World) -> None:
        world.answer = big
        weights = [float(task % 5) for task in range(200)]
        end = await world.submit(200, aggregation, weights).ended()
        total = sum(int(weight) * big(task) for task, weight in enumerate(weights))
        if aggregation is Aggregation.SUM:
            assert decode(end.result) == total
        else:
            assert decode(end.result) == total / sum(map(int, weights))
        assert partials(world) == 0

    run(tmp_path, body)


@pytest.mark.parametrize("seed", range(6))
def test_a_coordinator_may_die_at_any_message(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    async def body(world: World) -> None:
        world.answer, world.merge = (
            lambda task: [task] * 30,
            lambda values: [each for value in values for each in value],
        )
        for peer in world.up:
            left = [rng.randrange(1, 12) if rng.random() < 0.7 else 10**9]

            def mangle(message: Message, peer: PeerId = peer, left: list[int] = left) -> Message | None:
                left[0] -= 1
                if left[0] == 0:
                    asyncio.get_running_loop().call_soon(world.kill, peer)
                return message if left[0] >= 0 else None

            world.up[peer].mangle = mangle
        end = await world.submit(400, Aggregation.REDUCE).ended()
        assert end.state is JobState.SUCCEEDED
        assert decode(end.result) == [task for task in range(400) for _ in range(30)]

    run(tmp_path, body)


def test_a_link_that_is_replaced_in_mid_job_loses_nothing(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.answer = big
        stream = world.submit(600, Aggregation.SUM)
        await until(lambda: all(world.members[ms[2]].ran for ms in FAR), "members compute")
        for peer in list(world.up):
            old = world.up[peer]
            world.link(peer)
            world.coordinators[peer].linked(world.up[peer])
            old.is_cut = True
        end = await stream.ended()
        assert decode(end.result) == sum(big(task) for task in range(600))

    run(tmp_path, body)


@pytest.mark.parametrize("how", ["other", "value", "twice", "rubbish", "attempt"])
def test_who_forges_a_partial_aggregate_is_named_and_the_answer_is_right(tmp_path: Path, how: str) -> None:
    def forged(message: Message) -> Message:
        if not isinstance(message, Partial):
            return message
        (first, count, attempt), *rest = message.rows
        rows, payload = message.rows, message.payload
        if how == "other":
            rows = ((first, count + 1, attempt), *rest)
        elif how == "attempt":
            rows = ((first, count, attempt + 1), *rest)
        elif how == "twice":
            rows = (*message.rows, (first, 1, attempt))
        elif how == "value":
            payload = Payload(inline=encode({"aggregation": "sum", "count": 10**6, "state": None}))
        else:
            payload = Payload(inline=b"\xc1")
        return Partial(message.job, message.number, rows, payload, message.workers)

    async def body(world: World) -> None:
        world.answer = big
        liar = FAR[0][0]
        world.up[liar].mangle = forged
        end = await world.submit(300, Aggregation.SUM).ended()
        assert decode(end.result) == sum(big(task) for task in range(300))
        assert set(world.misdeeds) == {liar}
        assert any(isinstance(message, JobClose) for message in world.down[liar].said), "its community stops"

    run(tmp_path, body)


def test_a_suspected_coordinator_hears_that_its_shares_are_over(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        stream = world.submit(2_000, Aggregation.NONE)
        peer = FAR[0][0]
        await until(lambda: world.members[FAR[0][2]].ran, "members compute")
        world.origin.seat_usable(world.down[peer], Facts(is_suspect=True))
        await until(lambda: not world.coordinators[peer]._shares, "the share ends")
        stream.cancel()
        assert (await stream.ended()).state is JobState.CANCELLED
        await until(lambda: not any(each._shares for each in world.coordinators.values()), "all shares end")

    run(tmp_path, body)


def opening(share: bytes = SHARE, options: Any = None, aggregation: str = "sum") -> ShareOpen:
    program = bytes(blob_id_of(PROGRAM))
    return ShareOpen(share, program, len(PROGRAM), "f", aggregation, tuple(FAR[0]), {} if options is None else options)


@pytest.mark.parametrize(
    "options",
    [5, [], "x", {"timeout_s": []}, {"priority": {}}, {"memory_bytes": -1}, {"task_type": 3}, {"speculate": None}],
)
def test_options_that_nobody_writes_are_refused(tmp_path: Path, options: Any) -> None:
    async def body(world: World) -> None:
        peer = FAR[0][0]
        world.store(HOME).put(PROGRAM, "test")
        world.down[peer].send(opening(options=options))
        refused = await until(lambda: [each for each in world.up[peer].said if isinstance(each, JobRefuse)], "refused")
        assert refused[0].reason == "share"
        assert not world.coordinators[peer]._shares

    run(tmp_path, body)


def test_results_of_a_coordinators_own_jobs_are_never_a_shares(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        peer = FAR[0][0]
        coordinator = world.coordinators[peer]
        coordinator.is_own = lambda job: job == JobId(SHARE)
        world.store(HOME).put(PROGRAM, "test")
        world.down[peer].send(opening())
        await until(lambda: any(isinstance(each, JobRefuse) for each in world.up[peer].said), "refused")
        assert not coordinator.takes(FAR[0][2], Results(SHARE, ()))
        world.down[peer].send(opening(b"t" * 12))
        await until(lambda: any(isinstance(each, JobAccept) for each in world.up[peer].said), "accepted")
        assert coordinator.takes(FAR[0][2], Results(b"t" * 12, ()))
        assert not coordinator.takes(FAR[0][2], Tasks(b"t" * 12, ())), "only its origin sends tasks of it"
        assert not coordinator.takes(HOME, Partial(b"t" * 12, 1, (), Payload()))
        world.down[peer].send(JobClose(b"t" * 12))
        await until(lambda: not coordinator.takes(FAR[0][2], Results(b"t" * 12, ())), "closed")

    run(tmp_path, body)


def test_messages_that_no_honest_coordinator_sends_change_nothing(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        peer = FAR[0][0]
        world.answer = big
        stream = world.submit(200, Aggregation.SUM)
        await until(lambda: world.members[FAR[0][2]].ran, "members compute")
        share = next(message for message in world.down[peer].said if isinstance(message, ShareOpen)).share
        row = (5, 9, Outcome.RETURNED, 0, Payload(inline=encode(1)))
        for job in (share, b"j" * 12, b"?" * 12):
            for by in ((0,), (7,), (0, 0), ()):
                for peers in ((), (b"w" * 32,)):
                    world.up[peer].send(Results(job, (row,), peers, by))
        for number in range(50):
            known = (10**6 + number, 1, Outcome.RETURNED, 0, Payload(inline=encode(1)))
            world.up[peer].send(Results(share, (known,), (b"w" * 32,), (0,)))
        world.up[FAR[1][0]].send(Partial(share, 1, ((0, 5, 1),), Payload(inline=b"\xc1")))
        world.up[peer].send(CommunityGrant(1 << 20))
        end = await stream.ended()
        assert decode(end.result) == sum(big(task) for task in range(200))
        assert not world.origin.jobs[JobId(b"j" * 12)].workers
        assert world.misdeeds == []

    run(tmp_path, body)
