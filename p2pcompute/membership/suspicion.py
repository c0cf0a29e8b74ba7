"""Asking others about a peer whose link was lost.

An inquiry goes to every linked peer at once. It ends with "alive" at the first of them that has heard the peer lately
over its own link, and with "dead" when all have denied it or the time is up: who was asked and says nothing has trouble
of its own and is no witness.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from p2pcompute.model.ids import PeerId


class Verdict(enum.Enum):
    """What an inquiry has come to."""

    OPEN = "open"
    ALIVE = "alive"
    DEAD = "dead"


@dataclass(slots=True)
class Inquiry:
    """One question about one peer, and the answers so far."""

    #: When it ends without further answers, monotonic seconds.
    until: float
    #: Who was asked and has not answered.
    open: set[PeerId] = field(default_factory=set)
    #: Whether one of them has heard the peer.
    is_heard: bool = False

    def answer(self, source: PeerId, heard_s: float | None, heard_max_s: float) -> None:
        """`source` says when it heard the peer last. Who was not asked, or has answered, is not listened to."""
        if source in self.open:
            self.open.discard(source)
            self.is_heard = self.is_heard or (heard_s is not None and heard_s <= heard_max_s)

    def verdict(self, now: float) -> Verdict:
        """What is known at `now`."""
        if self.is_heard:
            return Verdict.ALIVE
        return Verdict.DEAD if not self.open or self.until <= now else Verdict.OPEN
