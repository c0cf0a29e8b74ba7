"""Whom to probe next, how long to wait, and what a probe has come to.

A probe goes to its peer directly; when the time for that is up, over the link where there is one and through third peers. Peers have
their turn in a random order that is drawn anew each round, so that a crash is noticed within two rounds at the latest and
after e / (e - 1) intervals in the mean (Das, Gupta, Motivala: "SWIM", DSN 2002, sections 3.1 and 4.3). Waits grow with the round
trip to the peer and with local health (`awareness.py`).

Refuses to know: what a failed probe means (`detector.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pcompute.membership.book_events import BookSettings
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.seams import Rng

#: A direct answer is waited for as many round trips, where that is longer than the setting.
_ROUND_TRIPS = 4.0
#: A third peer says that it has heard nothing after this share of the asker's wait (memberlist).
NACK_SHARE = 0.8


def probe_times_s(settings: BookSettings, rtt_s: float | None, factor: int) -> tuple[float, float]:
    """How long a direct answer is waited for, and any answer, both from the start of the probe; seconds.

    Direct: the setting, or four round trips where that is more, up to `limits.PROBE_TIMEOUT_S_MAX`. After it the rest of the
    interval, stretched as much. All of it times `factor` (`Awareness.factor`).
    """
    direct_s = settings.probe_timeout_s
    if settings.scales_with_rtt and rtt_s is not None:
        direct_s = max(direct_s, min(_ROUND_TRIPS * rtt_s, limits.PROBE_TIMEOUT_S_MAX))
    rest_s = settings.probe_interval_s - settings.probe_timeout_s + direct_s - settings.probe_timeout_s
    return direct_s * factor, (direct_s + rest_s) * factor


class Stage(enum.Enum):
    """How far a probe has come."""

    #: The peer itself was asked.
    DIRECT = "direct"
    #: Third peers were asked, too, and the link was used where there is one.
    INDIRECT = "indirect"


@dataclass(slots=True)
class Probe:
    """One probe on its way."""

    #: Who is probed.
    peer: PeerId
    #: When it was sent, monotonic seconds.
    sent_at: float
    #: When it fails, monotonic seconds.
    until: float
    #: Whether it was sent because somebody accuses the peer or says that a dead one lives.
    is_check: bool
    #: How far it has come.
    stage: Stage = Stage.DIRECT
    #: Whether this peer was late meanwhile, so that the round trip means nothing.
    is_spoiled: bool = False
    #: How often it got more time because this peer itself was late.
    graces: int = 0
    #: Third peers that were asked: whether they have said that they hear nothing.
    asked: dict[PeerId, bool] = field(default_factory=dict)


class Ring:
    """Peers that can be probed, in a random order; one at random, or the next one, in O(1)."""

    def __init__(self, rng: Rng) -> None:
        #: The machine's dice.
        self._rng = rng
        #: Those before `_turn` have had their turn in this round.
        self._peers: list[PeerId] = []
        #: Where each stands.
        self._places: dict[PeerId, int] = {}
        #: Whose turn is next, before the draw.
        self._turn = 0

    def add(self, peer: PeerId) -> None:
        """One more; its turn is some time later in this round, as likely at once as last."""
        if peer not in self._places:
            self._places[peer] = len(self._peers)
            self._peers.append(peer)

    def remove(self, peer: PeerId) -> None:
        """One less, if it was there."""
        place = self._places.pop(peer, None)
        if place is None:
            return
        if place < self._turn:
            # The last of those who had their turn fills the gap, and leaves one at the border.
            self._turn -= 1
            if place != self._turn:
                self._put(place, self._peers[self._turn])
            place = self._turn
        last = self._peers.pop()
        if place < len(self._peers):
            self._put(place, last)

    def next(self) -> PeerId | None:
        """Whose turn it is, None where nobody is here. Everybody has a turn a round."""
        if not self._peers:
            return None
        if self._turn >= len(self._peers):
            self._turn = 0
        drawn = self._rng.randrange(self._turn, len(self._peers))
        peer, other = self._peers[drawn], self._peers[self._turn]
        self._put(self._turn, peer)
        if drawn != self._turn:
            self._put(drawn, other)
        self._turn += 1
        return peer

    def some(self, count: int, is_fit: Callable[[PeerId], bool]) -> list[PeerId]:
        """Up to `count` distinct peers at random that are fit, among three times as many that are looked at."""
        drawn = self._rng.sample(self._peers, min(3 * count, len(self._peers)))
        return [peer for peer in drawn if is_fit(peer)][:count]

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._places

    def __len__(self) -> int:
        return len(self._peers)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert self._places == {peer: place for place, peer in enumerate(self._peers)}
        assert 0 <= self._turn <= len(self._peers)

    def _put(self, place: int, peer: PeerId) -> None:
        self._peers[place] = peer
        self._places[peer] = place
