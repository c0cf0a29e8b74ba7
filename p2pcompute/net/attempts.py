"""All handshakes of ours that run: found by index, by the peer that is looked for, by the address that was greeted.

Refuses to know: what becomes of them (`sessions.py`), one handshake's course (`handshakes.py`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Entropy
from p2pcompute.net.handshakes import Attempt, Candidate
from p2pcompute.net.session_addresses import can_be_sent_to
from p2pcompute.net.session_events import SessionSettings
from p2pcompute.net.session_table import Session
from p2pcompute.wire.session import Ephemeral

_INDEX_BYTES = 4


class Attempts:
    """See the module. `is_taken`: whether a session has this index."""

    def __init__(
        self, tag: bytes, entropy: Entropy, settings: SessionSettings, is_taken: Callable[[int], bool]
    ) -> None:
        self._tag = tag
        self._entropy = entropy
        self._settings = settings
        self._is_taken = is_taken
        #: One row an address of each attempt.
        self.by_index: dict[int, tuple[Attempt, Candidate]] = {}
        #: Those that look for a certain peer.
        self.of_peer: dict[PeerId, Attempt] = {}
        #: Those that take whoever is at an address, by that address.
        self.greetings: dict[Address, Attempt] = {}

    def begin(self, target: PeerId | Address, now: float) -> Attempt | None:
        """A handshake with a peer, or with whoever is at an address; None while too many run. It has no candidates yet."""
        if len(self.of_peer) + len(self.greetings) >= limits.HANDSHAKES_OWN_MAX:
            return None
        expected = None if isinstance(target, Address) else target
        attempt = Attempt(expected, Ephemeral(self._entropy), self._tag, self._settings, now)
        if isinstance(target, Address):
            self.greetings[target] = attempt
        else:
            self.of_peer[target] = attempt
        return attempt

    def aim(self, attempt: Attempt, addresses: Sequence[Address], not_before: float) -> None:
        """Let `attempt` try `addresses` too, those that a datagram can be sent to, at most `limits.ADDRESSES_MAX` in all."""
        known = {candidate.address for candidate in attempt.candidates}
        for address in addresses:
            if address in known or len(known) >= limits.ADDRESSES_MAX or not can_be_sent_to(address):
                continue
            known.add(address)
            index = self.draw_index()
            attempt.add(index, address, not_before)
            self.by_index[index] = (attempt, attempt.candidates[-1])

    def end(self, attempt: Attempt) -> None:
        """It is over, whatever came of it."""
        for candidate in attempt.candidates:
            self.by_index.pop(candidate.index, None)
        if attempt.expected is not None:
            self.of_peer.pop(attempt.expected, None)
        else:
            self.greetings.pop(attempt.candidates[0].address, None)
        attempt.armed_at = None

    def draw_index(self) -> int:
        """An index that nothing of ours has."""
        while True:
            index = int.from_bytes(self._entropy.bytes(_INDEX_BYTES))
            if index not in self.by_index and not self._is_taken(index):
                return index

    def check_invariants(self) -> None:
        """Raise AssertionError where the tables disagree. For tests."""
        running = [*self.of_peer.values(), *self.greetings.values()]
        indexes = [candidate.index for attempt in running for candidate in attempt.candidates]
        assert sorted(indexes) == sorted(self.by_index)
        assert not any(self._is_taken(index) for index in indexes)
        assert all(attempt.expected == peer for peer, attempt in self.of_peer.items())
        assert all(attempt.armed_at == attempt.due for attempt in running), "every handshake has a timer"
        assert all(len(attempt.held) <= limits.PAYLOADS_HELD_MAX for attempt in running)


class Timers:
    """When what repeats itself is due: the owner's `due`, and in `armed_at` which due a row stands for."""

    def __init__(self) -> None:
        #: (when, number, for whom): a heap; rows whose owner is armed for another time count for nothing.
        self._rows: list[tuple[float, int, Attempt | Session]] = []
        self._rows_made = 0

    @property
    def soonest(self) -> float | None:
        """When the first row is due."""
        return self._rows[0][0] if self._rows else None

    def arm(self, owner: Attempt | Session) -> None:
        """See that `owner` comes up when it is due."""
        if owner.armed_at != owner.due:
            owner.armed_at = owner.due
            self._rows_made += 1
            heapq.heappush(self._rows, (owner.due, self._rows_made, owner))

    def expired(self, now: float) -> Iterator[Attempt | Session]:
        """Whose time has come by `now`, each once; they are no longer armed."""
        while self._rows and self._rows[0][0] <= now:
            due, _, owner = heapq.heappop(self._rows)
            if owner.armed_at == due:
                owner.armed_at = None
                yield owner
