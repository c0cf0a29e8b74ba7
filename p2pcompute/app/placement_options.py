"""From the flags of `submit` and `map` to options about where a job runs: names and texts here, checks in the options themselves."""

from __future__ import annotations

from typing import Any

from p2pcompute.app.common import usage

#: Wishes that need no value.
_FLAGS = {"local": "prefer_local", "prefer_local": "prefer_local", "key_nodes": "key_nodes"}


def chosen_options(given: dict[str, Any]) -> dict[str, Any]:
    """Options by name from the flags that all commands which run something share, those that were given. Ends the program for a wrong size or wish."""
    from p2pcompute.node.config import parse_size

    chosen: dict[str, Any] = {
        "timeout_s": given["timeout"],
        "retries": given["retries"],
        "priority": given["priority"],
    }
    if given["memory"] is not None:
        try:
            chosen["memory_bytes"] = parse_size(given["memory"])
        except ValueError as error:
            usage(f"--memory is {given['memory']!r}: {error}")
    chosen |= placement_options(given)
    return {name: value for name, value in chosen.items() if value is not None}


def placement_options(given: dict[str, Any]) -> dict[str, Any]:
    """Options by name, None where a flag was not given. Ends the program with a usage error for a wish that is none."""
    return {
        "strategy": given["strategy"],
        "fallback_strategy": given["fallback"],
        "optimization_target": given["target"],
        "cache_ttl_s": given["cache"],
        "task_type": given["task_type"],
        "requirements": [*given["requirements"], *(f"label {label}" for label in given["labels"])] or None,
        "preferences": _preferences(given["preferences"]),
        "budget": given["max_cost"],
        "expected_task_s": given["task_seconds"],
        "coordination": given["coordination"],
        "engine": given["engine"],
        "isolation": given["isolation"],
        "grants": given["grants"] or None,
        "on_unmet": "wait" if given["waits"] else None,
    }


def _preferences(wishes: tuple[str, ...]) -> dict[str, Any] | None:
    chosen: dict[str, Any] = {}
    for wish in wishes:
        name, equals, value = wish.partition("=")
        flag = _FLAGS.get(name.strip().replace("-", "_"))
        if flag is not None and not equals:
            chosen[flag] = True
        elif equals and value.strip():
            chosen[name.strip().replace("-", "_")] = value.strip()
        else:
            usage(
                f"--prefer {wish!r}: write local, key_nodes, or a name and a value such as max_latency=100ms or cost_limit=10"
            )
    return chosen or None
