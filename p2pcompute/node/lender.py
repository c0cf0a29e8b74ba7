"""The lending side of a peer: runs other peers' tasks, and its own, in worker processes.

The lend machine decides whose tasks run next, the pool runs them; this shell fetches programs and large arguments, holds results
until the origin has them, and sends results in batches. No shipped code ever runs in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from structlog.typing import FilteringBoundLogger

from p2pcompute.execution.engines.document import head_of
from p2pcompute.execution.pool import ProgramKey, TaskEnd, TaskRun
from p2pcompute.execution.pool_types import Pool
from p2pcompute.jobs import lend
from p2pcompute.jobs.accounting import Accounts, Spent
from p2pcompute.membership.rate import TokenBucket
from p2pcompute.model import limits
from p2pcompute.model.errors import (
    BlobMissingError,
    BusyError,
    LinkClosedError,
    P2PComputeError,
    PeerError,
    ResourceError,
    UsageError,
)
from p2pcompute.model.ids import BlobId, JobId, PeerId, ProgramId, format_job_id, short_peer_id
from p2pcompute.model.job import Outcome, Payload, Usage
from p2pcompute.model.seams import Clock, Offload
from p2pcompute.node.channels import SMALL_BYTES, Channel
from p2pcompute.node.delegations import FENCED, DelegatedShare, Delegations, Refusal
from p2pcompute.node.driver import Pump
from p2pcompute.node.handles import Handles
from p2pcompute.node.offers import Offers, missing_in
from p2pcompute.node.standing import Standings
from p2pcompute.node.supervise import Supervisor
from p2pcompute.node.transfers import Transfers
from p2pcompute.storage.blobs import BlobStore
from p2pcompute.trust.tiers import Tier
from p2pcompute.wire.membership import Trust
from p2pcompute.wire.messages import (
    Grant,
    JobAccept,
    JobClose,
    JobOpen,
    JobRefuse,
    Message,
    Results,
    TaskNews,
    Tasks,
    TasksCancel,
    TasksRecall,
)

Row = tuple[int, int]
ResultTuple = tuple[int, int, Outcome, int, Payload]
#: The part of a job whose transfer brings its program; the others are rows.
_PROGRAM = "program"


@dataclass(frozen=True, slots=True)
class _Bound:
    """Whom a worker serves: who sends its tasks, and the borrower and program that it is bound to."""

    sender: PeerId
    borrower: PeerId
    program: ProgramId


@dataclass(slots=True)
class LentJob:
    """One job at this peer: of the origin at the other end, or a share of another's that is coordinated from there."""

    channel: Channel
    open: JobOpen
    #: Who borrows, to the machine: the peer at the other end, or `share.borrower`.
    borrower: PeerId
    #: What its origin delegated; None where that is the peer at the other end.
    share: DelegatedShare | None = None
    #: What its origin may have run.
    tier: Tier = Tier.OPEN
    #: Arguments that wait for a worker, or are with one: (entry, bytes) by (task, attempt).
    arguments: dict[Row, tuple[int, bytes | bytearray | memoryview]] = field(default_factory=dict)
    #: Rows whose arguments are still being fetched; a cancel takes them out.
    fetching: set[Row] = field(default_factory=set)
    #: Result rows that leave in the next turn of the loop.
    results: list[tuple[ResultTuple, Usage]] = field(default_factory=list)
    #: What its attempts here have used.
    spent: Spent = field(default_factory=Spent)
    #: Large results that the origin has not fetched yet, or not said so.
    result_blobs: dict[Row, BlobId] = field(default_factory=dict)
    #: Whether the program is here and was accepted.
    accepted: bool = False

    @property
    def account(self) -> PeerId:
        """In whose name it runs."""
        return self.borrower if self.share is None else self.share.origin


class Lender:
    """All tasks that run at this peer. Implements `execution.pool.PoolEvents`."""

    def __init__(
        self,
        store: BlobStore,
        supervisor: Supervisor,
        clock: Clock,
        offload: Offload,
        log: FilteringBoundLogger,
        *,
        slots: int,
        offers: Offers,
        trust: Callable[[], Trust],
        standings: Standings | None = None,
        reserved: int = 0,
    ) -> None:
        """`standings`: who may have what; `reserved`: slots that only urgent jobs of guests may have."""
        self._store = store
        self._supervisor = supervisor
        self._clock = clock
        self._offload = offload
        self._log = log
        #: What programs may ask for.
        self.offers = offers
        #: Who may have what; what is put in its place holds for jobs that are opened from then on.
        self.standings = standings or Standings()
        #: Tasks that run here at a time, the own user's included.
        self.slots = slots
        #: Why less is lent at present, for whoever gets tasks back.
        self._yields = ""
        #: Set by `start`.
        self._pool: Pool | None = None
        #: Open jobs by (sender, job): an origin, or a coordinator, which sends for others.
        self._jobs: dict[tuple[PeerId, JobId], LentJob] = {}
        #: Newest channel to each sender.
        self._channels: dict[PeerId, Channel] = {}
        #: Slots that each borrower was last told it has.
        self._granted: dict[PeerId, int] = {}
        #: Checks what coordinators show.
        self._delegations = Delegations(trust, clock)
        #: (sender, true origin) of borrowers that are no peers: coordinated shares, as long as the machine knows them.
        self._coordinated: dict[PeerId, tuple[PeerId, PeerId]] = {}
        #: Which job each running row of a worker belongs to: the pool speaks of tasks only.
        self._running: dict[int, dict[Row, JobId]] = {}
        #: Whom each worker serves.
        self._bound: dict[int, _Bound] = {}
        #: What is fetched for open jobs, and for workers that wait for it.
        self._transfers = Transfers(supervisor)
        #: Jobs with result rows that leave in the next turn.
        self._flushing: dict[tuple[PeerId, JobId], LentJob] = {}
        self._flush_due = False
        #: Lines of the log about refused jobs that may still be written.
        self._refusals = TokenBucket(limits.TROUBLE_LINES_PER_SECOND, limits.TROUBLE_LINES_PER_SECOND, 0.0)
        self._handles = Handles(store)
        #: What was done for each origin since the start, its own jobs and shares that others coordinate together.
        self.spent: Accounts[PeerId] = Accounts(limits.ACCOUNTS_KEPT)
        #: Tasks finished since the start.
        self.tasks_done = 0
        self._machine = lend.Lend(slots, self.standings.own, reserved)
        self._pump: Pump[lend.Event, lend.Effect] = Pump(
            self._machine,
            {
                lend.Grant: self._grant,
                lend.SpawnWorker: self._spawn,
                lend.RunBatch: self._run,
                lend.CancelOnWorker: self._cancel_on_worker,
                lend.RetireWorker: self._retire,
                lend.ReturnUnrun: self._return_unrun,
                lend.RefuseJob: self._refuse_job,
                lend.Forget: self._forget_borrower,
            },
            lend.Tick(),
            clock,
        )

    def start(self, pool: Pool) -> None:
        """Use `pool`, which has been started."""
        self._pool = pool

    @property
    def pool(self) -> Pool:
        """The workers; only after `start`."""
        assert self._pool is not None, "the lender has not been started"
        return self._pool

    @property
    def load(self) -> float:
        """Tasks running or waiting here, per slot."""
        waiting = sum(len(job.arguments) for job in self._jobs.values())
        return waiting / self.slots if self.slots else 0.0

    def granted_to(self, borrower: PeerId) -> int | None:
        """Slots that a borrower was last told it has; None where it has no jobs here."""
        return self._granted.get(borrower)

    def works_for(self, peer: PeerId) -> bool:
        """Whether a job that `peer` sends is open here."""
        return any(sender == peer for sender, _ in self._jobs)

    def resize(self, slots: int) -> None:
        """So many tasks run here at a time from now on."""
        self.slots = slots
        self._pump.feed(lend.SlotsChanged(slots))

    def yield_slots(self, slots: int | None, grace_s: float, why: str) -> None:
        """Guests have so many slots at most from now on, None: all; see `lend_events.LentChanged`. `why`: a clause for who gets tasks back."""
        self._yields = why
        self._pump.feed(lend.LentChanged(slots, grace_s))

    def drain(self) -> None:
        """Give back what has not begun, and take nothing more: this peer is about to leave."""
        self._pump.feed(lend.Draining())

    def stop(self) -> None:
        """Take nothing more; the pool is stopped by the peer."""
        self._pump.stop()

    # --- what origins say ---------------------------------------------------------------------------------------------

    def message(self, channel: Channel, message: Message) -> None:
        """A message of an origin."""
        origin = channel.peer
        match message:
            case JobOpen():
                self._open(channel, message)
            case Tasks():
                self._tasks(channel, message)
            case TasksCancel():
                self._cancel(origin, JobId(message.job), message.rows)
            case TasksRecall():
                self._recall(channel, message)
            case JobClose():
                self._close(origin, JobId(message.job))

    def linked(self, channel: Channel) -> None:
        """There is a new link to a peer, perhaps in place of one over which it has jobs here."""
        for (origin, _), job in self._jobs.items():
            if origin == channel.peer:
                job.channel = self._channels[origin] = channel

    def origin_gone(self, peer: PeerId) -> None:
        """The link to an origin is down: its tasks are stopped, and those that it coordinates for others."""
        self._channels.pop(peer, None)
        borrowers = [peer, *(each for each, (sender, _) in self._coordinated.items() if sender == peer)]
        for borrower in borrowers:
            self._pump.feed(lend.OriginGone(borrower))
        for key in [key for key in self._jobs if key[0] == peer]:
            self._forget(key)
        for borrower in borrowers:
            self._forget_borrower(lend.Forget(borrower))

    def _open(self, channel: Channel, message: JobOpen) -> None:
        key = (channel.peer, JobId(message.job))
        tier = self.standings.tier_of(channel.peer, channel.roles, channel.invitation)
        if not message.delegation and tier is None:
            self._refuse(
                channel, message.job, "role", "the invitation of the submitting peer does not allow it to submit"
            )
            return
        if self.slots == 0:
            self._refuse(channel, message.job, "none-lent", "this peer lends no computing power")
            return
        share: DelegatedShare | None = None
        if message.delegation:
            share = self._delegated(channel, message)
            if share is None:
                return
            tier = self.standings.tier_of(share.origin, share.roles, share.invitation)
        assert tier is not None, "a delegation of who may not submit was refused before"
        borrower, account = (channel.peer,) * 2 if share is None else (share.borrower, share.origin)
        known = self._jobs.get(key)
        if known is not None and known.borrower != borrower:
            self._refuse(channel, message.job, "delegation", "a job of another origin is open here under this id")
            return
        if known is not None:
            if known.share is not None and share is not None:
                known.share.renew(share)
            # Offered again over a better link.
            known.channel = self._channels[channel.peer] = channel
            if known.accepted:
                self._accept(known)
            return
        if sum(1 for job in self._jobs.values() if job.account == account) >= limits.JOBS_PER_ORIGIN_MAX:
            self._refuse(
                channel, message.job, "busy", f"{limits.JOBS_PER_ORIGIN_MAX} jobs of this submitter are open here"
            )
            return
        if (
            share is not None
            and sum(1 for key in self._jobs if key[0] == channel.peer) >= limits.JOBS_PER_COORDINATOR_MAX
        ):
            self._refuse(
                channel,
                message.job,
                "busy",
                f"{limits.JOBS_PER_COORDINATOR_MAX} jobs of this coordinator are open here",
            )
            return
        self._channels[channel.peer] = channel
        if share is not None:
            self._coordinated[borrower] = (channel.peer, share.origin)
        job = self._jobs[key] = LentJob(channel, message, borrower, share, tier)
        self._transfers.start(key, _PROGRAM, f"open {format_job_id(key[1])}", self._prepare(key, job))

    def _delegated(self, channel: Channel, message: JobOpen) -> DelegatedShare | None:
        """The share that a delegation opens, after ending those that it supersedes; None where it was refused."""
        judged = self._delegations.judge(channel.peer, message)
        if isinstance(judged, Refusal):
            known = self._jobs.get((channel.peer, JobId(message.job)))
            if known is not None and known.share is not None:
                # Offered again, and not allowed any more: what runs of it ends with the refusal.
                self._close(channel.peer, JobId(message.job))
            self._refuse(channel, message.job, judged.reason, judged.text)
            return None
        for (sender, name), job in list(self._jobs.items()):
            if job.share is not None and self._delegations.is_fenced(job.share):
                self._close(sender, name)
                self._refuse(job.channel, name, FENCED.reason, FENCED.text)
        return judged

    async def _prepare(self, key: tuple[PeerId, JobId], job: LentJob) -> None:
        """Fetch the program, check what it requires, accept."""
        program = BlobId(job.open.program)
        try:
            if not self._store.hold(program, key):
                data = await job.channel.fetch(program, job.open.program_bytes)
                self._store.put(data, key, program)
            content = self._program(ProgramId(program))
            head = head_of(content)
            # Who is not allowed it learns that, rather than what else it would take.
            lack = self.standings.lack(job.tier, head, self.offers) or self.offers.lack(head)
            if lack is None:
                lack = await self._offload.run(lambda: missing_in(head, content, is_elsewhere=self.offers.is_elsewhere))
        except (ResourceError, OSError) as error:
            # Also where the link was replaced meanwhile: the origin offers the job again after a pause.
            self._given_up(key, job)
            self._refuse(job.channel, job.open.job, "busy", str(error))
            return
        except PeerError as error:
            self._given_up(key, job)
            self._refuse(job.channel, job.open.job, "bundle", f"the program cannot be read: {error}")
            return
        if lack is not None:
            self._forget(key)
            self._refuse(job.channel, job.open.job, lack.reason, lack.text, lack.module)
            return
        job.accepted = True
        self._accept(job)
        held = self.offers.isolation_of(head.engine)
        allowed = self.standings.allowance(job.account, job.tier, job.open.priority, held)
        self._pump.feed(
            lend.OriginOpened(
                job.borrower,
                key[1],
                ProgramId(program),
                allowed.priority,
                job.open.timeout_s,
                job.open.memory_bytes,
                None if job.share is None else job.share.origin,
                allowed.part_max,
            )
        )

    def _accept(self, job: LentJob) -> None:
        self._send(job.channel, JobAccept(job.open.job, self.offers.isolation))
        granted = self._granted.get(job.borrower)
        if granted is not None:
            # The machine says changes only, and an origin that lost its link has forgotten its grant.
            self._send(job.channel, Grant(granted, b"" if job.share is None else job.share.origin))

    def _given_up(self, key: tuple[PeerId, JobId], job: LentJob) -> None:
        if self._jobs.get(key) is job:
            self._forget(key)

    def _tasks(self, channel: Channel, message: Tasks) -> None:
        key = (channel.peer, JobId(message.job))
        job = self._jobs.get(key)
        if job is None or not job.accepted:
            rows = tuple((task, attempt) for task, attempt, _, _ in message.rows)
            self._unrun(channel, message.job, rows, "this job is not open here")
            return
        here: list[Row] = []
        beyond: list[Row] = []
        for task, attempt, entry, payload in message.rows:
            row = (task, attempt)
            if job.share is not None and not job.share.take(task):
                beyond.append(row)
                continue
            if payload.blob is None:
                job.arguments[row] = (entry, payload.inline)
                here.append(row)
            else:
                job.fetching.add(row)
                fetching = self._fetch_arguments(key, job, row, entry, payload)
                self._transfers.start(key, row, f"arguments of {task}", fetching)
        if beyond:
            self._unrun(channel, message.job, beyond, "its origin has delegated fewer tasks to this coordinator")
        if here:
            self._pump.feed(lend.TasksArrived(job.borrower, key[1], tuple(here)))

    async def _fetch_arguments(
        self, key: tuple[PeerId, JobId], job: LentJob, row: Row, entry: int, payload: Payload
    ) -> None:
        assert payload.blob is not None
        try:
            data = self._store.get(payload.blob)
            if data is None:
                data = await job.channel.fetch(payload.blob, payload.size_bytes)
        except (P2PComputeError, OSError) as error:
            # Also a link that was replaced by another to the same origin, which knows nothing of it.
            job.fetching.discard(row)
            self._unrun(job.channel, job.open.job, (row,), str(error))
            return
        job.fetching.discard(row)
        job.arguments[row] = (entry, data)
        self._pump.feed(lend.TasksArrived(job.borrower, key[1], (row,)))

    def _cancel(self, sender: PeerId, name: JobId, rows: Sequence[Row]) -> None:
        job = self._jobs.get((sender, name))
        if job is None:
            return
        self._fetch_no_more(job, rows)
        for row in rows:
            blob = job.result_blobs.pop(row, None)
            if blob is not None:
                self._store.release(blob, (sender, name))
        self._pump.feed(lend.CancelAsked(job.borrower, name, tuple(rows)))

    def _recall(self, channel: Channel, message: TasksRecall) -> None:
        """Give back what has not begun, also where its arguments are still on their way."""
        name = JobId(message.job)
        job = self._jobs.get((channel.peer, name))
        if job is None:
            return
        underway = tuple(row for row in dict.fromkeys(message.rows) if row in job.fetching)
        self._fetch_no_more(job, underway)
        self._unrun(channel, name, underway, "it was recalled before it had begun")
        self._pump.feed(lend.RecallAsked(job.borrower, name, message.rows))

    def _fetch_no_more(self, job: LentJob, rows: Sequence[Row]) -> None:
        for row in rows:
            if row in job.fetching:
                job.fetching.discard(row)
                self._transfers.stop((job.channel.peer, JobId(job.open.job)), row)

    def _close(self, sender: PeerId, name: JobId) -> None:
        job = self._jobs.get((sender, name))
        if job is not None:
            self._pump.feed(lend.JobClosed(job.borrower, name))
            self._forget((sender, name))

    def _forget(self, key: tuple[PeerId, JobId]) -> None:
        job = self._jobs.pop(key, None)
        self._flushing.pop(key, None)
        self._transfers.stop_all(key)
        self._store.release_all(key)
        if job is not None:
            self._supply_no_more(job)
        if job is not None and job.spent.attempts:
            used = job.spent
            self._log.info(
                "job lent to has ended",
                job=format_job_id(key[1]),
                peer=short_peer_id(job.account),
                attempts=job.spent.attempts,
                cpu_s=round(used.cpu_us / 1e6, 3),
                wall_s=round(job.spent.wall_us / 1e6, 3),
                peak_memory_bytes=used.peak_memory_bytes,
                read_bytes=used.read_bytes,
                written_bytes=used.written_bytes,
                fuel=used.fuel,
                gpu_s=round(used.gpu_us / 1e6, 3),
            )
        if job is not None and not self._has_jobs(job.borrower):
            self._handles.forget(job.borrower)
            if job.borrower not in self._granted:
                # Refused before the machine had heard of it.
                self._coordinated.pop(job.borrower, None)

    def _supply_no_more(self, ended: LentJob) -> None:
        """Workers that load the program of a job that has ended, and of no other, get nothing more; their data is fetched for nobody."""
        program = ended.open.program
        if any(job.borrower == ended.borrower and job.open.program == program for job in self._jobs.values()):
            return
        for worker, bound in self._bound.items():
            if bound.borrower == ended.borrower and bound.program == program and self._transfers.runs(worker):
                self._pump.feed(lend.WorkerUseless(worker))

    def _has_jobs(self, borrower: PeerId) -> bool:
        return any(job.borrower == borrower for job in self._jobs.values())

    # --- what the pool says -------------------------------------------------------------------------------------------

    def tasks_ended(self, worker: int, ends: Sequence[TaskEnd]) -> None:
        """Attempts have ended on a worker."""
        bound = self._bound.get(worker)
        running = self._running.get(worker, {})
        if bound is None:
            return
        rows: list[tuple[int, int, Outcome, float]] = []
        for end in ends:
            name = running.pop((end.task, end.attempt), None)
            rows.append((end.task, end.attempt, end.outcome, end.wall_us / 1e6))
            if name is None:
                continue
            self.tasks_done += 1
            self._account(bound.sender, name, end)
            self._result(bound.sender, name, end)
        self._pump.feed(lend.TasksEnded(worker, tuple(rows)))

    def _account(self, sender: PeerId, name: JobId, end: TaskEnd) -> None:
        job = self._jobs.get((sender, name))
        if job is not None:
            job.spent.add(end.outcome, end.wall_us, end.usage)
            self.spent.add(job.account, end.outcome, end.wall_us, end.usage)

    def task_news(
        self, worker: int, progress: Sequence[tuple[int, float, str]], output: Sequence[tuple[int, int, bytes]]
    ) -> None:
        """Progress and output of running tasks."""
        bound = self._bound.get(worker)
        running = {task: name for (task, _), name in self._running.get(worker, {}).items()}
        by_job: dict[JobId, tuple[list[tuple[int, float, str]], list[tuple[int, int, bytes]]]] = {}
        for news in progress:
            if news[0] in running:
                by_job.setdefault(running[news[0]], ([], []))[0].append(news)
        for printed in output:
            if printed[0] in running:
                by_job.setdefault(running[printed[0]], ([], []))[1].append(printed)
        for name, (progress_rows, output_rows) in by_job.items():
            job = self._jobs.get((bound.sender, name)) if bound is not None else None
            if job is not None:
                self._tell(job.channel, name, progress_rows, output_rows)

    def _tell(
        self,
        channel: Channel,
        name: JobId,
        progress: list[tuple[int, float, str]],
        output: list[tuple[int, int, bytes]],
    ) -> None:
        """In messages that keep the limits of rows and of a frame."""
        step = limits.BATCH_TASKS_MAX // 2
        for start in range(0, len(progress), step):
            self._send(channel, TaskNews(name, tuple(progress[start : start + step])))
        batch: list[tuple[int, int, bytes]] = []
        size = 0
        for row in output:
            if batch and (len(batch) >= limits.BATCH_TASKS_MAX or size + len(row[2]) > limits.BATCH_BYTES_MAX):
                self._send(channel, TaskNews(name, (), tuple(batch)))
                batch, size = [], 0
            batch.append(row)
            size += len(row[2])
        if batch:
            self._send(channel, TaskNews(name, (), tuple(batch)))

    def blob_wanted(self, worker: int, blob: BlobId, size_bytes: int) -> None:
        """A worker needs the data behind a handle."""
        self._transfers.start(worker, blob, f"handle {blob.hex()[:12]}", self._supply(worker, blob, size_bytes))

    async def _supply(self, worker: int, blob: BlobId, size_bytes: int) -> None:
        bound = self._bound.get(worker)
        channel = self._channels.get(bound.sender) if bound is not None else None
        data = None
        if channel is not None and bound is not None:
            borrower = bound.borrower
            try:
                data = await self._handles.fetch(channel, borrower, blob, size_bytes, lambda: self._has_jobs(borrower))
            except (P2PComputeError, OSError) as error:
                whose = short_peer_id(channel.peer)
                self._log.info("handle not found", blob=blob.hex()[:12], peer=whose, cause=str(error))
        # Always answered: the worker waits for it.
        self.pool.supply(worker, blob, data)

    def worker_ready(self, worker: int) -> None:
        """A worker has loaded its program."""
        self._pump.feed(lend.WorkerReady(worker))

    def worker_gone(self, worker: int, unfinished: Sequence[Row], cause: str, outcome: Outcome) -> None:
        """A worker process has ended; `unfinished` never ran."""
        self._running.pop(worker, None)
        self._bound.pop(worker, None)
        self._transfers.stop_all(worker)
        self._log.info("worker gone", worker=worker, cause=cause, outcome=outcome.name)
        self._pump.feed(lend.WorkerGone(worker, tuple(unfinished)))

    def program_failed(self, worker: int, reason: str, module: str, text: str) -> None:
        """The program did not load in the worker."""
        self._pump.feed(lend.ProgramFailed(worker, reason, module, text))

    # --- effects ------------------------------------------------------------------------------------------------------

    def _grant(self, effect: lend.Grant) -> None:
        sender, origin = self._coordinated.get(effect.origin, (effect.origin, b""))
        channel = self._channels.get(sender)
        if channel is not None:
            self._granted[effect.origin] = effect.slots
            self._send(channel, Grant(effect.slots, origin))

    def _forget_borrower(self, effect: lend.Forget) -> None:
        self._granted.pop(effect.origin, None)
        if not self._has_jobs(effect.origin):
            # Else one is being prepared.
            self._coordinated.pop(effect.origin, None)

    def _sender(self, borrower: PeerId) -> PeerId:
        """Over whose channel the jobs of `borrower` come."""
        found = self._coordinated.get(borrower)
        return borrower if found is None else found[0]

    def _spawn(self, effect: lend.SpawnWorker) -> None:
        try:
            program = self._program(effect.program)
            key = ProgramKey(effect.origin, effect.program)
            worker = self.pool.spawn(key, program, effect.memory_bytes, head_of(program))
        except (P2PComputeError, OSError) as error:
            self._log.warning("no worker started", peer=short_peer_id(effect.origin), cause=str(error))
            # To the machine, a worker that went before it was ready: after a few in a row it refuses the job.
            self._pump.feed(lend.WorkerSpawned(effect.token, -effect.token))
            self._pump.feed(lend.WorkerGone(-effect.token, ()))
            return
        self._bound[worker] = _Bound(self._sender(effect.origin), effect.origin, effect.program)
        self._running[worker] = {}
        self._pump.feed(lend.WorkerSpawned(effect.token, worker))

    def _run(self, effect: lend.RunBatch) -> None:
        job = self._jobs[self._sender(effect.origin), effect.job]
        running = self._running[effect.worker]
        runs = []
        for row in effect.rows:
            entry, arguments = job.arguments[row]
            running[row] = effect.job
            runs.append(TaskRun(row[0], row[1], entry, arguments, job.open.timeout_s))
        try:
            self.pool.run(effect.worker, runs)
        except UsageError:
            # It died just now; `worker_gone` follows, and what it was to run waits again.
            self._log.debug("worker is gone", worker=effect.worker)

    def _cancel_on_worker(self, effect: lend.CancelOnWorker) -> None:
        self.pool.cancel(effect.worker, effect.rows)

    def _retire(self, effect: lend.RetireWorker) -> None:
        if effect.worker > 0:  # else it never started
            self.pool.retire(effect.worker)

    def _return_unrun(self, effect: lend.ReturnUnrun) -> None:
        job = self._jobs.get((self._sender(effect.origin), effect.job))
        if job is None:
            return
        for row in effect.rows:
            job.arguments.pop(row, None)
        why = f": it {self._yields}" if self._yields else ""
        self._unrun(job.channel, effect.job, effect.rows, f"this peer has no room for it now{why}")

    def _refuse_job(self, effect: lend.RefuseJob) -> None:
        key = (self._sender(effect.origin), effect.job)
        job = self._jobs.get(key)
        if job is not None:
            self._forget(key)
            self._refuse(job.channel, effect.job, effect.reason, effect.text, effect.module)

    # --- results ------------------------------------------------------------------------------------------------------

    def _result(self, sender: PeerId, name: JobId, end: TaskEnd) -> None:
        key = (sender, name)
        job = self._jobs.get(key)
        if job is None:
            return
        job.arguments.pop((end.task, end.attempt), None)
        size = len(end.payload)
        if size > limits.INLINE_BYTES_MAX or (size > SMALL_BYTES and job.channel.is_behind):
            try:
                blob = self._store.put(end.payload, key)
                job.result_blobs[end.task, end.attempt] = blob
                payload = Payload(blob=blob, size_bytes=len(end.payload))
            except BusyError as error:
                self._unrun(job.channel, name, ((end.task, end.attempt),), str(error))
                return
        else:
            payload = Payload(inline=end.payload, size_bytes=len(end.payload))
        job.results.append(((end.task, end.attempt, end.outcome, end.wall_us, payload), end.usage))
        self._flushing[key] = job
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send what has gathered in this turn of the loop: several small results a frame."""
        self._flush_due = False
        flushing, self._flushing = self._flushing, {}
        for job in flushing.values():
            rows, job.results = job.results, []
            batch: list[tuple[ResultTuple, Usage]] = []
            size = 0
            for row in rows:
                inline = len(row[0][4].inline)
                if batch and (len(batch) >= limits.BATCH_TASKS_MAX or size + inline > limits.BATCH_BYTES_MAX):
                    self._send(job.channel, _results_of(job.open.job, batch))
                    batch, size = [], 0
                batch.append(row)
                size += inline
            if batch:
                self._send(job.channel, _results_of(job.open.job, batch))

    def _unrun(self, channel: Channel, job: bytes, rows: Sequence[Row], why: str) -> None:
        payload = Payload(inline=why.encode(), size_bytes=len(why))
        results = tuple((task, attempt, Outcome.RETURNED_UNRUN, 0, payload) for task, attempt in rows)
        for start in range(0, len(results), limits.BATCH_TASKS_MAX):
            self._send(channel, Results(job, results[start : start + limits.BATCH_TASKS_MAX]))

    def _refuse(self, channel: Channel, job: bytes, reason: str, text: str, module: str = "") -> None:
        # Who offers jobs without end would fill the log with what is said of them.
        if self._refusals.take(self._clock.monotonic()):
            self._log.info("job refused", job=format_job_id(JobId(job)), peer=short_peer_id(channel.peer), cause=text)
        self._send(channel, JobRefuse(job, reason, text[:4096], module[: limits.TEXT_CHARS_MAX]))

    def _send(self, channel: Channel, message: Message) -> None:
        try:
            channel.send(message)
        except LinkClosedError:
            self._log.debug("not sent: the link is gone", peer=short_peer_id(channel.peer))

    def _program(self, program: ProgramId) -> bytes:
        data = self._store.get(BlobId(program))
        if data is None:
            raise BlobMissingError(f"program {program.hex()[:12]} is not held here any more")
        return bytes(data)


def _results_of(job: bytes, rows: Sequence[tuple[ResultTuple, Usage]]) -> Results:
    """Result rows with what they used, where that is known of any."""
    usage = tuple(used.numbers() for _, used in rows)
    return Results(job, tuple(row for row, _ in rows), usage=usage if any(usage) else ())
