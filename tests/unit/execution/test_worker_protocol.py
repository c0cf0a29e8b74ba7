"""Frames between peer and worker, and the page that they share."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.worker_protocol import MalformedFrameError, StatePage

ROWS = st.lists(
    st.tuples(st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 2**40), st.binary(max_size=200)), max_size=20
)


@given(kind=st.integers(1, 99), text=st.text(max_size=50), tail_bytes=st.integers(0, protocol.TAIL_BYTES_MAX))
def test_a_frame_is_read_as_it_was_written(kind: int, text: str, tail_bytes: int) -> None:
    frame = protocol.pack_frame((kind, text), tail_bytes)
    head_bytes, tail = protocol.parse_header(frame)
    assert tail == tail_bytes
    assert head_bytes == len(frame) - protocol.HEADER.size
    assert protocol.parse_head(frame[protocol.HEADER.size :]) == [kind, text]


@given(rows=ROWS)
def test_ends_are_read_as_they_were_written(rows: list[tuple[int, int, int, bytes]]) -> None:
    packed = b"".join(protocol.pack_end(*row) for row in rows)
    assert [tuple(row) for row in protocol.parse_ends(packed)] == rows


@given(data=st.binary(max_size=300))
def test_any_bytes_raise_only_malformed_frame(data: bytes) -> None:
    for parse in (protocol.parse_head, protocol.parse_ends, protocol.parse_header):
        try:
            parse(data)
        except MalformedFrameError:
            continue


def test_claimed_lengths_are_not_believed() -> None:
    with pytest.raises(MalformedFrameError):
        protocol.parse_ends(b"\xdd\x7f\xff\xff\xff")  # an array of two thousand million members
    with pytest.raises(MalformedFrameError):
        protocol.parse_header(protocol.HEADER.pack(protocol.HEAD_BYTES_MAX + 1, 0))
    with pytest.raises(MalformedFrameError):
        protocol.parse_header(protocol.HEADER.pack(0, protocol.TAIL_BYTES_MAX + 1))


def test_both_sides_see_one_page() -> None:
    peer, descriptor = StatePage.make()
    worker = StatePage(descriptor)
    os.close(descriptor)
    assert (peer.running(), worker.cancels, peer.drains, peer.mirrored()) == ((0, 0.0), 0, 0, b"")
    worker.began(7, 1_500_000_000)
    peer.note_cancel()
    worker.note_drain()
    assert (peer.running(), worker.cancels, peer.drains) == ((7, 1.5), 1, 1)
    worker.ended()
    assert peer.running()[0] == 0
    worker.close()
    peer.close()


def test_the_mirror_keeps_what_fits() -> None:
    page, descriptor = StatePage.make()
    os.close(descriptor)
    page.mirror(b"one")
    page.mirror(b"two")
    assert page.mirrored() == b"onetwo"
    page.mirror(bytes(StatePage.BYTES))
    assert page.mirrored() == b"onetwo"
    page.clear_mirror()
    assert page.mirrored() == b""
    page.close()
