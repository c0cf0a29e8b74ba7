"""Which class runs the tasks of a program in a worker process, by engine.

Every one of them is made of the program's bytes and gives `run(entry, arguments)`. Imports are inside: the warm template, from which workers
are forked, holds what Python source needs and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from p2pcompute.execution.values import Handle
from p2pcompute.execution.worker_program import WorkerProgram
from p2pcompute.model.engine import Engine
from p2pcompute.model.job import Outcome

#: Engines that reserve far more addresses than they use.
RESERVING = frozenset({Engine.WASM, Engine.WASM_PYTHON})
#: The bytes behind a handle, or BlobMissingError.
Fetch = Callable[[Handle], "bytes | bytearray"]


class RunsTasks(Protocol):
    """A loaded program, called by number of entry with encoded arguments."""

    def run(self, entry: int, arguments: bytes | bytearray | memoryview) -> tuple[Outcome, bytes]:
        """The outcome of one call and its payload, as `wire.messages.Results` defines it. Never raises for what user code does."""


def load_for(engine: Engine, data: bytes | bytearray, fetch: Fetch, kept_bytes_max: int) -> RunsTasks:
    """Load a program. Raises ProgramLoadError, whatever the program's own code does meanwhile."""
    match engine:
        case Engine.PYTHON:
            return WorkerProgram(data, fetch, kept_bytes_max)
        case Engine.WASM:
            from p2pcompute.execution.engines.wasm_worker import WasmProgram

            return WasmProgram(data, fetch, kept_bytes_max)
        case Engine.WASM_PYTHON:
            from p2pcompute.execution.engines.wasm_python_worker import WasmPythonProgram

            return WasmPythonProgram(data, fetch, kept_bytes_max)
        case Engine.COMMAND:
            from p2pcompute.execution.engines.command_worker import CommandProgram

            return CommandProgram(data, fetch, kept_bytes_max)
        case _:
            raise AssertionError(f"{engine} has no place in a worker process")
