"""What strategies are told of peers: from records, and from what is believed about them."""

from __future__ import annotations

import dataclasses

import pytest

from p2pcompute.jobs.coordinating import Region
from p2pcompute.jobs.plan import Place
from p2pcompute.model import limits
from p2pcompute.model.capability import Capability
from p2pcompute.model.ids import NetworkId, PeerId, seat_of
from p2pcompute.model.peer import DEFAULT_ROLES, Isolation, PeerEntry, PeerRecord, PeerStatus, PeerView, Role
from p2pcompute.model.requirement import requirements_of
from p2pcompute.node.facts import facts_of, own_facts, peers_to_seek, regions_of, view_health
from p2pcompute.topology.election import KeyNode
from p2pcompute.wire.versions import PROTOCOL

A, B, C, D = (PeerId(bytes([number]) * 32) for number in (1, 2, 3, 4))


def record(peer: PeerId, **changes: object) -> PeerRecord:
    capability = Capability(8, 3000.0, 0.5, 32.0, 16.0)
    base = PeerRecord(
        peer, NetworkId(b"n" * 32), 1, 1, f"peer{peer[0]}", (), capability, 4, 0.25, DEFAULT_ROLES, Isolation.PROCESS,
        "3.12.1", "linux x86_64", "1", labels=("zone=lab",), cost_per_hour=2.5, performance_tier="premium",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def entry(peer: PeerId, status: PeerStatus = PeerStatus.ALIVE, **changes: object) -> PeerEntry:
    return PeerEntry(record(peer, **changes), status, 0.0, bandwidth_mbps=90.0)


def test_facts() -> None:
    facts = facts_of(entry(B), 940.0, Place(0.5, 3))
    assert (facts.name, facts.labels, facts.cost_per_hour, facts.performance_tier) == (
        "peer2",
        ("zone=lab",),
        2.5,
        "premium",
    )
    assert (facts.slots, facts.load, facts.python, facts.isolation) == (4, 0.25, "3.12.1", "process")
    assert (facts.bandwidth_mbps, facts.fiedler_score, facts.community, facts.is_suspect) == (940.0, 0.5, 3, False)
    assert facts_of(entry(B)).bandwidth_mbps == 90.0
    assert facts_of(entry(B, PeerStatus.SUSPECT)).is_suspect
    assert not own_facts(record(A)).is_suspect
    assert own_facts(record(A, leads=True)).leads
    assert not facts_of(entry(B)).leads


def test_peers_that_are_known_but_not_linked_are_sought() -> None:
    view = PeerView(
        record(A),
        (
            entry(B),
            entry(C, capability=Capability(64, 3000.0, 1.0, 32.0, 16.0)),
            entry(D, labels=()),
            entry(PeerId(b"\5" * 32), slots=0),
            entry(PeerId(b"\6" * 32), PeerStatus.DEAD),
            entry(PeerId(b"\7" * 32), roles=frozenset({Role.SUBMIT})),
        ),
        1,
    )
    wanted = requirements_of(["label zone=lab", "latency<=1ms", "bandwidth>=1Gbps"])
    assert peers_to_seek(view, {}, wanted) == (C, B), "the most capable first; what only a link tells says nothing yet"
    assert peers_to_seek(view, {C: None}, wanted) == (B,)
    assert peers_to_seek(view, {}, requirements_of("cores>=100")) == ()


@dataclasses.dataclass
class Shape:
    """A network of communities by number, whose key node and stand-ins are its first peers."""

    of: dict[int, tuple[PeerId, ...]]

    @property
    def key_nodes(self) -> tuple[KeyNode, ...]:
        return tuple(KeyNode(number, peers[0], 1.0, peers[1:2]) for number, peers in self.of.items())

    def members(self, community: int) -> tuple[PeerId, ...]:
        return self.of[community]

    def community_of(self, peer: PeerId) -> int | None:
        return next((number for number, peers in self.of.items() if peer in peers), None)


def regions(shape: Shape, view: PeerView) -> tuple[Region, ...]:
    return regions_of(shape, view)  # type: ignore[arg-type]


def test_regions_are_the_communities_that_lend_and_can_be_coordinated() -> None:
    others = [PeerId(bytes([number]) * 32) for number in range(10, 18)]
    view = PeerView(
        record(A),
        (
            *(entry(peer, slots=number, protocol=PROTOCOL) for number, peer in enumerate(others[:6])),
            entry(others[6], roles=frozenset({Role.SUBMIT})),
            entry(others[7], PeerStatus.DEAD),
        ),
        1,
    )
    far = Shape({1: (A, others[1]), 2: tuple(others[2:5]), 3: tuple(others[5:]), 4: (others[0],)})
    assert regions(far, view) == (
        Region(frozenset(others[2:5]), (seat_of(others[2]), seat_of(others[3])), 2 + 3 + 4),
    ), "of the third one peer lends, of the fourth none"
    assert regions(Shape({2: tuple(others[2:5])}), view) == (), "this peer is no part of it yet"


def test_of_a_community_that_is_larger_than_a_share_the_strongest_are_its_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "SHARE_MEMBERS_MAX", 3)
    others = [PeerId(bytes([number]) * 32) for number in range(10, 16)]
    strong = Capability(64, 3000.0, 0.5, 32.0, 16.0)
    changes: list[dict[str, object]] = [
        {"slots": 2}, {"slots": 2}, {"slots": 2, "capability": strong}, {"slots": 1}, {"slots": 8}, {"slots": 2},
    ]  # fmt: skip
    rows = [entry(peer, protocol=PROTOCOL, **each) for peer, each in zip(others, changes, strict=True)]
    (region,) = regions(Shape({1: (A,), 2: tuple(others)}), PeerView(record(A), tuple(rows), 1))
    assert region.members == {others[4], others[2], others[0]}, "by slots, by what they can do, then by id"
    assert region.slots == 8 + 2 + 2, "what its coordinator has, no more"
    assert region.seats == (seat_of(others[0]), seat_of(others[1]))


def test_health_of_a_view() -> None:
    view = PeerView(record(A), (entry(B, PeerStatus.SUSPECT), entry(C, load=0.95), entry(D, PeerStatus.LEFT)), 1)
    own, suspect, busy = view_health(view, 5.0)
    assert (own.peer, own.is_available, own.cpu, own.memory, own.timestamp) == (A, True, 0.5, 0.5, 5.0)
    assert (suspect.peer, suspect.error) == (B, "it is suspected to be down")
    assert (busy.peer, busy.error) == (C, "it is overloaded: 0.95 tasks a slot")
