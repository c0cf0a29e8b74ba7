"""Scenarios of whole peers: what the overlay promises, under faults that the dice choose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from p2pcompute.model.peer import PeerStatus
from p2pcompute.sim.conditions import Conditions
from p2pcompute.sim.invariants import Invariants, MachineChecks, settle
from p2pcompute.sim.lab import ExpectationError, Lab
from p2pcompute.sim.peers import Machine, SimOverlay, SimPeer, address_of

#: Peers and virtual seconds of `all_faults`.
PEERS = 30
FAULTY_S = 120.0
#: Virtual seconds that a network may take to agree once its faults are over: silent links end after 45 s, a lost part is looked
#: for every 60 s, and whoever is found must be told to all.
CALM_S = 180.0


@asynccontextmanager
async def network(lab: Lab, machines: list[Machine], *, checks: bool = True) -> AsyncIterator[SimOverlay]:
    """Machines, all invariants watched; peers that run at the end are stopped."""
    checking = MachineChecks(lab.settings.check_every)
    overlay = SimOverlay(lab, observe=checking.observe if checks else None)
    for machine in machines:
        overlay.add(machine)
    invariants = Invariants(overlay, checking)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(invariants.watch(), name="invariants")
        yield overlay
        watching.cancel()
        await overlay.stop()


def machines(count: int, *, lans: int = 0) -> list[Machine]:
    """`count` machines with public addresses; with `lans`, dealt out to so many local networks that hear broadcasts."""
    return [
        Machine((address_of(number),), lan=f"lan{number % lans}" if lans else None, site=f"s{number % max(lans, 1)}")
        for number in range(count)
    ]


async def start_all(overlay: SimOverlay, rng: random.Random, spread_s: float = 2.0) -> None:
    """Start every machine's peer within `spread_s`, each told of the first one, or of one of the first three."""
    well_known = overlay.peers[:3]
    for number, peer in enumerate(overlay.peers):
        await peer.up([well_known[rng.randrange(0, min(number, 3))]] if number else [])
        await asyncio.sleep(spread_s / len(overlay.peers))


async def cold_start(lab: Lab) -> None:
    """Thirty peers that know of three addresses all know each other within thirty seconds."""
    async with network(lab, machines(PEERS)) as overlay:
        await start_all(overlay, lab.dice.of("scenario"))
        await settle(overlay, 30.0, "cold start")


async def crash(lab: Lab) -> None:
    """A machine that falls silent is dead to all of thirty others within fifteen seconds, and welcome when it is back."""
    async with network(lab, machines(PEERS)) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        victim = overlay.peers[rng.randrange(3, PEERS)]
        await victim.crash()
        await lab.until(lambda: overlay.known_dead(victim), f"the crash of {victim.name} is known", 15.0)
        await asyncio.sleep(rng.uniform(0.0, 60.0))
        await victim.restart()
        await settle(overlay, 30.0, f"{victim.name} is back")


async def leave(lab: Lab) -> None:
    """A peer that stops as its user wants has left at once, and is never called dead."""
    async with network(lab, machines(10)) as overlay:
        await start_all(overlay, lab.dice.of("scenario"))
        await settle(overlay, 30.0, "cold start")
        gone = overlay.peers[5]
        await gone.down()
        await settle(overlay, 5.0, f"{gone.name} has left")
        for each in overlay.running:
            if each.status_of(gone) is not PeerStatus.LEFT:
                raise ExpectationError(f"{each.name} believes {gone.name} {each.status_of(gone)}")


async def split_and_merge(lab: Lab) -> None:
    """Two halves that were cut off from each other for some minutes are one network within ninety seconds of the repair."""
    async with network(lab, machines(20)) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        await asyncio.sleep(35.0)  # remembered peers have been written down
        halves = overlay.peers[:10], overlay.peers[10:]
        parted = lab.network.partition([each.host for each in halves[0]], [each.host for each in halves[1]])
        await asyncio.sleep(rng.uniform(120.0, 300.0))
        for half in halves:
            for each in half:
                if each.alive != frozenset(other.peer for other in half) - {each.peer}:
                    raise ExpectationError(f"{each.name} does not see just its half")
        lab.network.heal(parted)
        await settle(overlay, 90.0, "the halves are one")


async def all_restart(lab: Lab) -> None:
    """All machines lose power at once and come back: remembered addresses alone make them one network again."""
    async with network(lab, machines(12)) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        await asyncio.sleep(40.0)
        for each in overlay.peers:
            await each.crash()
        await asyncio.sleep(rng.uniform(10.0, 600.0))
        for each in overlay.peers:
            await each.restart()
            await asyncio.sleep(rng.uniform(0.0, 5.0))
        await settle(overlay, 90.0, "one network again")


async def move(lab: Lab) -> None:
    """A laptop gets another address while its peer runs: the others find it there, and its identity is the same."""
    async with network(lab, machines(10)) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        laptop = overlay.peers[7]
        lab.network.move(laptop.host, "53.7.7.7")
        laptop.moved()
        await asyncio.sleep(10.0)
        await settle(overlay, 60.0, f"{laptop.name} is known at its new address")
        for each in overlay.running:
            entry = each.view.entry(laptop.peer)
            if each is not laptop and (entry is None or entry.record.addresses[0].host != "53.7.7.7"):
                raise ExpectationError(f"{each.name} does not know where {laptop.name} is")


async def sleep_and_wake(lab: Lab) -> None:
    """A laptop sleeps for minutes and wakes: it calls nobody dead for it, and is one of the network within a minute."""
    async with network(lab, machines(10)) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        laptop = overlay.peers[4]
        asleep_s = rng.uniform(60.0, 1200.0)
        laptop.sleep()
        await asyncio.sleep(asleep_s)
        said = len(overlay.said)
        laptop.wake()
        await settle(overlay, 60.0, f"{laptop.name} is awake")
        wrong = [each for each in overlay.said[said:] if each.by is laptop and each.kind == "peer_died"]
        if wrong:
            raise ExpectationError(f"{laptop.name} called {overlay.name_of(wrong[0].about)} dead when it woke")


async def address_book(lab: Lab) -> None:
    """Whoever knows an id finds its peer's presence in the address book, over sealed datagrams, also when a third of all have died."""
    async with network(lab, machines(24)) as overlay:
        rng = lab.dice.of("scenario")
        await start_all(overlay, rng)
        await settle(overlay, 30.0, "cold start")
        await asyncio.sleep(20.0)  # presences are published
        await _all_found(overlay, rng, 40)
        for victim in rng.sample(overlay.peers[3:], 8):
            await victim.crash()
        await _all_found(overlay, rng, 40)


async def _all_found(overlay: SimOverlay, rng: random.Random, lookups: int) -> None:
    """Somebody looks for somebody, so many times; what is found is true."""
    running = overlay.running
    for _ in range(lookups):
        asker, wanted = rng.sample(running, 2)
        assert asker.side is not None
        begun = overlay.lab.now
        with asker.host.here():
            presence = await asker.side.dht.find_presence(wanted.peer)
        if presence is None or presence.addresses != (wanted.address,):
            raise ExpectationError(f"{asker.name} finds {presence} for {wanted.name}")
        if overlay.lab.now - begun > 10.0:
            raise ExpectationError(f"{asker.name} needed {overlay.lab.now - begun:.1f} s to find {wanted.name}")


async def all_faults(lab: Lab) -> None:
    """Thirty peers and every fault there is for two minutes; then everybody agrees on who is up."""
    rng = lab.dice.of("scenario")
    async with network(lab, machines(PEERS, lans=3)) as overlay:
        lab.network.set_conditions(Conditions(latency_s=0.03, jitter_s=0.02, loss=0.02, duplicate=0.01, reorder=0.02))
        await start_all(overlay, rng)
        faults = Faults(lab, overlay, rng)
        until = lab.now + FAULTY_S
        while lab.now < until:
            await faults.one()
            await asyncio.sleep(rng.uniform(0.2, 5.0))
        await faults.end()
        await settle(overlay, CALM_S, "everybody agrees after all faults")


class Faults:
    """What can go wrong, one thing at a time, chosen by the dice; `end` repairs what still is."""

    def __init__(self, lab: Lab, overlay: SimOverlay, rng: random.Random) -> None:
        self._lab = lab
        self._overlay = overlay
        self._rng = rng
        self._moves = 0

    async def one(self) -> None:
        """One fault, or the end of one."""
        kinds = (
            self._crash, self._crash, self._restart, self._restart, self._leave, self._partition, self._one_way, self._heal,
            self._clog, self._reset, self._starve, self._feed, self._weather, self._sleep, self._wake, self._move, self._busy,
            self._set_clock,
        )  # fmt: skip
        await kinds[self._rng.randrange(0, len(kinds))]()

    def _some(self) -> SimPeer:
        return self._overlay.peers[self._rng.randrange(0, len(self._overlay.peers))]

    def _half(self) -> tuple[list[SimPeer], list[SimPeer]]:
        peers = self._rng.sample(self._overlay.peers, len(self._overlay.peers))
        cut = self._rng.randrange(1, len(peers))
        return peers[:cut], peers[cut:]

    async def _crash(self) -> None:
        victim = self._some()
        # A few must be left who know where the others were.
        if victim.is_up and len(self._overlay.running) > len(self._overlay.peers) // 2:
            victim.wake()
            await victim.crash(silent=self._rng.random() < 0.7, loses_disk=self._rng.random() < 0.1)

    async def _restart(self) -> None:
        down = [each for each in self._overlay.peers if not each.is_up]
        if down:
            back = down[self._rng.randrange(0, len(down))]
            await back.restart([self._overlay.peers[self._rng.randrange(0, 3)]])

    async def _leave(self) -> None:
        leaver = self._some()
        if leaver.is_up and len(self._overlay.running) > len(self._overlay.peers) // 2:
            leaver.wake()
            await leaver.down()

    async def _partition(self) -> None:
        one, other = self._half()
        self._lab.network.partition([each.host for each in one], [each.host for each in other])

    async def _one_way(self) -> None:
        one, other = self._half()
        self._lab.network.block([each.host for each in one], [each.host for each in other])

    async def _heal(self) -> None:
        self._lab.network.heal()

    async def _clog(self) -> None:
        one, other = self._rng.sample(self._overlay.peers, 2)
        self._lab.network.clog(self._rng.uniform(1.0, 15.0), one.host, other.host)

    async def _reset(self) -> None:
        one, other = self._rng.sample(self._overlay.peers, 2)
        self._lab.network.reset(one.host, other.host)

    async def _starve(self) -> None:
        victim = self._some()
        if victim.is_up:
            self._lab.network.starve(victim.host, run_s=(0.05, 0.5), stall_s=(0.2, 3.0))

    async def _feed(self) -> None:
        for each in self._overlay.peers:
            self._lab.network.feed(each.host)

    async def _weather(self) -> None:
        rng = self._rng
        self._lab.network.set_conditions(
            Conditions(
                latency_s=rng.uniform(0.001, 0.2), jitter_s=rng.uniform(0.0, 0.1), loss=rng.uniform(0.0, 0.15),
                duplicate=rng.uniform(0.0, 0.05), reorder=rng.uniform(0.0, 0.1),
            )
        )  # fmt: skip

    async def _sleep(self) -> None:
        victim = self._some()
        if victim.is_up:
            victim.sleep()

    async def _wake(self) -> None:
        for each in self._overlay.peers:
            each.wake()

    async def _move(self) -> None:
        mover = self._some()
        if mover.is_up:
            self._moves += 1
            self._lab.network.move(mover.host, f"53.{self._moves // 200}.{self._moves % 200}.1")
            mover.moved()

    async def _busy(self) -> None:
        self._some().load = self._rng.uniform(0.0, 2.0)

    async def _set_clock(self) -> None:
        clock = self._some().clock
        clock.set_wall(clock.wall() + self._rng.uniform(-120.0, 120.0))

    async def end(self) -> None:
        """Repair everything, and start whoever is down."""
        self._lab.network.heal()
        self._lab.network.set_conditions(Conditions.wan())
        await self._feed()
        await self._wake()
        for each in self._overlay.peers:
            if not each.is_up:
                await each.restart([self._overlay.peers[self._rng.randrange(0, 3)]])
