"""A small world in which strategies choose peers for tasks: peers with slots and first-come queues, on a virtual clock.

Everything is drawn from the seed before the first strategy runs, the luck of each single task included, so all
strategies meet the same world. A strategy sees what peers advertise (`PeerFacts`) and how the tasks that it placed
ended; what makes a peer slow in truth (`Machine`) is seen by the oracle alone.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from p2pcompute.jobs.performance import PerformanceBook
from p2pcompute.jobs.plan import Candidate, fastest_first
from p2pcompute.jobs.speed import Speed
from p2pcompute.jobs.strategies.features import PeerFacts, Request
from p2pcompute.jobs.strategies.smart_adaptive import AdaptiveSettings, Learner, SmartAdaptive, Target
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.performance import FunctionKey, PerformanceRecord

BYTES_TYPICAL = 20_000.0


@dataclass(frozen=True, slots=True)
class Function:
    """`exponent`: of its time over the size of the input. `kind`: "cpu", "memory" or "gpu"."""

    key: FunctionKey
    base_s: float
    exponent: float
    kind: str


@dataclass(frozen=True, slots=True)
class Machine:
    """`rank` is what it advertises. In truth it is `slow` times slower, short of memory (`starved`), has a GPU."""

    peer: PeerId
    rank: float
    slots: int
    memory: float
    slow: float = 1.0
    starved: bool = False
    gpu: bool = False
    cost_per_hour: float = 1.0
    #: From this time on it is `later_slow` times slower: its owner came back.
    later_at: float = math.inf
    later_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class Task:
    """`luck`: what its time is multiplied by, wherever it runs."""

    arrives_at: float
    function: Function
    input_bytes: int
    luck: float


@dataclass(frozen=True, slots=True)
class World:
    """One seed's machines and tasks, in the order in which they arrive."""

    machines: tuple[Machine, ...]
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """What worlds are drawn. `hidden`: machines are not what they advertise. `scatter`: of luck, natural logarithm."""

    name: str
    hidden: bool = True
    tasks: int = 1_500
    scatter: float = 0.15
    drift: bool = False
    machines: int = 12
    #: Work that arrives over what the machines could do if nobody chose.
    load: float = 0.75


MISLEADING = Kind("misleading")
DRIFTING = Kind("drifting", drift=True)
HONEST = Kind("honest", hidden=False)
UNPREDICTABLE = Kind("unpredictable", hidden=False, scatter=1.5)
SHORT = Kind("short", tasks=60)
#: More than the machines can do arrives, so the makespan is what they do in a second.
CROWDED = Kind("crowded", load=4.0)
KINDS = (MISLEADING, DRIFTING, CROWDED, HONEST, UNPREDICTABLE, SHORT)


def true_s(machine: Machine, function: Function, input_bytes: int, now: float) -> float:
    """Mean seconds of a task there."""
    exponent = function.exponent
    factor = machine.slow * (machine.later_slow if now >= machine.later_at else 1.0)
    if function.kind == "memory" and machine.starved:
        factor *= 3.0
        exponent += 0.5
    if function.kind == "gpu" and machine.gpu:
        factor *= 0.2
    size = max(input_bytes, 1) / BYTES_TYPICAL
    return function.base_s * 50.0 / machine.rank * factor * float(size**exponent)


def draw(kind: Kind, seed: int) -> World:
    """The world of `seed`."""
    rng = random.Random(seed)
    program = ProgramId(bytes(32))
    functions = [
        Function(FunctionKey("render", program), 0.4, 0.0, "cpu"),
        Function(FunctionKey("parse", program), 0.2, 0.8 if kind.hidden else 0.0, "cpu"),
        Function(FunctionKey("join", program), 0.3, 0.6 if kind.hidden else 0.0, "memory" if kind.hidden else "cpu"),
        Function(FunctionKey("infer", program), 0.6, 0.0, "gpu" if kind.hidden else "cpu"),
    ]
    machines = []
    for number in range(kind.machines):
        hidden = kind.hidden
        machines.append(
            Machine(
                PeerId(number.to_bytes(32, "big")),
                rank=rng.uniform(20, 90),
                slots=rng.choice((1, 2, 4, 8)),
                memory=rng.uniform(0.1, 0.6),
                slow=rng.choice((1.0, 1.0, 1.0, 2.0, 4.0)) if hidden else 1.0,
                starved=hidden and rng.random() < 0.3,
                gpu=hidden and rng.random() < 0.3,
                cost_per_hour=rng.uniform(0.2, 3.0),
            )
        )
    sizes = [int(rng.lognormvariate(math.log(BYTES_TYPICAL), 1.0)) for _ in range(kind.tasks)]
    kinds = [rng.choice(functions) for _ in range(kind.tasks)]
    luck = [math.exp(rng.gauss(0, kind.scatter) - kind.scatter**2 / 2) for _ in range(kind.tasks)]
    pairs = list(zip(kinds, sizes, strict=True))[:400]
    per_second = sum(
        machine.slots / (sum(true_s(machine, function, size, 0.0) for function, size in pairs) / len(pairs))
        for machine in machines
    )
    tasks = []
    now = 0.0
    for function, size, each in zip(kinds, sizes, luck, strict=True):
        now += rng.expovariate(per_second * kind.load)
        tasks.append(Task(now, function, size, each))
    if kind.drift:
        machines = [
            _later(machine, now / 2, 4.0) if machine.slow == 1.0 and rng.random() < 0.4 else machine
            for machine in machines
        ]
    return World(tuple(machines), tuple(tasks))


def _later(machine: Machine, at: float, slow: float) -> Machine:
    values = {name: getattr(machine, name) for name in Machine.__slots__}
    return Machine(**{**values, "later_at": at, "later_slow": slow})


class Router(Protocol):
    """A strategy as the world sees it."""

    def order(self, request: Request, peers: Sequence[PeerFacts], now: float) -> list[PeerId]:
        """The best first."""

    def sent(self, task: int, request: Request, facts: PeerFacts, now: float) -> None:
        """The task was given to the peer of `facts`."""

    def done(self, task: int, peer: PeerId, queue_s: float, wall_s: float, now: float) -> None:
        """It ended."""


@dataclass(slots=True)
class Node:
    """A machine at work: what runs and waits there."""

    machine: Machine
    running: int = 0
    gpu_running: int = 0
    waiting: deque[int] = field(default_factory=deque)
    #: Seconds of work that was placed here and has not ended, as the oracle knows it.
    work_s: float = 0.0

    def facts(self) -> PeerFacts:
        """What is advertised now."""
        machine = self.machine
        busy = self.running / machine.slots
        return PeerFacts(
            machine.peer,
            machine.rank,
            rtt_s=0.002,
            slots=machine.slots,
            queued=self.running + len(self.waiting),
            cpu=busy,
            memory=min(machine.memory + 0.4 * busy, 1.0),
            gpu=self.gpu_running / machine.slots if machine.gpu else None,
            cost_per_hour=machine.cost_per_hour,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it, seconds. `responses_s`: arrival to end, by task. `cost`: what was paid for all."""

    makespan_s: float
    responses_s: tuple[float, ...]
    cost: float

    @property
    def p90_s(self) -> float:
        """The 90th percentile of the response times."""
        return sorted(self.responses_s)[int(0.9 * (len(self.responses_s) - 1))]

    @property
    def mean_s(self) -> float:
        """Their mean."""
        return sum(self.responses_s) / len(self.responses_s)


class Simulation:
    """One strategy in one world.

    `late`: a task waits until a slot is free anywhere; else it is given to some peer's queue as it arrives.
    """

    def __init__(self, world: World, router: Router, *, late: bool = False) -> None:
        self.world = world
        self.router = router
        self.late = late
        self.nodes = {machine.peer: Node(machine) for machine in world.machines}
        self.waiting: deque[int] = deque()
        self.placed: dict[int, tuple[PeerId, float]] = {}
        self.events: list[tuple[float, int, str, int]] = []
        self.responses: dict[int, float] = {}
        self.cost = 0.0
        self.began: dict[int, float] = {}
        if isinstance(router, Oracle):
            router.nodes = self.nodes

    def run(self) -> Run:
        """To the end."""
        for number, task in enumerate(self.world.tasks):
            heapq.heappush(self.events, (task.arrives_at, number, "arrive", number))
        now = 0.0
        while self.events:
            now, _, what, number = heapq.heappop(self.events)
            if what == "arrive":
                self.waiting.append(number)
            else:
                self._end(number, now)
            self._place(now)
        return Run(now, tuple(self.responses[number] for number in range(len(self.world.tasks))), self.cost)

    def _place(self, now: float) -> None:
        while self.waiting:
            nodes = [
                node
                for node in self.nodes.values()
                if not self.late or node.running + len(node.waiting) < node.machine.slots
            ]
            if not nodes:
                return
            number = self.waiting.popleft()
            task = self.world.tasks[number]
            request = Request(task.function.key, task.input_bytes, hour=(now / 3600) % 24)
            seen = [node.facts() for node in nodes]
            peer = self.router.order(request, seen, now)[0]
            node = self.nodes[peer]
            self.router.sent(number, request, node.facts(), now)
            self.placed[number] = (peer, now)
            node.work_s += true_s(node.machine, task.function, task.input_bytes, now) * task.luck
            node.waiting.append(number)
            self._start(node, now)

    def _start(self, node: Node, now: float) -> None:
        while node.waiting and node.running < node.machine.slots:
            number = node.waiting.popleft()
            task = self.world.tasks[number]
            wall_s = true_s(node.machine, task.function, task.input_bytes, now) * task.luck
            node.running += 1
            node.gpu_running += task.function.kind == "gpu"
            self.began[number] = now
            heapq.heappush(self.events, (now + wall_s, number, "end", number))

    def _end(self, number: int, now: float) -> None:
        peer, placed_at = self.placed[number]
        node = self.nodes[peer]
        task = self.world.tasks[number]
        wall_s = now - self.began[number]
        node.running -= 1
        node.gpu_running -= task.function.kind == "gpu"
        node.work_s = max(node.work_s - wall_s, 0.0)
        self.cost += wall_s / 3600 * node.machine.cost_per_hour
        self.responses[number] = now - task.arrives_at
        self.router.done(number, peer, self.began[number] - placed_at, wall_s, now)
        self._start(node, now)


class _Plain:
    """Learns nothing."""

    def sent(self, task: int, request: Request, facts: PeerFacts, now: float) -> None:
        """Nothing to remember."""

    def done(self, task: int, peer: PeerId, queue_s: float, wall_s: float, now: float) -> None:
        """Nothing to learn."""


class Scored(_Plain):
    """By a score that sees peers only, the smallest first, ties by id."""

    def __init__(self, score: Callable[[PeerFacts], tuple[float, ...]]) -> None:
        self._score = score

    def order(self, request: Request, peers: Sequence[PeerFacts], now: float) -> list[PeerId]:
        """By score."""
        return [facts.peer for facts in sorted(peers, key=lambda facts: (*self._score(facts), facts.peer))]


def resource_score(facts: PeerFacts) -> tuple[float, ...]:
    """(cpu + mem + gpu + requirements)/4 with (100 - usage)/100, gpu 0.5 where there is none, requirements met.

    The larger the better.
    """
    gpu = 0.5 if facts.gpu is None else 1 - facts.gpu
    score = ((1 - (facts.cpu or 0.0)) + (1 - (facts.memory or 0.0)) + gpu + 1.0) / 4
    return (-score, facts.queued / facts.slots)


class RoundRobin(_Plain):
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def order(self, request: Request, peers: Sequence[PeerFacts], now: float) -> list[PeerId]:
        """From the next one on."""
        self._next += 1
        start = self._next % len(peers)
        return [facts.peer for facts in (*peers[start:], *peers[:start])]


class RandomChoice(_Plain):
    """Any; with `choices` 2 the one of two with the shorter queue a slot (Mitzenmacher 2001)."""

    def __init__(self, seed: int, choices: int) -> None:
        self._rng = random.Random(seed)
        self._choices = choices

    def order(self, request: Request, peers: Sequence[PeerFacts], now: float) -> list[PeerId]:
        """Only the chosen one."""
        drawn = self._rng.sample(list(peers), min(self._choices, len(peers)))
        return [min(drawn, key=lambda facts: (facts.queued / facts.slots, facts.peer)).peer]


class FastestFirst(_Plain):
    """`plan.fastest_first` with a mean time per function and peer: what the product does without any strategy."""

    def __init__(self) -> None:
        self._speeds: dict[tuple[FunctionKey, PeerId], Speed] = {}
        self._functions: dict[int, FunctionKey] = {}

    def order(self, request: Request, peers: Sequence[PeerFacts], now: float) -> list[PeerId]:
        """By round trip + task·(1 + load)."""
        candidates = []
        for facts in peers:
            speed = self._speeds.get((request.function, facts.peer))
            task_s = speed.task_s if speed is not None else None
            load = facts.queued / facts.slots
            candidates.append(Candidate(facts.peer, facts.rtt_s, False, facts.rank, task_s, load))
        return fastest_first(candidates)

    def sent(self, task: int, request: Request, facts: PeerFacts, now: float) -> None:
        """Remember whose it is."""
        self._functions[task] = request.function

    def done(self, task: int, peer: PeerId, queue_s: float, wall_s: float, now: float) -> None:
        """Learn its time."""
        self._speeds.setdefault((self._functions.pop(task), peer), Speed()).observe(wall_s, 1)


class Smart:
    """`smart_adaptive`, wired as an origin would."""

    def __init__(self, seed: int, learner: Learner | None, target: Target = Target.LATENCY) -> None:
        self.book = PerformanceBook()
        self.strategy = SmartAdaptive(random.Random(seed), AdaptiveSettings(target), learner, self.book)
        self._sent: dict[int, tuple[Request, tuple[float, ...]]] = {}

    def order(self, request: Request, peers: Sequence[PeerFacts], now: float) -> list[PeerId]:
        """As the strategy does."""
        return self.strategy.order(request, peers, now)

    def sent(self, task: int, request: Request, facts: PeerFacts, now: float) -> None:
        """Keep what was seen."""
        self._sent[task] = (request, self.strategy.features(request, facts, now))

    def done(self, task: int, peer: PeerId, queue_s: float, wall_s: float, now: float) -> None:
        """Make the record, and learn from it."""
        request, row = self._sent.pop(task)
        record = PerformanceRecord(
            request.function,
            peer,
            "smart_adaptive",
            Outcome.RETURNED,
            wall_s,
            queue_s,
            input_bytes=request.input_bytes,
            features=row,
        )
        self.book.observe(record, now)
        self.strategy.observe(record)


class Oracle(_Plain):
    """Knows what every task takes at every peer, luck aside, and what work is there."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self._functions = {function.key: function for function in functions}
        self.nodes: dict[PeerId, Node] = {}

    def order(self, request: Request, peers: Sequence[PeerFacts], now: float) -> list[PeerId]:
        """By when it would be done."""
        function = self._functions[request.function]

        def key(facts: PeerFacts) -> tuple[float, PeerId]:
            node = self.nodes[facts.peer]
            full = node.running >= node.machine.slots
            wait_s = node.work_s / node.machine.slots if full else 0.0
            return (wait_s + true_s(node.machine, function, request.input_bytes, now), facts.peer)

        return [facts.peer for facts in sorted(peers, key=key)]


def strategies(world: World, seed: int, learner: Callable[[], Learner] | None) -> dict[str, Router]:
    """Every strategy, fresh."""
    functions = list({task.function.key: task.function for task in world.tasks}.values())
    routers: dict[str, Router] = {
        "random": RandomChoice(seed, 1),
        "round_robin": RoundRobin(),
        "two choices": RandomChoice(seed, 2),
        "resource_aware": Scored(resource_score),
        "fastest_first": FastestFirst(),
        "smart, means only": Smart(seed, None),
    }
    if learner is not None:
        routers["smart_adaptive"] = Smart(seed, learner())
    routers["oracle"] = Oracle(functions)
    return routers
