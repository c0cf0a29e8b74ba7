"""Delegated shares at a lending peer: in whose name a coordinator sends tasks, and whether it still may.

What the origin signed is compared with what the coordinator asks for, so that a coordinator can neither run a program of its own
in the origin's name, nor longer, nor more than it was given. Refuses to know: machines, workers and what is sent back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from p2pcompute.jobs.fencing import Fences
from p2pcompute.jobs.taskset import TaskSet
from p2pcompute.membership.rate import RateTable
from p2pcompute.model import limits
from p2pcompute.model.errors import PeerError
from p2pcompute.model.ids import InvitationId, JobId, PeerId, TaskIndex, borrower_id_of, format_job_id, short_peer_id
from p2pcompute.model.peer import Role
from p2pcompute.model.seams import Clock
from p2pcompute.trust.tiers import MAY_SUBMIT
from p2pcompute.wire.delegation import Delegated, read_delegation
from p2pcompute.wire.membership import Trust
from p2pcompute.wire.messages import JobOpen


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a share is not taken: `reason` as in `wire.messages.JobRefuse`, and a sentence."""

    reason: str
    text: str


@dataclass(slots=True)
class DelegatedShare:
    """A share of another peer's job that was taken: what its origin allows."""

    origin: PeerId
    #: The origin's job, of which it is a share.
    job: JobId
    coordinator: PeerId
    epoch: int
    tasks_max: int
    #: What the origin may ask of us, and by which invitation it was admitted.
    roles: frozenset[Role] = frozenset()
    invitation: InvitationId | None = None
    #: Numbers of the tasks that came; at most `tasks_max`.
    taken: TaskSet = field(default_factory=TaskSet)

    @property
    def borrower(self) -> PeerId:
        """Under which id it borrows, for its origin's account."""
        return borrower_id_of(self.origin, self.coordinator)

    def take(self, task: int) -> bool:
        """Whether `task` is among those that the origin gave away; another attempt of one that came before always is."""
        number = TaskIndex(task)
        if number in self.taken:
            return True
        if len(self.taken) >= self.tasks_max or self.taken.pages >= limits.SHARE_TASK_PAGES_MAX:
            return False
        return self.taken.add(number)

    def renew(self, newer: DelegatedShare) -> None:
        """The same share, delegated to the same coordinator again."""
        self.epoch = max(self.epoch, newer.epoch)
        self.tasks_max = max(self.tasks_max, newer.tasks_max)


class Delegations:
    """Judges what coordinators show. `trust`: what this peer checks others with, now."""

    def __init__(self, trust: Callable[[], Trust], clock: Clock) -> None:
        self._trust = trust
        self._clock = clock
        self._fences = Fences()
        #: Checks by coordinator: each costs two chains of signatures.
        self._checks = RateTable[PeerId](limits.LINKS_MAX * 2)

    def judge(self, coordinator: PeerId, message: JobOpen) -> DelegatedShare | Refusal:
        """The share that `message`, said by `coordinator`, opens by its delegation, or why it does not."""
        if not self._checks.take(coordinator, limits.DELEGATIONS_PER_SECOND_PER_PEER, self._clock.monotonic()):
            return Refusal("busy", "more delegations a second than this peer checks: offer the job again later")
        try:
            found = read_delegation(message.delegation, self._trust(), self._clock.wall())
        except PeerError as error:
            return Refusal("delegation", f"the delegation of this job is refused: {error}")
        problem = _problem(found, coordinator, message)
        if problem is not None:
            return Refusal("delegation", f"the delegation of this job does not allow it: {problem}")
        origin = found.origin.peer
        if not MAY_SUBMIT & found.origin.roles:
            return Refusal(
                "role",
                f"the invitation of peer {short_peer_id(origin)}, whose job this is, does not allow it to submit",
            )
        given, job = found.delegation, found.manifest.job
        if not self._fences.take(origin, job, coordinator, given.epoch):
            return FENCED
        return DelegatedShare(
            origin, job, coordinator, given.epoch, given.tasks_max, found.origin.roles, found.origin.invitation
        )

    def is_fenced(self, share: DelegatedShare) -> bool:
        """Whether `share` has been superseded since it was taken."""
        return self._fences.is_fenced(share.origin, share.job, share.coordinator, share.epoch)


FENCED = Refusal(
    "fenced", "the origin of this job has given its work to another coordinator since: this share has ended"
)


def _problem(found: Delegated, coordinator: PeerId, message: JobOpen) -> str | None:
    """What of `message` is not what the origin signed, in words; None where all is."""
    given, manifest = found.delegation, found.manifest
    if given.coordinator != coordinator:
        return f"it was given to peer {short_peer_id(given.coordinator)}, not to {short_peer_id(coordinator)}"
    if given.share != message.job:
        return f"it is for share {format_job_id(given.share)}, not for {format_job_id(JobId(message.job))}"
    if (manifest.program, manifest.program_bytes) != (message.program, message.program_bytes):
        return f"it is for program {manifest.program.hex()[:12]}, not for {message.program.hex()[:12]}"
    if message.priority > manifest.priority:
        return f"priority {message.priority} is above the job's {manifest.priority}"
    if manifest.timeout_s != message.timeout_s:
        return f"a time-out of {message.timeout_s} s is not the job's {manifest.timeout_s}"
    if manifest.memory_bytes != message.memory_bytes:
        return f"{message.memory_bytes} bytes of memory are not the job's {manifest.memory_bytes}"
    return None
