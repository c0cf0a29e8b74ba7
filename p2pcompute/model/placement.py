"""How a submitter wants its tasks placed: kinds of tasks, preferences, a budget, and what to do where nobody fits.

Nouns with their limits; the rules that use them are in `jobs/strategies/`, `jobs/budget.py` and `jobs/placing.py`.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.requirement import Kind, quantity

#: The strategy of a job that names none.
STRATEGY_DEFAULT = "hlig"


_Member = TypeVar("_Member", bound=enum.StrEnum)


def member_of(kind: type[_Member], what: str, name: str) -> _Member:
    """The member of `kind` called `name`, in any case. Raises UnknownNameError with the nearest valid name; `what` names the kind."""
    try:
        return kind(name.lower())
    except ValueError:
        raise UnknownNameError(what, name, [member.value for member in kind]) from None


class TaskType(enum.StrEnum):
    """What a task mostly needs. The default strategy follows it."""

    COMPUTE = "compute"
    NETWORK = "network"
    MEMORY = "memory"
    MIXED = "mixed"

    @classmethod
    def parse(cls, name: str) -> TaskType:
        """The type called `name` in any case, also as in COMPUTE_INTENSIVE. Raises UnknownNameError."""
        try:
            return cls(name.lower().removesuffix("_intensive"))
        except ValueError:
            raise UnknownNameError("task type", name, [member.value for member in cls]) from None


class Target(enum.StrEnum):
    """What the adaptive strategy makes small (or, for throughput, large)."""

    #: The time until this task is done: wait + run.
    LATENCY = "minimize_latency"
    #: wait + 2·run: the run counts once more for the tasks that could have had the slot meanwhile.
    THROUGHPUT = "maximize_throughput"
    #: The peer's price of the run; among equals the time until it is done.
    COST = "minimize_cost"

    @classmethod
    def parse(cls, name: str) -> Target:
        """The target called `name`, in any case. Raises UnknownNameError with the nearest valid name."""
        return member_of(cls, "optimization_target", name)


class OnUnmet(enum.StrEnum):
    """What a job does that no peer may run: end with an error that says what is lacking, or wait for a peer."""

    FAIL = "fail"
    WAIT = "wait"


class Coordination(enum.StrEnum):
    """Whether communities other than the submitter's own are given their share of a job as a whole."""

    #: Where it helps: their key nodes dispatch in their communities, and merge results there where the aggregation allows it.
    AUTO = "auto"
    #: The same, but results come one by one: nobody's merging has to be believed.
    RELAY = "relay"
    #: Every peer gets its tasks from the submitter's own.
    OFF = "off"

    @classmethod
    def parse(cls, name: str) -> Coordination:
        """The member called `name`, in any case. Raises UnknownNameError with the nearest valid name."""
        return member_of(cls, "coordination", name)


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a submitter would rather have; peers that are worse come last, they are not left out (see each strategy).

    `prefer_local`: this machine first. `key_nodes`: those that lead their communities, for tasks that everything else waits for.
    `max_latency_s`: a round trip. `cost_limit`: cost of a peer per hour.
    """

    prefer_local: bool = False
    key_nodes: bool = False
    max_latency_s: float | None = None
    cost_limit: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_latency_s", "cost_limit"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}: give a number from 0 up, or None for no limit")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is preferred."""
        return not self.prefer_local and not self.key_nodes and self.max_latency_s is None and self.cost_limit is None


#: What a submitter prefers that says nothing.
NO_PREFERENCES = Preferences()


@dataclass(frozen=True, slots=True)
class Budget:
    """What a job may cost in all: Σ cost per hour · seconds / 3600 over its tasks, at the peers' own prices.

    `currency` is a word for people: peers say prices without one, and nothing is converted.
    """

    max_cost: float
    currency: str = "USD"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_cost) and self.max_cost >= 0):
            raise UsageError(f"max_cost is {self.max_cost}: give a number from 0 up")
        if not re.fullmatch(r"[A-Za-z]{1,8}", self.currency):
            raise UsageError(f"currency is {self.currency!r}: give a word of up to 8 letters, such as USD")

    def __str__(self) -> str:
        return f"{self.max_cost:g} {self.currency}"


def preferences_of(given: object) -> Preferences:
    """Preferences from a mapping; `max_latency` may be a text such as "100ms". Raises UnknownNameError, UsageError."""
    if isinstance(given, Preferences):
        return given
    if not isinstance(given, Mapping):
        raise UsageError(f"preferences are {given!r}: give a mapping such as {{'prefer_local': True}}")
    values: dict[str, object] = {}
    for name, value in given.items():
        if name == "max_latency":
            # The name that a text with a unit has; a number means milliseconds, as such figures are given elsewhere.
            text = value if isinstance(value, str) else f"{value}ms"
            values["max_latency_s"] = quantity(text, Kind.DURATION, "100ms")
        elif name in ("prefer_local", "key_nodes"):
            values[name] = _truth(name, value)
        elif name in ("max_latency_s", "cost_limit"):
            values[name] = None if value is None else _number(name, value)
        else:
            raise UnknownNameError("preference", str(name), (*_names(Preferences), "max_latency"))
    return Preferences(**values)  # type: ignore[arg-type]


def budget_of(given: object) -> Budget | None:
    """A budget from a mapping or a number (its `max_cost`). Raises UnknownNameError, UsageError."""
    if given is None or isinstance(given, Budget):
        return given
    if isinstance(given, Mapping):
        for name in given:
            if name not in _names(Budget):
                raise UnknownNameError("part of a budget", str(name), _names(Budget))
        if "max_cost" not in given:
            raise UsageError("a budget without max_cost limits nothing: give max_cost, or leave the budget out")
        return Budget(_number("max_cost", given["max_cost"]), str(given.get("currency", "USD")))
    return Budget(_number("budget", given))


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _number(name: str, value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise UsageError(f"{name} is {value!r}: give a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} is {value!r}: give a number")
    return float(value)


def _truth(name: str, value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "1"):
        return True
    if isinstance(value, str) and value.lower() in ("false", "no", "off", "0"):
        return False
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}: give yes or no")
    return value
