"""What strategies are told of a peer, taken from its record and from what is believed about it.

Refuses to decide: which facts matter, each job says (`jobs/requirements.py`, `jobs/strategies/`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from p2pcompute.jobs.coordinating import Region
from p2pcompute.jobs.health import Health, health_of
from p2pcompute.jobs.plan import NOWHERE, Candidate, Facts, Place
from p2pcompute.jobs.requirements import meets
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId, seat_of
from p2pcompute.model.peer import PeerEntry, PeerRecord, PeerStatus, PeerView, Role
from p2pcompute.model.requirement import Requirement

if TYPE_CHECKING:
    from p2pcompute.topology.shape import NetworkShape

#: Links asked for at a time for one job: two that answer are enough, the rest is for those that do not.
SOUGHT_AT_ONCE = 8
#: The first protocol version in which tasks are recalled.
RECALL_PROTOCOL = 2
#: And in which shares are given to coordinators.
COORDINATION_PROTOCOL = 2
#: A community of fewer lenders gains nothing by a hop.
MEMBERS_MIN = 2
#: What is true of a link only, so that it cannot speak against a peer that has none yet.
_OF_LINKS = frozenset({"latency", "bandwidth"})


def facts_of(entry: PeerEntry, bandwidth_mbps: float | None = None, place: Place = NOWHERE) -> Facts:
    """Of another peer. `bandwidth_mbps`: as this peer measured it, where it did; `place`: by the newest topology."""
    rate = bandwidth_mbps if bandwidth_mbps is not None else entry.bandwidth_mbps
    return _facts(entry.record, place, is_suspect=entry.status is not PeerStatus.ALIVE, bandwidth_mbps=rate)


def own_facts(record: PeerRecord, place: Place = NOWHERE) -> Facts:
    """Of this peer itself."""
    return _facts(record, place, is_suspect=False, bandwidth_mbps=None)


def view_health(view: PeerView, now: float) -> tuple[Health, ...]:
    """How every peer is that is not known to be gone: this one first, then by id."""
    own = Candidate(view.own.peer, 0.0, True, 0.0, facts=own_facts(view.own))
    others = [
        Candidate(entry.record.peer, entry.rtt_s or 0.0, False, 0.0, facts=facts_of(entry))
        for entry in view.entries
        if entry.status in (PeerStatus.ALIVE, PeerStatus.SUSPECT)
    ]
    return tuple(health_of(each, now) for each in (own, *others))


def peers_to_seek(view: PeerView, linked: Container[PeerId], requirements: Sequence[Requirement]) -> tuple[PeerId, ...]:
    """Peers that are up, lend, are not linked, and by their records meet `requirements`; the most capable first."""
    found: list[tuple[float, PeerId]] = []
    for entry in view.alive:
        record = entry.record
        if record.peer in linked or not record.slots or Role.COMPUTE not in record.roles:
            continue
        rank = record.capability.score if record.capability is not None else 0.0
        peer = Candidate(record.peer, 0.0, False, rank, facts=facts_of(entry))
        if all(meets(each, peer) for each in requirements if each.name not in _OF_LINKS):
            found.append((-rank, record.peer))
    return tuple(peer for _, peer in sorted(found)[:SOUGHT_AT_ONCE])


def regions_of(shape: NetworkShape, view: PeerView) -> tuple[Region, ...]:
    """Communities of `shape` other than this peer's own that have lenders and somebody to coordinate them.

    Of one with more lenders than a share may have, those that can do most; the others are lenders like any. None where this peer is no
    part of the network yet.
    """
    home = shape.community_of(view.own.peer)
    if home is None:
        return ()
    lenders = {entry.record.peer: entry.record for entry in view.alive if Role.COMPUTE in entry.record.roles}
    speaks = {entry.record.peer for entry in view.alive if entry.record.protocol >= COORDINATION_PROTOCOL}
    regions = []
    for key_node in shape.key_nodes:
        if key_node.community == home:
            continue
        able = (lenders[peer] for peer in shape.members(key_node.community) if peer in lenders)
        members = [record for record in able if record.slots]
        if len(members) > limits.SHARE_MEMBERS_MAX:
            members = sorted(members, key=_strongest_first)[: limits.SHARE_MEMBERS_MAX]
        seats = tuple(seat_of(peer) for peer in (key_node.peer, *key_node.stand_ins) if peer in speaks)
        if len(members) >= MEMBERS_MIN and seats:
            slots = sum(record.slots for record in members)
            regions.append(Region(frozenset(record.peer for record in members), seats, slots))
    return tuple(regions)


def _strongest_first(record: PeerRecord) -> tuple[int, float, PeerId]:
    rank = record.capability.score if record.capability is not None else 0.0
    return (-record.slots, -rank, record.peer)


def _facts(record: PeerRecord, place: Place, *, is_suspect: bool, bandwidth_mbps: float | None) -> Facts:
    return Facts(
        name=record.name,
        capability=record.capability,
        slots=record.slots,
        load=record.load,
        labels=record.labels,
        python=record.python,
        platform=record.platform,
        isolation=record.isolation.value,
        cost_per_hour=record.cost_per_hour,
        performance_tier=record.performance_tier,
        is_suspect=is_suspect,
        bandwidth_mbps=bandwidth_mbps,
        fiedler_score=place.fiedler_score,
        community=place.community,
        gives_back=record.protocol >= RECALL_PROTOCOL,
        engines=record.engines,
        grants=record.grants,
        leads=record.leads,
    )
