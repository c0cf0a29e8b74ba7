"""Flow balance: the movement of work that evens out loads with the least effort over the network as it is.

Work is in common units, capacity in units a second. Targets are proportional to capacity, the surplus b is work less
target, and Σ b = 0 in each component. With L x = b the flow f_ij = w_ij (x_i - x_j) along each edge reaches balance,
and of all that do it has the least Σ f² / w (Hu and Blake, "An improved diffusion algorithm for dynamic load
balancing", 1999; it is where the diffusion of Cybenko, "Dynamic load balancing for distributed memory multiprocessors",
1989, ends, without its rounds).

Balancing starts when the spread of loads exceeds `start_at` and goes on until it is below `stop_at`. What is moved, and
whether it pays, is `moves.py`.

Refuses to know: peers, tasks, leases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.topology.graph import (
    Floats,
    Graph,
    Ints,
    Weights,
    components,
    graph_of,
    laplacian,
    sparse_weights,
    summed,
)

#: Conjugate gradients end when what is left of b is so small a part of it: far less than one task of any job.
RESIDUAL_SHARE_MAX = 1e-8


@dataclass(frozen=True, slots=True)
class BalanceSettings:
    """When loads are worth moving; the defaults are the product's."""

    #: Spread of loads, (max - min) / mean, above which balancing starts.
    start_at: float = 0.3
    #: And below which it ends.
    stop_at: float = 0.15
    #: Work is moved when it so ends sooner by so many times what the moving costs.
    gain_factor: float = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """`amount`: (m,) work along each edge of the graph, positive from `one` to `other`; `potential`: (n,) x, work flows
    downhill."""

    amount: Floats
    potential: Floats


def surplus(weights: Weights, work: Floats, capacity: Floats) -> Floats:
    """(n,) b: work less what the capacity of each peer is worth in its component, in units of work; sums to 0 in each
    component.

    `work`: (n,) what is queued; `capacity`: (n,) units a second, 0 for a peer that computes nothing. Where nobody of a
    component can compute, b is 0 there. Raises UsageError for negative or infinite figures.
    """
    graph = graph_of(weights)
    for name, values in (("work", work), ("capacity", capacity)):
        if values.shape != (graph.size,):
            raise UsageError(f"{name} has the shape {values.shape}: one figure for each of the {graph.size} peers")
        if not np.isfinite(values).all() or (values < 0).any():
            raise UsageError(f"{name} must be finite and not negative for every peer")
    return _surplus(components(graph), work, capacity)


def spread(work: Floats, capacity: Floats) -> float:
    """(max - min) / mean of the seconds of work queued, over peers with a capacity; the mean is that of the whole, work
    over capacity.

    Infinite where work waits at peers without any. 0 where there is no work.
    """
    able = capacity > 0
    if not float(work.sum()) > 0:
        return 0.0
    if not able.any() or bool((work[~able] > 0).any()):
        return float("inf")
    seconds = work[able] / capacity[able]
    return float(seconds.max() - seconds.min()) * float(capacity.sum()) / float(work.sum())


def should_balance(spread_now: float, is_balancing: bool, settings: BalanceSettings | None = None) -> bool:
    """Whether to move work: from `start_at` on, and once begun until below `stop_at`."""
    chosen = settings or BalanceSettings()
    return spread_now > (chosen.stop_at if is_balancing else chosen.start_at)


def balancing_flow(weights: Weights, surplus_of: Floats) -> Flow:
    """The flow of least Σ f² / w that removes `surplus_of` (n,). What a component has too much or too little as a whole
    stays."""
    graph = graph_of(weights)
    roots = components(graph)
    potential = _potential(graph, roots, _centred(roots, surplus_of))
    return Flow(graph.weight * (potential[graph.one] - potential[graph.other]), potential)


def _surplus(roots: Ints, work: Floats, capacity: Floats) -> Floats:
    work_of = np.bincount(roots, work, minlength=roots.size)
    capacity_of = np.bincount(roots, capacity, minlength=roots.size)
    is_able = capacity_of > 0
    seconds = np.where(is_able, work_of / np.where(is_able, capacity_of, 1.0), 0.0)
    return np.where(is_able[roots], work - capacity * seconds[roots], 0.0)


def _centred(roots: Ints, values: Floats) -> Floats:
    sizes = np.bincount(roots, minlength=roots.size)
    means = np.bincount(roots, values, minlength=roots.size) / np.maximum(sizes, 1)
    return values - means[roots]


def _potential(graph: Graph, roots: Ints, balanced: Floats) -> Floats:
    """x of L x = b with mean 0 in each component."""
    if not balanced.any():
        return np.zeros(graph.size)
    if graph.size <= limits.SOLVED_AT_ONCE_MAX:
        # The constant vectors of the components, made regular: b has no part in them, so the solution has none either.
        scale = float(graph.degree.max())
        sizes = np.bincount(roots, minlength=graph.size)[roots]
        regular = laplacian(graph) + np.where(roots[:, None] == roots[None, :], scale / sizes[:, None], 0.0)
        return _centred(roots, np.asarray(np.linalg.solve(regular, balanced), dtype=np.float64))
    found = _conjugate_gradients(graph, balanced)
    return _centred(roots, _factorised(graph, balanced) if found is None else found)


def _conjugate_gradients(graph: Graph, balanced: Floats) -> Floats | None:
    """x by conjugate gradients with Jacobi (Hestenes and Stiefel, 1952), None where they take too many steps.

    Sums over edges alone, no BLAS: this runs between the events of a job, where a solver with threads of its own waits for them. A
    factorisation of a random sparse graph would fill in (7 s for 10,000 peers, these take 20 ms).
    """
    here, there = np.concatenate((graph.one, graph.other)), np.concatenate((graph.other, graph.one))
    weight = np.concatenate((graph.weight, graph.weight))
    degree = graph.degree
    scale = np.where(degree > 0, 1.0 / np.where(degree > 0, degree, 1.0), 0.0)
    solution = np.zeros(graph.size)
    residual = balanced.copy()
    enough = RESIDUAL_SHARE_MAX**2 * float(np.square(balanced).sum())
    step = scale * residual
    energy = float((residual * step).sum())
    for _ in range(limits.GRADIENT_STEPS_MAX):
        pushed = summed(here, weight * (step[here] - step[there]), graph.size)
        curvature = float((step * pushed).sum())
        if curvature <= 0.0:
            return None
        solution += energy / curvature * step
        residual -= energy / curvature * pushed
        if float(np.square(residual).sum()) <= enough:
            return solution
        scaled = scale * residual
        before, energy = energy, float((residual * scaled).sum())
        step = scaled + energy / before * step
    return None


def _factorised(graph: Graph, balanced: Floats) -> Floats:
    """x by a factorisation: long thin graphs take very many steps, and have factors that stay small."""
    from scipy.sparse import diags_array, eye_array
    from scipy.sparse.linalg import splu

    degree = graph.degree
    matrix = (diags_array(degree) - sparse_weights(graph)).tocsr()
    shifted = matrix + 1e-10 * float(degree.max()) * eye_array(graph.size)
    return np.asarray(splu(shifted.tocsc()).solve(balanced))
