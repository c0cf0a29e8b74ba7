"""Pure: the network as a graph, its communities and its key nodes.

What people use by themselves is found here by name, loaded when it is first used: a worker pays for none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pcompute.topology.fiedler import spectrum
    from p2pcompute.topology.gateways import gateway_shares
    from p2pcompute.topology.partition import communities

_HOMES = {
    "communities": "p2pcompute.topology.partition",
    "gateway_shares": "p2pcompute.topology.gateways",
    "spectrum": "p2pcompute.topology.fiedler",
}

__all__ = ["communities", "gateway_shares", "spectrum"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
