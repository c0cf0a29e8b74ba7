"""What a strategy is: an order of the peers that may compute for a job, asked for anew whenever slots are free.

The interface, which the strategies of `FACTORIES` and a submitter's own balancer share:

- `order(candidates, job)` gives the ids of those that may be given work, the best first. Candidates all meet the job's requirements. Whom
  it leaves out gets nothing until a later call says otherwise; a strategy that may leave anybody out sets `holds_back`.
- `learn(candidate, job, report)` is told how a batch ended, if `learns` is set. It must be quick: it is on the way of every batch.
- One object serves one job and is made by a factory from the job's options; what several jobs share, the factory holds.

Strategies are pure: no clock, no dice, equal arguments give equal orders, ties go to the lower id. They refuse to know credit, leases and
retries: a slot that is free is given to whoever comes first in the order, so nobody waits for a better peer that is busy.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from p2pcompute.jobs.plan import Candidate
from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import JobOptions
from p2pcompute.model.performance import FunctionKey


@dataclass(frozen=True, slots=True)
class Situation:
    """The job as a strategy sees it. `task_s`: seconds of a task, learned over all peers, else as the submitter expects, else None.

    `waiting`: tasks in its queues. `left`: tasks that are not done, None while inputs are still read. `spent`: what it has cost. `home`:
    the community of this peer, None where no topology is known. `task_bytes`: mean bytes of a task's arguments that
    travel as blobs; `input_bytes`: of all of a task's arguments. `function`: what its tasks run, None where nobody said.
    """

    now: float
    options: JobOptions
    task_s: float | None = None
    waiting: int = 0
    left: int | None = None
    spent: float = 0.0
    home: int | None = None
    task_bytes: float = 0.0
    input_bytes: float = 0.0
    function: FunctionKey | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """How attempts of a job ended at one peer. `returned`, `failed`, `died`: how many; `wall_s`: of all of them together.

    A failed one is the function's own doing, a dead one the peer's, its worker's or the link's.
    """

    returned: int
    failed: int
    died: int
    wall_s: float


class Strategy(abc.ABC):
    """Orders the candidates of one job; see the module."""

    #: What options call it.
    name: ClassVar[str]
    #: Whether `order` may leave candidates out.
    holds_back: bool = False
    #: Whether few tasks go to all peers evenly, rather than filling the slots of the first.
    spreads: bool = False
    #: Whether `learn` wants to be told.
    learns: bool = False

    @abc.abstractmethod
    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """Those of `candidates` that may be given work, the best first."""

    def learn(self, candidate: Candidate, job: Situation, report: Report) -> None:
        """Take in how a batch ended at `candidate`; nothing here."""
        return


def by(candidates: Sequence[Candidate], key: Callable[[Candidate], float | tuple[float, ...]]) -> list[PeerId]:
    """Ids by `key`, the least first; then this peer itself, then the lower id."""
    return [each.peer for each in sorted(candidates, key=lambda each: (key(each), not each.local, each.peer))]
