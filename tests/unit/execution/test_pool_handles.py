"""Data behind handles in real workers: asked for once, shared by the tasks of a worker, missed with a sentence."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pcompute.execution import values
from p2pcompute.execution import worker_protocol as protocol
from p2pcompute.execution.pool import ProgramKey, TaskEnd
from p2pcompute.execution.program import Body, Module, pack_program
from p2pcompute.execution.values import ClassResolver, Decoded, Handle
from p2pcompute.execution.worker_handles import KEPT_MAX, HandleValues
from p2pcompute.model.errors import BlobMissingError
from p2pcompute.model.ids import PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.storage.blobs import blob_id_of
from p2pcompute.wire.versions import PROGRAM
from tests.unit.execution.pool_help import Bench, bench, eventually
from tests.unit.execution.program_help import MODULE, decode_value, failure_text

SOURCE = """
import os, socket, sys

TABLE = None

def look_up(table, key):
    return table[key]

def look_up_global(key):
    return TABLE[key]

def same(value):
    return value

def ask_for_anything():
    from p2pcompute.execution import worker_protocol as protocol
    for number in range(3, 30):
        try:
            socket.socket(fileno=os.dup(number)).sendall(
                protocol.pack_frame((protocol.WANT_BLOB, b"short", 1))
            )
        except OSError:
            pass
    import time
    time.sleep(60)
"""


def handle_of(data: bytes) -> Handle:
    return Handle(blob_id_of(data), len(data))


async def asked(rig: Bench, worker: int, handle: Handle) -> None:
    """Until the worker asks for `handle`."""
    await rig.seen.until(lambda: (worker, handle.blob) in rig.seen.wanted)


async def ended(rig: Bench, number: int) -> TaskEnd:
    await rig.ended(number)
    return rig.seen.ends[number, 0]


def start(rig: Bench, worker: int, number: int, entry: str, *args: Any, timeout_s: float | None = None) -> None:
    rig.pool.run(worker, [rig.task(worker, number, entry, *args, timeout_s=timeout_s)])


def test_a_task_gets_the_value_behind_its_handle_and_the_next_one_without_asking() -> None:
    async def main() -> None:
        data = values.encode({"a": [1, 2], "b": 3})
        handle = handle_of(data)
        async with bench() as rig:
            worker = rig.spawn(SOURCE)
            start(rig, worker, 1, "look_up", handle, "a")
            start(rig, worker, 2, "look_up", handle, "b")
            await asked(rig, worker, handle)
            assert (1, 0) not in rig.seen.ends
            rig.pool.supply(worker, handle.blob, data)
            assert decode_value((await ended(rig, 1)).payload) == [1, 2]
            assert decode_value((await ended(rig, 2)).payload) == 3
            assert rig.seen.wanted == [(worker, handle.blob)]
            assert rig.seen.order == [1, 2]

    asyncio.run(main())


def test_large_data_arrives_whole_and_tasks_that_come_meanwhile_wait() -> None:
    async def main() -> None:
        data = values.encode(bytes(range(256)) * 20_000)
        handle = handle_of(data)
        async with bench() as rig:
            worker = rig.spawn(SOURCE)
            start(rig, worker, 1, "look_up", handle, 5_119_999)
            await asked(rig, worker, handle)
            start(rig, worker, 2, "same", "small")
            start(rig, worker, 3, "same", b"x" * 200_000)
            rig.pool.supply(worker, handle.blob, memoryview(data))
            assert decode_value((await ended(rig, 1)).payload) == 255
            assert decode_value((await ended(rig, 2)).payload) == "small"
            assert decode_value((await ended(rig, 3)).payload) == b"x" * 200_000
            assert rig.seen.order == [1, 2, 3]

    asyncio.run(main())


def test_missing_data_is_the_failure_of_the_task_that_asked_and_says_what_to_do() -> None:
    async def main() -> None:
        data = values.encode([1])
        handle = handle_of(data)
        async with bench() as rig:
            worker = rig.spawn(SOURCE)
            start(rig, worker, 1, "same", handle)
            await asked(rig, worker, handle)
            rig.pool.supply(worker, handle.blob, None)
            end = await ended(rig, 1)
            assert end.outcome is Outcome.RAISED
            assert "put the data again" in failure_text(end.payload)
            assert "BlobMissingError" in failure_text(end.payload)
            # The worker lives, and asks again for the next task.
            start(rig, worker, 2, "same", handle)
            await rig.seen.until(lambda: len(rig.seen.wanted) == 2)
            rig.pool.supply(worker, handle.blob, data)
            assert decode_value((await ended(rig, 2)).payload) == [1]
            assert worker not in rig.seen.gone

    asyncio.run(main())


def test_data_that_holds_no_value_is_the_failure_of_the_task() -> None:
    async def main() -> None:
        data = b"\xc1 no value of ours"
        handle = handle_of(data)
        async with bench() as rig:
            worker = rig.spawn(SOURCE)
            start(rig, worker, 1, "same", handle)
            await asked(rig, worker, handle)
            rig.pool.supply(worker, handle.blob, data)
            assert (await ended(rig, 1)).outcome is Outcome.RAISED
            assert decode_value((await rig.call(worker, 2, "same", 7)).payload) == 7

    asyncio.run(main())


def test_handles_inside_data_behind_handles_are_followed() -> None:
    async def main() -> None:
        inner = values.encode([10, 20, 30])
        outer = values.encode({"table": handle_of(inner)})
        async with bench() as rig:
            worker = rig.spawn(SOURCE)
            start(rig, worker, 1, "look_up", handle_of(outer), "table")
            for data in (outer, inner):
                await asked(rig, worker, handle_of(data))
                rig.pool.supply(worker, blob_id_of(data), data)
            assert decode_value((await ended(rig, 1)).payload) == [10, 20, 30]

    asyncio.run(main())


def program_with_global(handle: Handle) -> bytes:
    return pack_program(
        Body(
            version=PROGRAM,
            modules=(Module(MODULE, False, SOURCE.encode(), f"{MODULE}.py"),),
            files=(),
            entries=(("look_up_global", ["name", MODULE, "look_up_global"]),),
            data=((MODULE, "TABLE", values.encode(handle)),),
            requires=(),
            main="",
        )
    )


def test_a_program_whose_data_holds_a_handle_loads_when_it_is_there_however_long_that_takes() -> None:
    async def main() -> None:
        data = values.encode({"k": "v"})
        handle = handle_of(data)
        async with bench(start_timeout_s=5.0) as rig:
            worker = rig.pool.spawn(
                ProgramKey(PeerId(bytes(32)), ProgramId(bytes(32))), program_with_global(handle), None
            )
            rig._entries[worker] = ["look_up_global"]
            start(rig, worker, 1, "look_up_global", "k")
            await asked(rig, worker, handle)
            held = rig.pool._workers[worker]
            # As if all the time to start had gone by while the data was on its way.
            held.loading_since -= 100
            assert held.due(held.started_at + 100, 5.0, 0.25) == 0.25
            rig.pool.supply(worker, handle.blob, data)
            assert decode_value((await ended(rig, 1)).payload) == "v"

    asyncio.run(main())


def test_a_program_whose_handle_leads_nowhere_does_not_load_and_says_why() -> None:
    async def main() -> None:
        handle = handle_of(values.encode(1))
        async with bench() as rig:
            worker = rig.pool.spawn(
                ProgramKey(PeerId(bytes(32)), ProgramId(bytes(32))), program_with_global(handle), None
            )
            await asked(rig, worker, handle)
            rig.pool.supply(worker, handle.blob, None)
            await rig.gone(worker)
            reason, _, text = rig.seen.failed[worker]
            assert reason == "bundle"
            assert "put the data again" in text

    asyncio.run(main())


def test_a_task_that_waits_for_data_is_cancelled_and_timed_out_like_any_other() -> None:
    async def main() -> None:
        handle = handle_of(values.encode(1))
        async with bench() as rig:
            worker = rig.spawn(SOURCE)
            start(rig, worker, 1, "same", handle)
            await asked(rig, worker, handle)
            rig.pool.cancel(worker, [(1, 0)])
            assert (await ended(rig, 1)).outcome is Outcome.CANCELLED
            await rig.gone(worker)
            rig.pool.supply(worker, handle.blob, b"too late")
            other = rig.spawn(SOURCE)
            start(rig, other, 2, "same", handle, timeout_s=0.2)
            assert (await ended(rig, 2)).outcome is Outcome.TIMED_OUT

    asyncio.run(main())


def test_what_nobody_asked_for_does_not_reach_the_worker() -> None:
    async def main() -> None:
        data = values.encode("real")
        handle = handle_of(data)
        async with bench() as rig:
            worker = rig.spawn(SOURCE)
            rig.pool.supply(worker, blob_id_of(b"other"), values.encode("other"))
            start(rig, worker, 1, "same", handle)
            await asked(rig, worker, handle)
            rig.pool.supply(worker, blob_id_of(b"other"), values.encode("other"))
            rig.pool.supply(worker, handle.blob, data)
            rig.pool.supply(worker, handle.blob, values.encode("twice"))
            assert decode_value((await ended(rig, 1)).payload) == "real"
            assert decode_value((await rig.call(worker, 2, "same", handle)).payload) == "real"

    asyncio.run(main())


def test_a_worker_that_asks_for_what_is_no_blob_is_killed() -> None:
    async def main() -> None:
        async with bench() as rig:
            worker = rig.spawn(SOURCE)
            start(rig, worker, 1, "ask_for_anything")
            end = await ended(rig, 1)
            assert end.outcome is Outcome.WORKER_DIED
            assert b"a wish for a blob" in end.payload
            await rig.gone(worker)
            assert rig.seen.wanted == []
            await eventually(lambda: not rig.pool.workers)

    asyncio.run(main())


# --- what a worker keeps ----------------------------------------------------------------------------------------------


class Source:
    """Bytes behind handles, and what was asked for."""

    def __init__(self, *contents: object) -> None:
        self.blobs = {blob_id_of(data): data for data in map(values.encode, contents)}
        self.asked: list[bytes] = []

    def __call__(self, handle: Handle) -> bytes:
        self.asked.append(handle.blob)
        if handle.blob not in self.blobs:
            raise BlobMissingError("it is not here")
        return self.blobs[handle.blob]

    @property
    def handles(self) -> list[Handle]:
        return [Handle(blob, len(data)) for blob, data in self.blobs.items()]


def test_what_was_used_longest_ago_goes_first_when_there_are_too_many() -> None:
    source = Source(*range(KEPT_MAX + 1))
    kept = HandleValues(source, ClassResolver({}))
    first, second, *_, last = source.handles
    for handle in source.handles[:-1]:
        kept.value(handle)
    kept.value(first)
    kept.value(last)
    asked = len(source.asked)
    assert kept.value(first) == Decoded(0)
    assert len(source.asked) == asked, "what was used just now was let go"
    assert kept.value(second) == Decoded(1)
    assert source.asked[-1] == second.blob
    assert len(source.asked) == asked + 1


def test_bytes_are_bounded_and_the_newest_value_stays_whatever_its_size() -> None:
    source = Source("a" * 400, "b" * 400, "c" * 5000)
    kept = HandleValues(source, ClassResolver({}), kept_bytes_max=1000)
    small, other, large = source.handles
    for handle in (small, other, small, other):
        kept.value(handle)
    assert len(source.asked) == 2
    for _ in range(2):
        assert kept.value(large).value == "c" * 5000
    assert len(source.asked) == 3
    kept.value(small)
    kept.value(large)
    assert len(source.asked) == 5, "two values were kept where there is room for less"


def test_what_is_missing_is_asked_for_again() -> None:
    source = Source()
    kept = HandleValues(source, ClassResolver({}))
    for _ in range(2):
        with pytest.raises(BlobMissingError):
            kept.value(Handle(bytes(32), 1))
    assert len(source.asked) == 2


def test_a_missing_blob_comes_through_decoding_as_itself() -> None:
    source = Source()
    data = values.encode([1, (2, Handle(bytes(32), 1))])
    with pytest.raises(BlobMissingError, match="not here"):
        values.decode(data, handles=source)
    assert values.decode(data) == [1, (2, Handle(bytes(32), 1))]


def test_frames_for_blobs_have_kinds_of_their_own() -> None:
    kinds = [value for name, value in vars(protocol).items() if name.isupper() and isinstance(value, int)]
    assert kinds.count(protocol.BLOB) == 1
    assert kinds.count(protocol.WANT_BLOB) == 1
