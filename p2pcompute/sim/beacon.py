"""The LAN beacon on a simulated network: the real shell's beacons, sent to a simulated LAN.

Made in place of `BeaconShell` and used like it; only its sockets are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from p2pcompute.model import limits
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.net.beacon import BeaconShell
from p2pcompute.net.interfaces import Interface
from p2pcompute.sim.hosts import SimHost, SimPort
from p2pcompute.wire.beacon import INSTANCE_BYTES
from p2pcompute.wire.record import Signer


class SimBeaconShell(BeaconShell):
    """See the module; arguments as those of `BeaconShell`, with the host on which it runs and the entropy of its peer."""

    def __init__(
        self,
        host: SimHost,
        key: Signer,
        network: NetworkId,
        peer_port: int,
        heard: Callable[[bytes, Address], None],
        clock: Clock,
        entropy: Entropy,
        *,
        known_peers: Callable[[], Iterable[PeerId]] = tuple,
        changed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            key,
            network,
            peer_port,
            heard,
            clock,
            known_peers=known_peers,
            changed=changed,
            interfaces=lambda: interfaces_of_host(host),
            instance=entropy.bytes(INSTANCE_BYTES),
        )
        self._host = host
        #: Sends beacons and takes answers; None while it is not started.
        self._answers: SimPort | None = None

    @property
    def answer_port(self) -> int:
        """UDP port of the sending socket; only after `start`."""
        assert self._answers is not None, "the beacon has not been started"
        return self._answers.port

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The interfaces as they are now."""
        return interfaces_of_host(self._host)

    async def start(self) -> None:
        """Begin to listen. Raises PortTakenError where the host is down."""
        self._answers = self._host.bind(0, self._received)
        self._host.broadcast_listeners.append(self._received)
        self._host.on_moved.append(self._moved)

    async def stop(self) -> None:
        """Stop listening; a second call does nothing."""
        if self._answers is not None:
            self._answers.close()
            self._answers = None
            for listeners, own in (
                (self._host.broadcast_listeners, self._received),
                (self._host.on_moved, self._moved),
            ):
                if own in listeners:  # a crash has cleared them
                    listeners.remove(own)  # type: ignore[arg-type]

    def broadcast(self) -> None:
        """Sign a beacon and send it to the LAN."""
        if self._answers is not None and self._answers.source4 is not None:
            self._host.network.broadcast(self._host, self._beacon(is_answer=False), self._answers.source4)

    def answer(self, to: Address) -> None:
        """Sign a beacon that is marked as an answer and send it to `to` alone."""
        if self._answers is not None:
            self._answers.send(self._beacon(is_answer=True), to)

    def _received(self, data: bytes, source: Address) -> None:
        if 0 < len(data) <= limits.BEACON_BYTES_MAX:
            self._heard(data, source)

    def _moved(self) -> None:
        if self._changed is not None:
            self._changed()
        else:
            self.broadcast()


def interfaces_of_host(host: SimHost) -> tuple[Interface, ...]:
    """What an `InterfaceReader` finds on a simulated host: one interface with all its addresses, each in a network of 24 or 64 bits."""
    four = next((each for each in host.addresses if ":" not in each), None)
    return (
        Interface(
            name="sim0",
            index=1,
            ipv4=four,
            broadcasts=(four.rpartition(".")[0] + ".255",) if four else (),
            networks=tuple(f"{each}/{64 if ':' in each else 24}" for each in host.addresses),
            has_ipv6=any(":" in each for each in host.addresses),
            is_loopback=False,
        ),
    )
