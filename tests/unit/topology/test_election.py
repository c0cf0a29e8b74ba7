"""Elections: formula, ranks, ties, incumbents, agreement."""

from __future__ import annotations

import numpy as np
import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.topology.election import Candidate, elect, election_scores, fiedler_scores, stability


def peer(number: int) -> PeerId:
    return PeerId(bytes([number]) * 32)


def candidates(*rows: tuple[float, float], leads: tuple[int, ...] = ()) -> list[Candidate]:
    return [Candidate(peer(place), *row, place in leads) for place, row in enumerate(rows)]


ONE = np.zeros(3, dtype=np.int64)


def test_the_score_is_the_product() -> None:
    found = election_scores(
        candidates((50, 1.0), (100, 0.5), (100, 1.0), (80, 1.0)), np.array([0, 0, 0, 1]), np.array([0.4, 0.2, 0.1, 0.3])
    )
    assert found.tolist() == [0.5, 0.25, 0.25, 0.8]


def test_the_best_leads_and_the_next_stand_in() -> None:
    shares = np.array([0.1, 0.5, 0.2, 0.05, 0.15])
    (found,) = elect(candidates(*[(60.0, 1.0)] * 5), np.zeros(5, dtype=np.int64), shares)
    assert found.peer == peer(1)
    assert found.stand_ins == (peer(2), peer(4), peer(0))
    assert len(found.stand_ins) == limits.STAND_INS
    assert found.score == 0.6


def test_each_community_has_its_own() -> None:
    shares = np.array([0.4, 0.1, 0.2, 0.3])
    found = elect(candidates(*[(60.0, 1.0)] * 4), np.array([0, 0, 1, 1]), shares)
    assert [(each.community, each.peer, each.stand_ins) for each in found] == [
        (0, peer(0), (peer(1),)),
        (1, peer(3), (peer(2),)),
    ]
    assert elect([], np.zeros(0, dtype=np.int64), np.zeros(0)) == ()


def test_ties_go_to_merit_then_to_the_lower_id() -> None:
    no_gateways = np.array([1.0, 0.0, 0.0])
    (found,) = elect(candidates((10, 1.0), (20, 1.0), (30, 1.0)), ONE, no_gateways)
    assert (found.peer, found.stand_ins) == (peer(0), (peer(2), peer(1)))
    (found,) = elect(candidates(*[(50.0, 1.0)] * 3), ONE, np.full(3, 1 / 3))
    assert (found.peer, found.stand_ins) == (peer(0), (peer(1), peer(2)))


def test_what_differs_by_rounding_is_a_tie() -> None:
    """The last digits depend on the build of the linear algebra: they may not decide."""
    for error in (0.0, 1e-9, -1e-9):
        (found,) = elect(candidates(*[(50.0, 1.0)] * 3), ONE, np.array([0.3, 0.3 + error, 0.3 - error]))
        assert found.peer == peer(0)


def test_nobody_with_a_share_means_everybody_has_the_same() -> None:
    (found,) = elect(candidates((10, 1.0), (90, 1.0), (90, 0.5)), ONE, np.zeros(3))
    assert (found.peer, found.score) == (peer(1), 0.9)


@pytest.mark.parametrize(("challenger", "winner"), [(0.55, 0), (0.599, 0), (0.61, 1), (1.0, 1)])
def test_the_incumbent_stays_unless_beaten_by_a_fifth(challenger: float, winner: int) -> None:
    rows = candidates((50, 1.0), (100 * challenger, 1.0), (20, 1.0), leads=(0,))
    (found,) = elect(rows, ONE, np.full(3, 1 / 3))
    assert found.peer == peer(winner)
    assert peer(1 - winner) == found.stand_ins[0]


def test_of_two_who_claim_the_better_stays() -> None:
    """After two networks have merged."""
    rows = candidates((50, 1.0), (55, 1.0), (60, 1.0), leads=(0, 1))
    (found,) = elect(rows, ONE, np.full(3, 1 / 3))
    assert found.peer == peer(1)


def test_who_lends_nothing_leads_only_where_nobody_does() -> None:
    (found,) = elect(candidates((0, 1.0), (1, 0.1), (0, 1.0), leads=(0,)), ONE, np.array([0.9, 0.05, 0.05]))
    assert found.peer == peer(1)
    (found,) = elect(candidates(*[(0.0, 1.0)] * 3), ONE, np.full(3, 1 / 3))
    assert found.peer == peer(0)


@pytest.mark.parametrize(
    ("up_s", "failures", "value"),
    [(0, 0, 0.5), (-5, 0, 0.5), (3_599, 0, 0.5), (3_600, 0, 0.625), (3 * 3_600, 0, 0.75), (15 * 3_600, 0, 1.0),
     (1e7, 0, 1.0), (1e7, 1, 0.5), (1e7, 3, 0.25), (0, 1, 0.25)],
)  # fmt: skip
def test_stability(up_s: float, failures: int, value: float) -> None:
    assert stability(up_s, failures) == pytest.approx(value)


def test_clocks_that_differ_by_seconds_agree_most_of_a_day() -> None:
    differing = sum(stability(second) != stability(second + 5) for second in range(0, 86_400, 5))
    assert differing <= 5


def test_scores_for_people() -> None:
    assert fiedler_scores(np.array([0.1, 0.4, 0.0])) == pytest.approx(np.array([0.25, 1.0, 0.0]))
    assert fiedler_scores(np.zeros(2)).tolist() == [0.0, 0.0]
    assert fiedler_scores(np.zeros(0)).size == 0


def test_rows_must_belong_together() -> None:
    with pytest.raises(UsageError, match="3 candidates, 3 labels and 2 shares"):
        elect(candidates(*[(0.0, 1.0)] * 3), ONE, np.zeros(2))
