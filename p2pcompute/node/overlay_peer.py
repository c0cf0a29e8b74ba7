"""One peer's whole side of the overlay, put together: port, links, gossip, address book, healing, reach.

`Peer` runs it on this machine beside its jobs, the laboratory runs hundreds of it on virtual time; what differs between the two
comes in as a `World`. The order of `start` is the order of what each part needs; `stop` is its reverse. Refuses to decide anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from structlog.typing import FilteringBoundLogger

from p2pcompute.membership.beacons import BeaconMachine, BeaconOwn
from p2pcompute.membership.book import BookSettings, LoopLagged, PeerBook
from p2pcompute.membership.book import Woke as BookWoke
from p2pcompute.membership.edges import links_to_keep, select_edges
from p2pcompute.membership.healing import HealingMachine, HealingSettings
from p2pcompute.membership.joining import (
    CandidatesHeard,
    DirectPromised,
    JoiningMachine,
    JoiningSettings,
    LinksPreferred,
    RecordAddresses,
    Source,
)
from p2pcompute.membership.locality import parse_networks
from p2pcompute.membership.pacing import Around, Tell
from p2pcompute.membership.reach import ReachMachine
from p2pcompute.membership.reach_events import ReachSettings
from p2pcompute.model import limits
from p2pcompute.model.capability import Capability
from p2pcompute.model.errors import PortTakenError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Coordinate, Edge, PeerView
from p2pcompute.net.dht.dht import Dht
from p2pcompute.net.dht.surroundings import DhtSettings
from p2pcompute.net.link import Link
from p2pcompute.net.link_life import LinkSettings
from p2pcompute.net.links import LinkHub
from p2pcompute.net.portmap import PortMapper
from p2pcompute.net.ports import candidate_ports
from p2pcompute.net.session_events import SessionSettings
from p2pcompute.net.udp import UdpEndpoint
from p2pcompute.net.wakefulness import Wakefulness
from p2pcompute.node.gossiping import DHT_CHANNEL
from p2pcompute.node.healing import Healing, PeerMemory, remembered_contacts
from p2pcompute.node.identity import NodeIdentity
from p2pcompute.node.overlay import BANDWIDTH_PROBE_BYTES, Overlay, OverlayEvents
from p2pcompute.node.own_record import OwnRecord
from p2pcompute.node.reaching import Reaching
from p2pcompute.node.supervise import Supervisor
from p2pcompute.node.world import World
from p2pcompute.wire.identity import PeerKey
from p2pcompute.wire.pointer import Presence

#: Seconds between two looks at this machine.
SAMPLE_INTERVAL_S = 2.0
#: A second record follows no sooner than this after the first one (`PacingSettings.record_interval_s`), with a margin: who finds out how it is reached
#: has a relay a moment later, and others wait for that.
SECOND_LOOK_S = 0.6
#: The choice of edges and links costs time in proportion to the peers: it is made again after so many seconds for each 100 of them.
CHOICE_INTERVAL_PER_100_S = 2.0
#: How long saying goodbye may take.
GOODBYE_TIMEOUT_S = 2.0
#: A link that says nothing for so long after a sleep or a change of networks is taken for broken.
CHECK_LINKS_S = 5.0


@dataclass(frozen=True, slots=True)
class OverlaySettings:
    """Times and limits of all parts; the defaults are the product's."""

    book: BookSettings = field(default_factory=BookSettings)
    joining: JoiningSettings = field(default_factory=JoiningSettings)
    healing: HealingSettings = field(default_factory=HealingSettings)
    reach: ReachSettings = field(default_factory=ReachSettings)
    links: LinkSettings = field(default_factory=LinkSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    dht: DhtSettings = field(default_factory=DhtSettings)
    #: What is sent to measure the throughput of each link that the record lists; 0: it is not measured.
    throughput_probe_bytes: int = BANDWIDTH_PROBE_BYTES

    @classmethod
    def lan(cls) -> OverlaySettings:
        """One local network."""
        return cls(book=BookSettings.lan(), healing=HealingSettings.lan())

    @classmethod
    def wan(cls) -> OverlaySettings:
        """Peers all over the world."""
        return cls(book=BookSettings.wan(), healing=HealingSettings.wan())

    @classmethod
    def test(cls) -> OverlaySettings:
        """Ten times as fast, for tests on real clocks."""
        return cls(book=BookSettings.test(), healing=HealingSettings.test(), links=LinkSettings.test())


def overlay_settings(timing: str) -> OverlaySettings:
    """The settings that the configuration calls `timing`."""
    presets = {"lan": OverlaySettings.lan, "wan": OverlaySettings.wan, "test": OverlaySettings.test}
    return presets[timing]() if timing in presets else OverlaySettings()


@dataclass(frozen=True, slots=True)
class OverlayParts:
    """What a peer is before it has an overlay. `sample`: capability and load now; `worth`: see `LinkHub`; `relays`: whether its owner lets it
    be a relay.
    """

    key: PeerKey
    identity: NodeIdentity
    own: OwnRecord
    memory: PeerMemory
    supervisor: Supervisor
    events: OverlayEvents
    log: FilteringBoundLogger
    sample: Callable[[], tuple[Capability, float]]
    worth: Callable[[Link], float | None] | None = None
    relays: bool = True


class _DhtPort:
    """Sends the address book's datagrams."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def send(self, peer: PeerId, addresses: tuple[Address, ...], payload: bytes) -> None:
        """Send, on the session there is or a new one."""
        self._overlay.gossiping.send_datagram(peer, DHT_CHANNEL, payload, addresses)


class OverlayPeer:
    """See the module."""

    def __init__(self, parts: OverlayParts, world: World, settings: OverlaySettings | None = None) -> None:
        self._parts = parts
        self._world = world
        self.settings = settings or OverlaySettings()
        own, clock, spawn = parts.own, world.clock, parts.supervisor.task
        self._own = own
        self._exits = contextlib.AsyncExitStack()
        #: Set when how this peer is reached has changed, until a second look has seen to it that others are told.
        self._is_reached_anew = asyncio.Event()
        #: When edges and links are next chosen, monotonic seconds.
        self._choose_at = 0.0
        self.port = 0
        self._host: str | None = None
        self._peer_book = PeerBook(
            own.signed,
            world.verify,
            world.rng("book"),
            self.settings.book,
            signer=parts.key,
            remember_open=world.remember_open,
        )
        joiner = JoiningMachine(parts.identity.peer, world.rng("joining"), self.settings.joining)
        self.overlay = Overlay(
            own,
            self._peer_book,
            joiner,
            clock,
            parts.supervisor,
            parts.events,
            parts.log,
            world.observe,
            probe_bytes=self.settings.throughput_probe_bytes,
        )
        self.hub = LinkHub(
            parts.identity,
            self.overlay,
            clock,
            world.rng("links"),
            spawn,
            settings=self.settings.links,
            transport=world.transport(parts.identity) if world.transport is not None else None,
            worth=parts.worth,
            pipes=world.pipes(parts.identity) if world.pipes is not None else None,
        )
        self.udp = UdpEndpoint(
            parts.identity.for_datagrams,
            self.overlay.gossiping,
            clock,
            world.entropy,
            world.open_datagrams,
            settings=self.settings.sessions,
        )
        self.dht = Dht(
            parts.identity.peer,
            parts.key,
            _DhtPort(self.overlay),
            clock,
            world.rng("dht"),
            spawn,
            anchors=remembered_contacts(parts.memory),
            settings=self.settings.dht,
            invitation_of=self._invitation_of,
            verify=world.verify,
            misdeed=self.overlay.book_misused,
        )
        self.reaching = Reaching(
            ReachMachine(world.rng("reach"), self.settings.reach),
            self.hub,
            clock,
            parts.supervisor,
            parts.log,
            self._peer_book.record,
            self._reach_changed,
            lambda peer: self.overlay.joining.feed(DirectPromised(peer)),
            world.observe,
            may_relay=parts.relays,
        )
        self.healing = Healing(
            HealingMachine(parts.identity.peer, world.rng("healing"), self.settings.healing),
            self.dht,
            self.hub,
            parts.memory,
            clock,
            parts.supervisor,
            parts.log,
            self._peer_book,
            self._presence_found,
            world.observe,
        )
        self.overlay.attach(self.hub, (self.reaching, self.healing))
        self.overlay.gossiping.attach(self.udp, self.dht.received)
        self.overlay.dial_through = self.reaching.dial_through

    # --- life cycle -----------------------------------------------------------------------------------------------------

    async def start(self, host: str | None, port: int) -> int:
        """Open the port, or the next free one, for links and datagrams; its number. Nothing is dialled yet. Raises PortTakenError."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.overlay.stop)
            self.port = await self._open(host, port)
            self._host = host
            stack.push_async_callback(self.udp.stop)
            stack.push_async_callback(self._goodbye)
            stack.callback(self.reaching.stop)
            self.observe()
            self._exits = stack.pop_all()
        return self.port

    def join(self, candidates: Iterable[tuple[Address, Source]]) -> None:
        """Begin to look for others; never ends. `candidates`: (address, source) known at the start."""
        parts, world = self._parts, self._world
        self._name_networks()
        self.overlay.start(tuple(candidates))
        self.healing.start()
        self._exits.callback(self.healing.stop)
        parts.supervisor.service("own record", self._keep_observing)
        wakefulness = Wakefulness(world.wake_clocks, woke=self._woke, lagged=self._lagged, clock_set=self._clock_set)
        wakefulness.start()
        self._exits.callback(wakefulness.stop)
        if world.maps_ports:
            mapper = PortMapper(self.port, world.clock, parts.supervisor.task, self.reaching.mapping_changed)
            self.reaching.use_mapper(mapper)
            self._exits.push_async_callback(mapper.stop)

    async def call_on_lan(self, beacon_port: int) -> None:
        """Announce this peer on the local network and listen for others. Raises PortTakenError."""
        parts, world = self._parts, self._world
        shell = world.beacon(
            parts.key,
            self._own.record.network,
            self.port,
            self.overlay.beacon_heard,
            world.clock,
            port=beacon_port,
            known_peers=lambda: [entry.record.peer for entry in self.overlay.view.alive],
            changed=self.interfaces_changed,
        )
        await shell.start()
        self._exits.push_async_callback(shell.stop)
        machine = BeaconMachine(
            BeaconOwn(parts.key.public_key, self._own.record.network), world.verify, world.rng("beacons")
        )
        self.overlay.start_beacon(
            machine, shell, lambda effect: self.healing.views_differ(effect.peer, effect.addresses)
        )

    async def stop(self) -> None:
        """Say goodbye, close everything; bounded. A second call does nothing."""
        await self._exits.aclose()

    async def _open(self, host: str | None, port: int) -> int:
        # A number that is free for datagrams may be taken for links: any free port is tried as often as a given one's successors.
        candidates = candidate_ports(port, limits.PORTS_TRIED) * (limits.PORTS_TRIED if port == 0 else 1)
        for candidate in candidates:
            try:
                opened = await self.udp.start(host, candidate)
            except PortTakenError:
                continue
            try:
                return await self.hub.start(host, opened, 1)
            except PortTakenError:
                await self.udp.stop()
        raise PortTakenError(
            f"ports {candidates[0]} to {candidates[-1]} are all in use (TCP or UDP) at {host or 'this machine'}: "
            "give another with --port"
        )

    async def _goodbye(self) -> None:
        self._own.leave()
        self.overlay.own_changed()
        try:
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await self.hub.stop()
        except TimeoutError:
            self._parts.log.warning("links did not close in time")

    # --- what others ask ------------------------------------------------------------------------------------------------

    @property
    def view(self) -> PeerView:
        """The network as this peer sees it now."""
        return self.overlay.view

    def counts(self) -> tuple[int, int]:
        """How many other peers are believed to be up, and how many are known: cheaper than a view of thousands."""
        return self._peer_book.counts()

    def ban(self, peers: Iterable[PeerId]) -> None:
        """The owner has revoked `peers`: forget them and take nothing of them any more."""
        gone = tuple(peers)
        self.overlay.ban(gone)
        for peer in gone:
            self.udp.drop(peer)
            self.healing.banned(peer)
        self.udp.recheck()

    # --- services -------------------------------------------------------------------------------------------------------

    async def _keep_observing(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SAMPLE_INTERVAL_S):
                    await self._is_reached_anew.wait()
            except TimeoutError:
                pass  # nothing happened: the ordinary look
            else:
                self._is_reached_anew.clear()
                await asyncio.sleep(SECOND_LOOK_S)
            self.observe()

    def observe(self) -> None:
        """Look at this machine and its links, and tell others what has changed by more than noise."""
        own, now = self._own, self._world.clock.monotonic()
        edges: tuple[Edge, ...] = own.edges
        if now >= self._choose_at:
            edges = self._choose(now)
        own.set_coordinate(self._peer_book.coordinate)
        own.set_reach(self.reaching.reach, self.reaching.relays)
        capability, load = self._parts.sample()
        addresses = tuple(dict.fromkeys((*self._world.addresses(self._host, self.port), *self.reaching.external)))
        around = Around(self._peer_book.counts()[0] + 1, self._has_old(), self._peer_book.renewed)
        tell = own.observe(capability, load, addresses[: limits.ADDRESSES_MAX], edges, now, around)
        if tell is Tell.RECORD:
            self.overlay.own_changed()
        elif tell is Tell.LOAD:
            self.overlay.own_load_changed()

    def _reach_changed(self) -> None:
        self.observe()
        self._is_reached_anew.set()

    def _has_old(self) -> bool:
        return any(link.version < 2 for link in self.hub.links.values())

    def _choose(self, now: float) -> tuple[Edge, ...]:
        """Which edges the record lists, and whom to be linked with."""
        alive = self.overlay.view.alive
        own = self._own.record.peer
        measured = [
            Edge(link.peer, link.rtt_s, link.bandwidth_mbps)
            for link in self.hub.links.values()
            if link.rtt_s is not None and not link.relayed
        ]
        coordinates: dict[PeerId, Coordinate] = {
            entry.record.peer: entry.record.coordinate for entry in alive if entry.record.coordinate is not None
        }
        # Who was never met and cannot be dialled may be invented: it must not take the place of a neighbour that is there.
        ring = [entry.record.peer for entry in alive if entry.is_met or not self.overlay.is_elusive(entry.record.peer)]
        self._choose_at = now + CHOICE_INTERVAL_PER_100_S * len(ring) / 100
        if len(ring) > limits.LINKS_MAX:
            kept = links_to_keep(own, ring, measured, coordinates, self._own.edges)
            self.overlay.joining.feed(LinksPreferred(kept))
        return select_edges(own, measured, coordinates, ring, self._own.edges)

    def interfaces_changed(self) -> None:
        """This machine sits on other networks than before, or has other addresses."""
        self.overlay.interfaces_changed()
        self._name_networks()
        self.healing.networks_changed()
        self.hub.check_all(CHECK_LINKS_S)
        self.observe()

    def _name_networks(self) -> None:
        networks = self._world.networks()
        self.overlay.own_networks(networks)
        self.reaching.networks_changed(self._world.addresses(self._host, self.port), parse_networks(networks))

    def _woke(self, slept_s: float) -> None:
        self._parts.log.info("this machine slept, or its clock jumped", slept_s=round(slept_s, 1))
        self.overlay.book.feed(BookWoke(slept_s))
        self.healing.woke(slept_s)
        self.hub.check_all(CHECK_LINKS_S)

    def _clock_set(self, by_s: float) -> None:
        # Nothing here rests on the wall clock; what does (certificates, incarnations) reads it anew each time.
        self._parts.log.info("this machine's clock was set", by_s=round(by_s, 1))

    def _lagged(self, lag_s: float) -> None:
        self.overlay.book.feed(LoopLagged(lag_s))

    # --- inner ----------------------------------------------------------------------------------------------------------

    def _invitation_of(self, peer: PeerId) -> bytes | None:
        session = self.udp.session(peer)
        return session.admission.invitation if session is not None else None

    def _presence_found(self, peer: PeerId, presence: Presence) -> None:
        self.overlay.joining.feed(CandidatesHeard((RecordAddresses(peer, presence.addresses, presence.relays),)))
