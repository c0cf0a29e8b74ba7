"""Scenarios of peers behind routers that translate addresses: who reaches whom, which way, and what becomes of it.

A peer behind a router knows one public peer and no other. What is dialled comes in only through forwarded ports, whatever kind the router is;
its kind matters to datagrams alone, and the matrix shows that links do not depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from p2pcompute.membership.joining import JoiningSettings
from p2pcompute.membership.reach_events import ReachSettings
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Reach
from p2pcompute.net.link import Link
from p2pcompute.sim.conditions import Conditions
from p2pcompute.sim.lab import ExpectationError, Lab
from p2pcompute.sim.nat import Filter, NatBox, NatSettings
from p2pcompute.sim.peers import Machine, SimOverlay, SimPeer
from p2pcompute.sim.scenarios.overlay import network

#: What routers do, from the most open to the closest, in the words of RFC 3489, which everybody still uses.
KINDS = MappingProxyType(
    {
        "full cone": NatSettings.full_cone(),
        "restricted": NatSettings(filter=Filter.ADDRESS),
        "port-restricted": NatSettings(),
        "symmetric": NatSettings.symmetric(),
    }
)
#: Virtual seconds in which two peers behind routers are linked once both run. A check begins after one, the dial-back that nobody answers takes
#: three, and what came of it is told to others by records.
LINKED_WITHIN_S = 15.0
#: The same where the relay falls silent without a word: gossip finds that out long before the silent link ends after 45 s.
SILENT_WITHIN_S = 30.0
#: Virtual seconds between checks in `nat_opened`.
RECHECK_S = 120.0


@dataclass
class Homes:
    """Two homes with the same private addresses, and public peers; nothing runs yet."""

    #: The run.
    lab: Lab
    #: Everybody.
    overlay: SimOverlay
    #: Peers that anybody can dial, each of a network of its own.
    publics: list[SimPeer]
    #: The peer behind the first of `routers`, and the one behind the second.
    anna: SimPeer
    ben: SimPeer
    routers: tuple[NatBox, NatBox]

    async def up(self) -> None:
        """Start everybody; who is at home knows all the public peers."""
        for public in self.publics:
            await public.up(self.publics[:1] if public is not self.publics[0] else [])
        for each in (self.anna, self.ben):
            await each.up(self.publics)

    async def linked(self, path: str, within_s: float = LINKED_WITHIN_S) -> float:
        """Wait until the two homes have a link by `path`, as both say; how long it took. Raises ExpectationError."""
        pair = ((self.anna, self.ben), (self.ben, self.anna))
        return await self.lab.until(
            lambda: all(path_of(one, other) == path for one, other in pair),
            f"the homes are linked, {path} (they are {path_of(self.anna, self.ben)})",
            within_s,
        )


@asynccontextmanager
async def homes(
    lab: Lab, left: NatSettings, right: NatSettings, *, publics: int = 1, checks: bool = True
) -> AsyncIterator[Homes]:
    """Two homes behind routers of these kinds and `publics` public peers, each in a network of its own."""
    lab.network.set_conditions(Conditions.wan())
    routers = (lab.network.add_nat("61.1.0.1", left), lab.network.add_nat("62.2.0.1", right))
    async with network(
        lab, [Machine((f"52.{number + 1}.0.1",)) for number in range(publics)], checks=checks
    ) as overlay:
        known = list(overlay.peers)
        anna, ben = (overlay.add(Machine(("192.168.1.20",), nat=router)) for router in routers)
        yield Homes(lab, overlay, known, anna, ben, routers)


def link_between(one: SimPeer, other: SimPeer) -> Link | None:
    """The open link that `one` has to `other`."""
    return one.side.hub.link(other.peer) if one.side is not None and one.is_up else None


def path_of(one: SimPeer, other: SimPeer) -> str | None:
    """How `one` reaches `other`: "relayed", "reversed" or "direct"; None without a link."""
    link = link_between(one, other)
    if link is None:
        return None
    return link.path if link.route is not None else "direct"


def via_of(one: SimPeer, other: SimPeer) -> PeerId | None:
    """The peer between."""
    link = link_between(one, other)
    return link.route.via if link is not None and link.route is not None else None


def reach_of(peer: SimPeer) -> Reach:
    """How it is reached, as it found out."""
    assert peer.side is not None, f"{peer.name} was never started"
    return peer.side.reaching.reach


async def nat_relayed(lab: Lab) -> None:
    """Peers behind two routers of any kind are linked through the one public peer, and believe each other alive for ten minutes."""
    names = sorted(KINDS)
    rng = lab.dice.of("scenario")
    left, right = (names[rng.randrange(0, len(names))] for _ in range(2))
    lab.note("kinds", left, right)
    async with homes(lab, KINDS[left], KINDS[right]) as world:
        await world.up()
        lab.note("linked", await world.linked("relayed"))
        if reach_of(world.publics[0]) is not Reach.PUBLIC:
            raise ExpectationError(f"the public peer takes itself for {reach_of(world.publics[0])}")
        said = len(world.overlay.said)
        await lab.always(
            lambda: path_of(world.anna, world.ben) == "relayed" and world.overlay.converged(),
            "everybody believes everybody alive, and the relayed link lasts",
            600.0,
            1.0,
        )
        wrong = [each.kind for each in world.overlay.said[said:]]
        if wrong:
            raise ExpectationError(f"a network in which nothing happened said {wrong}")


async def nat_relay_crash(lab: Lab) -> None:
    """Of two relays one falls silent, or its program dies: the homes are linked through the other one, and when that dies, too, both say so."""
    rng = lab.dice.of("scenario")
    async with homes(lab, KINDS["port-restricted"], KINDS["symmetric"], publics=2) as world:
        await world.up()
        await world.linked("relayed")
        pair = (world.anna, world.ben)
        await lab.until(
            lambda: all(each.side is not None and len(each.side.reaching.relays) == 2 for each in pair),
            "each home has two relays",
            LINKED_WITHIN_S,
        )
        await asyncio.sleep(rng.uniform(0.0, 60.0))
        via = via_of(world.anna, world.ben)
        first, second = sorted(world.publics, key=lambda each: each.peer != via)
        silent, begun = rng.random() < 0.5, lab.now
        await first.crash(silent=silent)
        within_s = SILENT_WITHIN_S if silent else LINKED_WITHIN_S
        await lab.until(
            lambda: via_of(world.anna, world.ben) == via_of(world.ben, world.anna) == second.peer,
            f"the homes are linked through {second.name}",
            within_s,
        )
        lab.note("other relay", silent, lab.now - begun)
        await second.crash(silent=False)
        await lab.until(
            lambda: path_of(world.anna, world.ben) is None and path_of(world.ben, world.anna) is None,
            "both homes know that they are alone",
            SILENT_WITHIN_S,
        )
        await first.restart()
        await world.linked("relayed", 180.0)


async def nat_reversed(lab: Lab) -> None:
    """A public peer cannot dial one behind a router that is content with one link: asked through their relay, it dials."""
    async with homes(lab, KINDS["symmetric"], KINDS["symmetric"], publics=2) as world:
        few = JoiningSettings(links_wanted=1, links_wanted_beyond=1, mesh_peers_max=1, links_max=1)
        relay, caller = world.publics
        for public in world.publics:
            await public.up([relay] if public is not relay else [])
        await world.anna.up([relay])
        await lab.until(
            lambda: reach_of(caller) is Reach.PUBLIC, "the public peer knows that it can be dialled", LINKED_WITHIN_S
        )
        world.overlay.settings = replace(world.overlay.settings, joining=few, reach=ReachSettings(relays_max=1))
        await world.ben.up([relay])
        took_s = await lab.until(
            lambda: path_of(caller, world.ben) == path_of(world.ben, caller) == "reversed",
            "the public peer has been dialled",
            LINKED_WITHIN_S,
        )
        if via_of(caller, world.ben) != relay.peer:
            raise ExpectationError("nobody knows through whom")
        lab.note("reversed", took_s)


async def nat_opened(lab: Lab) -> None:
    """A port that somebody forwards while a relayed link is up is found at the next check, and the link becomes a direct one."""
    async with homes(lab, KINDS["port-restricted"], KINDS["symmetric"], publics=2) as world:
        # Every half an hour is the product's, and as many events.
        world.overlay.settings = replace(world.overlay.settings, reach=ReachSettings(recheck_s=RECHECK_S))
        await world.up()
        await world.linked("relayed")
        world.routers[1].forward(limits.PEER_PORT, world.ben.host, limits.PEER_PORT)
        await lab.until(lambda: reach_of(world.ben) is Reach.PUBLIC, "the forwarded port is found", RECHECK_S + 60.0)
        lab.note("direct", await world.linked("direct"))


async def nat_matrix(lab: Lab) -> dict[tuple[str, str], tuple[str, float]]:
    """For each pair of kinds of routers: by which path peers behind them were linked, or why not, and after how many virtual seconds.

    The order within a pair says who came first. The pairs are tried one after the other in one run, each with a public peer of its own, and
    know nothing of the others.
    """
    lab.network.set_conditions(Conditions.wan())
    overlay = SimOverlay(lab)
    found: dict[tuple[str, str], tuple[str, float]] = {}
    for left in KINDS:
        for right in KINDS:
            found[left, right] = await _one_pair(overlay, len(found), KINDS[left], KINDS[right])
            lab.note("pair", left, right, *found[left, right])
    return found


async def _one_pair(overlay: SimOverlay, number: int, left: NatSettings, right: NatSettings) -> tuple[str, float]:
    lab = overlay.lab
    routers = [lab.network.add_nat(f"6{side}.{number}.0.1", kind) for side, kind in ((1, left), (2, right))]
    public = overlay.add(Machine((f"52.{number}.0.1",)))
    anna, ben = (overlay.add(Machine(("192.168.1.20",), nat=router)) for router in routers)
    try:
        await public.up()
        await anna.up([public])
        await ben.up([public])
        begun = lab.now
        try:
            await lab.until(lambda: path_of(anna, ben) and path_of(ben, anna), "they are linked", 60.0)
        except ExpectationError as error:
            return str(error), lab.now - begun
        return path_of(anna, ben) or "lost at once", lab.now - begun
    finally:
        await overlay.stop()


async def nat_every_pair(lab: Lab) -> None:
    """Every pair of kinds of routers is linked through the public peer within fifteen seconds."""
    for (left, right), (path, took_s) in (await nat_matrix(lab)).items():
        if path != "relayed" or took_s > LINKED_WITHIN_S:
            raise ExpectationError(f"{left} and {right}: {path} after {took_s:.1f} s")
