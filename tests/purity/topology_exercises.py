"""Exercises of the spectral part: small networks (dense) and large ones (sparse), elections and flows, with the world switched off."""

from __future__ import annotations

import random

import numpy as np

# SciPy is imported when it is first needed, from disk: what is exercised is what runs then.
import scipy.sparse.linalg

from p2pcompute.membership.agreement import AgreedEdge
from p2pcompute.model.ids import PeerId
from p2pcompute.topology.election import Candidate
from p2pcompute.topology.fiedler import spectrum
from p2pcompute.topology.graph import graph_of_edges
from p2pcompute.topology.moves import Move, rebalance, whole_leases
from p2pcompute.topology.shape import NetworkShape, analyse

assert scipy.sparse.linalg.eigsh


def _shape(rng: random.Random, sites: int, per_site: int, previous: NetworkShape | None = None) -> NetworkShape:
    peers = [PeerId(number.to_bytes(32, "big")) for number in range(sites * per_site)]
    crowd = [Candidate(peer, rng.uniform(10, 90), rng.uniform(0.5, 1)) for peer in peers]
    links = {}
    for one in range(len(peers)):
        mates = [one // per_site * per_site + rng.randrange(0, per_site) for _ in range(4)]
        for other in (*mates, rng.randrange(0, len(peers))):
            if other != one:
                near = one // per_site == other // per_site
                pair = (min(one, other), max(one, other))
                links[pair] = AgreedEdge(
                    peers[pair[0]], peers[pair[1]], rng.uniform(3e-4, 2e-3) if near else 0.05, None
                )
    return analyse(crowd, list(links.values()), (), previous)


def shapes(rng: random.Random) -> object:
    """Shapes of 40 and of 600 peers, the latter cold and from the last one."""
    found = [_shape(rng, 4, 10)]
    found.append(_shape(rng, 12, 50))
    found.append(_shape(rng, 12, 50, found[-1]))
    # A star ends Lanczos at once, which then goes on from what it draws: from a seed of ours, never from the machine.
    size = 600
    star = graph_of_edges(size, np.zeros(size - 1, dtype=np.int64), np.arange(1, size), np.ones(size - 1))
    return [spectrum(star).vectors.tolist(), _told(found)]


def _told(shapes: list[NetworkShape]) -> object:
    return [(each.key_nodes, each.labels.tolist(), each.shares.tolist(), each.vectors.tolist()) for each in shapes]


def flows(rng: random.Random) -> object:
    """Moves in a small and a large network."""
    seen = []
    for graph in (_shape(rng, 3, 8).adjacency.graph, _shape(rng, 12, 50).adjacency.graph):
        work = np.array([rng.expovariate(0.1) for _ in range(graph.size)])

        def cost_s(move: Move) -> float:
            return 0.01

        seen.append(whole_leases(rebalance(graph, work, np.ones(graph.size), cost_s), 0.1))
    return seen
