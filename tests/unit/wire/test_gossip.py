"""What gossip says: that it fits into datagrams, and what is refused."""

from __future__ import annotations

import pytest

from p2pcompute.membership import traffic
from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.peer import Coordinate
from p2pcompute.wire import gossip
from p2pcompute.wire.families import GOSSIP_CODEC, GOSSIP_MESSAGES, LINK_MESSAGES
from p2pcompute.wire.messages import Message, Records
from tests.support.membership import FakeKey, fake_verify

A, B = FakeKey("a"), FakeKey("b")
LARGE = (1 << 63) - 1
FARTHEST = Coordinate((-100.0,) * 8, 100.0, 10.0, -100.0)


def size(message: Message) -> int:
    return len(GOSSIP_CODEC.encode(message))


def filled(rumour_bytes: int) -> tuple[bytes, ...]:
    """As many rumours of one size as the room for them holds."""
    count = gossip.RUMOURS_ROOM_BYTES // (rumour_bytes + gossip.RUMOUR_OVERHEAD_BYTES)
    return (b"r" * rumour_bytes,) * min(count, limits.RUMOURS_PER_MESSAGE_MAX)


@pytest.mark.parametrize("rumour_bytes", [limits.RUMOUR_BYTES_MIN, 119, 137, 255])
def test_whatever_carries_rumours_fits_into_a_datagram_with_all_that_there_is_room_for(rumour_bytes: int) -> None:
    rumours = filled(rumour_bytes)
    for message in (
        gossip.Probe(LARGE, rumours),
        gossip.Ack(LARGE, LARGE, FARTHEST, rumours),
        gossip.ProbeVia(LARGE, A.peer, 60_000, rumours),
        gossip.ViaAck(LARGE, True, rumours),
        gossip.Rumours(rumours),
    ):
        assert size(message) <= gossip.MESSAGE_BYTES_MAX < limits.DATAGRAM_PAYLOAD_BYTES_MAX, message
        assert GOSSIP_CODEC.decode(GOSSIP_CODEC.encode(message)) == message


def test_the_largest_of_the_others_fit_as_well() -> None:
    row = (b"p" * gossip.PREFIX_BYTES, LARGE, LARGE)
    for message in (
        gossip.Digest(b"d" * 512),
        gossip.Versions((row,) * gossip.VERSIONS_PER_DATAGRAM_MAX, tuple(range(limits.DIGEST_BUCKETS))),
        gossip.Want((b"p" * 32,) * limits.WANTS_PER_DATAGRAM_MAX),
        gossip.Piece(b"w" * 8, 15, 16, b"d" * gossip.PIECE_BYTES),
        Records((b"r" * (gossip.RECORDS_ROOM_BYTES - gossip.RECORD_OVERHEAD_BYTES),)),
        Records((b"r" * 300,) * (gossip.RECORDS_ROOM_BYTES // 303)),
    ):
        assert size(message) <= gossip.MESSAGE_BYTES_MAX, type(message).__name__
    assert 16 * gossip.PIECE_BYTES >= limits.RECORD_BYTES_MAX


def test_gossip_goes_over_links_too() -> None:
    assert set(GOSSIP_MESSAGES) <= set(LINK_MESSAGES)


def test_the_sizes_that_the_traffic_formulas_count_with_are_those_of_the_codec() -> None:
    nonce, near = 1 << 47, Coordinate((0.01, -0.02, 0.003), 0.001, 0.5)
    announced = gossip.announcement_wire(gossip.Announcement(A.peer[:12], 1_700_000_000_000, 3))
    assert size(gossip.Probe(nonce)) == pytest.approx(traffic.PROBE_BYTES, abs=4)
    assert size(gossip.Ack(nonce, 0, near)) == pytest.approx(traffic.ACK_BYTES, abs=8)
    assert size(gossip.Want((A.peer[:12],))) == pytest.approx(traffic.WANT_BYTES, abs=4)
    assert size(gossip.Rumours(())) == pytest.approx(traffic.RUMOURS_BYTES, abs=4)
    assert size(gossip.Digest(b"d" * 512)) == pytest.approx(traffic.DIGEST_BYTES, abs=4)
    assert size(Records((b"r" * 600,))) == pytest.approx(600 + traffic.RECORDS_BYTES, abs=4)
    assert len(announced) + gossip.RUMOUR_OVERHEAD_BYTES == traffic.ANNOUNCEMENT_BYTES


def test_rumours_are_read_as_they_were_written() -> None:
    said = gossip.Announcement(B.peer[:12], 1_700_000_000_000, 9)
    assert gossip.read_rumour(gossip.announcement_wire(said), fake_verify) == said
    accused = gossip.sign_suspicion(B.peer, 17, A)
    assert gossip.read_rumour(accused, fake_verify) == gossip.Suspicion(A.peer, B.peer, 17)
    update = gossip.LoadUpdate(A.peer, 17, 4, 1.25, 0.5, 8.0)
    assert gossip.read_rumour(gossip.sign_load(update, A), fake_verify) == update
    assert [len(wire) for wire in (gossip.announcement_wire(said), accused, gossip.sign_load(update, A))] == [
        25,
        137,
        119,
    ]


@pytest.mark.parametrize("place", range(137))
def test_no_byte_of_an_accusation_can_be_changed(place: int) -> None:
    wire = bytearray(gossip.sign_suspicion(B.peer, 17, A))
    wire[place] ^= 0x40
    try:
        assert gossip.read_rumour(bytes(wire), fake_verify) is None, "a kind of a later version"
        assert place == 0
    except ProtocolError:
        pass


@pytest.mark.parametrize("wire", [b"", b"\0", b"\x01short", b"\x02" * 136, b"\x03" * 400, b"\x01" + b"\xff" * 24])
def test_what_is_no_rumour_is_refused(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        gossip.read_rumour(wire, fake_verify)


def test_a_rumour_of_a_later_version_is_passed_over() -> None:
    assert gossip.read_rumour(b"\x09" + bytes(50), fake_verify) is None
