"""Which delegations of a job have been superseded, as one lending peer has seen them.

An origin that gives a job's work to another coordinator than before says so by a higher epoch. A delegation is fenced where a
delegation of the same job to another coordinator with a higher epoch has been seen: whoever held the work before, and perhaps
does not know that it lost it, is refused, in whatever order the two arrive. Delegations of one coordinator never fence each
other, and neither do equal epochs. Refuses to know: signatures (`wire/delegation.py`), and what is running.
"""

from __future__ import annotations

from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, PeerId


class Fences:
    """The epochs of the jobs that were delegated to others for this peer to work on."""

    def __init__(self, jobs_max: int = limits.FENCES_MAX) -> None:
        #: By (origin, job), longest unused first: (coordinator of the highest epoch, that epoch, the highest of all others or -1).
        self._highest: dict[tuple[PeerId, JobId], tuple[PeerId, int, int]] = {}
        #: Bound of `_highest`. A fence that is forgotten costs time, never results: the origin settles each task once.
        self._jobs_max = jobs_max

    def take(self, origin: PeerId, job: JobId, coordinator: PeerId, epoch: int) -> bool:
        """Note a delegation that was checked; False where it is fenced."""
        holder, high, second = self._highest.pop((origin, job), (coordinator, epoch, -1))
        if coordinator == holder:
            high = max(high, epoch)
        elif epoch > high:
            holder, high, second = coordinator, epoch, high
        else:
            second = max(second, epoch)
        self._highest[origin, job] = (holder, high, second)
        if len(self._highest) > self._jobs_max:
            del self._highest[next(iter(self._highest))]
        return not self.is_fenced(origin, job, coordinator, epoch)

    def is_fenced(self, origin: PeerId, job: JobId, coordinator: PeerId, epoch: int) -> bool:
        """Whether another coordinator has been given this job under a higher epoch."""
        holder, high, second = self._highest.get((origin, job), (coordinator, epoch, -1))
        return epoch < (second if coordinator == holder else high)
