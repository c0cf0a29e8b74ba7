"""The shape of the network, kept up to date: what membership knows of links becomes communities and key nodes.

A duty in the background: looks at the view every few seconds, more rarely in a large network, and computes off the event loop. What
it finds is a snapshot that jobs and people read; a view without news costs a comparison. Refuses to know: formulas (`topology/`), what is
believed of links (`membership/agreement.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from p2pcompute.membership.agreement import agreed_edges, believable, fill_in
from p2pcompute.model.peer import PeerView
from p2pcompute.model.seams import Clock, Offload
from p2pcompute.topology.affinity import adjacency, changed_by_more_than_noise
from p2pcompute.topology.shape import NetworkShape, analyse, candidates_of, reelected

#: Between two looks, seconds: elections and loads change slowly, and a peer that died is left out of jobs without them.
LOOK_INTERVAL_S = 2.0
#: In a large network so much more for each 100 peers: a look costs time in proportion to them.
LOOK_INTERVAL_PER_100_S = 1.0


class TellsLead(Protocol):
    """Where this peer says that it leads; `own_record.OwnRecord` is one."""

    def set_leads(self, leads: bool) -> None:
        """Told with the next record."""


def shape_of(view: PeerView, wall_s: float, previous: NetworkShape | None = None) -> NetworkShape:
    """The shape of the network of `view` at `wall_s` (wall clock, seconds). Blocks: 2 ms at 30 peers, 100 ms at 1,000.

    `previous` is given back, perhaps with another election, where links have not changed by more than noise.
    """
    known = believable(view)
    agreed = agreed_edges(known)
    estimated = fill_in(known, agreed)
    leaders = [entry.record.peer for entry in known.entries if entry.record.leads]
    candidates = candidates_of(known, wall_s, [*leaders, *([known.own.peer] if known.own.leads else [])])
    if previous is not None:
        now = adjacency((each.peer for each in candidates), agreed, estimated)
        if not changed_by_more_than_noise(previous.adjacency, now):
            return reelected(previous, candidates)
    return analyse(candidates, agreed, estimated, previous)


class TopologyWatch:
    """See the module. `changed` is called with every new snapshot."""

    def __init__(
        self,
        view: Callable[[], PeerView],
        own: TellsLead,
        clock: Clock,
        offload: Offload,
        changed: Callable[[NetworkShape], None] = lambda shape: None,
    ) -> None:
        self._view = view
        self._own = own
        self._clock = clock
        self._offload = offload
        self._changed = changed
        #: The newest snapshot; None before the first look.
        self._shape: NetworkShape | None = None
        #: Of which version of the view it is.
        self._version = -1

    @property
    def shape(self) -> NetworkShape | None:
        """The newest snapshot; None before the first look."""
        return self._shape

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look()
            peers = 0 if self._shape is None else len(self._shape.peers)
            await asyncio.sleep(LOOK_INTERVAL_S + LOOK_INTERVAL_PER_100_S * peers / 100)

    async def look(self) -> NetworkShape:
        """Look now; the shape."""
        view, wall_s, previous = self._view(), self._clock.wall(), self._shape
        if previous is not None and view.version == self._version:
            return previous
        shape = await self._offload.run(lambda: shape_of(view, wall_s, previous))
        self._version = view.version
        if shape is not self._shape:
            self._shape = shape
            self._own.set_leads(shape.is_key_node(view.own.peer))
            self._changed(shape)
        return shape
