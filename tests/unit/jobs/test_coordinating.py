"""Which jobs are given to seats, who stands for whom, and how much a seat gets."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from p2pcompute.jobs import coordinating
from p2pcompute.jobs.coordinating import Region, Seating, share_size
from p2pcompute.model.ids import JobId, PeerId, ProgramId, coordinator_of, is_seat, seat_of
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec
from p2pcompute.model.placement import Coordination

ONE, TWO, THREE, OTHER = (PeerId(bytes([number]) * 32) for number in range(1, 5))
SEATS = tuple(seat_of(peer) for peer in (ONE, TWO))
REGION = Region(frozenset({ONE, TWO, THREE}), SEATS, 6)
ELSEWHERE = Region(frozenset({OTHER}), (seat_of(OTHER),), 2)


def spec_of(aggregation: Aggregation, is_weighted: bool = False, **options: Any) -> JobSpec:
    entry = "reduce" if aggregation in (Aggregation.REDUCE, Aggregation.CUSTOM) else None
    spec = JobSpec(JobId(b"j" * 12), "job", ProgramId(b"p" * 32), "map", aggregation, entry, JobOptions(**options))
    return dataclasses.replace(spec, is_weighted=is_weighted)


def test_a_seat_is_told_from_the_peer_that_has_it() -> None:
    assert is_seat(seat_of(ONE))
    assert not is_seat(ONE)
    assert coordinator_of(seat_of(ONE)) == ONE
    assert coordinator_of(ONE) == ONE


@pytest.mark.parametrize(
    ("aggregation", "plain", "weighted"),
    [
        (Aggregation.NONE, False, False),
        (Aggregation.SUM, True, False),
        (Aggregation.AVERAGE, True, False),
        (Aggregation.MAX, True, True),
        (Aggregation.MIN, True, True),
        (Aggregation.CONCAT, False, False),
        (Aggregation.CUSTOM, False, False),
        (Aggregation.REDUCE, True, True),
    ],
)
def test_what_weights_change_is_never_merged_by_those_who_do_not_know_them(
    aggregation: Aggregation, plain: bool, weighted: bool
) -> None:
    assert coordinating.merges(spec_of(aggregation)) is plain
    assert coordinating.merges(spec_of(aggregation, is_weighted=True)) is weighted
    assert not coordinating.merges(spec_of(aggregation, coordination=Coordination.RELAY))


def test_the_best_seat_that_can_be_reached_stands_for_its_region() -> None:
    seating = Seating()
    seating.take((REGION, ELSEWHERE), [SEATS[1]])
    assert seating.seats == (SEATS[1],)
    assert seating.holds(SEATS[1])
    assert not seating.holds(SEATS[0])
    assert seating.covered == REGION.members, "of the region without a seat nobody is covered"


def test_a_stand_in_follows_and_nobody_is_tried_twice() -> None:
    seating = Seating()
    seating.take((REGION,), SEATS)
    assert seating.give_up(SEATS[0], SEATS)
    assert seating.seats == (SEATS[1],)
    assert seating.covered == REGION.members
    assert not seating.give_up(SEATS[0], SEATS), "it stands for nobody any more"
    assert seating.give_up(SEATS[1], SEATS)
    assert seating.seats == ()
    assert seating.covered == frozenset(), "its peers are lenders like others"
    seating.take((REGION,), SEATS)
    assert seating.seats == (), "both were given up in this job"


def test_a_job_that_has_ended_has_no_seats() -> None:
    seating = Seating()
    seating.take((REGION, ELSEWHERE), [*SEATS, seat_of(OTHER)])
    seating.clear()
    assert seating.seats == ()
    assert seating.covered == frozenset()


@pytest.mark.parametrize(
    ("waiting", "capacity", "of_all", "size"),
    [
        (100, 1.0, 2.0, 15),
        (100, 2.0, 2.0, 30),
        (3, 1.0, 1.0, 1),
        (100, 0.0, 5.0, 0),
        (100, 1.0, 0.0, 0),
        (0, 1.0, 1.0, 0),
    ],
)
def test_a_seat_gets_a_part_of_what_would_be_fair(waiting: int, capacity: float, of_all: float, size: int) -> None:
    assert share_size(waiting, capacity, of_all) == size
