"""The hub: all links of one peer. Listens, dials, admits, and keeps one link to each peer.

Which of several connections between two peers stays, `link_choice.py` says: both sides keep the same one, in whatever order they see
things (all orders are run through in the tests). Peers that cannot be dialled are reached through `relay.py`, whose doors here are `dial_via`,
`dial_reversed` and `reaching`. Links that nobody needs make room for others.

Refuses to know: whom to dial and why (`membership/joining.py`), what messages mean.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
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
from p2pcompute.net.gate import Gate, counted_as
from p2pcompute.net.half_open import HalfOpen
from p2pcompute.net.link import CLOSE_TIMEOUT_S, Link
from p2pcompute.net.link_choice import Rival, Verdict, least_useful, verdict, worth_proposing
from p2pcompute.net.link_life import MEMBERSHIP_ENDED, RELAYED, Admission, LinkSettings, LinkState, Route
from p2pcompute.net.link_loss import DUPLICATE, IDLE, PROBE, loss_reason
from p2pcompute.net.relay import Reaching
from p2pcompute.net.relay_book import RelaySettings
from p2pcompute.net.relay_pipe import Pipes
from p2pcompute.net.stream_carrier import TlsIdentity, TlsTransport
from p2pcompute.net.transport import Transport
from p2pcompute.net.websocket_carrier import WebSocketDoor
from p2pcompute.wire.messages import Hello, Message
from p2pcompute.wire.versions import negotiate

#: How long a dial that lost waits for the link that won.
WINNER_TIMEOUT_S = 2.0
#: Links are looked after so many times in a heartbeat, so that silence is noticed soon after it is too long.
_LOOKS_PER_HEARTBEAT = 4

Spawn = Callable[[str, Coroutine[Any, Any, None]], object]
#: How useful a link is, the more the better; None: it is in use and never closed to make room.
Worth = Callable[[Link], float | None]


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
    """All links of one peer. `spawn` runs background work under the peer's supervisor; without `worth` no link makes room for another."""

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
        worth: Worth | None = None,
        relay: RelaySettings | None = None,
        pipes: Pipes | None = None,
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
        #: Connections that the other side dialled and that are no links yet: those at this port, by address, and those through relays,
        #: by relay. Apart, so that no relay stands in the way of those who can dial.
        self._half_open: HalfOpen[Link] = HalfOpen(self._settings.half_open_max)
        self._half_open_relayed: HalfOpen[Link] = HalfOpen(self._settings.half_open_max)
        #: Connections that only ask who is there.
        self._probes: dict[Link, None] = {}
        #: The other side's proposals that wait until this side's own is answered, by peer.
        self._deferred: dict[PeerId, list[Link]] = {}
        #: Links that somebody waits for, by peer, with how they come about.
        self._expected: dict[PeerId, tuple[Route, asyncio.Future[Link]]] = {}
        #: What says how useful a link is.
        self._worth = worth
        #: Relays, dial-backs and reversed dials.
        self.reaching = Reaching(
            self, identity, clock, handshake_timeout_s=self._settings.handshake_timeout_s, settings=relay, pipes=pipes
        )
        self._gate = Gate(self._settings.handshakes_per_second, self._settings.private_factor)
        self._stopping = False

    @property
    def peer(self) -> PeerId:
        """Who this is."""
        return self._identity.peer

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
        """Ping the links whose turn it is; end those that are silent, whose peer's membership has ended, or that said goodbye and are there yet."""
        now, now_wall = self._clock.monotonic(), self._clock.wall()
        for link in list(self._links.values()):
            silent_s = now - link.heard_at
            if silent_s > self._settings.silence_max_s:
                link.failure = LinkClosedError(f"nothing was heard from {link.named()} for {silent_s:.0f} s")
                link.abort()
            elif now_wall > link.expires_wall:
                link.fail(AdmissionError(AdmissionReason.EXPIRED, MEMBERSHIP_ENDED, link.named()))
            elif link.is_ping_due(now, self._settings.heartbeat_interval_s):
                link.ping()
        for link in list(self._open):
            # Replaced ones too: whoever dials again and again would else pile up what it never takes.
            if link.left_at is not None and now - link.left_at > limits.LINK_LEAVING_MAX_S:
                link.abort()
        self.reaching.beat(now)
        if self._open_links() > self._settings.links_kept:
            self._close_least_useful(now - self._settings.idle_after_s)

    def check_all(self, within_s: float) -> None:
        """This machine slept, or sits on another network: links on which nothing comes within `within_s` seconds are ended."""
        since = self._clock.monotonic()
        for link in list(self._links.values()):
            link.ping()
        self._spawn("check links", self._end_silent(since, within_s))

    async def _end_silent(self, since: float, within_s: float) -> None:
        await asyncio.sleep(within_s)
        for link in list(self._links.values()):
            if link.heard_at < since and link.opened_at < since and not link.closed:
                link.failure = LinkClosedError(f"{link.named()} did not answer after this machine slept or moved")
                link.abort()

    async def stop(self, reason: str = "leaving", text: str = "the peer stops") -> None:
        """Take no more connections, say goodbye on every link; bounded."""
        self._stopping = True
        await self._transport.stop()
        # What runs through others first, since its goodbyes go over their links.
        for relayed in (True, False):
            async with asyncio.TaskGroup() as group:
                for link in list(self._open):
                    if link.relayed is not relayed:
                        continue
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

    async def dial(
        self, address: Address, expected: PeerId | None, carrier: str = "stream", route: Route | None = None
    ) -> Link:
        """A link to whoever listens at `address`; the one that exists where there is one to that peer that needs no relay.

        `carrier`: "stream", or "websocket" where only HTTP gets through; `route`: how it came about, where it was asked for.
        Raises AdmissionError (SELF for this very peer, WRONG_PEER for another than `expected`), BusyError, LinkClosedError.
        """
        if expected is not None and (known := self.link(expected)) is not None and not known.relayed:
            return known
        if expected == self._identity.peer:
            raise AdmissionError(AdmissionReason.SELF, "this is the address of this very peer", str(address))
        link = self._dialling(expected, str(address), route)
        return await self._dialled(link, self._transport.connect(address, link, carrier), str(address))

    async def dial_via(self, relay: PeerId, target: PeerId) -> Link:
        """A link to `target` through `relay`, a linked peer at which it has a reservation; the one that exists where there is one.

        Raises AdmissionError, BusyError, LinkClosedError, all of which say who refused.
        """
        if (known := self.link(target)) is not None:
            return known
        if target == self._identity.peer:
            raise AdmissionError(AdmissionReason.SELF, "this is this very peer", short_peer_id(target))
        whom = f"{short_peer_id(target)} through {short_peer_id(relay)}"
        link = self._dialling(target, whom, Route(RELAYED, relay))
        return await self._dialled(link, self.reaching.ends.connect(relay, target, link), whom)

    async def dial_reversed(self, via: PeerId, target: PeerId, addresses: Sequence[Address]) -> Link:
        """Have `target`, which cannot be dialled, dial this peer at `addresses`; asked through `via`, a peer linked to both.

        Raises BusyError, LinkClosedError.
        """
        return await self.reaching.reversals.ask(via, target, addresses)

    async def probe(self, address: Address, expected: PeerId) -> None:
        """Connect to `address`, see that `expected` answers, and hang up. No link comes of it, and none is disturbed.

        Raises AdmissionError, LinkClosedError.
        """
        link = Link(self, self._clock, dialled=True, expected=expected)
        self._probes[link] = None
        try:
            await self._dialled(link, self._transport.connect(address, link, "stream"), str(address))
        finally:
            del self._probes[link]

    def _dialling(self, expected: PeerId | None, whom: str, route: Route | None) -> Link:
        is_new = expected is None or expected not in self._links
        if is_new and self._is_full() and self._least_useful() is None:
            raise BusyError(f"{self._settings.links_max} links are open already: close one before dialling {whom}")
        return Link(self, self._clock, dialled=True, expected=expected, route=route)

    async def _dialled(self, link: Link, connect: Coroutine[Any, Any, None], whom: str) -> Link:
        future: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._open[link] = None
        self._dials[link] = future
        try:
            async with asyncio.timeout(limits.DIAL_TIMEOUT_S + self._settings.handshake_timeout_s):
                await connect
                async with asyncio.timeout(self._settings.handshake_timeout_s):
                    return await future
        except TimeoutError as error:
            raise LinkClosedError(f"{whom} did not greet in time: it may be overloaded, or no peer") from error
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
        source, is_private = counted_as(remote.host)
        share = self._settings.half_open_per_address * (self._settings.private_factor if is_private else 1)
        if self._stopping or self._half_open.count(source) >= share:
            return None
        if not self._gate.admits(remote.host, self._clock.monotonic()):
            return None
        return self._accepted(Link(self, self._clock, dialled=False), self._half_open, source)

    def offered(self, source: PeerId, route: Route) -> Link | None:
        """A link for a circuit that `source` is said to want, or None where it is not wanted now: the limits of other connections hold.

        Who it really is shows as everywhere; another than `source` is refused. Handshakes are counted for the relay, which could invent sources.
        """
        relay = f"relay {short_peer_id(route.via)}"
        if self._stopping or self._half_open_relayed.count(relay) >= self._settings.half_open_per_relay:
            return None
        if not self._gate.admits(relay, self._clock.monotonic()):
            return None
        link = Link(self, self._clock, dialled=False, expected=source, route=route)
        return self._accepted(link, self._half_open_relayed, relay)

    def _accepted(self, link: Link, table: HalfOpen[Link], source: str) -> Link:
        self._open[link] = None
        displaced = table.add(link, source)
        if displaced is not None:
            displaced.failure = BusyError("had not greeted yet when others wanted its place")
            displaced.abort()
        self._spawn("handshake", self._watch_handshake(link, table))
        return link

    async def _watch_handshake(self, link: Link, table: HalfOpen[Link]) -> None:
        """A connection that does not become a link in time is closed, however busily it dawdles."""
        try:
            async with asyncio.timeout(self._settings.handshake_timeout_s):
                await link.settled.wait()
        except TimeoutError:
            link.failure = LinkClosedError("did not greet in time")
            link.abort()
        finally:
            table.drop(link)

    def _is_half_open_no_more(self, link: Link) -> None:
        self._half_open.drop(link)
        self._half_open_relayed.drop(link)

    # --- what relays, dial-backs and reversed dials ask -----------------------------------------------------------------

    def turned_away(self, address: Address, error: P2PComputeError) -> None:
        """A circuit did not become a link."""
        self._events.refused(address, error)

    def expect(self, peer: PeerId, route: Route) -> asyncio.Future[Link]:
        """The next link to `peer` that runs over no relay; one that it dials meanwhile gets `route`. One at a time for each peer."""
        future: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._expected[peer] = (route, future)
        return future

    def unexpect(self, peer: PeerId) -> None:
        """Nobody waits for it any more."""
        _, future = self._expected.pop(peer)
        if not future.done():
            future.cancel()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> object:
        """Run work in the background."""
        return self._spawn(name, work)

    # --- too many links -------------------------------------------------------------------------------------------------

    def _open_links(self) -> int:
        return sum(not link.closed for link in self._links.values())

    def _least_useful(self, up_before: float = math.inf) -> Link | None:
        worth = self._worth
        if worth is None:
            return None
        links = [link for link in self._links.values() if not link.closed and link.opened_at <= up_before]
        return least_useful((link.peer, link, worth(link)) for link in links if not self.reaching.needs(link))

    def _close_least_useful(self, up_before: float = math.inf) -> bool:
        """Whether a link has made room. One over which somebody is reached, or kept reachable, stays."""
        link = self._least_useful(up_before)
        if link is not None:
            # Said at once, so that it does not count any more.
            link.say_goodbye(IDLE, "nobody needs this link here, and others wait: dial again when you do")
            self._spawn("idle", link.close(IDLE))
        return link is not None

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
        if link in self._probes:
            link.say_goodbye(PROBE, "only asked who is there")
            self._spawn("probe", link.close(PROBE))
            self._settle(link, link)
        elif link.dialled:
            self._consider(link)
        elif link.route is None and link.peer in self._expected:
            link.route = self._expected[link.peer][0]

    def _consider(self, link: Link) -> None:
        """Propose a connection that this side dialled, unless there is a link as good, or a proposal already."""
        peer = link.peer
        old = self.link(peer)
        if self._stopping:
            self._spawn("too late", link.close("leaving", "the peer stops"))
        elif old is not None and not worth_proposing(link.relayed, self._rival(old, link)):
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
            return
        own = self._proposed.get(peer)
        pending = None if own is None or own.closed else self._rival(own, link)
        judged = verdict(link.relayed, self._identity.peer < peer, pending, self._rival(self.link(peer), link))
        if judged is Verdict.WAIT:
            self._deferred.setdefault(peer, []).append(link)
        elif judged is Verdict.REFUSE:
            self._spawn("duplicate", link.close(DUPLICATE))
        elif peer not in self._links and self._is_full() and not self._close_least_useful():
            link.fail(BusyError(f"this peer has {self._settings.links_max} links already: try another"))
        else:
            link.agree()
            self._use(link)

    def _rival(self, own: Link | None, link: Link) -> Rival | None:
        """What this side has, as `link` to the same peer has to see it."""
        if own is None:
            return None
        handshake_s = limits.DIAL_TIMEOUT_S + self._settings.handshake_timeout_s
        fresh = self._clock.monotonic() - own.opened_at <= handshake_s
        return Rival(own.relayed, own.dialled, own.hello.instance == link.hello.instance, fresh)

    def _is_full(self) -> bool:
        return self._open_links() >= self._settings.links_max

    def agreed(self, link: Link) -> None:
        """The other side takes what this side proposed."""
        if link.peer not in self._links and self._is_full():
            self._close_least_useful()
        self._use(link)

    def _use(self, link: Link) -> None:
        """`link` is the link to its peer from here on."""
        peer = link.peer
        old = self._links.get(peer)
        self._links[peer] = link
        self._order()
        link.raise_up()
        self._is_half_open_no_more(link)
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
        _, expected = self._expected.get(peer, (None, None))
        if expected is not None and not link.relayed and not expected.done():
            expected.set_result(link)
        self._answered(link)

    def _order(self) -> None:
        self._links_in_order = MappingProxyType(dict(sorted(self._links.items())))

    def _answered(self, link: Link) -> None:
        """A proposal has its answer: connections that waited for it are considered again."""
        if link.admitted and self._proposed.get(link.peer) is link:
            del self._proposed[link.peer]
            for waiting in self._deferred.pop(link.peer, []):
                if not waiting.closed:
                    self.proposed(waiting)
            for waiting in self._queued.pop(link.peer, []):
                if not waiting.closed:
                    self._consider(waiting)

    def _settle(self, link: Link, winner: Link) -> None:
        future = self._dials.get(link)
        if future is not None and not future.done():
            future.set_result(winner)

    def received(self, link: Link, message: Message) -> None:
        """A message of a link that is up."""
        if not self.reaching.heard(link, message):
            self._events.message(link, message)

    def lost(self, link: Link, error: Exception | None) -> None:
        """A carrier is gone."""
        self._open.pop(link, None)
        self._is_half_open_no_more(link)
        reason = loss_reason(link, error, self._identity.tls_error)
        was_up = link.admitted and self._links.get(link.peer) is link
        if was_up:
            del self._links[link.peer]
            self._order()
            self._events.link_down(link, reason)
        elif not link.used and not link.dialled and link.carrier and reason is not None:
            self._events.refused(link.remote, reason)
        if link.used:
            self.reaching.link_gone(link, reason or LinkClosedError(f"the link to {link.named()} is closed"))
        self._answered(link)
        future = self._dials.get(link)
        if future is None or future.done():
            return
        if link.farewell is not None and link.farewell.reason == DUPLICATE and link.admitted:
            self._spawn("dial that lost", self._await_winner(link, future))
        else:
            future.set_exception(reason or LinkClosedError(f"{link.named()} hung up: it is stopping"))

    async def _await_winner(self, link: Link, future: asyncio.Future[Link]) -> None:
        """The other side has closed this connection for another one: wait until that is up here too."""
        deadline = self._clock.monotonic() + WINNER_TIMEOUT_S
        while not future.done():
            winner = self.link(link.peer)
            if winner is not None and (link.relayed or not winner.relayed):
                future.set_result(winner)
            elif self._clock.monotonic() > deadline:
                future.set_exception(
                    LinkClosedError(f"{link.named()} closed the connection for another one that never came: dial again")
                )
            else:
                await asyncio.sleep(0.02)
