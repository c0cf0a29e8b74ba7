"""The reach machine through a night: witnesses that tell the truth, lie and vanish, a router that helps for a while, relays that come and go."""

from __future__ import annotations

import random

from p2pcompute.membership import reach_events as events
from p2pcompute.membership.machine import Tick
from p2pcompute.membership.reach import ReachMachine
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach

_PEERS = [PeerId(number.to_bytes(32, "big")) for number in range(1, 13)]
_OWN = (Address("192.168.1.20", 9876), Address("2a00:55::9", 9876))
_SEEN = Address("11.5.0.9", 40_000)


def _news(rng: random.Random, now: float) -> events.Event:
    number = rng.randrange(0, len(_PEERS))
    peer, address = _PEERS[number], Address(f"20.{number}.0.1", 9876)
    reach = rng.choice(list(Reach))
    return rng.choice(
        [
            events.LinkUp(peer, rng.choice([address, None]), rng.random() < 0.5, reach, rng.random() < 0.2),
            events.LinkDown(peer),
            events.AddressSeen(peer, rng.choice([_SEEN, address])),
            events.DialedBack(peer, (Address(_SEEN.host, 9876),)),
            events.DialBackFailed(peer),
            events.DialBackRefused(peer),
            events.InboundSeen(peer, address),
            events.NetworksChanged(_OWN[: rng.randrange(1, 3)]),
            events.MappingChanged(rng.choice([None, Address("11.5.0.9", 41_000)]), "NAT-PMP"),
            events.RelayReserved(peer, now + rng.uniform(0, 7_200)),
            events.RelayRefused(peer, "full"),
            events.RecordKnown(peer, reach, (), (address,)),
            events.PeerForgotten(peer),
            events.RoundTripMeasured(peer, rng.random()),
        ]
    )


def reach_machine(rng: random.Random) -> object:
    """Everything that the machine asked for, with times."""
    machine = ReachMachine(rng)
    said: list[object] = []
    now = 0.0

    def feed(event: events.Event) -> None:
        effects = machine.handle(event, now)
        machine.check_invariants()
        said.extend((now, effect) for effect in effects)

    feed(events.NetworksChanged(_OWN))
    for _ in range(600):
        until = now + rng.expovariate(1 / 30)
        while (at := machine.deadline()) is not None and at <= until:
            now = max(now, at)
            feed(Tick())
        now = until
        feed(_news(rng, now))
    return said
