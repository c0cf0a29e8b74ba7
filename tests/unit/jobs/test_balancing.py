"""Which leases leave which peer: formulas, hysteresis, what a move costs, the links between peers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from p2pcompute.jobs import balancing
from p2pcompute.jobs import dispatch as d
from p2pcompute.jobs.balancing import BalancingSettings, leases_to_recall, load_of, seconds_a_task
from p2pcompute.jobs.leases import JobBook
from p2pcompute.jobs.placing import Placing
from p2pcompute.jobs.plan import Facts
from p2pcompute.jobs.roster import Lender
from p2pcompute.jobs.shares import Share
from p2pcompute.jobs.strategies import Registry
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Lease, Outcome, TaskReport
from p2pcompute.topology.affinity import Adjacency
from p2pcompute.topology.graph import graph_of_edges

PEERS = [PeerId(bytes([number]) * 32) for number in range(1, 6)]
JOB = JobId(b"j" * 12)
SPEC = JobSpec(JOB, "job", ProgramId(b"p" * 32), "map", Aggregation.NONE, None, JobOptions(speculate=False), None)
GIVES_BACK = Facts(gives_back=True)


def load(
    number: int,
    out: int,
    task_s: float | None,
    slots: int = 1,
    rtt_s: float = 0.001,
    facts: Facts = GIVES_BACK,
    **more: bool,
) -> balancing.Load:
    """A peer that was heard just now and holds `out` leases."""
    book = JobBook(SPEC, 1, 0.0, Placing(SPEC.options, Registry()))
    lender = Lender(d.PeerUsable(PEERS[number], rtt_s, more.get("local", False), 50.0, facts))
    lender.granted, lender.heard_at = slots, 10.0
    share = lender.shares[JOB] = Share(book, PEERS[number], rtt_s, 0.0)
    share.out, share.speed.task_s = out, task_s
    return load_of(share, lender, 0.01, 10.0)


def leaving(rows: list[balancing.Load], *, task_bytes: float = 0.0, is_balancing: bool = False) -> list[int]:
    return leases_to_recall(rows, balancing.USUAL, None, task_bytes, is_balancing)


@pytest.mark.parametrize(
    ("learned_s", "silent_s", "rtt_s", "expected"),
    [
        (0.01, 0.0, 0.001, (0.01, False)),
        (0.01, 0.09, 0.001, (0.01, False)),  # overdue by its own measure, but not by a human one
        (0.01, 0.5, 0.001, (0.499, True)),
        (1.0, 1.9, 0.001, (1.0, False)),
        (1.0, 3.0, 0.5, (1.0, False)),
        (1.0, 3.1, 0.5, (2.6, True)),
    ],
)
def test_silence_is_a_lower_bound(
    learned_s: float, silent_s: float, rtt_s: float, expected: tuple[float, bool]
) -> None:
    seconds, silent = seconds_a_task(learned_s, silent_s, rtt_s)
    assert seconds == pytest.approx(expected[0])
    assert silent is expected[1]


def test_load_is_seconds_over_all_our_jobs() -> None:
    one = load(0, 6, 0.5, slots=2)
    assert (one.seconds, one.work, one.capacity) == (1.5, 6.0, 4.0)
    other_job = Share(JobBook(SPEC, 2, 0.0, Placing(SPEC.options, Registry())), PEERS[0], 0.001, 0.0)
    other_job.out, other_job.speed.task_s = 1, 4.0
    one.lender.shares[JobId(b"k" * 12)] = other_job
    both = load_of(one.share, one.lender, 0.01, 10.0)
    assert (both.seconds, both.work, both.capacity) == (3.5, 14.0, 4.0), "in tasks of the job that is looked at"
    one.lender.granted = 0
    assert math.isinf(load_of(one.share, one.lender, 0.01, 10.0).seconds)
    assert load(0, 0, None, slots=0).seconds == 0.0
    assert load(0, 2, None).task_s == 0.01, "the job's own time where the peer has run none"


def test_the_queue_of_a_slow_peer_goes_where_there_is_room() -> None:
    # 21 s of work there, 0.1 s elsewhere: nearly all of it leaves, and nothing of the others.
    counts = leaving([load(0, 21, 1.0), load(1, 10, 0.01), load(2, 10, 0.01)])
    assert counts == [20, 0, 0]
    assert leaving([load(0, 10, 0.01), load(1, 10, 0.01), load(2, 10, 0.01)]) == [0, 0, 0]


def test_slots_that_were_taken_back_leave_nothing_there() -> None:
    assert leaving([load(0, 12, 0.1, slots=0), load(1, 2, 0.1)]) == [12, 0]


def test_hysteresis() -> None:
    # (max - min) / mean: 0.22, between where it begins and where it ends; half of the difference is 5 tasks.
    rows = [load(0, 100, 0.1), load(1, 80, 0.1)]
    assert leaving(rows) == [0, 0]
    assert leaving(rows, is_balancing=True) == [10, 0]
    assert leaving([load(0, 100, 0.1), load(1, 95, 0.1)], is_balancing=True) == [0, 0]


def test_a_move_must_pay() -> None:
    rows = [load(0, 40, 0.1), load(1, 4, 0.1)]
    assert leaving(rows) == [18, 0]
    # 18 arguments of 1 MB take 1.4 s to the other peer, and the move would save 1.8 s.
    assert leaving(rows, task_bytes=1e6) == [0, 0]
    fast = Facts(gives_back=True, bandwidth_mbps=1_000.0)
    assert leaving([load(0, 40, 0.1), load(1, 4, 0.1, facts=fast)], task_bytes=1e6) == [18, 0]
    assert leaving([load(0, 40, 0.1), load(1, 4, 0.1, local=True)], task_bytes=1e6) == [18, 0], "they are here"
    far = [load(0, 40, 0.1), load(1, 4, 0.1, rtt_s=2.0)]
    assert leaving(far) == [0, 0], "the way there takes longer than what is saved"


def adjacency(*edges: tuple[int, int, float]) -> Adjacency:
    one, other, weight = (np.array(column) for column in zip(*edges, strict=True))
    graph = graph_of_edges(len(PEERS), one, other, weight.astype(np.float64))
    return Adjacency(tuple(PEERS), graph, np.zeros(graph.weight.size, dtype=np.bool_))


def test_links_between_peers_count_where_they_are_known() -> None:
    rows = [load(0, 10, 0.1), load(2, 0, 0.1), load(3, 0, 0.1, local=True)]
    alone = balancing._graph(rows, None)
    assert (alone.size, alone.one.tolist(), alone.other.tolist()) == (3, [0, 1], [2, 2]), "a star around this peer"
    known = balancing._graph(rows, adjacency((0, 2, 0.25), (0, 1, 0.9), (3, 4, 0.9), (0, 3, 0.9)))
    assert list(zip(known.one.tolist(), known.other.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert known.weight[0] == 0.25
    assert known.weight[1] == alone.weight[0], "what this peer measured itself"
    without = balancing._graph(rows[:2], None)
    assert (without.size, without.one.tolist(), without.other.tolist()) == (3, [0, 1], [2, 2]), "it lends nothing"


# --- in the machine ---------------------------------------------------------------------------------------------------


class World:
    """Peers that hold queues of a job."""

    def __init__(self, facts: Facts = GIVES_BACK, settings: BalancingSettings | None = balancing.USUAL) -> None:
        self.machine = d.Dispatch(balancing=settings)
        self.now = 0.0
        self.held: dict[PeerId, list[Lease]] = {peer: [] for peer in PEERS[:3]}
        self.said: list[d.Effect] = []
        for peer in self.held:
            self.feed(d.PeerUsable(peer, 0.001, False, 50.0, facts), d.Granted(peer, 1))
        self.feed(d.JobOpened(SPEC), d.TasksAdded(JOB, tuple(map(TaskIndex, range(5_000)))))
        for peer in self.held:
            self.feed(d.PeerAccepted(peer, JOB))
        for _ in range(3):
            self.now += 0.02
            for peer in self.held:
                self.report(peer, len(self.held[peer]), 0.001)

    def feed(self, *events: d.Event) -> None:
        self.said = []
        for event in events:
            for effect in self.machine.handle(event, self.now):
                self.said.append(effect)
                match effect:
                    case d.Send(peer, _, leases):
                        self.held[peer] += leases
            self.machine.check_invariants()

    def report(self, peer: PeerId, count: int, wall_s: float, outcome: Outcome = Outcome.RETURNED) -> None:
        taken, self.held[peer] = self.held[peer][:count], self.held[peer][count:]
        self.feed(d.Reported(peer, JOB, tuple(TaskReport(each.task, each.attempt, outcome, wall_s) for each in taken)))

    def silence(self) -> list[d.RecallAt]:
        """The second and third peer go on, the first says nothing; what is asked for within half a second."""
        asked: list[d.RecallAt] = []
        for _ in range(10):
            self.now += 0.05
            for peer in PEERS[1:3]:
                self.report(peer, len(self.held[peer]), 0.001)
            self.feed(d.Tick())
            asked += [each for each in self.said if isinstance(each, d.RecallAt)]
        return asked


def test_a_silent_peer_is_asked_for_its_queue_once() -> None:
    world = World()
    held = list(world.held[PEERS[0]])
    assert len(held) > 20
    (asked,) = world.silence()
    assert asked.peer == PEERS[0]
    assert "it has been silent for longer than a task should take" in asked.text
    assert set(asked.leases) <= set(held[1:]), "the oldest is running"
    assert len(asked.leases) > 20


def test_what_comes_back_goes_to_others_and_the_peer_is_sent_nothing_more() -> None:
    world = World()
    (asked,) = world.silence()
    world.held[PEERS[0]] = [each for each in world.held[PEERS[0]] if each not in asked.leases]
    kept = len(world.held[PEERS[0]])
    back = tuple(TaskReport(each.task, each.attempt, Outcome.RETURNED_UNRUN) for each in asked.leases)
    for peer in PEERS[1:3]:
        world.held[peer] = world.held[peer][len(world.held[peer]) // 2 :]  # heard of below
    before = {peer: len(rows) for peer, rows in world.held.items()}
    world.feed(d.Reported(PEERS[0], JOB, back))
    assert [each.tasks for each in world.said if isinstance(each, d.Moved)] == [
        tuple(each.task for each in asked.leases)
    ]
    assert len(world.held[PEERS[0]]) == kept
    assert not [each for each in world.said if isinstance(each, d.TaskRetried)]
    assert world.machine.progress(JOB, world.now).retries == 0
    world.report(PEERS[1], before[PEERS[1]], 0.001)
    sent = [lease for each in world.said if isinstance(each, d.Send) for lease in each.leases]
    assert {lease.task for lease in sent} & {lease.task for lease in asked.leases}, "moved tasks go first"
    assert all(lease.attempt == 2 for lease in sent if lease.task in {each.task for each in asked.leases})
    # It reports again: it was not paused, and gets work.
    world.report(PEERS[0], kept, 0.001)
    assert [each.peer for each in world.said if isinstance(each, d.Send)] == [PEERS[0]]


def test_a_task_that_was_recalled_may_end_where_it_is() -> None:
    world = World()
    (asked,) = world.silence()
    done = tuple(TaskReport(each.task, each.attempt, Outcome.RETURNED, 0.001) for each in asked.leases)
    before = world.machine.progress(JOB, world.now).tasks_done
    world.feed(d.Reported(PEERS[0], JOB, done))
    assert world.machine.progress(JOB, world.now).tasks_done == before + len(done)
    back = tuple(TaskReport(each.task, each.attempt, Outcome.RETURNED_UNRUN) for each in asked.leases)
    world.feed(d.Reported(PEERS[0], JOB, back))
    assert not [each for each in world.said if isinstance(each, d.Moved)], "it is settled"


def test_a_return_that_nobody_asked_for_still_pauses_the_peer() -> None:
    world = World()
    world.report(PEERS[0], len(world.held[PEERS[0]]), 0.0, Outcome.RETURNED_UNRUN)
    assert not [each for each in world.said if isinstance(each, d.Moved)]
    assert PEERS[0] not in [each.peer for each in world.said if isinstance(each, d.Send)]


def test_nothing_is_asked_of_old_peers_or_where_it_is_switched_off() -> None:
    assert not World(facts=Facts()).silence()
    assert not World(settings=None).silence()


def test_fewer_slots_are_noticed() -> None:
    world = World()
    world.feed(d.Granted(PEERS[0], 0))
    world.now += 0.11
    world.feed(d.Tick())
    asked = [each for each in world.said if isinstance(each, d.RecallAt)]
    assert [each.peer for each in asked] == [PEERS[0]]
    assert set(asked[0].leases) == set(world.held[PEERS[0]]), "all of it: nothing of ours is to run there"


def test_the_network_may_be_known() -> None:
    world = World()
    # The submitter is the fourth; the first two are neighbours, the third is far from all.
    world.feed(d.Located(0), d.Mapped(adjacency((0, 1, 0.9), (1, 2, 0.01), (0, 3, 0.5), (1, 3, 0.5), (2, 3, 0.01))))
    (asked,) = world.silence()
    assert asked.peer == PEERS[0]
    assert len(asked.leases) > 20


def test_a_recalled_task_that_nobody_wants_any_more_is_forgotten() -> None:
    world = World()
    (asked,) = world.silence()
    world.feed(d.TasksDropped(JOB, tuple(each.task for each in asked.leases)))
    assert [each for each in world.said if isinstance(each, d.CancelAt) and each.peer == PEERS[0]]
    back = tuple(TaskReport(each.task, each.attempt, Outcome.RETURNED_UNRUN) for each in asked.leases)
    world.feed(d.Reported(PEERS[0], JOB, back))
    assert not [each for each in world.said if isinstance(each, d.Moved)]
