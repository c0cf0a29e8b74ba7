"""How far a job is, counted from its book."""

from __future__ import annotations

from p2pcompute.jobs.leases import JobBook
from p2pcompute.model.job import JobProgress


def progress_of(book: JobBook, now: float, message: str) -> JobProgress:
    """The figures of one job; `message`: why nobody runs it, empty where somebody does. Same book, same figures."""
    return JobProgress(
        job=book.spec.job,
        state=book.state,
        tasks_total=len(book.known) if book.inputs_ended else book.spec.expected_tasks,
        tasks_done=len(book.settled) - book.failed,
        tasks_failed=book.failed,
        tasks_running=len(book.leases) + len(book.merged),
        fraction_running=sum(book.fractions.values()) + len(book.merged),
        retries=book.retries,
        duplicates_dropped=book.duplicates,
        done_by_peer=tuple(sorted(row for row in book.done_by_peer.items() if row[1])),
        elapsed_s=(now if book.ended_at is None else book.ended_at) - book.opened_at,
        message=message,
    )
