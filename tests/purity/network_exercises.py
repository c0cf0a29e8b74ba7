"""What the rest of `membership/` is made to do with the world switched off: places, edges, and what is told of them."""

from __future__ import annotations

import dataclasses
import random

from p2pcompute.membership.agreement import agreed_edges, fill_in
from p2pcompute.membership.coordinates import CoordinateSpace, estimate_s
from p2pcompute.membership.edges import links_to_keep, select_edges
from p2pcompute.membership.pacing import Around, Pacer
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Coordinate, Edge, PeerEntry, PeerStatus, PeerView
from tests.support.membership import FakeKey, make_record


def coordinates(rng: random.Random) -> object:
    """Six peers find their places, one lies, one is forgotten."""
    spaces = [CoordinateSpace(rng) for _ in range(6)]
    peers = [FakeKey(number).peer for number in range(6)]
    for step in range(200):
        one, other = rng.sample(range(6), 2)
        theirs = spaces[other].own
        if other == 5:
            theirs = dataclasses.replace(theirs, height_s=rng.choice([9.0, float("nan")]))
        spaces[one].update(peers[other], theirs, 0.01 * (abs(one - other) + rng.random()), float(step))
        spaces[one].check_invariants()
        if step == 100:
            spaces[0].forget(peers[1])
    return [space.own for space in spaces], [estimate_s(spaces[0].own, each.own) for each in spaces]


def edges(rng: random.Random) -> object:
    """Thirty peers choose edges three times from noisy figures; what they agree on, and what is filled in."""
    peers = [FakeKey(number).peer for number in range(70)]
    space = CoordinateSpace(rng)
    places = {
        peer: dataclasses.replace(space.own, vector=(rng.random() / 10, rng.random() / 10, 0.0)) for peer in peers
    }
    listed: dict[PeerId, tuple[Edge, ...]] = dict.fromkeys(peers, ())
    for _ in range(3):
        for peer in peers:
            measured = [
                Edge(other, estimate_s(places[peer], places[other]) * rng.uniform(1.0, 1.3), rng.uniform(50, 100))
                for other in peers
                if other != peer
            ]
            listed[peer] = select_edges(peer, measured, places, peers, listed[peer])
    records = [
        make_record(FakeKey(number), edges=listed[peer], coordinate=places[peer]).record
        for number, peer in enumerate(peers)
    ]
    own, *others = sorted(records, key=lambda record: record.peer)
    view = PeerView(own, tuple(PeerEntry(each, PeerStatus.ALIVE, 0.0) for each in others), 1)
    agreed = agreed_edges(view)
    return agreed, fill_in(view, agreed), links_to_keep(peers[0], peers, listed[peers[0]], places)


def pacer(rng: random.Random) -> object:
    """A restless peer in a network of changing size."""
    machine, told, said = Pacer(rng), make_record(FakeKey("own")).record, []
    for now in range(0, 4_000, 2):
        place = Coordinate((rng.random(), 0.0, 0.0), 1e-3, 0.2)
        new = dataclasses.replace(told, load=rng.random(), slots=rng.choice([1] * 50 + [2]), coordinate=place)
        around = Around(rng.choice([3, 30, 300]), rng.random() < 0.5, now)
        tell = machine.decide(told, new, around, 900, float(now))
        said.append(tell)
        told = new if tell == 2 else told
    return said
