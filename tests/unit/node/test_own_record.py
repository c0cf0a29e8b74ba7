"""The own record: told again on change, not on noise, and small enough for one datagram."""

from __future__ import annotations

import dataclasses
import os
import random
from typing import Any

import pytest

from p2pcompute.membership.pacing import Around, Tell
from p2pcompute.model import limits
from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import DEFAULT_ROLES, Address, Coordinate, Edge, Isolation, Reach, Relay
from p2pcompute.node.own_record import EDGES_KEPT, RECORD_WIRE_BYTES_MAX, Identity, OwnRecord, with_network
from p2pcompute.wire.families import GOSSIP_CODEC
from p2pcompute.wire.gossip import LoadUpdate, read_rumour
from p2pcompute.wire.identity import PeerKey, verify_signature
from p2pcompute.wire.messages import Records
from p2pcompute.wire.record import open_record
from p2pcompute.wire.versions import PROTOCOL

CAPABILITY = Capability(4, 2000.0, 0.5, 16.0, 8.0)
ADDRESSES = (Address("192.0.2.1", 9876),)
EDGE = Edge(PeerId(b"p" * 32), 0.01, 100.0)
#: A workstation as the probes see it.
LARGE = Capability(16, 3613.27, 0.5134, 31.2678, 20.1234, (Gpu("NVIDIA GeForce RTX 4090", 23.98828, 0.05),))
PLACE = Coordinate((0.0123456, -0.0812345, 0.0212345), 0.0012345, 0.2123, 0.0003123)
TWO_ADDRESSES = (Address("192.168.100.200", 9876), Address("2001:db8:1234:5678:9abc:def0:1234:5678", 9876))


def record(**changes: Any) -> OwnRecord:
    key = PeerKey(os.urandom(32))
    numbers = iter(range(1, 100))
    identity = Identity(key.peer_id, NetworkId(b"n" * 32), "me", 2, DEFAULT_ROLES, Isolation.PROCESS, ("label",), "0")
    rng = random.Random(0)
    return OwnRecord(
        identity, key, lambda at_least: max(next(numbers), at_least), CAPABILITY, ADDRESSES, rng, **changes
    )


def edges(count: int) -> list[Edge]:
    return [
        Edge(PeerId(os.urandom(32)), 0.0123456789 * (number + 1), 94.123456 * (number + 1)) for number in range(count)
    ]


def test_noise_is_not_signed_and_change_is() -> None:
    own = record()
    assert own.observe(CAPABILITY, 0.0, ADDRESSES, [EDGE], 1.0) is Tell.RECORD, "a first link is news"
    assert not own.observe(dataclasses.replace(CAPABILITY, idle=0.51), 0.01, ADDRESSES, [EDGE], 3.0)
    less_memory = dataclasses.replace(CAPABILITY, memory_available_gb=4.0)
    assert own.observe(less_memory, 0.0, ADDRESSES, [EDGE], 5.0) is Tell.RECORD, "nobody spreads load updates here"
    assert own.record.sequence == 2
    assert own.record.capability is not None
    assert own.record.capability.latency_ms == 10.0
    assert own.observe(less_memory, 0.0, (), [EDGE], 6.0) is Tell.RECORD, "moved"
    assert not own.observe(less_memory, 0.0, (), [EDGE], 7.0)
    assert own.observe(less_memory, 0.0, (), [EDGE], 306.0) is Tell.RECORD, "renewed in time for old peers"
    assert not own.observe(less_memory, 0.0, (), [EDGE], 1_400.0, Around(4, has_old=False))
    assert own.observe(less_memory, 0.0, (), [EDGE], 1_506.0, Around(4, has_old=False)) is Tell.RECORD


def test_load_is_told_by_itself_where_somebody_spreads_it() -> None:
    own = record(tells_load=True)
    own.observe(CAPABILITY, 0.0, ADDRESSES, [EDGE], 0.0)
    before = own.signed
    busy = dataclasses.replace(CAPABILITY, idle=0.1, memory_available_gb=6.5)
    assert own.observe(busy, 1.5, ADDRESSES, [EDGE], 10.0) is Tell.LOAD
    assert own.signed is before, "the record itself is not signed again"
    assert own.load_wire is not None
    told = read_rumour(own.load_wire, verify_signature)
    assert told == LoadUpdate(own.record.peer, own.record.incarnation, own.record.sequence + 1, 1.5, 0.1, 6.5)
    assert own.observe(busy, 1.5, (), [EDGE], 20.0) is Tell.RECORD
    assert own.load_wire is None
    assert own.record.sequence == told.sequence + 1
    assert (own.record.load, own.record.addresses) == (1.5, ())


def test_the_owner_sees_what_a_load_update_has_told() -> None:
    own = record(tells_load=True)
    busy = dataclasses.replace(CAPABILITY, idle=0.1, memory_available_gb=6.5)
    own.observe(busy, 1.0, ADDRESSES, [EDGE], 0.0)
    assert own.now == own.record
    assert own.observe(CAPABILITY, 0.0, ADDRESSES, [EDGE], 10.0) is Tell.LOAD
    assert own.record.load == 1.0, "the record is from when this peer was busy, and stays for minutes"
    assert own.now == dataclasses.replace(own.record, load=0.0, capability=own.now.capability)
    assert own.now.capability is not None
    assert (own.now.capability.idle, own.now.capability.memory_available_gb) == (0.5, 8.0)


def test_what_is_set_is_told_at_the_next_look() -> None:
    own = record()
    own.observe(CAPABILITY, 0.0, ADDRESSES, [], 0.0)
    relay = Relay(PeerId(b"r" * 32), Address("192.0.2.7", 9876))
    own.set_reach(Reach.PRIVATE, (relay, relay, relay))
    own.set_functions(["square", "cube", "square"])
    own.set_labels(["fast", "fast", "here"])
    own.set_coordinate(PLACE)
    assert own.record.reach is Reach.UNKNOWN
    assert own.observe(CAPABILITY, 0.0, ADDRESSES, [], 2.0) is Tell.RECORD
    seen = open_record(own.signed.wire, verify_signature).record
    assert seen == dataclasses.replace(own.record, coordinate=seen.coordinate)
    assert (seen.protocol, seen.reach, seen.relays) == (PROTOCOL, Reach.PRIVATE, (relay, relay))
    assert (seen.functions, seen.labels) == (("cube", "square"), ("fast", "here"))
    assert seen.coordinate is not None
    assert seen.coordinate.vector == pytest.approx(PLACE.vector, abs=1e-6)
    assert not own.observe(CAPABILITY, 0.0, ADDRESSES, [], 4.0)


def test_what_travels_is_genuine_and_ordered() -> None:
    own = record()
    before = open_record(own.signed.wire, verify_signature).record
    own.raise_incarnation(7)
    assert own.record.sequence == 0
    own.leave()
    after = open_record(own.signed.wire, verify_signature).record
    assert after == own.record
    assert after.leaving
    assert after.order > before.order
    assert after.incarnation == 7
    own.observe(CAPABILITY, 0.0, (), [], 1.0)
    assert own.record.incarnation == 7
    assert own.record.leaving, "who has said goodbye does not come back by the next look"


def full(own: OwnRecord, measured: list[Edge], functions: int = 0) -> int:
    """The size of a record with everything in it."""
    own.set_coordinate(PLACE)
    own.set_reach(Reach.PRIVATE)
    own.set_functions([f"function_number_{number}" for number in range(functions)])
    own.observe(LARGE, 0.4321, TWO_ADDRESSES, measured, 100.0)
    return len(own.signed.wire)


def test_a_small_peer_tells_ten_edges_in_one_datagram() -> None:
    own = record()
    own.set_coordinate(PLACE)
    own.observe(CAPABILITY, 0.5, ADDRESSES, edges(14), 100.0)
    assert len(own.record.edges) >= 10
    assert len(own.signed.wire) <= RECORD_WIRE_BYTES_MAX


@pytest.mark.parametrize("count", [0, 6, 10, 14, 64])
def test_a_workstation_of_a_large_network_fits_into_one_datagram(count: int) -> None:
    own, measured = record(), edges(count)
    assert full(own, measured) <= RECORD_WIRE_BYTES_MAX
    assert len(GOSSIP_CODEC.encode(Records((own.signed.wire,)))) <= limits.DATAGRAM_PAYLOAD_BYTES_MAX
    kept = own.record.edges
    assert len(kept) >= min(count, 7)
    assert kept == own.edges[: len(kept)], "the last go first"
    assert len(own.edges) == min(count, limits.EDGES_MAX)
    assert not own.observe(LARGE, 0.4321, TWO_ADDRESSES, measured, 102.0), "what had no room is not news for ever"


def test_details_go_before_the_last_edges_and_what_cannot_be_small_is_whole() -> None:
    own = record()
    full(own, edges(14), functions=12)
    assert len(own.signed.wire) <= RECORD_WIRE_BYTES_MAX
    assert len(own.record.edges) == EDGES_KEPT
    assert len(own.record.functions) == 12
    own = record()
    size = full(own, edges(14), functions=60)
    assert RECORD_WIRE_BYTES_MAX < size < limits.RECORD_BYTES_MAX
    assert len(own.record.edges) == 14
    assert own.record.capability is not None
    assert own.record.capability.gpus[0].name == "NVIDIA GeForce RTX 4090"


def test_network_figures() -> None:
    assert with_network(CAPABILITY, []).latency_ms is None
    assert with_network(CAPABILITY, [EDGE]).bandwidth_mbps == 100.0
