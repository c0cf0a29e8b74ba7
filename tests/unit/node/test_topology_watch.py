"""The watch over the network's shape: when it computes anew, what it says of this peer, and that the loop never waits for it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TypeVar

from p2pcompute.model.capability import Capability
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import (
    DEFAULT_ROLES,
    Edge,
    Isolation,
    PeerEntry,
    PeerRecord,
    PeerStatus,
    PeerView,
)
from p2pcompute.node.topology import TopologyWatch
from p2pcompute.topology.shape import NetworkShape
from tests.support.membership import NETWORK
from tests.support.round_trips import peer_of

T = TypeVar("T")
NEAR_S, FAR_S = 0.001, 0.080
WALL_S = 1_000_000.0


class Clock:
    """Stands still."""

    def monotonic(self) -> float:
        return 5.0

    def wall(self) -> float:
        return WALL_S


class CountingOffload:
    """Runs what it is given, and counts."""

    def __init__(self) -> None:
        self.times = 0

    async def run(self, function: Callable[[], T]) -> T:
        self.times += 1
        return function()


class Lead:
    """What the own record is to say."""

    def __init__(self) -> None:
        self.said: list[bool] = []

    def set_leads(self, leads: bool) -> None:
        self.said.append(leads)


def sites(version: int = 1, cores: int = 4, far_s: float = FAR_S, leaders: tuple[int, ...] = ()) -> PeerView:
    """Two sites of four, every edge listed by both ends; the view of the first peer, which alone has `cores`."""
    peers = [peer_of(number) for number in range(8)]

    def record(number: int) -> PeerRecord:
        edges = tuple(
            Edge(other, NEAR_S if place // 4 == number // 4 else far_s)
            for place, other in enumerate(peers)
            if place != number
        )
        capability = Capability(cores if number == 0 else 4, 3_000.0, 1.0, 16.0, 16.0)
        return PeerRecord(
            peers[number], NETWORK, int((WALL_S - 3_600) * 1000), 0, f"p{number}", (), capability, 4, 0.0, DEFAULT_ROLES,
            Isolation.PROCESS, "3.11", "linux", "0", edges=edges, leads=number in leaders,
        )  # fmt: skip

    own, *others = [record(number) for number in range(8)]
    rows = [PeerEntry(each, PeerStatus.ALIVE, 0.0, is_met=True) for each in others]
    return PeerView(own, tuple(sorted(rows, key=lambda row: row.record.peer)), version)


def looks(*views: PeerView) -> tuple[list[NetworkShape], Lead, CountingOffload, list[NetworkShape]]:
    """What a watch finds that looks once at each of `views`."""
    shown = list(views)
    own, offload, changes = Lead(), CountingOffload(), list[NetworkShape]()
    watch = TopologyWatch(lambda: shown[0], own, Clock(), offload, changes.append)

    async def look() -> list[NetworkShape]:
        found = []
        for _ in views:
            found.append(await watch.look())
            if len(shown) > 1:
                shown.pop(0)
        return found

    return asyncio.run(look()), own, offload, changes


def community(shape: NetworkShape, number: int) -> frozenset[PeerId]:
    label = shape.community_of(peer_of(number))
    assert label is not None
    return frozenset(shape.members(label))


def test_two_sites_are_two_communities_and_each_has_a_key_node() -> None:
    (shape,), own, _, _ = looks(sites(cores=32))
    assert community(shape, 0) == {peer_of(number) for number in range(4)}
    assert community(shape, 4) == {peer_of(number) for number in range(4, 8)}
    assert shape.is_key_node(peer_of(0))
    assert own.said == [True]


def test_a_view_without_news_costs_nothing() -> None:
    found, own, offload, changes = looks(sites(), sites(), sites())
    assert offload.times == 1
    assert found[0] is found[1] is found[2]
    assert len(changes) == len(own.said) == 1


def test_noise_elects_anew_and_computes_nothing_else() -> None:
    found, _, offload, changes = looks(sites(1, cores=4), sites(2, cores=32, far_s=FAR_S * 1.001))
    assert offload.times == 2
    assert found[1].vectors is found[0].vectors
    assert found[1].is_key_node(peer_of(0))
    assert changes == found


def test_links_that_change_change_the_shape() -> None:
    found, _, _, _ = looks(sites(1), sites(2, far_s=NEAR_S))
    assert len(found[0].key_nodes) == 2
    assert len(found[1].key_nodes) == 1


def test_who_leads_goes_on_leading_until_somebody_is_better_by_a_fifth() -> None:
    before = sites(1, cores=4, leaders=(2, 6))
    found, own, _, _ = looks(
        before, dataclasses.replace(sites(2, cores=5, leaders=(2, 6))), sites(3, cores=32, leaders=(2, 6))
    )
    assert [shape.is_key_node(peer_of(2)) for shape in found] == [True, True, False]
    assert own.said == [False, False, True]
