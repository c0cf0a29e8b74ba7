"""Links and membership of one peer, wired together.

Beacons, records and flags hint at addresses; the joining machine decides what to dial; the hub proves who answers; the
peer book keeps what they say, and hears who lives by gossip (`gossiping.py`). The parts beside it (`reaching.py`, `healing.py`) listen;
the rest of the peer is told through `OverlayEvents`. Refuses to know what a job is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from p2pcompute.membership import beacons, book, joining
from p2pcompute.membership.locality import parse_networks
from p2pcompute.membership.rate import RateTable
from p2pcompute.model import limits
from p2pcompute.model.errors import (
    AdmissionError,
    AdmissionReason,
    LinkClosedError,
    P2PComputeError,
    ProtocolError,
)
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address, PeerRecord, PeerView, Relay
from p2pcompute.model.seams import Clock
from p2pcompute.net.beacon import BeaconShell
from p2pcompute.net.link import Link
from p2pcompute.net.link_loss import IDLE
from p2pcompute.net.links import LinkHub
from p2pcompute.net.nonsense import Nonsense
from p2pcompute.node.driver import Observe, Pump
from p2pcompute.node.gossiping import Gossiping
from p2pcompute.node.own_record import OwnRecord
from p2pcompute.node.supervise import Supervisor
from p2pcompute.node.troubles import Trouble, Troubles
from p2pcompute.wire.families import GOSSIP_ONLY
from p2pcompute.wire.messages import (
    Message,
    Records,
    Renewals,
    Revocations,
    SuspectAnswer,
    SuspectQuery,
)

#: Refusals after which the same address is worth another try only rarely.
_PERMANENT = frozenset(AdmissionReason) - {AdmissionReason.NOT_YET_VALID}
#: What membership says over links.
_MEMBERSHIP = (*GOSSIP_ONLY, Records, SuspectQuery, SuspectAnswer)
#: Bytes of the throughput measurement of a link: long enough to leave slow start on a LAN.
BANDWIDTH_PROBE_BYTES = 1 << 20
#: A record that names the same ways to its peer as the one before is passed on to those who follow ways only so often, seconds.
WAYS_AGAIN_S = 60.0
#: Links are measured one at a time, so many seconds apart.
MEASURE_INTERVAL_S = 1.0
#: So many are measured soon after the start, about as many as a record lists; beyond them one in so many seconds. Neighbours at equal distances
#: take turns in the record, others restart, and a megabyte each time would be most of what an idle peer sends.
MEASURED_SOON = 12
MEASURE_PERIOD_S = 3600.0
#: A stranger that was dialled in vain so often is not waited for any more.
ELUSIVE_DIALS = 2
#: Up to so many links all of them are measured, beyond only those that the own record lists.
MEASURED_ALL = 12


class OverlayEvents(Protocol):
    """Who wants to know what happens in the overlay."""

    def linked(self, link: Link) -> None:
        """A link is up."""

    def unlinked(self, link: Link, error: P2PComputeError | None) -> None:
        """A link is down."""

    def job_message(self, link: Link, message: Message) -> None:
        """A message that is not the overlay's own."""

    def trust_message(self, link: Link, message: Revocations | Renewals) -> None:
        """News from the owner of the network."""

    def network_event(self, kind: str, peer: PeerId, text: str) -> None:
        """ "peer_appeared", "peer_suspected", "peer_died", "peer_left" or "view_changed"."""


class Listener(Protocol):
    """A part of the overlay that follows links and records."""

    def linked(self, link: Link) -> None:
        """A link is up, or a better one in place of another."""

    def unlinked(self, peer: PeerId) -> None:
        """The link to `peer` is gone, and no other to it is left."""

    def learned(self, record: PeerRecord) -> None:
        """A newer record of a peer that lives."""

    def forgotten(self, peer: PeerId) -> None:
        """`peer` died, left or was revoked."""


async def _no_relays(peer: PeerId, relay: Relay) -> object:
    raise LinkClosedError(f"{short_peer_id(peer)} can be reached through a relay only, and this peer uses none")


class Overlay:
    """Links and membership of one peer; implements `net.link.LinkEvents`."""

    def __init__(
        self,
        own: OwnRecord,
        peer_book: book.PeerBook,
        joiner: joining.JoiningMachine,
        clock: Clock,
        supervisor: Supervisor,
        events: OverlayEvents,
        log: FilteringBoundLogger,
        observe: Observe | None = None,
        *,
        probe_bytes: int = BANDWIDTH_PROBE_BYTES,
    ) -> None:
        #: What is sent to measure a link's throughput; 0: none is measured.
        self._probe_bytes = probe_bytes
        self._own = own
        self._clock = clock
        self._supervisor = supervisor
        self._events = events
        self._log = log
        self._wall = clock.wall
        self._observe = observe
        self._peer_book = peer_book
        #: Dials in vain since each peer was last linked or appeared; at most `limits.PEERS_MAX` peers.
        self._vain: dict[PeerId, int] = {}
        #: Whom the owner has revoked.
        self._banned: set[PeerId] = set()
        #: Who else follows links and records.
        self._listeners: tuple[Listener, ...] = ()
        #: Records that the others are still to be told of; empty between events.
        self._news: list[PeerRecord] = []
        #: What they were last told of each peer's ways, and when, monotonic seconds; at most `limits.PEERS_MAX`.
        self._ways_told: dict[PeerId, tuple[tuple[object, ...], float]] = {}
        #: Carries gossip.
        self.gossiping = Gossiping(
            lambda event: self.book.feed(event),
            peer_book.record,
            self.open_link,
            self._wall,
            self.trouble,
            self.misdeed,
        )
        #: How a peer that nobody can dial is reached through a relay; `reaching.py` sets it.
        self.dial_through: Callable[[PeerId, Relay], Awaitable[object]] = _no_relays
        #: Of the view as beacons tell it, and of which version: noise on the beacons' port must not have it made anew each time.
        self._view_hash: tuple[int, bytes] = (-1, b"")
        self._make_view_hash: Callable[[], bytes] = bytes
        #: Set by `attach`.
        self._hub: LinkHub | None = None
        self._beacon: Pump[beacons.Event, beacons.Effect] | None = None
        #: What went wrong lately, by address or short peer id.
        self._troubles = Troubles()
        #: How much each peer says about membership over its link.
        self._talk: RateTable[PeerId] = RateTable(limits.CANDIDATES_MAX)
        #: Who sends nonsense to the beacons' port.
        self._nonsense = Nonsense()
        self.book: Pump[book.Event, book.Effect] = Pump(
            peer_book,
            {
                book.SendRecords: self._send_records,
                book.SendGossip: self.gossiping.send,
                book.PeerSuspected: self._suspected,
                book.AskSuspect: self._ask_suspect,
                book.AnswerSuspect: self._answer_suspect,
                book.ViewChanged: lambda _: self._events.network_event("view_changed", self._own.record.peer, ""),
                book.PeerAppeared: lambda e: self._events.network_event("peer_appeared", e.peer, ""),
                book.PeerDied: self._died,
                book.PeerLeft: lambda e: self._gone("peer_left", e.peer, ""),
                book.RaiseIncarnation: self._raise_incarnation,
                book.Learned: self._learned,
                book.Misbehaved: lambda e: self.misdeed(e.peer, e.reason),
            },
            book.Tick(),
            clock,
            drained=self._tell_news,
            observe=observe,
        )
        self.joining: Pump[joining.Event, joining.Effect] = Pump(
            joiner, {joining.Dial: self._dial, joining.DialVia: self._dial_via}, joining.Tick(), clock, observe=observe
        )

    @property
    def hub(self) -> LinkHub:
        """The hub; only after `attach`."""
        assert self._hub is not None, "the overlay has not been started"
        return self._hub

    @property
    def view(self) -> PeerView:
        """The network as this peer sees it now."""
        return self._peer_book.view

    @property
    def troubles(self) -> Mapping[str, Trouble]:
        """What went wrong lately, by address or short peer id."""
        return self._troubles.lately(self._clock.monotonic())

    def attach(self, hub: LinkHub, listeners: tuple[Listener, ...] = ()) -> None:
        """Use `hub`, which is about to listen, and tell `listeners`."""
        self._hub, self._listeners = hub, listeners

    def open_link(self, peer: PeerId) -> Link | None:
        """The open link to `peer`."""
        return self._hub.link(peer) if self._hub is not None else None

    def record(self, peer: PeerId) -> PeerRecord | None:
        """The newest record of another peer."""
        return self._peer_book.record(peer)

    def start(self, candidates: tuple[tuple[Address, joining.Source], ...]) -> None:
        """Begin to join; never ends. `candidates`: (address, source) known at the start."""
        self._supervisor.service("heartbeats", self.hub.run)
        if self._probe_bytes:
            self._supervisor.service("throughput", self._keep_measuring)
        for address, source in candidates:
            self.joining.feed(joining.CandidateHeard(address, source))

    def start_beacon(
        self,
        machine: beacons.BeaconMachine,
        shell: BeaconShell,
        views_differ: Callable[[beacons.ViewsDiffer], None],
    ) -> None:
        """Begin to tell the LAN, and to listen."""
        self._make_view_hash = lambda: shell.view_hash
        self._beacon = Pump(
            machine,
            {
                beacons.Broadcast: lambda _: shell.broadcast(),
                beacons.Answer: lambda e: shell.answer(e.to),
                beacons.PeerHinted: self._hinted,
                beacons.ViewsDiffer: views_differ,
                beacons.Nonsense: self._beacon_nonsense,
            },
            beacons.Tick(),
            self._clock,
            observe=self._observe,
        )
        self._beacon.feed(beacons.Start())

    def interfaces_changed(self) -> None:
        """The shell's word that this machine sits on other networks than before."""
        if self._beacon is not None:
            self._beacon.feed(beacons.InterfacesChanged())

    def want_link(self, peer: PeerId) -> None:
        """Somebody here needs a link to `peer` now."""
        self.joining.feed(joining.LinkWanted(peer))

    def is_elusive(self, peer: PeerId) -> bool:
        """Whether `peer` was dialled in vain again and again."""
        return self._vain.get(peer, 0) >= ELUSIVE_DIALS

    def ban(self, peers: Iterable[PeerId]) -> None:
        """The owner has revoked `peers`: forget them and take nothing of them any more."""
        for peer in peers:
            self._banned.add(peer)
            self.book.feed(book.PeerBanned(peer))
            self.joining.feed(joining.PeerForgotten(peer))

    def own_networks(self, networks: tuple[str, ...]) -> None:
        """This machine's own networks, "address/prefix": what is near is dialled first."""
        self.joining.feed(joining.NetworksChanged(networks))
        self.gossiping.networks = parse_networks(networks)

    def beacon_heard(self, data: bytes, source: Address) -> None:
        """The shell's way in."""
        if self._beacon is not None:
            version = self._peer_book.version
            if self._view_hash[0] != version:
                self._view_hash = (version, self._make_view_hash())
            self._beacon.feed(beacons.BeaconHeard(data, source, self._wall(), self._view_hash[1]))

    def own_changed(self) -> None:
        """Tell everybody the new own record."""
        self.book.feed(book.OwnChanged(self._own.signed))

    def own_load_changed(self) -> None:
        """Tell everybody how busy this peer is."""
        if self._own.load_wire is not None:
            self.book.feed(book.OwnLoadChanged(self._own.load_wire))

    def stop(self) -> None:
        """Take nothing more in; the hub is stopped by the peer."""
        self.joining.stop()
        if self._beacon is not None:
            self._beacon.stop()
        self.book.stop()

    # --- LinkEvents -------------------------------------------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """Called by the hub."""
        self._troubles.forgive(short_peer_id(link.peer))
        self._vain.pop(link.peer, None)
        hello, wall = link.hello, self._wall()
        ahead_s = hello.clock_ms / 1000 - wall if hello.clock_ms else None
        self.book.feed(book.LinkOpened(link.peer, hello.record, link.rtt_s, link.admission.invitation, wall, ahead_s))
        dialled_at = link.remote if link.dialled and not link.relayed else None
        self.joining.feed(joining.LinkUp(link.peer, dialled_at, link.relayed))
        self._log.info("linked", peer=short_peer_id(link.peer), address=str(link.remote), path=link.path)
        for listener in self._listeners:
            listener.linked(link)
        self._events.linked(link)

    def message(self, link: Link, message: Message) -> None:
        """Called by the hub."""
        if isinstance(message, _MEMBERSHIP) and not self._talk.take(
            link.peer, limits.LINK_GOSSIP_PER_SECOND, self._clock.monotonic()
        ):
            self.misdeed(link.peer, "floods its link with what membership says; most of it is dropped")
            return
        match message:
            case Records():
                self.book.feed(book.RecordsHeard(link.peer, message.records, self._wall()))
            case SuspectQuery():
                suspect = self.hub.links.get(PeerId(message.peer))
                if suspect is not None and not suspect.closed:
                    suspect.ping()  # if that link is dead too, it shows before the answer is due
                self.book.feed(book.SuspectAsked(link.peer, PeerId(message.peer)))
            case SuspectAnswer():
                self.book.feed(book.SuspectAnswered(link.peer, PeerId(message.peer), message.heard_s))
            case Revocations() | Renewals():
                self._events.trust_message(link, message)
            case _:
                if not self.gossiping.heard_on_link(link.peer, message):
                    self._events.job_message(link, message)

    def link_down(self, link: Link, error: P2PComputeError | None) -> None:
        """Called by the hub."""
        current = self.hub.links.get(link.peer)
        if current is not None and current is not link:
            return  # replaced by a better link to the same peer
        farewell = link.farewell.reason if link.farewell is not None else ""
        reason = str(error) if error is not None else farewell
        if error is not None:
            self.trouble(short_peer_id(link.peer), reason, is_misdeed=isinstance(error, ProtocolError))
        self._log.info("link lost", peer=short_peer_id(link.peer), cause=reason)
        self.book.feed(book.LinkLost(link.peer, error is None, reason))
        self.joining.feed(joining.LinkDown(link.peer, idle=farewell == IDLE))
        for listener in self._listeners:
            listener.unlinked(link.peer)
        self._events.unlinked(link, error)

    def refused(self, address: Address, error: P2PComputeError) -> None:
        """Called by the hub for inbound handshakes that failed."""
        if isinstance(error, AdmissionError) and error.reason is AdmissionReason.SELF:
            return
        # Without its port, which is another one each time.
        self.trouble(address.host, str(error).replace(str(address), address.host))

    def trouble(self, whom: str, what: str, times: int = 1, *, is_misdeed: bool = False) -> None:
        """Note what went wrong with an address or peer, in the log and for `peers` and `doctor`."""
        line = self._troubles.note(whom, what, self._clock.monotonic(), times=times, is_misdeed=is_misdeed)
        if line is not None:
            self._log.warning("trouble", peer=line.whom, cause=line.what, times=line.times)

    def misdeed(self, peer: PeerId, what: str, times: int = 1) -> None:
        """A member did what no honest peer does: it stays noted, whatever links it makes."""
        self.trouble(short_peer_id(peer), what, times, is_misdeed=True)

    def book_misused(self, peer: PeerId, reason: str, times: int) -> None:
        """The address book's word for what a member does to it again and again."""
        self.misdeed(peer, f"misuses the address book ({reason}); what it says there is dropped", times)

    # --- effects ----------------------------------------------------------------------------------------------------

    def _send(self, peers: tuple[PeerId, ...], message: Message) -> None:
        for peer in peers:
            link = self.hub.links.get(peer)
            if link is not None and not link.closed:
                link.send(message)

    def _send_records(self, effect: book.SendRecords) -> None:
        for start in range(0, len(effect.wires), limits.RECORDS_PER_MESSAGE_MAX):
            self._send(effect.to, Records(effect.wires[start : start + limits.RECORDS_PER_MESSAGE_MAX]))

    def _ask_suspect(self, effect: book.AskSuspect) -> None:
        self._send(effect.to, SuspectQuery(effect.peer))

    def _answer_suspect(self, effect: book.AnswerSuspect) -> None:
        self._send((effect.to,), SuspectAnswer(effect.peer, effect.heard_s))

    def _raise_incarnation(self, effect: book.RaiseIncarnation) -> None:
        self._own.raise_incarnation(effect.at_least)
        self.own_changed()

    def _suspected(self, effect: book.PeerSuspected) -> None:
        accuser = "this peer" if effect.by == self._own.record.peer else short_peer_id(effect.by)
        self._events.network_event("peer_suspected", effect.peer, f"it does not answer {accuser}")

    def _died(self, effect: book.PeerDied) -> None:
        link = self.open_link(effect.peer)
        # Whoever is revoked is told so on its link, which ends then.
        if link is not None and effect.peer not in self._banned:
            # Nothing was heard on it for as long as a suspect may be silent: what waits for it is better done elsewhere.
            link.failure = LinkClosedError(f"{link.named()} is believed dead: {effect.reason}")
            link.abort()
        self._gone("peer_died", effect.peer, effect.reason)

    def _gone(self, kind: str, peer: PeerId, reason: str) -> None:
        self._tell_news()  # in the order in which it happened
        self._ways_told.pop(peer, None)
        self._vain.pop(peer, None)
        for listener in self._listeners:
            listener.forgotten(peer)
        self._events.network_event(kind, peer, reason)

    def _learned(self, effect: book.Learned) -> None:
        record = self._peer_book.record(effect.peer)
        if record is None:
            return
        # Most new records say the same about ways: in a large network there are many of them a second.
        now, ways = self._clock.monotonic(), (record.addresses, record.relays, record.reach)
        told = self._ways_told.pop(effect.peer, None)
        if told is not None and told[0] == ways and now - told[1] < WAYS_AGAIN_S:
            self._ways_told[effect.peer] = told
            return
        if len(self._ways_told) >= limits.PEERS_MAX:
            del self._ways_told[next(iter(self._ways_told))]
        self._ways_told[effect.peer] = (ways, now)
        self._news.append(record)

    def _tell_news(self) -> None:
        if not self._news:
            return
        news, self._news = self._news, []
        rows = tuple(joining.RecordAddresses(each.peer, each.addresses, each.relays) for each in news)
        self.joining.feed(joining.CandidatesHeard(rows))
        for record in news:
            for listener in self._listeners:
                listener.learned(record)

    def _hinted(self, effect: beacons.PeerHinted) -> None:
        for address in effect.addresses:
            self.joining.feed(joining.CandidateHeard(address, "lan", effect.peer))

    def _beacon_nonsense(self, effect: beacons.Nonsense) -> None:
        times = self._nonsense.count(effect.host, self._clock.monotonic())
        if times:
            what = "sends to the beacons' port what is no beacon, or too many; it is dropped"
            self.trouble(effect.host, what, times)

    def _dial(self, effect: joining.Dial) -> None:
        self._supervisor.task(f"dial {effect.address}", self._dialled(effect))

    async def _dialled(self, effect: joining.Dial) -> None:
        kind: str | None = None
        permanent = False
        try:
            await self.hub.dial(effect.address, effect.expected)
        except AdmissionError as error:
            kind, permanent = error.reason.value, error.reason in _PERMANENT
            if error.reason is not AdmissionReason.SELF:
                self.trouble(str(effect.address), str(error))
        except P2PComputeError as error:
            kind = type(error).__name__
            self._log.debug("could not dial", address=str(effect.address), cause=str(error))
        if kind is not None and effect.expected is not None:
            if len(self._vain) >= limits.PEERS_MAX:
                del self._vain[next(iter(self._vain))]
            self._vain[effect.expected] = self._vain.get(effect.expected, 0) + 1
        self.joining.feed(joining.DialEnded(effect.address, effect.expected, kind, permanent))

    def _dial_via(self, effect: joining.DialVia) -> None:
        self._supervisor.task(f"dial {short_peer_id(effect.peer)} through a relay", self._dialled_via(effect))

    async def _dialled_via(self, effect: joining.DialVia) -> None:
        kind: str | None = None
        try:
            await self.dial_through(effect.peer, effect.relay)
        except P2PComputeError as error:
            kind = type(error).__name__
            self.trouble(short_peer_id(effect.peer), str(error))
        self.joining.feed(joining.DialEnded(effect.relay.address, effect.peer, kind, via=effect.relay.peer))

    async def _keep_measuring(self) -> None:
        # One after the other, and only what the own record has room for: what fifty links measure at a time is each other,
        # and a megabyte for each of them would flood a home's line at every start.
        tried: dict[PeerId, Link] = {}
        allowed = float(MEASURED_SOON)
        while True:
            links = self.hub.links
            listed = {edge.peer for edge in self._own.edges} if len(links) > MEASURED_ALL else links.keys()
            tried = {peer: link for peer, link in tried.items() if links.get(peer) is link}
            # A relay's throughput is others', and would be measured in its place.
            waiting = [
                link
                for peer, link in links.items()
                if peer in listed and peer not in tried and not (link.relayed or link.closed)
            ]
            allowed = min(allowed + MEASURE_INTERVAL_S / MEASURE_PERIOD_S, MEASURED_SOON)
            if waiting and allowed >= 1.0:
                allowed -= 1.0
                chosen = min(waiting, key=lambda link: (link.rtt_s is None, link.rtt_s or 0.0, link.peer))
                tried[chosen.peer] = chosen
                await self._measure(chosen)
            await asyncio.sleep(MEASURE_INTERVAL_S)

    async def _measure(self, link: Link) -> None:
        try:
            rate_mbps = await link.measure_bandwidth(self._probe_bytes)
        except P2PComputeError as error:
            self._log.debug("throughput not measured", peer=short_peer_id(link.peer), cause=str(error))
            return
        self.book.feed(book.LinkMeasured(link.peer, link.rtt_s, rate_mbps))
