"""Cuts and communities: right on all pairs and on the edges that peers really publish, unmoved by slow peers, fast when large."""

from __future__ import annotations

import numpy as np
import pytest

from p2pcompute.membership.agreement import agreed_edges, fill_in
from p2pcompute.model import limits
from p2pcompute.topology import partition
from p2pcompute.topology.affinity import Adjacency, adjacency
from p2pcompute.topology.cuts import best_cut
from p2pcompute.topology.graph import Graph, components, graph_of, graph_of_edges
from p2pcompute.topology.partition import CommunitySettings, communities
from p2pcompute.topology.solvers import Eigenpairs, lowest_of_normalised
from tests.support.sites import Sites, is_right, published, sites, view_of


def listed(world: Sites, *, noise: float = 0.0) -> Adjacency:
    """What the peers of `world` publish, as everybody agrees on it."""
    view = view_of(published(world, noise=noise))
    agreed = agreed_edges(view)
    return adjacency(world.peers, agreed, fill_in(view, agreed))


def unattached(world: Sites, found: Adjacency) -> list[int]:
    """Peers none of whose edges within their site were chosen by both ends: about one of 3,000. Nothing measured tells where they are."""
    graph = found.graph
    inside = world.site[graph.one] == world.site[graph.other]
    near = np.bincount(np.concatenate((graph.one[inside], graph.other[inside])), minlength=graph.size)
    return [row for row in np.flatnonzero(near == 0).tolist() if row not in world.slow]


# --- cuts -------------------------------------------------------------------------------------------------------------


def plain_conductance(weights: np.ndarray, first: np.ndarray) -> float:
    """By its definition: what runs across over the smaller volume."""
    across = weights[np.ix_(first, ~first)].sum()
    return float(across / min(weights[first].sum(), weights[~first].sum()))


def test_the_best_cut_of_a_full_matrix_is_the_one_of_least_conductance() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        size = int(rng.integers(2, 12))
        weights = rng.uniform(0.01, 1, (size, size))
        weights = weights + weights.T
        np.fill_diagonal(weights, 0.0)
        order = rng.permutation(size)
        found = best_cut(graph_of(weights), order)
        scores = [plain_conductance(weights, np.isin(np.arange(size), order[:count])) for count in range(1, size)]
        assert found.score == pytest.approx(min(scores))
        assert scores[found.count - 1] == pytest.approx(min(scores))


def test_a_sample_of_edges_within_a_site_has_no_thin_cut() -> None:
    """By its plain conductance half of a random graph is a community; estimated over all pairs it is not."""
    rng = np.random.default_rng(2)
    size = 400
    one = np.arange(size).repeat(2)
    other = rng.integers(0, size, one.size)
    keys = np.unique(np.minimum(one, other) * size + np.maximum(one, other))
    keys = keys[keys // size != keys % size]
    graph = graph_of_edges(size, keys // size, keys % size, rng.uniform(0.4, 0.8, keys.size))
    weights = np.zeros((size, size))
    weights[graph.one, graph.other] = weights[graph.other, graph.one] = graph.weight
    _, vectors = np.linalg.eigh(np.diag(weights.sum(1)) - weights)
    order = np.argsort(vectors[:, 40], kind="stable")
    half = np.isin(np.arange(size), order[: size // 2])
    assert plain_conductance(weights, half) < 0.3, "what a plain sweep would cut"
    connected = np.flatnonzero(components(graph) == 0)
    assert not communities(weights[np.ix_(connected, connected)]).any()


# --- communities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("stop", [0.1, 0.2, 0.3, 0.4])
def test_sites_are_found_from_all_pairs_for_any_stopping_value(stop: float, slow: bool) -> None:
    rng = np.random.default_rng(5)
    for seed in range(15):
        world = sites(int(rng.integers(2, 6)), int(rng.integers(6, 14)), seed, slow=slow)
        found = communities(world.weights, CommunitySettings(stop=stop))
        assert is_right(found, world.site, but=world.slow)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_four_sites_of_twenty_are_found_from_the_edges_that_peers_publish(seed: int, slow: bool) -> None:
    world = sites(4, 20, seed, slow=slow)
    found = listed(world)
    assert found.graph.weight.size < 7 * len(world.peers), "a dozen edges a peer, not all pairs"
    assert not components(found.graph).any(), "edge selection keeps the sites connected"
    assert not found.estimated.any()
    lost = unattached(world, found)
    assert len(lost) <= 1
    labels = communities(found.graph)
    assert is_right(labels, world.site, but=(*world.slow, *lost))
    assert np.bincount(labels).min() >= 19


@pytest.mark.parametrize("seed", range(3))
def test_queues_do_not_hide_sites(seed: int) -> None:
    world = sites(5, 13, seed)
    assert is_right(communities(listed(world, noise=0.2).graph), world.site)


def test_one_site_is_one_community() -> None:
    rng = np.random.default_rng(1)
    rtt = rng.uniform(0.3, 2, (30, 30))
    weights = 1 / (1 + rtt + rtt.T)
    np.fill_diagonal(weights, 0.0)
    assert not communities(weights).any()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5])
def test_few_peers_are_one_community(size: int) -> None:
    labels = communities(np.ones((size, size)))
    assert labels.shape == (size,)
    assert not labels.any()


def test_components_are_never_one_community_and_are_numbered_by_their_lowest_peers() -> None:
    weights = np.zeros((9, 9))
    for group in ([0, 3, 6], [1, 4, 7, 8], [2]):
        weights[np.ix_(group, group)] = 1.0
    assert communities(weights).tolist() == [0, 1, 2, 0, 1, 3, 0, 1, 1]


def test_fewer_than_three_join_their_nearest() -> None:
    world = sites(2, 8, 3)
    pair = np.zeros((18, 18))
    pair[:16, :16] = world.weights
    pair[16, 17] = pair[17, 16] = 0.99
    near = int(np.flatnonzero(world.site == 1)[0])
    for row in (16, 17):
        pair[row, :16] = pair[:16, row] = np.where(np.arange(16) == near, 0.05, 0.004)
    labels = communities(pair)
    assert labels[16] == labels[17] == labels[near]
    assert is_right(labels[:16], world.site)
    alone = communities(pair, CommunitySettings(size_min=2))
    assert alone[16] == alone[17] != labels[near]


def test_a_standing_border_may_be_thicker() -> None:
    """A cut between 0.3 and 0.36 stands only where both sides have a leader already: noise does not merge them."""
    size = 10
    weights = np.full((2 * size, 2 * size), 0.0)
    weights[:size, :size] = weights[size:, size:] = 0.5
    np.fill_diagonal(weights, 0.0)
    inside = 0.5 * (size - 1)
    for share, stands in ((0.29, (True, True)), (0.33, (False, True)), (0.4, (False, False))):
        across = share * inside / (1 - share) / size
        weights[:size, size:] = weights[size:, :size] = across
        assert best_cut(graph_of(weights), np.arange(2 * size)).score == pytest.approx(share)
        leads = np.isin(np.arange(2 * size), [3, 15])
        found = communities(weights).any(), communities(weights, leads=leads).any()
        assert found == stands
        assert not communities(weights, leads=np.isin(np.arange(2 * size), [3, 5])).any() or share < 0.3


def test_hundreds_of_sites_need_no_recursion_and_few_large_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    large: list[int] = []

    def counted(graph: Graph, count: int) -> Eigenpairs:
        large.extend([graph.size] if graph.size > limits.DENSE_PEERS_MAX else [])
        return lowest_of_normalised(graph, count)

    monkeypatch.setattr(partition, "lowest_of_normalised", counted)
    rng = np.random.default_rng(7)
    count, per = 150, 20
    size = count * per
    near = np.arange(size).repeat(4)
    there = near // per * per + rng.integers(0, per, near.size)
    far = np.arange(size).repeat(3)
    away = rng.integers(0, size, far.size)
    one, other = np.concatenate((near, far)), np.concatenate((there, away))
    keys = np.unique(np.minimum(one, other) * size + np.maximum(one, other))
    keys = keys[keys // size != keys % size]
    one, other = keys // size, keys % size
    weight = np.where(one // per == other // per, rng.uniform(0.4, 0.8, keys.size), rng.uniform(0.005, 0.02, keys.size))
    labels = communities(graph_of_edges(size, one, other, weight))
    assert is_right(labels, np.arange(size) // per)
    assert len(large) <= 3, "150 communities"
