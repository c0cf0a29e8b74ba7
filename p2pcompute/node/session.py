"""A job that stays open for calls that come one at a time: what makes `submit` a round trip instead of a new job.

Opening a job asks every peer; a session does it once per function and options and then only adds tasks. It closes itself
after `IDLE_S` without a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from p2pcompute.model.errors import JobCancelledError
from p2pcompute.model.ids import JobId
from p2pcompute.node.failures import job_error
from p2pcompute.node.job_stream import JobStream, ResultRow

#: A session without calls for so long lets its workers go.
IDLE_S = 30.0
#: Calls handed over at once.
BATCH = 512


class Session:
    """One open job; `run` adds a task and waits for its result."""

    def __init__(
        self,
        open_stream: Callable[[AsyncIterator[Sequence[bytes]]], JobStream],
        peer_name: Callable[[ResultRow], str],
    ) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        #: Futures of calls that have no result, by task number.
        self._futures: dict[int, asyncio.Future[ResultRow]] = {}
        self._next = 0
        #: Whether no further calls are taken.
        self.closed = False
        self._stream = open_stream(self._inputs())
        self._stream.on_rows = self._rows
        self._stream.on_end = self._ended
        self.peer_name = peer_name
        if self._stream.end is not None:
            self.closed = True  # it ended as it was opened, before anybody listened
        self._idle: asyncio.TimerHandle | None = None

    @property
    def job(self) -> JobId:
        """The job behind this session."""
        return self._stream.job

    async def run(self, payload: bytes) -> ResultRow:
        """Add one task and wait for its final result. Raises JobError when the job as a whole ends."""
        if self.closed:
            end = self._stream.end
            if end is not None and end.failure is not None:
                raise job_error(end)
            raise JobCancelledError("this peer is stopping")
        self._rest()
        index = self._next
        self._next += 1
        future: asyncio.Future[ResultRow] = asyncio.get_running_loop().create_future()
        self._futures[index] = future
        self._queue.put_nowait(payload)
        try:
            return await future
        except asyncio.CancelledError:
            self._stream.drop(index)
            raise
        finally:
            self._futures.pop(index, None)
            self._rest()

    def close(self) -> None:
        """Take no more calls; those that run are finished."""
        if not self.closed:
            self.closed = True
            self._queue.put_nowait(None)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _rest(self) -> None:
        """Start or stop the timer that closes an idle session."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self._futures and not self.closed:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.close)

    async def _inputs(self) -> AsyncIterator[Sequence[bytes]]:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            calls = [payload for payload in batch if payload is not None]
            if calls:
                yield calls
            if len(calls) < len(batch):
                return

    def _rows(self, rows: Sequence[ResultRow]) -> None:
        self._stream.taken(len(rows))
        for row in rows:
            future = self._futures.get(row.index)
            if future is not None and not future.done():
                future.set_result(row)

    def _ended(self) -> None:
        self.closed = True
        end = self._stream.end
        assert end is not None
        for future in self._futures.values():
            if not future.done():
                future.set_exception(
                    job_error(end) if end.failure is not None else JobCancelledError("the session was closed")
                )
