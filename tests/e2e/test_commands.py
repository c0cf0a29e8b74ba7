"""Commands through real peers: who offers them, files there and back, many tasks, and the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from p2pcompute import CommandTask
from p2pcompute.model.errors import CommandFailedError, NoAvailableNodesError, NoWorkersError, UsageError
from p2pcompute.node.peer import Peer
from tests.support.peers import machine, network, own_ports

OFFERED = {"engines": ("python", "command")}


def run(home: Path, body: Any, count: int = 2, **changes: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), network(home, count, **changes) as peers:
            await body(peers)

    asyncio.run(main())


def test_commands_run_where_owners_let_them(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        done = await peers[0].command(
            ["sh", "-c", "tr a-z A-Z < in.txt > out.txt; cat -"], files={"in.txt": "text"}, stdin=b"in", out="out.txt"
        )
        assert (done["stdout"], done["files"]) == (b"in", {"out.txt": b"TEXT"})
        with pytest.raises(CommandFailedError, match="status 7") as caught:
            await peers[0].command(["sh", "-c", "echo why >&2; exit 7"])
        assert caught.value.stderr == "why\n"
        with pytest.raises(NoWorkersError, match="the executable 'no-such-program' is not installed here"):
            await peers[0].command(["no-such-program", "word"])

        # Files of the command travel once, those of a task with it; handles are fetched there.
        handle = await peers[0].put(b"of the handle")
        tasks = [{"name": "anna"}, {"name": "bob"}, ["more", "words"], CommandTask(["one"], {"name": handle}, b"stdin")]
        rows = [
            row["stdout"]
            async for row in peers[0].map_command(
                ["./tell", "to"],
                tasks,
                files={"tell": b'#!/bin/sh\necho "$*"; cat name 2>/dev/null; cat'},
                out=(),
            )
        ]
        assert rows == [b"to\nanna", b"to\nbob", b"to more words\n", b"to one\nof the handlestdin"]
        with pytest.raises(UsageError, match="a mapping of files, a list of words, or a CommandTask"):
            [row async for row in peers[0].map_command(["true"], [7])]
        with pytest.raises(UsageError, match="give a list of words"):
            await peers[0].command("ls -l")

    run(home, body, **OFFERED)


def test_nobody_runs_commands_who_was_not_told_to(home: Path) -> None:
    async def body(peers: list[Peer]) -> None:
        with pytest.raises(NoAvailableNodesError, match="engine"):
            await peers[0].command(["true"])

    run(home, body)


def test_the_command_line_runs_commands(home: Path, tmp_path: Path) -> None:
    with machine(home, environ=own_ports()) as here:
        here.up("", "--engine", "command", "--slots", "1")
        (tmp_path / "in.txt").write_text("text\n")
        (tmp_path / "src").mkdir()
        (tmp_path / "src" / "a.txt").write_text("a\n")
        out = tmp_path / "made"
        files = ("--file", f"word={tmp_path / 'in.txt'}", "--file", str(tmp_path / "src"))
        line = ("sh", "-c", "cat word src/a.txt; mkdir d; cp word d/copy; : > not-wanted; echo why >&2; exit 5")
        done = here.run("exec", *files, "--out", str(out), "--get", "d/", "--", *line, check=False)
        assert (done.returncode, done.stdout) == (5, "text\na\n"), done.stderr
        assert "why" in done.stderr
        assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*"))] == ["d", "d/copy"]
        answer = json.loads(here.run("exec", "--json", "--env", "A=b c", "sh", "-c", 'echo "$A" -v').stdout)
        assert answer["stdout"] == {"base64": "YiBjIC12Cg=="}
        wrong = here.run("exec", "--get", "x", "true", check=False)
        assert (wrong.returncode, "give --out DIR" in wrong.stderr) == (2, True)
