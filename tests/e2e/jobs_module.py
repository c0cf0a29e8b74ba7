"""Functions that tests submit: an ordinary module of a user, with a helper module, classes and data beside it."""

from __future__ import annotations

import enum
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jobs_helper import triple


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Point:
    x: int
    colour: Colour


class OwnError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


FACTOR = 10


def scaled(x: int) -> int:
    return triple(x) * FACTOR


def point(x: int) -> Point:
    return Point(x, Colour.BLUE if x % 2 else Colour.RED)


def shifted(p: Point) -> Point:
    return Point(p.x + 1, p.colour)


def fails(x: int) -> int:
    if x == 3:
        raise OwnError(x)
    return x


def exits(x: int) -> int:
    os._exit(7)


def slow(x: float) -> float:
    time.sleep(x)
    return x


def naps(x: int) -> int:
    time.sleep(0.05)
    return x * x


def together(task: tuple[str, int, int]) -> int:
    """Ends once `count` tasks have begun, for each of which `folder` has a file: where a peer runs one at a time, at so many peers."""
    folder, count, x = task
    Path(folder, str(x)).touch()
    while len(os.listdir(folder)) < count:
        time.sleep(0.01)
    return x * x


def version(_: int) -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def needs_module(_: int) -> int:
    import p2pcompute_no_such_module_anywhere  # noqa: F401

    return 1


def words(text: str) -> Counter[str]:
    return Counter(text.split())


def merged(parts: list[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def concatenated(parts: list[str]) -> str:
    return "".join(parts)


def weighted(values: list[float], weights: list[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True))


def shout(x: int) -> int:
    print(f"working on {x}")
    print("trouble", file=sys.stderr)
    return x


def flood(_: int) -> int:
    for number in range(200_000):
        print("x" * 100, number)
    return 1


def hog(_: int) -> int:
    return len(bytearray(4 << 30))


def length(data: bytes) -> int:
    return len(data)


def big(count: int) -> bytes:
    return b"z" * count


def make_closure(offset: int):
    def closure(x: int) -> Point:
        return Point(triple(x) + offset, Colour.RED)

    return closure


def triple_of(x: int) -> int:
    return 3 * x


def as_list(x: int) -> list[int]:
    return [x, x]


def identity(x: float) -> float:
    return x


def table_entry(table: object):
    def entry(x: int) -> int:
        return table["numbers"][x]  # type: ignore[index]

    return entry


def short_nap(x: int) -> int:
    time.sleep(0.002)
    return x * x


def waits_for_go(task: tuple[str, int]) -> int:
    """Says in `folder` that it has begun, then waits for a file "go" there."""
    folder, x = task
    Path(folder, f"begun-{x}-{os.getppid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return x * x


def burns(x: int) -> int:
    """Takes 30 ms of a core, and writes 100,000 bytes."""
    end = time.process_time() + 0.03
    while time.process_time() < end:
        pass
    Path(f"out-{x}").write_bytes(bytes(100_000))
    return x
