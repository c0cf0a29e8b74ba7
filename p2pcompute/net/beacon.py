"""The shell of the LAN beacon: UDP sockets that call on every interface and hand in what they hear.

One pair of sockets receives on the common beacon port (SO_REUSEADDR, so that several peers of one host all hear a
broadcast), one pair sends and takes answers: unicast to the common port would reach only one of several peers, so the
port of the sending pair stands in the beacon. IPv4 and IPv6 have the same answer port.

A call goes out as directed broadcast and 255.255.255.255, as IPv4 multicast with TTL 1 and IPv6 link-local multicast on
each interface, and to 127.255.255.255, by which peers of one host find each other without any network. All of them
carry the same bytes, so a receiver pays for one signature. What cannot be sent or joined is left out: a beacon is repeated,
and a machine without IPv6 or without any cable is an ordinary machine.

Refuses to know: when to call, what a beacon from others means (`membership/beacons.py`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from p2pcompute.model import limits
from p2pcompute.model.errors import PortTakenError
from p2pcompute.model.ids import NetworkId, PeerId, peer_id_of
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Clock
from p2pcompute.net.interfaces import Interface, InterfaceReader, InterfaceWatch, read_interfaces
from p2pcompute.wire.beacon import INSTANCE_BYTES, Beacon, network_tag, sign_beacon, view_hash
from p2pcompute.wire.record import Signer

#: From the block for local use (RFC 2365).
GROUP_IPV4 = "239.255.98.77"
#: Link-local, transient (RFC 4291).
GROUP_IPV6 = "ff12::7032:7062"
LOOPBACK_BROADCAST = "127.255.255.255"
LIMITED_BROADCAST = "255.255.255.255"
#: Pairs of equal ports that are tried for the sending sockets.
_PAIR_TRIES = 16


class BeaconShell:
    """See the module. `heard(data, source)` is called for every datagram of plausible size.

    `known_peers`: whom this peer knows, with or without itself, for the view hash; `changed`: called when the interfaces changed,
    without it the shell itself calls once; `interfaces`: reads them, tests give loopback alone; `watch`: makes what says when to
    read them again.
    """

    def __init__(
        self,
        key: Signer,
        network: NetworkId,
        peer_port: int,
        heard: Callable[[bytes, Address], None],
        clock: Clock,
        *,
        port: int = limits.BEACON_PORT,
        known_peers: Callable[[], Iterable[PeerId]] = tuple,
        changed: Callable[[], None] | None = None,
        interfaces: InterfaceReader = read_interfaces,
        watch: Callable[[Callable[[], None]], InterfaceWatch] = InterfaceWatch,
        instance: bytes | None = None,
    ) -> None:
        #: Signs each beacon.
        self._key = key
        #: Of the own network.
        self._tag = network_tag(network)
        #: Where this peer takes links, TCP.
        self._peer_port = peer_port
        #: Whom to tell.
        self._heard = heard
        #: Wall time goes into beacons.
        self._clock = clock
        #: The common beacon port.
        self._port = port
        #: For the view hash.
        self._known_peers = known_peers
        #: Told of new interfaces.
        self._changed = changed
        #: Reads the interfaces.
        self._read_interfaces = interfaces
        #: New at each start, so that others notice a restart.
        self._instance = instance or secrets.token_bytes(INSTANCE_BYTES)
        #: Time of the last beacon in ms; each has a later one, even where the clock is set back.
        self._time_ms = 0
        #: As last read.
        self._interfaces: tuple[Interface, ...] = ()
        #: Sockets by role and family: ("receive" | "send", AF_INET | AF_INET6). A family that this machine lacks is absent.
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        #: What reads the sockets, by the same keys.
        self._transports: dict[tuple[str, int], asyncio.DatagramTransport] = {}
        #: (family, interface number) whose group the receiving sockets are in.
        self._joined: set[tuple[int, int]] = set()
        #: Makes `_watch`.
        self._make_watch = watch
        #: Says when to look at the interfaces; None only before `start` and after `stop`.
        self._watch: InterfaceWatch | None = None
        #: Sends that the system refused, for `doctor`.
        self.refused_sends = 0

    @property
    def answer_port(self) -> int:
        """UDP port of the sending sockets; only after `start`."""
        return int(self._sockets["send", socket.AF_INET].getsockname()[1])

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The interfaces as last read."""
        return self._interfaces

    @property
    def view_hash(self) -> bytes:
        """The hash that the next beacon carries: of whom this peer knows, and of itself, so that equal views have equal ones."""
        return view_hash(dict.fromkeys((*self._known_peers(), peer_id_of(self._key.public_key))))

    async def start(self) -> None:
        """Open the sockets and begin to listen. Raises PortTakenError where the beacon port cannot be shared."""
        try:
            self._open_sockets()
            loop = asyncio.get_running_loop()
            for role, opened in self._sockets.items():
                self._transports[role], _ = await loop.create_datagram_endpoint(
                    lambda: _Receiver(self._heard), sock=opened
                )
        except BaseException:
            await self.stop()
            raise
        # Watching before the first look: nothing that changes between the two is missed.
        self._watch = self._make_watch(self._refresh)
        self._watch.start()
        self._refresh(first=True)

    async def stop(self) -> None:
        """Close the sockets; a second call does nothing."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        for transport in self._transports.values():
            transport.abort()
        for opened in self._sockets.values():
            opened.close()
        self._transports.clear()
        self._sockets.clear()
        self._joined.clear()
        # Transports report their end in the next round of the loop; nothing of this shell is left after it.
        await asyncio.sleep(0)

    def broadcast(self) -> None:
        """Sign a beacon and send it everywhere."""
        if not self._sockets:
            return
        data = self._beacon(is_answer=False)
        self._send(data, (LOOPBACK_BROADCAST, self._port))
        outside = [interface for interface in self._interfaces if not interface.is_loopback]
        for interface in outside:
            for broadcast in interface.broadcasts:
                self._send(data, (broadcast, self._port))
            self._multicast(data, interface)
        if outside:
            # Reaches who has another idea of the subnet; the system picks the interface.
            self._send(data, (LIMITED_BROADCAST, self._port))

    def answer(self, to: Address) -> None:
        """Sign a beacon that is marked as an answer and send it to `to` alone."""
        if not self._sockets:
            return
        data = self._beacon(is_answer=True)
        if ":" not in to.host:
            self._send(data, (to.host, to.port))
            return
        host, _, zone = to.host.partition("%")
        try:
            scope = zone_index(zone)
        except OSError:
            return  # the interface is gone, and its peer with it
        self._send(data, (host, to.port, 0, scope))

    # --- sending ------------------------------------------------------------------------------------------------------

    def _beacon(self, *, is_answer: bool) -> bytes:
        self._time_ms = max(self._time_ms + 1, int(self._clock.wall() * 1000))
        beacon = Beacon(
            tag=self._tag,
            public_key=self._key.public_key,
            instance=self._instance,
            time_ms=self._time_ms,
            peer_port=self._peer_port,
            answer_port=self.answer_port,
            view_hash=self.view_hash,
            is_answer=is_answer,
        )
        return sign_beacon(beacon, self._key)

    def _send(self, data: bytes, to: tuple[Any, ...]) -> None:
        # Past the transport on purpose: its buffer would send later, through whatever interface is set then.
        family = socket.AF_INET if len(to) == 2 else socket.AF_INET6
        sender = self._sockets.get(("send", family))
        if sender is None:
            return
        try:
            sender.sendto(data, to)
        except OSError:
            self.refused_sends += 1

    def _multicast(self, data: bytes, interface: Interface) -> None:
        if interface.ipv4 is not None:
            try:
                self._sockets["send", socket.AF_INET].setsockopt(
                    socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface.ipv4)
                )
            except OSError:
                self.refused_sends += 1
            else:
                self._send(data, (GROUP_IPV4, self._port))
        if interface.has_ipv6 and interface.index:
            self._send(data, (GROUP_IPV6, self._port, 0, interface.index))

    # --- sockets ------------------------------------------------------------------------------------------------------

    def _open_sockets(self) -> None:
        try:
            self._sockets["receive", socket.AF_INET] = _open(socket.AF_INET, self._port, shared=True)
        except OSError as error:
            raise PortTakenError(
                f"UDP port {self._port} cannot be shared with the program that holds it: end that program, "
                "set another beacon port for all peers, or switch the LAN beacon off"
            ) from error
        receiver6 = _open_ipv6(self._port, shared=True)
        if receiver6 is not None:
            self._sockets["receive", socket.AF_INET6] = receiver6
        for attempt in range(_PAIR_TRIES):
            sender = self._sockets["send", socket.AF_INET] = _open(socket.AF_INET, 0, shared=False)
            sender6 = _open_ipv6(sender.getsockname()[1], shared=False)
            if sender6 is not None:
                self._sockets["send", socket.AF_INET6] = sender6
            if sender6 is not None or receiver6 is None or attempt == _PAIR_TRIES - 1:
                return
            sender.close()

    def _refresh(self, *, first: bool = False) -> None:
        found = self._read_interfaces()
        is_new = found != self._interfaces
        self._interfaces = found
        self._join_groups()
        if is_new and not first:
            if self._changed is not None:
                self._changed()
            else:
                self.broadcast()

    def _join_groups(self) -> None:
        wanted = {
            (family, interface.index): interface
            for interface in self._interfaces
            if not interface.is_loopback and interface.index
            for family in (socket.AF_INET, socket.AF_INET6)
            if (interface.has_ipv6 if family == socket.AF_INET6 else interface.ipv4)
        }
        # An interface that went away took its memberships with it.
        self._joined &= set(wanted)
        for (family, index), interface in wanted.items():
            receiver = self._sockets.get(("receive", family))
            if receiver is None or (family, index) in self._joined:
                continue
            try:
                if family == socket.AF_INET:
                    assert interface.ipv4 is not None, "wanted only where it has one"
                    request = socket.inet_aton(GROUP_IPV4) + socket.inet_aton(interface.ipv4)
                    receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
                else:
                    request = socket.inet_pton(socket.AF_INET6, GROUP_IPV6) + struct.pack("@I", index)
                    receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            except OSError:
                continue  # tried again at the next look; broadcast works without
            self._joined.add((family, index))


class _Receiver(asyncio.DatagramProtocol):
    """Hands datagrams on."""

    def __init__(self, heard: Callable[[bytes, Address], None]) -> None:
        self._heard = heard

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if data and 0 < addr[1] < 65536:
            # Cut off one byte beyond what may be: who hears it sees that it is no beacon, and from whom.
            self._heard(data[: limits.BEACON_BYTES_MAX + 1], source_address(addr))

    def error_received(self, exc: Exception) -> None:
        # An ICMP answer to something we sent: nobody listens there, which is no news to a beacon.
        pass


def source_address(row: tuple[Any, ...]) -> Address:
    """Where a datagram came from, as sockets tell it; a link-local IPv6 address with its zone, without which nobody can
    answer it.
    """
    host, port = str(row[0]), int(row[1])
    zone = int(row[3]) if len(row) == 4 else 0
    if not zone or "%" in host or not ipaddress.ip_address(host).is_link_local:
        return Address(host, port)
    try:
        return Address(f"{host}%{socket.if_indextoname(zone)}", port)
    except OSError:
        return Address(f"{host}%{zone}", port)


def zone_index(zone: str) -> int:
    """The system's number for the interface in an address's zone, 0 where there is none. Raises OSError where it is none here."""
    try:
        if zone.isascii() and zone.isdigit():
            return int(zone)
        return socket.if_nametoindex(zone) if zone else 0
    except ValueError as error:  # a NUL, what no encoding has, a number without end
        raise OSError(f"no interface has such a name: {zone!r}") from error


def _open(family: socket.AddressFamily, port: int, *, shared: bool) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # BSD and macOS share a port only with this; on Linux it would deal datagrams out instead of copying them.
            if hasattr(socket, "SO_REUSEPORT") and not _is_linux():
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
        else:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        opened.bind(("::" if family == socket.AF_INET6 else "", port))
    except BaseException:
        opened.close()
        raise
    return opened


def _open_ipv6(port: int, *, shared: bool) -> socket.socket | None:
    if not socket.has_ipv6:
        return None
    try:
        return _open(socket.AF_INET6, port, shared=shared)
    except OSError:
        return None  # IPv6 is switched off here, or the port is taken in this family alone


def _is_linux() -> bool:
    return hasattr(socket, "AF_NETLINK")
