"""The four names by which Python uses the network: submit, map, map_reduce, put.

`Door` turns functions into programs and values into payloads, opens a job stream, and turns what comes back into the caller's own
classes and exceptions. `Peer` opens streams in its own process, `RemotePeer` through the control socket of a running peer.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from p2pcompute.execution.bundle import Program
from p2pcompute.execution.values import REFUSE, Handle, PicklePolicy, decode, encode
from p2pcompute.jobs.submit import check_options, options_of
from p2pcompute.model import limits
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import NotSerializableError, TaskTimeoutError, UsageError
from p2pcompute.model.ids import JOB_ID_BYTES, BlobId, JobId, ProgramId, format_job_id
from p2pcompute.model.job import Aggregation, JobOptions, JobProgress, JobSpec, OnError, Outcome
from p2pcompute.model.placement import Coordination
from p2pcompute.model.seams import Entropy
from p2pcompute.node.failures import job_error, task_error
from p2pcompute.node.job_stream import JobRequest, JobStream, OutputRow, ResultRow
from p2pcompute.node.programs import Encoder, Programs, encoder_for, options_for
from p2pcompute.node.session import Session
from p2pcompute.node.wasm_module import WasmModule, limits_of
from p2pcompute.storage.blobs import blob_id_of

T = TypeVar("T")

#: Inputs encoded in one turn of the loop.
ENCODE_AT_ONCE = 256
ENCODE_BYTES_AT_ONCE = 1 << 20
#: Sessions kept open for `submit`, least recently used closed first.
SESSIONS_MAX = limits.JOBS_PER_ORIGIN_MAX // 2  # the other seats at a lender are for jobs

Inputs = Iterable[Any] | AsyncIterable[Any]


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The answer of an aggregated job and how it came about. `skipped`: inputs left out because their task failed."""

    value: Any
    progress: JobProgress
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reading:
    """Where a failing input, or a failing iterator, is noted so that the caller gets its own exception."""

    errors: list[BaseException] = field(default_factory=list)


class Door(abc.ABC):
    """Functions in, values out. Subclasses say how a job stream is opened."""

    def __init__(self, entropy: Entropy, pickles: PicklePolicy = REFUSE) -> None:
        self._entropy = entropy
        self._pickles = pickles
        self._programs = Programs()
        #: What runs Python functions where nothing was said; `_ready` makes sure that it is right.
        self._engine_by_default = Engine.PYTHON
        #: Open sessions by program and options, least recently used first.
        self._sessions: dict[tuple[ProgramId, JobOptions], Session] = {}

    # --- what subclasses give -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _open(self, request: JobRequest, inputs: AsyncIterator[Sequence[bytes]]) -> JobStream:
        """Start a job."""

    @abc.abstractmethod
    async def _keep(self, data: bytes, blob: BlobId) -> Handle:
        """Hold `data`, whose digest is `blob`, until `_let_go`. Raises BusyError."""

    @abc.abstractmethod
    async def _let_go(self, handle: Handle) -> None:
        """Take back one `_keep`."""

    @abc.abstractmethod
    async def _ready(self) -> None:
        """Wait until jobs may be opened. Raises NotRunningError."""

    # --- submit ---------------------------------------------------------------------------------------------------------

    async def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """`function(*args, **kwargs)`, computed by whichever peer is best; its exception is raised here.

        Raises CannotShipError, NotSerializableError before anything is sent; TaskTimeoutError, WorkerDiedError,
        MissingModuleError, NoWorkersError for what happens there. Cancelling the call stops the task.
        """
        return await self.call(function, args, kwargs)  # type: ignore[no-any-return]

    async def call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        options: JobOptions | None = None,
    ) -> Any:
        """`submit` with options."""
        await self._ready()
        chosen = options_for(function, options or JobOptions(), self._engine_by_default)
        program = self._programs.of({"call": function}, chosen)
        payload = encoder_for(function, program, chosen)(args, kwargs or {})
        return await self._call(program, _name_of(function), payload, chosen)

    async def _call(self, program: Program, name: str, payload: bytes, options: JobOptions) -> Any:
        """One call of the first entry of `program`. `payload`: its encoded arguments."""
        # A session outlives its calls: one that fails must not end the others.
        limit_s = options.job_timeout_s
        chosen = dataclasses.replace(
            options,
            on_error=OnError.SKIP,
            job_timeout_s=None,
            # Whoever calls waits for this one call: a hop more would only delay it.
            coordination=Coordination.OFF,
        )
        session = self._session(program, name, chosen)
        try:
            async with asyncio.timeout(limit_s):
                row = await session.run(payload)
        except TimeoutError as error:
            if isinstance(error, TaskTimeoutError):
                raise
            text = f"the call took longer than its time-out of {limit_s:g} s and was stopped"
            raise TaskTimeoutError(text, format_job_id(session.job)) from error
        if row.outcome is Outcome.RETURNED:
            return await self._decode(row, program)
        raise task_error(row, session.job, session.peer_name(row), program.classes, self._pickles)

    def _session(self, program: Program, name: str, options: JobOptions) -> Session:
        key = (program.id, options)
        session = self._sessions.pop(key, None)
        if session is None or session.closed:
            spec = self._spec(program, name, Aggregation.NONE, options, None)
            session = Session(
                lambda inputs: self._open(JobRequest(spec, program.data, program.entries), inputs), self._peer_name
            )
        self._sessions[key] = session
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.pop(next(iter(self._sessions))).close()
        return session

    # --- map ------------------------------------------------------------------------------------------------------------

    async def map(
        self,
        function: Callable[[Any], T],
        inputs: Inputs,
        *,
        ordered: bool = True,
        options: JobOptions | None = None,
        on_progress: Callable[[JobProgress], None] | None = None,
        on_output: Callable[[Sequence[OutputRow]], None] | None = None,
        name: str | None = None,
        **named_options: Any,
    ) -> AsyncIterator[T]:
        """`function(x)` for each x of `inputs`, which may be endless: results in the order of inputs, or as they come.

        Leaving the loop early cancels what runs. With `on_error="skip"` failed inputs are left out. Bounded memory: inputs are
        read only a few thousand ahead of the results that were taken.
        """
        await self._ready()
        chosen = options_for(function, options_given(options, named_options), self._engine_by_default)
        program = self._programs.of({"map": function}, chosen)
        values = self._map(
            program,
            name or _name_of(function),
            inputs,
            chosen,
            _of_one(encoder_for(function, program, chosen)),
            ordered=ordered,
            on_progress=on_progress,
            on_output=on_output,
        )
        async with contextlib.aclosing(values):
            async for value in values:
                yield value

    async def _map(
        self,
        program: Program,
        name: str,
        inputs: Inputs,
        options: JobOptions,
        encoded: Callable[[Any], bytes],
        *,
        ordered: bool,
        on_progress: Callable[[JobProgress], None] | None,
        on_output: Callable[[Sequence[OutputRow]], None] | None,
    ) -> AsyncGenerator[Any]:
        """The first entry of `program` for each input; `encoded`: the payload of one."""
        reading = _Reading()
        spec = self._spec(program, name, Aggregation.NONE, options, inputs)
        stream = self._open(JobRequest(spec, program.data, program.entries), self._payloads(inputs, encoded, reading))
        stream.listen(_guarded(on_progress, stream, reading), _guarded(on_output, stream, reading))
        waiting: dict[int, ResultRow] = {}
        following = 0
        try:
            async for batch in stream.batches():
                for row in batch:
                    waiting[row.index] = row
                ready = [] if ordered else list(waiting)
                while ordered and following in waiting:
                    ready.append(following)
                    following += 1
                for index in ready:
                    row = waiting.pop(index)
                    stream.taken(1)
                    if row.outcome is Outcome.RETURNED:
                        yield await self._decode(row, program)
            end = await stream.ended()
            if reading.errors:
                raise reading.errors[0]
            if end.failure is not None:
                raise job_error(end, program.classes, self._pickles)
        finally:
            stream.cancel()

    # --- aggregated -----------------------------------------------------------------------------------------------------

    async def map_reduce(
        self,
        function: Callable[[Any], Any],
        reduce: Callable[[list[Any]], Any] | None,
        inputs: Inputs,
        *,
        aggregation: Aggregation | str = Aggregation.REDUCE,
        weights: Sequence[float] | None = None,
        options: JobOptions | None = None,
        on_progress: Callable[[JobProgress], None] | None = None,
        on_output: Callable[[Sequence[OutputRow]], None] | None = None,
        name: str | None = None,
        **named_options: Any,
    ) -> JobOutcome:
        """`function` over `inputs`, merged into one value.

        REDUCE calls `reduce(values)` on a few neighbouring results at a time until one is left, so it must be associative; CUSTOM calls
        `reduce(values, weights)` once; SUM, AVERAGE, MAX, MIN and CONCAT need no function. Only `function` and `reduce` run, and
        only in workers.
        """
        await self._ready()
        chosen = options_for(function, options_given(options, named_options), self._engine_by_default)
        kind = Aggregation.parse(aggregation)
        needs_function = kind in (Aggregation.REDUCE, Aggregation.CUSTOM)
        if needs_function and reduce is None:
            raise UsageError(f"aggregation {kind.value!r} needs a function that merges values: give reduce=…")
        if not needs_function and reduce is not None:
            raise UsageError(
                f"aggregation {kind.value!r} takes no function: leave reduce out, or use aggregation='reduce'"
            )
        entries: dict[str, Callable[..., Any]] = {"map": function}
        if reduce is not None:
            entries["reduce"] = reduce
        program = self._programs.of(entries, chosen)
        encoder = encoder_for(function, program, chosen)
        reading = _Reading()
        spec = self._spec(program, name or _name_of(function), kind, chosen, inputs)
        given = tuple(float(weight) for weight in weights) if weights is not None else None
        if given is not None and spec.expected_tasks is not None and len(given) != spec.expected_tasks:
            raise UsageError(f"{len(given)} weights for {spec.expected_tasks} inputs: give one weight an input")
        stream = self._open(
            JobRequest(spec, program.data, program.entries, given), self._payloads(inputs, _of_one(encoder), reading)
        )
        stream.listen(_guarded(on_progress, stream, reading), _guarded(on_output, stream, reading))
        values: dict[int, Any] = {}
        skipped: list[int] = []
        try:
            async for batch in stream.batches():
                for row in batch:
                    stream.taken(1)
                    if row.outcome is Outcome.RETURNED:
                        values[row.index] = await self._decode(row, program)
                    else:
                        skipped.append(row.index)
            end = await stream.ended()
        finally:
            stream.cancel()
        if reading.errors:
            raise reading.errors[0]
        if end.failure is not None:
            raise job_error(end, program.classes, self._pickles)
        if end.result is None:
            return JobOutcome([values[index] for index in sorted(values)], end.progress, tuple(sorted(skipped)))
        value = decode(end.result, classes=program.classes, pickles=self._pickles)
        return JobOutcome(value, end.progress, end.skipped)

    # --- put ------------------------------------------------------------------------------------------------------------

    async def put(self, value: Any) -> Handle:
        """Keep `value` for tasks; the handle stands for it in arguments, closures and globals of what is submitted.

        The function sees the value itself. It travels once to each peer that needs it, and is decoded once in each worker: tasks share
        it, so they must not change it. It is held until `drop`, or until the peer or connection that put it is closed.
        Raises NotSerializableError; BusyError where there is no room.
        """
        await self._ready()
        # In a thread: what is put is large, or it would be an ordinary argument.
        data, blob = await asyncio.to_thread(_named, value)
        return await self._keep(data, blob)

    async def drop(self, handle: Handle) -> None:
        """Let go of what `put` keeps. Tasks that still ask for it fail, so wait for their jobs first."""
        await self._ready()
        await self._let_go(handle)

    # --- WebAssembly ----------------------------------------------------------------------------------------------------

    def wasm(self, module: bytes | str, *, takes_bytes: tuple[str, ...] = (), **allowed: Any) -> WasmModule:
        """The exports of a WebAssembly module, given as bytes or as its text (WAT), as functions that peers run.

        `takes_bytes`: names of those that get and give bytes (docs/wasm.md). `allowed`: what one call may use, `fuel` (units of work),
        `memory_bytes`, `timeout_s`. Raises CannotShipError where the module imports anything or cannot be read.
        """
        return WasmModule(module, self.submit, limits_of(allowed), takes_bytes)

    # --- inner ----------------------------------------------------------------------------------------------------------

    def _spec(self, program: Program, name: str, aggregation: Aggregation, options: JobOptions, inputs: Any) -> JobSpec:
        check_options(options)
        return JobSpec(
            job=JobId(self._entropy.bytes(JOB_ID_BYTES)),
            name=name,
            program=program.id,
            map_entry=program.entries[0],
            aggregation=aggregation,
            reduce_entry=program.entries[1] if len(program.entries) > 1 else None,
            options=options,
            expected_tasks=len(inputs) if hasattr(inputs, "__len__") else None,
        )

    async def _payloads(
        self, inputs: Inputs, encoded: Callable[[Any], bytes], reading: _Reading
    ) -> AsyncIterator[Sequence[bytes]]:
        """The encoded arguments of each input, in batches; a plain iterable is read in turns that let the loop breathe."""
        try:
            if isinstance(inputs, AsyncIterable):
                async for value in inputs:
                    yield [encoded(value)]
                return
            iterator = iter(inputs)
            loop = asyncio.get_running_loop()
            while True:
                batch: list[bytes] = []
                size = 0
                stop_at = loop.time() + 0.005
                for value in itertools.islice(iterator, ENCODE_AT_ONCE):
                    batch.append(encoded(value))
                    size += len(batch[-1])
                    if loop.time() > stop_at or size > ENCODE_BYTES_AT_ONCE:
                        break
                if not batch:
                    return
                yield batch
                await asyncio.sleep(0)
        except Exception as error:
            reading.errors.append(error)
            raise

    async def _decode(self, row: ResultRow, program: Program) -> Any:
        return decode(row.payload, classes=program.classes, pickles=self._pickles)

    def _peer_name(self, row: ResultRow) -> str:
        return ""

    def _close_sessions(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()


def _named(value: Any) -> tuple[bytes, BlobId]:
    data = encode(value)
    if len(data) > limits.VALUE_BYTES_MAX:
        raise NotSerializableError(
            f"the value has {len(data)} bytes, one may have {limits.VALUE_BYTES_MAX}: put it in parts"
        )
    return data, blob_id_of(data)


def _guarded(callback: Callable[[T], None] | None, stream: JobStream, reading: _Reading) -> Callable[[T], None] | None:
    """`callback`, whose error ends the job and reaches the caller instead of whoever brought the news."""
    if callback is None:
        return None

    def call(news: T) -> None:
        if reading.errors:
            return
        try:
            callback(news)
        except Exception as error:
            reading.errors.append(error)
            stream.cancel()

    return call


def _of_one(encoder: Encoder) -> Callable[[Any], bytes]:
    """The payload of one positional argument."""
    return lambda value: encoder((value,), {})


def _name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))[: limits.TEXT_CHARS_MAX]


def options_named(named: Mapping[str, object]) -> JobOptions:
    """Options from names and values, which may be text. Raises UnknownNameError, UsageError."""
    return options_of(named)


def options_given(options: JobOptions | None, named: dict[str, Any]) -> JobOptions:
    """The options of a call that takes them whole or by name. Raises UsageError for both at once, and what `options_of` does."""
    if options is not None and named:
        raise UsageError(f"give options=… or single options ({', '.join(sorted(named))}), not both")
    return options if options is not None else options_of(named)
