"""How this peer is reached, and reaches those who cannot be dialled: dial-backs, the router's forwarding, relays.

Performs what the reach machine says over the hub's links and the port mapper, and has the own record say what came of it. Costs
nothing on a local network, where everybody can dial everybody. Refuses to decide: `membership/reach.py` does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from p2pcompute.membership import reach_events as reach
from p2pcompute.membership.machine import Tick
from p2pcompute.membership.reach import ReachMachine
from p2pcompute.membership.reach_paths import DIALLABLE, Way, path_reason
from p2pcompute.model.errors import P2PComputeError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address, PeerRecord, Reach, Relay
from p2pcompute.model.seams import Clock
from p2pcompute.net.link import Link
from p2pcompute.net.link_life import REVERSED
from p2pcompute.net.links import LinkHub
from p2pcompute.net.portmap import PortMapper
from p2pcompute.node.driver import Observe, Pump
from p2pcompute.node.supervise import Supervisor


class Reaching:
    """See the module; an `overlay.Listener`. `changed`: the own record has something new to say about reach."""

    def __init__(
        self,
        machine: ReachMachine,
        hub: LinkHub,
        clock: Clock,
        supervisor: Supervisor,
        log: FilteringBoundLogger,
        record: Callable[[PeerId], PeerRecord | None],
        changed: Callable[[], None],
        observe: Observe | None = None,
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._supervisor = supervisor
        self._log = log
        self._record = record
        self._changed = changed
        #: Asks routers to forward a port; None where they are not asked.
        self._mapper: PortMapper | None = None
        #: What the own record says.
        self.reach = Reach.UNKNOWN
        #: Addresses beside those of this machine's interfaces.
        self.external: tuple[Address, ...] = ()
        self.relays: tuple[Relay, ...] = ()
        #: This machine's own networks.
        self._networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
        self.pump: Pump[reach.Event, reach.Effect] = Pump(
            machine,
            {
                reach.AskDialBack: self._ask_dial_back,
                reach.MapPort: self._map_port,
                reach.ReserveRelay: self._reserve,
                reach.ReleaseRelay: lambda effect: hub.reaching.ends.release(effect.peer),
                reach.ReachChanged: self._reach_changed,
            },
            Tick(),
            clock,
            observe=observe,
        )

    def use_mapper(self, mapper: PortMapper) -> None:
        """Ask routers through `mapper` from now on."""
        self._mapper = mapper

    def networks_changed(
        self, addresses: tuple[Address, ...], networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    ) -> None:
        """This machine's own addresses, with the port, and the networks that it sits on."""
        self._networks = networks
        self.pump.feed(reach.NetworksChanged(addresses))

    def mapping_changed(self, address: Address | None, how: str) -> None:
        """The port mapper's word."""
        self._log.info("port mapping", address=str(address) if address else None, how=how)
        self.pump.feed(reach.MappingChanged(address, how))

    def stop(self) -> None:
        """Take nothing more in."""
        self.pump.stop()

    # --- Listener -------------------------------------------------------------------------------------------------------

    def linked(self, link: Link) -> None:
        """Called by the overlay."""
        record = self._record(link.peer)
        address = None if link.relayed or not link.remote.is_numeric else link.remote
        self.pump.feed(
            reach.LinkUp(
                link.peer,
                address,
                link.dialled,
                record.reach if record is not None else Reach.UNKNOWN,
                address is not None and self._is_near(address),
                link.admission.invitation,
            )
        )
        if address is not None and not link.dialled and link.path != REVERSED:
            self.pump.feed(reach.InboundSeen(link.peer, address))
        if link.rtt_s is not None and not link.relayed:
            self.pump.feed(reach.RoundTripMeasured(link.peer, link.rtt_s))

    def unlinked(self, peer: PeerId) -> None:
        """Called by the overlay."""
        self.pump.feed(reach.LinkDown(peer))

    def learned(self, record: PeerRecord) -> None:
        """Called by the overlay."""
        self.pump.feed(reach.RecordKnown(record.peer, record.reach, record.relays, record.addresses))

    def forgotten(self, peer: PeerId) -> None:
        """Called by the overlay."""
        self.pump.feed(reach.PeerForgotten(peer))

    # --- for people -----------------------------------------------------------------------------------------------------

    def why(self, link: Link) -> str:
        """Why a link goes the way it goes, a sentence."""
        record = self._record(link.peer)
        theirs = record.reach if record is not None else Reach.UNKNOWN
        if link.route is not None:
            way = Way.REVERSED if link.path == REVERSED else Way.RELAYED
            return path_reason(way, self.reach, theirs, link.route.via)
        if link.path == "local":
            return "direct: both are on this machine"
        near = link.remote.is_numeric and self._is_near(link.remote)
        return path_reason(Way.LAN if near else Way.DIRECT, self.reach, theirs)

    # --- dialling -------------------------------------------------------------------------------------------------------

    async def dial_through(self, peer: PeerId, relay: Relay) -> Link:
        """A link to `peer` with the help of `relay`: dialled by it where this peer can be dialled, else through it."""
        if self._hub.link(relay.peer) is None:
            await self._hub.dial(relay.address, relay.peer)
        if self.reach in DIALLABLE and self.external:
            try:
                return await self._hub.dial_reversed(relay.peer, peer, self.external)
            except P2PComputeError as error:
                self._log.info("not dialled back", peer=short_peer_id(peer), cause=str(error))
        return await self._hub.dial_via(relay.peer, peer)

    # --- effects --------------------------------------------------------------------------------------------------------

    def _ask_dial_back(self, effect: reach.AskDialBack) -> None:
        self._supervisor.task(f"dial-back by {short_peer_id(effect.to)}", self._asked(effect))

    async def _asked(self, effect: reach.AskDialBack) -> None:
        link = self._hub.link(effect.to)
        if link is None or link.relayed:
            self.pump.feed(reach.DialBackRefused(effect.to))
            return
        try:
            found = await self._hub.reaching.dial_backs.ask(link, effect.addresses)
        except P2PComputeError as error:
            self._log.debug("no dial-back", peer=short_peer_id(effect.to), cause=str(error))
            self.pump.feed(reach.DialBackRefused(effect.to))
            return
        if found.seen is not None:
            self.pump.feed(reach.AddressSeen(effect.to, found.seen))
        if found.reached:
            self.pump.feed(reach.DialedBack(effect.to, found.reached))
        elif found.refused or not effect.addresses:
            self.pump.feed(reach.DialBackRefused(effect.to))
        else:
            self.pump.feed(reach.DialBackFailed(effect.to))

    def _map_port(self, _: reach.MapPort) -> None:
        if self._mapper is None:
            self.pump.feed(reach.MappingChanged(None, "routers are not asked"))
        else:
            self._mapper.ask()

    def _reserve(self, effect: reach.ReserveRelay) -> None:
        self._supervisor.task(f"reserve at {short_peer_id(effect.peer)}", self._reserved(effect))

    async def _reserved(self, effect: reach.ReserveRelay) -> None:
        try:
            if self._hub.link(effect.peer) is None:
                await self._hub.dial(effect.address, effect.peer)
            reservation = await self._hub.reaching.ends.reserve(effect.peer)
        except P2PComputeError as error:
            self.pump.feed(reach.RelayRefused(effect.peer, str(error)))
            return
        self.pump.feed(reach.RelayReserved(effect.peer, reservation.until))

    def _reach_changed(self, effect: reach.ReachChanged) -> None:
        self.reach, self.external, self.relays = effect.reach, effect.external, effect.relays
        self._log.info(
            "reach",
            reach=effect.reach.value,
            external=[str(address) for address in effect.external],
            relays=[short_peer_id(relay.peer) for relay in effect.relays],
        )
        self._changed()

    def _is_near(self, address: Address) -> bool:
        host = ipaddress.ip_address(address.host.partition("%")[0])
        return host.is_loopback or host.is_link_local or any(host in network for network in self._networks)
