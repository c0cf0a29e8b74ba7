"""How much of a peer a submitter may use at once, and how urgent its jobs may be, by its credit score.

    level     score        slots    priority at most    slots where tasks are not held by a sandbox
    high      100 and up   all      9                   all
    medium    50 to 99     80 %     7                   80 %
    low       below 50     50 %     2                   30 %

A cap is a cap even where slots idle: what is left over is not lent to who has not earned it. Every submitter has one slot at least. Slots that
an owner keeps for urgent jobs (priority 8 and 9) are so for high trust alone.

A score comes from outside, once there is a ledger; until then `score_before_credit` stands in its place.
"""

from __future__ import annotations

import enum

from p2pcompute.model.peer import Isolation
from p2pcompute.trust.tiers import Tier

HIGH_SCORE = 100.0
MEDIUM_SCORE = 50.0


class Level(enum.StrEnum):
    """Of trust, by score."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


_PARTS = {Level.HIGH: 1.0, Level.MEDIUM: 0.8, Level.LOW: 0.5}
_LOW_UNHELD_PART = 0.3
_PRIORITIES = {Level.HIGH: 9, Level.MEDIUM: 7, Level.LOW: 2}


def level_of(score: float) -> Level:
    """The level of a score; of one that is no number, the lowest."""
    if score >= HIGH_SCORE:
        return Level.HIGH
    return Level.MEDIUM if score >= MEDIUM_SCORE else Level.LOW


def part_max(level: Level, held: Isolation) -> float:
    """The part of the lent slots that a submitter may have at once; `held`: how well its tasks are held here."""
    if level is Level.LOW and held.rank < Isolation.SANDBOX.rank:
        return _LOW_UNHELD_PART
    return _PARTS[level]


def priority_max(level: Level, asked: int) -> int:
    """The priority that a job gets which asks for `asked`."""
    return min(asked, _PRIORITIES[level])


def score_before_credit(tier: Tier) -> float:
    """The score of who has none yet: members begin at 100, strangers of an open network at 50."""
    return MEDIUM_SCORE if tier is Tier.OPEN else HIGH_SCORE
