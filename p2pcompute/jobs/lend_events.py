"""What the lending machine is told, and what it asks for. Rows are (task, attempt); payloads stay with the shell.

`origin` is who borrows: a peer, or `ids.borrower_id_of` what one peer coordinates for another.

The shell keeps the arguments of a row from `TasksArrived` until the row ended, was given back by `ReturnUnrun`, or its job was
closed or refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pcompute.model.ids import JobId, PeerId, ProgramId
from p2pcompute.model.job import Outcome

Row = tuple[int, int]

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OriginOpened:
    """A job was accepted: its program is here. `memory_bytes`: address space of one worker, None for this peer's limit.

    `account`: in whose name it runs, who is charged; None: `origin` itself. The same in all events of one `origin`.
    `part_max`: the part of the lent slots that the account may have at once, above 0 to 1; the newest counts.
    """

    origin: PeerId
    job: JobId
    program: ProgramId
    priority: int
    timeout_s: float | None
    memory_bytes: int | None
    account: PeerId | None = None
    part_max: float = 1.0


@dataclass(frozen=True, slots=True)
class TasksArrived:
    """Tasks with their arguments are here."""

    origin: PeerId
    job: JobId
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """The origin does not want these any more; unknown ones are passed over."""

    origin: PeerId
    job: JobId
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class RecallAsked:
    """The origin wants these back where no worker has them in hand; those that run go on, unknown ones are passed over."""

    origin: PeerId
    job: JobId
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class JobClosed:
    """The job has ended at its origin."""

    origin: PeerId
    job: JobId


@dataclass(frozen=True, slots=True)
class OriginGone:
    """The link to the origin is down, with all its jobs."""

    origin: PeerId


@dataclass(frozen=True, slots=True)
class WorkerSpawned:
    """The worker of this `SpawnWorker` has a number; it is ready later."""

    token: int
    worker: int


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker has loaded its program."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """The worker process has ended. `unfinished`: rows in its hands that never ran; the one that it died of has ended before."""

    worker: int
    unfinished: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class ProgramFailed:
    """The program does not load here; `reason` "module" or "bundle". `WorkerGone` follows."""

    worker: int
    reason: str
    module: str
    text: str


@dataclass(frozen=True, slots=True)
class TasksEnded:
    """Rows of (task, attempt, outcome, seconds) that ended on a worker, cancelled ones included."""

    worker: int
    rows: tuple[tuple[int, int, Outcome, float], ...]


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """So many tasks run here at a time from now on, the own user's included. What runs beyond that may end."""

    slots: int


@dataclass(frozen=True, slots=True)
class LentChanged:
    """Others than the own user have so many slots at most from now on; None: all of them.

    Where that is less than before, what waits goes back at once, and what runs beyond it after `grace_s`, as never run.
    """

    slots: int | None
    grace_s: float


@dataclass(frozen=True, slots=True)
class Draining:
    """This peer shuts down: give back what waits and take nothing more."""


@dataclass(frozen=True, slots=True)
class WorkerUseless:
    """The worker waits for data that its program needs, and that nobody fetches any more: no open job runs this program."""

    worker: int


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `deadline()` named has come. One too many does nothing."""


Event = (
    OriginOpened
    | TasksArrived
    | CancelAsked
    | RecallAsked
    | JobClosed
    | OriginGone
    | WorkerSpawned
    | WorkerReady
    | WorkerGone
    | ProgramFailed
    | TasksEnded
    | WorkerUseless
    | SlotsChanged
    | LentChanged
    | Draining
    | Tick
)

# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """Tell the origin that so many slots are its own now. Said on change only."""

    origin: PeerId
    slots: int


@dataclass(frozen=True, slots=True)
class SpawnWorker:
    """Start a worker; answered by `WorkerSpawned` with the same token."""

    token: int
    origin: PeerId
    program: ProgramId
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class RunBatch:
    """Run these rows on the worker, in this order. All rows that a worker has belong to one job."""

    worker: int
    origin: PeerId
    job: JobId
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class CancelOnWorker:
    """Stop these rows; they end as CANCELLED, or come back with `WorkerGone`."""

    worker: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class RetireWorker:
    """Let the worker go; `WorkerGone` follows."""

    worker: int


@dataclass(frozen=True, slots=True)
class ReturnUnrun:
    """Give these back to the origin, untouched."""

    origin: PeerId
    job: JobId
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class RefuseJob:
    """Tell the origin that this job does not run here (any more), and forget it; `reason` as in `wire.messages.JobRefuse`."""

    origin: PeerId
    job: JobId
    reason: str
    text: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """The origin, which has no job here, is known no more: its next grant will be its first."""

    origin: PeerId


Effect = Grant | SpawnWorker | RunBatch | CancelOnWorker | RetireWorker | ReturnUnrun | RefuseJob | Forget
