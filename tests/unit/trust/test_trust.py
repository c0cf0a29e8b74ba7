"""Tiers and caps: the tables, and laws over all of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.jobs.fairness import URGENT_PRIORITY, limit_of
from p2pcompute.model.engine import Demands, Engine
from p2pcompute.model.ids import InvitationId, PeerId
from p2pcompute.model.peer import Isolation, Role
from p2pcompute.trust.caps import Level, level_of, part_max, priority_max, score_before_credit
from p2pcompute.trust.tiers import Tier, tier_of, why_refused

ME, OTHER = PeerId(b"m" * 32), PeerId(b"o" * 32)
INVITED, NAMED = InvitationId(b"i" * 32), InvitationId(b"n" * 32)
NOTHING = Demands()
SUBMIT = frozenset({Role.SUBMIT, Role.COMPUTE})


@pytest.mark.parametrize(
    ("peer", "roles", "invitation", "is_open", "trusted", "tier"),
    [
        (ME, frozenset(), None, False, (), Tier.OWN),
        (ME, frozenset(), None, True, (), Tier.OWN),
        (OTHER, SUBMIT, INVITED, False, (), Tier.MEMBER),
        (OTHER, frozenset({Role.ADMIN}), INVITED, False, (), Tier.TRUSTED),
        (OTHER, frozenset({Role.COMPUTE}), INVITED, False, (), None),
        (OTHER, frozenset(), INVITED, False, (), None),
        (OTHER, SUBMIT, INVITED, False, (OTHER,), Tier.TRUSTED),
        (OTHER, SUBMIT, NAMED, False, (NAMED,), Tier.TRUSTED),
        (OTHER, frozenset({Role.OBSERVE}), NAMED, False, (NAMED, OTHER), None),
        (OTHER, frozenset(), INVITED, True, (), Tier.OPEN),
        (OTHER, frozenset({Role.ADMIN}), INVITED, True, (), Tier.OPEN),
        (OTHER, frozenset(), NAMED, True, (NAMED,), Tier.OPEN),
        (OTHER, frozenset(), NAMED, True, (OTHER,), Tier.TRUSTED),
    ],
)
def test_tiers(
    peer: PeerId,
    roles: frozenset[Role],
    invitation: InvitationId | None,
    is_open: bool,
    trusted: tuple[bytes, ...],
    tier: Tier | None,
) -> None:
    assert tier_of(peer, roles, invitation, own=ME, is_open=is_open, trusted=trusted) is tier


@pytest.mark.parametrize(
    ("tier", "allowed"),
    [
        (Tier.OPEN, {Engine.WASM, Engine.WASM_PYTHON}),
        (Tier.MEMBER, {Engine.WASM, Engine.WASM_PYTHON, Engine.PYTHON}),
        (Tier.TRUSTED, set(Engine)),
        (Tier.OWN, set(Engine)),
    ],
)
def test_engines_by_tier(tier: Tier, allowed: set[Engine]) -> None:
    found = {engine for engine in Engine if why_refused(tier, engine, NOTHING, Isolation.SANDBOX, None) is None}
    assert found == allowed


def test_grants_are_for_the_trusted() -> None:
    asks = Demands(None, ("network", "folder:data"))
    for tier, may in ((Tier.OPEN, False), (Tier.MEMBER, False), (Tier.TRUSTED, True), (Tier.OWN, True)):
        assert (why_refused(tier, Engine.WASM, asks, Isolation.WASM, None) is None) is may
    text = why_refused(Tier.MEMBER, Engine.PYTHON, asks, Isolation.SANDBOX, None)
    assert text == (
        "the program needs folder:data, network: that is for peers that the owner of this peer trusts, and the submitter is a member of the "
        "network"
    )
    text = why_refused(Tier.OPEN, Engine.PYTHON, NOTHING, Isolation.SANDBOX, None)
    assert text == "the engine python is for members of a network here, and the submitter is anybody of an open network"


def test_the_owner_says_how_well_others_are_held() -> None:
    for tier in Tier:
        refused = why_refused(tier, Engine.WASM, NOTHING, Isolation.PROCESS, Isolation.SANDBOX)
        assert (refused is None) is (tier is Tier.OWN)
    assert why_refused(Tier.MEMBER, Engine.PYTHON, NOTHING, Isolation.SANDBOX, Isolation.RESTRICTED) is None


def test_a_higher_tier_may_do_whatever_a_lower_one_may() -> None:
    grants = (NOTHING, Demands(None, ("gpu",)))
    for lower, higher in itertools.pairwise(Tier):
        assert lower.rank < higher.rank
        for engine, demands in itertools.product(Engine, grants):
            if why_refused(lower, engine, demands, Isolation.PROCESS, None) is None:
                assert why_refused(higher, engine, demands, Isolation.PROCESS, None) is None


@pytest.mark.parametrize(
    ("score", "level", "part", "unheld", "priority"),
    [
        (1e9, Level.HIGH, 1.0, 1.0, 9),
        (100.0, Level.HIGH, 1.0, 1.0, 9),
        (99.9, Level.MEDIUM, 0.8, 0.8, 7),
        (50.0, Level.MEDIUM, 0.8, 0.8, 7),
        (49.9, Level.LOW, 0.5, 0.3, 2),
        (-5.0, Level.LOW, 0.5, 0.3, 2),
        (float("nan"), Level.LOW, 0.5, 0.3, 2),
    ],
)
def test_levels(score: float, level: Level, part: float, unheld: float, priority: int) -> None:
    assert level_of(score) is level
    assert part_max(level, Isolation.SANDBOX) == part_max(level, Isolation.WASM) == part
    assert part_max(level, Isolation.RESTRICTED) == part_max(level, Isolation.PROCESS) == unheld
    assert priority_max(level, 9) == priority
    assert priority_max(level, 0) == 0
    assert (priority_max(level, 9) >= URGENT_PRIORITY) is (level is Level.HIGH), "kept slots are for high trust"


def test_before_there_is_a_ledger() -> None:
    assert level_of(score_before_credit(Tier.MEMBER)) is Level.HIGH
    assert level_of(score_before_credit(Tier.OPEN)) is Level.MEDIUM


@given(st.integers(0, 4096), st.sampled_from([1.0, 0.8, 0.5, 0.3]))
def test_everybody_has_a_slot_and_nobody_more_than_a_part(slots: int, part: float) -> None:
    found = limit_of(slots, part)
    assert found <= slots
    assert found >= min(1, slots)
    assert found <= max(1, slots * part + 1e-6)
