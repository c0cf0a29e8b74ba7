"""A fence around a run: what code under simulation could take from the real machine behind the loop's back.

The product takes time and entropy through `model/seams.py`, foreign packages do not: `kademlia` numbers its messages with `os.urandom` and ages
its buckets with `time.monotonic`. While the fence stands, `time.time` and `time.monotonic` are the loop's, `os.urandom` and the module
`random` are seeded, and `time.sleep` and sockets are refused. It is for the whole process, so there is one at a time; clocks that only measure
(`time.perf_counter`, `time.process_time`) stay real.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from p2pcompute.sim.dice import Dice
from p2pcompute.sim.loop import SimLoop, SimulationError
from p2pcompute.sim.seams import WALL_START_S

#: Methods of a socket by which bytes leave this process, or come in.
_SOCKET_METHODS: Final = ("bind", "connect", "connect_ex", "sendto")
#: By which a standing fence is seen.
_REAL_MONOTONIC: Final = time.monotonic


@contextlib.contextmanager
def fenced(loop: SimLoop, dice: Dice) -> Iterator[None]:
    """Put up the fence around what runs inside the block. Raises SimulationError where one stands already."""
    if time.monotonic is not _REAL_MONOTONIC:
        raise SimulationError("a simulation runs in this process already: run the other one in a process of its own")
    entropy = dice.of("fence", "urandom")
    state = random.getstate()
    random.seed(dice.derived("fence", "random"))
    try:
        with contextlib.ExitStack() as stack:
            for target, name, replacement in (
                (time, "time", lambda: WALL_START_S + loop.time()),
                (time, "monotonic", loop.time),
                (time, "sleep", _refusing(loop, "time.sleep()")),
                (os, "urandom", entropy.randbytes),
                # `random.SystemRandom`, and with it `secrets`, has its own name for os.urandom.
                (random, "_urandom", entropy.randbytes),
                *((socket.socket, each, _refusing(loop, f"socket.{each}()")) for each in _SOCKET_METHODS),
            ):
                stack.enter_context(_replaced(target, name, replacement))
            yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _replaced(target: Any, name: str, replacement: object) -> Iterator[None]:
    """`target.name` is `replacement` inside the block. What a class inherits is shadowed and uncovered again, not copied down."""
    is_own = name in vars(target)
    original = getattr(target, name)
    setattr(target, name, replacement)
    try:
        yield
    finally:
        if is_own:
            setattr(target, name, original)
        else:
            delattr(target, name)


def _refusing(loop: SimLoop, what: str) -> Callable[..., object]:
    def refused(*_: Any, **__: Any) -> object:
        return loop.refuse(what)

    return refused
