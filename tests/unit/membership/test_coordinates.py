"""Network coordinates: how near they come on made-up networks, and what no sample can do to them."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.membership.coordinates import CoordinateSettings, CoordinateSpace, estimate_s
from p2pcompute.model.peer import Coordinate
from p2pcompute.wire.record import COORDINATE
from tests.support.round_trips import Places, SyntheticNetwork, peer_of

ANY = st.floats(allow_nan=True, allow_infinity=True)
WILD = st.one_of(ANY, st.floats(-10, 10), st.floats(0, 1e-3))
PLACES = st.builds(
    Coordinate, st.lists(WILD, min_size=1, max_size=4).map(tuple), height_s=WILD, error=WILD, adjustment_s=WILD
)
#: What a decoder lets through.
DECODED = st.builds(
    Coordinate,
    st.tuples(*[st.floats(-100, 100)] * 3),
    height_s=st.floats(0, 100),
    error=st.floats(0, 10),
    adjustment_s=st.floats(-100, 100),
)


def space(seed: int = 1, **changes: object) -> CoordinateSpace:
    return CoordinateSpace(random.Random(seed), CoordinateSettings(**changes))  # type: ignore[arg-type]


def part(values: list[float], share: float) -> float:
    return values[int(len(values) * share)]


@pytest.mark.parametrize("seed", range(3))
def test_estimates_come_near_on_a_network_of_six_places(seed: int) -> None:
    places = Places(SyntheticNetwork(6, 8, seed))
    places.run(150)
    errors = places.errors()
    assert part(errors, 0.5) < 0.2
    assert part(errors, 0.75) < 0.4
    for each in places.spaces:
        each.check_invariants()
        assert each.own.error < 1.0, "who has probed for long is surer than who has not"


def test_two_peers_on_a_switch_find_that_they_are_near() -> None:
    one, other = space(1), space(2)
    for second in range(200):
        one.update(peer_of(2), other.own, 4e-4, second)
        other.update(peer_of(1), one.own, 4e-4, second)
    assert estimate_s(one.own, other.own) == pytest.approx(4e-4, rel=0.1)


LIES = {
    "far away": (Coordinate((9.0, 9.0, 9.0), 0.0, 0.0), 0.0),
    "a huge height": (Coordinate((0.0, 0.0, 0.0), 9.0, 0.0), 0.0),
    "near, and answers late": (Coordinate((0.0, 0.0, 0.0), 0.0, 0.0), 1.0),
    "a huge adjustment": (Coordinate((0.0, 0.0, 0.0), 0.0, 0.0, -9.0), 0.0),
    "absurd": (Coordinate((90.0, 90.0, 90.0), 0.0, 0.0), 0.0),
    "no number": (Coordinate((math.nan, 0.0, 0.0), 0.0, 0.0), 0.0),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tenth_of_liars_does_not_drag_the_honest(lie: str) -> None:
    liars = (3, 9, 17, 33, 41)
    places = Places(SyntheticNetwork(6, 8, 5))
    places.run(100)
    for liar in liars:
        places.lies[liar], places.delays[liar] = LIES[lie]
    honest_before = places.errors(leave_out=liars)
    places.run(200)
    errors = places.errors(leave_out=liars)
    # Nothing gets much worse than it was; unbounded, "far away" alone takes the median beyond 0.45.
    assert part(errors, 0.5) < max(2.0 * part(honest_before, 0.5), 0.3)


def test_no_sample_moves_further_than_its_share_of_a_round_trip() -> None:
    settings = CoordinateSettings()
    for seed in range(20):
        rng = random.Random(seed)
        one = space(seed)
        for step in range(200):
            before = one.own
            place = Coordinate(tuple(rng.uniform(-10, 10) for _ in range(3)), rng.uniform(0, 10), 0.0)
            rtt_s = rng.choice([1e-3, 0.1])
            one.update(peer_of(step % settings.residual_peers_min), place, rtt_s, step)
            moved_s = math.dist(before.vector, one.own.vector)
            if step < settings.residual_peers_min - 1:
                assert moved_s <= settings.movement_tuning * 0.1 * 1.01


def test_who_is_usual_decides_what_is_too_much() -> None:
    one = space()
    for step in range(400):
        one.update(peer_of(step % 9), Coordinate((0.01, 0.0, 0.0), 1e-3, 0.2), 0.012, step)
    before = one.own
    one.update(peer_of(99), Coordinate((9.0, 9.0, 9.0), 0.0, 0.0), 0.02, 400)
    assert math.dist(before.vector, one.own.vector) < 1e-3
    assert abs(one.own.height_s - before.height_s) < 1e-3


@given(st.lists(st.tuples(st.integers(0, 12), PLACES, WILD), max_size=60))
def test_whatever_is_said_the_place_stays_finite_and_bounded(samples: list[tuple[int, Coordinate, float]]) -> None:
    one = space(peers_max=8, residual_peers=4, residual_peers_min=2)
    for number, (peer, place, rtt_s) in enumerate(samples):
        one.update(peer_of(peer), place, rtt_s, number)
        one.check_invariants()
    assert not one.reset_if_invalid()
    assert COORDINATE.load(COORDINATE.dump(one.own)).height_s == pytest.approx(one.own.height_s, abs=1e-6)


@given(DECODED, DECODED)
def test_estimates_are_symmetric_finite_and_never_negative(one: Coordinate, other: Coordinate) -> None:
    guess_s = estimate_s(one, other)
    assert math.isfinite(guess_s)
    assert guess_s >= 0.0
    assert guess_s == estimate_s(other, one)


def test_a_place_of_fewer_dimensions_stands_at_zero_in_the_others() -> None:
    flat, high = Coordinate((3.0,), 0.0, 1.0), Coordinate((0.0, 4.0, 0.0), 0.5, 1.0)
    assert estimate_s(flat, high) == estimate_s(high, flat) == pytest.approx(5.5)


@pytest.mark.parametrize("rtt_s", [0.0, -1.0, 10.1, math.nan, math.inf])
def test_what_is_no_round_trip_is_dropped(rtt_s: float) -> None:
    one = space()
    one.update(peer_of(1), Coordinate((0.1, 0.0, 0.0), 0.0, 0.1), rtt_s, 0.0)
    assert one.own == space().own
    assert one.rejected == {"round trip": 1}


@pytest.mark.parametrize(
    "place",
    [
        Coordinate((0.1, 0.0), 0.0, 0.1),
        Coordinate((0.1, 0.0, 0.0, 0.0), 0.0, 0.1),
        Coordinate((10.1, 0.0, 0.0), 0.0, 0.1),
        Coordinate((0.1, 0.0, 0.0), -0.1, 0.1),
        Coordinate((0.1, 0.0, 0.0), 0.0, math.inf),
        Coordinate((0.1, 0.0, 0.0), 0.0, 0.1, -10.1),
    ],
)
def test_what_is_no_place_is_dropped(place: Coordinate) -> None:
    one = space()
    one.update(peer_of(1), place, 0.1, 0.0)
    assert one.own == space().own
    assert one.rejected == {"coordinate": 1}


def test_one_round_trip_of_three_that_was_held_up_counts_for_nothing() -> None:
    def told(*rtts_s: float) -> Coordinate:
        one = space()
        for number, rtt_s in enumerate(rtts_s):
            one.update(peer_of(1), Coordinate((0.05, 0.0, 0.0), 1e-3, 0.2), rtt_s, number)
        return one.own

    assert told(0.05, 0.05, 5.0) == told(0.05, 0.05, 0.05)
    assert told(0.05, 5.0, 5.0) != told(0.05, 0.05, 0.05)


def test_old_round_trips_are_forgotten_and_so_are_peers() -> None:
    place = Coordinate((0.05, 0.0, 0.0), 1e-3, 0.2)

    def told(gap_s: float, *, forget: bool = False) -> Coordinate:
        one = space()
        one.update(peer_of(1), place, 0.05, 0.0)
        one.update(peer_of(1), place, 0.05, 1.0)
        if forget:
            one.forget(peer_of(1))
        one.update(peer_of(1), place, 0.4, 1.0 + gap_s)
        return one.own

    assert told(1.0) != told(601.0)
    assert told(1.0) != told(1.0, forget=True)


def test_a_broken_place_is_left() -> None:
    one = space()
    one.update(peer_of(1), Coordinate((0.05, 0.0, 0.0), 1e-3, 0.2), 0.05, 0.0)
    assert not one.reset_if_invalid()
    one._own = dataclasses.replace(one._own, height_s=math.nan)
    assert one.reset_if_invalid()
    assert one.own == space().own
