"""The shape of the network: everything of this room about one view, as a snapshot that jobs and people read.

Composition: a shell takes what membership believes of the links (agreed edges, and estimates where there are none),
asks `candidates_of` who could lead, and calls `analyse` off the event loop. It does so again when
`changed_by_more_than_noise` (`affinity.py`) says that it is worth it, and calls `reelected`, which is cheap, whenever
capabilities or claims change. The last snapshot makes the next one faster; it never changes what comes out beyond the
tolerance of the eigensolver, so equal views give equal answers on every peer.

Refuses to know: where links come from, when it is called, what key nodes do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerRecord, PeerStatus, PeerView
from p2pcompute.topology.affinity import Adjacency, Link, adjacency
from p2pcompute.topology.election import Candidate, KeyNode, elect, fiedler_scores, stability
from p2pcompute.topology.fiedler import pinned, spectrum
from p2pcompute.topology.gateways import gateway_shares
from p2pcompute.topology.graph import Floats, Graph, Ints, components, part
from p2pcompute.topology.partition import communities, cutting_basis


@dataclass(frozen=True, slots=True, eq=False)
class NetworkShape:
    """Arrays have one row a peer, in the order of `peers` (ascending ids).

    `labels`: (n,) community, numbered in the order of their lowest ids; `shares`: (n,) gateway shares, sum 1; `scores`:
    (n,) the same of the largest, the Fiedler score that people see; `key_nodes`: by label; `lambda2`: algebraic
    connectivity of the whole graph, 0 exactly where it is disconnected; `components`: how many parts have no edge to
    others; `drawing`: (n, 2) places in [-1, 1] for a picture; `vectors`: (n, k) Fiedler vectors of the whole graph, the
    first is v.
    """

    peers: tuple[PeerId, ...]
    labels: Ints
    shares: Floats
    scores: Floats
    key_nodes: tuple[KeyNode, ...]
    lambda2: float
    components: int
    drawing: Floats
    vectors: Floats
    adjacency: Adjacency
    #: Row of each peer.
    _rows: Mapping[PeerId, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {peer: row for row, peer in enumerate(self.peers)})

    def row(self, peer: PeerId) -> int | None:
        """Where `peer` is in the arrays, None where it is not part of the network."""
        return self._rows.get(peer)

    def community_of(self, peer: PeerId) -> int | None:
        """The label of the community of `peer`, None where it is not part of the network."""
        row = self._rows.get(peer)
        return None if row is None else int(self.labels[row])

    def members(self, community: int) -> tuple[PeerId, ...]:
        """The peers of a community, ascending."""
        return tuple(self.peers[row] for row in np.flatnonzero(self.labels == community).tolist())

    def key_node_of(self, peer: PeerId) -> KeyNode | None:
        """Who coordinates the community of `peer`, None where it is not part of the network."""
        community = self.community_of(peer)
        return None if community is None else self.key_nodes[community]

    def is_key_node(self, peer: PeerId) -> bool:
        """Whether `peer` coordinates its community."""
        key_node = self.key_node_of(peer)
        return key_node is not None and key_node.peer == peer


def candidates_of(
    view: PeerView, wall_s: float, leaders: Collection[PeerId] = (), failures: Mapping[PeerId, int] | None = None
) -> tuple[Candidate, ...]:
    """Every peer of `view` that is, or may be, up and is not leaving, ascending by id.

    `wall_s`: the time; how long a peer has been up is what has passed since its incarnation. `leaders`: whose own
    records claim to be a key node. `failures`: past ones, by peer; peers that count them differently may elect
    differently for a while. Who lends nothing has no capability.
    """
    counted = failures or {}
    claimed = frozenset(leaders)

    def of(record: PeerRecord) -> Candidate:
        lends = record.capability is not None and record.slots > 0
        steady = stability(wall_s - record.incarnation / 1000.0, counted.get(record.peer, 0))
        score = record.capability.score if lends and record.capability is not None else 0.0
        return Candidate(record.peer, score, steady, record.peer in claimed)

    up = (PeerStatus.ALIVE, PeerStatus.SUSPECT)
    records = [view.own, *(entry.record for entry in view.entries if entry.status in up and not entry.record.leaving)]
    return tuple(of(record) for record in sorted(records, key=lambda record: record.peer))


def analyse(
    candidates: Sequence[Candidate],
    measured: Sequence[Link],
    estimated: Sequence[Link] = (),
    previous: NetworkShape | None = None,
) -> NetworkShape:
    """The shape of the network of `candidates` with these links; see `affinity.adjacency` for what counts of them.

    Blocks for 8 ms at 100 peers and for 0.8 to 1.4 s at 10,000 (docs/performance.md): off the event loop. Raises
    UsageError where a link makes no sense.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.peer)
    found = adjacency((candidate.peer for candidate in ordered), measured, estimated)
    graph = found.graph
    whole = spectrum(graph, warm=None if previous is None else _carried(previous, found))
    leads = np.array([candidate.leads for candidate in ordered], dtype=np.bool_)
    basis = cutting_basis(graph, 2) if whole.components == 1 and graph.size > 1 else None
    labels = communities(graph, leads=leads, basis=basis)
    shares = gateway_shares(graph, labels, estimated=found.estimated)
    return NetworkShape(
        found.peers,
        labels,
        shares,
        fiedler_scores(shares),
        elect(ordered, labels, shares),
        whole.lambda2,
        whole.components,
        _drawing(graph, basis),
        whole.vectors,
        found,
    )


def reelected(shape: NetworkShape, candidates: Sequence[Candidate]) -> NetworkShape:
    """The same with another election: capabilities, ages or claims have changed, links and peers have not. Raises
    UsageError."""
    ordered = sorted(candidates, key=lambda candidate: candidate.peer)
    return replace(shape, key_nodes=elect(ordered, shape.labels, shape.shares))


def matched_communities(old: NetworkShape, new: NetworkShape) -> dict[int, int]:
    """For communities of `new` the one of `old` with most of the same peers, each used once, the largest overlap first.

    What is not in it is new. For whoever shows communities or keeps something for each of them: labels follow from the
    view alone and may shift.
    """
    overlaps: dict[tuple[int, int], int] = {}
    for peer, label in zip(new.peers, new.labels.tolist(), strict=True):
        before = old.community_of(peer)
        if before is not None:
            overlaps[label, before] = overlaps.get((label, before), 0) + 1
    found: dict[int, int] = {}
    used: set[int] = set()
    for (label, before), _ in sorted(overlaps.items(), key=lambda row: (-row[1], row[0])):
        if label not in found and before not in used:
            found[label] = before
            used.add(before)
    return dict(sorted(found.items()))


def _carried(previous: NetworkShape, now: Adjacency) -> Floats | None:
    """The vectors of `previous` in the rows of `now`; who is new stands in the middle, at 0."""
    rows = [previous.row(peer) for peer in now.peers]
    is_known = np.array([row is not None for row in rows], dtype=np.bool_)
    if not is_known.any() or not previous.vectors.shape[1]:
        return None
    carried = np.zeros((len(rows), previous.vectors.shape[1]))
    carried[is_known] = previous.vectors[[row for row in rows if row is not None]]
    return carried


def _drawing(graph: Graph, basis: Floats | None) -> Floats:
    """(n, 2) the two lowest vectors of L x = λ D x (Koren, "On spectral graph drawing", 2003), which one slow peer
    cannot spread over the whole picture.

    Components stand side by side, in the order of their lowest ids.
    """
    if basis is not None:
        return _scaled(basis)
    places = np.zeros((graph.size, 2))
    roots = components(graph)
    lowest = np.unique(roots).tolist()
    # Each is 2 wide, half a unit lies between them.
    half_width = 1.25 * len(lowest) - 0.25
    for number, root in enumerate(lowest):
        nodes = np.flatnonzero(roots == root)
        if nodes.size > 1:
            places[nodes] = _scaled(cutting_basis(part(graph, nodes), 2))
        places[nodes, 0] += 2.5 * number + 1.0 - half_width
    return places / max(half_width, 1.0)


def _scaled(basis: Floats) -> Floats:
    """Signs pinned, each of the first two columns within [-1, 1]."""
    found = np.zeros((basis.shape[0], 2))
    columns = min(2, basis.shape[1])
    found[:, :columns] = pinned(basis[:, :columns])
    spans: Floats = np.maximum(np.abs(found).max(axis=0, initial=0.0), 1e-300)
    return np.asarray(found / spans, dtype=np.float64)
