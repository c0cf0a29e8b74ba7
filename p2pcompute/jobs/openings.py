"""At how many peers a job is opened, and what a refusal means.

A job is offered only where it may have work: a job of one task goes to one peer, not to fifty. A peer that granted nothing, or
has not answered for a while, does not count, so the next one is asked. Some refusals pass with time, others do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.jobs.dispatch_events import Refusal
from p2pcompute.jobs.leases import JobBook
from p2pcompute.jobs.shares import Share, ShareState
from p2pcompute.model import limits

#: An offer that was not answered for so long is not waited for any more; it may still be accepted later.
PATIENCE_S = 5.0
#: Refusals that pass with time, with the first pause before the job is offered again.
PASSING_REFUSALS = {"busy": 1.0, "none-lent": 5.0}
#: The pause doubles with each refusal in a row, up to this.
REFUSAL_PAUSE_MAX_S = 60.0
#: Pause after a peer gave tasks back untouched, doubled each time without a result between.
RETURNED_PAUSE_S = 0.05
RETURNED_PAUSE_MAX_S = 2.0
_REFUSALS_TOLD = 5
#: A job with so many tasks left can use every peer.
_ALL = limits.LINKS_MAX


def openings_wanted(book: JobBook) -> int | None:
    """At how many peers the job should be open: one a task that is left, more where tasks failed; None for all."""
    total = book.spec.expected_tasks
    if book.inputs_ended or total is None:
        total = len(book.known) if book.inputs_ended else None
    if total is None:
        return None
    left = max(total - len(book.settled), book.waiting + len(book.leases), 1)
    if left >= _ALL or not book.history:
        return left
    # Peers where a task has failed are open, but of no use to it.
    return left + max(len({attempt.peer for attempt in history}) for history in book.history.values())


def counts_as_open(share: Share, free_slots: float | None, now: float) -> bool:
    """Whether a share is worth waiting for: tasks run there or could, or the job has just been offered.

    `free_slots`: what the peer has left of its grant, None before its first grant.
    """
    if share.state is ShareState.READY and free_slots is not None:
        return free_slots > 0 or share.out > 0
    return share.state is not ShareState.REFUSED and now < share.opened_at + PATIENCE_S


def refusal_pause_s(reason: str, refusals: int) -> float | None:
    """Seconds until a job is offered again after `refusals` in a row; None where the refusal is for good."""
    first = PASSING_REFUSALS.get(reason)
    if first is None:
        return None
    return min(first * 2.0 ** min(refusals - 1, 16), REFUSAL_PAUSE_MAX_S)


def returned_pause_s(last_s: float) -> float:
    """The next pause of a peer that gave tasks back, the one before having lasted `last_s` (0: there was none)."""
    return min(max(2 * last_s, RETURNED_PAUSE_S), RETURNED_PAUSE_MAX_S)


def is_hopeless(refusals: Sequence[Refusal]) -> bool:
    """Whether refusals by every usable peer end the job: at least one is for good, and none is mere business."""
    return any(refusal.reason not in PASSING_REFUSALS for refusal in refusals) and not any(
        refusal.reason == "busy" for refusal in refusals
    )


def hopeless_text(refusals: Sequence[Refusal]) -> str:
    """Why nobody runs the job, in words; names the first few refusals."""
    told = "; ".join(refusal.text or refusal.reason for refusal in refusals[:_REFUSALS_TOLD])
    return f"no peer will run this job: {told}"
