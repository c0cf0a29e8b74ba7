"""What the address book takes from the peer around it, and its settings.

Below it is a port that sends to peers over sealed sessions: whoever a datagram is from has proven its membership, its id
and its address before anything here sees a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from p2pcompute.model import limits
from p2pcompute.model.errors import ConfigError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address, Reach
from p2pcompute.model.seams import Clock, Rng
from p2pcompute.net.dht.contacts import InvitationOf
from p2pcompute.net.dht.troubles import Troubles
from p2pcompute.wire.record import Verifier

#: Runs a coroutine as a task that is kept, and cancelled when the peer stops.
Spawn = Callable[[str, Coroutine[Any, Any, None]], object]


class DhtPort(Protocol):
    """Sends the datagrams of the address book."""

    def send(self, peer: PeerId, addresses: tuple[Address, ...], payload: bytes) -> None:
        """Send `payload` to `peer` under its session, begun at one of `addresses` where there is none. May be lost; never raises."""


@dataclass(frozen=True, slots=True)
class DhtSettings:
    """How the address book works. Raises ConfigError for values that cannot be."""

    #: Contacts in a bucket, and holders of a pointer (Kademlia's k).
    k: int = limits.DHT_CONTACTS_PER_REPLY_MAX
    #: Requests in flight on each path of a lookup.
    alpha: int = limits.DHT_ALPHA
    #: Disjoint paths of a lookup.
    paths: int = limits.DHT_LOOKUP_PATHS
    #: Seconds that a lookup may take.
    lookup_deadline_s: float = limits.DHT_LOOKUP_DEADLINE_S
    #: Seconds between lookups in a bucket that nobody else looks through.
    refresh_interval_s: float = limits.DHT_REFRESH_INTERVAL_S
    #: Seconds between questions whether the contact that was quiet longest is there.
    check_interval_s: float = limits.DHT_CHECK_INTERVAL_S
    #: Families of addresses that this host can use.
    families: tuple[int, ...] = (4, 6)

    def __post_init__(self) -> None:
        if not 1 <= self.k <= limits.DHT_CONTACTS_PER_REPLY_MAX or not 1 <= self.alpha <= self.k or self.paths < 1:
            raise ConfigError(
                f"the address book needs 1 <= alpha <= k <= {limits.DHT_CONTACTS_PER_REPLY_MAX} and a path, "
                f"not alpha {self.alpha}, k {self.k}, {self.paths} paths"
            )
        if min(self.lookup_deadline_s, self.refresh_interval_s, self.check_interval_s) <= 0:
            raise ConfigError("the times of the address book are above zero seconds")
        if not self.families or not set(self.families) <= {4, 6}:
            raise ConfigError(f"families of addresses are 4 and 6, not {self.families}")


@dataclass(slots=True)
class Surroundings:
    """Everything that the parts of one address book share."""

    #: Who this peer is.
    own: PeerId
    #: Both kinds of time.
    clock: Clock
    #: Reproducible dice; never for keys.
    rng: Rng
    #: See `Spawn`.
    spawn: Spawn
    #: Checks signatures of pointers.
    verify: Verifier
    #: Under which invitation a peer is a member.
    invitation_of: InvitationOf
    #: See `DhtSettings`.
    settings: DhtSettings = field(default_factory=DhtSettings)
    #: Whether others can dial this peer; private means that it is a client of the address book.
    reach: Reach = Reach.UNKNOWN
    #: What was refused, and from whom.
    troubles: Troubles = field(default_factory=Troubles)
