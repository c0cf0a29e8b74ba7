"""What goes to a worker of a cluster and comes back: one msgpack map each way.

Bytes rather than objects: an executor pickles them as they are, and none looks into them for what it takes for its own.

A call is a batch of tasks of one program, which may be empty: then the program is loaded, to see whether it does. `names`: digests of what
tasks have asked for behind handles, `data`: what of program and names comes along; a worker that lacks any of them answers which
(`missing`) and has run nothing. `absent`: asked for, and held by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from p2pcompute.execution.pool_types import TaskEnd, TaskRun
from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.job import Outcome
from p2pcompute.wire.codec import Converted, Many, Maybe, Raw, Real, Row, Schema, Text, Whole, pack, unpack

ID_BYTES = 16
_DIGEST = Raw(32, 32)
_VALUE = Raw(limits.VALUE_BYTES_MAX + limits.FRAME_BYTES_MAX)
_NAMES = Many(_DIGEST, limits.CLUSTER_HANDLES_MAX)
_NUMBER = Whole()
_ROW = Row((_NUMBER, _NUMBER))
#: One message: a batch with its program, or its results.
BYTES_MAX = limits.CLUSTER_CALL_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Call:
    """See the file's docstring. `call`: by which it can be stopped; `rows`: (task, attempt, entry, arguments, seconds it may take)."""

    call: Annotated[bytes, Raw(ID_BYTES, ID_BYTES)]
    origin: Annotated[bytes, _DIGEST]
    program: Annotated[bytes, _DIGEST]
    rows: Annotated[
        tuple[tuple[int, int, int, bytes, float | None], ...],
        Many(Row((_NUMBER, _NUMBER, _NUMBER, _VALUE, Maybe(Real(0.0)))), limits.BATCH_TASKS_MAX),
    ] = ()
    memory_bytes: Annotated[int | None, Maybe(_NUMBER)] = None
    names: Annotated[tuple[bytes, ...], _NAMES] = ()
    data: Annotated[tuple[tuple[bytes, bytes], ...], Many(Row((_DIGEST, _VALUE)), limits.CLUSTER_HANDLES_MAX + 1)] = ()
    absent: Annotated[tuple[bytes, ...], _NAMES] = ()

    @property
    def runs(self) -> list[TaskRun]:
        """The rows as a pool takes them."""
        return [TaskRun(*row) for row in self.rows]


@dataclass(frozen=True, slots=True)
class Failed:
    """The program does not load; as in `PoolEvents.program_failed`."""

    reason: str
    module: str
    text: str


_FAILED = Maybe(
    Converted(
        Row((Text(), Text(1024), Text(1 << 16))),
        lambda plain: Failed(*plain),
        lambda failed: (failed.reason, failed.module, failed.text),
    )
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call.

    `wanted`: (digest, bytes) of what is behind handles that a task, or the program, waits for in vain: `unfinished` rows are to be
    given again, with it. `gone`: why the process that was to run them is no more, empty where it lives.
    """

    ends: Annotated[
        tuple[tuple[int, int, int, int, bytes], ...],
        Many(Row((_NUMBER, _NUMBER, Whole(0, 255), _NUMBER, _VALUE)), limits.BATCH_TASKS_MAX),
    ] = ()
    unfinished: Annotated[tuple[tuple[int, int], ...], Many(_ROW, limits.BATCH_TASKS_MAX)] = ()
    progress: Annotated[tuple[tuple[int, float, str], ...], Many(Row((_NUMBER, Real(), Text(1 << 16))), 1 << 16)] = ()
    output: Annotated[tuple[tuple[int, int, bytes], ...], Many(Row((_NUMBER, Whole(1, 2), _VALUE)), 1 << 16)] = ()
    missing: Annotated[tuple[bytes, ...], Many(_DIGEST, limits.CLUSTER_HANDLES_MAX + 1)] = ()
    wanted: Annotated[tuple[tuple[bytes, int], ...], Many(Row((_DIGEST, _NUMBER)), limits.CLUSTER_HANDLES_MAX)] = ()
    gone: Annotated[str, Text(1 << 16)] = ""
    failed: Annotated[Failed | None, _FAILED] = None

    def task_ends(self) -> list[TaskEnd]:
        """The ends as a pool tells them. Raises ProtocolError."""
        try:
            return [
                TaskEnd(task, attempt, Outcome(outcome), us, data) for task, attempt, outcome, us, data in self.ends
            ]
        except ValueError as error:
            raise ProtocolError(f"an end of no known outcome: {error}") from error


_CALL, _ANSWER = Schema(Call), Schema(Answer)


def pack_call(call: Call) -> bytes:
    """The bytes of a call."""
    return pack(_CALL.to_fields(call))


def open_call(data: bytes) -> Call:
    """The call in `data`. Raises ProtocolError."""
    return _CALL.from_fields(unpack(data, bytes_max=BYTES_MAX))


def pack_answer(answer: Answer) -> bytes:
    """The bytes of an answer."""
    return pack(_ANSWER.to_fields(answer))


def open_answer(data: bytes) -> Answer:
    """The answer in `data`. Raises ProtocolError."""
    return _ANSWER.from_fields(unpack(data, bytes_max=BYTES_MAX))


@dataclass(frozen=True, slots=True)
class Site:
    """What a worker of a cluster says of itself."""

    python: Annotated[str, Text()]
    version: Annotated[str, Text()]
    unknown: dict[str, Any] = field(default_factory=dict)


_SITE = Schema(Site)


def pack_site(site: Site) -> bytes:
    """The bytes of a description."""
    return pack(_SITE.to_fields(site))


def open_site(data: bytes) -> Site:
    """The description in `data`. Raises ProtocolError."""
    return _SITE.from_fields(unpack(data))


def rows_of(runs: Sequence[TaskRun]) -> tuple[tuple[int, int, int, bytes, float | None], ...]:
    """The rows of a call."""
    return tuple((run.task, run.attempt, run.entry, bytes(run.arguments), run.timeout_s) for run in runs)


def data_of(found: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The `data` of a call."""
    return tuple(sorted(found.items()))
