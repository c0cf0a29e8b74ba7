"""What a peer keeps for others: signed pointers, newest wins, within bounds, until they end.

Takes the place of the package's storage: its dictionary takes anything from anybody for ever (D5 to D8, D18). Keys are derived from what is
kept, never believed; ends of life are counted on the monotonic clock from when a pointer came. When it is full, a
newcomer needs a better claim than the weakest that is kept: first go those brought by peers of one invitation beyond its
share, then those farthest from this peer's own place, which are not its to keep.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kademlia.storage import IStorage

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, ProtocolError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.seams import Clock
from p2pcompute.wire.pointer import Pointer, PointerKey, decode_pointer
from p2pcompute.wire.record import Verifier

#: The weakest that are picked out at a time: a hundredth and a half of all.
_DOOMED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Kept:
    """A pointer, when it is dropped (monotonic seconds), and the voice that brought it."""

    pointer: Pointer
    until: float
    voice: str


class SignedStorage(IStorage):  # type: ignore[misc]
    """Pointers by key. The package's own way in, `storage[key] = value`, is shut."""

    def __init__(self, own_id: PointerKey, clock: Clock, verify: Verifier) -> None:
        #: This peer's place in the key space.
        self._own = int.from_bytes(own_id, "big")
        #: Wall time judges what comes, monotonic time what is kept.
        self._clock = clock
        #: Checks the owner's signature.
        self._verify = verify
        #: By key; at most `limits.DHT_RECORDS_MAX`.
        self._kept: dict[PointerKey, Kept] = {}
        #: Pointers by owner; at most `limits.DHT_RECORDS_PER_OWNER_MAX` each; no zeros.
        self._by_owner: Counter[PeerId] = Counter()
        #: Pointers by voice; no zeros.
        self._by_voice: Counter[str] = Counter()
        #: The weakest when it was last looked, the weakest last; some may be gone.
        self._doomed: list[PointerKey] = []

    def keep(self, wire: bytes, voice: str) -> bool:
        """Keep the pointer in `wire`, which a peer of `voice` brought, unless a newer one is here; whether it is kept now.

        Raises ProtocolError for what no honest peer brings, BusyError where there is no room for it.
        """
        pointer = decode_pointer(wire)
        keep_s = pointer.keep_s(self._clock.wall())
        if keep_s <= 0:
            return False
        key, now = pointer.key, self._clock.monotonic()
        held = self._kept.get(key)
        if held is not None and held.until > now and pointer.order <= held.pointer.order:
            return pointer.wire == held.pointer.wire
        if not pointer.is_genuine(self._verify):
            raise ProtocolError("a pointer with a wrong signature")
        if held is None:
            self._make_room(pointer, voice, now)
        else:
            self._drop(key)
        self._kept[key] = Kept(pointer, now + keep_s, voice)
        self._by_owner[pointer.owner] += 1
        self._by_voice[voice] += 1
        return True

    def _make_room(self, pointer: Pointer, voice: str, now: float) -> None:
        owner = pointer.owner
        if self._by_owner[owner] >= limits.DHT_RECORDS_PER_OWNER_MAX or len(self._kept) >= limits.DHT_RECORDS_MAX:
            self.sweep(now)
        if self._by_owner[owner] >= limits.DHT_RECORDS_PER_OWNER_MAX:
            raise BusyError(f"this peer keeps {limits.DHT_RECORDS_PER_OWNER_MAX} pointers of one owner and no more")
        if len(self._kept) < limits.DHT_RECORDS_MAX:
            return
        claim = self._weakness(pointer.key, voice, 1)
        while len(self._kept) >= limits.DHT_RECORDS_MAX:
            weakest = self._weakest()
            if claim >= self._weakness(weakest, self._kept[weakest].voice, 0):
                raise BusyError(f"this peer keeps {limits.DHT_RECORDS_MAX} pointers, all with a better claim")
            self._doomed.pop()
            self._drop(weakest)

    def _weakest(self) -> PointerKey:
        """The next to go. Looking through all of them costs milliseconds, so it is done for several at a time."""
        while self._doomed and self._doomed[-1] not in self._kept:
            self._doomed.pop()
        if not self._doomed:
            found = heapq.nlargest(
                _DOOMED_AT_ONCE, self._kept, key=lambda key: self._weakness(key, self._kept[key].voice, 0)
            )
            self._doomed = found[::-1]
        return self._doomed[-1]

    def _weakness(self, key: PointerKey, voice: str, more: int) -> tuple[bool, int]:
        over = self._by_voice[voice] + more > limits.DHT_RECORDS_PER_INVITATION_MAX
        return (over, int.from_bytes(key, "big") ^ self._own)

    def _drop(self, key: PointerKey) -> None:
        gone = self._kept.pop(key)
        for counts, name in ((self._by_owner, gone.pointer.owner), (self._by_voice, gone.voice)):
            counts[name] -= 1  # type: ignore[index]
            if counts[name] <= 0:  # type: ignore[index]
                del counts[name]

    def sweep(self, now: float) -> None:
        """Forget what has ended."""
        for key in [key for key, kept in self._kept.items() if kept.until <= now]:
            self._drop(key)

    def pointer(self, key: PointerKey) -> Pointer | None:
        """The pointer under `key`, unless it has ended."""
        kept = self._kept.get(key)
        return kept.pointer if kept is not None and kept.until > self._clock.monotonic() else None

    def get(self, key: PointerKey, default: bytes | None = None) -> bytes | None:
        """The bytes of the pointer under `key`."""
        found = self.pointer(key)
        return default if found is None else found.wire

    def __getitem__(self, key: PointerKey) -> bytes:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __setitem__(self, key: PointerKey, value: bytes) -> None:
        raise TypeError("what is kept is brought through keep(), which checks it")

    def iter_older_than(self, seconds_old: float) -> list[tuple[PointerKey, bytes]]:
        """Nothing: owners publish again, holders never do."""
        return []

    def __iter__(self) -> Iterator[tuple[PointerKey, bytes]]:
        # The package hands what this yields over to newcomers, under the hash of the key (D17): nothing is handed over.
        return iter(())

    def __bool__(self) -> bool:
        # The package takes a storage that is false, as an empty one would be, for none and makes its own.
        return True

    def __len__(self) -> int:
        return len(self._kept)

    def check_invariants(self) -> None:
        """Raise AssertionError where counts and bounds do not hold; for tests and the laboratory."""
        assert len(self._kept) <= limits.DHT_RECORDS_MAX
        assert self._by_owner == Counter(kept.pointer.owner for kept in self._kept.values())
        assert self._by_voice == Counter(kept.voice for kept in self._kept.values())
        assert all(count <= limits.DHT_RECORDS_PER_OWNER_MAX for count in self._by_owner.values())
        assert all(kept.pointer.key == key for key, kept in self._kept.items())
