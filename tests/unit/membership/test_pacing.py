"""What is worth telling: formulas in tables, and what a network of some size would have to carry."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import pytest

from p2pcompute.membership.pacing import (
    LOAD_BYTES,
    Around,
    Pacer,
    PacingSettings,
    Tell,
    edges_differ,
    hardware_differs,
    has_moved,
    load_differs,
)
from p2pcompute.model import limits
from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.peer import Address, Coordinate, Edge, PeerRecord, Reach, Relay
from p2pcompute.wire.gossip import LoadUpdate, sign_load
from tests.support.membership import FakeKey, make_record
from tests.support.round_trips import peer_of

SETTINGS = PacingSettings()
CAPABILITY = Capability(8, 3000, 0.5, 16, 8, bandwidth_mbps=100, latency_ms=20)
EDGES = (Edge(peer_of(1), 0.02, 100.0), Edge(peer_of(2), 0.0004, 900.0))
PLACE = Coordinate((0.05, 0.0, 0.0), 1e-3, 0.2)
NEW_AROUND = Around(10, has_old=False)


def record(**changes: Any) -> PeerRecord:
    fixed = {"capability": CAPABILITY, "edges": EDGES, "coordinate": PLACE, "load": 0.5}
    return make_record(FakeKey("own"), **(fixed | changes)).record


def told_pacer(now: float = 0.0) -> Pacer:
    """One whose first record has been told, and whose burst is used up."""
    pacer = Pacer(PacingSettings(burst=1))
    assert pacer.decide(record(coordinate=None), record(), NEW_AROUND, 1_000, now) is Tell.RECORD
    return pacer


def decide(pacer: Pacer, now: float, around: Around = NEW_AROUND, **changes: Any) -> Tell:
    return pacer.decide(record(), record(**changes), around, 1_000, now)


def test_nothing_is_false_and_nothing_new_is_nothing() -> None:
    assert not Tell.NOTHING
    assert Tell.LOAD
    assert Tell.RECORD
    pacer = told_pacer()
    assert {decide(pacer, second) for second in range(1, int(limits.RECORD_EXPIRY_S / 3), 2)} == {Tell.NOTHING}


URGENT: dict[str, Any] = {
    "addresses": (Address("10.0.0.9", 1),),
    "functions": ("f",),
    "labels": ("gpu",),
    "cost_per_hour": 2.5,
    "performance_tier": "premium",
    "reach": Reach.PUBLIC,
    "relays": (Relay(peer_of(3), Address("192.0.2.1", 9876)),),
    "slots": 3,
    "leaving": True,
}


@pytest.mark.parametrize("name", URGENT)
def test_what_a_peer_offers_is_told_at_once(name: str) -> None:
    pacer = told_pacer()
    assert decide(pacer, 0.4, **{name: URGENT[name]}) is Tell.NOTHING, "but a flapping interface is no flood"
    assert decide(pacer, 0.6, **{name: URGENT[name]}) is Tell.RECORD


def test_a_record_is_renewed_at_a_third_of_its_life_and_sooner_among_old_peers() -> None:
    assert decide(told_pacer(), 1_199.0) is Tell.NOTHING
    assert decide(told_pacer(), 1_200.0) is Tell.RECORD
    assert decide(told_pacer(), 299.0, Around(10, has_old=True)) is Tell.NOTHING
    assert decide(told_pacer(), 300.0, Around(10, has_old=True)) is Tell.RECORD


def test_slow_changes_come_in_a_burst_and_then_once_a_period() -> None:
    pacer = Pacer()
    moments = [
        now
        for now in range(200)
        if pacer.decide(record(), record(edges=(Edge(peer_of(now), 0.02),)), NEW_AROUND, 1_000, now) is Tell.RECORD
    ]
    assert moments[:5] == [0, 2, 4, 6, 8], "the first record and the burst"
    assert all(later - earlier >= 22 for earlier, later in itertools.pairwise(moments[4:]))
    assert len(moments) <= 5 + 200 / 30 + 1


def test_a_larger_network_hears_of_slow_changes_less_often() -> None:
    pacer = told_pacer()
    many = Around(1_000, has_old=False)
    moments = [now for now in range(1, 1_199) if decide(pacer, now, many, edges=(Edge(peer_of(now), 0.02),))]
    assert len(moments) <= 1 + 1_199 / (1_000 * 1_000 * SETTINGS.record_copies / SETTINGS.record_budget_bytes_per_s)


def test_a_changed_load_is_told_by_itself_and_only_once() -> None:
    pacer = told_pacer()
    busy = dataclasses.replace(CAPABILITY, idle=0.1)
    around = Around(5, has_old=False)
    assert decide(pacer, 1.0, around, capability=busy) is Tell.NOTHING
    assert decide(pacer, 2.0, around, capability=busy) is Tell.LOAD
    assert decide(pacer, 9.0, around, capability=busy) is Tell.NOTHING, "that has been told"
    assert decide(pacer, 9.0, around) is Tell.LOAD, "and this is news again"
    assert decide(pacer, 12.0, around, load=0.9) is Tell.LOAD


def test_drift_is_told_when_it_lasts() -> None:
    pacer = told_pacer()
    drifted = {"capability": dataclasses.replace(CAPABILITY, memory_available_gb=7.5)}
    around = Around(3, has_old=False)
    assert decide(pacer, 29.0, around, **drifted) is Tell.NOTHING
    assert decide(pacer, 30.0, around, **drifted) is Tell.LOAD
    assert decide(pacer, 90.0, around, **drifted) is Tell.NOTHING


@pytest.mark.parametrize("peers", [2, 10, 100, 1_000])
def test_what_a_peer_sends_for_others_updates_stays_within_its_budget(peers: int) -> None:
    """Everybody's load jumps and everybody's edges change at every look: what each must pass on, bytes a second."""
    pacer, rng = Pacer(), random.Random(peers)
    told, counts = record(), {Tell.NOTHING: 0, Tell.LOAD: 0, Tell.RECORD: 0}
    around, size, end = Around(peers, has_old=False), 1_000, 6_000
    for now in range(0, end, 2):
        new = record(load=rng.random(), edges=(Edge(peer_of(now), 0.02),))
        tell = pacer.decide(told, new, around, size, now)
        counts[tell] += 1
        told = new if tell is Tell.RECORD else told
    sent = (
        peers
        / end
        * (counts[Tell.RECORD] * size * SETTINGS.record_copies + counts[Tell.LOAD] * LOAD_BYTES * SETTINGS.load_copies)
    )
    burst = SETTINGS.burst * size * SETTINGS.record_copies * peers / end
    assert sent <= SETTINGS.record_budget_bytes_per_s + SETTINGS.load_budget_bytes_per_s + burst
    assert counts[Tell.RECORD] >= end / max(30.0, peers * size * 1.6 / 1_500) - 1, "and what may be said is said"


def test_a_load_update_has_the_size_that_the_budget_counts() -> None:
    key = FakeKey("own")
    assert len(sign_load(LoadUpdate(key.peer, 1, 2, 0.5, 0.5, 8.0), key)) == LOAD_BYTES


@pytest.mark.parametrize(
    ("told", "new", "is_change"),
    [
        ((0.5, 0.5, 8.0), (0.53, 0.54, 8.5), False),
        ((0.5, 0.5, 8.0), (0.58, 0.5, 8.0), True),
        ((0.0, 0.5, 8.0), (0.04, 0.5, 8.0), False),
        ((0.5, 0.5, 8.0), (0.5, 0.56, 8.0), True),
        ((0.5, 0.01, 8.0), (0.5, 0.04, 8.0), False),
        ((0.5, 0.5, 8.0), (0.5, 0.5, 6.9), True),
        ((0.5, 0.5, 0.2), (0.5, 0.5, 0.21), False),
    ],
)
def test_load(told: tuple[float, float, float], new: tuple[float, float, float], is_change: bool) -> None:
    assert load_differs(told, new, SETTINGS) is is_change


@pytest.mark.parametrize(
    ("change", "is_change"),
    [
        ({}, False),
        ({"idle": 0.0, "memory_available_gb": 1.0}, False),
        ({"cores": 9}, True),
        ({"frequency_mhz": 3_200.0}, False),
        ({"frequency_mhz": 3_500.0}, True),
        ({"latency_ms": 24.0}, False),
        ({"latency_ms": None}, True),
        ({"bandwidth_mbps": 140.0}, True),
        ({"gpus": (Gpu("one", 24.0),)}, True),
    ],
)
def test_hardware(change: dict[str, Any], is_change: bool) -> None:
    assert hardware_differs(CAPABILITY, dataclasses.replace(CAPABILITY, **change), SETTINGS) is is_change
    assert hardware_differs(None, CAPABILITY, SETTINGS)


@pytest.mark.parametrize(
    ("new", "is_change"),
    [
        (EDGES, False),
        (EDGES[::-1], False),
        (EDGES[:1], True),
        ((EDGES[0], Edge(peer_of(3), 0.0004, 900.0)), True),
        ((Edge(peer_of(1), 0.022, 120.0), Edge(peer_of(2), 0.0007, 900.0)), False),
        ((Edge(peer_of(1), 0.030, 100.0), EDGES[1]), True),
        ((Edge(peer_of(1), 0.02, 30.0), EDGES[1]), True),
    ],
)
def test_edges(new: tuple[Edge, ...], is_change: bool) -> None:
    assert edges_differ(EDGES, new, SETTINGS) is is_change


@pytest.mark.parametrize(
    ("new", "is_change"),
    [
        (PLACE, False),
        (Coordinate((0.055, 0.003, 0.0), 1e-3, 0.2), False),
        (Coordinate((0.07, 0.0, 0.0), 1e-3, 0.2), True),
        (Coordinate((0.05, 0.0, 0.0), 2e-2, 0.2), True),
        (Coordinate((0.05, 0.0), 1e-3, 0.2), True),
        (None, True),
    ],
)
def test_places(new: Coordinate | None, is_change: bool) -> None:
    assert has_moved(PLACE, new, SETTINGS) is is_change
    assert has_moved(dataclasses.replace(PLACE, error=1.0), PLACE, SETTINGS), "much surer is worth telling"
