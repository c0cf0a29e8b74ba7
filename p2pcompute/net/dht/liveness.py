"""How long to wait for whom, and whom not to ask for a while.

Waiting: four times the smoothed round trip (Jacobson and Karels, 1988; RFC 6298) between two bounds. A peer that was
never heard needs a handshake first, which is two more round trips, so its wait is three times as long. The dead are remembered by peer and
address together: somebody who tells a wrong address of an honest peer must not make that peer dead.

Pure: takes `now`, refuses to know sockets.
"""

from __future__ import annotations

from collections import OrderedDict

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address

#: Share of a new sample in the smoothed round trip (RFC 6298).
_GAIN = 1 / 8
_FACTOR = 4.0
#: Round trips until a stranger answers: cookie, hello, request.
_STRANGER_ROUND_TRIPS = 3


def wait_s(rtt_s: float | None, round_trips: int = 1) -> float:
    """How long to wait for an answer that takes `round_trips` smoothed round trips of `rtt_s` seconds; None: not known."""
    if rtt_s is None:
        return limits.DHT_TIMEOUT_FIRST_S
    return min(max(_FACTOR * round_trips * rtt_s, limits.DHT_TIMEOUT_MIN_S), limits.DHT_TIMEOUT_MAX_S)


class RoundTrips:
    """Smoothed round trips by peer, and of all peers together for those that were never heard."""

    def __init__(self, peers_max: int = limits.DHT_CONTACTS_MAX) -> None:
        #: Seconds by peer, the longest unheard first; at most `peers_max`.
        self._by_peer: OrderedDict[PeerId, float] = OrderedDict()
        #: Of all peers, seconds; None before the first answer.
        self._of_all: float | None = None
        #: Bound of `_by_peer`.
        self._peers_max = peers_max

    def measured(self, peer: PeerId, rtt_s: float) -> None:
        """An answer of `peer` took `rtt_s` seconds."""
        known = self._by_peer.pop(peer, None)
        self._by_peer[peer] = rtt_s if known is None else known + _GAIN * (rtt_s - known)
        self._of_all = rtt_s if self._of_all is None else self._of_all + _GAIN * (rtt_s - self._of_all)
        while len(self._by_peer) > self._peers_max:
            self._by_peer.popitem(last=False)

    def wait_s(self, peer: PeerId) -> float:
        """How long to wait for an answer of `peer`, seconds."""
        known = self._by_peer.get(peer)
        return wait_s(known) if known is not None else wait_s(self._of_all, _STRANGER_ROUND_TRIPS)


class DeadMemory:
    """Addresses at which a peer did not answer, with the time until which it is left alone there."""

    def __init__(self, remembered_max: int = limits.DHT_DEAD_REMEMBERED_MAX) -> None:
        #: (peer, address) to (failures in a row, until when), the longest unchanged first.
        self._entries: OrderedDict[tuple[PeerId, Address], tuple[int, float]] = OrderedDict()
        #: Bound of `_entries`.
        self._remembered_max = remembered_max

    def failed(self, peer: PeerId, address: Address, now: float) -> None:
        """`peer` did not answer at `address`."""
        failures, _ = self._entries.pop((peer, address), (0, 0.0))
        pause_s = min(limits.DHT_DEAD_FIRST_S * 2.0 ** min(failures, 30), limits.DHT_DEAD_MAX_S)
        self._entries[peer, address] = (failures + 1, now + pause_s)
        while len(self._entries) > self._remembered_max:
            self._entries.popitem(last=False)

    def answered(self, peer: PeerId, address: Address) -> None:
        """`peer` is there after all."""
        self._entries.pop((peer, address), None)

    def is_dead(self, peer: PeerId, address: Address, now: float) -> bool:
        """Whether `peer` is left alone at `address` for now."""
        entry = self._entries.get((peer, address))
        return entry is not None and now < entry[1]

    def __len__(self) -> int:
        return len(self._entries)
