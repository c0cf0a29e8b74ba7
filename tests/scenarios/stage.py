"""What the commands of a transcript do: whole peers on virtual time, one command after the other.

    peers COUNT                 so many machines p0, p1, …, nothing runs on them
    up P… [via=P]               start peers, told of another one
    down P… | crash P… | restart P… [via=P]
    sleep P… | wake P…          close and open the lid of a laptop
    move P to=ADDRESS           the machine gets another address
    part P,P… P,P…              cut groups off from each other
    heal                        repair every cut
    run SECONDS                 let time pass
    view P…                     whom a peer believes what of
    links P…                    to whom a peer has links

Each command also says what peers came to believe meanwhile, in the order of names and without times: times are the dice's.
"""

from __future__ import annotations

import asyncio

from p2pcompute.sim.conditions import Conditions
from p2pcompute.sim.invariants import check_machine
from p2pcompute.sim.lab import Lab
from p2pcompute.sim.peers import Machine, SimOverlay, SimPeer, address_of
from tests.scenarios.transcript import Command


class Stage:
    """One network for one transcript."""

    def __init__(self, lab: Lab) -> None:
        lab.network.set_conditions(Conditions(latency_s=0.01))
        self._lab = lab
        self._overlay = SimOverlay(lab, observe=check_machine)
        self._told = 0

    async def perform(self, command: Command) -> str:
        """Do one command; what it says."""
        method = getattr(self, f"_{command.name}", None)
        assert method is not None, f"line {command.line_number}: no command is called {command.name}"
        said: str = await method(command)
        return "\n".join(line for line in (said, *self._news()) if line)

    def _news(self) -> list[str]:
        new = self._overlay.said[self._told :]
        self._told = len(self._overlay.said)
        lines = {
            f"{each.by.name}: {self._overlay.name_of(each.about)} {each.kind.removeprefix('peer_')}"
            # How many others accused it is the dice's, too.
            + (f" ({each.text.partition(';')[0]})" if each.text and each.kind == "peer_died" else "")
            for each in new
            if each.kind != "peer_suspected"  # who is asked first is the dice's
        }
        return sorted(lines)

    def _peer(self, name: str) -> SimPeer:
        return self._overlay.peers[int(name.removeprefix("p"))]

    def _named(self, command: Command) -> list[SimPeer]:
        return [self._peer(name) for name in command.arguments]

    def _via(self, command: Command) -> list[SimPeer]:
        return [self._peer(command.options["via"])] if "via" in command.options else []

    async def _peers(self, command: Command) -> str:
        for number in range(int(command.arguments[0])):
            self._overlay.add(Machine((address_of(number),), clock_skew_max_s=0.0, clock_drift_max=0.0))
        return f"{len(self._overlay.peers)} machines"

    async def _up(self, command: Command) -> str:
        for each in self._named(command):
            await each.up(self._via(command))
        return ""

    async def _down(self, command: Command) -> str:
        for each in self._named(command):
            await each.down()
        return ""

    async def _crash(self, command: Command) -> str:
        for each in self._named(command):
            await each.crash()
        return ""

    async def _restart(self, command: Command) -> str:
        for each in self._named(command):
            await each.restart(self._via(command))
        return ""

    async def _sleep(self, command: Command) -> str:
        for each in self._named(command):
            each.sleep()
        return ""

    async def _wake(self, command: Command) -> str:
        for each in self._named(command):
            each.wake()
        return ""

    async def _move(self, command: Command) -> str:
        (mover,) = self._named(command)
        self._lab.network.move(mover.host, command.options["to"])
        mover.moved()
        return ""

    async def _part(self, command: Command) -> str:
        groups = [[self._peer(name).host for name in group.split(",")] for group in command.arguments]
        self._lab.network.partition(*groups)
        return ""

    async def _heal(self, _: Command) -> str:
        self._lab.network.heal()
        return ""

    async def _run(self, command: Command) -> str:
        await asyncio.sleep(float(command.arguments[0]))
        return ""

    async def _view(self, command: Command) -> str:
        lines = []
        for each in self._named(command):
            rows = sorted(
                f"{self._overlay.name_of(entry.record.peer)} {entry.status.value} at {entry.record.addresses[0].host}"
                for entry in each.view.entries
            )
            lines.append(f"{each.name} sees: {', '.join(rows) or 'nobody'}")
        return "\n".join(lines)

    async def _links(self, command: Command) -> str:
        lines = []
        for each in self._named(command):
            assert each.side is not None
            names = sorted(self._overlay.name_of(peer) for peer in each.side.hub.links)
            lines.append(f"{each.name} is linked to: {', '.join(names) or 'nobody'}")
        return "\n".join(lines)

    async def end(self) -> None:
        """Stop everything."""
        await self._overlay.stop()
