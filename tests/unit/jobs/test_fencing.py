"""Fences: the law in one line, against every order of arrival."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.jobs.fencing import Fences
from p2pcompute.model.ids import JobId, PeerId

ORIGIN, OTHER = PeerId(b"o" * 32), PeerId(b"p" * 32)
JOB, NEXT = JobId(b"j" * 12), JobId(b"k" * 12)
A, B, C = (PeerId(name * 32) for name in (b"a", b"b", b"c"))


@pytest.mark.parametrize(
    ("seen", "last", "taken"),
    [
        ([], (A, 0), True),
        ([(A, 1)], (A, 1), True),
        ([(A, 1)], (B, 2), True),
        ([(A, 1)], (B, 1), True),
        ([(B, 2)], (A, 1), False),
        ([(A, 1), (B, 2), (A, 3)], (A, 1), False),
        ([(A, 1), (B, 2), (A, 3)], (A, 2), True),
        ([(A, 1), (B, 2), (A, 3)], (B, 2), False),
        ([(A, 5), (A, 7)], (A, 1), True),
        ([(A, 5), (B, 1)], (B, 6), True),
    ],
)
def test_a_lower_epoch_of_another_coordinator_is_fenced(
    seen: list[tuple[PeerId, int]], last: tuple[PeerId, int], taken: bool
) -> None:
    fences = Fences()
    for each in seen:
        fences.take(ORIGIN, JOB, *each)
    assert fences.take(ORIGIN, JOB, *last) is taken


def test_jobs_and_origins_have_fences_of_their_own() -> None:
    fences = Fences()
    assert fences.take(ORIGIN, JOB, A, 9)
    assert fences.take(ORIGIN, NEXT, B, 1)
    assert fences.take(OTHER, JOB, B, 1)
    assert not fences.take(ORIGIN, JOB, B, 1)


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 5)), max_size=12))
def test_the_law(seen: list[tuple[PeerId, int]]) -> None:
    fences = Fences()
    for number, (coordinator, epoch) in enumerate(seen):
        taken = fences.take(ORIGIN, JOB, coordinator, epoch)
        higher = [other for other, above in seen[: number + 1] if other != coordinator and above > epoch]
        assert taken is not bool(higher)
        for earlier, at in seen[: number + 1]:
            superseded = any(other != earlier and above > at for other, above in seen[: number + 1])
            assert fences.is_fenced(ORIGIN, JOB, earlier, at) is superseded


def test_the_longest_unused_are_forgotten_first() -> None:
    fences = Fences(jobs_max=2)
    third = JobId(b"l" * 12)
    fences.take(ORIGIN, JOB, A, 5)
    fences.take(ORIGIN, NEXT, A, 5)
    assert not fences.take(ORIGIN, JOB, B, 4), "also a use"
    fences.take(ORIGIN, third, A, 5)
    assert fences.is_fenced(ORIGIN, JOB, B, 4)
    assert not fences.is_fenced(ORIGIN, NEXT, B, 4), "forgotten"
