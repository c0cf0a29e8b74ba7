"""λ2, its vector and shares: known graphs, degenerate ones, large ones, and the start from the last answer."""

from __future__ import annotations

import numpy as np
import pytest

from p2pcompute.model import limits
from p2pcompute.topology.fiedler import Spectrum, pinned, spectrum
from p2pcompute.topology.graph import Graph, graph_of, graph_of_edges, laplacian
from tests.support.sites import sites


def path(size: int) -> Graph:
    return graph_of_edges(size, np.arange(size - 1), np.arange(1, size), np.ones(size - 1))


def ring(size: int) -> Graph:
    return graph_of_edges(size, np.arange(size), (np.arange(size) + 1) % size, np.ones(size))


def star(size: int) -> Graph:
    return graph_of_edges(size, np.zeros(size - 1, dtype=np.int64), np.arange(1, size), np.ones(size - 1))


def complete(size: int) -> Graph:
    return graph_of(np.ones((size, size)) - np.eye(size))


def clusters(count: int, per: int, seed: int, degree: int = 5, across: float = 0.02) -> Graph:
    """Random clusters, a few weak edges from each node to others."""
    rng = np.random.default_rng(seed)
    size = count * per
    near = np.arange(size).repeat(degree)
    there = near // per * per + rng.integers(0, per, near.size)
    far = np.arange(size).repeat(3)
    away = rng.integers(0, size, far.size)
    one, other = np.concatenate((near, far)), np.concatenate((there, away))
    weight = np.where(
        one // per == other // per, rng.uniform(0.3, 0.8, one.size), across * rng.uniform(0.5, 2, one.size)
    )
    low, high = np.minimum(one, other), np.maximum(one, other)
    _, first = np.unique(low * size + high, return_index=True)
    first = first[low[first] != high[first]]
    return graph_of_edges(size, low[first], high[first], weight[first])


def check(found: Spectrum, graph: Graph) -> None:
    """What must hold of any answer."""
    assert found.shares.sum() == pytest.approx(1.0)
    assert (found.shares >= 0).all()
    gram = found.vectors.T @ found.vectors
    assert gram == pytest.approx(np.eye(gram.shape[0]), abs=1e-6)
    assert np.abs(found.vectors.sum(axis=0)) == pytest.approx(np.zeros(gram.shape[0]), abs=1e-6)
    apart = found.vectors[graph.one] - found.vectors[graph.other]
    assert graph.weight @ apart**2 == pytest.approx(found.values, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 30])
def test_paths(size: int) -> None:
    found = spectrum(path(size))
    check(found, path(size))
    assert found.lambda2 == pytest.approx(2 - 2 * np.cos(np.pi / size)), "Fiedler 1973"
    assert found.vector[0] > 0, "pinned by the lowest node"
    assert np.abs(found.vector).argmax() in (0, size - 1), "the ends score highest"
    if size > 2:
        assert found.shares.argmax() in ((size - 1) // 2, size // 2), "the middle connects"


def test_the_bridge_of_a_barbell_has_the_largest_share_and_the_smallest_component() -> None:
    weights = np.zeros((9, 9))
    weights[:4, :4] = weights[5:, 5:] = 1.0
    weights[3, 4] = weights[4, 3] = weights[4, 5] = weights[5, 4] = 0.5
    np.fill_diagonal(weights, 0.0)
    found = spectrum(weights)
    assert found.shares.argmax() == 4
    assert np.abs(found.vector).argmin() == 4
    assert len(set(np.sign(found.vector[:4]))) == 1
    assert np.sign(found.vector[0]) == -np.sign(found.vector[8])


def test_one_slow_peer_hijacks_the_textbook_quantities() -> None:
    """Why nothing is decided by them."""
    world = sites(3, 10, 1, slow=True)
    found = spectrum(world.weights)
    (slow,) = world.slow
    assert found.shares[slow] == pytest.approx(0.5, abs=0.01)
    assert np.abs(found.vector).argmax() == slow


@pytest.mark.parametrize(
    ("graph", "lambda2", "repeats"),
    [(complete(7), 7.0, 6), (star(9), 1.0, 7), (ring(12), 2 - 2 * np.cos(np.pi / 6), 2)],
)
def test_repeated_eigenvalues_are_treated_as_one_space(graph: Graph, lambda2: float, repeats: int) -> None:
    found = spectrum(graph)
    check(found, graph)
    assert found.lambda2 == pytest.approx(lambda2)
    assert found.repeats == repeats
    if repeats == 7:
        assert found.shares.argmax() == 0, "the hub"
        assert found.shares[0] == pytest.approx(0.5)
    else:
        assert found.shares == pytest.approx(np.full(graph.size, 1 / graph.size)), "all alike"


@pytest.mark.parametrize("size", [0, 1, 2])
def test_hardly_anybody(size: int) -> None:
    found = spectrum(np.ones((size, size)))
    assert found.vector.shape == found.shares.shape == (size,)
    if size == 2:
        assert found.lambda2 == pytest.approx(2.0)
        assert found.vector == pytest.approx(np.array([0.5**0.5, -(0.5**0.5)]))
        assert found.shares == pytest.approx(np.array([0.5, 0.5]))
    else:
        assert found.lambda2 == 0.0
        assert found.shares.tolist() == [1.0] * size
        assert found.repeats == 0


def test_components_apart() -> None:
    weights = np.zeros((7, 7))
    weights[:3, :3] = 1.0
    weights[3:6, 3:6] = path_weights = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    np.fill_diagonal(weights, 0.0)
    found = spectrum(weights, count=4)
    check(found, graph_of(weights))
    assert found.lambda2 == 0.0
    assert (found.components, found.repeats) == (3, 2)
    assert len(set(np.round(found.vector[:3], 9))) == 1
    assert found.vector[0] > 0 > found.vector[3]
    assert found.values[:3] == pytest.approx([0.0, 0.0, 1.0])
    alone = spectrum(path_weights.astype(np.float64))
    assert found.shares[3:6] == pytest.approx(alone.shares * 3 / 7)
    assert found.shares[6] == pytest.approx(1 / 7)


def test_a_thread_is_not_nothing() -> None:
    """λ2 is 0 exactly where the graph is disconnected, however weak the edge that connects it."""
    weights = np.zeros((6, 6))
    weights[:3, :3] = weights[3:, 3:] = 1.0
    np.fill_diagonal(weights, 0.0)
    assert spectrum(weights).lambda2 == 0.0
    weights[2, 3] = weights[3, 2] = 1e-12
    found = spectrum(weights)
    assert 0.0 < found.lambda2 < 1e-11
    assert found.shares[2] + found.shares[3] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("graph", [clusters(6, 100, 1), clusters(40, 20, 2), ring(700), path(640)])
def test_sparse_solutions_are_the_dense_ones(graph: Graph) -> None:
    assert graph.size > limits.DENSE_PEERS_MAX
    found = spectrum(graph)
    check(found, graph)
    values, vectors = np.linalg.eigh(laplacian(graph))
    assert found.lambda2 == pytest.approx(values[1], rel=1e-4)
    space = vectors[:, 1 : 1 + found.repeats]
    assert np.linalg.norm(space.T @ found.vector) == pytest.approx(1.0, abs=1e-3)
    assert found.repeats == (2 if values[2] < values[1] * 1.0001 else 1)


def test_equal_graphs_have_equal_spectra_to_the_last_bit() -> None:
    one, other = spectrum(clusters(6, 100, 3)), spectrum(clusters(6, 100, 3))
    assert np.array_equal(one.vectors, other.vectors)
    assert np.array_equal(one.shares, other.shares)


def test_a_warm_start_changes_nothing_but_the_time() -> None:
    graph = clusters(8, 100, 4)
    rng = np.random.default_rng(5)
    weight = graph.weight * np.where(rng.random(graph.weight.size) < 0.01, rng.uniform(0.3, 3, graph.weight.size), 1.0)
    changed = graph_of_edges(graph.size, graph.one, graph.other, weight)
    cold, warm = spectrum(changed), spectrum(changed, warm=spectrum(graph).vectors)
    assert warm.lambda2 == pytest.approx(cold.lambda2, rel=1e-4)
    assert warm.vector == pytest.approx(cold.vector, abs=1e-3)
    assert warm.shares == pytest.approx(cold.shares, abs=1e-3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_warm_start_does_not_hide_what_is_new(count: int) -> None:
    """Newcomers at the end of a thread make a new λ2 in which the last vectors have no part."""
    graph = clusters(8, 100, 6)
    ends = np.arange(graph.size, graph.size + count)
    changed = graph_of_edges(
        graph.size + count,
        np.concatenate((graph.one, np.full(count, 17))),
        np.concatenate((graph.other, ends)),
        np.concatenate((graph.weight, 0.004 + 0.0001 * np.arange(count))),
    )
    carried = np.pad(spectrum(graph).vectors, ((0, count), (0, 0)))
    found = spectrum(changed, warm=carried)
    assert found.lambda2 == pytest.approx(spectrum(changed).lambda2, rel=1e-4)
    assert np.abs(found.vector).argmax() >= graph.size


def test_a_warm_start_from_other_vectors_than_the_lowest_finds_the_lowest() -> None:
    """They span a space from which Lanczos alone never gets out."""
    graph = clusters(8, 100, 4)
    values, vectors = np.linalg.eigh(laplacian(graph))
    assert spectrum(graph, warm=vectors[:, 3:6]).lambda2 == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize("useless", [np.full((800, 3), np.nan), np.zeros((800, 3)), np.ones((7, 3))])
def test_a_useless_warm_start_does_no_harm(useless: np.ndarray) -> None:
    graph = clusters(8, 100, 4)
    assert spectrum(graph, warm=useless).lambda2 == pytest.approx(spectrum(graph).lambda2, rel=1e-4)


def test_nothing_is_drawn_from_the_entropy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy makes dice for each solution, of an unknown seed unless it is given some."""
    seeds = []
    make = np.random.default_rng

    def recorded(seed: object = None) -> np.random.Generator:
        seeds.append(seed)
        return make(seed)  # type: ignore[arg-type]

    monkeypatch.setattr(np.random, "default_rng", recorded)
    spectrum(star(600))
    spectrum(path(640))
    assert seeds
    assert None not in seeds


def test_signs_are_those_of_the_first_entry_that_is_something() -> None:
    vectors = np.array([[1e-12, -1.0, 0.0], [-2.0, 3.0, 0.0]])
    assert pinned(vectors).tolist() == [[-1e-12, 1.0, 0.0], [2.0, -3.0, 0.0]]


def test_the_textbook_names_are_found_in_the_room_itself() -> None:
    from p2pcompute import topology

    assert topology.spectrum is spectrum
    assert all(callable(getattr(topology, name)) for name in topology.__all__)
    with pytest.raises(AttributeError, match="no attribute 'spektrum'"):
        topology.__getattr__("spektrum")
