"""Jobs, tasks, leases and results.

A job is a program (code bundle with named entries) applied to many inputs, with an optional aggregation. The machines
of `jobs/` handle numbers of tasks in batches; payloads, encoded by `execution/values.py`, stay with the shells.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.engine import Demands, Engine, grants_of
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import BlobId, JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.peer import Isolation
from p2pcompute.model.placement import (
    NO_PREFERENCES,
    STRATEGY_DEFAULT,
    Budget,
    Coordination,
    OnUnmet,
    Preferences,
    Target,
    TaskType,
    member_of,
)
from p2pcompute.model.requirement import Requirement, requirements_of


class Aggregation(enum.StrEnum):
    """How results of single tasks become one answer. NONE keeps them apart, in the order of the inputs."""

    NONE = "none"
    SUM = "sum"
    AVERAGE = "average"
    MAX = "max"
    MIN = "min"
    CONCAT = "concat"
    CUSTOM = "custom"
    REDUCE = "reduce"

    @classmethod
    def parse(cls, name: str) -> Aggregation:
        """The aggregation called `name`, in any case. Raises UnknownNameError with the nearest valid name."""
        return member_of(cls, "aggregation", name)


class OnError(enum.StrEnum):
    """What a job does when one of its tasks has finally failed: end, or leave it out and report it."""

    RAISE = "raise"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job is run; validated at once, at the submitter.

    `timeout_s`: for one attempt of one task, None for none. `job_timeout_s`: for the whole job. `retries`: further attempts
    after an attempt that died with its worker, peer or link (a task that raises is not tried again). `priority`: 0 (last)
    to 9 (first). `memory_bytes`: address space of one worker, None for the peer's own limit. `speculate`: run late
    copies of the slowest tasks.

    `strategy`, `fallback_strategy`: names of `jobs.strategies`; the second orders where the first fails or leaves nobody.
    `requirements`: what a peer must have to be used at all. `on_unmet`: what is done where no peer meets them. `expected_task_s`: how
    long a task takes, where the submitter knows; None: it is learned. `health_check`: keep away from peers that are suspected
    or overloaded. `balancer`: the submitter's own strategy (`jobs/strategies/custom.py`), only in the peer's own process; None: none.
    `optimization_target`: what `smart_adaptive` makes small. `cache_ttl_s`: answers to equal calls are used again that are younger than
    this, only where results stand alone (aggregation none); None: every call is computed. `coordination`: whether key nodes of
    other communities dispatch there (`jobs/coordinating.py` says for which jobs). `engine`: what runs the tasks, None for what the network's
    kind suggests; `isolation`: how well they must be held, at least; `grants`: what they need of a peer's owner (`model/engine.py`). All
    three are demands of the program as well, and become requirements here.
    """

    timeout_s: float | None = None
    job_timeout_s: float | None = None
    retries: int = limits.RETRIES_DEFAULT
    priority: int = 5
    memory_bytes: int | None = None
    on_error: OnError = OnError.RAISE
    speculate: bool = True
    strategy: str = STRATEGY_DEFAULT
    fallback_strategy: str | None = None
    task_type: TaskType = TaskType.COMPUTE
    requirements: tuple[Requirement, ...] = ()
    on_unmet: OnUnmet = OnUnmet.FAIL
    preferences: Preferences = NO_PREFERENCES
    budget: Budget | None = None
    expected_task_s: float | None = None
    health_check: bool = True
    balancer: object = None
    optimization_target: Target = Target.LATENCY
    cache_ttl_s: float | None = None
    coordination: Coordination = Coordination.AUTO
    engine: Engine | None = None
    isolation: Isolation | None = None
    grants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, none in (
            ("timeout_s", "no time-out"),
            ("job_timeout_s", "no time-out"),
            ("expected_task_s", "what is not known"),
            ("cache_ttl_s", "no cache"),
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}: give seconds above 0, or None for {none}")
        if self.cache_ttl_s is not None and self.cache_ttl_s > limits.CACHE_TTL_MAX_S:
            raise UsageError(
                f"cache_ttl_s is {self.cache_ttl_s:g}: answers are kept for {limits.CACHE_TTL_MAX_S:g} s at most, give that or less"
            )
        if not 0 <= self.retries <= limits.RETRIES_MAX:
            raise UsageError(f"retries is {self.retries}: give 0 to {limits.RETRIES_MAX}")
        if not 0 <= self.priority <= 9:
            raise UsageError(f"priority is {self.priority}: give 0 (last) to 9 (first)")
        if self.memory_bytes is not None and self.memory_bytes < 32 << 20:
            raise UsageError(f"memory_bytes is {self.memory_bytes}: a Python worker needs at least 32 MiB")
        if self.balancer is not None and not (callable(self.balancer) or hasattr(self.balancer, "order")):
            raise UsageError(f"balancer is {self.balancer!r}: give a function of candidates and the job's situation")
        object.__setattr__(self, "optimization_target", Target.parse(self.optimization_target))
        object.__setattr__(self, "coordination", Coordination.parse(self.coordination))
        # Whoever writes them by hand gives a mapping.
        if self.engine is not None:
            object.__setattr__(self, "engine", member_of(Engine, "engine", self.engine))
        if self.isolation is not None:
            object.__setattr__(self, "isolation", member_of(Isolation, "isolation", self.isolation))
        object.__setattr__(self, "grants", grants_of(self.grants))
        object.__setattr__(
            self, "requirements", requirements_of((*requirements_of(self.requirements), *self._implied()))
        )

    @property
    def demands(self) -> Demands:
        """What its program demands."""
        return Demands(self.isolation, self.grants)

    def _implied(self) -> Iterator[str]:
        if self.engine is not None and self.engine is not Engine.PYTHON:
            yield f"engine == {self.engine}"
        # What a peer states is how it holds processes; WebAssembly holds its programs better than any of them.
        if self.isolation is not None and self.engine not in (Engine.WASM, Engine.WASM_PYTHON):
            yield f"isolation >= {self.isolation}"
        for grant in self.grants:
            yield f"grant == {grant}"


class Outcome(enum.IntEnum):
    """How one attempt of one task ended. Only RETURNED and RAISED are the function's own doing."""

    RETURNED = 0
    RAISED = 1
    TIMED_OUT = 2
    WORKER_DIED = 3
    OUT_OF_MEMORY = 4
    CANCELLED = 5
    #: The peer gave the task back untouched: it shuts down, or has no room.
    RETURNED_UNRUN = 6
    #: The result cannot travel (not serialisable, too large): the function's doing, not worth another attempt.
    UNSHIPPABLE = 7
    #: The peer cannot run this program at all: a module is missing, or the bundle does not load.
    CANNOT_RUN = 8
    #: The link broke or the peer died; noted by the origin, never sent.
    PEER_LOST = 9
    #: The coordinator holds the value merged with others; it counts when a partial aggregate that names the task has come.
    MERGED = 10


#: Ends a task for good: another attempt would do the same.
FINAL_OUTCOMES = frozenset({Outcome.RETURNED, Outcome.RAISED, Outcome.UNSHIPPABLE, Outcome.TIMED_OUT})


#: A task that took less is taken to have kept one core busy: measuring it would cost more than it is worth.
SHORT_TASK_US = 1_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used, as far as whoever ran it could tell; 0: nothing, or not known.

    `cpu_us`: of all threads, and of children that were waited for; `peak_memory_bytes`: at most, resident, of the process that ran it; `read_bytes`,
    `written_bytes`: asked for by reading and writing files and pipes; `fuel`: units of an engine that counts its work;
    `gpu_us`: time in which accelerators worked for it.
    """

    cpu_us: int = 0
    peak_memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    fuel: int = 0
    gpu_us: int = 0

    def numbers(self) -> tuple[int, ...]:
        """The fields in their order without zeros at the end, as they travel."""
        values = (
            self.cpu_us, self.peak_memory_bytes, self.read_bytes, self.written_bytes, self.fuel, self.gpu_us
        )  # fmt: skip
        count = len(values)
        while count and not values[count - 1]:
            count -= 1
        return values[:count]


#: Of an attempt of which nothing is known.
NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one attempt of one task at one peer."""

    task: TaskIndex
    attempt: int


@dataclass(frozen=True, slots=True)
class TaskReport:
    """How an attempt ended, without its payload: what the pure machines need to know."""

    task: TaskIndex
    attempt: int
    outcome: Outcome
    wall_s: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of a task's history."""

    peer: PeerId
    outcome: Outcome
    wall_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class Payload:
    """Encoded arguments or an encoded result: either the bytes, or the id and size of a blob that holds them."""

    inline: bytes = b""
    blob: BlobId | None = None
    size_bytes: int = 0


class JobState(enum.StrEnum):
    """The life of a job as its submitter sees it."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the submitter asked for. `map_entry`, `reduce_entry`: names of entries of the program.

    `expected_tasks` is None while an iterator of unknown length is still being read. `is_weighted`: each result has a weight of its
    own, which only the submitter's peer knows.
    """

    job: JobId
    name: str
    program: ProgramId
    map_entry: str
    aggregation: Aggregation
    reduce_entry: str | None
    options: JobOptions
    expected_tasks: int | None = None
    is_weighted: bool = False


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is. `fraction_running`: sum of the fractions that running tasks have reported."""

    job: JobId
    state: JobState
    tasks_total: int | None
    tasks_done: int
    tasks_failed: int
    tasks_running: int
    fraction_running: float
    retries: int
    duplicates_dropped: int
    done_by_peer: tuple[tuple[PeerId, int], ...]
    elapsed_s: float
    message: str = ""
    tasks_cached: int = 0
