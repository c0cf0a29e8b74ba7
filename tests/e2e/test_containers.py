"""Containers through the whole product: two peers, one of which has an engine."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pcompute.execution.container.engine import ContainerEngine
from p2pcompute.model.errors import CommandFailedError, NoAvailableNodesError, NoWorkersError, TaskTimeoutError
from p2pcompute.model.ids import parse_peer_id
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.containers import instance_label
from p2pcompute.node.doctor import Level, container_finding
from p2pcompute.node.folders import Folders
from p2pcompute.node.peer import Peer
from tests.support.dockerd import BUSYBOX
from tests.support.peers import PeerProcess, linked, machine, own_ports, until, until_now

pytestmark = pytest.mark.timeout(60)


@contextlib.asynccontextmanager
async def two(home: Path, socket: Path, **changes: object) -> AsyncIterator[tuple[Peer, Peer]]:
    """(a peer without an engine, one with it)"""
    from p2pcompute.model.peer import Address

    folders = Folders.beneath(home)
    nowhere = home / "no.sock"
    async with contextlib.AsyncExitStack() as stack:
        plain = await stack.enter_async_context(
            Peer(PeerConfig.test(name="plain", slots=1, container_socket=nowhere), folders=folders)
        )
        bootstrap = (Address("127.0.0.1", plain.port),)
        config = PeerConfig.test(name="holder", slots=2, bootstrap=bootstrap, container_socket=socket, **changes)
        holder = await stack.enter_async_context(Peer(config, folders=folders))
        await linked([plain, holder])
        yield plain, holder


def _zip(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_py", ".py").replace("_txt", ".txt"), text)
    return buffer.getvalue()


def test_a_container_runs_where_an_engine_is(home: Path, engine_socket: Path, tmp_path: Path) -> None:
    async def main() -> None:
        given = tmp_path / "given.txt"
        given.write_text("rows\n")
        async with two(home, engine_socket) as (plain, holder):
            assert "container" in holder.own.record.engines
            assert "container" not in plain.own.record.engines
            script = "cat in.txt; wc -c < in.txt > out/count"
            result = await plain.container(
                BUSYBOX, ["/bin/busybox", "sh", "-c", script.replace("wc", "busybox wc")], files={"in.txt": given}
            )
            assert result.stdout == b"rows\n"
            assert result.files == {"count": b"5\n"}
            result.write_to(tmp_path / "results")
            assert (tmp_path / "results" / "count").read_text() == "5\n"

            answers = [
                answer.stdout
                async for answer in plain.container_map(
                    BUSYBOX, ["/bin/echo"], [["one"], {"arguments": ["two"]}, ["three"]]
                )
            ]
            assert answers == [b"one\n", b"two\n", b"three\n"]

            handle = await plain.put(b"large")
            result = await plain.container(BUSYBOX, ["/bin/cat", "big"], files={"big": handle})
            assert result.stdout == b"large"

            with pytest.raises(CommandFailedError, match="status 3") as failed:
                await plain.container(BUSYBOX, ["/bin/sh", "-c", "echo why >&2; exit 3"])
            assert (failed.value.status, failed.value.stderr) == (3, "why\n")
            result = await plain.container(BUSYBOX, ["/bin/sh", "-c", "exit 3"], check=False)
            assert result.status == 3
            with pytest.raises(TaskTimeoutError):
                await plain.container(BUSYBOX, ["/bin/sleep", "600"], timeout_s=0.5)
            with pytest.raises(NoAvailableNodesError, match="folder:data"):
                await plain.container(BUSYBOX, ["/bin/true"], grants=["folder:data"])

    asyncio.run(main())


def test_a_missing_image_reaches_the_submitter(home: Path, engine_socket: Path) -> None:
    async def main() -> None:
        async with two(home, engine_socket) as (plain, _):
            with pytest.raises(NoWorkersError, match="docker pull nobody/has"):
                await plain.container("nobody/has:this", ["true"])

    asyncio.run(main())


def test_output_is_heard_as_it_comes_and_a_cancelled_call_kills_its_container(home: Path, engine_socket: Path) -> None:
    async def main() -> None:
        async with two(home, engine_socket) as (plain, holder):
            heard: list[str] = []
            call = asyncio.create_task(
                plain.container(
                    BUSYBOX,
                    ["/bin/sh", "-c", "echo begun; sleep 600"],
                    on_output=lambda rows: heard.extend(row.text for row in rows),
                )
            )
            await until(lambda: heard, "the first output")
            assert "".join(heard) == "begun\n"
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            await until(lambda: not any(info.running for info in holder.lender.pool.workers.values()), "the task's end")

    asyncio.run(main())


def test_zip_programs_run_where_they_start(home: Path, engine_socket: Path, python_image: str) -> None:
    async def main() -> None:
        async with two(home, engine_socket) as (plain, _):
            program = _zip(
                tool__main_py="import sys, helper, pathlib\nprint(helper.double(int(sys.argv[1])))\n"
                "pathlib.Path('/work/out/answer').write_text('42')\n",
                tool__helper_py="def double(x):\n    return 2 * x\n",
            )
            result = await plain.run_zip(program, ["21"], image=python_image)
            assert result.stdout == b"42\n"
            assert result.files == {"answer": b"42"}
            with zipfile.ZipFile(io.BytesIO(result.archive())) as archive:
                assert sorted(archive.namelist()) == ["execution_log.txt", "output/answer", "task_logs.txt"]
                assert b"ended with status 0" in archive.read("execution_log.txt")
                assert b"42" in archive.read("task_logs.txt")

            needs = _zip(run_py="import nowhere", requirements_txt="nowhere-at-all>=1\n")
            with pytest.raises(CommandFailedError, match="nowhere-at-all>=1, which the image has not"):
                await plain.run_zip(needs, image=python_image)

            slow = _zip(
                app_py="import time\nopen('/work/out/part', 'w').write('half')\nprint('half', flush=True)\ntime.sleep(600)\n"
            )
            result = await plain.run_zip(slow, image=python_image, limit_s=3.0)
            assert result.files == {"part": b"half"}
            with zipfile.ZipFile(io.BytesIO(result.archive())) as archive:
                assert archive.read("task_stopped.txt").decode() == result.stopped
                assert "longer than the 3 s" in result.stopped
                assert b"half" in archive.read("task_logs.txt")

    asyncio.run(main())


def test_the_command_line_runs_containers_and_programs(tmp_path: Path, engine_socket: Path, python_image: str) -> None:
    environ = own_ports() | {"P2PCOMPUTE_CONTAINER_SOCKET": str(engine_socket), "P2PCOMPUTE_LAN": "false"}
    with machine(tmp_path / "home", environ=environ) as here:
        here.up("holder", "--slots", "1")
        (tmp_path / "a.txt").write_text("given\n")

        script = 'cat in/a; echo "$WHO" >&2; cat in/a > out/b; exit 5'
        given = ("--file", f"in/a={tmp_path}/a.txt", "--env", "WHO=me", "--out", f"{tmp_path}/o")
        done = here.run("run", "--image", BUSYBOX, *given, "--", "/bin/sh", "-c", script, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (5, "given\n", "me\n")
        assert (tmp_path / "o" / "b").read_text() == "given\n"
        again = here.run("run", "--image", BUSYBOX, "--out", f"{tmp_path}/o", "--", "/bin/true", check=False)
        assert again.returncode == 2
        assert "nothing was run" in again.stderr

        shown = here.run("run", "--json", "--image", BUSYBOX, "--", "/bin/sh", "-c", "echo 1 > out/kept")
        document = json.loads(shown.stdout)
        assert (document["status"], document["files"]) == (0, {"kept": 2})
        with zipfile.ZipFile(document["kept"]) as archive:
            assert archive.read("output/kept") == b"1\n"
        assert Path(document["kept"]).is_relative_to(tmp_path / "home" / "data" / "results")

        program, result = tmp_path / "p.zip", tmp_path / "r.zip"
        program.write_bytes(_zip(run_py="import sys, time; print(sys.argv[1:], flush=True); time.sleep(600)"))
        words = ("--image", python_image, "--limit", "3", "--zip", str(result), str(program), "--fast", "1")
        done = here.run("run", *words, check=False)
        assert done.returncode == 124, done.stderr
        assert done.stdout == "['--fast', '1']\n"
        with zipfile.ZipFile(result) as archive:
            assert set(archive.namelist()) == {"execution_log.txt", "task_logs.txt", "task_stopped.txt"}


def test_what_a_killed_peer_ran_ends_at_its_next_start(tmp_path: Path, engine_socket: Path) -> None:
    environ = own_ports() | {"P2PCOMPUTE_CONTAINER_SOCKET": str(engine_socket), "P2PCOMPUTE_LAN": "false"}

    async def containers(label: str) -> list[str]:
        engine = await ContainerEngine.connect([engine_socket])
        try:
            return await engine.labelled(label)
        finally:
            await engine.close()

    def running(peer: PeerProcess) -> bool:
        folder = here.home / "data" / "peers" / str(peer.number) / "containers"
        return any(path.name == "begun" for path in folder.glob("*/begun"))

    with machine(tmp_path / "home", environ=environ) as here:
        first = here.up("holder", "--slots", "1")
        script = "touch begun; sleep 600"
        submitter = subprocess.Popen(
            here.command("run", "--image", BUSYBOX, "--", "/bin/sh", "-c", script),
            env=here.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        until_now(lambda: running(first), "the container runs")
        status = first.ask("status")
        label = instance_label(parse_peer_id(status["peer"]), Path(status["folder"]))
        first.kill()
        submitter.wait(30)
        assert len(asyncio.run(containers(label))) == 1, "its container runs on, for nobody"
        second = here.up("holder", "--slots", "1", "--instance", str(first.number))
        assert asyncio.run(containers(label)) == []
        assert not running(second)


def test_the_doctor_says_which_engine_answers_or_what_is_missing(engine_socket: Path, tmp_path: Path) -> None:
    found = asyncio.run(container_finding(PeerConfig.test(container_socket=engine_socket), {}))
    assert found.level is Level.OK
    assert found.text.startswith("dockerd ")
    none = asyncio.run(
        container_finding(PeerConfig.test(container_socket=tmp_path / "none", engines=("container",)), {})
    )
    assert none.level is Level.WARN
    assert "no container engine runs here" in none.text
    assert "podman" in none.advice
