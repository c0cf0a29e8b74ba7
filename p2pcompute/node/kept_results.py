"""Result archives of this user's tasks: who submits keeps them, whichever peer of his runs removes old ones."""

from __future__ import annotations

import asyncio
import time

from p2pcompute.execution.task_result import TaskResult
from p2pcompute.model import limits
from p2pcompute.model.ids import JobId, format_job_id
from p2pcompute.node.folders import Folders
from p2pcompute.storage.archives import Archives


def keep_result(folders: Folders, job: JobId, result: TaskResult) -> str:
    """Keep the archive of a result for a day; where it is. Raises UsageError, ResourceError."""
    return str(Archives(folders.results).keep(format_job_id(job), result.archive(), time.time()))


async def keep_sweeping(folders: Folders) -> None:
    """Remove old ones, now and every hour."""
    while True:
        await asyncio.to_thread(lambda: Archives(folders.results).sweep(time.time()))
        await asyncio.sleep(limits.ARCHIVE_SWEEP_INTERVAL_S)
