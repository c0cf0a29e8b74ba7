"""Sandboxes of workers: who shares one, what grants open, what is left where a layer is missing, and what a machine is told about it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from p2pcompute.execution.pool import PoolSettings
from p2pcompute.execution.probes import sandbox_report
from p2pcompute.execution.sandbox import bubblewrap, cgroups, landlock, seccomp
from p2pcompute.execution.sandbox.grants import NO_GRANTS, GrantedFolder, choose, folder_variable
from p2pcompute.execution.sandbox.interpreter import Interpreter, ask
from p2pcompute.execution.sandbox.probe import Layer, SandboxReport
from p2pcompute.execution.sandbox.sandboxes import SandboxLauncher
from p2pcompute.execution.sandbox.shelter import BERTHS, make_shelter
from p2pcompute.model.errors import UsageError
from p2pcompute.model.job import Outcome
from p2pcompute.model.peer import Isolation
from tests.unit.execution.pool_help import Bench, bench, eventually, is_alive
from tests.unit.execution.program_help import decode_value, failure_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="not on this platform: sandboxes need Linux")

SOURCE = """
import os, signal, socket, subprocess, sys, time

def same(value):
    return value

def where():
    return [os.getcwd(), os.getpid(), os.readlink("/proc/self/ns/pid"), os.environ.get("P2PCOMPUTE_FOLDER_DATA", "")]

def read(path):
    return open(path).read()

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

def greet(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stream:
        return stream.recv(100)

def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout

def daemon(marker):
    # Away from the worker's session and parents.
    subprocess.Popen([sys.executable, "-c", "import os, time; os.setsid() if os.fork() == 0 else os._exit(0); time.sleep(600)", marker])
    return True

def end_template():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _real() -> None:
    lacking = sandbox_report().lacking(Isolation.SANDBOX)
    if lacking:
        pytest.skip(f"{lacking}; tests/setup.sh installs what it may")


async def value_of(on: Bench, worker: int, number: int, entry: str, *args: object) -> object:
    end = await on.call(worker, number, entry, *args)
    assert end.outcome is Outcome.RETURNED, failure_text(end.payload)
    return decode_value(end.payload)


async def refusal_of(on: Bench, worker: int, number: int, entry: str, *args: object) -> str:
    end = await on.call(worker, number, entry, *args)
    assert end.outcome is Outcome.RAISED, decode_value(end.payload)
    return failure_text(end.payload).strip().splitlines()[-1]


# --- who shares one ---------------------------------------------------------------------------------------------------


def test_workers_of_one_program_share_a_sandbox_and_those_of_others_do_not() -> None:
    async def main() -> None:
        async with bench() as on:
            workers = [on.spawn(SOURCE), on.spawn(SOURCE), on.spawn(SOURCE, submitter=1), on.spawn(SOURCE, submitter=2)]
            seen = [await value_of(on, worker, number, "where") for number, worker in enumerate(workers)]
            folders = [place[0] for place in seen]
            namespaces = [place[2] for place in seen]
            assert namespaces[0] == namespaces[1]
            assert len(set(namespaces)) == 3
            assert os.readlink("/proc/self/ns/pid") not in namespaces
            assert folders[0] != folders[1]
            assert "FileNotFoundError" in await refusal_of(on, workers[2], 10, "read", f"{folders[1]}/x")
            # Every worker is known by the machine's number of its process, whatever it calls itself.
            assert all(is_alive(on.pid(worker)) for worker in workers)
            assert len({on.pid(worker) for worker in workers}) == 4

    asyncio.run(main())


def test_a_sandbox_ends_with_its_last_worker_and_another_spare_is_made() -> None:
    async def main() -> None:
        async with bench() as on:
            warm = on.pool._warm
            assert isinstance(warm, SandboxLauncher)
            (spare,) = warm.template_pids
            first, second = on.spawn(SOURCE), on.spawn(SOURCE)
            assert await value_of(on, first, 0, "same", 1) == await value_of(on, second, 1, "same", 1)
            await eventually(lambda: len(warm.template_pids) == 2)
            on.pool.retire(first)
            await on.gone(first)
            assert spare in warm.template_pids
            on.pool.retire(second)
            await on.gone(second)
            await eventually(lambda: spare not in warm.template_pids)
            assert not is_alive(spare)
            assert len(warm.template_pids) == 1

    asyncio.run(main())


def test_more_workers_than_one_sandbox_has_room_for() -> None:
    async def main() -> None:
        async with bench() as on:
            workers = [on.spawn(SOURCE) for _ in range(BERTHS + 2)]
            seen = [await value_of(on, worker, number, "where") for number, worker in enumerate(workers)]
            assert len({(place[0], place[2]) for place in seen}) == BERTHS + 2
            assert len({place[2] for place in seen}) == 2

    asyncio.run(main())


def test_what_a_program_started_ends_with_its_worker_wherever_it_went() -> None:
    marker = f"daemon-of-{os.getpid()}"

    def daemons() -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if marker.encode() in (folder / "cmdline").read_bytes() and is_alive(int(folder.name)):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    async def main() -> None:
        async with bench() as on:
            worker = on.spawn(SOURCE, grants=("processes",))
            assert await value_of(on, worker, 0, "daemon", marker)
            await eventually(lambda: len(daemons()) >= 1)
            on.pool.retire(worker)
            await on.gone(worker)
            await eventually(lambda: not daemons())

    asyncio.run(main())


def test_a_program_that_kills_its_template_harms_itself_alone() -> None:
    async def main() -> None:
        async with bench() as on:
            other = on.spawn(SOURCE, submitter=1)
            await value_of(on, other, 0, "same", 1)
            # One that may signal others, and can reach its template where Landlock knows no signals.
            worker = on.spawn(SOURCE, grants=("processes",))
            on.pool.run(worker, [on.task(worker, 1, "end_template", timeout_s=5.0)])
            await on.ended(1)
            assert on.seen.outcome(1) in (Outcome.WORKER_DIED, Outcome.RAISED)
            assert await value_of(on, other, 2, "same", 2) == 2
            again = on.spawn(SOURCE, grants=("processes",))
            assert await value_of(on, again, 3, "same", 3) == 3

    asyncio.run(main())


def test_a_sandbox_that_is_killed_from_outside_is_replaced() -> None:
    async def main() -> None:
        async with bench() as on:
            warm = on.pool._warm
            assert isinstance(warm, SandboxLauncher)
            worker = on.spawn(SOURCE)
            await value_of(on, worker, 0, "same", 0)
            on.pool.run(worker, [on.task(worker, 1, "same", 1)])
            await on.ended(1)
            os.kill(warm.template_pids[0], signal.SIGKILL)
            _, _, outcome = await on.gone(worker)
            assert outcome is Outcome.WORKER_DIED
            assert await value_of(on, on.spawn(SOURCE), 2, "same", 2) == 2

    asyncio.run(main())


# --- grants -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [Isolation.RESTRICTED, Isolation.SANDBOX])
def test_granted_folders(level: Isolation, tmp_path: Path) -> None:
    data, results = tmp_path / "data", tmp_path / "results"
    for folder in (data, results):
        folder.mkdir()
        folder.chmod(0o777)
    (data / "table").write_text("1 2 3")
    offered = (GrantedFolder("data", data), GrantedFolder("results", results, writable=True))

    async def main() -> None:
        async with bench(isolation_most=level, folders=offered) as on:
            plain = on.spawn(SOURCE)
            await refusal_of(on, plain, 0, "read", str(data / "table"))
            worker = on.spawn(SOURCE, grants=("folder:data", "folder:results:rw"))
            place = await value_of(on, worker, 1, "where")
            assert isinstance(place, list)
            assert place[3] == str(data)
            assert await value_of(on, worker, 2, "read", f"{data}/table") == "1 2 3"
            await refusal_of(on, worker, 3, "write", f"{data}/table", "changed")
            await value_of(on, worker, 4, "write", f"{results}/sum", "6")
            reader = on.spawn(SOURCE, grants=("folder:results",))
            assert await value_of(on, reader, 5, "read", f"{results}/sum") == "6"
            await refusal_of(on, reader, 6, "write", f"{results}/sum", "7")
            with pytest.raises(UsageError, match="names no such folder"):
                on.spawn(SOURCE, grants=("folder:data:rw",))

    asyncio.run(main())
    assert (data / "table").read_text() == "1 2 3"
    assert (results / "sum").read_text() == "6"


@pytest.mark.parametrize("level", [Isolation.RESTRICTED, Isolation.SANDBOX])
def test_the_network_is_granted_as_a_whole_or_not_at_all(level: Isolation) -> None:
    async def main() -> None:
        async def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            writer.close()

        server = await asyncio.start_server(hello, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, bench(isolation_most=level) as on:
            assert "Error" in await refusal_of(on, on.spawn(SOURCE), 0, "greet", port)
            worker = on.spawn(SOURCE, grants=("network",))
            assert await value_of(on, worker, 1, "greet", port) == b"hello"
            with pytest.raises(UsageError, match="grant network as a whole"):
                on.spawn(SOURCE, grants=(f"network:127.0.0.1:{port}",))
        async with bench(isolation_most=level, whole_network=True) as on:
            assert on.spawn(SOURCE, grants=("network:example.org:80",))

    asyncio.run(main())


@pytest.mark.parametrize("level", [Isolation.RESTRICTED, Isolation.SANDBOX])
def test_processes_are_granted(level: Isolation) -> None:
    async def main() -> None:
        async with bench(isolation_most=level) as on:
            assert "PermissionError" in await refusal_of(on, on.spawn(SOURCE), 0, "run", "echo", "hello")
            worker = on.spawn(SOURCE, grants=("processes",))
            assert await value_of(on, worker, 1, "run", "echo", "hello") == "hello\n"

    asyncio.run(main())


def test_grants_are_chosen_from_texts(tmp_path: Path) -> None:
    folders = (GrantedFolder("data", tmp_path, writable=True),)
    assert choose((), folders, whole_network=False) == NO_GRANTS
    both = choose(("folder:data", "folder:data:rw", "gpu", "processes"), folders, whole_network=False)
    assert both.folders == (GrantedFolder("data", tmp_path.resolve(), writable=True),)
    assert (both.gpu, both.processes, both.network) == (True, True, False)
    assert not choose(("folder:data",), folders, whole_network=False).folders[0].writable
    assert folder_variable("my.data-1") == "P2PCOMPUTE_FOLDER_MY_DATA_1"
    with pytest.raises(UsageError, match="is no grant"):
        choose(("everything",), folders, whole_network=False)


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/sys", "/usr", "/tmp", "/dev/shm"])
def test_folders_that_would_open_the_sandbox_cannot_be_granted(path: str) -> None:
    with pytest.raises(UsageError, match="cannot be granted"):
        make_shelter(
            sandbox_report(),
            least=None,
            most=Isolation.SANDBOX,
            scratch_bytes=1,
            folders=(GrantedFolder("all", Path(path)),),
        )


# --- what is missing --------------------------------------------------------------------------------------------------


def test_without_bubblewrap_workers_are_restricted_and_the_peer_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    async def main() -> None:
        async with bench() as on:
            assert on.pool.isolation is Isolation.RESTRICTED
            place = await value_of(on, on.spawn(SOURCE), 0, "where")
            assert isinstance(place, list)
            assert place[2] == os.readlink("/proc/self/ns/pid")

    asyncio.run(main())
    layers = {layer.name: layer for layer in sandbox_report().layers}
    assert not layers["namespaces"].active
    assert "install the package bubblewrap" in layers["namespaces"].text
    with pytest.raises(UsageError, match=r"restricted, sandbox is wanted .*bubblewrap is not installed"):
        asyncio.run(_start(isolation=Isolation.SANDBOX))


def test_without_the_filter_of_system_calls_the_level_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)  # for nobody, whose rights sandboxes of root have
    (tmp_path / "pyseccomp.py").write_text("raise ImportError('as if it were not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = sandbox_report()
    assert report.level is Isolation.RESTRICTED
    assert "pip install pyseccomp" in report.lacking(Isolation.SANDBOX)

    async def main() -> None:
        async with bench() as on:
            assert on.pool.isolation is Isolation.RESTRICTED
            # Namespaces hold nevertheless.
            await refusal_of(on, on.spawn(SOURCE), 0, "read", __file__)
        async with bench(isolation_most=Isolation.RESTRICTED) as on:
            assert on.pool.isolation is Isolation.PROCESS, "Landlock alone is no level"

    asyncio.run(main())


def test_an_interpreter_that_does_not_run_leaves_nothing_to_hold() -> None:
    with pytest.raises(UsageError, match="does not run"):
        asyncio.run(_start(python="/no/such/python", isolation=Isolation.RESTRICTED))


async def _start(**settings: object) -> None:
    async with bench(**settings):
        pass


def test_a_report_says_what_is_lacking() -> None:
    report = SandboxReport(Isolation.PROCESS, (Layer("landlock", False, "too old a kernel"), Layer("limits", True, "")))
    assert report.lacking(Isolation.PROCESS) == ""
    assert "level process, restricted is wanted (landlock: too old a kernel)" in report.lacking(Isolation.RESTRICTED)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_an_interpreter_shows_no_private_folder(tmp_path: Path) -> None:
    home, packages = tmp_path / "home", tmp_path / "packages"
    for folder in (home / "work", packages):
        folder.mkdir(parents=True)
    search = os.pathsep.join((str(home), str(tmp_path), str(packages), os.environ.get("PYTHONPATH", "")))
    found = ask(sys.executable, {**os.environ, "PYTHONPATH": search}, [home / "work"])
    assert str(packages) in found.paths
    assert not {str(home), str(tmp_path), "/"} & set(found.paths)
    assert any(path.endswith("p2pcompute") for path in found.paths)


def test_every_writable_place_in_a_view_has_a_size() -> None:
    words = bubblewrap.arguments(
        bubblewrap.View(Interpreter("python", ()), scratch=("/tmp/1", "/tmp/2"), scratch_bytes=7)
    )
    for at, word in enumerate(words):
        if word == "--tmpfs":
            assert words[at - 2] == "--size"
    assert words.count("--tmpfs") == 3
    assert {words[at + 1] for at, word in enumerate(words) if word == "--remount-ro"} >= {"/", "/proc", "/dev"}
    assert "--bind" not in words


def test_rights_by_abi() -> None:
    assert landlock.handled_rights(1) == ((1 << 13) - 1, 0, 0)
    assert landlock.handled_rights(4) == ((1 << 15) - 1, 3, 0)
    assert landlock.handled_rights(6) == landlock.handled_rights(99) == ((1 << 16) - 1, 3, 3)


def test_a_filter_is_made_once_and_fitted_to_each_process() -> None:
    made = seccomp.compiled(seccomp.FilterRules())
    one, other = seccomp.for_process(made, 4711), seccomp.for_process(made, 4712)
    assert len(one) == len(other) == len(made)
    assert len({made, one, other}) == 3
    assert seccomp.for_process(one, 1) == one


def test_groups_of_version_2(tmp_path: Path) -> None:
    own = tmp_path / "user.slice" / "p2p.service"
    own.mkdir(parents=True)
    for name, text in (("cgroup.controllers", "cpu memory pids\n"), ("cgroup.subtree_control", "memory pids\n"), ("cgroup.procs", f"{os.getpid()}\n")):  # fmt: skip
        (own / name).write_text(text)
    found = cgroups.find(tmp_path, "0::/user.slice/p2p.service\n")
    assert (found.kind, set(found.bases)) == ("v2", {"memory", "pids", "cpu"})
    # The peer has moved out of the way, and what it wants limited is switched on.
    assert (own / f"p2pcompute-peer-{os.getpid()}" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    group = found.make("w", cgroups.GroupLimits(1 << 20, 7, 1.5))
    assert group is not None
    settings = {path.name: path.read_text() for path in (own / "w").iterdir()}
    assert settings["memory.max"] == str(1 << 20)
    assert settings["pids.max"] == "7"
    assert settings["cpu.max"] == "150000 100000"
    (own / "w" / "memory.events").write_text("oom 1\noom_kill 1\n")
    assert group.was_out_of_memory()


def test_groups_of_processes_that_are_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    found = cgroups.find(tmp_path, "0::/\n")
    assert found.kind == ""
    assert "Delegate=yes" in found.text


def test_settings_default_to_the_strictest() -> None:
    assert PoolSettings().isolation_most is Isolation.SANDBOX
