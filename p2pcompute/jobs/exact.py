"""Sums of numbers that do not depend on the order: exact for integers, rounded once at the end for floats.

Every finite float is a whole multiple of 2**-1074, so a sum of floats is kept as one whole number of these units: nothing is
ever rounded, nothing overflows on the way, and two sums are merged by adding two numbers. (Shewchuk's partials, as in
`math.fsum`, need about the same time, but overflow in the middle and travel as lists.)
"""

from __future__ import annotations

import math
from fractions import Fraction

from p2pcompute.model.errors import JobError

_UNIT_SHIFT = 1074

#: What a sum travels as: integers, floats in units, floats seen, infinite or undefined part.
SumState = tuple[int, int, bool, float]


class ExactSum:
    """The sum of integers and floats."""

    __slots__ = ("_floats", "_integers", "_special", "_units")

    def __init__(self) -> None:
        #: Sum of the integers.
        self._integers = 0
        #: Sum of the finite floats, in units of 2**-1074.
        self._units = 0
        #: Whether a float was among the numbers: the result is one then.
        self._floats = False
        #: Sum of infinities and NaNs; 0.0 while there was none.
        self._special = 0.0

    def add(self, value: int | float) -> None:
        """Add one number."""
        if isinstance(value, float):
            self._floats = True
            if math.isfinite(value):
                numerator, denominator = value.as_integer_ratio()
                self._units += numerator << (_UNIT_SHIFT + 1 - denominator.bit_length())
            else:
                self._special += value
        else:
            self._integers += value

    def state(self) -> SumState:
        """What `merge` takes."""
        return (self._integers, self._units, self._floats, self._special)

    def merge(self, state: SumState) -> None:
        """Add the numbers of another sum. Raises JobError for what is no state of one."""
        if (
            not isinstance(state, tuple | list)
            or len(state) != 4
            or type(state[0]) is not int
            or type(state[1]) is not int
            or type(state[2]) is not bool
            or type(state[3]) is not float
        ):
            raise JobError("a partial sum does not have the form of one")
        integers, units, floats, special = state
        self._integers += integers
        self._units += units
        self._floats = self._floats or floats
        self._special += special

    @property
    def has_floats(self) -> bool:
        """Whether a float was among the numbers."""
        return self._floats

    @property
    def special(self) -> float:
        """The sum of the infinities and NaNs, 0.0 where there was none."""
        return self._special

    def exact(self) -> Fraction:
        """The sum of the finite numbers."""
        return Fraction(self._integers) + Fraction(self._units, 1 << _UNIT_SHIFT)

    def result(self) -> int | float:
        """The sum: an int of ints only, else the nearest float, ±inf where it is too large for one."""
        if not self._floats:
            return self._integers
        if self._special != 0:  # NaN too is different from 0
            return self._special
        return nearest_float(self.exact())


def nearest_float(value: Fraction) -> float:
    """`value` as a float, rounded once; ±inf where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
