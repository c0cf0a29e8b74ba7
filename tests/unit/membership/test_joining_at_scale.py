"""The joining machine in a network of a thousand peers and more, and over relays."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from p2pcompute.membership import joining
from p2pcompute.membership.joining import (
    CandidateHeard,
    CandidatesHeard,
    Dial,
    DialEnded,
    DialVia,
    DirectPromised,
    LinkDown,
    LinksPreferred,
    LinkUp,
    LinkWanted,
    PeerForgotten,
    RecordAddresses,
    Tick,
)
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Relay

#: Below every other id, so that this peer never waits for the other side.
OWN = PeerId(b"\0" * 32)


def peer(number: int) -> PeerId:
    return PeerId(b"p" + number.to_bytes(31, "big"))


def address(number: int) -> Address:
    return Address(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 9876)


def row(number: int, *relays: Relay) -> RecordAddresses:
    return RecordAddresses(peer(number), (address(number),), relays)


RELAY = Relay(peer(900), Address("203.0.113.9", 9876))


class Joiner:
    """A machine, its clock, and a world in which `alive` peers accept every dial."""

    def __init__(self, check: bool = True, **changes: object) -> None:
        self.machine = joining.JoiningMachine(OWN, random.Random(5), joining.JoiningSettings(**changes))  # type: ignore[arg-type]
        self.now = 0.0
        self.check = check
        #: Every effect, with its time.
        self.said: list[tuple[float, joining.Effect]] = []
        self.alive: set[PeerId] = set()
        self.linked: set[PeerId] = set()

    def __call__(self, *events: joining.Event) -> list[joining.Effect]:
        effects: list[joining.Effect] = []
        for event in events:
            effects += self.machine.handle(event, self.now)
            if self.check:
                self.machine.check_invariants()
        self.said += [(self.now, effect) for effect in effects]
        return effects

    def settle(self, *events: joining.Event) -> None:
        """Feed `events`, and the ends of all dials that follow from them."""
        pending = self(*events)
        while pending:
            dial = pending.pop(0)
            if isinstance(dial, DialVia):
                pending += self(DialEnded(dial.relay.address, dial.peer, "LinkClosedError", via=dial.relay.peer))
            elif dial.expected in self.alive:
                self.linked.add(dial.expected)
                pending += self(LinkUp(dial.expected, dial.address), DialEnded(dial.address, dial.expected))
            else:
                pending += self(DialEnded(dial.address, dial.expected, "LinkClosedError"))

    def run(self, seconds: float) -> None:
        """Pass time."""
        end = self.now + seconds
        while (at := self.machine.deadline()) is not None and at <= end:
            self.now = max(at, self.now)
            self.settle(Tick())
        self.now = end

    @property
    def dialled(self) -> list[PeerId | None]:
        return [each.expected for _, each in self.said if isinstance(each, Dial)]


# --- how many links ---------------------------------------------------------------------------------------------------


def test_a_small_network_is_a_full_mesh() -> None:
    join = Joiner()
    join.alive = {peer(number) for number in range(limits.LINKS_MAX)}
    join.settle(CandidatesHeard(tuple(row(number) for number in range(limits.LINKS_MAX))))
    join.run(10)
    assert len(join.linked) == limits.LINKS_MAX


def test_in_a_larger_one_a_chosen_number_of_links_is_enough() -> None:
    join = Joiner()
    join.alive = {peer(number) for number in range(1_000)}
    join.settle(CandidatesHeard(tuple(row(number) for number in range(1_000))))
    join.run(10)
    assert len(join.linked) == limits.LINKS_WANTED
    lost = sorted(join.linked)[0]
    join.linked.discard(lost)
    join.settle(LinkDown(lost))
    join.run(10)
    assert len(join.linked) == limits.LINKS_WANTED


def test_peers_that_heard_the_same_records_choose_different_ones() -> None:
    def chosen(seed: int) -> frozenset[PeerId]:
        join = Joiner()
        join.machine = joining.JoiningMachine(OWN, random.Random(seed))
        join.alive = {peer(number) for number in range(1_000)}
        join.settle(CandidatesHeard(tuple(row(number) for number in range(1_000))))
        return frozenset(join.linked)

    assert len(chosen(1) & chosen(2)) < limits.LINKS_WANTED // 2


def test_preferred_peers_are_dialled_first_and_beyond_the_wanted_number() -> None:
    join = Joiner(check=False)
    join.alive = {peer(number) for number in range(1_000)}
    preferred = tuple(peer(number) for number in range(700, 730))
    join.settle(LinksPreferred(preferred), CandidatesHeard(tuple(row(number) for number in range(1_000))))
    join.machine.check_invariants()
    assert set(join.dialled) == set(preferred), "nobody else is dialled where more are preferred than wanted"
    join.settle(LinksPreferred(tuple(peer(number) for number in range(40))))
    join.machine.check_invariants()
    assert len(join.linked) == limits.LINKS_MAX
    assert all(whom in preferred or whom < peer(40) for whom in join.linked)


def test_without_enough_preferred_ones_the_rest_fill_up() -> None:
    join = Joiner(check=False)
    join.alive = {peer(number) for number in range(200)}
    join.settle(LinksPreferred((peer(5), peer(150))), CandidatesHeard(tuple(row(number) for number in range(200))))
    assert join.dialled[:2] in ([peer(5), peer(150)], [peer(150), peer(5)])
    assert len(join.linked) == limits.LINKS_WANTED


def test_whoever_is_needed_goes_before_whoever_is_preferred() -> None:
    join = Joiner(dials_at_once_max=1)
    join(CandidatesHeard((row(1), row(2), row(3))), LinksPreferred((peer(2),)), LinkWanted(peer(3)))
    (first,) = [whom for whom in join.dialled if whom]
    join(DialEnded(address(1), first, "LinkClosedError"), DialEnded(address(first[-1]), first, "LinkClosedError"))
    assert join.dialled[1] == peer(3)


# --- records ----------------------------------------------------------------------------------------------------------


def test_what_records_name_is_kept_outside_of_the_candidates() -> None:
    join = Joiner(check=False)
    join.alive = {peer(number) for number in range(20_000)}
    for start in range(0, 20_000, 500):
        join.settle(CandidatesHeard(tuple(row(number) for number in range(start, start + 500))))
    join.machine.check_invariants()
    assert join.machine.peers_known == 20_000
    assert len(join.machine.candidates) <= 100
    last = peer(19_999)
    join.settle(LinkWanted(last))
    assert last in join.linked


def test_a_thousand_dead_peers_wear_out_neither_the_table_nor_their_back_off() -> None:
    join = Joiner(check=False, candidates_max=50)
    join.settle(CandidatesHeard(tuple(row(number) for number in range(1_000))))
    join.run(1_800)
    join.machine.check_invariants()
    tries = {number: join.dialled.count(peer(number)) for number in range(1_000)}
    assert min(tries.values()) >= 3, "some were never tried again"
    assert max(tries.values()) < 40, "room was made for a peer by forgetting how often it had failed"


def test_a_newer_record_replaces_the_older_ones_addresses() -> None:
    join = Joiner(dials_at_once_max=1)
    both = RecordAddresses(peer(1), (address(1), address(2)))
    join.settle(CandidatesHeard((both,)))
    join.said.clear()
    join.settle(CandidatesHeard((RecordAddresses(peer(1), (address(3),)),)))
    join.run(3_000)
    assert {effect.address for _, effect in join.said if isinstance(effect, Dial)} == {address(3)}


def test_the_same_record_again_changes_nothing_but_its_age() -> None:
    join = Joiner()
    join.settle(CandidatesHeard((row(1),)))
    join.now = 3_000.0
    before = join.machine.candidates
    assert join(CandidatesHeard((row(1),))) != [] or join.machine.candidates == before
    join.run(3_000)
    assert join.machine.peers_known == 1
    join.run(4_000)
    join(Tick())
    assert join.machine.peers_known == 0, "a record that nobody repeats is good for an hour"


def test_a_forgotten_peer_is_not_dialled_any_more() -> None:
    join = Joiner()
    join.settle(CandidatesHeard((row(1, RELAY),)), PeerForgotten(peer(1)))
    join.said.clear()
    join.run(4_000)
    assert not join.said
    assert join.machine.peers_known == 0


def test_records_are_bounded() -> None:
    join = Joiner(records_max=10, links_wanted=0)
    for number in range(100):
        join(CandidatesHeard((row(number),)))
    assert join.machine.peers_known == 10
    many = RecordAddresses(peer(1), tuple(address(number) for number in range(100)), (RELAY,) * 9)
    join(CandidatesHeard((many,)))
    join(LinkWanted(peer(1)))
    assert len(join.machine.candidates) <= limits.ADDRESSES_MAX + limits.RELAYS_MAX


def test_of_two_peers_the_higher_id_waits_a_little_for_records_too() -> None:
    join = Joiner()
    join.machine = joining.JoiningMachine(PeerId(b"z" * 32), random.Random(5))
    assert join(CandidatesHeard((row(1),))) == []
    at = join.machine.deadline()
    assert at is not None
    assert 0 < at <= 0.3
    join.now = at
    assert join(Tick()) == [Dial(address(1), peer(1))]


# --- relays -----------------------------------------------------------------------------------------------------------


def test_a_relay_is_asked_when_every_address_has_failed() -> None:
    join = Joiner()
    near, far = Address("192.168.1.5", 1), Address("198.51.100.5", 1)
    assert join(CandidatesHeard((RecordAddresses(peer(1), (far, near), (RELAY,)),))) == [Dial(near, peer(1))]
    assert join(DialEnded(near, peer(1), "LinkClosedError")) == [Dial(far, peer(1))]
    assert join(DialEnded(far, peer(1), "LinkClosedError")) == [DialVia(peer(1), RELAY)]


def test_no_relay_is_asked_while_a_direct_way_may_still_answer() -> None:
    join = Joiner()
    join(CandidatesHeard((row(1, RELAY),)))
    for join.now in (0.5, 1.0, 4.0):
        assert join(Tick()) == []
    assert join(DialEnded(address(1), peer(1), "LinkClosedError")) == [DialVia(peer(1), RELAY)]


def test_a_peer_that_links_by_itself_while_it_is_dialled_is_left_alone() -> None:
    join = Joiner()
    join(CandidatesHeard((RecordAddresses(peer(1), (address(1), address(2)), (RELAY,)),)))
    assert join(LinkUp(peer(1))) == []
    for join.now in (0.5, 1.0, 4.0, 1_000.0):
        assert join(Tick()) == []


def test_a_peer_that_is_linked_by_relay_while_it_is_dialled_is_left_alone_for_a_while() -> None:
    join = Joiner()
    join(CandidatesHeard((RecordAddresses(peer(1), (address(1), address(2)), (RELAY,)),)))
    assert join(LinkUp(peer(1), relayed=True)) == []
    for join.now in (0.5, 1.0, 4.0, 300.0):
        assert join(Tick()) == []


def test_a_peer_without_addresses_is_reached_by_its_relays_in_turn() -> None:
    join = Joiner()
    other = Relay(peer(901), Address("203.0.113.8", 9876))
    first = join(CandidatesHeard((RecordAddresses(peer(1), (), (RELAY, other)),)))
    assert len(first) == 1
    assert isinstance(first[0], DialVia)
    relay = first[0].relay
    second = join(DialEnded(relay.address, peer(1), "LinkClosedError", via=relay.peer))
    assert second == [DialVia(peer(1), other if relay == RELAY else RELAY)]


def test_a_relay_that_fails_backs_off_and_direct_ways_are_tried_again() -> None:
    join = Joiner()
    join.settle(CandidatesHeard((row(1, RELAY),)))
    join.run(1_000)
    vias = [at for at, effect in join.said if isinstance(effect, DialVia)]
    directs = [at for at, effect in join.said if isinstance(effect, Dial)]
    assert 5 < len(vias) < 25
    assert 5 < len(directs) < 25


def test_one_dial_to_a_relays_address_is_not_taken_for_another() -> None:
    """Two peers behind one relay, and the relay itself, have one address."""
    join = Joiner()
    join(CandidatesHeard((RecordAddresses(peer(1), (), (RELAY,)), RecordAddresses(peer(2), (), (RELAY,)))))
    join(CandidateHeard(RELAY.address, "flag", RELAY.peer))
    assert len(join.said) == 3
    join(DialEnded(RELAY.address, peer(1), None, via=RELAY.peer), LinkUp(peer(1), relayed=True))
    join.run(30)
    again = [effect for at, effect in join.said if at > 1 and isinstance(effect, DialVia)]
    assert {effect.peer for effect in again} == {peer(2)}, "the dial of peer 2 was never told to have ended"


def test_behind_a_relay_direct_ways_are_still_tried_slowly() -> None:
    join = Joiner()
    join.settle(CandidatesHeard((RecordAddresses(peer(1), (address(1), address(2)), (RELAY,)),)))
    join(LinkUp(peer(1), relayed=True))
    join.said.clear()
    join.run(7_200)
    times = [at for at, _ in join.said]
    assert all(isinstance(effect, Dial) for _, effect in join.said)
    rounds = [at for before, at in zip([-60.0, *times], times, strict=False) if at - before > 60]
    assert 9 <= len(rounds) <= 16, "every ten minutes or so"
    assert len(times) == 2 * len(rounds), "and each address once in a round"
    assert {effect.address for _, effect in join.said if isinstance(effect, Dial)} == {address(1), address(2)}
    join(CandidatesHeard((RecordAddresses(peer(1), (address(1), address(2)), (RELAY,)),)))
    join(LinkUp(peer(1), address(1)))
    join.said.clear()
    join.run(7_200)
    assert not join.said, "the better way has been found"


def test_a_relayed_link_does_not_hold_the_place_of_another_while_it_is_improved() -> None:
    join = Joiner(links_wanted=2, links_max=2)
    join(LinkUp(peer(1), relayed=True), CandidatesHeard((row(1, RELAY),)))
    join.now = 800.0
    assert join(Tick()) == [Dial(address(1), peer(1))]
    assert join(CandidatesHeard((row(2),))) == [Dial(address(2), peer(2))]


def test_a_lost_relayed_link_is_dialled_again() -> None:
    join = Joiner()
    join(CandidatesHeard((RecordAddresses(peer(1), (), (RELAY,)),)))
    join(LinkUp(peer(1), relayed=True), DialEnded(RELAY.address, peer(1), via=RELAY.peer))
    join.now = 100.0
    join(LinkDown(peer(1)))
    join.said.clear()
    join.run(2)
    assert [effect for _, effect in join.said][:1] == [DialVia(peer(1), RELAY)]


# --- cost -------------------------------------------------------------------------------------------------------------

_FILES = ("joining.py", "joining_table.py", "joining_queue.py")


def _lines(action: Callable[[], object]) -> int:
    """Lines of the machine that `action` runs: a measure of work that no other load on this machine changes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> object:
        nonlocal count
        if Path(frame.f_code.co_filename).name not in _FILES:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def _work(count: int) -> dict[str, float]:
    """Lines for each kind of event in a network of `count` peers, in the mean over a hundred of each."""
    join = Joiner(check=False)
    join.alive = {peer(number) for number in range(0, count, 2)}
    join.settle(CandidatesHeard(tuple(row(number, RELAY) for number in range(count))))
    join.run(30)
    machine = join.machine
    numbers = random.Random(1)

    def each(make: Callable[[int], tuple[joining.Event, ...]]) -> float:
        total = 0
        for _ in range(100):
            join.now += 0.01
            events = make(numbers.randrange(0, count))
            total += _lines(lambda: (join.settle(*events), machine.deadline()))  # noqa: B023
        return total / 100

    return {
        "record again": each(lambda number: (CandidatesHeard((row(number, RELAY),)),)),
        "record anew": each(lambda number: (CandidatesHeard((RecordAddresses(peer(number), (address(7),)),)),)),
        "hint": each(lambda number: (CandidateHeard(address(number), "lan", peer(number)),)),
        "tick": each(lambda number: (Tick(),)),
        "links": each(lambda number: (LinkUp(peer(number)), LinkDown(peer(number)))),
        "wanted": each(lambda number: (LinkWanted(peer(number)),)),
        "preferred": each(lambda number: (LinksPreferred((peer(number),)),)),
        "forgotten": each(lambda number: (PeerForgotten(peer(number)),)),
    }


def test_the_cost_of_an_event_does_not_grow_with_the_network() -> None:
    small, large = _work(200), _work(2_000)
    for kind, lines in large.items():
        assert lines < 2 * small[kind] + 100, f"{kind}: {small[kind]:.0f} lines at 200 peers, {lines:.0f} at 2,000"


def test_a_full_table_makes_room_at_the_same_cost() -> None:
    def work(count: int) -> float:
        join = Joiner(check=False, candidates_max=count)
        for number in range(count):
            join.machine.handle(CandidateHeard(address(number), "remembered", peer(number)), join.now)
        return (
            _lines(
                lambda: [
                    join.machine.handle(CandidateHeard(address(50_000 + number), "flag", peer(50_000 + number)), 1.0)
                    for number in range(100)
                ]
            )
            / 100
        )

    assert work(1_000) < 2 * work(100) + 50


@pytest.mark.parametrize("seed", range(10))
def test_random_stories_of_records_and_relays_keep_the_invariants(seed: int) -> None:
    rng = random.Random(seed)
    join = Joiner(
        links_wanted=6, links_wanted_beyond=3, mesh_peers_max=8, links_max=8, candidates_max=20, records_max=15
    )
    under_way: list[joining.Effect] = []
    for _ in range(800):
        join.now += rng.choice([0.01, 1.0, 30.0])
        number = rng.randrange(0, 25)
        relays = rng.sample([RELAY, Relay(peer(3), address(3)), Relay(peer(4), RELAY.address)], rng.randrange(0, 3))
        addresses = tuple(address(rng.randrange(0, 30)) for _ in range(rng.randrange(0, 4)))
        heard = RecordAddresses(peer(number), tuple(dict.fromkeys(addresses)), tuple(relays))
        event: joining.Event = rng.choice(
            [
                CandidatesHeard((heard, row(rng.randrange(0, 25)))),
                CandidateHeard(address(number), rng.choice(joining.SOURCES), rng.choice([None, peer(number)])),
                LinkUp(peer(number), rng.choice([None, address(number)]), rng.random() < 0.3),
                LinkDown(peer(number)),
                LinkWanted(peer(number)),
                LinksPreferred((peer(number), peer(rng.randrange(0, 25)))),
                joining.NetworksChanged((f"10.0.{rng.randrange(0, 3)}.0/24",)),
                PeerForgotten(peer(number)),
                Tick(),
            ]
        )
        if under_way and rng.random() < 0.5:
            dial = under_way.pop(rng.randrange(0, len(under_way)))
            kind = rng.choice([None, "self", "LinkClosedError"])
            if isinstance(dial, Dial):
                whom = dial.expected or peer(number)
                event = DialEnded(dial.address, whom if kind is None else dial.expected, kind, rng.random() < 0.2)
            else:
                event = DialEnded(dial.relay.address, dial.peer, kind, via=dial.relay.peer)
        under_way += join(event)
        at = join.machine.deadline()
        assert at is None or at > join.now - 1e-9, "something that is due was not done"
    assert join.said


def test_behind_a_relay_what_a_record_promises_is_tried_soon() -> None:
    join = Joiner()
    join.settle(CandidatesHeard((RecordAddresses(peer(1), (address(1), address(2)), (RELAY,)),)))
    join(LinkUp(peer(1), relayed=True))
    join.said.clear()
    # It names a third address by now, and says that it can be dialled.
    join(CandidatesHeard((RecordAddresses(peer(1), (address(1), address(2), address(3)), (RELAY,)),)))
    assert not join.said
    join(DirectPromised(peer(1)), DirectPromised(peer(2)))
    join.run(5)
    tried = [effect.address for _, effect in join.said if isinstance(effect, Dial)]
    assert tried == [address(3)], "what has failed before comes after what is new"
    assert join.said[0][0] <= 1.0
    join.said.clear()
    join(DirectPromised(peer(1)))
    join.run(5)
    assert sorted(effect.address for _, effect in join.said if isinstance(effect, Dial)) == [
        address(1),
        address(2),
        address(3),
    ]
    join.said.clear()
    join.run(300)
    assert not join.said, "then it is as slow as ever"


def test_a_direct_link_is_not_dialled_again_whatever_is_promised() -> None:
    join = Joiner()
    join.alive = {peer(1)}
    join.settle(CandidatesHeard((row(1, RELAY),)))
    join(LinkUp(peer(1), address(1)))
    join.said.clear()
    join(DirectPromised(peer(1)))
    join.run(300)
    assert not join.said
