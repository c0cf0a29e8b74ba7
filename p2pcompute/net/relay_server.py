"""What a public peer does for those whom nobody can dial: keeps reservations, joins circuits, passes bytes on.

Rules: both ends are linked to the relay, hence admitted members, and by links that are no circuits themselves; a circuit goes only to a peer
that asked for a reservation. The relay holds at most one window for each direction, as bytes and not as messages, and grants more only for what
it has passed on, so whoever takes slowly is sent slowly to, and whoever sends in crumbs costs no more than others. Relayed bytes leave as bulk does, when the link holds little, and at the rate of a circuit:
control never waits behind them. What a circuit carries is ciphertext whose keys the relay never sees.

The limits and counts are `relay_book.py`'s. Refuses to know: TLS, who may be a member, who should be asked to be a relay.
"""

from __future__ import annotations

import asyncio

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, LinkClosedError, P2PComputeError, ProtocolError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.seams import Clock
from p2pcompute.net.link import Link
from p2pcompute.net.relay_book import Metered, Party, RateBucket, RelayBook, RelaySettings
from p2pcompute.net.relay_door import RelayDoor
from p2pcompute.net.relay_legs import Circuits
from p2pcompute.wire.reaching import (
    CircuitClosed,
    CircuitCredit,
    CircuitData,
    CircuitOffered,
    CircuitOpen,
    RelayReserve,
    RelayReserved,
)

#: Reasons of CircuitClosed, for programs.
CLOSED = "closed"
REFUSED = "refused"
BUSY = "busy"
GONE = "gone"


class RelayServer:
    """The relay of one peer. It stands by until `serve`; `stop` ends every circuit."""

    def __init__(
        self, door: RelayDoor, circuits: Circuits, clock: Clock, settings: RelaySettings | None = None
    ) -> None:
        #: The hub.
        self._door = door
        #: All legs of this peer, those of the relay among them.
        self._legs = circuits
        #: For rates, silences and reservations.
        self._clock = clock
        #: What is given.
        self._settings = settings or RelaySettings()
        #: Who may have what, and who had what.
        self._book = RelayBook(self._settings)
        #: Circuits that are not over, in the order in which they were asked for.
        self._circuits: dict[_Circuit, None] = {}
        #: Whether anybody is served; a peer that nobody can dial is no use as a relay.
        self._serving = False

    def serve(self, serving: bool) -> None:
        """Begin to serve, or stop: then every circuit ends and every reservation is void."""
        self._serving = serving
        if not serving:
            for circuit in list(self._circuits):
                circuit.end(GONE, "the relay stops serving: use another one")
            for peer in self._book.reserved:
                self._book.release(peer)

    @property
    def serving(self) -> bool:
        """Whether this peer is a relay now."""
        return self._serving

    @property
    def reserved(self) -> tuple[PeerId, ...]:
        """Who is kept reachable, ordered by id."""
        return self._book.reserved

    def keeps(self, peer: PeerId) -> bool:
        """Whether `peer` is kept reachable."""
        return self._book.is_reserved(peer, self._clock.monotonic())

    @property
    def circuits(self) -> int:
        """Circuits open now."""
        return self._book.circuits

    @property
    def meters(self) -> dict[PeerId, Metered]:
        """What was moved for whom, ordered by peer id."""
        return self._book.meters

    @property
    def held_bytes(self) -> int:
        """What waits to be passed on, in all circuits."""
        return sum(leg.held_bytes for circuit in self._circuits for leg in (circuit.asker, circuit.target))

    # --- what peers ask -------------------------------------------------------------------------------------------------

    def reserve(self, link: Link, message: RelayReserve) -> None:
        """A linked peer wants to be reachable here."""
        if message.lifetime_s == 0:
            self._book.release(link.peer)
            return
        try:
            self._check(link)
            lifetime_s = self._book.reserve(_party(link), message.lifetime_s, self._clock.monotonic())
        except (BusyError, LinkClosedError) as error:
            self._legs.say(link, RelayReserved(0, refused=str(error)[:1024]))
            return
        settings = self._settings
        self._legs.say(
            link, RelayReserved(lifetime_s, settings.circuits_per_target_max, settings.bytes_per_second)
        )  # fmt: skip

    def open(self, link: Link, message: CircuitOpen) -> None:
        """A linked peer wants a circuit. Raises ProtocolError for a number that is not its to use."""
        self._legs.check_new(link, message.circuit)
        target = PeerId(message.target)
        try:
            self._check(link)
            onward = self._door.link(target)
            if target == link.peer or onward is None or onward.relayed:
                raise LinkClosedError(
                    f"{short_peer_id(target)} is not linked to this relay: ask one that its record names"
                )
            self._book.open(_party(link), target, self._clock.monotonic())
        except (BusyError, LinkClosedError) as error:
            reason = BUSY if isinstance(error, BusyError) else REFUSED
            self._legs.say(link, CircuitClosed(message.circuit, reason, str(error)[:1024]))
            return
        circuit = _Circuit(self, link, message, onward)
        self._circuits[circuit] = None
        circuit.offer()

    def _check(self, link: Link) -> None:
        if not self._serving:
            raise LinkClosedError(
                "this peer is no relay, since nobody can dial it or its owner does not want it: ask another one"
            )
        if link.relayed:
            raise LinkClosedError("a relay serves only whom it is linked to without a relay between")

    # --- what happens ---------------------------------------------------------------------------------------------------

    def link_gone(self, link: Link) -> None:
        """A link is gone; its legs are told apart from this. The reservation stays where another link has taken its place."""
        if self._door.link(link.peer) is None:
            self._book.release(link.peer)

    def beat(self, now: float) -> None:
        """End what is silent, unanswered or not delivered in time, and forget reservations that are over."""
        self._book.expire(now)
        for circuit in list(self._circuits):
            circuit.beat(now)

    # --- what circuits ask ----------------------------------------------------------------------------------------------

    @property
    def settings(self) -> RelaySettings:
        """What circuits keep to."""
        return self._settings

    @property
    def legs(self) -> Circuits:
        """Where legs stand."""
        return self._legs

    def now(self) -> float:
        """Seconds."""
        return self._clock.monotonic()

    def moved(self, source: PeerId, target: PeerId, size_bytes: int) -> None:
        """Bytes were passed on."""
        self._book.moved(source, target, size_bytes)

    def over(self, circuit: _Circuit) -> None:
        """A circuit has ended."""
        if circuit in self._circuits:
            del self._circuits[circuit]
            self._book.close(circuit.asker.party, circuit.target.peer)

    def check_invariants(self) -> None:
        """For tests."""
        self._book.check_invariants()
        assert self._book.circuits == len(self._circuits)
        for circuit in self._circuits:
            for leg in (circuit.asker, circuit.target):
                assert 0 <= leg.held_bytes <= self._settings.window_bytes


class _Circuit:
    """Two legs and what they have in common."""

    def __init__(self, server: RelayServer, link: Link, wanted: CircuitOpen, onward: Link) -> None:
        #: The relay.
        self.server = server
        #: When a byte last moved, or the circuit began.
        self.moved_at = self.opened_at = server.now()
        #: Whether the target has accepted; before that no leg has been granted anything by the relay but the target's first window.
        self.accepted = False
        #: When what is left of it must have been delivered, once one side has ended.
        self.drain_until: float | None = None
        #: The two sides; each is the other's `other`.
        self.asker = _Leg(self, link)
        self.target = _Leg(self, onward)
        self.asker.other, self.target.other = self.target, self.asker
        self.asker.number = wanted.circuit
        self.asker.credit_bytes = wanted.grant_bytes
        server.legs.adopt(link, wanted.circuit, self.asker)

    def offer(self) -> None:
        """Ask the target."""
        leg = self.target
        leg.number = self.server.legs.open(leg.link, leg)
        leg.window_bytes = self.server.settings.window_bytes
        self.server.legs.say(leg.link, CircuitOffered(leg.number, self.asker.peer, leg.window_bytes))

    def accept(self) -> None:
        """The target's first grant has come."""
        self.accepted = True
        leg = self.asker
        leg.window_bytes = self.server.settings.window_bytes
        self.server.legs.say(leg.link, CircuitCredit(leg.number, leg.window_bytes))

    def end(self, reason: str, text: str) -> None:
        """End it now; both sides that still are there are told."""
        for leg in (self.asker, self.target):
            leg.hang_up(reason, text)
        self.server.over(self)

    def beat(self, now: float) -> None:
        """End it where it has waited too long."""
        settings = self.server.settings
        whom = short_peer_id(self.target.peer)
        if self.drain_until is not None and now > self.drain_until:
            self.end(GONE, "the other side did not take the rest of what was sent")
        elif not self.accepted and now - self.opened_at > settings.answer_timeout_s:
            self.end(REFUSED, f"{whom} did not answer: try again, or another relay")
        elif now - self.moved_at > settings.silence_max_s:
            self.end(GONE, f"nothing moved for {settings.silence_max_s:.0f} s")


class _Leg:
    """One side of a circuit at the relay: what it sent is put into the other's queue, and its own queue is what goes to it."""

    def __init__(self, circuit: _Circuit, link: Link) -> None:
        #: What it is a side of.
        self._circuit = circuit
        #: The link to this side, and whose it is.
        self.link = link
        self.party = _party(link)
        self.peer = link.peer
        #: Its number on that link; 0 before it has one.
        self.number = 0
        #: The other side; set before anything is said.
        self.other: _Leg = self
        #: What this side may still send: falls with what comes, rises with what the other side was sent.
        self.window_bytes = 0
        #: What was passed on for this side and not granted again yet.
        self.owed_bytes = 0
        #: What this side still takes.
        self.credit_bytes = 0
        #: What waits to be sent to this side; never more than one window, since no more was granted. One run of bytes, since where a
        #: message ends means nothing, and a message for each byte would cost a hundred times as much.
        self._queue = bytearray()
        #: What may be sent to this side when.
        self._bucket = RateBucket(
            circuit.server.settings.bytes_per_second, circuit.server.settings.burst_bytes, circuit.server.now()
        )
        #: Runs when the rate allows more.
        self._timer: asyncio.TimerHandle | None = None
        #: Whether the link is to say when it has room.
        self._waits_for_room = False
        #: How the other side ended: passed on after the queue.
        self._ending: tuple[str, str] | None = None
        #: Nothing is said to this side any more.
        self.gone = False

    @property
    def held_bytes(self) -> int:
        """What waits to be sent to this side."""
        return len(self._queue)

    # what the dispatcher says

    def received(self, data: bytes) -> None:
        """This side has sent something."""
        if len(data) > self.window_bytes:
            raise ProtocolError(f"sends beyond its window on circuit {self.number}", self.link.named())
        self.window_bytes -= len(data)
        if self.link.closed:
            return  # this peer has said goodbye to it, perhaps because it is no member any more
        self._circuit.moved_at = self._circuit.server.now()
        self.other.enqueue(data)

    def granted(self, grant_bytes: int) -> None:
        """This side takes more."""
        self.credit_bytes += grant_bytes
        if self.credit_bytes > limits.CIRCUIT_GRANT_BYTES_MAX:
            raise ProtocolError(f"grants more than anybody takes on circuit {self.number}", self.link.named())
        if not self._circuit.accepted and self is self._circuit.target:
            self._circuit.accept()
        self.pump()

    def closed(self, reason: str, text: str) -> None:
        """This side has ended it, or refused."""
        self.drop()
        if self.other.gone:
            self._circuit.server.over(self._circuit)
            return
        self._circuit.drain_until = self._circuit.server.now() + self._circuit.server.settings.drain_s
        self.other.finish(reason, text)

    def lost(self, error: P2PComputeError) -> None:
        """The link to this side is gone."""
        self.closed(GONE, f"the relay has lost its link to {short_peer_id(self.peer)}")

    # what the circuit and the other side say

    def enqueue(self, data: bytes) -> None:
        """Pass `data` on to this side when it may be."""
        if self.gone:
            return
        self._queue += data
        self.pump()

    def finish(self, reason: str, text: str) -> None:
        """Hang up after what is queued."""
        self._ending = (reason, text)
        self.pump()

    def pump(self) -> None:
        """Send what rate, credit and the link's room allow: a window in the largest messages there are, so a few of them at most."""
        if self.gone or self._timer is not None:
            return
        server = self._circuit.server
        while self._queue and self.credit_bytes > 0:
            if not self.link.has_room():
                self._when_room()
                break
            size_bytes = min(len(self._queue), self.credit_bytes, limits.CIRCUIT_DATA_BYTES_MAX)
            # What is held back by the rate meanwhile leaves in one message with what follows it.
            pause_s = self._bucket.take(max(size_bytes, limits.CIRCUIT_DATA_COUNTED_BYTES_MIN), server.now())
            if pause_s > 0:
                self._timer = asyncio.get_running_loop().call_later(pause_s, self._pump_later)
                break
            data = bytes(self._queue[:size_bytes])
            del self._queue[:size_bytes]
            self.credit_bytes -= size_bytes
            self.link.send_bulk(CircuitData(self.number, data))
            self._circuit.moved_at = server.now()
            server.moved(self.other.peer, self.peer, size_bytes)
            self.other.repay(size_bytes)
        if self._ending is not None and not self._queue:
            reason, text = self._ending
            self.hang_up(reason, text)
            server.over(self._circuit)

    def repay(self, size_bytes: int) -> None:
        """So much of what this side sent is passed on: it may send as much again, told in quarters of the window."""
        self.owed_bytes += size_bytes
        if not self.gone and self.owed_bytes >= self._circuit.server.settings.window_bytes // 4:
            self.window_bytes += self.owed_bytes
            self._circuit.server.legs.say(self.link, CircuitCredit(self.number, self.owed_bytes))
            self.owed_bytes = 0

    def hang_up(self, reason: str, text: str) -> None:
        """Tell this side that it is over, now."""
        if not self.gone:
            self._circuit.server.legs.say(self.link, CircuitClosed(self.number, reason[:64], text[:1024]))
            self.drop()

    def drop(self) -> None:
        """This side is not there any more."""
        self.gone = True
        self._circuit.server.legs.drop(self.link, self.number)
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pump_later(self) -> None:
        self._timer = None
        self.pump()

    def _when_room(self) -> None:
        if not self._waits_for_room:
            self._waits_for_room = True
            self.link.when_room(self._room)

    def _room(self) -> None:
        self._waits_for_room = False
        self.pump()


def _party(link: Link) -> Party:
    """Who the other side of `link` is, as the book counts it."""
    return Party(link.peer, link.admission.invitation)
