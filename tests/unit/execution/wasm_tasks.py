"""What the tests of the WebAssembly Python submit: plain Python, as users write it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import sys
import threading
from collections.abc import Callable

import p2pcompute
from p2pcompute import Peer

OFFSET = 7


@dataclasses.dataclass(frozen=True)
class Point:
    """A class of the caller's own."""

    x: int
    y: float


class OddError(Exception):
    """An exception of the caller's own."""


def add(a: int, b: int = 1) -> int:
    return a + b + OFFSET


def same(value: object) -> object:
    return value


def adder(base: int) -> Callable[[int], int]:
    def plus(number: int) -> int:
        return base + number

    return plus


UPPER = lambda text: text.upper()  # noqa: E731


def counted(number: int) -> int:
    return sum(range(number))


def missing_of(names: list[str]) -> list[str]:
    return [name for name in names if name not in sys.modules]


def moved(point: Point) -> Point:
    return dataclasses.replace(point, x=point.x + 1)


def told(text: str) -> int:
    print(text)
    print("not", text, file=sys.stderr)
    p2pcompute.progress(0.5, "half way")
    return len(text)


def odd(number: int) -> int:
    if number % 2:
        raise OddError(number)
    return number


def broken(text: str) -> object:
    return json.loads(text)


async def slept(number: int) -> int:
    await asyncio.sleep(0.001)
    return sum(await asyncio.gather(*(asyncio.sleep(0.001, each) for each in range(number))))


async def stuck() -> None:
    await asyncio.get_running_loop().create_future()


def where() -> tuple[str, tuple[int, int]]:
    return sys.platform, sys.version_info[:2]


def dice() -> float:
    return random.random()


def greedy() -> int:
    return len([bytes(1 << 20) for _ in range(10_000)])


def deep(levels: int) -> int:
    return 0 if levels == 0 else 1 + deep(levels - 1)


def quit_at_once() -> None:
    os._exit(3)


def passwords() -> str:
    with open("/etc/passwd") as file:
        return file.read()


def environment() -> dict[str, str]:
    return dict(os.environ)


def locked() -> int:
    with threading.Lock():
        return 1


def be_a_peer() -> object:
    return Peer()


def forever() -> None:
    while True:
        pass


def total(values: list[int]) -> int:
    return sum(values)
