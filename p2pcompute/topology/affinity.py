"""From measured links to a weighted graph.

    w_ij = 1 / (1 + rtt_ms) · sqrt(clip(Mbit/s / 100, 1/4, 4)),  the second factor 1 where no throughput was measured

The round trip decides, since it spans four decades; throughput at most doubles or halves, so that a link that was
measured and one beside it that was not remain comparable. What is believed of a link (both ends say it, the slower
figure of the two, lifted where others' measurements contradict) was settled before, in membership; here it is given.

Estimates are claims of the peers concerned. They are used only where measured links leave the network in pieces: the
strongest of those that join two pieces, each below the weakest measured weight, and each marked, so that no election
counts them.

Refuses to know: records, views, how a link was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.topology.graph import Bools, Floats, Graph, Ints, components, graph_of_edges

#: Throughput that leaves an affinity as it is, Mbit/s: an ordinary link of a home or an office.
BANDWIDTH_USUAL_MBPS = 100.0
#: Throughput counts up to so many times that, and down to the same part of it.
BANDWIDTH_SPAN = 4.0
#: An estimated edge weighs at most this share of the weakest measured one.
ESTIMATE_SHARE = 0.99
#: What counts as noise: members of a record are re-signed for a change of 25 %, so many of them change the whole by
#: less than this.
NOISE_SHARE = 0.02
#: A peer whose edges together have changed by this share is news by itself.
NOISE_SHARE_OF_PEER = 0.3


class Link(Protocol):
    """What two peers have between them; agreed and estimated edges of membership are such. Round trip in seconds,
    Mbit/s or None."""

    @property
    def a(self) -> PeerId:
        """One end."""

    @property
    def b(self) -> PeerId:
        """The other end."""

    @property
    def rtt_s(self) -> float:
        """Round trip, seconds."""

    @property
    def bandwidth_mbps(self) -> float | None:
        """Throughput, Mbit/s; None where it was not measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Adjacency:
    """`peers`: ascending, node k of `graph` is `peers[k]`; `estimated`: (m,) edges of `graph` that nobody measured."""

    peers: tuple[PeerId, ...]
    graph: Graph
    estimated: Bools


def affinity(rtt_s: float, bandwidth_mbps: float | None) -> float:
    """w of one link, see the module: above 0, at most 2. Raises UsageError for what is no round trip or no
    throughput."""
    if not (rtt_s >= 0.0 and math.isfinite(rtt_s)):
        raise UsageError(f"a round trip of {rtt_s} s: it must be finite and not negative")
    weight = 1.0 / (1.0 + 1000.0 * rtt_s)
    if bandwidth_mbps is None:
        return weight
    if not (bandwidth_mbps >= 0.0 and math.isfinite(bandwidth_mbps)):
        raise UsageError(f"a throughput of {bandwidth_mbps} Mbit/s: it must be finite and not negative")
    relative = bandwidth_mbps / BANDWIDTH_USUAL_MBPS
    return weight * math.sqrt(min(max(relative, 1.0 / BANDWIDTH_SPAN), BANDWIDTH_SPAN))


def adjacency(peers: Iterable[PeerId], measured: Sequence[Link], estimated: Sequence[Link] = ()) -> Adjacency:
    """The graph of `peers`; links to others are passed over, of several links of one pair the weakest counts.

    `estimated`: candidates for joining pieces, see the module; those of a pair that was measured are passed over.
    """
    ordered = tuple(sorted(set(peers)))
    place = {peer: number for number, peer in enumerate(ordered)}
    weights = _pair_weights(place, measured)
    one, other, weight = _arrays(weights)
    graph = graph_of_edges(len(ordered), one, other, weight)
    floor = ESTIMATE_SHARE * float(weight.min(initial=1.0))
    offers = sorted(
        ((-offer, pair) for pair, offer in _pair_weights(place, estimated).items() if pair not in weights),
    )
    joins = _joins(components(graph), offers)
    if not joins:
        return Adjacency(ordered, graph, np.zeros(weight.size, dtype=np.bool_))
    added = {pair: min(offer, floor) for pair, offer in joins}
    one, other, weight = _arrays({**weights, **added})
    keys = np.array(sorted(a * len(ordered) + b for a, b in added), dtype=np.int64)
    graph = graph_of_edges(len(ordered), one, other, weight)
    return Adjacency(ordered, graph, np.isin(graph.one * len(ordered) + graph.other, keys))


def changed_by_more_than_noise(old: Adjacency, new: Adjacency) -> bool:
    """Whether `new` is worth computing everything again: other peers, or weights that differ by more than records do
    from noise.

    That is `NOISE_SHARE` of all weight together, or `NOISE_SHARE_OF_PEER` of the weight at one peer.
    """
    if old.peers != new.peers:
        return True
    pairs, differences, weights = _differences(old.graph, new.graph)
    total = float(weights.sum())
    if float(differences.sum()) > NOISE_SHARE * total:
        return True
    size = max(old.graph.size, 1)
    ends = np.concatenate((pairs // size, pairs % size))
    at_peer = np.bincount(ends, np.concatenate((differences, differences)), minlength=size)
    of_peer = np.bincount(ends, np.concatenate((weights, weights)), minlength=size)
    return bool((at_peer > NOISE_SHARE_OF_PEER * of_peer).any())


def _pair_weights(place: dict[PeerId, int], links: Sequence[Link]) -> dict[tuple[int, int], float]:
    weights: dict[tuple[int, int], float] = {}
    for link in links:
        a, b = place.get(link.a), place.get(link.b)
        if a is None or b is None or a == b:
            continue
        pair = (min(a, b), max(a, b))
        weight = affinity(link.rtt_s, link.bandwidth_mbps)
        weights[pair] = min(weights.get(pair, weight), weight)
    return weights


def _arrays(weights: dict[tuple[int, int], float]) -> tuple[Ints, Ints, Floats]:
    ends = np.array(list(weights), dtype=np.int64).reshape(-1, 2)
    return ends[:, 0], ends[:, 1], np.array(list(weights.values()), dtype=np.float64)


def _joins(roots: Ints, offers: Sequence[tuple[float, tuple[int, int]]]) -> list[tuple[tuple[int, int], float]]:
    """The strongest offers that join pieces (Kruskal). `offers`: (-weight, pair), ascending."""
    joins = []
    piece = dict(enumerate(roots.tolist()))

    def find(node: int) -> int:
        while piece[node] != node:
            piece[node] = piece[piece[node]]
            node = piece[node]
        return node

    for negative, (a, b) in offers:
        here, there = find(a), find(b)
        if here != there:
            piece[max(here, there)] = min(here, there)
            joins.append(((a, b), -negative))
    return joins


def _differences(old: Graph, new: Graph) -> tuple[Ints, Floats, Floats]:
    """Of each pair with an edge in either: its key, how much its weight differs, and the larger of the two weights."""
    size = max(old.size, 1)
    keys = np.concatenate((old.one * size + old.other, new.one * size + new.other))
    pairs, inverse = np.unique(keys, return_inverse=True)
    was, is_now = np.zeros(pairs.size), np.zeros(pairs.size)
    was[inverse[: old.weight.size]] = old.weight
    is_now[inverse[old.weight.size :]] = new.weight
    return pairs, np.abs(was - is_now), np.maximum(was, is_now)
