"""Peer books that talk to each other over links: whatever happens to links and peers, in the end all agree.

Each story is told three times: among peers of the first protocol version, among peers that gossip, and among both.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.membership import book
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerStatus
from tests.support.membership import BookWorld, Protocol, Weather


def mixed(number: int) -> int:
    """Half the peers speak the previous version."""
    return 1 + number % 2


VERSIONS = pytest.mark.parametrize("protocol", [1, 2, mixed], ids=["first", "gossip", "mixed"])


def statuses(world: BookWorld, number: int) -> dict[PeerId, tuple[PeerStatus, tuple[int, int]]]:
    """What one book believes, its own peer included."""
    view = world.members[number].book.view
    found = {entry.record.peer: (entry.status, entry.record.order) for entry in view.entries}
    return found | {view.own.peer: (PeerStatus.ALIVE, view.own.order)}


def assert_agreement(world: BookWorld, expected: dict[int, PeerStatus]) -> None:
    """Everybody who is up believes `expected`, and the newest record of everybody who is up."""
    wanted = {}
    for number, status in expected.items():
        member = world.members[number]
        wanted[member.key.peer] = (status, member.record.record.order)
    for number, member in enumerate(world.members):
        if member.is_up:
            seen = {peer: row for peer, row in statuses(world, number).items() if peer in wanted}
            assert seen == wanted, f"book {number}"


def tells(world: BookWorld, cls: type) -> list[object]:
    """All effects of one kind, of all books."""
    return [said for member in world.members for said in member.said if isinstance(said, cls)]


def full_mesh(world: BookWorld) -> None:
    for one, other in itertools.combinations(range(len(world.members)), 2):
        world.link(one, other)


def ring(world: BookWorld) -> None:
    for number in range(len(world.members)):
        world.link(number, (number + 1) % len(world.members))


@VERSIONS
@pytest.mark.parametrize("seed", range(3))
def test_thirty_books_on_a_ring_agree_and_follow_changes(protocol: Protocol, seed: int) -> None:
    world = BookWorld(30, seed, protocol=protocol)
    ring(world)
    world.run(5 if protocol == 1 else 20)
    everybody = dict.fromkeys(range(30), PeerStatus.ALIVE)
    assert_agreement(world, everybody)
    for number in (3, 17, 17, 29):
        world.change(number, load=float(number))
    world.run(5 if protocol == 1 else 20)
    assert_agreement(world, everybody)
    assert not tells(world, book.PeerDied)


@VERSIONS
@pytest.mark.parametrize("seed", range(3))
def test_thirty_books_agree_after_random_loss_of_links_and_peers(protocol: Protocol, seed: int) -> None:
    world = BookWorld(30, seed, protocol=protocol)
    full_mesh(world)
    world.run(2)
    pairs = list(itertools.combinations(range(30), 2))
    for _ in range(40):
        one, other = world.rng.choice(pairs)
        world.unlink(one, other)
        world.change(world.rng.randrange(30), load=world.rng.random())
        world.run(world.rng.random())
    dead = set(world.rng.sample(range(30), 8))
    for number in sorted(dead):
        world.kill(number)
        world.run(world.rng.random())
    # What is lost is dialled again in the product.
    full_mesh(world)
    world.run(60)
    for number, member in enumerate(world.members):
        if member.is_up:
            believed = {peer: status for peer, (status, _) in statuses(world, number).items()}
            for place, other_member in enumerate(world.members):
                wanted = PeerStatus.DEAD if place in dead else PeerStatus.ALIVE
                assert believed[other_member.key.peer] is wanted, f"book {number} about {place}"
    assert_agreement(world, {number: PeerStatus.ALIVE for number in range(30) if number not in dead})


@pytest.mark.parametrize(
    ("protocol", "within_s"), [(1, 3.0), (2, 10.0), (mixed, 10.0)], ids=["first", "gossip", "mixed"]
)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("victim", [6, 7])
def test_a_crash_is_known_to_all_of_a_full_mesh(protocol: Protocol, within_s: float, seed: int, victim: int) -> None:
    world = BookWorld(30, seed, protocol=protocol)
    full_mesh(world)
    world.run(2)
    world.kill(victim)
    world.run(within_s)
    gone = world.members[victim].key.peer
    for number, member in enumerate(world.members):
        if member.is_up:
            assert statuses(world, number)[gone][0] is PeerStatus.DEAD, f"book {number}"


@VERSIONS
def test_one_lost_link_kills_nobody(protocol: Protocol) -> None:
    world = BookWorld(10, 1, protocol=protocol)
    full_mesh(world)
    world.run(2)
    world.unlink(2, 3)
    world.run(120)
    assert_agreement(world, dict.fromkeys(range(10), PeerStatus.ALIVE))
    assert not tells(world, book.PeerDied)


def of_halves(one: int, other: int) -> bool:
    return (one < 10) == (other < 10)


@VERSIONS
def test_a_split_network_heals_when_one_link_joins_the_halves(protocol: Protocol) -> None:
    world = BookWorld(20, 4, protocol=protocol)
    for half in (range(10), range(10, 20)):
        for one, other in itertools.combinations(half, 2):
            world.link(one, other)
    world.run(5)
    assert world.members[0].book.view.entry(world.members[15].key.peer) is None
    world.link(0, 10)
    world.run(5 if protocol == 1 else 10)
    assert_agreement(world, dict.fromkeys(range(20), PeerStatus.ALIVE))


def test_halves_that_believe_each_other_dead_are_one_again_soon_after_one_link_joins_them() -> None:
    weather = Weather()
    world = BookWorld(20, 4, protocol=2, weather=weather)
    full_mesh(world)
    world.run(5)
    weather.passes = of_halves
    for one, other in itertools.product(range(10), range(10, 20)):
        world.unlink(one, other)
    world.run(120)
    for number in range(20):
        alive = {entry.record.peer for entry in world.members[number].book.view.alive}
        assert alive == {
            world.members[other].key.peer for other in range(20) if other != number and of_halves(number, other)
        }
    world.change(3, load=0.5)
    world.run(5)
    weather.passes = lambda _one, _other: True
    world.link(0, 10)
    # Whom the announcements miss, the next exchange of digests tells.
    world.run(45)
    assert_agreement(world, dict.fromkeys(range(20), PeerStatus.ALIVE))


@VERSIONS
def test_who_leaves_is_left_for_all(protocol: Protocol) -> None:
    world = BookWorld(12, 2, protocol=protocol)
    full_mesh(world)
    world.run(2)
    world.change(5, leaving=True)
    world.run(1)
    world.kill(5)
    world.run(10)
    gone = world.members[5].key.peer
    for number, member in enumerate(world.members):
        if member.is_up:
            assert statuses(world, number)[gone][0] is PeerStatus.LEFT
            assert not any(isinstance(said, book.PeerDied) for said in member.said)


def test_a_quiet_full_mesh_is_quiet() -> None:
    world = BookWorld(30, 6)
    full_mesh(world)
    # Each link once: news goes to eight of them, and whether the others lack it nobody knows before.
    world.run(30 * 30 * 1.2)
    before = len(world.trace)
    world.run(300)
    said = [effect for _, _, effect in world.trace[before:]]
    assert not said, "nothing changes, so nothing is sent"


def test_what_gossips_and_does_not_change_sends_probes_and_digests_alone() -> None:
    world = BookWorld(30, 6, protocol=2)
    full_mesh(world)
    world.run(120)
    before = len(world.trace)
    world.run(300)
    said = [effect for _, _, effect in world.trace[before:]]
    kinds = {type(effect.message).__name__ for effect in said if isinstance(effect, book.SendGossip)}
    assert kinds == {"Probe", "Ack", "Digest"}
    assert all(isinstance(effect, book.SendGossip | book.ViewChanged) for effect in said)


@VERSIONS
def test_the_same_seed_tells_the_same_story(protocol: Protocol) -> None:
    def story() -> list[object]:
        world = BookWorld(15, 9, protocol=protocol, weather=Weather(loss=0.1))
        full_mesh(world)
        world.run(1)
        for _ in range(10):
            world.unlink(world.rng.randrange(15), world.rng.randrange(15))
            world.change(world.rng.randrange(15), load=world.rng.random())
            world.run(1)
        world.kill(4)
        world.run(30)
        return list(world.trace)

    assert story() == story()


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["link", "unlink", "clean", "change", "kill", "wait"]), st.integers(0, 7), st.integers(0, 7)
    ),
    max_size=40,
)


@settings(max_examples=40)
@given(moves=MOVES, seed=st.integers(0, 1 << 20))
def test_no_story_breaks_a_book_and_all_stories_end_in_agreement(moves: list[tuple[str, int, int]], seed: int) -> None:
    live_through(1, moves, seed)


@pytest.mark.parametrize("protocol", [2, mixed], ids=["gossip", "mixed"])
@settings(max_examples=12)
@given(moves=MOVES, seed=st.integers(0, 1 << 20))
def test_no_story_breaks_a_book_that_gossips(protocol: Protocol, moves: list[tuple[str, int, int]], seed: int) -> None:
    live_through(protocol, moves, seed)


def live_through(protocol: Protocol, moves: list[tuple[str, int, int]], seed: int) -> None:
    """Let all moves happen, link everybody again, and expect agreement in the end."""
    world = BookWorld(8, seed, protocol=protocol)
    ring(world)
    for move, one, other in moves:
        match move:
            case "link":
                world.link(one, other)
            case "unlink":
                world.unlink(one, other)
            case "clean":
                world.unlink(one, other, clean=True)
            case "change" if world.members[one].is_up:
                world.change(one, load=float(other))
            case "kill" if sum(member.is_up for member in world.members) > 2:
                world.kill(one)
            case _:
                world.run(other / 3)
    world.run(1)
    full_mesh(world)
    # The first version repairs one link at a time, every half a minute, and finds the dead that it was not linked to by their
    # silence alone.
    world.run({1: 1_000, 2: 90}.get(protocol, 500) if isinstance(protocol, int) else 500)
    for number, member in enumerate(world.members):
        if not member.is_up:
            continue
        for place, whom in enumerate(world.members):
            entry = member.book.view.entry(whom.key.peer)
            if place == number:
                continue
            if whom.is_up:
                assert entry is not None
                assert entry.status is PeerStatus.ALIVE
                assert entry.record.order == whom.record.record.order
            else:
                assert entry is None or entry.status is PeerStatus.DEAD
