"""What a peer keeps for others, when many want to be kept."""

from __future__ import annotations

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, ProtocolError
from p2pcompute.net.dht.storage import SignedStorage
from p2pcompute.wire.pointer import Name, Pointer, PointerKey, sign_pointer
from tests.support.membership import FakeKey, fake_verify

WALL = 1_800_000_000.0


class _Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return WALL + self.now


def made(owner: object, label: int = 0, *, version: int = 1, lifetime_s: int = 3_600) -> Pointer:
    """A pointer of that owner."""
    name = Name(255, label.to_bytes(2, "big"))
    return sign_pointer(FakeKey(owner), name, b"", version=version, issued_s=int(WALL), lifetime_s=lifetime_s)


def storage() -> tuple[SignedStorage, _Clock]:
    """An empty one."""
    clock = _Clock()
    return SignedStorage(PointerKey(bytes(20)), clock, fake_verify), clock


def flood(kept: SignedStorage, voice: str, owners: int, each: int = 64) -> int:
    """How many of so many pointers are taken from `voice`."""
    taken = 0
    for owner in range(owners):
        for label in range(each):
            try:
                taken += kept.keep(made((voice, owner), label).wire, voice)
            except BusyError:
                continue
    return taken


def test_an_owner_has_its_share_and_no_more() -> None:
    kept, _ = storage()
    assert flood(kept, "somebody", 3, 100) == 3 * limits.DHT_RECORDS_PER_OWNER_MAX
    with pytest.raises(BusyError, match="of one owner"):
        kept.keep(made(("somebody", 0), 999).wire, "somebody")
    # A newer version of what is kept needs no further place.
    assert kept.keep(made(("somebody", 0), 5, version=2).wire, "somebody")
    kept.check_invariants()


def test_a_large_voice_pushes_out_nobody_and_makes_room_for_small_ones() -> None:
    kept, _ = storage()
    early = made("early bird")
    assert kept.keep(early.wire, "early")
    assert flood(kept, "mallory", 70) >= limits.DHT_RECORDS_MAX - 1
    assert len(kept) == limits.DHT_RECORDS_MAX
    kept.check_invariants()
    for number in range(100):
        assert kept.keep(made(("late", number)).wire, f"late {number}"), "there is room for each who is not mallory"
    assert len(kept) == limits.DHT_RECORDS_MAX
    flood(kept, "mallory", 5)
    assert kept.get(early.key) == early.wire
    assert all(kept.get(made(("late", number)).key) for number in range(100))
    kept.check_invariants()


def test_among_equals_the_nearest_stay() -> None:
    kept, _ = storage()
    pointers = [made((number, "owner"), label) for number in range(80) for label in range(60)]
    for number, pointer in enumerate(pointers):
        try:
            kept.keep(pointer.wire, f"voice {number % 40}")
        except BusyError:
            continue
    kept.check_invariants()
    nearest = sorted(pointer.key for pointer in pointers)[: limits.DHT_RECORDS_MAX]
    # The own place is 0 here, so the smallest keys are the nearest.
    assert sum(kept.get(key) is not None for key in nearest) == limits.DHT_RECORDS_MAX


def test_what_has_ended_makes_room() -> None:
    kept, clock = storage()
    for label in range(limits.DHT_RECORDS_PER_OWNER_MAX):
        assert kept.keep(made("owner", label, lifetime_s=100).wire, "x")
    clock.now += 101
    assert kept.keep(made("owner", 999).wire, "x")
    assert len(kept) == 1
    kept.check_invariants()


def test_what_ended_or_comes_from_the_future_is_not_kept() -> None:
    kept, clock = storage()
    pointer = made("owner", lifetime_s=10)
    clock.now = 10 + limits.POINTER_SKEW_MAX_S
    assert not kept.keep(pointer.wire, "x")
    clock.now = -limits.POINTER_SKEW_MAX_S - 1
    assert not kept.keep(pointer.wire, "x")
    clock.now = -limits.POINTER_SKEW_MAX_S
    assert kept.keep(pointer.wire, "x")
    assert not kept.get(PointerKey(bytes(20)))
    assert kept.get(pointer.key) == pointer.wire


def test_a_signature_is_checked_once_a_version() -> None:
    checked = []

    def verify(public_key: bytes, context: bytes, data: bytes, signature: bytes) -> bool:
        checked.append(data)
        return fake_verify(public_key, context, data, signature)

    kept = SignedStorage(PointerKey(bytes(20)), _Clock(), verify)
    old, new = made("owner"), made("owner", version=2)
    for _ in range(5):
        assert kept.keep(new.wire, "x")
        assert not kept.keep(old.wire, "x")
    assert len(checked) == 1
    with pytest.raises(ProtocolError):
        kept.keep(made("owner", version=3).wire[:-1] + b"\0", "x")


def test_the_packages_way_in_is_shut_and_nothing_is_handed_on() -> None:
    kept, _ = storage()
    pointer = made("owner")
    with pytest.raises(TypeError):
        kept[pointer.key] = pointer.wire
    assert kept.keep(pointer.wire, "x")
    assert kept[pointer.key] == pointer.wire
    assert list(kept) == []
    assert kept.iter_older_than(0) == []
    with pytest.raises(KeyError):
        kept[PointerKey(bytes(20))]
    assert kept, "an empty one would be replaced by the package's own"
