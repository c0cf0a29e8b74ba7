"""What the healing machine is told and what it answers; `healing.py` is the machine."""

from __future__ import annotations

from dataclasses import dataclass

from p2pcompute.membership.machine import Tick
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address


@dataclass(frozen=True, slots=True)
class HealingSettings:
    """How eagerly to look for a part of the network that was lost; the defaults are the product's."""

    #: Seconds between two tries while nothing is amiss.
    interval_s: float = 60.0
    #: Share of every interval by which it varies up and down.
    jitter: float = 0.2
    #: Seconds between two tries while a split is likely.
    hurried_interval_s: float = 5.0
    #: A split stays likely for so many seconds after the last sign of one.
    hurried_s: float = 300.0
    #: Seconds between two tries while fewer than `small_view` peers are alive.
    small_interval_s: float = 15.0
    #: Fewer living peers than this are a small view.
    small_view: int = 4
    #: Look-ups that all living peers together make in one interval between tries, as far as there are so many peers.
    lookups: int = 16
    #: A split is likely when the living are at most this share of what they were ...
    shrink_share: float = 0.5
    #: ... at some time within so many seconds ...
    shrink_window_s: float = 60.0
    #: ... and were at least so many: of two peers, one going is no split.
    shrink_from: int = 4
    #: Peers kept as anchors, where so many are known.
    anchors: int = limits.ANCHORS_MIN
    #: A listed peer counts as seen once more after so many seconds: about as often as it is written down.
    sighting_s: float = 30.0
    #: Known peers that are compared with the anchors at one time.
    anchors_compared: int = 64
    #: Seconds before views are exchanged with the same peer again.
    exchange_again_s: float = 20.0
    #: Exchanges that may be begun in one `interval_s`.
    exchanges_max: int = 12
    #: Addresses found through the DHT that may be tried in one `interval_s`, beside the regular ones.
    found_max: int = 12
    #: Missing peers that the address book is asked for in one `interval_s`, once all their addresses were tried in vain.
    searches_max: int = 4
    #: Peers remembered.
    remembered_max: int = limits.PEERS_MAX

    @classmethod
    def lan(cls) -> HealingSettings:
        """For networks whose peers hear each other's beacons."""
        return cls()

    @classmethod
    def wan(cls) -> HealingSettings:
        """For networks over the Internet, where peers come and go by the hour: halves are less often splits."""
        return cls(shrink_from=8)

    @classmethod
    def test(cls) -> HealingSettings:
        """For tests on real clocks: everything ten times as fast."""
        return cls(
            interval_s=6.0,
            hurried_interval_s=0.5,
            hurried_s=30.0,
            small_interval_s=1.5,
            shrink_window_s=6.0,
            sighting_s=3.0,
            exchange_again_s=2.0,
        )


@dataclass(frozen=True, slots=True)
class Remembered:
    """A peer of an earlier run. `last_seen_s`: wall clock, seconds since 1970; `times_seen`: sightings in all earlier runs;
    `addresses`: where it was reached, the best first.
    """

    peer: PeerId
    addresses: tuple[Address, ...]
    last_seen_s: float
    times_seen: int = 1
    is_anchor: bool = False


@dataclass(frozen=True, slots=True)
class RememberedKnown:
    """What an earlier run left; begins the machine's work."""

    peers: tuple[Remembered, ...]


@dataclass(frozen=True, slots=True)
class ViewSize:
    """The view of the network: peers `alive`, and `total` with those that are not."""

    alive: int
    total: int


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """`peer` is listed and believed to be alive; its record names `addresses`."""

    peer: PeerId
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class PeerLost:
    """`peer` is believed to be dead, or is listed no more."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerBanned:
    """The owner has revoked `peer`: it is never tried again."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class ViewsDiffer:
    """A beacon of `peer`, which listens at `addresses`, tells of another view than this peer's."""

    peer: PeerId
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The DHT knows a record of `peer`, checked, with these addresses."""

    peer: PeerId
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Woke:
    """This machine slept for `slept_s` seconds: others may have given it up, and it does not know who is left."""

    slept_s: float


@dataclass(frozen=True, slots=True)
class NetworksChanged:
    """This machine sits on other networks than before."""


Event = (
    RememberedKnown | ViewSize | PeerSeen | PeerLost | PeerBanned | ViewsDiffer | Found | Woke | NetworksChanged | Tick
)


@dataclass(frozen=True, slots=True)
class TryAddress:
    """Find out whether `peer` is at `address`, and exchange views with it if so, however many links are up. Needs no
    answer: whoever is there is soon seen.
    """

    address: Address
    peer: PeerId


@dataclass(frozen=True, slots=True)
class LookUp:
    """Look for the peers nearest to `target` (20 bytes, drawn evenly) in the DHT; they are told as Found."""

    target: bytes


@dataclass(frozen=True, slots=True)
class LookFor:
    """Ask the DHT where `peer` says that it is; told as Found."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class ExchangeViews:
    """Exchange views with `peer` now; it listens at `addresses`."""

    peer: PeerId
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class AnchorsChosen:
    """These are the anchors from now on, in the order of their ids: remember them across restarts before all others."""

    peers: tuple[PeerId, ...]


Effect = TryAddress | LookUp | LookFor | ExchangeViews | AnchorsChosen
