"""Peers of `benchmarks/coordination.py`: the product's `Origin` and `Lender`, wired as `node/peer.py` wires them, with workers that take virtual time.

What a task is, its arguments say: seconds at speed 1, the number that it gives, the bytes of its result, and perhaps a handle that
must be there first. A reduction adds the numbers of its values. So the answer of every job is known beforehand and checked.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from structlog.typing import FilteringBoundLogger

from benchmarks._coordination_links import BenchLink, Seat
from p2pcompute.execution.pool import PoolEvents, ProgramKey, TaskEnd, TaskRun
from p2pcompute.execution.pool_types import Pool
from p2pcompute.execution.values import Handle, decode, encode, encode_failure
from p2pcompute.jobs.coordinating import Region
from p2pcompute.jobs.plan import Facts
from p2pcompute.jobs.strategies import FACTORIES, Registry, Strategy
from p2pcompute.model.capability import Capability
from p2pcompute.model.errors import BlobMissingError, UsageError
from p2pcompute.model.ids import BlobId, PeerId, short_peer_id
from p2pcompute.model.job import JobOptions, Outcome
from p2pcompute.model.seams import Rng
from p2pcompute.net.blobs import BlobExchange
from p2pcompute.net.link import Link
from p2pcompute.node.channels import LinkChannel
from p2pcompute.node.community import Community
from p2pcompute.node.coordinator import Coordinator
from p2pcompute.node.delegating import Delegating
from p2pcompute.node.handles import Bytes, Handles
from p2pcompute.node.holders import Holders
from p2pcompute.node.identity import NodeIdentity
from p2pcompute.node.lender import Lender
from p2pcompute.node.offers import Offers
from p2pcompute.node.origin import Origin
from p2pcompute.node.records import Records
from p2pcompute.node.supervise import Supervisor
from p2pcompute.sim.loop import SimLoop
from p2pcompute.sim.seams import InlineOffload, SimClock, SimEntropy
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.storage.performance import DatedRecord, PerformanceDatabase
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.invitation import Invitation
from p2pcompute.wire.membership import Membership, Trust
from p2pcompute.wire.messages import (
    BlobWant,
    CommunityGrant,
    Grant,
    JobAccept,
    JobClose,
    JobOpen,
    JobRefuse,
    Message,
    Partial,
    Results,
    TaskNews,
    Tasks,
    TasksCancel,
    TasksRecall,
)

_FOR_ORIGIN = (JobAccept, JobRefuse, Grant, Results, TaskNews, CommunityGrant, Partial)
_FOR_LENDER = (JobOpen, Tasks, TasksCancel, TasksRecall, JobClose)

#: A forked worker has loaded a program after so long, and a killed one is gone (`python -m benchmarks workers`), at speed 1.
START_S = 0.07
GONE_S = 0.005
#: What a peer of speed 1 says of itself; slower and faster ones have other clocks, which is all that a record shows of it.
FREQUENCY_MHZ = 2_500.0
_STORE_BYTES_MAX = 1 << 40


class UnexpectedError(Exception):
    """A part of a peer said that something is wrong with it: the figures of this run mean nothing."""


class BenchLog:
    """Passes over what is quiet, and ends the run at the first line that tells of a bug."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def debug(self, event: str, **fields: object) -> None:
        """Nothing."""

    info = warning = debug

    def error(self, event: str, **fields: object) -> None:
        """End the run."""
        cause = sys.exc_info()[1]
        self._loop.call_exception_handler(
            {"message": f"{event}: {fields}", "exception": cause if isinstance(cause, Exception) else None}
        )

    exception = error


class NoDatabase:
    """Keeps no records of performance."""

    def add(self, records: Sequence[DatedRecord], now_s: float) -> None:
        """Nothing."""

    def recent(self, count: int) -> list[DatedRecord]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing."""


class BenchRegistry(Registry):
    """Takes a balancer that is a `Strategy` at its word, rather than asking it before each batch whom it leaves out."""

    def make_for(self, options: JobOptions) -> Strategy:
        """As the registry of a peer, apart from that."""
        return options.balancer if isinstance(options.balancer, Strategy) else super().make_for(options)


# --- workers --------------------------------------------------------------------------------------------------------------

_PADS: dict[int, bytes] = {}


def padded(count: int, number: int, size_bytes: int) -> bytes:
    """An encoded value that stands for `count` tasks whose numbers add up to `number`, of `size_bytes` bytes or a few more."""
    pad = _PADS.get(size_bytes)
    if pad is None:
        pad = _PADS[size_bytes] = bytes(max(size_bytes - 16, 0))
    return encode([count, number, pad])


@dataclass(slots=True)
class _Doing:
    """What a worker is doing: an attempt that waits for data, or computes since `since` with `work_s` left at speed 1."""

    run: TaskRun
    began_at: float
    handle: Handle | None = None
    work_s: float = 0.0
    since: float = 0.0
    result: bytes = b""
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Worker:
    number: int
    ready: bool = False
    #: Whether it is being killed.
    condemned: bool = False
    doing: _Doing | None = None
    queue: deque[TaskRun] = field(default_factory=deque)
    #: Handles whose values it has.
    kept: set[bytes] = field(default_factory=set)
    timer: asyncio.TimerHandle | None = None


class BenchPool:
    """What `Lender` uses of `execution.pool.WorkerPool`, with workers that only take time. `reduce_s`: of one value, at speed 1."""

    def __init__(self, events: PoolEvents, loop: SimLoop, speed: float, reduce_s: float) -> None:
        self._events = events
        self._loop = loop
        self.speed = speed
        self._reduce_s = reduce_s
        self._workers: dict[int, _Worker] = {}
        self._next_number = 1
        #: Attempts that were begun, and seconds that workers have computed.
        self.begun = 0
        self.busy_s = 0.0

    def spawn(self, key: ProgramKey, program: bytes, memory_bytes: int | None = None, head: object = None) -> int:
        """As the pool's."""
        number, self._next_number = self._next_number, self._next_number + 1
        worker = self._workers[number] = _Worker(number)
        worker.timer = self._loop.call_later(START_S / self.speed, self._ready, worker)
        return number

    def _ready(self, worker: _Worker) -> None:
        if worker.condemned:
            return
        worker.ready = True
        self._go_on(worker)
        self._events.worker_ready(worker.number)

    def run(self, worker: int, batch: Sequence[TaskRun]) -> None:
        """As the pool's."""
        held = self._workers.get(worker)
        if held is None:
            raise UsageError(f"worker {worker} is gone")
        held.queue.extend(batch)
        if held.ready:
            self._go_on(held)

    def cancel(self, worker: int, tasks: Collection[tuple[int, int]]) -> None:
        """As the pool's: what waits ends as CANCELLED, what runs is killed with its worker."""
        held = self._workers.get(worker)
        if held is None:
            return
        waiting = [run for run in held.queue if (run.task, run.attempt) in tasks]
        if waiting:
            held.queue = deque(run for run in held.queue if (run.task, run.attempt) not in tasks)
            ends = [TaskEnd(run.task, run.attempt, Outcome.CANCELLED, 0, b"cancelled") for run in waiting]
            self._loop.call_soon(self._events.tasks_ended, worker, ends)
        doing = held.doing
        if doing is not None and (doing.run.task, doing.run.attempt) in tasks:
            self._condemn(held, doing.run)

    def retire(self, worker: int) -> None:
        """As the pool's: what it has in hand comes back."""
        held = self._workers.get(worker)
        if held is not None and not held.condemned:
            if held.doing is not None:
                held.queue.appendleft(held.doing.run)
            self._condemn(held, None)

    def supply(self, worker: int, blob: BlobId, data: Bytes | None) -> None:
        """As the pool's: the task that waits for `blob` goes on, or raises what a worker raises without it."""
        held = self._workers.get(worker)
        if held is None or held.doing is None or held.doing.handle is None or held.doing.handle.blob != blob:
            return
        if data is None:
            text = "the data behind a handle is not held by the submitting peer any more"
            self._told(held, Outcome.RAISED, encode_failure(BlobMissingError(text)))
            return
        held.kept.add(blob)
        held.doing.handle = None
        self._compute(held.doing, held)

    def change_speed(self, speed: float) -> None:
        """From now on, also for what runs."""
        running = [each for each in self._workers.values() if each.doing is not None and each.doing.timer is not None]
        for worker in running:
            self._settle_work(worker.doing)
        self.speed = speed
        for worker in running:
            assert worker.doing is not None
            self._compute(worker.doing, worker)

    def stop(self) -> None:
        """Nothing runs any more, and nobody is told."""
        for worker in self._workers.values():
            if worker.timer is not None:
                worker.timer.cancel()
            self._end(worker)
        self._workers.clear()

    def _go_on(self, worker: _Worker) -> None:
        if worker.doing is not None or not worker.queue or worker.condemned:
            return
        run = worker.queue.popleft()
        doing = worker.doing = _Doing(run, self._loop.time())
        self.begun += 1
        ((first, *rest), _) = decode(run.arguments)
        if run.entry == 0:
            doing.work_s, number, result_bytes = first
            doing.result = padded(1, number, result_bytes)
            handle = next((each for each in rest if isinstance(each, Handle)), None)
            if handle is not None and handle.blob not in worker.kept:
                doing.handle = handle
                self._loop.call_soon(self._events.blob_wanted, worker.number, BlobId(handle.blob), handle.size_bytes)
                return
        else:
            doing.work_s = self._reduce_s * len(first)
            pad_bytes = max(len(value[2]) for value in first)
            doing.result = padded(sum(value[0] for value in first), sum(value[1] for value in first), pad_bytes + 16)
        self._compute(doing, worker)

    def _compute(self, doing: _Doing, worker: _Worker) -> None:
        doing.since = self._loop.time()
        doing.timer = self._loop.call_later(doing.work_s / self.speed, self._returned, worker)

    def _settle_work(self, doing: _Doing | None) -> None:
        if doing is not None and doing.timer is not None:
            doing.timer.cancel()
            doing.timer = None
            spent_s = self._loop.time() - doing.since
            self.busy_s += spent_s
            doing.work_s = max(doing.work_s - spent_s * self.speed, 0.0)

    def _returned(self, worker: _Worker) -> None:
        assert worker.doing is not None
        self._told(worker, Outcome.RETURNED, worker.doing.result)

    def _told(self, worker: _Worker, outcome: Outcome, payload: bytes) -> None:
        doing = worker.doing
        assert doing is not None
        self._end(worker)
        wall_us = int((self._loop.time() - doing.began_at) * 1e6)
        self._go_on(worker)
        self._events.tasks_ended(worker.number, [TaskEnd(doing.run.task, doing.run.attempt, outcome, wall_us, payload)])

    def _condemn(self, worker: _Worker, cancelled: TaskRun | None) -> None:
        worker.condemned = True
        self._end(worker)
        self._loop.call_later(GONE_S, self._gone, worker, cancelled)

    def _end(self, worker: _Worker) -> None:
        self._settle_work(worker.doing)
        worker.doing = None

    def _gone(self, worker: _Worker, cancelled: TaskRun | None) -> None:
        if self._workers.pop(worker.number, None) is None:
            return
        if worker.timer is not None:
            worker.timer.cancel()
        if cancelled is not None:
            end = TaskEnd(cancelled.task, cancelled.attempt, Outcome.CANCELLED, 0, b"cancelled while it ran")
            self._events.tasks_ended(worker.number, [end])
        outcome = Outcome.RETURNED_UNRUN if cancelled is None else Outcome.CANCELLED
        unfinished = [(run.task, run.attempt) for run in worker.queue]
        self._events.worker_gone(worker.number, unfinished, "the worker was let go", outcome)


# --- peers ----------------------------------------------------------------------------------------------------------------


class BenchNetwork:
    """Who may do what: everybody everything. `dice`: of its owner."""

    def __init__(self, loop: SimLoop, dice: random.Random) -> None:
        self._loop = loop
        self._entropy = SimEntropy(dice)
        self.clock = SimClock(loop)
        authority = Authority.create("bench", self._entropy, self.clock.wall())
        self.invitation: Invitation = authority.invite(now_wall=self.clock.wall(), entropy=self._entropy)
        self.trust = Trust(authority.network, (authority.certificate,), None, is_open=False)

    def delegating(self, key: PeerKey) -> Delegating:
        """What signs in the name of `key`."""
        membership = Membership.mint(key, self.invitation, self.clock.wall(), self._entropy)
        identity = NodeIdentity(
            key, membership, self.trust, self.clock, agent="", instance=b"", record_wire=lambda: b""
        )
        return Delegating(identity, self.clock, self._entropy)


class BenchPeer:
    """One peer. `start` before anything else."""

    def __init__(
        self,
        loop: SimLoop,
        network: BenchNetwork,
        seat: Seat,
        slots: int,
        speed: float,
        reduce_s: float,
        rng: Callable[[str], Rng],
    ) -> None:
        self._network = network
        self.seat = seat
        self.peer_id: PeerId = seat.peer
        self.site = seat.site.number
        self._name = short_peer_id(seat.peer)
        self.slots = slots
        #: Links by the peer at the other end, and the channel over each.
        self.links: dict[PeerId, BenchLink] = {}
        self._channels: dict[PeerId, LinkChannel] = {}
        self.alive = True
        log = cast(FilteringBoundLogger, BenchLog(loop))
        clock, offload = SimClock(loop), InlineOffload()
        self._supervisor = Supervisor(log)
        # The folder is never made: nothing is spilled.
        self.store = BlobStore(Path("/nonexistent/p2pcompute-benchmark"), memory_bytes_max=_STORE_BYTES_MAX)
        self.handles = Handles(self.store)
        self.exchange = BlobExchange(self.store, self._supervisor.task)
        records = Records(cast(PerformanceDatabase, NoDatabase()), clock, rng("placing"), offload, log)
        records.registry = BenchRegistry(FACTORIES)
        self.origin = Origin(self.store, self._supervisor, clock, log, short_peer_id, records)
        self.lender = Lender(
            self.store,
            self._supervisor,
            clock,
            offload,
            log,
            slots=slots,
            offers=Offers(),
            trust=lambda: network.trust,
        )
        self.pool = BenchPool(self.lender, loop, speed, reduce_s)
        self.lender.start(cast(Pool, self.pool))
        self.coordinator = Coordinator(self.store, self._supervisor, clock, log, records.registry)
        self.community = Community(self.peer_id, self.store, self.exchange, self.origin, self.coordinator, self.lender)
        self.origin.holders = Holders(lambda: self.handles.sizes)
        self._capability = Capability(slots, FREQUENCY_MHZ * speed, 1.0, 16.0, 8.0)

    async def start(self) -> None:
        """Open the supervisor's group."""
        await self._supervisor.start()

    # --- the network, as `node/peer.py` hears of it -----------------------------------------------------------------------

    def linked(self, link: BenchLink) -> None:
        """A link is up."""
        self.links[link.peer] = link
        channel = self._channels[link.peer] = LinkChannel(cast(Link, link), self.exchange)
        self.community.linked(channel)

    def received(self, link: BenchLink, message: Message) -> None:
        """A message has come."""
        if not self.alive:
            return
        channel = self._channels[link.peer]
        if self.community.message(channel, message):
            return
        if isinstance(message, _FOR_ORIGIN):
            self.origin.message(channel, message)
        elif isinstance(message, _FOR_LENDER):
            self.lender.message(channel, message)
        elif isinstance(message, BlobWant):
            self.exchange.message(cast(Link, link), message)
        else:
            raise UnexpectedError(f"nobody takes a {type(message).__name__}")

    def unlinked(self, link: BenchLink, reason: str) -> None:
        """A link is gone."""
        if self.alive and self.links.get(link.peer) is link:
            del self.links[link.peer]
            self.community.gone(link.peer, reason)

    # --- what an origin is told of others ----------------------------------------------------------------------------------

    def facts(self, bandwidth_mbps: float | None = None) -> Facts:
        """What its record says now, to a peer that has measured `bandwidth_mbps` to it."""
        return Facts(
            name=self._name,
            capability=self._capability,
            slots=self.slots,
            load=self.lender.load,
            bandwidth_mbps=bandwidth_mbps,
            community=self.site,
            gives_back=True,
        )

    def offer_self(self) -> None:
        """Own workers may compute for own jobs."""
        self.origin.located(self.site)
        self.community.own_usable(self.facts())

    def offer(self, other: BenchPeer) -> None:
        """`other`, which is linked, may compute for own jobs."""
        link = self.links.get(other.peer_id)
        if link is not None and other.slots:
            channel, facts = self._channels[other.peer_id], other.facts(link.bandwidth_mbps)
            self.community.usable(channel, facts, lends=True)

    def submits(self, key: PeerKey, regions: tuple[Region, ...]) -> None:
        """It will: this is its key, and these are the sites other than its own."""
        self.origin.seats.delegating = self._network.delegating(key)
        self.origin.regions(regions)

    # --- the end ----------------------------------------------------------------------------------------------------------

    def die(self) -> None:
        """Stop where it stands, without a word; its links are closed by whoever lets others notice."""
        self.alive = False
        self.pool.stop()
        self.lender.stop()
        for link in self.links.values():
            link.close("it died")
        self.origin.stop()
        self.coordinator.stop()

    async def stop(self) -> None:
        """The run is over."""
        self.alive = False
        self.pool.stop()
        self.origin.stop()
        self.coordinator.stop()
        self.lender.stop()
        await self._supervisor.stop()
