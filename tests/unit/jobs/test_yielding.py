"""Yielding to the owner: schedules, and the policy under made-up machines and clocks."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.jobs.schedule import DAY_MINUTES, WEEK_MINUTES, Schedule, minute_text
from p2pcompute.jobs.yielding import (
    GROW_AFTER_S,
    SETTLED_S,
    SHRINK_AFTER_S,
    Pause,
    Seen,
    Verdict,
    Why,
    Yielding,
    YieldSettings,
    slots_left,
)
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError

QUIET = Seen(0.0, 8, None, 0, 1_000.0)
LOOK_S = 2.0


def at(day: int, hours: int, minutes: int = 0) -> int:
    return day * DAY_MINUTES + hours * 60 + minutes


@pytest.mark.parametrize(
    ("texts", "open_at", "closed_at"),
    [
        ((), [0, at(3, 12), WEEK_MINUTES - 1], []),
        (
            ("mon-fri 18:00-08:00", "sat-sun"),
            [at(0, 18), at(1, 7, 59), at(4, 23), at(5, 7), at(5, 12), at(6, 23, 59)],
            [at(0, 8), at(0, 7), at(0, 17, 59), at(4, 12), at(1, 8)],
        ),
        (("sun 22:00-06:00",), [at(6, 22), at(0, 5, 59)], [at(0, 6), at(6, 21), at(5, 23)]),
        (("22:00-06:00",), [at(3, 23), at(4, 1)], [at(3, 12)]),
        (("fri-mon",), [at(4, 0), at(0, 23)], [at(1, 0), at(3, 23)]),
        (("WED 09:30-09:31",), [at(2, 9, 30)], [at(2, 9, 29), at(2, 9, 31)]),
        (("tue 00:00-24:00",), [at(1, 0), at(1, 23, 59)], [at(2, 0), at(0, 23)]),
        (("12:00-12:00",), [0, at(4, 11)], []),
    ],
)
def test_windows(texts: tuple[str, ...], open_at: list[int], closed_at: list[int]) -> None:
    schedule = Schedule.parse(texts)
    assert [minute for minute in open_at if not schedule.is_open(minute)] == []
    assert [minute for minute in closed_at if schedule.is_open(minute)] == []


@pytest.mark.parametrize(
    "text", ["", "mon-", "someday", "mon 8-9", "8:00", "25:00-26:00", "10:60-11:00", "mon tue", "mon 1:00-2:00 x"]
)
def test_a_window_that_is_none_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is no window of a schedule: write days"):
        Schedule.parse((text,))
    with pytest.raises(UsageError, match="windows in a schedule"):
        Schedule.parse(("sat",) * (limits.SCHEDULE_WINDOWS_MAX + 1))


@given(
    st.lists(st.sampled_from(["mon-fri 18:00-08:00", "sat", "12:00-13:30", "sun 23:59-00:01"]), min_size=1, max_size=3),
    st.integers(0, WEEK_MINUTES - 1),
)
def test_the_next_opening_is_the_first(texts: list[str], minute: int) -> None:
    schedule = Schedule.parse(texts)
    wait = schedule.next_open(minute)
    assert wait is not None
    assert schedule.is_open((minute + wait) % WEEK_MINUTES)
    assert not any(schedule.is_open((minute + before) % WEEK_MINUTES) for before in range(wait))


def test_minutes_are_told_as_people_write_them() -> None:
    assert minute_text(at(0, 18)) == "mon 18:00"
    assert minute_text(WEEK_MINUTES + 61) == "mon 01:01"


class Machine:
    """A policy that is asked every two seconds."""

    def __init__(self, slots: int = 4, pause: Pause | None = None, **settings: object) -> None:
        self.policy = Yielding(YieldSettings(**settings), slots, pause)  # type: ignore[arg-type]
        self.now = 100.0

    def look(self, for_s: float = 0.0, **changes: object) -> Verdict:
        """Looks for so long at a machine that stays the same, one at least; what the last one said."""
        until = self.now + for_s
        while True:
            verdict = self.policy.look(dataclasses.replace(QUIET, **changes), self.now)  # type: ignore[arg-type]
            if self.now + LOOK_S > until:
                self.now += LOOK_S
                return verdict
            self.now += LOOK_S


def test_nothing_is_in_the_way() -> None:
    machine = Machine(load_max=0.25, battery_slots=0)
    assert machine.look(100.0) == Verdict()
    assert Machine().look(100.0, others_cores=8.0, on_battery=True) == Verdict(), "nothing was asked for"


def test_the_owner_pauses_until_a_time_or_for_good() -> None:
    machine = Machine(pause=Pause(1_060.0))
    verdict = machine.look()
    assert (verdict.slots, verdict.why) == (0, (Why.OWNER,))
    assert verdict.text == "lends nothing: its owner has paused it"
    assert machine.look(wall=1_059.9).slots == 0
    assert machine.look(wall=1_060.0) == Verdict()
    assert machine.policy.pause is None
    machine.policy.pause = Pause()
    assert machine.look(wall=1e12).slots == 0
    machine.policy.pause = None
    assert machine.look() == Verdict()


def test_schedules_are_exact_and_say_when() -> None:
    machine = Machine(schedule=Schedule.parse(["mon-fri 18:00-08:00"]))
    assert machine.look(minute=at(0, 17, 59)).text == "lends nothing: by its schedule it lends again at mon 18:00"
    assert machine.look(minute=at(0, 18)) == Verdict()


def test_a_battery_counts_at_once_and_a_plug_after_a_while() -> None:
    machine = Machine(battery_slots=1)
    verdict = machine.look(on_battery=True)
    assert (verdict.slots, verdict.why) == (1, (Why.BATTERY,))
    assert verdict.text == "lends 1 of 4 slots: it runs on battery"
    assert machine.look(SETTLED_S - 2 * LOOK_S, on_battery=False).slots == 1
    assert machine.look(2 * LOOK_S, on_battery=False) == Verdict()


@pytest.mark.parametrize(
    ("others", "expected"), [(0.0, 4), (2.0, 4), (2.1, 4), (4.5, 3), (5.9, 2), (7.5, 0), (8.0, 0), (99.0, 0)]
)
def test_slots_that_load_leaves(others: float, expected: int) -> None:
    assert slots_left(4, 8, others, 0.25) == expected


def test_load_moves_slots_only_when_it_lasts() -> None:
    machine = Machine(load_max=0.25)
    assert machine.look(SHRINK_AFTER_S - LOOK_S, others_cores=7.5) == Verdict()
    assert machine.look(others_cores=0.0) == Verdict(), "a pause begins the wait anew"
    assert machine.look(SHRINK_AFTER_S - LOOK_S, others_cores=7.5) == Verdict()
    verdict = machine.look(2 * LOOK_S, others_cores=7.5)
    assert (verdict.slots, verdict.why) == (0, (Why.LOAD,))
    assert machine.look(GROW_AFTER_S - LOOK_S, others_cores=5.5).slots == 0
    assert machine.look(2 * LOOK_S, others_cores=1.0).slots == 2, "as many as there was room for all along"
    assert machine.look(GROW_AFTER_S + LOOK_S, others_cores=1.0) == Verdict()


def test_load_takes_no_more_than_was_asked_for_all_the_time() -> None:
    machine = Machine(load_max=0.25)
    for _ in range(4):
        machine.look(others_cores=7.5)
        machine.look(others_cores=5.5)
    assert machine.look(others_cores=7.5).slots == 2


@given(st.lists(st.floats(4.3, 4.7), min_size=60, max_size=60))
def test_noise_moves_nothing_twice(loads: list[float]) -> None:
    machine = Machine(load_max=0.25)
    verdicts = [machine.look(others_cores=each).slots for each in loads]
    changes = sum(a != b for a, b in itertools.pairwise(verdicts))
    assert changes <= 1


def test_the_strongest_reason_counts_and_all_are_told() -> None:
    machine = Machine(battery_slots=2, pause=Pause())
    verdict = machine.look(on_battery=True)
    assert verdict.slots == 0
    assert verdict.why == (Why.OWNER, Why.BATTERY)
    assert verdict.text == "lends nothing: its owner has paused it; it runs on battery"


def test_a_peer_that_grows_lends_what_is_new() -> None:
    machine = Machine(slots=2, load_max=0.25)
    machine.policy.resize(6)
    assert machine.look() == Verdict()
    machine.look(SHRINK_AFTER_S + LOOK_S, others_cores=5.5)
    machine.policy.resize(3)
    assert machine.look(others_cores=5.5).slots == 2
    machine.policy.resize(1)
    assert machine.look(others_cores=5.5) == Verdict()
