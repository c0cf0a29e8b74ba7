"""What needs NumPy, loaded when somebody first wants it: that takes a tenth of a second, to be spent off the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2pcompute.model.peer import PeerView

if TYPE_CHECKING:
    from p2pcompute.node.topology import TopologyWatch
    from p2pcompute.topology.shape import NetworkShape


def load_topology_watch() -> type[TopologyWatch]:
    """The class that keeps the shape of the network."""
    # With what jobs move tasks by, which would be read from the disk between two events of a job.
    import p2pcompute.topology.moves  # noqa: F401
    from p2pcompute.node.topology import TopologyWatch

    return TopologyWatch


def load_topology_report() -> Callable[[NetworkShape, PeerView, str], dict[str, Any]]:
    """What makes a plain document of a shape."""
    from p2pcompute.node.topology_report import topology_document

    return topology_document
