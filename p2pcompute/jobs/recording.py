"""What the attempts of one job came to since it was last told: sums by peer and outcome, out of which records are made.

A record for every task, or every batch, would cost more than small tasks themselves, and fill the database with one job. So sums are
told when a twentieth of the job's life has passed, within bounds: of an hour's job some hundred records a peer are kept, of a short one
all that there is, and what is new is never older than the bound.

Refuses to know the clock (`now` is monotonic seconds), and where records go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from p2pcompute.model import limits
from p2pcompute.model.ids import REDUCE_BASE, PeerId, TaskIndex
from p2pcompute.model.job import JobSpec, Outcome, TaskReport
from p2pcompute.model.performance import FunctionKey, PerformanceRecord, plausible_s

#: Records are told after this share of the job's life.
SHARE_OF_LIFE = 0.05
#: Seconds between two records of a job and peer: at least and at most, for jobs whose placing rests on them and for others.
PROMPT_S = (0.05, 2.0)
USUAL_S = (1.0, 10.0)
_CUSTOM = "custom"


class Recording:
    """The sums of one job. `is_prompt`: whether its own placing rests on what is told."""

    __slots__ = ("_between_s", "_functions", "_opened_at", "_strategy", "_sums", "_told_at")

    def __init__(self, spec: JobSpec, now: float, *, is_prompt: bool) -> None:
        #: Least and most seconds between two tellings.
        self._between_s = PROMPT_S if is_prompt else USUAL_S
        #: What leaves run, and what merges them.
        self._functions = tuple(
            FunctionKey(name[: limits.TEXT_CHARS_MAX], spec.program)
            for name in (spec.map_entry, spec.reduce_entry or "reduce")
        )
        #: What placed them, by the submitter's word.
        self._strategy = spec.options.strategy if spec.options.balancer is None else _CUSTOM
        #: When the job began.
        self._opened_at = now
        #: When it was told last. Where the placing rests on them, the first results are due at once.
        self._told_at = -math.inf if is_prompt else now
        #: (tasks, seconds of all of them together) by peer, outcome and whether they merge; empty when it was just told.
        self._sums: dict[tuple[PeerId, Outcome, bool], list[float]] = {}

    @property
    def functions(self) -> tuple[FunctionKey, ...]:
        """What leaves run, and what merges their results."""
        return self._functions

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not self._sums

    def batch(self, reports: Sequence[tuple[TaskReport, PeerId]]) -> None:
        """Attempts that settled their tasks; those of one batch are mostly alike, and cost two additions each."""
        peer = reports[0][1]
        tasks, wall_s = 0, 0.0
        for report, where in reports:
            if report.outcome is Outcome.RETURNED and where is peer and report.task < REDUCE_BASE:
                tasks += 1
                wall_s += report.wall_s
            else:
                self._add(where, report.outcome, report.task >= REDUCE_BASE, 1, report.wall_s)
        if tasks:
            self._add(peer, Outcome.RETURNED, False, tasks, wall_s)

    def attempt(self, task: TaskIndex, peer: PeerId, outcome: Outcome, wall_s: float = 0.0) -> None:
        """One attempt that died."""
        self._add(peer, outcome, task >= REDUCE_BASE, 1, wall_s)

    def is_due(self, now: float) -> bool:
        """Whether what there is should be told."""
        least_s, most_s = self._between_s
        between_s = min(max((now - self._opened_at) * SHARE_OF_LIFE, least_s), most_s)
        return bool(self._sums) and now - self._told_at >= between_s

    def take(
        self, now: float, input_bytes: int, row_of: Callable[[PeerId], tuple[float, ...]]
    ) -> list[PerformanceRecord]:
        """All that there is as records, by peer and outcome; afterwards there is nothing.

        `input_bytes`: mean size of a leaf's arguments. `row_of`: the features of a peer, asked for once each.
        """
        rows: dict[PeerId, tuple[float, ...]] = {}
        records = []
        for (peer, outcome, merges), (tasks, wall_s) in sorted(self._sums.items()):
            if peer not in rows:
                rows[peer] = row_of(peer)
            records.append(
                PerformanceRecord(
                    self._functions[merges],
                    peer,
                    self._strategy,
                    outcome,
                    plausible_s(wall_s / tasks),
                    0.0,
                    int(tasks),
                    0 if merges else input_bytes,
                    # What merges has other arguments than the request of which the row tells.
                    () if merges else rows[peer],
                )
            )
        self._sums.clear()
        self._told_at = now
        return records

    def _add(self, peer: PeerId, outcome: Outcome, merges: bool, tasks: int, wall_s: float) -> None:
        key = (peer, outcome, merges)
        row = self._sums.get(key)
        if row is None:
            self._sums[key] = [tasks, wall_s]
        else:
            row[0] += tasks
            row[1] += wall_s
