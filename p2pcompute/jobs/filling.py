"""Sending tasks: the part of the dispatch machine that turns credit into leases, and late leases into copies.

Formulas are in `credit.py`, `speed.py` and `speculation.py`; here is only who comes when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from p2pcompute.jobs import coordinating, credit, speculation
from p2pcompute.jobs.dispatch_events import Effect, Send, WantInputs
from p2pcompute.jobs.leases import JobBook
from p2pcompute.jobs.retries import failed_at
from p2pcompute.jobs.roster import Alarm, Lender, Roster
from p2pcompute.jobs.shares import Share, ShareState
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId, TaskIndex
from p2pcompute.model.job import Lease


class Filling:
    """Leases tasks of the jobs of `roster` to its peers."""

    def __init__(self, roster: Roster) -> None:
        #: Peers, jobs and alarms, shared with the rest of the machine.
        self._roster = roster

    def fill(self, lenders: Sequence[Lender], now: float, out: list[Effect]) -> None:
        """Send waiting tasks to peers, in this order, as far as their credit goes."""
        for lender in lenders:
            more = lender.slots > 0
            while more and self._roster.waiting:
                more = self._fill_once(lender, now, out)

    def fill_job(self, book: JobBook, now: float, out: list[Effect]) -> None:
        """Send waiting tasks to all peers that have the job."""
        before = -1
        while book.waiting != before:
            before = book.waiting
            self.fill(self._roster.planned(book, book.shares.values(), now), now, out)
            if not book.placing.strategy.spreads or not book.waiting:
                return

    def fill_others(self, share: Share, now: float, out: list[Effect]) -> None:
        """Send what the peer of `share` gave back, as it was asked, to others before that peer has its turn again."""
        book = share.job
        if book.waiting:
            self._roster.waiting[book.spec.job] = book
            others = [other for other in book.shares.values() if other is not share]
            self.fill(self._roster.planned(book, others, now), now, out)

    def want_inputs(self, book: JobBook, out: list[Effect]) -> None:
        """Ask for inputs where the queue runs low: few large requests rather than many small ones."""
        if book.inputs_ended:
            return
        room = limits.INPUTS_AHEAD - book.waiting - book.asked
        if room >= limits.INPUTS_AHEAD // 4:
            book.asked += room
            out.append(WantInputs(book.spec.job, room))

    def _fill_once(self, lender: Lender, now: float, out: list[Effect]) -> bool:
        """Give each waiting job its part of the free slots; whether another round may find room."""
        suspect = lender.facts.is_suspect
        ready = [
            share
            for job in self._roster.waiting
            if (share := lender.shares.get(job)) is not None
            and share.state is ShareState.READY
            and not share.paused
            and not ((share.is_gated or suspect) and self._roster.is_barred(share, now))
        ]
        if len(ready) > 1:
            ready.sort(key=lambda share: (-share.job.spec.options.priority, share.load, share.job.serial))
        sent = False
        for number, share in enumerate(ready):
            free = lender.free_slots
            if free <= 0:
                return False
            priority = share.job.spec.options.priority
            rivals = sum(other.job.spec.options.priority == priority for other in ready[number:])
            # At least one task's worth, or a job of long tasks would never get a slot beside one of short tasks.
            part = min(free, max(free / rivals, 1 / share.depth))
            count = self._tasks_to_send(lender, share, part, now)
            if count == 0 and free * share.depth < 1:
                return False  # nobody behind this job may take what it is waiting for
            if count and self._send(lender, share, count, now, out):
                sent = True
        return sent and len(ready) > 1

    def _tasks_to_send(self, lender: Lender, share: Share, free_slots: float, now: float) -> int:
        book = share.job
        if not credit.worth_a_look(free_slots=free_slots, depth=share.depth, out=share.out, waiting=book.waiting):
            return 0
        # While more inputs wait than all peers hold, no end is in sight, and counting slots would be for nothing.
        near_end = book.waiting < limits.INPUTS_AHEAD // 2
        count = credit.tasks_to_send(
            free_slots=free_slots,
            slots=lender.slots,
            depth=share.depth,
            tail=share.tail(self._roster.slots_of(book)) if near_end else share.depth,
            out=share.out,
            waiting=min(book.waiting, limits.TASKS_QUEUED_PER_ORIGIN_MAX - lender.held),
        )
        if share.is_seat:
            return self._tasks_for_seat(lender, share, count, now)
        if share.is_gated:
            count = min(count, self._roster.tasks_payable(lender, share, book, now))
        return min(count, self._even_part(share, now)) if share.is_spread else count

    def _tasks_for_seat(self, lender: Lender, share: Share, count: int, now: float) -> int:
        """`count` would do as for any peer: a seat gets more, since its tasks travel together."""
        book = share.job
        if coordinating.is_unknown(share, lender.slots, now):
            wanted = coordinating.first_tasks(book, lender.slots) - share.out
        else:
            all_of_them = coordinating.capacities(book, self._roster, now)
            mine = all_of_them.get(share.peer, 0.0)
            fair = coordinating.share_size(book.waiting, mine, sum(all_of_them.values()))
            wanted = fair - share.out if coordinating.is_narrow(share, lender.slots, mine) else max(count, fair)
        room = limits.TASKS_QUEUED_PER_ORIGIN_MAX - lender.held
        if book.merges_groups and wanted > 0:
            wanted += -wanted % limits.REDUCE_FAN_IN
        return max(0, min(wanted, book.waiting, room))

    def _even_part(self, share: Share, now: float) -> int:
        """How many more tasks the peer may have while others with less have free slots, where the strategy spreads them."""
        book = share.job
        open_ = [other for other in book.shares.values() if self._roster.may_run(other, now)]
        if not any(other.out <= share.out and self._roster.is_hungry(other) for other in open_ if other is not share):
            return limits.TASKS_QUEUED_PER_ORIGIN_MAX
        even = -(-(book.waiting + len(book.leases)) // max(len(open_), 1))
        return max(0, even - share.out)

    def _send(self, lender: Lender, share: Share, count: int, now: float, out: list[Effect]) -> bool:
        book = share.job
        if share.is_seat:
            near = self._slots_near(book)
            leases = book.lease_to_seat(
                share,
                count,
                now,
                align=limits.REDUCE_FAN_IN if book.merges_groups else 1,
                # What peers near the submitter take up as soon as they are free is not worth a group that is torn.
                breaks=book.waiting > near,
                reductions=not near,
            )
        else:
            leases = book.lease(share, count, now, lambda task: self._has_other(share, task, now))
        if not leases:
            return False
        share.turn = book.next_batch
        out.extend(_sends(lender.peer, book, leases))
        if not book.waiting:
            del self._roster.waiting[book.spec.job]
        self.want_inputs(book, out)
        self.watch(book, now)
        if share.out > lender.slots:
            self._roster.watch_loads(share, now)
        return True

    def _slots_near(self, book: JobBook) -> int:
        """Slots of peers that no seat stands for, where the job is open: what merges the results of all belongs near the submitter."""
        return sum(
            self._roster.slots_at(share.peer)
            for share in book.shares.values()
            if not share.is_seat and self._roster.is_open_at(share)
        )

    def _has_other(self, share: Share, task: TaskIndex, now: float) -> bool:
        """Whether another peer, at which `task` has not failed, could run it."""
        history = share.job.history.get(task, ())
        return any(
            not failed_at(history, other.peer) and self._roster.takes_more(other, now)
            for other in share.job.shares.values()
            if other is not share
        )

    # --- late tasks ---------------------------------------------------------------------------------------------------

    def watch(self, book: JobBook, now: float) -> None:
        """When no task waits any more, be woken when the next lease becomes overdue."""
        alarm: Alarm = ("late", book.spec.job, None)
        if book.waiting or not book.leases or not book.spec.options.speculate or alarm in self._roster.timers:
            return
        late, next_at = speculation.overdue(book, now, self._roster.slots_at)
        if late:
            self._roster.timers.set(alarm, now + speculation.LOOK_AGAIN_S)
        elif next_at is not None:
            self._roster.timers.set(alarm, next_at)

    def copy_late(self, book: JobBook, now: float, out: list[Effect]) -> None:
        """Run late tasks a second time in free slots of other peers."""
        if book.waiting or not book.spec.options.speculate:
            return
        late, next_at = speculation.overdue(book, now, self._roster.slots_at)
        if late:
            self._copy(book, late, now, out)
            again = now + speculation.LOOK_AGAIN_S
            next_at = again if next_at is None else min(again, next_at)
        if next_at is not None:
            self._roster.timers.set(("late", book.spec.job, None), next_at)

    def _copy(self, book: JobBook, late: Sequence[TaskIndex], now: float, out: list[Effect]) -> None:
        usable = [
            share
            for share in book.shares.values()
            if share.state is ShareState.READY
            and not share.is_seat
            and not share.paused
            and not self._roster.is_barred(share, now)
        ]
        free = {lender.peer: int(lender.free_slots) for lender in self._roster.planned(book, usable, now)}
        copies: dict[PeerId, list[Lease]] = {}
        for task in late:
            holder = book.leases[task].share.peer
            history = book.history.get(task, ())
            for peer, slots in free.items():
                if slots > 0 and peer != holder and not failed_at(history, peer):
                    free[peer] -= 1
                    copies.setdefault(peer, []).append(book.copy(task, book.shares[peer], now))
                    break
        for peer, leases in copies.items():
            out.extend(_sends(peer, book, tuple(leases)))


def _sends(peer: PeerId, book: JobBook, leases: tuple[Lease, ...]) -> Iterator[Send]:
    for start in range(0, len(leases), limits.BATCH_TASKS_MAX):
        yield Send(peer, book.spec.job, leases[start : start + limits.BATCH_TASKS_MAX])
