"""One run of `benchmarks/coordination.py`: an instance, a policy, peers in virtual time, and what came of it, checked."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks._coordination_cases import (
    CASES,
    POLICIES,
    REDUCE_S,
    SILENCE_S,
    SLOTS,
    Instance,
    JobDraw,
    draw,
)
from benchmarks._coordination_links import CARD_MBPS, LAN_RTT_S, Pipe, Seat, Site, connect
from benchmarks._coordination_peers import BenchPeer
from p2pcompute.execution.program import Body, Module, pack_program
from p2pcompute.execution.values import Handle, decode, encode
from p2pcompute.model.ids import JOB_ID_BYTES, JobId, PeerId, ProgramId
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, JobState, Outcome
from p2pcompute.node.job_stream import JobRequest, JobStream
from p2pcompute.node.own_record import SAMPLE_INTERVAL_S
from p2pcompute.sim.dice import Dice
from p2pcompute.sim.loop import SimLoop
from p2pcompute.storage.blobs import blob_id_of
from p2pcompute.wire.versions import PROGRAM

#: Virtual seconds after which a run is called stuck: a hundred times what any takes.
TIME_MAX_S = 100_000.0
#: Inputs handed over at a time, and sources of a program.
_INPUTS_AT_ONCE = 512
_SOURCE_BYTES = 6_000

Row = dict[str, Any]


class WrongAnswerError(Exception):
    """A job came to another answer than its tasks have: nothing that was measured counts."""


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A job under way at `peer`."""

    peer: BenchPeer
    drawn: JobDraw
    stream: JobStream


class World:
    """The peers of one run."""

    def __init__(self, instance: Instance, policy: str) -> None:
        self.instance = instance
        self.policy = policy
        self.loop = SimLoop()
        self.loop.time_max_s = TIME_MAX_S
        self._dice = Dice(instance.seed)
        rates = zip(instance.up_mbps, instance.down_mbps, strict=True)
        self.sites = [
            Site(number, Pipe(self.loop, up), Pipe(self.loop, down), up, down)
            for number, (up, down) in enumerate(rates)
        ]
        self.peers: list[BenchPeer] = []
        for number, each in enumerate(instance.peers):
            cards = Pipe(self.loop, CARD_MBPS), Pipe(self.loop, CARD_MBPS)
            seat = Seat(each.peer, self.sites[each.site], *cards)
            self.peers.append(
                BenchPeer(
                    self.loop,
                    seat,
                    SLOTS,
                    each.speed,
                    REDUCE_S,
                    lambda what, n=number: self._dice.of("peer", n, what),  # type: ignore[misc]
                )
            )
        self._by_id: dict[PeerId, BenchPeer] = {peer.peer_id: peer for peer in self.peers}

    def run(self) -> Row:
        """Until all jobs have ended. Raises WrongAnswerError, SimulationError."""
        began_s = time.process_time()
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            makespan_s = self.loop.run_until_complete(self._whole())
        finally:
            self._end()
            if was_enabled:
                gc.enable()
        instance = self.instance
        return {
            "case": instance.case.name,
            "peers": len(self.peers),
            "policy": self.policy,
            "seed": instance.seed,
            "makespan_s": round(makespan_s, 4),
            "bound_s": round(instance.bound_s, 4),
            "wide_mb": round(sum(site.bytes_out for site in self.sites) / 1e6, 4),
            "tasks": sum(len(job.works) for job in instance.jobs),
            "begun": sum(peer.pool.begun for peer in self.peers),
            "busy_s": round(sum(peer.pool.busy_s for peer in self.peers), 3),
            "turns": self.loop.turns,
            "cpu_s": round(time.process_time() - began_s, 2),
        }

    async def _whole(self) -> float:
        for peer in self.peers:
            await peer.start()
        origins = [self.peers[job.origin] for job in self.instance.jobs]
        for origin in origins:
            for peer in self.peers:
                if peer.site == origin.site or not POLICIES[self.policy].own_site:
                    self.link(origin, peer)
        for origin in origins:
            self._offer(origin)
            self.loop.call_later(SAMPLE_INTERVAL_S, self._offer_again, origin)
        for peer, drawn in zip(self.peers, self.instance.peers, strict=True):
            if drawn.changes_at is not None:
                self.loop.call_later(drawn.changes_at, self._change, peer, drawn.then)
        jobs = [
            _Submitted(origin, drawn, self._submit(origin, drawn))
            for origin, drawn in zip(origins, self.instance.jobs, strict=True)
        ]
        for job in jobs:
            await _check(job, self.instance)
        return self.loop.time()

    def _end(self) -> None:
        """Stop everything, also after a failure, whose words are the ones that count."""
        loop = self.loop
        loop.uncaught()
        loop.time_max_s = math.inf

        async def rest() -> None:
            own = asyncio.current_task()
            for peer in self.peers:
                await peer.stop()
            others = [task for task in sorted(asyncio.all_tasks(loop), key=hash) if task is not own]
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others)
            await loop.shutdown_asyncgens()

        loop.run_until_complete(rest())
        loop.close()

    def link(self, one: BenchPeer, other: BenchPeer) -> None:
        """Link two peers that are not linked, at once."""
        if one is other or other.peer_id in one.links:
            return
        rtt_s = LAN_RTT_S if one.site == other.site else self.instance.rtts[one.site][other.site]
        near, far = connect(self.loop, (one, one.seat), (other, other.seat), rtt_s)
        one.linked(near)
        other.linked(far)

    # --- what peers learn of each other ------------------------------------------------------------------------------------

    def _offer(self, origin: BenchPeer) -> None:
        origin.offer_self()
        for peer in list(origin.links):
            origin.offer(self._by_id[peer])

    def _offer_again(self, origin: BenchPeer) -> None:
        if origin.alive:
            self._offer(origin)
            self.loop.call_later(SAMPLE_INTERVAL_S, self._offer_again, origin)

    def _change(self, peer: BenchPeer, speed: float) -> None:
        if speed > 0.0:
            peer.pool.change_speed(speed)
            return
        ends = [(link.other, link.rtt_s) for link in peer.links.values()]
        peer.die()
        for end, rtt_s in ends:
            noticed_s = SILENCE_S if self.instance.case.dies == "silent" else rtt_s / 2
            self.loop.call_later(noticed_s, end.close, "it is gone")

    # --- jobs -------------------------------------------------------------------------------------------------------------

    def _submit(self, origin: BenchPeer, drawn: JobDraw) -> JobStream:
        case = self.instance.case
        dice = self._dice.of("job", drawn.origin)
        module = Module("job", False, b"#" * _SOURCE_BYTES, "job.py")
        entries = (("work", ["name", "job", "work"]), ("merge", ["name", "job", "merge"]))
        program = pack_program(Body(PROGRAM, (module,), (), entries, (), (), ""))
        options: JobOptions = POLICIES[self.policy].options(self._dice.of("policy", drawn.origin))
        spec = JobSpec(
            JobId(dice.randbytes(JOB_ID_BYTES)),
            case.name,
            ProgramId(blob_id_of(program)),
            "work",
            case.aggregation,
            "merge" if case.aggregation is Aggregation.REDUCE else None,
            options,
            len(drawn.works),
        )
        handle = None
        if case.shared_bytes:
            handle = origin.handles.put(encode(dice.randbytes(case.shared_bytes)))
        return origin.origin.open(JobRequest(spec, program, ("work", "merge")), self._inputs(drawn, handle))

    async def _inputs(self, drawn: JobDraw, handle: Handle | None) -> AsyncIterator[Sequence[bytes]]:
        case = self.instance.case
        pad = bytes(max(case.argument_bytes - 32, 0))
        rows = list(zip(drawn.works, drawn.numbers, strict=True))
        for start in range(0, len(rows), _INPUTS_AT_ONCE):
            yield [
                encode([[[work_s, number, case.result_bytes], pad if handle is None else handle], {}])
                for work_s, number in rows[start : start + _INPUTS_AT_ONCE]
            ]


async def _check(job: _Submitted, instance: Instance) -> None:
    """Wait for the end of a job; raises WrongAnswerError unless each task counts in its answer exactly once."""
    numbers = job.drawn.numbers
    seen: dict[int, int] = {}
    async for rows in job.stream.batches():
        for row in rows:
            if row.outcome is not Outcome.RETURNED or row.index in seen:
                raise WrongAnswerError(f"task {row.index}: {row.outcome.name}, seen before: {row.index in seen}")
            count, seen[row.index], _ = decode(row.payload)
            if count != 1:
                raise WrongAnswerError(f"the result of task {row.index} counts {count} tasks")
        job.stream.taken(len(rows))
    end = await job.stream.ended()
    if end.state is not JobState.SUCCEEDED:
        raise WrongAnswerError(f"{instance.case.name}, seed {instance.seed}: {end.state.value}, {end.failure}")
    if instance.case.aggregation is Aggregation.NONE:
        if seen != dict(enumerate(numbers)):
            raise WrongAnswerError(f"{len(seen)} of {len(numbers)} results, or others than asked for")
        return
    if end.result is None:
        raise WrongAnswerError("no answer")
    count, total, _ = decode(end.result)
    if (count, total) != (len(numbers), sum(numbers)):
        raise WrongAnswerError(f"{count} tasks with sum {total}, not {len(numbers)} with sum {sum(numbers)}")


def simulate(case: str, peers: int, seed: int, policy: str) -> Row:
    """One run. Raises WrongAnswerError, SimulationError."""
    return World(draw(CASES[case], peers, seed), policy).run()
