"""One worker as its peer sees it: what it was given, what it has said, how it must end.

Pure bookkeeping over a channel: serials, the tasks in the worker's hands, who is to blame when it dies. Refuses to know: processes
(`launcher.py`) and time-outs (`pool.py`).
"""

from __future__ import annotations

import array
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.pool_channel import FrameChannel
from p2pcompute.execution.pool_types import ProgramKey, TaskEnd, TaskRun
from p2pcompute.execution.worker_output import STDERR, STDOUT, dropped_note
from p2pcompute.model import limits
from p2pcompute.model.ids import BLOB_ID_BYTES, BlobId
from p2pcompute.model.job import NO_USAGE, Outcome, Usage

if sys.platform != "win32":
    import fcntl
    import termios

#: A pipe that holds so much is not being read: the smallest pipe of any system, less one page.
_FULL_BYTES = 60 * 1024

#: What a worker may say of a task; the rest the pool says. (A dict, for an Enum called is ten times slower.) That a call took longer than its
#: program allows, an engine that can interrupt it says.
_OUTCOMES = {
    int(each): each
    for each in (Outcome.RETURNED, Outcome.RAISED, Outcome.OUT_OF_MEMORY, Outcome.UNSHIPPABLE, Outcome.TIMED_OUT)
}

OutputRows = list[tuple[int, int, bytes]]
ProgressRows = list[tuple[int, float, str]]


@dataclass(frozen=True, slots=True)
class Sentence:
    """Why the pool kills a worker. `serial`: the task to blame, 0 for none; `text`: for people."""

    serial: int
    outcome: Outcome
    text: str


class PoolWorker:
    """The peer's side of one worker."""

    def __init__(
        self,
        *,
        number: int,
        key: ProgramKey,
        folder: Path | None,
        page: protocol.StatePage,
        outputs: tuple[int, int],
        lifeline: int,
        memory_bytes: int | None,
        started_at: float,
    ) -> None:
        self.number = number
        self.key = key
        self.folder = folder
        self.page = page
        self.memory_bytes = memory_bytes
        self.started_at = started_at
        self.channel: FrameChannel | None = None
        self.pid: int | None = None
        self.ready = False
        self.tasks_done = 0
        #: Since when the program loads, without the time that others took to bring data behind its handles.
        self.loading_since = started_at
        #: The blob that it waits for.
        self.wanted: BlobId | None = None
        #: Set once: the pool has decided that this worker ends, and why.
        self.sentence: Sentence | None = None
        #: Tasks in the worker's hands by serial, in the order of serials; `_held` were never sent.
        self.pending: dict[int, TaskRun] = {}
        self._held: dict[int, TaskRun] = {}
        self._next_serial = 1
        #: Serials taken back, which the worker may nevertheless begin before it reads that.
        self.cancelled: set[int] = set()
        #: True when nothing more is sent: the worker has done its share and is replaced when it is idle.
        self.worn = False
        #: Read ends of its output, and the write end of the pipe by which it knows that we live.
        self._outputs = {STDOUT: outputs[0], STDERR: outputs[1]}
        self._lifeline = lifeline
        #: How often the worker had read its own output when we last looked.
        self._drains_seen = 0
        #: Output of the newest task that printed, however it came.
        self._printing_serial = 0
        self._printed_bytes = 0

    # giving

    def give(self, batch: Sequence[TaskRun]) -> None:
        """Queue tasks; they are sent at once unless the worker is worn."""
        if self.worn or self.sentence is not None or self.channel is None:
            for run in batch:
                self._held[self._serial()] = run
            return
        rows: list[tuple[int, bytes | bytearray | memoryview]] = []
        rows_bytes = 0
        first = self._next_serial
        for run in batch:
            serial = self._serial()
            self.pending[serial] = run
            size = len(run.arguments)
            if size > protocol.TAIL_BYTES_MIN or rows_bytes + size > protocol.ROWS_BYTES_MAX:
                if rows:
                    self.channel.send((protocol.RUN, first, rows))
                rows, rows_bytes, first = [], 0, serial
            if size > protocol.TAIL_BYTES_MIN:
                self.channel.send((protocol.RUN_LARGE, serial, run.entry), run.arguments)
                first = serial + 1
            else:
                rows.append((run.entry, run.arguments))
                rows_bytes += size
        if rows:
            self.channel.send((protocol.RUN, first, rows))

    def _serial(self) -> int:
        serial = self._next_serial
        self._next_serial += 1
        return serial

    def cancel(self, tasks: Collection[tuple[int, int]]) -> tuple[list[TaskEnd], int]:
        """Take tasks back: their ends, and the serial of one that runs (then the process must be killed), else 0."""
        wanted = set(tasks)
        ends = []
        for serial, run in list(self._held.items()):
            if (run.task, run.attempt) in wanted:
                del self._held[serial]
                ends.append(end_of(run, Outcome.CANCELLED, b"cancelled before it began"))
        serials = [serial for serial, run in self.pending.items() if (run.task, run.attempt) in wanted]
        if not serials:
            return ends, 0
        self.cancelled.update(serials)
        self.page.note_cancel()
        if self.channel is not None:
            self.channel.send((protocol.CANCEL, serials))
        # After the note: a worker that began one before it saw the note shows it on the page now or soon.
        running, _ = self.page.running()
        if running not in serials:
            running = 0
        taken = [self.pending.pop(serial) for serial in serials if serial != running]
        ends.extend(end_of(run, Outcome.CANCELLED, b"cancelled before it began") for run in taken)
        return ends, running

    @property
    def idle(self) -> bool:
        """Whether it has nothing in hand."""
        return not self.pending

    def running(self) -> tuple[TaskRun | None, int, float]:
        """(the task that runs, its serial, monotonic seconds when it began); (None, serial or 0, …) else."""
        serial, since = self.page.running()
        return self.pending.get(serial), serial, since

    # hearing

    def take_ends(self, rows: Sequence[Any]) -> list[TaskEnd]:
        """Ends as the worker reports them; those of cancelled tasks, and repeated ones, are dropped. Raises MalformedFrameError."""
        ends = []
        for row in rows:
            try:
                serial, code, wall_us, payload = row[:4]
                usage = NO_USAGE if len(row) == 4 else usage_of(*row[4:])
                outcome = _OUTCOMES[code]
                if type(payload) is not bytes or type(wall_us) is not int or wall_us < 0:
                    raise TypeError("a payload that is no bytes, or a time that is none")
                run = self.pending.pop(serial, None)
                if run is not None:
                    ends.append(TaskEnd(run.task, run.attempt, outcome, wall_us, payload, usage))
                    self.tasks_done += 1
            except (TypeError, ValueError, KeyError) as error:
                raise protocol.MalformedFrameError(f"an end that is none: {error}") from error
        if rows and self.cancelled:
            self.cancelled = {each for each in self.cancelled if each > rows[-1][0]}
        return ends

    def take_news(self, progress: Sequence[Any], output: Sequence[Any]) -> tuple[ProgressRows, OutputRows]:
        """News by task instead of serial; news of unknown tasks is dropped. Raises MalformedFrameError."""
        try:
            heard: ProgressRows = []
            for serial, fraction, message in progress:
                run = self.pending.get(serial)
                if run is not None:
                    heard.append((run.task, min(max(float(fraction), -1.0), 1.0), str(message)[:1024]))
            printed: OutputRows = []
            for serial, stream, data in output:
                run = self.pending.get(serial)
                if type(data) is not bytes or stream not in self._outputs:
                    raise TypeError("output that is none")
                if run is not None:
                    self._room_for(serial, len(data))
                    printed.append((run.task, stream, data[: limits.TASK_OUTPUT_BYTES_MAX]))
        except (TypeError, ValueError) as error:
            raise protocol.MalformedFrameError(f"news that is none: {error}") from error
        return heard, printed

    def take_want(self, blob: bytes, size_bytes: int) -> BlobId:
        """It waits for a blob from now on. Raises MalformedFrameError."""
        if self.wanted is not None or len(blob) != BLOB_ID_BYTES or not 0 <= size_bytes <= limits.VALUE_BYTES_MAX:
            raise protocol.MalformedFrameError("a wish for a blob that no worker has")
        self.wanted = BlobId(blob)
        return self.wanted

    def supply(self, blob: BlobId, data: bytes | bytearray | memoryview | None, now: float) -> None:
        """Answer a wish; what is not wished for any more is dropped."""
        if self.wanted != blob or self.channel is None:
            return
        self.wanted = None
        self.loading_since = now
        self.channel.send((protocol.BLOB, blob, -1 if data is None else len(data)), data or b"")

    def rescue_output(self, *, only_full: bool) -> OutputRows:
        """Read the worker's pipes from here: after its death, or (`only_full`) where one is full and the worker
        has not read since we last looked."""
        run, serial, _ = self.running()
        rows: OutputRows = []
        dropped = 0
        drains = self.page.drains
        for stream, descriptor in self._outputs.items():
            if only_full and (drains != self._drains_seen or not _is_full(descriptor)):
                continue
            data = _read_available(descriptor)
            room = self._room_for(serial, len(data))
            dropped += max(len(data) - room, 0)
            if run is not None and data[:room]:
                rows.append((run.task, stream, data[:room]))
        self._drains_seen = drains
        if dropped and run is not None and not only_full:
            rows.append((run.task, STDERR, dropped_note(dropped)))
        return rows

    def _room_for(self, serial: int, size: int) -> int:
        """How much of the next `size` bytes of output may pass."""
        if serial != self._printing_serial:
            self._printing_serial, self._printed_bytes = serial, 0
        room = max(limits.TASK_OUTPUT_BYTES_MAX - self._printed_bytes, 0)
        self._printed_bytes += size
        return room

    # ending

    def blamed(self, died_text: str, now: float) -> TaskEnd | None:
        """The end of the one task that this worker's death is the failure of, taken out of `pending`.

        A sentence names it. Without one the worker died by itself: of the task that ran, or, between two tasks, of the
        first in hand, so that a task which kills its worker in the background does not go round for ever. A worker that was never
        ready has run nothing.
        """
        run, serial, since = self.running()
        if self.sentence is not None:
            blamed = self.pending.pop(self.sentence.serial, None)
            if blamed is None:
                return None
            return end_of(blamed, self.sentence.outcome, self.sentence.text.encode(), now - since)
        if run is None:
            since = now
            serial = next(iter(self.pending), 0) if self.ready else 0
        run = self.pending.pop(serial, None)
        return None if run is None else end_of(run, Outcome.WORKER_DIED, died_text.encode(), now - since)

    def due(self, now: float, start_timeout_s: float, inspect_s: float) -> Sentence | float | None:
        """Why it must be killed now; else after how many seconds to look again, at most `inspect_s`; None while it is idle."""
        run, serial, since = self.running()
        if not self.ready:
            if self.wanted is not None:
                return inspect_s
            left_s = self.loading_since + start_timeout_s - now
            text = f"the worker was not ready within {start_timeout_s:g} s of its start"
            return left_s if left_s > 0 else Sentence(0, Outcome.WORKER_DIED, text)
        if serial in self.cancelled:
            return Sentence(0, Outcome.CANCELLED, "a cancelled task had just begun; its process was killed")
        if run is not None and run.timeout_s is not None:
            left_s = since + run.timeout_s - now
            text = f"ran longer than its time-out of {run.timeout_s:g} s; its process was killed"
            return min(left_s, inspect_s) if left_s > 0 else Sentence(serial, Outcome.TIMED_OUT, text)
        if self.idle and serial == 0:
            self.cancelled.clear()  # it is past them
            return None
        first = next(iter(self.pending.values()), None)
        return inspect_s if first is None or first.timeout_s is None else min(first.timeout_s, inspect_s)

    def unfinished(self) -> list[tuple[int, int]]:
        """What is left in hand, in order."""
        return [(run.task, run.attempt) for run in (*self.pending.values(), *self._held.values())]

    def close(self) -> None:
        """Let go of every descriptor."""
        if self.channel is not None:
            self.channel.close()
        self.page.close()
        for descriptor in (*self._outputs.values(), self._lifeline):
            os.close(descriptor)


def usage_of(numbers: object) -> Usage:
    """What a worker says that a task used. Raises TypeError, ValueError."""
    if type(numbers) is not list or not all(type(each) is int and 0 <= each <= limits.USAGE_MAX for each in numbers):
        raise TypeError("a usage that is none")
    return Usage(*numbers)


def end_of(run: TaskRun, outcome: Outcome, payload: bytes, wall_s: float = 0.0) -> TaskEnd:
    """An end that the pool, not the worker, declares."""
    return TaskEnd(run.task, run.attempt, outcome, max(int(wall_s * 1e6), 0), payload)


def _is_full(descriptor: int) -> bool:
    available = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, available)
    return available[0] >= _FULL_BYTES


def _read_available(descriptor: int) -> bytes:
    pieces = []
    for _ in range(16):
        try:
            piece = os.read(descriptor, 64 * 1024)
        except BlockingIOError:
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)
