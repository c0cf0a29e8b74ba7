"""When a job cannot go on for want of a peer: what stands in the way, and whether it ends of it or waits.

The part of the dispatch machine for requirements, budgets and strategies that leave peers out; refusals are `openings.py`'s. Rules:

- Nothing is judged while a task of the job is out: its end may change everything.
- A peer that has just started is not linked yet: for `SETTLING_S` after the first peer or job, no job ends.
- A job of which something was sent already waits when its requirements are not met any more, as one does whose peers are gone: peers
  come back. A budget that is used up does not.
- `on_unmet=wait`: it waits in any case, and says why in its progress. Peers that could help are sought again every `SEEK_AGAIN_S`.
- A job whose strategy failed without a fallback ends at once.
"""

from __future__ import annotations

import math

from p2pcompute.jobs.dispatch_events import Effect, EndCause, FellBack, SeekPeers, Stalled
from p2pcompute.jobs.leases import JobBook
from p2pcompute.jobs.requirements import unmet_text
from p2pcompute.jobs.roster import Alarm, Lender, Roster, candidate
from p2pcompute.model.placement import OnUnmet

#: Links to the peers of a network are up by then: a dial over a relay takes up to 9 s.
SETTLING_S = 10.0
#: How often peers are sought for a job that waits for one.
SEEK_AGAIN_S = 5.0

#: Why a job cannot go on.
Verdict = tuple[EndCause, str]


class Judging:
    """Looks at jobs of `roster`."""

    def __init__(self, roster: Roster) -> None:
        #: Peers, jobs and alarms, shared with the rest of the machine.
        self._roster = roster
        #: When the first peer or job came; infinite before.
        self._began = math.inf

    def begin(self, now: float) -> None:
        """A peer or a job comes in at `now`."""
        if now < self._began:
            self._began = now

    def judge(self, book: JobBook, now: float, out: list[Effect]) -> Verdict | None:
        """How the job ends of what stands in its way; None where it goes on or waits."""
        placing = book.placing
        if placing.trouble and placing.trouble != placing.told and not placing.has_failed:
            placing.told = placing.trouble
            out.append(FellBack(book.spec.job, placing.trouble))
        if placing.has_failed:
            return EndCause.STRATEGY, f"{placing.trouble}: repair it, or name a fallback_strategy"
        if not placing.is_gated:
            return None
        if book.leases or (len(book.known) and not book.waiting):
            book.placing.unmet = ""
            return None
        verdict = self._what_stands_in_the_way(book, now)
        alarm: Alarm = ("unmet", book.spec.job, None)
        if verdict is None:
            book.placing.unmet = ""
            self._roster.timers.clear(alarm)
            return None
        cause, text = verdict
        waits = book.spec.options.on_unmet is OnUnmet.WAIT or (book.has_begun and cause is not EndCause.BUDGET)
        if not waits and now >= self._began + SETTLING_S:
            return verdict
        if alarm not in self._roster.timers:
            self._roster.timers.set(alarm, now + SEEK_AGAIN_S if waits else self._began + SETTLING_S)
            out.append(SeekPeers(book.spec.job))
        if book.placing.unmet != text:
            book.placing.unmet = text
            book.stalled = True
            out.append(Stalled(book.spec.job, text))
        return None

    def _what_stands_in_the_way(self, book: JobBook, now: float) -> Verdict | None:
        options, roster = book.spec.options, self._roster
        fit = roster.fit_lenders(book)
        if not fit:
            unfit = [lender for peer, lender in roster.lenders.items() if peer in book.placing.unfit]
            if not options.requirements or (roster.lenders and not unfit):
                return None  # refused by those that fit: that is another story
            rows = [candidate(lender, None, book) for lender in unfit]
            return EndCause.UNMET, unmet_text(options.requirements, rows)
        if options.requirements and options.health_check and all(lender.facts.is_suspect for lender in fit):
            names = ", ".join(lender.facts.name for lender in fit[:3])
            return EndCause.UNHEALTHY, f"every peer that meets the requirements is suspected to be down: {names}"
        payable = [each for each in fit if roster.tasks_payable(each, book.shares.get(each.peer), book, now) > 0]
        if not payable:
            return EndCause.BUDGET, self._budget_text(book, fit, now)
        if book.placing.strategy.holds_back and roster.left_out_by_strategy(book, now):
            nearest = min(fit, key=lambda lender: (lender.rtt_s, lender.peer))
            return EndCause.UNMET, (
                f"strategy {options.strategy if options.balancer is None else 'custom'} leaves out all of {len(fit)} peers; "
                f"the nearest is {nearest.facts.name or 'one'} at {nearest.rtt_s * 1000:.3g} ms for "
                f"{nearest.facts.cost_per_hour:g} an hour: loosen its limits, or name a fallback_strategy"
            )
        return None

    def _budget_text(self, book: JobBook, fit: list[Lender], now: float) -> str:
        budget, purse = book.spec.options.budget, book.placing.purse
        assert budget is not None
        assert purse is not None
        cheapest = min(fit, key=lambda lender: (lender.facts.cost_per_hour, lender.peer))
        place = f"the cheapest peer, {cheapest.facts.name or 'one'}, costs {cheapest.facts.cost_per_hour:g} an hour"
        done = len(book.settled)
        if purse.spent or done:
            left = "" if book.left is None else f" of {done + book.left}"
            return f"the budget of {budget} is used up after {done}{left} tasks ({purse.spent:.4g} spent): {place}"
        whole = book.placing.whole_cost(cheapest.facts.cost_per_hour, self._roster.situation(book, now))
        if whole is None:
            return f"the budget of {budget} does not pay for one task: {place}"
        return f"the job would cost {whole:.4g} and its budget is {budget}: {place}; nothing was run"
