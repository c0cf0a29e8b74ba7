"""The own record: signed again on change, not on noise."""

from __future__ import annotations

import dataclasses
import os

from p2pcompute.model.capability import Capability
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import DEFAULT_ROLES, Address, Edge, Isolation
from p2pcompute.node.own_record import RENEW_INTERVAL_S, Identity, OwnRecord, differs, with_network
from p2pcompute.wire.identity import PeerKey, verify_signature
from p2pcompute.wire.record import open_record

CAPABILITY = Capability(4, 2000.0, 0.5, 16.0, 8.0)
ADDRESSES = (Address("192.0.2.1", 9876),)
EDGE = Edge(PeerId(b"p" * 32), 0.01, 100.0)


def record() -> OwnRecord:
    key = PeerKey(os.urandom(32))
    numbers = iter(range(1, 100))
    identity = Identity(key.peer_id, NetworkId(b"n" * 32), "me", 2, DEFAULT_ROLES, Isolation.PROCESS, ("label",), "0")
    return OwnRecord(identity, key, lambda at_least: max(next(numbers), at_least), CAPABILITY, ADDRESSES)


def test_noise_is_not_signed_and_change_is() -> None:
    own = record()
    assert own.observe(CAPABILITY, 0.0, ADDRESSES, [EDGE], 1.0), "a first link is news"
    assert not own.observe(dataclasses.replace(CAPABILITY, idle=0.51), 0.01, ADDRESSES, [EDGE], 2.0)
    assert own.observe(dataclasses.replace(CAPABILITY, memory_available_gb=4.0), 0.0, ADDRESSES, [EDGE], 3.0)
    assert own.record.sequence == 2
    assert own.record.capability is not None
    assert own.record.capability.latency_ms == 10.0
    assert own.observe(own.record.capability, 0.0, (), [EDGE], 4.0), "moved"
    assert not own.observe(own.record.capability, 0.0, (), [EDGE], 5.0)
    assert own.observe(own.record.capability, 0.0, (), [EDGE], 5.0 + RENEW_INTERVAL_S), "renewed in time"


def test_what_travels_is_genuine_and_ordered() -> None:
    own = record()
    before = open_record(own.signed.wire, verify_signature).record
    own.raise_incarnation(7)
    own.leave()
    after = open_record(own.signed.wire, verify_signature).record
    assert after == own.record
    assert after.leaving
    assert after.order > before.order
    assert after.incarnation == 7


def test_differs_and_network_figures() -> None:
    assert differs(None, CAPABILITY)
    assert not differs(CAPABILITY, dataclasses.replace(CAPABILITY, frequency_mhz=2050.0))
    assert differs(CAPABILITY, dataclasses.replace(CAPABILITY, cores=5))
    assert with_network(CAPABILITY, []).latency_ms is None
    assert with_network(CAPABILITY, [EDGE]).bandwidth_mbps == 100.0
