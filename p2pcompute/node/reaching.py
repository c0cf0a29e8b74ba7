"""How this peer is reached, and reaches those who cannot be dialled: dial-backs, the router's forwarding, relays.

Performs what the reach machine says over the hub's links and the port mapper, and has the own record say what came of it. Costs
nothing on a local network, where everybody can dial everybody. Refuses to decide: `membership/reach.py` does.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Mapping

from structlog.typing import FilteringBoundLogger

from p2pcompute.membership import reach_events as reach
from p2pcompute.membership.machine import Tick
from p2pcompute.membership.reach import ReachMachine
from p2pcompute.membership.reach_networks import is_global
from p2pcompute.membership.reach_paths import DIALLABLE, Way, path_reason
from p2pcompute.model import limits
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

#: Refused reservations that are remembered for people, the latest ones.
_REFUSALS_KEPT = 8


class Reaching:
    """See the module; an `overlay.Listener`.

    `changed`: the own record has something new to say about reach; `try_direct(peer)`: a peer that is linked through a relay can perhaps
    be dialled by now; `may_relay`: whether this peer may be a relay where others can dial it.
    """

    def __init__(
        self,
        machine: ReachMachine,
        hub: LinkHub,
        clock: Clock,
        supervisor: Supervisor,
        log: FilteringBoundLogger,
        record: Callable[[PeerId], PeerRecord | None],
        changed: Callable[[], None],
        try_direct: Callable[[PeerId], None],
        observe: Observe | None = None,
        *,
        may_relay: bool = True,
    ) -> None:
        self._hub = hub
        #: Whether this peer's owner lets it be a relay.
        self.may_relay = may_relay
        self._clock = clock
        self._supervisor = supervisor
        self._log = log
        self._record = record
        self._changed = changed
        #: Asks routers to forward a port; None where they are not asked.
        self._mapper: PortMapper | None = None
        #: What came of asking the router last, in words.
        self._mapped = "the router has not been asked"
        #: Why peers were no relays of this one, the latest last; at most `_REFUSALS_KEPT`, none of a peer that is one now.
        self._refusals: OrderedDict[PeerId, str] = OrderedDict()
        #: Where this peer listens, as its interfaces say.
        self._own: tuple[Address, ...] = ()
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
                reach.TryDirect: lambda effect: try_direct(effect.peer),
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
        self._networks, self._own = networks, addresses
        self.pump.feed(reach.NetworksChanged(addresses))

    def mapping_changed(self, address: Address | None, how: str) -> None:
        """The port mapper's word."""
        self._mapped = how
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

    @property
    def mapping(self) -> str:
        """What the router does for this peer, in words."""
        return "routers are not asked to forward a port (map_ports = false)" if self._mapper is None else self._mapped

    @property
    def external_by_router(self) -> Address | None:
        """What the router forwards to this peer, whether or not others could reach it there."""
        return self._mapper.external if self._mapper is not None else None

    @property
    def refusals(self) -> Mapping[PeerId, str]:
        """Why peers were no relays of this one, the latest last."""
        return self._refusals

    def why(self, link: Link, name_of: Callable[[PeerId], str] = short_peer_id) -> str:
        """Why a link goes the way it goes, a sentence. `name_of`: what people call a peer."""
        record = self._record(link.peer)
        theirs = record.reach if record is not None else Reach.UNKNOWN
        if link.route is not None:
            way, via = Way.REVERSED if link.path == REVERSED else Way.RELAYED, link.route.via
            return path_reason(way, self.reach, theirs, via, called=name_of(via), dialled=link.dialled)
        if link.path == "local":
            return "direct: both are on this machine"
        near = link.remote.is_numeric and self._is_near(link.remote)
        return path_reason(Way.LAN if near else Way.DIRECT, self.reach, theirs, dialled=link.dialled)

    # --- dialling -------------------------------------------------------------------------------------------------------

    async def dial_through(self, peer: PeerId, relay: Relay) -> Link:
        """A link to `peer` with the help of `relay`: dialled by it where this peer can be dialled, else through it."""
        if self._hub.link(relay.peer) is None:
            await self._hub.dial(relay.address, relay.peer)
        diallable = self._diallable()
        if diallable:
            dialled: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
            wish = self._wish(relay.peer, peer, diallable, dialled)
            self._supervisor.task(f"reversed dial by {short_peer_id(peer)}", wish)
            try:
                async with asyncio.timeout(limits.REVERSAL_PATIENCE_S):
                    return await dialled
            except (P2PComputeError, TimeoutError) as error:
                cause = str(error) or "it did not dial in time"
                self._log.info("not dialled back", peer=short_peer_id(peer), cause=cause)
        return await self._hub.dial_via(relay.peer, peer)

    async def _wish(
        self, via: PeerId, peer: PeerId, addresses: tuple[Address, ...], dialled: asyncio.Future[Link]
    ) -> None:
        """Outlives the patience of whoever waits for `dialled`, so that a link that comes late is known for what it is."""
        try:
            link = await self._hub.dial_reversed(via, peer, addresses)
        except P2PComputeError as error:
            if not dialled.done():
                dialled.set_exception(error)
        else:
            if not dialled.done():
                dialled.set_result(link)

    def _diallable(self) -> tuple[Address, ...]:
        """Where others can dial this peer; nowhere unless they did."""
        if self.reach not in DIALLABLE:
            return ()
        own = (address for address in self._own if is_global(address.host))
        return tuple(dict.fromkeys((*self.external, *own)))

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
            self._log.info("no relay", peer=short_peer_id(effect.peer), cause=str(error))
            self._refusals[effect.peer] = str(error)
            self._refusals.move_to_end(effect.peer)
            while len(self._refusals) > _REFUSALS_KEPT:
                self._refusals.popitem(last=False)
            self.pump.feed(reach.RelayRefused(effect.peer, str(error)))
            return
        self._refusals.pop(effect.peer, None)
        self.pump.feed(reach.RelayReserved(effect.peer, reservation.until))

    def _reach_changed(self, effect: reach.ReachChanged) -> None:
        self.reach, self.external, self.relays = effect.reach, effect.external, effect.relays
        # Whom nobody can dial is no use as a relay; whoever it kept reachable hears of it and asks another.
        self._hub.reaching.server.serve(self.may_relay and effect.reach in DIALLABLE)
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
