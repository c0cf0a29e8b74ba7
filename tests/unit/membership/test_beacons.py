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
    key: FakeKey, wall: float = WALL, instance: bytes = b"instance", is_answer: bool = False, network: bytes = NETWORK
) -> bytes:
    beacon = Beacon(
        network_tag(network),  # type: ignore[arg-type]
        key.public_key,
        instance,
        int(wall * 1000),
        9876,
        40_000,
        view_hash([]),
        is_answer,
    )
    return sign_beacon(beacon, key)


def hear(
    machine: beacons.BeaconMachine, data: bytes, now: float = 0.0, host: str = "10.0.0.2", wall: float | None = None
) -> list[beacons.Effect]:
    wall = WALL + now if wall is None else wall
    effects = machine.handle(beacons.BeaconHeard(data, Address(host, 9877), wall), now)
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
    assert hear(machine, data, wall=wall) == []
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
