"""Moving leases that have not begun from peers that are late to peers that are not.

Late binding keeps what peers hold ahead small, a few hundredths of a second of work. A peer that becomes slow in mid-job makes
seconds of it: its queue is then worth more elsewhere. Rules:

- The load of a peer is the seconds that our leases there will take: their number times seconds a task, learned, over the slots
  that are ours. While a peer has been silent for longer than its tasks should take, a task takes at least that long.
- Loads are looked at only while some peer holds more than it can run, every `interval_s`.
- What should move where says the flow of least effort over the network (`topology/balance.py`, `topology/moves.py`): over the links that are
  known between the peers of the job, and over this peer's own link to each of them.
- A move must pay: the seconds that it saves are a multiple of the round trips, the bytes and the trouble that it costs.
- Moved is what was sent last, by asking for it back: the peer runs on with what it has begun, and nothing is leased twice. What
  comes back goes to others first, by their credit; so the flow says how much leaves, and late binding who gets it.

Refuses to know: how a recall travels, what a lease is worth beyond its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from p2pcompute.jobs import speculation
from p2pcompute.jobs.dispatch_events import Effect, RecallAt
from p2pcompute.jobs.leases import JobBook
from p2pcompute.jobs.roster import BANDWIDTH_UNKNOWN_MBPS, LOADS_INTERVAL_S, Alarm, Lender, Roster
from p2pcompute.jobs.shares import Share, ShareState
from p2pcompute.model import limits

if TYPE_CHECKING:
    from p2pcompute.topology.affinity import Adjacency
    from p2pcompute.topology.balance import BalanceSettings
    from p2pcompute.topology.graph import Graph
    from p2pcompute.topology.moves import Move


@dataclass(frozen=True, slots=True)
class BalancingSettings:
    """When leases are moved; the defaults are the product's."""

    #: Spread of loads, (max - min) / mean, above which leases are moved.
    start_at: float = 0.3
    #: And once they were, below which no more are.
    stop_at: float = 0.15
    #: A move must save so many times what it costs.
    gain_factor: float = 2.0
    #: Seconds between two looks at the loads of a job, and so between two moves.
    interval_s: float = LOADS_INTERVAL_S
    #: What any move costs beside round trips and bytes, seconds: what peers hold anyway is not worth moving.
    trouble_s: float = limits.BATCH_TARGET_S


#: The product's.
USUAL = BalancingSettings()


class Load(NamedTuple):
    """What a job's peer holds, now.

    `task_s`: seconds a task of the job there; `seconds`: until all our leases there have run, infinite without slots; `work`,
    `capacity`: the same in tasks of the job, and in tasks a second; `is_silent`: it should have reported by now.
    """

    share: Share
    lender: Lender
    task_s: float
    seconds: float
    work: float
    capacity: float
    is_silent: bool


def seconds_a_task(learned_s: float, silent_s: float, rtt_s: float) -> tuple[float, bool]:
    """Seconds a task takes at a peer that holds some and was last heard `silent_s` ago, and whether that is longer than it
    should be: after `speculation.FACTOR` times a task and a round trip, not before `speculation.OVERDUE_MIN_S`."""
    if silent_s <= max(speculation.OVERDUE_MIN_S, speculation.FACTOR * (learned_s + rtt_s)):
        return learned_s, False
    return max(learned_s, silent_s - rtt_s), True


class Balancing:
    """Recalls leases of the jobs of `roster`. `settings`: None where none is."""

    def __init__(self, roster: Roster, settings: BalancingSettings | None) -> None:
        #: Peers, jobs and alarms, shared with the rest of the machine.
        self._roster = roster
        #: When leases are moved; None: never.
        self._settings = settings

    def look(self, book: JobBook, now: float, out: list[Effect]) -> None:
        """Recall what is worth moving, and look again while there may be more."""
        settings = self._settings
        if settings is None:
            return
        queues = any(share.out > self._roster.slots_at(share.peer) for share in book.shares.values())
        if not queues:
            book.is_balancing = False
            return
        rows = _givers_and_takers(self._loads(book, now))
        recalled = self._recall(book, rows, settings, out) if _is_worth_a_look(rows, settings) else []
        book.is_balancing = bool(recalled)
        # Answers to a recall are here before loads are looked at again.
        answers_s = max((2 * row.share.rtt_s for row in recalled), default=0.0)
        again: Alarm = ("balance", book.spec.job, None)
        self._roster.timers.set(again, now + max(settings.interval_s, answers_s))

    def _loads(self, book: JobBook, now: float) -> list[Load]:
        """What every peer holds that may be sent tasks of the job, by id; empty while the time of a task is unknown."""
        typical_s = book.speed.task_s
        if typical_s is None:
            return []
        return [
            load_of(share, self._roster.lenders[peer], typical_s, now)
            for peer, share in sorted(book.shares.items())
            if share.state is ShareState.READY
            and not share.paused
            and not self._roster.is_barred(share, now)
            # A share is meant to be large as long as others find enough to do here.
            and not (share.is_seat and book.waiting)
        ]

    def _recall(
        self, book: JobBook, rows: Sequence[Load], settings: BalancingSettings, out: list[Effect]
    ) -> list[Load]:
        """Ask for what should leave; the peers that were asked."""
        leaving = leases_to_recall(
            rows, settings, self._roster.map, book.argument_bytes / max(len(book.known), 1), book.is_balancing
        )
        mean_s = _mean_s(rows)
        asked = []
        wanted: dict[Share, tuple[int, int]] = {}
        for row, count in zip(rows, leaving, strict=True):
            if row.share.is_seat and book.merges_groups:
                # What its coordinator merges is torn apart otherwise, and travels value by value.
                count -= count % limits.REDUCE_FAN_IN
            if count:
                wanted[row.share] = (count, row.lender.slots)
        recalled = book.recall(wanted)
        for row in rows:
            leases = recalled.get(row.share, ())
            if not leases:
                continue
            asked.append(row)
            if row.is_silent:
                # Or what comes back would make room for as much again.
                row.share.slow_down()
            text = f"{row.seconds:.2g} s of work are there, {mean_s:.2g} s in the mean over {len(rows)} peers"
            if row.is_silent:
                text += "; it has been silent for longer than a task should take"
            out.extend(
                RecallAt(row.share.peer, book.spec.job, leases[start : start + limits.BATCH_TASKS_MAX], text)
                for start in range(0, len(leases), limits.BATCH_TASKS_MAX)
            )
        return asked


def load_of(share: Share, lender: Lender, typical_s: float, now: float) -> Load:
    """The load of one peer of a job; `typical_s`: of a task of the job where this peer has run none."""
    rows = {other: _task_s(other, lender, typical_s if other is share else None, now) for other in _busy(lender, share)}
    task_s, is_silent = rows[share]
    busy_s = sum(other.out * each_s for other, (each_s, _) in rows.items())
    slots = lender.slots
    seconds = busy_s / slots if slots else float("inf") if busy_s else 0.0
    return Load(share, lender, task_s, seconds, busy_s / task_s, slots / task_s, is_silent)


def leases_to_recall(
    rows: Sequence[Load],
    settings: BalancingSettings,
    network: Adjacency | None,
    task_bytes: float,
    is_balancing: bool,
) -> list[int]:
    """How many leases of the job should leave each peer of `rows`.

    `network`: links between peers, where they are known; `task_bytes`: mean bytes of a task's arguments; `is_balancing`: whether
    leases were moved the last time.
    """
    import numpy as np

    from p2pcompute.topology.moves import rebalance, whole_leases

    graph = _graph(rows, network)
    hub = graph.size - len(rows)
    work = np.array([row.work for row in rows] + [0.0] * hub)
    capacity = np.array([row.capacity for row in rows] + [0.0] * hub)

    def moving_s(move: Move) -> float:
        source, target = rows[move.source], rows[move.target]
        mbps = target.lender.facts.bandwidth_mbps or BANDWIDTH_UNKNOWN_MBPS
        bytes_s = 0.0 if target.lender.local else move.amount * task_bytes * 8e-6 / mbps
        return settings.trouble_s + source.share.rtt_s + target.share.rtt_s + bytes_s

    moves = rebalance(graph, work, capacity, moving_s, is_balancing=is_balancing, settings=_balance_settings(settings))
    leaving = [0] * len(rows)
    for move in whole_leases(moves, 1.0):
        leaving[move.source] += move.leases
    return leaving


def _graph(rows: Sequence[Load], network: Adjacency | None) -> Graph:
    """The links that tasks of a job take: between its peers, as the network knows them, and from this peer to each.

    Nodes in the order of `rows`; this peer is one of them, or the one behind them. Its own links join all, so that no part
    balances alone.
    """
    import numpy as np

    from p2pcompute.topology.affinity import affinity
    from p2pcompute.topology.graph import graph_of_edges

    hub = next((number for number, row in enumerate(rows) if row.lender.local), len(rows))
    edges = {
        (min(number, hub), max(number, hub)): affinity(row.lender.rtt_s, row.lender.facts.bandwidth_mbps)
        for number, row in enumerate(rows)
        if number != hub
    }
    if network is not None:
        number_of = {row.share.peer: number for number, row in enumerate(rows)}
        places = np.array([number_of.get(peer, -1) for peer in network.peers], dtype=np.int64)
        one, other = places[network.graph.one], places[network.graph.other]
        known = (one >= 0) & (other >= 0)
        for a, b, weight in zip(
            one[known].tolist(), other[known].tolist(), network.graph.weight[known].tolist(), strict=True
        ):
            edges.setdefault((min(a, b), max(a, b)), weight)
    ends = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)
    weights = np.array([edges[pair] for pair in sorted(edges)])
    return graph_of_edges(max(len(rows), hub + 1), ends[:, 0], ends[:, 1], weights)


def _balance_settings(settings: BalancingSettings) -> BalanceSettings:
    from p2pcompute.topology.balance import BalanceSettings

    return BalanceSettings(settings.start_at, settings.stop_at, settings.gain_factor)


def _busy(lender: Lender, share: Share) -> list[Share]:
    """`share`, and other jobs of ours that hold leases at the peer."""
    return [other for other in lender.shares.values() if other.out or other is share]


def _task_s(share: Share, lender: Lender, typical_s: float | None, now: float) -> tuple[float, bool]:
    learned_s = share.speed.task_s or typical_s or share.job.speed.task_s or 0.0
    silent_s = now - max(lender.heard_at, share.began_at) if share.out and learned_s else 0.0
    return seconds_a_task(learned_s, silent_s, share.rtt_s)


def _mean_s(rows: Sequence[Load]) -> float:
    """Seconds until all of it would have run, were it spread evenly."""
    capacity = sum(row.capacity for row in rows)
    return sum(row.work for row in rows) / capacity if capacity else float("inf")


def _givers_and_takers(rows: list[Load]) -> list[Load]:
    """Without the peers that hold too much and know no recall: what they hold stays."""
    mean_s = _mean_s(rows)
    return [row for row in rows if row.lender.facts.gives_back or row.seconds <= mean_s]


def _is_worth_a_look(rows: Sequence[Load], settings: BalancingSettings) -> bool:
    """Whether any move could pay; spares most looks the arithmetic."""
    able = [row.seconds for row in rows if row.capacity > 0]
    if len(rows) < 2 or not able:
        return False
    return max(row.seconds for row in rows) - min(able) > settings.gain_factor * settings.trouble_s
