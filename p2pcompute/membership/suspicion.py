"""Suspicion: asking others about a peer whose link was lost, and the clock that runs for a suspect.

Two mechanisms. Towards peers of the first protocol version an `Inquiry` goes to every linked peer at once: it ends with
"alive" at the first of them that has heard the peer lately over its own link, and with "dead" when all have denied it or the
time is up; who was asked and says nothing has trouble of its own and is no witness.

Among peers that gossip each suspect has a `Case`. It is opened by an own probe that failed or by somebody's accusation, and
gives the suspect time to speak up: long while one peer accuses it, shorter the more do (Dadgar, Phillips, Currey:
"Lifeguard", DSN-W 2018, "local health aware suspicion"). Accusers count by invitation where it is known, so that one person's
many peers are one voice, and no number of voices replaces the own failed probe.

`Accusers` keeps who accused too often, or wrongly.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from p2pcompute.membership.rate import RateTable
from p2pcompute.model import limits
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
    #: Whether it is asked because others accuse the peer, rather than because its link was lost.
    is_check: bool = False

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


def suspicion_min_s(mult: int, peers: int, probe_interval_s: float) -> float:
    """The least time that a suspect is given in a network of `peers`: mult * max(1, log10(peers)) * interval."""
    return mult * max(1.0, math.log10(max(peers, 1))) * probe_interval_s


def suspicion_s(confirmations: int, wanted: int, min_s: float, max_s: float) -> float:
    """The time that a suspect is given when so many others than the first accuse it, of the `wanted` ones.

    max - (max - min) * log(confirmations + 1) / log(wanted + 1), never below min; min where none are wanted.
    """
    if wanted <= 0:
        return min_s
    share = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(min_s, max_s - share * (max_s - min_s))


def confirmations_wanted(wanted: int, peers: int) -> int:
    """How many others must accuse a suspect; none where there are not so many beside it and this peer."""
    return wanted if peers - 2 >= wanted else 0


@dataclass(slots=True)
class Case:
    """What is held against one suspect."""

    #: When it was opened, monotonic seconds.
    opened_at: float
    #: The incarnation that is accused.
    incarnation: int
    #: Who accuses, this peer itself included once its own probe failed, by whom they count as.
    accusers: dict[bytes, PeerId] = field(default_factory=dict)
    #: Whether a probe, or for peers of the first version an inquiry, of this peer's own failed since it was opened.
    own_failed: bool = False
    #: When that was, monotonic seconds.
    own_failed_at: float = 0.0
    #: A signed accusation, for the suspect to see what it must refute.
    evidence: bytes | None = None
    #: Whether it was sent to the suspect.
    is_shown: bool = False

    def accuse(self, accuser: PeerId, group: bytes) -> bool:
        """`accuser`, who counts as `group`, accuses; whether that is a further voice."""
        if group in self.accusers or accuser in self.accusers.values():
            return False
        self.accusers[group] = accuser
        return True

    @property
    def confirmations(self) -> int:
        """Voices beside the first."""
        return max(len(self.accusers) - 1, 0)


@dataclass(slots=True)
class _Record:
    """What is held against one accuser."""

    #: False accusations at `at`, not forgiven yet.
    points: float
    #: Monotonic seconds.
    at: float
    #: Whether it was reported.
    is_reported: bool = False


class Accusers:
    """Who accuses too often (`may_accuse`) or wrongly (`was_wrong`); at most as many as there may be peers."""

    def __init__(self) -> None:
        #: By accuser; one with no points left may be forgotten.
        self._records: dict[PeerId, _Record] = {}
        #: How often each accuses.
        self._rates: RateTable[PeerId] = RateTable(limits.PEERS_MAX)

    def may_accuse(self, accuser: PeerId, now: float) -> bool:
        """Whether an accusation is listened to; it counts against the accuser's rate then."""
        return not self.is_ignored(accuser, now) and self._rates.take(accuser, limits.ACCUSATIONS_PER_SECOND, now)

    def is_ignored(self, accuser: PeerId, now: float) -> bool:
        """Whether it was wrong so often that nothing it says of others is believed."""
        record = self._records.get(accuser)
        if record is None:
            return False
        if not record.is_reported:
            return False
        # Half of it must be forgiven before it is listened to again.
        return self._points(record, now) > limits.FALSE_ACCUSATIONS_MAX / 2

    def was_wrong(self, accuser: PeerId, now: float) -> bool:
        """Its accusation was contradicted by a probe of our own; whether that is to be reported, once."""
        record = self._records.setdefault(accuser, _Record(0.0, now))
        record.points, record.at = self._points(record, now) + 1, now
        # Somebody who goes on is ignored for longer, yet not for ever.
        record.points = min(record.points, 2.0 * limits.FALSE_ACCUSATIONS_MAX)
        if record.points < limits.FALSE_ACCUSATIONS_MAX or record.is_reported:
            return False
        record.is_reported = True
        return True

    def was_right(self, accuser: PeerId, now: float) -> None:
        """A probe of our own failed as well."""
        record = self._records.get(accuser)
        if record is not None:
            record.points, record.at = max(self._points(record, now) - 1, 0.0), now

    def forget(self, accuser: PeerId) -> None:
        """It is no longer in the book."""
        self._records.pop(accuser, None)

    def _points(self, record: _Record, now: float) -> float:
        return max(record.points - (now - record.at) / limits.FALSE_ACCUSATION_FORGIVEN_S, 0.0)
