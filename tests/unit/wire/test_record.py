"""Signed records: whole, genuine, and kind to fields of later versions."""

from __future__ import annotations

import dataclasses

import pytest

from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import Address, Edge, Isolation, PeerRecord, Role
from p2pcompute.wire.codec import pack, unpack
from p2pcompute.wire.identity import PeerKey, verify_signature
from p2pcompute.wire.record import CONTEXT, open_record, sign_record

KEY = PeerKey(b"k" * 32)
RECORD = PeerRecord(
    peer=KEY.peer_id,
    network=NetworkId(b"n" * 32),
    incarnation=1_700_000_000_000,
    sequence=3,
    name="workshop",
    addresses=(Address("192.0.2.7", 9876), Address("2001:db8::7", 9876)),
    capability=Capability(8, 3200.0, 0.75, 32.0, 20.0, (Gpu("gpu", 24.0, 0.5),), 940.0, 0.4, 0.0),
    slots=8,
    load=0.25,
    roles=frozenset({Role.COMPUTE, Role.SUBMIT}),
    isolation=Isolation.PROCESS,
    python="3.12.1",
    platform="linux x86_64",
    version="0.1.0",
    edges=(Edge(PeerId(b"e" * 32), 0.002, None),),
    functions=("f",),
    labels=("lab",),
)


def test_a_record_comes_back_whole() -> None:
    opened = open_record(sign_record(RECORD, KEY).wire, verify_signature)
    assert opened.record == RECORD
    assert opened.public_key == KEY.public_key


def test_fields_of_later_versions_survive_being_passed_on() -> None:
    newer = dataclasses.replace(RECORD, unknown={"colour": "green", "depth": [1, {"x": 2}]})
    opened = open_record(sign_record(newer, KEY).wire, verify_signature)
    assert opened.record.unknown == {"colour": "green", "depth": [1, {"x": 2}]}
    again = open_record(opened.wire, verify_signature)
    assert again.wire == opened.wire, "what is passed on is what was received"


def test_price_and_tier_travel_only_where_they_say_something() -> None:
    dear = dataclasses.replace(RECORD, cost_per_hour=2.5, performance_tier="premium")
    assert open_record(sign_record(dear, KEY).wire, verify_signature).record == dear
    body = unpack(unpack(sign_record(RECORD, KEY).wire)[2])
    assert not {"cost_per_hour", "performance_tier"} & set(body)


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("performance_tier", "golden", "standard"),
        ("cost_per_hour", -1.0, None),
        ("cost_per_hour", 1e10, None),
        ("cost_per_hour", "1", None),
    ],
)
def test_prices_and_tiers_of_others(field: str, value: object, read: object) -> None:
    version, public, body, _ = unpack(sign_record(RECORD, KEY).wire)
    changed = pack({**unpack(body), field: value})
    wire = pack([version, public, changed, KEY.sign(CONTEXT + bytes([version]), changed)])
    if read is None:
        with pytest.raises(ProtocolError, match=field):
            open_record(wire, verify_signature)
    else:
        assert getattr(open_record(wire, verify_signature).record, field) == read


def test_nobody_else_can_write_it() -> None:
    wire = sign_record(RECORD, KEY).wire
    version, public, body, signature = unpack(wire)
    other = PeerKey(b"o" * 32)
    forged = [
        pack([version, public, body[:-1] + bytes([body[-1] ^ 1]), signature]),
        pack([version, public, body, signature[:-1] + bytes([signature[-1] ^ 1])]),
        pack([version, other.public_key, body, other.sign(CONTEXT + bytes([version]), body)]),
        pack([version + 1, public, body, signature]),
        pack([version, public, body, KEY.sign(b"p2pc-beacon\0", body)]),
    ]
    for bad in forged:
        with pytest.raises(ProtocolError):
            open_record(bad, verify_signature)


@pytest.mark.parametrize("change", [{"slots": -1}, {"name": "x" * 65}, {"load": -0.5}, {"python": 3}])
def test_a_signed_record_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    version, public, body, _ = unpack(sign_record(RECORD, KEY).wire)
    fields = {**unpack(body), **change}
    bad = pack(fields)
    with pytest.raises(ProtocolError, match=next(iter(change))):
        open_record(pack([version, public, bad, KEY.sign(CONTEXT + bytes([version]), bad)]), verify_signature)


@pytest.mark.parametrize(
    "told",
    ["example.org:80", "[fe80::1%eth0]:80", "[fe80::1%²]:80", "[fe80::1%a..b]:80", "[fe80::1%a\0]:80", "1.2.3.4%x:80"],
)
@pytest.mark.parametrize("where", ["addresses", "relays"])
def test_a_record_holds_neither_host_names_nor_zones(told: str, where: str) -> None:
    version, public, body, _ = unpack(sign_record(RECORD, KEY).wire)
    bad = pack({**unpack(body), where: [told] if where == "addresses" else [[b"r" * 32, told]]})
    with pytest.raises(ProtocolError, match=where):
        open_record(pack([version, public, bad, KEY.sign(CONTEXT + bytes([version]), bad)]), verify_signature)


def test_nobody_is_told_a_zone() -> None:
    zoned = dataclasses.replace(RECORD, addresses=(Address("fe80::1%eth0", 9876),))
    assert open_record(sign_record(zoned, KEY).wire, verify_signature).record.addresses == (Address("fe80::1", 9876),)
