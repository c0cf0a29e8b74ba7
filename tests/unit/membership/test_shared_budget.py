"""What all peers' records leave for one more: laws for any history, and the figures of the formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.membership.shared_budget import SharedBudget, SharedBudgetSettings
from p2pcompute.membership.traffic import update_period_s

SETTINGS = SharedBudgetSettings()


def after(peers: int, renewed: int, seconds: float = 0.0, record_bytes: int = 1_000) -> SharedBudget:
    """The account of who has heard so many renewed records at once, and then nothing for `seconds`."""
    budget = SharedBudget()
    budget.look(peers, record_bytes, 0, 50.0)
    budget.look(peers, record_bytes, renewed, 50.0)
    budget.look(peers, record_bytes, renewed, 50.0 + seconds)
    return budget


@pytest.mark.parametrize(
    ("peers", "renewed", "seconds", "period_s"),
    [
        # A tenth of a second for ten peers: the look, every two seconds, is what they wait for.
        (10, 0, 0.0, 0.1),
        (100, 0, 0.0, 1.0),
        (300, 0, 0.0, 8.23),
        (1_000, 0, 0.0, 91.4),
        (1_000, 200, 0.0, 168.4),
        # The credit is spent: half of the share in the budget, and all of it where the others keep to theirs.
        (1_000, 10_000, 0.0, 2_133.3),
        (1_000, 10_000, 40.0, 1_066.7),
        (1_000, 10_000, 500.0, 91.4),
    ],
)
def test_the_time_between_two_records(peers: int, renewed: int, seconds: float, period_s: float) -> None:
    assert 1.0 / after(peers, renewed, seconds).rate_per_s == pytest.approx(period_s, rel=0.01)


@given(
    st.integers(1, 5_000),
    st.integers(200, 1_100),
    st.lists(st.tuples(st.floats(0.0, 600.0), st.integers(0, 3_000), st.booleans()), max_size=30),
)
def test_whatever_was_heard_all_together_stay_between_half_the_budget_and_the_credit(
    peers: int, record_bytes: int, heard: list[tuple[float, int, bool]]
) -> None:
    budget, now, renewed = SharedBudget(), 0.0, 0
    for pause_s, count, is_own in heard:
        now, renewed = now + pause_s, renewed + count
        budget.look(peers, record_bytes, renewed, now)
        if is_own:
            before = budget.rate_per_s
            budget.signed()
            assert budget.rate_per_s <= before
        budget.check_invariants()
        cost = record_bytes * SETTINGS.copies
        all_bytes_per_s = peers * budget.rate_per_s * cost
        assert all_bytes_per_s >= 0.999 * SETTINGS.budget_bytes_per_s / 2
        spending_s = SETTINGS.spending_s_per_100 * peers / 100
        assert all_bytes_per_s <= max(SETTINGS.credit_bytes_max / spending_s, SETTINGS.budget_bytes_per_s / 2) * 1.001


@given(st.integers(2, 5_000), st.integers(200, 1_100))
def test_where_all_spend_the_budget_the_rate_is_that_of_the_formula(peers: int, record_bytes: int) -> None:
    spending_s = SETTINGS.spending_s_per_100 * peers / 100
    cost = record_bytes * SETTINGS.copies
    steady = SETTINGS.budget_bytes_per_s * spending_s
    budget = SharedBudget()
    budget.look(peers, record_bytes, 0, 0.0)
    booked = round((budget.credit_bytes - steady) / cost)
    if booked <= 0:
        return  # larger networks never come to it: the rate is that of the whole credit, or half the budget's
    budget.look(peers, record_bytes, booked, 0.0)
    share_s = peers * cost / SETTINGS.budget_bytes_per_s
    assert 1.0 / budget.rate_per_s == pytest.approx(share_s, rel=cost / steady)
    period_s = update_period_s(peers, record_bytes, SETTINGS.copies, SETTINGS.budget_bytes_per_s)
    assert period_s == pytest.approx(max(30.0, share_s))


def test_a_network_that_shrinks_or_grows_keeps_its_account() -> None:
    budget = after(1_000, 10_000)
    budget.look(10, 1_000, 10_000, 51.0)
    assert 1.0 / budget.rate_per_s < 30.0
    young = SharedBudget()
    young.look(1, 900, 0, 0.0)
    young.signed()
    young.look(1_000, 900, 0, 1.0)
    assert young.left_bytes == pytest.approx(SETTINGS.credit_bytes_max, rel=0.01), "what was not known was not spent"
