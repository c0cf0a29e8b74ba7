"""Strict decoding: what is taken, what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from p2pcompute.model.errors import AdmissionError, ProtocolError
from p2pcompute.model.job import Outcome, Payload
from p2pcompute.wire.codec import pack, unpack
from p2pcompute.wire.families import LINK_CODEC
from p2pcompute.wire.messages import Grant, JobOpen, Ping, Results, Tasks
from p2pcompute.wire.versions import PROTOCOL, negotiate

JOB = b"j" * 12


def test_messages_come_back() -> None:
    inline, blob = Payload(inline=b"x", size_bytes=1), Payload(blob=b"b" * 32, size_bytes=1 << 20)  # type: ignore[arg-type]
    for message in (
        Ping(7),
        Grant(3),
        Tasks(JOB, ((0, 1, 0, inline), (1 << 48, 2, 1, blob))),
        Results(JOB, ((0, 1, Outcome.RETURNED, 5, inline),)),
        JobOpen(JOB, b"p" * 32, 10, "name", 5, None, None, unknown={"later": 1}),
    ):
        assert LINK_CODEC.decode(LINK_CODEC.encode(message)) == message


def test_a_message_of_a_later_version_is_passed_over() -> None:
    assert LINK_CODEC.decode(pack([30_000, {"anything": 1}])) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "'slots' is missing"),
        ({"slots": -1}, "Grant.slots: expected a whole number"),
        ({"slots": True}, "Grant.slots"),
        ({"slots": 1.0}, "Grant.slots"),
        ([1], "expected a map"),
    ],
)
def test_what_is_wrong_is_named(fields: Any, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        LINK_CODEC.decode(pack([Grant.kind, fields]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000 + b"\x01",
        b"\xdd\xff\xff\xff\xff",
        pack([1]) + b"\x00",
        msgpack.packb(msgpack.ExtType(5, b"x")),
        b"\x81\x91\x01\x01",
        b"\xa1\xff",
    ],
)
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(data)


def test_nesting_and_size_are_limited() -> None:
    deep: Any = 1
    for _ in range(13):
        deep = [deep]
    with pytest.raises(ProtocolError, match="nested"):
        unpack(pack(deep))
    with pytest.raises(ProtocolError, match="at most 10"):
        unpack(pack("x" * 20), bytes_max=10)


def test_versions_are_negotiated() -> None:
    assert negotiate(PROTOCOL + 5, PROTOCOL) == PROTOCOL
    with pytest.raises(AdmissionError, match="upgrade the older"):
        negotiate(PROTOCOL + 5, PROTOCOL + 1)
