"""What jobs between far sites run: tasks that take time rather than a processor, and values that no link can make smaller."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

#: Numbers in a vector: 32 kB.
LENGTH = 4_000
_PLACES = np.arange(1, LENGTH + 1, dtype=np.uint64)


def vector_of(x: int) -> Any:
    """(LENGTH,) uint64 below 2**40 that look random: sums of millions fit into 64 bits."""
    return (_PLACES * np.uint64(x + 1) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(24)


def sum_of_vectors(inputs: Iterable[int]) -> Any:
    """What a job over `inputs` comes to."""
    return functools.reduce(np.add, map(vector_of, inputs))


def vector_after(pause_s: float, x: int) -> Any:
    """`vector_of(x)`, after a while."""
    time.sleep(pause_s)
    return vector_of(x)


def vector_with(data: Any, pause_s: float, x: int) -> Any:
    """The same with `data`, whose size is in the answer."""
    return vector_after(pause_s, x) + np.uint64(len(data))


def noted_vector_after(folder: str, pause_s: float, x: int) -> Any:
    """`vector_after`, and a file of `folder` says that it is done, and where: its name begins with the number of the network namespace."""
    vector = vector_after(pause_s, x)
    open(os.path.join(folder, f"{os.stat('/proc/self/ns/net').st_ino}-{x}"), "w").close()
    return vector


def square_after(pause_s: float, x: int) -> int:
    """A small value."""
    time.sleep(pause_s)
    return x * x


def vectors(pause_s: float) -> Callable[[int], Any]:
    """Tasks whose results are vectors."""
    return functools.partial(vector_after, pause_s)


def noted_vectors(folder: str, pause_s: float) -> Callable[[int], Any]:
    """The same, noted in `folder`."""
    return functools.partial(noted_vector_after, folder, pause_s)


def vectors_with(handle: Any, pause_s: float) -> Callable[[int], Any]:
    """The same, and each worker needs what `handle` stands for."""
    return functools.partial(vector_with, handle, pause_s)


def squares(pause_s: float) -> Callable[[int], Any]:
    """Tasks whose results are small."""
    return functools.partial(square_after, pause_s)
