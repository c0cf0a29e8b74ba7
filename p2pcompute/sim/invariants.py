"""What must hold in a simulated network, whatever happens to it.

Of one peer, now and then among the events that one of its machines handled, and once a virtual second: what the machine itself says of
its state. Of all peers together, every virtual second: nobody knows a record that its peer never signed, nobody's own record goes back, and limits are kept. At the
end, when faults are over: everybody believes exactly those to be up that are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerStatus
from p2pcompute.sim.lab import ExpectationError
from p2pcompute.sim.peers import SimOverlay, SimPeer

#: Virtual seconds between two looks at all peers.
LOOK_INTERVAL_S = 1.0


def check_machine(peer: SimPeer, machine: object, event: object, effects: Sequence[object]) -> None:
    """What holds of the machine that has just handled `event`. Raises ExpectationError."""
    check = getattr(machine, "check_invariants", None)
    if check is not None:
        try:
            check()
        except AssertionError as error:
            raise ExpectationError(
                f"{peer.name}: {type(machine).__name__} contradicts itself after {event!r:.300}: {error!r}"
            ) from error


class MachineChecks:
    """Has machines check themselves: each at every `every`-th event that it handles, and all with events since then at each `look`.

    A check costs time in proportion to what a machine knows, an event does not: at every single event, checks would be most of a run. They
    change nothing, so a run that fails with one value of `every` is the same run, and fails sooner, with `every` = 1.
    """

    def __init__(self, every: int = 1) -> None:
        self._every = max(every, 1)
        #: Of machines that have handled events since they were last checked: peer, machine, last event, and how many they were.
        self._pending: dict[int, tuple[SimPeer, object, object, int]] = {}

    def observe(self, peer: SimPeer, machine: object, event: object, effects: Sequence[object]) -> None:
        """`machine` has just handled `event`. Raises ExpectationError."""
        key = id(machine)
        known = self._pending.get(key)
        count = known[3] + 1 if known is not None and known[1] is machine else 1
        if count >= self._every:
            self._pending.pop(key, None)
            check_machine(peer, machine, event, effects)
        else:
            self._pending[key] = (peer, machine, event, count)

    def look(self) -> None:
        """Check every machine that has handled something since it was last checked. Raises ExpectationError."""
        pending, self._pending = self._pending, {}
        for peer, machine, event, _ in pending.values():
            check_machine(peer, machine, event, ())


class Invariants:
    """What holds of all peers of `overlay`, and of machines as `machines` has it; `watch` looks every second until it is cancelled."""

    def __init__(self, overlay: SimOverlay, machines: MachineChecks | None = None) -> None:
        self._overlay = overlay
        self._machines = machines
        #: The newest order that each peer has signed, over all its lives.
        self._signed: dict[PeerId, tuple[int, int]] = {}

    async def watch(self) -> None:
        """Look every virtual second. Raises ExpectationError."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_INTERVAL_S)

    def look(self) -> None:
        """Look now. Raises ExpectationError."""
        overlay = self._overlay
        if self._machines is not None:
            self._machines.look()
        for each in overlay.peers:
            if each.own is None:
                continue
            order = each.own.record.order
            before = self._signed.get(each.peer, order)
            if order < before:
                raise ExpectationError(f"the own record of {each.name} went back from {before} to {order}")
            self._signed[each.peer] = order
        for each in overlay.running:
            self._look_at(each)

    def _look_at(self, peer: SimPeer) -> None:
        side = peer.side
        if side is None:
            return
        for entry in side.view.entries:
            known = self._overlay.peer(entry.record.peer)
            if known is None or known.own is None:
                raise ExpectationError(f"{peer.name} knows {self._overlay.name_of(entry.record.peer)}, which never was")
            newest = self._signed[known.peer]
            # A load update counts in the sequence of the records.
            if entry.record.incarnation > newest[0]:
                raise ExpectationError(f"{peer.name} knows a record of {known.name} that it never signed")
            if entry.status is PeerStatus.LEFT and not entry.record.leaving and known.lives == 1 and known.is_up:
                raise ExpectationError(f"{peer.name} believes that {known.name} left, which it never said")
        if len(side.hub.links) > side.settings.links.links_max:
            raise ExpectationError(f"{peer.name} has {len(side.hub.links)} links")
        if len(side.overlay.troubles) > limits.CANDIDATES_MAX:
            raise ExpectationError(f"{peer.name} remembers {len(side.overlay.troubles)} troubles")


def disagreements(overlay: SimOverlay, at_most: int = 12) -> str:
    """Who believes what is not so, in words."""
    running = {each.peer for each in overlay.running}
    lines: list[str] = []
    for each in overlay.running:
        missing = sorted(running - each.alive - {each.peer})
        extra = sorted(each.alive - running)
        lines += [f"{each.name} believes {overlay.name_of(peer)} {_said(each, peer)}" for peer in missing]
        lines += [f"{each.name} believes {overlay.name_of(peer)}, which is down, alive" for peer in extra]
    return "; ".join(lines[:at_most]) + (f"; and {len(lines) - at_most} more" if len(lines) > at_most else "")


def _said(peer: SimPeer, about: PeerId) -> str:
    entry = peer.view.entry(about)
    return "unknown" if entry is None else entry.status.value


async def settle(overlay: SimOverlay, within_s: float, what: str) -> float:
    """Wait until everybody believes what is so; how long it took. Raises ExpectationError with who does not."""
    begun = overlay.lab.now
    while not overlay.converged():
        if overlay.lab.now - begun >= within_s:
            raise ExpectationError(f"{what}: not within {within_s} s: {disagreements(overlay)}")
        await asyncio.sleep(0.25)
    return overlay.lab.now - begun
