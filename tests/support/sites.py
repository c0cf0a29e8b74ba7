"""Made-up networks of sites for the spectral part, and what the peers in them would publish of their links."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pcompute.membership.agreement import agreed_edges, fill_in
from p2pcompute.membership.edges import select_edges
from p2pcompute.model.capability import Capability
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import (
    DEFAULT_ROLES,
    Coordinate,
    Edge,
    Isolation,
    PeerEntry,
    PeerRecord,
    PeerStatus,
    PeerView,
)
from p2pcompute.topology.shape import NetworkShape, analyse, candidates_of
from tests.support.membership import NETWORK
from tests.support.round_trips import peer_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: When all records of these networks were made, and what time it is, seconds.
STARTED_S, WALL_S = 1_700_000_000.0, 1_700_090_000.0


@dataclass(frozen=True)
class Sites:
    """Rows in the order of `peers`, which ascend. `site`: (n,) where each is; `access_ms`: (n,) what its own line adds
    to every way out of its site; `rtt_ms`: (n, n) true round trips."""

    peers: tuple[PeerId, ...]
    site: Ints
    access_ms: Floats
    rtt_ms: Floats
    #: Row of the slow peer, none or one.
    slow: tuple[int, ...] = ()

    @property
    def weights(self) -> Floats:
        """(n, n) 1 / (1 + ms), all pairs."""
        weights = 1.0 / (1.0 + self.rtt_ms)
        np.fill_diagonal(weights, 0.0)
        return weights

    def best_of(self, place: int) -> int:
        """Row of the best connected peer of a site."""
        rows = np.setdiff1d(np.flatnonzero(self.site == place), np.array(self.slow, dtype=np.int64))
        return int(rows[np.argmin(self.access_ms[rows])])


def sites(count: int, per_site: int, seed: int, *, slow: bool = False) -> Sites:
    """`count` places of `per_site` peers 5 to 80 ms apart, 0.3 to 2 ms within, access lines around 12 ms (log-normal).

    `slow`: one more peer at site 0, 200 ms from everybody.
    """
    rng = np.random.default_rng(seed)
    total = count * per_site + slow
    site = np.repeat(np.arange(count), per_site)
    if slow:
        site = np.append(site, 0)
    access = rng.lognormal(np.log(12), 0.9, total)
    core = rng.uniform(5, 80, (count, count))
    core = (core + core.T) / 2
    lan = rng.uniform(0.3, 2, (total, total))
    lan = (lan + lan.T) / 2
    rtt = np.where(site[:, None] == site[None], lan, core[site][:, site] + access[:, None] + access[None])
    if slow:
        access[-1] = 200.0
        rtt[-1, :] = rtt[:, -1] = np.maximum(rtt[-1], 200.0)
    np.fill_diagonal(rtt, 0.0)
    names = [peer_of(10_000 * seed + number) for number in range(total)]
    order = np.array(sorted(range(total), key=lambda number: names[number]))
    slow_row = (int(np.flatnonzero(order == total - 1)[0]),) if slow else ()
    return Sites(tuple(names[row] for row in order), site[order], access[order], rtt[np.ix_(order, order)], slow_row)


def is_right(found: Ints, true: Ints, *, but: Sequence[int] = ()) -> bool:
    """Whether two peers have one label exactly where they are at one site; rows `but` are not looked at."""
    kept = np.setdiff1d(np.arange(true.size), np.array(but, dtype=np.int64))
    found, true = found[kept], true[kept]
    return bool(((found[:, None] == found[None]) == (true[:, None] == true[None])).all())


def record_of(
    peer: PeerId, edges: Sequence[Edge] = (), coordinate: Coordinate | None = None, cores: int = 8
) -> PeerRecord:
    """The record of a peer that lends `cores` cores and has been up for a day."""
    return PeerRecord(
        peer, NETWORK, int(STARTED_S * 1000), 0, "peer", (), Capability(cores, 3000.0, 0.5, 16.0, 8.0), cores, 0.0, DEFAULT_ROLES,
        Isolation.PROCESS, "3.11", "linux", "0", edges=tuple(edges), coordinate=coordinate,
    )  # fmt: skip


def view_of(records: Sequence[PeerRecord], own: int = 0) -> PeerView:
    """The view of the peer of `records[own]`."""
    rows = [PeerEntry(record, PeerStatus.ALIVE, 0.0) for place, record in enumerate(records) if place != own]
    return PeerView(records[own], tuple(sorted(rows, key=lambda row: row.record.peer)), 1)


def published(
    world: Sites, *, noise: float = 0.0, coordinates: Mapping[PeerId, Coordinate] | None = None, seed: int = 0
) -> list[PeerRecord]:
    """What each peer publishes: the edges that it really selects, after three rounds of measuring with `noise` of
    exponential queueing."""
    rng = random.Random(seed)
    known = coordinates or {}
    listed: list[tuple[Edge, ...]] = [()] * len(world.peers)
    for _ in range(3):
        for one, peer in enumerate(world.peers):
            measured = [
                Edge(other, world.rtt_ms[one, place] / 1000.0 * (1.0 + (rng.expovariate(1 / noise) if noise else 0.0)))
                for place, other in enumerate(world.peers)
                if place != one
            ]
            listed[one] = select_edges(peer, measured, known, world.peers, listed[one])
    return [record_of(peer, edges, known.get(peer)) for peer, edges in zip(world.peers, listed, strict=True)]


def shape_of(view: PeerView, previous: NetworkShape | None = None, leaders: Sequence[PeerId] = ()) -> NetworkShape:
    """As a node composes it."""
    agreed = agreed_edges(view)
    return analyse(candidates_of(view, WALL_S, leaders), agreed, fill_in(view, agreed), previous)
