"""What this peer says about itself: measured, signed, and signed again only when it changed by more than noise."""

from __future__ import annotations

import dataclasses
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pcompute.model.capability import Capability
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import Address, Edge, Isolation, PeerRecord, Role
from p2pcompute.wire.record import SignedRecord, Signer, sign_record

#: Relative change of a load figure that is worth a new signature.
NOISE = 0.1
#: Seconds between two looks at this machine.
SAMPLE_INTERVAL_S = 2.0
#: A record is renewed at least so often, so that it never expires at others.
RENEW_INTERVAL_S = 300.0


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


class OwnRecord:
    """Keeps this peer's own signed record up to date.

    `incarnation_next(at_least)` gives a persisted, ever rising number.
    """

    def __init__(
        self,
        identity: Identity,
        signer: Signer,
        incarnation_next: Callable[[int], int],
        capability: Capability,
        addresses: tuple[Address, ...],
    ) -> None:
        self._signer = signer
        self._incarnation_next = incarnation_next
        self.signed: SignedRecord = sign_record(
            PeerRecord(
                peer=identity.peer,
                network=identity.network,
                incarnation=incarnation_next(0),
                sequence=0,
                name=identity.name[:64],
                addresses=addresses,
                capability=capability,
                slots=identity.slots,
                load=0.0,
                roles=identity.roles,
                isolation=identity.isolation,
                python=platform.python_version(),
                platform=platform_name(),
                version=identity.version,
                labels=identity.labels,
            ),
            signer,
        )
        #: `monotonic` time of the last signature.
        self._signed_at = 0.0

    @property
    def record(self) -> PeerRecord:
        """The newest record."""
        return self.signed.record

    def observe(
        self,
        capability: Capability,
        load: float,
        addresses: tuple[Address, ...],
        edges: Sequence[Edge],
        now: float,
    ) -> bool:
        """Take in a new sample; True when the record was signed again because it changed by more than noise."""
        old = self.record
        measured = with_network(capability, edges)
        if (
            not differs(old.capability, measured)
            and abs(old.load - load) < max(NOISE * max(old.load, load), 0.05)
            and old.addresses == addresses
            and [edge.peer for edge in old.edges] == [edge.peer for edge in edges]
            and now - self._signed_at < RENEW_INTERVAL_S
        ):
            return False
        self._sign(
            dataclasses.replace(
                old, capability=measured, load=load, addresses=addresses, edges=tuple(edges), sequence=old.sequence + 1
            )
        )
        self._signed_at = now
        return True

    def raise_incarnation(self, at_least: int) -> None:
        """Outrank a record of this peer's own that a former life, or a clock, has put ahead."""
        self._sign(dataclasses.replace(self.record, incarnation=self._incarnation_next(at_least), sequence=0))

    def leave(self) -> None:
        """Say in the record that this peer leaves on purpose."""
        self._sign(dataclasses.replace(self.record, leaving=True, sequence=self.record.sequence + 1))

    def _sign(self, record: PeerRecord) -> None:
        self.signed = sign_record(record, self._signer)


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


def differs(old: Capability | None, new: Capability) -> bool:
    """Whether any figure changed by more than `NOISE`."""
    if old is None or old.cores != new.cores or len(old.gpus) != len(new.gpus):
        return True
    pairs = (
        (old.frequency_mhz, new.frequency_mhz, 1.0),
        (old.idle, new.idle, 1.0),
        (old.memory_gb, new.memory_gb, 0.0),
        (old.memory_available_gb, new.memory_available_gb, 0.5),
        (old.bandwidth_mbps or 0.0, new.bandwidth_mbps or 0.0, 10.0),
        (old.latency_ms or 0.0, new.latency_ms or 0.0, 1.0),
        (old.loss or 0.0, new.loss or 0.0, 0.1),
    )
    return any(abs(a - b) > NOISE * max(abs(a), abs(b), floor) for a, b, floor in pairs)
