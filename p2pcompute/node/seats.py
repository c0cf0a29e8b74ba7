"""The shares that this origin has given to coordinators: under which id each runs there, and who may speak of it.

To the dispatch machine and to the origin's shell a seat is a lender like others and its messages speak of the job; on the wire they
speak of the share. Refuses to decide: who gets a share says `jobs/coordinating.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from p2pcompute.jobs.coordinating import Region, merges
from p2pcompute.jobs.submit import options_document
from p2pcompute.model import limits
from p2pcompute.model.ids import BlobId, JobId, PeerId, coordinator_of, seat_of
from p2pcompute.model.job import Aggregation, JobSpec
from p2pcompute.model.peer import Role
from p2pcompute.node.channels import Channel
from p2pcompute.node.delegating import Delegating
from p2pcompute.node.share import SHARE_OPTIONS
from p2pcompute.wire.messages import Message, ShareOpen


class SeatChannel:
    """A coordinator as the lender that its community is. `share_of`: the share that runs there for a job, None where none does."""

    is_local = False

    def __init__(self, channel: Channel, share_of: Callable[[PeerId, JobId], JobId | None]) -> None:
        self.peer = seat_of(channel.peer)
        self.roles: frozenset[Role] = channel.roles
        self.invitation = channel.invitation
        self._channel = channel
        self._share_of = share_of

    @property
    def rtt_s(self) -> float:
        """To the coordinator."""
        return self._channel.rtt_s

    @property
    def is_behind(self) -> bool:
        """Whether the link to the coordinator is."""
        return self._channel.is_behind

    def send(self, message: Message) -> None:
        """As it is where it opens a share, else of the share instead of the job. Raises LinkClosedError."""
        if not isinstance(message, ShareOpen):
            changed: Any = message
            share = self._share_of(self.peer, JobId(changed.job))
            if share is None:
                return
            message = dataclasses.replace(changed, job=share)
        self._channel.send(message)

    async def fetch(self, blob: BlobId, bytes_max: int) -> bytes | bytearray | memoryview:
        """From the coordinator."""
        return await self._channel.fetch(blob, bytes_max)


class Seats:
    """All shares of this origin's jobs. `delegating`: None where this peer cannot sign, and so gives nobody a share."""

    def __init__(self) -> None:
        #: Set by the composition root.
        self.delegating: Delegating | None = None
        #: What is known of communities: regions, and the slots and members of each seat.
        self._region_of: dict[PeerId, Region] = {}
        #: (job, seat) by share.
        self._given: dict[JobId, tuple[JobId, PeerId]] = {}
        #: Share by (seat, job).
        self._shares: dict[tuple[PeerId, JobId], JobId] = {}
        #: The epoch of each open job: it rises when somebody takes over, so that lenders refuse whoever had the work before.
        self._epochs: dict[JobId, int] = {}

    def regions(self, regions: tuple[Region, ...]) -> None:
        """Communities other than this peer's, by the newest topology."""
        self._region_of = {seat: region for region in regions for seat in region.seats}

    def is_candidate(self, peer: PeerId) -> bool:
        """Whether `peer` may coordinate its community."""
        return seat_of(peer) in self._region_of

    def channel(self, channel: Channel) -> SeatChannel:
        """The seat of the peer at the end of `channel`."""
        return SeatChannel(channel, lambda seat, job: self._shares.get((seat, job)))

    def open(
        self, spec: JobSpec, program_bytes: int, seat: PeerId, shared: tuple[BlobId, ...] = ()
    ) -> ShareOpen | None:
        """What gives `seat` a share of a job, of which all tasks need `shared`; None where its community is not known any more."""
        region = self._region_of.get(seat)
        if region is None or self.delegating is None:
            return None
        self.close(spec.job, seat)
        epoch = self._epochs.setdefault(spec.job, 1)
        share, delegation = self.delegating.share_of(spec, program_bytes, coordinator_of(seat), epoch)
        self._given[share] = (spec.job, seat)
        self._shares[seat, spec.job] = share
        document = options_document(spec.options)
        return ShareOpen(
            share,
            spec.program,
            program_bytes,
            spec.name[: limits.TEXT_CHARS_MAX],
            (spec.aggregation if merges(spec) else Aggregation.NONE).value,
            tuple(sorted(region.members)),
            {name: document[name] for name in SHARE_OPTIONS},
            delegation,
            shared[: limits.SHARE_BLOBS_MAX],
        )

    def close(self, job: JobId, seat: PeerId) -> None:
        """The share that runs at `seat` for `job` is over."""
        share = self._shares.pop((seat, job), None)
        if share is not None:
            del self._given[share]
            if job in self._epochs:
                self._epochs[job] += 1

    def jobs_at(self, seat: PeerId) -> tuple[JobId, ...]:
        """Jobs of which `seat` has a share."""
        return tuple(job for other, job in self._shares if other == seat)

    def gone(self, seat: PeerId) -> None:
        """`seat` is not reachable any more."""
        for job in self.jobs_at(seat):
            self.close(job, seat)

    def ended(self, job: JobId) -> None:
        """The job has ended."""
        self._epochs.pop(job, None)
        for seat in [seat for seat, other in self._shares if other == job]:
            self.close(job, seat)

    def translated(self, peer: PeerId, message: Any) -> tuple[PeerId, Any]:
        """Who says `message` of `peer`, and what: where it is of a share, its seat, and of the job.

        A share that is not this peer's passes as it is: nobody knows it.
        """
        job_and_seat = self._given.get(JobId(message.job))
        if job_and_seat is None or coordinator_of(job_and_seat[1]) != peer:
            return peer, message
        job, seat = job_and_seat
        return seat, dataclasses.replace(message, job=job)
