"""Communities: parts of the network whose peers are nearer to each other than to the rest.

Recursive bisection by the best conductance sweep (`cuts.py`) over the lowest vectors of the normalised Laplacian, whose
cuts weigh volumes and so cannot be hijacked by one slow peer; a part is left whole when its best cut exceeds `stop`.
Then parts of fewer than `size_min` peers join their nearest.

A cut at the border of `stop` would come and go with the noise. So a cut between two parts that both have a leader, as
their own records claim, may be thicker by `settled_factor`: what is in the records is the same for everybody, so equal
views still give equal answers.

Large parts are cut along the `limits.CUTTING_VECTORS` lowest vectors, found roughly once and used again for the parts
of the part: the best direction within their span is found by Rayleigh and Ritz. So a network of hundreds of sites costs
a few solutions, not hundreds.

Refuses to know: peers' names, elections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2pcompute.model import limits
from p2pcompute.topology.cuts import best_cut
from p2pcompute.topology.graph import (
    Bools,
    Floats,
    Graph,
    Ints,
    Weights,
    components,
    graph_of,
    inverse_roots,
    numbered,
    part,
    summed,
)
from p2pcompute.topology.solvers import lowest_of_normalised


@dataclass(frozen=True, slots=True)
class CommunitySettings:
    """When a part is cut; the defaults are the product's."""

    #: Conductance above which a cut is none. Sites are found alike from 0.1 to 0.4.
    stop: float = 0.3
    #: Fewer peers are no community: they join their nearest.
    size_min: int = 3
    #: How much thicker a cut may be that stands: the same fifth by which a challenger must beat a leader.
    settled_factor: float = 1.2
    #: Vectors of a small part along which cuts are looked for: the lowest one, and those that a sample of edges may put
    #: before it.
    vectors: int = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Nodes (ascending) still to be looked at, and rough vectors of a part that they were cut from, or None."""

    nodes: Ints
    basis: Floats | None


def communities(
    weights: Weights,
    settings: CommunitySettings | None = None,
    *,
    leads: Bools | None = None,
    basis: Floats | None = None,
) -> Ints:
    """(n,) the community of each node: 0, 1, ... in the order of their lowest nodes.

    `leads`: (n,) which peers claim to lead a community; `basis`: (n, k) columns D^-1/2 u of the whole graph, if they
    are known already. Components are cut apart from the start. Raises UsageError where `weights` is no matrix of
    affinities.
    """
    chosen = settings or CommunitySettings()
    graph = graph_of(weights)
    claimed = leads if leads is not None else np.zeros(graph.size, dtype=np.bool_)
    roots = components(graph)
    labels = _cut_up(graph, roots, claimed, chosen, basis)
    return numbered(_without_small(graph, labels, chosen))


# --- cutting ----------------------------------------------------------------------------------------------------------


def _cut_up(graph: Graph, roots: Ints, claimed: Bools, settings: CommunitySettings, basis: Floats | None) -> Ints:
    labels = np.zeros(graph.size, dtype=np.int64)
    waiting = [_Part(nodes, None if basis is None else basis[nodes]) for nodes in _groups(roots)]
    done = 0
    while waiting:
        piece = waiting.pop()
        halves = _halves(graph, piece, claimed, settings)
        if halves is None:
            labels[piece.nodes] = done
            done += 1
        else:
            waiting += halves
    return labels


def _halves(graph: Graph, piece: _Part, claimed: Bools, settings: CommunitySettings) -> list[_Part] | None:
    """The parts of a part, None where it is one community."""
    nodes = piece.nodes
    if nodes.size < 2 * settings.size_min:
        return None
    inner = part(graph, nodes)
    roots = components(inner)
    if roots.any():
        return [_Part(nodes[group], None if piece.basis is None else piece.basis[group]) for group in _groups(roots)]
    tries = [piece.basis, None] if piece.basis is not None and nodes.size > limits.DENSE_PEERS_MAX else [None]
    for known in tries:
        basis = cutting_basis(inner, settings.vectors) if known is None else known
        candidates = basis if known is None else _ritz(inner, basis, settings.vectors)
        orders = [np.argsort(column, kind="stable") for column in candidates.T]
        cuts = [best_cut(inner, order) for order in orders]
        best = min(range(len(cuts)), key=lambda place: (cuts[place].score, place))
        first = np.zeros(inner.size, dtype=np.bool_)
        first[orders[best][: cuts[best].count]] = True
        if cuts[best].score <= _stop(claimed[nodes[first]], claimed[nodes[~first]], settings):
            return [_Part(nodes[side], basis[side]) for side in (~first, first)]
    return None


def cutting_basis(graph: Graph, count: int) -> Floats:
    """(n, k) columns D^-1/2 u of the lowest vectors u of the normalised Laplacian of a connected graph.

    k is `count` in a small graph and `limits.CUTTING_VECTORS` in a large one, whose vectors are rough.
    """
    if graph.size > limits.DENSE_PEERS_MAX:
        count = max(count, limits.CUTTING_VECTORS)
    pairs = lowest_of_normalised(graph, min(count, graph.size - 1))
    return pairs.vectors * inverse_roots(graph)[:, None]


def _ritz(graph: Graph, basis: Floats, count: int) -> Floats:
    """(n, at most count) the directions within the span of `basis` whose x' L x / x' D x is least and which are not
    constant."""
    degree = graph.degree
    centred = basis - (degree @ basis) / degree.sum()
    scaled = centred * np.sqrt(degree)[:, None]
    _, sizes, right = np.linalg.svd(scaled, full_matrices=False)
    kept = sizes > 1e-6 * max(float(sizes[0]), 1e-300)
    if not kept.any():
        alone: Floats = centred[:, :1]
        return alone
    turned = centred @ (right[kept].T / sizes[kept])
    apart = turned[graph.one] - turned[graph.other]
    _, vectors = np.linalg.eigh(apart.T @ (apart * graph.weight[:, None]))
    found: Floats = turned @ vectors[:, :count]
    return found


def _stop(claimed_here: Bools, claimed_there: Bools, settings: CommunitySettings) -> float:
    is_settled = bool(claimed_here.any()) and bool(claimed_there.any())
    return settings.stop * (settings.settled_factor if is_settled else 1.0)


def _groups(labels: Ints) -> list[Ints]:
    """The nodes of each label, ascending, in the order of the labels."""
    order = np.argsort(labels, kind="stable")
    borders = np.flatnonzero(np.diff(labels[order])) + 1
    return list(np.split(order, borders)) if labels.size else []


# --- small ones -------------------------------------------------------------------------------------------------------


def _without_small(graph: Graph, labels: Ints, settings: CommunitySettings) -> Ints:
    """Those below `size_min` join where their measured edges are strongest in the mean: the smallest first, of these
    the nearest, until none is left that can."""
    while True:
        labels = numbered(labels)
        sizes = np.bincount(labels)
        one, other = labels[graph.one], labels[graph.other]
        across = one != other
        here = np.concatenate((one[across], other[across]))
        there = np.concatenate((other[across], one[across]))
        is_small = sizes[here] < settings.size_min
        if not is_small.any():
            return labels
        least = int(sizes[here[is_small]].min())
        looking = sizes[here] == least
        keys = here[looking] * sizes.size + there[looking]
        pairs, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        weights = np.concatenate((graph.weight[across], graph.weight[across]))[looking]
        best = int(pairs[np.argmax(summed(inverse.reshape(-1), weights, pairs.size) / counts)])
        labels = np.where(labels == best // sizes.size, best % sizes.size, labels)
