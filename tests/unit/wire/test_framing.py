"""Frames: the same frames whatever the pieces, and only ProtocolError whatever the bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.model import limits
from p2pcompute.model.errors import FrameTooLargeError, ProtocolError
from p2pcompute.wire.framing import (
    FrameReader,
    FrameType,
    credit_frame,
    credit_of,
    end_frame,
    frame_header,
    message_frame,
    parse_frames,
    reset_frame,
)


def chunk_frame(stream: int, payload: bytes) -> bytes:
    return frame_header(FrameType.CHUNK, stream, len(payload)) + payload


def plain(frames: list[tuple[int, int, memoryview]]) -> list[tuple[int, int, bytes]]:
    return [(kind, stream, bytes(payload)) for kind, stream, payload in frames]


def read_by_buffer(data: bytes, sizes: list[int]) -> tuple[list[tuple[int, int, bytes]], FrameReader]:
    """What a reader finds when `data` arrives through its buffer in pieces of `sizes`, repeated."""
    reader = FrameReader()
    found: list[tuple[int, int, bytes]] = []
    position = turn = 0
    while position < len(data):
        room = reader.get_buffer()
        assert len(room) > 0
        piece = data[position : position + min(sizes[turn % len(sizes)], len(room))]
        room[: len(piece)] = piece
        found += plain(reader.buffer_updated(len(piece)))
        position += len(piece)
        turn += 1
    return found, reader


def read_by_feed(data: bytes, sizes: list[int]) -> tuple[list[tuple[int, int, bytes]], FrameReader]:
    reader = FrameReader()
    found: list[tuple[int, int, bytes]] = []
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        found += plain(reader.feed(data[position : position + size]))
        position += size
        turn += 1
    return found, reader


def test_layout_is_the_documented_one() -> None:
    assert message_frame(b"ab") == b"\0\0\0\x07" + b"\0" + b"\0\0\0\0" + b"ab"
    assert credit_frame(5, 258) == b"\0\0\0\x09" + b"\x02" + b"\0\0\0\x05" + b"\0\0\x01\x02"
    assert end_frame(6) == b"\0\0\0\x05" + b"\x03" + b"\0\0\0\x06"
    assert reset_frame(6) == b"\0\0\0\x05" + b"\x04" + b"\0\0\0\x06"


def test_credit_comes_back() -> None:
    ((kind, stream, payload),) = parse_frames(credit_frame(9, 4_000_000_000))
    assert (kind, stream, credit_of(payload)) == (FrameType.CREDIT, 9, 4_000_000_000)


_FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=300).map(lambda payload: (0, 0, payload)),
        st.tuples(st.just(1), st.integers(1, 2**32 - 1), st.binary(min_size=1, max_size=300)),
        st.tuples(st.sampled_from([3, 4]), st.integers(1, 2**32 - 1), st.just(b"")),
    ),
    max_size=12,
)


def encoded(frames: list[tuple[int, int, bytes]]) -> bytes:
    return b"".join(frame_header(FrameType(kind), stream, len(payload)) + payload for kind, stream, payload in frames)


@given(_FRAMES, st.lists(st.integers(1, 700), min_size=1, max_size=6))
def test_any_pieces_give_the_same_frames(frames: list[tuple[int, int, bytes]], sizes: list[int]) -> None:
    data = encoded(frames)
    for read in (read_by_buffer, read_by_feed):
        found, reader = read(data, sizes)
        assert found == frames
        assert reader.failure is None
        assert reader.pending_bytes == 0


def test_large_frames_across_many_wakes() -> None:
    rng = random.Random(7)
    frames = [
        (1, 4, rng.randbytes(rng.choice([1, 100, limits.CHUNK_BYTES, limits.FRAME_BYTES_MAX]))) for _ in range(30)
    ]
    data = encoded(frames)
    for read in (read_by_buffer, read_by_feed):
        for sizes in ([262_144], [65_536, 17], [1_500_000], [9_999, 300_001]):
            found, _ = read(data, sizes)
            assert found == frames


def test_an_idle_reader_shrinks_to_no_pending_bytes_and_a_partial_frame_waits() -> None:
    frame = message_frame(b"x" * 50)
    reader = FrameReader()
    assert reader.feed(frame[:-1]) == []
    assert reader.pending_bytes == len(frame) - 1
    assert plain(reader.feed(frame[-1:] + frame)) == [(0, 0, b"x" * 50)] * 2
    assert reader.pending_bytes == 0


def test_largest_frame_passes_and_one_byte_more_does_not() -> None:
    assert len(parse_frames(chunk_frame(2, bytes(limits.FRAME_BYTES_MAX)))) == 1
    # The header alone is refused: nobody waits for the megabytes it announces.
    with pytest.raises(FrameTooLargeError, match="1048577"):
        parse_frames(frame_header(FrameType.CHUNK, 2, limits.FRAME_BYTES_MAX + 1))
    with pytest.raises(FrameTooLargeError):
        message_frame(bytes(limits.FRAME_BYTES_MAX + 1))


def test_smaller_limit_before_admission() -> None:
    reader = FrameReader(100)
    assert reader.feed(message_frame(bytes(101))) == []
    assert isinstance(reader.failure, FrameTooLargeError)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"\0\0\0\x04\0\0\0\0\0", "shortest"),
        (b"\0\0\0\x05\x05\0\0\0\x01", "type 5"),
        (b"\0\0\0\x06\0\0\0\0\x01z", "stream 1"),
        (b"\0\0\0\x06\x01\0\0\0\0z", "stream 0"),
        (b"\0\0\0\x05\x01\0\0\0\x01", "0 bytes"),
        (b"\0\0\0\x08\x02\0\0\0\x01abc", "3 bytes"),
        (b"\0\0\0\x06\x03\0\0\0\x01z", "1 bytes"),
        (b"\0\0\0\x06\x04\0\0\0\x01z", "1 bytes"),
    ],
)
def test_malformed_headers(header: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        parse_frames(header)


def test_frames_before_the_fault_are_returned_and_nothing_after_it() -> None:
    good, bad = message_frame(b"good"), b"\xff" * 20
    for read in (read_by_buffer, read_by_feed):
        found, reader = read(good + bad + good, [1000])
        assert found == [(0, 0, b"good")]
        assert reader.failure is not None
        assert reader.feed(good) == []


@given(st.binary(max_size=2_000))
def test_random_bytes_raise_only_protocol_errors(data: bytes) -> None:
    try:
        frames = parse_frames(data)
    except ProtocolError:
        return
    for kind, stream, payload in frames:
        assert 0 <= kind <= 4
        assert (kind == 0) == (stream == 0)
        assert len(payload) <= limits.FRAME_BYTES_MAX


def test_little_is_read_at_a_time_but_the_rest_of_a_large_frame() -> None:
    reader = FrameReader()
    ping = message_frame(bytes(10))
    room = reader.get_buffer()
    assert len(room) <= 2_000 * len(ping), "so many small messages are dealt with in one turn of the loop"
    head = frame_header(FrameType.CHUNK, 1, 1 << 20) + bytes(100)
    room[: len(head)] = head
    assert reader.buffer_updated(len(head)) == []
    assert len(reader.get_buffer()) >= (1 << 20) - 100
