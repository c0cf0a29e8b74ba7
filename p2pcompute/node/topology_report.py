"""The shape of the network as a plain document: for the control socket, `--json`, pictures, and later the console.

Every key is part of the interface; units stand last in the names. Places are the spectral coordinates themselves: who draws moves marks apart
where they would cover each other. Refuses to know: how anything is drawn, when a shape is computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from p2pcompute.membership.agreement import AgreedEdge, agreed_edges, believable
from p2pcompute.model.capability import capability_score
from p2pcompute.model.ids import PeerId, format_peer_id, short_peer_id
from p2pcompute.model.peer import PeerRecord, PeerStatus, PeerView
from p2pcompute.topology.graph import components
from p2pcompute.topology.shape import NetworkShape

Document = dict[str, Any]
#: Digits of shares, scores, places and weights: eigensolvers differ in further ones.
_DIGITS = 6


def topology_document(shape: NetworkShape, view: PeerView, network: str) -> Document:
    """What `shape` says of the network called `network`, with names, capabilities and measurements from `view`.

    Peers ascend by id, links by the ids of their ends, communities by number. Blocks for 20 ms at 100 peers, 0.2 s at 1,000: off the event loop.
    """
    records = {entry.record.peer: entry.record for entry in view.entries} | {view.own.peer: view.own}
    ids = [format_peer_id(peer) for peer in shape.peers]
    left_out = sum(shape.row(entry.record.peer) is None for entry in view.entries)
    return {
        "network": network,
        "own": format_peer_id(view.own.peer),
        "peers": _peers(shape, view, records, ids),
        "links": _links(shape, view, ids),
        "communities": [_community(shape, number, records, ids) for number in range(len(shape.key_nodes))],
        "lambda2": float(f"{shape.lambda2:.{_DIGITS}g}"),
        "components": shape.components,
        "left_out": left_out,
        "notes": _notes(shape, left_out),
    }


def community_name(number: int) -> str:
    """What people call community `number`: A to Z, then AA, AB, ..."""
    name = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        name = chr(ord("A") + letter) + name
    return name


def _peers(
    shape: NetworkShape, view: PeerView, records: dict[PeerId, PeerRecord], ids: Sequence[str]
) -> list[Document]:
    leaders = {key_node.peer for key_node in shape.key_nodes}
    ranks = {peer: rank for key_node in shape.key_nodes for rank, peer in enumerate(key_node.stand_ins, 1)}
    rows = []
    for row, peer in enumerate(shape.peers):
        record, entry = records.get(peer), view.entry(peer)
        # Who is in the shape but no longer in the view went while the shape was computed.
        status = PeerStatus.LEFT.value if entry is None else entry.status.value
        x, y = shape.drawing[row].tolist()
        rows.append(
            {
                "peer": ids[row],
                "short": short_peer_id(peer),
                "name": short_peer_id(peer) if record is None else record.name,
                "community": int(shape.labels[row]),
                "key_node": peer in leaders,
                "stand_in": ranks.get(peer),
                "share": round(float(shape.shares[row]), _DIGITS),
                "score": round(float(shape.scores[row]), _DIGITS),
                "x": round(x, _DIGITS),
                "y": round(y, _DIGITS),
                "linked": entry is not None and entry.linked,
                "status": "self" if peer == view.own.peer else status,
            }
        )
    return rows


def _links(shape: NetworkShape, view: PeerView, ids: Sequence[str]) -> list[Document]:
    agreed: dict[tuple[PeerId, PeerId], AgreedEdge] = {
        (edge.a, edge.b): edge for edge in agreed_edges(believable(view))
    }
    graph = shape.adjacency.graph
    ends = zip(
        graph.one.tolist(), graph.other.tolist(), graph.weight.tolist(), shape.adjacency.estimated.tolist(), strict=True
    )
    rows = []
    for one, other, weight, is_estimated in ends:
        # What an estimate weighs is derived from the weakest measured link: it says nothing in milliseconds.
        edge = None if is_estimated else agreed.get((shape.peers[one], shape.peers[other]))
        rate = None if edge is None else edge.bandwidth_mbps
        rows.append(
            {
                "a": ids[one],
                "b": ids[other],
                "rtt_ms": None if edge is None else round(edge.rtt_s * 1000.0, 3),
                "bandwidth_mbps": None if rate is None else round(rate, 3),
                "weight": float(f"{weight:.{_DIGITS}g}"),
                "estimated": is_estimated,
            }
        )
    return rows


def _community(shape: NetworkShape, number: int, records: dict[PeerId, PeerRecord], ids: Sequence[str]) -> Document:
    members, key_node = shape.members(number), shape.key_nodes[number]
    id_of = dict(zip(shape.peers, ids, strict=True))
    lending = [records[peer] for peer in members if peer in records and records[peer].slots > 0]
    able = [record.capability for record in lending if record.capability is not None]
    return {
        "community": number,
        "name": community_name(number),
        "members": [id_of[peer] for peer in members],
        "key_node": id_of[key_node.peer],
        "stand_ins": [id_of[peer] for peer in key_node.stand_ins],
        "slots": sum(record.slots for record in lending),
        "cores": sum(each.cores for each in able),
        "memory_gb": round(sum(each.memory_gb for each in able), 2),
        "gpus": sum(len(each.gpus) for each in able),
        "capability": round(sum(capability_score(each) for each in able), 1),
    }


def _notes(shape: NetworkShape, left_out: int) -> list[str]:
    """Sentences for people, where there is something to say."""
    notes = []
    if len(shape.peers) == 1:
        notes.append("no other peer takes part: there is nothing to coordinate")
    elif len(shape.key_nodes) == 1:
        notes.append("one community: whoever submits a job dispatches it directly, no coordinator is needed")
    if shape.components > 1:
        roots = Counter(components(shape.adjacency.graph).tolist())
        sizes = [size for _, size in sorted(roots.items(), key=lambda row: (-row[1], row[0]))]
        notes.append(
            f"{shape.components} parts without any known link between them ({_listed(sizes)} peers), so lambda2 is 0: "
            "`p2pcompute doctor` says what stands between peers"
        )
    estimates = int(shape.adjacency.estimated.sum())
    if estimates:
        notes.append(
            f"{_counted(estimates, 'link is an estimate', 'links are estimates')} from coordinates (dashed): "
            "no measured link joins what they join"
        )
    if left_out:
        notes.append(
            f"{_counted(left_out, 'known peer is', 'known peers are')} left out: "
            "down or leaving, or met by too few to be believed in"
        )
    return notes


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _listed(sizes: Sequence[int], most: int = 6) -> str:
    shown = [str(size) for size in sizes[:most]]
    if len(sizes) > most:
        return f"{', '.join(shown)}, …"
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]
