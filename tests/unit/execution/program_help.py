"""Programs and values for the tests of workers: one module of source, every function in it an entry."""

from __future__ import annotations

import ast
from typing import Any

from p2pcompute.execution import values
from p2pcompute.execution.program import Body, Module, pack_program
from p2pcompute.wire.versions import PROGRAM

MODULE = "tasks_of_this_test"


def make_program(source: str) -> tuple[bytes, list[str]]:
    """The program, and the names of its entries in their order."""
    names = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    body = Body(
        version=PROGRAM,
        modules=(Module(MODULE, False, source.encode(), f"{MODULE}.py"),),
        files=(),
        entries=tuple((name, ["name", MODULE, name]) for name in names),
        data=(),
        requires=(),
        main="",
    )
    return pack_program(body), names


def encode_arguments(args: tuple[Any, ...], named: dict[str, Any] | None = None) -> bytes:
    """What a task's `arguments` holds."""
    return values.encode([list(args), named or {}])


def decode_value(payload: bytes) -> Any:
    """What a RETURNED task's payload holds."""
    return values.decode(payload)


def failure_text(payload: bytes) -> str:
    """The traceback in the payload of a RAISED or UNSHIPPABLE task."""
    return values.decode_failure(payload).traceback
