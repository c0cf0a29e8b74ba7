"""The network as a weighted graph: what every formula of this room computes on.

Owns the one representation, a list of edges, and what follows from it alone: degrees, components, parts, matrices. Rows
are numbered 0 to n - 1 in the order of the peers' ids; who is who is known to `affinity.py`. Weights are affinities:
positive, larger is nearer, 0 means no edge.

Rules: a graph is checked once, when it is made, and never changes. Up to `limits.DENSE_PEERS_MAX` peers matrices are
dense and SciPy is not even imported (0.4 s and 30 MB that a small network need not pay); above they are sparse.

Refuses to know: peers, round trips, eigenvectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from p2pcompute.model.errors import UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: Two entries of a matrix that should be equal may differ by this share of its largest: what float32 loses.
SYMMETRY_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """An undirected graph of `size` nodes. `one`, `other`: (m,) ends of the edges, one < other, ascending by (one,
    other), no pair twice; `weight`: (m,) positive and finite. Make it with `graph_of` or `graph_of_edges`, which check
    that."""

    size: int
    one: Ints
    other: Ints
    weight: Floats

    @property
    def degree(self) -> Floats:
        """(n,) the sum of the weights at each node: the diagonal D of L = D - W."""
        return node_sums(self, self.weight)


#: What the public functions of this room take: a dense or sparse symmetric (n, n) matrix of affinities, or a graph.
Weights: TypeAlias = "Floats | csr_array | Graph"


def graph_of(weights: Weights) -> Graph:
    """The graph of a matrix of affinities.

    `weights`: (n, n), symmetric, non-negative, finite, ndarray or scipy.sparse; the diagonal is ignored. Raises
    UsageError, which names the first entry that is wrong.
    """
    if isinstance(weights, Graph):
        return weights
    if isinstance(weights, np.ndarray):
        _check_shape(weights.shape)
        dense = np.asarray(weights, dtype=np.float64)
        rows, columns = np.nonzero(dense)
        values = dense[rows, columns]
    else:
        coordinates = weights.tocoo()
        _check_shape(coordinates.shape)
        coordinates.sum_duplicates()
        rows, columns = (np.asarray(each, dtype=np.int64) for each in (coordinates.row, coordinates.col))
        values = np.asarray(coordinates.data, dtype=np.float64)
        # Stored zeros are no edges.
        rows, columns, values = (each[values != 0] for each in (rows, columns, values))
    _check_values(rows, columns, values)
    size = int(weights.shape[0])
    upper, lower = rows < columns, rows > columns
    above = _sorted(rows[upper], columns[upper], values[upper], size)
    below = _sorted(columns[lower], rows[lower], values[lower], size)
    _check_symmetry(above, below)
    return Graph(size, *above)


def graph_of_edges(size: int, one: Ints, other: Ints, weight: Floats) -> Graph:
    """The graph with these edges, each given once in either direction; weights of 0 are no edges. Raises UsageError."""
    low, high = np.minimum(one, other), np.maximum(one, other)
    weight = np.asarray(weight, dtype=np.float64)
    _check_values(low, high, weight)
    if low.size and (int(low.min()) < 0 or int(high.max()) >= size):
        raise UsageError(f"an edge leads to a node that is not among the {size}: number them from 0 to {size - 1}")
    kept = (weight > 0) & (low != high)
    ends = _sorted(low[kept].astype(np.int64), high[kept].astype(np.int64), weight[kept], size)
    twice = (np.diff(ends[0]) == 0) & (np.diff(ends[1]) == 0)
    if twice.any():
        at = int(np.argmax(twice))
        raise UsageError(f"the edge between {ends[0][at]} and {ends[1][at]} is given twice: give each pair once")
    return Graph(size, *ends)


def summed(keys: Ints, values: Floats, count: int) -> Floats:
    """(count,) for each key 0 ... count - 1 the sum of its `values`."""
    return np.bincount(keys, values, minlength=count).astype(np.float64, copy=False)


def node_sums(graph: Graph, values: Floats) -> Floats:
    """(n,) for each node the sum over its edges of `values` (m,)."""
    ends = np.concatenate((graph.one, graph.other))
    return summed(ends, np.concatenate((values, values)), graph.size)


def dense_weights(graph: Graph) -> Floats:
    """W: (n, n), symmetric, zero diagonal."""
    matrix = np.zeros((graph.size, graph.size))
    matrix[graph.one, graph.other] = graph.weight
    matrix[graph.other, graph.one] = graph.weight
    return matrix


def laplacian(graph: Graph) -> Floats:
    """L = D - W: (n, n), symmetric, positive semidefinite, every row sums to 0."""
    matrix = -dense_weights(graph)
    np.fill_diagonal(matrix, graph.degree)
    return matrix


def normalised_laplacian(graph: Graph) -> Floats:
    """I - D^-1/2 W D^-1/2: (n, n), symmetric, eigenvalues 0 to 2. A node without edges has a row of zeros."""
    roots = inverse_roots(graph)
    # The outer product first: it is symmetric to the last bit.
    matrix = -dense_weights(graph) * np.outer(roots, roots)
    np.fill_diagonal(matrix, np.where(roots > 0, 1.0, 0.0))
    return matrix


def sparse_weights(graph: Graph) -> csr_array:
    """W as a scipy.sparse matrix by rows."""
    from scipy.sparse import coo_array

    rows = np.concatenate((graph.one, graph.other))
    columns = np.concatenate((graph.other, graph.one))
    values = np.concatenate((graph.weight, graph.weight))
    return coo_array((values, (rows, columns)), shape=(graph.size, graph.size)).tocsr()


def inverse_roots(graph: Graph) -> Floats:
    """(n,) 1 / sqrt(degree); 0 where a node has no edge."""
    degree = graph.degree
    return np.where(degree > 0, 1.0 / np.sqrt(np.where(degree > 0, degree, 1.0)), 0.0)


def components(graph: Graph) -> Ints:
    """(n,) for each node the lowest node that it is connected with.

    Roots hook onto lower roots, then all paths are halved, until nothing moves: a few rounds of vectors (after Shiloach
    and Vishkin, "An O(log n) parallel connectivity algorithm", 1982).
    """
    root = np.arange(graph.size)
    while True:
        one, other = root[graph.one], root[graph.other]
        apart = one != other
        if not apart.any():
            return root
        np.minimum.at(root, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
        while not np.array_equal(root, root[root]):
            root = root[root]


def numbered(labels: Ints) -> Ints:
    """The same parts, numbered from 0 in the order of their lowest nodes."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(first.size, dtype=np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    return rank[inverse.reshape(-1)]


def part(graph: Graph, nodes: Ints) -> Graph:
    """The graph of `nodes` (ascending) and of the edges among them; its node k is `nodes[k]`."""
    place = np.full(graph.size, -1, dtype=np.int64)
    place[nodes] = np.arange(nodes.size)
    one, other = place[graph.one], place[graph.other]
    inside = (one >= 0) & (other >= 0)
    return Graph(int(nodes.size), one[inside], other[inside], graph.weight[inside])


def quotient(graph: Graph, labels: Ints) -> Graph:
    """One node for each label (0, 1, ...), affinities summed; what is within a label vanishes."""
    count = int(labels.max()) + 1 if labels.size else 0
    one, other = labels[graph.one], labels[graph.other]
    across = one != other
    keys = np.minimum(one, other)[across] * count + np.maximum(one, other)[across]
    pairs, inverse = np.unique(keys, return_inverse=True)
    weight = summed(inverse.reshape(-1), graph.weight[across], pairs.size)
    return Graph(count, pairs // max(count, 1), pairs % max(count, 1), weight)


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise UsageError(f"affinities are a square matrix, this one has the shape {shape}: one row and column a peer")


def _check_values(rows: Ints, columns: Ints, values: Floats) -> None:
    wrong = ~np.isfinite(values) | (values < 0)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UsageError(
            f"the affinity of {rows[at]} and {columns[at]} is {values[at]}: it must be finite and not negative; leave pairs out that were not measured"
        )


def _check_symmetry(above: tuple[Ints, Ints, Floats], below: tuple[Ints, Ints, Floats]) -> None:
    same_pairs = np.array_equal(above[0], below[0]) and np.array_equal(above[1], below[1])
    tolerance = SYMMETRY_TOLERANCE * float(above[2].max(initial=0.0))
    if not same_pairs or bool((np.abs(above[2] - below[2]) > tolerance).any()):
        raise UsageError("affinities must be symmetric: take the weaker of what both ends measured")


def _sorted(one: Ints, other: Ints, weight: Floats, size: int) -> tuple[Ints, Ints, Floats]:
    order = np.argsort(one * size + other, kind="stable")
    return one[order], other[order], weight[order]
