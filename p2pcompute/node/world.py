"""What the overlay side of a peer takes from its surroundings: this machine's by default, the laboratory's in simulation.

One frozen bundle of seams, so that the very same composition (`overlay_peer.py`) runs on sockets and on virtual time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from p2pcompute.membership.intake import RememberOpen
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Clock, Entropy, Rng
from p2pcompute.net.beacon import BeaconShell
from p2pcompute.net.datagrams import OpenDatagrams
from p2pcompute.net.interfaces import read_interfaces
from p2pcompute.net.relay_pipe import Pipes
from p2pcompute.net.transport import Transport
from p2pcompute.net.udp_port import open_udp_port
from p2pcompute.net.wakefulness import WakeClocks, system_clocks
from p2pcompute.node.addresses import own_addresses
from p2pcompute.node.driver import Observe
from p2pcompute.node.identity import NodeIdentity
from p2pcompute.node.seams import SystemClock, SystemEntropy, system_rng
from p2pcompute.wire.identity import verify_signature
from p2pcompute.wire.record import Signer, Verifier


class MakeBeacon(Protocol):
    """Makes the shell that calls on the local network."""

    def __call__(
        self,
        key: Signer,
        network: NetworkId,
        peer_port: int,
        heard: Callable[[bytes, Address], None],
        clock: Clock,
        *,
        port: int,
        known_peers: Callable[[], Iterable[PeerId]],
        changed: Callable[[], None],
    ) -> BeaconShell:
        """As `net.beacon.BeaconShell` takes them."""


def own_networks() -> tuple[str, ...]:
    """The networks that this machine sits on, "address/prefix"."""
    near = [interface for interface in read_interfaces() if not interface.is_loopback]
    return tuple(network for interface in near for network in interface.networks)


def _machine_dice(_: str) -> Rng:
    return system_rng()


@dataclass(frozen=True, slots=True)
class World:
    """See the module. The defaults are this machine."""

    clock: Clock
    entropy: Entropy
    #: Dice by purpose.
    rng: Callable[[str], Rng] = _machine_dice
    open_datagrams: OpenDatagrams = open_udp_port
    #: How links are made; None: TLS over TCP.
    transport: Callable[[NodeIdentity], Transport] | None = None
    #: How the ends of relayed links prove who they are; None: TLS.
    pipes: Callable[[NodeIdentity], Pipes] | None = None
    #: Addresses at which a peer that listens at (host or None, port) can be reached.
    addresses: Callable[[str | None, int], tuple[Address, ...]] = own_addresses
    networks: Callable[[], tuple[str, ...]] = own_networks
    beacon: MakeBeacon = BeaconShell
    #: What tells a sleep from lateness.
    wake_clocks: WakeClocks = field(default_factory=system_clocks)
    #: Whether a router may be asked to forward a port.
    maps_ports: bool = True
    #: Shown what every machine is told and answers.
    observe: Observe | None = None
    #: Checks signatures.
    verify: Verifier = verify_signature
    #: Records that were opened before, shared by peers of one process.
    remember_open: RememberOpen | None = None

    @classmethod
    def machine(cls, *, maps_ports: bool = True) -> World:
        """The machine that this process runs on."""
        return cls(SystemClock(), SystemEntropy(), maps_ports=maps_ports)
