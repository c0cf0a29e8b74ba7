"""Which connection stays, as a table; and both sides' judgements side by side."""

from __future__ import annotations

import itertools

import pytest

from p2pcompute.model.ids import PeerId
from p2pcompute.net.link_choice import Rival, Verdict, least_useful, verdict, worth_proposing

TAKE, REFUSE, WAIT = Verdict.TAKE, Verdict.REFUSE, Verdict.WAIT


def rival(relayed: bool = False, dialled: bool = True, same: bool = True, fresh: bool = True) -> Rival:
    return Rival(relayed, dialled, same, fresh)


@pytest.mark.parametrize(
    ("relayed", "is_lower", "pending", "used", "expected"),
    [
        # Nothing is there.
        (False, True, None, None, TAKE),
        (True, False, None, None, TAKE),
        # Both have proposed as good ones: the lower id's stays.
        (False, True, rival(), None, REFUSE),
        (False, False, rival(), None, TAKE),
        (True, True, rival(relayed=True), None, REFUSE),
        (True, False, rival(relayed=True), None, TAKE),
        # A direct one stays whoever dialled it; it waits for the answer to a relayed one.
        (True, True, rival(), None, REFUSE),
        (True, False, rival(), None, REFUSE),
        (False, True, rival(relayed=True), None, WAIT),
        (False, False, rival(relayed=True), None, WAIT),
        # The other side has started anew: what was proposed to its predecessor counts for nothing.
        (True, True, rival(same=False), None, TAKE),
        # News of the link that there is may have crossed the proposal, for as long as a handshake lasts.
        (False, True, None, rival(), REFUSE),
        (False, True, None, rival(fresh=False), TAKE),
        (False, True, None, rival(dialled=False), TAKE),
        (False, False, None, rival(), TAKE),
        # Who proposes a relayed one has lost the direct one.
        (True, False, None, rival(dialled=False), TAKE),
        (True, True, None, rival(), TAKE),
        (True, True, None, rival(same=False), TAKE),
        # A direct one replaces a relayed one.
        (False, True, None, rival(relayed=True), TAKE),
        (False, False, None, rival(relayed=True, dialled=False), TAKE),
        # Both want to replace a relayed one at once.
        (False, True, rival(), rival(relayed=True), REFUSE),
        (False, False, rival(), rival(relayed=True), TAKE),
    ],
)
def test_what_becomes_of_a_proposal(
    relayed: bool, is_lower: bool, pending: Rival | None, used: Rival | None, expected: Verdict
) -> None:
    assert verdict(relayed, is_lower, pending, used) is expected


@pytest.mark.parametrize(("lower_relayed", "higher_relayed"), list(itertools.product([False, True], repeat=2)))
def test_two_proposals_that_cross_never_both_stay_or_both_go(lower_relayed: bool, higher_relayed: bool) -> None:
    by_lower = verdict(higher_relayed, True, rival(relayed=lower_relayed), None)
    by_higher = verdict(lower_relayed, False, rival(relayed=higher_relayed), None)
    # WAIT becomes TAKE when the own one is refused, which the other side does.
    assert {by_lower, by_higher} in ({TAKE, REFUSE}, {WAIT, REFUSE})


def test_only_what_is_better_is_proposed_beside_a_link() -> None:
    assert worth_proposing(True, None)
    assert worth_proposing(False, rival(relayed=True))
    assert not worth_proposing(True, rival(relayed=True))
    assert not worth_proposing(False, rival())
    assert not worth_proposing(True, rival())
    assert worth_proposing(True, rival(same=False))


def test_the_least_useful_goes_first_and_what_is_in_use_never() -> None:
    def of(*worths: float | None) -> int | None:
        return least_useful((PeerId(bytes([9 - place])), place, worth) for place, worth in enumerate(worths))

    assert of() is None
    assert of(None, None) is None
    assert of(None, 3.0, 1.0, None) == 2
    assert of(1.0, 1.0, 2.0) == 1  # of the lower id
