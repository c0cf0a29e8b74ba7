"""What a submitter may have run here, by its role and by what the owner says of it.

    tier      who                                                    what
    open      anybody in an open network                             WebAssembly, and Python inside WebAssembly; nothing granted
    member    an invitation with the role submit                     Python sources as well
    trusted   named by the owner, or the role admin                  containers and commands as well, and what the owner grants
    own       the own user of the peer                               everything that works here

A tier says what is allowed at most; whether the peer offers it, and holds it as well as a program demands, is looked at besides.
Refuses to know: how much of a peer somebody may use (`caps.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Collection

from p2pcompute.model.engine import Demands, Engine
from p2pcompute.model.ids import InvitationId, PeerId
from p2pcompute.model.peer import Isolation, Role

_OPEN = frozenset({Engine.WASM, Engine.WASM_PYTHON})
_MEMBER = _OPEN | {Engine.PYTHON}
#: Who may have tasks run in a network with admission, directly or through coordinators.
MAY_SUBMIT = frozenset({Role.SUBMIT, Role.ADMIN})


class Tier(enum.StrEnum):
    """Least trusted first."""

    OPEN = "open"
    MEMBER = "member"
    TRUSTED = "trusted"
    OWN = "own"

    @property
    def rank(self) -> int:
        """Orders tiers: more is allowed to the higher one."""
        return tuple(Tier).index(self)

    @property
    def engines(self) -> frozenset[Engine]:
        """What may run at most."""
        match self:
            case Tier.OPEN:
                return _OPEN
            case Tier.MEMBER:
                return _MEMBER
            case _:
                return frozenset(Engine)


def tier_of(
    peer: PeerId,
    roles: Collection[Role],
    invitation: InvitationId | None,
    *,
    own: PeerId | None,
    is_open: bool,
    trusted: Collection[bytes],
) -> Tier | None:
    """The tier of `peer`, None where it may not submit. `invitation`: by which it was admitted; `trusted`: ids of peers and of invitations.

    In an open network no role counts, and no invitation: everybody can make them. A peer that is named is itself there, too.
    """
    if peer == own:
        return Tier.OWN
    if peer in trusted or (not is_open and invitation in trusted):
        # The owner of this peer trusts it; whether it may submit says the network's.
        return Tier.TRUSTED if is_open or not MAY_SUBMIT.isdisjoint(roles) else None
    if is_open:
        return Tier.OPEN
    if Role.ADMIN in roles:
        return Tier.TRUSTED
    return Tier.MEMBER if Role.SUBMIT in roles else None


def why_refused(
    tier: Tier, engine: Engine, demands: Demands, held: Isolation, required: Isolation | None
) -> str | None:
    """Why a program may not run here for who has `tier`, as a sentence; None where it may.

    `held`: how well this peer holds the tasks of `engine`; `required`: how well its owner wants other people's code to be held, at least.
    """
    if tier is Tier.OWN:
        return None
    if engine not in tier.engines:
        return f"the engine {engine} is for {_for_whom(engine)} here, and the submitter is {_WHO[tier]}"
    if demands.grants and tier is not Tier.TRUSTED:
        asked = ", ".join(demands.grants)
        return f"the program needs {asked}: that is for peers that the owner of this peer trusts, and the submitter is {_WHO[tier]}"
    if required is not None and held.rank < required.rank:
        return f"the owner of this peer wants other people's code held by {required} at least, and {engine} has {held} here"
    return None


_WHO = {
    Tier.OPEN: "anybody of an open network",
    Tier.MEMBER: "a member of the network",
    Tier.TRUSTED: "trusted",
    Tier.OWN: "the own user",
}


def _for_whom(engine: Engine) -> str:
    return "members of a network" if engine in _MEMBER else "peers that the owner of this peer trusts"
