"""Peers as others see them: addresses, roles, the record a peer signs about itself, and the view of a network."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pcompute.model.capability import Capability
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.requirement import TIER_DEFAULT


class Role(enum.StrEnum):
    """What an invitation allows its holder to do."""

    OBSERVE = "observe"
    SUBMIT = "submit"
    COMPUTE = "compute"
    ADMIN = "admin"


DEFAULT_ROLES = frozenset({Role.SUBMIT, Role.COMPUTE})


class Isolation(enum.StrEnum):
    """How a peer holds other people's code, weakest first."""

    #: A process with limits, nothing more.
    PROCESS = "process"
    #: An ordinary process that has given up rights: Landlock and seccomp.
    RESTRICTED = "restricted"
    #: Namespaces of its own, or a container: nothing of the machine is in sight that was not put there.
    SANDBOX = "sandbox"
    #: No machine at all: WebAssembly.
    WASM = "wasm"

    @property
    def rank(self) -> int:
        """From 0, the weakest."""
        return tuple(Isolation).index(self)


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a TCP port is. `host` is an IPv4 or IPv6 address, or, only in what a person typed, a host name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_numeric(self) -> bool:
        """Whether `host` is an address rather than a name; one of IPv6 may have a zone."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def is_portable(self) -> bool:
        """Whether it means on every machine what it means here: numeric, without a zone, which names an interface of one machine."""
        return self.is_numeric and "%" not in self.host

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Address:
        """`host:port`, `[v6]:port`, or `host` where a default port is given. Raises UsageError."""
        stripped = text.strip()
        if stripped.startswith("["):
            host, bracket, rest = stripped[1:].partition("]")
            host = host if bracket and (not rest or rest.startswith(":")) else ""
            port_text = rest.removeprefix(":")
        elif stripped.count(":") > 1:
            host, port_text = stripped, ""
        else:
            host, _, port_text = stripped.partition(":")
        if not port_text and default_port is not None:
            port_text = str(default_port)
        if not host or not port_text.isascii() or not port_text.isdigit() or not 0 < int(port_text) < 65536:
            raise UsageError(f"not an address: {text!r}; write host:port, for example 192.168.1.20:9876")
        return cls(host, int(port_text))


@dataclass(frozen=True, slots=True)
class Edge:
    """One peer's measurement of its link to another: round trip in seconds, throughput in megabits a second."""

    peer: PeerId
    rtt_s: float
    bandwidth_mbps: float | None = None


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A place in the space of round trips: Vivaldi with a height (Dabek et al., SIGCOMM 2004), as Serf uses it.

    `vector`: seconds, one to eight dimensions; `height_s`: the part of every round trip that is the peer's own access
    line; `adjustment_s`: what the model is wrong by on the average; `error`: relative, 0 (sure) to 1.5 (guessed).
    """

    vector: tuple[float, ...]
    height_s: float
    error: float
    adjustment_s: float = 0.0


class Reach(enum.StrEnum):
    """How a peer can be reached from outside its own network, as it found out."""

    UNKNOWN = "unknown"
    #: Peers of other networks have dialled it.
    PUBLIC = "public"
    #: The same, through a port that its router forwards.
    MAPPED = "mapped"
    #: Only from its own network, or through a relay.
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class Relay:
    """A public peer that passes on connections to a peer which nobody can dial."""

    peer: PeerId
    address: Address


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What a peer says about itself. Its signed form, `wire.record.SignedRecord`, is what travels.

    (`incarnation`, `sequence`) orders the records of one peer; nobody else can write one. `slots` is how many tasks
    it runs at a time for others (0: lends nothing). `unknown` keeps fields of later versions, by name.
    """

    peer: PeerId
    network: NetworkId
    incarnation: int
    sequence: int
    name: str
    addresses: tuple[Address, ...]
    capability: Capability | None
    slots: int
    load: float
    roles: frozenset[Role]
    isolation: Isolation
    python: str
    platform: str
    version: str
    edges: tuple[Edge, ...] = ()
    functions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    leaving: bool = False
    #: The newest protocol version that the peer speaks; records of the first one do not say it.
    protocol: int = 1
    coordinate: Coordinate | None = None
    reach: Reach = Reach.UNKNOWN
    relays: tuple[Relay, ...] = ()
    #: Whether it believes to be the key node of its community (`topology/election.py`).
    leads: bool = False
    #: What its owner asks for an hour of one task, in whatever currency the network's people use; 0: nothing.
    cost_per_hour: float = 0.0
    #: One of `model.requirement.TIERS`: what the owner promises.
    performance_tier: str = TIER_DEFAULT
    #: Names of `model.engine.Engine` that it runs; of a later version also others.
    engines: tuple[str, ...] = ("python",)
    #: What its owner grants to programs that ask, as `model.engine` writes it.
    grants: tuple[str, ...] = ()
    #: Why it lends less than it could at present: names of `jobs.yielding.Why`, of a later version also others.
    yields: tuple[str, ...] = ()
    unknown: Mapping[str, object] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, int]:
        """Newer records of one peer compare greater."""
        return (self.incarnation, self.sequence)


class PeerStatus(enum.StrEnum):
    """What this peer believes about another."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """One row of a view: a record, what is believed about its peer, and since when (`monotonic` seconds).

    `is_met`: the peer itself has said something here, so that it exists and is a member; of others only its record has come.
    """

    record: PeerRecord
    status: PeerStatus
    since: float
    linked: bool = False
    rtt_s: float | None = None
    bandwidth_mbps: float | None = None
    invitation: bytes = b""
    is_met: bool = False


@dataclass(frozen=True, slots=True)
class PeerView:
    """A snapshot of the network as one peer sees it; jobs read it and never reach back into membership.

    `entries` are ordered by peer id and never contain the peer itself, whose own record is `own`. `version` grows with every change.
    """

    own: PeerRecord
    entries: tuple[PeerEntry, ...]
    version: int
    #: `entries` by peer, so that looking one up costs the same in a network of thousands.
    _by_peer: Mapping[PeerId, PeerEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_peer", {entry.record.peer: entry for entry in self.entries})

    def entry(self, peer: PeerId) -> PeerEntry | None:
        """The row of `peer`, or None where it is unknown or this peer itself."""
        return self._by_peer.get(peer)

    @property
    def alive(self) -> tuple[PeerEntry, ...]:
        """The rows of peers that are believed to be up."""
        return tuple(entry for entry in self.entries if entry.status is PeerStatus.ALIVE)
