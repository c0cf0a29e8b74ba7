"""What this peer says about itself: measured, signed, and said again only where it is worth it (`membership/pacing.py`).

A record should fit into one datagram: what does not goes in pieces, each of which may be lost. So figures are rounded to what
anybody can use, and where that is not enough the least important edges stay out first, then the network figures and the
accelerators' details of the capability, then all edges. What a peer cannot do without, it says whatever the size.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pcompute.membership.pacing import Around, Pacer, PacingSettings, Tell
from p2pcompute.model import limits
from p2pcompute.model.capability import Capability, Gpu
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import Address, Coordinate, Edge, Isolation, PeerRecord, Reach, Relay, Role
from p2pcompute.model.requirement import TIER_DEFAULT
from p2pcompute.model.seams import Rng
from p2pcompute.wire.gossip import LoadUpdate, sign_load
from p2pcompute.wire.record import SignedRecord, Signer, sign_record
from p2pcompute.wire.versions import PROTOCOL

#: Seconds between two looks at this machine.
SAMPLE_INTERVAL_S = 2.0
#: What a record shares its datagram with: the message around it.
RECORD_WIRE_BYTES_MAX = limits.DATAGRAM_PAYLOAD_BYTES_MAX - 60
#: Edges that stay longer than the details of the capability: both neighbours on the ring, and the first near and far one.
EDGES_KEPT = 4
#: An edge in a record, at the least: id, round trip, no throughput, and the heads of all four.
EDGE_BYTES = 45


@dataclass(frozen=True, slots=True)
class Identity:
    """The parts of a record that do not change while the peer runs."""

    peer: PeerId
    network: NetworkId
    name: str
    slots: int
    roles: frozenset[Role]
    isolation: Isolation
    labels: tuple[str, ...]
    version: str
    cost_per_hour: float = 0.0
    performance_tier: str = TIER_DEFAULT
    engines: tuple[str, ...] = ("python",)
    grants: tuple[str, ...] = ()


class OwnRecord:
    """Keeps this peer's own signed record up to date.

    `incarnation_next(at_least)` gives a persisted, ever rising number. `rng`: dice for when it may speak. `tells_load`: somebody spreads load updates; without
    it a changed load is told by a new record.
    """

    def __init__(
        self,
        identity: Identity,
        signer: Signer,
        incarnation_next: Callable[[int], int],
        capability: Capability,
        addresses: tuple[Address, ...],
        rng: Rng,
        *,
        tells_load: bool = False,
        settings: PacingSettings | None = None,
    ) -> None:
        #: The peer's key.
        self._signer = signer
        #: Where incarnations come from.
        self._incarnation_next = incarnation_next
        #: Whether load updates are spread.
        self._tells_load = tells_load
        #: Says what is worth telling.
        self._pacer = Pacer(rng, settings)
        #: What is true of the record apart from what each look measures: set by the `set_` methods, told at the next look.
        self._wanted = PeerRecord(
            peer=identity.peer,
            network=identity.network,
            incarnation=incarnation_next(0),
            sequence=0,
            name=identity.name[:64],
            addresses=addresses,
            capability=rounded(capability),
            slots=identity.slots,
            load=0.0,
            roles=identity.roles,
            isolation=identity.isolation,
            python=platform.python_version(),
            platform=platform_name(),
            version=identity.version,
            labels=identity.labels,
            protocol=PROTOCOL,
            cost_per_hour=identity.cost_per_hour,
            performance_tier=identity.performance_tier,
            engines=identity.engines,
            grants=identity.grants,
        )
        #: What was last told, before anything was left out for its size.
        self._told = self._wanted
        #: Number of the newest record or load update of this incarnation.
        self._sequence = 0
        #: The newest record, signed.
        self.signed: SignedRecord = self._fitting(self._wanted)
        #: The newest load update, signed; None where the record is newer.
        self.load_wire: bytes | None = None

    @property
    def record(self) -> PeerRecord:
        """The newest record."""
        return self.signed.record

    @property
    def now(self) -> PeerRecord:
        """`record` with the figures of the last look that a load update tells: others hear of them without a new record."""
        newest, capability = self._wanted, self.record.capability
        if capability is not None and newest.capability is not None:
            capability = dataclasses.replace(
                capability,
                idle=newest.capability.idle,
                memory_available_gb=newest.capability.memory_available_gb,
            )
        return dataclasses.replace(self.record, load=newest.load, capability=capability)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The edges as last told, those included that the record had no room for: what the next selection starts from."""
        return self._told.edges

    # --- what is not measured -------------------------------------------------------------------------------------------

    def set_coordinate(self, coordinate: Coordinate | None) -> None:
        """Where this peer is in the space of round trips."""
        self._wanted = dataclasses.replace(self._wanted, coordinate=coordinate)

    def set_reach(self, reach: Reach, relays: tuple[Relay, ...] = ()) -> None:
        """How this peer can be reached, and through whom where nobody can dial it."""
        self._wanted = dataclasses.replace(self._wanted, reach=reach, relays=relays[: limits.RELAYS_MAX])

    def set_leads(self, leads: bool) -> None:
        """Whether this peer is the key node of its community, as it sees it."""
        self._wanted = dataclasses.replace(self._wanted, leads=leads)

    def set_functions(self, functions: Sequence[str]) -> None:
        """Names of functions that this peer offers to run."""
        self._wanted = dataclasses.replace(self._wanted, functions=tuple(sorted(set(functions))))

    def set_engines(self, engines: tuple[str, ...]) -> None:
        """Engines that this peer offers."""
        self._wanted = dataclasses.replace(self._wanted, engines=engines)

    def set_slots(self, slots: int, yields: Sequence[str] = ()) -> None:
        """How many tasks it runs for others at a time, and why these are fewer than there could be."""
        self._wanted = dataclasses.replace(self._wanted, slots=slots, yields=tuple(yields))

    def set_python(self, version: str) -> None:
        """The version of Python that runs tasks here; empty: this one."""
        self._wanted = dataclasses.replace(self._wanted, python=version or platform.python_version())

    def set_labels(self, labels: Sequence[str]) -> None:
        """Labels by which jobs may choose this peer."""
        self._wanted = dataclasses.replace(self._wanted, labels=tuple(dict.fromkeys(labels)))

    # --- telling --------------------------------------------------------------------------------------------------------

    def observe(
        self,
        capability: Capability,
        load: float,
        addresses: tuple[Address, ...],
        edges: Sequence[Edge],
        now: float,
        around: Around | None = None,
    ) -> Tell:
        """Take in a new sample; what is to be told: `signed` after RECORD, `load_wire` after LOAD.

        `edges`: as `membership.edges.select_edges` orders them, the most important first; `around`: who hears it.
        """
        around = around or Around()
        new = dataclasses.replace(
            self._wanted,
            incarnation=self._told.incarnation,
            capability=rounded(with_network(capability, edges)),
            load=round(load, 3),
            addresses=addresses,
            edges=tuple(_rounded_edge(edge) for edge in edges[: limits.EDGES_MAX]),
        )
        self._wanted = new
        tell = self._pacer.decide(self._told, new, around, len(self.signed.wire), now)
        if tell is Tell.LOAD and not self._tells_load:
            self._pacer.told_record(now)
            tell = Tell.RECORD
        if tell is Tell.RECORD:
            self._tell_record(new)
        elif tell is Tell.LOAD:
            self._tell_load(new)
        return tell

    def raise_incarnation(self, at_least: int) -> None:
        """Outrank a record of this peer's own that a former life, or a clock, has put ahead."""
        self._sequence = -1
        self._tell_record(dataclasses.replace(self._told, incarnation=self._incarnation_next(at_least)))

    def leave(self) -> None:
        """Say in the record that this peer leaves on purpose."""
        self._wanted = dataclasses.replace(self._wanted, leaving=True)
        self._tell_record(dataclasses.replace(self._told, leaving=True))

    def _tell_record(self, record: PeerRecord) -> None:
        self._sequence += 1
        self._told = dataclasses.replace(record, sequence=self._sequence)
        self.signed = self._fitting(self._told)
        self.load_wire = None

    def _tell_load(self, record: PeerRecord) -> None:
        capability = record.capability
        assert capability is not None, "a measured record has a capability"
        self._sequence += 1
        update = LoadUpdate(
            record.peer,
            record.incarnation,
            self._sequence,
            record.load,
            capability.idle,
            capability.memory_available_gb,
        )
        self.load_wire = sign_load(update, self._signer)

    def _fitting(self, record: PeerRecord) -> SignedRecord:
        """`record`, signed, without what is least important where all of it would need more than one datagram."""
        whole = sign_record(record, self._signer)
        if len(whole.wire) <= RECORD_WIRE_BYTES_MAX:
            return whole
        for lesser in _lesser(record, len(whole.wire) - RECORD_WIRE_BYTES_MAX):
            signed = sign_record(lesser, self._signer)
            if len(signed.wire) <= RECORD_WIRE_BYTES_MAX:
                return signed
        # Nothing helps: it goes in pieces in any case, so it may as well say everything.
        return whole


def _lesser(record: PeerRecord, excess_bytes: int) -> list[PeerRecord]:
    """`record` with less and less in it; of edges about as many go as make up for `excess_bytes`."""
    count = len(record.edges)
    fewer = max(count - math.ceil(excess_bytes / EDGE_BYTES), EDGES_KEPT)
    found = [dataclasses.replace(record, edges=record.edges[:kept]) for kept in range(fewer, EDGES_KEPT - 1, -1)]
    few = record.edges[:EDGES_KEPT]
    if record.capability is not None:
        without = dataclasses.replace(record.capability, bandwidth_mbps=None, latency_ms=None, loss=None)
        found.append(dataclasses.replace(record, edges=few, capability=without))
        short = tuple(Gpu(gpu.name[:16], gpu.memory_gb) for gpu in without.gpus)
        bare = dataclasses.replace(without, gpus=short)
        found += [dataclasses.replace(record, edges=few[:kept], capability=bare) for kept in range(len(few), -1, -1)]
    return found


def platform_name() -> str:
    """Operating system and machine, e.g. "linux x86_64"."""
    return f"{sys.platform} {platform.machine()}"[:64]


def with_network(capability: Capability, edges: Sequence[Edge]) -> Capability:
    """`capability` with the medians over `edges` as its network figures; None where nothing was measured."""
    rates = [edge.bandwidth_mbps for edge in edges if edge.bandwidth_mbps is not None]
    return dataclasses.replace(
        capability,
        bandwidth_mbps=statistics.median(rates) if rates else None,
        latency_ms=statistics.median(edge.rtt_s for edge in edges) * 1000 if edges else None,
    )


def rounded(capability: Capability) -> Capability:
    """`capability` as precise as anybody needs it; a whole number travels in 3 bytes where a fraction takes 9."""
    return Capability(
        capability.cores,
        _short(capability.frequency_mhz),
        round(capability.idle, 2),
        _short(capability.memory_gb, 2),
        _short(capability.memory_available_gb, 2),
        tuple(Gpu(gpu.name, _short(gpu.memory_gb, 1), round(gpu.utilisation, 1)) for gpu in capability.gpus),
        None if capability.bandwidth_mbps is None else _short(capability.bandwidth_mbps),
        None
        if capability.latency_ms is None
        else _short(capability.latency_ms, 0 if capability.latency_ms >= 10 else 2),
        None if capability.loss is None else _short(capability.loss, 3),
    )


def _rounded_edge(edge: Edge) -> Edge:
    rate = edge.bandwidth_mbps
    return Edge(edge.peer, round(edge.rtt_s, 6), None if rate is None else _short(rate, 0 if rate >= 10 else 2))


def _short(value: float, digits: int = 0) -> float:
    """`value` with so many digits behind the point, as an int where none is left."""
    near = round(value, digits)
    return int(near) if near == int(near) else near
