"""The graph: what is accepted, what is refused in which words, components, parts and quotients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from p2pcompute.model.errors import UsageError
from p2pcompute.topology.graph import (
    components,
    dense_weights,
    graph_of,
    graph_of_edges,
    laplacian,
    normalised_laplacian,
    numbered,
    part,
    quotient,
    sparse_weights,
)


def matrix(*rows: str) -> np.ndarray:
    return np.array([[float(cell) for cell in row.split()] for row in rows])


PATH = matrix("0 1 0", "1 0 2", "0 2 0")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (matrix("0 1", "2 0"), "symmetric"),
        (matrix("0 1", "0 0"), "symmetric"),
        (matrix("0 -1", "-1 0"), r"affinity of 0 and 1 is -1"),
        (matrix("0 nan", "nan 0"), r"0 and 1 is nan"),
        (matrix("0 inf", "inf 0"), r"is inf"),
        (np.zeros((2, 3)), "square"),
        (np.zeros(4), "square"),
        (csr_array(matrix("0 1", "2 0")), "symmetric"),
        (csr_array(matrix("0 nan", "nan 0")), "nan"),
    ],
)
def test_what_is_no_matrix_of_affinities_is_refused_in_words(weights: np.ndarray, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        graph_of(weights)


def test_dense_and_sparse_are_one_graph_and_the_diagonal_counts_nothing() -> None:
    weights = PATH + np.diag([5.0, 6.0, 7.0])
    for given in (weights, csr_array(weights)):
        graph = graph_of(given)
        assert np.array_equal(dense_weights(graph), PATH)
        assert np.array_equal(sparse_weights(graph).toarray(), PATH)
        assert graph.degree.tolist() == [1.0, 3.0, 2.0]
        assert graph_of(graph) is graph


def test_edges_come_in_either_direction_once() -> None:
    ends = np.array([2, 0]), np.array([1, 1])
    assert np.array_equal(dense_weights(graph_of_edges(3, *ends, np.array([2.0, 1.0]))), PATH)
    with pytest.raises(UsageError, match="twice"):
        graph_of_edges(3, np.array([2, 1]), np.array([1, 2]), np.array([2.0, 1.0]))
    with pytest.raises(UsageError, match="not among the 3"):
        graph_of_edges(3, np.array([3]), np.array([1]), np.array([2.0]))


def test_laplacians() -> None:
    assert np.array_equal(laplacian(graph_of(PATH)), matrix("1 -1 0", "-1 3 -2", "0 -2 2"))
    found = normalised_laplacian(graph_of(np.pad(PATH, (0, 1))))
    assert found[0, 1] == pytest.approx(-1 / 3**0.5)
    assert np.array_equal(found[3], np.zeros(4)), "a node without edges"


def test_components_are_named_by_their_lowest_node() -> None:
    ends = np.array([0, 5, 2, 7]), np.array([4, 4, 6, 2])
    assert components(graph_of_edges(8, *ends, np.ones(4))).tolist() == [0, 1, 2, 3, 0, 0, 2, 2]
    assert components(graph_of(np.zeros((0, 0)))).size == 0


def test_components_of_long_paths_take_few_rounds() -> None:
    order = np.random.default_rng(1).permutation(20_000)
    graph = graph_of_edges(20_000, order[:-1], order[1:], np.ones(19_999))
    assert not components(graph).any()


def test_parts_and_quotients() -> None:
    graph = graph_of(PATH)
    assert np.array_equal(dense_weights(part(graph, np.array([1, 2]))), matrix("0 2", "2 0"))
    assert np.array_equal(dense_weights(quotient(graph, np.array([0, 1, 0]))), matrix("0 3", "3 0"))
    assert quotient(graph, np.array([0, 0, 0])).weight.size == 0
    assert numbered(np.array([9, 2, 9, 5])).tolist() == [0, 1, 0, 2]
