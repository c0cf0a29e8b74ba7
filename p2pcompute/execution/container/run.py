"""One task in one fresh container: its folder is filled, the container made, watched and killed, and what it left taken.

A container ends by itself, or is stopped: by its time, by what it wrote to disk, or because it is not wanted any more. What it had written by then
is kept in every case but the last. It is never used for a second task.

Refuses to know: queues, origins, and when what it left is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2pcompute.execution.container.engine import ContainerEngine, ContainerEngineError
from p2pcompute.execution.container.holding import Allowance, container_document, user_of
from p2pcompute.execution.container.program import ContainerProgram, ContainerTask
from p2pcompute.execution.pool_types import TaskRun
from p2pcompute.execution.sandbox.grants import GrantedFolder
from p2pcompute.execution.task_files import collect_files, folder_bytes, write_files
from p2pcompute.execution.task_result import TaskResult
from p2pcompute.execution.values import encode, encode_failure
from p2pcompute.model import limits
from p2pcompute.model.errors import CommandFailedError, P2PComputeError
from p2pcompute.model.job import Outcome
from p2pcompute.model.seams import Clock

#: How often what a task has on disk is counted, and how long counting may rest after a slow count, in lengths of that.
LOOK_S = 0.25
_LOOK_PAUSES = 25
#: How often its memory and processor are asked for.
_MEASURE_S = 1.0
#: What it wrote last, kept for the case that it fails.
_TAIL_BYTES = 16 * 1024
#: Output is read to its end for so long after a container has ended; what holds it open then is none of its processes.
_OUTPUT_PATIENCE_S = 5.0
#: What a shell answers for what was killed, and for what it did not find.
_KILLED, _NOT_FOUND = 128 + 9, 127


#: How engines say that there is no such command in the image, or that it may not be executed.
_NO_COMMAND = ("OCI runtime attempted to invoke", "exec: ", "no command specified", "No command specified")


class _NotStartedError(ContainerEngineError):
    """The program's command cannot be run in its image: its own fault, and so anywhere."""


@dataclass(slots=True)
class _Output:
    """One stream: its beginning, and its end, in bounded memory."""

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    left_out: int = 0

    def add(self, data: bytes) -> None:
        room = limits.TASK_RESULT_OUTPUT_BYTES_MAX - len(self.head)
        self.head += data[:room]
        rest = data[room:] if room < len(data) else b""
        self.tail += rest
        spare = len(self.tail) - _TAIL_BYTES
        if spare > 0:
            del self.tail[:spare]
            self.left_out += spare

    @property
    def whole(self) -> bytes:
        if not self.left_out:
            return bytes(self.head + self.tail)
        return b"%s\n... %d bytes left out ...\n%s" % (self.head, self.left_out, self.tail)

    @property
    def last(self) -> str:
        return bytes((self.head + self.tail)[-_TAIL_BYTES:]).decode("utf-8", "replace")


@dataclass(slots=True)
class Stop:
    """Why a container was killed: the first reason counts."""

    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a task ended. `payload`: as `wire.messages.Results` defines it; `cpu_us`, `memory_bytes`: used, as far as it was measured, else 0."""

    outcome: Outcome
    payload: bytes
    cpu_us: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Bench:
    """What all tasks of a worker share. `image`: the engine's id of it; `files`: those of the program; `command`: its words."""

    engine: ContainerEngine
    clock: Clock
    program: ContainerProgram
    image: str
    command: tuple[str, ...]
    files: tuple[tuple[str, bytes, bool], ...]
    allowance: Allowance
    folders: Sequence[GrantedFolder]
    instance: str


class ContainerRun:
    """A task on its way. `done` says how it ended; `stop` ends it; `left` is what has to be removed afterwards."""

    def __init__(self, bench: Bench, run: TaskRun, folder: Path, told: Callable[[int, bytes], None]) -> None:
        """`folder`: its own, not there yet; `told`: gets what it writes, as it comes: 1 stdout or 2 stderr, and bytes."""
        self._bench = bench
        self._run = run
        self.folder = folder
        self._told = told
        self._out = {1: _Output(), 2: _Output()}
        self._told_bytes = 0
        self._stop: Stop | None = None
        self._log: list[str] = []
        #: The engine's id, None until there is one.
        self.container: str | None = None
        self._cpu_us = self._memory_bytes = 0
        self._stopped = asyncio.Event()
        #: What the engine failed in while the container ran.
        self._problem: ContainerEngineError | None = None

    def stop(self, stop: Stop) -> None:
        """Kill it, for a reason that becomes its outcome."""
        if self._stop is None:
            self._stop = stop
            self._stopped.set()

    async def perform(self, task: ContainerTask, files: dict[str, bytes]) -> Ended:
        """Run it to its end. `files`: the task's own, without handles. Never raises for what the task or the engine does."""
        began = self._bench.clock.monotonic()
        try:
            status = await self._perform(task, files)
        except _NotStartedError as error:
            return self._ended(Outcome.RAISED, encode_failure(CommandFailedError(str(error), status=_NOT_FOUND)))
        except ContainerEngineError as error:
            return self._ended(Outcome.WORKER_DIED, str(error).encode())
        except P2PComputeError as error:
            return self._ended(Outcome.RAISED, encode_failure(error))
        self._note(f"ended with status {status} after {self._bench.clock.monotonic() - began:.3f} s")
        return await self._judge(status)

    async def _perform(self, task: ContainerTask, files: dict[str, bytes]) -> int:
        bench = self._bench
        await asyncio.to_thread(self._fill, files)
        document = container_document(
            bench.program,
            task,
            image=bench.image,
            command=(*bench.command, *task.arguments),
            allowance=bench.allowance,
            folder=self.folder,
            instance=bench.instance,
            name=f"{self._run.task}.{self._run.attempt}",
            info=bench.engine.info,
            folders=bench.folders,
        )
        self.container = await bench.engine.create(document)
        allowed = bench.allowance
        self._note(
            f"container {self.container[:12]} of image {bench.program.image} at {bench.engine.info.text}: {allowed.memory_bytes >> 20} MiB of memory, "
            f"{allowed.cpus:g} cores, {allowed.processes} processes, network {'granted' if 'network' in bench.program.demands.grants else 'none'}"
        )
        try:
            async with bench.engine.attached(self.container) as pieces:
                if self._stop is not None:
                    return _KILLED
                await bench.engine.start(self.container)
                return await self._watched(pieces, task.limit_s)
        except ContainerEngineError as error:
            if any(sign in str(error) for sign in _NO_COMMAND):
                raise _NotStartedError(str(error), error.status) from error
            raise

    async def _watched(self, pieces: AsyncIterator[tuple[int, bytes]], limit_s: float | None) -> int:
        """Its status, when it has ended and everything it wrote is read."""
        async with asyncio.TaskGroup() as group:
            waiter = group.create_task(self._wait())
            reader = group.create_task(self._read(pieces))
            guards = [
                group.create_task(self._obey(waiter)),
                group.create_task(self._look()),
                group.create_task(self._measure()),
            ]
            for seconds, stop in self._deadlines(limit_s):
                guards.append(group.create_task(self._end_after(seconds, stop)))
            try:
                await asyncio.wait([waiter])
                await asyncio.wait([reader], timeout=_OUTPUT_PATIENCE_S)
            finally:
                for each in (waiter, reader, *guards):
                    each.cancel()
        if self._problem is not None:
            raise self._problem
        return waiter.result()

    async def _wait(self) -> int:
        assert self.container is not None
        try:
            return await self._bench.engine.wait(self.container)
        except ContainerEngineError as error:
            self._problem = error
            return -1

    def _deadlines(self, limit_s: float | None) -> list[tuple[float, Stop]]:
        found = []
        timeout_s = self._run.timeout_s
        if limit_s is not None:
            found.append((limit_s, Stop(Outcome.RETURNED, f"it ran longer than the {limit_s:g} s that it was given")))
        if timeout_s is not None:
            text = f"ran longer than its time-out of {timeout_s:g} s; its container was killed"
            found.append((timeout_s, Stop(Outcome.TIMED_OUT, text)))
        return found

    async def _end_after(self, seconds: float, stop: Stop) -> None:
        await asyncio.sleep(seconds)
        self.stop(stop)

    async def _obey(self, waiter: asyncio.Task[int]) -> None:
        await self._stopped.wait()
        assert self.container is not None
        try:
            await self._bench.engine.kill(self.container)
            await asyncio.sleep(limits.CONTAINER_ENGINE_TIMEOUT_S)
            self._problem = ContainerEngineError(
                "the container engine has not ended a container that it killed: is it hanging?"
            )
        except ContainerEngineError as error:
            self._problem = error
        waiter.cancel()

    async def _read(self, pieces: AsyncIterator[tuple[int, bytes]]) -> None:
        # A stream that breaks says nothing about the task, whose end is told apart.
        with contextlib.suppress(ContainerEngineError):
            async for number, data in pieces:
                if number not in self._out:
                    continue
                self._out[number].add(data)
                room = limits.TASK_OUTPUT_BYTES_MAX - self._told_bytes
                if room > 0:
                    self._told(number, data[:room])
                    if len(data) > room:
                        self._told(2, b"\n(further output is not passed on; the result holds it)\n")
                    self._told_bytes += len(data)

    async def _look(self) -> None:
        """Stop it when its folder holds more than it may: nothing else bounds what is written to a shared folder."""
        bytes_max, clock = self._bench.allowance.scratch_bytes, self._bench.clock
        pause_s = LOOK_S
        while True:
            await asyncio.sleep(pause_s)
            began = clock.monotonic()
            used, entries = await asyncio.to_thread(folder_bytes, self.folder, _ENTRIES_MAX)
            if used > bytes_max or entries > _ENTRIES_MAX:
                what = f"{used >> 20} MiB" if used > bytes_max else f"more than {_ENTRIES_MAX} files"
                text = f"wrote {what} to its folder where {bytes_max >> 20} MiB in {_ENTRIES_MAX} files are allowed; its container was killed"
                self.stop(Stop(Outcome.RAISED, text))
                return
            pause_s = max(LOOK_S, (clock.monotonic() - began) * _LOOK_PAUSES)

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(_MEASURE_S)
            with contextlib.suppress(ContainerEngineError):
                assert self.container is not None
                cpu_us, memory_bytes = await self._bench.engine.usage(self.container)
                self._cpu_us = max(self._cpu_us, cpu_us)
                self._memory_bytes = max(self._memory_bytes, memory_bytes)

    # --- before and after -----------------------------------------------------------------------------------------------

    def _fill(self, files: dict[str, bytes]) -> None:
        """Make its folder with everything in it, its user's own. In a thread."""
        user, group = user_of(self._bench.engine.info)
        self.folder.mkdir(mode=0o700)
        write_files(self.folder, {path: data for path, data, runs in self._bench.files if not runs})
        write_files(self.folder, {path: data for path, data, runs in self._bench.files if runs}, mode=0o755)
        write_files(self.folder, files)
        outputs = self.folder.joinpath(*self._bench.program.outputs.split("/"))
        outputs.mkdir(parents=True, exist_ok=True)
        _give(self.folder, user, group)

    async def _judge(self, status: int) -> Ended:
        stop, program = self._stop, self._bench.program
        if stop is not None and stop.outcome is Outcome.CANCELLED:
            return self._ended(stop.outcome, stop.text.encode())
        if stop is None and status != 0:
            assert self.container is not None
            with contextlib.suppress(ContainerEngineError):
                state = await self._bench.engine.state(self.container)
                # podman says so of some, and of the others only that they were killed, which nobody else does.
                if state.get("OOMKilled") or (status == _KILLED and self._bench.engine.info.name == "podman"):
                    text = (
                        f"used more than the {self._bench.allowance.memory_bytes >> 20} MiB of memory that it may; "
                        f"its container was killed\n{self._out[2].last[-2000:]}"
                    )
                    return self._ended(Outcome.OUT_OF_MEMORY, text.encode())
        if stop is not None and stop.outcome is Outcome.TIMED_OUT:
            return self._ended(stop.outcome, stop.text.encode())
        if stop is not None and stop.outcome is Outcome.RAISED:
            return self._ended(stop.outcome, encode_failure(self._failure(stop.text, status)))
        if stop is None and status != 0 and program.checks:
            said = (self._out[2].last or self._out[1].last).rstrip()[-2000:]
            text = f"the container of image {program.image} ended with status {status}" + (f":\n{said}" if said else "")
            return self._ended(Outcome.RAISED, encode_failure(self._failure(text, status)))
        return await asyncio.to_thread(self._result, status)

    def _failure(self, text: str, status: int) -> CommandFailedError:
        return CommandFailedError(text, status=status, stdout=self._out[1].last, stderr=self._out[2].last)

    def _result(self, status: int) -> Ended:
        """In a thread: reads the files."""
        taken = collect_files(self.folder, self._bench.program.outputs)
        self._note(f"took {len(taken.files)} files, {taken.bytes_total} bytes")
        if self._memory_bytes:
            self._note(
                f"used {self._cpu_us / 1e6:.3f} s of processor time and up to {self._memory_bytes >> 20} MiB of memory"
            )
        result = TaskResult(
            status=status,
            stdout=self._out[1].whole,
            stderr=self._out[2].whole,
            files=taken.files,
            stopped=self._stop.text if self._stop is not None else "",
            log="".join(f"{line}\n" for line in self._log),
            left_out=tuple(taken.left_out),
        )
        return self._ended(Outcome.RETURNED, encode(result.plain()))

    def _ended(self, outcome: Outcome, payload: bytes) -> Ended:
        return Ended(outcome, payload, self._cpu_us, self._memory_bytes)

    def _note(self, text: str) -> None:
        at = datetime.datetime.fromtimestamp(self._bench.clock.wall(), datetime.UTC)
        self._log.append(f"{at.isoformat(timespec='milliseconds')} {text}")


#: Files and folders that a task may have in its folder: a source tree with its packages has ten thousand.
_ENTRIES_MAX = 100_000


def _give(folder: Path, user: int, group: int) -> None:
    """Make `user` the owner of a folder that was just filled, where this process may; it owns it already where it may not."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or user == 0:
        return
    for place, _, names in os.walk(folder):
        os.chown(place, user, group)
        for name in names:
            os.chown(os.path.join(place, name), user, group, follow_symlinks=False)


def remove_folder(folder: Path) -> None:
    """Remove what a task left, also folders whose rights it took away."""
    for place, folders, _ in os.walk(folder):
        for path in (os.path.join(place, name) for name in folders):
            # What a link points at is none of the task's.
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
