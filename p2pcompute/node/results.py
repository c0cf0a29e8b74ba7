"""Results of a job read again, by a program that does not have the job's own classes.

Refuses pickles and classes that are not plain: a result that needs the submitter's code is read by the submitter's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pcompute.execution.values import decode
from p2pcompute.model.errors import JobError
from p2pcompute.model.job import Outcome


def read_end(answer: Mapping[str, Any]) -> tuple[bool, Any, list[tuple[int, Any]]]:
    """Whether the job of this answer to "job.result" has one value, that value, else its single results by number.

    Raises JobError where the job failed, ResultRefusedError where a result needs classes that are not here.
    """
    failure = answer.get("failure")
    if failure is not None:
        raise JobError(f"the job {answer['state']}: {failure['text']}", job=str(answer["job"]), task=failure["task"])
    if answer.get("result") is not None:
        return True, decode(answer["result"]), []
    rows = [
        (int(index), decode(payload))
        for index, outcome, payload in answer.get("rows", ())
        if outcome == Outcome.RETURNED
    ]
    return False, None, rows
