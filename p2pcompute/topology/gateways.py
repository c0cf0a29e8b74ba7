"""Gateways: how much of the connectivity between communities runs through each peer.

The quotient graph Q has one node for each community and sums affinities; u is its Fiedler vector, c(i) the community of
i. As in `fiedler.py`, but with what is within communities left out,

    s_i = Σ_{j not in c(i)} w_ij (u_c(i) - u_c(j))² / (2 λ2(Q)),   Σ s_i = 1,

with the projection onto the whole eigenspace where λ2(Q) repeats. A slow peer has weak edges to other communities,
whatever it does to the eigenvectors of its own: the best connected peer of a site has the largest share. Sums run over
all pairs; those that were not measured are as the access lines say (`access.py`).

Refuses to know: capability, elections.
"""

from __future__ import annotations

import numpy as np

from p2pcompute.topology.access import WaysOut, ways_out
from p2pcompute.topology.fiedler import connected_basis
from p2pcompute.topology.graph import (
    Bools,
    Floats,
    Graph,
    Ints,
    Weights,
    components,
    graph_of,
    graph_of_edges,
    numbered,
    part,
    quotient,
    summed,
)


def gateway_shares(weights: Weights, labels: Ints, *, estimated: Bools | None = None) -> Floats:
    """(n,) s_i, sum 1; equal ones where there is one community.

    `labels`: (n,) 0, 1, ..., as `communities` gives them; `estimated`: (m,) edges of a graph that nobody measured: they
    hold Q together, but no share comes from them. Components count on their own, each weighted by its part of the
    nodes. Raises UsageError.
    """
    graph = graph_of(weights)
    measured = np.ones(graph.weight.size, dtype=np.bool_) if estimated is None else ~estimated
    shares = np.full(graph.size, 1.0 / max(graph.size, 1))
    roots = components(graph)
    across = labels[graph.one] != labels[graph.other]
    for root in np.unique(roots[graph.one[across]]):
        nodes = np.flatnonzero(roots == root)
        within = roots[graph.one] == root
        own = _connected_shares(part(graph, nodes), numbered(labels[nodes]), measured[within])
        shares[nodes] = own * (nodes.size / graph.size)
    return shares


def _connected_shares(graph: Graph, labels: Ints, measured: Bools) -> Floats:
    """The same of one component with more than one community."""
    ways = ways_out(graph, labels, measured)
    basis = connected_basis(_between(graph, labels, measured, ways))
    apart = basis[labels[ways.peer]] - basis[ways.there]
    raw = np.bincount(ways.peer, ways.affinity * np.einsum("ij,ij->i", apart, apart), minlength=graph.size)
    total = float(raw.sum())
    return raw / total if total > 0.0 else np.full(graph.size, 1.0 / graph.size)


def _between(graph: Graph, labels: Ints, measured: Bools, ways: WaysOut) -> Graph:
    """Q: affinities over all pairs of peers; communities that only estimates join keep their weight."""
    guessed = Graph(graph.size, graph.one[~measured], graph.other[~measured], graph.weight[~measured])
    bridges = quotient(guessed, labels)
    count = int(labels.max()) + 1
    bridges = Graph(count, bridges.one, bridges.other, bridges.weight)
    here = labels[ways.peer]
    low = np.concatenate((np.minimum(here, ways.there), bridges.one))
    high = np.concatenate((np.maximum(here, ways.there), bridges.other))
    # Both sides of a pair tell the same sum, up to what was estimated: their mean.
    weight = np.concatenate((0.5 * ways.affinity, bridges.weight))
    pairs, inverse = np.unique(low * count + high, return_inverse=True)
    return graph_of_edges(count, pairs // count, pairs % count, summed(inverse.reshape(-1), weight, pairs.size))
