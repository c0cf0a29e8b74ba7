"""What this peer has learned from the jobs submitted here: windows, the database behind them, the core of smart_adaptive.

One `Records` for each peer. At its start the newest records are read back off the loop; while it runs, what attempts come to goes into
sums (`jobs/recording.py`), from there into windows and the adaptive core, and in batches to the database off the loop. The regression
behind smart_adaptive is loaded off the loop when the first job asks for it; until then, or without the extra, means are learned.

A disk that is full costs what would have been written, never a job. Refuses to know payloads and channels.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from p2pcompute.jobs.performance import PerformanceBook
from p2pcompute.jobs.plan import Candidate
from p2pcompute.jobs.recording import Recording
from p2pcompute.jobs.strategies import ADAPTIVE, FACTORIES, Registry, Situation
from p2pcompute.jobs.strategies.adaptive import Shared
from p2pcompute.jobs.strategies.smart_adaptive import Learner, SmartAdaptive
from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError, UsageError
from p2pcompute.model.ids import JobId, PeerId
from p2pcompute.model.job import JobOptions, JobSpec
from p2pcompute.model.performance import FunctionKey, PerformanceRecord, Summary
from p2pcompute.model.seams import Clock, Offload, Rng
from p2pcompute.node.learner import load_learner
from p2pcompute.storage.performance import DatedRecord, PerformanceDatabase

FILE = "performance.db"
#: How often what has ended is looked at, and written down, while anything ends.
WRITE_INTERVAL_S = 1.0
#: Records learned from in one turn of the loop: 40 µs each.
AT_ONCE = 100

#: What a strategy sees of a job and a peer now; None where either is gone.
Seen = Callable[[JobId, PeerId], tuple[Candidate, Situation] | None]


class Records:
    """See the module; `Records.open` makes one, `run` is its service, `close` ends it."""

    def __init__(
        self,
        database: PerformanceDatabase,
        clock: Clock,
        rng: Rng,
        offload: Offload,
        log: FilteringBoundLogger,
        make_learner: Callable[[], Learner] = load_learner,
    ) -> None:
        self._database = database
        self._clock = clock
        self._rng = rng
        self._offload = offload
        self._log = log
        self._make_learner = make_learner
        #: How peers did in the last hour.
        self.book = PerformanceBook()
        #: The adaptive strategy of all jobs here.
        self.shared = Shared(SmartAdaptive(rng, book=self.book), self._hour)
        #: Makes the strategies of jobs.
        self.registry = Registry({**FACTORIES, ADAPTIVE: self.shared.strategy_of})
        #: Whether a job has asked for the learner.
        self._asked = False
        #: Knows the machine's view; the origin sets it.
        self.seen: Seen = lambda job, peer: None
        #: Jobs with something to tell, and the mean size of their arguments.
        self._open: dict[JobId, tuple[Recording, Callable[[], int]]] = {}
        #: Records that are not written yet, oldest first; what is beyond the bound is lost.
        self._pending: deque[DatedRecord] = deque(maxlen=limits.PERFORMANCE_PENDING_MAX)
        #: Records since the database was read for a new core; None while none is made.
        self._late: list[PerformanceRecord] | None = None
        #: Names of functions for people, the last used last; at most `limits.PERFORMANCE_FUNCTIONS_MAX`.
        self._names: dict[FunctionKey, str] = {}
        #: Held while the database is written or read: what was taken out of `_pending` is in it afterwards.
        self._writing = asyncio.Lock()
        #: Set when there is something to tell or to write.
        self._dirty = asyncio.Event()
        #: Whether the last batch could not be written: that is said once.
        self._failing = False
        #: Whether the file is closed, or about to be.
        self._closed = False

    @classmethod
    async def open(
        cls,
        folder: Path,
        clock: Clock,
        rng: Rng,
        offload: Offload,
        log: FilteringBoundLogger,
        make_learner: Callable[[], Learner] = load_learner,
    ) -> Records:
        """Open the database in `folder` and remember what is new in it. Raises CorruptFileError, ResourceError."""
        database = await offload.run(lambda: PerformanceDatabase.open(folder / FILE))
        records = cls(database, clock, rng, offload, log, make_learner)
        try:
            await offload.run(records._remember)
        except BaseException:
            database.close()
            raise
        return records

    def _remember(self) -> None:
        now, wall_s = self._clock.monotonic(), self._clock.wall()
        known = self._database.recent(limits.PERFORMANCE_REPLAYED)
        # By age: a clock that was set back in between must not make yesterday's records new.
        for each in known:
            age_s = wall_s - each.ended_s
            if 0 <= age_s < self.book.window_s:
                self.book.observe(each.record, now - age_s)
            self.shared.core.observe(each.record)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def begin(self, spec: JobSpec) -> Recording:
        """A job starts: where its attempts are to be told."""
        recording = Recording(spec, self._clock.monotonic(), is_prompt=is_adaptive(spec.options))
        for function, name in zip(recording.functions, (spec.name, f"{spec.name} (reduce)"), strict=True):
            self._names.pop(function, None)
            self._names[function] = name
        while len(self._names) > limits.PERFORMANCE_FUNCTIONS_MAX:
            del self._names[next(iter(self._names))]
        return recording

    def wants_learner(self, options: JobOptions) -> bool:
        """Whether `load` should be run for a job with these options; true once."""
        if self._asked or not is_adaptive(options):
            return False
        self._asked = True
        return True

    def told(self, job: JobId, recording: Recording, input_bytes: Callable[[], int]) -> None:
        """`recording` has something new; `input_bytes`: mean size of its arguments."""
        if recording.is_due(now := self._clock.monotonic()):
            self._tell(job, recording, input_bytes, now)
        else:
            self._open[job] = (recording, input_bytes)
            self._dirty.set()

    def ended(self, job: JobId, recording: Recording, input_bytes: Callable[[], int]) -> None:
        """The job has ended: whatever is left is told now."""
        if not recording.is_empty:
            self._tell(job, recording, input_bytes, self._clock.monotonic())

    def _tell(self, job: JobId, recording: Recording, input_bytes: Callable[[], int], now: float) -> None:
        self._open.pop(job, None)

        def row_of(peer: PeerId) -> tuple[float, ...]:
            seen = self.seen(job, peer)
            return () if seen is None else self.shared.row(*seen)

        for record in recording.take(now, input_bytes(), row_of):
            self._keep(record, now)

    def _keep(self, record: PerformanceRecord, now: float) -> None:
        self.book.observe(record, now)
        self.shared.core.observe(record)
        if self._late is not None:
            self._late.append(record)
        self._pending.append(DatedRecord(self._clock.wall(), record))
        self._dirty.set()

    # --- for people ---------------------------------------------------------------------------------------------------

    def of_peer(self, peer: PeerId) -> tuple[Summary | None, tuple[tuple[str, Summary], ...]]:
        """How a peer did in the last hour with all functions, and with each, by name; functions of the hour only."""
        now = self._clock.monotonic()
        whole = self.book.of_peer(peer, now)
        each = [(self.name_of(function), summary) for function, summary in self.book.functions_of(peer, now)]
        return whole, tuple(sorted(each, key=lambda row: row[0]))

    def name_of(self, function: FunctionKey) -> str:
        """What people call a function: the name of the last job that ran it; its entry and program where that is not known."""
        return self._names.get(function) or f"{function.name} of {function.program.hex()[:8]}"

    # --- the learner --------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Load the regression, let it learn what is known, and put it in the place of the means; say so where it is missing."""
        try:
            learner = await self._offload.run(self._make_learner)
        except UsageError as error:
            self._log.warning("smart_adaptive learns means only", cause=str(error))
            return
        late: list[PerformanceRecord] = []
        try:
            async with self._writing:
                if self._closed:
                    return
                # From here on: what is pending now is written before the database is read.
                self._late = late
                await self._write_pending()
                known = await self._offload.run(self._known)
                core = await self._offload.run(lambda: core_of(self._rng, learner, self.book, known))
            while late:
                for record in late[:AT_ONCE]:
                    core.observe(record)
                del late[:AT_ONCE]
                await asyncio.sleep(0)
        finally:
            self._late = None
        self.shared.core = core
        self._log.info("smart_adaptive has its regression", records=len(known))

    def _known(self) -> list[PerformanceRecord]:
        try:
            return [each.record for each in self._database.recent(limits.PERFORMANCE_REPLAYED)]
        except P2PComputeError as error:
            self._log.warning("records cannot be read: smart_adaptive begins anew", cause=str(error))
            return []

    def _hour(self) -> float:
        at = time.localtime(self._clock.wall())
        return at.tm_hour + at.tm_min / 60

    # --- the database -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tell what is due and write it down, as long as anything ends."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(WRITE_INTERVAL_S)
            self._dirty.clear()
            for job, (recording, input_bytes) in list(self._open.items()):
                now = self._clock.monotonic()
                if recording.is_due(now):
                    self._tell(job, recording, input_bytes, now)
                    await asyncio.sleep(0)
            await self.write()
            if self._open:
                self._dirty.set()

    async def write(self) -> None:
        """Write down what is known."""
        async with self._writing:
            await self._write_pending()

    async def _write_pending(self) -> None:
        if not self._pending or self._closed:
            return
        rows = list(self._pending)
        self._pending.clear()
        wall_s = self._clock.wall()
        try:
            await self._offload.run(lambda: self._database.add(rows, wall_s))
        except P2PComputeError as error:
            if not self._failing:
                self._log.warning("records of performance are lost", cause=str(error), records=len(rows))
            self._failing = True
        else:
            self._failing = False

    async def close(self) -> None:
        """Write down what there is and close the file; a second call does nothing."""
        for job, (recording, input_bytes) in list(self._open.items()):
            self.ended(job, recording, input_bytes)
        async with self._writing:
            if not self._closed:
                await self._write_pending()
            self._closed = True
            await self._offload.run(self._database.close)


def is_adaptive(options: JobOptions) -> bool:
    """Whether smart_adaptive may place such a job."""
    return options.balancer is None and not {ADAPTIVE, "dynamic"}.isdisjoint(
        (options.strategy, options.fallback_strategy)
    )


def core_of(rng: Rng, learner: Learner, book: PerformanceBook, known: Sequence[PerformanceRecord]) -> SmartAdaptive:
    """A core that has learned what is known. Up to 40 µs a record: off the loop."""
    core = SmartAdaptive(rng, learner=learner, book=book)
    for record in known:
        core.observe(record)
    return core
