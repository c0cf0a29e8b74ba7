"""What strategies are told of peers: from records, and from what is believed about them."""

from __future__ import annotations

import dataclasses

from p2pcompute.jobs.plan import Place
from p2pcompute.model.capability import Capability
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import DEFAULT_ROLES, Isolation, PeerEntry, PeerRecord, PeerStatus, PeerView, Role
from p2pcompute.model.requirement import requirements_of
from p2pcompute.node.facts import facts_of, own_facts, peers_to_seek, view_health

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


def test_health_of_a_view() -> None:
    view = PeerView(record(A), (entry(B, PeerStatus.SUSPECT), entry(C, load=0.95), entry(D, PeerStatus.LEFT)), 1)
    own, suspect, busy = view_health(view, 5.0)
    assert (own.peer, own.is_available, own.cpu, own.memory, own.timestamp) == (A, True, 0.5, 0.5, 5.0)
    assert (suspect.peer, suspect.error) == (B, "it is suspected to be down")
    assert (busy.peer, busy.error) == (C, "it is overloaded: 0.95 tasks a slot")
