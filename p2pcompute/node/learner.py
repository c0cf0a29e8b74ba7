"""The regression behind smart_adaptive: Bayesian linear regression of the library `river`, an optional extra.

One model a function, with a constant and a slope over the request's size for every peer beside the common numbers. The
library learns a row in 10 µs and predicts a row in as much, which is too slow for an ordering of fifty peers; since the
model is linear, its weights are read off once in a while through its own predictions of unit rows, and an ordering is
sums of products.

Importing the library takes most of a second and 80 MiB: `load_learner` is to be called off the event loop, and only
where a submitter asked for the strategy. See docs/decisions/0017-the-learner-is-river.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul
from typing import Protocol

from p2pcompute.jobs.strategies.features import OWN, ROW_LENGTH, SHARED
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.performance import FunctionKey

#: What to say where the library is not installed.
MISSING_TEXT = (
    "smart_adaptive without the package river learns mean times of peers only, not what sizes and loads do to them: "
    "pip install 'p2pcompute[learning]' at the submitter adds the regression"
)
#: Precision of observations: the square of 1/0.22, as times of one function at one peer scatter by a fifth.
BETA = 20.0
#: Precision of weights before anything is known: peers differ by a factor of e, and so may what each number does.
ALPHA = 1.0
#: Weights are read off anew after this many rows: a correction by peer covers what happens between.
ROWS_BETWEEN = 16
#: While a model has fewer rows than this, weights are read off after each.
ROWS_EAGER = 64
_SIZE = SHARED.index("request size")
_COLUMNS = tuple(range(ROW_LENGTH))


class Model(Protocol):
    """What is used of `river.linear_model.BayesianLinearRegression`."""

    def learn_one(self, x: dict[object, float], y: float) -> None:
        """Learn one row; what is not in `x` is 0."""

    def predict_one(self, x: dict[object, float]) -> float:
        """The expected value of a row."""


class MakeModel(Protocol):
    """How a model is made."""

    def __call__(self, *, alpha: float, beta: float) -> Model:
        """`alpha`: precision of weights before anything is known; `beta`: precision of observations."""


class _Weights:
    """A model, and its weights as last read off."""

    __slots__ = ("columns", "fresh", "model", "peers", "rows")

    def __init__(self, model: Model) -> None:
        #: The library's.
        self.model = model
        #: Rows learned.
        self.rows = 0
        #: Rows learned since the weights were read off.
        self.fresh = 0
        #: Weights of the common numbers, in the order of `SHARED` and `OWN`.
        self.columns: list[float] = [0.0] * ROW_LENGTH
        #: Constant and slope of each peer with columns of its own; at most `limits.LEARNED_PEERS_MAX`, in the order of
        #: their first row.
        self.peers: dict[PeerId, tuple[float, float]] = {}

    def learn(self, peer: PeerId, row: Sequence[float], value: float) -> None:
        """One row."""
        named: dict[object, float] = dict(zip(_COLUMNS, row, strict=True))
        if peer in self.peers or len(self.peers) < limits.LEARNED_PEERS_MAX:
            self.peers.setdefault(peer, (0.0, 0.0))
            named[peer] = 1.0
            named[(peer,)] = row[_SIZE]
        self.model.learn_one(named, value)
        self.rows += 1
        self.fresh += 1

    def read_off(self) -> None:
        """Make the weights current where they are too old."""
        if self.fresh >= ROWS_BETWEEN or (self.fresh and self.rows < ROWS_EAGER):
            self.fresh = 0
            weight = self.model.predict_one
            self.columns = [weight({column: 1.0}) for column in _COLUMNS]
            self.peers = {peer: (weight({peer: 1.0}), weight({(peer,): 1.0})) for peer in self.peers}


class RiverLearner:
    """A `jobs.strategies.smart_adaptive.Learner`; `load_learner()` makes one."""

    def __init__(self, make: MakeModel) -> None:
        #: Makes a model.
        self._make = make
        #: By function, at most `limits.PERFORMANCE_FUNCTIONS_MAX`; the last learned last.
        self._models: dict[FunctionKey, _Weights] = {}

    def learn(self, function: FunctionKey, peer: PeerId, row: Sequence[float], value: float) -> None:
        """`value` was observed at `peer` with `row`. 10 to 30 µs."""
        weights = self._models.pop(function, None) or _Weights(self._make(alpha=ALPHA, beta=BETA))
        self._models[function] = weights
        if len(self._models) > limits.PERFORMANCE_FUNCTIONS_MAX:
            del self._models[next(iter(self._models))]
        weights.learn(peer, row, value)

    def predict(
        self, function: FunctionKey, peers: Sequence[PeerId], shared: Sequence[float], own: Sequence[Sequence[float]]
    ) -> list[float]:
        """The expected value at each of `peers`, as of at most `ROWS_BETWEEN` rows ago; 0 where nothing is known."""
        weights = self._models.get(function)
        if weights is None:
            return [0.0] * len(peers)
        weights.read_off()
        common = sum(map(mul, weights.columns, shared))
        columns = weights.columns[len(SHARED) :]
        size = shared[_SIZE]
        values = []
        for peer, row in zip(peers, own, strict=True):
            constant, slope = weights.peers.get(peer, _NOTHING)
            values.append(common + constant + slope * size + sum(map(mul, columns, row)))
        return values


_NOTHING = (0.0, 0.0)
assert len(SHARED) + len(OWN) == ROW_LENGTH


def load_learner() -> RiverLearner:
    """Import the library and make a learner. Raises UsageError, saying what to install, where it is missing.

    Takes most of a second.
    """
    try:
        from river.linear_model import BayesianLinearRegression
    except ImportError as error:
        raise UsageError(f"the package river cannot be imported ({error}): {MISSING_TEXT}") from error
    return RiverLearner(BayesianLinearRegression)
