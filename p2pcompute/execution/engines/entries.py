"""The entries of a program of any engine: what a job may call by number."""

from __future__ import annotations

from p2pcompute.execution import program
from p2pcompute.execution.container import program as container_program
from p2pcompute.execution.engines.document import head_of
from p2pcompute.model.engine import Engine


def program_entries(data: bytes) -> tuple[str, ...]:
    """The names of the entries, after the whole document was checked. Raises ProtocolError."""
    if head_of(data).engine is Engine.CONTAINER:
        container_program.open_container_program(data)
        return container_program.ENTRIES
    return program.program_entries(data)
