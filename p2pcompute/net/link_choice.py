"""Which of several connections between two peers stays, and which link goes when there are too many.

Rules, for connections that end at the same start of both programs:

- The dialler of a connection proposes it only while it knows of no link to that peer that is as good, and proposes one at a time. So what is
  proposed means that the dialler has nothing as good, and the accepter takes it.
- A direct connection is better than one through a relay, whoever dialled it. While a relayed one of this side has no answer, a direct one that the other
  side proposes waits for that answer: what the other side has said on the relayed one is heard first, and nothing is lost.
- Where both have proposed equally good ones at the same time they disagree, and then the connection dialled by the lower id stays.
- A proposal may have crossed with news of the link that there is, if both are equally good. Those arrive within the life of a handshake; what
  comes later means that the dialler has lost that link.

Pure; refuses to know connections.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from p2pcompute.model.ids import PeerId

L = TypeVar("L")


class Verdict(enum.Enum):
    """What becomes of a connection that the other side proposes."""

    TAKE = "take"
    #: There is one that stays instead.
    REFUSE = "refuse"
    #: This side's own proposal is answered first.
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Rival:
    """A connection to the same peer that this side has. `relayed`: through a relay; `dialled`: by this side; `same`: to the same start of the program."""

    relayed: bool
    dialled: bool
    same: bool
    #: Whether it came up no longer ago than a handshake lasts; of a proposal: True.
    fresh: bool


def verdict(relayed: bool, is_lower: bool, pending: Rival | None, used: Rival | None) -> Verdict:
    """Judge a connection that the other side proposes. `is_lower`: this peer has the lower id; `pending`: what this
    side has proposed and has no answer to; `used`: the link that there is.
    """
    if pending is not None:
        if not pending.same:
            return Verdict.TAKE
        if pending.relayed != relayed:
            return Verdict.WAIT if pending.relayed else Verdict.REFUSE
        return Verdict.REFUSE if is_lower else Verdict.TAKE
    if used is None or not used.same or used.relayed != relayed:
        # A relayed one beside a direct link too: only who has lost that link proposes it.
        return Verdict.TAKE
    return Verdict.REFUSE if is_lower and used.dialled and used.fresh else Verdict.TAKE


def worth_proposing(relayed: bool, used: Rival | None) -> bool:
    """Whether a connection that this side dialled is proposed although it has a link to that peer."""
    return used is None or not used.same or (used.relayed and not relayed)


def least_useful(worths: Iterable[tuple[PeerId, L, float | None]]) -> L | None:
    """Which link goes first: of least worth, of the lowest id where equal; those of worth None stay. None where all stay."""
    chosen: tuple[float, PeerId] | None = None
    found: L | None = None
    for peer, link, worth in worths:
        if worth is not None and (chosen is None or (worth, peer) < chosen):
            chosen, found = (worth, peer), link
    return found
