"""What the test of several Python versions submits: a closure, a helper module, and a class of the caller's own."""

from __future__ import annotations

import os
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


def visits(offset: int, folder: str, peers: int) -> Callable[[int], Visit]:
    """A closure over data, which calls a function of a helper module and returns a class of the caller's own.

    No task ends before tasks of `peers` peers have begun, for which `folder` has a file each: else one peer might do all of it.
    """

    def visit(number: int) -> Visit:
        open(os.path.join(folder, str(os.getppid())), "w").close()
        while len(os.listdir(folder)) < peers:
            time.sleep(0.01)
        return Visit(number, triple(number) + offset, (sys.version_info.major, sys.version_info.minor))

    return visit
