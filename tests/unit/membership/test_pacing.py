"""What is worth telling: formulas in tables, and what a network of some size would have to carry."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from p2pcompute.membership import traffic
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
SHARED = SETTINGS.shared
CAPABILITY = Capability(8, 3000, 0.5, 16, 8, bandwidth_mbps=100, latency_ms=20)
EDGES = (Edge(peer_of(1), 0.02, 100.0), Edge(peer_of(2), 0.0004, 900.0))
PLACE = Coordinate((0.05, 0.0, 0.0), 1e-3, 0.2)
NEW_AROUND = Around(10, has_old=False)


def record(**changes: Any) -> PeerRecord:
    fixed = {"capability": CAPABILITY, "edges": EDGES, "coordinate": PLACE, "load": 0.5}
    return make_record(FakeKey("own"), **(fixed | changes)).record


def told_pacer(now: float = 0.0) -> Pacer:
    """One whose first record has been told, and whose burst is used up."""
    pacer = Pacer(random.Random(1), PacingSettings(burst=1))
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
    pacer = Pacer(random.Random(1))
    moments = [
        now
        for now in range(200)
        if pacer.decide(record(), record(edges=(Edge(peer_of(now), 0.02),)), NEW_AROUND, 1_000, now) is Tell.RECORD
    ]
    assert moments[:5] == [0, 2, 4, 6, 8], "the first record and the burst"
    assert all(later - earlier >= 22 for earlier, later in itertools.pairwise(moments[4:]))
    assert len(moments) <= 5 + 200 / 30 + 1


def crowd(peers: int, seconds: int, *, size: int = 1_000, delay_s: int = 4) -> list[int]:
    """Seconds at which any of `peers` that started together, look every two seconds and always have something new signs a record; each
    hears of the others' after `delay_s`."""
    pacers = [Pacer(random.Random(number)) for number in range(peers)]
    told, new = record(), record(edges=(Edge(peer_of(3), 0.02),))
    signed: list[int] = []
    own: list[list[int]] = [[] for _ in pacers]
    for pacer in pacers:
        pacer.decide(told, told, Around(), size, -2)
    for now in range(0, seconds, 2):
        heard = bisect.bisect(signed, now - delay_s)
        for number, pacer in enumerate(pacers):
            around = Around(peers, False, heard - bisect.bisect(own[number], now - delay_s))
            if pacer.decide(told, new, around, size, now) is Tell.RECORD:
                own[number].append(now)
        signed = sorted(itertools.chain.from_iterable(own))
    return signed


def cost_bytes_per_s(signed: Sequence[int], begin: int, end: int) -> float:
    return sum(begin <= now < end for now in signed) * 1_000 * SHARED.copies / (end - begin)


@pytest.mark.parametrize("peers", [2, 10, 30, 100])
def test_up_to_a_hundred_peers_that_start_together_tell_four_times_within_ten_seconds(peers: int) -> None:
    assert len(crowd(peers, 10)) >= 3.9 * peers


@pytest.mark.parametrize("peers", [100, 300, 1_000])
def test_what_many_that_start_together_tell_is_bounded_and_comes_down_to_the_budget(peers: int) -> None:
    signed = crowd(peers, 300)
    early = cost_bytes_per_s(signed, 0, 120) * 120
    # Until the first are heard, everybody goes by what was left when all began.
    assert early <= 1.1 * (SHARED.credit_bytes_max + 120 * SHARED.budget_bytes_per_s)
    assert cost_bytes_per_s(signed, 200, 300) == pytest.approx(SHARED.budget_bytes_per_s, rel=0.25)


def test_of_a_thousand_that_start_together_no_moment_is_a_flood() -> None:
    signed = crowd(1_000, 120)
    worst = max(cost_bytes_per_s(signed, begin, begin + 10) for begin in range(0, 110, 2))
    assert worst <= 1.2 * SHARED.credit_bytes_max / (SHARED.spending_s_per_100 * 10)


def joins_after_s(peers: int, seed: int) -> int:
    """When somebody who joins `peers` that renew their records, and tell nothing else, tells its own edges."""
    pacer = Pacer(random.Random(seed))
    told, new = record(), record(edges=(Edge(peer_of(3), 0.02),))
    pacer.decide(told, told, Around(), 1_000, -2)
    for now in range(0, 10_000, 2):
        around = Around(peers, False, int(now * peers / SETTINGS.renew_s))
        if pacer.decide(told, new, around, 1_000, now) is Tell.RECORD:
            return now
    raise AssertionError("it never tells")


@pytest.mark.parametrize(("peers", "mean_s"), [(10, 1), (100, 2), (300, 15), (1_000, 200)])
def test_who_joins_a_quiet_network_is_not_kept_waiting_for_a_whole_period(peers: int, mean_s: int) -> None:
    waits = [joins_after_s(peers, seed) for seed in range(60)]
    assert statistics.fmean(waits) <= mean_s


@pytest.mark.parametrize("peers", [100, 1_000])
def test_who_signs_without_end_makes_others_wait_at_most_twice_as_long(peers: int) -> None:
    period_s = traffic.update_period_s(peers, 1_000, SHARED.copies, SHARED.budget_bytes_per_s)
    told, new = record(), record(edges=(Edge(peer_of(3), 0.02),))
    slow = PacingSettings(renew_s=1e9)
    waits = []
    for seed in range(60):
        pacer = Pacer(random.Random(seed), slow)
        begin = 200
        for now in range(0, 20_000, 2):
            around = Around(peers, False, 10 * now)
            if pacer.decide(told, told if now < begin else new, around, 1_000, now) and now >= begin:
                waits.append(now - begin)
                break
    assert len(waits) == 60
    assert statistics.fmean(waits) <= 2.5 * period_s


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
def test_load_updates_stay_within_their_budget(peers: int) -> None:
    """Everybody's load jumps at every look: what each must pass on, bytes a second."""
    pacer, rng = Pacer(random.Random(0)), random.Random(peers)
    around, end = Around(peers, has_old=False), 1_100
    told = [now for now in range(0, end, 2) if decide(pacer, now, around, load=rng.random()) is Tell.LOAD]
    sent = peers / end * len(told) * LOAD_BYTES * SETTINGS.load_copies
    assert sent <= SETTINGS.load_budget_bytes_per_s
    assert len(told) >= 0.8 * end / (pacer.load_period_s(peers) + 2) - 1, "and what may be said is said"


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
