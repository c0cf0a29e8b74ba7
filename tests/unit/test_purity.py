"""Pure rooms, run with the world switched off.

Import contracts cannot prove purity: a library may read a clock. So each exercise below runs while clocks, dice, sockets,
disk, processes, threads and event loops raise, twice with the same seed, and must do the same both times. A machine
(a class with `handle` and `deadline`) of a pure room without an exercise fails `test_every_machine_is_exercised`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
from collections.abc import Callable
from types import ModuleType

import pytest

import p2pcompute
from tests.purity import exercises
from tests.purity.world import Impure, world_switched_off

#: Rooms whose machines must be pure.
PURE_ROOMS = ("model", "wire", "membership", "topology", "trust", "jobs")


def _modules_of(room: str) -> list[ModuleType]:
    package = importlib.import_module(f"p2pcompute.{room}")
    inside = [each.name for each in pkgutil.walk_packages(package.__path__, f"p2pcompute.{room}.")]
    return [importlib.import_module(name) for name in sorted(inside)]


def machines() -> dict[str, type]:
    """Every class of a pure room that has `handle` and `deadline`, by its full name."""
    found = {}
    for room in PURE_ROOMS:
        for module in _modules_of(room):
            for name, value in sorted(vars(module).items()):
                if (
                    inspect.isclass(value)
                    and value.__module__ == module.__name__
                    and callable(getattr(value, "handle", None))
                    and callable(getattr(value, "deadline", None))
                    and not getattr(value, "_is_protocol", False)
                ):
                    found[f"{module.__name__}.{name}"] = value
    return found


@pytest.mark.parametrize("name", sorted(exercises.PURE))
def test_runs_without_a_world_and_twice_the_same(name: str) -> None:
    exercise = exercises.PURE[name]
    with world_switched_off():
        first = exercise(random.Random(7))
    with world_switched_off():
        second = exercise(random.Random(7))
    assert first == second, "the same seed led to something else"
    assert first, "an exercise that yields nothing shows nothing"


def test_every_machine_is_exercised() -> None:
    missing = sorted(set(machines()) - set(exercises.PURE))
    assert not missing, f"add exercises to tests/purity/exercises.py for {missing}"


def test_every_exercise_of_a_machine_names_one_that_exists() -> None:
    gone = []
    for name in exercises.PURE:
        module, _, attribute = name.rpartition(".")
        if not hasattr(importlib.import_module(module), attribute):
            gone.append(name)
    assert not gone


@pytest.mark.parametrize("name", sorted(exercises.WORLDLY))
def test_the_world_is_really_off(name: str) -> None:
    """The switch itself: each of these touches the world, and is stopped."""
    touch: Callable[[], object] = exercises.WORLDLY[name]
    with pytest.raises(Impure), world_switched_off():
        touch()


def test_the_world_comes_back() -> None:
    import time

    with world_switched_off(), pytest.raises(Impure):
        time.monotonic()
    assert time.monotonic() > 0
    assert p2pcompute.__version__
