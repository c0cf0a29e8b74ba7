"""The Fiedler pair of a whole network, and each peer's share of it: the textbook quantities.

L = D - W is positive semidefinite, its lowest eigenvalue is 0 with the constant vector, and the second, λ2, is positive
exactly where the graph is connected (Fiedler, "Algebraic connectivity of graphs", 1973). The sign of v_i, of λ2's unit
vector v, says on which side of the weakest cut peer i is. Its size does not say how central i is but the reverse: on a
path the ends score highest. What does: λ2 is the sum over edges of w_ij (v_i - v_j)², and (v_i - v_j)² is how much λ2
grows with w_ij, so

    s_i = Σ_j w_ij (v_i - v_j)² / (2 λ2),   s_i ≥ 0,   Σ s_i = 1

is how much of the network's connectivity runs through i. One slow peer hijacks all of it (the weakest cut is that peer
alone, and s = 0.5 for it), so nothing is decided by these figures: that is `partition.py` and `gateways.py`.

Where λ2 repeats (a complete graph, a star, a ring) no single vector is the answer. Then (v_i - v_j)² is replaced by the
squared distance of rows i and j of an orthonormal basis of the whole eigenspace, which every basis gives alike, and 2
λ2 by what makes the sum 1.

Refuses to know: peers, elections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2pcompute.model import limits
from p2pcompute.topology.graph import Floats, Graph, Ints, Weights, components, graph_of, node_sums, part, summed
from p2pcompute.topology.solvers import lowest_of_laplacian

#: Eigenvalues that differ by less than this share are one, repeated: beyond, a change of weights by as much turns the
#: vectors.
REPEAT_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """`lambda2`: algebraic connectivity, 0 exactly where the graph is disconnected or has fewer than two nodes.
    `vector`: (n,) the Fiedler vector, of norm 1, sign pinned by the lowest node. `shares`: (n,) s_i, sum 1.
    `values`: (k,) λ2, λ3, ...; `vectors`: (n, k) their orthonormal vectors, the first of which is `vector`.
    `repeats`: how often λ2 occurs (of a disconnected graph: components less one). `components`: how many there are.
    """

    lambda2: float
    vector: Floats
    shares: Floats
    values: Floats
    vectors: Floats
    repeats: int
    components: int


def spectrum(weights: Weights, *, count: int = 2, warm: Floats | None = None) -> Spectrum:
    """λ2, its vector and the shares of `weights`; the first `count` vectors, fewer where the graph has fewer nodes.

    `warm`: `vectors` of a graph that was nearly the same, rows in the same order: faster, not different. Raises
    UsageError where `weights` is no matrix of affinities. No node: empty arrays. One: vector 0, share 1. A disconnected
    graph: λ2 = 0; its null vectors come first, each telling one component from those after it; the shares are those of
    the components on their own, each weighted by its part of the nodes. Above `limits.DENSE_PEERS_MAX` nodes at most
    `limits.REPEATED_VECTORS_MAX` equal eigenvalues are told apart.
    """
    graph = graph_of(weights)
    roots = components(graph)
    lowest = np.unique(roots)
    if lowest.size > 1:
        return _of_components(graph, roots, lowest, count)
    values, vectors, shares = _of_connected(graph, count, warm)
    kept = min(count, max(graph.size - 1, 0))
    repeats = repeated(values, graph) if values.size else 0
    vector = vectors[:, 0] if values.size else np.zeros(graph.size)
    lambda2 = float(values[0]) if values.size else 0.0
    return Spectrum(lambda2, vector, shares, values[:kept], vectors[:, :kept], repeats, int(lowest.size))


def connected_basis(graph: Graph) -> Floats:
    """(n, r) an orthonormal basis of the eigenspace of λ2 of a connected graph with at least two nodes."""
    values, vectors, _ = _of_connected(graph, 1, None)
    return vectors[:, : repeated(values, graph)]


def shares_between(graph: Graph, basis: Floats) -> Floats:
    """(n,) s_i from an orthonormal basis (n, r) of the eigenspace of λ2; equal shares where no edge tells anything."""
    apart = basis[graph.one] - basis[graph.other]
    raw = node_sums(graph, graph.weight * np.einsum("ij,ij->i", apart, apart))
    total = float(raw.sum())
    if total > 0.0:
        return raw / total
    return np.full(graph.size, 1.0 / graph.size) if graph.size else raw


def repeated(values: Floats, graph: Graph) -> int:
    """How many of `values` (ascending, from λ2 on) are λ2."""
    rounding = 1e-12 * 2.0 * float(graph.degree.max(initial=0.0))
    return int(np.count_nonzero(values <= values[0] * (1.0 + REPEAT_TOLERANCE) + rounding))


def pinned(vectors: Floats) -> Floats:
    """Each column with the sign that makes its first entry positive; entries below a millionth of the largest are 0 for
    that."""
    large = np.abs(vectors) > 1e-6 * np.abs(vectors).max(axis=0, initial=0.0)
    first = np.argmax(large, axis=0)
    signs = np.sign(vectors[first, np.arange(vectors.shape[1])])
    return vectors * np.where(signs == 0, 1.0, signs)


def _of_connected(graph: Graph, count: int, warm: Floats | None) -> tuple[Floats, Floats, Floats]:
    """Values and vectors, at least as many as λ2 repeats (within the limit), and shares."""
    if graph.size < 2:
        return np.zeros(0), np.zeros((graph.size, 0)), np.ones(graph.size)
    if graph.size <= limits.DENSE_PEERS_MAX:
        vectors = lowest_of_laplacian(graph, graph.size - 1).vectors
    else:
        vectors = _of_large(graph, count, warm)
    vectors = pinned(vectors)
    values = _rayleigh(graph, vectors)
    return values, vectors, shares_between(graph, vectors[:, : repeated(values, graph)])


def _of_large(graph: Graph, count: int, warm: Floats | None) -> Floats:
    """The lowest vectors of a large graph, all of λ2 among them (within the limit)."""
    count = max(count, 2)
    vectors = lowest_of_laplacian(graph, count, warm).vectors
    if not may_be_symmetric(graph):
        return vectors
    # An eigenvalue is repeated by symmetry, and Lanczos finds one vector of it at a time.
    while vectors.shape[1] < limits.REPEATED_VECTORS_MAX:
        more = lowest_of_laplacian(graph, count, besides=vectors)
        values = _rayleigh(graph, vectors)
        more_values = _rayleigh(graph, more.vectors)
        order = np.argsort(np.concatenate((values, more_values)), kind="stable")
        vectors = np.concatenate((vectors, more.vectors), axis=1)[:, order]
        if more_values[0] > values[0] * (1.0 + REPEAT_TOLERANCE):
            break
    return vectors


def may_be_symmetric(graph: Graph) -> bool:
    """Whether two nodes look alike by their degree and the weighted degrees around them, as any two must that a
    symmetry exchanges."""
    degree = graph.degree
    scale = max(float(degree.max(initial=0.0)), 1e-300)
    rounded = np.round(degree / scale, 12)
    ascending = np.sort(rounded)
    if not (ascending[1:] == ascending[:-1]).any():
        return False
    ends = np.concatenate((graph.one, graph.other))
    beyond = np.concatenate((degree[graph.other], degree[graph.one])) * np.tile(graph.weight, 2)
    around = np.round(summed(ends, beyond, graph.size) / scale**2, 12)
    return int(np.unique(np.stack((rounded, around), axis=1), axis=0).shape[0]) < graph.size


def _rayleigh(graph: Graph, vectors: Floats) -> Floats:
    """Σ w_ij (v_i - v_j)² of each column: positive where solvers return rounding errors around 0."""
    apart = vectors[graph.one] - vectors[graph.other]
    return np.asarray(graph.weight @ (apart * apart), dtype=np.float64)


def _of_components(graph: Graph, roots: Ints, lowest: Ints, count: int) -> Spectrum:
    """The null vectors that tell components apart, then the vectors of the components, ascending by value."""
    kept = min(count, graph.size - 1)
    columns = list(_null_vectors(roots, lowest, kept).T)
    values = [0.0] * len(columns)
    found: list[tuple[float, int, Floats]] = []
    shares = np.full(graph.size, 1.0 / graph.size)
    sizes = np.bincount(roots, minlength=graph.size)
    for root in np.flatnonzero(sizes > 1):
        nodes = np.flatnonzero(roots == root)
        own_values, own_vectors, own_shares = _of_connected(part(graph, nodes), kept, None)
        shares[nodes] = own_shares * (nodes.size / graph.size)
        for place in range(min(kept - len(columns), own_values.size)):
            vector = np.zeros(graph.size)
            vector[nodes] = own_vectors[:, place]
            found.append((float(own_values[place]), int(root), vector))
    found.sort(key=lambda row: row[:2])
    for value, _, vector in found[: kept - len(columns)]:
        columns.append(vector)
        values.append(value)
    vectors = np.stack(columns, axis=1)
    return Spectrum(0.0, vectors[:, 0], shares, np.array(values), vectors, int(lowest.size) - 1, int(lowest.size))


def _null_vectors(roots: Ints, lowest: Ints, kept: int) -> Floats:
    """(n, at most kept): column k is positive on the k-th component, negative on those after it, 0 on those before."""
    number = np.searchsorted(lowest, roots)
    sizes = np.bincount(number)
    columns = []
    for k in range(min(kept, lowest.size - 1)):
        after = float(sizes[k + 1 :].sum())
        column = np.where(number == k, 1.0 / sizes[k], np.where(number > k, -1.0 / after, 0.0))
        columns.append(column / np.linalg.norm(column))
    return np.stack(columns, axis=1)
