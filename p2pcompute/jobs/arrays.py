"""Sums and extremes of NumPy arrays, element by element, whatever the order of the arrays.

Integers are summed as such: in 64 bits while that cannot overflow, as Python integers after that. Floats are kept as a
list of arrays whose exact sum is the exact sum of the elements (Shewchuk, "Adaptive precision floating-point arithmetic",
1997, grow-expansion), and rounded once at the end. Only this module imports NumPy, and it is itself imported only when an array turns up.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from p2pcompute.model.errors import JobError

_INT64_MAX = (1 << 63) - 1


class ArraySum:
    """The sum of arrays of one shape."""

    def __init__(self) -> None:
        #: Shape of all arrays; None before the first.
        self._shape: tuple[int, ...] | None = None
        #: What NumPy would make of all their types together.
        self._dtype: Any = None
        #: Sum of the integer arrays, int64 or object; None before the first.
        self._integers: Any = None
        #: No element of `_integers` is larger than this.
        self._bound = 0
        #: Float arrays (float64 or complex128) whose exact sum is that of all float arrays.
        self._parts: list[Any] = []
        #: Sum of what is not finite; None while everything was.
        self._special: Any = None

    def add(self, value: Any, task: int | None = None) -> None:
        """Add one array. Raises JobError where its shape or type does not fit."""
        if value.dtype.kind not in "biufc":
            raise JobError(f"task {task} returned an array of {value.dtype}: only numbers can be added up", task=task)
        if self._shape is None:
            self._shape, self._dtype = value.shape, value.dtype
        elif self._shape != value.shape:
            raise JobError(
                f"task {task} returned an array of shape {value.shape}, others of {self._shape}: they cannot be added up",
                task=task,
            )
        self._dtype = np.result_type(self._dtype, value.dtype)
        if value.dtype.kind in "biu":
            self._add_integers(value)
        else:
            self._add_floats(value.astype(np.complex128 if value.dtype.kind == "c" else np.float64))

    def state(self) -> list[Any]:
        """What `merge` takes: arrays that have the same sum."""
        arrays = [*self._parts]
        if self._integers is not None:
            arrays.append(self._integers)
        if self._special is not None:
            arrays.append(self._special)
        return [str(self._dtype), arrays]

    def merge(self, state: Any) -> None:
        """Add the arrays of another sum. Raises JobError for what is no state of one."""
        seen = self._dtype
        try:
            name, arrays = state
            dtype = np.dtype(name)
            if dtype.kind not in "biufc" or not arrays:
                raise ValueError(f"a sum of {len(arrays)} arrays of {dtype}")
            for array in arrays:
                if array.dtype == object:
                    self._shape = array.shape if self._shape is None else self._shape
                    if array.shape != self._shape:
                        raise ValueError(f"arrays of shapes {self._shape} and {array.shape}")
                    if not all(type(member) is int for member in array.flat):
                        raise ValueError("an array of objects that are no integers")
                    self._add_integers(array)
                else:
                    self.add(array)
        except (TypeError, ValueError, AttributeError) as error:
            raise JobError(f"a partial sum of arrays does not have the form of one: {error}") from error
        # The parts travel as float64 and int64: what the result shall be is said beside them.
        self._dtype = dtype if seen is None else np.result_type(seen, dtype)

    def result(self) -> Any:
        """The sum, in the type that NumPy gives to the sum of all."""
        if self._integers is not None and not self._parts and self._special is None:
            return self._integer_result()
        parts = list(self._parts)
        if self._integers is not None:
            parts.append(self._integers.astype(np.float64))
        total = _rounded(parts) if parts else np.zeros(self._shape or (), np.float64)
        with np.errstate(all="ignore"):
            if self._special is not None:
                total = np.where(self._special != 0, self._special, total)
            return total.astype(self._dtype)

    def _add_integers(self, value: Any) -> None:
        largest = max((abs(int(value.max())), abs(int(value.min()))), default=0) if value.size else 0
        self._bound += largest
        wide = value.astype(object) if self._bound > _INT64_MAX else value.astype(np.int64)
        if self._integers is None:
            self._integers = wide
        elif wide.dtype == object:
            self._integers = self._integers.astype(object) + wide
        else:
            self._integers = self._integers + wide

    def _integer_result(self) -> Any:
        wanted = np.dtype(np.uint64) if self._dtype.kind == "u" else np.dtype(np.int64)
        total = self._integers
        if total.dtype == object:
            info = np.iinfo(wanted)
            fits = not total.size or (int(total.max()) <= info.max and int(total.min()) >= info.min)
            return total.astype(wanted) if fits else total
        return total.astype(wanted)

    def _add_floats(self, value: Any) -> None:
        with np.errstate(all="ignore"):
            finite = np.isfinite(value)
            if not finite.all():
                special = np.where(finite, 0, value)
                self._special = special if self._special is None else self._special + special
                value = np.where(finite, value, 0)
            parts: list[Any] = []
            for part in self._parts:
                high = value + part
                back = high - value
                low = (value - (high - back)) + (part - back)
                if low.any():
                    parts.append(low)
                value = high
            parts.append(value)
            self._parts = parts


def _rounded(parts: list[Any]) -> Any:
    """The element-wise sum of arrays, rounded once."""
    if len(parts) == 1:
        return parts[0]
    if any(part.dtype.kind == "c" for part in parts):
        result = np.empty(parts[0].shape, np.complex128)
        result.real = _rounded([np.ascontiguousarray(part.real) for part in parts])
        result.imag = _rounded([np.ascontiguousarray(part.imag) for part in parts])
        return result
    columns = zip(*(part.ravel().tolist() for part in parts), strict=True)
    return np.array([math.fsum(column) for column in columns], np.float64).reshape(parts[0].shape)


def extreme(first: Any, second: Any, largest: bool, task: int | None) -> Any:
    """The larger (or smaller) of two arrays, element by element; NaN where either is. Raises JobError for other shapes."""
    if first.shape != second.shape:
        raise JobError(
            f"task {task} returned an array of shape {second.shape}, others of {first.shape}: they cannot be compared",
            task=task,
        )
    return np.maximum(first, second) if largest else np.minimum(first, second)


def concatenate(arrays: list[Any]) -> Any:
    """Arrays one after the other along their first axis. Raises JobError where the others differ."""
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise JobError(f"the arrays that the tasks returned cannot be joined: {error}") from error
