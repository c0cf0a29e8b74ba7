"""What a coordinator tells the origin of a share: results gather for a moment and go up together, each with where it was computed."""

from __future__ import annotations

import asyncio

from structlog.typing import FilteringBoundLogger

from p2pcompute.model import limits
from p2pcompute.model.errors import LinkClosedError
from p2pcompute.model.ids import JobId, PeerId, short_peer_id
from p2pcompute.model.job import NO_USAGE, Outcome, Payload, Usage
from p2pcompute.node.channels import Channel
from p2pcompute.wire.messages import Message, Results

#: Results gather for so long before they go up: a fraction of any wide link's round trip.
GATHER_S = 0.005

#: (task, attempt, outcome, wall microseconds, payload, worker; the worker is empty where nothing ran).
UpRow = tuple[int, int, Outcome, int, Payload, PeerId]


def said(text: str) -> Payload:
    """The payload of an outcome that is explained by a sentence."""
    data = text.encode()[: limits.TRACEBACK_CHARS_MAX]
    return Payload(inline=data, size_bytes=len(data))


class Upward:
    """The way to one origin."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        #: To the origin, the newest; None before the first share.
        self.channel: Channel | None = None
        #: Rows that go up in a moment, by share.
        self._rows: dict[JobId, list[tuple[UpRow, Usage]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def row(self, share: JobId, row: UpRow, usage: Usage = NO_USAGE) -> None:
        """A result of `share`, in a moment."""
        self._rows.setdefault(share, []).append((row, usage))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self.flush)

    def send(self, message: Message) -> None:
        """At once."""
        if self.channel is None:
            return
        try:
            self.channel.send(message)
        except LinkClosedError:
            # The hub tells link_down in its own turn, which ends the shares.
            self._log.debug("not sent: the link is gone", peer=short_peer_id(self.channel.peer))

    def flush(self) -> None:
        """Send what has gathered: several results a frame."""
        self.stop()
        gathered, self._rows = self._rows, {}
        for share, rows in gathered.items():
            batch: list[tuple[UpRow, Usage]] = []
            size = 0
            for row in rows:
                inline = len(row[0][4].inline)
                if batch and (len(batch) >= limits.BATCH_TASKS_MAX or size + inline > limits.BATCH_BYTES_MAX):
                    self.send(_results_of(share, batch))
                    batch, size = [], 0
                batch.append(row)
                size += inline
            if batch:
                self.send(_results_of(share, batch))

    def forget(self, share: JobId) -> None:
        """Nobody waits for results of `share` any more."""
        self._rows.pop(share, None)

    def stop(self) -> None:
        """Send nothing by itself any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _results_of(share: JobId, rows_with_usage: list[tuple[UpRow, Usage]]) -> Results:
    """Rows with the peers that computed them, each peer named once, and with what they used, where that is known of any."""
    rows = [row for row, _ in rows_with_usage]
    usage = tuple(used.numbers() for _, used in rows_with_usage)
    if not any(usage):
        usage = ()
    places: dict[PeerId, int] = {}
    by = tuple(places.setdefault(row[5], len(places)) for row in rows if row[5])
    # MERGED rows say it all together, with the partial aggregate.
    if len(by) < len(rows) or len(places) > limits.SHARE_MEMBERS_MAX or all(row[2] is Outcome.MERGED for row in rows):
        return Results(share, tuple(row[:5] for row in rows), usage=usage)
    return Results(share, tuple(row[:5] for row in rows), tuple(places), by, usage)
