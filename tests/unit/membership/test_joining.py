"""The joining machine."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest

from p2pcompute.membership import joining
from p2pcompute.membership.joining import CandidateHeard, Dial, DialEnded, LinkDown, LinkUp, Tick
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address

OWN = PeerId(b"m" * 32)
LOW = PeerId(b"a" * 32)
HIGH = PeerId(b"z" * 32)
SEED = Address("203.0.113.1", 9876)


def peer(number: int) -> PeerId:
    return PeerId(b"z" + number.to_bytes(31, "big"))


class Joiner:
    """A machine and its clock."""

    def __init__(self, **changes: object) -> None:
        settings = joining.JoiningSettings(**changes)  # type: ignore[arg-type]
        self.machine = joining.JoiningMachine(OWN, random.Random(3), settings)
        self.now = 0.0

    def __call__(self, *events: joining.Event) -> list[Dial]:
        dials: list[Dial] = []
        for event in events:
            dials += self.machine.handle(event, self.now)
            self.machine.check_invariants()
        return dials

    def run(
        self, seconds: float, fail: Iterable[Address] = (), kind: str = "LinkClosedError"
    ) -> list[tuple[float, Dial]]:
        """Pass time; dials of `fail` fail at once, those of others stay under way."""
        end, dialled, failing = self.now + seconds, [], set(fail)
        while (at := self.machine.deadline()) is not None and at <= end:
            self.now = max(at, self.now)
            pending = self(Tick())
            assert pending or self.machine.deadline() != at, "a Tick leaves nothing that is due"
            while pending:
                dial = pending.pop(0)
                dialled.append((self.now, dial))
                if dial.address in failing:
                    pending += self(DialEnded(dial.address, dial.expected, kind))
        self.now = end
        return dialled


def test_a_named_address_is_dialled_at_once_and_anybody_will_do() -> None:
    join = Joiner()
    assert join(CandidateHeard(SEED, "flag")) == [Dial(SEED, None)]
    assert join(CandidateHeard(SEED, "flag")) == [], "it is under way"


@pytest.mark.parametrize(("source", "cap_s"), [("flag", 60), ("lan", 60), ("file", 300), ("remembered", 300)])
def test_failures_back_off_up_to_the_cap_and_never_end(source: joining.Source, cap_s: float) -> None:
    join = Joiner(lan_forget_s=1e9)
    (dial,) = join(CandidateHeard(SEED, source, HIGH))
    join(DialEnded(SEED, dial.expected, "LinkClosedError"))
    times = [at for at, _ in join.run(20_000, fail=[SEED])]
    gaps = [late - early for early, late in itertools.pairwise(times)]
    assert times[0] <= 1.0
    assert max(gaps) <= cap_s
    assert max(gaps) > cap_s * 0.7
    assert times[-1] > 20_000 - cap_s


def test_a_permanent_refusal_is_tried_again_after_ten_minutes() -> None:
    join = Joiner()
    join(CandidateHeard(SEED, "flag"), DialEnded(SEED, None, "other-network", True))
    at, dial = join.run(751)[0]
    assert dial == Dial(SEED, None)
    assert 450 <= at <= 750


def test_the_own_address_is_never_dialled_again() -> None:
    join = Joiner()
    join(CandidateHeard(SEED, "flag"), DialEnded(SEED, None, "self", True))
    assert join.machine.deadline() is None
    assert join(CandidateHeard(SEED, "file")) == []
    assert join(CandidateHeard(Address("10.0.0.1", 1), "lan", OWN)) == [], "nor are hints of the own peer"
    ((_, dial),) = [(0, each) for each in join(CandidateHeard(SEED, "record", HIGH))]
    assert dial == Dial(SEED, HIGH), "another peer may have the address by now"


def test_linked_peers_are_not_dialled_and_lost_ones_soon_are() -> None:
    join = Joiner()
    join(CandidateHeard(SEED, "flag"), LinkUp(HIGH, SEED), DialEnded(SEED, HIGH))
    assert join.machine.candidates == ((SEED, HIGH, 0),)
    assert join.run(1000) == []
    join(LinkDown(HIGH))
    ((at, dial),) = join.run(2)
    assert dial == Dial(SEED, None)
    assert at <= 1001


def other_address(number: int) -> Address:
    return Address(f"203.0.113.{number}", 9876)


def test_a_peer_that_made_room_for_others_is_left_alone_for_a_while() -> None:
    join = Joiner()
    for whom, number in ((peer(1), 1), (peer(2), 2)):
        address = other_address(number)
        join(CandidateHeard(address, "record", whom), LinkUp(whom, address), DialEnded(address, whom))
    join.run(100)
    join(LinkDown(peer(1), idle=True))
    ((at, dial),) = join.run(1000, fail=[])[:1]
    assert dial == Dial(other_address(1), peer(1))
    assert 100 + 300 * 0.75 <= at <= 100 + 300 * 1.25


def test_a_peer_that_made_room_is_dialled_at_once_by_whoever_needs_it() -> None:
    join = Joiner()
    for whom, number in ((peer(1), 1), (peer(2), 2)):
        address = other_address(number)
        join(CandidateHeard(address, "record", whom), LinkUp(whom, address), DialEnded(address, whom))
    join.run(100)
    assert join(LinkDown(peer(1), idle=True)) == []
    assert join(joining.LinkWanted(peer(1))) == [Dial(other_address(1), peer(1))]
    join(LinkUp(peer(1), other_address(1)), DialEnded(other_address(1), peer(1)))
    join.run(100)
    # The last link of all: whoever has no other does not wait.
    join(LinkDown(peer(2), idle=True))
    join(LinkDown(peer(1), idle=True))
    ((at, dial), *_) = join.run(2)
    assert dial == Dial(other_address(1), peer(1))
    assert at <= 201


def test_a_link_that_breaks_at_once_again_and_again_backs_off() -> None:
    join = Joiner()
    join(CandidateHeard(SEED, "lan", HIGH))
    gaps = []
    for _ in range(8):
        join(LinkUp(HIGH, SEED), DialEnded(SEED, HIGH), LinkDown(HIGH))
        began = join.now
        while not join(Tick()):
            join.now = join.machine.deadline() or 0.0
        gaps.append(join.now - began)
    assert max(gaps) > 10
    assert gaps[0] <= 1


def test_an_accepted_link_stops_the_dialling_of_its_peer() -> None:
    join = Joiner()
    join(CandidateHeard(SEED, "record", HIGH), LinkUp(HIGH, None), DialEnded(SEED, HIGH, "LinkClosedError"))
    assert join.run(1000) == []


def test_addresses_of_a_peer_are_tried_nearest_first_until_one_links() -> None:
    join = Joiner()
    far, private, near = Address("8.8.8.8", 1), Address("10.1.1.1", 1), Address("192.168.1.9", 1)
    join(joining.NetworksChanged(("192.168.1.2/24",)))
    # The lower id of the two does not wait, so make all of them known before time passes.
    for address in (far, private, near):
        join.machine.handle(CandidateHeard(address, "lan", LOW), join.now)
    dials = join.run(0.95)
    assert [dial.address for _, dial in dials] == [near, private, far]
    assert [round(late[0] - early[0], 3) for early, late in itertools.pairwise(dials)] == [0.3, 0.3]


def test_the_next_address_follows_at_once_when_the_one_before_failed_and_not_after_a_link() -> None:
    join = Joiner()
    one, other = Address("10.0.0.1", 1), Address("10.0.0.2", 1)
    assert join(CandidateHeard(one, "lan", HIGH), CandidateHeard(other, "lan", HIGH)) == [Dial(one, HIGH)]
    assert join(DialEnded(one, HIGH, "LinkClosedError")) == [Dial(other, HIGH)]
    join(LinkUp(HIGH, other), DialEnded(other, HIGH))
    assert join.run(500) == []


def test_of_two_peers_the_higher_id_waits_a_little() -> None:
    join = Joiner()
    assert join(CandidateHeard(SEED, "record", HIGH)) == [Dial(SEED, HIGH)]
    assert join(CandidateHeard(Address("10.0.0.1", 1), "lan", LOW)) == []
    ((at, _),) = join.run(1)
    assert 0 < at <= 0.3


def test_an_address_whose_peer_changed_is_tried_for_the_new_one() -> None:
    join = Joiner()
    join(CandidateHeard(SEED, "lan", HIGH), DialEnded(SEED, HIGH, "wrong-peer", True))
    assert join(CandidateHeard(SEED, "lan", peer(1))) == [Dial(SEED, peer(1))]


def test_at_most_so_many_dials_are_under_way() -> None:
    join = Joiner()
    dials = join(*[CandidateHeard(Address("10.0.0.1", port), "record", peer(port)) for port in range(1, 40)])
    assert len(dials) == limits.DIALS_AT_ONCE_MAX
    assert len(join(DialEnded(dials[0].address, dials[0].expected, "LinkClosedError"))) == 1


def test_a_dial_whose_end_is_never_told_does_not_stop_the_others() -> None:
    join = Joiner(dials_at_once_max=1)
    other = Address("203.0.113.2", 1)
    join(CandidateHeard(SEED, "flag"), CandidateHeard(other, "flag"))
    assert Dial(other, None) in [dial for _, dial in join.run(30)]


def test_enough_links_are_enough_but_what_a_person_named_is_still_tried() -> None:
    join = Joiner(links_wanted=2, links_max=3)
    join(LinkUp(peer(1)), LinkUp(peer(2)))
    assert join(CandidateHeard(SEED, "record", HIGH)) == []
    assert join.machine.deadline() is None
    named = Address("203.0.113.2", 1)
    assert join(CandidateHeard(named, "invitation")) == [Dial(named, None)]
    join(LinkUp(peer(3), named), DialEnded(named, peer(3)))
    assert join(CandidateHeard(Address("203.0.113.3", 1), "flag")) == [], "the last limit holds for everybody"
    assert join(LinkDown(peer(1)), LinkDown(peer(2))) != []


def test_a_wanted_link_is_dialled_beyond_the_usual_number() -> None:
    join = Joiner(links_wanted=1)
    join(LinkUp(peer(1)), CandidateHeard(SEED, "record", HIGH))
    assert join(joining.LinkWanted(HIGH)) == [Dial(SEED, HIGH)]
    join(DialEnded(SEED, HIGH, "LinkClosedError"))
    assert join.run(29.9, fail=[SEED])
    assert join.run(1000, fail=[SEED]) == [], "the wish ends"


def test_hints_end_and_named_addresses_do_not() -> None:
    join = Joiner()
    lan, record = Address("10.0.0.1", 1), Address("10.0.0.2", 1)
    events = (
        CandidateHeard(lan, "lan", peer(1)),
        CandidateHeard(record, "record", peer(2)),
        CandidateHeard(SEED, "file"),
    )
    for dial in join(*events):
        join(DialEnded(dial.address, dial.expected, "LinkClosedError"))
    join.run(200, fail=[lan, record, SEED])
    assert [address for address, _, _ in join.machine.candidates] == [record, SEED]
    join(joining.PeerForgotten(peer(2)))
    assert [address for address, _, _ in join.machine.candidates] == [SEED]


def test_an_address_that_records_no_longer_repeat_ends_after_an_hour() -> None:
    join = Joiner()
    join(CandidateHeard(SEED, "record", HIGH), DialEnded(SEED, HIGH, "LinkClosedError"))
    join.run(3_500, fail=[SEED])
    assert join.machine.candidates
    join.run(600, fail=[SEED])
    assert not join.machine.candidates


def test_candidates_are_bounded_and_named_ones_stay() -> None:
    join = Joiner(candidates_max=20)
    named = [Address("203.0.113.1", port) for port in range(1, 11)]
    join(*[CandidateHeard(address, "flag") for address in named])
    for number in range(200):
        join(CandidateHeard(Address("10.0.0.1", number + 1), "record", peer(number)))
    kept = [address for address, _, _ in join.machine.candidates]
    assert len(kept) == 20
    assert set(named) <= set(kept)


def test_one_peer_cannot_fill_the_table() -> None:
    join = Joiner()
    for number in range(100):
        join(CandidateHeard(Address("10.0.0.1", number + 1), "record", HIGH))
        join.now += 1
    assert len(join.machine.candidates) <= limits.ADDRESSES_MAX


def test_ends_of_unknown_dials_change_nothing() -> None:
    join = Joiner()
    assert join(DialEnded(SEED, None, "x"), DialEnded(SEED, HIGH), LinkDown(HIGH), joining.PeerForgotten(HIGH)) == []
    assert join.machine.deadline() is None


def test_random_stories_keep_the_invariants_and_repeat_exactly() -> None:
    def story(seed: int) -> list[object]:
        rng = random.Random(seed)
        join = Joiner(links_wanted=5, links_max=8, candidates_max=30)
        said: list[object] = []
        under_way: list[Dial] = []
        sources: tuple[joining.Source, ...] = joining.SOURCES
        for _ in range(600):
            join.now += rng.random() * 5
            whom = peer(rng.randrange(0, 12))
            address = Address(f"10.0.0.{rng.randrange(1, 12)}", 1)
            event: joining.Event = rng.choice(
                [
                    CandidateHeard(address, rng.choice(sources), rng.choice([None, whom])),
                    LinkUp(whom, rng.choice([None, address])),
                    LinkDown(whom),
                    joining.LinkWanted(whom),
                    joining.PeerForgotten(whom),
                    Tick(),
                ]
            )
            if under_way and rng.random() < 0.5:
                dial = under_way.pop(rng.randrange(0, len(under_way)))
                event = DialEnded(dial.address, dial.expected, rng.choice([None, "self", "x"]), rng.random() < 0.2)
            dials = join(event)
            under_way += dials
            said += dials
        assert said
        return said

    for seed in range(20):
        assert story(seed) == story(seed)
