"""When a task that lost its attempts is given up.

Attempts that died with their worker, peer or link count against the job's `retries`. A task whose workers died on
`limits.CULPRIT_PEERS` distinct peers is called the culprit before it kills another one. A lost link is nobody's
proof: it counts as an attempt, never towards the culprit.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.job import Attempt, Outcome

#: Outcomes that send a task elsewhere and say nothing against it.
HARMLESS = frozenset({Outcome.RETURNED_UNRUN, Outcome.CANCELLED, Outcome.CANNOT_RUN})
#: Outcomes that point at the task when they repeat on different peers.
DEADLY = frozenset({Outcome.WORKER_DIED, Outcome.OUT_OF_MEMORY})


def is_given_up(history: Sequence[Attempt], retries: int) -> bool:
    """Whether a task with these attempts, none of which succeeded, gets no further one."""
    counted = sum(attempt.outcome not in HARMLESS for attempt in history)
    killed = {attempt.peer for attempt in history if attempt.outcome in DEADLY}
    return counted > retries or len(killed) >= limits.CULPRIT_PEERS


def failed_at(history: Sequence[Attempt], peer: PeerId) -> bool:
    """Whether an attempt at `peer` is among those that count."""
    return any(attempt.peer == peer and attempt.outcome not in HARMLESS for attempt in history)
