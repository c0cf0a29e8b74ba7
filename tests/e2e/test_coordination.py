"""Shares of jobs that key nodes of other communities dispatch: over real peers, links, workers and SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import coordination_module as work
import numpy as np
import pytest

from p2pcompute.jobs.coordinating import Region
from p2pcompute.model.ids import PeerId, seat_of, short_peer_id
from p2pcompute.model.job import JobProgress
from p2pcompute.model.peer import Address
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.partials import write_nodes
from p2pcompute.node.peer import Peer
from p2pcompute.node.share import Cut, Share
from p2pcompute.wire.messages import JobOpen, Message, ShareOpen
from tests.support.holding import PLAIN
from tests.support.peers import Machine, PeerProcess, free_port, linked, machine, until, until_now

TASKS = 240
TOTAL = sum(range(TASKS))
TEXTS = [f"a w{number % 7} w{number}" for number in range(TASKS)]
WORDS = work.count_words(" ".join(TEXTS))


def run(body: Awaitable[None], timeout_s: float = 120) -> None:
    async def main() -> None:
        async with asyncio.timeout(timeout_s):
            await body

    asyncio.run(main())


def stand(origin: Peer, *communities: Sequence[PeerId]) -> None:
    """Tell the jobs of `origin` of these communities, the first peer of each its key node; whatever the links here say."""
    origin.surroundings.mapped = lambda shape: None  # type: ignore[method-assign]
    if origin._topology is not None:
        origin._topology._changed = lambda shape: None
    slots = {entry.record.peer: entry.record.slots for entry in origin.view.entries}
    regions = tuple(
        Region(frozenset(peers), tuple(map(seat_of, peers)), sum(slots[peer] for peer in peers))
        for peers in communities
    )
    origin.origin.regions(regions)
    for link in origin.overlay.hub.links.values():
        origin.surroundings.offer(link)


@contextlib.asynccontextmanager
async def three_communities(home: Path, **changes: Any) -> AsyncIterator[list[Peer]]:
    """Six peers in this process: the first two at home, and two communities of two. All of `stand` is done."""
    async with contextlib.AsyncExitStack() as stack:
        peers: list[Peer] = []
        for number in range(1, 7):
            bootstrap = tuple(Address("127.0.0.1", peer.port) for peer in peers[:1])
            config = PeerConfig.test(name=f"peer{number}", slots=2, bootstrap=bootstrap, **changes)
            peers.append(await stack.enter_async_context(Peer(config, folders=Folders.beneath(home))))
        await linked(peers)
        stand(peers[0], [peer.peer_id for peer in peers[2:4]], [peer.peer_id for peer in peers[4:]])
        yield peers


def is_seated(origin: Peer, coordinator: Peer) -> bool:
    """Whether `origin` knows `coordinator` as the seat of its community."""
    for link in origin.overlay.hub.links.values():
        origin.surroundings.offer(link)
    return seat_of(coordinator.peer_id) in origin.origin._channels


def sent_by(peer: Peer) -> list[Message]:
    """What `peer` says to others from now on."""
    said: list[Message] = []
    for link in peer.overlay.hub.links.values():
        send = link.send

        def tell(message: Message, send: Callable[[Message], None] = send) -> None:
            said.append(message)
            send(message)

        link.send = tell  # type: ignore[method-assign]
    return said


def test_answers_are_those_of_one_machine_whatever_is_merged_where(home: Path) -> None:
    async def body() -> None:
        async with three_communities(home) as peers:
            origin = peers[0]
            said = sent_by(origin)
            seen: list[JobProgress] = []
            squares = [x async for x in origin.map(work.square, range(TASKS), on_progress=seen.append)]
            assert squares == [x * x for x in range(TASKS)]
            # Each was computed somewhere, and the coordinators said where.
            assert sum(dict(seen[-1].done_by_peer).values()) == TASKS
            assert set(dict(seen[-1].done_by_peer)) <= {peer.peer_id for peer in peers}
            # A share for each community at most, and no offer to their members; one to the other peer at home.
            kinds = [type(message) for message in said]
            assert 1 <= kinds.count(ShareOpen) <= 2
            assert kinds.count(JobOpen) <= 1
            for coordination in ("auto", "relay", "off"):
                total = await origin.map_reduce(
                    work.slow_vector, None, range(TASKS), aggregation="sum", coordination=coordination
                )
                assert np.array_equal(total.value, np.full(work.LENGTH, TOTAL))
                assert sum(dict(total.progress.done_by_peer).values()) == TASKS
                words = await origin.map_reduce(work.slow_count, work.merge_counts, TEXTS, coordination=coordination)
                assert words.value == WORDS
                mean = await origin.map_reduce(
                    work.floats, None, range(TASKS), aggregation="average", coordination=coordination
                )
                assert mean.value == pytest.approx(0.1 * TOTAL / TASKS, abs=0, rel=1e-15)
                highest = await origin.map_reduce(
                    work.vector, None, range(TASKS), aggregation="max", coordination=coordination
                )
                assert np.array_equal(highest.value, np.full(work.LENGTH, TASKS - 1))
            assert not any(peer.coordinator._delegates[origin.peer_id].jobs for peer in (peers[2], peers[4]))

    run(body())


def test_shared_and_large_data_cross_to_a_community_once(home: Path) -> None:
    async def body() -> None:
        async with three_communities(home) as peers:
            origin = peers[0]
            served: list[PeerId] = []
            told = origin.exchange.on_served
            origin.exchange.on_served = lambda peer, blob: (served.append(peer), told(peer, blob))[1]  # type: ignore[func-returns-value]
            handle = await origin.put(os.urandom(2_000_000))
            function = functools.partial(work.shared_length, handle)
            total = await origin.map_reduce(function, None, range(TASKS), aggregation="sum")
            assert total.value == 2_000_000 * TASKS + TOTAL
            # The program and the data, once to each coordinator and to the other peer at home; never to other members.
            counts = Counter(served)
            assert set(counts) <= {peers[place].peer_id for place in (1, 2, 4)}
            assert max(counts.values()) <= 2
            assert counts[peers[2].peer_id] + counts[peers[4].peer_id] >= 2
            chunks = [x async for x in origin.map(work.large, range(30))]
            assert [(len(chunk), chunk[0]) for chunk in chunks] == [(300_000, x) for x in range(30)]

    run(body())


def test_what_fails_in_a_community_fails_as_anywhere(home: Path, tmp_path: Path) -> None:
    async def body() -> None:
        async with three_communities(home, **PLAIN) as peers:
            origin = peers[0]
            with pytest.raises(ValueError, match="is odd"):
                await origin.map_reduce(work.odd_ones_fail, None, range(TASKS), aggregation="sum")
            even = await origin.map_reduce(work.odd_ones_fail, None, range(TASKS), aggregation="sum", on_error="skip")
            assert np.array_equal(even.value, np.full(work.LENGTH, sum(range(0, TASKS, 2))))
            assert even.skipped == tuple(range(1, TASKS, 2))
            # A reduction that fails in a community fails with its own words, not as the community's.
            with pytest.raises(ValueError, match="these cannot be merged"):
                await origin.map_reduce(work.slow_count, work.never_merges, TEXTS)
            # A task that kills its worker is tried elsewhere.
            dying = functools.partial(work.dies_at_seven, str(tmp_path / "mark"))
            values = [x async for x in origin.map(dying, range(100))]
            assert values == list(range(100))

    run(body())


# --- lies -------------------------------------------------------------------------------------------------------------


def _one_more(cut: Cut) -> Cut:
    """Names a task that others have."""
    return dataclasses.replace(cut, rows=(*cut.rows, (_free(cut), 1, 1)))


def _one_less(cut: Cut) -> Cut:
    """Leaves out a task whose value is in it."""
    first, count, attempt = cut.rows[0]
    shorter = ((first + 1, count - 1, attempt),) if count > 1 else ()
    return dataclasses.replace(cut, rows=(*shorter, *cut.rows[1:]))


def _twice(cut: Cut) -> Cut:
    return dataclasses.replace(cut, rows=(*cut.rows, cut.rows[0]))


def _old(cut: Cut) -> Cut:
    first, count, attempt = cut.rows[0]
    return dataclasses.replace(cut, rows=((first, count, attempt + 1), *cut.rows[1:]))


def _junk(cut: Cut) -> Cut:
    return dataclasses.replace(cut, payload=b"\xc1")


def _foreign(cut: Cut) -> Cut:
    """A merged value of the whole job, from a coordinator that had a part of it."""
    return dataclasses.replace(cut, payload=write_nodes([((1 << 48) + (2 << 40), b"\x01")]))


def _free(cut: Cut) -> int:
    named = {first + place for first, count, _ in cut.rows for place in range(count)}
    return next(task for task in range(TASKS) if task not in named)


def test_a_forged_partial_is_refused_whole_and_its_sender_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with three_communities(home) as peers:
            origin, liar = peers[0], peers[2]
            honest = Share.cut
            forgeries: list[Callable[[Cut], Cut]] = [_one_more, _one_less, _twice, _old, _junk, _foreign]
            forged = 0

            def lying(share: Share) -> Cut | None:
                nonlocal forged
                cut = honest(share)
                # All coordinators of this process share the class: one of them lies.
                own = any(share in each.jobs.values() for each in liar.coordinator._delegates.values())
                if cut is None or not own:
                    return cut
                forged += 1
                return forge(cut)

            monkeypatch.setattr(Share, "cut", lying)
            for number, forge in enumerate(forgeries, 1):
                for _ in range(10):
                    # A job that is done before its community has answered gives nobody a share.
                    if forge is _foreign:
                        words = await origin.map_reduce(work.slow_count, work.merge_counts, TEXTS)
                        assert words.value == WORDS
                    else:
                        total = await origin.map_reduce(work.slow_vector, None, range(TASKS), aggregation="sum")
                        assert np.array_equal(total.value, np.full(work.LENGTH, TOTAL)), forge.__name__
                    if forged >= number:
                        break
                assert forged >= number, f"{forge.__name__} was tried"
                named = {name: str(trouble) for name, trouble in origin.overlay.troubles.items()}
                assert "partial aggregate" in named[short_peer_id(liar.peer_id)], forge.__name__
                # Whoever does that gets nothing more of this origin; here for the next lie it does.
                assert seat_of(liar.peer_id) in origin.origin._barred
                origin.origin._barred.clear()
                await until(lambda: is_seated(origin, liar), "the liar may coordinate again")

    run(body())


# --- deaths -----------------------------------------------------------------------------------------------------------


class Scene:
    """This process submits; four peers in processes of their own are two communities of two."""

    def __init__(self, origin: Peer, here: Machine) -> None:
        self.origin = origin
        self.here = here
        self.far: dict[str, PeerProcess] = {}

    def id_of(self, name: str) -> PeerId:
        if self.origin.own.record.name == name:
            return self.origin.peer_id
        return next(entry.record.peer for entry in self.origin.view.entries if entry.record.name == name)

    def merged_at(self, name: str) -> int:
        """Tasks of the running job that the coordinator `name` has acknowledged and not handed over."""
        seat = seat_of(self.id_of(name))
        books = self.origin.origin._machine._roster.running
        return sum(held.share.peer == seat for book in books for held in book.merged.values())

    async def total(self, count: int = 2 * TASKS) -> Any:
        done = await self.origin.map_reduce(work.slow_vector, None, range(count), aggregation="sum")
        assert np.array_equal(done.value, np.full(work.LENGTH, sum(range(count))))
        assert done.progress.tasks_done == count
        return done

    async def job_while(self, condition: Callable[[], bool], count: int = 2 * TASKS) -> asyncio.Task[Any]:
        """A running job for which `condition` has come true; what ends before it does is followed by another."""
        for _ in range(10):
            job = asyncio.create_task(self.total(count))

            def ripe(job: asyncio.Task[Any] = job) -> bool:
                return job.done() or condition()

            await until(ripe, "a job is in the midst of it")
            if not job.done():
                return job
            await job
        raise AssertionError("ten jobs ended before they were in the midst of it")

    async def stage(self, **peers: PeerProcess) -> None:
        self.far = peers
        names = set(peers)

        def all_linked() -> bool:
            return names <= {entry.record.name for entry in self.origin.view.alive if entry.linked}

        await until(all_linked, "the origin has links to all")
        # And the members of a community among themselves.
        for name, peer in peers.items():
            others = names - {name}
            await asyncio.to_thread(_linked_to, peer, others)
        stand(self.origin, [self.id_of("bea"), self.id_of("ben")], [self.id_of("cia"), self.id_of("cem")])


def _linked_to(peer: PeerProcess, others: set[str]) -> None:
    until_now(lambda: others <= peer.linked_names, f"links to {others}", step_s=0.1)


@contextlib.contextmanager
def two_far_communities(home: Path, port: int) -> Iterator[tuple[Machine, dict[str, PeerProcess]]]:
    with machine(home) as here:
        told = ("--slots", "2", "--timing", "lan", "--bootstrap", f"127.0.0.1:{port}")
        yield here, {name: here.up(name, *told) for name in ("bea", "ben", "cia", "cem")}


def scene(home: Path, play: Callable[[Scene], Awaitable[None]]) -> None:
    async def body() -> None:
        port = free_port()
        config = PeerConfig.test(name="anna", slots=2, port=port, timing="lan")
        async with Peer(config, folders=Folders.beneath(home)) as origin:
            with contextlib.ExitStack() as stack:
                here, far = await asyncio.to_thread(stack.enter_context, two_far_communities(home, origin.port))
                on_stage = Scene(origin, here)
                await on_stage.stage(**far)
                try:
                    await play(on_stage)
                finally:
                    await asyncio.to_thread(stack.close)

    run(body(), 180)


def test_a_coordinator_is_killed_after_acknowledging_half_its_tasks(home: Path) -> None:
    async def play(scene: Scene) -> None:
        job = await scene.job_while(lambda: scene.merged_at("bea") >= 20)
        scene.far["bea"].kill()
        done = await job
        # What it had acknowledged ran again, counted once.
        assert sum(count for _, count in done.progress.done_by_peer) == 2 * TASKS

    scene(home, play)


def test_a_coordinator_and_its_stand_in_are_killed(home: Path) -> None:
    async def play(scene: Scene) -> None:
        job = await scene.job_while(lambda: scene.merged_at("bea") >= 10)
        scene.far["bea"].kill()
        await until(lambda: job.done() or scene.merged_at("ben") >= 5, "ben stands in and holds merged tasks")
        if job.done():
            # The others were quicker: then it stands in from the start, in another job.
            await job
            job = await scene.job_while(lambda: scene.merged_at("ben") >= 5)
        scene.far["ben"].kill()
        done = await job
        assert sum(count for _, count in done.progress.done_by_peer) == 2 * TASKS

    scene(home, play)


def test_a_community_is_cut_off_and_comes_back(home: Path) -> None:
    async def play(scene: Scene) -> None:
        job = await scene.job_while(lambda: scene.merged_at("bea") >= 10, 4 * TASKS)
        gone = [scene.far["bea"].process, scene.far["ben"].process]
        for process in gone:
            process.send_signal(signal.SIGSTOP)
        try:
            # Its share is given to others while nothing of it is heard, and the job goes on to its end.
            await until(lambda: job.done() or not scene.merged_at("bea"), "the share is taken back", 60)
        finally:
            for process in gone:
                process.send_signal(signal.SIGCONT)
        await job
        # And the community is of use again.
        ids = {scene.id_of("bea"), scene.id_of("ben")}
        await until(
            lambda: ids <= {entry.record.peer for entry in scene.origin.view.alive if entry.linked}, "both are back"
        )
        await scene.total()

    scene(home, play)


def test_a_member_of_a_community_is_killed(home: Path) -> None:
    async def play(scene: Scene) -> None:
        job = await scene.job_while(lambda: scene.merged_at("bea") >= 10)
        scene.far["ben"].kill()
        done = await job
        # Its coordinator lost it, and goes on with those that are left: what it had merged is not lost.
        assert "bea" in {scene.origin.name_of(peer) for peer, _ in done.progress.done_by_peer}

    scene(home, play)
