"""Flow balance: the least movement that evens out, direct moves, whole leases, and when it pays."""

from __future__ import annotations

import numpy as np
import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.topology.balance import BalanceSettings, balancing_flow, should_balance, spread, surplus
from p2pcompute.topology.graph import Floats, Graph, graph_of, graph_of_edges, laplacian, node_sums
from p2pcompute.topology.moves import LeaseMove, Move, decompose, pays, rebalance, whole_leases


def random_graph(size: int, edges: int, seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    order = rng.permutation(size)
    one = np.concatenate((order[:-1], rng.integers(0, size, edges)))
    other = np.concatenate((order[1:], rng.integers(0, size, edges)))
    keys = np.unique(np.minimum(one, other) * size + np.maximum(one, other))
    keys = keys[keys // size != keys % size]
    return graph_of_edges(size, keys // size, keys % size, rng.uniform(0.01, 1, keys.size))


def outflow(graph: Graph, amount: Floats) -> Floats:
    """What leaves each node, less what arrives."""
    return np.bincount(graph.one, amount, graph.size) - np.bincount(graph.other, amount, graph.size)


@pytest.mark.parametrize(
    ("work", "capacity", "value"),
    [
        ([1, 1, 1], [1, 1, 1], 0.0),
        ([0, 0, 0], [1, 1, 1], 0.0),
        ([3, 0, 3], [1, 1, 1], 1.5),
        ([10, 20, 30], [1, 2, 3], 0.0),
        ([10, 20, 0], [1, 2, 0], 0.0),
        ([10, 20, 1], [1, 2, 0], float("inf")),
        ([10, 20], [0, 0], float("inf")),
    ],
)
def test_spread(work: list[float], capacity: list[float], value: float) -> None:
    assert spread(np.array(work, dtype=float), np.array(capacity, dtype=float)) == pytest.approx(value)


def test_once_begun_it_goes_on_until_it_is_even_enough() -> None:
    assert [should_balance(value, False) for value in (0.1, 0.2, 0.3, 0.31)] == [False, False, False, True]
    assert [should_balance(value, True) for value in (0.1, 0.15, 0.2, 0.31)] == [False, False, True, True]


def test_surplus_is_measured_against_capacity_in_each_component() -> None:
    weights = np.zeros((5, 5))
    weights[0, 1] = weights[1, 0] = weights[2, 3] = weights[3, 2] = 1.0
    found = surplus(weights, np.array([6.0, 0, 1, 7, 5]), np.array([1.0, 2, 1, 3, 0]))
    assert found == pytest.approx([4, -4, -1, 1, 0]), "nobody can compute what the last one has"
    with pytest.raises(UsageError, match="work must be finite"):
        surplus(weights, np.array([-1.0, 0, 0, 0, 0]), np.ones(5))
    with pytest.raises(UsageError, match="capacity has the shape"):
        surplus(weights, np.ones(5), np.ones(4))


@pytest.mark.parametrize("size", [2, 3, 30, limits.SOLVED_AT_ONCE_MAX, limits.SOLVED_AT_ONCE_MAX + 1, 200, 800])
def test_the_flow_removes_the_surplus_with_the_least_effort(size: int) -> None:
    graph = random_graph(size, 4 * size, size)
    rng = np.random.default_rng(size)
    over = rng.normal(0, 10, size)
    over -= over.mean()
    flow = balancing_flow(graph, over)
    assert outflow(graph, flow.amount) == pytest.approx(over, abs=1e-5)
    effort = (flow.amount**2 / graph.weight).sum()
    # Any other flow that does the same differs by one that runs in circles: push some around a random one.
    if size == 30:
        null = np.linalg.svd(_incidence(graph))[2][size - 1 :]
        for _ in range(20):
            circle = null.T @ rng.normal(0, 1, null.shape[0])
            assert outflow(graph, circle) == pytest.approx(np.zeros(size), abs=1e-9)
            assert ((flow.amount + circle) ** 2 / graph.weight).sum() > effort


def _incidence(graph: Graph) -> Floats:
    found = np.zeros((graph.size, graph.one.size))
    found[graph.one, np.arange(graph.one.size)] = 1.0
    found[graph.other, np.arange(graph.one.size)] = -1.0
    return found


@pytest.mark.parametrize("size", [limits.SOLVED_AT_ONCE_MAX, limits.SOLVED_AT_ONCE_MAX + 1, 501])
def test_both_ways_to_solve_agree_and_so_do_long_paths(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if size > limits.SOLVED_AT_ONCE_MAX:
        # On the loop of a peer its threads are waited for: half a second for 500 peers on a busy machine.
        monkeypatch.setattr(np.linalg, "solve", None)
    path = graph_of_edges(size, np.arange(size - 1), np.arange(1, size), np.ones(size - 1))
    over = np.zeros(size)
    over[0], over[-1] = 1.0, -1.0
    assert balancing_flow(path, over).amount == pytest.approx(np.ones(size - 1), abs=1e-5)
    graph = random_graph(size, 3 * size, 1)
    over = np.random.default_rng(2).normal(0, 1, size)
    exact = np.linalg.lstsq(laplacian(graph), over - over.mean())[0]
    assert balancing_flow(graph, over).potential == pytest.approx(exact, abs=1e-5)


def test_gradients_that_do_not_arrive_leave_it_to_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GRADIENT_STEPS_MAX", 3)
    graph = random_graph(600, 1_000, 4)
    over = np.random.default_rng(2).normal(0, 1, 600)
    over -= over.mean()
    assert outflow(graph, balancing_flow(graph, over).amount) == pytest.approx(over, abs=1e-5)


def test_components_balance_on_their_own() -> None:
    weights = np.zeros((6, 6))
    weights[:3, :3] = weights[3:, 3:] = 1.0
    np.fill_diagonal(weights, 0.0)
    over = np.array([2.0, -1, -1, 3, 0, 0])
    flow = balancing_flow(weights, over)
    assert outflow(graph_of(weights), flow.amount) == pytest.approx([2, -1, -1, 2, -1, -1]), "one too many is left"


@pytest.mark.parametrize("size", [2, 7, 40, 150])
def test_direct_moves_do_what_the_flow_does(size: int) -> None:
    graph = random_graph(size, 3 * size, size)
    over = np.random.default_rng(size).normal(0, 10, size)
    over -= over.mean()
    moves = decompose(graph, balancing_flow(graph, over), over)
    given, taken = np.zeros(size), np.zeros(size)
    for move in moves:
        assert over[move.source] > 0 > over[move.target], "straight from who has too much to who has too little"
        assert move.amount > 0
        given[move.source] += move.amount
        taken[move.target] += move.amount
    assert given == pytest.approx(np.maximum(over, 0), abs=1e-4)
    assert taken == pytest.approx(np.maximum(-over, 0), abs=1e-4)
    assert len({(move.source, move.target) for move in moves}) == len(moves)


def test_work_goes_to_the_near_first() -> None:
    """Two peers lack the same; the nearer one is served by the one beside it."""
    weights = np.zeros((4, 4))
    for one, other, weight in ((0, 1, 1.0), (1, 2, 0.01), (2, 3, 1.0)):
        weights[one, other] = weights[other, one] = weight
    over = np.array([4.0, -4.0, 3.0, -3.0])
    assert decompose(graph_of(weights), balancing_flow(weights, over), over) == (
        Move(0, 1, 4.0),
        Move(2, 3, pytest.approx(3.0)),
    )


def test_whole_leases_and_what_falls_short() -> None:
    moves = [Move(0, 1, 2.5), Move(0, 2, 1.0), Move(0, 3, 0.7), Move(4, 1, 0.9), Move(5, 1, 3.0)]
    assert whole_leases(moves, 1.0) == (LeaseMove(0, 1, 2), LeaseMove(0, 2, 1), LeaseMove(0, 3, 1), LeaseMove(5, 1, 3))
    assert whole_leases([Move(0, 1, 0.1 + 0.2)], 0.1) == (LeaseMove(0, 1, 3),), "a rounding error is no lease"
    with pytest.raises(UsageError, match="above 0"):
        whole_leases(moves, 0.0)


@pytest.mark.parametrize(
    ("source_s", "target_s", "moving_s", "found"),
    [(10, 5, 2, True), (10, 5, 3, False), (10, 12, 0, False), (10, 9.9, 0, True)],
)
def test_a_move_must_pay(source_s: float, target_s: float, moving_s: float, found: bool) -> None:
    assert pays(source_s, target_s, moving_s) == found
    assert pays(source_s, target_s, moving_s, BalanceSettings(gain_factor=0.0)) == (source_s > target_s)


def test_rebalancing_as_a_whole() -> None:
    graph = random_graph(12, 20, 3)
    capacity = np.linspace(1, 3, 12)
    even = 5.0 * capacity
    assert rebalance(graph, even, capacity, lambda move: 0.0) == ()
    heavy = even.copy()
    heavy[2] += 40.0
    moves = rebalance(graph, heavy, capacity, lambda move: 0.1)
    assert {move.source for move in moves} == {2}
    after = heavy.copy()
    for move in moves:
        after[move.source] -= move.amount
        after[move.target] += move.amount
    assert spread(after, capacity) < 0.05 < spread(heavy, capacity)
    assert rebalance(graph, heavy, capacity, lambda move: 100.0) == (), "nothing pays"
    near = rebalance(graph, heavy, capacity, lambda move: 100.0 if move.target > 5 else 0.1)
    assert {move.target for move in near} <= {0, 1, 3, 4, 5}
    slightly = even * np.linspace(0.9, 1.1, 12)
    assert rebalance(graph, slightly, capacity, lambda move: 0.0) == ()
    assert rebalance(graph, slightly, capacity, lambda move: 0.0, is_balancing=True) != ()


def test_work_where_nobody_computes_leaves_at_once() -> None:
    moves = rebalance(np.ones((3, 3)), np.array([4.0, 0, 0]), np.array([0.0, 1, 1]), lambda move: 10.0)
    assert [(move.source, move.target) for move in moves] == [(0, 1), (0, 2)]


def test_node_sums_count_both_ends() -> None:
    graph = random_graph(5, 5, 1)
    assert node_sums(graph, graph.weight).sum() == pytest.approx(2 * graph.weight.sum())
