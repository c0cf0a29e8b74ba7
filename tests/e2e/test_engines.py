"""WebAssembly between whole peers: modules, Python of another version, open networks, and what submitters are told."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from engines_module import platform, platform_of, square

from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import (
    CannotShipError,
    NoAvailableNodesError,
    NotSerializableError,
    OutOfFuelError,
    TaskTimeoutError,
    UnknownNameError,
    UsageError,
    WasmTrapError,
    WorkerDiedError,
)
from p2pcompute.node.config import PeerConfig
from p2pcompute.node.folders import Folders
from p2pcompute.node.networks import Networks
from p2pcompute.node.peer import Peer
from p2pcompute.node.remote import RemotePeer
from p2pcompute.node.seams import SystemClock, SystemEntropy
from tests.support.peers import WAIT_S, machine, network, own_ports, until, until_now
from tests.support.wasm import WAT, place_compiled

pytest.importorskip("wasmtime", reason="wasmtime is not installed: pip install 'p2pcompute[wasm]'")
#: Where nothing has made the WebAssembly Python yet, the first test here does.
pytestmark = pytest.mark.timeout(400)

MODULE = Path(__file__).with_name("engines_module.py")


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that runs in a loop of its own, with a bound."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(100):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


@in_a_loop
async def test_a_module_s_functions_are_called_at_other_peers(tmp_path: Path) -> None:
    async with network(tmp_path, 2) as (here, there):
        module = here.wasm(WAT, fuel=10**7, takes_bytes=("shout",))
        assert await module.add(1, 2) == 3
        assert await here.submit(module.both, 5, 0.5) == (5, 0.5)
        assert await module.shout(b"hello") == b"HELLO"
        # Both peers have one slot, and there is enough for both.
        found = [value async for value in here.map(module["triangle"], range(1, 60))]
        assert found == [n * (n + 1) // 2 for n in range(1, 60)]
        total = await here.map_reduce(module.add, None, [(n, n) for n in range(10)], aggregation="sum")
        assert total.value == 90
        handle = await here.put(b"behind a handle")
        assert await module.shout(handle) == bytes(byte - 32 & 255 for byte in b"behind a handle")
        assert there.name_of(here.peer_id) == "peer1"
        for call, error, text in (
            (module.forever(), OutOfFuelError, "10000000 units of fuel"),
            (module.deep(), WasmTrapError, "call stack exhausted"),
            (module.unreachable(), WasmTrapError, "unreachable"),
            (module.add(1), UsageError, "takes 2 arguments, 1 was given"),
            (here.submit(module.add, 1, 2, 3), UsageError, "takes 2 arguments, 3 were given"),
            (module.shout("text"), UsageError, "exactly one argument of type bytes"),
        ):
            with pytest.raises(error, match=text):
                await call
        with pytest.raises(UnknownNameError, match="did you mean 'triangle'"):
            module.triangel
        slow = here.wasm(WAT, timeout_s=0.1)
        with pytest.raises(TaskTimeoutError, match=r"longer than 0\.1 s"):
            await slow.forever()
        greedy = here.wasm('(module (memory 60000) (func (export "f")))')
        with pytest.raises(WorkerDiedError, match="memory"):
            await greedy.f()
        with pytest.raises(CannotShipError, match=r"imports env\.f"):
            here.wasm('(module (import "env" "f" (func)))')
        with pytest.raises(UsageError, match="leave engine out"):
            await anext(here.map(module.add, [1], engine="python"))
        with pytest.raises(UsageError, match="runs no Python functions"):
            await anext(here.map(square, [1], engine="wasm"))
        with pytest.raises(UsageError, match="not by a Python function"):
            await here.map_reduce(module.add, sum, [1])


@in_a_loop
async def test_python_functions_run_in_webassembly_where_they_are_asked_to(tmp_path: Path, wasm_python: Path) -> None:
    place_compiled(tmp_path, wasm_python)
    async with network(tmp_path, 2) as (here, _):
        found = [value async for value in here.map(square, range(50), engine="wasm-python")]
        assert found == [n * n for n in range(50)]
        assert await anext(here.map(platform_of, [1], isolation="wasm", engine="wasm-python")) == "wasi"
        assert await here.submit(platform) != "wasi", "in a network of one's own, native Python unless told otherwise"
        import numpy

        with pytest.raises(NotSerializableError, match="package numpy does not exist"):
            await anext(here.map(square, [numpy.ones(2)], engine="wasm-python"))


@in_a_loop
async def test_in_an_open_network_strangers_get_webassembly_only(tmp_path: Path, wasm_python: Path) -> None:
    place_compiled(tmp_path, wasm_python)
    folders = Folders.beneath(tmp_path)
    Networks(folders, SystemClock(), SystemEntropy()).open("agora")
    async with Peer(PeerConfig.test(slots=1), folders=folders) as peer:
        assert peer.own.record.engines == ("wasm", "wasm-python")
        assert await peer.submit(platform) == "wasi"
        with pytest.raises(NoAvailableNodesError, match="engine"):
            await anext(peer.map(square, [1], requirements=["engine == python"]))
    async with Peer(PeerConfig.test(slots=1, engines=("python",)), folders=folders) as peer:
        assert peer.own.record.engines == ("python",), "its owner says otherwise"
        assert await anext(peer.map(platform_of, [1], engine="python")) != "wasi"


def copied(source: Path, target: Path) -> None:
    """A file that only its owner may write."""
    target.write_bytes(source.read_bytes())
    target.chmod(0o644)


@in_a_loop
async def test_what_is_made_later_is_offered_later(
    tmp_path: Path, wasm_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare(self: object, progress: object = None) -> Path:
        target = folders.data / "engines" / wasm_python.name
        await asyncio.to_thread(copied, wasm_python, target)
        return target

    monkeypatch.setattr("p2pcompute.node.wasm_engines.WasmEngines.prepare", prepare)
    folders = Folders.beneath(tmp_path)
    async with Peer(PeerConfig.test(slots=1, engines=("python", "wasm-python")), folders=folders) as peer:
        await until(lambda: Engine.WASM_PYTHON in peer.lender.offers.engines, "it is offered")
        await until(lambda: "wasm-python" in peer.own.record.engines, "others are told")
        assert await anext(peer.map(square, [3], engine="wasm-python")) == 9


def test_a_door_to_a_running_peer_knows_what_its_network_suggests(tmp_path: Path, wasm_python: Path) -> None:
    place_compiled(tmp_path / "home", wasm_python)
    with machine(tmp_path / "home", environ=own_ports()) as here:
        folders = Folders.beneath(here.home)
        Networks(folders, SystemClock(), SystemEntropy()).open("agora")
        peer = here.up("one", "--slots", "1")

        async def ask() -> str:
            async with asyncio.timeout(WAIT_S), await RemotePeer.connect(folders.socket_path(peer.number)) as remote:
                assert await remote.wasm(WAT).add(1, 2) == 3
                return await remote.submit(platform)

        assert asyncio.run(ask()) == "wasi"


def test_another_version_of_python_submits_and_all_see_the_same(
    tmp_path: Path, wasm_python: Path, other_pythons: tuple[Path, ...]
) -> None:
    place_compiled(tmp_path / "home", wasm_python)
    environ = own_ports()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(machine(tmp_path / "home", environ=environ))
        lender = first.up("lender", "--slots", "1")
        other = stack.enter_context(machine(tmp_path / "home", environ=environ, python=str(other_pythons[0])))
        other.up("submitter", "--slots", "0")
        until_now(lambda: lender.linked_names, "they are linked")
        results = {}
        for named, each in (("lender", first), ("submitter", other)):
            done = each.run(
                "map", str(MODULE), "where", "2", "3", "--engine", "wasm-python", "--peer", named, timeout_s=WAIT_S
            )
            results[named] = done.stdout
            assert "number 2" in done.stderr, "what it prints is shown"
        assert results["lender"] == results["submitter"]
        assert [line.split(",")[0] for line in results["lender"].splitlines()] == ['["wasi"', '["wasi"']


def test_the_command_line_lists_and_calls_what_a_module_offers(tmp_path: Path) -> None:
    wat = tmp_path / "m.wat"
    wat.write_text(WAT)
    with machine(tmp_path / "home", environ=own_ports()) as here:
        assert "add(i32, i32) -> i32" in here.run("wasm", str(wat)).stdout.splitlines()
        here.up("one", "--slots", "1")
        assert here.run("wasm", str(wat), "add", "20", "22").stdout == "42\n"
        each = here.run("wasm", str(wat), "add", "--each", "[1, 2]", "[3, 4]", "--json").stdout
        assert each.splitlines() == ['{"index": 0, "result": 3}', '{"index": 1, "result": 7}']
        for arguments, code, text in (
            (("add", "1"), 2, "takes 2 arguments, 1 was given"),
            (("forever", "--fuel", "1000"), 70, "1000 units of fuel"),
        ):
            done = here.run("wasm", str(wat), *arguments, check=False)
            assert (done.returncode, text in done.stderr) == (code, True), done.stderr
