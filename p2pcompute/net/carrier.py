"""What moves the bytes of a link (TLS stream, WebSocket, memory), as the link sees it."""

from __future__ import annotations

from typing import Protocol

from p2pcompute.model.peer import Address


class Carrier(Protocol):
    """Moves bytes in order, both ways, and nothing more. Its link is told of what arrives, of room, and of its end."""

    @property
    def name(self) -> str:
        """ "stream", "websocket" or "memory"."""

    @property
    def remote(self) -> Address:
        """The other end."""

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep until it can be sent. Ignored once the carrier is closing."""

    def buffered_bytes(self) -> int:
        """What could not be sent yet. When it has been at `limits.BULK_BUFFER_BYTES` and falls, the link is told."""

    def leaf(self) -> bytes:
        """The other side's certificate, DER; empty where the carrier has none."""

    def loss(self) -> float | None:
        """Share of segments that had to be sent again, 0 to 1; None where that is not known."""

    def close(self) -> None:
        """Send what is kept, then hang up; bounded."""

    def abort(self) -> None:
        """Hang up now."""
