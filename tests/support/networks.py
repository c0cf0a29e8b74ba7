"""Networks, their members and their intruders, for tests of admission."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from p2pcompute.model.peer import DEFAULT_ROLES, Role
from p2pcompute.wire.authority import Authority
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.invitation import Invitation
from p2pcompute.wire.membership import Membership, Trust
from p2pcompute.wire.revocation import RevocationList

#: TLS reads the machine's clock, so networks that meet over sockets live now.
NOW = float(int(time.time()))
DAY_S = 86_400.0


class SeededEntropy:
    """The same bytes for the same seed: keys of tests are no secrets."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._drawn = 0

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._drawn += 1
        return hashlib.shake_256(f"{self._seed}/{self._drawn}".encode()).digest(count)


@dataclass(frozen=True)
class Member:
    """A peer with all that it holds."""

    key: PeerKey
    membership: Membership
    invitation: Invitation

    def trust(self, revocations: RevocationList | None = None) -> Trust:
        """What it checks others with."""
        return self.membership.trust(revocations)


def make_network(seed: str = "home", *, name: str = "home", now: float = NOW) -> Authority:
    """A network; another seed makes another one, even of the same name."""
    return Authority.create(name, SeededEntropy("owner/" + seed), now)


def make_member(
    inviter: Authority | Invitation,
    seed: str,
    *,
    now: float = NOW,
    valid_s: float = 365 * DAY_S,
    roles: frozenset[Role] = DEFAULT_ROLES,
    may_invite: bool = False,
) -> Member:
    """A peer that joined at `now` by an invitation of its own."""
    entropy = SeededEntropy("member/" + seed)
    invitation = inviter.invite(roles=roles, valid_s=valid_s, now_wall=now, entropy=entropy, may_invite=may_invite)
    key = PeerKey.generate(entropy)
    return Member(key, Membership.mint(key, invitation, now, entropy), invitation)
