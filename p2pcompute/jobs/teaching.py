"""What a batch of reports means beyond the tasks: for how well a peer is believed, the job's money, and a strategy that learns."""

from __future__ import annotations

from p2pcompute.jobs.dispatch_events import Reported
from p2pcompute.jobs.leases import Settling
from p2pcompute.jobs.roster import Roster, candidate
from p2pcompute.jobs.shares import Share
from p2pcompute.jobs.strategies import Report
from p2pcompute.model.job import Outcome


def teach(roster: Roster, share: Share, event: Reported, settling: Settling, now: float) -> None:
    """Count what died at the peer of `share`, pay for the batch, and tell the job's strategy if it wants to know."""
    lender, book = roster.lenders[event.peer], share.job
    died = len(settling.retried) + len(settling.given_up)
    lender.died += died
    placing = book.placing
    if not share.is_watched:
        return
    wall_s = sum(report.wall_s for report in event.reports)
    if placing.purse is not None:
        placing.purse.pay(lender.facts.cost_per_hour, wall_s)
    if placing.strategy.learns:
        returned = sum(report.outcome is Outcome.RETURNED for report, _ in settling.completed)
        placing.learn(
            candidate(lender, share, book),
            roster.situation(book, now),
            Report(returned, len(settling.completed) - returned, died, wall_s),
        )
