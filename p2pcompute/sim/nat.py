"""Routers that translate addresses, as homes and campuses have them (RFC 4787).

A datagram from inside gets an outside port, the mapping, and what comes back to that port is passed in where the filter lets it. Endpoint-independent
mapping keeps one outside port for one inside port, symmetric mapping has another for each destination, which is what defeats hole
punching. A mapping lives for as long as the inside sends. Connections go out as they like and come in only through a forwarded port.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2pcompute.model.peer import Address
from p2pcompute.net.transport import Accept
from p2pcompute.sim.hosts import Arrival, Node, Realm, SimHost

if TYPE_CHECKING:
    from p2pcompute.net.memory import MemoryTransport
    from p2pcompute.sim.network import SimNetwork

#: Where outside ports begin.
_OUTSIDE_FIRST: Final = 20_000
_OUTSIDE_COUNT: Final = 40_000
#: Mappings after which dead ones are looked for.
_MAPPINGS_SWEPT: Final = 4_096


class Filter(enum.Enum):
    """Whose datagrams a mapping lets in."""

    #: Everybody's ("full cone").
    ANYBODY = "anybody"
    #: Those of addresses that were sent to ("restricted cone").
    ADDRESS = "address"
    #: Those of addresses and ports that were sent to ("port-restricted cone", and every symmetric NAT).
    PORT = "port"


@dataclass(frozen=True, slots=True)
class NatSettings:
    """What a router does. The defaults are those of most homes."""

    #: Whether each destination gets an outside port of its own.
    is_symmetric: bool = False
    filter: Filter = Filter.PORT
    #: Seconds that a mapping lives after the inside last sent; RFC 4787 asks for 120, many have 30.
    lifetime_s: float = 30.0
    #: Whether inside hosts reach each other through their outside addresses.
    hairpins: bool = False

    @classmethod
    def symmetric(cls) -> NatSettings:
        """What companies and mobile networks have."""
        return cls(is_symmetric=True)

    @classmethod
    def full_cone(cls) -> NatSettings:
        """What is easiest to get through."""
        return cls(filter=Filter.ANYBODY)


class Mapping:
    """One outside port, and where it leads."""

    def __init__(self, nat: NatBox, inside: Arrival, outside: Address, key: tuple[str | int, ...]) -> None:
        self._nat = nat
        #: The port inside.
        self.inside = inside
        self.outside = outside
        #: By which the router finds it again.
        self.key = key
        #: Seconds of the loop.
        self.expires_at = 0.0
        #: Whom the inside has sent to: what the filter lets in.
        self.sent_to: dict[str | tuple[str, int], None] = {}

    @property
    def host(self) -> SimHost:
        """The host inside."""
        return self.inside.host

    def arrive(self, data: bytes, source: Address) -> None:
        """Pass a datagram in, where the filter lets it."""
        settings, now = self._nat.settings, self._nat.now()
        if now >= self.expires_at:
            self._nat.forget(self)
            self._nat.network.lose("mapping expired", data, source, self.host)
            return
        asked = {Filter.ANYBODY: None, Filter.ADDRESS: source.host, Filter.PORT: (source.host, source.port)}
        wanted = asked[settings.filter]
        if wanted is not None and wanted not in self.sent_to:
            self._nat.network.lose("filtered", data, source, self.host)
            return
        self.inside.arrive(data, source)


class Forward:
    """An outside port that a person has forwarded, for ever and for everybody."""

    def __init__(self, host: SimHost, port: int) -> None:
        #: The host inside.
        self.host = host
        self._port = port

    def arrive(self, data: bytes, source: Address) -> None:
        """Pass a datagram in."""
        inside = self.host.ports.get(self._port)
        if inside is None:
            self.host.network.lose("nobody", data, source, self.host)
        else:
            inside.arrive(data, source)


class NatBox:
    """A router. Made by `SimNetwork.add_nat`; hosts are put behind it with `add_host(…, nat=…)`."""

    def __init__(
        self, network: SimNetwork, outside: str, outer: Realm, settings: NatSettings, now: Callable[[], float]
    ) -> None:
        self.network = network
        #: Its address outside.
        self.outside = outside
        #: Where that address is.
        self.outer = outer
        self.settings = settings
        self.now = now
        #: The address space behind it.
        self.realm = Realm(self)
        #: Outside ports that are mapped; those whose time is over go when somebody notices.
        self.ports: dict[int, Arrival] = {}
        self._mappings: dict[tuple[str | int, ...], Mapping] = {}
        #: Connections to these outside ports go on to that host and port.
        self._forwarded: dict[int, tuple[SimHost, int]] = {}
        self._next = 0

    def translate(self, source: Address, inside: Arrival, to: Address) -> Address:
        """Note that `inside` sends from `source` to `to`; the source that `to` sees."""
        key: tuple[str | int, ...] = (source.host, source.port)
        if self.settings.is_symmetric:
            key = (*key, to.host, to.port)
        now = self.now()
        mapping = self._mappings.get(key)
        if mapping is not None and (now >= mapping.expires_at or mapping.inside is not inside):
            self.forget(mapping)
            mapping = None
        if mapping is None:
            mapping = Mapping(self, inside, Address(self.outside, self._free_port()), key)
            self._mappings[key] = mapping
            self.ports[mapping.outside.port] = mapping
        mapping.expires_at = now + self.settings.lifetime_s
        mapping.sent_to[to.host if self.settings.filter is Filter.ADDRESS else (to.host, to.port)] = None
        return mapping.outside

    def forward(self, outside_port: int, host: SimHost, port: int) -> None:
        """Let datagrams and connections to `outside_port` in to a port of `host`, as a person or UPnP sets it; whether anybody is there shows when something comes."""
        self.ports[outside_port] = Forward(host, port)
        self._forwarded[outside_port] = (host, port)

    def close_forward(self, outside_port: int) -> None:
        """Take a forwarding back; a second call does nothing."""
        if self._forwarded.pop(outside_port, None) is not None:
            self.ports.pop(outside_port, None)

    def reboot(self) -> None:
        """Forget all mappings, as after a power cut; forwarded ports stay."""
        for mapping in list(self._mappings.values()):
            self.forget(mapping)

    def listener(self, port: int) -> tuple[Accept, MemoryTransport] | None:
        """Who takes connections at a forwarded port."""
        found = self._forwarded.get(port)
        return found[0].listener(found[1]) if found is not None and found[0].is_up else None

    def behind(self, port: int) -> SimHost | None:
        """The host to which connections to `port` go on."""
        found = self._forwarded.get(port)
        return found[0] if found is not None else None

    def forget(self, mapping: Mapping) -> None:
        """A mapping is over."""
        if self._mappings.get(mapping.key) is mapping:
            del self._mappings[mapping.key]
            self.ports.pop(mapping.outside.port, None)

    def _free_port(self) -> int:
        if len(self._mappings) % _MAPPINGS_SWEPT == _MAPPINGS_SWEPT - 1:
            now = self.now()
            for mapping in [each for each in self._mappings.values() if now >= each.expires_at]:
                self.forget(mapping)
        while True:
            # Not one after the other as the inside ports are: nothing may rely on guessing them.
            self._next = (self._next + 7_919) % _OUTSIDE_COUNT
            if _OUTSIDE_FIRST + self._next not in self.ports:
                return _OUTSIDE_FIRST + self._next


def may_hairpin(node: Node, realm: Realm) -> bool:
    """Whether what comes from `realm` may enter `node` from outside: not a router that it has just left, unless that turns it round."""
    inner: Realm | None = realm
    while inner is not None and inner.nat is not None:
        if inner.nat is node:
            return inner.nat.settings.hairpins
        inner = inner.nat.outer
    return True
