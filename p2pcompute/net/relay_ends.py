"""The ends of circuits: asks relays for reservations and circuits, and takes circuits that relays offer.

Whom to ask, and when to renew, the caller decides. Refuses to know: which link to a peer is kept (`links.py`), what a relay does
(`relay_server.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, LinkClosedError, P2PComputeError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.seams import Clock
from p2pcompute.net.link import Link
from p2pcompute.net.link_life import RELAYED, Route
from p2pcompute.net.relay_carrier import RelayCarrier
from p2pcompute.net.relay_door import RelayDoor
from p2pcompute.net.relay_legs import Circuits
from p2pcompute.net.relay_pipe import Pipes
from p2pcompute.wire.messages import Hello
from p2pcompute.wire.reaching import (
    REACHING_PROTOCOL,
    CircuitClosed,
    CircuitCredit,
    CircuitOffered,
    CircuitOpen,
    RelayReserve,
    RelayReserved,
)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a relay has promised: until when (`monotonic` seconds), how many circuits, and how fast in each direction."""

    relay: PeerId
    until: float
    circuits_max: int
    bytes_per_second: int


class RelayEnds:
    """One peer's ends of circuits. `hello`: its first message."""

    def __init__(
        self,
        door: RelayDoor,
        circuits: Circuits,
        pipes: Pipes,
        hello: Callable[[], Hello],
        clock: Clock,
        *,
        handshake_timeout_s: float,
    ) -> None:
        #: The hub.
        self._door = door
        #: Where the ends stand.
        self._circuits = circuits
        #: Keep circuits private.
        self._pipes = pipes
        #: This peer's first message.
        self._hello = hello
        #: For the ends of reservations.
        self._clock = clock
        #: For a circuit to open and TLS inside it to be through.
        self._handshake_timeout_s = handshake_timeout_s
        #: Reservations that are asked for, by the link on which: since when (`monotonic` seconds), and who waits; one at a time on each.
        self._asked: dict[Link, tuple[float, asyncio.Future[RelayReserved]]] = {}
        #: What relays have promised, by relay: ends with its time, or with the last link to that relay.
        self._reservations: dict[PeerId, Reservation] = {}

    # --- reservations ---------------------------------------------------------------------------------------------------

    async def reserve(self, relay: PeerId) -> Reservation:
        """Have `relay`, a linked peer, keep this one reachable, or go on doing so.

        Raises BusyError where it has enough or does not want to, LinkClosedError where it does not answer.
        """
        link = self.outer(relay)
        if link in self._asked:
            raise BusyError(f"{link.named()} is being asked for a reservation already")
        future: asyncio.Future[RelayReserved] = asyncio.get_running_loop().create_future()
        self._asked[link] = (self._clock.monotonic(), future)
        try:
            link.send(RelayReserve())
            async with asyncio.timeout(limits.CIRCUIT_ANSWER_TIMEOUT_S):
                answer = await future
        except TimeoutError as error:
            raise LinkClosedError(f"{link.named()} says nothing about a reservation: ask another peer") from error
        finally:
            self._asked.pop(link, None)
            if not future.done():
                future.cancel()
        if answer.lifetime_s <= 0:
            raise BusyError(f"{link.named()} is no relay for this peer: {answer.refused or 'it does not say why'}")
        promised = self._reservations.get(relay)
        if promised is None:
            raise LinkClosedError(f"the link to {link.named()} ended as it promised a reservation: ask another peer")
        return promised

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """Those that last, ordered by relay."""
        now = self._clock.monotonic()
        return tuple(each for _, each in sorted(self._reservations.items()) if each.until > now)

    def release(self, relay: PeerId) -> None:
        """Do without `relay` from here on."""
        self._reservations.pop(relay, None)
        link = self._door.link(relay)
        if link is not None and link.version >= REACHING_PROTOCOL:
            link.send(RelayReserve(0))

    def reserved(self, link: Link, message: RelayReserved) -> None:
        """The relay has answered."""
        asked_at, future = self._asked.get(link, (0.0, None))
        if future is None or future.done():
            return
        if message.lifetime_s > 0:
            # Now, and not when whoever waits has its turn: a circuit may be offered right behind it.
            until = asked_at + message.lifetime_s
            self._reservations[link.peer] = Reservation(
                link.peer, until, message.circuits_max, message.bytes_per_second
            )
        future.set_result(message)

    def link_gone(self, link: Link, error: P2PComputeError) -> None:
        """Nothing more is heard on `link`."""
        if self._door.link(link.peer) is None:
            self._reservations.pop(link.peer, None)
        _, future = self._asked.get(link, (0.0, None))
        if future is not None and not future.done():
            future.set_exception(error)

    def outer(self, relay: PeerId) -> Link:
        """The link on which `relay` can be asked for something. Raises LinkClosedError."""
        link = self._door.link(relay)
        if link is None:
            raise LinkClosedError(
                f"there is no link to {short_peer_id(relay)}, which is to be the relay: dial it first"
            )
        if link.relayed:
            raise LinkClosedError(
                f"{short_peer_id(relay)} is itself reached through a relay and cannot be one: use another"
            )
        if link.version < REACHING_PROTOCOL:
            raise LinkClosedError(f"{short_peer_id(relay)} speaks an older protocol that knows no relays: use another")
        return link

    # --- circuits -------------------------------------------------------------------------------------------------------

    async def connect(self, relay: PeerId, target: PeerId, link: Link) -> None:
        """Have `link` carried to `target` through `relay`. Raises AdmissionError, BusyError, LinkClosedError."""
        outer = self.outer(relay)
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done() -> None:
            if not opened.done():
                opened.set_result(None)

        def failed(error: P2PComputeError) -> None:
            if not opened.done():
                opened.set_exception(error)

        carrier = self._carrier(link, outer, done, failed)
        try:
            carrier.number = self._circuits.open(outer, carrier)
            outer.send(CircuitOpen(carrier.number, target, limits.CIRCUIT_WINDOW_BYTES))
            await opened
        except BaseException:
            carrier.abort()
            raise
        finally:
            if not opened.done():
                opened.cancel()

    def offered(self, outer: Link, message: CircuitOffered) -> None:
        """A relay says that somebody wants to reach this peer. Raises ProtocolError for a number that is not its to use."""
        self._circuits.check_new(outer, message.circuit)
        source = PeerId(message.source)
        own = short_peer_id(self._door.peer)
        if not outer.relayed and not any(each.relay == outer.peer for each in self.reservations):
            # Said in good faith where this peer has just given the reservation back; else only to fill a table of ours.
            words = f"{own} has no reservation at this relay: ask one that its record names"
            self._circuits.say(outer, CircuitClosed(message.circuit, "refused", words))
            return
        link = None if outer.relayed else self._door.offered(source, Route(RELAYED, outer.peer))
        if link is None:
            words = f"{own} takes no connections now: try again"
            self._circuits.say(outer, CircuitClosed(message.circuit, "busy", words))
            return

        def failed(error: P2PComputeError) -> None:
            self._door.turned_away(carrier.remote, link.failure or error)
            link.carrier_lost(error)

        carrier = self._carrier(link, outer, lambda: None, failed)
        carrier.number = message.circuit
        self._circuits.adopt(outer, message.circuit, carrier)
        self._circuits.say(outer, CircuitCredit(message.circuit, limits.CIRCUIT_WINDOW_BYTES))
        carrier.granted(message.grant_bytes)

    def _carrier(
        self, link: Link, outer: Link, opened: Callable[[], None], failed: Callable[[P2PComputeError], None]
    ) -> RelayCarrier:
        carrier = RelayCarrier(
            link,
            self._hello,
            self._pipes.pipe(dialled=link.dialled),
            self._circuits,
            outer,
            opened,
            failed,
            handshake_timeout_s=self._handshake_timeout_s,
        )
        link.connecting(carrier.abort)
        return carrier
