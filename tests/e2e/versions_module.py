"""What the test of several Python versions submits: a closure, a helper module, and a class of the caller's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from jobs_helper import triple


@dataclass(frozen=True)
class Visit:
    """What one task saw."""

    number: int
    value: int
    version: tuple[int, int]


def visits(offset: int, pause_s: float) -> Callable[[int], Visit]:
    """A closure over data, which calls a function of a helper module and returns a class of the caller's own."""

    def visit(number: int) -> Visit:
        time.sleep(pause_s)  # long enough that no peer does all of it
        return Visit(number, triple(number) + offset, (sys.version_info.major, sys.version_info.minor))

    return visit
