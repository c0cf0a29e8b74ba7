"""What `benchmarks/coordination.py` has computed: cases, the instances that seeds draw of them, policies, and how soon it could be done at best.

An instance depends on its case, the number of peers and the seed, not on the policy, so policies meet the same sites, speeds, tasks and
misfortunes. Refuses to know loops and peers.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.strategies.base import Situation, Strategy
from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import Aggregation, JobOptions
from p2pcompute.model.placement import Coordination
from p2pcompute.sim.dice import Dice
from p2pcompute.wire.identity import PeerKey

SLOTS = 2
#: Wide links: megabits a second in and out of a site, round trips between two sites.
SITE_MBPS = (20.0, 100.0)
WIDE_RTT_S = (0.020, 0.060)
#: Seconds of one value in a reduction at speed 1.
REDUCE_S = 0.002
#: A machine that falls silent is noticed by all after so long (`python -m benchmarks overlay --part detection`, 30 peers).
SILENCE_S = 9.3


@dataclass(frozen=True, slots=True)
class Case:
    """A job, or several, and what happens to peers at half of the best possible time.

    A task takes `task_s` times e to a normal deviate of width `scatter`; speeds of peers are e to one of width `speeds`. Of the tasks
    `long_share` are `long_factor` times longer; of the peers, origins apart, `slow_share` become `slow_factor` times slower; `dies`: one
    of them is "killed", which others notice at once, or falls "silent"; "coordinator": who would coordinate a site far from the origin is killed.
    """

    name: str
    says: str
    tasks_per_slot: float = 12.0
    task_s: float = 1.0
    scatter: float = 0.3
    argument_bytes: int = 64
    result_bytes: int = 64
    shared_bytes: int = 0
    aggregation: Aggregation = Aggregation.REDUCE
    speeds: float = 0.1
    long_share: float = 0.0
    long_factor: float = 20.0
    slow_share: float = 0.0
    slow_factor: float = 10.0
    dies: str = ""
    origins: int = 1


CASES = {
    case.name: case
    for case in (
        Case("shared", "map-reduce, 8 MB shared, vectors of 64 KB", task_s=0.5, result_bytes=64_000, shared_bytes=8_000_000),
        Case("shuffle", "128 KB to and from each task, nothing shared", 4.0, 0.5, argument_bytes=128_000, result_bytes=128_000, aggregation=Aggregation.NONE),
        Case("compute", "seconds of work, hardly any bytes"),
        Case("longer", "the same, four times as many tasks", 48.0),
        Case("mixed", "compute, peers of very different speeds", speeds=math.log(4) / 2),
        Case("stragglers", "the same, some tasks and peers much slower", long_share=0.005, slow_share=1 / 16),
        Case("death", "shared, a peer is killed", task_s=0.5, result_bytes=64_000, shared_bytes=8_000_000, dies="killed"),
        Case("silence", "shared, a peer falls silent", task_s=0.5, result_bytes=64_000, shared_bytes=8_000_000, dies="silent"),
        Case("coordinator_death", "shared, a coordinator is killed", task_s=0.5, result_bytes=64_000, shared_bytes=8_000_000, dies="coordinator"),
        Case("origins", "shared, a quarter at each of 4 origins, 2 MB", task_s=0.5, result_bytes=64_000, shared_bytes=2_000_000, origins=4),
        Case("small", "a task for every fourth peer", 1 / 8),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PeerDraw:
    """One peer. From `changes_at` on its speed is `then`; None: it stays."""

    key: PeerKey
    site: int
    speed: float
    changes_at: float | None = None
    then: float = 0.0

    @property
    def peer(self) -> PeerId:
        """Its id."""
        return self.key.peer_id


@dataclass(frozen=True, slots=True)
class JobDraw:
    """One job: who submits it, seconds of work at speed 1 and the number that each task gives."""

    origin: int
    works: tuple[float, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """What a seed has drawn. `up_mbps`, `down_mbps`: by site; `rtts`: between two sites, both ways."""

    case: Case
    seed: int
    peers: tuple[PeerDraw, ...]
    up_mbps: tuple[float, ...]
    down_mbps: tuple[float, ...]
    rtts: tuple[tuple[float, ...], ...]
    jobs: tuple[JobDraw, ...]
    #: The best possible time, seconds.
    bound_s: float


def sites_of(peers: int) -> int:
    """How many sites so many peers have."""
    return max(2, min(8, peers // 8))


def coordinators(peers: Sequence[PeerDraw], site: int) -> tuple[int, ...]:
    """Who coordinates a site, and who stands in for it: numbers of peers, the first of which is never an origin."""
    return tuple(index for index, peer in enumerate(peers) if peer.site == site)[:-3:-1]


def draw(case: Case, peers: int, seed: int) -> Instance:
    """The instance of `case` with `peers` peers that `seed` makes."""
    dice = Dice(seed)
    net, machines, work, fate = (dice.of(peers, what) for what in ("net", "machines", "work", "fate"))
    sites = sites_of(peers)
    up, down = ([_log_uniform(net, *SITE_MBPS) for _ in range(sites)] for _ in range(2))
    rtts = [[0.0] * sites for _ in range(sites)]
    for one, other in itertools.combinations(range(sites), 2):
        rtts[one][other] = rtts[other][one] = net.uniform(*WIDE_RTT_S)
    drawn = [
        PeerDraw(PeerKey(machines.randbytes(32)), index * sites // peers, machines.lognormvariate(0.0, case.speeds))
        for index in range(peers)
    ]
    origins = [index * peers // case.origins for index in range(case.origins)]
    each = max(1, round(case.tasks_per_slot * SLOTS * peers / case.origins))
    jobs = []
    for origin in origins:
        works = [case.task_s * work.lognormvariate(0.0, case.scatter) for _ in range(each)]
        longer = fate.sample(range(each), math.ceil(case.long_share * each)) if case.long_share else []
        for index in longer:
            works[index] *= case.long_factor
        jobs.append(JobDraw(origin, tuple(works), tuple(work.randrange(1 << 31) for _ in range(each))))
    instance = Instance(case, seed, tuple(drawn), tuple(up), tuple(down), tuple(map(tuple, rtts)), tuple(jobs), 0.0)
    half_s = _bound(instance) / 2
    others = [index for index in range(peers) if index not in origins]
    if case.slow_share:
        for index in fate.sample(others, max(1, round(case.slow_share * peers))):
            drawn[index] = replace(drawn[index], changes_at=half_s, then=drawn[index].speed / case.slow_factor)
    if case.dies:
        if case.dies == "coordinator":
            index = coordinators(drawn, fate.randrange(1, sites))[0]
        else:
            index = others[fate.randrange(0, len(others))]
        drawn[index] = replace(drawn[index], changes_at=half_s, then=0.0)
    changed = replace(instance, peers=tuple(drawn))
    return replace(changed, bound_s=_bound(changed))


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return low * math.exp(math.log(high / low) * rng.random())


# --- the best possible time -----------------------------------------------------------------------------------------------


def _bound(instance: Instance) -> float:
    """No schedule is done sooner: all capacity in use from the moment at which data can be there, no round trips, no waiting.

    One origin: what its other sites compute is bounded by their capacity after the shared data has come at the full speed of the
    narrower end, and by how many tasks' arguments and single results pass the links; they get the longest tasks. Several: by capacity alone.
    """
    case = instance.case
    works = sorted((work for job in instance.jobs for work in job.works), reverse=True)
    best = [0.0, *itertools.accumulate(works)]
    merged_s = REDUCE_S * len(works) if case.aggregation is Aggregation.REDUCE else 0.0
    fastest = max(peer.speed for peer in instance.peers)
    home = instance.peers[instance.jobs[0].origin].site
    is_bound_by_links = len(instance.jobs) == 1
    out_bytes = case.argument_bytes
    back_bytes = case.result_bytes if case.aggregation is Aggregation.NONE else 0

    def passing(mbps: float, size_bytes: int, within_s: float) -> int:
        return len(works) if not size_bytes else min(len(works), math.floor(mbps * 1e6 / 8 * within_s / size_bytes))

    def is_enough(time_s: float) -> bool:
        capacity = sum(_capacity(peer, 0.0, time_s) for peer in instance.peers)
        if capacity < best[-1] + merged_s:
            return False
        if not is_bound_by_links:
            return True
        near = sum(_capacity(peer, 0.0, time_s) for peer in instance.peers if peer.site == home)
        far = 0.0
        for site, (up, down) in enumerate(zip(instance.up_mbps, instance.down_mbps, strict=True)):
            if site == home:
                continue
            ready_s = case.shared_bytes * 8e-6 / min(instance.up_mbps[home], down)
            some = sum(_capacity(peer, ready_s, time_s) for peer in instance.peers if peer.site == site)
            count = min(passing(down, out_bytes, time_s), passing(up, back_bytes, time_s))
            far += min(some, best[count])
        count = min(
            passing(instance.up_mbps[home], out_bytes, time_s), passing(instance.down_mbps[home], back_bytes, time_s)
        )
        return near + min(far, best[count]) >= best[-1]

    low, high = works[0] / fastest, max(works[0] / fastest, 1.0)
    if is_enough(low):
        return low
    while not is_enough(high):
        high *= 2
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return low


def _capacity(peer: PeerDraw, from_s: float, to_s: float) -> float:
    """Seconds of work at speed 1 that the peer can do between two times."""
    if to_s <= from_s:
        return 0.0
    if peer.changes_at is None or to_s <= peer.changes_at:
        return SLOTS * peer.speed * (to_s - from_s)
    before_s = max(peer.changes_at - from_s, 0.0)
    return SLOTS * (peer.speed * before_s + peer.then * (to_s - max(from_s, peer.changes_at)))


# --- policies -------------------------------------------------------------------------------------------------------------


class InRandomOrder(Strategy):
    """Any peer is as good as any other. `rng`: its dice."""

    name = "random"

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """In an order of the dice."""
        peers = [each.peer for each in candidates]
        self._rng.shuffle(peers)
        return peers


class TwoChoices(Strategy):
    """Of two peers that the dice name, the one with less to do; then of two others (Mitzenmacher 2001). `rng`: its dice."""

    name = "two_choices"
    spreads = True

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """Pairs of the dice, the less loaded of each pair first, then the others."""
        rows = list(candidates)
        self._rng.shuffle(rows)
        first, second = [], []
        for one, other in itertools.zip_longest(rows[::2], rows[1::2]):
            if other is not None and (other.load, other.queue) < (one.load, one.queue):
                one, other = other, one
            first.append(one.peer)
            if other is not None:
                second.append(other.peer)
        return first + second


@dataclass(frozen=True, slots=True)
class Policy:
    """How jobs are placed. `strategy`: of a job, given dice; `own_site`: origins are linked to the peers of their own site only."""

    strategy: Callable[[random.Random], JobOptions]
    own_site: bool = False
    coordination: Coordination = Coordination.OFF

    def options(self, rng: random.Random) -> JobOptions:
        """Of a job, given dice."""
        return replace(self.strategy(rng), coordination=self.coordination)


POLICIES = {
    "hlig": Policy(lambda rng: JobOptions()),
    "round_robin": Policy(lambda rng: JobOptions(strategy="round_robin")),
    "random": Policy(lambda rng: JobOptions(balancer=InRandomOrder(rng))),
    "two_choices": Policy(lambda rng: JobOptions(balancer=TwoChoices(rng))),
    "own_site": Policy(lambda rng: JobOptions(), own_site=True),
    "coordinated": Policy(lambda rng: JobOptions(), coordination=Coordination.AUTO),
    "relay": Policy(lambda rng: JobOptions(), coordination=Coordination.RELAY),
}


def percentile(values: Sequence[float], share: float) -> float:
    """The least of `values` that at least `share` of them do not exceed."""
    rows = sorted(values)
    return rows[max(0, math.ceil(share * len(rows)) - 1)]
