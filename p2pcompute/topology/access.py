"""Access lines: what each peer adds to every way out of its community, learnt from the few ways that were measured.

A peer publishes a handful of edges to other communities, chosen by chance (the lowest hashes of pairs), so the sum over
them says how many it was dealt rather than how good it is. But a way out is an access line, a stretch between two
communities, and another access line:

    1 / w_ij ≈ h_i + h_j + d_c(i)c(j)

(the height of network coordinates, here from measured edges alone). Alternating weighted means fit h and d; an edge
counts by w², since short ways are measured more exactly, and by less where the others contradict it, as a liar's would.
Peers with few edges are drawn towards the mean of their community, by as much as a third of an ordinary edge, so that
none is elected for one lucky figure.

Measured with the edges that peers really list, 4 sites of 20 and 5 of 13: of what the best peer of a site is better
than the mean one, choosing by the plain sum loses 25 to 31 %, this 3 to 6 % and with 10 % of queueing in all round
trips 10 to 12 %.

Refuses to know: eigenvectors, elections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2pcompute.topology.graph import Bools, Floats, Graph, Ints

#: Rounds of alternating means: after 10 the order of peers hardly moves any more.
FIT_ROUNDS = 20
#: Rounds between two looks at which edges are to be trusted.
ROUNDS_PER_TRUST = 5
#: An edge that is off by this share of its length counts half.
OFF_USUAL = 0.2
#: Of an ordinary edge, how much the mean of the community counts.
DRAWN_TO_MEAN = 0.3
#: Peers that stand for all of a community.
TYPICAL_PEERS = 8


@dataclass(frozen=True, slots=True, eq=False)
class WaysOut:
    """Rows (r,), one for each peer and each community to which somebody of its own has a measured edge: `peer`, `there`
    (a label), and `affinity`: the sum over all peers there, measured ones as measured, the others as the access lines
    say."""

    peer: Ints
    there: Ints
    affinity: Floats


def ways_out(graph: Graph, labels: Ints, measured: Bools) -> WaysOut:
    """See the module. `labels`: (n,) 0, 1, ...; `measured`: (m,) edges that count. Where all pairs are measured nothing
    is estimated."""
    counted = measured & (labels[graph.one] != labels[graph.other])
    # Each edge is a way out at both its ends.
    here = np.concatenate((graph.one[counted], graph.other[counted]))
    there = np.concatenate((graph.other[counted], graph.one[counted]))
    weight = np.concatenate((graph.weight[counted], graph.weight[counted]))
    count = int(labels.max()) + 1 if labels.size else 0
    pairs, pair = np.unique(labels[here] * count + labels[there], return_inverse=True)
    pair = pair.reshape(-1)
    near, far = pairs // max(count, 1), pairs % max(count, 1)
    sizes = np.bincount(labels, minlength=count)
    heights, stretches = _fit(labels, here, there, weight, pair)
    members = np.argsort(labels, kind="stable")
    begins = np.cumsum(sizes) - sizes
    rank = np.empty(graph.size, dtype=np.int64)
    rank[members] = np.arange(graph.size) - begins[labels[members]]
    # One block of rows for each pair of communities, the peers of the near one in ascending order.
    block = np.cumsum(sizes[near]) - sizes[near]
    row_pair = np.repeat(np.arange(pairs.size), sizes[near])
    peer = members[np.arange(row_pair.size) - block[row_pair] + begins[near[row_pair]]]
    row = block[pair] + rank[here]
    sums = np.bincount(row, weight, minlength=row_pair.size)
    known = np.bincount(row, minlength=row_pair.size)
    least = np.full(pairs.size, np.inf)
    np.minimum.at(least, pair, 1.0 / weight)
    # What the model says of all pairs, and by how much it is wrong about those that were measured: which ones these are
    # does not
    # matter then. Nobody unmeasured is taken for better than the best that was measured between the two.
    ends = heights[peer] + stretches[row_pair]
    typical = _typical_heights(labels, heights, members, begins, sizes)[far[row_pair]]
    modelled = (1.0 / np.maximum(ends[:, None] + typical, least[row_pair, None])).mean(axis=1) * sizes[far[row_pair]]
    guesses = 1.0 / np.maximum(heights[here] + heights[there] + stretches[pair], least[pair])
    corrections = np.bincount(row, weight - guesses, minlength=row_pair.size)
    sums = np.bincount(row, weight, minlength=row_pair.size)
    known = np.bincount(row, minlength=row_pair.size)
    is_complete = known == sizes[far[row_pair]]
    # What was measured is there in any case.
    affinity = np.where(is_complete, sums, np.maximum(modelled + corrections, sums))
    return WaysOut(peer, far[row_pair], affinity)


def _typical_heights(labels: Ints, heights: Floats, members: Ints, begins: Ints, sizes: Ints) -> Floats:
    """(communities, `TYPICAL_PEERS`) heights spread evenly over those of each community: the mean of 1 / x is not 1 /
    the mean of x."""
    ascending = members[np.lexsort((heights[members], labels[members]))]
    places = (np.arange(TYPICAL_PEERS)[None, :] + 0.5) / TYPICAL_PEERS * sizes[:, None]
    return heights[ascending[begins[:, None] + places.astype(np.int64)]]


def _fit(labels: Ints, here: Ints, there: Ints, weight: Floats, pair: Ints) -> tuple[Floats, Floats]:
    """h (n,) and d (one for each number of `pair`) of the ways `here` to `there`, each given in both directions."""
    delay, trust = 1.0 / weight, weight * weight
    heights = np.zeros(labels.size)
    if not weight.size:
        return heights, np.zeros(0)
    sizes = int(pair.max()) + 1
    drawn = DRAWN_TO_MEAN * float(np.median(trust))
    stretches = np.zeros(sizes)
    counted = trust
    for number in range(FIT_ROUNDS):
        if number and number % ROUNDS_PER_TRUST == 0:
            # What is far from where the others put it counts less (iteratively reweighted, Cauchy's weights).
            off = (delay - heights[here] - heights[there] - stretches[pair]) / delay
            counted = trust / (1.0 + (off / OFF_USUAL) ** 2)
        trust_of_pair = np.bincount(pair, counted, minlength=sizes)
        trust_of_peer = np.bincount(here, counted, minlength=labels.size)
        trust_of_label = np.maximum(np.bincount(labels, trust_of_peer), 1e-300)
        stretches = np.bincount(pair, counted * (delay - heights[here] - heights[there])) / trust_of_pair
        sums = np.bincount(here, counted * (delay - heights[there] - stretches[pair]), minlength=labels.size)
        means = np.bincount(labels, heights * trust_of_peer) / trust_of_label
        # Half a step: whole ones swing to and fro between two communities.
        heights = 0.5 * heights + 0.5 * (sums + drawn * means[labels]) / (trust_of_peer + drawn)
    return heights, stretches
