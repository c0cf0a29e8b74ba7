"""Every message that crosses a link, with its limits; `docs/protocol.md` is generated from this file.

A message is a frame whose payload is msgpack: [kind, fields]. Kinds are never used twice: a kind that is withdrawn keeps its
number. Gossip has its messages in `gossip.py`; `families.py` says what may cross what. The classes say who sends them and what follows; the machines that send and receive them decide when.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import BLOB_ID_BYTES, JOB_ID_BYTES, NETWORK_ID_BYTES, PEER_ID_BYTES
from p2pcompute.model.job import NO_USAGE, Outcome, Payload, Usage
from p2pcompute.model.peer import Isolation
from p2pcompute.wire.codec import (
    Check,
    Converted,
    Many,
    Maybe,
    Plain,
    Raw,
    Real,
    Row,
    Text,
    Truth,
    Whole,
)
from p2pcompute.wire.record import isolation_of

_JOB = Raw(JOB_ID_BYTES, JOB_ID_BYTES)
_BLOB = Raw(BLOB_ID_BYTES, BLOB_ID_BYTES)
_PEER = Raw(PEER_ID_BYTES, PEER_ID_BYTES)
_TASK = Whole(0, 1 << 62)
_ATTEMPT = Whole(0, 1_000_000)
_OUTCOME = Converted(Whole(0, 255), Outcome, int)


def _peer_or_nobody(peer: bytes) -> bytes:
    if len(peer) not in (0, PEER_ID_BYTES):
        raise ValueError(f"a peer's id has {PEER_ID_BYTES} bytes")
    return peer


class _PayloadCheck(Check):
    """Bytes for a payload that travels inside, [id, size] for one that is fetched as a blob."""

    def load(self, value: Any) -> Payload:
        if type(value) is bytes:
            if len(value) > limits.FRAME_BYTES_MAX:
                raise ProtocolError(f"{len(value)} payload bytes inside a message")
            return Payload(inline=value, size_bytes=len(value))
        if (
            type(value) is list
            and len(value) == 2
            and type(value[0]) is bytes
            and len(value[0]) == BLOB_ID_BYTES
            and type(value[1]) is int
            and 0 <= value[1] <= limits.VALUE_BYTES_MAX
        ):
            return Payload(blob=value[0], size_bytes=value[1])  # type: ignore[arg-type]
        raise ProtocolError("expected payload bytes, or the id and size of a blob")

    def dump(self, value: Payload) -> Any:
        return value.inline if value.blob is None else [value.blob, value.size_bytes]


PAYLOAD = _PayloadCheck()


class Message:
    """What `Link.send` takes. `kind`: the number on the wire."""

    kind: ClassVar[int]
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """First message of both sides, before anything else is believed.

    `invitations`: DER certificates, the one that issued the sender's leaf first, then its issuers below the owner (an invitation
    by an admin has one). `record`: the sender's signed record. `instance`: new at each start, so that a restart is noticed.
    `clock_ms`: what the sender's wall clock shows, 0 where it does not say.
    """

    kind: ClassVar[int] = 1
    newest: Annotated[int, Whole(1, 1_000_000)]
    oldest: Annotated[int, Whole(1, 1_000_000)]
    network: Annotated[bytes, Raw(NETWORK_ID_BYTES, NETWORK_ID_BYTES)]
    invitations: Annotated[tuple[bytes, ...], Many(Raw(limits.CERTIFICATE_BYTES_MAX), 2)]
    record: Annotated[bytes, Raw(limits.RECORD_BYTES_MAX)]
    agent: Annotated[str, Text()]
    instance: Annotated[bytes, Raw(16, 8)]
    clock_ms: Annotated[int, Whole()] = 0
    unknown: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goodbye(Message):
    """The sender closes the link and says why: `reason` for programs, `text` for people."""

    kind: ClassVar[int] = 2
    reason: Annotated[str, Text(64)]
    text: Annotated[str, Text(1024)] = ""


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Asks for a Pong with the same number; measures the round trip and keeps the link alive."""

    kind: ClassVar[int] = 3
    nonce: Annotated[int, Whole()]


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The answer to Ping. `held_us`: how long the receiver kept it, in microseconds."""

    kind: ClassVar[int] = 4
    nonce: Annotated[int, Whole()]
    held_us: Annotated[int, Whole()] = 0


# --- membership -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Records(Message):
    """Signed records of any peers, newest known to the sender. A receiver passes on what was new to it."""

    kind: ClassVar[int] = 10
    records: Annotated[tuple[bytes, ...], Many(Raw(limits.RECORD_BYTES_MAX), limits.RECORDS_PER_MESSAGE_MAX)]


@dataclass(frozen=True, slots=True)
class Revocations(Message):
    """The owner's signed list of revoked invitations and peers."""

    kind: ClassVar[int] = 11
    signed: Annotated[bytes, Raw(limits.FRAME_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Renewals(Message):
    """Invitations signed again by the owner: DER certificates over the same keys with a later end."""

    kind: ClassVar[int] = 12
    invitations: Annotated[tuple[bytes, ...], Many(Raw(limits.CERTIFICATE_BYTES_MAX), 64)]


@dataclass(frozen=True, slots=True)
class SuspectQuery(Message):
    """Asks linked peers whether they still hear `peer`; answered by SuspectAnswer."""

    kind: ClassVar[int] = 13
    peer: Annotated[bytes, Raw(32, 32)]


@dataclass(frozen=True, slots=True)
class SuspectAnswer(Message):
    """`heard_s`: seconds since the sender last heard `peer` over its own link; None: it has no link to it."""

    kind: ClassVar[int] = 14
    peer: Annotated[bytes, Raw(32, 32)]
    heard_s: Annotated[float | None, Maybe(Real(0, 1e9))]


# --- jobs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobOpen(Message):
    """Origin to lender: may I send tasks of this job? Answered by JobAccept or JobRefuse.

    The lender fetches the program (a blob) before it accepts. `delegation`: where the sender only coordinates, what the true origin
    signed for it (`delegation.py`); `job` is the share then. Without one the sender is the origin.
    """

    kind: ClassVar[int] = 20
    job: Annotated[bytes, _JOB]
    program: Annotated[bytes, _BLOB]
    program_bytes: Annotated[int, Whole(0, limits.PROGRAM_BYTES_MAX)]
    name: Annotated[str, Text()]
    priority: Annotated[int, Whole(0, 9)]
    timeout_s: Annotated[float | None, Maybe(Real(0, 1e9))] = None
    memory_bytes: Annotated[int | None, Maybe(Whole(0, 1 << 60))] = None
    epoch: Annotated[int, Whole()] = 0
    delegation: Annotated[bytes, Raw(limits.DELEGATION_BYTES_MAX)] = b""
    unknown: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobAccept(Message):
    """Lender to origin: the program is here and loads; credit follows in Grant."""

    kind: ClassVar[int] = 21
    job: Annotated[bytes, _JOB]
    isolation: Annotated[Isolation, Converted(Text(32), isolation_of, str)] = Isolation.PROCESS


@dataclass(frozen=True, slots=True)
class JobRefuse(Message):
    """Lender to origin: not here, or not any more. `module`: the one that is missing.

    `reason`: "role", "module", "bundle", "executable" (a command's is missing), "busy", "none-lent", "engine", "isolation" and "grant" (the
    program demands what this peer does not offer), "tier" (the submitter may not have it run here); to a coordinator also "delegation" (what the origin signed does not
    hold, or not for this) and "fenced" (the origin has given the work to another coordinator since).
    """

    kind: ClassVar[int] = 22
    job: Annotated[bytes, _JOB]
    reason: Annotated[str, Text(32)]
    text: Annotated[str, Text(4096)]
    module: Annotated[str, Text()] = ""


@dataclass(frozen=True, slots=True)
class Grant(Message):
    """Lender to origin: so many slots are yours now, over all your jobs. Replaces the grant before.

    `origin`: to a coordinator, whose shares alone these slots are for: the id of their true origin. Empty: they are for the
    receiver's own jobs.
    """

    kind: ClassVar[int] = 23
    slots: Annotated[int, Whole(0, 1 << 20)]
    origin: Annotated[bytes, Converted(Raw(PEER_ID_BYTES), _peer_or_nobody, bytes)] = b""


@dataclass(frozen=True, slots=True)
class Tasks(Message):
    """Origin to lender: rows of (task, attempt, entry number, arguments)."""

    kind: ClassVar[int] = 24
    job: Annotated[bytes, _JOB]
    rows: Annotated[
        tuple[tuple[int, int, int, Payload], ...],
        Many(Row((_TASK, _ATTEMPT, Whole(0, 255), PAYLOAD)), limits.BATCH_TASKS_MAX),
    ]


@dataclass(frozen=True, slots=True)
class Results(Message):
    """Lender to origin: rows of (task, attempt, outcome, wall microseconds, payload).

    The payload is the encoded result for RETURNED, the encoded failure (`execution/values.py`) for RAISED and
    UNSHIPPABLE, and a UTF-8 sentence for every other outcome; empty for MERGED. A coordinator says in `peers` where rows were
    computed, and in `by` which of these each row is of, by place; empty where it is the lender itself. `usage`: of each row what it used, the
    first fields of `model.job.Usage`; empty where nothing is known of any row.
    """

    kind: ClassVar[int] = 25
    job: Annotated[bytes, _JOB]
    rows: Annotated[
        tuple[tuple[int, int, Outcome, int, Payload], ...],
        Many(Row((_TASK, _ATTEMPT, _OUTCOME, Whole(), PAYLOAD)), limits.BATCH_TASKS_MAX),
    ]
    peers: Annotated[tuple[bytes, ...], Many(_PEER, limits.SHARE_MEMBERS_MAX)] = ()
    by: Annotated[tuple[int, ...], Many(Whole(0, limits.SHARE_MEMBERS_MAX), limits.BATCH_TASKS_MAX)] = ()
    usage: Annotated[
        tuple[tuple[int, ...], ...], Many(Many(Whole(0, limits.USAGE_MAX), len(fields(Usage))), limits.BATCH_TASKS_MAX)
    ] = ()

    def usage_of(self, place: int) -> Usage:
        """What the row at `place` used, by its sender's word."""
        return Usage(*self.usage[place]) if place < len(self.usage) else NO_USAGE


@dataclass(frozen=True, slots=True)
class TasksCancel(Message):
    """Origin to lender: these attempts are not wanted any more; running code is stopped."""

    kind: ClassVar[int] = 26
    job: Annotated[bytes, _JOB]
    rows: Annotated[tuple[tuple[int, int], ...], Many(Row((_TASK, _ATTEMPT)), limits.DECODE_ITEMS_MAX)]


@dataclass(frozen=True, slots=True)
class TasksRecall(Message):
    """Origin to lender: give these attempts back if they have not begun. Answered at once by Results, as RETURNED_UNRUN, of
    those that had not; the others go on. A lender that does not know the message runs all of them.
    """

    kind: ClassVar[int] = 29
    job: Annotated[bytes, _JOB]
    rows: Annotated[tuple[tuple[int, int], ...], Many(Row((_TASK, _ATTEMPT)), limits.BATCH_TASKS_MAX)]


@dataclass(frozen=True, slots=True)
class JobClose(Message):
    """Origin to lender: the job has ended; stop what runs, drop what waits, forget results."""

    kind: ClassVar[int] = 27
    job: Annotated[bytes, _JOB]


@dataclass(frozen=True, slots=True)
class TaskNews(Message):
    """Lender to origin while tasks run: progress rows (task, fraction or -1, message), output rows (task, 1 or 2, bytes)."""

    kind: ClassVar[int] = 28
    job: Annotated[bytes, _JOB]
    progress: Annotated[
        tuple[tuple[int, float, str], ...], Many(Row((_TASK, Real(-1, 1), Text(1024))), limits.BATCH_TASKS_MAX)
    ] = ()
    output: Annotated[
        tuple[tuple[int, int, bytes], ...],
        Many(Row((_TASK, Whole(1, 2), Raw(limits.TASK_OUTPUT_BYTES_MAX))), limits.BATCH_TASKS_MAX),
    ] = ()


# --- coordination -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShareOpen(Message):
    """Origin to coordinator: dispatch a share of my job among `members`, as a job of its own. Answered by JobAccept or JobRefuse; what
    follows both ways is as between origin and lender, with `share` for the job, and CommunityGrant and Partial beside.

    `aggregation`: how results may be merged here, "none" where each must come by itself. `options`: those of the job that matter to
    the dispatch machine, as documents have them. `delegation`: signed, for the members (`wire/delegation.py`). `shared`: what all tasks
    need, to be fetched from the origin before the share is accepted, so that nobody's slots wait for it.
    """

    kind: ClassVar[int] = 30
    share: Annotated[bytes, _JOB]
    program: Annotated[bytes, _BLOB]
    program_bytes: Annotated[int, Whole(0, limits.PROGRAM_BYTES_MAX)]
    name: Annotated[str, Text()]
    aggregation: Annotated[str, Text(32)]
    members: Annotated[tuple[bytes, ...], Many(_PEER, limits.SHARE_MEMBERS_MAX)]
    options: Annotated[dict[str, Any], Plain()] = field(default_factory=dict)
    delegation: Annotated[bytes, Raw(limits.DELEGATION_BYTES_MAX)] = b""
    shared: Annotated[tuple[bytes, ...], Many(_BLOB, limits.SHARE_BLOBS_MAX)] = ()
    unknown: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CommunityGrant(Message):
    """Coordinator to origin: so many slots of the community are yours now, over all your shares here. Replaces the grant before;
    said again while a share has work that sends no results, so that silence means something."""

    kind: ClassVar[int] = 31
    slots: Annotated[int, Whole(0, 1 << 20)]


@dataclass(frozen=True, slots=True)
class Partial(Message):
    """Coordinator to origin: what these tasks came to, merged: rows of (first task, how many neighbours, attempt of all of them).

    The payload is encoded: for a reduction rows of [number of the merged value in the tree, value], else the aggregator's
    partial. `workers`: (peer, how many of the tasks it ran).
    """

    kind: ClassVar[int] = 32
    job: Annotated[bytes, _JOB]
    number: Annotated[int, Whole(0, 1 << 32)]
    rows: Annotated[
        tuple[tuple[int, int, int], ...],
        Many(Row((_TASK, Whole(1, limits.PARTIAL_TASKS_MAX), _ATTEMPT)), limits.BATCH_TASKS_MAX),
    ]
    payload: Annotated[Payload, PAYLOAD]
    workers: Annotated[
        tuple[tuple[bytes, int], ...], Many(Row((_PEER, Whole(0, limits.PARTIAL_TASKS_MAX))), limits.SHARE_MEMBERS_MAX)
    ] = ()


# --- blobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlobWant(Message):
    """Send me this blob on the stream that I name; answered by chunks on the stream, or BlobMissing."""

    kind: ClassVar[int] = 40
    blob: Annotated[bytes, _BLOB]
    stream: Annotated[int, Whole(1, (1 << 32) - 1)]


@dataclass(frozen=True, slots=True)
class BlobMissing(Message):
    """I do not hold it (any more)."""

    kind: ClassVar[int] = 41
    stream: Annotated[int, Whole(1, (1 << 32) - 1)]


@dataclass(frozen=True, slots=True)
class EchoWant(Message):
    """Send me so many bytes of noise on the stream that I name: measures throughput."""

    kind: ClassVar[int] = 42
    stream: Annotated[int, Whole(1, (1 << 32) - 1)]
    size_bytes: Annotated[int, Whole(0, 8 << 20)]


# --- control socket ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call(Message):
    """Client to peer, over the control socket: do `method` with `arguments`; answered by Notices, then Answer or Fault."""

    kind: ClassVar[int] = 60
    call: Annotated[int, Whole()]
    method: Annotated[str, Text(64)]
    arguments: Annotated[dict[str, Any], Plain()]


@dataclass(frozen=True, slots=True)
class Feed(Message):
    """Client to peer: more input for an open call (inputs of a job); `end`: this was the last."""

    kind: ClassVar[int] = 61
    call: Annotated[int, Whole()]
    value: Annotated[Any, Plain()]
    end: Annotated[bool, Truth()] = False


@dataclass(frozen=True, slots=True)
class Notice(Message):
    """Peer to client: something on the way to the answer, such as progress or single results."""

    kind: ClassVar[int] = 62
    call: Annotated[int, Whole()]
    value: Annotated[Any, Plain()]


@dataclass(frozen=True, slots=True)
class Answer(Message):
    """Peer to client: the value of the call."""

    kind: ClassVar[int] = 63
    call: Annotated[int, Whole()]
    value: Annotated[Any, Plain()]


@dataclass(frozen=True, slots=True)
class Fault(Message):
    """Peer to client: the call failed. `error`: class name from `model/errors.py`; `attributes`: its plain attributes."""

    kind: ClassVar[int] = 64
    call: Annotated[int, Whole()]
    error: Annotated[str, Text(64)]
    text: Annotated[str, Text(limits.TRACEBACK_CHARS_MAX)]
    attributes: Annotated[dict[str, Any], Plain()] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hangup(Message):
    """Client to peer: the answer to this call is not wanted any more; the peer cancels it."""

    kind: ClassVar[int] = 65
    call: Annotated[int, Whole()]
