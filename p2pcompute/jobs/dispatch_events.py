"""What the dispatch machine is told, and what it asks for. Batches everywhere, never one object a task and step.

Payloads stay with the shell: it keeps the arguments of every task until the task is settled by `Completed`, `GivenUp` or
`JobEnded`, and the payloads of a `Reported` event until the effects of that event are performed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pcompute.jobs.plan import NOTHING_KNOWN, Facts
from p2pcompute.model.ids import JobId, PeerId, TaskIndex
from p2pcompute.model.job import Attempt, JobSpec, JobState, Lease, Outcome, TaskReport

if TYPE_CHECKING:
    from p2pcompute.jobs.coordinating import Region
    from p2pcompute.topology.affinity import Adjacency

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobOpened:
    """A job starts; its id is new."""

    spec: JobSpec


@dataclass(frozen=True, slots=True)
class TasksAdded:
    """Inputs were read, or reductions are ready to run. A number that was added before is passed over.

    `blob_bytes`: what of their arguments, all together, travels as blobs; `inline_bytes`: what travels inside messages.
    """

    job: JobId
    tasks: tuple[TaskIndex, ...]
    blob_bytes: int = 0
    inline_bytes: int = 0


@dataclass(frozen=True, slots=True)
class InputsEnded:
    """No task of any kind will be added any more, reductions included: the job ends when all are settled."""

    job: JobId


@dataclass(frozen=True, slots=True)
class PeerUsable:
    """A linked peer may compute for us, or what we know of it changed. `local`: this peer itself; `rank`: 0 to 100."""

    peer: PeerId
    rtt_s: float
    local: bool
    rank: float
    facts: Facts = NOTHING_KNOWN


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The link broke, the peer died, or it may not compute for us any more."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class PeerAccepted:
    """The peer has the program of the job."""

    peer: PeerId
    job: JobId


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """The peer will not run the job; `reason` as in `wire.messages.JobRefuse`. Also after it had accepted."""

    peer: PeerId
    job: JobId
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Granted:
    """So many slots of the peer are ours, over all our jobs. Replaces the grant before."""

    peer: PeerId
    slots: int


@dataclass(frozen=True, slots=True)
class Reported:
    """Attempts ended at the peer, in any order."""

    peer: PeerId
    job: JobId
    reports: tuple[TaskReport, ...]


@dataclass(frozen=True, slots=True)
class Progressed:
    """Running tasks said how far they are, 0 to 1 each."""

    peer: PeerId
    job: JobId
    fractions: tuple[tuple[TaskIndex, float], ...]


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """The submitter does not want the job any more."""

    job: JobId


@dataclass(frozen=True, slots=True)
class TasksDropped:
    """The submitter does not want these tasks any more, though it wants others of the job; running code is stopped."""

    job: JobId
    tasks: tuple[TaskIndex, ...]


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The shell cannot go on with the job: its inputs cannot be read, or its results not be aggregated."""

    job: JobId
    text: str


@dataclass(frozen=True, slots=True)
class JobForgotten:
    """Nobody asks for the progress of this job any more; nothing where it still runs."""

    job: JobId


@dataclass(frozen=True, slots=True)
class DataHeld:
    """The tasks of the job share `shared_bytes` of data, of which some peers have so many already. Replaces what was said before."""

    job: JobId
    shared_bytes: int
    held: tuple[tuple[PeerId, int], ...]


@dataclass(frozen=True, slots=True)
class Located:
    """In which community this peer is, by the newest topology; None where none is known."""

    community: int | None


@dataclass(frozen=True, slots=True)
class Mapped:
    """The network's links, by the newest topology. Replaces what was said before."""

    adjacency: Adjacency


@dataclass(frozen=True, slots=True)
class Regioned:
    """Communities other than this peer's own, by the newest topology. Replaces what was said before."""

    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class PartialArrived:
    """A partial aggregate is here: rows of (task, attempt) whose results, merged, it is. Answered by `PartialTaken` or
    `PartialRefused`."""

    peer: PeerId
    job: JobId
    number: int
    rows: tuple[tuple[TaskIndex, int], ...]


@dataclass(frozen=True, slots=True)
class SeatFailed:
    """The shell found the coordinator of `peer` (a seat) out: nothing that it still holds of the job counts."""

    peer: PeerId
    job: JobId
    text: str


@dataclass(frozen=True, slots=True)
class TasksWithdrawn:
    """Whoever gave these wants those back that wait here; answered by `Withdrawn`. They may be added again."""

    job: JobId
    tasks: tuple[TaskIndex, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `deadline()` named has come. One too many does nothing."""


Event = (
    JobOpened
    | TasksAdded
    | InputsEnded
    | PeerUsable
    | PeerGone
    | PeerAccepted
    | PeerRefused
    | Granted
    | Reported
    | Progressed
    | JobCancelled
    | TasksDropped
    | JobFailed
    | JobForgotten
    | DataHeld
    | Located
    | Mapped
    | Regioned
    | PartialArrived
    | SeatFailed
    | TasksWithdrawn
    | Tick
)

# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenAt:
    """Offer the job to the peer; answered by `PeerAccepted` or `PeerRefused`."""

    peer: PeerId
    job: JobId


@dataclass(frozen=True, slots=True)
class Send:
    """Send these tasks with their arguments: at most `limits.BATCH_TASKS_MAX`."""

    peer: PeerId
    job: JobId
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class CancelAt:
    """These attempts are not wanted any more."""

    peer: PeerId
    job: JobId
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class RecallAt:
    """Ask the peer for these back, at most `limits.BATCH_TASKS_MAX`, where they have not begun. `text`: why, in words."""

    peer: PeerId
    job: JobId
    leases: tuple[Lease, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The peer gave these back as it was asked; they go elsewhere. For the log and for `job show`."""

    job: JobId
    peer: PeerId
    tasks: tuple[TaskIndex, ...]


@dataclass(frozen=True, slots=True)
class CloseAt:
    """The job has ended, or ended at this peer; it stops and forgets whatever it has of it."""

    peer: PeerId
    job: JobId


@dataclass(frozen=True, slots=True)
class Completed:
    """These tasks are settled, each for the first and only time; the shell keeps or delivers their payloads now.

    The outcome of each is one of `model.job.FINAL_OUTCOMES`: a value, or the function's own failure.
    """

    job: JobId
    reports: tuple[tuple[TaskReport, PeerId], ...]


@dataclass(frozen=True, slots=True)
class Discarded:
    """So many results were late or double; their payloads are dropped."""

    job: JobId
    count: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The task is settled without a result: its attempts died. `outcome`: how the last one did."""

    job: JobId
    task: TaskIndex
    outcome: Outcome
    history: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class TaskRetried:
    """An attempt died at `peer`; the task waits for another. For the log and for `explain`."""

    job: JobId
    task: TaskIndex
    peer: PeerId
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class WantInputs:
    """Read up to so many further inputs; those asked for before and not yet added come on top."""

    job: JobId
    count: int


@dataclass(frozen=True, slots=True)
class PartialTaken:
    """The tasks of this partial aggregate are settled, each for the first and only time; the shell merges its value now."""

    job: JobId
    peer: PeerId
    number: int


@dataclass(frozen=True, slots=True)
class PartialRefused:
    """It names what its sender does not hold: nothing of it counts, and the sender stands for nobody in this job any more."""

    job: JobId
    peer: PeerId
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """These waited and are not known any more."""

    job: JobId
    tasks: tuple[TaskIndex, ...]


class EndCause(enum.StrEnum):
    """Why a job ended; tells the shell which error to raise."""

    DONE = "done"
    #: `JobEnded.task` failed with `JobEnded.outcome`, and the job does not skip failures.
    TASK = "task"
    JOB_TIMEOUT = "job-timeout"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    #: The shell said so (`JobFailed`).
    SHELL = "shell"
    #: `limits.JOBS_OPEN_MAX` jobs are open.
    BUSY = "busy"
    #: No peer meets what the job requires, or its strategy leaves out all of them.
    UNMET = "unmet"
    #: Those that do are suspected to be down.
    UNHEALTHY = "unhealthy"
    #: The budget does not pay for what is left.
    BUDGET = "budget"
    #: The strategy failed, and there is no fallback.
    STRATEGY = "strategy"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A peer that would not run a job, and why: `reason` for programs, `text` for people."""

    peer: PeerId
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The last effect of a job, after a `CloseAt` for every peer that had it open."""

    job: JobId
    state: JobState
    cause: EndCause
    reason: str
    task: TaskIndex | None = None
    outcome: Outcome | None = None
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Stalled:
    """Nobody can run the job at present; it goes on by itself when a peer comes. Said once until somebody could."""

    job: JobId
    text: str


@dataclass(frozen=True, slots=True)
class SeekPeers:
    """No usable peer may run the job; one that meets its requirements may be known but not linked."""

    job: JobId


@dataclass(frozen=True, slots=True)
class FellBack:
    """The strategy of the job failed or left out everybody, and its fallback orders peers instead. Said once a reason."""

    job: JobId
    text: str


Effect = (
    OpenAt
    | Send
    | CancelAt
    | RecallAt
    | Moved
    | CloseAt
    | Completed
    | Discarded
    | GivenUp
    | TaskRetried
    | WantInputs
    | JobEnded
    | Stalled
    | SeekPeers
    | FellBack
    | PartialTaken
    | PartialRefused
    | Withdrawn
)
