"""Containers as workers, at a real engine."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from p2pcompute.execution.container.program import ContainerProgram, pack_container_program
from p2pcompute.execution.sandbox.grants import GrantedFolder
from p2pcompute.execution.values import ClassResolver, Handle, decode_failure, encode
from p2pcompute.model import limits
from p2pcompute.model.engine import Demands, Engine
from p2pcompute.model.errors import BlobMissingError, CommandFailedError
from p2pcompute.model.job import Outcome
from tests.support.dockerd import BUSYBOX
from tests.unit.execution.container.conftest import MakeBench

pytestmark = pytest.mark.timeout(60)


async def test_a_command_answers_with_status_output_and_files(containers: MakeBench) -> None:
    async with containers() as bench:
        script = 'cat in/a.txt sent.txt; echo "$WHO $1" >&2; mkdir -p out/deep; cat in/a.txt > out/deep/b.txt; ls -l run.sh >&2'
        worker = bench.spawn(
            BUSYBOX, "/bin/sh", "-c", script, "sh",
            environment=(("WHO", "program"),), files=(("sent.txt", b"sent\n", False), ("run.sh", b"#!/bin/sh\n", True)),
        )  # fmt: skip
        result = await bench.result(worker, "one two", environment={"WHO": "task"}, files={"in/a.txt": b"given\n"})
        assert result.status == 0
        assert result.stdout == b"given\nsent\n"
        assert result.stderr.startswith(b"task one two\n-rwxr-xr-x")
        assert result.files == {"deep/b.txt": b"given\n"}
        assert result.stopped == ""
        assert "256 MiB of memory" in result.log
        assert "ended with status 0" in result.log
        assert bench.seen.printed(0, 1) == b"given\nsent\n"


async def test_nothing_of_one_task_is_there_for_the_next(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(
            BUSYBOX, "/bin/sh", "-c", "ls -A . out /tmp; echo mine > left; echo mine > out/left; echo mine > /tmp/left"
        )
        first, second = await bench.result(worker), await bench.result(worker)
        assert first.stdout == second.stdout
        assert b"left" not in second.stdout


async def test_a_status_other_than_0_is_a_failure_that_says_what_was_written_last(containers: MakeBench) -> None:
    async with containers() as bench:
        script = "echo before; echo 'it broke' >&2; exit 7"
        failure = await bench.failure(bench.spawn(BUSYBOX, "/bin/sh", "-c", script))
        assert isinstance(failure.exception, CommandFailedError)
        assert failure.exception.status == 7
        assert failure.exception.stderr == "it broke\n"
        assert "status 7:\nit broke" in failure.message
        unchecked = await bench.shell(script, checks=False)
        assert (unchecked.status, unchecked.stdout) == (7, b"before\n")


async def test_a_command_that_is_not_there_is_the_programs_fault(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(BUSYBOX, "/bin/nothing")
        failure = await bench.failure(worker)
        assert "/bin/nothing" in failure.message
        assert isinstance(failure.exception, CommandFailedError)
        assert failure.exception.status == 127


async def test_a_missing_image_is_named_with_what_to_do(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn("nobody/has:this", "true")
        await bench.seen.until(lambda: worker in bench.seen.gone)
        reason, _, text = bench.seen.failed[worker]
        assert reason == "bundle"
        assert "'nobody/has:this'" in text
        assert "docker pull nobody/has:this" in text
        assert bench.seen.gone[worker][2] is Outcome.CANNOT_RUN


async def test_a_gpu_that_the_engine_cannot_hand_out_is_said_before_anything_runs(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(BUSYBOX, "true", demands=Demands(grants=("gpu",)))
        await bench.seen.until(lambda: worker in bench.seen.gone)
        assert "NVIDIA Container Toolkit" in bench.seen.failed[worker][2]


async def test_an_image_that_may_be_pulled_is_tried_and_its_failure_told(
    containers: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pcompute.execution.container.engine._PULL_PAUSE_S", 0.01)
    async with containers(pull=("127.0.0.1:1/*",)) as bench:
        worker = bench.spawn("127.0.0.1:1/p2pcompute/none:1", "true")
        number = bench.give(worker)
        await bench.seen.until(lambda: worker in bench.seen.gone)
        assert bench.seen.gone[worker][0] == [(number, 0)]
        assert "could not be pulled" in bench.seen.failed[worker][2]
        told = [text for _, _, text in bench.seen.progress]
        assert told[0] == "pulling the image 127.0.0.1:1/p2pcompute/none:1"
        assert f"try {limits.IMAGE_PULL_TRIES}" in " ".join(told)


async def test_a_time_out_kills(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(BUSYBOX, "/bin/sh", "-c", "echo begun; sleep 600")
        end = await bench.end(bench.give(worker, timeout_s=1.0))
        assert end.outcome is Outcome.TIMED_OUT
        assert b"time-out of 1 s" in end.payload
        # The worker lives on.
        assert (await bench.end(bench.give(worker, timeout_s=0.5))).outcome is Outcome.TIMED_OUT


async def test_what_a_task_used_is_told_as_far_as_it_was_measured(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(BUSYBOX, "/bin/sh", "-c", "while :; do :; done")
        # Measured about once a second: on a busy machine a short task may end before.
        for timeout_s in (3.0, 6.0, 20.0):
            usage = (await bench.end(bench.give(worker, timeout_s=timeout_s))).usage
            if usage.cpu_us:
                break
        assert usage.cpu_us > 10_000
        assert usage.peak_memory_bytes > 10_000


async def test_a_task_that_is_stopped_by_its_limit_gives_what_it_has(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(BUSYBOX, "/bin/sh", "-c", "echo half; echo 1 > out/part; sleep 600")
        result = await bench.result(worker, limit_s=1.5)
        assert result.stdout == b"half\n"
        assert result.files == {"part": b"1\n"}
        assert "1.5 s" in result.stopped
        assert result.status == 137


async def test_cancelling_kills_what_runs_and_takes_back_what_waits(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(BUSYBOX, "/bin/sh", "-c", "echo begun; sleep 600")
        running, waiting = bench.give(worker), bench.give(worker)
        await bench.seen.until(lambda: bool(bench.seen.output))
        bench.pool.cancel(worker, [(running, 0), (waiting, 0)])
        assert (await bench.end(running)).outcome is Outcome.CANCELLED
        assert (await bench.end(waiting)).outcome is Outcome.CANCELLED
        assert worker in bench.pool.workers


async def test_a_worker_that_is_let_go_hands_back_what_it_had(containers: MakeBench) -> None:
    async with containers(cleanup_delay_s=600.0) as bench:
        worker = bench.spawn(BUSYBOX, "/bin/sh", "-c", "echo begun; sleep 600")
        running, waiting = bench.give(worker), bench.give(worker)
        await bench.seen.until(lambda: bool(bench.seen.output))
        bench.pool.retire(worker)
        await bench.seen.until(lambda: worker in bench.seen.gone)
        unfinished, _, outcome = bench.seen.gone[worker]
        assert sorted(unfinished) == [(running, 0), (waiting, 0)]
        assert outcome is Outcome.RETURNED_UNRUN


async def test_memory_is_bounded(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(BUSYBOX, "/bin/sh", "-c", "exec tail -c 200m /dev/zero", memory_bytes=32 << 20)
        end = await bench.end(bench.give(worker))
        assert end.outcome is Outcome.OUT_OF_MEMORY, end.payload
        assert b"32 MiB" in end.payload


async def test_processes_are_bounded(containers: MakeBench) -> None:
    async with containers() as bench:
        result = await bench.shell("for n in $(seq 40); do sleep 5 & done; echo all", processes=16, checks=False)
        assert result.status != 0 or b"can't fork" in result.stderr


async def test_disk_is_bounded(containers: MakeBench) -> None:
    async with containers() as bench:
        one = await bench.shell("head -c 50m /dev/zero > big; echo $?", scratch_bytes=4 << 20, checks=False)
        assert one.stdout != b"0\n"
        script = "for n in $(seq 600); do head -c 1m /dev/zero > part$n; sleep 0.01; done; sleep 600"
        failure = await bench.failure(bench.spawn(BUSYBOX, "/bin/sh", "-c", script, scratch_bytes=8 << 20))
        assert "8 MiB" in failure.message


async def test_output_is_bounded_and_its_end_kept(containers: MakeBench) -> None:
    async with containers() as bench:
        result = await bench.shell("yes 0123456789 | head -c 20m; echo the end")
        assert len(result.stdout) < limits.TASK_RESULT_OUTPUT_BYTES_MAX + 64 * 1024
        assert result.stdout.endswith(b"the end\n")
        assert b"bytes left out" in result.stdout
        assert len(bench.seen.printed(0, 1)) <= limits.TASK_OUTPUT_BYTES_MAX


async def test_links_and_devices_do_not_come_back(containers: MakeBench) -> None:
    async with containers() as bench:
        script = (
            "cd out; ln -s /etc/passwd link; mkdir d; ln -s / d/root; mkfifo pipe; echo ok > fine; ln -s fine alias"
        )
        result = await bench.shell(script)
        assert result.files == {"fine": b"ok\n"}
        assert sorted(text.split(":")[0] for text in result.left_out) == ["alias", "d/root", "link", "pipe"]
        replaced = await bench.shell("rm -r out; ln -s /etc out")
        assert replaced.files == {}
        through = await bench.shell("rm -r a; ln -s /etc a", outputs="a/ssl")
        assert through.files == {}
        assert through.left_out == ("a/ssl: it is no folder",)


async def test_a_file_may_be_a_handle(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(BUSYBOX, "/bin/cat", "in.bin")
        data = encode(b"held")
        handle = Handle(bytes(range(32)), len(data))
        number = bench.give(worker, files={"in.bin": handle})
        await bench.seen.until(lambda: bool(bench.seen.wanted))
        bench.pool.supply(worker, bench.seen.wanted[0][1], data)
        assert (await bench.end(number)).outcome is Outcome.RETURNED
        assert bench.seen.printed(number, 1) == b"held"
        number = bench.give(worker, files={"in.bin": handle})
        await bench.seen.until(lambda: len(bench.seen.wanted) == 2)
        bench.pool.supply(worker, bench.seen.wanted[1][1], None)
        failure = decode_failure((await bench.end(number)).payload, classes=ClassResolver({}))
        assert isinstance(failure.exception, BlobMissingError)


async def test_granted_folders_are_mounted_as_they_were_demanded(containers: MakeBench, tmp_path: Path) -> None:
    data, results, secret = tmp_path / "data", tmp_path / "results", tmp_path / "secret"
    for folder in (data, results, secret):
        folder.mkdir()
        folder.chmod(0o777)
    (data / "table").write_text("rows")
    folders = (
        GrantedFolder("data", data, True),
        GrantedFolder("results", results, True),
        GrantedFolder("secret", secret, True),
    )
    async with containers(folders=folders) as bench:
        script = (
            "cat /folders/data/table; echo x > /folders/data/new || echo no; echo y > /folders/results/new; ls /folders"
        )
        result = await bench.shell(script, demands=Demands(grants=("folder:data", "folder:results:rw")))
        assert result.stdout == b"rowsno\ndata\nresults\n"
        assert (results / "new").read_text() == "y\n"
        assert not (data / "new").exists()


async def test_what_a_killed_peer_left_is_removed_at_the_next_start(containers: MakeBench, tmp_path: Path) -> None:
    async with containers(instance="other") as other, containers(instance="mine", folder=tmp_path / "left") as bench:
        left = await bench.engine.create(
            {
                "Image": BUSYBOX,
                "Cmd": ["/bin/sleep", "600"],
                "Labels": {"p2pcompute.instance": "mine"},
                "HostConfig": {"NetworkMode": "none"},
            }
        )
        await bench.engine.start(left)
        folder = tmp_path / "again"
        (folder / "7").mkdir(parents=True)
        running = other.give(other.spawn(BUSYBOX, "/bin/sh", "-c", "echo here; sleep 600"))
        await other.seen.until(lambda: bool(other.seen.output))
        async with containers(instance="mine", folder=folder) as again:
            assert await again.engine.labelled("mine") == []
            assert list(folder.iterdir()) == []
            assert len(await again.engine.labelled("other")) == 1
        assert (running, 0) not in other.seen.ends


async def test_what_a_task_left_is_removed_after_the_delay(containers: MakeBench) -> None:
    async with containers(cleanup_delay_s=600.0) as bench:
        await bench.shell("true")
        assert len(await bench.engine.labelled(bench.folder.parent.name)) == 1
        assert len(list(bench.folder.iterdir())) == 1
    async with containers() as bench:
        await bench.shell("true")
        for _ in range(3_000):
            left = await bench.engine.labelled(bench.folder.parent.name), list(bench.folder.iterdir())
            if left == ([], []):
                break
            await asyncio.sleep(0.01)
        assert left == ([], [])


async def test_removing_what_a_task_left_changes_nothing_elsewhere(containers: MakeBench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o755)
    async with containers() as bench:
        await bench.shell(f"ln -s {outside} link; mkdir locked; touch locked/x; chmod 0 locked")
    assert outside.stat().st_mode & 0o777 == 0o755
    assert not bench.folder.exists()


async def test_a_program_that_is_none_is_refused(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn_packed(pack_container_program(ContainerProgram(1, Engine.CONTAINER, BUSYBOX))[:-3])
        await bench.seen.until(lambda: worker in bench.seen.gone)
        assert bench.seen.failed[worker][0] == "bundle"


async def test_arguments_that_lead_out_of_the_folder_fail_the_task(containers: MakeBench) -> None:
    async with containers() as bench:
        worker = bench.spawn(BUSYBOX, "/bin/true")
        for path in ("../x", "/etc/x", "a/../../x", "a\\b", "C:x"):
            failure = await bench.failure(worker, files={path: b""})
            assert "folder" in failure.message or "absolute" in failure.message, failure.message


async def test_an_engine_that_dies_fails_its_tasks(containers: MakeBench, engine_socket: Path, tmp_path: Path) -> None:
    cut: list[asyncio.StreamWriter] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(engine_socket)
        cut.extend((writer, engine_writer))
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(reader, engine_writer))
            group.create_task(_pump(engine_reader, writer))

    server = await asyncio.start_unix_server(forward, tmp_path / "s")
    async with containers(socket=tmp_path / "s") as bench:
        worker = bench.spawn(BUSYBOX, "/bin/sh", "-c", "echo begun; sleep 600")
        number = bench.give(worker)
        await bench.seen.until(lambda: bool(bench.seen.output))
        server.close()
        for writer in cut:
            writer.close()
        end = await bench.end(number)
        assert end.outcome is Outcome.WORKER_DIED
        assert b"container engine is gone" in end.payload
    async with containers() as bench:
        assert await bench.engine.labelled(tmp_path.name) == [], "the next start removes it"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_podman_does_the_same(containers: MakeBench, podman_socket: Path) -> None:
    async with containers(socket=podman_socket) as bench:
        assert bench.engine.info.name == "podman"
        result = await bench.shell(
            "echo given; echo 1 > out/a; touch /x 2>/dev/null && echo ESCAPED; ls /sys/class/net"
        )
        assert result.stdout == b"given\nlo\n"
        assert result.files == {"a": b"1\n"}
        assert (await bench.shell("exit 3", checks=False)).status == 3
        worker = bench.spawn(BUSYBOX, "/bin/sh", "-c", "exec tail -c 200m /dev/zero", memory_bytes=32 << 20)
        assert (await bench.end(bench.give(worker))).outcome is Outcome.OUT_OF_MEMORY
        worker = bench.spawn(BUSYBOX, "/bin/sh", "-c", "echo begun; sleep 600")
        assert (await bench.end(bench.give(worker, timeout_s=1.0))).outcome is Outcome.TIMED_OUT
        failure = await bench.failure(bench.spawn(BUSYBOX, "/bin/nothing"))
        assert isinstance(failure.exception, CommandFailedError)
        missing = bench.spawn("nobody/has:this", "true")
        await bench.seen.until(lambda: missing in bench.seen.gone)
        assert "docker pull nobody/has:this" in bench.seen.failed[missing][2]
