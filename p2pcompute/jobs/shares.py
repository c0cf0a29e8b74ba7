"""What one job and one peer have to do with each other, and the batches of leases between them.

A share says how far the job has come there, how much is leased and how large a batch is; it decides nothing.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from p2pcompute.jobs.credit import tail_depth
from p2pcompute.jobs.dispatch_events import Refusal
from p2pcompute.jobs.speed import Speed, batch_tasks, prefetch_tasks
from p2pcompute.model.ids import PeerId, is_seat

if TYPE_CHECKING:
    from p2pcompute.jobs.leases import JobBook


#: Results from which on their rate means something.
RATE_SAMPLES_MIN = 4


class ShareState(enum.Enum):
    """How far a job has come at one peer."""

    OPENING = "opening"
    READY = "ready"
    REFUSED = "refused"


class Share:
    """What one job and one peer have to do with each other."""

    __slots__ = (
        "batch",
        "began_at",
        "came",
        "came_since",
        "is_gated",
        "is_seat",
        "is_spread",
        "is_watched",
        "job",
        "opened_at",
        "out",
        "owes_since",
        "pause_s",
        "paused",
        "peer",
        "prefetch",
        "refusal",
        "refusals",
        "reported_at",
        "rtt_s",
        "speed",
        "state",
        "turn",
    )  # fmt: skip

    def __init__(self, job: JobBook, peer: PeerId, rtt_s: float, now: float) -> None:
        #: The job.
        self.job = job
        #: The peer.
        self.peer = peer
        #: Round trip to the peer, as last measured.
        self.rtt_s = rtt_s
        #: OPENING -> READY or REFUSED; READY -> REFUSED; REFUSED -> OPENING where the refusal passes with time.
        self.state = ShareState.OPENING
        #: When it was last offered to the peer.
        self.opened_at = now
        #: Why it was refused; None unless REFUSED.
        self.refusal: Refusal | None = None
        #: Refusals in a row, for the back-off.
        self.refusals = 0
        #: Leases of the job that the peer holds, copies included.
        self.out = 0
        #: When the peer last went from holding none of its tasks to holding some.
        self.began_at = now
        #: When it last reported any of its tasks; below every time before that.
        self.reported_at = float("-inf")
        #: When its first report came, None before; and how many results of tasks came after that one.
        self.came_since: float | None = None
        self.came = 0
        #: A seat: since when it holds nothing but what it merged, as far as was looked; None while it holds tasks, or nothing.
        self.owes_since: float | None = None
        #: Seconds a task takes there.
        self.speed = Speed()
        #: Tasks a slot in one batch, from 1 up.
        self.batch = 1
        #: Tasks a slot sent ahead for the round trip, from 0 up.
        self.prefetch = 0
        #: The peer gave tasks back untouched; nothing is sent until its next grant or the end of the pause.
        self.paused = False
        #: Length of the next pause.
        self.pause_s = 0.0
        #: Whether it is the seat of a community (`coordinating.py`).
        self.is_seat = is_seat(peer)
        #: Number of the newest batch that was sent there, rising within the job; 0 before the first.
        self.turn = 0
        #: Whether the job must be asked each time if it may use this peer (`Placing.is_gated`).
        self.is_gated = job.placing.is_gated
        #: Whether the job's strategy gives few tasks to all peers evenly.
        self.is_spread = job.placing.strategy.spreads
        #: Whether money or a strategy depends on what comes back.
        self.is_watched = self.is_gated or job.placing.strategy.learns

    @property
    def depth(self) -> int:
        """Tasks that one slot of the peer is worth."""
        return self.batch + self.prefetch

    @property
    def load(self) -> float:
        """Slots of the peer that the leases of the job take."""
        return self.out / (self.batch + self.prefetch)

    def tail(self, slots_total: int) -> int:
        """The depth near the end of the job, `slots_total` being the slots of all its peers."""
        return tail_depth(self.depth, self.prefetch, self.job.waiting, slots_total)

    def learn(self, total_s: float, count: int) -> None:
        """`count` tasks took `total_s` together."""
        self.speed.observe(total_s, count)
        self.job.speed.observe(total_s, count)
        self.batch = batch_tasks(self.speed.task_s, self.batch)
        self.prefetch = prefetch_tasks(self.speed.task_s, self.rtt_s)
        self.pause_s = 0.0

    def note(self, count: int, now: float) -> None:
        """`count` results of tasks have come together."""
        if self.came_since is None:
            self.came_since = now
        else:
            self.came += count

    def rate(self, now: float) -> float | None:
        """Results of tasks a second, from the first report on; None until so many came that it means something."""
        if self.came_since is None or now <= self.came_since or self.came < RATE_SAMPLES_MIN:
            return None
        return self.came / (now - self.came_since)

    def slow_down(self) -> None:
        """Send one task a slot until the peer has reported: what was learned of it does not hold any more."""
        self.batch, self.prefetch = 1, 0


class Held:
    """Leases of one job, one peer and one attempt number that were sent together."""

    __slots__ = ("ahead", "attempt", "open", "serial", "share", "since")

    def __init__(self, serial: int, share: Share, attempt: int, since: float, ahead: int) -> None:
        #: Number within the job; orders batches by age.
        self.serial = serial
        #: Where the leases are.
        self.share = share
        #: Attempt number of all of them, from 1 up.
        self.attempt = attempt
        #: When they were sent.
        self.since = since
        #: Tasks of the job that the peer held once these were sent.
        self.ahead = ahead
        #: How many of them are not yet settled, cancelled or lost.
        self.open = 0
