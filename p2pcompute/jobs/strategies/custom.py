"""custom: the submitter's own balancer, in its own process.

A balancer is a `Strategy`, or any function (or object with `order`) of the candidates and the job's `Situation` that gives peers or
candidates, the best first; whom it leaves out gets nothing. It runs on the way of every batch, so it must be quick. What is no
candidate is an error; what it raises is caught by `jobs/placing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.strategies.base import Report, Situation, Strategy
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId


class Custom(Strategy):
    """Wraps a balancer."""

    name = "custom"
    holds_back = True

    def __init__(self, balancer: object) -> None:
        self._balancer = balancer
        self._call: Callable[..., object] = getattr(balancer, "order", balancer)  # type: ignore[arg-type]
        self.spreads = bool(getattr(balancer, "spreads", False))
        self.learns = callable(getattr(balancer, "learn", None)) and bool(getattr(balancer, "learns", True))

    def order(self, candidates: Sequence[Candidate], job: Situation) -> list[PeerId]:
        """What the balancer says, each once. Raises UsageError for what is no order of the candidates."""
        said = self._call(candidates, job)
        if not isinstance(said, Iterable) or isinstance(said, str | bytes):
            raise UsageError(f"the balancer gave {said!r}: give peers, the best first")
        known = {each.peer for each in candidates}
        found: dict[PeerId, None] = {}
        for each in said:
            peer = each.peer if isinstance(each, Candidate) else each
            if peer not in known:
                raise UsageError(f"the balancer gave {peer!r}, which is none of the candidates")
            found[peer] = None
        return list(found)

    def learn(self, candidate: Candidate, job: Situation, report: Report) -> None:
        """Told on to a balancer that has `learn`."""
        self._balancer.learn(candidate, job, report)  # type: ignore[attr-defined]
