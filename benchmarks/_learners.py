"""Libraries that learn online, on one stream of tasks: what the choice of the learner rests on.

Those not installed are left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from p2pcompute.jobs.strategies.smart_adaptive import NEWEST_WEIGHT

FUNCTIONS = tuple(f"f{number}" for number in range(4))
PEERS = tuple(f"p{number}" for number in range(50))
TASKS = 4_000
#: From this task on every second peer is three times slower.
CHANGE_AT = 2_000
SPANS = ((0, 250), (250, 1_000), (1_000, 2_000), (2_000, 2_500), (2_500, 4_000))
SCATTER = 0.15


class Example(NamedTuple):
    """A task: where it ran, log of its size, three loads, and the log of its time."""

    function: str
    peer: str
    size: float
    cpu: float
    memory: float
    queue: float
    value: float


def examples(seed: int = 1) -> Iterator[Example]:
    """value = function + peer + function at peer + size·(function's + peer's slope) + luck."""
    dice = random.Random(seed)
    slow = {peer: dice.gauss(0, 0.5) for peer in PEERS}
    together = {(each, peer): dice.choice((0.0, 0.0, 1.1)) for each in FUNCTIONS for peer in PEERS}
    base = {each: dice.uniform(-2, 0) for each in FUNCTIONS}
    slope = {each: dice.choice((0.0, 0.5, 1.0)) for each in FUNCTIONS}
    starved = {peer: dice.choice((0.0, 0.0, 0.5)) for peer in PEERS}
    for number in range(TASKS):
        function, peer = dice.choice(FUNCTIONS), dice.choice(PEERS)
        size = dice.gauss(0, 1.2)
        value = base[function] + slow[peer] + together[function, peer] + size * (slope[function] + starved[peer])
        if number >= CHANGE_AT and PEERS.index(peer) % 2:
            value += math.log(3)
        yield Example(function, peer, size, dice.random(), dice.random(), dice.random(), value + dice.gauss(0, SCATTER))


class Candidate(Protocol):
    """A learner under test."""

    def predict(self, example: Example) -> float:
        """The expected value."""

    def learn(self, example: Example) -> None:
        """One example."""


def _named(example: Example) -> dict[str, float]:
    return {
        "one": 1.0,
        "size": example.size,
        "cpu": example.cpu,
        "memory": example.memory,
        "queue": example.queue,
        example.peer: 1.0,
        f"{example.peer} size": example.size,
    }


class River:
    """A model of river for each function; `corrected`: with the corrections that smart_adaptive adds."""

    def __init__(self, make: Callable[[Any], Any], *, corrected: bool = False) -> None:
        library = importlib.import_module("river.linear_model")
        self.models = {function: make(library) for function in FUNCTIONS}
        self.corrections: dict[tuple[str, str], float] | None = {} if corrected else None

    def predict(self, example: Example) -> float:
        """Model, and correction."""
        value = float(self.models[example.function].predict_one(_named(example)))
        if self.corrections is not None:
            value += self.corrections.get((example.function, example.peer), 0.0)
        return value

    def learn(self, example: Example) -> None:
        """Both."""
        model, named = self.models[example.function], _named(example)
        if self.corrections is not None:
            pair = (example.function, example.peer)
            miss = self.corrections.get(pair, 0.0)
            new = example.value - float(model.predict_one(named))
            self.corrections[pair] = miss + (new - miss) * NEWEST_WEIGHT
        model.learn_one(named, example.value)


class VowpalWabbit:
    """One model for all functions, features crossed by hashing."""

    def __init__(self) -> None:
        library = importlib.import_module("vowpalwabbit")
        self.model = library.Workspace("--quiet --loss_function squared -b 18 -l 1 -q fp -q fs -q ps")

    @staticmethod
    def _text(example: Example, label: str = "") -> str:
        loads = f"cpu:{example.cpu:.3f} memory:{example.memory:.3f} queue:{example.queue:.3f}"
        return f"{label} |f {example.function} |p {example.peer} |s size:{example.size:.3f} |n {loads}"

    def predict(self, example: Example) -> float:
        """One line of text."""
        return float(self.model.predict(self._text(example)))

    def learn(self, example: Example) -> None:
        """One line of text."""
        self.model.learn(self._text(example, f"{example.value:.4f}"))


def _vector(example: Example) -> npt.NDArray[np.float64]:
    vector = np.zeros(5 + 2 * len(PEERS))
    vector[:5] = (1.0, example.size, example.cpu, example.memory, example.queue)
    place = 5 + 2 * PEERS.index(example.peer)
    vector[place : place + 2] = (1.0, example.size)
    return vector


class ScikitLearn:
    """Stochastic gradient descent with `partial_fit`, a model for each function."""

    def __init__(self) -> None:
        library = importlib.import_module("sklearn.linear_model")
        self.models = {
            function: library.SGDRegressor(alpha=1e-5, learning_rate="constant", eta0=0.1, fit_intercept=False)
            for function in FUNCTIONS
        }
        for model in self.models.values():
            model.partial_fit(np.zeros((1, 5 + 2 * len(PEERS))), [0.0])

    def predict(self, example: Example) -> float:
        """One row."""
        return float(self.models[example.function].predict(_vector(example)[None])[0])

    def learn(self, example: Example) -> None:
        """One row."""
        self.models[example.function].partial_fit(_vector(example)[None], [example.value])


class OwnLeastSquares:
    """What one would write oneself: recursive least squares with forgetting (Haykin, Adaptive Filter Theory)."""

    def __init__(self, forgetting: float) -> None:
        size = 5 + 2 * len(PEERS)
        self.forgetting = forgetting
        self.weights = {function: np.zeros(size) for function in FUNCTIONS}
        self.inverses = {function: np.eye(size) * 20 for function in FUNCTIONS}

    def predict(self, example: Example) -> float:
        """A product."""
        return float(_vector(example) @ self.weights[example.function])

    def learn(self, example: Example) -> None:
        """A rank-one update."""
        row, inverse = _vector(example), self.inverses[example.function]
        spread = inverse @ row
        gain = spread / (self.forgetting + row @ spread)
        self.weights[example.function] += gain * (example.value - row @ self.weights[example.function])
        self.inverses[example.function] = (inverse - np.outer(gain, spread)) / self.forgetting


def _bayes(library: Any) -> Any:
    return library.BayesianLinearRegression(alpha=1.0, beta=20.0)


def _smoothed(library: Any) -> Any:
    return library.BayesianLinearRegression(alpha=1.0, beta=20.0, smoothing=0.995)


def _gradient(library: Any) -> Any:
    optim = importlib.import_module("river.optim")
    return library.LinearRegression(optimizer=optim.AdaGrad(0.3))


_ALL: tuple[tuple[str, str, Callable[[], Candidate]], ...] = (
    ("river, Bayesian, with our corrections", "river", lambda: River(_bayes, corrected=True)),
    ("river, Bayesian", "river", lambda: River(_bayes)),
    ("river, Bayesian, smoothing 0.995", "river", lambda: River(_smoothed)),
    ("river, gradient (AdaGrad)", "river", lambda: River(_gradient)),
    ("Vowpal Wabbit", "vowpalwabbit", VowpalWabbit),
    ("scikit-learn, SGDRegressor", "sklearn", ScikitLearn),
    ("own least squares, forgetting 0.99", "numpy", lambda: OwnLeastSquares(0.99)),
    ("own least squares, no forgetting", "numpy", lambda: OwnLeastSquares(1.0)),
)


def available() -> list[tuple[str, Callable[[], Candidate]]]:
    """Learners whose library is installed, by name."""
    return [(name, make) for name, package, make in _ALL if importlib.util.find_spec(package) is not None]


@dataclass(frozen=True, slots=True)
class Row:
    """Mean absolute error in each of `SPANS`, and microseconds of a prediction and of learning."""

    errors: tuple[float, ...]
    predict_us: float
    learn_us: float


def prequential(learner: Candidate) -> Row:
    """Predict, then learn, each example in turn."""
    misses, predict_s, learn_s = [], 0.0, 0.0
    for example in examples():
        start = time.perf_counter()
        value = learner.predict(example)
        middle = time.perf_counter()
        learner.learn(example)
        learn_s += time.perf_counter() - middle
        predict_s += middle - start
        misses.append(abs(value - example.value))
    errors = tuple(sum(misses[start:end]) / (end - start) for start, end in SPANS)
    return Row(errors, predict_s / TASKS * 1e6, learn_s / TASKS * 1e6)
