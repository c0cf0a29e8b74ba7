"""What a lender grants a submitter: its tier, its level of trust, and what follows from them for one program.

Puts together what `trust/` says and what this peer's owner has configured. Refuses to know: links and jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from p2pcompute.execution.engines.document import ProgramHead
from p2pcompute.model.ids import InvitationId, PeerId
from p2pcompute.model.peer import Isolation, Role
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.offers import Lacking, Offers
from p2pcompute.trust.caps import level_of, part_max, priority_max, score_before_credit
from p2pcompute.trust.tiers import Tier, tier_of, why_refused


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one job may have: a part of the lent slots, and a priority."""

    part_max: float
    priority: int


@dataclass(frozen=True, slots=True)
class Standings:
    """Who may have what. `own`: the own user; `trusted`: ids of peers and invitations that the owner names; `required`: how well other
    people's code must be held; `score_of`: a credit score, None where it has none.
    """

    own: PeerId | None = None
    is_open: bool = False
    trusted: Collection[bytes] = ()
    required: Isolation | None = None
    #: The seam for the credit ledger, which is not built yet: nobody has a score of its own.
    score_of: Callable[[PeerId], float | None] = lambda peer: None

    def tier_of(self, peer: PeerId, roles: Collection[Role], invitation: InvitationId | None) -> Tier | None:
        """The tier of a submitter, None where it may not submit."""
        return tier_of(peer, roles, invitation, own=self.own, is_open=self.is_open, trusted=self.trusted)

    def lack(self, tier: Tier, head: ProgramHead, offers: Offers) -> Lacking | None:
        """Why a program may not run here for who has `tier`; None where it may."""
        text = why_refused(tier, head.engine, head.demands, offers.isolation_of(head.engine), self.required)
        return None if text is None else Lacking("tier", text)

    def allowance(self, peer: PeerId, tier: Tier, priority: int, held: Isolation) -> Allowance:
        """What a job of `peer` may have that asks for `priority`, and whose tasks are `held` so well."""
        if tier is Tier.OWN:
            return Allowance(1.0, priority)
        score = self.score_of(peer)
        level = level_of(score_before_credit(tier) if score is None else score)
        return Allowance(part_max(level, held), priority_max(level, priority))


def standings_of(config: PeerConfig, own: PeerId, is_open: bool) -> Standings:
    """By a peer's configuration."""
    required = None if config.isolation == "auto" else Isolation(config.isolation)
    return Standings(own, is_open, frozenset(config.trusted), required)
