"""The lowest eigenpairs of Laplacians.

Dense (LAPACK) up to `limits.DENSE_PEERS_MAX` nodes. Above, Lanczos (ARPACK) on c - M, whose largest eigenvalues are the
smallest of M, with the known null vector moved to the other end of the spectrum. What that does not settle within its
budget is settled by shift and invert: long thin graphs, on which Lanczos is slow, are those whose factors stay small.

Rules, each against a trap that was measured:

- never `which="SM"`: without inversion it returned the third eigenvalue for the second;
- always a start vector, a fixed one or the last solution with some of the fixed one in it: without one the sign of the
  answer changes from call to call, with nothing but the last solution what is new could be missed;
- one start vector finds one vector of a repeated eigenvalue, whatever is asked for: on a ring of 700 the next value it
  gave was four times λ2. Further ones are looked for beside those that are known, from another start (`fiedler.py` says
  when);
- nothing is drawn from the machine's entropy, which SciPy does by default;
- the residual is compared with the eigenvalue itself: a tolerance relative to the largest one let 0.0098 pass for
  0.0022.

Refuses to know: what the matrix means.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from p2pcompute.model import limits
from p2pcompute.model.errors import ResourceError
from p2pcompute.topology.graph import (
    Floats,
    Graph,
    inverse_roots,
    laplacian,
    normalised_laplacian,
    sparse_weights,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

#: How much of the fixed start vector is in a warm one, by norm: enough for what is new to be found, little enough to
#: save half.
_FRESH_SHARE = 0.05
#: Vectors that Lanczos keeps between restarts: 20 to 40 cost the same, here 28 was best cold and warm.
BASIS_VECTORS = 28
#: Residuals that count as settled, as a share of the eigenvalue: its error is of the square of that.
RESIDUAL_MAX = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class Eigenpairs:
    """`values`: (k,) ascending, without the 0 of the null vector; `vectors`: (n, k) orthonormal columns."""

    values: Floats
    vectors: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """`matrix`: positive semidefinite, no eigenvalue above `bound`; `known`: (n, r) orthonormal eigenvectors not to be
    found again."""

    matrix: csr_array
    known: Floats
    bound: float


def lowest_of_laplacian(
    graph: Graph, count: int, warm: Floats | None = None, *, besides: Floats | None = None
) -> Eigenpairs:
    """The `count` lowest eigenpairs of L = D - W beside the constant vector. `graph`: connected, `count` below its size
    less one.

    `warm`: (n, k) vectors of a graph that was nearly the same; they make it faster, the answer is the same to the
    tolerance. `besides`: (n, r) eigenvectors found before, only for large graphs: others are looked for, from another
    start.
    """
    if graph.size <= limits.DENSE_PEERS_MAX:
        return _dense(laplacian(graph), count)
    from scipy.sparse import diags_array

    matrix = (diags_array(graph.degree) - sparse_weights(graph)).tocsr()
    known = np.full((graph.size, 1), graph.size**-0.5)
    if besides is not None:
        known = np.concatenate((known, besides), axis=1)
    problem = _Problem(matrix, known, 2.0 * float(graph.degree.max()))
    return _sparse(problem, count, warm, 1e-6 if warm is None else 1e-5)


def lowest_of_normalised(graph: Graph, count: int) -> Eigenpairs:
    """The same of I - D^-1/2 W D^-1/2, whose null vector is that of the roots of the degrees. Every node has an edge.

    In large graphs the vectors only span about the right space, which is enough for cutting: residuals are not looked
    at.
    """
    if graph.size <= limits.DENSE_PEERS_MAX:
        return _dense(normalised_laplacian(graph), count)
    from scipy.sparse import diags_array, eye_array

    scale = diags_array(inverse_roots(graph))
    matrix = (eye_array(graph.size) - scale @ sparse_weights(graph) @ scale).tocsr()
    known = np.sqrt(graph.degree / graph.degree.sum())[:, None]
    return _sparse(_Problem(matrix, known, 2.0), count, None, 1e-2, is_rough=True)


def fixed_start(size: int, salt: int = 0) -> Floats:
    """(size,) numbers in [-1/2, 1/2) that look random and are the same on every machine (splitmix64; Steele, Lea and
    Flood, 2014)."""
    state = (np.arange(1, size + 1, dtype=np.uint64) + np.uint64(salt << 32)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) / float(1 << 53) - 0.5


def _dense(matrix: Floats, count: int) -> Eigenpairs:
    values, vectors = np.linalg.eigh(matrix)
    return Eigenpairs(np.maximum(values[1 : count + 1], 0.0), vectors[:, 1 : count + 1])


def _sparse(
    problem: _Problem, count: int, warm: Floats | None, tolerance: float, *, is_rough: bool = False
) -> Eigenpairs:
    start = _start(problem, warm)
    for _ in range(2):
        pairs = _lanczos(problem, count, start, tolerance)
        if pairs is None:
            break
        if is_rough or _is_settled(problem, pairs):
            return pairs
        start, tolerance = pairs.vectors.sum(axis=1), tolerance * 1e-3
    return _shift_invert(problem, count, start)


def _start(problem: _Problem, warm: Floats | None) -> Floats:
    size, known_count = problem.known.shape
    # Another start for each search: where an eigenvalue repeats, the last one has no part in what is left of its space.
    fresh = fixed_start(size, known_count)
    fresh /= np.linalg.norm(fresh)
    if warm is None or warm.shape[0] != size:
        return fresh
    last = warm.sum(axis=1)
    norm = float(np.linalg.norm(last))
    return np.asarray(last / norm + _FRESH_SHARE * fresh) if math.isfinite(norm) and norm > 0 else fresh


def _is_settled(problem: _Problem, pairs: Eigenpairs) -> bool:
    residuals = np.linalg.norm(problem.matrix @ pairs.vectors - pairs.vectors * pairs.values, axis=0)
    return bool((residuals <= RESIDUAL_MAX * np.maximum(pairs.values, 1e-300)).all())


def _lanczos(problem: _Problem, count: int, start: Floats, tolerance: float) -> Eigenpairs | None:
    """None where it does not converge within its budget."""
    matrix, known, bound = problem.matrix, problem.known, problem.bound

    def mirrored(vector: Floats) -> Floats:
        flat = vector.reshape(-1)
        return np.asarray(bound * flat - matrix @ flat - known @ (bound * (known.T @ flat)))

    return _largest(
        problem, mirrored, lambda values: bound - values, count, start, tolerance, limits.LANCZOS_RESTARTS_MAX
    )


def _shift_invert(problem: _Problem, count: int, start: Floats) -> Eigenpairs:
    """Lanczos on the inverse of M + shift: one factorisation, then a few steps. Raises ResourceError where even that
    fails."""
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import splu

    matrix, known = problem.matrix, problem.known
    # So small that the null vector stands out by far and is projected away, so large that the factors are accurate.
    shift = 1e-9 * float(matrix.diagonal().max())
    factors = splu((matrix + shift * eye_array(matrix.shape[0])).tocsc())

    def inverse(vector: Floats) -> Floats:
        flat = vector.reshape(-1)
        solved = factors.solve(flat - known @ (known.T @ flat))
        return np.asarray(solved - known @ (known.T @ solved))

    pairs = _largest(problem, inverse, lambda values: 1.0 / values - shift, count, start, 1e-9, None)
    if pairs is None:
        raise ResourceError(
            f"the eigenvectors of a network of {matrix.shape[0]} peers did not converge: its weights span too many orders of magnitude"
        )
    return pairs


def _largest(
    problem: _Problem,
    function: Callable[[Floats], Floats],
    value_of: Callable[[Floats], Floats],
    count: int,
    start: Floats,
    tolerance: float,
    restarts_max: int | None,
) -> Eigenpairs | None:
    """Lanczos on `function`, whose largest eigenvalues belong to the smallest of the problem, which `value_of`
    tells."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    known, size = problem.known, problem.known.shape[0]
    # SciPy 1.16 and later would draw from the machine's entropy; earlier ones have a fixed seed of their own.
    dice = {"rng": np.random.default_rng(0)} if "rng" in inspect.signature(eigsh).parameters else {}
    try:
        values, vectors = eigsh(
            LinearOperator((size, size), matvec=function, dtype=np.float64),
            k=count,
            which="LA",
            v0=start - known @ (known.T @ start),
            tol=tolerance,
            ncv=min(max(2 * count + 8, BASIS_VECTORS), size - 1),
            maxiter=restarts_max,
            **dice,
        )
    except ArpackNoConvergence:
        return None
    smallest = value_of(values)
    order = np.argsort(smallest, kind="stable")
    found = vectors[:, order]
    return Eigenpairs(np.maximum(smallest[order], 0.0), found - known @ (known.T @ found))
