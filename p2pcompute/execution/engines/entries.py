"""The names of what can be called in a program, whichever engine it is for."""

from __future__ import annotations

from p2pcompute.execution.container import program as container_program
from p2pcompute.execution.engines.command_program import ENTRY, open_command
from p2pcompute.execution.engines.document import head_of
from p2pcompute.execution.engines.wasm_program import open_wasm_program
from p2pcompute.execution.program import program_entries
from p2pcompute.model.engine import Engine


def entries_of(program: bytes) -> tuple[str, ...]:
    """The names of the entries, in their order; nothing of the program is run. Raises ProtocolError."""
    match head_of(program).engine:
        case Engine.WASM:
            return tuple(name for name, _ in open_wasm_program(program).entries)
        case Engine.COMMAND:
            open_command(program)
            return (ENTRY,)
        case Engine.CONTAINER:
            container_program.open_container_program(program)
            return container_program.ENTRIES
    return program_entries(program)
