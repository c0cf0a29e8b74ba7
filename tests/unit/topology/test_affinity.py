"""From links to weights: the formula, which links count, where estimates are let in, and what is noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.topology.affinity import Adjacency, adjacency, affinity, changed_by_more_than_noise
from p2pcompute.topology.graph import components, dense_weights


@dataclass(frozen=True)
class Way:
    """A link as the adjacency takes it."""

    a: PeerId
    b: PeerId
    rtt_s: float
    bandwidth_mbps: float | None = None


def peer(number: int) -> PeerId:
    return PeerId(bytes([number]) * 32)


def way(a: int, b: int, rtt_ms: float, rate: float | None = None) -> Way:
    return Way(peer(a), peer(b), rtt_ms / 1000, rate)


PEERS = [peer(number) for number in range(6)]
CHAIN = [way(0, 1, 1), way(1, 2, 4), way(3, 4, 1), way(4, 5, 9)]


@pytest.mark.parametrize(
    ("rtt_ms", "rate", "weight"),
    [
        (0.0, None, 1.0),
        (1.0, None, 0.5),
        (9.0, None, 0.1),
        (99.0, None, 0.01),
        (9.0, 100.0, 0.1),
        (9.0, 400.0, 0.2),
        (9.0, 25.0, 0.05),
        (9.0, 40_000.0, 0.2),
        (9.0, 0.0, 0.05),
    ],
)
def test_the_formula(rtt_ms: float, rate: float | None, weight: float) -> None:
    assert affinity(rtt_ms / 1000, rate) == pytest.approx(weight)


@pytest.mark.parametrize(
    "wrong", [(-1.0, None), (float("nan"), None), (float("inf"), None), (0.1, -1.0), (0.1, float("nan"))]
)
def test_what_is_no_measurement_is_refused(wrong: tuple[float, float | None]) -> None:
    with pytest.raises(UsageError, match="finite and not negative"):
        affinity(*wrong)


def test_nodes_are_in_the_order_of_ids_whatever_comes_first() -> None:
    one = adjacency(PEERS, CHAIN)
    other = adjacency(reversed(PEERS), [Way(each.b, each.a, each.rtt_s) for each in reversed(CHAIN)])
    assert one.peers == other.peers == tuple(PEERS)
    assert np.array_equal(dense_weights(one.graph), dense_weights(other.graph))
    assert dense_weights(one.graph)[0, 1] == pytest.approx(0.5)


def test_of_two_links_of_a_pair_the_weaker_counts_and_strangers_do_not() -> None:
    found = adjacency(PEERS[:2], [way(0, 1, 1), way(1, 0, 4), way(0, 5, 1), way(1, 1, 0)])
    assert dense_weights(found.graph)[0, 1] == pytest.approx(0.2)
    assert found.graph.weight.size == 1


def test_estimates_join_pieces_and_nothing_else() -> None:
    guesses = [way(0, 1, 0.1), way(0, 2, 0.1), way(2, 3, 50), way(0, 3, 60), way(1, 5, 0.5)]
    found = adjacency(PEERS, CHAIN, guesses)
    assert not components(found.graph).any()
    (joint,) = np.flatnonzero(found.estimated)
    assert (found.graph.one[joint], found.graph.other[joint]) == (1, 5), "the strongest that joins two pieces"
    measured = found.graph.weight[~found.estimated]
    assert found.graph.weight[joint] < measured.min(), "weaker than anything measured"
    assert adjacency(PEERS, CHAIN).estimated.tolist() == [False] * 4
    assert not adjacency(PEERS[:3], CHAIN, guesses).estimated.any(), "not needed"


def test_who_has_no_link_at_all_is_there() -> None:
    found = adjacency(PEERS, [], [way(number, number + 1, 10.0 + number) for number in range(4)])
    assert found.graph.size == 6
    assert found.estimated.tolist() == [True] * 4
    assert components(found.graph).tolist() == [0, 0, 0, 0, 0, 5]


def shaken(factor: float, *, only: int | None = None) -> Adjacency:
    changed = [
        Way(each.a, each.b, each.rtt_s * (factor if only in (None, number) else 1.0))
        for number, each in enumerate(CHAIN)
    ]
    return adjacency(PEERS, changed)


def test_noise_is_not_worth_an_analysis_and_news_are() -> None:
    before = adjacency(PEERS, CHAIN)
    assert not changed_by_more_than_noise(before, adjacency(PEERS, CHAIN))
    assert not changed_by_more_than_noise(before, shaken(1.02))
    assert changed_by_more_than_noise(before, shaken(1.5)), "everything a little"
    assert changed_by_more_than_noise(before, shaken(8, only=3)), "one peer's only link"
    assert changed_by_more_than_noise(before, adjacency(PEERS, CHAIN[:3]))
    assert changed_by_more_than_noise(before, adjacency(PEERS[:5], CHAIN))


def test_one_weak_link_of_a_peer_in_a_large_network_is_news_for_that_peer() -> None:
    many = [PeerId(number.to_bytes(32, "big")) for number in range(300)]
    ring = [Way(many[number], many[number - 1], 0.001) for number in range(299)]
    outer = Way(many[0], many[299], 0.1)
    before = adjacency(many, [*ring, outer])
    assert changed_by_more_than_noise(before, adjacency(many, [*ring, Way(many[0], many[299], 0.2)]))
    assert not changed_by_more_than_noise(before, adjacency(many, [*ring, Way(many[0], many[299], 0.11)]))
