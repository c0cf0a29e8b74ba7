"""Answers to equal calls, used again for jobs that ask for it (`cache_ttl_s`): the request cache beside the jobs of one origin.

A hit never reaches the dispatch machine: its task is settled before it was one, by an answer that came from a peer for an equal call
earlier. Refuses to know machines and peers; what is kept, how long, and when two calls are equal is `jobs/request_cache.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.jobs.request_cache import CacheFigures, CacheSettings, RequestCache, request_key
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import PeerId, TaskIndex
from p2pcompute.model.job import Aggregation, JobOptions, Outcome
from p2pcompute.model.performance import FunctionKey
from p2pcompute.model.seams import Clock
from p2pcompute.node.job_stream import ResultRow
from p2pcompute.node.origin_job import OriginJob

#: Who "computed" a row out of the cache.
NOBODY = PeerId(b"")


class Answers:
    """What jobs of this process learn from each other's results."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cache = RequestCache(CacheSettings(enabled=True, ttl_s=limits.CACHE_TTL_MAX_S))

    def settle(self, job: OriginJob, tasks: Sequence[TaskIndex]) -> tuple[TaskIndex, ...]:
        """Deliver the results of those of `tasks` that are known; the others, which are to be computed."""
        younger_than_s = job.spec.options.cache_ttl_s
        if younger_than_s is None:
            return tuple(tasks)
        now = self._clock.monotonic()
        function = FunctionKey(job.spec.map_entry, job.spec.program)
        unknown = []
        for task in tasks:
            key = request_key(function, job.arguments(task))
            content = self._cache.get(key, now, younger_than_s)
            if content is None:
                job.keys[task] = key
                unknown.append(task)
            else:
                job.cached += 1
                job.completed(ResultRow(task, Outcome.RETURNED, content, NOBODY, 0))
        return tuple(unknown)

    def keep(self, job: OriginJob, row: ResultRow) -> None:
        """A task of a job that caches has ended."""
        key = job.keys.pop(TaskIndex(row.index), None)
        if key is not None and len(row.payload) <= limits.CACHE_ENTRY_BYTES_MAX:
            self._cache.put(key, row.outcome, bytes(row.payload), self._clock.monotonic())

    def figures(self) -> CacheFigures:
        """How much there is, and how often it was of use."""
        return self._cache.figures(self._clock.monotonic())


def check_cached(options: JobOptions, aggregation: Aggregation) -> None:
    """Raise UsageError where a cache is asked for that there is not."""
    if options.cache_ttl_s is not None and aggregation is not Aggregation.NONE:
        raise UsageError(
            f"cache_ttl_s works where results stand alone, not with aggregation {aggregation.value!r}: leave one of them out"
        )
