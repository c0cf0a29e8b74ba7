"""The beacon machine."""

from __future__ import annotations

import itertools
import random

import pytest

from p2pcompute.membership import beacons
from p2pcompute.model import limits
from p2pcompute.model.peer import Address
from p2pcompute.wire.beacon import Beacon, network_tag, sign_beacon, view_hash
from tests.support.membership import NETWORK, OTHER_NETWORK, WALL, CountingVerify, FakeKey

OWN = FakeKey("own")


def make_machine(verify: CountingVerify | None = None, **changes: object) -> beacons.BeaconMachine:
    settings = beacons.BeaconSettings(**changes)  # type: ignore[arg-type]
    own = beacons.BeaconOwn(OWN.public_key, NETWORK)
    return beacons.BeaconMachine(own, verify or CountingVerify(), random.Random(7), settings)


def call(
    key: FakeKey,
    wall: float = WALL,
    instance: bytes = b"instance",
    is_answer: bool = False,
    network: bytes = NETWORK,
    view: bytes | None = None,
) -> bytes:
    beacon = Beacon(
        network_tag(network),  # type: ignore[arg-type]
        key.public_key,
        instance,
        int(wall * 1000),
        9876,
        40_000,
        view_hash([]) if view is None else view,
        is_answer,
    )
    return sign_beacon(beacon, key)


def hear(
    machine: beacons.BeaconMachine,
    data: bytes,
    now: float = 0.0,
    host: str = "10.0.0.2",
    wall: float | None = None,
    view: bytes = b"",
) -> list[beacons.Effect]:
    wall = WALL + now if wall is None else wall
    effects = machine.handle(beacons.BeaconHeard(data, Address(host, 9877), wall, view), now)
    machine.check_invariants()
    return effects


def run(machine: beacons.BeaconMachine, until: float) -> list[tuple[float, beacons.Effect]]:
    done: list[tuple[float, beacons.Effect]] = []
    while (at := machine.deadline()) is not None and at <= until:
        done += [(at, effect) for effect in machine.handle(beacons.Tick(), at)]
        machine.check_invariants()
        after = machine.deadline()
        assert after is None or after > at
    return done


def hints(effects: list[beacons.Effect]) -> list[beacons.PeerHinted]:
    return [effect for effect in effects if isinstance(effect, beacons.PeerHinted)]


def test_calls_come_in_a_burst_and_then_every_half_minute_with_jitter() -> None:
    machine = make_machine()
    assert machine.deadline() is None
    assert machine.handle(beacons.Start(), 10.0) == [beacons.Broadcast()]
    times = [at for at, _ in run(machine, 400.0)]
    assert times[:2] == [11.0, 13.0]
    gaps = [late - early for early, late in itertools.pairwise(times[1:])]
    assert len(gaps) > 8
    assert all(24.0 <= gap <= 36.0 for gap in gaps)
    assert len(set(gaps)) == len(gaps)


def test_a_machine_that_slept_calls_once() -> None:
    machine = make_machine()
    machine.handle(beacons.Start(), 0.0)
    assert machine.handle(beacons.Tick(), 500.0) == [beacons.Broadcast()]
    assert machine.deadline() > 520.0


def test_new_interfaces_start_a_new_burst() -> None:
    machine = make_machine()
    machine.handle(beacons.Start(), 0.0)
    run(machine, 20.0)
    assert machine.handle(beacons.InterfacesChanged(), 20.0) == [beacons.Broadcast()]
    assert [at for at, _ in run(machine, 24.0)] == [21.0, 23.0]


def test_a_new_peer_is_hinted_and_answered_once_within_half_a_second() -> None:
    machine, peer = make_machine(), FakeKey("a")
    assert hear(machine, call(peer)) == [
        beacons.PeerHinted(peer.peer, (Address("10.0.0.2", 9876),), NETWORK, view_hash([]))
    ]
    ((at, answer),) = run(machine, 1.0)
    assert answer == beacons.Answer(Address("10.0.0.2", 40_000))
    assert 0 <= at <= 0.5
    assert hints(hear(machine, call(peer, WALL + 30), 30.0))
    assert run(machine, 31.0) == []
    assert machine.peers == (peer.peer,)


def test_a_restarted_peer_is_answered_again_and_an_answer_never() -> None:
    machine, peer = make_machine(), FakeKey("a")
    hear(machine, call(peer, is_answer=True))
    assert run(machine, 1.0) == []
    hear(machine, call(peer, WALL + 2, instance=b"restart!"), 2.0)
    assert [type(effect) for _, effect in run(machine, 3.0)] == [beacons.Answer]


def test_the_same_bytes_over_another_interface_are_one_more_address_without_a_second_check() -> None:
    verify = CountingVerify()
    machine, peer = make_machine(verify), FakeKey("a")
    data = call(peer)
    hear(machine, data)
    (hint,) = hear(machine, data, 0.1, "127.0.0.1")
    assert isinstance(hint, beacons.PeerHinted)
    assert hint.addresses == (Address("127.0.0.1", 9876),)
    assert hear(machine, data, 0.1, "127.0.0.1") == []
    assert verify.calls == 1
    for number in range(40):
        hear(machine, data, 0.1, f"10.9.9.{number}")
    assert machine.dropped["duplicate"] == 1 + 42 - limits.ADDRESSES_MAX


@pytest.mark.parametrize(
    ("data", "wall", "reason"),
    [
        (b"noise", WALL, "malformed"),
        (call(FakeKey("a"), network=OTHER_NETWORK), WALL, "other-network"),
        (call(OWN), WALL, "own"),
        (call(FakeKey("a")), WALL + 601, "time"),
        (call(FakeKey("a")), WALL - 601, "time"),
        (call(FakeKey("a"))[:-1] + b"\0", WALL, "signature"),
    ],
)
def test_bad_beacons_are_dropped_at_the_first_check_that_they_fail(data: bytes, wall: float, reason: str) -> None:
    verify = CountingVerify()
    machine = make_machine(verify)
    blamed = [beacons.Nonsense("10.0.0.2")] if reason in ("malformed", "signature") else []
    assert hear(machine, data, wall=wall) == blamed
    assert machine.dropped == {reason: 1}
    assert verify.calls == (1 if reason == "signature" else 0)
    assert machine.peers == ()
    assert machine.deadline() is None


def test_a_replayed_older_beacon_is_dropped() -> None:
    machine, peer = make_machine(), FakeKey("a")
    old = call(peer, instance=b"the-old!")
    hear(machine, old)
    hear(machine, call(peer, WALL + 5), 5.0)
    assert hear(machine, old, 6.0, "10.6.6.6") == []
    assert machine.dropped["duplicate"] == 1


def test_a_flood_of_one_address_costs_five_signatures_a_second_and_hurts_nobody_else() -> None:
    verify = CountingVerify()
    machine = make_machine(verify)
    for number in range(100):
        hear(machine, call(FakeKey(number)), 0.0, "10.6.6.6")
    assert verify.calls == 5
    assert machine.dropped["rate"] == 95
    assert hints(hear(machine, call(FakeKey("a")), 0.0, "10.0.0.2"))


def test_thirty_peers_of_one_machine_are_all_heard() -> None:
    machine = make_machine()
    for number in range(30):
        assert hints(hear(machine, call(FakeKey(number)), 0.0, "127.0.0.1"))


def test_all_addresses_together_cannot_buy_more_signatures_than_the_limit() -> None:
    verify = CountingVerify()
    machine = make_machine(verify, signatures_per_second=50)
    for number in range(500):
        hear(machine, call(FakeKey(number)), 0.0, f"10.1.{number % 250}.{number // 250}")
    assert verify.calls == 50


def test_memory_is_bounded() -> None:
    machine = make_machine(peers_max=10)
    for number in range(50):
        hear(machine, call(FakeKey(number), WALL + number), float(number), f"10.0.1.{number}")
    assert len(machine.peers) == 10
    assert machine.dropped["full"] > 0


def test_a_silent_peer_is_forgotten_after_ninety_seconds_and_then_new_again() -> None:
    machine, peer = make_machine(), FakeKey("a")
    hear(machine, call(peer))
    run(machine, 89.9)
    assert machine.peers == (peer.peer,)
    run(machine, 90.0)
    assert machine.peers == ()
    hear(machine, call(peer, WALL + 100), 100.0)
    assert [type(effect) for _, effect in run(machine, 101.0)] == [beacons.Answer]


def test_the_same_events_have_the_same_effects() -> None:
    def story() -> list[object]:
        machine = make_machine()
        seen: list[object] = list(machine.handle(beacons.Start(), 0.0))
        for number in range(10):
            seen += hear(machine, call(FakeKey(number), WALL + number), float(number), f"10.0.0.{number}")
        return seen + list(run(machine, 200.0))

    assert story() == story()


def test_an_interface_that_flaps_is_no_flood() -> None:
    machine = make_machine()
    machine.handle(beacons.Start(), 0.0)
    run(machine, 20.0)
    calls = 0
    for step in range(100):
        calls += len(machine.handle(beacons.InterfacesChanged(), 20.0 + step / 10))
        machine.check_invariants()
        calls += len(run(machine, 20.0 + step / 10))
    assert calls <= 22
    assert [at for at, _ in run(machine, 33.5)][-1] >= 29.0, "and the last change has its burst"


class Lan:
    """Machines on one switch, each datagram delivered to all, or to one, after a millisecond; counts what is sent."""

    def __init__(self, count: int, starts_s: float, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.keys = [FakeKey(number) for number in range(count)]
        self.machines = [
            beacons.BeaconMachine(beacons.BeaconOwn(key.public_key, NETWORK), CountingVerify(), random.Random(number))
            for number, key in enumerate(self.keys)
        ]
        self.start_at = sorted(rng.uniform(0, starts_s) for _ in range(count))
        self.started = [False] * count
        self.now = 0.0
        self.arriving: list[tuple[float, int, int, bytes]] = []
        self.answers: list[tuple[float, int, int]] = []
        self.bytes_sent = 0
        self.calls = 0
        self.first_heard: dict[tuple[int, int], float] = {}
        self.number = itertools.count()

    def run(self, until: float) -> None:
        while True:
            starts = [at for at, started in zip(self.start_at, self.started, strict=True) if not started]
            deadlines = [at for each in self.machines if (at := each.deadline()) is not None]
            arrivals = [row[0] for row in self.arriving]
            at = min([*starts, *deadlines, *arrivals], default=until + 1)
            if at > until:
                self.now = until
                return
            self.now = max(self.now, at)
            self.step()

    def step(self) -> None:
        for place, machine in enumerate(self.machines):
            if not self.started[place] and self.start_at[place] <= self.now:
                self.started[place] = True
                self.perform(place, machine.handle(beacons.Start(), self.now))
            at = machine.deadline()
            if at is not None and at <= self.now:
                self.perform(place, machine.handle(beacons.Tick(), self.now))
        due = sorted(row for row in self.arriving if row[0] <= self.now)
        self.arriving = [row for row in self.arriving if row[0] > self.now]
        for _, source, target, data in due:
            if self.started[target]:
                event = beacons.BeaconHeard(data, self.address(source), WALL + self.now)
                self.first_heard.setdefault((target, source), self.now)
                self.perform(target, self.machines[target].handle(event, self.now))

    def address(self, place: int) -> Address:
        return Address(f"10.0.0.{place + 1}", 9877)

    def perform(self, place: int, effects: list[beacons.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, beacons.PeerHinted):
                continue
            is_answer = isinstance(effect, beacons.Answer)
            wall = WALL + self.now + next(self.number) * 1e-3
            data = call(self.keys[place], wall, b"%08d" % place, is_answer)
            self.bytes_sent += len(data) + 28
            if isinstance(effect, beacons.Answer):
                target = int(effect.to.host.rpartition(".")[2]) - 1
                self.answers.append((self.now, place, target))
                self.arriving.append((self.now + 1e-3, place, target, data))
            else:
                self.calls += 1
                for target in range(len(self.machines)):
                    if target != place:
                        self.arriving.append((self.now + 1e-3, place, target, data))


@pytest.mark.parametrize("starts_s", [0.0, 0.5, 2.0, 20.0, 200.0])
def test_fifty_peers_that_start_together_answer_in_proportion_to_their_number(starts_s: float) -> None:
    lan = Lan(50, starts_s)
    lan.run(starts_s + 40)
    counts = [sum(1 for _, _, target in lan.answers if target == place) for place in range(50)]
    # Three times three, and some more from those who have not heard of everybody yet; all would be 24 a peer in the mean.
    assert sum(counts) <= 15 * 50
    assert max(counts) <= 25
    if starts_s == 0.0:
        assert sum(counts) <= 9 * 50
    for one, other in itertools.combinations(range(50), 2):
        late = max(lan.start_at[one], lan.start_at[other])
        soonest = min(lan.first_heard[one, other], lan.first_heard[other, one])
        assert soonest - late < 0.01, "one of two knows the other at once"


def test_a_newcomer_is_answered_by_three_at_once_and_by_others_where_those_are_gone() -> None:
    lan = Lan(30, 0.0)
    lan.start_at[-1] = 100.0
    lan.run(100.6)
    newcomer = len(lan.keys) - 1
    assert len([row for row in lan.answers if row[2] == newcomer]) == 3
    lan = Lan(30, 0.0)
    lan.start_at[-1] = 100.0
    lan.run(99.0)
    first = Lan(30, 0.0)
    first.start_at[-1] = 100.0
    first.run(100.6)
    for _, place, target in first.answers:
        if target == newcomer:
            lan.machines[place].handle = lambda event, now: []  # type: ignore[method-assign]
            lan.machines[place].deadline = lambda: None  # type: ignore[method-assign]
    lan.run(103.6)
    assert len([row for row in lan.answers if row[2] == newcomer]) == 6


def test_fifty_idle_peers_cost_what_the_formula_says() -> None:
    lan = Lan(50, 0.0)
    lan.run(60)
    sent, lan.bytes_sent, lan.calls = lan.bytes_sent, 0, 0
    lan.run(660)
    assert lan.answers == [row for row in lan.answers if row[0] < 60]
    # One way here: what a call is sent by is the business of the shell.
    assert lan.bytes_sent / 600 == pytest.approx(50 * beacons.quiet_bytes_per_s(1), rel=0.05)
    assert 50 * beacons.quiet_bytes_per_s(4) < 1_200
    assert sent < 200_000
    assert len(call(FakeKey("a"))) == beacons.BEACON_WIRE_BYTES


ONE, OTHER = b"view-one", b"view-two"


def differing(effects: list[beacons.Effect]) -> list[beacons.ViewsDiffer]:
    return [effect for effect in effects if isinstance(effect, beacons.ViewsDiffer)]


def test_two_views_on_one_lan_are_told_of_seldom() -> None:
    machine, peer, second = make_machine(), FakeKey("a"), FakeKey("b")
    assert not differing(hear(machine, call(peer, view=OTHER), 0.0, view=ONE)), "the own view may just have changed"
    (told,) = differing(hear(machine, call(peer, WALL + 10, view=OTHER), 10.0, view=ONE))
    assert told == beacons.ViewsDiffer(peer.peer, (Address("10.0.0.2", 9876),))
    assert not differing(hear(machine, call(second, WALL + 11, view=OTHER), 11.0, "10.0.0.3", view=ONE))
    assert differing(hear(machine, call(second, WALL + 16, view=OTHER), 16.0, "10.0.0.3", view=ONE))
    assert not differing(hear(machine, call(peer, WALL + 60, view=OTHER), 60.0, view=ONE))
    assert differing(hear(machine, call(peer, WALL + 75, view=OTHER), 75.0, view=ONE))


def test_equal_views_changing_views_and_views_that_nobody_compares_are_no_news() -> None:
    machine, peer = make_machine(), FakeKey("a")
    assert not differing(hear(machine, call(peer, view=ONE), 0.0, view=ONE))
    assert not differing(hear(machine, call(peer, WALL + 10, view=ONE), 10.0, view=ONE))
    assert not differing(hear(machine, call(peer, WALL + 20, view=ONE), 20.0, view=OTHER)), "it has changed just now"
    assert not differing(hear(machine, call(peer, WALL + 30, view=ONE), 30.0))
    forged = call(peer, WALL + 40, view=ONE)[:-1] + b"\0"
    assert not differing(hear(machine, forged, 40.0, view=OTHER))
