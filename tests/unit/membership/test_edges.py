"""Which edges and links a peer chooses: the same at both ends, the same tomorrow, and never leaving a place alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.membership.edges import EdgeSettings, links_to_keep, pair_hash, ring_neighbours, select_edges
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Coordinate, Edge
from tests.support.round_trips import SyntheticNetwork, exact_coordinates, peer_of

OWN = peer_of(0)
IDS = st.binary(min_size=32, max_size=32).map(PeerId)


def edge(number: int, rtt_ms: float, rate: float | None = None) -> Edge:
    return Edge(peer_of(number), rtt_ms / 1000, rate)


def peers(edges: tuple[Edge, ...]) -> set[PeerId]:
    return {each.peer for each in edges}


def test_the_ring_wraps_and_is_the_same_from_both_sides() -> None:
    ring = sorted(peer_of(number) for number in range(10))
    for place, peer in enumerate(ring):
        assert ring_neighbours(peer, ring) == (ring[(place + 1) % 10], ring[place - 1])
    assert ring_neighbours(ring[0], ring[:2]) == (ring[1],)
    assert ring_neighbours(ring[0], ring[:1]) == ()


@given(IDS, IDS)
def test_both_ends_compute_one_hash(one: PeerId, other: PeerId) -> None:
    assert pair_hash(one, other) == pair_hash(other, one)


@given(st.lists(IDS, min_size=2, max_size=30, unique=True))
def test_of_all_pairs_of_neighbours_each_lists_the_other(ring: list[PeerId]) -> None:
    measured = {peer: [Edge(other, 0.05) for other in ring if other != peer] for peer in ring}
    listed = {peer: peers(select_edges(peer, measured[peer], {}, ring)) for peer in ring}
    for peer in ring:
        for neighbour in ring_neighbours(peer, ring):
            assert neighbour in listed[peer]
            assert peer in listed[neighbour]


def test_the_nearest_are_kept_and_the_number_is_bounded() -> None:
    measured = [edge(number, 10.0 + 5 * number) for number in range(1, 60)]
    found = select_edges(OWN, measured, {}, [each.peer for each in measured])
    assert {peer_of(number) for number in range(1, 6)} <= peers(found)
    assert len(found) <= 14 <= limits.EDGES_MAX
    assert len(peers(found)) == len(found)
    assert found[0].peer == ring_neighbours(OWN, [each.peer for each in measured])[0], "the most important is the first"


def test_own_id_twice_measured_and_impossible_round_trips_do_no_harm() -> None:
    measured = [edge(0, 1), edge(1, 5), edge(1, 7), edge(2, float("nan")), edge(3, -1)]
    assert select_edges(OWN, measured, {}, [peer_of(number) for number in range(4)]) == (edge(1, 7),)
    assert select_edges(OWN, [], {}, []) == ()


def test_every_decade_and_every_place_is_represented() -> None:
    near = [edge(number, 0.3) for number in range(1, 30)]
    # Five places at about 100 ms and one peer each at 4 ms and at 2 s.
    far = [edge(100 + 10 * place + number, 95 + place * 3) for place in range(5) for number in range(8)]
    lone = [edge(200, 4.0), edge(201, 2_000.0)]
    spots = {
        peer_of(100 + 10 * place + number): Coordinate((0.1 if place < 4 else 0, 0.1 * place, 0.0), 1e-3, 0.1)
        for place in range(5)
        for number in range(8)
    }
    everybody = [*near, *far, *lone]
    found = peers(select_edges(OWN, everybody, spots, [each.peer for each in everybody]))
    assert {peer_of(200), peer_of(201)} <= found
    places = {place for place in range(5) for number in range(8) if peer_of(100 + 10 * place + number) in found}
    assert len(places) >= 4, "six places for four slots beside the two decades"


@pytest.mark.parametrize("seed", range(5))
def test_four_sites_of_thirteen_are_connected_even_without_the_ring(seed: int) -> None:
    network = SyntheticNetwork(4, 13, seed)
    coordinates = exact_coordinates(network)
    listed = {}
    for one in range(network.count):
        measured = [
            Edge(network.peers[other], network.sample_s(one, other)) for other in range(network.count) if other != one
        ]
        listed[network.peers[one]] = peers(select_edges(network.peers[one], measured, coordinates, ()))
    site_of = dict(zip(network.peers, network.site_of, strict=True))
    joined = {
        (site_of[one], site_of[other]) for one, others in listed.items() for other in others if one in listed[other]
    }
    assert joined == {(one, other) for one in range(4) for other in range(4)}


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_change_what_is_listed(seed: int) -> None:
    network = SyntheticNetwork(4, 13, seed)
    rng = random.Random(seed)
    coordinates = exact_coordinates(network)
    known: tuple[Edge, ...] = ()
    changes = 0
    for _ in range(60):
        measured = [
            Edge(network.peers[other], network.rtt_s(0, other) * rng.uniform(0.9, 1.1), rng.uniform(90, 110))
            for other in range(1, network.count)
        ]
        shaken = {
            peer: Coordinate(
                tuple(each + rng.uniform(-3e-3, 3e-3) for each in place.vector), place.height_s, place.error
            )
            for peer, place in coordinates.items()
        }
        found = select_edges(network.peers[0], measured, shaken, network.peers, known)
        changes += set(found) != set(known)
        known = found
    assert changes <= 3, "the first selection, and what settles after it"


def test_a_challenger_must_be_clearly_nearer_and_a_figure_clearly_wrong() -> None:
    only_near = EdgeSettings(nearest=1, spread=0)
    # Within one band the lower hash of the pair wins, at both ends alike: here that is the listed one.
    old, new = sorted((1, 2), key=lambda number: pair_hash(OWN, peer_of(number)))
    listed = (edge(old, 20.0, 100.0),)

    def chosen(*measured: Edge) -> tuple[Edge, ...]:
        return select_edges(OWN, measured, {}, (), listed, only_near)

    assert chosen(edge(old, 22.0, 120.0), edge(new, 16.0)) == listed
    assert chosen(edge(old, 22.0), edge(new, 9.0)) == (edge(new, 9.0),)
    assert chosen(edge(old, 40.0, 20.0)) == (edge(old, 40.0, 20.0),)
    assert chosen(edge(new, 300.0)) == (edge(new, 300.0),), "who is gone is not kept"


def test_up_to_a_full_mesh_everybody_is_wanted_beyond_it_a_stable_two_dozen() -> None:
    everybody = [peer_of(number) for number in range(limits.LINKS_MAX + 1)]
    wanted = links_to_keep(OWN, everybody, (), {})
    assert sorted(wanted) == sorted(everybody[1:])
    many = [peer_of(number) for number in range(1_000)]
    wanted = links_to_keep(OWN, many, [edge(5, 1.0)], {})
    assert len(wanted) == len(set(wanted)) == limits.LINKS_WANTED
    assert wanted[:2] == ring_neighbours(OWN, many)
    assert peer_of(5) in wanted
    fewer = [peer for peer in many if peer != wanted[-1]]
    assert set(wanted) - set(links_to_keep(OWN, fewer, [edge(5, 1.0)], {})) == {wanted[-1]}, (
        "only who is gone is replaced"
    )


def test_a_thousand_who_want_two_dozen_each_have_no_more_than_they_may_and_are_connected() -> None:
    many = [peer_of(number) for number in range(400)]
    links: dict[PeerId, set[PeerId]] = {peer: set() for peer in many}
    for peer in many:
        for other in links_to_keep(peer, many, (), {}):
            links[peer].add(other)
            links[other].add(peer)
    assert max(len(each) for each in links.values()) <= limits.LINKS_MAX
    reached, new = {many[0]}, {many[0]}
    while new:
        new = {other for peer in new for other in links[peer]} - reached
        reached |= new
    assert len(reached) == 400
