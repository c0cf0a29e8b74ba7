"""The formulas of joining: back-off, locality, rate."""

from __future__ import annotations

import random

import pytest

from p2pcompute.membership.backoff import backoff_s, backoff_window_s
from p2pcompute.membership.incarnation import latest_incarnation
from p2pcompute.membership.locality import locality, parse_networks
from p2pcompute.membership.machine import earliest
from p2pcompute.membership.rate import RateTable, TokenBucket


@pytest.mark.parametrize(
    ("failures", "window_s"),
    [(0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (9, 256), (10, 300), (11, 300), (100_000, 300)],
)
def test_windows_double_up_to_the_cap(failures: int, window_s: float) -> None:
    assert backoff_window_s(failures, 1.0, 300.0) == window_s


@pytest.mark.parametrize("failures", [1, 2, 5, 20])
def test_waits_fill_their_window_and_are_never_too_short(failures: int) -> None:
    rng = random.Random(1)
    window_s = backoff_window_s(failures, 1.0, 300.0)
    waits = [backoff_s(failures, 1.0, 300.0, rng) for _ in range(2_000)]
    assert 0.5 <= min(waits) < 0.5 + window_s / 100
    assert window_s * 0.99 < max(waits) <= window_s


def test_a_cap_below_the_base_is_kept() -> None:
    assert backoff_s(5, 1.0, 0.1, random.Random(1)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("host", "rank"),
    [
        ("127.0.0.1", 0),
        ("::1", 0),
        ("192.168.7.9", 1),
        ("fd00::9", 1),
        ("169.254.3.3", 2),
        ("fe80::1%eth0", 2),
        ("192.168.8.9", 3),
        ("10.1.2.3", 3),
        ("8.8.8.8", 4),
        ("2a00:1450::1", 4),
        ("example.org", 5),
        ("", 5),
    ],
)
def test_nearer_addresses_come_first(host: str, rank: int) -> None:
    assert locality(host, parse_networks(["192.168.7.1/24", "fd00::1/64", "nonsense"])) == rank


def test_a_bucket_lets_its_rate_through_and_not_more() -> None:
    bucket = TokenBucket(5, 5, 0.0)
    assert [bucket.take(0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [bucket.take(0.2) for _ in range(2)] == [True, False]
    assert sum(bucket.take(10 + step / 100) for step in range(100)) in (9, 10)


def test_a_full_table_refuses_strangers_and_forgets_who_is_quiet() -> None:
    table: RateTable[str] = RateTable(2)
    assert table.take("a", 1, 0.0)
    assert table.take("b", 1, 0.0)
    assert not table.take("c", 1, 0.5), "nobody is washed out by a third"
    assert table.take("c", 1, 2.0), "full buckets say nothing and are forgotten"
    assert len(table) == 1


def test_earliest() -> None:
    assert earliest(None, 3.0, 2.0) == 2.0
    assert earliest(None) is None


@pytest.mark.parametrize(
    ("wall", "ahead", "latest"),
    [
        (1_000.0, [], 1_300_000),
        (1_000.0, [-100.0, -50.0], 1_300_000),
        (1_000.0, [4_000.0, 5_000.0, 6_000.0], 6_300_000),
        (1_000.0, [10.0**12, -100.0, -50.0], 1_300_000),
    ],
)
def test_incarnations_may_be_five_minutes_ahead_of_the_clocks_around(
    wall: float, ahead: list[float], latest: float
) -> None:
    assert latest_incarnation(wall, ahead, 300.0) == latest
