"""What seats are offered, given and asked to give back by the dispatch machine, rule by rule."""

from __future__ import annotations

from collections import deque

from p2pcompute.jobs import dispatch as d
from p2pcompute.jobs.coordinating import AT_ONCE, FIRST_BYTES, FIRST_ROUNDS, RATE_GROWTH, SEATS_FETCHING_MAX, Region
from p2pcompute.jobs.grouping import take_waiting
from p2pcompute.jobs.plan import Facts
from p2pcompute.model import limits
from p2pcompute.model.ids import REDUCE_BASE, JobId, PeerId, ProgramId, TaskIndex, seat_of
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Outcome, TaskReport

NEAR = PeerId(b"n" * 32)
FAR = tuple(PeerId(bytes([number]) * 32) for number in range(1, 5))
SEATS = tuple(map(seat_of, FAR))
JOB = JobId(b"j" * 12)
GROUP = limits.REDUCE_FAN_IN
SLOTS = 8


class World:
    """A machine with one peer near it and four communities of one coordinator each."""

    def __init__(self, near_slots: int = 2) -> None:
        self.machine = d.Dispatch()
        self.now = 1.0
        self.feed(
            d.Regioned(tuple(Region(frozenset({peer}), (seat_of(peer),), SLOTS) for peer in FAR)),
            d.PeerUsable(NEAR, 0.001, True, 50.0),
            *(d.PeerUsable(seat, 0.02, False, 50.0, Facts(gives_back=True)) for seat in SEATS),
        )
        self.near_slots = near_slots

    def feed(self, *events: d.Event) -> list[d.Effect]:
        said: list[d.Effect] = []
        for event in events:
            said += self.machine.handle(event, self.now)
            self.machine.check_invariants()
        return said

    def open(self, aggregation: Aggregation = Aggregation.REDUCE) -> list[PeerId]:
        """A job without tasks; whom it is offered to."""
        entry = "merge" if aggregation is Aggregation.REDUCE else None
        spec = JobSpec(JOB, "job", ProgramId(b"p" * 32), "map", aggregation, entry, JobOptions(), None)
        offered = offered_to(self.feed(d.JobOpened(spec)))
        self.feed(d.PeerAccepted(NEAR, JOB), d.Granted(NEAR, self.near_slots))
        return offered

    def add(self, count: int, blob_bytes: int = 0) -> list[d.Effect]:
        return self.feed(d.TasksAdded(JOB, tuple(map(TaskIndex, range(count))), blob_bytes))

    def accept(self, seat: PeerId) -> list[d.Effect]:
        return self.feed(d.PeerAccepted(seat, JOB), d.Granted(seat, SLOTS))

    def report(self, peer: PeerId, leases: list[tuple[TaskIndex, int]], outcome: Outcome) -> list[d.Effect]:
        rows = tuple(TaskReport(task, attempt, outcome, 1.0, "") for task, attempt in leases)
        return self.feed(d.Reported(peer, JOB, rows))


def offered_to(said: list[d.Effect]) -> list[PeerId]:
    return [effect.peer for effect in said if isinstance(effect, d.OpenAt)]


def sent(said: list[d.Effect], peer: PeerId) -> list[tuple[TaskIndex, int]]:
    return [
        (lease.task, lease.attempt)
        for effect in said
        if isinstance(effect, d.Send) and effect.peer == peer
        for lease in effect.leases
    ]


def test_seats_are_offered_a_job_when_more_waits_than_is_taken_up_near() -> None:
    world = World(near_slots=4)
    assert world.open() == [NEAR], "what its tasks share is not known yet"
    assert offered_to(world.add(4)) == [], "nothing waits"
    assert offered_to(world.add(100)) == list(SEATS)


def test_few_seats_fetch_what_tasks_share_at_a_time() -> None:
    world = World()
    world.open()
    world.feed(d.DataHeld(JOB, 8_000_000, ()))
    first, second = offered_to(world.add(400))
    assert SEATS_FETCHING_MAX == 2
    (third,) = offered_to(world.accept(first))
    assert offered_to(world.feed(d.PeerRefused(second, JOB, "delegation", "no"))) == [
        seat for seat in SEATS if seat not in (first, second, third)
    ]


def test_a_seat_gets_little_before_it_has_reported_and_only_whole_groups() -> None:
    world = World()
    world.open()
    world.add(4_000)
    (seat, *_) = SEATS
    leases = sent(world.accept(seat), seat)
    assert len(leases) == FIRST_ROUNDS * SLOTS == GROUP
    assert [int(task) for task, _ in leases] == list(range(4_000 - GROUP, 4_000))
    more = sent(world.report(seat, leases[:10], Outcome.MERGED), seat)
    assert len(more) > 10 * SLOTS, "now it is known what a task takes there"
    assert len(more) % GROUP == 0
    assert more[0][0] % GROUP == 0


def test_a_seat_whose_results_come_one_by_one_gets_single_tasks() -> None:
    world = World()
    world.open(Aggregation.NONE)
    world.add(10)
    leases = sent(world.accept(SEATS[0]), SEATS[0])
    assert [int(task) for task, _ in leases] == list(range(2, 10))


def test_a_torn_group_is_left_to_those_near_who_take_it_up_at_once() -> None:
    world = World(near_slots=SLOTS)
    world.open()
    world.add(SLOTS + GROUP // 2)
    assert sent(world.accept(SEATS[0]), SEATS[0]) == [], "eight tasks wait for eight slots near"
    slow = World(near_slots=1)
    slow.open()
    slow.add(SLOTS + GROUP // 2)
    assert len(sent(slow.accept(SEATS[0]), SEATS[0])) == SLOTS + GROUP // 2 - 1, "one slot would take long"


def test_first_shares_keep_to_what_a_link_brings_soon() -> None:
    world = World()
    world.open(Aggregation.NONE)
    world.add(4_000, blob_bytes=4_000 * FIRST_BYTES // 8)
    counts = [len(sent(world.accept(seat), seat)) for seat in SEATS]
    assert counts == [2, 2, 2, 2], "eight tasks' arguments for all four seats together"
    assert FIRST_ROUNDS * SLOTS > 2


def test_a_seat_behind_a_narrow_link_gets_what_its_results_show_and_not_what_its_slots_could_do() -> None:
    held = {}
    for arguments in (0, FIRST_BYTES // 8):
        world = World()
        world.open(Aggregation.NONE)
        world.add(4_000, blob_bytes=4_000 * arguments)
        seat = SEATS[0]
        here = sent(world.accept(seat), seat)
        # One result in a second, where eight slots could give eight.
        for _ in range(20):
            world.now += 1.0
            here += sent(world.report(seat, [here.pop(0)], Outcome.RETURNED), seat)
        held[arguments] = len(here)
    assert held[FIRST_BYTES // 8] < 4_000 * AT_ONCE * RATE_GROWTH / 2
    assert held[0] > held[FIRST_BYTES // 8]


def take(queue: deque[TaskIndex], count: int, *, breaks: bool) -> list[int]:
    return list(map(int, take_waiting(queue, count, 16, is_whole=True, breaks=breaks, reductions=False)))


def test_groups_come_from_the_end_and_what_is_begun_stays() -> None:
    waiting = deque(map(TaskIndex, range(5, 40)))
    assert take(waiting, 16, breaks=False) == list(range(32, 40)), "the last group is as large as it gets"
    assert take(waiting, 16, breaks=False) == list(range(16, 32))
    assert take(waiting, 16, breaks=False) == [], "of the first group others have the front"
    assert list(waiting) == list(range(5, 16))
    assert take(waiting, 16, breaks=True) == list(range(5, 16))
    assert not waiting


def test_reductions_stay_where_they_are() -> None:
    reduction = TaskIndex(REDUCE_BASE + 1)
    waiting = deque([TaskIndex(0), TaskIndex(1), reduction])
    assert take(waiting, 16, breaks=True) == [0, 1]
    assert list(waiting) == [reduction]
