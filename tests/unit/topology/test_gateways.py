"""Gateway shares: the best connected peer of each site, from all pairs and from the few edges that are published."""

from __future__ import annotations

import numpy as np
import pytest

from p2pcompute.membership.agreement import agreed_edges, fill_in
from p2pcompute.topology.access import ways_out
from p2pcompute.topology.affinity import adjacency
from p2pcompute.topology.fiedler import spectrum
from p2pcompute.topology.gateways import gateway_shares
from p2pcompute.topology.graph import graph_of, graph_of_edges, quotient
from p2pcompute.topology.partition import communities
from tests.support.sites import Sites, published, sites, view_of


def mean_way_out(world: Sites) -> np.ndarray:
    """(n,) mean round trip to all peers of other sites, ms."""
    return np.array([world.rtt_ms[row, world.site != world.site[row]].mean() for row in range(len(world.peers))])


def test_the_formula_on_all_pairs() -> None:
    world = sites(3, 6, 2)
    weights, labels = world.weights, communities(world.weights)
    q = quotient(graph_of(weights), labels)
    found = spectrum(q)
    u = found.vector[labels]
    expected = (weights * (u[:, None] - u[None]) ** 2).sum(1) / (2 * found.lambda2)
    assert expected.sum() == pytest.approx(1.0)
    assert gateway_shares(weights, labels) == pytest.approx(expected)


@pytest.mark.parametrize("slow", [False, True])
def test_the_best_connected_peer_of_each_site_has_its_largest_share(slow: bool) -> None:
    rng = np.random.default_rng(5)
    for seed in range(20):
        world = sites(int(rng.integers(2, 6)), int(rng.integers(6, 14)), seed, slow=slow)
        labels = communities(world.weights)
        shares = gateway_shares(world.weights, labels)
        assert shares.sum() == pytest.approx(1.0)
        for place in range(int(world.site.max()) + 1):
            best = world.best_of(place)
            assert shares[best] == shares[labels == labels[best]].max()


def test_sites_far_apart_alike_have_one_space() -> None:
    """Three equal sites: λ2 of the quotient repeats, and every basis must give the same."""
    weights = np.full((9, 9), 0.01)
    site = np.arange(9) // 3
    weights[site[:, None] == site[None]] = 0.8
    np.fill_diagonal(weights, 0.0)
    assert gateway_shares(weights, site) == pytest.approx(np.full(9, 1 / 9))


def test_one_community_has_no_gateway() -> None:
    assert gateway_shares(np.ones((5, 5)), np.zeros(5, dtype=np.int64)) == pytest.approx(np.full(5, 0.2))
    assert gateway_shares(np.zeros((0, 0)), np.zeros(0, dtype=np.int64)).size == 0


def test_components_count_on_their_own() -> None:
    weights = np.zeros((10, 10))
    weights[:4, :4] = 0.01
    weights[:2, :2] = weights[2:4, 2:4] = weights[4:, 4:] = 1.0
    weights[0, 2] = weights[2, 0] = 0.1
    np.fill_diagonal(weights, 0.0)
    shares = gateway_shares(weights, np.array([0, 0, 1, 1, 2, 2, 2, 2, 2, 2]))
    assert shares[4:] == pytest.approx(np.full(6, 0.1)), "one community of its own: equal"
    assert shares[:4].sum() == pytest.approx(0.4)
    assert shares[0] == shares[2] == shares.max()


def test_estimates_elect_nobody() -> None:
    one, other = np.array([0, 0, 1, 3, 3, 4, 0, 2]), np.array([1, 2, 2, 4, 5, 5, 3, 5])
    weight = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.01, 0.009])
    graph = graph_of_edges(6, one, other, weight)
    labels = np.array([0, 0, 0, 1, 1, 1])
    guessed = (graph.one == 2) & (graph.other == 5)
    shares = gateway_shares(graph, labels, estimated=guessed)
    assert shares[0] == shares[:3].max()
    assert shares[3] == shares[3:].max()
    both = guessed | ((graph.one == 0) & (graph.other == 3))
    assert gateway_shares(graph, labels, estimated=both) == pytest.approx(np.full(6, 1 / 6))


@pytest.mark.parametrize(
    ("count", "per", "noise", "lost_max"), [(4, 20, 0.0, 0.1), (5, 13, 0.1, 0.15), (2, 30, 0.0, 0.2)]
)
def test_from_published_edges_hardly_anything_is_lost(count: int, per: int, noise: float, lost_max: float) -> None:
    """Of what the best peer of a site is better than the mean one. The plain sum of a peer's weights out loses about all of it."""
    gain_best = gain_found = gain_plain = 0.0
    for seed in range(4):
        world = sites(count, per, seed)
        view = view_of(published(world, noise=noise))
        agreed = agreed_edges(view)
        found = adjacency(world.peers, agreed, fill_in(view, agreed))
        labels = communities(found.graph)
        shares = gateway_shares(found.graph, labels, estimated=found.estimated)
        across = np.where(labels[found.graph.one] != labels[found.graph.other], found.graph.weight, 0.0)
        plain = np.bincount(found.graph.one, across, len(world.peers)) + np.bincount(
            found.graph.other, across, len(world.peers)
        )
        cost = mean_way_out(world)
        for place in range(count):
            rows = np.flatnonzero(world.site == place)
            usual = cost[rows].mean()
            gain_best += usual - cost[rows].min()
            gain_found += usual - cost[rows[shares[rows].argmax()]]
            gain_plain += usual - cost[rows[plain[rows].argmax()]]
    assert gain_found > (1 - lost_max) * gain_best
    assert gain_found > gain_plain


def test_access_lines_are_learnt_from_a_sample() -> None:
    """Where round trips are exactly access, stretch, access, a quarter of the pairs tells the rest."""
    rng = np.random.default_rng(3)
    site = np.repeat([0, 1, 2], 12)
    access = rng.uniform(1, 40, 36)
    stretch = np.array([[0, 20, 45], [20, 0, 70], [45, 70, 0]])
    rtt = access[:, None] + access[None] + stretch[site][:, site]
    full = np.where(site[:, None] == site[None], 0.5, 1 / rtt)
    np.fill_diagonal(full, 0.0)
    keep = np.triu(rng.random((36, 36)) < 0.25, 1)
    sample = np.where(keep | keep.T | (site[:, None] == site[None]), full, 0.0)
    graph = graph_of(sample)
    ways = ways_out(graph, site, np.ones(graph.weight.size, dtype=np.bool_))
    found = np.bincount(ways.peer, ways.affinity)
    true = np.where(site[:, None] != site[None], full, 0.0).sum(1)
    assert found == pytest.approx(true, rel=0.1)
    assert np.abs(np.where(site[:, None] != site[None], sample, 0.0).sum(1) * 4 / true - 1).max() > 0.5


def test_ways_that_the_others_contradict_count_little() -> None:
    """One edge in twelve claims three times the way: nobody else is misjudged for it."""
    rng = np.random.default_rng(4)
    site = np.repeat([0, 1, 2], 12)
    access = rng.uniform(1, 10, 36)
    rtt = access[:, None] + access[None] + 20.0
    full = np.where(site[:, None] == site[None], 0.5, 1 / rtt)
    np.fill_diagonal(full, 0.0)
    keep = np.triu(rng.random((36, 36)) < 0.4, 1)
    sample = np.where(keep | keep.T | (site[:, None] == site[None]), full, 0.0)
    graph = graph_of(sample)
    wrong = (site[graph.one] != site[graph.other]) & (rng.random(graph.weight.size) < 1 / 12)
    spoilt = graph_of_edges(36, graph.one, graph.other, np.where(wrong, graph.weight / 3, graph.weight))
    ways = ways_out(spoilt, site, np.ones(graph.weight.size, dtype=np.bool_))
    found = np.bincount(ways.peer, ways.affinity)
    true = np.where(site[:, None] != site[None], full, 0.0).sum(1)
    others = np.setdiff1d(np.arange(36), np.concatenate((graph.one[wrong], graph.other[wrong])))
    assert others.size > 8
    assert np.abs(found / true - 1)[others].mean() < 0.007
