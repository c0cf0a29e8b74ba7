"""The overlay of one peer: links, discovery, joining and membership, wired together.

Beacons, records and flags hint at addresses; the joining machine decides what to dial; the hub proves who answers; the
peer book keeps what they say. Others are told through `OverlayEvents`. Refuses to know what a job is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from p2pcompute.membership import beacons, book, joining
from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, P2PComputeError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address, PeerView
from p2pcompute.model.seams import Clock, Rng
from p2pcompute.net.beacon import BeaconShell
from p2pcompute.net.link import Link
from p2pcompute.net.links import LinkHub
from p2pcompute.node.driver import Pump
from p2pcompute.node.own_record import OwnRecord
from p2pcompute.node.supervise import Supervisor
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
#: Bytes of the first throughput measurement of a link: long enough to leave slow start on a LAN.
BANDWIDTH_PROBE_BYTES = 1 << 20


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
        """ "peer_appeared", "peer_died", "peer_left" or "view_changed"."""


@dataclass(slots=True)
class Trouble:
    """The last thing that went wrong with an address or a peer, for people."""

    what: str
    at: float
    count: int = 1


class Overlay:
    """Links and membership of one peer; implements `net.link.LinkEvents`."""

    def __init__(
        self,
        own: OwnRecord,
        peer_book: book.PeerBook,
        joiner: joining.JoiningMachine,
        clock: Clock,
        rng: Rng,
        supervisor: Supervisor,
        events: OverlayEvents,
        log: FilteringBoundLogger,
        now_wall: Callable[[], float],
    ) -> None:
        self._own = own
        self._clock = clock
        self._rng = rng
        self._supervisor = supervisor
        self._events = events
        self._log = log
        self._wall = now_wall
        self._peer_book = peer_book
        #: Set by `attach`.
        self._hub: LinkHub | None = None
        self._beacon: Pump[beacons.Event, beacons.Effect] | None = None
        #: Last trouble by address or short peer id; bounded like the candidates.
        self.troubles: dict[str, Trouble] = {}
        self.book: Pump[book.Event, book.Effect] = Pump(
            peer_book,
            {
                book.SendRecords: self._send_records,
                book.AskSuspect: self._ask_suspect,
                book.AnswerSuspect: self._answer_suspect,
                book.ViewChanged: lambda _: self._events.network_event("view_changed", self._own.record.peer, ""),
                book.PeerAppeared: lambda e: self._events.network_event("peer_appeared", e.peer, ""),
                book.PeerDied: lambda e: self._events.network_event("peer_died", e.peer, e.reason),
                book.PeerLeft: lambda e: self._events.network_event("peer_left", e.peer, ""),
                book.RaiseIncarnation: self._raise_incarnation,
                book.Learned: self._learned,
                book.Misbehaved: lambda e: self.trouble(short_peer_id(e.peer), e.reason),
            },
            book.Tick(),
            clock,
        )
        self.joining: Pump[joining.Event, joining.Effect] = Pump(
            joiner, {joining.Dial: self._dial}, joining.Tick(), clock
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

    def attach(self, hub: LinkHub) -> None:
        """Use `hub`, which is about to listen."""
        self._hub = hub

    def start(self, candidates: tuple[tuple[Address, joining.Source], ...]) -> None:
        """Begin to join; never ends. `candidates`: (address, source) known at the start."""
        self._supervisor.service("heartbeats", self.hub.run)
        for address, source in candidates:
            self.joining.feed(joining.CandidateHeard(address, source))

    def start_beacon(self, machine: beacons.BeaconMachine, shell: BeaconShell) -> None:
        """Begin to tell the LAN, and to listen."""
        self._beacon = Pump(
            machine,
            {
                beacons.Broadcast: lambda _: shell.broadcast(),
                beacons.Answer: lambda e: shell.answer(e.to),
                beacons.PeerHinted: self._hinted,
            },
            beacons.Tick(),
            self._clock,
        )
        self._beacon.feed(beacons.Start())

    def interfaces_changed(self) -> None:
        """The shell's word that this machine sits on other networks than before."""
        if self._beacon is not None:
            self._beacon.feed(beacons.InterfacesChanged())

    def want_link(self, peer: PeerId) -> None:
        """Somebody here needs a link to `peer` now."""
        self.joining.feed(joining.LinkWanted(peer))

    def ban(self, peers: Iterable[PeerId]) -> None:
        """The owner has revoked `peers`: forget them and take nothing of them any more."""
        for peer in peers:
            self.book.feed(book.PeerBanned(peer))
            self.joining.feed(joining.PeerForgotten(peer))

    def own_networks(self, networks: tuple[str, ...]) -> None:
        """This machine's own networks, "address/prefix": what is near is dialled first."""
        self.joining.feed(joining.NetworksChanged(networks))

    def beacon_heard(self, data: bytes, source: Address) -> None:
        """The shell's way in."""
        if self._beacon is not None:
            self._beacon.feed(beacons.BeaconHeard(data, source, self._wall()))

    def own_changed(self) -> None:
        """Tell everybody the new own record."""
        self.book.feed(book.OwnChanged(self._own.signed))

    def stop(self) -> None:
        """Take nothing more in; the hub is stopped by the peer."""
        self.joining.stop()
        if self._beacon is not None:
            self._beacon.stop()
        self.book.stop()

    # --- LinkEvents -------------------------------------------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """Called by the hub."""
        self.troubles.pop(short_peer_id(link.peer), None)
        self.book.feed(book.LinkOpened(link.peer, link.hello.record, link.rtt_s, link.admission.invitation))
        self.joining.feed(joining.LinkUp(link.peer, link.remote if link.dialled else None))
        self._log.info("linked", peer=short_peer_id(link.peer), address=str(link.remote), path=link.path)
        self._supervisor.task(f"measure {short_peer_id(link.peer)}", self._measure(link))
        self._events.linked(link)

    def message(self, link: Link, message: Message) -> None:
        """Called by the hub."""
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
                self._events.job_message(link, message)

    def link_down(self, link: Link, error: P2PComputeError | None) -> None:
        """Called by the hub."""
        current = self.hub.links.get(link.peer)
        if current is not None and current is not link:
            return  # replaced by a better link to the same peer
        reason = str(error) if error is not None else ""
        if error is not None:
            self.trouble(short_peer_id(link.peer), reason)
        self._log.info("link lost", peer=short_peer_id(link.peer), cause=reason)
        self.book.feed(book.LinkLost(link.peer, error is None, reason))
        self.joining.feed(joining.LinkDown(link.peer))
        self._events.unlinked(link, error)

    def refused(self, address: Address, error: P2PComputeError) -> None:
        """Called by the hub for inbound handshakes that failed."""
        if isinstance(error, AdmissionError) and error.reason is AdmissionReason.SELF:
            return
        self.trouble(address.host, str(error))

    def trouble(self, whom: str, what: str) -> None:
        """Note what went wrong with an address or peer, in the log and for `peers` and `doctor`."""
        known = self.troubles.get(whom)
        if known is not None and known.what == what:
            known.count += 1
            known.at = self._clock.monotonic()
            return
        if len(self.troubles) >= limits.CANDIDATES_MAX:
            self.troubles.pop(next(iter(self.troubles)))
        self.troubles[whom] = Trouble(what, self._clock.monotonic())
        self._log.warning("trouble", peer=whom, cause=what)

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

    def _learned(self, effect: book.Learned) -> None:
        for address in effect.addresses:
            self.joining.feed(joining.CandidateHeard(address, "record", effect.peer))

    def _hinted(self, effect: beacons.PeerHinted) -> None:
        for address in effect.addresses:
            self.joining.feed(joining.CandidateHeard(address, "lan", effect.peer))

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
        self.joining.feed(joining.DialEnded(effect.address, effect.expected, kind, permanent))

    async def _measure(self, link: Link) -> None:
        try:
            rate_mbps = await link.measure_bandwidth(BANDWIDTH_PROBE_BYTES)
        except P2PComputeError as error:
            self._log.debug("throughput not measured", peer=short_peer_id(link.peer), cause=str(error))
            return
        self.book.feed(book.LinkMeasured(link.peer, link.rtt_s, rate_mbps))
