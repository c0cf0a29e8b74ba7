"""What a submitter holds of its running job: results as they arrive, progress, output, the end.

The same shape in the process of the peer (`node/origin.py` fills it) and across the control socket (`node/remote.py` fills
it), so everything built on it works in both places. Payloads stay encoded here: only the submitter knows the
classes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, PeerId
from p2pcompute.model.job import JobProgress, JobSpec, JobState, Outcome

#: Inputs that may be on their way at a time, from the reading of an input to the taking of its result.
INPUTS_OPEN_MAX = 2 * limits.INPUTS_AHEAD


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to run. `program`: `execution.bundle.Program.data`; `entries`: its entry names, a task names one by its place.

    `weights`: one a result, for weighted aggregations, None for all 1. `keep_results`: keep single results for later readers.
    """

    spec: JobSpec
    program: bytes
    entries: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    keep_results: bool = False


@dataclass(frozen=True, slots=True)
class ResultRow:
    """The final result of one task, counted once. `payload` as documented at `wire.messages.Results`."""

    index: int
    outcome: Outcome
    payload: bytes | bytearray | memoryview
    peer: PeerId
    wall_us: int


@dataclass(frozen=True, slots=True)
class OutputRow:
    """What a task printed: `stream` 1 stdout, 2 stderr."""

    index: int
    stream: int
    text: str
    peer: PeerId


@dataclass(frozen=True, slots=True)
class FailureInfo:
    """Why a job failed. `payload`: the encoded failure where a function raised, else empty; `history`: a line an attempt."""

    task: int | None
    outcome: Outcome | None
    payload: bytes
    peer: str
    text: str
    history: tuple[str, ...] = ()
    kind: str = ""
    module: str = ""


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How the job ended. `result`: the encoded aggregate, None where results stand alone or there is none."""

    state: JobState
    result: bytes | bytearray | memoryview | None
    failure: FailureInfo | None
    progress: JobProgress
    #: Inputs that were left out because their task failed, in order.
    skipped: tuple[int, ...] = ()


@dataclass(slots=True)
class JobStream:
    """Filled by the side that runs the job, read by the side that submitted it; both on one loop."""

    job: JobId
    #: Called by the reader to cancel.
    on_cancel: Callable[[], None]
    #: Called for each change of progress, if set.
    on_progress: Callable[[JobProgress], None] | None = None
    #: Called for what tasks print, if set.
    on_output: Callable[[Sequence[OutputRow]], None] | None = None
    #: Called with results instead of keeping them in `rows`, if set.
    on_rows: Callable[[Sequence[ResultRow]], None] | None = None
    #: Called once when the job has ended, if set.
    on_end: Callable[[], None] | None = None
    #: Called by the reader to stop one task whose result is not wanted any more, if set.
    on_drop: Callable[[int], None] | None = None
    #: Called when somebody begins to listen, to be told how things stand, if set.
    on_listen: Callable[[], None] | None = None
    #: Rows that were not read yet.
    rows: list[ResultRow] = field(default_factory=list)
    #: Set once, when the job has ended.
    end: JobEnd | None = None
    #: Inputs read from the submitter so far, and results that it has taken.
    inputs_read: int = 0
    results_taken: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _room: asyncio.Event = field(default_factory=asyncio.Event)

    # --- the side that runs the job -----------------------------------------------------------------------------------

    def put(self, rows: Sequence[ResultRow]) -> None:
        """Hand over results."""
        if self.on_rows is not None:
            self.on_rows(rows)
            return
        self.rows.extend(rows)
        self._changed.set()

    def finish(self, end: JobEnd) -> None:
        """Say how it ended; nothing follows."""
        if self.end is None:
            self.end = end
            self._changed.set()
            self._room.set()
            if self.on_end is not None:
                self.on_end()

    async def wait_for_room(self) -> int:
        """How many further inputs may be read now, at least one; 0 when the job has ended."""
        while self.end is None and self.inputs_read - self.results_taken >= INPUTS_OPEN_MAX:
            self._room.clear()
            await self._room.wait()
        return 0 if self.end is not None else INPUTS_OPEN_MAX - (self.inputs_read - self.results_taken)

    async def wait_until_read(self) -> None:
        """Until the reader has taken most of what was handed over, or the job has ended."""
        while self.end is None and len(self.rows) > limits.INPUTS_AHEAD:
            self._room.clear()
            await self._room.wait()

    # --- the side that submitted it -----------------------------------------------------------------------------------

    async def batches(self) -> AsyncIterator[list[ResultRow]]:
        """Results in batches as they arrive, until the job has ended. Say `taken` for what was used."""
        while True:
            if self.rows:
                rows, self.rows = self.rows, []
                # Whoever waits until these are read must hear of it now: none of them may be `taken` before later ones come.
                self._room.set()
                yield rows
            elif self.end is not None:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def listen(
        self,
        on_progress: Callable[[JobProgress], None] | None,
        on_output: Callable[[Sequence[OutputRow]], None] | None,
    ) -> None:
        """Hear of progress, how things stand first, and of what tasks print."""
        self.on_progress, self.on_output = on_progress, on_output
        if self.on_listen is not None:
            self.on_listen()

    def taken(self, count: int) -> None:
        """The submitter has used `count` results: so many more inputs may be read."""
        self.results_taken += count
        self._room.set()

    async def ended(self) -> JobEnd:
        """How the job ended, once it has; unread rows stay readable."""
        while self.end is None:
            self._changed.clear()
            await self._changed.wait()
        return self.end

    def cancel(self) -> None:
        """Stop the job; `end` follows."""
        if self.end is None:
            self.on_cancel()

    def drop(self, index: int) -> None:
        """Stop one task; its result, if it comes all the same, is not delivered."""
        if self.end is None and self.on_drop is not None:
            self.on_drop(index)
