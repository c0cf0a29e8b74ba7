"""Why a job's tasks ran where they did, how often they were tried, and what they used: plain documents for `job show` and `job explain`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pcompute.jobs.accounting import Spent
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import REDUCE_BASE, PeerId, format_job_id
from p2pcompute.model.job import SHORT_TASK_US
from p2pcompute.node.origin_job import OriginJob, Trace

Document = dict[str, Any]
#: Tasks that one answer tells about, the newest; `job explain JOB TASK` finds each that is remembered.
TASKS_TOLD = 200


def spent_document(spent: Spent) -> Document:
    """A sum over attempts."""
    return {
        "attempts": spent.attempts,
        "returned": spent.ended,
        "wall_s": round(spent.wall_us / 1e6, 6),
        "cpu_s": round(spent.cpu_us / 1e6, 6),
        "peak_memory_bytes": spent.peak_memory_bytes,
        "read_bytes": spent.read_bytes,
        "written_bytes": spent.written_bytes,
        "fuel": spent.fuel,
        "gpu_s": round(spent.gpu_us / 1e6, 6),
    }


def used_document(job: OriginJob, name_of: Callable[[PeerId], str]) -> Document:
    """What a job used, altogether and by peer."""
    return {
        "total": spent_document(job.spent.total()),
        "by_peer": [{"peer": name_of(peer), **spent_document(spent)} for peer, spent in job.spent.of.items()],
    }


def explain_document(job: OriginJob, task: int | None, name_of: Callable[[PeerId], str]) -> Document:
    """Where each task ran and what became of attempts before that; of one `task`, or of the newest. Raises UsageError."""
    rows = [trace for trace in job.trail if task is None or trace[0] == task]
    tried: dict[int, list[Document]] = {}
    for index, attempt in job.attempts:
        if task is None or index == task:
            line = {
                "peer": name_of(attempt.peer),
                "outcome": attempt.outcome.name.lower(),
                "detail": attempt.detail,
            }
            tried.setdefault(int(index), []).append(line)
    if task is not None and not rows and task not in tried:
        raise UsageError(
            f"nothing is remembered of task {task} of job {format_job_id(job.spec.job)}: it has not ended, came from the cache, or ended "
            "before the newest 10000"
        )
    traced = rows[-TASKS_TOLD:]
    told = [_task_document(trace, tried.pop(trace[0], []), name_of) for trace in traced]
    told += [
        {"task": index, "outcome": "not ended", "peer": None, "attempts": lines}
        for index, lines in list(tried.items())[-TASKS_TOLD:]
        if not any(trace[0] == index for trace in rows)
    ]
    options = job.spec.options
    return {
        "job": format_job_id(job.spec.job),
        "name": job.spec.name,
        "strategy": options.strategy,
        "requirements": [str(requirement) for requirement in options.requirements],
        "tasks": told,
        "remembered": len(job.trail),
        "used": used_document(job, name_of),
    }


def _task_document(trace: Trace, tried: list[Document], name_of: Callable[[PeerId], str]) -> Document:
    index, attempt, outcome, peer, wall_us, usage = trace
    is_assumed = not usage.cpu_us and wall_us < SHORT_TASK_US
    return {
        "task": int(index),
        "kind": "reduction" if index >= REDUCE_BASE else "map",
        "peer": name_of(peer),
        "attempt": attempt,
        "outcome": outcome.name.lower(),
        "wall_s": round(wall_us / 1e6, 6),
        "cpu_s": round((wall_us if is_assumed else usage.cpu_us) / 1e6, 6),
        "cpu_is_assumed": is_assumed,
        "peak_memory_bytes": usage.peak_memory_bytes,
        "read_bytes": usage.read_bytes,
        "written_bytes": usage.written_bytes,
        "fuel": usage.fuel,
        "gpu_s": round(usage.gpu_us / 1e6, 6),
        "attempts": tried,
    }
