"""The beacon on the wire."""

from __future__ import annotations

import dataclasses

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.wire.beacon import (
    MAGIC,
    SIGNATURE_BYTES,
    Beacon,
    decode_beacon,
    network_tag,
    sign_beacon,
    view_hash,
)
from p2pcompute.wire.versions import BEACON
from tests.support.membership import NETWORK, OTHER_NETWORK, FakeKey, fake_verify

KEY = FakeKey("a")


def beacon(**changes: object) -> Beacon:
    plain = Beacon(
        tag=network_tag(NETWORK),
        public_key=KEY.public_key,
        instance=b"instance",
        time_ms=1_700_000_000_123,
        peer_port=9876,
        answer_port=40_000,
        view_hash=view_hash([KEY.peer]),
    )
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize("is_answer", [False, True])
def test_what_was_signed_is_what_arrives(is_answer: bool) -> None:
    sent = beacon(is_answer=is_answer)
    signed = decode_beacon(sign_beacon(sent, KEY))
    assert signed.beacon == sent
    assert signed.beacon.peer == KEY.peer
    assert signed.is_genuine(fake_verify)


def test_a_beacon_stays_within_its_limit_with_room_for_later_versions() -> None:
    assert len(sign_beacon(beacon(), KEY)) <= limits.BEACON_BYTES_MAX - 100


def test_bytes_of_later_versions_are_covered_by_the_signature() -> None:
    data = sign_beacon(beacon(extra=b"later"), KEY)
    assert decode_beacon(data).beacon.extra == b"later"
    assert decode_beacon(data).is_genuine(fake_verify)
    assert not decode_beacon(data.replace(b"later", b"lates")).is_genuine(fake_verify)


def test_every_changed_byte_is_refused_or_not_genuine() -> None:
    data = sign_beacon(beacon(), KEY)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x20
        try:
            signed = decode_beacon(bytes(changed))
        except ProtocolError:
            continue
        assert not signed.is_genuine(fake_verify), f"byte {place}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        b"GET / HTTP/1.1\r\n\r\n" + bytes(200),
        MAGIC + bytes([BEACON]) + bytes(limits.BEACON_BYTES_MAX),
        MAGIC + bytes([BEACON + 1]) + sign_beacon(beacon(), KEY)[5:],
        sign_beacon(beacon(), KEY)[:-SIGNATURE_BYTES],
        sign_beacon(beacon(peer_port=0), KEY),
        sign_beacon(beacon(answer_port=0), KEY),
    ],
)
def test_what_is_no_beacon_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_beacon(data)


def test_no_beacon_is_signed_that_would_be_refused_for_its_size() -> None:
    with pytest.raises(AssertionError):
        sign_beacon(beacon(extra=bytes(limits.BEACON_BYTES_MAX)), KEY)


def test_a_key_signs_only_its_own_beacon() -> None:
    with pytest.raises(AssertionError):
        sign_beacon(beacon(), FakeKey("b"))


def test_tags_tell_networks_apart_and_do_not_name_them() -> None:
    assert network_tag(NETWORK) != network_tag(OTHER_NETWORK)
    assert network_tag(NETWORK) not in NETWORK


def test_the_view_hash_depends_on_the_set_alone() -> None:
    peers = [FakeKey(number).peer for number in range(5)]
    assert view_hash(peers) == view_hash(reversed(peers))
    assert view_hash(peers) != view_hash(peers[1:])
