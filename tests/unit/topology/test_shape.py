"""The snapshot: what a node composes from membership's view, the same on every peer, steady, and drawable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from p2pcompute.membership.agreement import AgreedEdge, agreed_edges
from p2pcompute.model.peer import PeerStatus, PeerView
from p2pcompute.topology.affinity import changed_by_more_than_noise
from p2pcompute.topology.election import stability
from p2pcompute.topology.shape import NetworkShape, analyse, candidates_of, matched_communities, reelected
from tests.support.round_trips import SyntheticNetwork, exact_coordinates
from tests.support.sites import WALL_S, Sites, is_right, published, record_of, shape_of, sites, view_of


def same(one: NetworkShape, other: NetworkShape) -> bool:
    return (
        one.peers == other.peers
        and np.array_equal(one.labels, other.labels)
        and np.allclose(one.shares, other.shares)
        and one.key_nodes == other.key_nodes
        and np.isclose(one.lambda2, other.lambda2)
    )


def test_every_peer_with_the_same_records_elects_the_same() -> None:
    records = published(sites(4, 8, 1))
    first = shape_of(view_of(records, 0))
    for own in (3, 17, 31):
        other = shape_of(view_of(records, own))
        assert same(first, other)
        assert np.array_equal(first.drawing, other.drawing)
    assert sum(first.is_key_node(peer) for peer in first.peers) == 4


def test_what_a_snapshot_tells() -> None:
    world = sites(4, 8, 2, slow=True)
    shape = shape_of(view_of(published(world)))
    assert is_right(shape.labels, world.site, but=world.slow)
    assert shape.shares.sum() == pytest.approx(1.0)
    assert shape.scores.max() == 1.0
    assert shape.components == 1
    assert shape.lambda2 > 0
    slow = world.peers[world.slow[0]]
    assert not shape.is_key_node(slow)
    peer = world.peers[5]
    label = shape.community_of(peer)
    assert label is not None
    assert peer in shape.members(label)
    key_node = shape.key_node_of(peer)
    assert key_node is not None
    assert key_node.community == label
    assert set(key_node.stand_ins) <= set(shape.members(label)) - {key_node.peer}
    stranger = sites(1, 3, 99).peers[0]
    assert shape.community_of(stranger) is None
    assert shape.key_node_of(stranger) is None
    assert not shape.is_key_node(stranger)


@pytest.mark.parametrize("slow", [False, True])
def test_key_nodes_are_near_the_best_that_could_be(slow: bool) -> None:
    lost = gain = 0.0
    for seed in range(4):
        world = sites(4, 20, seed, slow=slow)
        shape = shape_of(view_of(published(world)))
        for place in range(4):
            rows = np.setdiff1d(np.flatnonzero(world.site == place), world.slow)
            cost = world.rtt_ms[np.ix_(rows, world.site != place)].mean(axis=1)
            key_node = shape.key_node_of(world.peers[int(rows[0])])
            assert key_node is not None
            lost += cost[rows.tolist().index(world.peers.index(key_node.peer))] - cost.min()
            gain += cost.mean() - cost.min()
    assert lost < 0.15 * gain


def test_a_leader_stays_while_round_trips_shake() -> None:
    world = sites(4, 10, 2)
    first = shape_of(view_of(published(world, noise=0.1, seed=0)))
    leaders = [each.peer for each in first.key_nodes]
    kept = 0
    for seed in range(1, 6):
        shape = shape_of(view_of(published(world, noise=0.1, seed=seed)), first, leaders)
        assert np.array_equal(shape.labels, first.labels)
        kept += sum(shape.is_key_node(peer) for peer in leaders)
    assert kept >= 18, "of 20"


def test_the_last_snapshot_changes_nothing() -> None:
    world = sites(5, 20, 4)
    before = shape_of(view_of(published(world, noise=0.1, seed=1)))
    view = view_of(published(world, noise=0.1, seed=2))
    assert same(shape_of(view), shape_of(view, before))
    fewer = [record for record in published(world) if record.peer != world.peers[7]]
    assert same(shape_of(view_of(fewer)), shape_of(view_of(fewer), before))
    more = [*published(world), record_of(sites(1, 1, 77).peers[0])]
    assert same(shape_of(view_of(more)), shape_of(view_of(more), before))


def test_a_shape_of_hundreds_from_the_last_one() -> None:
    """Above the size where solvers become iterative, with newcomers and leavers."""
    rng = np.random.default_rng(1)
    per, count = 40, 15
    world = sites(count, per, 6)
    kept = rng.permutation(count * per)

    def of(rows: np.ndarray, previous: NetworkShape | None) -> NetworkShape:
        chosen = np.sort(rows)
        part = Sites(
            tuple(world.peers[row] for row in chosen),
            world.site[chosen],
            world.access_ms[chosen],
            world.rtt_ms[np.ix_(chosen, chosen)],
        )
        links = _nearby(part, rng_of=5)
        return analyse(candidates_of(view_of([record_of(peer) for peer in part.peers]), WALL_S), links, (), previous)

    before = of(kept[:560], None)
    cold, warm = of(kept[20:], None), of(kept[20:], before)
    assert len(cold.peers) == 580
    assert same(cold, warm) or np.allclose(cold.shares, warm.shares, atol=1e-4)
    assert warm.lambda2 == pytest.approx(cold.lambda2, rel=1e-3)
    assert np.array_equal(cold.labels, warm.labels)


def _nearby(world: Sites, rng_of: int) -> list[AgreedEdge]:
    rng = np.random.default_rng(rng_of)
    found = {}
    for row in range(len(world.peers)):
        mates = np.flatnonzero((world.site == world.site[row]) & (np.arange(len(world.peers)) != row))
        for other in (*rng.choice(mates, 5, replace=False), *rng.choice(len(world.peers), 4, replace=False)):
            if other != row:
                pair = (min(row, int(other)), max(row, int(other)))
                found[pair] = AgreedEdge(
                    world.peers[pair[0]], world.peers[pair[1]], float(world.rtt_ms[pair]) / 1000, None
                )
    return list(found.values())


def test_the_order_in_which_links_are_told_does_not_matter() -> None:
    world = sites(3, 8, 5)
    view = view_of(published(world))
    agreed, candidates = agreed_edges(view), candidates_of(view, WALL_S)
    assert same(analyse(candidates, agreed), analyse(candidates[::-1], agreed[::-1]))


def test_two_networks_that_do_not_know_the_way_to_each_other() -> None:
    here, there = sites(2, 8, 6), sites(2, 8, 7)
    shape = shape_of(view_of([*published(here), *published(there)]))
    assert shape.lambda2 == 0.0
    assert shape.components == 2
    assert len(shape.key_nodes) == 4
    assert np.isfinite(shape.drawing).all()
    assert np.abs(shape.drawing).max() <= 1.0 + 1e-9
    side = {shape.drawing[shape.row(peer), 0] < 0 for peer in here.peers}
    assert len(side) == 1, "components stand side by side"


def test_sites_without_a_common_edge_are_joined_by_estimates_that_elect_nobody() -> None:
    network = SyntheticNetwork(2, 8, 1)
    coordinates = exact_coordinates(network)
    world = sites(2, 8, 6)
    records = []
    for record in published(world):
        row = world.peers.index(record.peer)
        inside = tuple(edge for edge in record.edges if world.site[world.peers.index(edge.peer)] == world.site[row])
        spot = coordinates[network.peers[int(world.site[row]) * 8]]
        records.append(replace(record, edges=inside, coordinate=spot))
    shape = shape_of(view_of(records))
    assert shape.components == 1
    assert int(shape.adjacency.estimated.sum()) == 1
    assert is_right(shape.labels, world.site)
    assert shape.shares == pytest.approx(np.full(16, 1 / 16)), "nobody measured a way out"


def test_candidates_are_who_is_up_and_stays() -> None:
    records = [record_of(peer) for peer in sites(1, 6, 8).peers]
    view = view_of(records)
    statuses = [PeerStatus.SUSPECT, PeerStatus.DEAD, PeerStatus.LEFT, PeerStatus.ALIVE, PeerStatus.ALIVE]
    rows = [replace(row, status=status) for row, status in zip(view.entries, statuses, strict=True)]
    rows[3] = replace(rows[3], record=replace(rows[3].record, leaving=True))
    lender, idle = records[0].peer, rows[4].record.peer
    rows[4] = replace(rows[4], record=replace(rows[4].record, slots=0))
    found = candidates_of(PeerView(view.own, tuple(rows), 1), WALL_S, [lender], {lender: 1})
    assert [each.peer for each in found] == [lender, rows[0].record.peer, idle]
    assert found[0].leads
    assert found[0].capability > 0 == found[2].capability
    assert found[1].stability == stability(90_000.0) == 2 * found[0].stability


def test_capability_alone_needs_no_eigenvectors() -> None:
    world = sites(2, 8, 9)
    records = published(world)
    shape = shape_of(view_of(records))
    leader = shape.key_nodes[0]
    asleep = [replace(record, slots=0) if record.peer == leader.peer else record for record in records]
    again = reelected(shape, candidates_of(view_of(asleep), WALL_S))
    assert again.key_nodes[0].peer == leader.stand_ins[0]
    assert again.key_nodes[1] == shape.key_nodes[1]
    assert again.labels is shape.labels
    assert again.community_of(leader.peer) == 0


def test_communities_are_matched_by_who_is_in_them() -> None:
    world = sites(3, 8, 10)
    records = published(world)
    before = shape_of(view_of(records))
    first = before.members(0)
    left = [record for record in records if record.peer not in first]
    after = shape_of(view_of(left))
    assert matched_communities(before, after) == {0: 1, 1: 2}
    assert matched_communities(after, before) == {1: 0, 2: 1}
    assert changed_by_more_than_noise(before.adjacency, after.adjacency)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hardly_anybody(count: int) -> None:
    shape = shape_of(view_of(published(sites(1, count, 11))))
    assert shape.labels.tolist() == [0] * count
    assert shape.key_nodes[0].peer == shape.peers[0]
    assert shape.shares == pytest.approx(np.full(count, 1 / count))
    assert shape.drawing.shape == (count, 2)
    assert np.isfinite(shape.drawing).all()


def test_nobody_at_all() -> None:
    shape = analyse((), ())
    assert shape.peers == ()
    assert shape.key_nodes == ()
