"""What of this peer's own state is worth telling, and how: as a new record, as a small load update, or not at all.

A record has about a kilobyte and goes to everybody; a load update has 119 bytes (`wire.gossip.sign_load`). Both are sent on by
everybody who hears them, so how often each may be said depends on how many hear it, which keeps what a peer sends for updates
within a budget whatever the size of the network. Rules:

- where a peer is, what it offers and whether it leads (addresses, reach, relays, functions, labels, slots and why they are fewer, roles) is told at once;
- its edges, its coordinate and its hardware's figures when they changed by more than noise: a few at once after a start, then
  one in half a minute, and in a larger network as often as all peers' records together leave room (`shared_budget.py`), by lot: what makes
  one peer's edges change often makes everybody's change at the same moment;
- how busy it is as a load update: a change of a tenth at most every 2 s, a smaller one when it has lasted for half a minute,
  both less often in a larger network;
- whatever is told as a record tells everything, and a record is renewed well before it expires at others.

What may not be told yet is told at a later look: `decide` compares with what others have been told, not with the last look.
Refuses to know: signatures, the wire, when somebody looks (`node/own_record.py`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from p2pcompute.membership.shared_budget import SharedBudget, SharedBudgetSettings
from p2pcompute.membership.traffic import UPDATE_PERIOD_MIN_S
from p2pcompute.model import limits
from p2pcompute.model.capability import Capability
from p2pcompute.model.peer import Coordinate, Edge, PeerRecord
from p2pcompute.model.seams import Rng

#: Bytes of a signed load update.
LOAD_BYTES = 119


class Tell(enum.IntEnum):
    """What to tell others; false where it is nothing."""

    NOTHING = 0
    #: A load update.
    LOAD = 1
    #: A new record.
    RECORD = 2


@dataclass(frozen=True, slots=True)
class PacingSettings:
    """What counts as noise, and how often to tell what does not; the defaults are the product's."""

    #: Relative change of a figure up to which it is noise.
    noise: float = 0.1
    #: The same for utilisation and throughput, which are never steady, and for edges' figures.
    noise_rough: float = 0.25
    #: A load that differs by so much has changed, in tasks per slot.
    load_noise: float = 0.05
    #: A share of idle cores that differs by so much has changed: a probe of a moment is not better than that.
    idle_noise: float = 0.05
    #: Smaller changes than `noise` are drift, from so much on.
    drift_noise: float = 0.03
    #: Load updates at most every so many seconds, and for drift.
    load_interval_s: float = 2.0
    drift_interval_s: float = 30.0
    #: A place that moved by less than so many seconds, or less than this share of its way from the origin, did not move.
    moved_s: float = 2e-3
    moved_share: float = 0.2
    #: Records at most every so many seconds, whatever happens: an interface that flaps is no flood.
    record_interval_s: float = 0.5
    #: Records for edges, places and hardware that one peer may tell at once, before there is one every `UPDATE_PERIOD_MIN_S`.
    burst: int = 4
    #: Seconds between such records within a burst: links that come up together are told together.
    burst_interval_s: float = 2.0
    #: No lot counts for more seconds than this, however long ago the last look was.
    lot_s_max: float = 4.0
    #: What all peers may tell of that kind together.
    shared: SharedBudgetSettings = field(default_factory=SharedBudgetSettings)
    #: A record is renewed after so many seconds.
    renew_s: float = limits.RECORD_EXPIRY_S / 3
    #: The same where peers of the first protocol version are about: they take silence of 400 s for death.
    renew_old_s: float = 300.0
    #: Bytes a second that this peer may send for everybody's load updates, and how often each is sent by each peer in the mean.
    load_budget_bytes_per_s: float = 3_000.0
    load_copies: float = 6.0


@dataclass(frozen=True, slots=True)
class Around:
    """What the network around is like. `peers`: how many are alive; `has_old`: some speak the first protocol version alone;
    `renewed`: how many records of others were heard so far that replaced older ones."""

    peers: int = 1
    has_old: bool = True
    renewed: int = 0


class Pacer:
    """Decides, and remembers what was told when; see the module."""

    def __init__(self, rng: Rng, settings: PacingSettings | None = None) -> None:
        #: The machine's dice.
        self._rng = rng
        #: What is noise, how often.
        self._settings = settings or PacingSettings()
        #: What all peers' records leave for this one's.
        self._shared = SharedBudget(self._settings.shared)
        #: When somebody looked last.
        self._looked_at = -math.inf
        #: When the last record was told.
        self._record_at = -math.inf
        #: When load was last told, in a record or by itself.
        self._load_at = -math.inf
        #: Slow records that may come at once; between 0 and `burst`.
        self._tokens = float(self._settings.burst)
        #: When `_tokens` was right.
        self._tokens_at = 0.0
        #: What the last load update said: load, share of idle cores, memory; None after a record, which says it all.
        self._load: tuple[float, float, float] | None = None

    def decide(self, told: PeerRecord, new: PeerRecord, around: Around, record_bytes: int, now: float) -> Tell:
        """What to tell when `new` is the truth and `told` the last record; the caller then tells it.

        `record_bytes`: size of the last signed record. Records count as told at once, load updates too.
        """
        self._shared.look(around.peers, record_bytes, around.renewed, now)
        tell = self._decide(told, new, around, now)
        self._looked_at = now
        if tell is Tell.RECORD:
            self.told_record(now)
        elif tell is Tell.LOAD:
            self._load_at, self._load = now, _load_of(new)
        return tell

    def told_record(self, now: float) -> None:
        """A record was told for another reason: it has said everything, load too."""
        self._record_at = self._load_at = now
        self._load = None
        self._shared.signed()

    def load_period_s(self, peers: int) -> float:
        """Seconds between load updates in a network of `peers`."""
        settings = self._settings
        among = peers * LOAD_BYTES * settings.load_copies / settings.load_budget_bytes_per_s
        return max(settings.load_interval_s, among)

    def _decide(self, told: PeerRecord, new: PeerRecord, around: Around, now: float) -> Tell:
        settings = self._settings
        since_s = now - self._record_at
        if since_s < settings.record_interval_s:
            return Tell.NOTHING
        renew_s = settings.renew_old_s if around.has_old else settings.renew_s
        if since_s >= renew_s or offers_differ(told, new):
            return Tell.RECORD
        if self._is_slow_change(told, new) and self._may_be_slow(now):
            return Tell.RECORD
        return Tell.LOAD if self._is_load_due(told, new, around.peers, now) else Tell.NOTHING

    def _is_slow_change(self, told: PeerRecord, new: PeerRecord) -> bool:
        settings = self._settings
        return (
            hardware_differs(told.capability, new.capability, settings)
            or edges_differ(told.edges, new.edges, settings)
            or has_moved(told.coordinate, new.coordinate, settings)
        )

    def _may_be_slow(self, now: float) -> bool:
        settings = self._settings
        self._tokens = min(float(settings.burst), self._tokens + (now - self._tokens_at) / UPDATE_PERIOD_MIN_S)
        self._tokens_at = now
        if self._tokens < 1.0 or now - self._record_at < settings.burst_interval_s:
            return False
        if self._rng.random() >= self._shared.rate_per_s * min(now - self._looked_at, settings.lot_s_max):
            return False
        self._tokens -= 1.0
        return True

    def _is_load_due(self, told: PeerRecord, new: PeerRecord, peers: int, now: float) -> bool:
        settings = self._settings
        period_s = self.load_period_s(peers)
        since_s = now - self._load_at
        if since_s < period_s:
            return False
        then, figures = self._load or _load_of(told), _load_of(new)
        if load_differs(then, figures, settings):
            return True
        drift_s = settings.drift_interval_s * period_s / settings.load_interval_s
        return since_s >= drift_s and any(
            abs(a - b) > settings.drift_noise * max(a, b, 1.0) for a, b in zip(then, figures, strict=True)
        )


def offers_differ(told: PeerRecord, new: PeerRecord) -> bool:
    """Whether where a peer is, or what it offers and may do, is different."""
    return any(
        getattr(told, name) != getattr(new, name)
        for name in (
            "name", "addresses", "slots", "roles", "isolation", "functions", "labels", "leaving", "protocol", "reach", "relays",
            "leads",
            "cost_per_hour", "performance_tier", "engines", "grants", "yields",
        )
    )  # fmt: skip


def load_differs(told: tuple[float, float, float], new: tuple[float, float, float], settings: PacingSettings) -> bool:
    """Whether load (tasks per slot), share of idle cores or free memory (GiB) changed by more than noise."""
    floors = (settings.load_noise, settings.idle_noise, settings.noise * 0.5)
    return any(
        abs(a - b) > max(settings.noise * max(a, b), floor) for a, b, floor in zip(told, new, floors, strict=True)
    )


def hardware_differs(told: Capability | None, new: Capability | None, settings: PacingSettings) -> bool:
    """Whether what a machine has, apart from what of it is free, changed by more than noise."""
    if told is None or new is None:
        return told is not new
    if told.cores != new.cores or [gpu.name for gpu in told.gpus] != [gpu.name for gpu in new.gpus]:
        return True
    exact, rough = settings.noise, settings.noise_rough
    figures = [
        (told.frequency_mhz, new.frequency_mhz, 1.0, exact),
        (told.memory_gb, new.memory_gb, 0.1, exact),
        (told.bandwidth_mbps or 0.0, new.bandwidth_mbps or 0.0, 10.0, rough),
        (told.latency_ms or 0.0, new.latency_ms or 0.0, 2.0, rough),
        (told.loss or 0.0, new.loss or 0.0, 0.1, rough),
    ]
    for old, now in zip(told.gpus, new.gpus, strict=True):
        figures += [
            (old.memory_gb, now.memory_gb, 0.1, exact),
            (1.0 + old.utilisation, 1.0 + now.utilisation, 1.0, rough),
        ]
    return any(abs(a - b) > share * max(abs(a), abs(b), floor) for a, b, floor, share in figures)


def edges_differ(told: Sequence[Edge], new: Sequence[Edge], settings: PacingSettings) -> bool:
    """Whether other peers are listed, or a figure changed by more than noise; the order says nothing."""
    before = {edge.peer: edge for edge in told}
    if len(before) != len(new) or any(edge.peer not in before for edge in new):
        return True
    for edge in new:
        old = before[edge.peer]
        rates = (old.bandwidth_mbps or 0.0, edge.bandwidth_mbps or 0.0)
        if abs(old.rtt_s - edge.rtt_s) > settings.noise_rough * max(old.rtt_s, edge.rtt_s, 2e-3):
            return True
        if abs(rates[0] - rates[1]) > 2 * settings.noise_rough * max(*rates, 10.0):
            return True
    return False


def has_moved(told: Coordinate | None, new: Coordinate | None, settings: PacingSettings) -> bool:
    """Whether estimates made with `told` are wrong by more than noise."""
    if told is None or new is None or len(told.vector) != len(new.vector):
        return told is not new
    off_s = math.dist(told.vector, new.vector) + abs(told.height_s - new.height_s)
    off_s += abs(told.adjustment_s - new.adjustment_s)
    way_s = math.hypot(*new.vector) + new.height_s
    return off_s > max(settings.moved_s, settings.moved_share * way_s) or told.error > 2.0 * max(new.error, 0.25)


def _load_of(record: PeerRecord) -> tuple[float, float, float]:
    capability = record.capability
    if capability is None:
        return (record.load, 0.0, 0.0)
    return (record.load, capability.idle, capability.memory_available_gb)
