"""What the session machine takes from and gives to its shell: settings, effects, reasons of refusals.

Refuses to know: how any of it comes about (`sessions.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError, UsageError
from p2pcompute.model.ids import NetworkId, PeerId
from p2pcompute.model.peer import Address
from p2pcompute.wire.membership import Admitted
from p2pcompute.wire.record import Signer

#: Judges a leaf (DER) under invitations (DER, the leaf's issuer first); the last: who was expected. Raises AdmissionError.
Admit = Callable[[bytes, Sequence[bytes], PeerId | None], Admitted]


class DatagramMembership(Protocol):
    """What a peer shows of its membership (`wire.membership.Membership` is one)."""

    @property
    def network(self) -> NetworkId:
        """The network."""

    @property
    def leaf(self) -> bytes:
        """DER."""

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER of the invitations above the leaf, its issuer first."""


class DatagramIdentity(Protocol):
    """Who this peer is, asked anew for each handshake: memberships are renewed and trust changes."""

    @property
    def peer(self) -> PeerId:
        """Its id."""

    @property
    def key(self) -> Signer:
        """Signs its handshakes; the leaf's key."""

    @property
    def membership(self) -> DatagramMembership:
        """What it shows."""

    def admit(self, leaf_der: bytes, chain: Sequence[bytes], expected: PeerId | None) -> Admitted:
        """Whom these certificates prove somebody to be. Raises AdmissionError."""


class Why(enum.StrEnum):
    """Why something was refused or lost; the keys of `Sessions.counts`."""

    SIZE = "size"
    RATE = "rate"
    FOREIGN = "foreign"
    VERSION = "version"
    MALFORMED = "malformed"
    COOKIE = "cookie"
    HANDSHAKES = "handshakes"
    ADMISSION = "admission"
    UNKNOWN = "unknown"
    REPLAY = "replay"
    SEAL = "seal"
    #: An answer to nothing that was asked, or asked no longer.
    STALE = "stale"
    #: A payload for which no room was left while its handshake ran.
    HELD = "held"
    #: A payload whose handshake took too long.
    LATE = "late"
    #: A payload for a peer of which no address is known.
    NO_ADDRESS = "no-address"
    #: A handshake of ours that was not begun, since too many ran.
    BUSY = "busy"
    #: A handshake of ours that nobody answered.
    UNANSWERED = "unanswered"
    #: A session that had to go for another peer's.
    EVICTED = "evicted"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Times in seconds. The defaults suit both a LAN and the internet, since retries adapt to nothing but silence.

    `retry_s`: the first datagram of a handshake is repeated after so long, then after twice that, and so on;
    `tries_max`: how often each is sent; `stagger_s`: the next address of a peer is tried after so long;
    `handshake_s`: a handshake ends then; `half_open_s`: how long an answered handshake of another waits for its first
    sealed datagram; `patience_s`: how long own handshakes with a peer wait while one of that peer is half open;
    `ask_s`: on a session on which so long nothing came back its peer is asked whether it still has it; `answer_s`:
    the answer is waited for so long before a session is agreed on anew; `trial_s`: a peer that did not answer at an address is
    asked there again after so long; `refresh_pause_s`: between two handshakes with one peer that has a session; `rekey_s`, `rekey_datagrams`: age and use after which a session gets fresh keys; `end_s`,
    `silence_s`: when it ends; `sweep_s`: how often ended ones are looked for; `recheck_slice`, `recheck_pause_s`:
    how many peers are judged again at a time, and the pause after that.
    """

    retry_s: float = 0.3
    tries_max: int = 5
    stagger_s: float = 0.25
    handshake_s: float = limits.HANDSHAKE_TIMEOUT_S
    half_open_s: float = limits.HANDSHAKE_TIMEOUT_S
    patience_s: float = 0.5
    ask_s: float = 5.0
    answer_s: float = 10.0
    trial_s: float = 15.0
    refresh_pause_s: float = 2.0
    rekey_s: float = limits.SESSION_REKEY_S
    rekey_datagrams: int = limits.SESSION_DATAGRAMS_MAX
    end_s: float = limits.SESSION_END_S
    silence_s: float = limits.SESSION_SILENCE_MAX_S
    sweep_s: float = 5.0
    recheck_slice: int = 16
    recheck_pause_s: float = 0.02
    sessions_max: int = limits.SESSIONS_MAX

    def __post_init__(self) -> None:
        if min(self.retry_s, self.tries_max, self.rekey_s, self.sessions_max) <= 0 or self.rekey_s >= self.end_s:
            raise UsageError(f"settings of sessions that cannot be: {self}")


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send `data` to `to`; it may be lost."""

    data: bytes
    to: Address


@dataclass(frozen=True, slots=True)
class Delivered:
    """`peer` sent `payload` on `channel`; `source`: where it has shown to be."""

    peer: PeerId
    channel: int
    payload: bytes = field(repr=False)
    source: Address


@dataclass(frozen=True, slots=True)
class SessionUp:
    """A handshake with `peer` is done, its first or a later one; `admission` is what it proved."""

    peer: PeerId
    address: Address
    admission: Admitted


@dataclass(frozen=True, slots=True)
class Refused:
    """Somebody at `address` was refused, or did not answer; told at most once a second for one host. `times`: how often since then."""

    address: Address
    error: P2PComputeError
    times: int = 1


Effect = Transmit | Delivered | SessionUp | Refused


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """The session in use with a peer. Times are monotonic seconds.

    `rtt_s`: the shortest unambiguous round trip of its handshake, None where every one had to be repeated; `bytes_in`,
    `bytes_out`: whole datagrams; `replayed`, `unsealed`: refused because of their counter or their seal.
    """

    peer: PeerId
    address: Address
    since: float
    heard_at: float
    rtt_s: float | None
    bytes_in: int
    bytes_out: int
    replayed: int
    unsealed: int
    generation: int
    admission: Admitted
