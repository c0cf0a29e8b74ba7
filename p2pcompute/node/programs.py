"""From what callers submit to programs: Python functions for the engines that run source, and functions of other engines.

A *foreign function* stands for something that is no Python function, such as an export of a WebAssembly module, wherever a function can be given.
What could not run is refused here, before anything is sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from p2pcompute.execution.bundle import Program, make_program
from p2pcompute.execution.engines.wasm_python_modules import refuse_values, refuse_what_cannot_run
from p2pcompute.execution.program import open_program
from p2pcompute.execution.values import encode
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import UsageError
from p2pcompute.model.job import JobOptions

#: Programs remembered by function.
PROGRAMS_KEPT = 256
_SOURCE_ENGINES = (Engine.PYTHON, Engine.WASM_PYTHON)

#: The payload of (positional arguments, named ones).
Encoder = Callable[[tuple[Any, ...], dict[str, Any]], bytes]


@runtime_checkable
class ForeignFunction(Protocol):
    """What can be submitted like a function and is run by `engine`."""

    engine: Engine

    def program_for(self, options: JobOptions) -> Program:
        """The program whose only entry this is, with the demands of `options`. Raises CannotShipError."""

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise UsageError where it cannot be called like that."""


class Programs:
    """The programs of one door."""

    def __init__(self) -> None:
        #: Programs by engine, demands and the identity of their functions; the functions are held so that an identity is not used again.
        self._known: dict[tuple[object, ...], tuple[tuple[Callable[..., Any], ...], Program]] = {}

    def of(self, entries: dict[str, Callable[..., Any]], options: JobOptions) -> Program:
        """The program of these functions for the engine of `options`. Raises CannotShipError."""
        engine = options.engine or Engine.PYTHON
        key = (engine, options.demands, *(id(function) for function in entries.values()))
        known = self._known.pop(key, None)
        if known is None:
            known = (tuple(entries.values()), _made(entries, engine, options))
        if not known[1].is_settled:
            # A global or a closure that changed between two calls must be seen: the program is made anew each time.
            return known[1]
        self._known[key] = known
        while len(self._known) > PROGRAMS_KEPT:
            del self._known[next(iter(self._known))]
        return known[1]


def _made(entries: dict[str, Callable[..., Any]], engine: Engine, options: JobOptions) -> Program:
    first: object = next(iter(entries.values()))
    if isinstance(first, ForeignFunction):
        if len(entries) > 1:
            raise UsageError(
                f"results of {engine} tasks are merged by sum, average, max, min or concat, not by a Python function"
            )
        return first.program_for(options)
    if engine not in _SOURCE_ENGINES:
        raise UsageError(f"engine={engine.value!r} runs no Python functions: give what it runs, or leave engine out")
    program = make_program(entries, engine, options.demands)
    if engine is Engine.WASM_PYTHON:
        refuse_what_cannot_run(open_program(program.data))
    return program


def options_for(function: object, options: JobOptions, by_default: Engine) -> JobOptions:
    """`options` with the engine that runs `function`. `by_default`: for Python functions where nothing was said. Raises UsageError."""
    engine = options.engine
    if isinstance(function, ForeignFunction):
        if engine not in (None, function.engine):
            raise UsageError(f"this is run by the engine {function.engine}, not by {engine}: leave engine out")
        engine = function.engine
    elif engine is None:
        engine = by_default
    if engine is options.engine or (options.engine is None and engine is Engine.PYTHON):
        return options
    return dataclasses.replace(options, engine=engine)


def encoder_for(function: object, program: Program, options: JobOptions) -> Encoder:
    """What turns arguments of `function` into payloads; it raises UsageError for those that the function could not take there."""

    def plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        return encode([list(args), kwargs], classes=program.names)

    def foreign(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        assert isinstance(function, ForeignFunction)
        function.check(args, kwargs)
        return plain(args, kwargs)

    def without_packages(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        refuse_values((args, kwargs), program.modules)
        return plain(args, kwargs)

    if isinstance(function, ForeignFunction):
        return foreign
    return without_packages if options.engine is Engine.WASM_PYTHON else plain
