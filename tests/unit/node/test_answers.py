"""Answers used again: for equal calls of the same program, while they are young enough, never for failures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcompute.execution.values import encode
from p2pcompute.jobs.recording import Recording
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError
from p2pcompute.model.ids import JobId, PeerId, ProgramId
from p2pcompute.model.job import Aggregation, JobOptions, JobSpec, Outcome
from p2pcompute.node.answers import Answers, check_cached
from p2pcompute.node.job_stream import JobRequest, JobStream, ResultRow
from p2pcompute.node.origin_job import OriginJob
from p2pcompute.storage.blobs import BlobStore

PEER = PeerId(b"a" * 32)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1.7e9 + self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    found = BlobStore(tmp_path / "blobs")
    yield found
    found.close()


def job(store: BlobStore, ttl_s: float | None = 60.0, program: bytes = b"p", entry: str = "map") -> OriginJob:
    name = JobId(b"j" * 12)
    options = JobOptions(cache_ttl_s=ttl_s)
    spec = JobSpec(name, "n", ProgramId(program * 32), entry, Aggregation.NONE, None, options)
    request, stream = JobRequest(spec, b"", (entry,)), JobStream(name, lambda: None)
    return OriginJob(request, stream, store, 0.0, Recording(spec, 0.0, is_prompt=False))


def settled(answers: Answers, of: OriginJob, *arguments: bytes) -> list[int]:
    """The numbers of the tasks that are left to be computed."""
    return [int(task) for task in answers.settle(of, of.add_inputs(arguments))]


def compute(answers: Answers, of: OriginJob, index: int, value: bytes, outcome: Outcome = Outcome.RETURNED) -> None:
    answers.keep(of, ResultRow(index, outcome, value, PEER, 5))


def test_an_equal_call_is_answered_until_its_time_is_over(store: BlobStore) -> None:
    clock = Clock()
    answers = Answers(clock)
    first = job(store)
    assert settled(answers, first, b"1", b"2") == [0, 1]
    compute(answers, first, 0, b"one")
    assert not first.stream.rows
    clock.now = 59.9
    second = job(store)
    assert settled(answers, second, b"2", b"1", b"1") == [0]
    assert [(row.index, bytes(row.payload), row.outcome) for row in second.stream.rows] == [
        (1, b"one", Outcome.RETURNED),
        (2, b"one", Outcome.RETURNED),
    ]
    assert second.cached == 2
    assert settled(answers, job(store, 30.0), b"1") == [0], "who wants newer answers gets none"
    clock.now = 60.0
    assert settled(answers, job(store), b"1") == [0], "its time is over"
    assert settled(answers, job(store, 3600.0), b"1") == [], "for whom older ones will do it is not"
    again = job(store)
    assert settled(answers, again, b"1") == [0]
    compute(answers, again, 0, b"one again")
    third = job(store)
    assert settled(answers, third, b"1") == []
    assert bytes(third.stream.rows[0].payload) == b"one again"


@pytest.mark.parametrize("other", [{"program": b"q"}, {"entry": "other"}, {"ttl_s": None}])
def test_other_calls_are_not_answered(store: BlobStore, other: dict[str, object]) -> None:
    answers = Answers(Clock())
    first = job(store)
    settled(answers, first, b"1")
    compute(answers, first, 0, b"one")
    assert settled(answers, job(store, **other), b"1") == [0]  # type: ignore[arg-type]
    assert settled(answers, job(store), b"2") == [0]
    assert settled(answers, job(store), b"1") == []


@pytest.mark.parametrize(
    ("outcome", "size"),
    [(Outcome.RAISED, 3), (Outcome.TIMED_OUT, 3), (Outcome.UNSHIPPABLE, 3), (Outcome.RETURNED, (1 << 20) + 1)],
)
def test_failures_and_what_is_large_are_not_kept(store: BlobStore, outcome: Outcome, size: int) -> None:
    answers = Answers(Clock())
    first = job(store)
    settled(answers, first, b"1")
    compute(answers, first, 0, bytes(size), outcome)
    assert settled(answers, job(store), b"1") == [0]
    assert answers.figures().entries == 0


def test_jobs_that_do_not_ask_leave_nothing(store: BlobStore) -> None:
    answers = Answers(Clock())
    first = job(store, None)
    assert settled(answers, first, b"1") == [0]
    assert not first.keys
    compute(answers, first, 0, b"one")
    assert answers.figures().entries == 0


def test_large_arguments_are_told_apart_by_their_content(store: BlobStore) -> None:
    answers = Answers(Clock())
    large, other = (encode([[letter * (limits.INLINE_BYTES_MAX + 1)], {}]) for letter in ("a", "b"))
    first = job(store)
    settled(answers, first, large)
    compute(answers, first, 0, b"one")
    assert settled(answers, job(store), other, large) == [0]


def test_where_results_are_merged_there_is_no_cache() -> None:
    options = JobOptions(cache_ttl_s=1.0)
    check_cached(options, Aggregation.NONE)
    check_cached(JobOptions(), Aggregation.SUM)
    with pytest.raises(UsageError, match="not with aggregation 'reduce'"):
        check_cached(options, Aggregation.REDUCE)
