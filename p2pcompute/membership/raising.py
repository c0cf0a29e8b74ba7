"""When this peer signs a record with a higher incarnation: to outrank its own former lives, and to refute that it is down.

Each such record goes round the whole network, so there is a limit to how often; two machines that share a key, or
a member that accuses without end, must not flood it.
"""

from __future__ import annotations

from p2pcompute.membership.book_events import RaiseIncarnation
from p2pcompute.membership.common import Common
from p2pcompute.membership.machine import earliest


class Raising:
    """See the module."""

    def __init__(self, common: Common) -> None:
        self._common = common
        #: The incarnation that must at least be reached, None where there is no need.
        self._outrank: int | None = None
        #: No former life is outranked before this.
        self._outrank_from = 0.0
        #: Whether an accusation is to be refuted.
        self._refutes = False
        #: None is refuted before this.
        self._refute_from = 0.0

    def outrank(self, incarnation: int) -> None:
        """There is a record of this peer's own with `incarnation` that is newer than its newest."""
        self._outrank = max(self._outrank or 0, incarnation + 1)

    def refute(self) -> None:
        """Somebody says of this peer's present incarnation that it is down."""
        self._refutes = True

    def signed(self) -> None:
        """There is a newer own record."""
        if self._outrank is not None and self._common.own.incarnation >= self._outrank:
            self._outrank = None

    def deadline(self) -> float | None:
        """When a record is due."""
        return earliest(
            self._outrank_from if self._outrank is not None else None, self._refute_from if self._refutes else None
        )

    def due(self, now: float) -> None:
        """Ask for what is due."""
        if self._refutes and self._refute_from <= now:
            self._refutes = False
            self._refute_from = now + self._common.settings.refute_interval_s
            self._common.effects.append(RaiseIncarnation(self._common.own.incarnation + 1))
        if self._outrank is not None and self._outrank_from <= now:
            self._common.effects.append(RaiseIncarnation(self._outrank))
            self._outrank = None
            self._outrank_from = now + self._common.settings.raise_interval_s
