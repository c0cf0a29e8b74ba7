"""How good a cut is, and the best one along an order of the nodes.

The conductance of a cut of S into A and B is w(A, B) / min(vol A, vol B), where w(A, B) sums the affinities across and
vol those at the nodes of one side (Shi and Malik, "Normalized cuts and image segmentation", 2000). By Cheeger's
inequality the best cut along the Fiedler vector of the normalised Laplacian is near the best of all (Chung, "Spectral
graph theory", 1997).

Peers publish a dozen edges each, not all pairs, and a sample of edges looks full of thin cuts: half of all random
graphs with 6 edges a node have one of 0.23 in the middle of nowhere. So sums are replaced by what they would be over
all pairs: the mean of the measured affinities times the number of pairs, across and within each side. For a full matrix
nothing changes. For a sample a cut through the middle of a site is as thick as it would be if every pair had been
measured. Within a site the sample is about uniform; across sites it prefers the near, which makes true cuts look
thinner still.

Refuses to know: eigenvectors, peers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2pcompute.topology.graph import Floats, Graph, Ints, summed


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The first `count` nodes of an order against the rest, with the conductance `score` (0: nothing across, 1:
    all)."""

    count: int
    score: float


def conductance(
    across: Floats, across_pairs: Floats, within: tuple[Floats, Floats], within_pairs: tuple[Floats, Floats],
    sizes: tuple[Floats, Floats],
) -> Floats:  # fmt: skip
    """Conductance over all pairs, estimated from those that were measured; arrays of one length, one entry a cut.

    `across`, `across_pairs`: sum of affinities between the sides and how many were measured; `within`, `within_pairs`:
    the same inside each side; `sizes`: nodes of each side. 1 where no pair inside the thinner side was measured:
    nothing holds it together. Where no pair across was measured it is 0: nothing holds the sides together.
    """
    cut = _mean(across, across_pairs) * sizes[0] * sizes[1]
    volumes = [
        _mean(inside, pairs) * size * (size - 1.0) + cut
        for inside, pairs, size in zip(within, within_pairs, sizes, strict=True)
    ]
    thinner = np.minimum(*volumes)
    return np.where(thinner > 0, cut / np.where(thinner > 0, thinner, 1.0), 1.0)


def best_cut(graph: Graph, order: Ints) -> Cut:
    """The cut of lowest conductance into the first k nodes of `order` (n,) and the rest, k = 1 ... n - 1; the lowest k
    of equals.

    `graph` has at least two nodes. O(n + m).
    """
    size = graph.size
    place = np.empty(size, dtype=np.int64)
    place[order] = np.arange(size)
    early = np.minimum(place[graph.one], place[graph.other])
    late = np.maximum(place[graph.one], place[graph.other])
    ones = np.ones(graph.weight.size)
    sums, pairs = (_running(early, late, values, size) for values in (graph.weight, ones))
    first = np.arange(1.0, size)
    scores = conductance(sums[0], pairs[0], (sums[1], sums[2]), (pairs[1], pairs[2]), (first, size - first))
    # Sums leave rounding errors behind: what differs by them is equal.
    at = int(np.argmax(scores <= float(scores.min()) + 1e-12))
    return Cut(at + 1, float(scores[at]))


def _running(early: Ints, late: Ints, values: Floats, size: int) -> tuple[Floats, Floats, Floats]:
    """For each cut the sums over edges across, before and after it."""
    begun = np.cumsum(summed(early, values, size))[: size - 1]
    done = np.cumsum(summed(late, values, size))[: size - 1]
    across = np.maximum(begun - done, 0.0)
    return across, done, np.maximum(float(values.sum()) - begun, 0.0)


def _mean(total: Floats, pairs: Floats) -> Floats:
    return np.where(pairs > 0, total / np.maximum(pairs, 1.0), 0.0)
