"""What a submitter asked for, checked at once: options by name, their types and ranges, and what an aggregation needs.

Every door (library, command line, control socket) comes through here, so that a wrong name is the same error everywhere:
`UnknownNameError` with the nearest valid one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TypeVar

from p2pcompute.jobs.strategies import NAMES, check_names
from p2pcompute.model.engine import Engine, grants_of
from p2pcompute.model.errors import UnknownNameError, UsageError
from p2pcompute.model.ids import JobId, ProgramId
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, OnError
from p2pcompute.model.peer import Isolation
from p2pcompute.model.placement import Coordination, OnUnmet, Target, TaskType, budget_of, member_of, preferences_of
from p2pcompute.model.requirement import requirements_of

T = TypeVar("T")

#: Names that `options_of` takes.
OPTION_NAMES: tuple[str, ...] = tuple(field.name for field in fields(JobOptions))
#: Aggregations that run a function of the program.
NEEDS_REDUCE = frozenset({Aggregation.REDUCE, Aggregation.CUSTOM})


_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_NONE = frozenset({"", "none", "null"})


def options_of(named: Mapping[str, object]) -> JobOptions:
    """Options from names and values; values may be text, as a command line or a file has them.

    Raises UnknownNameError for a name that is no option, UsageError for a value of the wrong type or range.
    """
    values: dict[str, object] = {}
    for name, value in named.items():
        if name not in _PARSERS:
            raise UnknownNameError("option", name, OPTION_NAMES)
        values[name] = _PARSERS[name](name, value)
    options = JobOptions(**values)  # type: ignore[arg-type]
    check_options(options)
    return options


def check_options(options: JobOptions) -> None:
    """What options cannot see of themselves. Raises UnknownNameError, UsageError."""
    check_names(options, NAMES)


def options_document(options: JobOptions) -> dict[str, object]:
    """`options` in plain types, as `options_of` takes them; without a balancer, which cannot leave its process."""
    preferences, budget = options.preferences, options.budget
    return {
        "timeout_s": options.timeout_s,
        "job_timeout_s": options.job_timeout_s,
        "retries": options.retries,
        "priority": options.priority,
        "memory_bytes": options.memory_bytes,
        "on_error": options.on_error.value,
        "speculate": options.speculate,
        "strategy": options.strategy,
        "fallback_strategy": options.fallback_strategy,
        "task_type": options.task_type.value,
        "requirements": [str(requirement) for requirement in options.requirements],
        "on_unmet": options.on_unmet.value,
        "preferences": {
            "prefer_local": preferences.prefer_local,
            "key_nodes": preferences.key_nodes,
            "max_latency_s": preferences.max_latency_s,
            "cost_limit": preferences.cost_limit,
        },
        "budget": None if budget is None else {"max_cost": budget.max_cost, "currency": budget.currency},
        "expected_task_s": options.expected_task_s,
        "health_check": options.health_check,
        "optimization_target": options.optimization_target.value,
        "cache_ttl_s": options.cache_ttl_s,
        "coordination": options.coordination.value,
        "engine": None if options.engine is None else options.engine.value,
        "isolation": None if options.isolation is None else options.isolation.value,
        "grants": list(options.grants),
    }


def aggregation_of(value: Aggregation | str) -> Aggregation:
    """The aggregation of that name. Raises UnknownNameError, or UsageError for what is no name at all."""
    if isinstance(value, Aggregation):
        return value
    if not isinstance(value, str):
        raise UsageError(f"an aggregation is named by a text such as 'sum', not by {type(value).__name__}")
    return Aggregation.parse(value)


def spec_of(
    *,
    job: JobId,
    name: str,
    program: ProgramId,
    map_entry: str,
    aggregation: Aggregation | str,
    reduce_entry: str | None,
    options: JobOptions,
    expected_tasks: int | None = None,
) -> JobSpec:
    """A job, checked as a whole. Raises UsageError where aggregation and reduce function do not fit."""
    kind = aggregation_of(aggregation)
    if kind in NEEDS_REDUCE and reduce_entry is None:
        raise UsageError(f"aggregation {kind.value!r} needs a reduce function: give one, or choose another aggregation")
    if kind not in NEEDS_REDUCE and reduce_entry is not None:
        raise UsageError(f"aggregation {kind.value!r} uses no reduce function: leave it out, or ask for 'reduce'")
    if expected_tasks is not None and expected_tasks < 0:
        raise UsageError(f"expected_tasks is {expected_tasks}: give the number of inputs, or None where it is unknown")
    return JobSpec(job, name, program, map_entry, kind, reduce_entry, options, expected_tasks)


def _wrong(name: str, value: object, wanted: str) -> UsageError:
    return UsageError(f"{name} is {value!r}: give {wanted}")


def _or_none(parse: Callable[[str, object], T]) -> Callable[[str, object], T | None]:
    def parse_or_none(name: str, value: object) -> T | None:
        if value is None or (isinstance(value, str) and value.strip().lower() in _NONE):
            return None
        return parse(name, value)

    return parse_or_none


def _seconds(name: str, value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _wrong(name, value, "seconds as a number, such as 2.5, or none") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(name, value, "seconds as a number, such as 2.5, or None for no time-out")
    return float(value)


def _whole(name: str, value: object) -> int:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise _wrong(name, value, "a whole number") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, "a whole number")
    return value


def _truth(name: str, value: object) -> bool:
    if isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE:
        return value.strip().lower() in _TRUE
    if not isinstance(value, bool):
        raise _wrong(name, value, "yes or no")
    return value


def _named(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "the name of a strategy, such as 'hlig'")
    return value.lower()


def _task_type(name: str, value: object) -> TaskType:
    if not isinstance(value, str):
        raise _wrong(name, value, "'compute', 'network', 'memory' or 'mixed'")
    return TaskType.parse(value)


def _target(name: str, value: object) -> Target:
    if not isinstance(value, str):
        raise _wrong(name, value, "'minimize_latency', 'maximize_throughput' or 'minimize_cost'")
    return Target.parse(value)


def _coordination(name: str, value: object) -> Coordination:
    if not isinstance(value, str):
        raise _wrong(name, value, "'auto', 'relay' or 'off'")
    return Coordination.parse(value)


def _engine(name: str, value: object) -> Engine:
    if not isinstance(value, str):
        raise _wrong(name, value, "the name of an engine, such as 'python' or 'wasm-python'")
    return member_of(Engine, "engine", value)


def _isolation(name: str, value: object) -> Isolation:
    if not isinstance(value, str):
        raise _wrong(name, value, "'process', 'restricted', 'sandbox' or 'wasm'")
    return member_of(Isolation, "isolation", value)


def _on_unmet(name: str, value: object) -> OnUnmet:
    if not isinstance(value, str):
        raise _wrong(name, value, "'fail' or 'wait'")
    return member_of(OnUnmet, f"value of {name}", value)


def _on_error(name: str, value: object) -> OnError:
    if not isinstance(value, str):
        raise _wrong(name, value, "'raise' or 'skip'")
    return member_of(OnError, f"value of {name}", value)


_PARSERS: Mapping[str, Callable[[str, object], object]] = {
    "timeout_s": _or_none(_seconds),
    "job_timeout_s": _or_none(_seconds),
    "retries": _whole,
    "priority": _whole,
    "memory_bytes": _or_none(_whole),
    "on_error": _on_error,
    "speculate": _truth,
    "strategy": _named,
    "fallback_strategy": _or_none(_named),
    "task_type": _task_type,
    "requirements": lambda name, value: requirements_of(value),
    "on_unmet": _on_unmet,
    "preferences": lambda name, value: preferences_of(value),
    "budget": lambda name, value: budget_of(value),
    "expected_task_s": _or_none(_seconds),
    "health_check": _truth,
    "optimization_target": _target,
    "cache_ttl_s": _or_none(_seconds),
    "coordination": _coordination,
    "engine": _or_none(_engine),
    "isolation": _or_none(_isolation),
    "grants": lambda name, value: grants_of(value),
    # Whether it is one, the options themselves see.
    "balancer": lambda name, value: value,
}
