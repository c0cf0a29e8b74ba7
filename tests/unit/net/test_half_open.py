"""Who goes when there are too many half-open connections: the oldest one of whoever holds most."""

from __future__ import annotations

import random

import pytest

from p2pcompute.net.half_open import HalfOpen


def test_the_oldest_of_the_largest_source_goes() -> None:
    table: HalfOpen[str] = HalfOpen(4)
    assert [table.add(each, each[0]) for each in ("a1", "b1", "b2", "c1")] == [None] * 4
    assert table.add("d1", "d") == "b1"
    assert "b1" not in table
    assert (len(table), table.count("b"), table.count("d")) == (4, 1, 1)
    # All hold one: the newcomer's own source is the largest with it.
    assert table.add("d2", "d") == "d1"
    # All hold one again: the oldest there is.
    assert table.add("e1", "e") == "a1"
    table.check_invariants()


def test_what_has_gone_makes_room() -> None:
    table: HalfOpen[int] = HalfOpen(2)
    table.add(1, "a")
    table.add(2, "b")
    table.drop(1)
    table.drop(1)
    table.drop(7)
    assert table.add(3, "c") is None
    assert table.count("a") == 0
    table.check_invariants()


@pytest.mark.parametrize("seed", range(20))
def test_a_handshake_under_way_outlives_any_flood_of_one_source(seed: int) -> None:
    rng = random.Random(seed)
    table: HalfOpen[tuple[str, int]] = HalfOpen(8)
    honest: dict[tuple[str, int], None] = {}
    for number in range(500):
        if rng.random() < 0.1:
            connection = (f"honest {number}", number)
            honest[connection] = None
            if len(honest) > 3:
                done = next(iter(honest))
                del honest[done]
                table.drop(done)
        else:
            connection = ("flood", number)
        assert (table.add(connection, connection[0]) or connection)[0] in ("flood", connection[0])
        assert all(each in table for each in honest)
        table.check_invariants()
