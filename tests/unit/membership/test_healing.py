"""The healing machine: what it tries, when, whom it keeps; and two halves of a network that find each other again."""

from __future__ import annotations

import itertools
import random
import sys

import pytest

from p2pcompute.membership import healing
from p2pcompute.membership.healing import (
    AnchorsChosen,
    ExchangeViews,
    Found,
    HealingMachine,
    HealingSettings,
    LookUp,
    NetworksChanged,
    PeerBanned,
    PeerLost,
    PeerSeen,
    Remembered,
    RememberedKnown,
    Tick,
    TryAddress,
    ViewsDiffer,
    ViewSize,
    Woke,
)
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from tests.support.healing_world import HealingWorld

OWN = PeerId(b"o" * 32)
TODAY_S = 1_700_000_000.0


def peer(number: int) -> PeerId:
    return PeerId(b"p" + number.to_bytes(31, "big"))


def address(number: int, network: int = 1) -> Address:
    return Address(f"10.{network}.{number >> 8 & 255}.{number & 255}", 9876)


def remembered(number: int, days_ago: int = 0, times: int = 1, network: int = 1, is_anchor: bool = False) -> Remembered:
    where = (address(number, network),)
    return Remembered(peer(number), where, TODAY_S - 86_400.0 * days_ago, times, is_anchor)


class Healer:
    """A machine and its clock."""

    def __init__(self, seed: int = 1, **changes: object) -> None:
        self.machine = HealingMachine(OWN, random.Random(seed), HealingSettings(**changes))  # type: ignore[arg-type]
        self.now = 100.0

    def __call__(self, *events: healing.Event) -> list[healing.Effect]:
        effects: list[healing.Effect] = []
        for event in events:
            effects += self.machine.handle(event, self.now)
            self.machine.check_invariants()
        return effects

    def run(self, seconds: float) -> list[tuple[float, healing.Effect]]:
        """Pass time; what was asked for, with times."""
        end, said = self.now + seconds, []
        while (at := self.machine.deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            said += [(self.now, effect) for effect in self(Tick())]
            assert self.machine.deadline() != at
        self.now = end
        return said

    def tries(self, seconds: float) -> list[tuple[float, PeerId]]:
        return [(at, effect.peer) for at, effect in self.run(seconds) if isinstance(effect, TryAddress)]


def gaps(times: list[float]) -> list[float]:
    return [late - early for early, late in itertools.pairwise(times)]


def calm(*rows: Remembered, alive: int = 10, **changes: object) -> Healer:
    """A peer long after its start, in a view that is neither small nor shrinking."""
    heal = Healer(**changes)
    heal(RememberedKnown(rows), ViewSize(alive, alive))
    heal.run(1_000)
    return heal


# --- when -------------------------------------------------------------------------------------------------------------


def test_nothing_is_tried_before_the_memory_is_known() -> None:
    heal = Healer()
    assert heal(ViewSize(0, 0), Woke(9.0), NetworksChanged(), Tick()) == []
    assert heal.machine.deadline() is None


def test_every_minute_one_address_and_one_random_id() -> None:
    heal = calm(*[remembered(number) for number in range(50)])
    said = heal.run(3_600)
    tried = [at for at, effect in said if isinstance(effect, TryAddress)]
    looked = [effect.target for _, effect in said if isinstance(effect, LookUp)]
    assert 55 <= len(tried) <= 66
    assert len(looked) == len(tried)
    assert len(set(looked)) == len(looked)
    assert all(len(target) == 20 for target in looked)
    assert min(gaps(tried)) >= 48
    assert max(gaps(tried)) <= 72
    assert max(gaps(tried)) - min(gaps(tried)) > 5, "no jitter"


def test_ids_are_still_looked_up_where_nobody_is_missing() -> None:
    heal = calm()
    said = heal.run(600)
    assert 8 <= len(said) <= 13
    assert all(isinstance(effect, LookUp) for _, effect in said)


@pytest.mark.parametrize(("alive", "each"), [(16, 60.0), (160, 6.0), (1_600, 0.6)])
def test_all_peers_together_look_up_no_more_in_large_networks(alive: int, each: float) -> None:
    looked = sum(isinstance(effect, LookUp) for _, effect in calm(alive=alive).run(36_000))
    assert 0.7 * each <= looked / 10 <= 1.3 * each


def test_a_start_is_eager_for_some_minutes() -> None:
    heal = Healer()
    heal(RememberedKnown(tuple(remembered(number) for number in range(500))), ViewSize(50, 50))
    times = [at for at, _ in heal.tries(1_000)]
    assert times[0] <= 102.5
    early = [at for at in times if at < 400]
    assert 50 <= len(early) <= 75
    assert max(gaps(early)) <= 6
    assert min(gaps([at for at in times if at > 410])) >= 48


@pytest.mark.parametrize("event", [Woke(3_600.0), NetworksChanged()])
def test_a_sleep_and_other_networks_make_eager(event: healing.Event) -> None:
    heal = calm(*[remembered(number) for number in range(50)])
    began = heal.now
    heal(event)
    times = [at for at, _ in heal.tries(60)]
    assert times[0] - began <= 5
    assert len(times) >= 10


def test_half_of_the_peers_gone_within_a_minute_make_eager() -> None:
    heal = calm(*[remembered(number) for number in range(50)], alive=100)
    for alive in range(99, 49, -1):
        heal(ViewSize(alive, 100))
        heal.now += 0.5
    assert heal.machine.is_hurried(heal.now)
    assert len(heal.tries(60)) >= 10


def test_half_of_the_peers_gone_within_an_hour_do_not() -> None:
    heal = calm(*[remembered(number) for number in range(50)], alive=100)
    for alive in range(99, 40, -1):
        heal(ViewSize(alive, 100))
        heal.now += 60.0
    assert not heal.machine.is_hurried(heal.now)


def test_of_few_peers_one_going_is_no_split() -> None:
    heal = calm(remembered(1), alive=2)
    heal(ViewSize(1, 2))
    assert not heal.machine.is_hurried(heal.now)


def test_a_second_split_is_noticed_too() -> None:
    heal = calm(*[remembered(number) for number in range(50)], alive=100)
    heal(ViewSize(50, 100))
    heal.now += 290.0
    heal(ViewSize(50, 100), ViewSize(24, 100))
    heal.now += 290.0
    assert heal.machine.is_hurried(heal.now)


def test_a_small_view_is_tried_to_be_made_larger() -> None:
    heal = calm(*[remembered(number) for number in range(50)], alive=2)
    assert 35 <= len(heal.tries(600)) <= 50
    heal = calm(alive=2)
    assert len(heal.run(600)) <= 13, "nobody is missing: a network of three is no emergency"


# --- whom -------------------------------------------------------------------------------------------------------------


def test_whoever_is_listed_is_not_tried_and_whoever_is_lost_is() -> None:
    heal = calm(remembered(1), remembered(2))
    heal(PeerSeen(peer(1), (address(1),)), PeerSeen(peer(3), (address(3),)))
    assert {whom for _, whom in heal.tries(1_000)} == {peer(2)}
    heal(PeerLost(peer(3)))
    tried = [whom for _, whom in heal.tries(1_000)]
    assert 5 <= tried.count(peer(2)) <= 12, "whoever is lost just now must not take every turn of the others"
    assert 5 <= tried.count(peer(3)) <= 12
    assert heal.machine.missing == 2


def test_everybody_has_a_turn_before_anybody_has_two_but_for_anchors() -> None:
    heal = Healer(anchors=0)
    heal(RememberedKnown(tuple(remembered(number) for number in range(20))), ViewSize(9, 9))
    tried = [whom for _, whom in heal.tries(5_000)]
    assert len(set(tried[:20])) == 20
    assert len(set(tried[20:40])) == 20


def test_whoever_was_seen_later_has_the_earlier_turn() -> None:
    heal = Healer(anchors=0)
    rows = tuple(remembered(number, days_ago=number // 5) for number in range(20))
    heal(RememberedKnown(rows), ViewSize(9, 9))
    tried = [whom for _, whom in heal.tries(5_000)][:20]
    assert [int(whom[-1]) // 5 for whom in tried] == sorted(int(whom[-1]) // 5 for whom in tried)
    heal(PeerSeen(peer(99), (address(99),)), PeerLost(peer(99)))
    assert heal.tries(200)[0][1] == peer(99), "lost just now"


def test_peers_with_the_same_memory_try_in_other_orders() -> None:
    def order(seed: int) -> list[PeerId]:
        heal = Healer(seed)
        heal(RememberedKnown(tuple(remembered(number) for number in range(100))))
        return [whom for _, whom in heal.tries(100)]

    assert order(1)[:5] != order(2)[:5]


def test_all_addresses_of_a_peer_are_tried_in_turn_and_older_ones_kept() -> None:
    heal = calm(Remembered(peer(1), (address(1), address(2)), TODAY_S))
    heal(PeerSeen(peer(1), (address(3),)), PeerLost(peer(1)))
    said = [effect.address for _, effect in heal.run(400) if isinstance(effect, TryAddress)]
    assert said[:3] == [address(3), address(1), address(2)]


def test_no_address_is_given_up_for_failing() -> None:
    heal = calm(remembered(1))
    heal.run(30 * 86_400)
    assert heal.tries(200) != []


def test_a_banned_peer_is_never_tried_again() -> None:
    heal = calm(remembered(1), remembered(2))
    heal(PeerBanned(peer(1)), PeerBanned(peer(7)))
    assert {whom for _, whom in heal.tries(1_000)} == {peer(2)}
    assert peer(1) not in heal.machine.anchors


def test_the_own_peer_is_never_tried() -> None:
    heal = calm(Remembered(OWN, (address(1),), TODAY_S))
    heal(PeerSeen(OWN, (address(1),)))
    assert heal(Found(OWN, (address(1),)), ViewsDiffer(OWN, (address(1),))) == []
    assert heal.tries(1_000) == []


def test_memory_is_bounded_and_keeps_anchors_and_the_last_seen() -> None:
    old = tuple(remembered(number, days_ago=9, times=1_000, network=number, is_anchor=True) for number in range(4))
    heal = Healer(remembered_max=20)
    heal(RememberedKnown((*old, *[remembered(number, days_ago=1) for number in range(100, 200)])))
    assert heal.machine.missing == 20
    for number in range(300, 400):
        heal(PeerSeen(peer(number), (address(number),)))
    assert heal.machine.missing == 4
    assert heal.machine.anchors == tuple(peer(number) for number in range(4))


# --- found and differing ----------------------------------------------------------------------------------------------


def test_whoever_the_dht_names_and_is_not_listed_is_tried_at_once() -> None:
    heal = calm(remembered(1))
    heal(PeerSeen(peer(2), (address(2),)))
    assert heal(Found(peer(2), (address(2),))) == []
    assert heal(Found(peer(1), (address(9),)))[0] in (TryAddress(address(1), peer(1)), TryAddress(address(9), peer(1)))
    assert heal(Found(peer(5), (address(5),))) == [TryAddress(address(5), peer(5))]


def test_a_flood_of_names_costs_no_more_than_some_tries_and_no_memory() -> None:
    heal = calm(remembered(1))
    said = heal(*[Found(peer(number), (address(number),)) for number in range(10, 2_000)])
    assert len(said) == heal.machine._settings.found_max
    assert heal.machine.missing == 1
    heal.now += 60.0
    assert len(heal(Found(peer(10), (address(10),)))) >= 1


def test_another_view_is_exchanged_at_once_and_not_with_the_same_peer_again() -> None:
    heal = calm()
    beacon = ViewsDiffer(peer(1), (address(1),))
    assert heal(beacon) == [ExchangeViews(peer(1), (address(1),))]
    assert heal(beacon) == []
    heal.now += 19.0
    assert not [each for each in heal(beacon) if isinstance(each, ExchangeViews)]
    heal.now += 1.5
    assert ExchangeViews(peer(1), (address(1),)) in heal(beacon)


def test_exchanges_with_many_peers_are_limited() -> None:
    heal = calm()
    events = [ViewsDiffer(peer(number), (address(number),)) for number in range(limits.EXCHANGES_REMEMBERED_MAX + 9)]
    assert len(heal(*events)) == heal.machine._settings.exchanges_max


# --- anchors ----------------------------------------------------------------------------------------------------------


def test_anchors_are_the_longest_seen_of_different_networks() -> None:
    heal = Healer()
    rows = [remembered(number, times=100 - number, network=1) for number in range(10)]
    rows += [
        remembered(20, times=50, network=2),
        remembered(21, times=40, network=3),
        remembered(22, times=30, network=4),
    ]
    rows += [remembered(23, times=5, network=5)]
    said = heal(RememberedKnown(tuple(rows)))
    assert AnchorsChosen((peer(0), peer(20), peer(21), peer(22))) in said
    assert heal.machine.anchors == (peer(0), peer(20), peer(21), peer(22))


def test_of_one_network_there_are_four_anchors_too() -> None:
    heal = Healer()
    heal(RememberedKnown(tuple(remembered(number, times=100 - number) for number in range(10))))
    assert heal.machine.anchors == tuple(peer(number) for number in range(limits.ANCHORS_MIN))


def test_whoever_stays_long_becomes_an_anchor() -> None:
    heal = calm()
    for number in range(5):
        heal(PeerSeen(peer(number), (address(number, number),)))
        heal.run(1_000)
    assert heal.machine.anchors == tuple(peer(number) for number in range(4))
    heal(PeerLost(peer(1)))
    heal.run(5_000)
    assert peer(4) in heal.machine.anchors
    assert peer(1) not in heal.machine.anchors


def test_every_second_try_is_an_anchors() -> None:
    heal = Healer()
    rows = [remembered(number, times=50, network=number) for number in range(4)]
    heal(RememberedKnown((*rows, *[remembered(number) for number in range(10, 500)])), ViewSize(50, 50))
    tried = [whom for _, whom in heal.tries(200)]
    share = sum(whom in heal.machine.anchors for whom in tried) / len(tried)
    assert 0.4 <= share <= 0.6


def test_anchors_of_an_earlier_run_are_kept() -> None:
    heal = Healer()
    rows = [remembered(number, days_ago=30, times=500, network=number, is_anchor=True) for number in range(4)]
    assert heal(RememberedKnown((*rows, *[remembered(number) for number in range(10, 300)]))) == []
    assert heal.machine.anchors == tuple(peer(number) for number in range(4))


# --- presets, stories, cost -------------------------------------------------------------------------------------------


def test_presets_are_settings_of_one_kind() -> None:
    assert HealingSettings.lan().interval_s == HealingSettings.wan().interval_s == 60.0
    assert HealingSettings.test().hurried_interval_s < 1
    assert HealingSettings().anchors >= 4


@pytest.mark.parametrize("seed", range(10))
def test_random_stories_keep_the_invariants_and_repeat_exactly(seed: int) -> None:
    def story() -> list[object]:
        rng = random.Random(seed)
        heal = Healer(seed, remembered_max=25, exchanges_max=5)
        said: list[object] = []
        for _ in range(500):
            heal.now += rng.choice([0.0, 0.5, 20.0, 400.0])
            number = rng.randrange(0, 40)
            where = tuple(address(rng.randrange(0, 50), number) for _ in range(rng.randrange(0, 3)))
            event: healing.Event = rng.choice(
                [
                    RememberedKnown((remembered(number, times=number), remembered(number + 1, is_anchor=True))),
                    ViewSize(number, 40),
                    PeerSeen(peer(number), where),
                    PeerLost(peer(number)),
                    PeerBanned(peer(number)),
                    ViewsDiffer(peer(number), where),
                    Found(peer(number), where),
                    Woke(5.0),
                    NetworksChanged(),
                    Tick(),
                ]
            )
            said += heal(event)
            at = heal.machine.deadline()
            assert at is None or at > heal.now
        assert said
        return said

    assert story() == story()


def test_an_event_costs_little_with_many_peers() -> None:
    def work(count: int) -> int:
        heal = Healer()
        heal.machine.handle(
            RememberedKnown(tuple(remembered(number, network=number & 3) for number in range(count))), 0.0
        )
        lines = 0

        def trace(frame: object, event: str, argument: object) -> object:
            nonlocal lines
            lines += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            for number in range(0, count, count // 100):
                heal.machine.handle(PeerSeen(peer(number), (address(number),)), 200.0)
                heal.machine.handle(ViewSize(number, count), 200.0)
                heal.machine.handle(PeerLost(peer(number)), 200.0)
                heal.machine.handle(Found(peer(number), (address(number),)), 200.0)
        finally:
            sys.settrace(before)
        return lines

    assert work(10_000) < 1.5 * work(200)


# --- a world ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_two_halves_that_only_remember_each_other_meet_within_ninety_seconds(seed: int) -> None:
    """Twenty peers a side, long split and calm; a third of what is remembered is gone for good."""
    world = HealingWorld(40, seed)
    world.know_halves(remembered_each=4, gone_each=2)
    world.run(600.0)
    assert world.groups() == 2, "they cannot meet while the wire is cut"
    world.mend()
    assert world.run_until_one(90.0) is not None


@pytest.mark.parametrize("seed", range(8))
def test_a_fresh_split_heals_within_seconds_of_the_wires_mending(seed: int) -> None:
    world = HealingWorld(40, seed)
    world.know_all()
    world.run(400.0)
    world.cut()
    world.run(100.0)
    assert world.groups() == 2
    world.mend()
    took_s = world.run_until_one(90.0)
    assert took_s is not None
    assert took_s <= 10.0


@pytest.mark.parametrize("seed", range(8))
def test_all_peers_restart_from_what_they_remember_alone(seed: int) -> None:
    """Sixty peers, each with five remembered addresses and nothing else, started within half a minute."""
    world = HealingWorld(60, seed)
    world.start_remembering(5, within_s=30.0)
    took_s = world.run_until_one(90.0)
    assert took_s is not None
    assert took_s <= 60.0
