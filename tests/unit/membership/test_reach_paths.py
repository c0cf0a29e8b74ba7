"""Ways to a peer, in order and in words."""

from __future__ import annotations

import dataclasses

import pytest

from p2pcompute.membership.locality import parse_networks
from p2pcompute.membership.reach_paths import Way, path_reason, paths_to
from p2pcompute.model.ids import NetworkId, PeerId, short_peer_id
from p2pcompute.model.peer import Address, Isolation, PeerRecord, Reach, Relay

OWN = PeerId(b"o" * 32)
THEM = PeerId(b"t" * 32)
RELAY = PeerId(b"r" * 32)
NETWORKS = parse_networks(["192.168.1.20/24", "12.7.0.3/24"])
LAN = Address("192.168.1.30", 9876)
CAMPUS = Address("10.4.0.9", 9876)
GLOBAL = Address("20.1.0.1", 9876)
AT_RELAY = Address("30.1.0.1", 9876)


def record(*addresses: Address, reach: Reach = Reach.UNKNOWN, relays: tuple[PeerId, ...] = ()) -> PeerRecord:
    blank = PeerRecord(
        THEM, NetworkId(b"n" * 32), 1, 1, "ben", addresses, None, 0, 0.0, frozenset(), Isolation.PROCESS, "3.11", "linux", "0"
    )  # fmt: skip
    return dataclasses.replace(blank, reach=reach, relays=tuple(Relay(each, AT_RELAY) for each in relays))


def ways(found: PeerRecord, own_reach: Reach = Reach.UNKNOWN) -> list[tuple[Way, Address]]:
    return [(path.way, path.address) for path in paths_to(found, NETWORKS, own_reach, OWN)]


def test_nearest_first_then_what_others_can_dial() -> None:
    found = record(GLOBAL, CAMPUS, LAN, reach=Reach.PUBLIC)
    assert ways(found) == [(Way.LAN, LAN), (Way.DIRECT, CAMPUS), (Way.DIRECT, GLOBAL)]


def test_a_private_peer_is_reached_through_its_relay_after_the_addresses_that_may_be_near() -> None:
    found = record(CAMPUS, GLOBAL, reach=Reach.PRIVATE, relays=(RELAY,))
    assert ways(found, Reach.PRIVATE) == [(Way.DIRECT, CAMPUS), (Way.RELAYED, AT_RELAY)]


def test_a_private_peer_whose_global_address_is_of_this_network_is_dialled_there() -> None:
    near = Address("12.7.0.9", 9876)
    assert ways(record(near, reach=Reach.PRIVATE)) == [(Way.LAN, near)]


@pytest.mark.parametrize("own_reach", [Reach.PUBLIC, Reach.MAPPED])
def test_whoever_can_be_dialled_has_the_other_dial(own_reach: Reach) -> None:
    found = record(CAMPUS, reach=Reach.PRIVATE, relays=(RELAY,))
    assert ways(found, own_reach) == [(Way.DIRECT, CAMPUS), (Way.REVERSED, AT_RELAY), (Way.RELAYED, AT_RELAY)]


def test_a_peer_that_can_be_dialled_itself_is_not_asked_to_dial() -> None:
    assert Way.REVERSED not in dict(ways(record(GLOBAL, reach=Reach.MAPPED, relays=(RELAY,)), Reach.PUBLIC))


def test_neither_this_peer_nor_the_other_is_a_relay_between_them() -> None:
    assert ways(record(reach=Reach.PRIVATE, relays=(OWN, THEM)), Reach.PUBLIC) == []


def test_every_path_says_why() -> None:
    found = record(
        LAN, CAMPUS, GLOBAL, Address("127.0.0.1", 9876), Address("example.org", 1), reach=Reach.UNKNOWN, relays=(RELAY,)
    )
    reasons = [path.reason for path in paths_to(found, NETWORKS, Reach.PUBLIC, OWN)]
    assert reasons == [
        "127.0.0.1 is this machine",
        "192.168.1.30 is on a network of this machine",
        "10.4.0.9 is a private address, which may be of this site",
        "nobody has found out yet whether 20.1.0.1:9876 can be reached",
        "nobody has found out yet whether example.org:1 can be reached",
        f"direct, dialled by it: it cannot be dialled, this peer can, and it was asked through {short_peer_id(RELAY)}",
        f"relayed through {short_peer_id(RELAY)}: no direct way has worked",
    ]


def test_reasons_for_links_tell_all_cases_apart() -> None:
    said = {path_reason(way, ours, theirs, RELAY) for way in Way for ours in Reach for theirs in Reach}
    assert len(said) == 9
    assert path_reason(Way.RELAYED, Reach.PRIVATE, Reach.PRIVATE, RELAY) == (
        f"relayed through {short_peer_id(RELAY)}: neither side can be dialled from other networks"
    )
    assert path_reason(Way.DIRECT, Reach.PRIVATE, Reach.MAPPED) == "direct: its router forwards a port to it"


def test_reasons_name_who_dialled_and_the_peer_between() -> None:
    assert path_reason(Way.DIRECT, Reach.PUBLIC, Reach.UNKNOWN) == (
        "direct: it dialled this peer, which can be dialled from other networks"
    )
    assert "nobody has found out yet" in path_reason(Way.DIRECT, Reach.PUBLIC, Reach.UNKNOWN, dialled=True)
    assert path_reason(Way.REVERSED, Reach.PRIVATE, Reach.PUBLIC, RELAY, called="attic", dialled=True) == (
        "direct, dialled by this peer: it was asked to through attic, since it cannot be dialled itself"
    )
    assert path_reason(Way.RELAYED, Reach.PRIVATE, Reach.PRIVATE, RELAY, called="attic").startswith(
        "relayed through attic: "
    )
