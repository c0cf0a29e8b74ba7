"""Agreed edges: both ends must say it, and neither one liar nor two together come to stand in the centre."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random

import numpy as np
import pytest

from p2pcompute.membership.agreement import (
    AgreedEdge,
    AgreementSettings,
    EstimatedEdge,
    agreed_edges,
    believable,
    fill_in,
)
from p2pcompute.membership.edges import select_edges
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import (
    DEFAULT_ROLES,
    Coordinate,
    Edge,
    Isolation,
    PeerEntry,
    PeerRecord,
    PeerStatus,
    PeerView,
)
from tests.support.membership import NETWORK
from tests.support.round_trips import SyntheticNetwork, exact_coordinates, peer_of

SITES, PER_SITE = 4, 13


def record(peer: PeerId, edges: tuple[Edge, ...], coordinate: Coordinate | None = None) -> PeerRecord:
    return PeerRecord(
        peer, NETWORK, 1, 0, "peer", (), None, 1, 0.0, DEFAULT_ROLES, Isolation.PROCESS, "3.11", "linux", "0",
        edges=edges, coordinate=coordinate,
    )  # fmt: skip


def view(records: list[PeerRecord], **statuses: PeerStatus) -> PeerView:
    """The view of the first of `records`."""
    own, *others = records
    rows = [PeerEntry(each, statuses.get(str(number), PeerStatus.ALIVE), 0.0) for number, each in enumerate(others, 1)]
    return PeerView(own, tuple(sorted(rows, key=lambda row: row.record.peer)), 1)


def honest_lists(network: SyntheticNetwork) -> list[dict[PeerId, Edge]]:
    """What each peer of `network` lists after three rounds of measuring."""
    coordinates = exact_coordinates(network)
    listed: list[tuple[Edge, ...]] = [()] * network.count
    for _ in range(3):
        for one in range(network.count):
            measured = [
                Edge(network.peers[other], min(network.sample_s(one, other) for _ in range(3)), 100.0)
                for other in range(network.count)
                if other != one
            ]
            listed[one] = select_edges(network.peers[one], measured, coordinates, network.peers, listed[one])
    return [{edge.peer: edge for edge in edges} for edges in listed]


def as_view(network: SyntheticNetwork, lists: list[dict[PeerId, Edge]]) -> PeerView:
    coordinates = exact_coordinates(network)
    return view(
        [
            record(peer, tuple(edges.values()), coordinates[peer])
            for peer, edges in zip(network.peers, lists, strict=True)
        ]
    )


def lambda2(edges: tuple[AgreedEdge, ...], peers: list[PeerId]) -> float:
    place = {peer: number for number, peer in enumerate(peers)}
    laplacian = np.zeros((len(peers), len(peers)))
    for edge in edges:
        a, b, weight = place[edge.a], place[edge.b], 1 / (1 + 1000 * edge.rtt_s)
        laplacian[[a, b], [b, a]] -= weight
        laplacian[[a, b], [a, b]] += weight
    return float(np.linalg.eigvalsh(laplacian)[1])


def through(edges: tuple[AgreedEdge, ...], peers: list[PeerId]) -> dict[PeerId, int]:
    """How many of the shortest ways between pairs of `peers` run through each (betweenness, one way a pair)."""
    beside: dict[PeerId, list[tuple[PeerId, float]]] = {peer: [] for peer in peers}
    for edge in edges:
        beside[edge.a].append((edge.b, edge.rtt_s))
        beside[edge.b].append((edge.a, edge.rtt_s))
    count = dict.fromkeys(peers, 0)
    for start in peers:
        came_from: dict[PeerId, PeerId] = {}
        heap = [(0.0, start, start)]
        while heap:
            length_s, here, before = heapq.heappop(heap)
            if here in came_from:
                continue
            came_from[here] = before
            for there, rtt_s in beside[here]:
                if there not in came_from:
                    heapq.heappush(heap, (length_s + rtt_s, there, here))
        for end in came_from:
            step = came_from[end]
            while end != start and step != start:
                count[step] += 1
                step = came_from[step]
    return count


@pytest.mark.parametrize("seed", range(6))
def test_four_sites_of_thirteen_stay_connected_and_honest_edges_as_they_are(seed: int) -> None:
    network = SyntheticNetwork(SITES, PER_SITE, seed)
    found = agreed_edges(as_view(network, honest_lists(network)))
    assert lambda2(found, network.peers) > 1e-3
    assert len(found) > 2 * network.count, "both ends choose alike often enough"
    lifted = [edge for edge in found if edge.is_lifted]
    assert len(lifted) <= len(found) // 50, "detours are tolerated"


def test_an_edge_needs_both_ends_and_has_the_weaker_figures() -> None:
    a, b, c, d = sorted(peer_of(number) for number in range(4))
    records = [
        record(a, (Edge(b, 0.010, 100.0), Edge(c, 0.020, 50.0), Edge(d, 0.0))),
        record(b, (Edge(a, 0.012, 80.0),)),
        record(c, (Edge(a, 0.019, None), Edge(b, 0.001))),
        record(d, (Edge(a, 0.0),)),
    ]
    assert agreed_edges(view(records)) == (
        AgreedEdge(a, b, 0.012, 80.0),
        AgreedEdge(a, c, 0.020, None),
        AgreedEdge(a, d, 1e-5, None),
    )
    assert agreed_edges(view(records)) == agreed_edges(view(records[::-1])), "whoever looks"
    assert agreed_edges(view(records, **{"2": PeerStatus.DEAD, "3": PeerStatus.SUSPECT})) == (
        AgreedEdge(a, b, 0.012, 80.0),
        AgreedEdge(a, d, 1e-5, None),
    )


def test_who_lists_the_whole_network_is_heard_for_sixteen() -> None:
    everybody = sorted(peer_of(number) for number in range(60))
    greedy = record(everybody[0], tuple(Edge(peer, 1e-4) for peer in everybody[1:]))
    others = [record(peer, (Edge(everybody[0], 1e-4),)) for peer in everybody[1:]]
    assert len(agreed_edges(view([greedy, *others]))) == limits.EDGES_MAX


@pytest.mark.parametrize("seed", range(6))
def test_one_liar_cannot_shorten_anything_and_cannot_frame_others(seed: int) -> None:
    network = SyntheticNetwork(SITES, PER_SITE, seed)
    lists = honest_lists(network)
    before = agreed_edges(as_view(network, lists))
    liar = 7
    # Everybody is next door to it, says the liar: nothing follows from that.
    lists[liar] = {peer: Edge(peer, 1e-4, 1e6) for peer in lists[liar]}
    shortened = {(edge.a, edge.b): edge.rtt_s for edge in agreed_edges(as_view(network, lists))}
    for edge in before:
        assert shortened[edge.a, edge.b] >= 0.7 * edge.rtt_s
    # Half of the world is two seconds away, says it next: only its own edges suffer.
    rng = random.Random(seed)
    lists[liar] = {peer: Edge(peer, rng.choice([1e-4, 2.0])) for peer in lists[liar]}
    after = {(edge.a, edge.b): edge for edge in agreed_edges(as_view(network, lists))}
    for edge in before:
        if network.peers[liar] not in (edge.a, edge.b):
            assert after[edge.a, edge.b] == edge


def bridge(lists: list[dict[PeerId, Edge]], network: SyntheticNetwork, one: int, other: int) -> None:
    """Two liars say that they are next door to each other."""
    for here, there in ((one, network.peers[other]), (other, network.peers[one])):
        lists[here] = {there: Edge(there, 2e-4, 1e5)} | {
            peer: edge for peer, edge in lists[here].items() if peer != there
        }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("far", [20, 33, 46])
def test_two_liars_at_two_sites_cannot_bridge_them(seed: int, far: int) -> None:
    network = SyntheticNetwork(SITES, PER_SITE, seed)
    lists = honest_lists(network)
    honest = agreed_edges(as_view(network, lists))
    bridge(lists, network, 7, far)
    told = as_view(network, lists)
    ends = tuple(sorted((network.peers[7], network.peers[far])))
    believed = agreed_edges(told, AgreementSettings(witnesses=99, peers_per_witness=1))
    found = agreed_edges(told)
    (edge,) = [each for each in found if (each.a, each.b) == ends]
    true_s = network.rtt_s(7, far)
    assert edge.is_lifted
    assert edge.rtt_s > 0.3 * true_s
    # Nobody else is blamed for the bridge.
    plain = {(each.a, each.b): each for each in honest}
    assert all(
        plain[each.a, each.b] == each for each in found if (each.a, each.b) in plain and (each.a, each.b) != ends
    )
    # What it is about: believed, the bridge carries the ways of two sites; found out, it carries no more than gateways do.
    loads, naive = through(found, network.peers), through(believed, network.peers)
    earned = through(honest, network.peers)
    most = max(loads[peer] for peer in network.peers if peer not in ends)
    for end in ends:
        assert loads[end] <= max(most, earned[end])
        assert naive[end] > 1.3 * loads[end]


def test_without_witnesses_the_bridge_would_be_the_centre() -> None:
    """Shows that the test above can fail."""
    network = SyntheticNetwork(SITES, PER_SITE, 1)
    lists = honest_lists(network)
    bridge(lists, network, 7, 33)
    believed = agreed_edges(as_view(network, lists), AgreementSettings(witnesses=99, peers_per_witness=1))
    loads = through(believed, network.peers)
    ranked = sorted(network.peers, key=lambda peer: -loads[peer])
    assert {network.peers[7], network.peers[33]} == set(ranked[:2])


@pytest.mark.parametrize("seed", range(6))
def test_two_liars_cannot_frame_an_honest_edge(seed: int) -> None:
    network = SyntheticNetwork(SITES, PER_SITE, seed)
    lists = honest_lists(network)
    before = agreed_edges(as_view(network, lists))
    liars = (2, 5)
    for liar in liars:
        # Some of their neighbours seem two seconds away, whoever measures: the answers are held back.
        for number, peer in enumerate(lists[liar]):
            if number % 2:
                lists[liar][peer] = Edge(peer, 2.0)
    bridge(lists, network, *liars)
    after = {(edge.a, edge.b): edge for edge in agreed_edges(as_view(network, lists))}
    guilty = {network.peers[liar] for liar in liars}
    for edge in before:
        if not guilty & {edge.a, edge.b}:
            assert after[edge.a, edge.b] == edge


def test_peers_that_two_liars_invent_are_no_part_of_the_network_and_one_that_three_met_peers_list_is() -> None:
    names = [peer_of(number) for number in range(40)]
    met, ghosts, shy = names[:8], names[8:30], names[30]
    liars = (met[6], met[7])
    lists: dict[PeerId, list[PeerId]] = {peer: [other for other in met if other != peer] for peer in met}
    for liar in liars:
        lists[liar] += [*ghosts[:8], shy]
    for ghost in ghosts:
        lists[ghost] = [*liars, shy, *(each for each in ghosts if each != ghost)][:14]
    lists[shy] = list(met)
    own, *others = [record(peer, ()) for peer in (*met, *ghosts, shy)]

    def believed() -> set[PeerId]:
        own_record = dataclasses.replace(own, edges=tuple(Edge(to, 0.001) for to in lists[own.peer]))
        rows = [
            PeerEntry(
                dataclasses.replace(each, edges=tuple(Edge(to, 0.001) for to in lists[each.peer])),
                PeerStatus.ALIVE,
                0.0,
                is_met=each.peer in met,
            )
            for each in others
        ]
        return {entry.record.peer for entry in believable(PeerView(own_record, tuple(rows), 1)).entries}

    assert believed() == set(met[1:]), "two liars are not enough"
    lists[met[3]].append(shy)
    assert believed() == {*met[1:], shy}
    lists[met[3]].remove(shy)
    lists[own.peer].append(shy)
    assert believed() == {*met[1:], shy}, "the own edges count like others'"


def test_estimates_are_weaker_than_the_weakest_measured_edge_and_keep_their_order() -> None:
    network = SyntheticNetwork(SITES, PER_SITE, 3)
    told = as_view(network, honest_lists(network))
    agreed = agreed_edges(told)
    filled = fill_in(told, agreed)
    pairs = {(edge.a, edge.b) for edge in agreed}
    assert not pairs & {(edge.a, edge.b) for edge in filled}
    assert len(filled) + len(agreed) == network.count * (network.count - 1) // 2
    assert min(edge.rtt_s for edge in filled) > max(edge.rtt_s for edge in agreed)
    number = {peer: place for place, peer in enumerate(network.peers)}
    near = [edge for edge in filled if network.site_of[number[edge.a]] == network.site_of[number[edge.b]]]
    far = [edge for edge in filled if edge not in near]
    assert max(edge.rtt_s for edge in near) < sorted(edge.rtt_s for edge in far)[len(far) // 2]
    assert {edge.bandwidth_mbps for edge in filled} == {100.0}


def test_estimates_of_a_large_network_are_few_and_connect_it() -> None:
    everybody = sorted(peer_of(number) for number in range(300))
    place = Coordinate((0.0, 0.0, 0.0), 1e-3, 0.1)
    filled = fill_in(view([record(peer, (), place) for peer in everybody]), ())
    assert len(filled) <= 300 * 9
    first = [edge for edge in filled if everybody[0] in (edge.a, edge.b)]
    assert EstimatedEdge(everybody[0], everybody[1], 2e-3, None) in first
    neighbours = {(edge.a, edge.b) for edge in filled}
    assert all(pair in neighbours for pair in itertools.pairwise(everybody)), "the ring connects them"


def test_who_has_no_coordinate_gets_no_estimate() -> None:
    a, b = sorted(peer_of(number) for number in range(2))
    assert fill_in(view([record(a, ()), record(b, (), Coordinate((0.0,), 0.0, 1.0))]), ()) == ()
