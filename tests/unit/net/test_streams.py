"""Streams: windows, turns, numbers, resets, and what a dishonest side may not do."""

from __future__ import annotations

import random

import pytest

from p2pcompute.model.errors import BusyError, ProtocolError
from p2pcompute.net.streams import StreamReceiver, StreamSender


def test_chunks_end_and_window() -> None:
    sender = StreamSender(chunk_bytes=10, window_bytes=25)
    sender.open(2, b"a" * 30)
    assert [sender.next_chunk() for _ in range(4)] == [
        (2, b"a" * 10, False),
        (2, b"a" * 10, False),
        (2, b"a" * 5, False),
        None,
    ]
    sender.credit(2, 20)
    assert sender.next_chunk() == (2, b"a" * 5, True)
    assert len(sender) == 0
    assert not sender.ready


def test_streams_take_turns() -> None:
    sender = StreamSender(chunk_bytes=1, window_bytes=100)
    for stream in (2, 4, 6):
        sender.open(stream, b"xyz")
    order = []
    while (chunk := sender.next_chunk()) is not None:
        order.append(chunk[0])
    assert order == [2, 4, 6] * 3


def test_an_empty_stream_ends_at_once() -> None:
    sender = StreamSender()
    sender.open(8, b"")
    assert sender.next_chunk() == (8, b"", True)


def test_reset_in_the_middle_and_credit_after_the_end_are_harmless() -> None:
    sender = StreamSender(chunk_bytes=1, window_bytes=2)
    sender.open(2, b"abc")
    assert sender.next_chunk() is not None
    sender.reset(2)
    assert sender.next_chunk() is None
    sender.credit(2, 1)
    sender.reset(2)
    assert sender.next_chunk() is None


def test_streams_that_are_asked_for_and_reset_leave_nothing_behind() -> None:
    sender = StreamSender(open_max=4)
    for number in range(1, 2_001, 2):
        sender.open(number, bytes(10))
        sender.reset(number)
        assert not sender.ready
    with pytest.raises(ProtocolError, match="twice"):
        sender.open(1_999, b"again")
    with pytest.raises(ProtocolError, match="later"):
        sender.open(1_001, b"before")
    sender.open(2_001, b"x")
    sender.open(2_003, b"y")
    sender.reset(2_001)
    assert sender.next_chunk() == (2_003, b"y", True)
    assert (len(sender), len(sender._round)) == (0, 0)


def test_limits_of_the_sender() -> None:
    sender = StreamSender(window_bytes=10, open_max=2)
    sender.open(2, b"a")
    with pytest.raises(ProtocolError, match="twice"):
        sender.open(2, b"b")
    sender.open(4, b"b" * 20)
    with pytest.raises(BusyError):
        sender.open(6, b"c")
    with pytest.raises(ProtocolError, match="never used"):
        sender.credit(4, 11)


def test_numbers_of_the_two_sides_never_meet() -> None:
    dialler, accepter = StreamReceiver(dialled=True), StreamReceiver(dialled=False)
    assert [dialler.open(1) for _ in range(3)] == [2, 4, 6]
    assert [accepter.open(1) for _ in range(3)] == [1, 3, 5]
    dialler.check_known(6)
    for stream in (1, 8):
        with pytest.raises(ProtocolError, match="nobody asked"):
            dialler.check_known(stream)


def test_limits_of_the_receiver() -> None:
    receiver = StreamReceiver(dialled=True, window_bytes=8)
    stream = receiver.open(6)
    with pytest.raises(ProtocolError, match="beyond its window"):
        receiver.chunk(stream, memoryview(b"123456789"))
    with pytest.raises(ProtocolError, match="asked for"):
        receiver.chunk(stream, memoryview(b"1234567"))
    assert receiver.close(stream) == b""
    assert receiver.close(stream) is None


def test_data_arrive_whole_and_the_window_is_never_exceeded() -> None:
    rng = random.Random(3)
    window, chunk = 64, 10
    sender = StreamSender(chunk_bytes=chunk, window_bytes=window)
    receiver = StreamReceiver(dialled=True, window_bytes=window)
    contents = [rng.randbytes(rng.choice([0, 1, 10, 63, 64, 65, 1000])) for _ in range(40)]
    streams = {receiver.open(1000): content for content in contents}
    for stream, content in streams.items():
        sender.open(stream, content)
    credits: list[tuple[int, int]] = []
    finished: dict[int, bytes] = {}
    while len(finished) < len(streams):
        # Credit comes back late and in any order, as over a real link with traffic both ways.
        if credits and rng.random() < 0.4:
            sender.credit(*credits.pop(rng.randrange(0, len(credits))))
            continue
        found = sender.next_chunk()
        if found is None:
            assert credits, "the sender waits for credit that was never given: a dead-lock"
            continue
        stream, payload, last = found
        if payload:
            owed = receiver.chunk(stream, payload)
            if owed:
                credits.append((stream, owed))
        if last:
            content = receiver.close(stream)
            assert content is not None
            finished[stream] = bytes(content)
    assert finished == streams


def test_what_was_promised_comes_after_what_was_asked_for_later() -> None:
    sender = StreamSender()
    sender.promise(2)
    sender.open(4, b"later")
    assert sender.next_chunk() == (4, b"later", True)
    assert sender.fulfil(2, b"at last")
    assert sender.next_chunk() == (2, b"at last", True)
    assert not sender.fulfil(2, b"again"), "a promise is kept once"
    assert sender.next_chunk() is None


def test_a_promise_that_is_not_wanted_any_more_or_cannot_be_kept_sends_nothing() -> None:
    sender = StreamSender()
    sender.promise(2)
    sender.reset(2)
    assert not sender.fulfil(2, b"too late")
    sender.promise(4)
    assert sender.fulfil(4, None)
    sender.promise(6)
    sender.clear()
    assert not sender.fulfil(6, b"the link is gone")
    assert sender.next_chunk() is None


def test_promises_count_as_open_streams() -> None:
    sender = StreamSender(open_max=2)
    sender.promise(2)
    sender.open(4, b"x")
    with pytest.raises(BusyError):
        sender.promise(6)
    with pytest.raises(ProtocolError):
        sender.promise(4)
    assert sender.fulfil(2, b"y")
