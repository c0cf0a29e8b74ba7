"""Signed pointers: what is signed is what is read, nobody else's, within its time; and the values that are known."""

from __future__ import annotations

import dataclasses

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError, UsageError
from p2pcompute.model.ids import BlobId, JobId, PeerId
from p2pcompute.model.peer import Address, Reach, Relay
from p2pcompute.wire import codec, identity, record
from p2pcompute.wire.identity import PeerKey, verify_signature
from p2pcompute.wire.pointer import (
    CONTEXT,
    PRESENCE_NAME,
    RELAY_NAME,
    JobPointer,
    Name,
    Pointer,
    Presence,
    RelayOffer,
    ResultPointer,
    decode_pointer,
    encode_value,
    job_name,
    open_pointer,
    pack_address,
    pointer_key,
    portable_addresses,
    read_address,
    read_value,
    result_name,
    sign_pointer,
)

KEY = PeerKey(bytes(range(32)))
JOB = JobId(b"a job of 12.")
NOW = 1_800_000_000


def signed(value: bytes = b"value", name: Name = PRESENCE_NAME, **changes: int) -> Pointer:
    """A pointer of `KEY`."""
    fields = {"version": 7, "issued_s": NOW, "lifetime_s": 3_600} | changes
    return sign_pointer(KEY, name, value, **fields)


@pytest.mark.parametrize("name", [PRESENCE_NAME, job_name(JOB), Name(255, bytes(limits.POINTER_LABEL_BYTES_MAX))])
@pytest.mark.parametrize("value", [b"", b"v", bytes(700)], ids=len)
def test_what_is_signed_is_what_is_read(name: Name, value: bytes) -> None:
    made = signed(value, name)
    again = open_pointer(made.wire, verify_signature)
    assert again == made
    assert again.owner == KEY.peer_id
    assert again.key == pointer_key(KEY.peer_id, name)


def test_every_bit_is_signed() -> None:
    wire = signed().wire
    for place in range(len(wire)):
        damaged = wire[:place] + bytes([wire[place] ^ 1]) + wire[place + 1 :]
        with pytest.raises(ProtocolError):
            open_pointer(damaged, verify_signature)


def test_a_signature_for_something_else_is_no_pointers() -> None:
    wire = signed().wire
    assert CONTEXT not in (*identity.CONTEXTS, record.CONTEXT)
    elsewhere = wire[:-64] + KEY.sign(record.CONTEXT, wire[:-64])
    with pytest.raises(ProtocolError, match="signature"):
        open_pointer(elsewhere, verify_signature)


def test_another_owner_or_name_is_another_key() -> None:
    other = PeerKey(bytes(32)).peer_id
    keys = [
        pointer_key(owner, name)
        for owner in (KEY.peer_id, other)
        for name in (PRESENCE_NAME, RELAY_NAME, job_name(JOB), result_name(JOB))
    ]
    assert len(set(keys)) == 8
    assert all(len(key) == 20 for key in keys)


@pytest.mark.parametrize("size", [0, 1, 54, 118, limits.POINTER_BYTES_MAX + 1])
def test_sizes_out_of_bounds_are_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="bytes"):
        decode_pointer((signed().wire + bytes(2_000))[:size])


def test_the_largest_value_fits_and_one_byte_more_does_not() -> None:
    room = limits.POINTER_BYTES_MAX - 119 - len(JOB)
    assert len(signed(bytes(room), job_name(JOB)).wire) == limits.POINTER_BYTES_MAX
    with pytest.raises(UsageError, match=f"at most {room} fit"):
        signed(bytes(room + 1), job_name(JOB))


@pytest.mark.parametrize(
    "changes", [{"lifetime_s": 0}, {"lifetime_s": limits.POINTER_LIFETIME_MAX_S + 1}], ids=["none", "too long"]
)
def test_impossible_lifetimes_are_not_signed(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="seconds"):
        signed(**changes)


def test_impossible_names_are_not_signed() -> None:
    for name in (Name(256), Name(-1), Name(1, bytes(limits.POINTER_LABEL_BYTES_MAX + 1))):
        with pytest.raises(UsageError, match="label"):
            signed(name=name)


def _resigned(body: bytes) -> bytes:
    return body + KEY.sign(CONTEXT, body)


@pytest.mark.parametrize(
    ("place", "content", "match"),
    [
        (0, b"\x02", "layout"),
        (34, b"\xff", "label"),
        (35, b"\xff" * 8, "impossible"),
        (43, b"\xff" * 8, "impossible"),
        (51, bytes(4), "impossible"),
        (51, b"\xff" * 4, "impossible"),
    ],
)
def test_what_no_honest_owner_signs_is_refused(place: int, content: bytes, match: str) -> None:
    body = signed().wire[:-64]
    with pytest.raises(ProtocolError, match=match):
        open_pointer(_resigned(body[:place] + content + body[place + len(content) :]), verify_signature)


def test_newer_versions_compare_greater() -> None:
    old, new = signed(version=7), signed(version=8, issued_s=NOW - 100)
    assert new.order > old.order
    assert signed(b"a").order != signed(b"b").order, "two of one version are told apart the same way by everybody"


@pytest.mark.parametrize(
    ("ahead_s", "keep_s"),
    [
        (0, 3_600),
        (-600, 3_600),
        (-601, 0),
        (600, 3_600),
        (3_600, 600),
        (4_199, 1),
        (4_200, 0),
        (9_000, 0),
    ],
)
def test_how_long_it_is_kept_by_a_clock_that_is_ahead_of_the_owners(ahead_s: int, keep_s: int) -> None:
    assert signed().keep_s(NOW + ahead_s) == keep_s


# --- addresses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1.2.3.4:5", "255.255.255.255:65535", "[::1]:1", "[2001:db8::5]:9876"])
def test_addresses_come_back(text: str) -> None:
    address = Address.parse(text)
    data = pack_address(address)
    assert len(data) == (19 if ":" in address.host else 7)
    assert read_address(data) == (address, len(data))
    assert read_address(b"xx" + data, 2) == (address, len(data) + 2)
    for size in range(len(data)):
        with pytest.raises(ProtocolError):
            read_address(data[:size])


@pytest.mark.parametrize("data", [b"\5\1\1\1\1\0\1", b"\4\1\1\1\1\0\0", b"\0"])
def test_addresses_of_no_family_or_port_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_address(data)


@pytest.mark.parametrize(
    "address",
    [Address("host.example", 1), Address("fe80::1%eth0", 1), Address("1.2.3.4", 0), Address("1.2.3.4", 70_000)],
)
def test_addresses_that_mean_nothing_elsewhere_are_not_packed(address: Address) -> None:
    with pytest.raises(UsageError):
        pack_address(address)


def test_portable_addresses_keep_their_order() -> None:
    kept = [Address("10.0.0.1", 1), Address("2001:db8::1", 2), Address("127.0.0.1", 3)]
    mixed = [Address("fe80::1%eth0", 1), kept[0], Address("x.example", 1), *kept[1:], Address("0.0.0.0", 1)]
    assert portable_addresses(mixed) == tuple(kept)
    assert len(portable_addresses([Address("10.0.0.1", 1 + n) for n in range(99)])) == limits.ADDRESSES_MAX


# --- values -------------------------------------------------------------------------------------------------------------

PEER = PeerId(bytes(range(32)))
VALUES = [
    (PRESENCE_NAME, Presence(1, ())),
    (
        PRESENCE_NAME,
        Presence(
            5,
            tuple(Address(f"2001:db8::{n + 1:x}", 9876) for n in range(limits.ADDRESSES_MAX)),
            tuple(Relay(PEER, Address("2001:db8::99", 9)) for _ in range(limits.RELAYS_MAX)),
            Reach.PRIVATE,
        ),
    ),
    (RELAY_NAME, RelayOffer((Address("1.2.3.4", 5),), 32)),
    (job_name(JOB), JobPointer(JOB, PEER, 3)),
    (result_name(JOB), ResultPointer(JOB, BlobId(bytes(32)), 1 << 20, (PEER,) * 8)),
    (result_name(JOB), ResultPointer(JOB, None, 0)),
]


@pytest.mark.parametrize(("name", "value"), VALUES, ids=lambda each: type(each).__name__)
def test_values_come_back_even_the_largest(name: Name, value: object) -> None:
    assert read_value(signed(encode_value(value), name)) == value  # type: ignore[arg-type]


def test_fields_of_later_versions_are_kept() -> None:
    fields = codec.unpack(encode_value(Presence(1, ()))) | {"later": [1, 2]}
    value = read_value(signed(codec.pack(fields)))
    assert isinstance(value, Presence)
    assert value.unknown == {"later": [1, 2]}
    assert codec.unpack(encode_value(value)) == fields


def test_a_reach_of_a_later_version_is_unknown() -> None:
    fields = codec.unpack(encode_value(Presence(1, ()))) | {"reach": "telepathic"}
    value = read_value(signed(codec.pack(fields)))
    assert isinstance(value, Presence)
    assert value.reach is Reach.UNKNOWN


def test_kinds_of_later_versions_say_nothing() -> None:
    assert read_value(signed(b"whatever", Name(77))) is None


@pytest.mark.parametrize(
    "value", [b"", b"\xc1", codec.pack([]), codec.pack({}), codec.pack({"incarnation": -1, "addresses": b""}),
              codec.pack({"incarnation": 1, "addresses": b"\4\1\1\1\1\0"}),
              codec.pack({"incarnation": 1, "addresses": b"\4\1\1\1\1\0\1" * (limits.ADDRESSES_MAX + 1)})]
)  # fmt: skip
def test_nonsense_in_a_value_is_refused(value: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_value(signed(value))


def test_a_pointer_speaks_of_the_job_in_its_name() -> None:
    other = dataclasses.replace(JobPointer(JOB, PEER), job=JobId(b"another job."))
    with pytest.raises(ProtocolError, match="another job"):
        read_value(signed(encode_value(other), job_name(JOB)))
