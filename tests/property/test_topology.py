"""What holds of any network: Laplacians, shares, communities, elections and flows under random weights, relabelling and other bases."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.model.ids import PeerId
from p2pcompute.topology.affinity import adjacency
from p2pcompute.topology.balance import balancing_flow, surplus
from p2pcompute.topology.election import Candidate, elect
from p2pcompute.topology.fiedler import connected_basis, shares_between, spectrum
from p2pcompute.topology.gateways import gateway_shares
from p2pcompute.topology.graph import Floats, components, graph_of, laplacian, normalised_laplacian, sparse_weights
from p2pcompute.topology.moves import decompose, whole_leases
from p2pcompute.topology.partition import CommunitySettings, communities
from p2pcompute.topology.shape import analyse


def random_weights(seed: int, size: int, density: float, *, sites: int = 1) -> Floats:
    """(n, n) affinities, dense within `sites` and weak across; generic, so that no eigenvalue repeats."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, sites, size)
    weights = np.where(
        site[:, None] == site[None], rng.uniform(0.3, 0.9, (size, size)), rng.uniform(0.004, 0.04, (size, size))
    )
    weights = np.triu(np.where(rng.random((size, size)) < density, weights, 0.0), 1)
    return weights + weights.T


SEEDS = st.integers(0, 10_000)
SIZES = st.integers(0, 40)
DENSITIES = st.sampled_from([0.02, 0.1, 0.3, 0.7, 1.0])
SITES = st.integers(1, 4)


@given(SEEDS, SIZES, DENSITIES, SITES)
def test_laplacians(seed: int, size: int, density: float, sites: int) -> None:
    graph = graph_of(random_weights(seed, size, density, sites=sites))
    for matrix in (laplacian(graph), normalised_laplacian(graph)):
        assert np.array_equal(matrix, matrix.T)
        if size:
            assert np.linalg.eigvalsh(matrix).min() > -1e-12, "positive semidefinite"
    assert np.abs(laplacian(graph).sum(axis=1)).max(initial=0.0) < 1e-12, "rows sum to 0"


@given(SEEDS, SIZES, DENSITIES, SITES)
def test_lambda2_is_zero_exactly_where_the_graph_is_disconnected(
    seed: int, size: int, density: float, sites: int
) -> None:
    graph = graph_of(random_weights(seed, size, density, sites=sites))
    found = spectrum(graph)
    apart = np.unique(components(graph)).size
    assert found.components == apart
    assert (found.lambda2 == 0.0) == (apart > 1 or size < 2)
    if size:
        assert abs(found.shares.sum() - 1.0) < 1e-9
        assert found.shares.min() >= 0.0
    if size > 1:
        assert abs(np.linalg.norm(found.vector) - 1.0) < 1e-9
        assert abs(found.vector.sum()) < 1e-7
        residual = laplacian(graph) @ found.vector - found.lambda2 * found.vector
        assert np.abs(residual).max() < 1e-9


@given(SEEDS, st.integers(2, 30), DENSITIES)
def test_shares_are_how_lambda2_grows_with_the_weights(seed: int, size: int, density: float) -> None:
    """∂λ2/∂w_ij = (v_i - v_j)², measured by changing a weight."""
    weights = random_weights(seed, size, max(density, 0.5))
    graph = graph_of(weights)
    before = spectrum(graph, count=3)
    if components(graph).any() or (before.values.size > 1 and before.values[1] - before.values[0] < 0.02):
        return
    edge = seed % graph.weight.size
    one, other = int(graph.one[edge]), int(graph.other[edge])
    step = 1e-6
    weights[one, other] += step
    weights[other, one] += step
    slope = (spectrum(weights).lambda2 - before.lambda2) / step
    assert abs(slope - (before.vector[one] - before.vector[other]) ** 2) < 1e-3


@given(SEEDS, st.integers(3, 12), st.sampled_from(["complete", "ring", "star", "clusters"]))
def test_shares_do_not_depend_on_the_basis_where_lambda2_repeats(seed: int, size: int, kind: str) -> None:
    weights = np.zeros((size, size))
    if kind == "complete":
        weights[:] = 1.0
    elif kind == "ring":
        for node in range(size):
            weights[node, (node + 1) % size] = weights[(node + 1) % size, node] = 1.0
    elif kind == "star":
        weights[0, :] = weights[:, 0] = 1.0
    else:
        group = np.arange(size) % 3
        weights[:] = np.where(group[:, None] == group[None], 1.0, 0.05)
    np.fill_diagonal(weights, 0.0)
    graph = graph_of(weights)
    basis = connected_basis(graph)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(basis.shape[1], basis.shape[1])))[0]
    found = spectrum(graph).shares
    assert np.allclose(found, shares_between(graph, basis @ turn), atol=1e-12)
    assert abs(found.sum() - 1.0) < 1e-9


@given(SEEDS, st.integers(2, 30), DENSITIES, SITES)
def test_relabelling_changes_nothing(seed: int, size: int, density: float, sites: int) -> None:
    weights = random_weights(seed, size, density, sites=sites)
    order = np.random.default_rng(seed + 1).permutation(size)
    turned = weights[np.ix_(order, order)]
    one, other = spectrum(weights), spectrum(turned)
    assert abs(one.lambda2 - other.lambda2) < 1e-9
    values = one.values
    if one.components == 1 and (values.size < 2 or values[1] - values[0] > 1e-3):
        assert np.allclose(one.shares[order], other.shares, atol=1e-6)
        assert min(np.abs(one.vector[order] - sign * other.vector).max() for sign in (1, -1)) < 1e-6
    if density < 0.7:
        # Leaves beside each other repeat eigenvalues whatever their weights, and then ids decide.
        return
    labels, again = communities(weights), communities(turned)
    assert np.array_equal(labels[order][:, None] == labels[order][None], again[:, None] == again[None])
    shares = gateway_shares(weights, labels)
    assert abs(shares.sum() - 1.0) < 1e-9
    assert np.allclose(shares[order], gateway_shares(turned, again), atol=1e-6)


@given(SEEDS, st.integers(0, 30), DENSITIES, SITES)
def test_dense_and_sparse_matrices_are_one(seed: int, size: int, density: float, sites: int) -> None:
    weights = random_weights(seed, size, density, sites=sites)
    graph = graph_of(weights)
    if not size:
        return
    assert np.array_equal(spectrum(weights).shares, spectrum(sparse_weights(graph)).shares)
    assert np.array_equal(communities(weights), communities(sparse_weights(graph)))


@given(SEEDS, st.integers(0, 40), DENSITIES, SITES)
def test_communities_are_parts(seed: int, size: int, density: float, sites: int) -> None:
    graph = graph_of(random_weights(seed, size, density, sites=sites))
    labels = communities(graph)
    assert labels.shape == (size,)
    if not size:
        return
    assert sorted(set(labels.tolist())) == list(range(int(labels.max()) + 1))
    firsts = [int(np.argmax(labels == label)) for label in range(int(labels.max()) + 1)]
    assert firsts == sorted(firsts), "numbered by their lowest peers"
    roots = components(graph)
    sizes = np.bincount(roots, minlength=size)
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == label)
        assert len(set(roots[rows].tolist())) == 1, "never across components"
        assert rows.size >= min(CommunitySettings().size_min, int(sizes[roots[rows[0]]]))


class Way:
    """A measured link."""

    def __init__(self, a: PeerId, b: PeerId, rtt_s: float) -> None:
        self.a, self.b, self.rtt_s = a, b, rtt_s
        self.bandwidth_mbps: float | None = None


@given(SEEDS, st.integers(1, 24), DENSITIES, SITES, st.randoms(use_true_random=False))
def test_equal_views_elect_the_same(seed: int, size: int, density: float, sites: int, dice: object) -> None:
    """Whatever order links and candidates arrive in, and whichever end tells of a link."""
    rng = np.random.default_rng(seed)
    graph = graph_of(random_weights(seed, size, density, sites=sites))
    peers = [PeerId(rng.bytes(32)) for _ in range(size)]
    crowd = [
        Candidate(peer, float(rng.uniform(0, 100)), float(rng.uniform(0.2, 1)), bool(rng.random() < 0.2))
        for peer in peers
    ]
    links = [
        Way(peers[one], peers[other], float(1 / weight - 1) / 1000 if weight < 1 else 0.0)
        for one, other, weight in zip(graph.one.tolist(), graph.other.tolist(), graph.weight.tolist(), strict=True)
    ]
    first = analyse(crowd, links)
    shuffled = [Way(each.b, each.a, each.rtt_s) for each in links]
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    dice.shuffle(crowd)  # type: ignore[attr-defined]
    second = analyse(crowd, shuffled)
    assert first.key_nodes == second.key_nodes
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.shares, second.shares)
    assert np.array_equal(first.drawing, second.drawing)
    named = [each.peer for each in first.key_nodes] + [peer for each in first.key_nodes for peer in each.stand_ins]
    assert len(named) == len(set(named))
    assert adjacency(peers, links).peers == tuple(sorted(peers))


@given(SEEDS, st.integers(1, 12))
def test_an_election_that_is_repeated_with_its_own_claims_changes_nothing(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    peers = sorted(PeerId(rng.bytes(32)) for _ in range(size))
    labels, shares = rng.integers(0, 2, size), rng.dirichlet(np.ones(size))
    labels = labels - labels.min()
    crowd = [Candidate(peer, float(rng.uniform(0, 100)), 1.0) for peer in peers]
    winners = {each.peer for each in elect(crowd, labels, shares)}
    claimed = [Candidate(each.peer, each.capability * 1.05, 1.0, each.peer in winners) for each in crowd]
    assert {each.peer for each in elect(claimed, labels, shares * rng.uniform(0.95, 1.05, size))} == winners


@given(SEEDS, st.integers(1, 30), DENSITIES, st.sampled_from([0.1, 1.0, 7.0]))
def test_flows_balance_and_moves_are_direct(seed: int, size: int, density: float, lease: float) -> None:
    rng = np.random.default_rng(seed)
    graph = graph_of(random_weights(seed, size, density))
    work = rng.exponential(10, size) * (rng.random(size) < 0.7)
    capacity = rng.uniform(0.5, 4, size) * (rng.random(size) < 0.9)
    over = surplus(graph, work, capacity)
    roots = components(graph)
    assert np.abs(np.bincount(roots, over, minlength=size)).max() < 1e-9
    flow = balancing_flow(graph, over)
    out = np.bincount(graph.one, flow.amount, size) - np.bincount(graph.other, flow.amount, size)
    assert np.allclose(out, over, atol=1e-6)
    moves = decompose(graph, flow, over)
    after = work.copy()
    for move in moves:
        assert over[move.source] > 0 > over[move.target]
        assert roots[move.source] == roots[move.target]
        after[move.source] -= move.amount
        after[move.target] += move.amount
    for root in np.unique(roots):
        rows = roots == root
        if capacity[rows].sum() > 0:
            assert np.allclose(after[rows], capacity[rows] * work[rows].sum() / capacity[rows].sum(), atol=1e-4)
    given_by = np.zeros(size)
    for each in whole_leases(moves, lease):
        assert each.leases > 0
        given_by[each.source] += each.leases * lease
    assert (given_by <= np.maximum(over, 0) + 1e-6).all()
