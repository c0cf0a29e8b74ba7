"""Functions that the coordination tests send to other communities."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

#: Large enough to be merged by a coordinator.
LENGTH = 200


def vector(x: int) -> Any:
    return np.full(LENGTH, x, dtype=np.int64)


def slow_vector(x: int) -> Any:
    time.sleep(0.02)
    return vector(x)


def count_words(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def slow_count(text: str) -> dict[str, int]:
    time.sleep(0.02)
    return count_words(text)


def merge_counts(values: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for value in values:
        for word, count in value.items():
            total[word] = total.get(word, 0) + count
    return total


def never_merges(values: list[Any]) -> Any:
    raise ValueError("these cannot be merged")


def square(x: int) -> int:
    time.sleep(0.005)
    return x * x


def shared_length(data: bytes, x: int) -> int:
    time.sleep(0.02)  # long enough that every community is asked
    return len(data) + x


def floats(x: int) -> float:
    return 0.1 * x


def odd_ones_fail(x: int) -> Any:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return vector(x)


def dies_at_seven(mark: str, x: int) -> int:
    if x == 7 and not Path(mark).exists():
        Path(mark).touch()
        os._exit(3)
    return x


def large(x: int) -> bytes:
    return bytes([x % 256]) * 300_000
