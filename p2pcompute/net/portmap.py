"""Asking the router to forward a port to this peer, by NAT-PMP or UPnP, and keeping that up.

NAT-PMP is asked first: twelve bytes instead of ten requests of XML. TCP and UDP get the same number outside, since a peer has one for
both. What is forwarded is leased for two hours, renewed at half, looked after every minute (a router that restarts forgets), and given
back when the peer stops. Everything runs in the background and is bounded in time; what goes wrong is said in words and tried again.

An address outside that is itself private means another router before this one, whose owner is not asked: forwarding would promise what does not
work, so nothing is forwarded then.

Refuses to know: whether the forwarded port is reached from outside (`membership/reach.py` has that tried), logs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError, ResourceError
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Clock
from p2pcompute.net.portmap_gateway import Gateway, GatewayFinder, find_gateway
from p2pcompute.net.portmap_natpmp import NATPMP_PORT, Announcements, NatPmpRouter
from p2pcompute.net.portmap_router import Forwarded, Router, Transport
from p2pcompute.net.portmap_upnp import SSDP_PORT, find_upnp
from p2pcompute.net.transport import Spawn

#: Called with what is forwarded and by which protocol, or with None and why nothing is.
Changed = Callable[[Address | None, str], None]

#: Numbers outside that are tried for a port: other peers behind the same router may have the first ones.
PORTS_TRIED = 8
#: Where the numbers after the first are taken from: the range that nobody registers services in (RFC 6335).
_EPHEMERAL_FROM, _EPHEMERAL_TO = 49_152, 65_536


@dataclass(frozen=True, slots=True)
class PortMapSettings:
    """Times and places; the defaults are the product's."""

    #: Seconds for which a port is asked for, and the share of them after which it is asked for again.
    lease_s: float = limits.PORT_MAPPING_LEASE_S
    renew_share: float = 0.5
    #: Seconds between looks at the router.
    check_s: float = 60.0
    #: Seconds between tries where nothing is forwarded.
    retry_s: float = 900.0
    #: Seconds that one try, one look, and giving back at the stop may take.
    try_s: float = 20.0
    stop_s: float = 4.0
    #: Announcements are heeded this often: whoever is on the LAN can make them.
    heed_s: float = 5.0
    #: Ports of the protocols at the router; others only in tests.
    natpmp_port: int = NATPMP_PORT
    ssdp_port: int = SSDP_PORT
    #: Protocols tried, in this order: "NAT-PMP", "UPnP".
    protocols: tuple[str, ...] = ("NAT-PMP", "UPnP")


@dataclass(frozen=True, slots=True)
class _Held:
    """What is forwarded now."""

    gateway: Gateway
    router: Router
    external: Address
    #: When to ask again, monotonic seconds; infinite where the router knows no end.
    renew_at: float


class PortMapper:
    """See the module. `port`: where this peer takes links and datagrams; `spawn` runs the one background task."""

    def __init__(
        self,
        port: int,
        clock: Clock,
        spawn: Spawn,
        changed: Changed,
        *,
        settings: PortMapSettings | None = None,
        gateway: GatewayFinder = find_gateway,
    ) -> None:
        self._port = port
        self._clock = clock
        self._spawn = spawn
        self._changed = changed
        self._settings = settings or PortMapSettings()
        #: Finds the router, anew each time: laptops move.
        self._find_gateway = gateway
        #: What is forwarded, None where nothing is.
        self._held: _Held | None = None
        #: Why nothing is forwarded, or what is: for `doctor`.
        self.status = "the router has not been asked yet"
        #: The task has been started.
        self._is_started = False
        #: Somebody wants to be told even if nothing changed.
        self._is_asked = False
        self._is_stopping = False
        #: Something to do before the next look is due.
        self._wake = asyncio.Event()
        #: The task has ended, or never began.
        self._ended = asyncio.Event()
        self._announcements = Announcements()
        #: When an announcement was last heeded.
        self._heeded_at = float("-inf")

    @property
    def external(self) -> Address | None:
        """What the router forwards to this peer, None where it forwards nothing."""
        return self._held.external if self._held is not None else None

    def ask(self) -> None:
        """Ask the router now, in the background; `changed` is called with what comes of it, even if that is nothing new."""
        if self._is_stopping:
            return
        self._is_asked = True
        self._wake.set()
        if not self._is_started:
            self._is_started = True
            self._spawn("port mapping", self._run())

    async def stop(self) -> None:
        """Give back what is forwarded, as far as the router answers in time; a second call does nothing."""
        if self._is_stopping or not self._is_started:
            self._is_stopping = True
            return
        self._is_stopping = True
        self._wake.set()
        try:
            async with asyncio.timeout(self._settings.stop_s):
                await self._ended.wait()
        except TimeoutError:
            return  # the lease ends by itself

    # --- the task -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._wake.clear()
                await self._look()
                await self._pause()
            await self._bounded(self._give_back(), self._settings.stop_s)
        finally:
            self._announcements.stop()
            if self._held is not None:
                self._held.router.close()
            self._ended.set()

    async def _pause(self) -> None:
        held = self._held
        wait_s = self._settings.retry_s
        if held is not None:
            wait_s = min(self._settings.check_s, max(held.renew_at - self._clock.monotonic(), 0.0))
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        """Keep what is forwarded, or have it forwarded; tell what changed."""
        before, was_asked, self._is_asked = self.external, self._is_asked, False
        reason = await self._bounded(self._keep(), self._settings.try_s)
        if self._held is None:
            reason = await self._bounded(self._begin(), self._settings.try_s)
        if self._is_stopping:
            return
        self.status = reason
        if self.external != before or was_asked:
            self._changed(self.external, reason)

    async def _bounded(self, work: Awaitable[str], limit_s: float) -> str:
        """What came of `work`, in words. What is forwarded is let go of where it failed."""
        try:
            async with asyncio.timeout(limit_s):
                return await work
        except TimeoutError:
            self._let_go()
            return f"the router did not come to an end within {limit_s:.0f} s"
        except P2PComputeError as error:
            self._let_go()
            return str(error)

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.router.close()
            self._held = None

    async def _keep(self) -> str:
        held = self._held
        if held is None:
            return self.status
        if await self._find_gateway() != held.gateway:
            self._let_go()
            return "this machine is in another network"
        host = await held.router.external_host()
        if host != held.external.host or not await held.router.is_intact(held.external.port):
            self._let_go()
            return "the router has forgotten what it forwarded, or has another address"
        if self._clock.monotonic() >= held.renew_at:
            await self._renew(held)
        return self.status

    async def _renew(self, held: _Held) -> None:
        forwarded = await self._forward_both(held.router, held.external.port)
        if forwarded is None or forwarded.external_port != held.external.port:
            raise ResourceError("the router gives the port to somebody else")
        self._held = self._hold(held.gateway, held.router, held.external.host, forwarded)

    async def _begin(self) -> str:
        gateway = await self._find_gateway()
        if gateway is None:
            raise ResourceError("this machine has no default gateway that could forward a port")
        await self._announcements.start(gateway.host, self._heed)
        failures = []
        for protocol in self._settings.protocols:
            try:
                router = await self._open(protocol, gateway)
            except P2PComputeError as error:
                failures.append(str(error))
                continue
            try:
                return await self._have_forwarded(gateway, router)
            except P2PComputeError as error:
                router.close()
                failures.append(str(error))
            except BaseException:
                router.close()
                raise
        raise ResourceError("; ".join(failures))

    async def _open(self, protocol: str, gateway: Gateway) -> Router:
        if protocol == NatPmpRouter.protocol:
            return NatPmpRouter(gateway.host, self._port, self._clock, at=self._settings.natpmp_port)
        return await find_upnp(gateway.host, gateway.own, self._port, search_port=self._settings.ssdp_port)

    async def _have_forwarded(self, gateway: Gateway, router: Router) -> str:
        host = await router.external_host()
        if not ipaddress.ip_address(host).is_global:
            raise ResourceError(
                f"the router at {gateway.host} has itself no public address, but {host}: there is another router before it, "
                "and what it forwards is not reached from outside"
            )
        for wanted in ports_to_try(self._port, gateway.own):
            forwarded = await self._forward_both(router, wanted)
            if forwarded is not None:
                self._held = self._hold(gateway, router, host, forwarded)
                return f"{router.protocol}: the router at {gateway.host} forwards {self._held.external}"
        raise ResourceError(f"the router at {gateway.host} has no port left that it forwards for both TCP and UDP")

    async def _forward_both(self, router: Router, wanted: int) -> Forwarded | None:
        """One number for both; None where the router gives the two different ones, or has it taken."""
        tcp = await router.forward(Transport.TCP, wanted, self._settings.lease_s)
        if tcp is None:
            return None
        try:
            udp = await router.forward(Transport.UDP, tcp.external_port, self._settings.lease_s)
        except P2PComputeError:
            await router.unforward(Transport.TCP, tcp.external_port)
            raise
        if udp is not None and udp.external_port == tcp.external_port:
            return Forwarded(tcp.external_port, min(tcp.lifetime_s, udp.lifetime_s))
        await router.unforward(Transport.TCP, tcp.external_port)
        if udp is not None:
            await router.unforward(Transport.UDP, udp.external_port)
        return None

    def _hold(self, gateway: Gateway, router: Router, host: str, forwarded: Forwarded) -> _Held:
        renew_at = self._clock.monotonic() + forwarded.lifetime_s * self._settings.renew_share
        return _Held(gateway, router, Address(host, forwarded.external_port), renew_at)

    async def _give_back(self) -> str:
        held = self._held
        if held is None or await self._find_gateway() != held.gateway:
            return self.status
        for transport in Transport:
            await held.router.unforward(transport, held.external.port)
        return "given back"

    def _heed(self) -> None:
        now = self._clock.monotonic()
        if now - self._heeded_at >= self._settings.heed_s:
            self._heeded_at = now
            self._wake.set()


def ports_to_try(port: int, own_host: str) -> tuple[int, ...]:
    """The numbers outside to ask for, `port` first; the rest differ from machine to machine and stay the same over restarts."""
    span = _EPHEMERAL_TO - _EPHEMERAL_FROM
    drawn = (zlib.crc32(f"{own_host}/{port}/{number}".encode()) for number in range(1, PORTS_TRIED))
    return (port, *(_EPHEMERAL_FROM + each % span for each in drawn))
