"""From what came back to the exception that the submitter sees.

A function's own exception is raised as itself where its class is the caller's own or Python's, with the remote traceback as
its cause; everything else becomes an error of our tree.
"""

from __future__ import annotations

from p2pcompute.execution.values import REFUSE, ClassResolver, Failure, PicklePolicy, decode_failure
from p2pcompute.model import errors
from p2pcompute.model.errors import (
    JobCancelledError,
    JobError,
    MissingModuleError,
    P2PComputeError,
    TaskFailedError,
    TaskTimeoutError,
    WorkerDiedError,
)
from p2pcompute.model.ids import JobId, format_job_id
from p2pcompute.model.job import JobState, Outcome
from p2pcompute.node.job_stream import FailureInfo, JobEnd, ResultRow


def task_error(
    row: ResultRow,
    job: JobId,
    peer: str,
    classes: ClassResolver | None = None,
    pickles: PicklePolicy = REFUSE,
) -> BaseException:
    """The exception for one task that did not return."""
    encoded = row.outcome in (Outcome.RAISED, Outcome.UNSHIPPABLE)
    text = "" if encoded else bytes(row.payload).decode("utf-8", "replace")
    info = FailureInfo(row.index, row.outcome, bytes(row.payload) if encoded else b"", peer, text)
    return failure_error(info, job, classes, pickles)


def job_error(end: JobEnd, classes: ClassResolver | None = None, pickles: PicklePolicy = REFUSE) -> BaseException:
    """The exception for a job that did not succeed."""
    assert end.failure is not None
    if end.state is JobState.CANCELLED:
        return JobCancelledError("the job was cancelled", format_job_id(end.progress.job))
    return failure_error(end.failure, end.progress.job, classes, pickles)


def failure_error(
    info: FailureInfo, job: JobId, classes: ClassResolver | None = None, pickles: PicklePolicy = REFUSE
) -> BaseException:
    """The exception that `info` means."""
    name = format_job_id(job)
    where = f" at peer {info.peer}" if info.peer else ""
    if info.payload:
        failure = decode_failure(info.payload, classes=classes, pickles=pickles)
        return _raised(failure, info, name, where)
    history = "".join(f"\n  {line}" for line in info.history)
    match info.outcome:
        case Outcome.TIMED_OUT:
            return TaskTimeoutError(
                f"task {info.task} took longer than its time-out{where} and was stopped: {info.text}", name, info.task
            )
        case Outcome.WORKER_DIED | Outcome.OUT_OF_MEMORY | Outcome.PEER_LOST:
            what = {
                Outcome.WORKER_DIED: "killed its worker process",
                Outcome.OUT_OF_MEMORY: "used more memory than a worker may",
                Outcome.PEER_LOST: "lost the peers that ran it",
            }[info.outcome]
            return WorkerDiedError(
                f"task {info.task} {what} in every attempt: {info.text}{history}", name, info.task, history=info.history
            )
    if info.kind == "module":
        return MissingModuleError(info.text, name, peer=info.peer, module=info.module)
    if info.kind == "cancelled":
        return JobCancelledError(info.text or "the job was cancelled", name)
    known = getattr(errors, info.kind, None)
    if isinstance(known, type) and issubclass(known, JobError):
        return known(info.text, name, info.task)
    if isinstance(known, type) and issubclass(known, P2PComputeError):
        return known(info.text) if known.__init__ is Exception.__init__ else JobError(info.text, name, info.task)
    return JobError(f"{info.text}{history}", name, info.task)


def _raised(failure: Failure, info: FailureInfo, job: str, where: str) -> BaseException:
    if info.outcome is Outcome.UNSHIPPABLE:
        # Where in our own encoder it was noticed helps nobody.
        text = f"task {info.task}{where} returned what cannot travel: {failure.message}"
    else:
        text = f"task {info.task}{where} raised {failure.type_name}: {failure.message}\n\n{failure.traceback.rstrip()}"
    remote = TaskFailedError(
        text,
        job,
        info.task,
        remote_traceback="" if info.outcome is Outcome.UNSHIPPABLE else failure.traceback,
        peer=info.peer,
    )
    if failure.exception is None or info.outcome is Outcome.UNSHIPPABLE:
        return remote
    failure.exception.__cause__ = remote
    return failure.exception
