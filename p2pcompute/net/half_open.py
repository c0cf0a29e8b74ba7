"""Connections that others began and that are no links yet: how many there may be, and which of them goes for another.

Each is counted for its source. A source has a share, so that one cannot fill the table by the rate at which it may begin; and where many sources
have filled it together a newcomer takes the place of the oldest one of the source that holds most. So who holds much waits for himself, and a
handshake under way elsewhere is left alone. Pure; refuses to know connections, and what a source is.
"""

from __future__ import annotations

from typing import Generic, TypeVar

C = TypeVar("C")


class HalfOpen(Generic[C]):
    """One table. `held_max`: connections at a time."""

    def __init__(self, held_max: int) -> None:
        #: How many there may be.
        self._held_max = held_max
        #: Connections of each source, the oldest first; a source without one does not stand there.
        self._by_source: dict[str, dict[C, None]] = {}
        #: The source of each connection, the oldest first; at most `held_max`.
        self._sources: dict[C, str] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, connection: C) -> bool:
        return connection in self._sources

    def count(self, source: str) -> int:
        """Connections of `source`."""
        return len(self._by_source.get(source, ()))

    def add(self, connection: C, source: str) -> C | None:
        """Count `connection` for `source`; the one that has to go for it, which is forgotten already, or None."""
        self._by_source.setdefault(source, {})[connection] = None
        self._sources[connection] = source
        if len(self._sources) <= self._held_max:
            return None
        most = max(len(held) for held in self._by_source.values())
        oldest = next(each for each, of in self._sources.items() if len(self._by_source[of]) == most)
        self.drop(oldest)
        return oldest

    def drop(self, connection: C) -> None:
        """It has become a link, or is gone; a second call does nothing."""
        source = self._sources.pop(connection, None)
        if source is not None:
            held = self._by_source[source]
            del held[connection]
            if not held:
                del self._by_source[source]

    def check_invariants(self) -> None:
        """For tests."""
        assert len(self._sources) <= self._held_max
        assert all(self._by_source.values())
        told = {connection: source for source, held in self._by_source.items() for connection in held}
        assert told == self._sources
