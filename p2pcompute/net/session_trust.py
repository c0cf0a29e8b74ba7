"""Judging peers again after trust has changed, or their certificate has ended: whoever is used at once, the others a few at a time.

Thousands of certificates at one go would hold up the loop for a second. Refuses to know what becomes of those who are refused.
"""

from __future__ import annotations

from p2pcompute.model.errors import AdmissionError
from p2pcompute.net.session_events import Admit, SessionSettings
from p2pcompute.net.session_table import Entry, SessionTable

#: Of entries that are to be judged again though trust has not changed.
_NO_EPOCH = -1


class Judge:
    """See the module."""

    def __init__(self, table: SessionTable, admit: Admit, settings: SessionSettings) -> None:
        self._table = table
        self._admit = admit
        self._settings = settings
        #: When the next few are judged, monotonic seconds; None: all were.
        self.due: float | None = None

    def begin(self, admit: Admit, now: float) -> None:
        """Trust has changed: from now on nobody counts before `admit` has taken him."""
        self._admit = admit
        self._table.epoch += 1
        self.due = now
        # Handshakes that are half done are repeated, and then judged by what counts now.
        for session in list(self._table.half_open.values()):
            self._table.remove(session)

    def doubt_ended(self, now: float, now_wall: float) -> None:
        """Judge again whose certificate, as it was shown last, has ended by `now_wall` (seconds since 1970)."""
        for entry in self._table.peers.values():
            if entry.best.shown.admission.expires_wall < now_wall:
                entry.epoch, self.due = _NO_EPOCH, now

    def objection(self, entry: Entry) -> AdmissionError | None:
        """Why `entry` no longer holds; None where it does."""
        if entry.epoch == self._table.epoch:
            return None
        shown = entry.best.shown
        try:
            self._admit(shown.leaf, shown.chain, entry.peer)
        except AdmissionError as error:
            return error
        entry.epoch = self._table.epoch
        return None

    def next_few(self, now: float) -> list[Entry]:
        """Those to be judged now; sets `due`."""
        left = [entry for entry in self._table.peers.values() if entry.epoch != self._table.epoch]
        few = left[: self._settings.recheck_slice]
        self.due = now + self._settings.recheck_pause_s if len(left) > len(few) else None
        return few
