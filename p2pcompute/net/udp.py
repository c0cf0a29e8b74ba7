"""The shell of datagrams: one UDP port, the session machine, a timer of the loop.

Datagrams of peers come out with who sent them; whom to talk to, and about what, others decide. Refuses to know: sessions
(`sessions.py`), sockets (`udp_port.py`, or the laboratory's memory).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.net.datagrams import DatagramPort, OpenDatagrams
from p2pcompute.net.session_events import (
    Admit,
    DatagramIdentity,
    Delivered,
    Effect,
    Refused,
    SessionInfo,
    SessionSettings,
    SessionUp,
    Transmit,
)
from p2pcompute.net.sessions import Sessions
from p2pcompute.wire.membership import Admitted


class UdpEvents(Protocol):
    """What the endpoint tells. Called from the loop; may call the endpoint."""

    def datagram(self, peer: PeerId, channel: int, payload: bytes, source: Address) -> None:
        """`peer`, which has shown to be at `source`, sent this, once. The payload is a stranger's bytes all the same."""

    def session_up(self, peer: PeerId, address: Address, admission: Admitted) -> None:
        """A handshake with `peer` is done: its first, after a restart, or for fresh keys."""

    def refused(self, address: Address, error: P2PComputeError, times: int) -> None:
        """Somebody at `address` was refused, or did not answer; at most once a second for one host. `times`: how often since then."""


class UdpEndpoint:
    """See the module. `settings`: times and limits of sessions."""

    def __init__(
        self,
        identity: DatagramIdentity,
        events: UdpEvents,
        clock: Clock,
        entropy: Entropy,
        open_datagrams: OpenDatagrams,
        *,
        settings: SessionSettings | None = None,
    ) -> None:
        self._identity = identity
        self._events = events
        self._clock = clock
        self._open_datagrams = open_datagrams
        #: Outlives stops and starts of the port: sessions go on at another address.
        self._sessions = Sessions(identity, entropy, settings)
        #: None while stopped.
        self._port: DatagramPort | None = None
        #: The next call of `_tick`, and when it is, by the clock.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    async def start(self, host: str | None, port: int) -> int:
        """Open UDP port `port` at `host` (None: every interface); the port in use. Raises PortTakenError."""
        assert self._port is None, "started once"
        self._port = await self._open_datagrams(host, port, self._received)
        self._arm()
        return self._port.port

    async def stop(self) -> None:
        """Close the port; a second call does nothing. Peers notice by silence."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._port is not None:
            self._port.close()
            self._port = None

    @property
    def port(self) -> int:
        """The port in use; only while started."""
        assert self._port is not None, "a port is there after start"
        return self._port.port

    @property
    def counts(self) -> Mapping[str, int]:
        """What was refused or lost, by reason (`session_events.Why`)."""
        return self._sessions.counts

    def send(self, peer: PeerId, addresses: Sequence[Address], channel: int, payload: bytes) -> None:
        """Send `payload` (at most `limits.DATAGRAM_PAYLOAD_BYTES_MAX` bytes) to `peer` on `channel` (1 to 255).

        Uses the session with `peer`; without one, a handshake at `addresses`, the likeliest first, during which a few payloads are
        held for a few seconds. Lost while stopped, and wherever else datagrams are lost. Raises UsageError for what no datagram
        carries.
        """
        if self._port is not None:
            self._perform(self._sessions.send(peer, addresses, channel, payload, self._clock.monotonic()))

    def greet(self, address: Address) -> None:
        """Begin a handshake with whoever listens at `address` (numeric); `session_up` or `refused` tells. Raises UsageError."""
        if self._port is not None:
            self._perform(self._sessions.greet(address, self._clock.monotonic()))

    def session(self, peer: PeerId) -> SessionInfo | None:
        """The session in use with `peer`, None where there is none."""
        return self._sessions.session(peer)

    def drop(self, peer: PeerId) -> None:
        """Forget the sessions with `peer`; its next handshake is judged anew."""
        self._sessions.drop(peer)

    def recheck(self, admit: Admit | None = None) -> None:
        """Trust has changed: judge every peer again (by `admit`, else by the identity) before anything more goes to or from it."""
        self._sessions.recheck(admit or self._identity.admit, self._clock.monotonic())
        self._arm()

    # --- the machine ----------------------------------------------------------------------------------------------------

    def _received(self, data: bytes, source: Address) -> None:
        if self._port is not None:
            self._perform(self._sessions.receive(data, source, self._clock.monotonic()))

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._sessions.tick(self._clock.monotonic(), self._clock.wall()))

    def _perform(self, effects: Sequence[Effect]) -> None:
        # Before the events: whoever is told may call us again, or raise.
        self._arm()
        for effect in effects:
            try:
                self._perform_one(effect)
            except Exception as error:
                # A bug, and told as one; the other datagrams and payloads of this turn have nothing to do with it.
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"an effect of datagrams failed: {type(effect).__name__}", "exception": error}
                )

    def _perform_one(self, effect: Effect) -> None:
        match effect:
            case Transmit(data, to):
                if self._port is not None:
                    self._port.send(data, to)
            case Delivered(peer, channel, payload, source):
                self._events.datagram(peer, channel, payload, source)
            case SessionUp(peer, address, admission):
                self._events.session_up(peer, address, admission)
            case Refused(address, error, times):
                self._events.refused(address, error, times)

    def _arm(self) -> None:
        deadline = self._sessions.deadline()
        if deadline is None or self._port is None or (self._timer is not None and self._timer_at <= deadline):
            return  # a timer that comes early finds nothing to do and is set anew
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        delay_s = max(0.0, deadline - self._clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)
