"""One answer from the results of single tasks: SUM, AVERAGE, MAX, MIN, CONCAT, or all of them in the order of the inputs.

Results come in any order and change nothing by it: sums are exact until the end (`exact.py`, `arrays.py`), extremes keep the
lowest index among equals, and what has an order is put in the order of the inputs. Partial aggregates travel and merge the same
way: an average as sum and weight. CUSTOM and REDUCE are the submitter's code and run on workers (`reduce.py` plans that), never here.

Weights: a weighted SUM is the sum of weight times value, AVERAGE divides by the sum of weights, the others ignore them. A product
with a weight that is not whole is rounded before it is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from p2pcompute.jobs.exact import ExactSum, nearest_float
from p2pcompute.model.errors import JobError, UsageError
from p2pcompute.model.job import Aggregation

if TYPE_CHECKING:
    from p2pcompute.jobs.arrays import ArraySum

Weight = int | float


def is_array(value: object) -> bool:
    """Whether `value` is a NumPy array with at least one dimension; NumPy is not imported for it."""
    return type(value).__module__ == "numpy" and bool(getattr(value, "shape", ()))


def plain(value: Any) -> Any:
    """A NumPy scalar (or array without dimensions) as the Python number it holds; anything else as it is."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    return value


class Aggregator:
    """The results of one job, or of a part of it, aggregated.

    Raises UsageError for CUSTOM and REDUCE. Each index may be added once; the caller sees to that.
    """

    def __init__(self, aggregation: Aggregation) -> None:
        if aggregation in (Aggregation.CUSTOM, Aggregation.REDUCE):
            raise UsageError(f"aggregation {aggregation.value!r} runs the submitter's code and is done by workers")
        #: What is made of the results.
        self.aggregation = aggregation
        #: Results so far.
        self.count = 0
        #: SUM, AVERAGE: what has been added, None before the first result.
        self._total: _Numbers | ArraySum | None = None
        #: AVERAGE: sum of the weights.
        self._weights = ExactSum()
        #: MAX, MIN: the index that `_best` came from and `_best` itself.
        self._best: tuple[int, Any] | None = None
        #: CONCAT, NONE: results by index.
        self._values: dict[int, Any] = {}

    def add(self, index: int, value: Any, weight: Weight = 1.0) -> None:
        """Take the result of task `index`. Raises JobError, naming the task, for a value that does not fit."""
        value = plain(value)
        if self.aggregation in (Aggregation.SUM, Aggregation.AVERAGE):
            self._add_to_total(index, value, weight)
        elif self.aggregation in (Aggregation.MAX, Aggregation.MIN):
            self._challenge(index, value)
        else:
            self._values[index] = value
        self.count += 1

    def partial(self) -> dict[str, Any]:
        """What `merge` takes; plain values, and arrays where results were arrays."""
        state: Any
        if self.aggregation in (Aggregation.SUM, Aggregation.AVERAGE):
            total = None if self._total is None else self._total.state()
            kind = "number" if isinstance(self._total, _Numbers) else "array"
            state = [kind, total, list(self._weights.state())]
        elif self.aggregation in (Aggregation.MAX, Aggregation.MIN):
            state = None if self._best is None else list(self._best)
        else:
            state = [[index, self._values[index]] for index in sorted(self._values)]
        return {"aggregation": self.aggregation.value, "count": self.count, "state": state}

    def merge(self, partial: dict[str, Any]) -> None:
        """Take the results of another aggregator of the same kind. Raises JobError for what is not a partial of one."""
        if not isinstance(partial, dict) or partial.get("aggregation") != self.aggregation.value:
            raise JobError(f"not a partial result of aggregation {self.aggregation.value!r}")
        try:
            count, state = int(partial["count"]), partial["state"]
            if self.aggregation in (Aggregation.SUM, Aggregation.AVERAGE):
                kind, total, weights = state
                self._weights.merge(weights)
                if total is not None:
                    self._total_of(kind == "array", None).merge(total)
            elif self.aggregation in (Aggregation.MAX, Aggregation.MIN):
                if state is not None:
                    index, value = state
                    self._challenge(index, value)
            else:
                self._values.update({int(index): value for index, value in state})
        except (KeyError, TypeError, ValueError) as error:
            raise JobError(f"a partial result of {self.aggregation.value!r} does not have the form of one") from error
        self.count += count

    def result(self) -> Any:
        """The answer. Raises JobError where there is none: no results for AVERAGE, MAX, MIN; values that do not join."""
        match self.aggregation:
            case Aggregation.SUM:
                return 0 if self._total is None else self._total.result()
            case Aggregation.AVERAGE:
                return self._average()
            case Aggregation.MAX | Aggregation.MIN:
                if self._best is None:
                    raise self._no_results()
                return self._best[1]
            case Aggregation.CONCAT:
                return join([(index, self._values[index]) for index in sorted(self._values)])
            case _:
                return [self._values[index] for index in sorted(self._values)]

    # --- inner --------------------------------------------------------------------------------------------------------

    def _add_to_total(self, index: int, value: Any, weight: Weight) -> None:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise JobError(f"the weight of task {index} is {weight!r}: give a finite number", task=index)
        array = is_array(value)
        if not array and not isinstance(value, int | float | complex):
            raise JobError(
                f"task {index} returned {type(value).__name__}, and {self.aggregation.value!r} adds up numbers and arrays: "
                "return one of these, or use 'concat' or a reduction",
                task=index,
            )
        factor: Weight = int(weight) if weight == int(weight) else weight
        total = self._total_of(array, index)
        total.add(value if factor == 1 else value * factor, index)
        self._weights.add(factor)

    def _total_of(self, array: bool, index: int | None) -> _Numbers | ArraySum:
        if self._total is None:
            if array:
                # NumPy is loaded where arrays are, and nowhere else.
                from p2pcompute.jobs.arrays import ArraySum

                self._total = ArraySum()
            else:
                self._total = _Numbers()
        elif array is isinstance(self._total, _Numbers):
            kinds = ("an array", "numbers") if array else ("a number", "arrays")
            who = "a part of the tasks" if index is None else f"task {index}"
            raise JobError(f"{who} returned {kinds[0]} where others returned {kinds[1]}: return one kind", task=index)
        return self._total

    def _average(self) -> Any:
        if self._total is None:
            raise self._no_results()
        weights = self._weights.exact()
        if weights == 0:
            raise JobError("the weights of all results add up to 0: an average needs another sum")
        if isinstance(self._total, _Numbers):
            return self._total.divided(weights)
        return self._total.result() / nearest_float(weights)

    def _challenge(self, index: int, value: Any) -> None:
        largest = self.aggregation is Aggregation.MAX
        if self._best is None:
            self._best = (index, value)
            return
        best_index, best = self._best
        if is_array(value) and is_array(best):
            from p2pcompute.jobs.arrays import extreme

            self._best = (min(index, best_index), extreme(best, value, largest, index))
            return
        try:
            if is_array(value) or is_array(best):
                raise TypeError("an array and a single value")
            better = bool(value > best if largest else value < best)
            equal = not better and bool(value == best)
        except TypeError as error:
            raise JobError(
                f"task {index} returned {type(value).__name__}, which cannot be compared with {type(best).__name__} of "
                f"task {best_index}: return one kind",
                task=index,
            ) from error
        # NaN wins against everything, as in NumPy: an extreme of what is undefined is undefined.
        undefined = _is_nan(value) and not _is_nan(best)
        if undefined or (not _is_nan(best) and (better or (equal and index < best_index))):
            self._best = (index, value)

    def _no_results(self) -> JobError:
        return JobError(f"there are no results for aggregation {self.aggregation.value!r}: every task was left out")


class _Numbers:
    """The sum of integers, floats and complex numbers."""

    def __init__(self) -> None:
        #: Sum of the numbers, or of their real parts.
        self._real = ExactSum()
        #: Sum of the imaginary parts; None while no number was complex.
        self._imaginary: ExactSum | None = None

    def add(self, value: complex, task: int | None = None) -> None:
        """Add one number."""
        if isinstance(value, int | float):
            self._real.add(value)
            return
        self._imaginary = self._imaginary or ExactSum()
        self._real.add(value.real)
        self._imaginary.add(value.imag)

    def state(self) -> list[Any]:
        """What `merge` takes."""
        imaginary = None if self._imaginary is None else list(self._imaginary.state())
        return [list(self._real.state()), imaginary]

    def merge(self, state: Any) -> None:
        """Add the numbers of another sum."""
        real, imaginary = state
        self._real.merge(real)
        if imaginary is not None:
            self._imaginary = self._imaginary or ExactSum()
            self._imaginary.merge(imaginary)

    def result(self) -> complex:
        """The sum."""
        if self._imaginary is None:
            return self._real.result()
        return complex(self._real.result(), self._imaginary.result())

    def divided(self, weights: Fraction) -> complex:
        """The sum over `weights`, rounded once."""
        real = _divided(self._real, weights)
        return real if self._imaginary is None else complex(real, _divided(self._imaginary, weights))


def _divided(total: ExactSum, weights: Fraction) -> float:
    if total.special != 0:
        return total.special / nearest_float(weights)
    return nearest_float(total.exact() / weights)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


_JOINS: tuple[tuple[type | tuple[type, ...], str, Callable[[list[Any]], Any]], ...] = (
    (str, "str", "".join),
    ((bytes, bytearray, memoryview), "bytes", b"".join),
    (list, "list", lambda parts: [member for part in parts for member in part]),
    (tuple, "tuple", lambda parts: tuple(member for part in parts for member in part)),
)


def join(rows: list[tuple[int, Any]]) -> Any:
    """Values one after the other, from rows of (index, value) in order: sequences of one kind joined, else a list of the values.

    Raises JobError, naming the task, where some values are sequences of one kind and others are not.
    """
    if not rows:
        return []
    first = rows[0][1]
    for types, name, joined in _JOINS:
        if isinstance(first, types):
            _same_kind(rows, name, partial(_is_instance, types))
            return joined([value for _, value in rows])
    if is_array(first):
        _same_kind(rows, "array", is_array)
        from p2pcompute.jobs.arrays import concatenate

        return concatenate([value for _, value in rows])
    every = tuple(t for types, _, _ in _JOINS for t in (types if isinstance(types, tuple) else (types,)))
    _same_kind(rows, type(first).__name__, lambda value: not isinstance(value, every) and not is_array(value))
    return [value for _, value in rows]


def _is_instance(types: type | tuple[type, ...], value: object) -> bool:
    return isinstance(value, types)


def _same_kind(rows: list[tuple[int, Any]], name: str, fits: Callable[[Any], bool]) -> None:
    for index, value in rows:
        if not fits(value):
            raise JobError(
                f"task {index} returned {type(value).__name__} where task {rows[0][0]} returned {name}: 'concat' joins one kind "
                "of sequence, or lists values that are none",
                task=index,
            )
