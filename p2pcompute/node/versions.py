"""Versions, for rooms that may not look at the wire."""

from __future__ import annotations

from p2pcompute.wire import versions


def protocol_versions() -> tuple[int, int]:
    """The newest and the oldest protocol version that this program speaks."""
    return versions.PROTOCOL, versions.PROTOCOL_OLDEST
