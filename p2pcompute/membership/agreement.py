"""Which edges of the network everybody can believe in, and estimates for the pairs that have none.

An edge counts only where the signed records of both its ends list it, with the longer round trip and the lower throughput of the
two. So one liar can make its own edges longer, never shorter. Two liars at different places can still claim a short edge between
them, a bridge that would carry all shortest paths and put both at the centre. Such an edge contradicts other measurements: if
a and b were 1 ms apart, x next to a and y next to b could not be 50 ms apart. A **witness** against the edge (a, b) is a
short way from a to x, an agreed edge (x, y), and a short way from y to b: by the triangle inequality d(a, b) is at least
d(x, y) - d(x, a) - d(y, b). A witness none of whose peers lies is true. So it takes several witnesses that share no peer, more
than there are liars to be withstood, and the edge is lifted to the lowest bound of theirs: at least one of them is
honest. k liars can spoil at most k such witnesses, so neither can they frame an honest edge. Real networks break the
triangle inequality a little, hence a tolerance.

Peers can be invented, and the edges of those that a liar invents agree with each other and with its own. So a peer that has not been met here
is part of the network only where several that were met list an edge to it (`believable`): an edge is listed by whoever measured its link.

Estimates from coordinates are claims of the peers concerned. They only fill in, weaker than the weakest measured edge.

Cost: linear in edges (52 peers 4 ms, 300 peers 16 ms, 1,000 peers 63 ms), so above 100 peers it belongs off the event loop. Refuses to know: eigenvectors,
weights, elections.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.membership.coordinates import estimate_s
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerRecord, PeerStatus, PeerView

#: No edge is shorter, seconds: below, clocks measure themselves.
RTT_MIN_S = 1e-5


@dataclass(frozen=True, slots=True)
class AgreedEdge:
    """An edge that both ends list; `a` < `b`. Round trip in seconds, throughput in Mbit/s (None unless both measured it).

    `is_lifted`: others' measurements contradict what both ends said, and `rtt_s` is the least that they allow.
    """

    a: PeerId
    b: PeerId
    rtt_s: float
    bandwidth_mbps: float | None
    is_lifted: bool = False


@dataclass(frozen=True, slots=True)
class EstimatedEdge:
    """What coordinates say about a pair without an agreed edge; `a` < `b`. `rtt_s` is longer than that of any agreed edge
    and not the estimate itself; among estimated edges the order is that of the estimates. `bandwidth_mbps`: the lowest agreed."""

    a: PeerId
    b: PeerId
    rtt_s: float
    bandwidth_mbps: float | None


@dataclass(frozen=True, slots=True)
class AgreementSettings:
    """What contradicts an edge; the defaults are the product's."""

    #: Peers that were met and list an edge to one that was not, for it to be believed in: one more than the liars withstood.
    vouchers: int = 3
    #: Witnesses without a common peer that lift an edge: one more than the liars withstood.
    witnesses: int = 3
    #: The same is one, and one more for every so many peers of the network, where that is fewer.
    peers_per_witness: int = 5
    #: A bound up to so many times the edge's round trip contradicts nothing: detours are common. At 2, two liars and one
    #: detour of others lifted 4 of 3,400 honest edges, at 2.5 none; two liars can so make a bridge at most 2.5 times as short.
    tolerance: float = 2.5
    #: Nor does one that is larger by less than so many seconds.
    slack_s: float = 5e-3
    #: The ways of a witness are at most this share of its long edge.
    ways_share: float = 0.5
    #: Peers around each end from which a witness may start, and steps to them.
    around: int = 24
    steps: int = 2
    #: Estimates for all pairs up to so many peers, beyond that for a few a peer.
    estimates_peers_max: int = limits.ESTIMATES_PEERS_MAX


#: Way to a peer: its length in seconds, and the places of the peers on it, the last one included.
_Ways = dict[int, tuple[float, tuple[int, ...]]]


def believable(view: PeerView, settings: AgreementSettings | None = None) -> PeerView:
    """`view` without living peers that may be invented: neither met here nor listed by `vouchers` peers that were. At most so many liars less
    one can make others believe in a peer that does not exist."""
    chosen = settings or AgreementSettings()
    vouched: Counter[PeerId] = Counter(edge.peer for edge in view.own.edges)
    for entry in view.entries:
        if entry.is_met:
            vouched.update({edge.peer for edge in entry.record.edges})
    kept = tuple(entry for entry in view.entries if entry.is_met or vouched[entry.record.peer] >= chosen.vouchers)
    return view if len(kept) == len(view.entries) else PeerView(view.own, kept, view.version)


def agreed_edges(view: PeerView, settings: AgreementSettings | None = None) -> tuple[AgreedEdge, ...]:
    """The edges that count, in the order of their ends; see the module. The same records give the same edges on every peer."""
    chosen = settings or AgreementSettings()
    records = _living(view)
    plain = _listed_by_both(records)
    place = {record.peer: number for number, record in enumerate(records)}
    # Longest first: who looks for long edges stops at the first short one.
    beside: list[list[tuple[float, int]]] = [[] for _ in records]
    for edge in plain:
        a, b = place[edge.a], place[edge.b]
        beside[a].append((edge.rtt_s, b))
        beside[b].append((edge.rtt_s, a))
    for rows in beside:
        rows.sort(key=lambda row: (-row[0], row[1]))
    needed = min(chosen.witnesses, 1 + len(records) // chosen.peers_per_witness)
    ways = [_ways_from(start, beside, chosen) for start in range(len(records))]
    found = []
    for edge in plain:
        bound_s = _bound_s(place[edge.a], place[edge.b], edge.rtt_s, beside, ways, needed, chosen)
        lifted = AgreedEdge(edge.a, edge.b, bound_s, edge.bandwidth_mbps, True) if bound_s is not None else edge
        found.append(lifted)
    return tuple(found)


def fill_in(
    view: PeerView, agreed: Sequence[AgreedEdge], settings: AgreementSettings | None = None
) -> tuple[EstimatedEdge, ...]:
    """Estimates for pairs of living peers that have no agreed edge, each strictly weaker than the weakest of `agreed`.

    All pairs up to `estimates_peers_max` peers. Beyond, each peer and those 1, 2, 4, 8, ... places further on the ring of ids:
    enough to connect whoever has no edge, and n log n instead of n squared. Peers without a coordinate get none.
    """
    chosen = settings or AgreementSettings()
    placed = [(record.peer, record.coordinate) for record in _living(view) if record.coordinate is not None]
    has_edge = {(edge.a, edge.b) for edge in agreed}
    longest_s = max((edge.rtt_s for edge in agreed), default=0.0)
    slowest = min((edge.bandwidth_mbps for edge in agreed if edge.bandwidth_mbps is not None), default=None)
    found = []
    for here, there in _pairs(len(placed), chosen.estimates_peers_max):
        (a, one), (b, other) = placed[here], placed[there]
        if (a, b) not in has_edge:
            guess_s = max(estimate_s(one, other), RTT_MIN_S)
            found.append(EstimatedEdge(a, b, longest_s * 1.01 + guess_s, slowest))
    return tuple(found)


# --- records ----------------------------------------------------------------------------------------------------------


def _living(view: PeerView) -> list[PeerRecord]:
    """Records of peers that are, or may be, up, in the order of their ids."""
    up = (PeerStatus.ALIVE, PeerStatus.SUSPECT)
    others = [entry.record for entry in view.entries if entry.status in up and not entry.record.leaving]
    return sorted([view.own, *others], key=lambda record: record.peer)


def _listed_by_both(records: Sequence[PeerRecord]) -> list[AgreedEdge]:
    listed = {
        record.peer: {edge.peer: edge for edge in reversed(record.edges[: limits.EDGES_MAX])} for record in records
    }
    found = []
    for a, edges in listed.items():
        for b in sorted(edges):
            back = listed.get(b, {}).get(a)
            if a < b and back is not None:
                there = edges[b]
                rates = (there.bandwidth_mbps, back.bandwidth_mbps)
                rate = None if rates[0] is None or rates[1] is None else min(rates[0], rates[1])
                found.append(AgreedEdge(a, b, max(there.rtt_s, back.rtt_s, RTT_MIN_S), rate))
    return found


# --- witnesses --------------------------------------------------------------------------------------------------------


def _ways_from(start: int, beside: Sequence[Sequence[tuple[float, int]]], settings: AgreementSettings) -> _Ways:
    """The nearest peers around `start` and the shortest ways to them (Dijkstra, cut off)."""
    found: _Ways = {}
    heap: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    while heap and len(found) <= settings.around:
        length_s, way = heapq.heappop(heap)
        here = way[-1] if way else start
        if here in found:
            continue
        found[here] = (length_s, way)
        if len(way) < settings.steps:
            for rtt_s, there in beside[here]:
                if there not in found:
                    heapq.heappush(heap, (length_s + rtt_s, (*way, there)))
    return found


def _bound_s(
    a: int,
    b: int,
    rtt_s: float,
    beside: Sequence[Sequence[tuple[float, int]]],
    ways: Sequence[_Ways],
    needed: int,
    settings: AgreementSettings,
) -> float | None:
    """The least round trip that enough witnesses without a common peer allow (a, b), None where it is not contradicted."""
    least_s = settings.tolerance * rtt_s + settings.slack_s
    witnesses: list[tuple[float, tuple[int, ...]]] = []
    for x, (to_x_s, way_x) in ways[a].items():
        if b in way_x:
            continue
        for long_s, y in beside[x]:
            if long_s - to_x_s <= least_s:
                break
            to_y = ways[b].get(y)
            if to_y is None or a in to_y[1] or (x == a and y == b):
                continue
            on_ways_s = to_x_s + to_y[0]
            if long_s - on_ways_s > least_s and on_ways_s <= settings.ways_share * long_s:
                witnesses.append((long_s - on_ways_s, (*way_x, *to_y[1])))
    witnesses.sort(key=lambda witness: (-witness[0], witness[1]))
    heard: set[int] = set()
    count = 0
    for bound_s, peers in witnesses:
        if heard.isdisjoint(peers):
            heard.update(peers)
            count += 1
            if count == needed:
                return bound_s
    return None


# --- estimates --------------------------------------------------------------------------------------------------------


def _pairs(count: int, all_max: int) -> list[tuple[int, int]]:
    if count <= all_max:
        return [(here, there) for here in range(count) for there in range(here + 1, count)]
    steps = [1 << power for power in range((count - 1).bit_length())]
    found = {
        (min(here, (here + step) % count), max(here, (here + step) % count)) for here in range(count) for step in steps
    }
    return sorted(pair for pair in found if pair[0] != pair[1])
