"""p2pcompute: lend each other computing power, without a server.

Nothing heavy is loaded by importing this: names are resolved when they are first used, so that a worker process does
not pay for what only a peer needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pcompute.execution.task import progress
    from p2pcompute.model.errors import P2PComputeError
    from p2pcompute.model.job import Aggregation, JobOptions
    from p2pcompute.node.commands import CommandTask
    from p2pcompute.node.peer import Peer

__version__ = "0.1.0"

_HOMES = {
    "Aggregation": "p2pcompute.model.job",
    "CommandTask": "p2pcompute.node.commands",
    "JobOptions": "p2pcompute.model.job",
    "P2PComputeError": "p2pcompute.model.errors",
    "Peer": "p2pcompute.node.peer",
    "progress": "p2pcompute.execution.task",
}

__all__ = ["Aggregation", "CommandTask", "JobOptions", "P2PComputeError", "Peer", "__version__", "progress"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
