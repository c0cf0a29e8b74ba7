"""Commands in real worker processes: files in and out, status, output, what is missing, what is left running."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.execution import values
from p2pcompute.execution.engines.command_program import missing_executable, open_command, pack_command
from p2pcompute.execution.engines.document import ProgramHead, head_of
from p2pcompute.execution.pool import ProgramKey, TaskEnd, TaskRun
from p2pcompute.execution.values import Handle
from p2pcompute.model import limits
from p2pcompute.model.engine import Demands, Engine
from p2pcompute.model.errors import CommandFailedError, UsageError
from p2pcompute.model.ids import BlobId, PeerId, ProgramId
from p2pcompute.model.job import Outcome
from p2pcompute.model.peer import Isolation
from tests.unit.execution.pool_help import Bench, bench, eventually, is_alive

KEY = ProgramKey(PeerId(bytes(32)), ProgramId(bytes(32)))


def spawn(pool: Bench, executable: str, **settings: Any) -> int:
    program = pack_command(executable, **settings)
    return pool.pool.spawn(KEY, program, None, head_of(program))


def give(
    pool: Bench,
    worker: int,
    number: int,
    *words: str,
    files: Mapping[str, Any] | None = None,
    stdin: Any = b"",
    **more: Any,
) -> None:
    arguments = values.encode([[list(words), dict(files or {}), stdin], {}])
    pool.pool.run(worker, [TaskRun(number, 0, 0, arguments, **more)])


async def call(pool: Bench, worker: int, number: int, *words: str, **settings: Any) -> TaskEnd:
    give(pool, worker, number, *words, **settings)
    await pool.ended(number)
    return pool.seen.ends[number, 0]


async def answer(pool: Bench, worker: int, number: int, *words: str, **settings: Any) -> dict[str, Any]:
    end = await call(pool, worker, number, *words, **settings)
    assert end.outcome is Outcome.RETURNED, end.payload
    found: dict[str, Any] = values.decode(end.payload)
    return found


def failure(end: TaskEnd) -> BaseException:
    assert end.outcome is Outcome.RAISED, end.payload
    found = values.decode_failure(end.payload, classes=values.ClassResolver({})).exception
    assert found is not None
    return found


def run(body: Any, **settings: Any) -> None:
    async def main() -> None:
        async with bench(**settings) as pool:
            await body(pool)

    asyncio.run(main())


def test_files_go_in_and_come_out() -> None:
    async def body(pool: Bench) -> None:
        worker = spawn(pool, "sh", files={"shared/word": b"shared"})
        done = await answer(
            pool,
            worker,
            1,
            "-c",
            "cat shared/word in.txt - > out.txt; echo said; echo wrong >&2",
            files={"in.txt": b" in "},
            stdin=b"stdin",
        )
        assert done == {
            "status": 0,
            "stdout": b"said\n",
            "stderr": b"wrong\n",
            "files": {"out.txt": b"shared in stdin"},
            "dropped_bytes": 0,
        }
        assert pool.seen.printed(1, 1) == b"said\n"
        assert pool.seen.printed(1, 2) == b"wrong\n"
        # The next task finds a fresh folder, and no shell has looked at its words.
        assert (await answer(pool, worker, 2, "-c", 'ls; echo "$1"', "sh", "$(id) *"))["stdout"] == b"shared\n$(id) *\n"

    run(body)


def test_a_status_other_than_0_raises_unless_it_was_asked_for() -> None:
    async def body(pool: Bench) -> None:
        line = ("-c", "echo so; echo why >&2; : > made; exit 3")
        strict, lenient = spawn(pool, "sh"), spawn(pool, "sh", check=False, out=["made", "missing"])
        error = failure(await call(pool, strict, 1, *line))
        assert isinstance(error, CommandFailedError)
        assert (error.status, error.stdout, error.stderr) == (3, "so\n", "why\n")
        assert error.__notes__ == ["stderr: why"]
        done = await answer(pool, lenient, 2, *line)
        assert (done["status"], done["files"]) == (3, {"made": b""})
        assert (await answer(pool, lenient, 3, "-c", "kill -9 $$"))["status"] == -9
        # What was promised must be there where all went well.
        assert isinstance(failure(await call(pool, lenient, 4, "-c", ": > made")), FileNotFoundError)

    run(body)


def test_a_script_that_comes_along_is_run() -> None:
    async def body(pool: Bench) -> None:
        worker = spawn(
            pool,
            "./bin/tool",
            files={"bin/tool": b"#!/bin/sh\necho $GREETING $1 $HOME\n"},
            environment={"GREETING": "hello"},
        )
        said, name, home = (await answer(pool, worker, 1, "there"))["stdout"].split()
        assert (said, name) == (b"hello", b"there")
        assert Path(home.decode()).name == "tmp"
        other = spawn(pool, "./tool")
        assert (await answer(pool, other, 2, files={"tool": b"#!/bin/sh\necho mine\n"}))["stdout"] == b"mine\n"
        error = failure(await call(pool, other, 3))
        assert "the executable './tool' is not among the files" in str(error)

    run(body)


def test_a_missing_executable_is_named() -> None:
    program = pack_command("no-such-program")
    assert missing_executable(program) == "the executable 'no-such-program' is not installed here, or may not be run"
    assert missing_executable(pack_command("sh")) is None
    assert missing_executable(pack_command("./no-such-program")) is None

    async def body(pool: Bench) -> None:
        worker = spawn(pool, "no-such-program")
        _, cause, outcome = await pool.gone(worker)
        assert pool.seen.failed[worker][0] == "executable"
        assert "'no-such-program' is not there in the sandbox" in cause
        assert outcome is Outcome.CANNOT_RUN

    run(body)


def test_what_a_command_leaves_running_does_not_outlive_its_task(tmp_path: Path) -> None:
    # One child in the background, one in a session of its own, both holding the output open.
    script = "sleep 1000 & echo $! > pids; setsid sh -c 'echo $$ >> pids; exec sleep 1000' & while [ $(wc -l < pids) -lt 2 ]; do :; done"

    async def body(pool: Bench) -> None:
        worker = spawn(pool, "sh")
        done = await answer(pool, worker, 1, "-c", script)
        pids = [int(line) for line in done["files"]["pids"].split()]
        assert len(pids) == 2
        assert not any(is_alive(pid) for pid in pids)
        assert pool.pool.workers[worker].tasks_done == 1

    # In a sandbox processes have numbers of their own, which say nothing here.
    run(body, isolation_most=Isolation.PROCESS)


def test_a_time_out_kills_the_command_and_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pids"

    async def body(pool: Bench) -> None:
        worker = spawn(pool, "sh")
        give(pool, worker, 1, "-c", f"sleep 1000 & echo $$ $! > {note}; wait", timeout_s=0.5)
        await pool.ended(1)
        assert pool.seen.outcome(1) is Outcome.TIMED_OUT
        pids = [int(word) for word in note.read_text().split()]
        assert len(pids) == 2
        await eventually(lambda: not any(is_alive(pid) for pid in pids))

    run(body, isolation_most=Isolation.PROCESS)


def test_output_beyond_the_limit_is_counted_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    count = limits.COMMAND_OUTPUT_BYTES_MAX + 12_345

    async def body(pool: Bench) -> None:
        done = await answer(pool, spawn(pool, "head"), 1, "-c", str(count), "/dev/zero")
        assert len(done["stdout"]) == limits.COMMAND_OUTPUT_BYTES_MAX
        assert done["dropped_bytes"] == 12_345

    run(body)


def test_a_large_stdin_and_a_command_that_does_not_read_it() -> None:
    async def body(pool: Bench) -> None:
        data = bytes(range(256)) * 8_000
        worker = spawn(pool, "sh")
        assert (await answer(pool, worker, 1, "-c", "cat", stdin=data))["stdout"] == data
        assert (await answer(pool, worker, 2, "-c", "echo done", stdin=data))["stdout"] == b"done\n"

    run(body)


def test_a_handle_is_a_file() -> None:
    async def body(pool: Bench) -> None:
        content = values.encode(b"behind the handle")
        handle = Handle(bytes(range(32)), len(content))
        worker = spawn(pool, "cat")
        give(pool, worker, 1, "in.txt", files={"in.txt": handle})
        await pool.seen.until(lambda: bool(pool.seen.wanted))
        pool.pool.supply(worker, BlobId(handle.blob), content)
        await pool.ended(1)
        assert values.decode(pool.seen.ends[1, 0].payload)["stdout"] == b"behind the handle"

    run(body)


@pytest.mark.parametrize(
    "arguments",
    [[[], {}], [[["a"], {}], {}], [[["a"], {}, b""], {"x": 1}], [[[7], {}, b""], {}], [[["a\0"], {}, b""], {}], 7],
)
def test_arguments_of_another_form_are_an_error_of_their_task(arguments: object) -> None:
    async def body(pool: Bench) -> None:
        worker = spawn(pool, "true")
        pool.pool.run(worker, [TaskRun(1, 0, 0, values.encode(arguments))])
        await pool.ended(1)
        assert isinstance(failure(pool.seen.ends[1, 0]), UsageError)
        assert (await answer(pool, worker, 2))["status"] == 0

    run(body)


def test_a_file_that_leads_out_of_the_folder_is_an_error_of_its_task(tmp_path: Path) -> None:
    async def body(pool: Bench) -> None:
        error = failure(await call(pool, spawn(pool, "true"), 1, files={f"../../../../..{tmp_path}/out": b"out"}))
        assert isinstance(error, UsageError)
        assert not (tmp_path / "out").exists()

    run(body)


@pytest.mark.parametrize(
    ("executable", "settings"),
    [
        ("", {}),
        ("a\0b", {}),
        ("true", {"files": {"/etc/passwd": b""}}),
        ("true", {"out": ["../x"]}),
        ("true", {"environment": {"A=B": "c"}}),
        ("x" * (limits.COMMAND_WORD_CHARS_MAX + 1), {}),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_before_it_travels(executable: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        pack_command(executable, **settings)


def test_the_program_says_what_its_sandbox_must_allow() -> None:
    demands = Demands(None, ("network",))
    program = pack_command("true", demands=demands)
    assert head_of(program) == ProgramHead(Engine.COMMAND, demands)
    assert head_of(program).allowed == ("network", "processes")
    assert ProgramHead(Engine.PYTHON, demands).allowed == ("network",)
    assert open_command(program).demands == demands
