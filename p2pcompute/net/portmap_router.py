"""What a router that forwards ports is to the port mapper, whichever protocol it speaks."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from typing import Protocol

from p2pcompute.model.errors import ProtocolError


class Transport(enum.StrEnum):
    """What is forwarded."""

    TCP = "TCP"
    UDP = "UDP"


@dataclass(frozen=True, slots=True)
class Forwarded:
    """One port that the router forwards: its number outside, and for how many seconds; infinite where the router knows no end."""

    external_port: int
    lifetime_s: float


class Router(Protocol):
    """One router, spoken to by one protocol. Every method is bounded in time.

    Raises ResourceError where the router does not answer or does not want to, ProtocolError where it answers nonsense; both in words.
    """

    @property
    def protocol(self) -> str:
        """What it speaks, for people."""

    async def external_host(self) -> str:
        """Its address outside, as it says: numeric, not more."""

    async def forward(self, transport: Transport, external_port: int, lifetime_s: float) -> Forwarded | None:
        """Forward `external_port`, or another that the router likes better, to this peer's port; None where that one is taken."""

    async def unforward(self, transport: Transport, external_port: int) -> None:
        """Stop forwarding it."""

    async def is_intact(self, external_port: int) -> bool:
        """Whether the router still forwards what it said, as far as it tells cheaply."""

    def close(self) -> None:
        """Let go of sockets; what is forwarded stays."""


def numeric_host(text: str, protocol: str) -> str:
    """`text`, an IPv4 address that a router named. Raises ProtocolError."""
    try:
        return str(ipaddress.IPv4Address(text.strip()))
    except ValueError as error:
        raise ProtocolError(f"the router names {text[:40]!r} by {protocol} as its address outside") from error
