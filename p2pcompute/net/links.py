"""The hub: all links of one peer. Listens, dials, admits, and keeps one link to each peer.

Which of several connections between two peers stays: the dialler of a connection proposes it only while it knows of no other link to that
peer, and proposes one at a time; the accepter takes what is proposed, since it means that an older link is of no use to the dialler. Only
where both have proposed at the same time they disagree, and then the connection dialled by the lower id stays. So both sides
keep the same one, in whatever order they see things (all orders are run through in the tests).

Refuses to know: whom to dial and why (`membership/joining.py`), what messages mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from p2pcompute.model import limits
from p2pcompute.model.errors import (
    AdmissionError,
    AdmissionReason,
    BusyError,
    LinkClosedError,
    P2PComputeError,
)
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Clock, Rng
from p2pcompute.net.gate import Gate
from p2pcompute.net.link import CLOSE_TIMEOUT_S, Link
from p2pcompute.net.link_life import Admission, LinkSettings, LinkState
from p2pcompute.net.stream_carrier import TlsIdentity, TlsTransport
from p2pcompute.net.transport import Transport
from p2pcompute.net.websocket_carrier import WebSocketDoor
from p2pcompute.wire.messages import Goodbye, Hello, Message
from p2pcompute.wire.versions import negotiate

#: Goodbye of a connection that another one replaces.
DUPLICATE = "duplicate"
#: How long a dial that lost waits for the link that won.
WINNER_TIMEOUT_S = 2.0
#: Links are looked after so many times in a heartbeat, so that silence is noticed soon after it is too long.
_LOOKS_PER_HEARTBEAT = 4

Spawn = Callable[[str, Coroutine[Any, Any, None]], object]


class LinkIdentity(TlsIdentity, Protocol):
    """Who this peer is, and how it judges others; `node/identity.py` is one."""

    peer: PeerId

    def admit(self, leaf_der: bytes, hello: Hello, expected: PeerId | None) -> Admission:
        """Whom the certificate and the Hello prove the other side to be. Raises AdmissionError, ProtocolError."""


class LinkEvents(Protocol):
    """Who wants to know."""

    def link_up(self, link: Link) -> None:
        """A link is up; comes before any of its messages."""

    def message(self, link: Link, message: Message) -> None:
        """A message that does not serve the link itself."""

    def link_down(self, link: Link, error: P2PComputeError | None) -> None:
        """A link that was up is gone; `error` None: by a goodbye."""

    def refused(self, address: Address, error: P2PComputeError) -> None:
        """A connection from `address` did not become a link."""


class LinkHub:
    """All links of one peer. `spawn` runs background work under the peer's supervisor."""

    def __init__(
        self,
        identity: LinkIdentity,
        events: LinkEvents,
        clock: Clock,
        rng: Rng,
        spawn: Spawn,
        *,
        settings: LinkSettings | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._identity = identity
        self._events = events
        self._clock = clock
        self._rng = rng
        self._spawn = spawn
        self._settings = settings or LinkSettings()
        self._transport = transport or TlsTransport(
            identity,
            spawn,
            handshake_timeout_s=self._settings.handshake_timeout_s,
            http=WebSocketDoor(identity, spawn, self._settings.handshake_timeout_s),
        )
        #: The link that is used, by peer.
        self._links: dict[PeerId, Link] = {}
        #: The same in order of peer ids, made anew with every change: whoever walks through it may wait meanwhile.
        self._links_in_order: Mapping[PeerId, Link] = MappingProxyType({})
        #: Every connection that is not gone, up or not; a dict because a set has no order.
        self._open: dict[Link, None] = {}
        #: What dials wait for: set when the link is up, or failed with the reason.
        self._dials: dict[Link, asyncio.Future[Link]] = {}
        #: Connections that this side dialled, proposed, and has no answer to, by peer.
        self._proposed: dict[PeerId, Link] = {}
        #: Further connections that this side dialled to such a peer; they wait for that answer.
        self._queued: dict[PeerId, list[Link]] = {}
        #: Connections that the other side dialled and that are no links yet.
        self._half_open: dict[Link, None] = {}
        self._gate = Gate(self._settings.handshakes_per_second, self._settings.private_factor)
        self._stopping = False

    @property
    def links(self) -> Mapping[PeerId, Link]:
        """The link to each peer, ordered by peer id, as it is now; a later change makes a new mapping."""
        return self._links_in_order

    def link(self, peer: PeerId) -> Link | None:
        """The open link to `peer`, if there is one."""
        found = self._links.get(peer)
        return None if found is None or found.closed else found

    # --- life cycle -----------------------------------------------------------------------------------------------------

    async def start(self, host: str | None, port: int, ports_tried: int = limits.PORTS_TRIED) -> int:
        """Listen at `port`, or the next free one; the port in use. Raises PortTakenError."""
        return await self._transport.listen(self._accept, self._events.refused, host, port, ports_tried)

    async def run(self) -> None:
        """The heartbeat of all links, until cancelled."""
        while True:
            pause_s = self._settings.heartbeat_interval_s / _LOOKS_PER_HEARTBEAT
            await asyncio.sleep(pause_s * self._rng.uniform(0.9, 1.1))
            self.beat()

    def beat(self) -> None:
        """Ping the links whose turn it is, end those that are silent."""
        now = self._clock.monotonic()
        for link in list(self._links.values()):
            silent_s = now - link.heard_at
            if silent_s > self._settings.silence_max_s:
                link.failure = LinkClosedError(f"nothing was heard from {link.named()} for {silent_s:.0f} s")
                link.abort()
            elif now - link.pinged_at >= self._settings.heartbeat_interval_s:
                link.ping()

    async def stop(self, reason: str = "leaving", text: str = "the peer stops") -> None:
        """Take no more connections, say goodbye on every link; bounded."""
        self._stopping = True
        await self._transport.stop()
        async with asyncio.TaskGroup() as group:
            for link in list(self._open):
                if link.state is LinkState.UP:
                    group.create_task(link.close(reason, text))
                else:
                    link.abort()
        # Whatever was closing already is gone too before the loop may end.
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for link in list(self._open):
                    if link.carrier:
                        await link.gone.wait()
        except TimeoutError:
            for link in list(self._open):
                link.abort()

    # --- dialling -------------------------------------------------------------------------------------------------------

    async def dial(self, address: Address, expected: PeerId | None, carrier: str = "stream") -> Link:
        """A link to whoever listens at `address`; the one that exists where there is one to that peer.

        `carrier`: "stream", or "websocket" where only HTTP gets through. Raises AdmissionError (SELF for this very peer, WRONG_PEER for another than `expected`), LinkClosedError.
        """
        if expected is not None and (known := self.link(expected)) is not None:
            return known
        if expected == self._identity.peer:
            raise AdmissionError(AdmissionReason.SELF, "this is the address of this very peer", str(address))
        if len(self._links) >= self._settings.links_max:
            raise BusyError(f"{self._settings.links_max} links are open already: close one before dialling {address}")
        link = Link(self, self._clock, dialled=True, expected=expected)
        future: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._open[link] = None
        self._dials[link] = future
        try:
            async with asyncio.timeout(limits.DIAL_TIMEOUT_S + self._settings.handshake_timeout_s):
                await self._transport.connect(address, link, carrier)
                async with asyncio.timeout(self._settings.handshake_timeout_s):
                    return await future
        except TimeoutError as error:
            raise LinkClosedError(f"{address} did not greet in time: it may be overloaded, or no peer") from error
        finally:
            self._dials.pop(link, None)
            if not future.done():
                future.cancel()
            elif not future.cancelled():
                future.exception()  # a caller that was cancelled at this moment does not ask any more
            if not link.settled.is_set() and not link.closed:
                link.abort()
            if link.carrier == "":
                self._open.pop(link, None)

    # --- accepting ------------------------------------------------------------------------------------------------------

    def _accept(self, remote: Address) -> Link | None:
        if self._stopping or len(self._half_open) >= self._settings.half_open_max:
            return None
        if not self._gate.admits(remote.host, self._clock.monotonic()):
            return None
        link = Link(self, self._clock, dialled=False)
        self._open[link] = self._half_open[link] = None
        self._spawn("handshake", self._watch_handshake(link))
        return link

    async def _watch_handshake(self, link: Link) -> None:
        """A connection that does not become a link in time is closed, however busily it dawdles."""
        try:
            async with asyncio.timeout(self._settings.handshake_timeout_s):
                await link.settled.wait()
        except TimeoutError:
            link.failure = LinkClosedError("did not greet in time")
            link.abort()
        finally:
            self._half_open.pop(link, None)

    # --- what links say (LinkOwner) -------------------------------------------------------------------------------------

    def greeted(self, link: Link, hello: Hello) -> None:
        """The other side's Hello has come: admit it or refuse it."""
        version = negotiate(hello.newest, hello.oldest)
        # First, so that knocking at one's own door is not taken for an impostor.
        admission = self._identity.admit(link.leaf(), hello, None)
        if admission.peer == self._identity.peer:
            raise AdmissionError(AdmissionReason.SELF, "this is the address of this very peer", str(link.remote))
        if link.expected is not None and admission.peer != link.expected:
            raise AdmissionError(
                AdmissionReason.WRONG_PEER,
                f"peer {short_peer_id(admission.peer)} answers where {short_peer_id(link.expected)} was expected",
                str(link.remote),
            )
        link.admit(admission, hello, version)
        if link.dialled:
            self._consider(link)

    def _consider(self, link: Link) -> None:
        """Propose a connection that this side dialled, unless there is a link or a proposal already."""
        peer = link.peer
        old = self.link(peer)
        if self._stopping:
            self._spawn("too late", link.close("leaving", "the peer stops"))
        elif old is not None and old.hello.instance == link.hello.instance:
            self._spawn("duplicate", link.close(DUPLICATE))
            self._settle(link, old)
        elif peer in self._proposed:
            self._queued.setdefault(peer, []).append(link)
        else:
            self._proposed[peer] = link
            link.propose()

    def proposed(self, link: Link) -> None:
        """The other side, which dialled, wants to use `link`: take it, or keep the one that there is."""
        peer = link.peer
        if self._stopping:
            self._spawn("too late", link.close("leaving", "the peer stops"))
        elif peer not in self._links and len(self._links) >= self._settings.links_max:
            link.fail(BusyError(f"this peer has {self._settings.links_max} links already: try another"))
        elif self._keeps(link):
            self._spawn("duplicate", link.close(DUPLICATE))
        else:
            link.agree()
            self._use(link)

    def _keeps(self, link: Link) -> bool:
        """Whether a connection that this side dialled stays although the other side proposes `link`."""
        if self._identity.peer > link.peer:
            return False
        own = self._proposed.get(link.peer)
        if own is not None and not own.closed:
            return own.hello.instance == link.hello.instance
        old = self.link(link.peer)
        if old is None or not old.dialled or old.hello.instance != link.hello.instance:
            return False
        # What the other side proposed before it knew of the old link arrives within the life of a handshake. What comes
        # later means that it has lost the old link.
        handshake_s = limits.DIAL_TIMEOUT_S + self._settings.handshake_timeout_s
        return self._clock.monotonic() - old.opened_at <= handshake_s

    def agreed(self, link: Link) -> None:
        """The other side takes what this side proposed."""
        self._use(link)

    def _use(self, link: Link) -> None:
        """`link` is the link to its peer from here on."""
        peer = link.peer
        old = self._links.get(peer)
        self._links[peer] = link
        self._order()
        link.raise_up()
        self._half_open.pop(link, None)
        self._events.link_up(link)
        if not link.closed and link.rtt_s is None:
            link.ping()
        if old is not None:
            # Up before down: to everybody above there was a link all the time.
            self._events.link_down(old, None)
            if not old.closed:
                self._spawn("duplicate", old.close(DUPLICATE))
        link.settled.set()
        self._settle(link, link)
        self._answered(link)

    def _order(self) -> None:
        self._links_in_order = MappingProxyType(dict(sorted(self._links.items())))

    def _answered(self, link: Link) -> None:
        """A proposal has its answer: connections that waited for it are considered again."""
        if link.admitted and self._proposed.get(link.peer) is link:
            del self._proposed[link.peer]
            for waiting in self._queued.pop(link.peer, []):
                if not waiting.closed:
                    self._consider(waiting)

    def _settle(self, link: Link, winner: Link) -> None:
        future = self._dials.get(link)
        if future is not None and not future.done():
            future.set_result(winner)

    def received(self, link: Link, message: Message) -> None:
        """A message of a link that is up."""
        self._events.message(link, message)

    def lost(self, link: Link, error: Exception | None) -> None:
        """A carrier is gone."""
        self._open.pop(link, None)
        self._half_open.pop(link, None)
        reason = self._reason(link, error)
        was_up = link.admitted and self._links.get(link.peer) is link
        if was_up:
            del self._links[link.peer]
            self._order()
            self._events.link_down(link, reason)
        elif not link.used and not link.dialled and link.carrier and reason is not None:
            self._events.refused(link.remote, reason)
        self._answered(link)
        future = self._dials.get(link)
        if future is None or future.done():
            return
        if link.farewell is not None and link.farewell.reason == DUPLICATE and link.admitted:
            self._spawn("dial that lost", self._await_winner(link, future))
        else:
            future.set_exception(reason or LinkClosedError(f"{link.named()} hung up: it is stopping"))

    def _reason(self, link: Link, error: Exception | None) -> P2PComputeError | None:
        if link.failure is not None:
            return link.failure
        farewell = link.farewell
        if farewell is not None:
            return None if farewell.reason in ("leaving", DUPLICATE) else _error_of(farewell, link)
        if link.state_before_loss is LinkState.LEAVING:
            return None
        if error is not None and not link.used:
            return self._identity.tls_error(error, link.dialled)
        if not link.used:
            return LinkClosedError(f"{link.named()} hung up before the link was up")
        return LinkClosedError(f"the connection to {link.named()} broke{f' ({error})' if error else ''}")

    async def _await_winner(self, link: Link, future: asyncio.Future[Link]) -> None:
        """The other side has closed this connection for another one: wait until that is up here too."""
        deadline = self._clock.monotonic() + WINNER_TIMEOUT_S
        while not future.done():
            winner = self.link(link.peer)
            if winner is not None:
                future.set_result(winner)
            elif self._clock.monotonic() > deadline:
                future.set_exception(
                    LinkClosedError(f"{link.named()} closed the connection for another one that never came: dial again")
                )
            else:
                await asyncio.sleep(0.02)


def _error_of(farewell: Goodbye, link: Link) -> P2PComputeError:
    """The other side's reason for hanging up."""
    if farewell.reason in set(AdmissionReason):
        return AdmissionError(AdmissionReason(farewell.reason), f"refused this peer: {farewell.text}", link.named())
    if farewell.reason == BusyError.__name__:
        return BusyError(f"{link.named()} is busy: {farewell.text}")
    return LinkClosedError(f"{link.named()} hung up ({farewell.reason}): {farewell.text}")
