"""The books of a relay: reservations, shares of circuits, rates, meters."""

from __future__ import annotations

import contextlib

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, LinkClosedError
from p2pcompute.model.ids import PeerId
from p2pcompute.net.relay_book import Party, RateBucket, RelayBook, RelaySettings


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32))


def party(number: int, invitation: bytes | None = None) -> Party:
    """A peer, by an invitation of its own unless told otherwise."""
    return Party(peer(number), peer(number) if invitation is None else invitation)


def test_a_reservation_lasts_an_hour_and_is_renewed_by_asking_again() -> None:
    book = RelayBook(RelaySettings())
    assert book.reserve(party(1), 1e6, 100.0) == limits.RELAY_RESERVATION_S == 3600
    assert book.is_reserved(peer(1), 100.0 + 3599)
    assert not book.is_reserved(peer(1), 100.0 + 3600)
    book.reserve(party(1), 3600, 2000.0)
    assert book.is_reserved(peer(1), 5000.0)
    assert book.reserve(party(2), 60, 2000.0) == 60
    book.expire(2061.0)
    assert book.reserved == (peer(1),)
    book.release(peer(1))
    book.release(peer(1))
    assert not book.is_reserved(peer(1), 2061.0)


def test_the_33rd_reservation_is_refused_in_words_and_renewals_go_on() -> None:
    book = RelayBook(RelaySettings())
    for number in range(32):
        book.reserve(party(number), 3600, 0.0)
    with pytest.raises(BusyError, match="keeps 32 peers reachable already"):
        book.reserve(party(32), 3600, 10.0)
    book.reserve(party(5), 3600, 10.0)
    # The others' hour is over: there is room again.
    book.reserve(party(32), 3600, 3600.5)
    assert book.reserved == (peer(5), peer(32))
    book.check_invariants()


def test_nobody_takes_all_circuits() -> None:
    settings = RelaySettings(circuits_max=5, circuits_per_asker_max=2, circuits_per_target_max=3, opens_per_second=1e9)
    book = RelayBook(settings)
    for number in (1, 2):
        book.reserve(party(number), 3600, 0.0)
    with pytest.raises(LinkClosedError, match="no reservation"):
        book.open(party(10), peer(3), 0.0)
    book.open(party(10), peer(1), 0.0)
    book.open(party(10), peer(2), 0.0)
    with pytest.raises(BusyError, match="you have 2 circuits"):
        book.open(party(10), peer(1), 0.0)
    book.open(party(11), peer(1), 0.0)
    book.open(party(11), peer(1), 0.0)
    with pytest.raises(BusyError, match="has 3 circuits here already"):
        book.open(party(12), peer(1), 0.0)
    book.open(party(12), peer(2), 0.0)
    with pytest.raises(BusyError, match="carries 5 circuits"):
        book.open(party(13), peer(2), 0.0)
    book.check_invariants()
    book.close(party(10), peer(1))
    book.open(party(13), peer(1), 0.0)
    book.check_invariants()


def test_one_invitation_never_takes_all_reservations() -> None:
    book = RelayBook(RelaySettings())
    for number in range(24):
        book.reserve(party(number, b"lab"), 3600, 0.0)
    with pytest.raises(BusyError, match="keeps 24 peers of your invitation reachable already: ask another one"):
        book.reserve(party(24, b"lab"), 3600, 0.0)
    book.reserve(party(0, b"lab"), 3600, 10.0)  # renewals go on
    for number in range(100, 108):
        book.reserve(party(number), 3600, 0.0)
    book.release(peer(100))
    book.release(peer(1))
    book.reserve(party(24, b"lab"), 3600, 0.0)
    with pytest.raises(BusyError, match="of your invitation"):
        book.reserve(party(25, b"lab"), 3600, 0.0)
    book.check_invariants()


def test_one_invitation_never_takes_all_circuits_nor_all_to_one_peer() -> None:
    book = RelayBook(RelaySettings())
    for number in range(8):
        book.reserve(party(number), 3600, 0.0)
    # Many ids minted from one token.
    opened = []
    for number in range(100, 200):
        for target in range(8):
            with contextlib.suppress(BusyError):
                book.open(party(number, b"evil"), peer(target), 0.0)
                opened.append((number, target))
    assert book.circuits == len(opened) == 48
    assert max(sum(target == each for _, each in opened) for target in range(8)) <= 12
    for number in range(200, 216):
        book.open(party(number), peer(number % 8), 0.0)
    with pytest.raises(BusyError, match="carries 64 circuits"):
        book.open(party(300), peer(0), 0.0)
    book.check_invariants()
    for number, target in opened:
        book.close(party(number, b"evil"), peer(target))
    for number in range(200, 216):
        book.close(party(number), peer(number % 8))
    assert book.circuits == 0
    book.check_invariants()


def test_one_invitation_leaves_a_peer_reachable_for_others() -> None:
    book = RelayBook(RelaySettings())
    book.reserve(party(1), 3600, 0.0)
    for number in range(12):
        book.open(party(100 + number, b"lab"), peer(1), 0.0)
    with pytest.raises(BusyError, match="peers of your invitation have 12 circuits to"):
        book.open(party(112, b"lab"), peer(1), 0.0)
    book.open(party(200), peer(1), 0.0)


def test_who_opens_and_closes_without_end_is_slowed_down() -> None:
    book = RelayBook(RelaySettings(opens_per_second=2))
    book.reserve(party(1), 3600, 0.0)
    for _ in range(limits.RELAY_CIRCUITS_PER_ASKER_MAX):
        book.open(party(10), peer(1), 0.0)
        book.close(party(10), peer(1))
    with pytest.raises(BusyError, match="too often"):
        book.open(party(10), peer(1), 0.0)
    book.open(party(11), peer(1), 0.0)
    book.open(party(10), peer(1), 0.6)
    with pytest.raises(BusyError, match="too often"):
        book.open(party(10), peer(1), 0.6)
    for number in range(20, 20 + limits.RELAY_METERED_MAX + 5):
        book.open(party(number), peer(1), 1.0)
        book.close(party(number), peer(1))
    book.check_invariants()


def test_meters_count_both_ends_and_are_bounded() -> None:
    book = RelayBook(RelaySettings())
    book.moved(peer(1), peer(2), 100)
    book.moved(peer(2), peer(1), 5)
    assert (book.meters[peer(1)].sent_bytes, book.meters[peer(1)].received_bytes) == (100, 5)
    assert (book.meters[peer(2)].sent_bytes, book.meters[peer(2)].received_bytes) == (5, 100)
    for number in range(10, 10 + limits.RELAY_METERED_MAX):
        book.moved(peer(1), peer(number), 1)
    book.check_invariants()
    assert peer(1) in book.meters  # used all the time
    assert peer(2) not in book.meters


def test_a_bucket_gives_the_burst_and_then_the_rate() -> None:
    bucket = RateBucket(100.0, 50.0, 0.0)
    assert bucket.take(50, 0.0) == 0
    assert bucket.take(10, 0.0) == pytest.approx(0.1)
    assert bucket.take(10, 0.05) == pytest.approx(0.05)
    assert bucket.take(10, 0.1) == 0
    # Rest never saves up more than the burst, and one piece beyond the burst passes when the bucket is full.
    assert bucket.take(50, 1000.0) == 0
    assert bucket.take(1, 1000.0) > 0
    assert bucket.take(80, 2000.0) == 0
    moved, now = 0, 2000.0
    while now < 2010.0:
        pause_s = bucket.take(7, now)
        moved += 0 if pause_s else 7
        now += pause_s
    assert 980 <= moved <= 1010
