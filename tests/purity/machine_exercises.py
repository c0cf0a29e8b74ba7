"""What each machine of the pure rooms is made to do with the world switched off: a whole story, invariants checked after each event.

Each returns everything that the machine asked for, with times, so that two runs can be compared.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from p2pcompute.jobs import dispatch as d
from p2pcompute.jobs import lend as lending
from p2pcompute.jobs.schedule import WEEK_MINUTES, Schedule
from p2pcompute.jobs.yielding import Pause, Seen, Yielding, YieldSettings
from p2pcompute.membership import beacons, book, healing, joining
from p2pcompute.model.errors import AdmissionReason
from p2pcompute.model.ids import JobId, PeerId, ProgramId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, OnError, Outcome, TaskReport
from p2pcompute.model.peer import Address, Relay
from p2pcompute.wire import gossip
from p2pcompute.wire.beacon import Beacon, network_tag, sign_beacon, view_hash
from tests.support.membership import NETWORK, WALL, BookWorld, FakeKey, Weather, fake_verify


def beacon_machine(rng: random.Random) -> object:
    """Calls, answers and forgets, for ten virtual minutes, among honest and other datagrams."""
    own, others = FakeKey("own"), [FakeKey(number) for number in range(4)]
    machine = beacons.BeaconMachine(beacons.BeaconOwn(own.public_key, NETWORK), fake_verify, rng)
    said: list[object] = list(machine.handle(beacons.Start(), 0.0))
    now = 0.0
    for step in range(120):
        now = step * 5.0
        key = rng.choice(others)
        call = Beacon(
            network_tag(NETWORK),
            key.public_key,
            b"instance",
            int((WALL + now) * 1000),
            9876,
            40_000,
            view_hash([]),
            False,
        )
        data = rng.choice([sign_beacon(call, key), rng.randbytes(150)])
        events: list[beacons.Event] = [beacons.BeaconHeard(data, Address("10.0.0.2", 9877), WALL + now)]
        if step % 40 == 39:
            events.append(beacons.InterfacesChanged())
        for event in events:
            said += [(now, effect) for effect in machine.handle(event, now)]
            machine.check_invariants()
        while (at := machine.deadline()) is not None and at <= now + 5.0:
            said += [(at, effect) for effect in machine.handle(beacons.Tick(), at)]
            machine.check_invariants()
    return said


def peer_book(rng: random.Random) -> object:
    """Six peers of the first protocol version, six that gossip, and three of each; on a virtual clock."""
    return [_book_story(rng, protocol) for protocol in (lambda _: 1, lambda _: 2, lambda place: 1 + place % 2)]


def _book_story(rng: random.Random, protocol: Callable[[int], int]) -> object:
    """They link, change, sleep, lose datagrams, links and CPU time, accuse, crash and leave."""
    world = BookWorld(6, rng.randrange(0, 1 << 30), protocol=protocol, weather=Weather(loss=0.1))
    for one in range(6):
        world.link(one, (one + 1) % 6)
    world.run(20)
    world.change(2, load=0.9)
    world.run(5)
    world.unlink(0, 1)
    world.starve(5, (0.5, 3.0), (0.1, 1.0))
    world.kill(3)
    world.run(60)
    world.feed(1, book.Woke(30.0))
    world.feed(2, book.LoopLagged(0.5))
    liar, accused = world.members[1], world.members[2]
    for wire in (
        gossip.sign_suspicion(accused.key.peer, accused.record.record.incarnation, liar.key),
        gossip.sign_load(gossip.LoadUpdate(liar.key.peer, liar.record.record.incarnation, 9, 0.5, 0.5, 1.0), liar.key),
        b"noise",
    ):
        rumours = gossip.Rumours((wire,))
        world.feed(5, book.GossipHeard(liar.key.peer, rumours, WALL + world.now, book.Way.DATAGRAM))
    world.run(10)
    world.change(4, leaving=True)
    world.link(0, 2)
    world.feed(2, book.PeerBanned(liar.key.peer))
    world.run(4_000 if protocol(1) == 1 else 120)
    views = [member.book.view for member in world.members if member.is_up]
    places = [member.book.coordinate for member in world.members]
    return world.trace, views, places


def joining_machine(rng: random.Random) -> object:
    """Addresses from everywhere, dials that fail, refuse and succeed, links that break."""
    own, others = FakeKey("own"), [FakeKey(number) for number in range(8)]
    machine = joining.JoiningMachine(own.peer, rng)
    said: list[object] = []
    now = 0.0
    dials: deque[joining.Effect] = deque()

    def feed(event: joining.Event) -> None:
        effects = machine.handle(event, now)
        machine.check_invariants()
        said.extend((now, effect) for effect in effects)
        dials.extend(effects)

    feed(joining.NetworksChanged(("10.0.0.0/24", "192.168.1.0/24")))
    for number, key in enumerate(others):
        source = joining.SOURCES[number % len(joining.SOURCES)]
        peer = key.peer if number % 2 else None
        feed(joining.CandidateHeard(Address(f"10.0.0.{number + 1}", 9876), source, peer))
        feed(joining.CandidateHeard(Address(f"192.168.1.{number + 1}", 9876), "record", key.peer))
    relay = Relay(others[7].peer, Address("192.168.1.8", 9876))
    ways = tuple(Address(f"198.51.100.{number}", 9876) for number in range(2))
    feed(joining.CandidatesHeard(tuple(joining.RecordAddresses(FakeKey(n).peer, ways, (relay,)) for n in range(8, 99))))
    feed(joining.LinksPreferred((FakeKey(50).peer, others[3].peer)))
    linked: list[PeerId] = []
    for _ in range(300):
        if dials:
            dial = dials.popleft()
            if isinstance(dial, joining.DialVia):
                error = rng.choice([None, "timeout"])
                feed(joining.DialEnded(dial.relay.address, dial.peer, error, via=dial.relay.peer))
                if error is None and dial.peer not in linked:
                    linked.append(dial.peer)
                    feed(joining.LinkUp(dial.peer, relayed=True))
                continue
            peer = dial.expected or others[rng.randrange(0, 8)].peer
            match rng.randrange(0, 4):
                case 0:
                    feed(joining.DialEnded(dial.address, dial.expected, "timeout"))
                case 1:
                    feed(joining.DialEnded(dial.address, dial.expected, AdmissionReason.OTHER_NETWORK, permanent=True))
                case _:
                    feed(joining.DialEnded(dial.address, peer))
                    if peer not in linked:
                        linked.append(peer)
                        feed(joining.LinkUp(peer, dial.address))
        elif linked and rng.random() < 0.3:
            lost = linked.pop(rng.randrange(0, len(linked)))
            feed(joining.LinkDown(lost))
            feed(joining.LinkWanted(lost))
        else:
            at = machine.deadline()
            now = max(now, at) if at is not None else now + 1.0
            feed(joining.Tick())
    feed(joining.PeerForgotten(others[0].peer))
    return said


def healing_machine(rng: random.Random) -> object:
    """A start from memory, peers that come and go, a split, a sleep, beacons and finds, through some virtual hours."""
    peers = [FakeKey(number).peer for number in range(60)]
    ways = [
        (Address(f"10.{number % 5}.0.{number}", 9876), Address(f"fd00::{number + 1:x}", 9876)) for number in range(60)
    ]
    machine = healing.HealingMachine(FakeKey("own").peer, rng)
    said: list[object] = []
    now = 0.0

    def feed(event: healing.Event) -> None:
        said.extend((now, effect) for effect in machine.handle(event, now))
        machine.check_invariants()

    rows = zip(peers[:40], ways[:40], strict=True)
    feed(healing.RememberedKnown(tuple(healing.Remembered(peer, where, WALL, 3) for peer, where in rows)))
    for step in range(400):
        at = machine.deadline()
        now = max(now + 0.1, at if at is not None and rng.random() < 0.7 else now + rng.uniform(0.0, 10.0))
        number = rng.randrange(0, 60)
        peer, where = peers[number], ways[number]
        alive = 5 if 200 <= step < 230 else 40
        feed(
            rng.choice(
                [
                    healing.Tick(),
                    healing.PeerSeen(peer, where),
                    healing.PeerLost(peer),
                    healing.ViewSize(alive, 60),
                    healing.ViewsDiffer(peer, where),
                    healing.Found(peer, where),
                ]
            )
        )
    feed(healing.Woke(600.0))
    feed(healing.NetworksChanged())
    feed(healing.PeerBanned(peers[0]))
    return said


class _Lenders:
    """Peers that accept, and report what they were sent in an order that dice decide, some of it badly or twice."""

    def __init__(self, rng: random.Random) -> None:
        self.machine = d.Dispatch()
        self.rng = rng
        self.now = 0.0
        self.said: list[object] = []
        self.todo: deque[d.Event] = deque()
        self.held: list[tuple[PeerId, JobId, TaskIndex, int]] = []

    def feed(self, event: d.Event) -> None:
        for effect in self.machine.handle(event, self.now):
            self.said.append((self.now, effect))
            if isinstance(effect, d.OpenAt):
                self.todo.append(d.PeerAccepted(effect.peer, effect.job))
            elif isinstance(effect, d.Send):
                self.held += [(effect.peer, effect.job, lease.task, lease.attempt) for lease in effect.leases]
        self.machine.check_invariants()
        while self.todo:
            self.feed(self.todo.popleft())

    def report_one(self) -> None:
        peer, job, task, attempt = self.held.pop(self.rng.randrange(0, len(self.held)))
        outcome = self.rng.choice([Outcome.RETURNED] * 8 + [Outcome.RAISED, Outcome.WORKER_DIED])
        report = TaskReport(task, attempt, outcome, self.rng.uniform(0.001, 0.1))
        self.feed(d.Reported(peer, job, (report,) * self.rng.choice([1, 1, 1, 2])))


def dispatch(rng: random.Random) -> object:
    """Two jobs at three peers, one of which dies and comes back; one job is cancelled."""
    lenders = _Lenders(rng)
    peers = [PeerId(bytes([number]) * 32) for number in range(1, 4)]
    jobs = [JobId(bytes([number]) * 12) for number in range(1, 3)]
    options = JobOptions(on_error=OnError.SKIP)
    for job in jobs:
        spec = JobSpec(job, "story", ProgramId(b"p" * 32), "map", Aggregation.NONE, None, options, 200)
        lenders.feed(d.JobOpened(spec))
        lenders.feed(d.TasksAdded(job, tuple(TaskIndex(number) for number in range(200))))
        lenders.feed(d.InputsEnded(job))
    for rank, peer in enumerate(peers):
        lenders.feed(d.PeerUsable(peer, 0.001 * (rank + 1), rank == 0, 10.0 * (rank + 1)))
        lenders.feed(d.Granted(peer, 2))
    for step in range(3_000):
        lenders.now += 0.01
        if lenders.held:
            lenders.report_one()
        at = lenders.machine.deadline()
        if at is not None and at <= lenders.now:
            lenders.feed(d.Tick())
        if step == 50:
            lenders.feed(d.PeerGone(peers[2], "link lost"))
            lenders.held = [each for each in lenders.held if each[0] != peers[2]]
        if step == 90:
            lenders.feed(d.PeerUsable(peers[2], 0.003, False, 30.0))
            lenders.feed(d.Granted(peers[2], 2))
        if step == 150:
            lenders.feed(d.JobCancelled(jobs[1]))
    ended = {effect.job: effect.state for _, effect in lenders.said if isinstance(effect, d.JobEnded)}  # type: ignore[misc]
    assert set(ended) == set(jobs)
    return lenders.said


class _Workers:
    """Workers that start, run what they are given, and now and then die of it."""

    def __init__(self, rng: random.Random, slots: int) -> None:
        self.machine = lending.Lend(slots)
        self.rng = rng
        self.now = 0.0
        self.said: list[object] = []
        self.todo: deque[lending.Event] = deque()
        self.running: dict[int, list[tuple[int, int]]] = {}
        self.count = 0

    def feed(self, event: lending.Event) -> None:
        for effect in self.machine.handle(event, self.now):
            self.said.append((self.now, effect))
            match effect:
                case lending.SpawnWorker(token):
                    self.count += 1
                    self.running[self.count] = []
                    self.todo += [lending.WorkerSpawned(token, self.count), lending.WorkerReady(self.count)]
                case lending.RunBatch(worker, _, _, rows):
                    self.running[worker] += rows
                case lending.CancelOnWorker(worker, rows):
                    self.end(worker, [row for row in self.running.get(worker, []) if row in rows], Outcome.CANCELLED)
                case lending.RetireWorker(worker):
                    self.todo.append(lending.WorkerGone(worker, tuple(self.running.pop(worker, []))))
        self.machine.check_invariants()
        while self.todo:
            self.feed(self.todo.popleft())

    def end(self, worker: int, rows: list[tuple[int, int]], outcome: Outcome) -> None:
        self.running[worker] = [row for row in self.running.get(worker, []) if row not in rows]
        self.todo.append(lending.TasksEnded(worker, tuple((task, attempt, outcome, 0.01) for task, attempt in rows)))

    def step(self) -> None:
        self.now += 0.01
        busy = [worker for worker, rows in self.running.items() if rows]
        if busy:
            worker = self.rng.choice(busy)
            died = self.rng.random() < 0.05
            self.end(worker, self.running[worker][:1], Outcome.WORKER_DIED if died else Outcome.RETURNED)
            self.feed(self.todo.popleft())
            if died:
                self.feed(lending.WorkerGone(worker, tuple(self.running.pop(worker, []))))
        at = self.machine.deadline()
        if at is not None and at <= self.now:
            self.feed(lending.Tick())


def yielding(rng: random.Random) -> object:
    """A machine whose owner comes and goes, over some days."""
    settings = YieldSettings(0.25, 1, Schedule.parse(["mon-fri 18:00-08:00", "sat-sun"]))
    policy = Yielding(settings, 4, Pause(600.0))
    said: list[object] = []
    others, now = 0.0, 0.0
    for _ in range(3_000):
        now += rng.choice([2.0, 2.0, 60.0])
        others = min(max(others + rng.uniform(-1, 1), 0.0), 8.0)
        said.append(policy.look(Seen(others, 8, rng.random() < 0.1, int(now / 60) % WEEK_MINUTES, now), now))
    return said


def lend(rng: random.Random) -> object:
    """Two origins with a job each at a peer of three slots; cancels, changed slots, a lost origin, and the end."""
    workers = _Workers(rng, 3)
    origins = [PeerId(bytes([number]) * 32) for number in range(1, 3)]
    jobs = [JobId(bytes([number]) * 12) for number in range(1, 3)]
    for origin, job in zip(origins, jobs, strict=True):
        program = ProgramId(job[:1] * 32)
        workers.feed(lending.OriginOpened(origin, job, program, 5, None, None))
        workers.feed(lending.TasksArrived(origin, job, tuple((task, 0) for task in range(60))))
    for step in range(200):
        workers.step()
        if step == 20:
            workers.feed(lending.CancelAsked(origins[0], jobs[0], tuple((task, 0) for task in range(20, 40))))
        if step == 40:
            workers.feed(lending.SlotsChanged(1))
        if step == 60:
            workers.feed(lending.SlotsChanged(3))
        if step == 65:
            workers.feed(lending.LentChanged(1, 5.0))
        if step == 75:
            workers.feed(lending.LentChanged(None, 5.0))
        if step == 80:
            workers.feed(lending.OriginGone(origins[1]))
    workers.feed(lending.JobClosed(origins[0], jobs[0]))
    workers.now += 600.0
    workers.feed(lending.Tick())
    workers.feed(lending.Draining())
    return workers.said
