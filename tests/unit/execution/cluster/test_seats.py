"""What a seat has in hand, call by call: every attempt leaves it exactly once."""

from __future__ import annotations

import pytest

from p2pcompute.execution.cluster.calls import Answer, Call, Failed, open_answer, open_call, pack_answer, pack_call
from p2pcompute.execution.cluster.seats import Seat
from p2pcompute.execution.pool_types import ProgramKey, TaskEnd, TaskRun
from p2pcompute.model import limits
from p2pcompute.model.errors import ProtocolError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome

KEY = ProgramKey(PeerId(b"o" * 32), ProgramId(b"p" * 32))
BLOB, OTHER = b"b" * 32, b"c" * 32
ID = b"i" * 16


def seat(program: bytes = b"small") -> Seat:
    made = Seat(1, KEY, program, None, 0.0)
    made.ready = True
    return made


def give(it: Seat, *numbers: int) -> None:
    it.waiting.extend(TaskRun(number, 0, 0, b"a", 1.5) for number in numbers)


def returned(*numbers: int) -> list[TaskEnd]:
    return [TaskEnd(number, 0, Outcome.RETURNED, 5, b"") for number in numbers]


def test_a_small_program_goes_along_and_a_large_one_when_it_is_missing() -> None:
    assert dict(seat().begin(ID, {}).data) == {b"p" * 32: b"small"}
    large = seat(bytes(limits.CLUSTER_INLINE_BYTES_MAX + 1))
    give(large, 1, 2)
    first = large.begin(ID, {})
    assert (first.data, [row[0] for row in first.rows]) == ((), [1, 2])
    large.miss([b"p" * 32])
    assert large.call is None
    again = large.begin(ID, {})
    assert [digest for digest, _ in again.data] == [b"p" * 32]
    assert again.rows == first.rows


def test_data_behind_handles_goes_along_where_it_is_missing_and_in_the_end_all_of_it() -> None:
    it = seat()
    give(it, 1)
    held = {BLOB: b"1", OTHER: b"2"}
    it.names = {BLOB: None, OTHER: None}
    assert it.begin(ID, held).names == (BLOB, OTHER)
    for _ in range(limits.CLUSTER_MISSES_MAX - 1):
        it.miss([BLOB])
        assert set(dict(it.begin(ID, held).data)) == {BLOB, b"p" * 32}
    it.miss([BLOB])
    assert set(dict(it.begin(ID, held).data)) == {BLOB, OTHER, b"p" * 32}
    it.end(Answer(), returned(1), 0.0)
    assert set(dict(it.begin(ID, held).data)) == {b"p" * 32}


def test_what_did_not_run_waits_again_in_its_order() -> None:
    it = seat()
    give(it, 1, 2, 3)
    it.begin(ID, {})
    give(it, 4)
    assert it.cancel([(2, 0), (4, 0), (9, 0)]) == (
        [TaskEnd(4, 0, Outcome.CANCELLED, 0, b"cancelled before it ran"),
         TaskEnd(2, 0, Outcome.CANCELLED, 0, b"cancelled while it ran")],
        True,
    )  # fmt: skip
    give(it, 5)
    news = Answer(progress=((1, 0.5, ""), (2, 0.5, "")), output=((2, 1, b"late"), (3, 1, b"said")))
    progress, output, ended = it.end(news, returned(1, 2), 0.0)
    assert (progress, output, ended) == ([(1, 0.5, "")], [(3, 1, b"said")], returned(1))
    assert it.unfinished() == [(3, 0), (5, 0)]
    assert it.unfinished() == []


def test_who_was_there_when_a_process_died_is_blamed() -> None:
    it = seat()
    give(it, 1, 2)
    it.begin(ID, {})
    give(it, 3)
    assert [(end.task, end.outcome) for end in it.blame("died")] == [(1, Outcome.WORKER_DIED), (2, Outcome.WORKER_DIED)]
    assert it.unfinished() == [(3, 0)]


def test_before_its_program_is_loaded_a_seat_gives_no_task() -> None:
    it = seat()
    it.ready = False
    give(it, 1)
    assert it.begin(ID, {}).rows == ()
    assert it.unfinished() == [(1, 0)]


def test_calls_and_answers_come_back_as_they_went() -> None:
    call = Call(
        ID,
        b"o" * 32,
        b"p" * 32,
        ((1, 0, 2, b"a", None), (2, 1, 0, b"", 1.5)),
        1 << 30,
        (BLOB,),
        ((BLOB, b"1"),),
        (OTHER,),
    )
    assert open_call(pack_call(call)) == call
    assert [run.timeout_s for run in call.runs] == [None, 1.5]
    answer = Answer(
        ((1, 0, 0, 7, b"x"),),
        ((2, 1),),
        ((1, 0.5, "half"),),
        ((1, 2, b"e"),),
        (BLOB,),
        ((OTHER, 9),),
        "gone",
        Failed("module", "m", "t"),
    )
    assert open_answer(pack_answer(answer)) == answer
    assert answer.task_ends() == [TaskEnd(1, 0, Outcome.RETURNED, 7, b"x")]
    with pytest.raises(ProtocolError, match="no known outcome"):
        Answer(((1, 0, 99, 7, b"x"),)).task_ends()
