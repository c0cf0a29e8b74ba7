"""Who sends nonsense is told when it is more than accidents explain, and with how much it was."""

from __future__ import annotations

import itertools

from p2pcompute.model import limits
from p2pcompute.net.nonsense import Nonsense

_TOLERATED = int(limits.NONSENSE_TOLERATED)


def test_accidents_are_no_news() -> None:
    nonsense = Nonsense()
    for number in range(1_000):  # five a second, for ever: what a bad network duplicates
        assert nonsense.count("10.0.0.1", number * 0.2) == 0
    for _ in range(_TOLERATED - 1):  # a burst after a restart
        assert nonsense.count("10.0.0.2", 500.0) == 0


def test_a_flood_is_told_at_once_and_then_now_and_then_with_its_size() -> None:
    nonsense = Nonsense()
    told = [(at, times) for number in range(3_000) if (times := nonsense.count("10.0.0.1", at := number * 0.01))]
    assert _TOLERATED < told[0][1] < 2 * _TOLERATED
    assert [round(later[0] - sooner[0]) for sooner, later in itertools.pairwise(told)] == [10, 10]
    assert told[1][1] == 1_000


def test_one_flooder_hides_no_other_and_addresses_without_end_cost_bounded_memory() -> None:
    nonsense = Nonsense()
    for number in range(3 * limits.ADDRESSES_COUNTED_MAX):
        nonsense.count(f"10.0.{number // 256}.{number % 256}", 1.0)
    assert len(nonsense) == limits.ADDRESSES_COUNTED_MAX
    assert any(nonsense.count("10.9.9.9", 1.0) for _ in range(_TOLERATED + 1))
