"""A peer that runs in another process of this user, used through its control socket with the same four names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

from p2pcompute.execution.values import REFUSE, Handle, PicklePolicy
from p2pcompute.jobs.submit import options_document
from p2pcompute.model import limits
from p2pcompute.model.errors import NotRunningError, P2PComputeError, UsageError
from p2pcompute.model.ids import BlobId, JobId, PeerId, parse_job_id
from p2pcompute.model.job import Aggregation, JobProgress, JobState, Outcome
from p2pcompute.net.control import ControlClient
from p2pcompute.node.job_stream import FailureInfo, JobEnd, JobRequest, JobStream, OutputRow, ResultRow
from p2pcompute.node.logs import get_log
from p2pcompute.node.program_doors import ProgramDoors
from p2pcompute.node.seams import SystemClock, SystemEntropy
from p2pcompute.node.supervise import Supervisor
from p2pcompute.node.wasm_engines import engine_by_default


class RemotePeer(ProgramDoors):
    """The running peer behind a control socket; `RemotePeer.connect(path)` makes one. Close it, or use `async with`."""

    def __init__(self, client: ControlClient, supervisor: Supervisor, pickles: PicklePolicy = REFUSE) -> None:
        super().__init__(SystemEntropy(), pickles)
        self.client = client
        self._supervisor = supervisor
        self._clock = SystemClock()
        #: Whether the running peer has said what kind of network it is in.
        self._knows_network = False
        #: Names of peers as the running peer tells them with results.
        self._names: dict[PeerId, str] = {}

    @classmethod
    async def connect(cls, path: Path, pickles: PicklePolicy = REFUSE) -> Self:
        """Connect to the peer that answers at `path`. Raises NotRunningError."""

        client = await ControlClient.connect(path)
        supervisor = Supervisor(get_log("remote"))
        await supervisor.start()
        return cls(client, supervisor, pickles)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up; jobs that were submitted here and still run are cancelled there."""
        self._close_sessions()
        await self._supervisor.stop()
        await self.client.close()

    async def ask(self, method: str, **arguments: Any) -> Any:
        """The answer to any method of `node/control_methods.py`."""
        return await self.client.call(method, **arguments)

    async def topology(self) -> dict[str, Any]:
        """Communities, key nodes, places and links of the network as the running peer sees it; see `node/topology_report.py`."""
        document: dict[str, Any] = await self.client.call("topology")
        return document

    def name_of(self, peer: PeerId) -> str:
        """What people call a peer, as far as a result from it has come."""
        return self._names.get(peer, peer.hex()[:8])

    # --- Door -----------------------------------------------------------------------------------------------------------

    async def _ready(self) -> None:
        if not self.client.is_open:
            raise NotRunningError(
                "the connection to the peer is closed: connect again, or start a peer with `p2pcompute up`"
            )
        if not self._knows_network:
            status = await self.client.call("status")
            self._engine_by_default = engine_by_default(is_open=bool(status.get("network_open")))
            self._knows_network = True

    async def _keep(self, data: bytes, blob: BlobId) -> Handle:
        await self.client.call("put", feed=_pieces(data), blob=bytes(blob), size_bytes=len(data))
        return Handle(blob, len(data))

    async def _let_go(self, handle: Handle) -> None:
        await self.client.call("drop", blob=handle.blob, size_bytes=handle.size_bytes)

    def _peer_name(self, row: ResultRow) -> str:
        return self.name_of(row.peer)

    def _open(self, request: JobRequest, inputs: AsyncIterator[Sequence[bytes]]) -> JobStream:
        if request.spec.options.balancer is not None:
            raise UsageError(
                "a balancer of your own works only in the process of the peer: use `async with Peer()`, or name a strategy"
            )
        stream = JobStream(request.spec.job, lambda: None)
        task = self._supervisor.task("job at the peer", self._run(request, inputs, stream))
        if task is None:
            raise NotRunningError("the connection to the peer is being closed")
        stream.on_cancel = lambda: _cancel(task)
        stream.on_drop = lambda index: self._drop_task(stream.job, index)
        # A task that is cancelled before its first step never says how the job ended.
        stopped = _failed(stream.job, "cancelled", "the job was cancelled", JobState.CANCELLED)
        task.add_done_callback(lambda _: stream.finish(stopped))
        return stream

    def _drop_task(self, job: JobId, index: int) -> None:
        self._supervisor.task("drop a task", self._ask_to_drop(job, index))

    async def _ask_to_drop(self, job: JobId, index: int) -> None:
        # Nothing to do where it fails: the connection is gone, and the job with it, or the job has ended.
        with contextlib.suppress(P2PComputeError):
            await self.client.call("job.drop", job=bytes(job), task=index)

    async def _run(self, request: JobRequest, inputs: AsyncIterator[Sequence[bytes]], stream: JobStream) -> None:
        spec = request.spec
        try:
            answer = await self.client.call(
                "job.submit",
                on_notice=lambda notice: self._notice(stream, notice),
                feed=_counted(inputs, stream, is_taken=spec.aggregation is Aggregation.NONE),
                job=bytes(spec.job),
                program=request.program,
                entries=list(request.entries),
                aggregation=spec.aggregation.value,
                name=spec.name,
                weights=None if request.weights is None else list(request.weights),
                expected_tasks=spec.expected_tasks,
                options=options_document(spec.options),
            )
        except P2PComputeError as error:
            stream.finish(_failed(spec.job, type(error).__name__, str(error), JobState.FAILED))
        except asyncio.CancelledError:
            stream.finish(_failed(spec.job, "cancelled", "the job was cancelled", JobState.CANCELLED))
            raise
        except Exception as error:
            # The submitter's own iterator raised; the door raises that very error.
            stream.finish(_failed(spec.job, "inputs", f"reading the inputs failed: {error}", JobState.FAILED))
        else:
            end = _end_of(answer, self._names)
            if stream.on_progress is not None:
                stream.on_progress(end.progress)
            stream.finish(end)

    async def _notice(self, stream: JobStream, notice: dict[str, Any]) -> None:
        if "results" in notice:
            rows = []
            for index, outcome, payload, peer, wall_us, name in notice["results"]:
                self._names[PeerId(peer)] = name
                rows.append(ResultRow(index, Outcome(outcome), payload, PeerId(peer), wall_us))
            stream.put(rows)
            # Not before the reader has room: this holds back the peer, which holds back its inputs.
            await stream.wait_until_read()
        elif "progress" in notice and stream.on_progress is not None:
            stream.on_progress(progress_of(notice["progress"], self._names))
        elif "output" in notice and stream.on_output is not None:
            printed = []
            for index, number, text, peer, name in notice["output"]:
                self._names[PeerId(peer)] = name
                printed.append(OutputRow(index, number, text, PeerId(peer)))
            stream.on_output(printed)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(view), limits.CHUNK_BYTES):
        yield bytes(view[start : start + limits.CHUNK_BYTES])


async def _counted(
    inputs: AsyncIterator[Sequence[bytes]], stream: JobStream, *, is_taken: bool
) -> AsyncIterator[list[bytes]]:
    """`is_taken`: single results are taken here, so that reading waits for room here, as it does at the peer."""
    while not is_taken or await stream.wait_for_room() > 0:
        batch = await anext(inputs, None)
        if batch is None:
            return
        stream.inputs_read += len(batch)
        yield list(batch)


def progress_of(document: dict[str, Any], names: dict[PeerId, str]) -> JobProgress:
    """The progress that `document` tells; names of peers are added to `names`."""
    for peer, name in document["names"].items():
        names[PeerId(bytes.fromhex(peer))] = name
    return JobProgress(
        job=parse_job_id(document["job"]),
        state=JobState(document["state"]),
        tasks_total=document["tasks_total"],
        tasks_done=document["tasks_done"],
        tasks_failed=document["tasks_failed"],
        tasks_running=document["tasks_running"],
        fraction_running=document["fraction_running"],
        retries=document["retries"],
        duplicates_dropped=document["duplicates_dropped"],
        done_by_peer=tuple((PeerId(peer), count) for peer, count in document["done_by_peer"]),
        elapsed_s=document["elapsed_s"],
        message=document["message"],
        tasks_cached=int(document.get("tasks_cached", 0)),
    )


def _end_of(answer: dict[str, Any], names: dict[PeerId, str]) -> JobEnd:
    failure = answer["failure"]
    info = None
    if failure is not None:
        outcome = failure["outcome"]
        info = FailureInfo(
            task=failure["task"],
            outcome=None if outcome is None else Outcome(outcome),
            payload=failure["payload"],
            peer=failure["peer"],
            text=failure["text"],
            history=tuple(failure["history"]),
            kind=failure["kind"],
            module=failure["module"],
        )
    progress = progress_of(answer["progress"], names)
    return JobEnd(JobState(answer["state"]), answer["result"], info, progress, tuple(answer.get("skipped", ())))


def _failed(job: JobId, kind: str, text: str, state: JobState) -> JobEnd:
    progress = JobProgress(job, state, None, 0, 0, 0, 0.0, 0, 0, (), 0.0)
    return JobEnd(state, None, FailureInfo(None, None, b"", "", text, kind=kind), progress)
