"""From a flow along edges to moves: so much from this peer, which has too much, straight to that one, which has too
little.

The flow runs downhill along the potential, so there is no circle in it. From the top down each peer adds what it has
too much to what arrives, keeps what it lacks, and passes the rest on; what arrives is remembered by where it came from,
first come first kept.

What can be moved is whole leases, and a move must pay: what is moved would end later where it is than where it goes,
the way included.

Refuses to know: tasks, links.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from p2pcompute.model.errors import UsageError
from p2pcompute.topology.balance import BalanceSettings, Flow, balancing_flow, should_balance, spread, surplus
from p2pcompute.topology.graph import Floats, Graph, Weights, graph_of

#: Parcels below this share of all work on the move are rounding errors.
PARCEL_SHARE_MIN = 1e-9


@dataclass(frozen=True, slots=True)
class Move:
    """`amount` units of work from node `source` to node `target`."""

    source: int
    target: int
    amount: float


@dataclass(frozen=True, slots=True)
class LeaseMove:
    """`leases` leases from node `source` to node `target`."""

    source: int
    target: int
    leases: int


def decompose(graph: Graph, flow: Flow, surplus_of: Floats) -> tuple[Move, ...]:
    """Direct moves that do what `flow` does, in the order of their sources; no source gives more than its surplus."""
    total = float(np.abs(surplus_of).sum())
    least = PARCEL_SHARE_MIN * total
    outgoing: list[list[tuple[int, float]]] = [[] for _ in range(graph.size)]
    for one, other, amount in zip(graph.one.tolist(), graph.other.tolist(), flow.amount.tolist(), strict=True):
        if amount > least:
            outgoing[one].append((other, amount))
        elif -amount > least:
            outgoing[other].append((one, -amount))
    parcels: list[deque[tuple[int, float]]] = [deque() for _ in range(graph.size)]
    moved: dict[tuple[int, int], float] = {}
    for node in np.argsort(-flow.potential, kind="stable").tolist():
        own = float(surplus_of[node])
        if own > least:
            parcels[node].append((node, own))
        elif own < -least:
            for source, amount in _taken(parcels[node], -own, least):
                moved[source, node] = moved.get((source, node), 0.0) + amount
        for target, amount in outgoing[node]:
            parcels[target].extend(_taken(parcels[node], amount, least))
    return tuple(Move(source, target, moved[source, target]) for source, target in sorted(moved))


def whole_leases(moves: Sequence[Move], lease_work: float) -> tuple[LeaseMove, ...]:
    """The same in whole leases of `lease_work` units. What one move of a source falls short of a lease is added to its
    next one, so no source gives more than its moves say, and less than one lease of it stays. Raises UsageError."""
    if not (lease_work > 0 and math.isfinite(lease_work)):
        raise UsageError(f"a lease of {lease_work} units of work: it must be finite and above 0")
    owed: dict[int, float] = {}
    found = []
    for move in moves:
        due = owed.get(move.source, 0.0) + move.amount
        # A rounding error below a whole number is that number.
        leases = math.floor(due / lease_work + 1e-9)
        owed[move.source] = max(due - leases * lease_work, 0.0)
        if leases:
            found.append(LeaseMove(move.source, move.target, leases))
    return tuple(found)


def pays(source_s: float, target_s: float, moving_s: float, settings: BalanceSettings | None = None) -> bool:
    """Whether work that would end in `source_s` seconds where it is should go where it would end in `target_s`, the
    move itself taking `moving_s` seconds of links and peers: the gain must be `gain_factor` times the cost."""
    chosen = settings or BalanceSettings()
    return source_s - target_s > chosen.gain_factor * moving_s


def rebalance(
    weights: Weights,
    work: Floats,
    capacity: Floats,
    moving_s: Callable[[Move], float],
    *,
    is_balancing: bool = False,
    settings: BalanceSettings | None = None,
) -> tuple[Move, ...]:
    """The moves worth making now, none where loads are even enough. `moving_s` says what a move costs: bytes over
    throughput and a round trip, seconds.

    `work`, `capacity`: as for `surplus`; `is_balancing`: whether moves were made the last time. Raises UsageError.
    """
    graph = graph_of(weights)
    if not should_balance(spread(work, capacity), is_balancing, settings):
        return ()
    over = surplus(graph, work, capacity)
    moves = decompose(graph, balancing_flow(graph, over), over)
    arriving = np.zeros(graph.size)
    for move in moves:
        arriving[move.target] += move.amount
    with np.errstate(divide="ignore", invalid="ignore"):
        # Work where nothing is computed never ends.
        now_s = np.where(capacity > 0, work / capacity, np.where(work > 0, np.inf, 0.0))
        then_s = np.where(capacity > 0, (work + arriving) / capacity, np.inf)
    return tuple(
        move for move in moves if pays(float(now_s[move.source]), float(then_s[move.target]), moving_s(move), settings)
    )


def _taken(parcels: deque[tuple[int, float]], wanted: float, least: float) -> list[tuple[int, float]]:
    """So much from the front, as far as there is any; the last parcel is split."""
    taken = []
    while parcels and wanted > least:
        source, amount = parcels.popleft()
        if amount > wanted + least:
            parcels.appendleft((source, amount - wanted))
            amount = wanted
        taken.append((source, amount))
        wanted -= amount
    return taken
